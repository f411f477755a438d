//! A real app of `CabloyJS` v4 on a real node: its image with the integration module in it, `MariaDB`, and a Redis server for
//! each role.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use cabloy_crds::agent_status::Verdict;
use cabloy_tests::{
    cabloy::{self, APP, Answer},
    images::cabloy_v4,
    require, require_node,
    stage::{POD, Stage, processes_of, redis_manifest},
    wait::until,
};
use serde_json::{Value, json};

/// How long a rollout of pods that take half a minute each on an idle machine may take on a busy one.
const ROLLOUT: Duration = Duration::from_mins(6);

/// A route of the app's own that kubelet asks.
const ALIVE: &str = "/api/fx/probe/probe/alive";

/// After how many seconds it begins to: by then an idle machine has a pod ready. Tenants are visited by nobody at all.
const QUIET: u32 = 30;

/// The schedule of a bean for the default instance, and the one for all.
const HERE: &str = "here";
const EVERYWHERE: &str = "everywhere";

/// The startup task of a bean.
const MIGRATE: &str = "migrate";

/// How many worker processes each pod has.
const WORKERS: usize = 2;

/// The instances beside the default one.
const TENANTS: [&str; 2] = ["acme", "globex"];

/// What the resource says of each role, which has a server of its own: its database, and its key prefix.
const ROLES: [(&str, u8, Option<&str>); 7] = [
    ("redlock", 0, None),
    ("limiter", 2, None),
    ("queue", 1, None),
    ("broadcast", 5, None),
    ("cache", 3, Some("c_fx:")),
    ("io", 4, Some("io_fx:")),
    ("auth", 6, Some("auth_fx:")),
];

/// The server that no role uses at first.
const SPARE: &str = "spare";

/// The connection that is another user's on the server of role redlock.
const REDLOCK_TOO: &str = "redlock-too";

/// The route of the integration module.
const BEANS: &str = "/api/cabloy/agent/run";

/// What each password begins with.
const PASSWORD: &str = "pass-of-";

fn servers() -> impl Iterator<Item = &'static str> {
    ROLES.iter().map(|(role, ..)| *role).chain([SPARE])
}

/// The connections that the resource names, each as a user of its own, with the server that it is to.
fn connections() -> impl Iterator<Item = (&'static str, &'static str)> {
    servers().map(|server| (server, server)).chain([(REDLOCK_TOO, "redlock")])
}

/// The user of the app by a connection; each has another name and another password.
fn user(connection: &str) -> String {
    format!("fx-{connection}")
}

fn password(connection: &str) -> String {
    format!("{PASSWORD}{connection}")
}

/// The Redis servers, and the Secrets.
fn servers_manifest() -> String {
    let redis = servers().map(|server| {
        let users = connections().filter(|(_, to)| *to == server).flat_map(|(connection, _)| {
            let password = format!(">{}", password(connection));
            ["--user".into(), user(connection), "on".into(), password, "~*".into(), "&*".into(), "+@all".into()]
        });
        // Named unlike the roles, which ConfigMaps are named after.
        redis_manifest(&format!("r-{server}"), &users.collect::<Value>().to_string())
    });
    let passwords: BTreeMap<_, _> = connections().map(|(connection, _)| (connection, password(connection))).collect();
    let instances: Vec<_> = [""].iter().chain(&TENANTS).map(|name| json!({"subdomain": name, "title": name})).collect();
    let mut config = cabloy_v4::config();
    config["instances"] = json!(instances);
    let secret = |name: &str, data: Value| {
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}).to_string()
    };
    let secrets = [secret("redis", json!(passwords)), secret("fx-config", json!({"mysql.json": config.to_string()}))];
    redis.chain(secrets).collect::<Vec<_>>().join("\n---\n")
}

