use cabloy_crds::{
    resource::{CatchUpPolicy, Gate, Overlap},
    vocabulary::InstanceSet,
};
use serde_json::{Value, json};

use super::*;

/// The identity of the resource in tests. Named unlike the app, so that mixed-up names show.
pub(crate) fn identity() -> Identity {
    Identity { namespace: "prod".into(), name: "mall".into(), uid: "uid-of-mall".into(), generation: 7 }
}

/// A spec from JSON, with the least that is useful where `over` says nothing.
pub(crate) fn spec(over: &Value) -> CabloyClusterSpec {
    let mut spec = json!({
        "app": { "name": "shop", "generation": "v4" },
        "workloads": [{ "name": "web" }],
        "redis": { "connections": { "default": { "host": "redis" } } },
    });
    for (key, value) in over.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    serde_json::from_value(spec).unwrap()
}

/// A spec that must be sound.
pub(crate) fn sound(over: &Value) -> Validated {
    validate(&identity(), &spec(over), &Masters::Free).unwrap()
}

/// Why a spec is refused, as it must be.
pub(crate) fn refused(over: &Value) -> Vec<Refusal> {
    refusals(over)
}

fn refusals(over: &Value) -> Vec<Refusal> {
    validate(&identity(), &spec(over), &Masters::Free).expect_err("it must be refused")
}

fn endpoints(over: &Value) -> Vec<(String, String)> {
    let roles = sound(over).roles;
    roles
        .iter()
        .map(|role| (role.name.clone(), role.clients().iter().map(server).collect::<Vec<_>>().join(",")))
        .collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(role, servers)| ((*role).to_owned(), (*servers).to_owned())).collect()
}

#[test]
fn roles_that_are_left_out_use_the_default_or_nothing() {
    let all = ["broadcast", "cache", "io", "limiter", "queue", "redlock"].map(|role| (role, "redis:6379/0"));
    assert_eq!(endpoints(&json!({})), pairs(&all));
    let none = json!({ "redis": { "connections": { "one": { "host": "one" } }, "roles": { "cache": { "connection": "one" } } } });
    assert_eq!(endpoints(&none), pairs(&[("cache", "one:6379/0")]));
    let other = ["default", "redlock"].map(|role| (role, "redis:6379/0"));
    assert_eq!(endpoints(&json!({ "app": { "name": "shop", "generation": "vona" } })), pairs(&other));
    assert_eq!(endpoints(&json!({ "app": { "name": "shop", "generation": "generic" } })), pairs(&other));
}

#[test]
fn inline_fields_go_before_those_of_the_connection() {
    let redis = json!({ "redis": {
        "connections": { "default": { "host": "redis", "port": 6380, "db": 1 }, "b": { "host": "::1" } },
        "roles": { "limiter": { "db": 2 }, "broadcast": { "host": "bus" }, "auth": { "connection": "b", "port": 7 } },
    } });
    let expected = [
        ("auth", "[::1]:7/0"),
        ("broadcast", "bus:6380/1"),
        ("cache", "redis:6380/1"),
        ("io", "redis:6380/1"),
        ("limiter", "redis:6380/2"),
        ("queue", "redis:6380/1"),
        ("redlock", "redis:6380/1"),
    ];
    assert_eq!(endpoints(&redis), pairs(&expected));
}

#[test]
fn a_password_goes_to_no_other_server() {
    let validated = sound(&json!({ "redis": {
        "connections": { "default": { "host": "redis", "username": "u", "passwordSecretRef": { "name": "s", "key": "p" } } },
        "roles": {
            "broadcast": { "host": "bus" },
            "io": { "host": "io", "passwordSecretRef": { "name": "t", "key": "q" } },
            "cache": { "db": 3 },
        },
    } }));
    let role = |name: &str| {
        let role = validated.role(name).unwrap();
        let client = &role.clients()[0];
        let file = client.password.as_ref().map(|password| password.file.as_str());
        (
            client.username.clone(),
            file.map(str::to_owned),
            role.secrets.iter().map(|secret| secret.key.name.clone()).collect::<Vec<_>>(),
        )
    };
    assert_eq!(role("broadcast"), (None, None, vec![]));
    assert_eq!(role("io"), (None, Some("/etc/cabloy/secrets/role.io/password".into()), vec!["t".into()]));
    assert_eq!(
        role("cache"),
        (Some("u".into()), Some("/etc/cabloy/secrets/default/password".into()), vec!["s".into()])
    );
}

