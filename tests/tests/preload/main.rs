//! `operator/preload/preload.cjs` in real Node.js processes, with real egg, egg-core, egg-redis and ioredis.
//!
//! After a change that is meant, `CABLOY_BLESS=1` writes the files of `tests/preload/golden` anew.

#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

mod locks;
mod vona;
mod vona_app;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use cabloy_tests::npm;
use cabloy_tests::process::{self, Process, bound, tail};
use cabloy_tests::redis::Redis;
use cabloy_tests::wait::{Look, try_until_blocking};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The versions of Node.js that tests go through: the oldest, that of CabloyJS' own images, and the newest. The others
/// take `node20`.
const NODES: [&str; 3] = ["node12", "node16", "node24"];

/// The folder of the scripts, and of what they come to.
fn fixture() -> PathBuf {
    npm::fixture("preload")
}

/// The packages that the preload works with.
fn modules() -> &'static Path {
    static MODULES: LazyLock<PathBuf> = LazyLock::new(|| npm::modules("preload"));
    &MODULES
}

/// A container: the app, what the operator mounts, and a home.
struct Pod {
    dir: TempDir,
    env: Vec<(String, String)>,
}

/// How a process ended, and what it said.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Pod {
    /// With an app named `shop`, and a boot `ConfigMap` for it that lists no role.
    fn new(generation: &str) -> Self {
        let dir = TempDir::with_prefix("cabloy-preload-").unwrap();
        npm::copy(&fixture().join("app"), &dir.path().join("app")).unwrap();
        for file in ["load.js", "clients.js", "bootstrap.mjs"] {
            fs::copy(fixture().join(file), dir.path().join(file)).unwrap();
        }
        for folder in ["boot", "secrets", "home"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        symlink(modules(), dir.path().join("node_modules")).unwrap();
        symlink(modules(), dir.path().join("app/node_modules")).unwrap();
        let preload = Path::new(env!("CARGO_MANIFEST_DIR")).join("../operator/preload/preload.cjs");
        fs::copy(preload, dir.path().join("boot/preload.cjs")).unwrap();
        let pod = Self { env: Vec::new(), dir };
        pod.write("boot/boot.json", &json!({"app": "shop", "generation": generation, "roles": []}));
        pod
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn write(&self, name: &str, value: &Value) {
        self.text(name, &value.to_string());
    }

    /// Adds a role as the operator would.
    fn role(&self, role: &str, client: &Value) {
        self.boot(|boot| boot["roles"].as_array_mut().unwrap().push(role.into()));
        self.write(&format!("boot/{role}.json"), client);
    }

    /// Adds a folder of further configuration; the files are added apart.
    fn config_from(&self, folder: &str) {
        let folder = self.path(folder).to_str().unwrap().to_owned();
        self.boot(|boot| match boot.get_mut("configFrom") {
            Some(folders) => folders.as_array_mut().unwrap().push(folder.into()),
            None => boot["configFrom"] = json!([folder]),
        });
    }

    fn boot(&self, change: impl FnOnce(&mut Value)) {
        let mut boot = serde_json::from_slice(&fs::read(self.path("boot/boot.json")).unwrap()).unwrap();
        change(&mut boot);
        self.write("boot/boot.json", &boot);
    }

    /// Puts a secret where a connection's lie, and returns what a role's file says in its place.
    fn secret(&self, name: &str, text: &str) -> Value {
        let name = format!("secrets/{name}");
        self.text(&name, &format!("{text}\n"));
        json!({"$file": self.path(&name)})
    }

    fn env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// Runs a program in the app's folder, as its container would; one that goes on where it was to end, ends with 124.
    fn run(&self, program: impl AsRef<Path>, args: &[&str]) -> Ended {
        let mut command = Command::new("timeout");
        self.prepare(&mut command, "node20");
        let output = command.arg("60").arg(program.as_ref()).args(args).output().unwrap();
        Ended {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn node(&self, node: &str, args: &[&str]) -> Ended {
        self.run(modules().join(node).join("bin/node"), args)
    }

    fn prepare(&self, command: &mut Command, node: &str) {
        let bin = modules().join(node).join("bin");
        command
            .current_dir(self.path("app"))
            .stdin(Stdio::null())
            .env_clear()
            .env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", bin.display()))
            .env("HOME", self.path("home"))
            .env("EGG_HOME", self.path("home"))
            .env("EGG_SERVER_ENV", "prod")
            .env("NODE_ENV", "production")
            .env("NODE_OPTIONS", format!("--require {}", self.path("boot/preload.cjs").display()))
            .envs(self.env.iter().map(|(name, value)| (name, value)));
    }

    /// Replaces what differs from run to run.
    fn stable(&self, text: &str) -> String {
        text.replace(self.dir.path().to_str().unwrap(), "<pod>").replace(modules().to_str().unwrap(), "<modules>")
    }
}

/// What processes of the app said that they see.
fn facts(stdout: &str) -> Vec<Value> {
    let lines = stdout.lines().filter_map(|line| line.strip_prefix("FACTS "));
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The app's configuration, out of what a process said.
fn config(facts: &Value) -> Value {
    json!({"redis": facts["redis"], "queue": facts["queue"], "mysql": facts["mysql"], "list": facts["list"]})
}

fn golden(name: &str, value: &Value) {
    let path = fixture().join("golden").join(name);
    let text = format!("{value:#}\n");
    if std::env::var_os("CABLOY_BLESS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(text == expected, "{} differs; it is now:\n{text}", path.display());
}

/// A pod whose roles are of each topology, over an image that has something else under each of them.
fn every_topology() -> Pod {
    let mut pod = Pod::new("v4");
    pod.role(
        "redlock",
        &json!([
            {"host": "lock-a", "port": 6379, "db": 0},
            {"host": "lock-b", "port": 6380, "db": 0, "password": pod.secret("lock-b/password", "secret of lock-b")},
            {"host": "lock-c", "port": 6381, "db": 3},
        ]),
    );
    pod.role(
        "limiter",
        &json!({"host": "limiter", "port": 6379, "db": 2, "tls": {"ca": pod.secret("limiter/ca.crt", "secret ca"), "servername": "limiter"}}),
    );
    pod.role("queue", &json!({"host": "queue", "port": 6379, "db": 0}));
    pod.role(
        "broadcast",
        &json!({"host": "bus", "port": 6379, "username": "shop", "password": pod.secret("bus/password", "secret of bus")}),
    );
    pod.role(
        "cache",
        &json!({
            "cluster": true, "nodes": [{"host": "c1", "port": 7001}, {"host": "c2", "port": 7002}],
            "username": "shop", "password": pod.secret("cache/password", "secret of cache"),
        }),
    );
    pod.role("io", &json!({"host": "io", "port": 6379, "db": 4, "keyPrefix": "io_mine:"}));
    pod.role(
        "reports",
        &json!({
            "sentinels": [{"host": "s1", "port": 26379}, {"host": "s2", "port": 26379}], "name": "mymaster", "db": 1,
            "password": pod.secret("ha/password", "secret of ha"), "sentinelPassword": pod.secret("ha/sentinel", "secret of sentinel"),
            "tls": {"ca": pod.secret("ha/ca.crt", "secret ca")}, "sentinelTLS": {"ca": pod.secret("ha/ca.crt", "secret ca")},
        }),
    );

    // who wins: the image < EGG_APP_CONFIG < configFrom, in the order of folders and names < roles
    pod.env(
        "EGG_APP_CONFIG",
        &json!({
            "list": ["env"], "queue": {"redlock": {"options": {"lockTTL": 15000}, "clients": ["env"]}},
            "mysql": {"clients": {"__ebdb": {"host": "env-mysql", "user": "env", "database": "env", "charset": "env"}}},
            "redis": {"clients": {"queue": {"host": "env-redis", "connectTimeout": 1234, "sentinels": [{"host": "env-sentinel", "port": 1}]}}},
        })
        .to_string(),
    );
    pod.config_from("config/0");
    pod.config_from("config/1");
    let password = pod.secret("mysql/password", "secret of mysql");
    // as kubelet mounts a Secret: files are links into a folder whose name begins with two dots
    pod.write("config/0/..data/b.json", &json!({"mysql": {"clients": {"__ebdb": {"user": "0/b", "database": "0/b"}}}}));
    symlink("..data/b.json", pod.path("config/0/b.json")).unwrap();
    pod.text("config/0/..file", "ignored");
    pod.write(
        "config/0/a",
        &json!({"mysql": {"clients": {"__ebdb": {"user": "0/a", "host": "0/a", "password": password}}}, "list": []}),
    );
    pod.write("config/1/a.json", &json!({"mysql": {"clients": {"__ebdb": {"database": "1/a"}}}, "redis": {"clients": {"queue": {"password": "1/a"}}}}));
    pod
}

fn assert_no_secret(what: &str, text: &str) {
    assert!(!text.contains("secret"), "a secret is in {what}: {text}");
}

#[test]
fn every_process_of_an_app_gets_just_the_wanted_configuration() {
    let pod = every_topology();
    for node in NODES {
        for core in ["egg-core", "egg-core-4.19"] {
            let ended = pod.node(node, &["../load.js", "master", core]);
            assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{node} {core}");
            let seen = facts(&ended.stdout);
            assert_eq!(
                seen.iter().map(|facts| &facts["kind"]).collect::<Vec<_>>(),
                ["agent", "worker"],
                "{node} {core}"
            );
            for facts in &seen {
                assert_eq!(format!("node{}", facts["node"].as_str().unwrap()), node);
                golden("topologies.json", &config(facts));
                let redis = facts["redis"].to_string();
                assert!(!redis.contains("image") && !redis.contains("<function>"), "left over from the image: {redis}");
                // the user's own, as it was
                assert_eq!(facts["env"], pod.env[0].1);
                assert_no_secret("/proc/self/environ", &facts["environ"].to_string());
                assert_no_secret("what children inherit", &facts["inherited"].to_string());
            }
        }
    }
}

#[test]
fn a_worker_thread_gets_it_too() {
    let pod = every_topology();
    for node in NODES {
        let thread = "new (require('worker_threads').Worker)('../load.js', { argv: ['worker', 'egg-core'] })";
        let ended = pod.node(node, &["-e", thread]);
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{node}");
        golden("topologies.json", &config(&facts(&ended.stdout)[0]));
    }
}

#[test]
fn one_master_overrides_the_images_list_and_waits_as_ever() {
    let pod = Pod::new("v4");
    pod.role("redlock", &json!([{"host": "lock", "port": 6379, "db": 0}]));
    let ended = pod.node("node20", &["../load.js", "worker", "egg-core"]);
    let config = &facts(&ended.stdout)[0];
    assert_eq!(config["queue"]["redlock"]["clients"], json!(["redlock"]));
    let client = &config["redis"]["redlock"];
    assert_eq!(client["host"], "lock");
    for option in ["maxRetriesPerRequest", "enableOfflineQueue", "commandTimeout", "connectTimeout", "weakDependent"] {
        assert!(client.get(option).is_none(), "{option} in {client}");
    }
    // and what is no role is as the image says
    assert_eq!(config["redis"]["queue"]["name"], "image-master");
}

#[test]
fn without_roles_the_image_is_untouched() {
    let pod = Pod::new("v4");
    let with = facts(&pod.node("node20", &["../load.js", "worker", "egg-core"]).stdout);
    pod.boot(|boot| boot["generation"] = "generic".into());
    let without = facts(&pod.node("node20", &["../load.js", "worker", "egg-core"]).stdout);
    assert_eq!(config(&with[0]), config(&without[0]));
    assert_eq!(with[0]["redis"]["queue"]["name"], "image-master");
}

#[test]
fn egg_redis_makes_a_client_of_each_topology() {
    let pod = every_topology();
    let effective = facts(&pod.node("node20", &["../load.js", "worker", "egg-core"]).stdout);
    let clients = effective[0]["redis"].to_string();
    for node in NODES {
        for plugin in ["egg-redis", "egg-redis-2.4"] {
            let ended = pod.node(node, &["../clients.js", plugin, &clients]);
            assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{node} {plugin}");
            golden("clients.json", &serde_json::from_str(&ended.stdout).unwrap());
        }
    }
}

/// A running app, and what its processes say.
struct App {
    node: &'static str,
    main: Process,
    log: PathBuf,
}

impl App {
    /// Starts an app by the arguments of Node.js, which follow.
    fn start(pod: &Pod, node: &'static str, args: &[impl AsRef<OsStr>]) -> Self {
        let log = pod.path("log");
        let mut command = bound(modules().join(node).join("bin/node"));
        pod.prepare(&mut command, node);
        command.args(args);
        Self { node, main: Process::spawn("app", command, &log).unwrap(), log }
    }

    /// Egg's own master, agent and worker.
    fn egg(pod: &Pod, node: &'static str) -> Self {
        let options = json!({
            "framework": pod.path("app/framework"), "baseDir": pod.path("app/src/backend"), "workers": 1,
            "port": cabloy_tests::port::free_port().unwrap(),
        });
        let start = modules().join("@zhennann/egg-scripts/lib/start-cluster");
        Self::start(pod, node, &[start.into_os_string(), options.to_string().into()])
    }

    /// What its processes have said so far; a line is there in full once its end is.
    fn said(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap();
        log.rsplit_once('\n').map_or("", |(lines, _)| lines).to_owned()
    }

    fn wait<R: Look>(&self, what: &str, look: impl FnMut() -> R) -> R::Value {
        try_until_blocking(what, Duration::from_mins(1), look)
            .unwrap_or_else(|error| panic!("{}: {error}: {}", self.node, tail(&self.log, 20)))
    }

    /// What its processes see, once so many have said so.
    fn seen(&self, count: usize) -> Vec<Value> {
        self.wait("the app's processes", || Some(facts(&self.said())).filter(|seen| seen.len() >= count))
    }

    /// Waits until the master starts another worker in place of one that dies.
    fn wait_started(&self) {
        self.wait("the master", || self.said().contains("started on http"));
    }

    /// Kills the worker that said these facts; another one is started.
    fn kill(worker: &Value) {
        process::signal(pid_of(worker), Signal::KILL);
    }
}

fn pid_of(facts: &Value) -> u32 {
    facts["pid"].as_u64().unwrap().try_into().unwrap()
}

/// A process and all that it started, by their ids.
fn tree(root: u32) -> Vec<u32> {
    let processes: Vec<(u32, u32)> = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect();
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(&pid) = tree.get(next) {
        tree.extend(processes.iter().filter(|(_, parent)| *parent == pid).map(|(child, _)| *child));
        next += 1;
    }
    tree
}

/// What others on the machine see of processes: no secret.
fn assert_processes_hide_secrets(pids: &[u32]) {
    for pid in pids {
        for file in ["environ", "cmdline"] {
            let path = format!("/proc/{pid}/{file}");
            let text = fs::read(&path).unwrap();
            assert!(!text.is_empty(), "{path}");
            assert_no_secret(&path, &String::from_utf8_lossy(&text));
        }
    }
}

/// What a pod's processes wrote, logs and all: no secret, but where the user put them.
fn assert_files_hide_secrets(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() && entry.file_name() != "secrets" {
            assert_files_hide_secrets(&path);
        } else if kind.is_file() {
            let text = fs::read(&path).unwrap();
            let text = strip_facts(&String::from_utf8_lossy(&text));
            // a role's file has the path of one
            assert!(!text.contains("secret of"), "a secret is in {}: {text}", path.display());
        }
    }
}

/// Not on Node.js 12: today's releases of egg's own dependencies do not start there.
#[test]
fn a_real_app_boots_on_it() {
    for node in ["node16", "node24"] {
        let open = Redis::start();
        let closed = Redis::builder().password("secret of closed").start();
        let pod = Pod::new("v4");
        let port = |redis: &Redis| redis.addr().port();
        let password = pod.secret("closed/password", "secret of closed");
        for (role, db) in [("limiter", 2), ("queue", 0), ("broadcast", 1)] {
            pod.role(role, &json!({"host": "127.0.0.1", "port": port(&open), "db": db}));
        }
        for (role, db) in [("cache", 0), ("io", 4)] {
            pod.role(role, &json!({"host": "127.0.0.1", "port": port(&closed), "db": db, "password": password}));
        }
        pod.role("redlock", &json!([{"host": "127.0.0.1", "port": port(&open), "db": 5}]));
        pod.config_from("config");
        let token = pod.secret("payment/token", "secret of payment");
        pod.write("config/a.json", &json!({"list": ["first"], "payment": {"token": token}}));

        let egg = App::egg(&pod, node);
        let first = egg.seen(2);
        for (facts, kind) in first.iter().zip(["agent", "worker"]) {
            assert_eq!(facts["kind"], kind);
            assert_eq!(facts["list"], json!(["first"]));
            let clients = facts["redis"].as_object().unwrap();
            for (name, client) in clients {
                let home = if ["cache", "io"].contains(&name.as_str()) { &closed } else { &open };
                assert_eq!(client["port"], port(home), "{name}");
            }
            assert_no_secret("/proc/self/environ", &facts["environ"].to_string());
            assert_no_secret("what children inherit", &facts["inherited"].to_string());
        }
        // each client reached the server and the database of its role
        for (redis, db, key) in [
            (&open, "2", "used-as-limiter"),
            (&open, "0", "used-as-queue"),
            (&open, "1", "used-as-broadcast"),
            (&open, "5", "used-as-redlock"),
            (&closed, "0", "cache_shop:used-as-cache"),
            (&closed, "4", "io_shop:used-as-io"),
        ] {
            let keyspace: String = redis.run(&["INFO", "keyspace"]);
            assert!(keyspace.contains(&format!("db{db}:keys=1,")), "{key} in {keyspace}");
        }
        egg.wait_started();
        let processes = tree(egg.main.pid());
        assert!(first.iter().all(|facts| processes.contains(&pid_of(facts))), "{processes:?}");
        assert_processes_hide_secrets(&processes);
        // egg writes its configuration down, and must not do so with secrets
        for file in ["agent_config.json", "application_config.json"] {
            let dump = || fs::read_to_string(pod.path("app/src/backend/run").join(file)).unwrap();
            // it is written twice: at times it is empty
            egg.wait(file, || serde_json::from_str::<Value>(&dump()).is_ok());
            assert!(dump().contains(&port(&closed).to_string()));
        }

        // A worker that is forked again reads the files again: the configuration, and a password that was changed.
        pod.write("config/a.json", &json!({"list": ["second"], "payment": {"token": token}}));
        pod.secret("closed/password", "secret of closed, the next");
        let () = closed.run(&["CONFIG", "SET", "requirepass", "secret of closed, the next"]);
        App::kill(&first[1]);
        let second = &egg.seen(3)[2];
        assert_eq!(second["list"], json!(["second"]), "{node}");
        assert_eq!(second["redis"]["cache"]["password"], "secret of closed, the next", "{node}");
        assert_processes_hide_secrets(&tree(egg.main.pid()));
        drop(egg);
        assert_files_hide_secrets(pod.dir.path());
    }
}

/// Facts tell the configuration with its passwords, for the tests' sake.
fn strip_facts(log: &str) -> String {
    log.lines().filter(|line| !line.starts_with("FACTS ")).collect::<Vec<_>>().join("\n")
}

/// What is wrong, and the one line that says so.
type Case = (&'static str, fn(&mut Pod), &'static str);

const V4: [Case; 28] = [
    (
        "no boot.json",
        |pod| fs::remove_file(pod.path("boot/boot.json")).unwrap(),
        "<pod>/boot/boot.json: is missing; see the conditions of the CabloyCluster (kubectl describe cabloycluster)",
    ),
    (
        "boot.json is not JSON",
        |pod| pod.text("boot/boot.json", "{\n  \"app\": \"shop\",}"),
        "<pod>/boot/boot.json: is not valid JSON<at>; see the conditions of the CabloyCluster (kubectl describe cabloycluster)",
    ),
    (
        "boot.json is a list",
        |pod| pod.text("boot/boot.json", "[]"),
        "<pod>/boot/boot.json: is not a JSON object; see the conditions of the CabloyCluster (kubectl describe cabloycluster)",
    ),
    (
        "no app",
        |pod| pod.boot(|boot| boot["app"] = "".into()),
        "<pod>/boot/boot.json: app is not a name; see the conditions of the CabloyCluster (kubectl describe cabloycluster)",
    ),
    (
        "a generation to come",
        |pod| pod.boot(|boot| boot["generation"] = "v9".into()),
        "<pod>/boot/boot.json: generation is none of v4, vona, generic; see the conditions of the CabloyCluster (kubectl describe cabloycluster)",
    ),
    (
        "roles are no names",
        |pod| pod.boot(|boot| boot["roles"] = json!([1])),
        "<pod>/boot/boot.json: roles is not a list of names; see the conditions of the CabloyCluster (kubectl describe cabloycluster)",
    ),
    (
        "configFrom is no list",
        |pod| pod.boot(|boot| boot["configFrom"] = "a".into()),
        "<pod>/boot/boot.json: configFrom is not a list of folders; see the conditions of the CabloyCluster (kubectl describe cabloycluster)",
    ),
    (
        "guardsStartups is a word",
        |pod| pod.boot(|boot| boot["guardsStartups"] = "yes".into()),
        "<pod>/boot/boot.json: guardsStartups is neither true nor false; see the conditions of the CabloyCluster (kubectl describe cabloycluster)",
    ),
    (
        "another app",
        |pod| pod.write("app/package.json", &json!({"name": "other"})),
        "<pod>/app/package.json: name is \"other\", but the configuration is for the app \"shop\"; start the app from the project's root, or make a CabloyCluster with the right spec.app.name",
    ),
    (
        "no package.json",
        |pod| fs::remove_file(pod.path("app/package.json")).unwrap(),
        "<pod>/app/package.json: is missing; start the app from the project's root, or make a CabloyCluster with the right spec.app.name",
    ),
    (
        "no file for a role",
        |pod| fs::remove_file(pod.path("boot/queue.json")).unwrap(),
        "<pod>/boot/queue.json: is missing; see the conditions of the CabloyCluster (kubectl describe cabloycluster)",
    ),
    (
        "a role's file is not JSON",
        |pod| pod.text("boot/queue.json", "{\"host\": \"queue\", \"password\": \"secret\" \"db\": 0}"),
        "<pod>/boot/queue.json: is not valid JSON<at>; see the conditions of the CabloyCluster (kubectl describe cabloycluster)",
    ),
    (
        "a role's file has a list",
        |pod| pod.text("boot/queue.json", "[]"),
        "<pod>/boot/queue.json: the file is not a JSON object; see the conditions of the CabloyCluster (kubectl describe cabloycluster)",
    ),
    (
        "no host",
        |pod| pod.write("boot/queue.json", &json!({"port": 6379})),
        "<pod>/boot/queue.json: host is not a host name; see the conditions of the CabloyCluster (kubectl describe cabloycluster)",
    ),
    (
        "a port that is none",
        |pod| pod.write("boot/queue.json", &json!({"host": "queue", "port": "6379"})),
        "<pod>/boot/queue.json: port is not a port number; see the conditions of the CabloyCluster (kubectl describe cabloycluster)",
    ),
    (
        "a database that is none",
        |pod| pod.write("boot/queue.json", &json!({"host": "queue", "port": 6379, "db": -1})),
        "<pod>/boot/queue.json: db is not the number of a database; see the conditions of the CabloyCluster (kubectl describe cabloycluster)",
    ),
    (
        "a sentinel without a master",
        |pod| pod.write("boot/queue.json", &json!({"sentinels": [{"host": "s", "port": 1}]})),
        "<pod>/boot/queue.json: name is not a master's name; see the conditions of the CabloyCluster (kubectl describe cabloycluster)",
    ),
    (
        "a node without a port",
        |pod| pod.write("boot/queue.json", &json!({"nodes": [{"host": "c", "port": 1}, {"host": "c"}]})),
        "<pod>/boot/queue.json: nodes[1].port is not a port number; see the conditions of the CabloyCluster (kubectl describe cabloycluster)",
    ),
    (
        "redlock is no list",
        |pod| pod.write("boot/redlock.json", &json!({"host": "lock", "port": 6379})),
        "<pod>/boot/redlock.json: is not a list of masters; see the conditions of the CabloyCluster (kubectl describe cabloycluster)",
    ),
    (
        "a master without a host",
        |pod| pod.write("boot/redlock.json", &json!([{"host": "lock", "port": 6379}, {"port": 6379}])),
        "<pod>/boot/redlock.json: [1].host is not a host name; see the conditions of the CabloyCluster (kubectl describe cabloycluster)",
    ),
    (
        "a role with the name of a master",
        |pod| {
            pod.write("boot/redlock.json", &json!([{"host": "a", "port": 1}, {"host": "b", "port": 1}]));
            pod.role("redlock2", &json!({"host": "mine", "port": 6379}));
        },
        "<pod>/boot/redlock.json: its masters need the client redlock2, which is a role too; rename that role in the CabloyCluster",
    ),
    (
        "no secret",
        |pod| fs::remove_file(pod.path("secrets/default/password")).unwrap(),
        "<pod>/secrets/default/password: is missing; create the Secret's key that password of <pod>/boot/queue.json asks for, or name another one in the CabloyCluster",
    ),
    (
        "an empty secret",
        |pod| pod.text("secrets/default/password", "\n"),
        "<pod>/secrets/default/password: is empty; create the Secret's key that password of <pod>/boot/queue.json asks for, or name another one in the CabloyCluster",
    ),
    (
        "a file with something beside it",
        |pod| {
            pod.write(
                "boot/queue.json",
                &json!({"host": "queue", "port": 6379, "tls": {"ca": {"$file": "/a", "secret": 1}}}),
            );
        },
        "<pod>/boot/queue.json: tls.ca: $file must be an absolute path, and alone in its object; correct it",
    ),
    (
        "EGG_APP_CONFIG is not JSON",
        |pod| pod.env("EGG_APP_CONFIG", "{\"redis\": {\"password\": \"secret\"}"),
        "environment variable EGG_APP_CONFIG: is not valid JSON<at>; correct it in the pod template",
    ),
    (
        "EGG_APP_CONFIG is no object",
        |pod| pod.env("EGG_APP_CONFIG", "\"secret\""),
        "environment variable EGG_APP_CONFIG: is not a JSON object; correct it in the pod template",
    ),
    (
        "a configFrom without its Secret",
        |pod| {
            pod.config_from("config");
            fs::create_dir_all(pod.path("config/..data")).unwrap();
        },
        "<pod>/config: has no file; create the Secret that spec.app.configFrom names, with a JSON object under each of its keys",
    ),
    (
        "a configFrom that is not JSON",
        |pod| {
            pod.config_from("config");
            pod.text("config/mysql.json", "password=secret");
        },
        "<pod>/config/mysql.json: is not valid JSON<at>; create the Secret that spec.app.configFrom names, with a JSON object under each of its keys",
    ),
];

/// A pod that boots, to be broken.
fn sound() -> Pod {
    let pod = Pod::new("v4");
    pod.role("redlock", &json!([{"host": "lock", "port": 6379}]));
    pod.role("queue", &json!({"host": "queue", "port": 6379, "password": pod.secret("default/password", "secret")}));
    pod
}

fn assert_refused(pod: &Pod, ended: &Ended, message: &str, what: &str) {
    // V8 does not always say where, nor each version in the same words
    let stderr = pod.stable(&ended.stderr);
    let expected: Vec<&str> = message.split("<at>").collect();
    let said = match expected[..] {
        [all] => stderr == format!("cabloy: start refused: {all}\n"),
        [before, after] => {
            let rest = stderr.strip_prefix(&format!("cabloy: start refused: {before}"));
            let at = rest.and_then(|rest| rest.strip_suffix(&format!("{after}\n")));
            at.is_some_and(|at| at.is_empty() || (at.starts_with(" (line ") && at.len() < 30))
        }
        _ => false,
    };
    assert!(said, "{what}: expected {message}, but: {ended:?}");
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(78), ""), "{what}: {ended:?}");
}

#[test]
fn a_wrong_start_is_refused_in_one_line() {
    let start = "start-cluster.js";
    for (what, damage, message) in V4 {
        let mut pod = sound();
        pod.text("app/start-cluster.js", "process.stdout.write('started')");
        assert_eq!(pod.node("node20", &[start]).stdout, "started");
        damage(&mut pod);
        for node in NODES {
            // a process that is known to be the app says it before anything else runs …
            assert_refused(&pod, &pod.node(node, &[start]), message, what);
        }
        // … and any other once it loads the app's configuration
        if what == "no package.json" {
            continue; // egg asks for it first
        }
        assert_refused(&pod, &pod.node("node20", &["../load.js", "worker", "egg-core"]), message, what);
    }
}

#[test]
fn the_starting_command_itself_ends_with_the_code() {
    let pod = sound();
    fs::remove_file(pod.path("boot/queue.json")).unwrap();
    let message = V4.iter().find(|case| case.0 == "no file for a role").unwrap().2;
    let bin = pod.path("app/node_modules/.bin/egg-scripts");
    assert_refused(&pod, &pod.run(&bin, &["start", "src/backend", "--framework=framework"]), message, "egg-scripts");
    // npm itself is not stopped, and passes the code on
    pod.write("app/package.json", &json!({"name": "shop", "scripts": {"start": "egg-scripts start src/backend"}}));
    let ended = pod.run("npm", &["start", "--silent"]);
    assert_eq!(ended.code, Some(78), "{ended:?}");
    assert_eq!(pod.stable(&ended.stderr), format!("cabloy: start refused: {message}\n"));
}

#[test]
fn an_egg_core_that_ignores_the_variable_is_refused() {
    let pod = sound();
    let message = "<modules>/egg-core-4.18: egg-core 4.18.0 ignores EGG_APP_CONFIG; update egg-core to 4.19.0 or later (renew the lock file and rebuild the image)";
    for node in NODES {
        // seen when it is loaded
        assert_refused(&pod, &pod.node(node, &["../load.js", "worker", "egg-core-4.18"]), message, node);
    }

    // seen before, where the app would find it: under the framework, nested, and not the newer one on top
    pod.text("app/start-cluster.js", "");
    fs::remove_file(pod.path("app/node_modules")).unwrap();
    for (package, link) in [("egg-core", "egg-core"), ("egg-core-4.18", "@zhennann/egg/node_modules/egg-core")] {
        let link = pod.path("app/node_modules").join(link);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(modules().join(package), link).unwrap();
    }
    assert_eq!(pod.node("node20", &["start-cluster.js"]).code, Some(0), "no framework is installed");
    pod.write("app/node_modules/@zhennann/egg/package.json", &json!({"name": "@zhennann/egg", "version": "2.37.0"}));
    pod.write(
        "app/node_modules/egg-born-backend/package.json",
        &json!({"name": "egg-born-backend", "version": "7.1.5"}),
    );
    assert_refused(&pod, &pod.node("node20", &["start-cluster.js"]), message, "nested");
}

#[test]
fn an_app_made_without_the_known_loader_is_refused() {
    let pod = sound();
    pod.text("app/bundled/egg-cluster/lib/app_worker.js", "");
    let ended = pod.node("node20", &["bundled/egg-cluster/lib/app_worker.js"]);
    let message = "<pod>/app/bundled/egg-cluster/lib/app_worker.js: the app was made without the known loader of egg-core; do not bundle egg-core";
    assert_refused(&pod, &ended, message, "bundled");
}

#[test]
fn other_programs_are_not_disturbed() {
    for damaged in ["v4", "vona", "broken"] {
        let pod = Pod::new(damaged);
        pod.role("queue", &json!({"password": {"$file": "/missing"}}));
        pod.text("app/script.js", "console.log('fine', process.argv.length)");
        let fine = |ended: &Ended, stdout: &str| {
            assert_eq!((ended.code, ended.stderr.as_str(), ended.stdout.as_str()), (Some(0), "", stdout), "{damaged}");
        };
        for node in NODES {
            fine(&pod.node(node, &["-e", "console.log('fine')"]), "fine\n");
            fine(
                &pod.node(
                    node,
                    &["-p", "Object.keys({ ...process.env }).includes('HOME') && process.env.HOME !== undefined"],
                ),
                "true\n",
            );
            fine(&pod.node(node, &["script.js", "start"]), "fine 3\n");
            fine(&pod.node(node, &["-e", "require('child_process').execFileSync('true', { env: process.env })"]), "");
            fine(
                &pod.node(
                    node,
                    &[
                        "-e",
                        "new (require('worker_threads').Worker)('console.log(1)', { eval: true, env: process.env })",
                    ],
                ),
                "1\n",
            );
            fine(&pod.node(node, &["-e", "new (require('worker_threads').Worker)('console.log(1)', { eval: true, env: require('worker_threads').SHARE_ENV })"]), "1\n");
            let repl = pod.node(node, &["-i"]);
            assert!(repl.code == Some(0) && repl.stderr.is_empty() && repl.stdout.starts_with("Welcome"), "{repl:?}");
            fine(&pod.node(node, &["-e", "require('egg-core')"]), "");
        }
        assert_eq!(pod.run("npm", &["--version"]).code, Some(0));
        let stop = pod.run(pod.path("app/node_modules/.bin/egg-scripts"), &["stop", "--title=none"]);
        assert!(stop.code == Some(0) && !stop.stderr.contains("refused"), "{stop:?}");
    }
}

#[test]
fn a_file_that_may_not_be_read_is_refused() {
    let pod = sound();
    // a folder stands for it: the tests' user may read every file
    fs::remove_file(pod.path("boot/queue.json")).unwrap();
    fs::create_dir(pod.path("boot/queue.json")).unwrap();
    let ended = pod.node("node20", &["../load.js", "worker", "egg-core"]);
    let message = "<pod>/boot/queue.json: cannot be read (EISDIR); see the conditions of the CabloyCluster (kubectl describe cabloycluster)";
    assert_refused(&pod, &ended, message, "a folder");
}
