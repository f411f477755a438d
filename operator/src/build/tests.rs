use std::{fmt::Write as _, path::Path, sync::Arc};

use cabloy_crds::{
    agent_status::{AgentStatus, ElectionStatus, StartupState, StartupStatus},
    files::AgentFile,
};
use serde_json::{Value, json};

use super::*;
use crate::{
    agents::{AgentPod, Report},
    dereference::RevisionFound,
    validate::tests::sound,
    workload::Live,
};

fn settings() -> Settings {
    Settings {
        agent_image: "repo/agent".into(),
        agent_version: "1.0.0".into(),
        agent_pull_policy: "IfNotPresent".into(),
    }
}

fn web() -> (WorkloadRef, Option<Live>) {
    let reference = WorkloadRef { kind: cabloy_crds::resource::WorkloadKind::Deployment, name: "web".into() };
    let live = json!({
        "metadata": { "name": "web", "uid": "uid-of-web", "resourceVersion": "1" },
        "spec": { "template": { "spec": { "containers": [{ "name": "app", "image": "shop:2" }] } } },
    });
    (reference, Some(Live(live)))
}

fn revision(hash: &str, number: u64, image: &str) -> RevisionFound {
    RevisionFound {
        owner: "uid-of-web".into(),
        hash: hash.into(),
        number,
        boot: None,
        containers: vec![("app".into(), image.into())],
    }
}

fn found() -> Found {
    Found {
        workloads: [web()].into(),
        revisions: vec![revision("old", 1, "shop:1"), revision("new", 2, "shop:2")],
        ..Found::default()
    }
}

fn agent_file(prepared: &Prepared) -> AgentFile {
    let map = prepared.config_maps.iter().find(|map| map.metadata.name.as_deref() == Some("mall-agent")).unwrap();
    serde_json::from_str(&map.data.as_ref().unwrap()[AGENT_FILE]).unwrap()
}

fn everything() -> Value {
    json!({
        "app": { "name": "shop", "generation": "v4", "port": 7100, "configFrom": [{ "secretRef": { "name": "shop-config" } }] },
        "workloads": [{ "name": "web", "container": "app", "nodeOptions": "--max-old-space-size=512" }],
        "redis": {
            "connections": {
                "default": { "host": "redis-main", "username": "shop", "passwordSecretRef": { "name": "redis-main", "key": "password" } },
                "lock-a": { "host": "lock-a" },
                "lock-b": { "host": "lock-b", "passwordSecretRef": { "name": "locks", "key": "b" } },
                "lock-c": { "host": "lock-c" },
            },
            "roles": {
                "redlock": { "connections": ["lock-a", "lock-b", "lock-c"] },
                "limiter": { "db": 2 },
                "broadcast": { "host": "redis-bus", "passwordSecretRef": { "name": "bus", "key": "password" } },
                "io": { "db": 4, "keyPrefix": "io_shop:" },
            },
        },
        "nativeSchedules": "Guard",
        "nativeScheduleHistory": { "completed": 100, "failed": 50 },
        "agent": { "tracing": { "endpoint": "http://otel-collector.observability:4318", "sampleRatio": 0.25 } },
        "schedules": [{
            "name": "nightly-report", "cron": "0 3 * * *", "timeZone": "Asia/Shanghai", "jitter": "5s", "timeout": "10m",
            "retry": { "limit": 3 },
            "target": { "http": { "path": "/api/shop/report/nightly", "body": { "full": true }, "remembersRuns": true } },
        }, {
            "name": "render", "every": "1h",
            "target": { "queue": {
                "module": "shop-report", "queueName": "render", "queueNameSub": "pdf", "jobName": "hourly", "data": { "pages": 2 },
                "jobOptions": { "attempts": 3, "backoff": { "delay": "5s" }, "removeOnComplete": true },
            } },
        }, {
            "name": "refresh", "every": "30s",
            "target": { "broadcast": { "module": "shop-report", "broadcastName": "refresh", "subdomain": "t1" } },
        }, {
            "name": "sync", "every": "1m", "instances": ["", "north"], "takesOver": "shop-report.sync",
            "target": { "bean": { "module": "shop-report", "name": "schedule.sync", "data": { "limit": 10 } } },
        }],
        "startups": [
            { "name": "migrate", "target": { "http": { "path": "/api/shop/migrate" } } },
            { "name": "warm", "scope": "Instance", "after": ["migrate"], "gate": "None", "target": { "http": { "path": "/", "method": "GET" } } },
        ],
    })
}