/// The task that warms up pods, where there is one: after which tasks it comes, and for which instances.
fn warm_up(spec: &Value) -> Option<(Vec<String>, Vec<String>)> {
    sound(spec).startups.into_iter().find_map(|task| match task.target {
        files::Target::WarmUp(target) => {
            assert_eq!((task.name.as_str(), task.scope, task.gate), ("warm-up", Scope::Instance, Gate::Ready));
            Some((task.after, target.instances))
        }
        _ => None,
    })
}

#[test]
fn pods_of_v4_are_warmed_up_for_all_instances_that_are_named() {
    let v4 = |more: Value| {
        let mut app = json!({ "name": "shop", "generation": "v4" });
        app.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        app
    };
    assert_eq!(warm_up(&json!({})), Some((vec![], vec![String::new()])));
    for generation in ["vona", "generic"] {
        assert_eq!(warm_up(&json!({ "app": { "name": "shop", "generation": generation } })), None);
    }
    assert_eq!(warm_up(&json!({ "app": v4(json!({ "warmUp": false })) })), None);
    let target = |subdomain: &str| json!({ "queue": { "module": "m", "queueName": "q", "subdomain": subdomain } });
    let http = json!({ "http": { "path": "/" } });
    let named = warm_up(&json!({
        "app": v4(json!({ "instances": ["b", "a"] })),
        "schedules": [
            { "name": "one", "every": "1m", "target": target("c") },
            { "name": "two", "every": "1m", "target": target("a") },
        ],
        "startups": [
            { "name": "migrate", "target": http },
            { "name": "mail", "gate": "None", "target": http },
            { "name": "cache", "scope": "Instance", "target": http },
        ],
    }));
    let all = ["", "a", "b", "c"].map(str::to_owned).to_vec();
    assert_eq!(named, Some((vec!["migrate".to_owned()], all)));

    assert_refused([
        (json!({ "app": { "name": "shop", "generation": "vona", "warmUp": true } }), "Invalid", "app.warmUp"),
        (json!({ "app": { "name": "shop", "generation": "vona", "instances": ["a"] } }), "Invalid", "app.instances"),
        (json!({ "app": v4(json!({ "warmUp": false, "instances": ["a"] })) }), "Invalid", "app.instances"),
        (json!({ "app": v4(json!({ "instances": ["a", "a"] })) }), "Invalid", "app.instances[1]"),
        (json!({ "app": v4(json!({ "instances": [""] })) }), "Invalid", "app.instances[0]"),
        (json!({ "startups": [{ "name": "warm-up", "target": http }] }), "Invalid", "startups[warm-up].name"),
    ]);
    let own = json!({ "app": v4(json!({ "warmUp": false })), "startups": [{ "name": "warm-up", "target": http }] });
    assert_eq!(sound(&own).startups.len(), 1);
}

/// A resource with one schedule.
fn schedule(over: &Value) -> Value {
    let mut schedule = json!({ "name": "s", "cron": "0 3 * * *", "target": { "http": { "path": "/x" } } });
    schedule.as_object_mut().unwrap().extend(over.as_object().unwrap().clone());
    json!({ "schedules": [schedule] })
}

/// Each is refused for this reason, at this field.
fn assert_refused(cases: impl IntoIterator<Item = (Value, &'static str, &'static str)>) {
    for (over, reason, field) in cases {
        let all = refusals(&over);
        let found = all.iter().find(|refusal| refusal.to_string().starts_with(&format!("{field}: ")));
        let found = found.unwrap_or_else(|| panic!("{field} is not refused, but {all:?}"));
        assert_eq!(found.reason(), reason, "{found}");
    }
}

