//! A real app of `CabloyJS` v4 on a real node: its image as it is, `MariaDB`, and a Redis server for each role.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use cabloy_tests::{
    cabloy::{self, APP, Answer},
    images::cabloy_v4,
    require, require_node,
    stage::{POD, Stage, redis_manifest},
    wait::until,
};
use serde_json::{Value, json};

/// How long a rollout of pods that take half a minute each on an idle machine may take on a busy one.
const ROLLOUT: Duration = Duration::from_mins(6);

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

fn servers() -> impl Iterator<Item = &'static str> {
    ROLES.iter().map(|(role, ..)| *role).chain([SPARE])
}

/// The user of the app on a server; each has another name and another password.
fn user(server: &str) -> String {
    format!("fx-{server}")
}

fn password(server: &str) -> String {
    format!("pass-of-{server}")
}

/// The Redis servers, and the Secrets.
fn servers_manifest() -> String {
    let redis = servers().map(|server| {
        let args = json!(["--user", user(server), "on", format!(">{}", password(server)), "~*", "&*", "+@all"]);
        // Named unlike the roles, which ConfigMaps are named after.
        redis_manifest(&format!("r-{server}"), &args.to_string())
    });
    let passwords: BTreeMap<_, _> = servers().map(|server| (server, password(server))).collect();
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
",
        port = cabloy_v4::PORT
    )
}

/// The resource: each role on its own server, and a job every two seconds for the default instance and for a tenant.
fn cluster_manifest() -> String {
    let connection = |server: &str| json!({"host": format!("r-{server}"), "username": user(server), "passwordSecretRef": {"name": "redis", "key": server}});
    let connections: BTreeMap<_, _> = servers().map(|server| (server, connection(server))).collect();
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
            "schedules": [job("own", ""), job("tenants", TENANTS[0])],
            "rollout": {"onRedisChange": "Restart"}
        }
    })
    .to_string()
}

/// Where each role is to be: its server, and its database.
type Places = BTreeMap<&'static str, (&'static str, u8)>;

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
            let dbs = places.values().filter(|(on, _)| *on == server).map(|(_, db)| *db);
            let wanted: BTreeMap<_, _> = dbs.map(|db| ((user(server), db), pods.clone())).collect();
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

async fn keys(stage: &Stage, server: &str, db: u8, pattern: &str) -> Vec<String> {
    // Of another database than the one that a connection begins with, in one go.
    let script = "redis.call('SELECT', ARGV[1]) return redis.call('KEYS', ARGV[2])";
    stage.ask(&format!("r-{server}"), &["EVAL", script, "0", &db.to_string(), pattern]).await
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
    let mut places: Places = ROLES.iter().map(|(role, db, _)| (*role, (*role, *db))).collect();
    stage.kubectl(&["scale", "deployment/shop-web", "--replicas=2"]).await;
    stage.condition("Ready", "True", "", ROLLOUT).await;
    assert_warm(&stage, 2, "queue").await;
    assert_places(&stage, 2, &places).await;
    let tasks = stage.shop().await.status.unwrap().startups;
    assert!(tasks.iter().filter(|task| task.name == "warm-up" && task.state == "Done").count() == 2, "{tasks:?}");
    until("jobs of the default instance and of a tenant to be done", POD, async || {
        let mut done = BTreeSet::new();
        for pod in stage.pods().await {
            let name = pod.metadata.name.unwrap_or_default();
            let events = stage.kubectl(&["exec", &name, "--container=app", "--", "cat", "/tmp/events"]).await;
            for event in events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
                if event["kind"] == "queue.done" {
                    done.extend(event["data"]["for"].as_str().map(str::to_owned));
                }
            }
        }
        if done.len() == 2 { Ok(()) } else { Err(format!("{done:?}")) }
    })
    .await;

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

    // An edit of one role moves that role, and no other.
    stage.kubectl(&["scale", "deployment/shop-web", "--replicas=2"]).await;
    for (role, db) in [("queue", 8), ("broadcast", 9), ("cache", 10)] {
        let patch = json!({"spec": {"redis": {"roles": {role: {"connection": SPARE, "db": db}}}}}).to_string();
        stage.kubectl(&["patch", "cabloycluster", "shop", "--type=merge", "--patch", &patch]).await;
        places.insert(role, (SPARE, db));
        assert_places(&stage, 2, &places).await;
    }
    stage.condition("Ready", "True", "", ROLLOUT).await;
    assert_warm(&stage, 2, SPARE).await;

    let remembered = remembered(&stage).await;
    assert_eq!(remembered.lines().count(), 1 + TENANTS.len(), "{remembered}");
    assert!(!remembered.contains("\"host\""), "neither probe nor warm-up changes what the app remembers: {remembered}");
}
