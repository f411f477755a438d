//! Vona's own core and modules, in an app that merges its configuration just as the documentation says.

use super::locks::assert_takes_lock;
use super::*;

const NODE: &str = "node24";

/// The clients of Vona, other than those of the lock.
const CLIENTS: [&str; 9] = ["broadcast", "cache", "default", "io", "limiter", "model", "queue", "summer", "worker"];

/// What the documentation has in this language: one block.
fn documented(language: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/preload.md");
    let text = fs::read_to_string(path).unwrap();
    let blocks: Vec<_> =
        text.split("```").filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n')).collect();
    assert_eq!(blocks.len(), 1, "blocks of {language}");
    blocks[0].to_owned()
}

/// An app that knows of nothing: that of `tests/vona`.
fn plain() -> Pod {
    static MODULES: LazyLock<PathBuf> = LazyLock::new(|| npm::modules("vona"));
    let pod = Pod::new("vona");
    fs::remove_dir_all(pod.path("app")).unwrap();
    npm::copy(&npm::fixture("vona").join("app"), &pod.path("app")).unwrap();
    symlink(&*MODULES, pod.path("app/node_modules")).unwrap();
    pod.text("app/config/config.prod.ts", "export default async () => ({});");
    pod
}

/// One that declares the variable, and leaves it at that.
fn declaring() -> Pod {
    let pod = plain();
    pod.boot(|boot| boot["mergesConfig"] = true.into());
    let declared = fs::read_to_string(pod.path("app/env/.env")).unwrap() + &documented("ini");
    pod.text("app/env/.env", &declared);
    pod
}

/// One that merges it, too.
fn merging() -> Pod {
    let pod = declaring();
    pod.text("app/config/config.prod.ts", &documented("ts"));
    pod
}

fn start(pod: &Pod) -> App {
    App::start(pod, NODE, &[pod.path("app/bootstrap.mjs")])
}

fn client(redis: &Redis) -> Value {
    json!({"host": "127.0.0.1", "port": redis.addr().port()})
}

/// As the client of a role, with more fields.
fn with(mut client: Value, more: &Value) -> Value {
    client.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    client
}

/// All keys in a database.
fn keys(redis: &Redis, db: u32) -> Vec<String> {
    let script = "redis.call('SELECT', ARGV[1]) return redis.call('KEYS', '*')";
    redis.run(&["EVAL", script, "0", &db.to_string()])
}

/// The connections of others.
fn connections(redis: &Redis) -> Vec<String> {
    let list: String = redis.run(&["CLIENT", "LIST"]);
    list.lines().filter(|line| !line.contains("cmd=client")).map(str::to_owned).collect()
}

/// A server where the app is the user `shop`.
fn server() -> Redis {
    let redis = Redis::start();
    let () = redis.run(&["ACL", "SETUSER", "shop", "on", ">secret of shop", "~*", "&*", "+@all"]);
    redis
}

