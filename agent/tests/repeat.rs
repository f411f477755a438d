//! Schedules that the guard puts back, as the `BullMQ` of `CabloyJS` 4 itself adds, lists and runs them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use cabloy_agent::guard::memory::Memory;
use cabloy_agent::guard::repeat::{Found, Job};
use cabloy_agent::guard::store::{Keys, PutBack, Store};
use cabloy_crds::files::Guard;
use cabloy_tests::npm;
use cabloy_tests::process::{bound, spawn};
use cabloy_tests::redis::Redis;
use cabloy_tests::require;
use jiff::Timestamp;
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};

const QUEUE: &str = "-||a-base||schedule";
const PREFIX: &str = "bull_shop:queue:-||a-base||schedule:";

/// `BullMQ` and the guard at one queue.
struct Bench {
    server: Redis,
    connection: MultiplexedConnection,
    store: Store,
}

impl Bench {
    async fn new() -> Self {
        let server = Redis::start();
        let client = redis::Client::open(format!("redis://{}/", server.addr())).unwrap();
        let connection = client.get_multiplexed_async_connection().await.unwrap();
        Self { server, connection, store: store(7) }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut node = bound("node");
        node.arg(npm::fixture("cabloyjs").join("repeat.mjs")).arg(self.server.addr().port().to_string()).args(args);
        node.env("NODE_PATH", npm::modules("cabloyjs"));
        node
    }

