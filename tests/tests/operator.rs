//! The operator's own program against a real API server, a namespace and an operator for each test. Pods do not run
//! here: what they do with what the operator writes is for the tests on a node.

#![allow(clippy::expect_used, reason = "the helpers of tests fail as tests do")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use cabloy_tests::{
    cluster::{Cluster, Namespace, Shape},
    process::{Process, bound},
    redis::Redis,
    wait::until,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::OnceCell;

const SOON: Duration = Duration::from_secs(30);

/// The garbage collector learns of a new kind of resources within half a minute.
const COLLECTED: Duration = Duration::from_secs(90);

/// A password that must never show up in anything the operator writes.
const PASSWORD: &str = "correct-horse-battery-staple";

/// The operator's program, built by Cargo: it builds programs only for the tests of their own package.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| built("cabloy-operator"))
}

/// The agent's program.
fn agent_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| built("cabloy-agent"))
}

fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test is a program");
    let folder = test.ancestors().nth(2).expect("a test lies in a target folder");
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--quiet", "--package", name]).current_dir(env!("CARGO_MANIFEST_DIR"));
    if folder.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().expect("Cargo runs").success(), "{name} does not build");
    folder.join(name)
}

fn crd() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/cabloyclusters.yaml");
    std::fs::read_to_string(file).expect("the CRD is in the repository")
}

async fn install(cluster: &Cluster, crd: &str) {
    let _ = cluster.kubectl_with(&["apply", "--server-side", "--force-conflicts", "-f", "-"], crd).await.success();
    let wait = ["wait", "--for=condition=Established", "--timeout=30s", "crd/cabloyclusters.cabloy.io"];
    let _ = cluster.kubectl(&wait).await.success();
}

/// A running operator.
struct Operator {
    process: Process,
    listen: String,
    _dir: TempDir,
}

impl Operator {
    async fn start(cluster: &Cluster, namespace: &str, version: &str) -> Self {
        let dir = TempDir::with_prefix("cabloy-operator-").expect("a folder for the log");
        let log = dir.path().join("log");
        let mut command = bound(program());
        command
            .args(["run", "--listen=127.0.0.1:0", "--watch-namespace", namespace, "--agent-version", version])
            .env("KUBECONFIG", cluster.kubeconfig())
            .env("CABLOY_LOG", "info,cabloy_operator=debug");
        let process = Process::spawn("operator", command, &log).expect("the operator starts");
        let listen = until("the operator to listen", SOON, async || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let mut started = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            started.find_map(|line| line["listen"].as_str().map(str::to_owned))
        })
        .await;
        let operator = Self { process, listen, _dir: dir };
        until("the operator to be ready", SOON, async || operator.get("/readyz").await.starts_with("ready")).await;
        operator
    }

    async fn get(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let Ok(mut stream) = tokio::net::TcpStream::connect(&self.listen).await else { return String::new() };
        let request = format!("GET {path} HTTP/1.1\r\nhost: operator\r\nconnection: close\r\n\r\n");
        let mut answer = String::new();
        if stream.write_all(request.as_bytes()).await.is_err() || stream.read_to_string(&mut answer).await.is_err() {
            return String::new();
        }
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
    }

    async fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").await;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or_default()
    }

    /// Ends it as Kubernetes does, and waits until it has ended.
    async fn stop(mut self) {
        self.process.signal(Signal::TERM).expect("it runs");
        let status = until("the operator to end", SOON, async || self.process.exited()).await;
        assert!(status.success(), "{status}\n{}", self.process.log_tail(20));
    }
}

/// A namespace with an operator.
struct Stage {
    cluster: &'static Cluster,
    namespace: Namespace,
    operator: Operator,
}

impl Stage {
    async fn set(prefix: &str) -> Self {
        static CRD: OnceCell<()> = OnceCell::const_new();
        let cluster = Cluster::control_plane();
        CRD.get_or_init(async || install(cluster, &crd()).await).await;
        let namespace = cluster.namespace(prefix).await;
        let operator = Operator::start(cluster, &namespace, "1.0.0").await;
        Self { cluster, namespace, operator }
    }

    async fn kubectl(&self, args: &[&str]) -> String {
        let args: Vec<_> = ["--namespace", &self.namespace].into_iter().chain(args.iter().copied()).collect();
        self.cluster.kubectl(&args).await.success()
    }

    async fn write(&self, verb: &[&str], object: &Value) {
        let args: Vec<_> = ["--namespace", &self.namespace].iter().chain(verb).copied().chain(["-f", "-"]).collect();
        let _ = self.cluster.kubectl_with(&args, &object.to_string()).await.success();
    }

    async fn apply(&self, object: &Value) {
        self.write(&["apply"], object).await;
    }

    /// Replaces the object as a whole, for whom the write of another meanwhile is a reason to try again.
    async fn replace(&self, object: &Value) {
        let args = ["--namespace", &*self.namespace, "replace", "-f", "-"];
        until("kubectl replace", SOON, async || {
            let output = self.cluster.kubectl_with(&args, &object.to_string()).await;
            if output.status.success() { Ok(()) } else { Err(output.stderr) }
        })
        .await;
    }

    /// The object, or `Null`.
    async fn get(&self, kind: &str, name: &str) -> Value {
        let text = self.kubectl(&["get", kind, name, "--ignore-not-found", "--output=json"]).await;
        if text.trim().is_empty() { Value::Null } else { serde_json::from_str(&text).expect("kubectl writes JSON") }
    }

