//! The harness itself: what the other tests take for granted.

#![allow(clippy::expect_used, reason = "what tests share fails as tests do")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cabloy_tests::cluster::{Cluster, Info, Shape};
use cabloy_tests::oci::Image;
use cabloy_tests::process::signal;
use cabloy_tests::redis::{Redis, Version, clock};
use cabloy_tests::skip::{enclosing, not_run};
use cabloy_tests::supervisor::{self, MARKER};
use cabloy_tests::tools::Tools;
use cabloy_tests::wait::{try_until_blocking, until};
use cabloy_tests::{require, require_node};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::Api;
use kube::api::ListParams;
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn controllers_work_on_a_control_plane() {
    let cluster = Cluster::control_plane();
    let namespace = cluster.namespace("controllers").await;
    let create = ["create", "deployment", "web", "--image=web", "--replicas=2", "-n", &namespace];
    let _ = cluster.kubectl(&create).await.success();

    let client = cluster.client().await;
    let sets = Api::<ReplicaSet>::namespaced(client.clone(), &namespace);
    until("a ReplicaSet", SOON, async || sets.list(&ListParams::default()).await.is_ok_and(|l| l.items.len() == 1))
        .await;
    let pods = Api::<Pod>::namespaced(client, &namespace);
    until("two pods", SOON, async || pods.list(&ListParams::default()).await.is_ok_and(|l| l.items.len() == 2)).await;
}

#[tokio::test]
async fn a_service_account_may_do_what_its_role_says_and_no_more() {
    let cluster = Cluster::control_plane();
    let namespace = cluster.namespace("rbac").await;
    let in_namespace = async |args: &[&str]| cluster.kubectl(&[args, &["-n", &namespace]].concat()).await.success();
    in_namespace(&["create", "serviceaccount", "reader"]).await;
    let client = cluster.client_of(&namespace, "reader").await;
    let pods = Api::<Pod>::namespaced(client.clone(), &namespace);

    let denied = pods.list(&ListParams::default()).await.expect_err("no role yet");
    assert!(matches!(&denied, kube::Error::Api(status) if status.code == 403), "{denied}");

    in_namespace(&["create", "role", "reader", "--verb=list", "--resource=pods"]).await;
    let account = format!("--serviceaccount={namespace}:reader");
    in_namespace(&["create", "rolebinding", "reader", "--role=reader", &account]).await;
    until("the role to count", SOON, async || pods.list(&ListParams::default()).await).await;
    let services = Api::<Service>::namespaced(client, &namespace);
    let denied = services.list(&ListParams::default()).await.expect_err("another resource");
    assert!(matches!(&denied, kube::Error::Api(status) if status.code == 403), "{denied}");
}

#[tokio::test]
async fn the_server_refuses_an_object_that_is_not_valid() {
    let cluster = Cluster::control_plane();
    let pod = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": []}}"#;
    let output = cluster.kubectl_with(&["apply", "--validate=false", "-f", "-"], pod).await;
    assert!(!output.status.success());
    assert!(output.stderr.contains("spec.containers: Required value"), "{}", output.stderr);
}