#[test]
fn each_role_is_on_its_own_server() {
    let mut pod = merging();
    let password = pod.secret("shop/password", "secret of shop");
    let user = json!({"username": "shop", "password": password});
    let masters = [server(), server(), server()];
    let servers: Vec<_> = CLIENTS.iter().map(|role| (*role, server())).collect();
    let mine = server();
    pod.role("redlock", &masters.iter().map(|master| with(with(client(master), &user), &json!({"db": 3}))).collect());
    for (db, (role, redis)) in servers.iter().enumerate() {
        pod.role(role, &with(with(client(redis), &user), &json!({"db": db})));
    }
    pod.role("mine", &with(with(client(&mine), &user), &json!({"keyPrefix": "mine_shop:"})));
    pod.write("boot/io.json", &with(with(client(&servers[3].1), &user), &json!({"db": 3, "keyPrefix": "io_mine:"})));
    // who wins: the image < the manifest < configFrom < roles
    pod.env(
        "CABLOY_APP_CONFIG",
        &json!({"list": ["manifest"], "redis": {"clients": {"queue": {"host": "manifest", "connectTimeout": 1234}}}})
            .to_string(),
    );
    pod.config_from("config");
    pod.write("config/a.json", &json!({"list": ["configFrom"], "redis": {"clients": {"queue": {"port": 1}}}}));

    let app = start(&pod);
    let seen = &app.seen(1)[0];
    assert_eq!((&seen["rendered"], &seen["heard"]), (&json!({"rendered": {"pages": 2}}), &json!({"shelf": 7})));
    assert_eq!(seen["list"], json!(["configFrom"]));
    assert_eq!(seen["redis"]["clients"]["queue"]["connectTimeout"], 1234);
    assert_eq!(seen["redlock"]["base"]["clients"], json!(["redlock"]));
    assert_eq!(seen["redlock"]["base"]["options"]["retryDelay"], 200, "the options of the image stay");

    for (db, (role, redis)) in servers.iter().enumerate() {
        let db = u32::try_from(db).unwrap();
        let prefix = match *role {
            "io" => "io_mine:".to_owned(),
            "queue" => "bull_shop:queue:".to_owned(),
            // the image does not give this client a prefix
            "limiter" => "used-as-limiter".to_owned(),
            _ => format!("{role}_shop:"),
        };
        let all = keys(redis, db);
        assert!(all.iter().all(|key| key.starts_with(&prefix)), "{role}: {all:?}");
        assert_eq!(all.is_empty(), *role == "broadcast", "{role}");
        assert_elsewhere_empty(role, redis, db);
        assert_connections(role, redis, db);
    }
    let channels: Vec<String> = servers[0].1.run(&["PUBSUB", "CHANNELS"]);
    assert_eq!(channels, ["broadcast_shop:"]);
    assert_eq!(keys(&mine, 0), ["mine_shop:used-as-mine"]);
    // the others are for agents: Vona's redlock does not bear the loss of one of several
    let [first, others @ ..] = &masters;
    assert_eq!(keys(first, 3), ["redlock_shop:~:held"]);
    assert_elsewhere_empty("redlock", first, 3);
    assert_connections("redlock", first, 3);
    for other in others {
        assert_eq!(connections(other), Vec::<String>::new());
        other.kill();
    }
    assert_takes_lock(&app, seen, "the others are down");

    assert_no_secret("/proc/self/environ", &seen["environ"].to_string());
    assert_no_secret("what children inherit", &seen["inherited"].to_string());
    assert_processes_hide_secrets(&tree(app.main.pid()));
    drop(app);
    assert_files_hide_secrets(pod.dir.path());
}

/// All connections of the app there are as its user, in this database.
fn assert_connections(role: &str, redis: &Redis, db: u32) {
    let all = connections(redis);
    let wanted = |line: &String| line.contains(" user=shop ") && line.contains(&format!(" db={db} "));
    assert!(!all.is_empty() && all.iter().all(wanted), "{role}: {all:?}");
}

fn assert_elsewhere_empty(role: &str, redis: &Redis, db: u32) {
    let keyspace: String = redis.run(&["INFO", "keyspace"]);
    let others = keyspace.lines().filter(|line| line.starts_with("db") && !line.starts_with(&format!("db{db}:")));
    assert_eq!(others.count(), 0, "{role}: {keyspace}");
}

/// Without the lines of the documentation.
#[test]
fn one_connection_serves_all_roles() {
    let redis = Redis::builder().password("secret of redis").start();
    let pod = plain();
    let password = pod.secret("default/password", "secret of redis");
    pod.role("default", &with(client(&redis), &json!({"db": 3, "password": password})));
    let app = start(&pod);
    let seen = &app.seen(1)[0];
    assert_eq!((&seen["rendered"], &seen["heard"]), (&json!({"rendered": {"pages": 2}}), &json!({"shelf": 7})));
    let all = keys(&redis, 3);
    for key in
        ["cache_shop:used-as-cache", "default_shop:used-as-default", "bull_shop:queue:~||shop-report.queue.render:id"]
    {
        assert!(all.iter().any(|one| one == key), "{key} in {all:?}");
    }
    // there is no word for the database of locks
    assert_eq!(keys(&redis, 0), ["redlock_shop:~:held"]);
    assert_processes_hide_secrets(&tree(app.main.pid()));
}

#[test]
fn an_app_that_does_not_declare_the_variable_is_refused() {
    let pod = plain();
    pod.boot(|boot| boot["mergesConfig"] = true.into());
    pod.role("queue", &json!({"host": "queue", "port": 6379}));
    let message = "environment variable CABLOY_APP_CONFIG: is not declared in the app's build; declare it in env/.env and merge it in config.ts (docs/preload.md), or take spec.app.mergesConfig out of the CabloyCluster";
    let ended = pod.node(NODE, &["bootstrap.mjs"]);
    assert_refused(&pod, &ended, message, "not declared");
}