    async fn list(&self, kind: &str) -> Vec<Value> {
        let text = self.kubectl(&["get", kind, "--output=json"]).await;
        let list: Value = serde_json::from_str(&text).expect("kubectl writes JSON");
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// Our ConfigMaps, name → data.
    async fn config_maps(&self) -> BTreeMap<String, Value> {
        let maps = self.list("configmaps").await;
        let ours = maps.into_iter().filter(|map| map["metadata"]["labels"]["cabloy.io/cluster"].is_string());
        ours.map(|map| (text(&map["metadata"]["name"]), map["data"].clone())).collect()
    }

    async fn condition(&self, name: &str, type_: &str) -> Value {
        let resource = self.get("cabloycluster", name).await;
        let conditions = resource["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|condition| condition["type"] == type_).unwrap_or_default()
    }

    /// Waits for a condition, and returns its message.
    async fn await_condition(&self, name: &str, type_: &str, status: &str, reason: &str) -> String {
        let what = format!("{type_} of {name} to be {status} for {reason}");
        until(&what, SOON, async || {
            let condition = self.condition(name, type_).await;
            let there = condition["status"] == status && condition["reason"] == reason;
            there.then(|| text(&condition["message"])).ok_or_else(|| condition.to_string())
        })
        .await
    }

    async fn await_agent(&self, kind: &str, name: &str) -> Value {
        until(&format!("the agent in {kind} {name}"), SOON, async || {
            let workload = self.get(kind, name).await;
            agent(&workload).is_some().then_some(workload).ok_or_else(|| self.operator.process.log_tail(3))
        })
        .await
    }

    /// All that the operator writes in this namespace: resource versions by kind and name.
    async fn versions(&self) -> BTreeMap<String, String> {
        let mut versions = BTreeMap::new();
        for kind in ["configmaps", "deployments", "statefulsets", "daemonsets", "pods", "cabloyclusters"] {
            for object in self.list(kind).await {
                let name = format!("{kind}/{}", text(&object["metadata"]["name"]));
                versions.insert(name, text(&object["metadata"]["resourceVersion"]));
            }
        }
        versions
    }

    /// Has the resource reconciled once more, and waits until that is over.
    async fn reconcile(&self, name: &str) {
        let before = self.operator.metric("cabloy_operator_reconciles_total").await;
        let value = format!("test/look-again={before}");
        self.kubectl(&["annotate", "--overwrite", "cabloycluster", name, &value]).await;
        until("a reconciliation", SOON, async || {
            self.operator.metric("cabloy_operator_reconciles_total").await > before
        })
        .await;
    }

    /// Waits until nothing is left to be done.
    async fn settle(&self, name: &str) {
        until("nothing left to be written", SOON, async || {
            self.reconcile(name).await;
            let before = self.versions().await;
            self.reconcile(name).await;
            let after = self.versions().await;
            let key = format!("cabloyclusters/{name}");
            // The look itself is a write of the resource.
            let differs =
                before.iter().find(|(object, version)| **object != key && after.get(*object) != Some(version));
            let result = differs.is_none() && before.len() == after.len();
            result.then_some(()).ok_or_else(|| format!("{differs:?}"))
        })
        .await;
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn agent(workload: &Value) -> Option<&Value> {
    let containers = workload["spec"]["template"]["spec"]["initContainers"].as_array()?;
    containers.iter().find(|container| container["name"] == "cabloy-agent")
}

fn boot(workload: &Value) -> String {
    text(&workload["spec"]["template"]["metadata"]["annotations"]["cabloy.io/boot"])
}

fn env<'a>(workload: &'a Value, name: &str) -> &'a Value {
    let env = workload["spec"]["template"]["spec"]["containers"][0]["env"].as_array();
    env.into_iter().flatten().find(|env| env["name"] == name).map_or(&Value::Null, |env| &env["value"])
}

fn workload(kind: &str, name: &str) -> Value {
    let mut spec = json!({
        "selector": { "matchLabels": { "app": name } },
        "template": {
            "metadata": { "labels": { "app": name } },
            "spec": { "containers": [{
                "name": "app", "image": "shop:1",
                "env": [{ "name": "TZ", "value": "UTC" }],
            }] },
        },
    });
    if kind == "StatefulSet" {
        spec["serviceName"] = json!(name);
    }
    json!({ "apiVersion": "apps/v1", "kind": kind, "metadata": { "name": name }, "spec": spec })
}

fn deployment(name: &str) -> Value {
    workload("Deployment", name)
}

fn resource(name: &str, workloads: &Value, spec: &Value) -> Value {
    let mut whole = json!({
        "app": { "name": "shop", "generation": "v4" },
        "workloads": workloads,
        "redis": { "connections": { "default": { "host": "redis-main" } } },
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        whole[key] = value.clone();
    }
    json!({ "apiVersion": "cabloy.io/v1alpha1", "kind": "CabloyCluster", "metadata": { "name": name }, "spec": whole })
}

fn shop(spec: &Value) -> Value {
    resource("shop", &json!([{ "name": "web" }]), spec)
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_become_config_maps_byte_by_byte_and_without_secrets() {
    let stage = Stage::set("roles").await;
    stage.apply(&json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "redis-main" }, "stringData": { "password": PASSWORD },
    }))
    .await;
    stage.apply(&deployment("web")).await;
    stage.apply(&shop(&json!({
        "redis": {
            "connections": {
                "default": { "host": "redis-main", "username": "shop", "passwordSecretRef": { "name": "redis-main", "key": "password" } },
                "lock-a": { "host": "lock-a" }, "lock-b": { "host": "lock-b", "port": 6380 }, "lock-c": { "host": "lock-c" },
            },
            "roles": {
                "redlock": { "connections": ["lock-a", "lock-b", "lock-c"] },
                "limiter": { "db": 2 },
                "broadcast": { "host": "redis-bus" },
                "io": { "db": 4, "keyPrefix": "io_shop:" },
            },
        },
    })))
    .await;
    let web = stage.await_agent("deployment", "web").await;
    let maps = stage.config_maps().await;
    assert_eq!(
        maps["shop-redis-io"],
        json!({
            "client.json": r#"{
  "host": "redis-main",
  "port": 6379,
  "db": 4,
  "username": "shop",
  "password": {
    "$file": "/etc/cabloy/secrets/default/password"
  },
  "keyPrefix": "io_shop:"
}
"#,
            "host": "redis-main", "port": "6379", "db": "4", "keyPrefix": "io_shop:",
        })
    );
    // Another server does not get this one's password.
    assert_eq!(
        maps["shop-redis-broadcast"]["client.json"],
        "{\n  \"host\": \"redis-bus\",\n  \"port\": 6379,\n  \"db\": 0\n}\n"
    );
    assert_eq!(maps["shop-redis-redlock"]["masters"], "lock-a:6379,lock-b:6380,lock-c:6379");
    let roles = ["broadcast", "cache", "io", "limiter", "queue", "redlock"];
    let boot_name = boot(&web);
    let mut names: Vec<_> = roles.iter().map(|role| format!("shop-redis-{role}")).collect();
    names.extend(["shop-agent".to_owned(), boot_name.clone()]);
    names.sort();
    assert_eq!(maps.keys().cloned().collect::<Vec<_>>(), names);
    for role in roles {
        assert_eq!(maps[&boot_name][format!("{role}.json")], maps[&format!("shop-redis-{role}")]["client.json"]);
    }
    let boot_map = stage.get("configmap", &boot_name).await;
    assert_eq!(boot_map["immutable"], true);
    assert!(text(&boot_map["data"]["preload.cjs"]).contains("EGG_APP_CONFIG"));