/// Compares with the file in `golden`; with `UPDATE_GOLDEN` set writes it.
fn golden(name: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/build/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&file, text).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        expected == text,
        "{} differs; run the tests with UPDATE_GOLDEN=1 and look at the change:\n{text}",
        file.display()
    );
}

fn render(spec: &Value) -> String {
    let prepared = build(&sound(spec), &found(), &settings()).unwrap();
    let mut text = String::new();
    for map in &prepared.config_maps {
        let mut map = serde_json::to_value(map).unwrap();
        // The script has tests of its own, and so its hash is not pinned here.
        if let Some(script) = map.pointer_mut("/data/preload.cjs") {
            *script = json!("the preload script\n");
        }
        writeln!(text, "---\n{}", serde_yaml::to_string(&map).unwrap().trim_end()).unwrap();
    }
    for (_, plan) in &prepared.workloads {
        let Plan::Apply { patch, .. } = plan else { panic!("{plan:?}") };
        writeln!(text, "---\n{}", serde_yaml::to_string(patch).unwrap().trim_end()).unwrap();
    }
    let validated = sound(spec);
    text.replace(&boot::boot(&validated).unwrap().name, "mall-boot-HASH")
}

#[test]
fn everything_is_written_as_documented() {
    golden("v4.yaml", &render(&everything()));
    golden("least.yaml", &render(&json!({})));
    golden("vona.yaml", &render(&json!({ "app": { "name": "shop", "generation": "vona" } })));
    golden(
        "vona-roles.yaml",
        &render(&json!({
            "app": { "name": "shop", "generation": "vona", "mergesConfig": true, "configFrom": [{ "secretRef": { "name": "shop-config" } }] },
            "redis": { "connections": { "a": { "host": "a" }, "b": { "host": "b" } }, "roles": { "default": { "connection": "a" }, "queue": { "connection": "b" } } },
        })),
    );
    golden(
        "generic.yaml",
        &render(
            &json!({ "app": { "name": "shop", "generation": "generic", "healthPath": "/healthz" }, "agent": { "enabled": false } }),
        ),
    );
}

fn pod_with(status: AgentStatus, found: Found) -> Found {
    let pod = AgentPod {
        name: "web-0".into(),
        uid: "u".into(),
        cluster: "mall".into(),
        namespace: "prod".into(),
        ip: None,
        scheduled: true,
        terminating: false,
        agent_image: None,
        agent_runs: true,
        synced: None,
        secrets: None,
        started: BTreeMap::new(),
        boot: None,
    };
    Found { pods: vec![pod], reports: [("u".to_owned(), Report::Answered(Arc::new(status)))].into(), ..found }
}

fn with_token(token: u64) -> AgentStatus {
    AgentStatus {
        election: Some(ElectionStatus { leading: true, token: Some(token), ..Default::default() }),
        ..Default::default()
    }
}

#[test]
fn the_token_is_mirrored_in_coarse_steps() {
    let validated = sound(&everything());
    let mut found = found();
    found.agent_file = Some(agent_file(&build(&validated, &found, &settings()).unwrap()));
    let token = |found: &Found, token: u64| {
        let found = pod_with(with_token(token), found.clone());
        agent_file(&build(&validated, &found, &settings()).unwrap()).floor.token
    };
    assert_eq!(token(&found, 99), 0);
    assert_eq!(token(&found, 100), 100);
    found.revisions.push(revision("newer", 3, "shop:3"));
    assert_eq!(token(&found, 5), 5, "with any other write");
}