#[test]
fn targets_that_cannot_be_are_refused() {
    let of = |kind: &str, mut target: Value, over: Value| {
        target.as_object_mut().unwrap().extend(over.as_object().unwrap().clone());
        schedule(&json!({ "target": { kind: target } }))
    };
    let queue = |over: Value| of("queue", json!({ "module": "m", "queueName": "n" }), over);
    let broadcast = |over: Value| of("broadcast", json!({ "module": "m", "broadcastName": "n" }), over);
    let bean = |over: Value| of("bean", json!({ "module": "m", "name": "schedule.n" }), over);
    let instances = |mut over: Value, instances: Value| {
        over["schedules"][0]["instances"] = instances;
        over
    };
    let elsewhere = |mut over: Value| {
        over["redis"] =
            json!({ "connections": { "b": { "host": "b" } }, "roles": { "redlock": { "connection": "b" } } });
        over
    };
    let generic = |mut over: Value| {
        over["app"] = json!({ "name": "shop", "generation": "generic" });
        over
    };
    assert_refused([
        (queue(json!({ "module": "m:x" })), "Invalid", "schedules[s].target.queue.module"),
        (queue(json!({ "queueName": "" })), "Invalid", "schedules[s].target.queue.queueName"),
        (queue(json!({ "subdomain": "-" })), "Invalid", "schedules[s].target.queue.subdomain"),
        (queue(json!({ "jobName": "a\nb" })), "Invalid", "schedules[s].target.queue.jobName"),
        (queue(json!({ "queueNameSub": "" })), "Invalid", "schedules[s].target.queue.queueNameSub"),
        (queue(json!({ "jobOptions": { "attempts": 0 } })), "Invalid", "schedules[s].target.queue.jobOptions.attempts"),
        (
            queue(json!({ "jobOptions": { "backoff": { "delay": "1s" } } })),
            "Invalid",
            "schedules[s].target.queue.jobOptions.backoff",
        ),
        (
            queue(json!({ "jobOptions": { "attempts": 2, "backoff": { "delay": "0s" } } })),
            "Invalid",
            "schedules[s].target.queue.jobOptions.backoff.delay",
        ),
        (elsewhere(queue(json!({}))), "Invalid", "schedules[s].target.queue"),
        (elsewhere(broadcast(json!({}))), "Invalid", "schedules[s].target.broadcast"),
        (generic(queue(json!({}))), "Invalid", "schedules[s].target.queue"),
        (generic(broadcast(json!({}))), "Invalid", "schedules[s].target.broadcast"),
        (generic(bean(json!({}))), "Invalid", "schedules[s].target.bean"),
        (bean(json!({ "module": "" })), "Invalid", "schedules[s].target.bean.module"),
        (bean(json!({ "name": "a b" })), "Invalid", "schedules[s].target.bean.name"),
        (instances(bean(json!({})), json!(5)), "Invalid", "schedules[s].instances"),
        (instances(bean(json!({})), json!("north")), "Invalid", "schedules[s].instances"),
        (instances(bean(json!({})), json!([])), "Invalid", "schedules[s].instances"),
        (instances(bean(json!({})), json!(["north", "a b"])), "Invalid", "schedules[s].instances[1]"),
        (instances(bean(json!({})), json!(["north", "", "north"])), "Invalid", "schedules[s].instances[2]"),
        (instances(queue(json!({})), json!("All")), "Invalid", "schedules[s].instances"),
        (instances(broadcast(json!({})), json!(["a"])), "Invalid", "schedules[s].instances"),
        (schedule(&json!({ "instances": "All" })), "Invalid", "schedules[s].instances"),
        (json!({ "app": { "name": "shop", "generation": "generic", "beanPath": "/run" } }), "Invalid", "app.beanPath"),
        (json!({ "app": { "name": "shop", "generation": "v4", "beanPath": "run" } }), "Invalid", "app.beanPath"),
        (
            json!({
                "app": { "name": "shop", "generation": "generic" },
                "startups": [{ "name": "a", "target": { "bean": { "module": "m", "name": "n" } } }],
            }),
            "Invalid",
            "startups[a].target.bean",
        ),
        (broadcast(json!({ "module": "" })), "Invalid", "schedules[s].target.broadcast.module"),
        (broadcast(json!({ "broadcastName": "a b" })), "Invalid", "schedules[s].target.broadcast.broadcastName"),
        (broadcast(json!({ "subdomain": "~" })), "Invalid", "schedules[s].target.broadcast.subdomain"),
        (
            json!({ "startups": [{ "name": "a", "target": { "queue": { "module": "m", "queueName": "n" } } }] }),
            "Invalid",
            "startups[a].target.queue",
        ),
        (
            json!({ "startups": [{ "name": "a", "target": { "broadcast": { "module": "m", "broadcastName": "n" } } }] }),
            "Invalid",
            "startups[a].target.broadcast",
        ),
    ]);
}

