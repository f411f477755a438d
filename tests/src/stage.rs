//! A namespace on the node with what a test of the whole product takes: Redis servers, an app that knows nothing of us,
//! and a record of each call that the app got.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use cabloy_crds::{
    agent_status::{AgentStatus, ScheduleStatus},
    resource::CabloyCluster,
};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{Api, Client, ResourceExt, api::ListParams};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Mutex, OnceCell},
};

use crate::{
    cluster::{Cluster, Namespace},
    forward::Forward,
    images,
    wait::until,
};

/// The app of the tests.
const SERVER: &str = include_str!("../fixtures/server.js");

/// How long pods may take to come and go on a busy machine.
pub const POD: Duration = Duration::from_mins(2);

/// How long the operator may take to say something.
pub const OPERATOR: Duration = Duration::from_secs(40);

/// The namespace of the operator.
pub const OPERATOR_NAMESPACE: &str = "cabloy-system";

/// The versions of the app that have an image on the node, `shop:<version>`.
const VERSIONS: [&str; 3] = ["1", "2", "3"];

/// Puts all images on the node and installs the chart, once for each test process.
///
/// # Panics
/// Something of it fails.
pub async fn install(cluster: &Cluster) {
    static INSTALLED: OnceCell<()> = OnceCell::const_new();
    INSTALLED
        .get_or_init(|| async {
            let tars = tokio::task::spawn_blocking(|| {
                let ours = images::build()?;
                anyhow::Ok([ours.agent_tar, ours.operator_tar, images::redis()?, images::node()?])
            });
            for tar in tars.await.unwrap_or_else(|error| panic!("{error}")).unwrap_or_else(|error| panic!("{error:#}"))
            {
                cluster.import_image(&tar).await;
            }
            for version in VERSIONS {
                cluster.tag_image("docker.io/library/node:20-slim", &format!("docker.io/library/shop:{version}")).await;
            }
            let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/cabloy-operator");
            let args = [
                "upgrade",
                "--install",
                "cabloy",
                chart,
                "--namespace",
                OPERATOR_NAMESPACE,
                "--create-namespace",
                "--wait",
                "--timeout",
                "2m",
            ];
            let _ = cluster.helm(&args).await.success();
        })
        .await;
}

/// A call that the app of the tests got, as it wrote it down itself.
#[derive(Clone, Debug, Deserialize)]
pub struct Call {
    /// `start` when it came, `end` when the app was through with it.
    pub event: String,
    /// When, in milliseconds since the Unix epoch.
    pub at: i64,
    /// The pod that got it.
    pub pod: String,
    /// `VERSION` in the pod's environment.
    pub version: String,
    /// The path.
    pub path: String,
    /// The `Host` header.
    pub host: Option<String>,
    /// The tick, RFC 3339.
    pub tick: Option<String>,
    /// The `Idempotency-Key` header.
    pub key: Option<String>,
    /// The attempt.
    pub attempt: Option<u32>,
    /// The fencing token.
    pub token: Option<u64>,
    /// Whether it is signed with the key that the operator made.
    pub signed: bool,
}

/// A namespace with Redis servers and an app.
pub struct Stage {
    /// The cluster that it is in.
    pub cluster: &'static Cluster,
    /// A client with the administrator's rights.
    pub client: Client,
    /// The namespace.
    pub namespace: Namespace,
    forwards: Mutex<BTreeMap<SocketAddr, Forward>>,
}

impl Stage {
    /// A new namespace with the named Redis servers, and one more for the record of the app's calls.
    ///
    /// # Panics
    /// They do not come up.
    pub async fn new(cluster: &'static Cluster, prefix: &str, redis: &[&str]) -> Self {
        install(cluster).await;
        let stage = Self {
            cluster,
            client: cluster.client().await,
            namespace: cluster.namespace(prefix).await,
            forwards: Mutex::default(),
        };
        let manifests: Vec<_> = redis.iter().chain(&["audit"]).map(|name| redis_manifest(name, "[]")).collect();
        stage.apply(&manifests.join("---\n")).await;
        for name in redis.iter().chain(&["audit"]) {
            stage.rolled_out(&format!("deployment/{name}")).await;
        }
        stage
    }

    /// A namespace that is there.
    pub async fn at(cluster: &'static Cluster, namespace: &str) -> Self {
        Self {
            cluster,
            client: cluster.client().await,
            namespace: Namespace::of(namespace),
            forwards: Mutex::default(),
        }
    }

    /// The name of the namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Runs kubectl in the namespace; returns its output.
    ///
    /// # Panics
    /// It fails.
    pub async fn kubectl(&self, args: &[&str]) -> String {
        self.cluster.kubectl(&[&["--namespace", &self.namespace], args].concat()).await.success()
    }