#[test]
fn done_startup_tasks_are_mirrored_and_stay() {
    let validated = sound(&everything());
    let task = |state| StartupStatus {
        name: "migrate".into(),
        revision: "r1".into(),
        state,
        attempt: 1,
        deadline: None,
        message: String::new(),
    };
    let file = |state, found: Found| {
        let found = pod_with(AgentStatus { startups: vec![task(state)], ..Default::default() }, found);
        agent_file(&build(&validated, &found, &settings()).unwrap())
    };
    assert!(file(StartupState::Running, found()).floor.startups.is_empty());
    let done = file(StartupState::Done, found());
    assert_eq!(done.floor.startups["migrate"], ["r1"]);
    let found = Found { agent_file: Some(done), ..found() };
    assert_eq!(file(StartupState::Done, found.clone()).floor.startups["migrate"], ["r1"], "once");
    assert_eq!(file(StartupState::Pending, found).floor.startups["migrate"], ["r1"]);
}

#[test]
fn a_task_is_done_for_the_image_and_its_text() {
    let of = |spec: &Value, found: &Found| agent_file(&build(&sound(spec), found, &settings()).unwrap()).revisions;
    let revisions = of(&everything(), &found());
    assert_ne!(revisions["old"].startups["migrate"], revisions["new"].startups["migrate"], "another image");
    assert!(!revisions["new"].startups.contains_key("warm"), "scope Instance has no revision");

    let mut edited = everything();
    edited["startups"][0]["target"]["http"]["path"] = json!("/other");
    let after = Found {
        agent_file: Some(agent_file(&build(&sound(&everything()), &found(), &settings()).unwrap())),
        ..found()
    };
    let again = of(&edited, &after);
    assert_ne!(again["new"].startups, revisions["new"].startups, "another text is another task");
    assert_eq!(again["old"].startups, revisions["old"].startups, "older pods are not gated anew");

    let mut said = everything();
    said["startups"][0]["revision"] = json!("v42");
    let said = of(&said, &after);
    assert_eq!(said["new"].startups["migrate"], "v42");
    assert_eq!(said["old"].startups, revisions["old"].startups);
}

#[test]
fn a_task_that_is_done_once_more_is_done_when_nobody_asks_for_it_any_more() {
    let again = |found: &Found| {
        let mut validated = sound(&everything());
        validated.reruns.insert("migrate".into(), "a".into());
        agent_file(&build(&validated, found, &settings()).unwrap())
    };
    let plain = agent_file(&build(&sound(&everything()), &found(), &settings()).unwrap()).revisions;
    let file = again(&found());
    let revision = format!("{}~a", plain["new"].startups["migrate"]);
    assert_eq!(file.revisions["new"].startups["migrate"], revision);
    assert_eq!(file.revisions["old"].startups, plain["old"].startups, "older code does not do it again");

    let status = StartupStatus {
        name: "migrate".into(),
        revision: revision.clone(),
        state: StartupState::Done,
        attempt: 1,
        deadline: None,
        message: String::new(),
    };
    let done = pod_with(AgentStatus { startups: vec![status], ..Default::default() }, found());
    let floor = again(&done).floor.startups;
    assert_eq!(BTreeSet::from_iter(&floor["migrate"]), BTreeSet::from([&plain["new"].startups["migrate"], &revision]));
}

#[test]
fn maps_that_nobody_needs_are_named() {
    let map = |name: &str| {
        (name.to_owned(), config_map(&crate::validate::tests::identity(), name.to_owned(), BTreeMap::new()))
    };
    let mut found = found();
    found.config_maps = ["mall-redis-gone", "mall-redis-cache", "mall-boot-old", "mall-boot-used"].map(map).into();
    found.revisions[0].boot = Some("mall-boot-used".into());
    let prepared = build(&sound(&json!({})), &found, &settings()).unwrap();
    assert_eq!(prepared.unneeded, ["mall-boot-old", "mall-redis-gone"]);
}

#[test]
fn agents_and_operator_hash_the_files_alike() {
    let prepared = build(&sound(&everything()), &found(), &settings()).unwrap();
    let data = |name: &str, file: &str| {
        let map = prepared.config_maps.iter().find(|map| map.metadata.name.as_deref() == Some(name)).unwrap();
        map.data.as_ref().unwrap()[file].clone()
    };
    let mut texts = data("mall-agent", AGENT_FILE);
    for role in &sound(&everything()).roles {
        write!(texts, "\0{}\0{}", role.name, data(&role_config_map("mall", &role.name), CLIENT_FILE)).unwrap();
    }
    assert_eq!(prepared.agent_files.unwrap(), hash([texts.as_bytes()], 16));
}
