//! Beans of real apps of `CabloyJS` 4 and of Vona, which `examples/cabloy-v4-module` and `examples/vona-module` in them run:
//! for a real agent, and for whoever only says that it is one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod stage;

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cabloy_agent::signing::Signing;
use cabloy_crds::agent_status::{AgentStatus, StartupState, TickResult, Verdict};
use cabloy_tests::cabloy::{self, APP, Answer, Event, Pod};
use cabloy_tests::mariadb::MariaDb;
use cabloy_tests::redis::Redis;
use cabloy_tests::vona::whole;
use cabloy_tests::{require, wait};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use stage::{SOON, Stage, schedule, startup};
use tokio::sync::Mutex;

const PATH: &str = "/api/cabloy/agent/run";

const KEYS: [&str; 2] = ["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"];

/// One app at a time: on a busy machine two of them take longer than an agent is waited for.
static TURN: Mutex<()> = Mutex::const_new(());

/// An app with two worker processes. Of its instances, `north` is in its configuration, and `south` and the disabled
/// `closed` are in its database.
struct App {
    generation: &'static str,
    pod: Pod,
    _project: Box<dyn Any>,
    _database: MariaDb,
    redis: Redis,
}

impl App {
    async fn of_v4(key_file: &Path) -> Self {
        let (project, redis) = (cabloy::Project::new(), Redis::start());
        project.add_agent_module();
        let database = cabloy::database().await;
        for (name, disabled) in [("south", 0), ("closed", 1)] {
            let values = format!("('{name}', '', '{{}}', {disabled})");
            let _ =
                database.query(&format!("insert into {APP}.aInstance (name, title, config, disabled) values {values}"));
        }
        let instance = |subdomain: &str| json!({"subdomain": subdomain, "password": "", "title": "", "config": {}});
        let config = json!({
            "instances": [instance(""), instance("north")],
            "modules": {"cabloy-agent": {"keyFile": key_file}},
        });
        let pod = project.pod("a", &database, redis.addr()).workers(2).config(&config).start().await;
        Self { generation: "v4", pod, _project: Box::new(project), _database: database, redis }
    }

    async fn of_vona(key_file: &Path) -> Self {
        let project = whole::Project::new(&json!({
            "instance": {"instances": {"north": {}, "west": false}},
            "modules": {"cabloy-agent": {"keyFile": key_file}},
        }));
        project.add_agent_module();
        let (database, redis) = (whole::database(), Redis::start());
        let pod = project.start("a", 2, &database, redis.addr()).await;
        for (name, disabled) in [("south", false), ("closed", true)] {
            let instance = json!({"name": name, "title": "", "disabled": disabled}).to_string();
            let headers = [("content-type", "application/json")];
            let added = pod.post("/api/fx/probe/addInstance", &headers, &instance).await.unwrap();
            assert_eq!((added.status, &added.body["data"]["name"]), (200, &json!(name)), "{added:?}");
        }
        Self { generation: "vona", pod, _project: Box::new(project), _database: database, redis }
    }

    /// What the bean of the schedule noted.
    fn reports(&self) -> Vec<Event> {
        self.pod.events().into_iter().filter(|event| event.kind == "report").collect()
    }

    /// The bean fails for these instances from now on.
    fn fail(&self, subdomains: &[&str]) {
        self.name("fail", subdomains);
    }

    /// The bean does not come to its end for these instances from now on, until it is not for them any more.
    fn hold(&self, subdomains: &[&str]) {
        self.name("hold", subdomains);
    }

    fn name(&self, what: &str, subdomains: &[&str]) {
        let lines: String = subdomains.iter().flat_map(|subdomain| [*subdomain, "\n"]).collect();
        let file = self.pod.home().join(format!("events.{what}"));
        std::fs::write(file.with_extension("new"), lines).unwrap();
        std::fs::rename(file.with_extension("new"), file).unwrap();
    }