#[test]
fn what_is_refused_names_the_field_and_the_remedy() {
    let http = json!({ "http": { "path": "/x" } });
    let role = |name: &str, role: Value| json!({ "redis": { "connections": { "default": { "host": "redis" }, "b": { "host": "b" } }, "roles": { name: role } } });
    let connection = |connection: Value| json!({ "redis": { "connections": { "default": connection } } });
    let cases = [
        (
            connection(json!({ "sentinel": { "masterName": "m", "nodes": [{ "host": "s" }] } })),
            "NotSupportedYet",
            "redis.connections.default.sentinel",
        ),
        (
            connection(json!({ "cluster": { "nodes": [{ "host": "s" }] } })),
            "NotSupportedYet",
            "redis.connections.default.cluster",
        ),
        (json!({ "agent": { "tracing": { "endpoint": "https://otel:4318" } } }), "Invalid", "agent.tracing.endpoint"),
        (
            json!({ "agent": { "tracing": { "endpoint": "http://otel:4318", "sampleRatio": 2.0 } } }),
            "Invalid",
            "agent.tracing.sampleRatio",
        ),
        (connection(json!({ "host": "r", "tls": {} })), "NotSupportedYet", "redis.connections.default.tls"),
        (connection(json!({ "host": "redis://r" })), "Invalid", "redis.connections.default.host"),
        (connection(json!({ "host": "r", "username": "u" })), "Invalid", "redis.connections.default.username"),
        (role("cache", json!({ "tls": {} })), "NotSupportedYet", "redis.roles.cache.tls"),
        (role("queue", json!({ "keyPrefix": "x" })), "Invalid", "redis.roles.queue.keyPrefix"),
        (role("cache", json!({ "connection": "nowhere" })), "Invalid", "redis.roles.cache.connection"),
        (role("cache", json!({ "connections": ["b"] })), "Invalid", "redis.roles.cache.connections"),
        (role("redlock", json!({ "connections": ["b", "nowhere"] })), "Invalid", "redis.roles.redlock.connections"),
        (role("redlock", json!({ "connections": ["b", "b"] })), "Invalid", "redis.roles.redlock"),
        (schedule(&json!({ "cron": "0 0 30 2 *" })), "Invalid", "schedules[s].cron"),
        (schedule(&json!({ "every": "5s" })), "Invalid", "schedules[s].cron"),
        (schedule(&json!({ "timeZone": "Mars/Olympus" })), "Invalid", "schedules[s].timeZone"),
        (schedule(&json!({ "cron": null, "every": "5s", "jitter": "5s" })), "Invalid", "schedules[s].jitter"),
        (
            schedule(&json!({ "catchUp": { "policy": "Latest", "window": "8760h1ms" } })),
            "Invalid",
            "schedules[s].catchUp.window",
        ),
        (schedule(&json!({ "takesOver": "nightly" })), "Invalid", "schedules[s].takesOver"),
        (connection(json!({ "cluster": { "nodes": [{ "host": "s" }] } })), "Invalid", "redis.roles.queue.connection"),
        (schedule(&json!({ "target": {} })), "Invalid", "schedules[s].target"),
        (
            schedule(&json!({ "retry": { "initialDelay": "2m", "maxDelay": "1m" } })),
            "Invalid",
            "schedules[s].retry.maxDelay",
        ),
        (json!({ "startups": [{ "name": "a", "after": ["b"], "target": http }] }), "Invalid", "startups[a].after"),
        (
            json!({ "startups": [{ "name": "a", "scope": "Instance", "revision": "v1", "target": http }] }),
            "Invalid",
            "startups[a].revision",
        ),
        (
            json!({ "agent": { "enabled": false }, "startups": [{ "name": "a", "target": http }] }),
            "Invalid",
            "agent.enabled",
        ),
        (
            json!({ "workloads": [{ "name": "web" }, { "name": "web", "kind": "Deployment" }] }),
            "Invalid",
            "workloads[1].name",
        ),
        (
            json!({ "app": { "name": "shop", "generation": "generic" }, "workloads": [{ "name": "web", "nodeOptions": "-x" }] }),
            "Invalid",
            "workloads[0].nodeOptions",
        ),
        (
            json!({ "app": { "name": "shop", "generation": "vona", "configFrom": [{ "secretRef": { "name": "x" } }] } }),
            "Invalid",
            "app.configFrom",
        ),
        (json!({ "app": { "name": "shop", "generation": "v4", "mergesConfig": true } }), "Invalid", "app.mergesConfig"),
    ];
    assert_refused(cases);
}

