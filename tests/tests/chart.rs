//! The Helm chart: what it renders, what it refuses, and its life on a real API server.
#![allow(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use cabloy_tests::cluster::{Cluster, Shape};
use cabloy_tests::tools::Tools;
use cabloy_tests::wait;
use serde_json::Value;

/// A path in the checkout.
fn checkout(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn chart() -> String {
    checkout("charts/cabloy-operator").display().to_string()
}

/// Runs helm without a cluster, as for one of the newest supported version.
fn helm(args: &[&str]) -> Output {
    Command::new(&Tools::get().helm)
        .args(args)
        .args(["--kube-version", "1.35.0"])
        .env("KUBECONFIG", "/dev/null")
        .output()
        .unwrap()
}

/// The objects of `helm template` with these values, in order.
fn template(sets: &[&str]) -> Vec<Value> {
    let chart = chart();
    let mut args = vec!["template", "cabloy-operator", &chart, "--namespace", "cabloy-system"];
    args.extend(sets.iter().flat_map(|set| ["--set", *set]));
    let output = helm(&args);
    assert!(output.status.success(), "{sets:?}: {}", String::from_utf8_lossy(&output.stderr));
    objects(&output.stdout)
}

fn objects(yaml: &[u8]) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_slice(yaml);
    let all = documents.map(|document| serde::Deserialize::deserialize(document).unwrap());
    all.filter(|object: &Value| !object.is_null()).collect()
}

fn kinds(objects: &[Value]) -> Vec<&str> {
    objects.iter().filter_map(|object| object["kind"].as_str()).collect()
}

fn find<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap()
}