    /// Makes a call as an agent would, of a run of that id, less what `edit` does to its headers.
    async fn call(&self, id: &str, attempt: u32, body: &Value, edit: impl FnOnce(&mut Headers)) -> Answer {
        let dir = tempfile::TempDir::new().unwrap();
        let mut headers = Headers { key: KEYS[0], at: Timestamp::now(), token: 7 };
        edit(&mut headers);
        std::fs::write(dir.path().join("key"), headers.key).unwrap();
        let body = body.to_string();
        let signed = Signing::read(&dir.path().join("key")).headers(id, headers.at, body.as_bytes());
        let now = Timestamp::now();
        let mut all = vec![
            ("content-type", "application/json".to_owned()),
            ("ce-source", "/cabloy/prod/shop".to_owned()),
            ("ce-type", "io.cabloy.schedule".to_owned()),
            ("ce-subject", "report".to_owned()),
            ("ce-time", now.to_string()),
            ("idempotency-key", format!("\"{id}\"")),
            ("fencing-scope", id.to_owned()),
            ("fencing-token", headers.token.to_string()),
            ("attempt", attempt.to_string()),
            ("deadline", (now + SignedDuration::from_secs(60)).to_string()),
        ];
        all.extend(signed);
        let all: Vec<_> = all.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.pod.post(PATH, &all, &body).await.unwrap()
    }
}

/// What a call is made with.
struct Headers {
    key: &'static str,
    at: Timestamp,
    token: u64,
}

fn text<'a>(event: &'a Event, pointer: &str) -> &'a str {
    let (field, rest) = pointer.split_once('/').unwrap_or((pointer, ""));
    let value = event.more.get(field).unwrap_or(&Value::Null);
    let value = if rest.is_empty() { value } else { &value[rest] };
    value.as_str().unwrap_or("<none>")
}

/// How often the bean was begun for each instance, in the run of that key.
fn begun(reports: &[Event], key: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for report in reports.iter().filter(|report| text(report, "run/key") == key) {
        *counts.entry(text(report, "subdomain").to_owned()).or_default() += 1;
    }
    counts
}