#[test]
fn tasks_that_wait_for_each_other_are_named() {
    let task =
        |name: &str, after: &[&str]| json!({ "name": name, "after": after, "target": { "http": { "path": "/x" } } });
    let startups = json!({ "startups": [task("a", &["c"]), task("b", &["a"]), task("c", &["b"]), task("free", &[])] });
    let all = refusals(&startups);
    assert_eq!(all.len(), 1);
    assert!(all[0].to_string().contains("a, b, c"), "{}", all[0]);
    sound(&json!({ "startups": [task("a", &[]), task("b", &["a"]), task("c", &["a", "b"])] }));
}

#[test]
fn vona_takes_one_connection() {
    let vona = |redis: Value| json!({ "app": { "name": "shop", "generation": "vona" }, "redis": redis });
    let message = |redis: Value| refusals(&vona(redis)).iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let connections = json!({ "default": { "host": "a" }, "b": { "host": "b" }, "c": { "host": "a" } });
    assert!(
        message(json!({ "connections": connections, "roles": { "redlock": { "connection": "b" } } }))
            .contains("one connection")
    );
    assert!(message(json!({ "connections": connections, "roles": { "cache": {} } })).contains("redis.roles.cache"));
    let with_user =
        json!({ "default": { "host": "a", "username": "u", "passwordSecretRef": { "name": "s", "key": "k" } } });
    assert!(message(json!({ "connections": with_user })).contains("user name"));
    sound(&vona(json!({ "connections": connections, "roles": { "redlock": { "connection": "c" } } })));
}

#[test]
fn vona_that_merges_its_configuration_takes_any_number_of_connections() {
    let app = json!({ "name": "shop", "generation": "vona", "mergesConfig": true, "configFrom": [{ "secretRef": { "name": "shop-config" } }] });
    let vona = |redis: Value| json!({ "app": app, "redis": redis });
    let connections = json!({
        "default": { "host": "a", "username": "u", "passwordSecretRef": { "name": "s", "key": "k" } },
        "b": { "host": "b", "db": 3 }, "c": { "host": "c", "db": 3 }, "d": { "host": "d" }, "e": { "host": "e", "db": 16 },
    });
    let roles = |redlock: &[&str]| {
        vona(json!({ "connections": connections, "roles": {
            "redlock": { "connections": redlock }, "queue": { "connection": "d" }, "cache": { "keyPrefix": "cache_mine:" }, "mine": {},
        } }))
    };
    let same = "a:6379/0";
    let mut expected: Vec<_> = ["broadcast", "cache", "default", "io", "limiter", "mine", "model", "summer", "worker"]
        .map(|role| (role, same))
        .into();
    expected.insert(7, ("queue", "d:6379/0"));
    expected.insert(8, ("redlock", "b:6379/3,c:6379/3"));
    assert_eq!(endpoints(&roles(&["b", "c"])), pairs(&expected));
    let one = sound(&roles(&["b"]));
    assert!(one.merges_config && one.warnings.is_empty(), "{one:?}");
    let several = sound(&roles(&["b", "c", "d"])).warnings;
    assert!(several[0].contains("on the first alone, b:6379"), "{several:?}");
    let all = refusals(&roles(&["e"]));
    assert_eq!(all.len(), 1);
    assert!(all[0].to_string().contains("cannot be in database 16"), "{}", all[0]);
}

