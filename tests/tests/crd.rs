//! The CRD on a real API server: the examples are admitted, and what is wrong is refused with a message that names
//! the field and says what to write instead.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{path::Path, time::Duration};

use cabloy_crds::resource::CabloyCluster;
use cabloy_tests::{cluster::Cluster, wait::until};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, CustomResourceExt, Error, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

/// Installs the CRD as it stands in the repository, and waits until the API server serves it.
async fn install(client: &Client) {
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/cabloyclusters.yaml")).unwrap();
    let crd: CustomResourceDefinition = serde_yaml::from_str(&text).unwrap();
    let crds = Api::<CustomResourceDefinition>::all(client.clone());
    crds.patch(&crd.name_any(), &PatchParams::apply("test").force(), &Patch::Apply(&crd)).await.unwrap();
    until("the CRD to be established", Duration::from_secs(30), || async {
        crds.get(&crd.name_any()).await.is_ok_and(|crd| {
            crd.status.is_some_and(|status| {
                status.conditions.unwrap_or_default().iter().any(|c| c.type_ == "Established" && c.status == "True")
            })
        })
    })
    .await;
}

/// Asks the API server to admit an object, strictly as `kubectl apply` does; nothing is stored.
async fn admit(client: &Client, namespace: &str, object: &Value) -> Result<Value, String> {
    let resource = CabloyCluster::api_resource();
    let path = format!(
        "/apis/{}/{}/namespaces/{namespace}/{}?dryRun=All&fieldValidation=Strict",
        resource.group, resource.version, resource.plural
    );
    let request = http::Request::post(path)
        .header("content-type", "application/json")
        .body(serde_json::to_vec(object).unwrap())
        .unwrap();
    match client.request::<Value>(request).await {
        Ok(admitted) => Ok(admitted),
        Err(Error::Api(status)) => Err(status.message.clone()),
        Err(error) => panic!("the API server did not answer: {error}"),
    }
}

/// The least resource, with `changes` merged over it.
fn with(changes: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "cabloy.io/v1alpha1", "kind": "CabloyCluster", "metadata": {"name": "shop"},
        "spec": {
            "app": {"name": "shop", "generation": "v4"},
            "workloads": [{"name": "shop-web"}],
            "redis": {"connections": {"default": {"host": "redis"}}}
        }
    });
    merge(&mut object, changes);
    object
}

/// JSON merge patch (RFC 7396).
fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (target, Value::Object(patch)) => {
            if !target.is_object() {
                *target = json!({});
            }
            for (key, value) in patch {
                if value.is_null() {
                    target.as_object_mut().unwrap().remove(key);
                } else {
                    merge(&mut target[key], value);
                }
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}

fn schedule(fields: &Value) -> Value {
    let mut schedule = json!({"name": "tick", "every": "30s", "target": {"http": {"path": "/tick"}}});
    merge(&mut schedule, fields);
    json!({"spec": {"schedules": [schedule]}})
}

/// A schedule with another target than a call to the app.
fn target(target: &Value) -> Value {
    let mut target = target.clone();
    target["http"] = Value::Null;
    schedule(&json!({"target": target}))
}

fn startup(fields: &Value) -> Value {
    let mut startup = json!({"name": "migrate", "target": {"http": {"path": "/migrate"}}});
    merge(&mut startup, fields);
    json!({"spec": {"startups": [startup]}})
}

fn app(fields: &Value) -> Value {
    json!({"spec": {"app": fields}})
}

fn with_app(fields: &Value, mut changes: Value) -> Value {
    changes["spec"]["app"] = fields.clone();
    changes
}

fn workload(fields: &Value) -> Value {
    let mut workload = json!({"name": "shop-web"});
    merge(&mut workload, fields);
    json!({"spec": {"workloads": [workload]}})
}

/// Connections by name, in place of the one of the least resource.
fn connections(connections: &Value) -> Value {
    let mut all = json!({"default": null});
    for (name, fields) in connections.as_object().unwrap() {
        all[name] = fields.clone();
    }
    json!({"spec": {"redis": {"connections": all}}})
}

fn connection(fields: &Value) -> Value {
    json!({"spec": {"redis": {"connections": {"default": fields}}}})
}

fn roles(fields: &Value) -> Value {
    json!({"spec": {"redis": {"roles": fields}}})
}

#[tokio::test]
async fn the_examples_are_admitted() {
    let client = Cluster::control_plane().client().await;
    install(&client).await;
    let mut seen = 0;
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        for document in std::fs::read_to_string(&path).unwrap().split("\n---\n") {
            let object: Value = serde_yaml::from_str(document).unwrap();
            if object["kind"] == "CabloyCluster" {
                admit(&client, "default", &object).await.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                seen += 1;
            }
        }
    }
    assert!(seen >= 2, "the least and the full resource are among the examples");
}

