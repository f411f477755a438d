//! The whole product on a real node: the operator installed by its chart, an app in pods, its agents beside it, real
//! Redis servers. Each test has a namespace of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use cabloy_crds::agent_status::{AgentStatus, Verdict};
use cabloy_tests::{
    require_node,
    stage::{Call, OPERATOR, POD, SERVERS, Stage, app_manifest, shop_manifest},
    wait::until,
};
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::ConfigMap},
    jiff::Timestamp,
};
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::{Value, json};

/// A schedule that ticks each second.
fn ticking() -> Value {
    json!([{"name": "tick", "every": "1s", "target": {"http": {"path": "/tick"}}}])
}

/// The ticks of the path, how often each was begun.
fn ticks(calls: &[Call], path: &str) -> BTreeMap<String, usize> {
    let mut ticks = BTreeMap::new();
    for call in calls.iter().filter(|call| call.path == path && call.event == "start") {
        *ticks.entry(call.tick.clone().unwrap_or_default()).or_default() += 1;
    }
    ticks
}

/// Each second between the first and the last tick was begun once; if not, the calls around it and what the leader knows
/// of its schedules say why.
async fn assert_each_second_once(stage: &Stage, calls: &[Call], path: &str) {
    let ticks = ticks(calls, path);
    let seconds: Vec<(i64, usize)> = ticks
        .iter()
        .map(|(tick, count)| (tick.parse::<Timestamp>().unwrap_or_else(|e| panic!("{tick}: {e}")).as_second(), *count))
        .collect();
    let doubled = seconds.iter().filter(|(_, count)| *count != 1).map(|(second, _)| *second);
    let missed = seconds.windows(2).filter(|pair| pair[1].0 - pair[0].0 != 1).map(|pair| pair[0].0 + 1);
    let wrong: Vec<i64> = doubled.chain(missed).collect();
    let near = |call: &&Call| wrong.iter().any(|second| (call.at - second * 1_000).abs() < 3_000);
    assert!(
        wrong.is_empty(),
        "not begun once: {wrong:?}; {:#?}; {:#?}",
        calls.iter().filter(near).collect::<Vec<_>>(),
        stage.schedules().await
    );
}

/// Waits for so many more ticks of a path than there are.
async fn more_ticks(stage: &Stage, path: &str, count: usize) {
    let seen = ticks(&stage.calls().await, path).len();
    until(&format!("{count} more ticks"), Duration::from_mins(1), async || {
        let now = ticks(&stage.calls().await, path).len();
        (now >= seen + count).then_some(()).ok_or_else(|| format!("{} of them", now - seen))
    })
    .await;
}

#[tokio::test]
async fn a_resource_becomes_roles_agents_one_leader_and_ticks() {
    let cluster = require_node!();
    let stage = Stage::new(cluster, "main", &[&SERVERS[..], &["redis-other"]].concat()).await;
    stage.app(3, "1").await;
    stage.rolled_out("deployment/shop-web").await;
    stage.apply(&shop_manifest(&json!({"schedules": ticking()}))).await;

    stage.condition("Ready", "True", "", POD).await;
    let (leader, token) = stage.leader(OPERATOR).await;
    until("the leader in the status", OPERATOR, async || {
        let seen = stage.shop().await.status.unwrap_or_default().leader;
        (seen.as_ref().is_some_and(|l| l.pod == leader && l.token == i64::try_from(token).unwrap()))
            .then_some(())
            .ok_or_else(|| format!("{seen:?}"))
    })
    .await;
    more_ticks(&stage, "/tick", 5).await;
    let calls = stage.calls().await;
    assert_each_second_once(&stage, &calls, "/tick").await;
    assert!(calls.iter().all(|call| call.host.as_deref() == Some("127.0.0.1:7002")), "{calls:?}");
    assert!(calls.iter().all(|call| call.signed), "{calls:?}");
    stage.condition("CallsSigned", "True", "Signed", OPERATOR).await;
    assert!(calls.iter().all(|call| call.pod == leader && call.token == Some(token)), "only the leader calls");
    assert!(
        calls
            .iter()
            .all(|call| call.key == Some(format!("\"{}/shop/tick@{}\"", stage.namespace, call.tick.clone().unwrap()))),
        "{:?}",
        calls.first()
    );
}