#[test]
fn an_app_that_does_not_merge_the_variable_finds_no_redis() {
    let image = Redis::start();
    let mut pod = declaring();
    pod.role("default", &json!({"host": "default", "port": 6379}));
    pod.env("REDIS_DEFAULT_HOST", "127.0.0.1");
    pod.env("REDIS_DEFAULT_PORT", &image.addr().port().to_string());
    pod.env("REDIS_DEFAULT_PASSWORD", "");
    let app = start(&pod);
    app.wait("word of it", || {
        fs::read_to_string(&app.log).unwrap().contains("cabloy-app-config-is-not-merged.invalid")
    });
    assert_eq!(connections(&image), Vec::<String>::new());
}

#[test]
fn what_vona_cannot_be_told_is_refused_here_too() {
    let cases: [Case; 4] = [
        (
            "a database that locks cannot be in",
            |pod| pod.write("boot/redlock.json", &json!([{"host": "a", "port": 1, "db": 16}])),
            "<pod>/boot/redlock.json: [0].db is more than 15, and Vona's locks know no more; write a lower db for redis.roles.redlock in the CabloyCluster",
        ),
        (
            "the variable of the manifest is not JSON",
            |pod| pod.env("CABLOY_APP_CONFIG", "secret"),
            "environment variable CABLOY_APP_CONFIG: is not valid JSON<at>; correct it in the pod template",
        ),
        (
            "a configFrom without its Secret",
            |pod| pod.config_from("config"),
            "<pod>/config: is missing; create the Secret that spec.app.configFrom names, with a JSON object under each of its keys",
        ),
        (
            "another app",
            |pod| pod.env("APP_NAME", "other"),
            "environment variable APP_NAME: is \"other\", but the configuration is for the app \"shop\"; make a CabloyCluster with the right spec.app.name",
        ),
    ];
    for (what, damage, message) in cases {
        let mut pod = merging();
        pod.role("redlock", &json!([{"host": "a", "port": 1}]));
        damage(&mut pod);
        assert_refused(&pod, &pod.node(NODE, &["bootstrap.mjs"]), message, what);
    }
}

/// That an app takes it so is seen beside an agent.
#[test]
fn schedules_that_are_taken_over_are_left_and_workers_say_so() {
    let pod = Pod::new("vona");
    let told = || {
        let ended = pod.node(NODE, &["-p", "process.env.CABLOY_APP_CONFIG"]);
        serde_json::from_str::<Value>(&ended.stdout).unwrap()["onions"].clone()
    };
    let worker = |name: &str| json!({"a-schedule:schedule": {"options": {"worker": {"name": name}}}});
    pod.boot(|boot| boot["mergesConfig"] = true.into());
    assert_eq!(told(), json!({"schedule": {}, "queue": worker("cabloy-agent/leaves/")}));
    pod.boot(|boot| boot["takesOver"] = json!(["shop-report.nightly", "shop.tick"]));
    let left =
        json!({"queue": "a-orm:doubleDelete", "repeat": {"limit": 0, "tz": "left to the agents of cabloy-operator"}});
    let name = "cabloy-agent/leaves/shop-report.nightly,shop.tick";
    let schedules = json!({"shop-report:nightly": left, "shop:tick": left});
    assert_eq!(told(), json!({"schedule": schedules, "queue": worker(name)}));
}

/// What it is told of each topology; whether a-redis takes it is not for this test.
#[test]
fn every_topology_is_said_in_full() {
    let mut pod = every_topology();
    pod.env.clear();
    pod.boot(|boot| {
        boot["generation"] = "vona".into();
        boot["mergesConfig"] = true.into();
    });
    let ended = pod.node(NODE, &["-p", "process.env.CABLOY_APP_CONFIG"]);
    golden("vona.json", &serde_json::from_str(&ended.stdout).unwrap());
    let default = pod.node(NODE, &["-p", "process.env.REDIS_DEFAULT_HOST"]);
    assert_eq!(default.stdout, "undefined\n", "no role default: clients that only the image knows stay");
}