#[tokio::test]
async fn a_pod_on_the_node_answers_by_the_name_of_its_service() {
    let cluster = require_node!();
    let image = tempfile::NamedTempFile::new().expect("a file");
    Image::new("cabloy.test/web:1")
        .file("/web", &Tools::get().pod)
        .expect("the program")
        .entrypoint(&["/web"])
        .write(image.path())
        .expect("an image");
    cluster.import_image(image.path()).await;

    let namespace = cluster.namespace("web").await;
    let kubectl = async |args: &[&str]| cluster.kubectl(&[&["-n", &*namespace], args].concat()).await.success();
    let apply = ["apply", "-n", &namespace, "-f", "-"];
    let _ = cluster.kubectl_with(&apply, WEB).await.success();
    kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).await;

    // From pod to pod, through DNS, the Service and its load balancing, which follows the pods a moment later.
    for url in ["http://web/", &format!("http://web.{namespace}.svc.cluster.local/")] {
        until("an answer", SOON, async || {
            let get = ["exec", "-n", &namespace, "deployment/web", "--", "/web", "get", url];
            let output = cluster.kubectl(&get).await;
            if output.stdout.starts_with("hello from web-") { Ok(()) } else { Err(format!("{output:?}")) }
        })
        .await;
    }
    assert!(kubectl(&["logs", "deployment/web"]).await.contains("serving on"));

    // From outside of the node's network.
    let services = Api::<Service>::namespaced(cluster.client().await, &namespace);
    let spec = services.get("web").await.expect("the Service").spec.expect("a spec");
    let address: SocketAddr = format!("{}:80", spec.cluster_ip.expect("an address")).parse().expect("an address");
    let forward = cluster.forward(address);
    let answer = Command::new(&Tools::get().pod).args(["get", &format!("http://{}/", forward.addr())]).output();
    let answer = String::from_utf8(answer.expect("the program").stdout).expect("text");
    assert!(answer.starts_with("hello from web-"), "{answer}");
}

const WEB: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
        - name: web
          image: cabloy.test/web:1
          imagePullPolicy: Never
          args: [serve, ':8080']
          readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";

#[tokio::test]
async fn a_killed_supervisor_leaves_no_process_and_what_else_it_leaves_is_swept() {
    let cluster = Cluster::start(Shape::ControlPlane).expect("a control plane");
    killed_supervisor(cluster.info()).await;
}

#[tokio::test]
async fn a_killed_supervisor_of_a_node_leaves_no_process_and_what_else_it_leaves_is_swept() {
    // Whether there can be one is known from the shared one, which lives on beside that of its own.
    let _ = require_node!();
    let cluster = Cluster::start(Shape::Node).expect("a node");
    let pod = ["run", "pod", "--image=cabloy.test/pause:1", "--image-pull-policy=Never"];
    let _ = cluster.kubectl(&pod).await.success();
    let running = ["wait", "pod/pod", "--for=jsonpath={.status.phase}=Running", "--timeout=30s"];
    let _ = cluster.kubectl(&running).await.success();
    assert!(processes(cluster.info()).iter().any(|command| command.contains("pause")));
    killed_supervisor(cluster.info()).await;
}

async fn killed_supervisor(info: &Info) {
    assert!(!processes(info).is_empty());
    signal(info.pid, Signal::KILL);
    until("the end of all processes", SOON, async || nothing(&processes(info))).await;
    // Its threads end one by one: what it had started may be gone a moment before its claim on the rest is.
    until("the sweep", SOON, async || {
        supervisor::sweep_all().map_err(|error| error.to_string())?;
        nothing(&leftovers(info))
    })
    .await;
}

#[tokio::test]
async fn a_killed_test_takes_its_cluster_along() {
    let mut test = Command::new(std::env::current_exe().expect("this test"))
        .args(["--ignored", "--exact", "holds_a_control_plane", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test");
    let mut lines = BufReader::new(test.stdout.take().expect("a pipe")).lines();
    let info: Info = lines.find_map(|line| serde_json::from_str(&line.expect("a line")).ok()).expect("a cluster");
    assert!(!processes(&info).is_empty());

    test.kill().expect("a running test");
    test.wait().expect("its end");
    until("the end of the cluster", SOON, async || {
        nothing(&processes(&info))?;
        nothing(&leftovers(&info))
    })
    .await;
}

#[test]
#[ignore = "run, and killed, by another test"]
fn holds_a_control_plane() {
    let cluster = Cluster::control_plane();
    println!("{}", serde_json::to_string(cluster.info()).expect("JSON"));
    loop {
        std::thread::park();
    }
}

#[test]
fn a_test_whose_machine_can_have_no_node_says_that_it_did_not_run() {
    let report = tempfile::NamedTempFile::new().expect("a file");
    let name = "a_pod_on_the_node_answers_by_the_name_of_its_service";
    let test = std::env::current_exe().expect("this test");
    // Who is not root is such a machine; root is one without the right to make namespaces.
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-sys_admin", "--"]).arg(test);
        command
    } else {
        Command::new(test)
    };
    let output = command.args(["--exact", name]).env("CABLOY_NOT_RUN", report.path()).output().expect("this test");
    assert!(output.status.success());
    let report = fs::read_to_string(report.path()).expect("a report");
    assert!(report.starts_with(&format!("NOT RUN: harness::{name}: ")), "{report}");
    assert!(String::from_utf8_lossy(&output.stderr).contains(&report), "{output:?}");
    assert_eq!(report.lines().count(), 1);
}

#[test]
fn a_folder_with_files_is_not_taken_for_a_cluster() {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("precious"), "").expect("a file");
    let output = Command::new(env!("CARGO_BIN_EXE_cabloy-test-cluster"))
        .args(["up", "--dir"])
        .arg(dir.path())
        .output()
        .expect("the supervisor");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("not empty"));
    assert!(dir.path().join("precious").exists());
}

