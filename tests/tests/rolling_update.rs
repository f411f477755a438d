//! A rolling update of a real `CabloyJS` v4 app on a real node, under requests and jobs: without us, and with us.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use cabloy_tests::{
    cabloy::{self, APP},
    images::cabloy_v4,
    require, require_node,
    stage::{POD, Stage, get},
    wait::{self, until},
};
use serde::Deserialize;
use serde_json::json;

/// How long a rollout may take on a busy machine; half a minute on an idle one.
const ROLLOUT: Duration = Duration::from_mins(6);

/// After so long without a sign of life a job counts as stalled. Half a minute where nobody says.
const JOB_LOCK: Duration = Duration::from_secs(10);

/// The visitors.
const LOAD: &str = include_str!("../fixtures/load.js");

/// Counts what became of the jobs of a queue since a time: done, begun more than once, stalled, the age of the oldest when it
/// was done, and how many are left that were there before another time.
const COUNT: &str = r"
local done, again, stalled, oldest, left, begun = 0, 0, 0, 0, 0, {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1] .. ':events', ARGV[1], '+')) do
  local event = {}
  for i = 1, #entry[2], 2 do event[entry[2][i]] = entry[2][i + 1] end
  if event.event == 'active' then
    if begun[event.jobId] then again = again + 1 end
    begun[event.jobId] = true
  elseif event.event == 'stalled' then
    stalled = stalled + 1
  elseif event.event == 'completed' then
    done = done + 1
    local job = redis.call('HMGET', KEYS[1] .. ':' .. event.jobId, 'timestamp', 'finishedOn')
    oldest = math.max(oldest, job[2] - job[1])
  end
end
for _, list in ipairs({':wait', ':active'}) do
  for _, id in ipairs(redis.call('LRANGE', KEYS[1] .. list, 0, -1)) do
    local at = redis.call('HGET', KEYS[1] .. ':' .. id, 'timestamp')
    if at and at + 0 < ARGV[2] + 0 then left = left + 1 end
  end
end
return {done, again, stalled, oldest, left}
";

/// What became of the jobs.
#[derive(Debug)]
struct Jobs {
    done: u64,
    again: u64,
    stalled: u64,
    /// The age of the oldest one when it was done.
    oldest: Duration,
    /// How many are left.
    left: u64,
}

/// What the visitors have seen.
#[derive(Clone, Debug, Deserialize)]
struct Seen {
    requests: u64,
    pushed: u64,
    failures: Vec<Failure>,
    /// When the oldest request that is open was begun, in milliseconds since the Unix epoch.
    oldest: u64,
}

/// A request that failed.
#[derive(Clone, Debug, Deserialize)]
#[expect(dead_code, reason = "shown when there are any that should not be")]
struct Failure {
    /// When it was begun, in milliseconds since the Unix epoch.
    begun: u64,
    ended: u64,
    name: String,
    error: String,
}

