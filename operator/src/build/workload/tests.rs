use std::{collections::BTreeMap, sync::Arc};

use cabloy_crds::agent_status::{AgentStatus, ConfigStatus, RevisionStatus};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::{
    agents::{AgentPod, Report},
    build::build,
    dereference::RevisionFound,
    validate::{Validated, tests::sound},
    workload::WorkloadRef,
};

fn settings() -> Settings {
    Settings {
        agent_image: "repo/agent".into(),
        agent_version: "1.0.0".into(),
        agent_pull_policy: "IfNotPresent".into(),
    }
}

fn live(pod: &Value) -> Live {
    Live(json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": "web", "namespace": "prod", "uid": "uid-of-web", "resourceVersion": "1", "generation": 1 },
        "spec": { "replicas": 2, "template": { "metadata": { "labels": { "app": "web" } }, "spec": pod } },
    }))
}

fn app(pod: &Value) -> Value {
    json!({ "containers": [{ "name": "app", "image": "shop:1" }], "x": pod })
}

fn planned(validated: &Validated, live: Live, found: Found) -> Plan {
    let reference = WorkloadRef { kind: WorkloadKind::Deployment, name: "web".into() };
    let found = Found { workloads: BTreeMap::from([(reference, Some(live))]), ..found };
    let mut prepared = build(validated, &found, &settings()).unwrap();
    prepared.workloads.remove(0).1
}

fn patch(validated: &Validated, live: Live) -> (Value, Vec<Note>) {
    match planned(validated, live, Found::default()) {
        Plan::Apply { patch, notes } => (patch, notes),
        Plan::Leave(blocked) => panic!("{blocked}"),
    }
}

/// What the API server makes of a server-side apply: maps are merged, and lists by the key of their items.
fn merge(object: &mut Value, patch: &Value) {
    match (object, patch) {
        (Value::Object(object), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(object.entry(key).or_insert(Value::Null), value);
            }
        }
        (Value::Array(items), Value::Array(patch)) if patch.iter().all(|item| key(item).is_some()) => {
            for item in patch {
                match items.iter_mut().find(|present| key(present) == key(item)) {
                    Some(present) => merge(present, item),
                    None => items.push(item.clone()),
                }
            }
        }
        (object, patch) => *object = patch.clone(),
    }
}

fn key(item: &Value) -> Option<&Value> {
    item.get("mountPath").or_else(|| item.get("name")).or_else(|| item.get("containerPort"))
}

fn merged(live: &Live, patch: &Value) -> Live {
    let mut object = live.0.clone();
    let mut patch = patch.clone();
    if let Some(metadata) = patch["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
    }
    merge(&mut object, &patch);
    Live(object)
}

/// Takes the nulls of a merge patch out.
fn merge_patch(object: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let Some(object) = object.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            object.remove(key);
        } else {
            merge_patch(object.entry(key).or_insert(Value::Null), value);
        }
    }
    object.retain(|_, value| value.as_object().is_none_or(|map| !map.is_empty()));
}

fn names() -> impl Strategy<Value = String> {
    "[a-z]{1,6}"
}

prop_compose! {
    fn containers()(
        names in proptest::collection::btree_set(names(), 1..4),
        env in proptest::collection::btree_map("[A-Z]{1,4}", "[ -~]{0,8}", 0..3),
        mounts in proptest::collection::btree_set("/[a-z]{1,5}", 0..3),
    ) -> Vec<Value> {
        let env: Vec<_> = env.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
        let mounts: Vec<_> = mounts.iter().map(|path| json!({ "name": "own", "mountPath": path })).collect();
        names.iter().map(|name| {
            let mut container = json!({ "name": name, "image": "any:1", "unknownField": { "of": "a later API" } });
            if !env.is_empty() {
                container["env"] = json!(env);
            }
            if !mounts.is_empty() {
                container["volumeMounts"] = json!(mounts);
            }
            container
        }).collect()
    }
}

prop_compose! {
    fn pods()(
        containers in containers(),
        init in proptest::option::of(containers()),
        user in proptest::option::of(0_i64..3),
    ) -> Value {
        let mut pod = json!({ "containers": containers, "volumes": [{ "name": "own", "emptyDir": {} }] });
        if let Some(init) = init {
            pod["initContainers"] = json!(init);
        }
        if let Some(user) = user {
            pod["securityContext"] = json!({ "runAsUser": user });
        }
        pod
    }
}