/// The command lines of all processes of a cluster: those that carry its marker, and those in its pods.
fn processes(info: &Info) -> Vec<String> {
    let marker = format!("{MARKER}={}", info.id);
    let group = format!("/cabloy-{}/", info.id);
    let read = |pid: &Path, file: &str| {
        let content = fs::read(pid.join(file)).unwrap_or_default();
        String::from_utf8_lossy(&content).replace('\0', " ")
    };
    let entries = fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path());
    entries
        .filter(|pid| read(pid, "environ").contains(&marker) || read(pid, "cgroup").contains(&group))
        .map(|pid| read(&pid, "cmdline"))
        .collect()
}

/// What else there is of a cluster.
fn leftovers(info: &Info) -> Vec<String> {
    let mut found = Vec::new();
    if info.dir.exists() {
        found.push(info.dir.display().to_string());
    }
    let mounts = fs::read_to_string("/proc/mounts").expect("/proc/mounts");
    for mount in mounts.lines() {
        if mount.contains(info.dir.to_str().expect("a path in UTF-8")) {
            found.push(mount.to_owned());
        }
        let mut fields = mount.split(' ').skip(1);
        if let (Some(root), Some("cgroup" | "cgroup2")) = (fields.next(), fields.next()) {
            let group = Path::new(root).join(format!("cabloy-{}", info.id));
            if group.exists() {
                found.push(group.display().to_string());
            }
        }
    }
    found
}

fn nothing(found: &[String]) -> Result<(), String> {
    if found.is_empty() { Ok(()) } else { Err(format!("{found:#?}")) }
}

#[test]
fn a_redis_can_be_killed_paused_and_started_again() {
    let redis = Redis::start();
    let set = |value: &str| redis.run::<String>(&["SET", "key", value]);
    let get = || redis.run::<Option<String>>(&["GET", "key"]);
    set("first");
    let address = redis.addr();

    redis.pause();
    assert!(!answers(&redis));
    redis.resume();
    assert_eq!(get().as_deref(), Some("first"));

    redis.save();
    set("second");
    redis.restart();
    assert_eq!(get().as_deref(), Some("first"), "the memory is that of the snapshot");
    redis.restart_empty();
    assert_eq!(get(), None);
    assert_eq!(redis.addr(), address);

    redis.kill();
    assert!(!answers(&redis));
}