fn operator_args(objects: &[Value]) -> Vec<&str> {
    let args = &find(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"];
    args.as_array().unwrap().iter().filter_map(Value::as_str).collect()
}

#[test]
fn lint_is_silent() {
    let output = helm(&["lint", "--strict", "--quiet", &chart()]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert_eq!(said.trim(), "");
}

#[test]
fn chart_has_the_repository_s_crd() {
    let copy = fs::read_to_string(checkout("charts/cabloy-operator/files/cabloyclusters.yaml")).unwrap();
    let generated = fs::read_to_string(checkout("crds/cabloyclusters.yaml")).unwrap();
    assert!(copy == generated, "cp crds/cabloyclusters.yaml charts/cabloy-operator/files/");
}

#[test]
fn chart_and_programs_have_one_version() {
    let chart: Value =
        serde_yaml::from_slice(&fs::read(checkout("charts/cabloy-operator/Chart.yaml")).unwrap()).unwrap();
    assert_eq!(chart["appVersion"], cabloy_tests::images::VERSION);
    assert_eq!(chart["version"], cabloy_tests::images::VERSION);
}

#[test]
fn crd_is_the_generated_one_with_and_without_keep() {
    let mut crd: Value = serde_yaml::from_slice(&fs::read(checkout("crds/cabloyclusters.yaml")).unwrap()).unwrap();
    assert_eq!(*find(&template(&["crds.keep=false"]), "CustomResourceDefinition"), crd);
    crd["metadata"]["annotations"]["helm.sh/resource-policy"] = "keep".into();
    assert_eq!(*find(&template(&[]), "CustomResourceDefinition"), crd);
    assert!(!kinds(&template(&["crds.enabled=false"])).contains(&"CustomResourceDefinition"));
}

#[test]
fn values_choose_the_objects() {
    let usual = template(&[]);
    let mut found = kinds(&usual);
    found.sort_unstable();
    let expected =
        ["ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "Deployment", "Service", "ServiceAccount"];
    assert_eq!(found, expected);

    let objects = template(&["watchNamespaces={prod,staging}"]);
    let watched = kinds(&objects);
    assert!(!watched.iter().any(|kind| kind.starts_with("ClusterRole")));
    let namespaces = |kind: &str| -> Vec<_> {
        objects.iter().filter(|o| o["kind"] == kind).map(|o| o["metadata"]["namespace"].clone()).collect()
    };
    assert_eq!(namespaces("Role"), ["prod", "staging"]);
    assert_eq!(namespaces("RoleBinding"), ["prod", "staging"]);
    assert_eq!(find(&objects, "Role")["rules"], find(&usual, "ClusterRole")["rules"]);
    let args = operator_args(&objects);
    assert!(args.contains(&"--watch-namespace=prod") && args.contains(&"--watch-namespace=staging"));

    assert!(!kinds(&template(&["metrics.service.enabled=false"])).contains(&"Service"));
    assert!(kinds(&template(&["metrics.serviceMonitor.enabled=true"])).contains(&"ServiceMonitor"));
    assert!(kinds(&template(&["networkPolicy.enabled=true"])).contains(&"NetworkPolicy"));
    assert!(!kinds(&template(&["rbac.create=false"])).iter().any(|kind| kind.contains("Role")));
    let foreign = template(&["serviceAccount.create=false", "serviceAccount.name=robot"]);
    assert!(!kinds(&foreign).contains(&"ServiceAccount"));
    assert_eq!(find(&foreign, "ClusterRoleBinding")["subjects"][0]["name"], "robot");
}

#[test]
fn images_come_from_the_values() {
    let version = cabloy_tests::images::VERSION;
    let image = |objects: &[Value]| {
        find(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap().to_owned()
    };
    let usual = template(&[]);
    assert_eq!(image(&usual), format!("cabloy/cabloy-operator:{version}"));
    let args = operator_args(&usual);
    assert!(args.contains(&"--agent-image=cabloy/cabloy-agent"));
    assert!(args.contains(&format!("--agent-version={version}").as_str()));

    let digest = format!("sha256:{}", "0".repeat(64));
    let own = template(&[
        "image.repository=registry.example:5000/op",
        "image.tag=v7",
        &format!("image.digest={digest}"),
        "agent.image.repository=registry.example:5000/agent",
        "agent.image.tag=v8",
    ]);
    assert_eq!(image(&own), format!("registry.example:5000/op@{digest}"));
    let args = operator_args(&own);
    assert!(args.contains(&"--agent-image=registry.example:5000/agent"));
    assert!(args.contains(&"--agent-version=v8"));
}

#[test]
fn unknown_and_wrong_values_are_refused_by_name() {
    for (set, named) in [
        ("replicas=2", "replicas"),
        ("image.registry=example.com", "registry"),
        ("agent.version=1", "version"),
        ("crds.enable=false", "enable"),
        ("log.format=xml", "format"),
        ("image.digest=latest", "digest"),
        ("concurrency=0", "concurrency"),
        ("watchNamespaces={Prod}", "watchNamespaces"),
        ("metrics.service.enabled=false,metrics.serviceMonitor.enabled=true", "serviceMonitor"),
    ] {
        let output = helm(&["template", "x", &chart(), "--set", set]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{set} was taken");
        assert!(said.contains(named), "{set}: {said}");
    }
    // As a dependency of another chart it also gets the values that all charts share.
    template(&["global.region=eu"]);
}

/// The README's table, the schema and the values file list the same values.
#[test]
fn readme_and_schema_have_every_value() {
    let dir = checkout("charts/cabloy-operator");
    let values: Value = serde_yaml::from_slice(&fs::read(dir.join("values.yaml")).unwrap()).unwrap();
    let schema: Value = serde_json::from_slice(&fs::read(dir.join("values.schema.json")).unwrap()).unwrap();
    let readme = fs::read_to_string(dir.join("README.md")).unwrap();

    let mut leaves = Vec::new();
    collect(&values, &schema, "", &mut leaves);
    let mut rows: Vec<&str> =
        readme.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(name, _)| name)).collect();
    rows.sort_unstable();
    leaves.sort_unstable();
    assert_eq!(rows, leaves);
}

/// Walks what the schema closes (no further properties) and lists the rest as leaves, `resources` as one.
fn collect(values: &Value, schema: &Value, path: &str, leaves: &mut Vec<String>) {
    for (name, value) in values.as_object().unwrap() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let schema = &schema["properties"][name];
        assert!(schema.is_object(), "{path} is not in the schema");
        if schema["additionalProperties"] == false && name != "resources" {
            let (known, documented) =
                (schema["properties"].as_object().unwrap().len(), value.as_object().unwrap().len());
            assert_eq!(known, documented, "the schema knows more below {path} than values.yaml");
            collect(value, schema, &path, leaves);
        } else {
            leaves.push(path);
        }
    }
}

#[test]
fn old_kubernetes_is_refused() {
    let chart = chart();
    let old = Command::new(&Tools::get().helm).args(["template", "x", &chart, "--kube-version", "1.32.9"]).output();
    let old = old.unwrap();
    assert!(!old.status.success() && String::from_utf8_lossy(&old.stderr).contains(">=1.33.0-0"));
}

/// What the API server says of the objects when it is strict about fields that it does not know.
#[tokio::test]
async fn api_server_takes_every_object() {
    let cluster = Cluster::start(Shape::ControlPlane).unwrap();
    let namespace = cluster.namespace("cabloy-system").await;
    let chart = chart();
    let watched = format!("watchNamespaces={{default,{namespace}}}");
    for sets in [
        &[][..],
        &["crds.keep=false", "imagePullSecrets[0].name=registry", "rbac.create=false"],
        &[&watched, "networkPolicy.enabled=true", "networkPolicy.from[0].podSelector.matchLabels.app=prometheus"],
        &[
            "crds.enabled=false",
            "priorityClassName=system-cluster-critical",
            "tolerations[0].operator=Exists",
            "nodeSelector.disk=ssd",
            "topologySpreadConstraints[0].maxSkew=1",
            "topologySpreadConstraints[0].topologyKey=zone",
            "topologySpreadConstraints[0].whenUnsatisfiable=ScheduleAnyway",
            "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].key=disk",
            "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].operator=Exists",
            "podAnnotations.note=text",
            "podLabels.team=shop",
            "serviceAccount.annotations.note=text",
            "metrics.service.annotations.note=text",
            "extraArgs[0]=--verbose",
            "extraEnv[0].name=A",
            "extraEnv[0].value=b",
        ],
    ] {
        let mut args =
            vec!["template", "cabloy-operator", &chart, "--kube-version", "1.35.0", "--namespace", &namespace];
        args.extend(sets.iter().flat_map(|set| ["--set", *set]));
        let manifest = cluster.helm(&args).await.success();
        let apply = ["apply", "--dry-run=server", "--validate=strict", "--filename=-"];
        let answer = cluster.kubectl_with(&apply, &manifest).await.success();
        assert_eq!(answer.lines().count(), objects(manifest.as_bytes()).len(), "{answer}");
    }
}

/// Install over a CRD that kubectl applied, first resource by the notes, upgrade, uninstall, install again, and leave.
#[tokio::test]
async fn install_upgrade_uninstall() {
    let cluster = Cluster::start(Shape::ControlPlane).unwrap();
    let namespace = cluster.namespace("cabloy-system").await;
    let chart = chart();
    let release = ["cabloy-operator", chart.as_str(), "--namespace", &namespace];
    let helm = async |command: &str, more: &[&str]| {
        let args: Vec<&str> = [command].iter().chain(&release).chain(more).copied().collect();
        cluster.helm(&args).await
    };
    let uninstall = async || cluster.helm(&["uninstall", "cabloy-operator", "--namespace", &namespace]).await.success();
    let can = async |verb: &str, resource: &str, place: &str| {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let subresource = format!("--subresource={subresource}");
        let robot = format!("--as=system:serviceaccount:{namespace}:cabloy-operator");
        let args = ["auth", "can-i", verb, resource, &subresource, &robot, "--namespace", place];
        cluster.kubectl(&args).await.status.success()
    };
    let exists =
        async |object: &str| cluster.kubectl(&["get", object, "--namespace", &namespace]).await.status.success();
    let crd = "crd/cabloyclusters.cabloy.io";
    let label = format!("namespace/{namespace}");
    let _ = cluster.kubectl(&["label", &label, "pod-security.kubernetes.io/enforce=restricted"]).await.success();

    let file = checkout("crds/cabloyclusters.yaml").display().to_string();
    let _ = cluster.kubectl(&["apply", "--server-side", "--filename", &file]).await.success();
    assert!(!helm("install", &[]).await.status.success(), "what kubectl owns is not taken without a word");
    let notes = helm("install", &["--take-ownership"]).await.success();
    let _ = cluster.kubectl(&["wait", "--for=condition=Established", crd]).await.success();

    // A restricted namespace lets the pod in.
    wait::until("the operator's pod", Duration::from_secs(30), async || {
        let selector = "--selector=app.kubernetes.io/instance=cabloy-operator";
        let pods = ["get", "pods", selector, "--output=name", "--namespace", &namespace];
        !cluster.kubectl(&pods).await.success().is_empty()
    })
    .await;

    // The notes are commands to be copied.
    let (_, rest) = notes.split_once("<<'EOF'\n").unwrap();
    let (example, _) = rest.split_once("\nEOF\n").unwrap();
    let _ = cluster.kubectl_with(&["apply", "--filename=-"], example).await.success();

    // All that the operator does, and the next thing to each that it must not.
    for (verb, resource, allowed) in [
        ("patch", "cabloyclusters.cabloy.io", true),
        ("patch", "cabloyclusters.cabloy.io/status", true),
        ("update", "cabloyclusters.cabloy.io/finalizers", false),
        ("delete", "cabloyclusters.cabloy.io", false),
        ("patch", "deployments.apps", true),
        ("patch", "statefulsets.apps", true),
        ("patch", "daemonsets.apps", true),
        ("create", "deployments.apps", false),
        ("delete", "deployments.apps", false),
        ("patch", "deployments.apps/scale", false),
        ("list", "replicasets.apps", true),
        ("watch", "controllerrevisions.apps", true),
        ("patch", "replicasets.apps", false),
        ("create", "configmaps", true),
        ("patch", "configmaps", true),
        ("delete", "configmaps", true),
        ("deletecollection", "configmaps", false),
        ("patch", "pods", true),
        ("create", "pods", false),
        ("delete", "pods", false),
        ("create", "pods/exec", false),
        ("create", "events.events.k8s.io", true),
        ("get", "secrets", false),
        ("list", "secrets", false),
        ("create", "secrets", true),
        ("patch", "secrets", false),
        ("update", "secrets", false),
        ("delete", "secrets", false),
        ("get", "namespaces", true),
        ("list", "namespaces", false),
    ] {
        assert_eq!(can(verb, resource, "default").await, allowed, "{verb} {resource}");
    }

    let watched = format!("watchNamespaces={{{namespace}}}");
    let notes = helm("upgrade", &["--set", &watched, "--set", "log.level=debug"]).await.success();
    assert!(notes.contains(&format!("kubectl --namespace {namespace} apply -f -")), "{notes}");
    assert!(can("list", "cabloyclusters.cabloy.io", &namespace).await);
    assert!(!can("list", "cabloyclusters.cabloy.io", "default").await);
    let deployment = ["get", "deployment/cabloy-operator", "--output=yaml", "--namespace", &namespace];
    let deployment = cluster.kubectl(&deployment).await.success();
    assert!(deployment.contains(&format!("--watch-namespace={namespace}")) && deployment.contains("value: debug"));

    let _ = uninstall().await;
    assert!(!exists("deployment/cabloy-operator").await);
    assert!(exists(crd).await && cluster.kubectl(&["get", "cabloycluster/shop"]).await.status.success());
    let _ = helm("install", &[]).await.success();

    let _ = helm("upgrade", &["--set", "crds.keep=false"]).await.success();
    let _ = uninstall().await;
    let _ = cluster.kubectl(&["wait", "--for=delete", crd, "--timeout=30s"]).await.success();
}
