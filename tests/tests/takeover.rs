//! A schedule of a real `CabloyJS` v4 app's own is taken over on a real node: by an edit of the resource, through the rollout that
//! the operator makes of it.

use std::{collections::BTreeSet, path::Path, time::Duration};

use cabloy_tests::{
    cabloy::{self, APP},
    events::{self, Event, tick_of, ticks},
    images::cabloy_v4,
    require, require_node,
    stage::{POD, Stage},
    wait::until,
};
use serde_json::json;
use tempfile::TempDir;

/// How long a rollout may take on a busy machine; a minute on an idle one.
const ROLLOUT: Duration = Duration::from_mins(6);

/// Between two ticks, in milliseconds.
const EVERY: i64 = 2_000;

/// The schedule of the app's own.
const NATIVE: &str = "fx-probe.night";

/// The ids of the jobs of the schedule that the app has dealt with.
const DONE: &str = r"
local done = {}
for _, id in ipairs(redis.call('ZRANGE', KEYS[1] .. ':completed', 0, -1)) do
  if redis.call('HGET', KEYS[1] .. ':' .. id, 'name') == ARGV[1] then done[#done + 1] = id end
end
return done
";

/// The app as its user deploys it; what it does is written into a folder of the node, a file for each pod.
fn app_manifest(folder: &Path) -> String {
    let mut config = cabloy_v4::config();
    config["modules"] = json!({
        "fx-probe": {"schedules": {"night": {"bean": "report", "repeat": {"every": EVERY}}}},
    });
    // Else the second pod, which has schedules of its own to add, would add none.
    config["queue"] = json!({"startup": {"debounce": 1_000}});
    let config = serde_json::to_string(&config.to_string()).unwrap_or_default();
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: shop-web}}
spec:
  replicas: 0
  progressDeadlineSeconds: 900
  selector: {{matchLabels: {{app: shop-web}}}}
  template:
    metadata: {{labels: {{app: shop-web}}}}
    spec:
      containers:
        - name: app
          image: {APP}:1
          env:
            - {{name: EGG_WORKERS, value: \"1\"}}
            - {{name: EGG_APP_CONFIG, value: {config}}}
            - {{name: POD, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
            - {{name: FX_EVENTS, value: /events/$(POD)}}
          ports: [{{containerPort: {port}}}]
          readinessProbe:
            httpGet: {{path: /api/fx/probe/probe/ping, port: {port}, httpHeaders: [{{name: Host, value: 127.0.0.1}}]}}
            periodSeconds: 1
            timeoutSeconds: 5
          volumeMounts: [{{name: events, mountPath: /events}}]
      volumes: [{{name: events, hostPath: {{path: {folder}, type: Directory}}}}]
",
        port = cabloy_v4::PORT,
        folder = folder.display(),
    )
}

fn cluster_manifest() -> String {
    json!({
        "apiVersion": "cabloy.io/v1alpha1", "kind": "CabloyCluster", "metadata": {"name": "shop"},
        "spec": {
            "app": {"name": APP, "generation": "v4", "port": cabloy_v4::PORT},
            "workloads": [{"name": "shop-web"}],
            "redis": {"connections": {"default": {"host": "redis"}}, "roles": {"auth": {}}},
            "agent": {"election": {"ttl": "5s"}},
            "rollout": {"onRedisChange": "Restart"},
        }
    })
    .to_string()
}

/// What all pods have done, also those that are gone.
fn all_events(folder: &Path) -> Vec<Event> {
    let files = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    files.flatten().flat_map(|file| events::read(&file.path())).collect()
}

/// The ticks that the app has run by itself, and those that it was called for.
fn ran(folder: &Path) -> (Vec<i64>, Vec<i64>) {
    let (own, called) = ticks(&all_events(folder));
    let times = |ticks: Vec<_>| ticks.into_iter().map(|(tick, _)| tick).collect();
    (times(own), times(called))
}

/// The ticks that the app's own queue has had.
async fn jobs(stage: &Stage) -> BTreeSet<i64> {
    let queue = format!("bull_{APP}:queue:-||a-base||schedule");
    let ids: Vec<String> = stage.ask("redis", &["EVAL", DONE, "1", &queue, &format!(".{NATIVE}")]).await;
    ids.iter().map(|id| tick_of(id)).collect()
}

#[tokio::test]
async fn each_tick_is_run_once_while_a_schedule_is_taken_over() {
    let cluster = require_node!();
    require!(cabloy::found());
    let stage = Stage::new(cluster, "takeover", &["redis"]).await;
    let tars = tokio::task::spawn_blocking(|| Ok::<_, anyhow::Error>([cabloy_v4::app()?, cabloy_v4::database()?]));
    for tar in tars.await.unwrap().unwrap() {
        cluster.import_image(&tar).await;
    }
    let folder = TempDir::with_prefix("cabloy-takeover-").unwrap();
    let folder = folder.path();
    stage.apply(&cabloy_v4::database_manifest()).await;
    stage.rolled_out("deployment/db").await;
    stage.apply(&app_manifest(folder)).await;
    stage.apply(&cluster_manifest()).await;
    until("our part in the workload", POD, async || {
        let template = stage.kubectl(&["get", "deployment", "shop-web", "--output=jsonpath={.spec.template}"]).await;
        template.contains("cabloy-boot")
    })
    .await;
    stage.kubectl(&["scale", "deployment/shop-web", "--replicas=2"]).await;
    stage.condition("Ready", "True", "", ROLLOUT).await;
    until("the app to run its schedule", ROLLOUT, async || {
        let (own, _) = ran(folder);
        if own.len() >= 3 { Ok(()) } else { Err(format!("{own:?}")) }
    })
    .await;

    let taking = json!({"spec": {"schedules": [{
        "name": "night", "every": "2s", "instances": "All", "takesOver": NATIVE,
        "target": {"bean": {"module": "fx-probe", "name": "schedule.report"}},
    }]}});
    stage.kubectl(&["patch", "cabloycluster", "shop", "--type=merge", "--patch", &taking.to_string()]).await;
    let waits = stage.condition("SchedulesTakenOver", "False", "WaitingForPods", POD).await;
    assert!(waits.contains(NATIVE), "{waits}");
    until("the status of the schedule to say what it waits for", POD, async || {
        let schedules = stage.shop().await.status.unwrap_or_default().schedules;
        let said = schedules.iter().find_map(|it| it.waits_for.clone()).unwrap_or_default();
        if said.contains(NATIVE) { Ok(()) } else { Err(format!("{schedules:?}")) }
    })
    .await;
    assert_eq!(ran(folder).1, [0; 0], "it has no ticks yet");
    stage.condition("SchedulesTakenOver", "True", "TakenOver", ROLLOUT).await;

    let (jobs, own, called) = until("ticks that come after all of the app's own", ROLLOUT, async || {
        let jobs = jobs(&stage).await;
        let (own, called) = ran(folder);
        let lost: Vec<_> = jobs.iter().filter(|tick| !own.contains(tick) && !called.contains(tick)).collect();
        let after = called.iter().filter(|tick| Some(*tick) > jobs.last()).count();
        if lost.is_empty() && after >= 3 {
            Ok((jobs, own, called))
        } else {
            Err(format!("not run: {lost:?}; after them: {after}"))
        }
    })
    .await;
    println!("{} ticks run by the app, {} by the agents", own.len(), called.len());
    let once: BTreeSet<_> = own.iter().chain(&called).collect();
    assert_eq!(once.len(), own.len() + called.len(), "run twice: {own:?} {called:?}");
    let left: Vec<_> = jobs.iter().filter(|tick| called.contains(tick)).collect();
    assert!(!left.is_empty(), "new pods left none to the agents");
    // From the last that the app had, each that is due.
    let last = *jobs.last().unwrap();
    let after: BTreeSet<_> = called.iter().copied().filter(|tick| *tick > last).collect();
    let end = *after.last().unwrap();
    assert_eq!(after, (1..=(end - last) / EVERY).map(|it| last + it * EVERY).collect());
    let schedules = stage.schedules().await;
    assert!(schedules.iter().all(|it| (it.failed, it.missed) == (0, 0)), "{schedules:?}");
}