#[test]
fn a_redis_of_every_version_comes_back_with_an_old_memory() {
    fn here() {}
    for version in Version::ALL {
        let program = match version.program() {
            Ok(program) => program,
            Err(unavailable) => {
                not_run(&enclosing(&here), &unavailable);
                continue;
            }
        };
        let redis = Redis::builder().binary(program).durable().start();
        let server: redis::InfoDict = redis.run(&["INFO", "server"]);
        let said = |product: &str| server.get::<String>(&format!("{product}_version"));
        let said = said("valkey")
            .map_or_else(|| format!("Redis {}", said("redis").expect("a version")), |it| format!("Valkey {it}"));
        assert!(said.starts_with(&format!("{version}.")), "{said}");
        let set = |value: &str| redis.run::<String>(&["SET", "key", value]);
        let get = || redis.run::<Option<String>>(&["GET", "key"]);
        set("old");
        redis.snapshot();
        set("new");
        redis.restart();
        assert_eq!(get().as_deref(), Some("new"));
        redis.restart_from_snapshot();
        assert_eq!(get().as_deref(), Some("old"));
        set("newest");
        redis.restart();
        assert_eq!(get().as_deref(), Some("newest"), "it is durable again");
        redis.pause_clients();
        let script = ["EVAL", "return redis.call('SET', 'key', 'late')", "0"];
        thread::scope(|scope| {
            let late = scope.spawn(|| redis.run::<String>(&script));
            until_blocked(&redis);
            assert_eq!(get().as_deref(), Some("newest"));
            redis.resume_clients();
            late.join().expect("it is carried out after all");
        });
        assert_eq!(get().as_deref(), Some("late"));
        redis.flush();
        assert_eq!(get(), None);
        set("again");
        redis.restart_empty();
        assert_eq!(get(), None);
    }
}

/// Waits until the server has a client whose command it does not carry out.
fn until_blocked(redis: &Redis) {
    let blocked = || {
        let info: redis::InfoDict = redis.run(&["INFO", "clients"]);
        info.get::<u32>("blocked_clients").unwrap_or_default() > 0
    };
    try_until_blocking("a blocked client", SOON, blocked).expect("it is blocked");
}

#[test]
fn the_clock_of_a_redis_can_be_moved() {
    let library = require!(clock::library());
    for (version, program) in Version::ALL.into_iter().filter_map(|version| Some((version, version.program().ok()?))) {
        let redis = Redis::builder().binary(program).movable_clock(&library).start();
        let _: String = redis.run(&["SET", "key", "value", "PX", "60000"]);
        let ahead = || {
            let (seconds, _): (u64, u64) = redis.run(&["TIME"]);
            let ours = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
            i128::from(seconds) - i128::from(ours)
        };
        // Valkey looks at the clock every other millisecond.
        let shows = |off: i128| {
            let shown = || (ahead() - off).abs() < 5;
            try_until_blocking(&format!("{off} s on {version}"), SOON, shown).expect("the clock is moved");
        };
        shows(0);
        redis.shift_clock(3_600_000);
        shows(3600);
        assert_eq!(redis.run::<Option<String>>(&["GET", "key"]), None, "its time is over");
        redis.shift_clock(-3_600_000);
        shows(-3600);
        redis.restart();
        assert!((ahead() + 3600).abs() < 5, "a restart does not change it");
        redis.shift_clock(0);
        shows(0);
    }
}

#[test]
fn a_durable_redis_with_a_password_loses_nothing() {
    let redis = Redis::builder().password("p@ss/word").durable().start();
    let _: String = redis.run(&["SET", "key", "value"]);
    redis.kill();
    redis.restart();
    assert_eq!(redis.run::<String>(&["GET", "key"]), "value");
    let before = redis.commands_processed();
    assert!(redis.commands_processed() > before);

    let without = redis::Client::open(format!("redis://{}", redis.addr())).and_then(|client| client.get_connection());
    let refused = without.and_then(|mut connection| redis::cmd("GET").arg("key").query::<String>(&mut connection));
    assert!(refused.is_err_and(|error| error.to_string().contains("NOAUTH")));
}

#[test]
fn several_redis_have_an_address_and_a_memory_each() {
    let servers = [Redis::start(), Redis::start(), Redis::start()];
    for server in &servers {
        let added: i64 = server.run(&["INCR", "counter"]);
        assert_eq!(added, 1);
    }
}

/// Whether a server answers within what a client would wait.
fn answers(redis: &Redis) -> bool {
    let timeout = Duration::from_millis(200);
    let client = redis::Client::open(redis.url()).expect("a URL");
    let connection = client.get_connection_with_timeout(timeout);
    connection.is_ok_and(|mut connection| {
        connection.set_read_timeout(Some(timeout)).expect("a timeout");
        redis::cmd("PING").query::<String>(&mut connection).is_ok()
    })
}