#[tokio::test]
async fn an_edited_role_reaches_agents_at_once_and_rolls_only_what_must() {
    let cluster = require_node!();
    let stage = Stage::new(cluster, "edit", &[&SERVERS[..], &["redis-other"]].concat()).await;
    stage.app(2, "1").await;
    let manual = json!({"schedules": ticking(), "rollout": {"onRedisChange": "Manual"}});
    stage.apply(&shop_manifest(&manual)).await;
    stage.condition("Ready", "True", "", POD).await;

    let maps = Api::<ConfigMap>::namespaced(stage.client.clone(), &stage.namespace);
    let versions = async || -> BTreeMap<String, Option<String>> {
        let list = maps.list(&ListParams::default().labels("cabloy.io/cluster=shop")).await.unwrap();
        list.items.iter().map(|map| (map.name_any(), map.resource_version())).collect()
    };
    let edit = async |patch: &str| {
        stage.kubectl(&["patch", "cabloycluster", "shop", "--type=merge", "--patch", patch]).await;
    };
    let names = async || stage.pods().await.iter().map(ResourceExt::name_any).collect::<BTreeSet<_>>();
    let (before, pods) = (versions().await, names().await);

    // Kubelet's own pace is a minute; of a few edits the quickest counts, for the machine may be busy with others.
    let mut quickest = Duration::MAX;
    for db in 1..=3 {
        let server = format!("redis-other:6379/{db}");
        let edited = Timestamp::now();
        edit(&format!(r#"{{"spec":{{"redis":{{"roles":{{"cache":{{"host":"redis-other","db":{db}}}}}}}}}}}"#)).await;
        let loaded = until(&format!("{server} at all agents"), Duration::from_secs(30), async || {
            let agents = stage.agents().await;
            let told = |agent: &AgentStatus| {
                agent
                    .config
                    .roles
                    .get("cache")
                    .is_some_and(|servers| servers.as_slice() == std::slice::from_ref(&server))
            };
            (agents.len() == 2 && agents.iter().all(told))
                .then(|| agents.iter().filter_map(|agent| agent.config.loaded_at).max())
                .flatten()
        })
        .await;
        quickest = quickest.min(Duration::try_from(loaded.duration_since(edited)).unwrap_or_default());
    }
    assert!(quickest < Duration::from_secs(1), "the quickest edit was at all agents after {quickest:?}");

    let after = versions().await;
    let changed: BTreeSet<_> = before
        .iter()
        .filter(|(name, version)| after.get(*name) != Some(version))
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(changed, BTreeSet::from(["shop-redis-cache"]), "no other role's ConfigMap, and no agent's");

    // Manual: no pod was rolled, and a pod of the old ReplicaSet that comes later boots on the old endpoints too.
    stage.condition("RolledOut", "False", "RolloutPending", OPERATOR).await;
    assert_eq!(names().await, pods);
    let gone = pods.first().unwrap();
    stage.kubectl(&["delete", "pod", gone]).await;
    stage.rolled_out("deployment/shop-web").await;
    let new = names().await.into_iter().find(|name| !pods.contains(name)).unwrap();
    let boots_on = async |pod: &str| {
        stage.kubectl(&["exec", pod, "--container=app", "--", "cat", "/etc/cabloy/boot/cache.json"]).await
    };
    assert!(boots_on(&new).await.contains(r#""host": "redis-main""#), "as its ReplicaSet does");

    // Restart: now the pods are rolled onto the new endpoints.
    edit(r#"{"spec":{"rollout":{"onRedisChange":"Restart"}}}"#).await;
    stage.condition("RolledOut", "False", "RollingOut", OPERATOR).await;
    stage.condition("Ready", "True", "", POD).await;
    let pods = names().await;
    for pod in &pods {
        assert!(boots_on(pod).await.contains(r#""host": "redis-other""#));
    }

    // A schedule is the agents' alone: no pod is rolled.
    edit(r#"{"spec":{"schedules":[{"name":"tock","every":"1s","target":{"http":{"path":"/tock"}}}]}}"#).await;
    more_ticks(&stage, "/tock", 2).await;
    assert_eq!(names().await, pods);
}

#[tokio::test]
async fn a_rolling_update_of_the_app_misses_and_doubles_no_tick() {
    let cluster = require_node!();
    let stage = Stage::new(cluster, "rolling", &SERVERS).await;
    stage.app(3, "1").await;
    stage.apply(&shop_manifest(&json!({"schedules": ticking()}))).await;
    stage.condition("Ready", "True", "", POD).await;
    more_ticks(&stage, "/tick", 3).await;
    for version in ["2", "3"] {
        stage.app(3, version).await;
        stage.rolled_out("deployment/shop-web").await;
        more_ticks(&stage, "/tick", 3).await;
    }
    stage.kubectl(&["rollout", "restart", "deployment/shop-web"]).await;
    stage.rolled_out("deployment/shop-web").await;
    more_ticks(&stage, "/tick", 3).await;

    let calls = stage.calls().await;
    assert_each_second_once(&stage, &calls, "/tick").await;
    let tokens: Vec<_> = calls.iter().filter(|c| c.event == "start").map(|c| (c.token, c.pod.clone())).collect();
    assert!(tokens.is_sorted_by_key(|(token, _)| *token), "tokens never fall: {tokens:?}");
    let versions: BTreeSet<_> = calls.iter().map(|call| call.version.as_str()).collect();
    assert_eq!(versions, BTreeSet::from(["1", "2", "3"]), "each version of the app led");
}

/// When the agent that follows a leader began to lead; its own successor, where kubelet was quick to start it again.
async fn next_leader(stage: &Stage, before: &str, token: u64) -> Timestamp {
    until(&format!("a leader after {before}"), Duration::from_secs(20), async || {
        let leads = |agent: AgentStatus| agent.election.filter(|e| e.leading && e.token > Some(token));
        stage.agents().await.into_iter().find_map(|agent| leads(agent)?.since)
    })
    .await
}

#[tokio::test]
async fn a_killed_leader_is_followed_within_the_ttl_and_a_drained_one_at_once() {
    let cluster = require_node!();
    let stage = Stage::new(cluster, "leader", &SERVERS).await;
    stage.app(3, "1").await;
    stage.apply(&shop_manifest(&json!({"schedules": ticking()}))).await;
    stage.condition("Ready", "True", "", POD).await;
    // Of two kills the quicker succession counts, for the machine may be busy with others.
    let mut quickest = Duration::MAX;
    for _ in 0..2 {
        let (first, token) = stage.leader(OPERATOR).await;
        more_ticks(&stage, "/tick", 2).await;
        let at = Timestamp::now();
        stage.kill(&first).await;
        let gap = next_leader(&stage, &first, token).await.duration_since(at);
        assert!(gap.as_millis() < 4_000, "the ttl is 3 s, and the next led after {gap:?}");
        quickest = quickest.min(Duration::try_from(gap).unwrap_or_default());
        more_ticks(&stage, "/tick", 3).await;
        stage.rolled_out("deployment/shop-web").await;
    }
    assert!(quickest < Duration::from_millis(3_100), "the ttl is 3 s, and the next led after {quickest:?}");

    // Orderly: kubelet calls the agent's preStop, which resigns long before the app has ended.
    let (second, token) = stage.leader(OPERATOR).await;
    let at = Timestamp::now();
    stage.kubectl(&["delete", "pod", &second, "--wait=false"]).await;
    let since = next_leader(&stage, &second, token).await;
    let gap = since.duration_since(at);
    assert!(gap.as_millis() < 1_500, "kubectl, kubelet and the hand-over together took {gap:?}");
    more_ticks(&stage, "/tick", 3).await;
    assert_each_second_once(&stage, &stage.calls().await, "/tick").await;
}

#[tokio::test]
async fn a_run_that_went_with_its_pod_is_not_waited_for() {
    let cluster = require_node!();
    let stage = Stage::new(cluster, "gone", &SERVERS).await;
    stage.app(2, "1").await;
    // Five minutes is what a run has where nothing is written.
    let endless = json!([{"name": "long", "every": "1s", "target": {"http": {"path": "/long?ms=600000"}}}]);
    stage.apply(&shop_manifest(&json!({"schedules": endless}))).await;
    let begun = async |count: usize| {
        until(&format!("run {count}"), Duration::from_mins(1), async || {
            let calls: Vec<_> = stage.calls().await.into_iter().filter(|call| call.event == "start").collect();
            (calls.len() >= count).then(|| calls.clone()).ok_or_else(|| format!("{calls:?}"))
        })
        .await
    };
    let first = begun(1).await.swap_remove(0);
    // App and agent at once, so that nobody records that the connection broke.
    stage.kill(&first.pod).await;
    stage.kubectl(&["delete", "pod", &first.pod, "--force", "--grace-period=0"]).await;
    let second = begun(2).await.swap_remove(1);
    assert_ne!((&second.tick, &second.pod), (&first.tick, &first.pod));
    let results: Vec<_> = stage.schedules().await.into_iter().flat_map(|schedule| schedule.results).collect();
    let over = results.iter().find(|it| Some(it.tick.to_string()) == first.tick).unwrap();
    assert_eq!((over.verdict, &*over.reason), (Verdict::Unknown, "PodEnded"));
}

#[tokio::test]
async fn one_lost_redis_changes_nothing_and_two_stop_the_schedules_but_no_pod() {
    let cluster = require_node!();
    let stage = Stage::new(cluster, "losses", &SERVERS).await;
    stage.app(3, "1").await;
    stage.apply(&shop_manifest(&json!({"schedules": ticking()}))).await;
    stage.condition("Ready", "True", "", POD).await;
    let (leader, token) = stage.leader(OPERATOR).await;

    stage.kubectl(&["scale", "deployment/lock-a", "--replicas=0"]).await;
    more_ticks(&stage, "/tick", 5).await;
    assert_eq!(stage.leader(OPERATOR).await, (leader, token), "one of three changes nothing");
    let message = stage.condition("RedisReachable", "False", "", OPERATOR).await;
    assert!(message.contains("lock-a"), "{message}");

    stage.kubectl(&["scale", "deployment/lock-b", "--replicas=0"]).await;
    until("nobody to lead", Duration::from_secs(20), async || {
        let agents = stage.agents().await;
        agents.len() == 3 && agents.iter().all(|a| a.election.as_ref().is_some_and(|e| !e.leading))
    })
    .await;
    let stopped = stage.calls().await.len();
    stage.condition("LeaderElected", "False", "", OPERATOR).await;
    assert_eq!(stage.calls().await.len(), stopped, "nobody leads, nobody runs");
    for pod in stage.pods().await {
        let ready = pod.status.unwrap().conditions.unwrap().iter().any(|c| c.type_ == "Ready" && c.status == "True");
        assert!(ready, "a Redis outage takes no pod out of service");
    }

    stage.kubectl(&["scale", "deployment/lock-a", "deployment/lock-b", "--replicas=1"]).await;
    let (_, later) = stage.leader(POD).await;
    assert!(later > token, "{later} after {token}");
    more_ticks(&stage, "/tick", 3).await;
    stage.condition("Ready", "True", "", POD).await;
    assert!(ticks(&stage.calls().await, "/tick").values().all(|count| *count == 1), "no tick is doubled");
}

#[tokio::test]
async fn a_startup_task_runs_once_a_revision_and_only_on_its_own_code() {
    let cluster = require_node!();
    let stage = Stage::new(cluster, "startup", &SERVERS).await;
    stage.app(3, "1").await;
    let startups = json!([{"name": "migrate", "target": {"http": {"path": "/migrate"}}}]);
    stage.apply(&shop_manifest(&json!({"startups": startups}))).await;
    stage.condition("Ready", "True", "", POD).await;
    stage.app(3, "2").await;
    stage.rolled_out("deployment/shop-web").await;
    // The same code again: nothing to do. And back to the first: that was done.
    stage.kubectl(&["rollout", "restart", "deployment/shop-web"]).await;
    stage.rolled_out("deployment/shop-web").await;
    stage.app(3, "1").await;
    stage.rolled_out("deployment/shop-web").await;

    let calls = stage.calls().await;
    let done: Vec<_> =
        calls.iter().filter(|c| c.path == "/migrate").map(|c| (c.event.as_str(), c.version.as_str())).collect();
    assert_eq!(
        done,
        [("start", "1"), ("end", "1"), ("start", "2"), ("end", "2")],
        "once for each, each on its own code"
    );
    let states = stage.shop().await.status.unwrap().startups;
    assert!(states.iter().any(|s| s.name == "migrate" && s.state == "Done"), "{states:?}");

    // Unless somebody asks for it, and then once.
    let migrations = async |count: usize| {
        until(&format!("{count} migrations"), OPERATOR, async || {
            let calls = stage.calls().await;
            let ends = calls.iter().filter(|call| call.path == "/migrate" && call.event == "end").count();
            (ends == count).then_some(()).ok_or_else(|| format!("{calls:?}"))
        })
        .await;
    };
    stage.kubectl(&["annotate", "cabloycluster", "shop", "cabloy.io/rerun=migrate/once-more"]).await;
    migrations(3).await;
    stage.kubectl(&["annotate", "cabloycluster", "shop", "cabloy.io/rerun-"]).await;
    stage.kubectl(&["rollout", "restart", "deployment/shop-web"]).await;
    stage.rolled_out("deployment/shop-web").await;
    migrations(3).await;
}

#[tokio::test]
async fn a_startup_task_that_dies_halfway_is_handed_over_and_pods_wait_for_it() {
    let cluster = require_node!();
    let stage = Stage::new(cluster, "halfway", &SERVERS).await;
    stage.app(3, "1").await;
    // The first attempt takes the app down with it.
    let startups = json!([{"name": "migrate", "timeout": "3s", "retry": {"limit": 3, "initialDelay": "1s"},
        "target": {"http": {"path": "/migrate?die=1"}}}]);
    stage.apply(&shop_manifest(&json!({"startups": startups}))).await;
    stage.condition("Ready", "True", "", POD).await;
    let calls = stage.calls().await;
    let starts: Vec<_> = calls.iter().filter(|c| c.event == "start").map(|c| c.attempt.unwrap()).collect();
    // An attempt that meets an app that is not back yet has begun nothing, and counts.
    assert!(matches!(starts[..], [1, second] if second > 1), "{calls:?}");
    assert_eq!(calls.iter().filter(|c| c.event == "end").count(), 1);
    assert_eq!(calls[0].key, calls[1].key, "one run, one key");
}

#[tokio::test]
async fn what_is_wrong_is_a_condition_and_heals_when_mended() {
    let cluster = require_node!();
    let stage = Stage::new(cluster, "wrong", &SERVERS).await;
    stage.redis("lock-p", r#"["--requirepass", "s3cret-of-lock-p"]"#).await;
    stage.app(2, "1").await;

    // A Secret that is not there, and then one with a wrong password.
    let redis = json!({
        "connections": {"lock-p": {"host": "lock-p", "passwordSecretRef": {"name": "lock-p", "key": "password"}}},
        "roles": {"redlock": {"connections": ["lock-p"]}}
    });
    stage.apply(&shop_manifest(&json!({"redis": redis, "schedules": ticking()}))).await;
    let message = stage.condition("CredentialsAvailable", "False", "MissingSecret", POD).await;
    assert!(message.contains("lock-p") && message.contains("password"), "{message}");
    stage.kubectl(&["create", "secret", "generic", "lock-p", "--from-literal=password=mistyped"]).await;
    let message = stage.condition("RedisReachable", "False", "WrongPassword", POD).await;
    assert!(message.contains("lock-p:6379") && !message.contains("mistyped"), "{message}");
    stage.apply(r#"{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "lock-p"}, "stringData": {"password": "s3cret-of-lock-p"}}"#).await;
    stage.condition("Ready", "True", "", POD).await;
    more_ticks(&stage, "/tick", 2).await;

    // A Redis that is not there.
    stage.kubectl(&["scale", "deployment/lock-p", "--replicas=0"]).await;
    let message = stage.condition("RedisReachable", "False", "", POD).await;
    assert!(message.contains("lock-p:6379"), "{message}");
    stage.kubectl(&["scale", "deployment/lock-p", "--replicas=1"]).await;
    stage.condition("Ready", "True", "", POD).await;

    // No value of a Secret is anywhere but in the Secret.
    let everything = stage.kubectl(&["get", "configmaps,pods,events,cabloyclusters", "--output=yaml"]).await;
    assert!(everything.contains("redlock") && !everything.contains("mistyped"), "a password shows");
}

#[tokio::test]
async fn a_workload_that_is_not_there_or_taken_is_a_condition_and_heals() {
    let cluster = require_node!();
    let stage = Stage::new(cluster, "workloads", &SERVERS).await;
    stage.app(1, "1").await;
    let both = json!({"workloads": [{"name": "shop-web"}, {"name": "shop-late"}], "schedules": ticking()});
    stage.apply(&shop_manifest(&both)).await;
    let message = stage.condition("WorkloadsApplied", "False", "WorkloadNotFound", OPERATOR).await;
    assert!(message.contains("Deployment shop-late") && message.contains("create it"), "{message}");
    more_ticks(&stage, "/tick", 1).await;
    stage.apply(&app_manifest("shop-late", 1, "1")).await;
    stage.condition("Ready", "True", "", POD).await;

    // A second resource for the same workloads waits until the first is gone.
    let twin = shop_manifest(&both).replace(r#"{"name":"shop"}"#, r#"{"name":"twin"}"#);
    stage.apply(&twin).await;
    let reason = r#"--for=jsonpath={.status.conditions[?(@.type=="WorkloadsApplied")].reason}=AlreadyClaimed"#;
    stage.kubectl(&["wait", "cabloycluster/twin", reason, "--timeout=40s"]).await;
    let said = stage.kubectl(&["describe", "cabloycluster", "twin"]).await;
    assert!(said.contains("it belongs to CabloyCluster shop"), "{said}");
    stage.kubectl(&["delete", "cabloycluster", "shop", "--timeout=120s"]).await;
    stage.kubectl(&["wait", "cabloycluster/twin", "--for=condition=Ready", "--timeout=120s"]).await;
}

#[tokio::test]
async fn a_deleted_resource_leaves_the_workload_as_the_user_wrote_it_and_strands_no_pod() {
    let cluster = require_node!();
    for cascade in ["background", "foreground"] {
        let stage = Stage::new(cluster, cascade, &SERVERS).await;
        stage.app(2, "1").await;
        stage.rolled_out("deployment/shop-web").await;
        let deployments = Api::<Deployment>::namespaced(stage.client.clone(), &stage.namespace);
        let written = deployments.get("shop-web").await.unwrap().spec.unwrap();
        stage.apply(&shop_manifest(&json!({"schedules": ticking()}))).await;
        stage.condition("Ready", "True", "", POD).await;
        assert_ne!(deployments.get("shop-web").await.unwrap().spec.unwrap(), written);

        stage.kubectl(&["delete", "cabloycluster", "shop", &format!("--cascade={cascade}"), "--timeout=120s"]).await;
        assert_eq!(deployments.get("shop-web").await.unwrap().spec.unwrap(), written);
        stage.rolled_out("deployment/shop-web").await;
        until("pods without an agent only", POD, async || {
            let pods = stage.pods().await;
            pods.len() == 2
                && pods.iter().all(|pod| {
                    pod.spec.as_ref().is_some_and(|spec| spec.init_containers.as_ref().is_none_or(Vec::is_empty))
                })
        })
        .await;
        let left = stage.kubectl(&["get", "configmaps", "--selector=cabloy.io/cluster=shop", "--output=name"]).await;
        assert_eq!(left, "", "our ConfigMaps go with the resource");
    }
}

#[tokio::test]
async fn a_job_with_the_agent_completes() {
    let cluster = require_node!();
    let stage = Stage::new(cluster, "job", &SERVERS).await;
    stage.app(1, "1").await;
    stage.apply(&shop_manifest(&json!({"schedules": ticking()}))).await;
    stage.condition("Ready", "True", "", POD).await;
    // The pod of a Job gets the agent as the pods of the Deployment have it.
    let template = stage.kubectl(&["get", "deployment", "shop-web", "--output=json"]).await;
    let template: Value = serde_json::from_str(&template).unwrap();
    let mut pod = template["spec"]["template"]["spec"].clone();
    pod["restartPolicy"] = json!("Never");
    pod["containers"][0]["command"] = json!(["sleep", "3"]);
    pod["containers"][0].as_object_mut().unwrap().remove("readinessProbe");
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once"},
        "spec": {"template": {"metadata": {"labels": {"app": "once"}}, "spec": pod}}});
    stage.apply(&job.to_string()).await;
    stage.kubectl(&["wait", "--for=condition=Complete", "job/once", "--timeout=60s"]).await;
    let (leader, _) = stage.leader(OPERATOR).await;
    assert!(leader.starts_with("shop-web-"), "a Job's pod does not stand: {leader}");
}
