//! The images on a node: of the project's own, that they run under the strictest security context; of the stand-ins, that
//! they take commands as the public images do.
#![allow(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]

use std::fs;
use std::time::Duration;

use cabloy_tests::cluster::{Cluster, Namespace};
use cabloy_tests::{images, require_node, wait};
use serde_json::{Value, json};

/// Runs a container to its end and returns what it wrote. It may write nowhere, has an id that no image knows, and no rights.
async fn run(cluster: &Cluster, namespace: &Namespace, name: &str, container: Value) -> String {
    apply(cluster, namespace, name, container).await;
    let phase = wait::until(name, Duration::from_mins(1), async || {
        let path = ["get", "pod", name, "--output=jsonpath={.status.phase}", "--namespace", namespace];
        let phase = cluster.kubectl(&path).await.success();
        if ["Succeeded", "Failed"].contains(&phase.as_str()) { Ok(phase) } else { Err(phase) }
    })
    .await;
    let said = cluster.kubectl(&["logs", name, "--namespace", namespace]).await.success();
    assert_eq!(phase, "Succeeded", "{said}");
    said
}

async fn apply(cluster: &Cluster, namespace: &Namespace, name: &str, mut container: Value) {
    container["name"] = "main".into();
    container["securityContext"] = json!({
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "runAsUser": 1_000_750_000,
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
    });
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 2, "containers": [container]},
    });
    let apply = ["apply", "--filename=-", "--namespace", namespace];
    let _ = cluster.kubectl_with(&apply, &pod.to_string()).await.success();
}

#[tokio::test]
async fn own_images_are_small_and_need_no_rights() {
    let cluster = require_node!();
    let built = images::build().unwrap();
    let size = |tar| fs::metadata(tar).unwrap().len();
    assert!(size(&built.agent_tar) < 11_000_000, "one agent for each pod of an app: {}", size(&built.agent_tar));
    assert!(size(&built.operator_tar) < 30_000_000, "{}", size(&built.operator_tar));

    let namespace = cluster.namespace("images").await;
    for (program, tar) in [("cabloy-agent", &built.agent_tar), ("cabloy-operator", &built.operator_tar)] {
        cluster.import_image(tar).await;
        let image = format!("cabloy/{program}:{}", built.version);
        let said = run(cluster, &namespace, program, json!({"image": image, "args": ["--version"]})).await;
        assert_eq!(said.trim(), format!("{program} {}", built.version));
    }
}

#[tokio::test]
async fn redis_stands_in_for_the_public_image() {
    let cluster = require_node!();
    cluster.import_image(&images::redis().unwrap()).await;
    let namespace = cluster.namespace("images").await;
    let image = "redis:7";
    let version =
        run(cluster, &namespace, "version", json!({"image": image, "args": ["redis-server", "--version"]})).await;
    assert!(version.contains("v=7."), "{version}");

    // Options alone, the program with options, and a command past the entry point: each server answers other pods.
    for (name, container) in [
        ("options", json!({"image": image, "args": ["--save", "", "--port", "6400"]})),
        ("server", json!({"image": image, "args": ["redis-server", "--port", "6400"]})),
        ("command", json!({"image": image, "command": ["redis-server", "--save", "", "--port", "6400"]})),
    ] {
        apply(cluster, &namespace, name, container).await;
        let address = wait::until(name, Duration::from_mins(1), async || {
            let path = ["get", "pod", name, "--output=jsonpath={.status.podIP}", "--namespace", &namespace];
            Some(cluster.kubectl(&path).await.success()).filter(|ip| !ip.is_empty())
        })
        .await;
        let ask = format!("until redis-cli -h {address} -p 6400 ping; do sleep 0.2; done");
        let client = json!({"image": image, "command": ["sh", "-c", ask]});
        let said = run(cluster, &namespace, &format!("ask-{name}"), client).await;
        assert!(said.ends_with("PONG\n") && !said.contains("DENIED"), "{said}");
    }
}

#[tokio::test]
async fn node_stands_in_for_the_public_image() {
    let cluster = require_node!();
    cluster.import_image(&images::node().unwrap()).await;
    let namespace = cluster.namespace("images").await;
    let print = "console.log(process.version)";
    for (name, container) in [
        ("options", json!({"args": ["-e", print]})),
        ("program", json!({"args": ["node", "-e", print]})),
        ("shell", json!({"command": ["sh", "-c", format!("sleep 0.1 && exec node -e '{print}'")]})),
    ] {
        let mut container = container;
        container["image"] = "node:20-slim".into();
        let said = run(cluster, &namespace, name, container).await;
        assert!(said.starts_with("v20."), "{said}");
    }
}