/// The app, as a user deploys it.
fn app_manifest(replicas: usize) -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: shop-web}}
spec:
  replicas: {replicas}
  strategy: {{rollingUpdate: {{maxSurge: 0, maxUnavailable: 100%}}}}
  progressDeadlineSeconds: 900
  selector: {{matchLabels: {{app: shop-web}}}}
  template:
    metadata: {{labels: {{app: shop-web}}}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
        - name: app
          image: {APP}:1
          env: [{{name: EGG_WORKERS, value: \"{WORKERS}\"}}, {{name: FX_EVENTS, value: /tmp/events}}]
          ports: [{{containerPort: {port}}}]
          readinessProbe: {{tcpSocket: {{port: {port}}}, periodSeconds: 1}}
          livenessProbe:
            httpGet: {{path: {ALIVE}, port: {port}, httpHeaders: [{{name: Host, value: 127.0.0.1}}]}}
            initialDelaySeconds: {QUIET}
            periodSeconds: 2
            timeoutSeconds: 30
            failureThreshold: 20
",
        port = cabloy_v4::PORT
    )
}

/// The resource: each role on its own server; a job every two seconds for the default instance and for a tenant; a bean every
/// three seconds for the default instance and for all; and one once, before any pod is ready.
fn cluster_manifest() -> String {
    let connection = |name: &str, server: &str| json!({"host": format!("r-{server}"), "username": user(name), "passwordSecretRef": {"name": "redis", "key": name}});
    let connections: BTreeMap<_, _> = connections().map(|(name, server)| (name, connection(name, server))).collect();
    let role = |role: &str, db: u8, prefix: Option<&str>| {
        if role == "redlock" {
            return json!({"connection": role});
        }
        prefix.map_or_else(
            || json!({"connection": role, "db": db}),
            |prefix| json!({"connection": role, "db": db, "keyPrefix": prefix}),
        )
    };
    let roles: BTreeMap<_, _> = ROLES.iter().map(|(name, db, prefix)| (*name, role(name, *db, *prefix))).collect();
    let job = |name: &str, subdomain: &str| {
        let queue = json!({"module": "fx-probe", "queueName": "work", "subdomain": subdomain, "data": {"for": name}});
        json!({"name": name, "every": "2s", "target": {"queue": queue}})
    };
    let bean = |name: &str| json!({"bean": {"module": "fx-probe", "name": name}});
    let report = |name: &str, instances: &str| json!({"name": name, "every": "3s", "instances": instances, "target": bean("schedule.report")});
    json!({
        "apiVersion": "cabloy.io/v1alpha1", "kind": "CabloyCluster", "metadata": {"name": "shop"},
        "spec": {
            "app": {
                "name": APP, "generation": "v4", "port": cabloy_v4::PORT, "instances": TENANTS,
                "configFrom": [{"secretRef": {"name": "fx-config"}}]
            },
            "workloads": [{"name": "shop-web"}],
            "redis": {"connections": connections, "roles": roles},
            "agent": {"election": {"ttl": "5s"}},
            "schedules": [
                job("own", ""), job("tenants", TENANTS[0]), report(HERE, "Default"), report(EVERYWHERE, "All")
            ],
            "startups": [{"name": MIGRATE, "gate": "Ready", "target": bean("startup.once")}],
            "rollout": {"onRedisChange": "Restart"}
        }
    })
    .to_string()
}

/// Where each role is to be: its server, its database, and the connection that it comes by.
type Places = BTreeMap<&'static str, (&'static str, u8, &'static str)>;

/// Addresses of the pods that are not about to end.
async fn addresses(stage: &Stage) -> BTreeSet<IpAddr> {
    let pods = stage.pods().await;
    pods.iter().filter_map(|pod| pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()).collect()
}

/// Waits until all pods are new and ready, and each server has connections of the app as `places` says and no others: from each
/// pod, as the server's own user, to the databases of the roles that are on it.
async fn assert_places(stage: &Stage, replicas: usize, places: &Places) {
    until("each role to be on its server and on no other", ROLLOUT, async || {
        let pods = addresses(stage).await;
        if pods.len() != replicas {
            return Err(format!("{} pods", pods.len()));
        }
        for server in servers() {
            let list: String = stage.ask(&format!("r-{server}"), &["CLIENT", "LIST"]).await;
            let mut seen: BTreeMap<(String, u8), BTreeSet<IpAddr>> = BTreeMap::new();
            for client in list.lines() {
                let field = |name: &str| client.split(' ').find_map(|it| it.strip_prefix(name)?.strip_prefix('='));
                let from = field("addr").and_then(|addr| addr.parse::<SocketAddr>().ok()).map(|addr| addr.ip());
                let db = field("db").and_then(|db| db.parse().ok()).unwrap_or_default();
                if let Some(pod) = from.filter(|ip| pods.contains(ip)) {
                    seen.entry((field("user").unwrap_or_default().to_owned(), db)).or_default().insert(pod);
                }
            }
            let here = places.values().filter(|(on, ..)| *on == server);
            let wanted: BTreeMap<_, _> = here.map(|(_, db, by)| ((user(by), *db), pods.clone())).collect();
            if seen != wanted {
                return Err(format!("{server} is used as {seen:?}, and should be as {wanted:?}"));
            }
        }
        Ok(())
    })
    .await;
}

/// How many worker processes take jobs of each queue, as the server with role queue says.
async fn consumers(stage: &Stage, server: &str) -> BTreeMap<String, usize> {
    cabloy::consumers(&stage.ask::<String>(&format!("r-{server}"), &["CLIENT", "LIST"]).await)
}

/// All queues of all instances have a worker in each worker process, as soon as pods are ready.
async fn assert_warm(stage: &Stage, replicas: usize, server: &str) {
    let consumers = consumers(stage, server).await;
    for instance in ["-"].iter().chain(&TENANTS) {
        let queues: Vec<_> =
            consumers.iter().filter(|(queue, _)| queue.starts_with(&format!("{instance}||"))).collect();
        assert!(queues.len() > 5 && queues.iter().all(|(_, count)| **count == replicas * WORKERS), "{consumers:?}");
    }
}

/// Calls a route of the app in a pod, as whoever is beside it does.
async fn post(stage: &Stage, pod: IpAddr, path: &str, body: &Value) -> Answer {
    let address = stage.reach(SocketAddr::new(pod, cabloy_v4::PORT)).await;
    let headers = [("content-type", "application/json")];
    until(path, POD, async || cabloy::post(address.port(), path, &headers, &body.to_string()).await).await
}

/// Runs a program in the app's container of a pod; returns its output.
async fn exec(stage: &Stage, pod: &str, program: &[&str]) -> String {
    stage.kubectl(&[&["exec", pod, "--container=app", "--"], program].concat()).await
}

async fn pod_names(stage: &Stage) -> Vec<String> {
    stage.pods().await.into_iter().filter_map(|pod| pod.metadata.name).collect()
}

/// What the module `fx-probe` has done in the pods.
async fn events(stage: &Stage) -> Vec<Value> {
    let mut events = Vec::new();
    for pod in pod_names(stage).await {
        let text = exec(stage, &pod, &["cat", "/tmp/events"]).await;
        // The last line may still be written.
        events.extend(text.lines().filter_map(|line| serde_json::from_str(line).ok()));
    }
    events
}

/// Each tick of a bean has been run once for each of its instances, and the startup task once.
async fn assert_beans(stage: &Stage) {
    let schedules = until("ticks of beans", POD, async || {
        let mut schedules = stage.schedules().await;
        schedules.retain(|it| [HERE, EVERYWHERE].contains(&&*it.name));
        let enough = schedules.len() == 2 && schedules.iter().all(|it| it.results.len() > 1);
        if enough { Ok(schedules) } else { Err(format!("{schedules:?}")) }
    })
    .await;
    let events = events(stage).await;
    let of = |kind: &str, key: &str| {
        let mut counts = BTreeMap::new();
        for event in events.iter().filter(|event| event["kind"] == kind && event["run"]["key"] == key) {
            *counts.entry(event["subdomain"].as_str().unwrap_or_default()).or_insert(0) += 1;
        }
        counts
    };
    for schedule in schedules {
        let tenants = if schedule.name == EVERYWHERE { &TENANTS[..] } else { &[] };
        let wanted: BTreeMap<_, _> = [""].iter().chain(tenants).map(|instance| (*instance, 1)).collect();
        for result in &schedule.results {
            assert_eq!(result.verdict, Verdict::Done, "{result:?}");
            let key = format!("{}/shop/{}@{}", stage.namespace(), schedule.name, result.tick);
            assert_eq!(of("report", &key), wanted, "{key}");
        }
    }
    let once = events.iter().filter(|it| it["kind"] == "startup.once" && it["run"]["key"].is_string()).count();
    assert_eq!(once, 1, "before any pod was ready, for both");
}

/// Asks a path of port 7002 by POST, with a `Host` of its own, and says the status.
const ASK: &str = r#"
const [host, path, as] = process.argv.slice(1);
require("http").request({ host, port: 7002, path, method: "POST", headers: { host: as } }, it => console.log(it.statusCode)).end();
"#;

/// Names the files under folders that a text is in.
const SEEK: &str = r#"
const fs = require("fs"), [text, ...folders] = process.argv.slice(1);
const seek = at => {
  const is = fs.statSync(at, { throwIfNoEntry: false });
  if (is && is.isDirectory()) fs.readdirSync(at).forEach(name => seek(`${at}/${name}`));
  else if (is && is.isFile() && fs.readFileSync(at).includes(text)) console.log(at);
};
folders.forEach(seek);
"#;

/// Passwords are in no environment, command line, log, file of the app's own or object, of the pods and of what they are made by.
async fn assert_hidden(stage: &Stage) {
    let shown = |what: &str, text: &str| assert!(!text.contains(PASSWORD), "a password is in {what}");
    for pod in stage.pods().await {
        let name = pod.metadata.name.unwrap_or_default();
        let mut configured = 0;
        for pid in processes_of(&pod.metadata.uid.unwrap_or_default()) {
            for file in ["environ", "cmdline"] {
                let path = format!("/proc/{}/{file}", pid.as_raw_nonzero());
                let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()).into_owned();
                configured += usize::from(text.contains("CABLOY_BOOT_DIR="));
                shown(&format!("{path} of {name}"), &text);
            }
        }
        assert!(configured > WORKERS, "the app's processes were looked at: {configured}");
        shown("the log", &stage.kubectl(&["logs", &name, "--all-containers"]).await);
        let seek =
            async |folders: &[&str]| exec(stage, &name, &[&["node", "-e", SEEK, PASSWORD], folders].concat()).await;
        assert_eq!(seek(&["/app/src", "/app/run", "/app/logs", "/home/node", "/tmp"]).await, "");
        assert!(seek(&["/etc/cabloy/secrets"]).await.contains("/queue/password"), "the search finds what is there");
    }
    for objects in
        ["configmaps,cabloyclusters,events", "pods,replicasets --selector=app=shop-web", "deployments shop-web"]
    {
        let args: Vec<_> = ["get", "--output=json"].into_iter().chain(objects.split(' ')).collect();
        shown(objects, &stage.kubectl(&args).await);
    }
    shown("the status of agents", &json!(stage.agents().await).to_string());
}

async fn patch(stage: &Stage, redis: Value) {
    let patch = json!({"spec": {"redis": redis}}).to_string();
    stage.kubectl(&["patch", "cabloycluster", "shop", "--type=merge", "--patch", &patch]).await;
}

async fn keys(stage: &Stage, server: &str, db: u8, pattern: &str) -> Vec<String> {
    // Of another database than the one that a connection begins with, in one go.
    let script = "redis.call('SELECT', ARGV[1]) return redis.call('KEYS', ARGV[2])";
    stage.ask(&format!("r-{server}"), &["EVAL", script, "0", &db.to_string(), pattern]).await
}

/// Changes the password of a connection's user as docs/preload.md says: Redis takes both, then the Secret has the new one, then
/// the pods are rolled, then Redis takes the new one alone.
async fn rotate(stage: &Stage, connections: &[(&str, &str)]) {
    let revision = async || {
        let path = "--output=jsonpath={.metadata.annotations.deployment\\.kubernetes\\.io/revision}";
        let number = stage.kubectl(&["get", "deployment", "shop-web", path]).await;
        number.parse::<u64>().unwrap_or_else(|error| panic!("{number:?}: {error}"))
    };
    let new = |connection: &str| format!("{PASSWORD}{connection}-since-today");
    let before = revision().await;
    let secret: BTreeMap<_, _> = connections.iter().map(|(connection, _)| (connection, new(connection))).collect();
    for (connection, server) in connections {
        let set = ["ACL", "SETUSER", &user(connection), &format!(">{}", new(connection))];
        assert_eq!(stage.ask::<String>(&format!("r-{server}"), &set).await, "OK");
    }
    let patch = json!({"stringData": secret}).to_string();
    stage.kubectl(&["patch", "secret", "redis", "--patch", &patch]).await;
    // Kubelet looks at once at a pod that was changed; by itself, within a minute.
    stage.kubectl(&["annotate", "pods", "--selector=app=shop-web", "fx/look=1"]).await;
    until("the pods to be rolled for it", POD, async || {
        let annotation = "--output=jsonpath={.spec.template.metadata.annotations.cabloy\\.io/secrets}";
        let since = stage.kubectl(&["get", "deployment", "shop-web", annotation]).await;
        if since.is_empty() { Err("no annotation") } else { Ok(()) }
    })
    .await;
    stage.condition("RolledOut", "True", "", ROLLOUT).await;
    stage.condition("Ready", "True", "", ROLLOUT).await;
    for (connection, server) in connections {
        let old = ["ACL", "SETUSER", &user(connection), &format!("<{}", password(connection))];
        assert_eq!(stage.ask::<String>(&format!("r-{server}"), &old).await, "OK");
    }
    assert_eq!(revision().await, before + 1, "rolled once");
    let told = stage.kubectl(&["get", "events", "--field-selector=reason=PasswordsChanged", "--output=name"]).await;
    assert_eq!(told.lines().count(), 1, "{told}");
}

/// Two pods and their agents go on by the new passwords, and nobody has seen them.
async fn go_on(stage: &Stage, places: &Places) {
    // Who is cut off comes back by the new one. Not those of the queues: BullMQ gives a connection its name once, by which workers
    // are counted. There the third pod, and each after it, connects by the new one alone.
    let killed: u64 = stage.ask("r-redlock", &["CLIENT", "KILL", "USER", &user("redlock")]).await;
    assert!(killed > 2, "{killed}");
    assert_places(stage, 2, places).await;
    assert_hidden(stage).await;
    let (_, token) = stage.leader(POD).await;
    let ticks = async || stage.schedules().await.into_iter().flat_map(|it| it.results).map(|it| it.tick).max();
    let last = ticks().await;
    until("ticks by the new passwords", POD, async || {
        let (now, next) = (stage.leader(POD).await.1, ticks().await);
        if now >= token && next > last { Ok(()) } else { Err(format!("{next:?} by {now}")) }
    })
    .await;
}

/// What the app remembers of its instances.
async fn remembered(stage: &Stage) -> String {
    let statement = format!("select name, config from {APP}.aInstance order by name");
    let args = ["exec", "deployment/db", "--", "mariadb", "--no-defaults", "--batch", "--skip-column-names"];
    let login = ["--host=127.0.0.1", "--user=cabloy", "--password=cabloy", "--execute", &statement];
    stage.kubectl(&[&args[..], &login].concat()).await
}

#[tokio::test]
async fn a_real_app_has_each_role_where_the_resource_says_and_works_without_a_visitor() {
    let cluster = require_node!();
    require!(cabloy::found());
    let stage = Stage::new(cluster, "v4", &[]).await;
    let tars = tokio::task::spawn_blocking(|| Ok::<_, anyhow::Error>([cabloy_v4::app()?, cabloy_v4::database()?]));
    for tar in tars.await.unwrap().unwrap() {
        cluster.import_image(&tar).await;
    }
    stage.apply(&servers_manifest()).await;
    stage.apply(&cabloy_v4::database_manifest()).await;
    stage.apply(&app_manifest(0)).await;
    for server in servers() {
        stage.rolled_out(&format!("deployment/r-{server}")).await;
    }
    stage.rolled_out("deployment/db").await;
    stage.apply(&cluster_manifest()).await;
    until("our part in the workload", POD, async || {
        let template = stage.kubectl(&["get", "deployment", "shop-web", "--output=jsonpath={.spec.template}"]).await;
        template.contains("cabloy-boot")
    })
    .await;

    // Two pods, and nobody visits them.
    let mut places: Places = ROLES.iter().map(|(role, db, _)| (*role, (*role, *db, *role))).collect();
    stage.kubectl(&["scale", "deployment/shop-web", "--replicas=2"]).await;
    stage.condition("Ready", "True", "", ROLLOUT).await;
    assert_warm(&stage, 2, "queue").await;
    assert_places(&stage, 2, &places).await;
    let tasks = stage.shop().await.status.unwrap().startups;
    let done = |name: &str| tasks.iter().filter(|task| task.name == name && task.state == "Done").count();
    assert_eq!((done("warm-up"), done(MIGRATE)), (2, 1), "{tasks:?}");
    until("jobs of the default instance and of a tenant to be done", POD, async || {
        let events = events(&stage).await;
        let done = events.iter().filter(|event| event["kind"] == "queue.done");
        let done: BTreeSet<_> = done.filter_map(|event| event["data"]["for"].as_str()).collect();
        if done.len() == 2 { Ok(()) } else { Err(format!("{done:?}")) }
    })
    .await;

    // The agents' calls are signed by the key that the operator has made, and others are turned away.
    assert_beans(&stage).await;
    stage.condition("CallsSigned", "True", "Signed", POD).await;
    let (names, target) = (pod_names(&stage).await, addresses(&stage).await.into_iter().next().unwrap().to_string());
    for name in &names {
        let answer = exec(&stage, name, &["node", "-e", ASK, &target, BEANS, "127.0.0.1"]).await;
        assert_eq!(answer.trim(), "401", "a call without a signature");
    }
    assert_hidden(&stage).await;

    // Passwords change under what is going on: of the agents' and the app's locks, and of the queues.
    rotate(&stage, &[("redlock", "redlock"), ("queue", "queue")]).await;
    go_on(&stage, &places).await;

    // A third one.
    stage.kubectl(&["scale", "deployment/shop-web", "--replicas=3"]).await;
    stage.rolled_out("deployment/shop-web").await;
    assert_warm(&stage, 3, "queue").await;
    assert_places(&stage, 3, &places).await;

    // Databases and key prefixes are as they are written.
    let pod = addresses(&stage).await.into_iter().next().unwrap();
    let touched = post(&stage, pod, "/api/fx/probe/probe/touch", &json!({})).await;
    assert_eq!(touched.status, 200, "{touched:?}");
    for (role, db, prefix) in ROLES.iter().filter(|(role, ..)| ["cache", "io", "auth", "limiter"].contains(role)) {
        let key = format!("{}fx-touch", prefix.unwrap_or_default());
        assert_eq!(keys(&stage, role, *db, "*fx-touch").await, [key], "{role}");
    }
    assert!(!keys(&stage, "queue", 1, &format!("bull_{APP}:queue:*")).await.is_empty());
    let (held, locks) = tokio::join!(
        async { post(&stage, pod, "/api/fx/probe/probe/lock", &json!({"data": {"ms": 3000}})).await },
        until("the app's own lock", POD, async || {
            let keys = keys(&stage, "redlock", 0, &format!("redlock_{APP}:-:fx-probe.fx")).await;
            if keys.is_empty() { Err("no key") } else { Ok(keys) }
        })
    );
    assert_eq!((held.status, locks.len()), (200, 1));

    until("the status to tell of beans", POD, async || {
        let schedules = stage.shop().await.status.unwrap().schedules;
        let done = |name: &str| schedules.iter().any(|it| it.name == name && it.last_result.as_deref() == Some("Done"));
        if done(HERE) && done(EVERYWHERE) { Ok(()) } else { Err(format!("{schedules:?}")) }
    })
    .await;
    until("kubelet to have asked the app", POD, async || {
        let asked = |it: &Value| it["kind"] == "alive" && it["host"] == "127.0.0.1";
        events(&stage).await.iter().any(asked).then_some(())
    })
    .await;

    // An edit of one role moves that role, and no other.
    stage.kubectl(&["scale", "deployment/shop-web", "--replicas=1"]).await;
    for (db, role) in (8..).zip(["queue", "broadcast", "cache", "limiter", "io", "auth"]) {
        patch(&stage, json!({"roles": {role: {"connection": SPARE, "db": db}}})).await;
        places.insert(role, (SPARE, db, SPARE));
        assert_places(&stage, 1, &places).await;
    }
    // While agents lead by it, role redlock keeps its server; the user there may be another.
    patch(&stage, json!({"roles": {"redlock": {"connection": SPARE}}})).await;
    let refused = stage.condition("Accepted", "False", "NotSupportedYet", POD).await;
    assert!(refused.contains("redis.roles.redlock") && refused.contains("r-redlock:6379/0"), "{refused}");
    assert_places(&stage, 1, &places).await;
    patch(&stage, json!({"roles": {"redlock": {"connection": REDLOCK_TOO}}})).await;
    places.insert("redlock", ("redlock", 0, REDLOCK_TOO));
    assert_places(&stage, 1, &places).await;
    stage.condition("Ready", "True", "", ROLLOUT).await;
    assert_warm(&stage, 1, SPARE).await;

    // Probes, warm-up and beans have changed nothing of what the app remembers; a request by another name does.
    let known = remembered(&stage).await;
    assert_eq!(known.lines().count(), 1 + TENANTS.len(), "{known}");
    assert!(!known.contains("\"host\""), "{known}");
    let name = &pod_names(&stage).await[0];
    let answer =
        exec(&stage, name, &["node", "-e", ASK, "127.0.0.1", "/api/fx/probe/probe/ping", "10.1.2.3:7002"]).await;
    assert_eq!(answer.trim(), "200");
    until("the app to have learnt the name", POD, async || remembered(&stage).await.contains("10.1.2.3:7002")).await;
}