proptest! {
    #[test]
    fn injection_is_idempotent_and_leaves_what_is_not_ours(pod in pods(), agent in any::<bool>()) {
        let secret = json!({ "host": "redis", "passwordSecretRef": { "name": "s", "key": "k" } });
        let validated = sound(&json!({ "redis": { "connections": { "default": secret } }, "agent": { "enabled": agent } }));
        let before = live(&pod);
        let (first, _) = patch(&validated, before.clone());
        let after = merged(&before, &first);
        let (second, notes) = patch(&validated, after.clone());
        prop_assert_eq!(&merged(&after, &second), &after, "inject(inject(p)) == inject(p)");
        prop_assert_eq!(notes, vec![]);
        let pod_of = |live: &Live| live.0["spec"]["template"]["spec"].clone();
        for list in ["containers", "initContainers"] {
            let others = pod_of(&before)[list].as_array().cloned().unwrap_or_default();
            let skip = usize::from(list == "containers");
            for (index, container) in others.iter().enumerate().skip(skip) {
                prop_assert_eq!(&pod_of(&after)[list][index], container, "the user's containers are as they were");
            }
        }
        let mut left = after.0.clone();
        let removal = without_leftovers(&left).unwrap();
        merge_patch(&mut left, &removal);
        prop_assert_eq!(&left, &before.0, "taken out, nothing of ours is left");
        prop_assert!(without_leftovers(&left).is_none());
    }

    #[test]
    fn no_workload_makes_it_panic(text in "[a-z\\[\\]{}:,\"0-9 ]{0,60}") {
        let any: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        let validated = sound(&json!({}));
        drop(planned(&validated, Live(any.clone()), Found::default()));
        drop(planned(&validated, live(&any), Found::default()));
        drop(without_leftovers(&any));
    }
}

#[test]
fn an_agent_keeps_its_version_until_it_is_asked_for_another() {
    let validated = sound(&json!({}));
    let mut present = live(&app(&Value::Null));
    let (first, _) = patch(&validated, present.clone());
    present = merged(&present, &first);
    present.0["spec"]["template"]["spec"]["initContainers"][0]["image"] = json!("repo/agent:0.9.0");
    let image = |patch: &Value| patch["spec"]["template"]["spec"]["initContainers"][0]["image"].clone();
    let (kept, notes) = patch(&validated, present.clone());
    assert_eq!(image(&kept), "repo/agent:0.9.0");
    assert_eq!(
        notes,
        [Note::UpdateAvailable { present: "repo/agent:0.9.0".into(), available: "repo/agent:1.0.0".into() }]
    );
    let (asked, notes) = patch(&sound(&json!({ "agent": { "version": "1.0.0" } })), present);
    assert_eq!((image(&asked), notes), (json!("repo/agent:1.0.0"), vec![]));
}

#[test]
fn an_agent_without_a_key_gets_one_with_its_next_version() {
    let validated = sound(&json!({}));
    let before = live(&app(&Value::Null));
    let mut present = merged(&before, &patch(&validated, before.clone()).0);
    let pod = &mut present.0["spec"]["template"]["spec"];
    pod["initContainers"][0]["image"] = json!("repo/agent:0.9.0");
    let ours = |item: &Value| !named(item, SIGNING_VOLUME);
    assert!(retain(pod, "volumes", ours));
    let (kept, _) = patch(&validated, present.clone());
    assert!(!kept.to_string().contains("cabloy-signing"), "an operator that signs rolls nothing");
    assert!(!kept.to_string().contains("SIGNING_KEY_FILE"), "nor does the agent miss what nobody gave it");
    let (asked, _) = patch(&sound(&json!({ "agent": { "version": "1.0.0" } })), present);
    let pod = &asked["spec"]["template"]["spec"];
    for container in [&pod["initContainers"][0], &pod["containers"][0]] {
        assert!(find(container.get("volumeMounts"), SIGNING_VOLUME).is_some(), "{container}");
    }
}

/// The pause that a patch gives the app's container, and the note about it.
fn pause_of((patch, notes): (Value, Vec<Note>)) -> (Value, Vec<Note>) {
    let template = &patch["spec"]["template"];
    let hook = &template["spec"]["containers"][0]["lifecycle"]["preStop"];
    let annotated = template["metadata"]["annotations"][PAUSE].as_str().and_then(|it| it.parse::<i64>().ok());
    assert_eq!(annotated, hook["sleep"]["seconds"].as_i64(), "{patch}");
    (hook.clone(), notes)
}

fn with_pause(pause: &str) -> Validated {
    sound(&json!({ "app": { "name": "shop", "generation": "v4", "drain": { "pause": pause } } }))
}