    let all =
        stage.kubectl(&["get", "configmaps,deployments,replicasets,pods,cabloyclusters,events", "--output=yaml"]).await;
    assert!(!all.contains(PASSWORD) && !all.contains("Y29ycmVjdC1ob3JzZS"), "a password is not where it belongs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_gets_its_agent_and_nothing_of_it_is_lost() {
    let stage = Stage::set("sidecar").await;
    let mut user = deployment("web");
    user["spec"]["template"]["spec"]["initContainers"] = json!([{ "name": "init", "image": "init:1" }]);
    user["spec"]["template"]["spec"]["securityContext"] = json!({ "runAsUser": 0 });
    stage.apply(&user).await;
    let before = stage.get("deployment", "web").await;
    stage
        .apply(&resource(
            "shop",
            &json!([{ "name": "web", "elect": false, "nodeOptions": "--trace-warnings" }]),
            &json!({}),
        ))
        .await;
    let after = stage.await_agent("deployment", "web").await;
    let agent = agent(&after).expect("it was waited for");
    assert_eq!(agent["image"], "cabloy/cabloy-agent:1.0.0");
    assert_eq!(agent["restartPolicy"], "Always");
    assert_eq!(agent["securityContext"]["runAsUser"], 65532, "the pod's own user is root");
    let elect = agent["env"].as_array().into_iter().flatten().find(|env| env["name"] == "CABLOY_ELECT");
    assert_eq!(elect.expect("it is always there")["value"], "false");
    assert_eq!(env(&after, "NODE_OPTIONS"), "--require /etc/cabloy/boot/preload.cjs --trace-warnings");
    assert_eq!(env(&after, "TZ"), "UTC");
    assert_eq!(after["metadata"]["annotations"]["cabloy.io/cluster"], "shop");
    let init = |workload: &Value| workload["spec"]["template"]["spec"]["initContainers"][0].clone();
    assert_eq!(init(&after), init(&before), "the user's own container is as it was");
    // Kubernetes itself takes the pods.
    let pod = until("a pod with the agent", SOON, async || {
        stage.list("pods").await.into_iter().find(|pod| pod["metadata"]["labels"]["cabloy.io/cluster"] == "shop")
    })
    .await;
    assert_eq!(
        pod["spec"]["volumes"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|volume| text(&volume["name"]).starts_with("kube-api-access"))
            .count(),
        1
    );
    let mounts = pod["spec"]["initContainers"]
        .as_array()
        .and_then(|containers| containers.last())
        .map(|agent| agent["volumeMounts"].clone());
    let mounts = mounts.unwrap_or_default();
    let token = mounts
        .as_array()
        .into_iter()
        .flatten()
        .find(|mount| mount["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount");
    assert_eq!(token.expect("it is covered")["name"], "cabloy-no-token");
    // The agents learn of the new revision, and the pods are touched so that it reaches them at once.
    let hash = text(&pod["metadata"]["labels"]["pod-template-hash"]);
    until("the revision in agent.json", SOON, async || {
        let file: Value =
            serde_json::from_str(&text(&stage.get("configmap", "shop-agent").await["data"]["agent.json"]))
                .unwrap_or_default();
        file["revisions"][&hash]["number"] == 2
    })
    .await;
    until("the pod to be touched", SOON, async || {
        let pod = stage.get("pod", &text(&pod["metadata"]["name"])).await;
        pod["metadata"]["annotations"]["cabloy.io/config-synced"].is_string()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_as_it_should_be_is_not_written_again() {
    let mut stage = Stage::set("quiet").await;
    stage.apply(&deployment("web")).await;
    stage
        .apply(&shop(
            &json!({ "schedules": [{ "name": "tick", "every": "30s", "target": { "http": { "path": "/tick" } } }] }),
        ))
        .await;
    stage.await_agent("deployment", "web").await;
    stage.settle("shop").await;
    let writes = stage.operator.metric("cabloy_operator_writes_total{kind=\"objects\"}").await;
    for _ in 0..3 {
        stage.reconcile("shop").await;
    }
    assert_eq!(stage.operator.metric("cabloy_operator_writes_total{kind=\"objects\"}").await, writes);

    let before = stage.versions().await;
    let operator = Operator::start(stage.cluster, &stage.namespace, "1.0.0").await;
    std::mem::replace(&mut stage.operator, operator).stop().await;
    until("the new operator to look", SOON, async || {
        stage.operator.metric("cabloy_operator_reconciles_total").await > 0
    })
    .await;
    assert_eq!(stage.versions().await, before, "a new operator has nothing to write");
    stage.settle("shop").await;

    // A newer operator changes no running workload, and says so.
    let operator = Operator::start(stage.cluster, &stage.namespace, "2.0.0").await;
    std::mem::replace(&mut stage.operator, operator).stop().await;
    let message = stage.await_condition("shop", "UpdateAvailable", "True", "NewVersion").await;
    assert!(message.contains("1.0.0") && message.contains("2.0.0"), "{message}");
    assert_eq!(agent(&stage.get("deployment", "web").await).expect("it stays")["image"], "cabloy/cabloy-agent:1.0.0");
    stage
        .kubectl(&[
            "patch",
            "cabloycluster",
            "shop",
            "--type=merge",
            "--patch",
            r#"{"spec":{"agent":{"version":"2.0.0"}}}"#,
        ])
        .await;
    stage.await_condition("shop", "UpdateAvailable", "False", "UpToDate").await;
    assert_eq!(agent(&stage.get("deployment", "web").await).expect("it stays")["image"], "cabloy/cabloy-agent:2.0.0");
}

#[tokio::test(flavor = "multi_thread")]
async fn users_go_on_working_on_their_workload() {
    let stage = Stage::set("users").await;
    let mut user = deployment("web");
    stage.apply(&user).await;
    stage.apply(&shop(&json!({}))).await;
    let ours = stage.await_agent("deployment", "web").await;

    user["spec"]["template"]["spec"]["containers"][0]["image"] = json!("shop:2");
    stage.apply(&user).await;
    let applied = stage.get("deployment", "web").await;
    assert_eq!(applied["spec"]["template"]["spec"]["containers"][0]["image"], "shop:2");
    assert_eq!(agent(&applied), agent(&ours), "kubectl apply leaves ours");

    user["spec"]["template"]["spec"]["containers"][0]["image"] = json!("shop:3");
    stage.write(&["apply", "--server-side", "--force-conflicts"], &user).await;
    let applied = stage.get("deployment", "web").await;
    assert_eq!(applied["spec"]["template"]["spec"]["containers"][0]["image"], "shop:3");
    assert_eq!(agent(&applied), agent(&ours), "so does their server-side apply");

    stage.kubectl(&["rollout", "restart", "deployment/web"]).await;
    let restarted = stage.get("deployment", "web").await;
    assert_eq!(agent(&restarted), agent(&ours), "and a restart");
    assert!(restarted["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"].is_string());

    user["spec"]["template"]["spec"]["containers"][0]["image"] = json!("shop:4");
    stage.replace(&user).await;
    let replaced = stage.await_agent("deployment", "web").await;
    assert_eq!(agent(&replaced), agent(&ours), "what kubectl replace takes away is put back");
    assert_eq!(replaced["spec"]["template"]["spec"]["containers"][0]["image"], "shop:4");
    stage.settle("shop").await;

    // To the revision before the agent was there: the image goes back, the agent stays.
    stage.kubectl(&["rollout", "undo", "deployment/web", "--to-revision=1"]).await;
    until("the agent after the undo", SOON, async || {
        let web = stage.get("deployment", "web").await;
        agent(&web).is_some() && web["spec"]["template"]["spec"]["containers"][0]["image"] == "shop:1"
    })
    .await;
    stage.settle("shop").await;
    stage.kubectl(&["set", "image", "deployment/web", "app=shop:5"]).await;
    stage.settle("shop").await;
    stage.kubectl(&["rollout", "undo", "deployment/web"]).await;
    stage.settle("shop").await;
    let undone = stage.get("deployment", "web").await;
    assert_eq!(undone["spec"]["template"]["spec"]["containers"][0]["image"], "shop:1");
    assert_eq!(agent(&undone), agent(&ours));
    stage.await_condition("shop", "WorkloadsApplied", "True", "Applied").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_helm_upgrade_of_the_users_chart_leaves_the_agent() {
    let stage = Stage::set("helm").await;
    let chart = tempfile::tempdir().expect("a folder for the user's chart");
    let write = |name: &str, text: &str| std::fs::write(chart.path().join(name), text).expect("a file of the chart");
    std::fs::create_dir(chart.path().join("templates")).expect("a folder of the chart");
    write("Chart.yaml", "apiVersion: v2\nname: shop\nversion: 1.0.0\n");
    write("values.yaml", "tag: '1'\n");
    let manifest = deployment("web").to_string().replace("shop:1", "shop:{{ .Values.tag }}");
    write("templates/web.yaml", &manifest);
    let folder = chart.path().to_string_lossy().into_owned();
    let helm = async |args: &[&str]| {
        let _ = stage.cluster.helm(&[args, &["--namespace", &stage.namespace]].concat()).await.success();
    };

    helm(&["install", "shop", &folder]).await;
    stage.apply(&shop(&json!({}))).await;
    let ours = stage.await_agent("deployment", "web").await;
    helm(&["upgrade", "shop", &folder, "--set-string", "tag=2"]).await;
    let upgraded = stage.get("deployment", "web").await;
    assert_eq!(upgraded["spec"]["template"]["spec"]["containers"][0]["image"], "shop:2", "theirs is theirs");
    assert_eq!(agent(&upgraded), agent(&ours), "and ours is ours");
    helm(&["rollback", "shop", "1"]).await;
    let back = stage.get("deployment", "web").await;
    assert_eq!(back["spec"]["template"]["spec"]["containers"][0]["image"], "shop:1");
    assert_eq!(agent(&back), agent(&ours));
    stage.await_condition("shop", "WorkloadsApplied", "True", "Applied").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_manager_wrote_back_goes_as_well() {
    let stage = Stage::set("written-back").await;
    let user = deployment("web");
    stage.apply(&user).await;
    let before = stage.get("deployment", "web").await["spec"].clone();
    stage.apply(&shop(&json!({}))).await;
    stage.await_agent("deployment", "web").await;
    stage.settle("shop").await;
    stage.kubectl(&["annotate", "cabloycluster", "shop", "cabloy.io/paused=true"]).await;
    stage.await_condition("shop", "Ready", "Unknown", "Paused").await;
    // Somebody restores a copy of all that was there: it is kubectl now that owns our fields.
    let mut copy = stage.get("deployment", "web").await;
    for field in ["resourceVersion", "uid", "managedFields", "generation", "creationTimestamp"] {
        copy["metadata"].as_object_mut().expect("an object has metadata").remove(field);
    }
    stage.replace(&user).await;
    assert!(agent(&stage.get("deployment", "web").await).is_none(), "nobody puts it back while paused");
    stage.replace(&copy).await;
    stage.kubectl(&["annotate", "cabloycluster", "shop", "cabloy.io/paused-"]).await;
    stage.await_condition("shop", "WorkloadsApplied", "True", "Applied").await;
    stage.settle("shop").await;
    stage.kubectl(&["delete", "cabloycluster", "shop", "--timeout=30s"]).await;
    let left = stage.get("deployment", "web").await;
    assert_eq!(left["spec"], before, "{left:#}");
    // What kubectl keeps of the copy is text of its own.
    let annotations = left["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    assert!(!annotations.keys().any(|key| key.starts_with("cabloy.io/")), "{annotations:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_in_annotations_reaches_the_agents_and_what_cannot_be_done_is_said() {
    let stage = Stage::set("by-hand").await;
    stage.apply(&deployment("web")).await;
    let nightly = json!({ "name": "nightly", "cron": "0 3 * * *", "target": { "http": { "path": "/x" } } });
    stage.apply(&shop(&json!({ "schedules": [nightly] }))).await;
    stage.await_agent("deployment", "web").await;
    let week = "2026-01-01T00:00:00Z/2026-01-08T00:00:00Z";
    let (trigger, backfill) =
        ("cabloy.io/trigger=nightly/a,other/b", format!("cabloy.io/backfill=nightly/c/{week},nightly/d"));
    stage.kubectl(&["annotate", "cabloycluster", "shop", trigger, &backfill]).await;
    let said = stage.await_condition("shop", "SchedulesHealthy", "False", "BadTrigger").await;
    assert!(said.contains("no schedule \"other\"") && said.contains("\"nightly/d\": write <schedule>"), "{said}");
    let schedule = async || {
        let file = text(&stage.get("configmap", "shop-agent").await["data"]["agent.json"]);
        serde_json::from_str::<Value>(&file).expect("the file is JSON")["schedules"][0].clone()
    };
    let asked = schedule().await;
    assert_eq!(asked["triggers"], json!([{ "id": "a" }]));
    let expected = json!([{ "id": "c", "from": "2026-01-01T00:00:00Z", "to": "2026-01-08T00:00:00Z" }]);
    assert_eq!(asked["backfills"], expected);
    stage.kubectl(&["annotate", "cabloycluster", "shop", "cabloy.io/trigger-", "cabloy.io/backfill-"]).await;
    until("nothing to be asked for", SOON, async || {
        let asked = schedule().await;
        asked["triggers"].is_null().then_some(()).ok_or_else(|| asked.to_string())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_is_taken_over_when_no_pod_is_left_that_would_run_it() {
    let stage = Stage::set("takeover").await;
    stage.apply(&deployment("web")).await;
    stage.apply(&shop(&json!({}))).await;
    let before = boot(&stage.await_agent("deployment", "web").await);
    stage.settle("shop").await;
    let released = async || {
        let file = text(&stage.get("configmap", "shop-agent").await["data"]["agent.json"]);
        let file: Value = serde_json::from_str(&file).expect("the file is JSON");
        (file["schedules"][0]["takesOver"].clone(), file["takeover"]["released"].clone())
    };

    let nightly = json!({
        "name": "nightly", "cron": "0 3 * * *", "takesOver": "shop-report.nightly", "target": { "http": { "path": "/x" } },
    });
    let asked = |spec: Value| {
        let mut asked = json!({ "schedules": [nightly] });
        asked.as_object_mut().into_iter().for_each(|asked| asked.extend(spec.as_object().cloned().unwrap_or_default()));
        shop(&asked)
    };
    stage.apply(&asked(json!({ "rollout": { "onRedisChange": "Manual" } }))).await;
    stage.await_condition("shop", "RolledOut", "False", "RolloutPending").await;
    stage.settle("shop").await;
    assert_eq!(released().await, (json!("shop-report.nightly"), json!([])), "pods boot as before");

    stage.apply(&asked(json!({}))).await;
    let now = until("the pods to be rolled", SOON, async || {
        let now = boot(&stage.get("deployment", "web").await);
        (now != before).then_some(now)
    })
    .await;
    let file: Value = serde_json::from_str(&text(&stage.config_maps().await[&now]["boot.json"])).expect("it is JSON");
    assert_eq!(file["takesOver"], json!(["shop-report.nightly"]));
    stage.settle("shop").await;
    assert_eq!(released().await.1, json!([]), "no kubelet has the new pod ready, and the old one stays");

    stage
        .kubectl(&[
            "patch",
            "deployment",
            "web",
            "--patch",
            r#"{"spec":{"strategy":{"$retainKeys":["type"],"type":"Recreate"}}}"#,
        ])
        .await;
    until("the schedule to be released", SOON, async || {
        let released = released().await.1;
        (released == json!(["shop-report.nightly"])).then_some(()).ok_or(released)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_that_is_undone_boots_on_the_old_endpoints() {
    let stage = Stage::set("undo").await;
    stage.apply(&deployment("web")).await;
    stage.apply(&shop(&json!({}))).await;
    let first = boot(&stage.await_agent("deployment", "web").await);
    stage.settle("shop").await;
    stage.apply(&shop(&json!({ "redis": { "connections": { "default": { "host": "redis-new" } } } }))).await;
    let second = until("another boot map", SOON, async || {
        let now = boot(&stage.get("deployment", "web").await);
        (now != first).then_some(now)
    })
    .await;
    stage.settle("shop").await;
    let maps = stage.config_maps().await;
    assert!(maps.contains_key(&first) && maps.contains_key(&second), "both are named by a ReplicaSet");
    assert!(text(&maps[&first]["cache.json"]).contains("redis-main"));
    assert!(text(&maps[&second]["cache.json"]).contains("redis-new"));

    // With Manual, an edit rolls nothing, and says so.
    let manual = json!({ "redis": { "connections": { "default": { "host": "redis-last" } } }, "rollout": { "onRedisChange": "Manual" } });
    stage.apply(&shop(&manual)).await;
    stage.await_condition("shop", "RolledOut", "False", "RolloutPending").await;
    assert_eq!(boot(&stage.get("deployment", "web").await), second);
    assert_eq!(
        stage.get("configmap", "shop-redis-cache").await["data"]["host"],
        "redis-last",
        "agents and people follow at once"
    );
    stage.kubectl(&["rollout", "undo", "deployment/web"]).await;
    stage.settle("shop").await;
    assert_eq!(boot(&stage.get("deployment", "web").await), first, "the old endpoints are back");

    // Boot maps go with the last revision that names them.
    stage.kubectl(&["patch", "deployment", "web", "--patch", r#"{"spec":{"revisionHistoryLimit":0}}"#]).await;
    stage.kubectl(&["scale", "deployment", "web", "--replicas=0"]).await;
    until("the unused boot map to go", SOON, async || {
        stage.reconcile("shop").await;
        !stage.config_maps().await.contains_key(&second)
    })
    .await;
    assert!(stage.config_maps().await.contains_key(&first));
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_gives_the_workload_back_as_it_was() {
    for propagation in ["background", "foreground"] {
        let stage = Stage::set("delete").await;
        stage.apply(&deployment("web")).await;
        stage.apply(&workload("StatefulSet", "db")).await;
        let before = (
            stage.get("deployment", "web").await["spec"].clone(),
            stage.get("statefulset", "db").await["spec"].clone(),
        );
        let workloads = json!([{ "name": "web" }, { "kind": "StatefulSet", "name": "db" }]);
        stage.apply(&resource("shop", &workloads, &json!({ "app": { "name": "shop", "generation": "v4", "configFrom": [{ "secretRef": { "name": "x" } }] } }))).await;
        stage.await_agent("deployment", "web").await;
        stage.await_agent("statefulset", "db").await;
        stage.kubectl(&["delete", "cabloycluster", "shop", &format!("--cascade={propagation}"), "--timeout=30s"]).await;
        let after = (stage.get("deployment", "web").await, stage.get("statefulset", "db").await);
        assert_eq!((after.0["spec"].clone(), after.1["spec"].clone()), before, "{propagation}");
        assert!(!after.0["metadata"].to_string().contains("claimed-by"), "{propagation}");
        assert_eq!(stage.config_maps().await.len(), 0, "{propagation}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orphaned_workload_stays_as_it_is() {
    let stage = Stage::set("orphan").await;
    stage.apply(&deployment("web")).await;
    stage.apply(&shop(&json!({ "deletionPolicy": "Orphan" }))).await;
    stage.await_agent("deployment", "web").await;
    stage.settle("shop").await;
    let maps = stage.config_maps().await;
    let before = stage.get("deployment", "web").await;
    stage.kubectl(&["delete", "cabloycluster", "shop", "--timeout=30s"]).await;
    let after = stage.get("deployment", "web").await;
    assert_eq!(after["spec"], before["spec"]);
    assert!(after["metadata"]["annotations"]["cabloy.io/claimed-by"].is_null(), "somebody else may take it");
    assert_eq!(stage.config_maps().await, maps);
    until("the signing key to be left to its ConfigMap", COLLECTED, async || {
        let owners = owners(&stage.get("secret", "shop-signing").await);
        (owners == ["ConfigMap"]).then_some(()).ok_or_else(|| format!("{owners:?}"))
    })
    .await;
    // It can be taken up again.
    stage.apply(&shop(&json!({}))).await;
    stage.await_condition("shop", "WorkloadsApplied", "True", "Applied").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_role_changes_its_own_config_map_alone() {
    let stage = Stage::set("edit").await;
    stage.apply(&deployment("web")).await;
    let roles = |cache: &str| {
        shop(&json!({ "redis": {
        "connections": { "default": { "host": "redis-main" } },
        "roles": { "cache": { "host": cache }, "sessions": { "db": 7 } },
    } }))
    };
    stage.apply(&roles("redis-cache")).await;
    stage.await_agent("deployment", "web").await;
    stage.settle("shop").await;
    assert_eq!(stage.get("configmap", "shop-redis-sessions").await["data"]["db"], "7", "a client of the app's own");
    let before = stage.versions().await;
    stage.apply(&roles("redis-cache-2")).await;
    until("the new endpoint", SOON, async || {
        stage.get("configmap", "shop-redis-cache").await["data"]["host"] == "redis-cache-2"
    })
    .await;
    stage.settle("shop").await;
    let after = stage.versions().await;
    let changed: Vec<_> = after
        .iter()
        .filter(|(name, version)| name.starts_with("configmaps/shop-redis-") && before.get(*name) != Some(version))
        .collect();
    assert_eq!(changed.len(), 1, "{changed:?}");

    // What is deleted or edited by hand comes back; what nobody needs goes.
    stage.kubectl(&["delete", "configmap", "shop-redis-queue"]).await;
    stage
        .kubectl(&[
            "patch",
            "configmap",
            "shop-redis-io",
            "--patch",
            r#"{"data":{"host":"elsewhere","client.json":"{}"}}"#,
        ])
        .await;
    until("both ConfigMaps to be back", SOON, async || {
        let maps = stage.config_maps().await;
        maps.get("shop-redis-queue").is_some_and(|map| map["host"] == "redis-main")
            && maps["shop-redis-io"]["host"] == "redis-main"
            && maps["shop-redis-io"]["client.json"] != "{}"
    })
    .await;
    stage.apply(&shop(&json!({}))).await;
    until("the client of the app's own to go", SOON, async || {
        !stage.config_maps().await.contains_key("shop-redis-sessions")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_belongs_to_one_resource() {
    let stage = Stage::set("claims").await;
    stage.apply(&deployment("web")).await;
    stage.apply(&shop(&json!({}))).await;
    let ours = stage.await_agent("deployment", "web").await;
    stage.apply(&resource("second", &json!([{ "name": "web" }]), &json!({}))).await;
    let message = stage.await_condition("second", "WorkloadsApplied", "False", "AlreadyClaimed").await;
    assert!(message.contains("shop"), "{message}");
    assert_eq!(stage.condition("second", "Stalled").await["status"], "True");
    assert_eq!(stage.get("deployment", "web").await["metadata"]["annotations"], ours["metadata"]["annotations"]);
    // Once the first lets go of it, the second takes it up.
    stage.apply(&deployment("other")).await;
    stage.apply(&resource("shop", &json!([{ "name": "other" }]), &json!({}))).await;
    stage.await_condition("second", "WorkloadsApplied", "True", "Applied").await;
    assert_eq!(stage.get("deployment", "web").await["metadata"]["annotations"]["cabloy.io/cluster"], "second");
    assert!(agent(&stage.await_agent("deployment", "other").await).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_that_comes_later_is_taken_up() {
    let stage = Stage::set("later").await;
    stage.apply(&shop(&json!({}))).await;
    let message = stage.await_condition("shop", "WorkloadsApplied", "False", "WorkloadNotFound").await;
    assert!(message.contains("Deployment web"), "{message}");
    assert_eq!(stage.condition("shop", "Ready").await["reason"], "WorkloadNotFound");
    stage.apply(&deployment("web")).await;
    stage.await_agent("deployment", "web").await;
    stage.await_condition("shop", "WorkloadsApplied", "True", "Applied").await;
    let events = stage.kubectl(&["get", "events.events.k8s.io", "--output=jsonpath={.items[*].reason}"]).await;
    assert_eq!(events.split(' ').filter(|reason| *reason == "WorkloadNotFound").count(), 1, "{events}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_refused_and_what_was_applied_stays() {
    let stage = Stage::set("refused").await;
    stage.apply(&deployment("web")).await;
    stage.apply(&shop(&json!({ "nativeSchedules": "Guard" }))).await;
    stage.await_agent("deployment", "web").await;
    stage.await_condition("shop", "NativeSchedulesGuarded", "Unknown", "NoLeader").await;
    stage.await_condition("shop", "Accepted", "True", "Accepted").await;
    stage.settle("shop").await;
    let before = stage.config_maps().await;
    stage
        .apply(&shop(&json!({
            "redis": { "connections": { "default": { "host": "redis-new", "tls": {} } } },
            "schedules": [{ "name": "tick", "cron": "0 0 30 2 *", "target": { "http": { "path": "/x" } } }],
        })))
        .await;
    let message = stage.await_condition("shop", "Accepted", "False", "NotSupportedYet").await;
    assert!(message.contains("redis.connections.default.tls") && message.contains("schedules[tick].cron"), "{message}");
    assert_eq!(stage.condition("shop", "Stalled").await["status"], "True");
    assert_eq!(stage.config_maps().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_resource_is_left_alone() {
    let stage = Stage::set("paused").await;
    stage.apply(&deployment("web")).await;
    stage.apply(&shop(&json!({}))).await;
    stage.await_agent("deployment", "web").await;
    stage.settle("shop").await;
    stage.kubectl(&["annotate", "cabloycluster", "shop", "cabloy.io/paused=true"]).await;
    stage.await_condition("shop", "Ready", "Unknown", "Paused").await;
    let before = stage.config_maps().await;
    stage.apply(&shop(&json!({ "redis": { "connections": { "default": { "host": "redis-new" } } } }))).await;
    stage.reconcile("shop").await;
    assert_eq!(stage.config_maps().await, before);
    stage.kubectl(&["annotate", "cabloycluster", "shop", "cabloy.io/paused-"]).await;
    until("the new endpoint", SOON, async || {
        stage.get("configmap", "shop-redis-cache").await["data"]["host"] == "redis-new"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_options_of_the_users_own_are_not_fought_over() {
    let stage = Stage::set("node-options").await;
    let mut user = deployment("web");
    user["spec"]["template"]["spec"]["containers"][0]["env"] =
        json!([{ "name": "NODE_OPTIONS", "value": "--max-old-space-size=512" }]);
    stage.apply(&user).await;
    let before = stage.get("deployment", "web").await;
    stage.apply(&shop(&json!({}))).await;
    let message = stage.await_condition("shop", "WorkloadsApplied", "False", "NodeOptionsConflict").await;
    assert!(message.contains("workloads[].nodeOptions"), "{message}");
    assert_eq!(stage.get("deployment", "web").await["spec"], before["spec"]);
    stage.apply(&deployment("web")).await;
    let web = stage.await_agent("deployment", "web").await;
    assert_eq!(env(&web, "NODE_OPTIONS"), "--require /etc/cabloy/boot/preload.cjs");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pause_before_sigterm_gives_way_to_a_hook_of_the_users_own() {
    let stage = Stage::set("pause").await;
    let lifecycle =
        async || stage.get("deployment", "web").await["spec"]["template"]["spec"]["containers"][0]["lifecycle"].clone();
    let lifecycle_is = async |expected: &Value| {
        until("the hook of the app's container", SOON, async || {
            let now = lifecycle().await;
            if now == *expected { Ok(()) } else { Err(now.to_string()) }
        })
        .await;
    };
    let with =
        |pause: &str| shop(&json!({ "app": { "name": "shop", "generation": "v4", "drain": { "pause": pause } } }));
    let sleep = |seconds: i64| json!({ "preStop": { "sleep": { "seconds": seconds } } });
    stage.apply(&deployment("web")).await;
    stage.apply(&shop(&json!({}))).await;
    lifecycle_is(&sleep(5)).await;
    stage.apply(&with("8s")).await;
    lifecycle_is(&sleep(8)).await;

    // What the API server says to a hook of another kind, and the way out.
    let mut user = deployment("web");
    let own = json!({ "preStop": { "exec": { "command": ["sh", "-c", "sleep 3"] } } });
    user["spec"]["template"]["spec"]["containers"][0]["lifecycle"] = own.clone();
    let args = ["--namespace", &*stage.namespace, "apply", "-f", "-"];
    let output = stage.cluster.kubectl_with(&args, &user.to_string()).await;
    assert!(output.stderr.contains("may not specify more than 1 handler type"), "{output:?}");
    stage.apply(&with("0s")).await;
    lifecycle_is(&Value::Null).await;
    stage.apply(&user).await;
    stage.apply(&shop(&json!({}))).await;
    stage.settle("shop").await;
    assert_eq!(lifecycle().await, own);

    // The time that pods have to end is theirs, and the pause leaves them half of it.
    user["spec"]["template"]["spec"]["containers"][0]["lifecycle"] = Value::Null;
    user["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(4);
    stage.apply(&user).await;
    stage.apply(&with("5s")).await;
    lifecycle_is(&sleep(2)).await;
    let message = stage.await_condition("shop", "WorkloadsApplied", "True", "GracePeriodTooShort").await;
    assert!(message.contains("terminationGracePeriodSeconds: 10"), "{message}");

    // A pause of the user's own is as good.
    user["spec"]["template"]["spec"]["containers"][0]["lifecycle"] = sleep(1);
    stage.apply(&user).await;
    stage.settle("shop").await;
    stage.await_condition("shop", "WorkloadsApplied", "True", "Applied").await;
    stage.kubectl(&["delete", "cabloycluster", "shop", "--timeout=30s"]).await;
    assert_eq!(lifecycle().await, sleep(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_agent_there_are_roles_alone() {
    let stage = Stage::set("no-agent").await;
    stage.apply(&deployment("web")).await;
    stage.apply(&shop(&json!({ "agent": { "enabled": false } }))).await;
    let web = until("the boot map in the pod template", SOON, async || {
        let web = stage.get("deployment", "web").await;
        (!boot(&web).is_empty()).then_some(web)
    })
    .await;
    assert!(agent(&web).is_none());
    assert!(!stage.config_maps().await.contains_key("shop-agent"));
    assert!(stage.get("secret", "shop-signing").await.is_null() && !web.to_string().contains("cabloy-signing"));
    assert_eq!(env(&web, "CABLOY_BOOT_DIR"), "/etc/cabloy/boot");
    let hook = &web["spec"]["template"]["spec"]["containers"][0]["lifecycle"]["preStop"];
    assert_eq!((hook, web.to_string().contains("cabloy-state")), (&json!({ "sleep": { "seconds": 5 } }), false));
    stage.apply(&shop(&json!({}))).await;
    stage.await_agent("deployment", "web").await;
    stage.apply(&shop(&json!({ "agent": { "enabled": false } }))).await;
    until("the agent to go", SOON, async || agent(&stage.get("deployment", "web").await).is_none()).await;
    until("its file to go", SOON, async || !stage.config_maps().await.contains_key("shop-agent")).await;
}

/// The kinds of an object's owners.
fn owners(object: &Value) -> Vec<String> {
    let owners = object["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
    owners.iter().map(|owner| text(&owner["kind"])).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_signing_key_is_made_once_and_shown_nowhere() {
    let stage = Stage::set("signing").await;
    stage.apply(&deployment("web")).await;
    stage.apply(&shop(&json!({}))).await;
    let web = stage.await_agent("deployment", "web").await;
    for container in [agent(&web).expect("it is there"), &web["spec"]["template"]["spec"]["containers"][0]] {
        let mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
        assert!(
            mounts.contains(&json!({ "name": "cabloy-signing", "mountPath": "/etc/cabloy/signing", "readOnly": true }))
        );
    }
    stage.settle("shop").await;
    let secret = stage.get("secret", "shop-signing").await;
    let encoded = text(&secret["data"]["key"]);
    let key = stage.kubectl(&["get", "secret", "shop-signing", "--template={{.data.key | base64decode}}"]).await;
    assert!(key.starts_with("whsec_") && key.len() == 50, "32 bytes as Standard Webhooks writes them: {}", key.len());
    assert_eq!(owners(&secret), ["CabloyCluster", "ConfigMap"]);
    let kinds = "configmaps,deployments,replicasets,pods,cabloyclusters,events";
    let all = stage.kubectl(&["get", kinds, "--output=yaml"]).await + &stage.operator.process.log_tail(usize::MAX);
    assert!(all.contains("shop-signing") && !all.contains(&key[6..40]) && !all.contains(&encoded[8..40]), "it shows");

    // What somebody puts there stays, and what somebody deletes comes back.
    stage.kubectl(&["patch", "secret", "shop-signing", "--patch", r#"{"stringData":{"key":"whsec_mine"}}"#]).await;
    let edited = stage.get("secret", "shop-signing").await;
    stage.reconcile("shop").await;
    stage.reconcile("shop").await;
    assert_eq!(stage.get("secret", "shop-signing").await, edited);
    stage.kubectl(&["delete", "secret", "shop-signing"]).await;
    stage.reconcile("shop").await;
    let made = stage.get("secret", "shop-signing").await;
    assert!(made["data"]["key"].is_string() && made["data"] != edited["data"] && made["data"] != secret["data"]);

    // It is not the price of a ConfigMap that somebody deletes.
    stage.kubectl(&["delete", "configmap", "shop-agent"]).await;
    let kept = until("the owner that is gone to be forgotten", COLLECTED, async || {
        let secret = stage.get("secret", "shop-signing").await;
        (owners(&secret) == ["CabloyCluster"]).then_some(secret)
    })
    .await;
    assert_eq!(kept["data"], made["data"]);
    stage.kubectl(&["delete", "cabloycluster", "shop", "--timeout=30s"]).await;
    until("the key to go", COLLECTED, async || stage.get("secret", "shop-signing").await.is_null()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_signing_key_stays_until_no_pod_has_an_agent() {
    let stage = Stage::set("signing").await;
    stage.apply(&deployment("web")).await;
    stage.apply(&shop(&json!({}))).await;
    stage.await_agent("deployment", "web").await;
    let pod = until("a pod with the agent", SOON, async || {
        stage.list("pods").await.into_iter().find(|pod| pod["metadata"]["labels"]["cabloy.io/cluster"] == "shop")
    })
    .await;
    let pod = text(&pod["metadata"]["name"]);
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": { "name": pod }, "target": { "kind": "Node", "name": "somewhere" },
    });
    stage
        .write(&["create", "--raw", &format!("/api/v1/namespaces/{}/pods/{pod}/binding", &*stage.namespace)], &binding)
        .await;
    let before = stage.get("secret", "shop-signing").await;
    stage.kubectl(&["delete", "cabloycluster", "shop", "--cascade=foreground", "--wait=false"]).await;
    stage.await_condition("shop", "Ready", "False", "Withdrawing").await;
    let left = until("the garbage collector to have looked", COLLECTED, async || {
        let secret = stage.get("secret", "shop-signing").await;
        (owners(&secret) != owners(&before)).then_some(secret)
    })
    .await;
    assert_eq!(owners(&left), ["ConfigMap"], "a pod still reads it");
    assert_eq!(left["data"], before["data"]);
    stage.kubectl(&["delete", "pod", &pod, "--force", "--grace-period=0"]).await;
    until("the key to go", COLLECTED, async || stage.get("secret", "shop-signing").await.is_null()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_not_signed_are_a_condition_that_heals() {
    let stage = Stage::set("unsigned").await;
    // Whoever may not make a Secret is told why.
    stage.kubectl(&["create", "quota", "none", "--hard=count/secrets=0"]).await;
    until("the quota to be in force", SOON, async || {
        stage.get("resourcequota", "none").await["status"]["hard"].is_object()
    })
    .await;
    let redis = Redis::start();
    stage.apply(&deployment("web")).await;
    stage
        .apply(&shop(&json!({
            "app": { "name": "shop", "generation": "generic" },
            "redis": { "connections": { "default": { "host": "127.0.0.1", "port": redis.addr().port() } } },
        })))
        .await;
    stage.await_agent("deployment", "web").await;
    assert!(stage.get("secret", "shop-signing").await.is_null());
    let pod = RunningPod::start(&stage, "127.88.31.8").await;
    let message = stage.await_condition("shop", "CallsSigned", "False", "MissingSigningKey").await;
    assert!(message.contains("may make no Secret") && message.contains("exceeded quota: none"), "{message}");
    stage.await_condition("shop", "AgentsHealthy", "True", "Fine").await;
    stage.kubectl(&["patch", "quota", "none", "--patch", r#"{"spec":{"hard":{"count/secrets":"1"}}}"#]).await;
    until("the key to be made", SOON, async || {
        stage.reconcile("shop").await;
        let secret = stage.get("secret", "shop-signing").await;
        secret["data"]["key"].is_string()
    })
    .await;
    let key = stage.kubectl(&["get", "secret", "shop-signing", "--template={{.data.key | base64decode}}"]).await;
    pod.mount_signing_key(&key);
    stage.await_condition("shop", "CallsSigned", "True", "Signed").await;
    pod.mount_signing_key("mine");
    let message = stage.await_condition("shop", "CallsSigned", "False", "InvalidSigningKey").await;
    assert!(message.contains("key 1 of 1") && !message.contains("mine"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_kinds_of_workloads_run_the_app() {
    let stage = Stage::set("kinds").await;
    stage.apply(&workload("StatefulSet", "db")).await;
    stage.apply(&workload("DaemonSet", "edge")).await;
    let workloads = json!([{ "kind": "StatefulSet", "name": "db" }, { "kind": "DaemonSet", "name": "edge" }]);
    stage
        .apply(&resource(
            "shop",
            &workloads,
            &json!({ "startups": [{ "name": "migrate", "target": { "http": { "path": "/migrate" } } }] }),
        ))
        .await;
    for (kind, name) in [("statefulset", "db"), ("daemonset", "edge")] {
        let workload = stage.await_agent(kind, name).await;
        let hash = agent(&workload)
            .and_then(|agent| agent["env"].as_array()?.iter().find(|env| env["name"] == "CABLOY_POD_HASH").cloned());
        let hash = hash.expect("it is always there");
        assert_eq!(hash["valueFrom"]["fieldRef"]["fieldPath"], "metadata.labels['controller-revision-hash']");
    }
    // A pod that never becomes ready is not replaced by itself.
    stage.kubectl(&["delete", "pods", "--all", "--grace-period=0", "--force"]).await;
    // A pod of a StatefulSet is labelled with the revision's name, one of a DaemonSet with its hash.
    let pod = until("a pod of the newest revision", SOON, async || {
        stage.list("pods").await.into_iter().find(|pod| pod["metadata"]["labels"]["cabloy.io/cluster"] == "shop")
    })
    .await;
    let hash = text(&pod["metadata"]["labels"]["controller-revision-hash"]);
    let file = until("the revisions in agent.json", SOON, async || {
        let file: Value =
            serde_json::from_str(&text(&stage.get("configmap", "shop-agent").await["data"]["agent.json"]))
                .unwrap_or_default();
        let known =
            file["revisions"].get(&hash).is_some() && file["revisions"].as_object().is_some_and(|all| all.len() == 2);
        known.then_some(file)
    })
    .await;
    let revisions: Vec<_> = file["revisions"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(_, revision)| text(&revision["startups"]["migrate"]))
        .collect();
    assert_eq!(revisions[0], revisions[1], "the same image and task");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_that_keeps_losing_the_agent_is_left_at_last() {
    let stage = Stage::set("removed").await;
    let user = deployment("web");
    stage.apply(&user).await;
    stage.apply(&shop(&json!({}))).await;
    for _ in 0..2 {
        stage.await_agent("deployment", "web").await;
        stage.settle("shop").await;
        stage.replace(&user).await;
    }
    stage.await_agent("deployment", "web").await;
    stage.settle("shop").await;
    stage.replace(&user).await;
    stage.await_condition("shop", "WorkloadsApplied", "False", "RepeatedlyRemoved").await;
    assert!(agent(&stage.get("deployment", "web").await).is_none());
    // An edit of the resource is a new try.
    stage.apply(&shop(&json!({ "redis": { "connections": { "default": { "host": "redis-new" } } } }))).await;
    stage.await_agent("deployment", "web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_owner_of_a_field_is_named() {
    let stage = Stage::set("owner").await;
    let mut user = deployment("web");
    let container = &mut user["spec"]["template"]["spec"]["containers"][0];
    container["volumeMounts"] = json!([{ "name": "own", "mountPath": "/etc/cabloy/secrets" }]);
    user["spec"]["template"]["spec"]["volumes"] = json!([{ "name": "own", "emptyDir": {} }]);
    user["spec"]["template"]["metadata"]["labels"]["cabloy.io/cluster"] = json!("theirs");
    stage.write(&["apply", "--server-side", "--field-manager=team"], &user).await;
    // Names of ours are taken over; no other field of theirs is.
    stage.apply(&shop(&json!({}))).await;
    let web = stage.await_agent("deployment", "web").await;
    assert_eq!(web["spec"]["template"]["metadata"]["labels"]["cabloy.io/cluster"], "shop");
    assert_eq!(web["spec"]["template"]["spec"]["containers"][0]["volumeMounts"][0]["name"], "own");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_goes_takes_its_resources_along() {
    let stage = Stage::set("going").await;
    stage.apply(&deployment("web")).await;
    stage.apply(&shop(&json!({}))).await;
    stage.await_agent("deployment", "web").await;
    stage.kubectl(&["annotate", "cabloycluster", "shop", "cabloy.io/paused=true"]).await;
    let delete = ["delete", "namespace", &*stage.namespace, "--timeout=60s"];
    let _ = stage.cluster.kubectl(&delete).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_object_stops_nothing_but_itself() {
    // The API server admits none by the CRD: it must have been stored before, or by another version.
    let cluster = Box::leak(Box::new(Cluster::start(Shape::ControlPlane).expect("a cluster of its own")));
    let mut loose: Value = serde_yaml::from_str(&crd()).expect("the CRD is YAML");
    loose["spec"]["versions"][0]["schema"]["openAPIV3Schema"] =
        json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    install(cluster, &loose.to_string()).await;
    let namespace = cluster.namespace("malformed").await;
    let operator = Operator::start(cluster, &namespace, "1.0.0").await;
    let stage = Stage { cluster, namespace, operator };
    stage.apply(&resource("broken", &json!("not a list"), &json!({}))).await;
    let message = stage.await_condition("broken", "Accepted", "False", "Malformed").await;
    assert!(message.contains("form of a CabloyCluster"), "{message}");
    stage.apply(&deployment("web")).await;
    stage.apply(&shop(&json!({}))).await;
    stage.await_agent("deployment", "web").await;
    stage.kubectl(&["delete", "cabloycluster", "broken", "--timeout=30s"]).await;
    cluster.stop().expect("it can be taken down");
}

/// A pod that runs, as far as the API server knows, with a real agent in this machine's place for it.
struct RunningPod {
    name: String,
    process: Process,
    files: TempDir,
    app: std::net::TcpListener,
}

impl RunningPod {
    async fn start(stage: &Stage, ip: &str) -> Self {
        // For a generic app, a connection to its port is all that the agent asks.
        let app = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = app.local_addr().expect("it is bound").port();
        let patch = json!({ "spec": { "app": { "port": port } } }).to_string();
        stage.kubectl(&["patch", "cabloycluster", "shop", "--type=merge", "--patch", &patch]).await;
        let pod = until("a pod with the agent", SOON, async || {
            stage.list("pods").await.into_iter().find(|pod| pod["metadata"]["labels"]["cabloy.io/cluster"] == "shop")
        })
        .await;
        let (name, hash) = (text(&pod["metadata"]["name"]), text(&pod["metadata"]["labels"]["pod-template-hash"]));
        let file = until("the pod's revision in agent.json", SOON, async || {
            let text = text(&stage.get("configmap", "shop-agent").await["data"]["agent.json"]);
            let file: Value = serde_json::from_str(&text).unwrap_or_default();
            (file["app"]["port"] == port && file["revisions"].get(&hash).is_some()).then_some(text)
        })
        .await;
        let files = TempDir::with_prefix("cabloy-agent-").expect("a folder for the files");
        std::fs::create_dir_all(files.path().join("redis/redlock")).expect("a folder for the role");
        let redlock = text(&stage.get("configmap", "shop-redis-redlock").await["data"]["client.json"]);
        std::fs::write(files.path().join("agent.json"), file).expect("it can be written");
        std::fs::write(files.path().join("redis/redlock/client.json"), redlock).expect("it can be written");
        let mut command = bound(agent_program());
        command.args(["run", "--listen", &format!("{ip}:7070"), "--control-port", "0", "--pod-name", &name]);
        command.args(["--pod-hash", &hash, "--config-dir"]).arg(files.path());
        command.arg("--signing-key-file").arg(files.path().join("signing/key"));
        command.arg("--secrets-dir").arg(files.path().join("secrets"));
        let process = Process::spawn("agent", command, &files.path().join("log")).expect("the agent starts");
        let pod = Self { name, process, files, app };
        pod.say(stage, &json!({ "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }], "initContainerStatuses": [
            { "name": "cabloy-agent", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": { "running": {} } },
        ] }))
        .await;
        pod
    }

    /// Writes the key that calls are signed with where the agent looks for it.
    fn mount_signing_key(&self, key: &str) {
        let folder = self.files.path().join("signing");
        std::fs::create_dir_all(&folder).expect("a folder for the key");
        std::fs::write(folder.join("key"), key).expect("it can be written");
    }

    /// Brings passwords where the agent looks for when they change: a new folder, and the link to it in one step.
    fn mount_secrets(&self, version: &str) {
        let folder = self.files.path().join("secrets");
        std::fs::create_dir_all(folder.join(version)).expect("a folder for the passwords");
        std::os::unix::fs::symlink(version, folder.join("..data_tmp")).expect("a link to it");
        std::fs::rename(folder.join("..data_tmp"), folder.join("..data"))
            .expect("it takes the place of the one before");
    }

    /// Says that the app has started now, and waits until whatever follows is of another second.
    async fn app_starts(&self, stage: &Stage) {
        let now = jiff::Timestamp::now().as_second();
        let started = jiff::Timestamp::from_second(now).expect("it is a time").to_string();
        self.say(
            stage,
            &json!({ "containerStatuses": [
            { "name": "app", "image": "", "imageID": "", "ready": true, "restartCount": 0,
              "state": { "running": { "startedAt": started } } },
        ] }),
        )
        .await;
        until("the next second", SOON, async || jiff::Timestamp::now().as_second() > now).await;
    }

    /// Writes the pod's status, as kubelet does.
    async fn say(&self, stage: &Stage, status: &Value) {
        let patch = json!({ "status": status }).to_string();
        stage.kubectl(&["patch", "pod", &self.name, "--subresource=status", "--type=merge", "--patch", &patch]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_agents_say_is_in_the_status_and_guards_the_masters() {
    let stage = Stage::set("agents").await;
    let redis = Redis::start();
    stage.apply(&deployment("web")).await;
    let spec = |port: u16| {
        shop(&json!({
            "app": { "name": "shop", "generation": "generic" },
            "redis": { "connections": { "default": { "host": "127.0.0.1", "port": port } } },
            "agent": { "election": { "ttl": "2s" } },
            // The pod stays, for no kubelet would start another.
            "rollout": { "onRedisChange": "Manual" },
            "schedules": [{ "name": "yearly", "cron": "@yearly", "target": { "http": { "path": "/x" } } }],
        }))
    };
    let port = redis.addr().port();
    stage.apply(&spec(port)).await;
    stage.await_agent("deployment", "web").await;
    stage.await_condition("shop", "AgentsReachable", "Unknown", "NoAgents").await;
    let mut pod = RunningPod::start(&stage, "127.88.31.7").await;
    stage.await_condition("shop", "LeaderElected", "True", "Elected").await;
    stage.await_condition("shop", "RedisReachable", "True", "Fine").await;
    let status = stage.get("cabloycluster", "shop").await["status"].clone();
    assert_eq!(status["leader"]["pod"], pod.name.as_str(), "{}", pod.process.log_tail(20));
    assert!(status["leader"]["token"].as_i64() > Some(0));
    assert_eq!(status["schedules"][0]["name"], "yearly");

    // Other masters, while it leads by these: two sets could each have a leader.
    let other = Redis::start();
    let port_patch =
        |port: u16| json!({ "spec": { "redis": { "connections": { "default": { "port": port } } } } }).to_string();
    stage
        .kubectl(&["patch", "cabloycluster", "shop", "--type=merge", "--patch", &port_patch(other.addr().port())])
        .await;
    let message = stage.await_condition("shop", "Accepted", "False", "NotSupportedYet").await;
    assert!(message.contains(&format!("pod {} leads by them", pod.name)), "{message}");
    assert!(
        stage.get("configmap", "shop-redis-redlock").await["data"]["masters"].to_string().contains(&port.to_string())
    );
    stage.kubectl(&["patch", "cabloycluster", "shop", "--type=merge", "--patch", &port_patch(port)]).await;
    stage.await_condition("shop", "Accepted", "True", "Accepted").await;

    // A server that is gone is told, and may be left for another, since nobody can lead by it.
    redis.kill();
    stage.await_condition("shop", "RedisReachable", "False", "Unreachable").await;
    stage.await_condition("shop", "LeaderElected", "False", "NoLeader").await;
    stage
        .kubectl(&["patch", "cabloycluster", "shop", "--type=merge", "--patch", &port_patch(other.addr().port())])
        .await;
    let masters = format!("127.0.0.1:{}", other.addr().port());
    until("the other masters", SOON, async || {
        stage.get("configmap", "shop-redis-redlock").await["data"]["masters"] == masters.as_str()
    })
    .await;

    // An agent that does not answer is named.
    pod.process.kill();
    let message = stage.await_condition("shop", "AgentsReachable", "False", "NoAnswer").await;
    assert!(message.contains(&pod.name), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_passwords_roll_pods_once_and_not_those_that_started_after() {
    let stage = Stage::set("passwords").await;
    let redis = Redis::start();
    let mut web = deployment("web");
    // No kubelet would have the new pod ready.
    web["spec"]["strategy"] = json!({ "type": "Recreate" });
    stage.apply(&web).await;
    let spec = json!({
        "app": { "name": "shop", "generation": "generic" },
        "redis": { "connections": { "default": { "host": "127.0.0.1", "port": redis.addr().port() } } },
    });
    stage.apply(&shop(&spec)).await;
    stage.await_agent("deployment", "web").await;
    let template = async || {
        let web = stage.get("deployment", "web").await;
        let since = text(&web["spec"]["template"]["metadata"]["annotations"]["cabloy.io/secrets"]);
        (web["metadata"]["generation"].as_i64().unwrap_or_default(), since)
    };

    let pod = RunningPod::start(&stage, "127.88.31.9").await;
    pod.mount_secrets("..1");
    pod.app_starts(&stage).await;
    stage.await_condition("shop", "AgentsReachable", "True", "Reachable").await;
    stage.settle("shop").await;
    let (first, since) = template().await;
    assert_eq!(since, "", "it runs on the passwords that it started with");
    pod.mount_secrets("..2");
    let (second, since) = until("the pods to be rolled", SOON, async || {
        let (generation, since) = template().await;
        (!since.is_empty()).then_some((generation, since))
    })
    .await;
    assert_eq!(second, first + 1);
    until("an Event that says why", SOON, async || {
        let events = stage.list("events.events.k8s.io").await;
        events
            .iter()
            .any(|event| event["reason"] == "PasswordsChanged" && text(&event["note"]).contains("Deployment web"))
    })
    .await;
    let old = pod.name.clone();
    drop(pod);
    until("the pod to be replaced", SOON, async || {
        let pods = stage.list("pods").await;
        (pods.len() == 1 && pods[0]["metadata"]["name"] != old.as_str()).then_some(()).ok_or(pods.len())
    })
    .await;

    let pod = RunningPod::start(&stage, "127.88.31.10").await;
    pod.mount_secrets("..2");
    pod.app_starts(&stage).await;
    until("the new agent's answer", SOON, async || {
        let status = stage.get("cabloycluster", "shop").await["status"].clone();
        (status["leader"]["pod"] == pod.name.as_str()).then_some(()).ok_or(status)
    })
    .await;
    stage.settle("shop").await;
    let (third, kept) = template().await;
    assert_eq!(kept, since, "it started after the change");
    // Its own patch of the port aside, which is none of a template.
    assert_eq!(third, second);

    stage
        .kubectl(&[
            "patch",
            "cabloycluster",
            "shop",
            "--type=merge",
            "--patch",
            r#"{"spec":{"rollout":{"onRedisChange":"Manual"}}}"#,
        ])
        .await;
    stage.settle("shop").await;
    pod.mount_secrets("..3");
    stage.await_condition("shop", "RolledOut", "False", "RolloutPending").await;
    assert_eq!(template().await, (second, since));
}

/// Answers each request with a 500.
async fn fail_always(listener: std::net::TcpListener) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    listener.set_nonblocking(true).expect("it can be polled");
    let listener = tokio::net::TcpListener::from_std(listener).expect("it listens");
    while let Ok((mut stream, _)) = listener.accept().await {
        // A health check sends nothing.
        if stream.read(&mut [0; 16 * 1024]).await.is_ok_and(|read| read > 0) {
            let _ = stream.write_all(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_schedules_and_tasks_fail_at_is_told_in_events_and_not_one_a_tick() {
    let stage = Stage::set("failing").await;
    let redis = Redis::start();
    stage.apply(&deployment("web")).await;
    let target = json!({ "http": { "path": "/x" } });
    stage
        .apply(&shop(&json!({
            "app": { "name": "shop", "generation": "generic" },
            "redis": { "connections": { "default": { "host": "127.0.0.1", "port": redis.addr().port() } } },
            "agent": { "election": { "ttl": "2s" } },
            "rollout": { "onRedisChange": "Manual" },
            "schedules": [
                { "name": "often", "every": "1s", "target": target },
                { "name": "once", "every": "1s", "pauseOnFailure": true, "target": target },
            ],
            "startups": [
                { "name": "seed", "gate": "None", "retry": { "limit": 0 }, "target": target },
            ],
        })))
        .await;
    stage.await_agent("deployment", "web").await;
    let pod = RunningPod::start(&stage, "127.88.31.8").await;
    let app = pod.app.try_clone().expect("a listener can be shared");
    let app = tokio::spawn(fail_always(app));
    let events = async || -> BTreeMap<(String, String), (u64, String)> {
        let told = stage.list("events.events.k8s.io").await;
        let about_work = told.into_iter().filter(|it| text(&it["action"]).starts_with("Run"));
        about_work
            .map(|it| {
                assert_eq!((text(&it["type"]), text(&it["regarding"]["name"])), ("Warning".into(), "shop".into()));
                let count = it["series"]["count"].as_u64().unwrap_or(1);
                ((text(&it["action"]), text(&it["reason"])), (count, text(&it["note"])))
            })
            .collect()
    };
    let expected = [
        ("RunSchedule/often", "TickFailed"),
        ("RunSchedule/once", "TickFailed"),
        ("RunSchedule/once", "SchedulePaused"),
        ("RunStartup/seed", "StartupFailed"),
    ];
    let all = until("an Event of each kind, and a second one of the series", Duration::from_secs(100), async || {
        let all = events().await;
        let kinds = expected.iter().all(|(action, reason)| all.contains_key(&((*action).into(), (*reason).into())));
        let again = all.get(&("RunSchedule/often".into(), "TickFailed".into())).is_some_and(|(count, _)| *count > 1);
        if kinds && again { Ok(all) } else { Err(format!("{all:?}\n{}", pod.process.log_tail(5))) }
    })
    .await;
    for (key, (count, note)) in &all {
        assert!(*count <= 4, "{key:?} {count}: one in half a minute at most");
        assert!(note.starts_with(key.0.split('/').nth(1).expect("it is of one")), "{note}");
    }
    assert!(all[&("RunSchedule/once".into(), "TickFailed".into())].1.contains("ServerError"), "{all:?}");
    assert!(all[&("RunStartup/seed".into(), "StartupFailed".into())].1.contains("ServerError"), "{all:?}");
    let failed = stage.get("cabloycluster", "shop").await["status"]["schedules"].clone();
    let failed =
        failed.as_array().expect("a list").iter().find(|it| it["name"] == "often").expect("it is there")["failed"]
            .as_u64();
    assert!(failed > Some(10), "many have failed: {failed:?}");
    app.abort();
}

/// Each as `kubectl apply --kustomize` has it, but for the namespace that it names.
#[tokio::test(flavor = "multi_thread")]
async fn the_overlays_of_the_examples_are_taken() {
    for (environment, with_agent) in [("local", true), ("unittest", false), ("prod", true)] {
        let stage = Stage::set(environment).await;
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/overlays").join(environment);
        let manifests = stage.cluster.kubectl(&["kustomize", &folder.to_string_lossy()]).await.success();
        let own = format!("namespace: shop-{environment}\n");
        assert!(manifests.contains(&own), "{manifests}");
        let manifests = manifests.replace(&own, &format!("namespace: {}\n", &*stage.namespace));
        let _ = stage.cluster.kubectl_with(&["apply", "--filename=-"], &manifests).await.success();
        stage.await_condition("shop", "Accepted", "True", "Accepted").await;
        stage.await_condition("shop", "WorkloadsApplied", "True", "Applied").await;
        let web = stage.get("deployment", "shop-web").await;
        assert_eq!(agent(&web).is_some(), with_agent, "{environment}");
        assert_eq!(env(&web, "EGG_SERVER_ENV"), environment);
        assert!(text(env(&web, "NODE_OPTIONS")).contains("preload.cjs"), "{environment}");
    }
}
