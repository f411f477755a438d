//! Jobs and broadcasts of the agent, taken by the queues and broadcasts of `CabloyJS` 4 and Vona themselves, with the BullMQ
//! and the Redis client of each.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, Instant};

use cabloy_agent::app::Call;
use cabloy_agent::files::{self, Loaded};
use cabloy_agent::roles::Roles;
use cabloy_agent::runs::{Outcome, OutcomeKind};
use cabloy_agent::signing::Signing;
use cabloy_agent::target::{self, Ways};
use cabloy_tests::npm;
use cabloy_tests::process::{bound, spawn};
use cabloy_tests::redis::{Redis, Version};
use cabloy_tests::require;
use jiff::Timestamp;
use redis::Value as RedisValue;
use serde_json::{Value, json};
use stage::{Agent, Answer, SOON, Stage, schedule};
use tempfile::TempDir;
use tokio::sync::watch;

/// `BullMQ`'s workers look for jobs this often where nothing wakes them.
const POLL: Duration = Duration::from_secs(5);

/// The run of most calls, and the id of its job.
const RUN: &str = "prod/shop/nightly@2026-11-23T03:00:00Z";
const ID: &str = "prod/shop/nightly@2026-11-23T03%3A00%3A00Z";

const GENERATIONS: [&str; 2] = ["v4", "vona"];

/// A process of the app, with its queues and broadcasts.
struct App {
    process: Child,
    input: ChildStdin,
    lines: watch::Receiver<Vec<Value>>,
}

impl App {
    async fn start(generation: &str, server: &Redis) -> Self {
        Self::start_with(generation, server, &[]).await
    }

    /// Also with other settings of its connection to Redis.
    async fn start_with(generation: &str, server: &Redis, settings: &[&str]) -> Self {
        let mut node = bound("node");
        node.arg(npm::fixture("cabloyjs").join("app.mjs")).args([generation, &server.addr().port().to_string()]);
        node.args(settings);
        node.env("NODE_PATH", npm::modules("cabloyjs")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = spawn(node).unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let (sender, lines) = watch::channel(Vec::new());
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                sender.send_modify(|lines: &mut Vec<Value>| lines.push(serde_json::from_str(&line).unwrap()));
            }
        });
        let app = Self { process, input, lines };
        app.until("it is ready", |line| line["ready"].is_string()).await;
        app
    }

    /// All it has said so far.
    fn said(&self) -> Vec<Value> {
        self.lines.borrow().clone()
    }

    /// What it has said, once there is such a line.
    async fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut lines = self.lines.clone();
        if let Ok(lines) = tokio::time::timeout(SOON, lines.wait_for(|lines| lines.iter().any(&wanted))).await {
            return lines.unwrap().clone();
        }
        panic!("waited {SOON:?} until {what}, and it said {:#?}", self.said())
    }

    async fn tell(&mut self, command: Value) -> Value {
        let answers = |lines: &[Value]| lines.iter().filter(|line| line.get("answer").is_some()).count();
        let before = answers(&self.said());
        writeln!(self.input, "{command}").unwrap();
        let mut lines = self.lines.clone();
        let said = tokio::time::timeout(SOON, lines.wait_for(|lines| answers(lines) > before)).await.unwrap().unwrap();
        let answer = said.iter().rfind(|line| line.get("answer").is_some()).unwrap();
        assert!(answer.get("error").is_none(), "{command}: {answer}");
        answer["answer"].clone()
    }

    /// The jobs that it began, in order.
    fn did(&self) -> Vec<String> {
        self.said().iter().filter_map(|line| line["did"].as_str().map(str::to_owned)).collect()
    }

    async fn until_completed(&self, id: &str) -> Vec<Value> {
        self.until(id, |line| line["event"] == "completed" && line["job"] == id).await
    }

    /// Has all jobs done that were added before.
    async fn settle(&mut self) {
        let last = format!("last-{}", self.said().len());
        self.tell(json!({ "add": ["last", { "jobId": last }] })).await;
        self.until_completed(&last).await;
    }
}