#[test]
fn an_app_without_a_hook_of_its_own_gets_a_pause_that_leaves_it_time_to_end() {
    let pod = |grace: Option<i64>, lifecycle: &Value| {
        let mut container = json!({ "name": "app", "image": "shop:1" });
        if !lifecycle.is_null() {
            container["lifecycle"] = lifecycle.clone();
        }
        let mut pod = json!({ "containers": [container] });
        if let Some(grace) = grace {
            pod["terminationGracePeriodSeconds"] = json!(grace);
        }
        live(&pod)
    };
    let none = (Value::Null, vec![]);
    let sleep = |seconds: i64| json!({ "sleep": { "seconds": seconds } });
    let short = |asked: i64, grace: i64| vec![Note::PauseShortened { asked, grace }];
    for (validated, live, expected) in [
        (sound(&json!({})), pod(None, &Value::Null), (sleep(5), vec![])),
        (sound(&json!({})), pod(Some(10), &Value::Null), (sleep(5), vec![])),
        (sound(&json!({})), pod(Some(7), &Value::Null), (sleep(3), short(5, 7))),
        (sound(&json!({})), pod(Some(1), &Value::Null), (Value::Null, short(5, 1))),
        (with_pause("20s"), pod(Some(60), &Value::Null), (sleep(20), vec![])),
        (with_pause("0s"), pod(Some(1), &Value::Null), none.clone()),
        (sound(&json!({})), pod(None, &json!({ "preStop": { "exec": { "command": ["true"] } } })), none.clone()),
        (sound(&json!({})), pod(None, &json!({ "preStop": sleep(5) })), none),
        (sound(&json!({})), pod(None, &json!({ "postStart": { "exec": {} } })), (sleep(5), vec![])),
    ] {
        assert_eq!(pause_of(patch(&validated, live.clone())), expected, "{live:?}");
    }
}

#[test]
fn a_pause_of_ours_is_changed_and_one_that_somebody_else_wrote_is_not() {
    let before = live(&app(&Value::Null));
    let mut present = merged(&before, &patch(&sound(&json!({})), before.clone()).0);
    let hook = |live: &Live, validated: &Validated| pause_of(patch(validated, live.clone())).0;
    assert_eq!(hook(&present, &with_pause("8s")), json!({ "sleep": { "seconds": 8 } }));
    let field = ".spec.template.spec.containers[name=\"app\"].lifecycle.preStop.sleep.seconds";
    assert!(is_our_field(field, &present), "a rollout that was undone brings it back");
    present.0["spec"]["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"] = json!(9);
    assert_eq!(hook(&present, &with_pause("8s")), Value::Null, "theirs");
    assert!(!is_our_field(field, &present));
    let left = without_leftovers(&present.0).unwrap();
    assert_eq!(left["spec"]["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"], 9);
}

#[test]
fn a_new_operator_gives_the_pause_to_what_is_rolled_anyway() {
    let validated = sound(&json!({}));
    let before = live(&app(&Value::Null));
    let mut present = merged(&before, &patch(&validated, before.clone()).0);
    let template = &mut present.0["spec"]["template"];
    template["spec"]["containers"][0]["lifecycle"] = Value::Null;
    template["metadata"]["annotations"].as_object_mut().unwrap().remove(PAUSE);
    assert!(retain(&mut template["spec"], "volumes", |item| !named(item, STATE_VOLUME)));
    let (kept, _) = patch(&validated, present.clone());
    assert_eq!(pause_of((kept.clone(), vec![])).0, Value::Null);
    assert!(!kept.to_string().contains("cabloy-state") && !kept.to_string().contains("STATE_DIR"));
    assert_ne!(pause_of(patch(&with_pause("5s"), present.clone())).0, Value::Null, "asked for");
    present.0["spec"]["template"]["spec"]["initContainers"][0]["image"] = json!("repo/agent:0.9.0");
    let (asked, _) = patch(&sound(&json!({ "agent": { "version": "1.0.0" } })), present);
    assert!(asked.to_string().contains("cabloy-state") && pause_of((asked, vec![])).0 != Value::Null);
}

