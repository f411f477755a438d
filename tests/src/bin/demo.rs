//! `make demo`: the whole product on a real node of its own, told as it happens to somebody who has never seen it.

use std::{
    collections::BTreeSet,
    env,
    fmt::Display,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use cabloy_tests::{
    cluster::{Cluster, Shape},
    stage::{self, OPERATOR, POD, Stage},
    wait::try_until,
};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

/// The app's namespace.
const NAMESPACE: &str = "default";

fn main() -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(demo())
}

async fn demo() -> Result<()> {
    let keep = env::var("KEEP").is_ok_and(|keep| keep == "1");
    let mut story = Story { began: Instant::now(), step: 0, told: BTreeSet::new() };

    story.step(
        "A Kubernetes node of its own: etcd, API server, kubelet, containerd, DNS (building them takes minutes, once)",
    );
    let cluster = if keep { Cluster::start_detached(Shape::Node, &kept_dir()?)? } else { Cluster::start(Shape::Node)? };
    // It ends with this process, or by the command that is printed at the end.
    let cluster: &'static Cluster = Box::leak(Box::new(cluster));
    say(format_args!("running; KUBECONFIG={}", cluster.kubeconfig().display()));

    story.step("Images of operator and agent, and the operator by its Helm chart");
    say("helm upgrade --install cabloy charts/cabloy-operator --namespace cabloy-system --create-namespace --wait");
    stage::install(cluster).await;

    let stage = Stage::at(cluster, NAMESPACE).await;
    story.step("Somebody's app: five Redis and a Deployment of three pods that knows nothing of us");
    for file in ["examples/demo/redis.yaml", "examples/demo/app.yaml"] {
        say(format_args!("kubectl apply -f {file}"));
        stage.kubectl(&["apply", "--filename", &checkout(file)]).await;
    }
    for name in ["redis-lock-a", "redis-lock-b", "redis-lock-c", "redis-main", "redis-other", "shop-web"] {
        stage.rolled_out(&format!("deployment/{name}")).await;
    }
    lines(&stage.kubectl(&["get", "pods", "--selector=app=shop-web"]).await);

    story.step("One resource");
    let manifest = std::fs::read_to_string(checkout("examples/shop.yaml"))?;
    lines(&manifest);
    say("kubectl apply -f examples/shop.yaml");
    stage.kubectl(&["apply", "--filename", &checkout("examples/shop.yaml")]).await;

    story.step("It becomes a ConfigMap for each role, an agent in each pod, and one leader");
    stage.condition("Ready", "True", "", POD).await;
    lines(&stage.kubectl(&["get", "configmaps", "--selector=cabloy.io/cluster=shop"]).await);
    say("the ConfigMap of role cache:");
    lines(&stage.kubectl(&["get", "configmap", "shop-redis-cache", "--output=jsonpath={.data.client\\.json}"]).await);
    lines(&stage.kubectl(&["get", "pods", "--selector=app=shop-web"]).await);
    lines(&stage.kubectl(&["get", "cabloycluster", "shop", "--output=wide"]).await);

    story.step("The startup task ran once, before the new pods took traffic; the schedule ticks on the leader");
    story.app_log(&stage, Duration::from_secs(8)).await;

    successions(&mut story, &stage).await?;
    edit(&mut story, &stage).await?;

    if keep {
        story.step("It stays, as KEEP=1 asks. To look around, and to end it:");
        say(format_args!(
            "export KUBECONFIG={} PATH={}:$PATH",
            cluster.kubeconfig().display(),
            cluster.info().bin.display()
        ));
        say("kubectl get cbc,pods,configmaps; kubectl describe cbc shop; kubectl edit cbc shop");
        say(format_args!(
            "cargo run -p cabloy-tests --bin cabloy-test-cluster -- down --dir {}",
            kept_dir()?.display()
        ));
        return Ok(());
    }
    story.step("Gone again: the resource is deleted, and the Deployment is as its user wrote it");
    stage.kubectl(&["delete", "cabloycluster", "shop", "--timeout=120s"]).await;
    stage.rolled_out("deployment/shop-web").await;
    lines(&stage.kubectl(&["get", "configmaps,pods", "--selector=app notin (nothing)"]).await);
    cluster.stop()?;
    say(format_args!(
        "done in {} s; nothing is left on this machine but the build caches",
        story.began.elapsed().as_secs()
    ));
    Ok(())
}