    /// Has `BullMQ` do something.
    fn bullmq(&self, args: &[&str]) -> Value {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What the guard finds of the schedules that are there.
    async fn find(&mut self) -> Vec<Found> {
        let seen = self.store.look(&mut self.connection, &Memory::default(), None).await.unwrap();
        seen.queues[QUEUE].found.clone()
    }

    async fn put_back(&mut self, found: &Found, job: &Job) -> PutBack {
        let now = Timestamp::now().as_millisecond();
        self.store.put_back(&mut self.connection, QUEUE, &found.key, &found.template, job, now).await.unwrap()
    }

    fn job(&self, id: &str) -> BTreeMap<String, String> {
        self.server.run(&["HGETALL", &format!("{PREFIX}{id}")])
    }

    fn delayed(&self) -> Vec<String> {
        self.server.run(&["ZRANGE", &format!("{PREFIX}delayed"), "0", "-1"])
    }
}

fn store(token: u64) -> Store {
    let guard: Guard = serde_json::from_value(json!({
        "role": "queue", "prefix": "bull_shop:queue", "queue": "||a-base||schedule",
        "startups": {"role": "cache", "keys": "cache_shop:*:a-base:startupDebounce:*"},
    }))
    .unwrap();
    Store::new(Keys::new(&guard), token)
}

fn next_job(found: &Found) -> Job {
    let now = Timestamp::now().as_millisecond();
    found.template.job(found.template.next_after(now).unwrap(), now).unwrap()
}

/// A worker of `BullMQ`, and what it does.
struct Worker(Child);

impl Worker {
    fn start(bench: &Bench) -> (Self, impl Iterator<Item = Value> + use<>) {
        let mut command = bench.command(&["work"]);
        command.stdout(Stdio::piped());
        let mut process = spawn(command).unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        (Self(process), output.lines().map_while(Result::ok).map(|line| serde_json::from_str(&line).unwrap()))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail only for a process that has ended already.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_back_is_as_bullmq_adds_it() {
    require!(npm::found());
    let mut bench = Bench::new().await;
    for repeat in [r#"{"every":3600000}"#, r#"{"cron":"0 3 * * *","tz":"Asia/Shanghai"}"#] {
        let id = bench.bullmq(&["add", ".shop.nightly", repeat]);
        let (id, listed) = (id.as_str().unwrap(), bench.bullmq(&["list"]));
        let theirs = bench.job(id);
        let found = bench.find().await.pop().unwrap();
        bench.bullmq(&["remove", &found.key]);
        assert_eq!((bench.bullmq(&["list"]), bench.delayed()), (json!([]), vec![]));

        let job = next_job(&found);
        assert_eq!(job.id, id, "the tick that BullMQ would have taken");
        assert_eq!(bench.put_back(&found, &job).await, PutBack::Done);
        assert_eq!((bench.bullmq(&["list"]), bench.delayed()), (listed, vec![id.to_owned()]));
        let ours = bench.job(id);
        let essence = |job: &BTreeMap<String, String>| {
            let mut job = job.clone();
            let mut options: Value = serde_json::from_str(&job.remove("opts").unwrap()).unwrap();
            for own in ["delay", "timestamp"] {
                options.as_object_mut().unwrap().remove(own);
                job.remove(own);
            }
            // It is the next of its kind.
            options["repeat"].as_object_mut().unwrap().remove("count");
            (job, options)
        };
        assert_eq!(essence(&ours), essence(&theirs), "{repeat}");
        // What BullMQ adds is what is there.
        assert_eq!(bench.bullmq(&["add", ".shop.nightly", repeat]), json!(id));
        assert_eq!(bench.delayed(), [id]);
        bench.bullmq(&["remove", &found.key]);
        assert_eq!(bench.delayed(), [""; 0], "BullMQ removes it as its own");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_worker_runs_it_at_its_tick_and_goes_on() {
    require!(npm::found());
    let mut bench = Bench::new().await;
    bench.bullmq(&["add", ".shop.often", r#"{"every":1000}"#]);
    let found = bench.find().await.pop().unwrap();
    bench.bullmq(&["remove", &found.key]);
    let (_worker, mut done) = Worker::start(&bench);
    // Only an idle worker waits so.
    cabloy_tests::wait::until("the worker to wait", std::time::Duration::from_secs(30), async || {
        let clients: String = bench.server.run(&["CLIENT", "LIST"]);
        clients.contains("cmd=brpoplpush")
    })
    .await;
    let now = Timestamp::now().as_millisecond();
    let job = found.template.job(found.template.next_after(now + 1_000).unwrap(), now).unwrap();
    assert_eq!(bench.put_back(&found, &job).await, PutBack::Done);
    let first = done.next().unwrap();
    assert_eq!((&first["job"], &first["data"]), (&json!(job.id), &json!({"about": ".shop.often"})));
    assert!(first["at"].as_i64().unwrap() >= job.tick, "{first}");
    let ids: Vec<_> = done.take(2).map(|it| it["job"].as_str().unwrap().to_owned()).collect();
    let after = |ticks: i64| format!("{}{}", found.template.ids, job.tick + ticks * 1_000);
    assert_eq!(ids, [after(1), after(2)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_put_back_once_and_only_by_the_newest_leader() {
    require!(npm::found());
    let mut bench = Bench::new().await;
    bench.bullmq(&["add", ".shop.nightly", r#"{"every":3600000}"#]);
    let found = bench.find().await.pop().unwrap();
    let job = next_job(&found);
    assert_eq!(bench.put_back(&found, &job).await, PutBack::Present);
    bench.bullmq(&["remove", &found.key]);
    assert_eq!(bench.put_back(&found, &job).await, PutBack::Done);
    assert_eq!(bench.put_back(&found, &job).await, PutBack::Present);

    // The job is there though the schedule is not: it has been run, or runs.
    let _: i64 = bench.server.run(&["ZREM", &format!("{PREFIX}repeat"), &found.key]);
    assert_eq!(bench.put_back(&found, &job).await, PutBack::Taken);
    let later = found.template.job(found.template.next_after(job.tick).unwrap(), job.tick).unwrap();
    bench.store = store(6);
    assert_eq!(bench.put_back(&found, &later).await, PutBack::Fenced(7));
    bench.store = store(8);
    assert_eq!(bench.put_back(&found, &later).await, PutBack::Done);

    bench.bullmq(&["remove", &found.key]);
    let _: i64 = bench.server.run(&["DEL", &format!("{PREFIX}delayed")]);
    let _: String = bench.server.run(&["SET", &format!("{PREFIX}delayed"), "x"]);
    let no_queue = PutBack::NoQueue { key: format!("{PREFIX}delayed"), found: "string".into() };
    let events: i64 = bench.server.run(&["XLEN", &format!("{PREFIX}events")]);
    assert_eq!(bench.put_back(&found, &later).await, no_queue);
    assert_eq!(bench.server.run::<i64>(&["XLEN", &format!("{PREFIX}events")]), events, "nothing was changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_jobs_are_removed_but_for_so_many() {
    require!(npm::found());
    let mut bench = Bench::new().await;
    bench.bullmq(&["add", ".shop.often", r#"{"every":200}"#]);
    bench.find().await;
    let (worker, done) = Worker::start(&bench);
    let ids: Vec<_> = done.take(6).map(|it| it["job"].as_str().unwrap().to_owned()).collect();
    drop(worker);
    let completed = || -> Vec<String> { bench.server.run(&["ZRANGE", &format!("{PREFIX}completed"), "0", "-1"]) };
    let before = completed();
    assert!(before.len() >= 5, "{before:?}");
    let removed = bench.store.trim(&mut bench.connection, "completed", 2).await.unwrap();
    assert_eq!(usize::try_from(removed), Ok(before.len() - 2));
    assert_eq!(completed(), before[before.len() - 2..]);
    assert!(bench.job(&ids[0]).is_empty() && !bench.job(before.last().unwrap()).is_empty());
    assert_eq!(bench.store.trim(&mut bench.connection, "completed", 2).await.unwrap(), 0);
    assert_eq!(bench.store.trim(&mut bench.connection, "failed", 0).await.unwrap(), 0);
}