#[test]
fn another_preload_script_alone_rolls_nothing() {
    let validated = sound(&json!({}));
    let mut present = live(&app(&Value::Null));
    let (first, _) = patch(&validated, present.clone());
    present = merged(&present, &first);
    present.0["spec"]["template"]["metadata"]["annotations"]["cabloy.io/boot"] = json!("mall-boot-old");
    let found = |config: &str| {
        let map = serde_json::from_value(
            json!({ "metadata": { "name": "mall-boot-old", "annotations": { "cabloy.io/boot-config": config } } }),
        )
        .unwrap();
        Found { config_maps: BTreeMap::from([("mall-boot-old".to_owned(), map)]), ..Found::default() }
    };
    let config = crate::build::boot::boot(&validated).unwrap().config;
    let boot = |found: Found| match planned(&validated, present.clone(), found) {
        Plan::Apply { patch, .. } => boot_of(&patch).map(str::to_owned),
        Plan::Leave(blocked) => panic!("{blocked}"),
    };
    assert_eq!(boot(found(&config)).as_deref(), Some("mall-boot-old"));
    assert_eq!(boot(found("other")).as_deref(), boot_of(&first));
}

/// A pod of the workload's one revision, and what its agent says: when the app started, when passwords were brought, and what
/// its template says of them.
fn pod_of(name: &str, started: &str, brought: &str, template: Option<&str>) -> (AgentPod, (String, Report)) {
    let pod = AgentPod {
        name: name.into(),
        uid: name.into(),
        cluster: "mall".into(),
        namespace: "prod".into(),
        ip: None,
        scheduled: true,
        terminating: false,
        agent_image: None,
        agent_runs: true,
        synced: None,
        secrets: template.map(str::to_owned),
        started: BTreeMap::from([("app".to_owned(), started.parse().unwrap())]),
        boot: None,
    };
    let status = AgentStatus {
        revision: RevisionStatus { hash: "new".into(), number: None },
        config: ConfigStatus { secrets_at: Some(brought.parse().unwrap()), ..Default::default() },
        ..Default::default()
    };
    (pod, (name.to_owned(), Report::Answered(Arc::new(status))))
}

fn found_with(pods: impl IntoIterator<Item = (AgentPod, (String, Report))>) -> Found {
    let (pods, reports): (Vec<_>, _) = pods.into_iter().unzip();
    let revision = |hash: &str, number| RevisionFound {
        owner: "uid-of-web".into(),
        hash: hash.into(),
        number,
        ..RevisionFound::default()
    };
    Found { pods, reports, revisions: vec![revision("old", 1), revision("new", 2)], ..Found::default() }
}

const STARTED: &str = "2026-11-27T10:00:00Z";
const LATER: &str = "2026-11-27T10:00:01.5Z";
const LATEST: &str = "2026-11-27T10:00:02.5Z";

#[test]
fn changed_passwords_roll_the_pods_that_started_before_and_once() {
    let validated = sound(&json!({}));
    let look = |live: &Live, found: Found| match planned(&validated, live.clone(), found) {
        Plan::Apply { patch, notes } => {
            let after = merged(live, &patch);
            (after.secrets().map(str::to_owned), notes.contains(&Note::SecretsChanged), after)
        }
        Plan::Leave(blocked) => panic!("{blocked}"),
    };
    let (since, rolled, before) = look(&live(&app(&Value::Null)), found_with([]));
    assert_eq!((since, rolled), (None, false));

    let sound_pod = || pod_of("a", STARTED, "2026-11-27T10:00:00.9Z", None);
    assert!(!look(&before, found_with([sound_pod()])).1, "kubelet tells a start in whole seconds");
    let stale = || pod_of("b", STARTED, LATER, None);
    let (since, rolled, after) = look(&before, found_with([sound_pod(), stale()]));
    assert_eq!((since.as_deref(), rolled), (Some(LATER), true));

    let without = |change: fn(&mut AgentPod)| {
        let (mut pod, report) = stale();
        change(&mut pod);
        look(&before, found_with([(pod, report)])).1
    };
    assert!(!without(|pod| pod.terminating = true), "it is about to end");
    assert!(!without(|pod| pod.started = BTreeMap::from([("other".to_owned(), STARTED.parse().unwrap())])));
    let mut replaced = found_with([stale()]);
    replaced.revisions[0].number = 3;
    assert!(!look(&before, replaced).1, "pods of an older revision are being replaced");
    let mut foreign = found_with([stale()]);
    foreign.revisions[1].owner = "uid-of-other".into();
    assert!(!look(&before, foreign).1, "it is of another workload");

    // Before the new revision is there, and while the old pods end and see yet another change.
    let older = pod_of("b", STARTED, LATEST, None);
    let newer = || pod_of("c", "2026-11-27T10:00:02Z", LATER, Some(LATER));
    let (since, rolled, after) = look(&after, found_with([stale(), older, newer()]));
    assert_eq!((since.as_deref(), rolled), (Some(LATER), false), "they are rolled once, and new ones are not");
    let again = pod_of("c", "2026-11-27T10:00:01Z", LATEST, Some(LATER));
    let (since, rolled, _) = look(&after, found_with([newer(), again]));
    assert_eq!((since.as_deref(), rolled), (Some(LATEST), true));
}