    /// Applies manifests, as a user does.
    ///
    /// # Panics
    /// They are refused.
    pub async fn apply(&self, manifests: &str) {
        let args = ["apply", "--namespace", &self.namespace, "--filename=-"];
        let _ = self.cluster.kubectl_with(&args, manifests).await.success();
    }

    /// Adds a Redis server with arguments of its own, a JSON list.
    ///
    /// # Panics
    /// It does not come up.
    pub async fn redis(&self, name: &str, args: &str) {
        self.apply(&redis_manifest(name, args)).await;
        self.rolled_out(&format!("deployment/{name}")).await;
    }

    /// Applies the app of the tests as Deployment `shop-web` with so many pods; `version` is the tag of its image.
    ///
    /// # Panics
    /// It is refused.
    pub async fn app(&self, replicas: u32, version: &str) {
        self.apply(&app_manifest("shop-web", replicas, version)).await;
    }

    /// Waits until all pods of a workload are new and ready.
    ///
    /// # Panics
    /// They are not in time.
    pub async fn rolled_out(&self, workload: &str) {
        self.kubectl(&["rollout", "status", workload, &format!("--timeout={}s", POD.as_secs())]).await;
    }

    /// The resource `shop`.
    ///
    /// # Panics
    /// There is none.
    pub async fn shop(&self) -> CabloyCluster {
        Api::namespaced(self.client.clone(), &self.namespace).get("shop").await.unwrap_or_else(|e| panic!("{e}"))
    }

    /// Waits until a condition of the resource `shop` has a status, and a reason unless that is empty; returns its
    /// message.
    ///
    /// # Panics
    /// It has not in time.
    pub async fn condition(&self, kind: &str, status: &str, reason: &str, timeout: Duration) -> String {
        until(&format!("condition {kind}={status} {reason}"), timeout, async || {
            let conditions = self.shop().await.status.unwrap_or_default().conditions;
            let found = conditions
                .iter()
                .find(|c| c.type_ == kind && c.status == status && (reason.is_empty() || c.reason == reason));
            found.map(|c| c.message.clone()).ok_or_else(|| {
                let all: Vec<_> = conditions
                    .iter()
                    .map(|c| format!("{}={} {}: {}", c.type_, c.status, c.reason, c.message))
                    .collect();
                all.join("\n")
            })
        })
        .await
    }

    /// The living pods of Deployment `shop-web` that are not about to end.
    ///
    /// # Panics
    /// The API server does not list them.
    pub async fn pods(&self) -> Vec<Pod> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace)
            .list(&ListParams::default().labels("app=shop-web"))
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        pods.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect()
    }

    /// What each agent of Deployment `shop-web` says of itself; those that cannot be asked are left out.
    pub async fn agents(&self) -> Vec<AgentStatus> {
        let mut agents = Vec::new();
        for pod in self.pods().await {
            agents.extend(self.agent(&pod).await);
        }
        agents
    }

    /// What the agent in a pod says of itself.
    pub async fn agent(&self, pod: &Pod) -> Option<AgentStatus> {
        let ip: IpAddr = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
        let address = self.reach(SocketAddr::new(ip, cabloy_crds::names::AGENT_PORT)).await;
        let text = tokio::time::timeout(Duration::from_secs(2), get(address, "/status")).await.ok()?.ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Waits until one agent leads, and all others know; returns its pod and its token.
    ///
    /// # Panics
    /// That does not come to be.
    pub async fn leader(&self, timeout: Duration) -> (String, u64) {
        until("one leader", timeout, async || {
            let agents = self.agents().await;
            let leading: Vec<_> =
                agents.iter().filter_map(|a| a.election.as_ref().filter(|e| e.leading).map(|e| (a, e))).collect();
            match leading[..] {
                [(agent, election)] => Ok((agent.pod.clone(), election.token.unwrap_or_default())),
                _ => Err(format!("{} of {} agents lead", leading.len(), agents.len())),
            }
        })
        .await
    }

    /// What the leader says of its schedules; nothing if nobody leads.
    pub async fn schedules(&self) -> Vec<ScheduleStatus> {
        self.agents().await.into_iter().flat_map(|agent| agent.schedules).collect()
    }

    /// The calls that the app got so far, oldest first.
    ///
    /// # Panics
    /// The record cannot be read.
    pub async fn calls(&self) -> Vec<Call> {
        let texts: Vec<String> = self.ask("audit", &["LRANGE", "calls", "0", "-1"]).await;
        texts.iter().map(|text| serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"))).collect()
    }

    /// Sends a command to a Redis server of this namespace.
    ///
    /// # Panics
    /// It does not answer.
    pub async fn ask<T: redis::FromRedisValue>(&self, server: &str, command: &[&str]) -> T {
        let services = Api::<Service>::namespaced(self.client.clone(), &self.namespace);
        let service = services.get(server).await.unwrap_or_else(|error| panic!("{error}"));
        let ip = service.spec.and_then(|spec| spec.cluster_ip).unwrap_or_default();
        let ip: IpAddr = ip.parse().unwrap_or_else(|error| panic!("{server} has address {ip:?}: {error}"));
        let address = self.reach(SocketAddr::new(ip, 6379)).await;
        let (mut line, command) = (redis::cmd(command[0]), &command[1..]);
        line.arg(command);
        until(&format!("an answer of {server}"), Duration::from_secs(20), async || {
            let client = redis::Client::open(format!("redis://{address}"))?;
            let mut connection = client.get_multiplexed_async_connection().await?;
            line.query_async::<T>(&mut connection).await
        })
        .await
    }

    /// Where an address of the cluster's network can be reached from here.
    pub async fn reach(&self, to: SocketAddr) -> SocketAddr {
        let mut forwards = self.forwards.lock().await;
        forwards.entry(to).or_insert_with(|| self.cluster.forward(to)).addr()
    }

    /// Kills all processes of a pod's containers at once, as when its node loses power; returns when.
    ///
    /// # Panics
    /// There are none.
    pub async fn kill(&self, pod: &str) -> Instant {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let uid = pods.get(pod).await.ok().and_then(|pod| pod.uid()).unwrap_or_else(|| panic!("there is no pod {pod}"));
        let killed = processes_of(&uid);
        assert!(!killed.is_empty(), "no process of pod {pod} was found");
        let at = Instant::now();
        for pid in killed {
            // One that ended meanwhile is as good as killed.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        at
    }
}

/// The processes of a pod, by its control group; not the one that only holds its namespaces.
#[must_use]
pub fn processes_of(uid: &str) -> Vec<rustix::process::Pid> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let group = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let command = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if group.contains(uid) && command.trim() != "pause" {
            found.extend(rustix::process::Pid::from_raw(pid));
        }
    }
    found
}