/// The leader is killed, and the next one is ended in good order.
async fn successions(story: &mut Story, stage: &Stage) -> Result<()> {
    let (leader, token) = stage.leader(OPERATOR).await;
    story.step(format_args!("kill -9 of everything in the leader's pod, {leader}"));
    let from = Timestamp::now();
    stage.kill(&leader).await;
    // Or kubelet would start its containers again, and the same pod might lead anew.
    stage.kubectl(&["delete", "pod", &leader, "--force", "--grace-period=0", "--wait=false"]).await;
    let took = succession(stage, &leader, token, from).await?;
    say(format_args!("the next one leads after {} ms (a lease lasts 3,000 ms)", took.as_millis()));
    story.app_log(stage, Duration::from_secs(6)).await;

    stage.rolled_out("deployment/shop-web").await;
    let (leader, token) = stage.leader(OPERATOR).await;
    story.step(format_args!("kubectl delete pod {leader}: an orderly end hands over at once"));
    let from = Timestamp::now();
    stage.kubectl(&["delete", "pod", &leader, "--wait=false"]).await;
    let took = succession(stage, &leader, token, from).await?;
    say(format_args!("the next one leads {} ms later, most of which kubectl and kubelet took", took.as_millis()));
    Ok(())
}

/// A role moves to another server.
async fn edit(story: &mut Story, stage: &Stage) -> Result<()> {
    stage.rolled_out("deployment/shop-web").await;
    story.step("Role cache moves to another Redis, by an edit of the resource");
    let patch = r#"{"spec":{"redis":{"roles":{"cache":{"host":"redis-other"}}}}}"#;
    say(format_args!("kubectl patch cabloycluster shop --type=merge --patch '{patch}'"));
    let edited = Instant::now();
    stage.kubectl(&["patch", "cabloycluster", "shop", "--type=merge", "--patch", patch]).await;
    try_until("the edit at the agents", Duration::from_secs(20), async || {
        stage.agents().await.iter().any(|agent| {
            agent.config.roles.get("cache").is_some_and(|servers| servers.iter().any(|s| s.starts_with("redis-other")))
        })
    })
    .await?;
    say(format_args!(
        "an agent has it after {} ms; the app reads it at boot, so its pods are rolled",
        edited.elapsed().as_millis()
    ));
    try_until("visits on redis-other", POD, async || {
        stage.ask::<Option<i64>>("redis-other", &["GET", "cache_shop:restock"]).await
    })
    .await?;
    stage.rolled_out("deployment/shop-web").await;
    story.app_log(stage, Duration::from_secs(5)).await;
    let count: i64 = stage.ask("redis-other", &["GET", "cache_shop:restock"]).await;
    say(format_args!("redis-cli -h redis-other GET cache_shop:restock -> {count}"));
    Ok(())
}

/// Where a cluster that stays has its folder.
fn kept_dir() -> Result<PathBuf> {
    Ok(PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cabloy-demo"))
}

/// A file of the checkout.
fn checkout(file: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file).display().to_string()
}

fn say(line: impl Display) {
    println!("         {line}");
}

fn lines(text: &str) {
    for line in text.lines() {
        say(format_args!("  {line}"));
    }
}

/// Tells what happens.
struct Story {
    began: Instant,
    step: u32,
    /// Lines of the app that were told.
    told: BTreeSet<String>,
}

impl Story {
    fn step(&mut self, title: impl Display) {
        self.step += 1;
        println!("\n\x1b[1m[{:>4} s] {}. {title}\x1b[0m", self.began.elapsed().as_secs(), self.step);
    }

    /// Tells what the app prints, for a while.
    async fn app_log(&mut self, stage: &Stage, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            let args = ["logs", "--selector=app=shop-web", "--container=app", "--since=30s", "--tail=50"];
            // A pod that comes or goes has no log yet, or no more.
            let log = stage.cluster.kubectl(&[&["--namespace", NAMESPACE], &args[..]].concat()).await.stdout;
            for line in log.lines().filter(|line| line.starts_with("shop-web")) {
                if self.told.insert(line.to_owned()) {
                    say(format_args!("  app: {line}"));
                }
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

/// Waits for another leader than `pod` of `token`; returns how long after `from` it began to lead.
async fn succession(stage: &Stage, pod: &str, token: u64, from: Timestamp) -> Result<Duration> {
    let (next, since) = try_until("another leader", Duration::from_secs(30), async || {
        stage.agents().await.into_iter().find_map(|agent| {
            let election = agent.election.filter(|e| e.leading && e.token > Some(token))?;
            Some((agent.pod, election.since?))
        })
    })
    .await
    .map_err(|error| anyhow!("{error}"))?;
    say(format_args!("{pod} led with token {token}; now {next} leads"));
    for found in stage.pods().await {
        if found.name_any() == next {
            say(format_args!("{next} answers at {}", found.status.and_then(|s| s.pod_ip).unwrap_or_default()));
        }
    }
    Ok(Duration::try_from(since.duration_since(from)).unwrap_or_default())
}