#[test]
fn with_manual_changed_passwords_are_said_and_roll_nothing() {
    let validated = sound(&json!({ "rollout": { "onRedisChange": "Manual" } }));
    let before = live(&app(&Value::Null));
    let present = merged(&before, &patch(&validated, before.clone()).0);
    match planned(&validated, present.clone(), found_with([pod_of("a", STARTED, LATER, None)])) {
        Plan::Apply { patch, notes } => {
            assert_eq!((merged(&present, &patch), notes), (present, vec![Note::RolloutPending]));
        }
        Plan::Leave(blocked) => panic!("{blocked}"),
    }
}

#[test]
fn what_is_in_the_way_is_named() {
    let blocked = |validated: &Validated, live: Live, found: Found| match planned(validated, live, found) {
        Plan::Leave(blocked) => blocked,
        Plan::Apply { .. } => panic!("it must be left"),
    };
    let validated = sound(&json!({}));
    let mut own = app(&Value::Null);
    own["containers"][0]["env"] = json!([{ "name": "NODE_OPTIONS", "valueFrom": {} }]);
    assert_eq!(blocked(&validated, live(&own), Found::default()).reason(), "NodeOptionsConflict");
    let generic = sound(&json!({ "app": { "name": "shop", "generation": "generic" } }));
    let (free, _) = patch(&generic, live(&own));
    assert!(!free.to_string().contains("NODE_OPTIONS"), "a generic app has no preload");

    let other = sound(&json!({ "workloads": [{ "name": "web", "container": "shop" }] }));
    let missing = blocked(&other, live(&app(&Value::Null)), Found::default());
    assert!(missing.to_string().contains("no container shop; its containers are app"), "{missing}");

    let mut claimed = live(&app(&Value::Null));
    claimed.0["metadata"]["annotations"] = json!({ "cabloy.io/claimed-by": "uid-of-other" });
    let others = BTreeMap::from([("uid-of-other".to_owned(), "other".to_owned())]);
    assert_eq!(
        blocked(&validated, claimed.clone(), Found { others, ..Found::default() }),
        Blocked::AlreadyClaimed("other".into())
    );
    let (taken_over, _) = patch(&validated, claimed);
    assert_eq!(taken_over["metadata"]["resourceVersion"], "1", "of two that take it over, one loses");
}

#[test]
fn asked_resources_go_before_ours_and_a_limit_is_always_there() {
    let validated = sound(&json!({ "agent": { "resources": { "requests": { "cpu": 1 }, "limits": { "cpu": "2" } } } }));
    let (patch, _) = patch(&validated, live(&app(&Value::Null)));
    let agent = &patch["spec"]["template"]["spec"]["initContainers"][0];
    assert_eq!(
        agent["resources"],
        json!({ "requests": { "cpu": "1", "memory": "16Mi" }, "limits": { "cpu": "2", "memory": "64Mi" } })
    );
}

#[test]
fn fields_are_ours_by_name_alone() {
    let foreign =
        live(&json!({ "containers": [{ "name": "app", "env": [{ "name": "NODE_OPTIONS", "value": "-x" }] }] }));
    let ours = live(
        &json!({ "containers": [{ "name": "app", "env": [{ "name": "NODE_OPTIONS", "value": "--require /etc/cabloy/boot/preload.cjs" }] }] }),
    );
    let node_options = ".spec.template.spec.containers[name=\"app\"].env[name=\"NODE_OPTIONS\"].value";
    assert!(!is_our_field(node_options, &foreign));
    assert!(is_our_field(node_options, &ours));
    for field in [
        ".spec.template.spec.initContainers[name=\"cabloy-agent\"].image",
        ".spec.template.spec.volumes[name=\"cabloy-boot\"].configMap.name",
        ".spec.template.metadata.annotations.cabloy.io/boot",
        ".spec.template.spec.containers[name=\"app\"].volumeMounts[mountPath=\"/etc/cabloy/boot\"].name",
    ] {
        assert!(is_our_field(field, &foreign), "{field}");
    }
    assert!(!is_our_field(".spec.template.spec.containers[name=\"app\"].image", &ours));
}