#[tokio::test]
async fn good_resources_are_admitted() {
    let client = Cluster::control_plane().client().await;
    install(&client).await;
    let good = [
        json!({}),
        app(&json!({"name": "Shop_2.x-y", "port": 8080, "healthPath": "/health?deep=1"})),
        app(&json!({"generation": "vona", "mergesConfig": true, "configFrom": [{"secretRef": {"name": "x"}}]})),
        workload(&json!({"kind": "DaemonSet", "container": "app", "elect": false, "nodeOptions": "--title='x'"})),
        json!({"spec": {"workloads": [{"name": "web"}, {"name": "web", "kind": "StatefulSet"}]}}),
        connection(&json!({"host": "10.0.0.7", "port": 6380, "db": 15})),
        connection(&json!({"host": "fd00::7"})),
        connection(&json!({"host": "redis-0.redis.prod.svc.cluster.local"})),
        roles(&json!({
            "cache": {"db": 3, "keyPrefix": "c:"}, "sessionStore": {"host": "other"},
            "redlock": {"connections": ["default"]}
        })),
        schedule(&json!({"every": null, "cron": "0 3 * * MON-FRI", "timeZone": "Europe/Berlin"})),
        schedule(&json!({"every": null, "cron": "*/5 * * * * *", "overlap": "Skip", "suspend": true})),
        schedule(&json!({
            "overlap": "CancelOther", "catchUp": {"window": "8760h", "policy": "Latest"}, "pauseOnFailure": true
        })),
        schedule(&json!({"overlap": "AllowAll", "catchUp": {"policy": "None"}})),
        schedule(&json!({
            "retry": {"limit": 0, "factor": 1.5}, "target": {"http": {"path": "/a/b?c=d", "body": [1, "x", null]}}
        })),
        target(&json!({"queue": {"module": "shop-report", "queueName": "render", "subdomain": "", "data": [1, null]}})),
        target(&json!({"queue": {
            "module": "m", "queueName": "q", "queueNameSub": "a.b c", "jobName": "hourly", "subdomain": "t1",
            "jobOptions": {"attempts": 3, "backoff": {"type": "exponential", "delay": "5s"}, "removeOnComplete": true}
        }})),
        target(&json!({"broadcast": {"module": "shop-report", "broadcastName": "refresh"}})),
        startup(&json!({"scope": "Instance", "gate": "None", "timeout": "1h30m"})),
        json!({"spec": {"agent": {"enabled": false}}}),
    ];
    for changes in &good {
        if let Err(error) = admit(&client, "default", &with(changes)).await {
            panic!("refused: {changes}\n{error}");
        }
    }
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn bad_resources_are_refused_with_the_field_and_the_remedy() {
    let client = Cluster::control_plane().client().await;
    install(&client).await;
    // What is wrong, then the field and the remedy that the message must name.
    let bad: Vec<(Value, &str, &str)> = vec![
        (json!({"metadata": {"name": "a-name-of-more-than-forty-characters-in-all"}}), "metadata.name", "at most 40"),
        (json!({"spec": null}), "spec", "Required value"),
        (app(&json!({"name": null})), "spec.app.name", "Required value"),
        (app(&json!({"name": ""})), "spec.app.name", "name in the app's package.json"),
        (app(&json!({"name": "my shop"})), "spec.app.name", "letters, digits"),
        (app(&json!({"name": "x".repeat(64)})), "spec.app.name", "63"),
        (app(&json!({"generation": null})), "spec.app.generation", "Required value"),
        (app(&json!({"generation": "v5"})), "spec.app.generation", r#"supported values: "v4", "vona", "generic""#),
        (app(&json!({"port": 0})), "spec.app.port", "greater than or equal to 1"),
        (app(&json!({"port": 70000})), "spec.app.port", "less than or equal to 65535"),
        (app(&json!({"port": "7002"})), "spec.app.port", "integer"),
        (app(&json!({"healthPath": "healthz"})), "spec.app.healthPath", "begins with '/'"),
        (
            app(&json!({"generation": "vona", "configFrom": [{"secretRef": {"name": "x"}}]})),
            "spec.app",
            "of vona with mergesConfig",
        ),
        (app(&json!({"generation": "v4", "mergesConfig": true})), "spec.app", "is for generation vona: remove it"),
        (
            app(&json!({"configFrom": [{"secretRef": {"name": "Not A Name"}}]})),
            "spec.app.configFrom[0].secretRef.name",
            "lower-case",
        ),
        (app(&json!({"generation": "generic", "warmUp": true})), "spec.app", "are for generation v4"),
        (app(&json!({"warmUp": false, "instances": ["acme"]})), "spec.app", "set warmUp to true"),
        (app(&json!({"drain": {"pause": "500ms"}})), "spec.app.drain.pause", "whole seconds"),
        (app(&json!({"instances": ["-acme"]})), "spec.app.instances", "names of CabloyJS instances"),
        (app(&json!({"instances": ["acme", "acme"]})), "spec.app.instances[1]", "Duplicate value"),
        (app(&json!({"colour": "red"})), "spec.app.colour", "unknown field"),
        (json!({"spec": {"workloads": []}}), "spec.workloads", "at least 1"),
        (
            json!({"spec": {"workloads": [{"name": "a"}, {"name": "a", "kind": "Deployment"}]}}),
            "spec.workloads",
            "remove the repeated one",
        ),
        (workload(&json!({"kind": "Pod"})), "spec.workloads[0].kind", r#""Deployment", "StatefulSet", "DaemonSet""#),
        (workload(&json!({"name": "Web"})), "spec.workloads[0].name", "lower-case"),
        (workload(&json!({"container": "cabloy-agent"})), "spec.workloads[0].container", "the app's container"),
        (workload(&json!({"nodeOptions": "--a\n--b"})), "spec.workloads[0].nodeOptions", "one line"),
        (
            json!({"spec": {"app": {"generation": "generic"}, "workloads": [{"name": "a", "nodeOptions": "--x"}]}}),
            "workloads[].nodeOptions",
            "remove it",
        ),
        (connections(&json!({})), "spec.redis.connections", "at least 1"),
        (connections(&json!({"Main": {"host": "x"}})), "spec.redis.connections", "lower-case"),
        (connection(&json!({"host": null})), "spec.redis.connections", "exactly one of host, sentinel and cluster"),
        (
            connection(&json!({"sentinel": {"masterName": "m", "nodes": [{"host": "s"}]}})),
            "spec.redis.connections",
            "exactly one of host, sentinel and cluster",
        ),
        (connection(&json!({"host": "redis://redis:6379"})), "host", "no redis://"),
        (connection(&json!({"host": "redis:6379"})), "host", "write the port in port"),
        (connection(&json!({"port": 65536})), "spec.redis.connections.default.port", "65535"),
        (connection(&json!({"db": -1})), "spec.redis.connections.default.db", "greater than or equal to 0"),
        (connection(&json!({"username": "shop"})), "spec.redis.connections", "username needs passwordSecretRef"),
        (
            connection(&json!({"username": "a b", "passwordSecretRef": {"name": "s", "key": "k"}})),
            "username",
            "ACL user",
        ),
        (
            connection(&json!({"passwordSecretRef": {"name": "s"}})),
            "spec.redis.connections.default.passwordSecretRef.key",
            "Required value",
        ),
        (
            connection(&json!({"passwordSecretRef": {"name": "s", "key": "a/b"}})),
            "passwordSecretRef.key",
            "must be a key of the Secret",
        ),
        (connection(&json!({"password": "hunter2"})), "spec.redis.connections.default.password", "unknown field"),
        (
            connections(&json!({"c": {"cluster": {"nodes": [{"host": "a"}]}, "db": 1}})),
            "spec.redis.connections",
            "db cannot be chosen on a Redis Cluster",
        ),
        (
            connections(&json!({"s": {"sentinel": {"masterName": "m", "nodes": []}}})),
            "spec.redis.connections.s.sentinel.nodes",
            "at least 1",
        ),
        (
            connections(&json!({"s": {"sentinel": {"masterName": "m", "nodes": [{"host": "a"}]}, "port": 1}})),
            "spec.redis.connections",
            "port goes with host",
        ),
        (roles(&json!({"cache": {"connection": "nowhere"}})), "roles.<role>.connection", "add the connection"),
        (
            roles(&json!({"redlock": {"connections": ["default", "nowhere"]}})),
            "roles.redlock.connections",
            "add the connections",
        ),
        (roles(&json!({"redlock": {"connections": ["default", "default"]}})), "connections[1]", "Duplicate value"),
        (roles(&json!({"redlock": {"connections": []}})), "spec.redis.roles.redlock.connections", "at least 1"),
        (
            roles(&json!({"redlock": {"connections": ["default"], "db": 1}})),
            "spec.redis.roles",
            "connections stands alone",
        ),
        (
            roles(&json!({"cache": {"connections": ["default"]}})),
            "only roles.redlock takes connections",
            "write connection",
        ),
        (roles(&json!({"queue": {"keyPrefix": "q:"}})), "keyPrefix", "remove it"),
        (roles(&json!({"broadcast": {"keyPrefix": "q:"}})), "keyPrefix", "remove it"),
        (roles(&json!({"io": {"keyPrefix": "a\u{7}"}})), "keyPrefix", "printable ASCII"),
        (roles(&json!({"io": {"username": "x"}})), "spec.redis.roles", "username needs passwordSecretRef"),
        (roles(&json!({"my role": {}})), "spec.redis.roles", "letters, digits"),
        (roles(&json!({"Cache": {}, "cache": {}})), "spec.redis.roles", "upper and lower case"),
        (
            json!({"spec": {"redis": {
                "connections": {"default": null, "main": {"host": "x"}}, "roles": {"cache": {"db": 1}}
            }}}),
            "connections.default",
            "add it",
        ),
        (json!({"spec": {"nativeSchedules": "Watch"}}), "spec.nativeSchedules", r#""Guard", "Off""#),
        (
            json!({"spec": {"nativeSchedules": "Guard", "app": {"generation": "generic"}}}),
            "nativeSchedules",
            "write Off",
        ),
        (json!({"spec": {"nativeSchedules": "Guard", "agent": {"enabled": false}}}), "nativeSchedules", "to true"),
        (
            json!({"spec": {
                "nativeSchedules": "Guard",
                "redis": {"connections": {"default": null, "main": {"host": "x"}}, "roles": {"redlock": {"connection": "main"}}}
            }}),
            "nativeSchedules",
            "add them to redis.roles",
        ),
        (json!({"spec": {"nativeScheduleHistory": {"failed": 1}}}), "nativeScheduleHistory", "to Guard"),
        (
            json!({"spec": {"nativeSchedules": "Guard", "nativeScheduleHistory": {"failed": -1}}}),
            "spec.nativeScheduleHistory.failed",
            "greater than or equal to 0",
        ),
        (json!({"spec": {"agent": {"version": "cabloy/agent:1"}}}), "spec.agent.version", "repository is chosen when"),
        (json!({"spec": {"agent": {"election": {"ttl": "100ms"}}}}), "spec.agent.election.ttl", "between 1s and 5m"),
        (json!({"spec": {"agent": {"election": {"ttl": "10"}}}}), "spec.agent.election.ttl", "such as 30s"),
        (json!({"spec": {"agent": {"election": {"ttl": 10}}}}), "spec.agent.election.ttl", "string"),
        (
            json!({"spec": {"agent": {"tracing": {"endpoint": "https://otel:4318"}}}}),
            "spec.agent.tracing.endpoint",
            "agents speak no TLS",
        ),
        (json!({"spec": {"agent": {"tracing": {"endpoint": "http://otel"}}}}), "endpoint", "http://<host>:<port>"),
        (
            json!({"spec": {"agent": {"tracing": {"endpoint": "http://otel:4318", "sampleRatio": 1.5}}}}),
            "spec.agent.tracing.sampleRatio",
            "less than or equal to 1",
        ),
        (
            json!({"spec": {
                "agent": {"enabled": false},
                "schedules": [{"name": "a", "every": "1s", "target": {"http": {"path": "/"}}}]
            }}),
            "agent.enabled",
            "set agent.enabled to true",
        ),
        (
            json!({"spec": {
                "redis": {"connections": {"default": null, "main": {"host": "x"}}},
                "schedules": [{"name": "a", "every": "1s", "target": {"http": {"path": "/"}}}]
            }}),
            "redis.roles.redlock",
            "add redis.roles.redlock",
        ),
        (schedule(&json!({"name": "Nightly Report"})), "spec.schedules[0].name", "such as nightly-report"),
        (schedule(&json!({"every": null})), "spec.schedules[0]", "exactly one of cron and every"),
        (schedule(&json!({"cron": "@daily"})), "spec.schedules[0]", "exactly one of cron and every"),
        (schedule(&json!({"every": null, "cron": "* * *"})), "spec.schedules[0].cron", "5 or 6 fields"),
        (schedule(&json!({"every": "10ms"})), "spec.schedules[0].every", "between 1s"),
        (schedule(&json!({"every": "1d"})), "spec.schedules[0].every", "units ms, s, m or h"),
        (schedule(&json!({"timeZone": "UTC"})), "spec.schedules[0]", "timeZone goes with cron"),
        (schedule(&json!({"overlap": "Queue"})), "spec.schedules[0].overlap", "Skip"),
        (schedule(&json!({"catchUp": {"window": "1h"}})), "spec.schedules[0].catchUp.policy", "Required value"),
        (
            schedule(&json!({"catchUp": {"window": "8761h", "policy": "All"}})),
            "spec.schedules[0].catchUp.window",
            "at most 8760h",
        ),
        (
            schedule(&json!({"catchUp": {"policy": "Oldest"}})),
            "spec.schedules[0].catchUp.policy",
            r#""None", "Latest", "All""#,
        ),
        (schedule(&json!({"pauseOnFailure": "yes"})), "spec.schedules[0].pauseOnFailure", "boolean"),
        (schedule(&json!({"jitter": "25h"})), "spec.schedules[0].jitter", "at most 24h"),
        (schedule(&json!({"timeout": "0s"})), "spec.schedules[0].timeout", "between 1s and 24h"),
        (schedule(&json!({"onUnknown": "Ignore"})), "spec.schedules[0].onUnknown", r#""Skip", "Retry""#),
        (schedule(&json!({"retry": {"limit": -1}})), "spec.schedules[0].retry.limit", "greater than or equal to 0"),
        (schedule(&json!({"retry": {"factor": 0.5}})), "spec.schedules[0].retry.factor", "greater than or equal to 1"),
        (schedule(&json!({"takesOver": "nightly"})), "spec.schedules[0].takesOver", "<module>.<schedule>"),
        (schedule(&json!({"target": null})), "spec.schedules[0].target", "Required value"),
        (
            schedule(&json!({"target": {"http": null}})),
            "spec.schedules[0].target",
            "exactly one of http, bean, queue and broadcast",
        ),
        (
            schedule(&json!({"target": {"bean": {"module": "m", "name": "n"}}})),
            "spec.schedules[0].target",
            "exactly one of http, bean, queue and broadcast",
        ),
        (
            schedule(&json!({"target": {"http": null, "bean": {"module": "m", "name": "a b"}}})),
            "spec.schedules[0].target.bean.name",
            "must be the name alone",
        ),
        (
            schedule(&json!({"target": {"http": {"path": "http://other/x"}}})),
            "spec.schedules[0].target.http.path",
            "begins with '/'",
        ),
        (
            schedule(&json!({"target": {"http": {"method": "FETCH"}}})),
            "spec.schedules[0].target.http.method",
            r#""POST""#,
        ),
        (
            target(&json!({"queue": {"module": "shop:report", "queueName": "q"}})),
            "spec.schedules[0].target.queue.module",
            "such as shop-report",
        ),
        (
            target(&json!({"queue": {"module": "m", "queueName": ""}})),
            "spec.schedules[0].target.queue.queueName",
            "letters, digits",
        ),
        (
            target(&json!({"queue": {"module": "m", "queueName": "q", "subdomain": "~"}})),
            "spec.schedules[0].target.queue.subdomain",
            "empty for the default one",
        ),
        (
            target(&json!({"queue": {"module": "m", "queueName": "q", "jobOptions": {"attempts": 0}}})),
            "spec.schedules[0].target.queue.jobOptions.attempts",
            "greater than or equal to 1",
        ),
        (
            target(&json!({"queue": {"module": "m", "queueName": "q", "jobOptions": {"backoff": {"delay": "1s"}}}})),
            "spec.schedules[0].target.queue.jobOptions",
            "backoff goes with attempts",
        ),
        (
            target(&json!({"queue": {"module": "m", "queueName": "q", "jobOptions": {"jobId": "mine"}}})),
            "spec.schedules[0].target.queue.jobOptions.jobId",
            "unknown field",
        ),
        (
            target(&json!({"broadcast": {"module": "m"}})),
            "spec.schedules[0].target.broadcast.broadcastName",
            "Required value",
        ),
        (
            with_app(
                &json!({"generation": "generic"}),
                target(&json!({"broadcast": {"module": "m", "broadcastName": "b"}})),
            ),
            "generation generic has none",
            "write target.http",
        ),
        (
            with_app(
                &json!({"generation": "generic"}),
                target(&json!({"bean": {"module": "m", "name": "schedule.b"}})),
            ),
            "generation generic has none",
            "write target.http",
        ),
        (
            with_app(
                &json!({"generation": "generic"}),
                startup(&json!({"target": {"http": null, "bean": {"module": "m", "name": "startup.b"}}})),
            ),
            "the target bean is one of CabloyJS",
            "write target.http",
        ),
        (app(&json!({"generation": "generic", "beanPath": "/run"})), "spec.app", "generation generic has none"),
        (app(&json!({"beanPath": "run"})), "spec.app.beanPath", "begins with '/'"),
        (
            startup(&json!({"target": {"http": null, "queue": {"module": "m", "queueName": "q"}}})),
            "spec.startups[0]",
            "write target.http",
        ),
        (
            json!({"spec": {"schedules": [
                {"name": "a", "every": "1s", "target": {"http": {"path": "/"}}},
                {"name": "a", "every": "2s", "target": {"http": {"path": "/"}}}
            ]}}),
            "spec.schedules[1]",
            "Duplicate value",
        ),
        (startup(&json!({"scope": "Pod"})), "spec.startups[0].scope", r#""Cluster", "Instance""#),
        (startup(&json!({"gate": "Closed"})), "spec.startups[0].gate", r#""Ready", "None""#),
        (startup(&json!({"revision": "a b"})), "spec.startups[0].revision", "such as v42"),
        (
            startup(&json!({"scope": "Instance", "revision": "v1"})),
            "spec.startups[0]",
            "revision goes with scope Cluster",
        ),
        (startup(&json!({"after": ["migrate"]})), "spec.startups[0]", "must not name the task itself"),
        (startup(&json!({"after": ["seed"]})), "startups[].after", "add the task"),
        (startup(&json!({"timeout": "25h"})), "spec.startups[0].timeout", "between 1s and 24h"),
        (
            json!({"spec": {"rollout": {"onRedisChange": "Never"}}}),
            "spec.rollout.onRedisChange",
            r#""Restart", "Manual""#,
        ),
        (json!({"spec": {"deletionPolicy": "Keep"}}), "spec.deletionPolicy", r#""Withdraw", "Orphan""#),
    ];
    assert!(bad.len() >= 40);
    let mut wrong = Vec::new();
    for (changes, field, remedy) in &bad {
        match admit(&client, "default", &with(changes)).await {
            Ok(_) => wrong.push(format!("admitted: {changes}")),
            Err(message) if message.contains(field) && message.contains(remedy) => {}
            Err(message) => wrong.push(format!("{changes}\n  wanted {field:?} and {remedy:?}\n  got {message}")),
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), bad.len(), wrong.join("\n"));
}

#[tokio::test]
async fn the_name_of_the_app_cannot_be_changed() {
    let cluster = Cluster::control_plane();
    let client = cluster.client().await;
    install(&client).await;
    let namespace = cluster.namespace("immutable").await;
    let api = Api::<CabloyCluster>::namespaced(client, &namespace);
    let object: CabloyCluster = serde_json::from_value(with(&json!({}))).unwrap();
    api.create(&PostParams::default(), &object).await.unwrap();
    let patch = Patch::Merge(json!({"spec": {"app": {"name": "other"}}}));
    let error =
        api.patch("shop", &PatchParams::default(), &patch).await.expect_err("the name is immutable").to_string();
    assert!(error.contains("spec.app.name") && error.contains("make another CabloyCluster"), "{error}");
}