/// An app as its user deploys it: two pods, and nothing about how they end.
fn app_manifest() -> String {
    let mut config = cabloy_v4::config();
    let redis = json!({"host": "redis", "port": 6379, "password": "", "db": 0});
    let roles = ["redlock", "limiter", "queue", "broadcast", "cache", "io", "auth"];
    config["redis"]["clients"] = roles.iter().map(|role| ((*role).to_owned(), redis.clone())).collect();
    config["queue"]["worker"] = json!({"lockDuration": JOB_LOCK.as_millis(), "stalledInterval": 2_000});
    let config = serde_json::to_string(&config.to_string()).unwrap_or_default();
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: shop-web}}
spec:
  replicas: 2
  progressDeadlineSeconds: 900
  selector: {{matchLabels: {{app: shop-web}}}}
  template:
    metadata: {{labels: {{app: shop-web}}}}
    spec:
      containers:
        - name: app
          image: {APP}:1
          env: [{{name: EGG_WORKERS, value: \"2\"}}, {{name: EGG_APP_CONFIG, value: {config}}}]
          ports: [{{containerPort: {port}}}]
          readinessProbe:
            httpGet: {{path: /api/fx/probe/probe/ping, port: {port}, httpHeaders: [{{name: Host, value: 127.0.0.1}}]}}
            periodSeconds: 1
            timeoutSeconds: 5
---
apiVersion: v1
kind: Service
metadata: {{name: shop-web}}
spec: {{selector: {{app: shop-web}}, ports: [{{port: {port}}}]}}
",
        port = cabloy_v4::PORT
    )
}

fn load_manifest() -> String {
    let code = serde_json::to_string(LOAD).unwrap_or_default();
    format!(
        "
apiVersion: v1
kind: ConfigMap
metadata: {{name: load}}
data: {{load.js: {code}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: load, labels: {{app: load}}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: load
      image: shop:1
      command: [node, /code/load.js]
      env: [{{name: TARGET, value: shop-web}}]
      readinessProbe: {{tcpSocket: {{port: 8080}}, periodSeconds: 1}}
      volumeMounts: [{{name: code, mountPath: /code}}]
  volumes: [{{name: code, configMap: {{name: load}}}}]
"
    )
}

fn cluster_manifest() -> String {
    json!({
        "apiVersion": "cabloy.io/v1alpha1", "kind": "CabloyCluster", "metadata": {"name": "shop"},
        "spec": {
            "app": {"name": APP, "generation": "v4", "port": cabloy_v4::PORT},
            "workloads": [{"name": "shop-web"}],
            "redis": {"connections": {"default": {"host": "redis"}}},
        }
    })
    .to_string()
}

/// Waits until all pods are new and ready, and the others are gone.
async fn rolled_out(stage: &Stage) {
    let timeout = format!("--timeout={}s", ROLLOUT.as_secs());
    stage.kubectl(&["rollout", "status", "deployment/shop-web", &timeout]).await;
    until("the old pods to be gone", ROLLOUT, async || {
        let pods = stage.kubectl(&["get", "pods", "--selector=app=shop-web", "--output=name"]).await;
        if pods.lines().count() == 2 { Ok(()) } else { Err(pods) }
    })
    .await;
}

async fn seen(stage: &Stage) -> Seen {
    let ip = stage.kubectl(&["get", "pod", "load", "--output=jsonpath={.status.podIP}"]).await;
    let ip: IpAddr = ip.parse().unwrap_or_else(|error| panic!("{ip:?}: {error}"));
    let address = stage.reach(SocketAddr::new(ip, 8080)).await;
    until("the visitors", POD, async || {
        let text = get(address, "/").await.map_err(|error| error.to_string())?;
        serde_json::from_str(&text).map_err(|error| format!("{text:?}: {error}"))
    })
    .await
}

/// What became of the jobs from one time to another, in milliseconds since the Unix epoch.
async fn jobs(stage: &Stage, since: u64, until: u64) -> Jobs {
    let queue = format!("bull_{APP}:queue:-||fx-probe||busy");
    let counts: Vec<u64> =
        stage.ask("redis", &["EVAL", COUNT, "1", &queue, &since.to_string(), &until.to_string()]).await;
    let [done, again, stalled, oldest, left] = counts[..] else { panic!("{counts:?}") };
    Jobs { done, again, stalled, oldest: Duration::from_millis(oldest), left }
}

/// What became of the jobs since a time, once all that were there before another one are done.
async fn all_done(stage: &Stage, since: u64, until: u64) -> Jobs {
    wait::until("all jobs to be done", POD, async || {
        let jobs = jobs(stage, since, until).await;
        if jobs.left == 0 { Ok(jobs) } else { Err(format!("{jobs:?}")) }
    })
    .await
}

/// By the clock of the queue's server.
async fn now(stage: &Stage) -> u64 {
    let (seconds, micros): (u64, u64) = stage.ask("redis", &["TIME"]).await;
    seconds * 1_000 + micros / 1_000
}

/// Restarts all pods while the visitors go on, and says what they saw meanwhile, and what became of the jobs: of a pod that
/// died at work as well, whose jobs stall, and are done by another in the end.
async fn restart(stage: &Stage) -> (Seen, Jobs) {
    all_done(stage, 0, now(stage).await).await;
    let (since, before) = (now(stage).await, seen(stage).await);
    stage.kubectl(&["rollout", "restart", "deployment/shop-web"]).await;
    rolled_out(stage).await;
    let end = now(stage).await;
    // One that a pod did not answer fails when that pod is long gone.
    let after = until("what was asked meanwhile to be answered", POD, async || {
        let seen = seen(stage).await;
        if seen.oldest > end { Ok(seen) } else { Err(format!("{seen:?}")) }
    })
    .await;
    let jobs = all_done(stage, since, end).await;
    let asked = since..=end;
    let failures = after.failures.into_iter().filter(|failure| asked.contains(&failure.begun)).collect();
    let (requests, pushed) = (after.requests - before.requests, after.pushed - before.pushed);
    let seen = Seen { requests, pushed, failures, ..before };
    println!("{} requests, {} failed; {jobs:?}", seen.requests, seen.failures.len());
    (seen, jobs)
}

#[tokio::test]
async fn a_rolling_update_fails_no_request_and_stalls_no_job_where_one_without_us_does() {
    let cluster = require_node!();
    require!(cabloy::found());
    let stage = Stage::new(cluster, "rolling", &["redis"]).await;
    let tars = tokio::task::spawn_blocking(|| Ok::<_, anyhow::Error>([cabloy_v4::app()?, cabloy_v4::database()?]));
    for tar in tars.await.unwrap().unwrap() {
        cluster.import_image(&tar).await;
    }
    stage.apply(&cabloy_v4::database_manifest()).await;
    stage.rolled_out("deployment/db").await;
    stage.apply(&app_manifest()).await;
    rolled_out(&stage).await;
    stage.apply(&load_manifest()).await;
    stage.kubectl(&["wait", "--for=condition=Ready", "pod/load", "--timeout=120s"]).await;

    let (plain, jobs_of_plain) = restart(&stage).await;
    assert!(!plain.failures.is_empty(), "{plain:?}");
    assert!(jobs_of_plain.stalled > 0 && jobs_of_plain.again > 0, "{jobs_of_plain:?}");
    assert!(jobs_of_plain.oldest >= JOB_LOCK, "{jobs_of_plain:?}");

    stage.apply(&cluster_manifest()).await;
    until("our part in the workload", POD, async || {
        let template = stage.kubectl(&["get", "deployment", "shop-web", "--output=jsonpath={.spec.template}"]).await;
        template.contains("\"sleep\"")
    })
    .await;
    rolled_out(&stage).await;
    stage.condition("Ready", "True", "", ROLLOUT).await;

    let (seen, jobs) = restart(&stage).await;
    assert!(seen.failures.is_empty(), "{seen:?}");
    assert!(jobs.stalled == 0 && jobs.again == 0 && jobs.oldest < JOB_LOCK, "{jobs:?}");
    assert!(seen.requests > 200 && jobs.done + 1 >= seen.pushed && seen.pushed > 50, "{seen:?} {jobs:?}");
}