fn counts<const N: usize>(of: [(&str, usize); N]) -> BTreeMap<String, usize> {
    of.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

fn bean(name: &str, instances: &Value) -> Value {
    json!({"bean": {"path": PATH, "module": "fx-probe", "name": name, "data": {"limit": 10}, "instances": instances}})
}

/// A result of that schedule, for whose first attempt `north` failed if it is the one for all.
fn result_of(status: &AgentStatus, name: &str) -> Option<TickResult> {
    let results = &status.schedules.iter().find(|schedule| schedule.name == name)?.results;
    results.iter().find(|result| name != "all" || result.attempts > 1).cloned()
}

#[tokio::test(flavor = "multi_thread")]
async fn beans_of_a_real_app_run_for_its_instances() {
    require!(cabloy::found());
    let _turn = TURN.lock().await;
    let stage = Stage::new(1);
    let key_file = stage.dir().join("key");
    std::fs::write(&key_file, KEYS[0]).unwrap();
    let app = App::of_v4(&key_file).await;

    let south = an_agent_has_them_run(&stage, &app, &key_file).await;
    let data = json!({"limit": 10, "subdomain": "south", "module": "fx-probe", "name": "report"});
    assert_eq!(south.more["data"], data, "as CabloyJS itself has it, and what the resource says");
    assert_eq!(south.more["job"]["name"], "south.fx-probe.report");
    assert_eq!(south.more["job"]["repeat"], json!({"cron": "0 3 * * *"}));
    only_an_agent_may_call(&app).await;
    a_run_that_goes_on_is_not_begun_again(&app).await;
    each_run_is_once_over_all_workers(&app).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beans_of_a_real_app_of_vona_run_for_its_instances() {
    require!(whole::found());
    let _turn = TURN.lock().await;
    let stage = Stage::new(1);
    let key_file = stage.dir().join("key");
    std::fs::write(&key_file, KEYS[0]).unwrap();
    let app = App::of_vona(&key_file).await;

    let south = an_agent_has_them_run(&stage, &app, &key_file).await;
    let (job, key) = (&south.more["job"], text(&south, "run/key"));
    let name = "south.fx-probe.schedule.report";
    assert_eq!(job, &json!({"id": key, "name": name, "attemptsMade": 0, "data": {"data": {"limit": 10}}}));
    only_an_agent_may_call(&app).await;
    a_run_that_goes_on_is_not_begun_again(&app).await;
    each_run_is_once_over_all_workers(&app).await;
    startups_of_vona_are_of_the_app_or_of_instances(&app).await;
    without_redis_nothing_runs(&app).await;
}

/// A real agent beside the app. What the bean noted of a run for `south`.
async fn an_agent_has_them_run(stage: &Stage, app: &App, key_file: &Path) -> Event {
    // Each process starts an instance at the first call for it, which may take longer than an agent is waited for.
    let all = json!({"module": "fx-probe", "name": "schedule.report", "instances": "All"});
    for id in ["prod/shop/first@a", "prod/shop/first@b"] {
        let first = app.call(id, 1, &all, |_| {}).await;
        assert_eq!((first.status, &first.body), (200, &json!({"data": {"done": ["", "north", "south"]}})));
    }
    app.fail(&["north"]);
    let schedules = [
        ("default", bean("schedule.report", &json!("Default"))),
        ("all", bean("schedule.report", &json!("All"))),
        ("some", bean("schedule.report", &json!(["", "south"]))),
        ("closed", bean("schedule.report", &json!(["south", "closed", "nowhere"]))),
        ("nobody", bean("schedule.nobody", &json!("Default"))),
        ("nowhere", json!({"bean": {"path": "/api/cabloy/nowhere/run", "module": "m", "name": "n"}})),
        ("elsewhere", json!({"bean": {"path": "/api/cabloy/agent/elsewhere", "module": "m", "name": "n"}})),
    ];
    stage.files.edit(|file| {
        file["app"]["generation"] = json!(app.generation);
        let of = |(name, target): &(&str, Value)| {
            let mut schedule = schedule(name, 1_000);
            schedule["retry"]["limit"] = json!(50);
            schedule["pauseOnFailure"] = json!(true);
            schedule["target"] = target.clone();
            schedule
        };
        file["schedules"] = schedules.iter().map(of).collect();
        let mut once = startup("once");
        once["target"] = bean("startup.once", &json!("Default"));
        file["startups"] = json!([once]);
    });
    let ran = || app.pod.events().iter().filter(|event| event.kind == "startup.once").count();
    let before = ran();
    let agent = stage.agent_beside("a", app.pod.port()).signing_key(key_file).start();

    let failing = |status: &AgentStatus| {
        let all = status.schedules.iter().find(|schedule| schedule.name == "all");
        all.is_some_and(|all| all.runs.iter().any(|run| run.attempt > 1))
    };
    agent.until("another attempt for what failed", failing).await;
    app.fail(&[]);
    let names: Vec<_> = schedules.iter().map(|(name, _)| *name).collect();
    let status =
        agent.until("a result of each", |status| names.iter().all(|name| result_of(status, name).is_some())).await;
    let result = |name: &str| result_of(&status, name).unwrap();
    let reports = app.reports();
    let key = |name: &str| format!("prod/shop/{name}@{}", result(name).tick);

    for name in ["default", "all", "some"] {
        assert_eq!(result(name).verdict, Verdict::Done, "{name}: {:?}", result(name));
    }
    assert_eq!(begun(&reports, &key("default")), counts([("", 1)]));
    assert_eq!(begun(&reports, &key("some")), counts([("", 1), ("south", 1)]));
    let attempts = result("all").attempts as usize;
    assert!(attempts > 1);
    assert_eq!(
        begun(&reports, &key("all")),
        counts([("", 1), ("north", attempts), ("south", 1)]),
        "and none for closed"
    );

    let locked = result("closed");
    assert_eq!((locked.verdict, &*locked.reason), (Verdict::Failed, "Refused"), "{locked:?}");
    assert!(locked.message.contains("closed: the instance is disabled; nowhere: there is no such"), "{locked:?}");
    assert_eq!(begun(&reports, &key("closed")), counts([("south", 1)]));
    let nobody = result("nobody");
    assert_eq!((nobody.verdict, &*nobody.reason), (Verdict::Failed, "Refused"), "{nobody:?}");
    assert!(nobody.message.contains("this version of the app has no bean fx-probe.schedule.nobody"), "{nobody:?}");
    for name in ["nowhere", "elsewhere"] {
        let missing = result(name);
        assert_eq!((missing.verdict, &*missing.reason), (Verdict::Failed, "NotInThisVersion"), "{missing:?}");
        assert!(missing.message.contains("install the integration module"), "{missing:?}");
    }

    let all = key("all");
    let south = reports.iter().find(|it| text(it, "run/key") == all && text(it, "subdomain") == "south").unwrap();
    assert_eq!(text(south, "instance"), "south", "the bean works on the data of that instance");
    assert!(south.more["run"]["token"].as_u64().unwrap() > 0);

    let done = |status: &AgentStatus| status.startups.iter().any(|task| task.state == StartupState::Done);
    agent.until("the startup task", done).await;
    assert_eq!(ran(), before + 1);
    south.clone()
}

/// Whoever reaches the port.
async fn only_an_agent_may_call(app: &App) {
    let body = json!({"module": "fx-probe", "name": "schedule.report", "instances": "Default"});
    let unsigned = app.pod.post(PATH, &[("content-type", "application/json")], &body.to_string()).await.unwrap();
    assert_eq!(unsigned.status, 401, "{unsigned:?}");
    let wrong = app.call("prod/shop/report@wrong", 1, &body, |call| call.key = KEYS[1]).await;
    assert_eq!(wrong.status, 401, "{wrong:?}");
    let old = app.call("prod/shop/report@old", 1, &body, |call| call.at -= SignedDuration::from_mins(6)).await;
    assert_eq!(old.status, 401, "{old:?}");
    for bad in
        [json!([]), json!({"module": "fx-probe"}), json!({"module": "fx-probe", "name": "n", "instances": "Some"})]
    {
        let refused = app.call("prod/shop/report@bad", 1, &bad, |_| {}).await;
        assert_eq!(refused.status, 422, "{bad}: {refused:?}");
    }
    // What the agent of before has begun may still run.
    let ours = |report: &Event| text(report, "run/key").starts_with("prod/shop/report@");
    assert!(!app.reports().iter().any(ours), "nothing has run");

    let id = "prod/shop/report@fenced";
    assert_eq!(app.call(id, 1, &body, |call| call.token = 9).await.status, 200);
    let stale = app.call(id, 2, &body, |call| call.token = 8).await;
    assert_eq!((stale.status, &stale.body), (412, &json!({"token": 9})));
    // Within the time that a signature is good for, whoever heard the call gets no more than its answer.
    let replayed = app.call(id, 1, &body, |call| call.token = 9).await;
    assert_eq!((replayed.status, &replayed.body), (200, &json!({"data": {"done": [""]}})));
    assert_eq!(begun(&app.reports(), id), counts([("", 1)]));
}

/// Whoever repeats a call while the bean runs.
async fn a_run_that_goes_on_is_not_begun_again(app: &App) {
    let body = json!({"module": "fx-probe", "name": "schedule.report", "instances": "Default"});
    let id = "prod/shop/report@held";
    app.hold(&[""]);
    let repeated = async {
        wait::until("the bean to begin", SOON, async || (begun(&app.reports(), id) == counts([("", 1)])).then_some(()))
            .await;
        let answers = [app.call(id, 1, &body, |_| {}).await, app.call(id, 2, &body, |_| {}).await];
        app.hold(&[]);
        answers
    };
    let (first, repeated) = tokio::join!(app.call(id, 1, &body, |_| {}), repeated);
    for answer in repeated {
        assert_eq!((answer.status, &answer.body), (409, &json!({"message": "it runs already"})));
    }
    assert_eq!(first.status, 200, "{first:?}");
    assert_eq!(app.call(id, 2, &body, |_| {}).await, first);
    assert_eq!(begun(&app.reports(), id), counts([("", 1)]));
}

/// Connections come to the workers in turns.
async fn each_run_is_once_over_all_workers(app: &App) {
    let body = json!({"module": "fx-probe", "name": "schedule.report", "instances": "All"});
    let ids: Vec<_> = (0..4).map(|run| format!("prod/shop/report@run-{run}")).collect();
    for id in &ids {
        // An odd number, so that the next run is begun by the other worker.
        for attempt in 1..=3 {
            let answer = app.call(id, attempt, &body, |_| {}).await;
            let done = json!({"data": {"done": ["", "north", "south"]}});
            assert_eq!((answer.status, &answer.body), (200, &done), "attempt {attempt}");
        }
    }
    let reports = wait::until("the notes of all", SOON, async || {
        let reports = app.reports();
        ids.iter().all(|id| begun(&reports, id).len() == 3).then_some(reports)
    })
    .await;
    let mut workers = BTreeSet::new();
    for id in &ids {
        assert_eq!(begun(&reports, id), counts([("", 1), ("north", 1), ("south", 1)]));
        let of = reports.iter().filter(|report| text(report, "run/key") == *id);
        workers.extend(of.map(|report| report.pid));
    }
    assert_eq!(workers.len(), 2, "both workers have run some");
}

/// One that is of the app runs once, and without an instance.
async fn startups_of_vona_are_of_the_app_or_of_instances(app: &App) {
    let noted = |kind: &str, id: &str| {
        let of = |event: &Event| event.kind == kind && text(event, "run/key") == id;
        app.pod.events().into_iter().filter(of).collect::<Vec<_>>()
    };
    let body =
        |name, instances| json!({"module": "fx-probe", "name": name, "instances": instances, "data": {"limit": 3}});
    let once = "prod/shop/once@1";
    assert_eq!(app.call(once, 1, &body("startup.once", json!("Default")), |_| {}).await.status, 200);
    let [event] = &noted("startup.once", once)[..] else { panic!("{:?}", app.pod.events()) };
    let (force, data, instance) = (&event.more["force"], &event.more["data"], &event.more["instance"]);
    assert_eq!((force, data, instance), (&json!(true), &json!({"limit": 3}), &Value::Null));

    let all = app.call("prod/shop/once@2", 1, &body("startup.once", json!("All")), |_| {}).await;
    assert_eq!(all.status, 422, "{all:?}");
    let message = "fx-probe.startup.once is a startup of the app as a whole: remove instances";
    assert_eq!(all.body["message"], message);

    let tenant = "prod/shop/tenant@1";
    let done = app.call(tenant, 1, &body("startup.tenant", json!("All")), |_| {}).await;
    assert_eq!((done.status, &done.body), (200, &json!({"data": {"done": ["", "north", "south"]}})));
    let events = noted("startup.tenant", tenant);
    assert_eq!(begun(&events, tenant), counts([("", 1), ("north", 1), ("south", 1)]));
    assert!(events.iter().all(|event| event.more["inTransaction"] == true), "{events:?}");
}

/// Vona itself would wait for it.
async fn without_redis_nothing_runs(app: &App) {
    app.redis.kill();
    let body = json!({"module": "fx-probe", "name": "schedule.report", "instances": "Default"});
    let id = "prod/shop/report@away";
    let answer = tokio::time::timeout(SOON, app.call(id, 1, &body, |_| {})).await;
    assert_eq!(answer.map(|answer| answer.status), Ok(503));
    assert_eq!(begun(&app.reports(), id), counts([]));
}