#[test]
fn work_needs_a_leader_and_a_leader_needs_masters() {
    let http = json!({ "http": { "path": "/x" } });
    let redis = json!({ "connections": { "b": { "host": "b" } }, "roles": { "cache": { "connection": "b" } } });
    let over = json!({ "redis": redis, "schedules": [{ "name": "s", "every": "5s", "target": http }] });
    assert!(refusals(&over)[0].to_string().starts_with("redis.roles.redlock: "));
    assert!(!sound(&json!({ "redis": redis })).needs_leader);
}

#[test]
fn an_even_number_of_masters_is_a_warning() {
    let redis = json!({ "connections": { "a": { "host": "a" }, "b": { "host": "b" } }, "roles": { "redlock": { "connections": ["a", "b"] } } });
    let validated = sound(&json!({ "redis": redis }));
    assert!(validated.warnings[0].contains("odd number"), "{:?}", validated.warnings);
}

#[test]
fn masters_in_use_stay() {
    let check = |present: &[&str], in_use: bool| {
        let present = present.iter().map(|one| (*one).to_owned()).collect();
        let masters =
            if in_use { Masters::InUse(present, "pod web-0 leads by them".into()) } else { Masters::Idle(present) };
        validate(&identity(), &spec(&json!({})), &masters)
    };
    assert!(check(&["redis:6379/0"], true).is_ok(), "the same ones");
    assert!(check(&["other:6379/0"], false).is_ok(), "a wrong endpoint can be mended");
    let refusals = check(&["other:6379/0"], true).expect_err("in use");
    assert_eq!(refusals[0].reason(), "NotSupportedYet");
    assert!(refusals[0].to_string().contains("pod web-0 leads by them"));
    assert!(check(&["redis:6379/1"], true).is_err(), "another database is another memory");
}

#[test]
fn what_becomes_of_ticks_is_passed_on() {
    let http = json!({ "http": { "path": "/x" } });
    let validated = sound(&json!({ "schedules": [
        { "name": "a", "every": "5s", "target": http },
        { "name": "b", "every": "5s", "target": http, "overlap": "CancelOther", "pauseOnFailure": true,
          "catchUp": { "policy": "Latest", "window": "8760h" } },
        { "name": "c", "every": "5s", "target": http, "overlap": "AllowAll", "catchUp": { "policy": "None" } },
    ] }));
    let [a, b, c] = &validated.schedules[..] else { panic!("three schedules") };
    let of = |schedule: &files::Schedule| {
        (schedule.overlap, schedule.catch_up.policy, schedule.catch_up.window_ms, schedule.pause_on_failure)
    };
    assert_eq!(of(a), (Overlap::Skip, CatchUpPolicy::All, 60_000, false));
    assert_eq!(of(b), (Overlap::CancelOther, CatchUpPolicy::Latest, 8_760 * 3_600_000, true));
    assert_eq!(of(c), (Overlap::AllowAll, CatchUpPolicy::None, 60_000, false));
    // An agent of an earlier version reads what it knows.
    let text = serde_json::to_string(a).unwrap();
    assert!(!text.contains("catchUp") && !text.contains("pauseOnFailure") && !text.contains("triggers"), "{text}");
}

#[test]
fn defaults_are_filled_in() {
    let http = json!({ "http": { "path": "/x" } });
    let validated = sound(&json!({
        "schedules": [{ "name": "s", "every": "5s", "target": http, "retry": { "initialDelay": "5m" } }],
        "startups": [{ "name": "a", "target": http }],
    }));
    let schedule = &validated.schedules[0];
    assert_eq!((schedule.timeout_ms, schedule.time_zone.as_str()), (300_000, "UTC"));
    assert_eq!((schedule.retry.limit, schedule.retry.max_delay_ms), (0, 300_000));
    assert_eq!((validated.startups[0].timeout_ms, validated.startups[0].retry.limit), (600_000, 5));
    assert_eq!(validated.agent.unwrap().election.ttl_ms, 10_000);
    assert_eq!(validated.app.port, 7002);
}