impl Drop for App {
    fn drop(&mut self) {
        // Both fail only for a process that has ended already.
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// What an agent has beside its election.
struct Sender {
    loaded: Loaded,
    roles: Roles,
    signing: watch::Receiver<Signing>,
    _dir: TempDir,
}

fn queue_of(generation: &str) -> Value {
    let (role, name) = match generation {
        "v4" => ("queue", "-||shop-report||render"),
        _ => ("default", "-||shop-report.queue.render"),
    };
    json!({ "queue": {
        "role": role, "prefix": "bull_shop:queue", "queue": name, "module": "shop-report", "queueName": "render",
        "subdomain": "", "data": {"pages": 2},
    } })
}

fn broadcast_of(generation: &str) -> Value {
    let role = if generation == "v4" { "broadcast" } else { "default" };
    json!({ "broadcast": {
        "role": role, "channel": "broadcast_shop:", "module": "shop-report", "broadcastName": "refresh",
        "subdomain": "", "data": {"pages": 2},
    } })
}

fn with(mut target: Value, kind: &str, fields: &Value) -> Value {
    target[kind].as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    target
}

fn client(server: &Redis) -> Value {
    json!({ "host": "127.0.0.1", "port": server.addr().port(), "db": 0 })
}

impl Sender {
    fn new(generation: &str, target: &Value, server: &Value) -> Self {
        let dir = TempDir::new().unwrap();
        let mut nightly = schedule("nightly", 60_000);
        nightly["target"] = target.clone();
        let file = json!({
            "cluster": "prod/shop",
            "app": {"name": "shop", "generation": generation, "port": 1, "health": {"tcp": {}}},
            "election": {"ttlMs": 10_000},
            "schedules": [nightly],
        });
        std::fs::write(dir.path().join("agent.json"), file.to_string()).unwrap();
        let (_, fields) = target.as_object().unwrap().iter().next().unwrap();
        for (role, client) in [("redlock", json!([server])), (fields["role"].as_str().unwrap(), server.clone())] {
            std::fs::create_dir_all(dir.path().join("redis").join(role)).unwrap();
            std::fs::write(dir.path().join("redis").join(role).join("client.json"), client.to_string()).unwrap();
        }
        let (loaded, _) = files::load(dir.path()).unwrap();
        Self { loaded, roles: Roles::default(), signing: watch::channel(Signing::default()).1, _dir: dir }
    }

    async fn call(&self) -> Outcome {
        self.attempt(1, "2026-11-23T03:00:00Z").await
    }

    async fn attempt(&self, attempt: u32, run: &str) -> Outcome {
        let ways = Ways { loaded: &self.loaded, roles: &self.roles, signing: &self.signing };
        let call = Call {
            cluster: "prod/shop".into(),
            kind: "schedule",
            name: "nightly".into(),
            run: run.into(),
            time: run.parse().unwrap(),
            token: Some(1),
            attempt,
            deadline: Timestamp::now(),
            asks: false,
            context: cabloy_agent::traces::Context { trace: 1, span: 1, sampled: false },
            target: self.loaded.file.schedules[0].target.clone(),
        };
        let called = target::call(&ways, &call, SOON).await.unwrap();
        assert_eq!(called.stale, None);
        called.outcome
    }

    async fn done(&self) {
        let outcome = self.call().await;
        assert_eq!(outcome.kind, OutcomeKind::Done, "{outcome:?}");
    }
}

/// What a job is in Redis, with its id and its times taken out.
fn stored(server: &Redis, queue: &str, id: &str) -> BTreeMap<String, Value> {
    let hash: BTreeMap<String, String> = server.run(&["HGETALL", &format!("{queue}:{id}")]);
    let value = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| json!(text));
    let without_id = |text: &str| text.replace(&id.replace('/', "\\/"), "ID").replace(id, "ID");
    let mut job: BTreeMap<_, _> = hash.iter().map(|(field, text)| (field.clone(), value(&without_id(text)))).collect();
    for field in ["timestamp", "processedOn", "finishedOn"] {
        assert!(job.remove(field).is_some_and(|time| time.is_u64()), "{field} of {hash:?}");
    }
    job
}

/// The events of a job, in order.
fn events(server: &Redis, queue: &str, id: &str) -> Vec<BTreeMap<String, String>> {
    let stream: Vec<(String, BTreeMap<String, String>)> = server.run(&["XRANGE", &format!("{queue}:events"), "-", "+"]);
    let ours = stream.into_iter().map(|(_, event)| event).filter(|event| event.get("jobId").is_some_and(|it| it == id));
    let without_id = |(field, text): (String, String)| (field, text.replace(id, "ID"));
    ours.map(|event| event.into_iter().map(without_id).collect()).collect()
}

fn queue_key(generation: &str) -> String {
    let target = queue_of(generation);
    format!("{}:{}", target["queue"]["prefix"].as_str().unwrap(), target["queue"]["queue"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_as_the_app_itself_adds_it() {
    for generation in GENERATIONS {
        let server = Redis::start();
        let mut app = App::start(generation, &server).await;
        let more = json!({
            "queueNameSub": "pdf", "jobName": "hourly",
            "options": {"attempts": 3, "backoff": {"type": "fixed", "delay": 10}, "removeOnFail": true},
        });
        let sender = Sender::new(generation, &with(queue_of(generation), "queue", &more), &client(&server));
        let before = Timestamp::now().as_millisecond();
        sender.done().await;
        app.until_completed(ID).await;
        let options = json!({
            "jobId": "theirs", "attempts": 3, "backoff": {"type": "fixed", "delay": 10}, "removeOnFail": true,
        });
        let info =
            json!({ "data": {"pages": 2}, "queueNameSub": "pdf", "jobName": "hourly", "jobOptions": options.clone() });
        app.tell(json!({ "push": info })).await;
        let said = app.until_completed("theirs").await;

        let queue = queue_key(generation);
        assert_eq!(stored(&server, &queue, ID), stored(&server, &queue, "theirs"), "{generation}");
        assert_eq!(events(&server, &queue, ID), events(&server, &queue, "theirs"), "{generation}");
        // What the app's own worker made of both.
        let did = |id: &str| {
            let mut done = said.iter().find(|line| line["did"] == id).unwrap().clone();
            done["did"] = json!("ID");
            done
        };
        assert_eq!(did(ID), did("theirs"));
        assert_eq!((&did(ID)["name"], &did(ID)["data"]), (&json!("hourly"), &json!({"pages": 2})));
        // And what it finds when it asks for the job.
        let job = app.tell(json!({ "job": ID })).await;
        assert_eq!((&job["id"], &job["name"]), (&json!(ID), &json!("hourly")));
        assert_eq!((&job["opts"]["jobId"], &job["opts"]["attempts"]), (&json!(ID), &json!(3)));
        assert_eq!(job["returnvalue"], json!({ "rendered": ID }));
        let added = job["timestamp"].as_i64().unwrap();
        assert!((before..=Timestamp::now().as_millisecond()).contains(&added), "{added}");

        // All that is there but what BullMQ has.
        let keys: BTreeSet<String> = server.run(&["KEYS", "*"]);
        let strange: Vec<_> = keys.iter().filter(|key| key.contains("cabloy-agent")).collect();
        assert_eq!(strange, [&format!("{queue}:cabloy-agent:{ID}")]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_worker_takes_it_at_once() {
    for generation in GENERATIONS {
        let server = Redis::start();
        let mut app = App::start(generation, &server).await;
        app.settle().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let began = Instant::now();
        let sender = Sender::new(generation, &queue_of(generation), &client(&server));
        sender.done().await;
        app.until_completed(ID).await;
        println!("{generation}: done after {:?}", began.elapsed());
        assert!(
            began.elapsed() < POLL / 2,
            "{generation}: it was found, and nothing told of it: {:?}",
            began.elapsed()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_done_once_whatever_its_attempts() {
    for (generation, removed) in [("v4", false), ("v4", true), ("vona", false), ("vona", true)] {
        let server = Redis::start();
        let mut apps = [App::start(generation, &server).await, App::start(generation, &server).await];
        let options = if removed { json!({ "removeOnComplete": true }) } else { json!({}) };
        let target = with(queue_of(generation), "queue", &json!({ "options": options }));
        // Two agents, each with attempts of its own.
        let senders = [0, 1].map(|_| Sender::new(generation, &target, &client(&server)));
        let attempt = |number: u32| senders[number as usize % 2].attempt(number, "2026-11-23T03:00:00Z");
        let outcomes = futures::future::join_all((1..=16).map(attempt)).await;
        assert!(outcomes.iter().all(|it| it.kind == OutcomeKind::Done), "{outcomes:?}");
        // Which of the two has it done, both hear.
        for app in &apps {
            app.until_completed(ID).await;
        }
        let kept = apps[0].tell(json!({ "job": ID })).await;
        assert_eq!(kept.is_null(), removed);
        // It is known still, when it is done.
        assert_eq!(attempt(17).await.kind, OutcomeKind::Done);
        assert_eq!(senders[0].attempt(1, "2026-11-23T04:00:00Z").await.kind, OutcomeKind::Done);
        for app in &mut apps {
            app.settle().await;
        }
        let did: Vec<_> = apps.iter().flat_map(App::did).filter(|id| !id.starts_with("last-")).collect();
        let times = |id: &str| did.iter().filter(|it| *it == id).count();
        assert_eq!((times(ID), times(&ID.replace("T03", "T04"))), (1, 1), "{generation}, removed {removed}: {did:?}");
        let known: i64 = server.run(&["PTTL", &format!("{}:cabloy-agent:{ID}", queue_key(generation))]);
        assert!(known > 23 * 3_600_000, "{known}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_paused_queue_it_waits() {
    for generation in GENERATIONS {
        let server = Redis::start();
        let mut app = App::start(generation, &server).await;
        app.settle().await;
        app.tell(json!({ "pause": null })).await;
        let sender = Sender::new(generation, &queue_of(generation), &client(&server));
        sender.done().await;
        let counts = app.tell(json!({ "counts": null })).await;
        assert_eq!((&counts["paused"], &counts["active"]), (&json!(1), &json!(0)), "{generation}: {counts}");
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!app.did().contains(&ID.to_owned()), "{generation}: {:?}", app.did());
        let began = Instant::now();
        app.tell(json!({ "resume": null })).await;
        app.until_completed(ID).await;
        assert!(began.elapsed() < POLL / 2, "{generation}: {:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_delayed_and_prioritised_jobs_it_comes_in_turn() {
    for generation in GENERATIONS {
        let server = Redis::start();
        let mut app = App::start(generation, &server).await;
        app.tell(json!({ "add": ["later", { "jobId": "later", "delay": 1_500 }] })).await;
        let sender = Sender::new(generation, &queue_of(generation), &client(&server));
        sender.done().await;
        app.until_completed(ID).await;
        assert_eq!(app.did(), [ID], "{generation}: the delayed one is not due yet");
        app.until_completed("later").await;

        app.tell(json!({ "pause": null })).await;
        for (id, options) in
            [("low", json!({ "priority": 9 })), ("plain", json!({})), ("high", json!({ "priority": 1 }))]
        {
            let mut options = options;
            options["jobId"] = json!(id);
            app.tell(json!({ "add": [id, options] })).await;
        }
        let second = "2026-11-23T04:00:00Z";
        assert_eq!(sender.attempt(1, second).await.kind, OutcomeKind::Done);
        app.tell(json!({ "resume": null })).await;
        let ours = ID.replace("T03", "T04");
        for id in ["low", "plain", "high", &ours] {
            app.until_completed(id).await;
        }
        let did = app.did();
        let place = |id: &str| did.iter().position(|it| it == id).unwrap();
        assert!(place("plain") < place(&ours), "{generation}: jobs without priority go in order: {did:?}");
        if generation == "vona" {
            assert!(place(&ours) < place("high") && place("high") < place("low"), "{did:?}");
        }
        assert_eq!(did.iter().collect::<BTreeSet<_>>().len(), did.len(), "{generation}: one ran twice: {did:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_fails_is_tried_again_by_the_worker() {
    for generation in GENERATIONS {
        let server = Redis::start();
        let app = App::start(generation, &server).await;
        let options =
            json!({ "data": {"fails": 2}, "options": {"attempts": 3, "backoff": {"type": "fixed", "delay": 10}} });
        let sender = Sender::new(generation, &with(queue_of(generation), "queue", &options), &client(&server));
        sender.done().await;
        app.until_completed(ID).await;
        assert_eq!(app.did(), [ID; 3], "{generation}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_done_on_older_and_newer_servers() {
    for version in [Version::V6_2, Version::V8_2, Version::Valkey9_1] {
        let program = require!(version.program());
        for generation in GENERATIONS {
            let server = Redis::builder().binary(&program).start();
            let mut app = App::start(generation, &server).await;
            let sender = Sender::new(generation, &queue_of(generation), &client(&server));
            sender.done().await;
            app.until_completed(ID).await;
            sender.done().await;
            app.settle().await;
            assert_eq!(app.did().iter().filter(|id| *id == ID).count(), 1, "{generation}");
        }
    }
}

#[tokio::test]
async fn a_queue_that_has_begun_as_many_as_it_may_wakes_nobody() {
    let server = Redis::start();
    let key = |name: &str| format!("{}:{name}", queue_key("vona"));
    let _: RedisValue = server.run(&["HSET", &key("meta"), "concurrency", "1"]);
    let _: RedisValue = server.run(&["LPUSH", &key("active"), "one"]);
    let sender = Sender::new("vona", &queue_of("vona"), &client(&server));
    let woken = || server.run::<bool>(&["EXISTS", &key("marker")]);
    sender.done().await;
    assert!(!woken());
    let _: RedisValue = server.run(&["LPOP", &key("active")]);
    assert_eq!(sender.attempt(1, "2026-11-23T04:00:00Z").await.kind, OutcomeKind::Done);
    assert!(woken());
    let waiting: Vec<String> = server.run(&["LRANGE", &key("wait"), "0", "-1"]);
    assert_eq!(waiting, [ID.replace("T03", "T04"), ID.to_owned()]);
}

#[tokio::test]
async fn what_is_no_queue_is_left_as_it_is() {
    for (key, command) in [("wait", ["SET", "text"]), ("events", ["SADD", "set"]), ("meta", ["RPUSH", "list"])] {
        let server = Redis::start();
        let key = format!("{}:{key}", queue_key("vona"));
        let _: RedisValue = server.run(&[command[0], &key, command[1]]);
        let sender = Sender::new("vona", &queue_of("vona"), &client(&server));
        let outcome = sender.call().await;
        assert_eq!((outcome.kind, &*outcome.reason), (OutcomeKind::Refused, "NoQueue"));
        assert!(outcome.message.contains(&key), "{}", outcome.message);
        assert_eq!(server.run::<Vec<String>>(&["KEYS", "*"]), [key]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_begins_nothing() {
    for target in [queue_of("v4"), broadcast_of("v4")] {
        let server = Redis::builder().durable().start();
        let _app = App::start("v4", &server).await;
        let sender = Sender::new("v4", &target, &client(&server));
        sender.done().await;
        server.pause();
        let outcome = sender.attempt(1, "2026-11-23T04:00:00Z").await;
        assert_eq!((outcome.kind, &*outcome.reason), (OutcomeKind::NotBegun, "NoConnection"), "{outcome:?}");
        // Those that come while one tries to connect do not each try for themselves.
        let began = Instant::now();
        let many = (0..20).map(|_| sender.attempt(1, "2026-11-23T04:00:00Z"));
        let outcomes = futures::future::join_all(many).await;
        assert!(outcomes.iter().all(|it| it.kind == OutcomeKind::NotBegun), "{outcomes:?}");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        server.resume();
        assert_eq!(sender.attempt(1, "2026-11-23T04:00:00Z").await.kind, OutcomeKind::Done);
        server.kill();
        let outcome = sender.attempt(1, "2026-11-23T05:00:00Z").await;
        assert_eq!((outcome.kind, outcome.retry_after_ms), (OutcomeKind::NotBegun, Some(500)), "{outcome:?}");
    }
}

#[tokio::test]
async fn an_error_of_the_server_is_a_failure() {
    let dir = TempDir::new().unwrap();
    let secret = dir.path().join("password");
    std::fs::write(&secret, "not-s3cret\n").unwrap();
    let server = Redis::builder().password("s3cret").start();
    let with_password = |server: &Redis| {
        let mut client = client(server);
        client["password"] = json!({ "$file": secret });
        client
    };
    for target in [queue_of("v4"), broadcast_of("v4")] {
        let sender = Sender::new("v4", &target, &with_password(&server));
        let outcome = sender.call().await;
        assert_eq!((outcome.kind, &*outcome.reason), (OutcomeKind::Failed, "WrongPassword"));
        assert!(!outcome.message.contains("s3cret"), "{}", outcome.message);
    }
    std::fs::write(&secret, "s3cret\n").unwrap();
    let sender = Sender::new("v4", &queue_of("v4"), &with_password(&server));
    sender.done().await;
    let _: RedisValue = server.run(&["REPLICAOF", "127.0.0.1", "1"]);
    let outcome = sender.attempt(1, "2026-11-23T04:00:00Z").await;
    assert_eq!((outcome.kind, &*outcome.reason), (OutcomeKind::Failed, "ReadOnlyMaster"), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broadcast_is_heard_as_the_apps_own() {
    for generation in GENERATIONS {
        let server = Redis::start();
        let sender = Sender::new(generation, &broadcast_of(generation), &client(&server));
        let outcome = sender.call().await;
        assert_eq!((outcome.kind, &*outcome.reason), (OutcomeKind::Failed, "NobodyListens"));
        assert!(outcome.message.contains("broadcast_shop:"), "{}", outcome.message);

        let mut apps = [App::start(generation, &server).await, App::start(generation, &server).await];
        sender.done().await;
        apps[0].tell(json!({ "emit": {"pages": 2} })).await;
        for app in &apps {
            let two = |what: &'static str| {
                let mut lines = app.lines.clone();
                async move {
                    let of = |lines: &[Value]| -> Vec<Value> {
                        lines.iter().filter_map(|line| line.get(what)).cloned().collect()
                    };
                    let said = tokio::time::timeout(SOON, lines.wait_for(|lines| of(lines).len() == 2)).await;
                    of(&said.unwrap_or_else(|_| panic!("two of {what}")).unwrap())
                }
            };
            let texts: Vec<_> = two("text").await.iter().map(|text| text.as_str().unwrap().to_owned()).collect();
            assert_eq!(texts[0], texts[1].replace("one-of-the-app", RUN), "{generation}: to the letter");
            let heard = two("heard").await;
            let own = if generation == "v4" { "sameAsCaller" } else { "isEmitter" };
            assert_ne!(heard[0].get(own), Some(&json!(true)), "{generation}: no process takes it for its own");
            assert_eq!(heard[0]["data"], json!({"pages": 2}));
            let place = if generation == "v4" { "subdomain" } else { "instanceName" };
            assert_eq!(heard[0][place], json!(""));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_tick_of_a_schedule_is_one_job_though_the_leader_is_killed() {
    const PERIOD_MS: i64 = 200;
    let dir = TempDir::new().unwrap();
    let secret = dir.path().join("password");
    std::fs::write(&secret, "s3cret\n").unwrap();
    let queues = Redis::builder().password("s3cret").start();
    let mut role = client(&queues);
    role["password"] = json!({ "$file": secret });
    role["db"] = json!(3);
    let stage = Stage::new(3);
    stage.files.role("queue", &role);
    stage.files.edit(|file| {
        let mut nightly = schedule("nightly", PERIOD_MS);
        nightly["target"] = queue_of("v4");
        nightly["onUnknown"] = json!("Retry");
        nightly["retry"]["limit"] = json!(1);
        nightly["timeoutMs"] = json!(2_000);
        file["schedules"] = json!([nightly]);
        file["app"]["generation"] = json!("v4");
        file["election"]["ttlMs"] = json!(1_500);
    });
    let mut agents: Vec<Agent> = ["a", "b", "c"].map(|name| stage.agent(name).start()).into();
    let app = App::start_with("v4", &queues, &["password=s3cret", "db=3"]).await;
    let did = async |count: usize| {
        let mut lines = app.lines.clone();
        let enough = |lines: &Vec<Value>| lines.iter().filter(|line| line["did"].is_string()).count() >= count;
        tokio::time::timeout(SOON, lines.wait_for(enough)).await.unwrap_or_else(|_| panic!("{count} jobs")).unwrap();
    };
    did(10).await;
    let name = stage::leader(&agents).await.name().to_owned();
    let index = agents.iter().position(|agent| agent.name() == name).unwrap();
    agents.remove(index).kill();
    did(30).await;
    let jobs = app.did();
    let ticks: BTreeSet<i64> = jobs
        .iter()
        .map(|id| {
            let tick = id.strip_prefix("prod/shop/nightly@").unwrap().replace("%3A", ":");
            tick.parse::<Timestamp>().unwrap().as_millisecond()
        })
        .collect();
    assert_eq!(ticks.len(), jobs.len(), "one was done twice: {jobs:?}");
    let span = (ticks.last().unwrap() - ticks.first().unwrap()) / PERIOD_MS + 1;
    let skipped = stage::leader(&agents).await.status().await.schedules[0].skipped;
    let absent = u64::try_from(span).unwrap() - ticks.len() as u64;
    assert!(absent <= skipped, "{absent} of {span} ticks are missing, and {skipped} were skipped: {jobs:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_are_added_hide_no_app_that_fails() {
    let queues = Redis::start();
    let stage = Stage::new(1);
    stage.files.role("queue", &client(&queues));
    stage.files.edit(|file| {
        let mut jobs = schedule("jobs", 100);
        jobs["target"] = queue_of("v4");
        file["schedules"] = json!([schedule("a", 300), jobs]);
        file["app"]["generation"] = json!("v4");
    });
    let agents = [stage.agent("a").start(), stage.agent("b").start()];
    let name = stage::leader(&agents).await.name().to_owned();
    stage.calls_until("a tick", |calls| !calls.is_empty()).await;
    let other = agents.iter().find(|agent| agent.name() != name).unwrap();
    other.until("it is well", |status| status.app.healthy).await;
    stage.answer_of(&name, "/a", Answer::Status(500));
    stage.calls_until("the other calls", |calls| calls.iter().any(|call| call.agent != name)).await;
    let added: Vec<String> = queues.run(&["LRANGE", &format!("{}:wait", queue_key("v4")), "0", "-1"]);
    assert_eq!(added.iter().collect::<BTreeSet<_>>().len(), added.len());
}