/// The body that a GET gets.
///
/// # Errors
/// There is no answer.
pub async fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut text = String::new();
    socket.read_to_string(&mut text).await?;
    Ok(text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// A Redis server as a user deploys it, with arguments, a JSON list.
#[must_use]
pub fn redis_manifest(name: &str, args: &str) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  strategy: {{type: Recreate}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: redis
          image: redis:7
          args: {args}
          readinessProbe: {{tcpSocket: {{port: 6379}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: {name}}}, ports: [{{port: 6379}}]}}
"
    )
}

/// The app of the tests as a user deploys it.
#[must_use]
pub fn app_manifest(name: &str, replicas: u32, version: &str) -> String {
    let code = serde_json::to_string(SERVER).unwrap_or_default();
    format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: shop-code}}
data: {{server.js: {code}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
        - name: app
          image: shop:{version}
          command: [node, /code/server.js]
          env: [{{name: VERSION, value: "{version}"}}]
          ports: [{{containerPort: 7002}}]
          readinessProbe: {{httpGet: {{path: /healthz, port: 7002}}, periodSeconds: 1}}
          volumeMounts: [{{name: code, mountPath: /code}}]
      volumes: [{{name: code, configMap: {{name: shop-code}}}}]
"#
    )
}

/// The resource `shop` for the app of the tests: role redlock on three servers, the rest on `redis-main`, and `more` as
/// further fields of its spec in JSON.
#[must_use]
pub fn shop_manifest(more: &Value) -> String {
    let mut shop = serde_json::json!({
        "apiVersion": "cabloy.io/v1alpha1", "kind": "CabloyCluster", "metadata": {"name": "shop"},
        "spec": {
            "app": {"name": "shop", "generation": "generic", "healthPath": "/healthz"},
            "workloads": [{"name": "shop-web"}],
            "redis": {
                "connections": {
                    "default": {"host": "redis-main"},
                    "lock-a": {"host": "lock-a"}, "lock-b": {"host": "lock-b"}, "lock-c": {"host": "lock-c"}
                },
                "roles": {"redlock": {"connections": ["lock-a", "lock-b", "lock-c"]}, "cache": {}, "queue": {}}
            },
            "agent": {"election": {"ttl": "3s"}}
        }
    });
    if let (Some(spec), Some(more)) = (shop["spec"].as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
    shop.to_string()
}

/// The servers that [`shop_manifest`] names.
pub const SERVERS: [&str; 4] = ["lock-a", "lock-b", "lock-c", "redis-main"];