#[test]
fn targets_are_named_as_the_app_of_that_generation_names_them() {
    let targets = |app: &Value, subdomain: &str| -> Vec<files::Target> {
        let queue =
            json!({ "module": "shop-report", "queueName": "render", "subdomain": subdomain, "data": { "a": 1 } });
        let broadcast = json!({ "module": "shop-report", "broadcastName": "reload", "subdomain": subdomain });
        let schedule = |name: &str, target: Value| json!({ "name": name, "every": "5s", "target": target });
        let validated = sound(&json!({
            "app": app,
            "schedules": [
                schedule("q", json!({ "queue": queue })), schedule("b", json!({ "broadcast": broadcast })),
            ],
        }));
        validated.schedules.into_iter().map(|schedule| schedule.target).collect()
    };
    let named = |app: &Value, subdomain: &str| match &targets(app, subdomain)[..] {
        [files::Target::Queue(queue), files::Target::Broadcast(broadcast)] => {
            assert_eq!((&*queue.prefix, &*broadcast.channel), ("bull_shop:queue", "broadcast_shop:"));
            assert_eq!((&*queue.subdomain, &*broadcast.subdomain), (subdomain, subdomain));
            (queue.queue.clone(), queue.role.clone(), broadcast.role.clone())
        }
        other => panic!("{other:?}"),
    };
    let texts = |queue: &str, one: &str, other: &str| (queue.to_owned(), one.to_owned(), other.to_owned());
    let v4 = json!({ "name": "shop", "generation": "v4" });
    assert_eq!(named(&v4, ""), texts("-||shop-report||render", "queue", "broadcast"));
    assert_eq!(named(&v4, "t1"), texts("t1||shop-report||render", "queue", "broadcast"));
    let mut vona = json!({ "name": "shop", "generation": "vona" });
    assert_eq!(named(&vona, ""), texts("-||shop-report.queue.render", "default", "default"));
    vona["mergesConfig"] = true.into();
    assert_eq!(named(&vona, ""), texts("-||shop-report.queue.render", "queue", "broadcast"));
}

#[test]
fn beans_are_run_by_the_module_of_the_app_for_the_instances_that_are_named() {
    let of = |app: Value, instances: Value| {
        let bean = json!({ "bean": { "module": "shop-report", "name": "schedule.nightly", "data": { "limit": 10 } } });
        let validated = sound(&json!({
            "app": app,
            "schedules": [{ "name": "s", "every": "30s", "instances": instances, "target": bean }],
            "startups": [{ "name": "t", "target": bean }],
        }));
        let targets = [validated.schedules[0].target.clone(), validated.startups[0].target.clone()];
        let [files::Target::Bean(schedule), files::Target::Bean(startup)] = targets else { panic!("{targets:?}") };
        assert_eq!((&*schedule.module, &*schedule.name), ("shop-report", "schedule.nightly"));
        assert_eq!(schedule.data, Some(json!({ "limit": 10 })));
        assert_eq!((&schedule.path, &startup.instances), (&startup.path, &files::Instances::default()));
        (schedule.path, schedule.instances)
    };
    let v4 = json!({ "name": "shop", "generation": "v4" });
    let (path, instances) = of(v4.clone(), json!(null));
    assert_eq!((&*path, instances), ("/api/cabloy/agent/run", files::Instances::default()));
    assert_eq!(of(v4.clone(), json!("Default")).1, files::Instances::default());
    assert_eq!(of(v4.clone(), json!("All")).1, files::Instances::Set(InstanceSet::All));
    assert_eq!(of(v4, json!(["", "north"])).1, files::Instances::Listed(vec![String::new(), "north".into()]));
    let vona = json!({ "name": "shop", "generation": "vona", "beanPath": "/v1/cabloy/agent/run" });
    assert_eq!(of(vona, json!(null)).0, "/v1/cabloy/agent/run");
}

#[test]
fn a_pause_is_whole_seconds() {
    let app = |pause: &str| json!({ "app": { "name": "shop", "generation": "generic", "drain": { "pause": pause } } });
    assert_eq!(sound(&app("1m5s")).pause, Some(65));
    assert_eq!(sound(&json!({})).pause, None);
    assert_eq!(refusals(&app("1500ms")), [Refusal::invalid("app.drain.pause", "must be whole seconds, such as 5s")]);
}
