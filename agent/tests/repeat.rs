//! Schedules that the guard puts back, and those that are taken over, as the `BullMQ` of `CabloyJS` 4, and that of Vona, itself adds,
//! lists and runs them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cabloy_agent::guard::dialect::Dialect;
use cabloy_agent::guard::memory::{Memory, Seen};
use cabloy_agent::guard::repeat::{Found, Job};
use cabloy_agent::guard::store::{Keys, PutBack, Store};
use cabloy_agent::schedule::{Handover, Rest};
use cabloy_agent::takeover;
use cabloy_agent::takeover::store::{Decided, Release};
use cabloy_crds::files::Guard;
use cabloy_crds::vocabulary::Generation;
use cabloy_tests::npm;
use cabloy_tests::process::{bound, signal, spawn};
use cabloy_tests::redis::Redis;
use cabloy_tests::{require, wait};
use jiff::{SignedDuration, Timestamp};
use redis::aio::MultiplexedConnection;
use rustix::process::Signal;
use serde_json::{Value, json};

/// How an app of each generation keeps its schedules.
const V4: Kind = Kind { generation: Generation::V4, name: "v4", queue: "-||a-base||schedule", waits: "cmd=brpoplpush" };
const VONA: Kind =
    Kind { generation: Generation::Vona, name: "vona", queue: "-||a-schedule.queue.schedule", waits: "cmd=bzpopmin" };

#[derive(Clone, Copy)]
struct Kind {
    generation: Generation,
    name: &'static str,
    queue: &'static str,
    /// What an idle worker does.
    waits: &'static str,
}

impl Kind {
    fn dialect(self) -> Dialect {
        Dialect::of(self.generation)
    }

    fn store(self, token: u64) -> Store {
        let guard: Guard = serde_json::from_value(json!({
            "role": "queue", "prefix": "bull_shop:queue", "queue": &self.queue[1..],
            "startups": {"role": "cache", "keys": "cache_shop:*:a-base:startupDebounce:*"},
        }))
        .unwrap();
        Store::new(Keys::new(&guard, self.generation), token)
    }

    fn next_job(self, found: &Found) -> Job {
        let now = Timestamp::now().as_millisecond();
        found.template.job(self.dialect(), found.template.next_after(now, None).unwrap(), now).unwrap()
    }
}

/// `BullMQ` and the guard at one queue.
struct Bench {
    kind: Kind,
    server: Redis,
    connection: MultiplexedConnection,
    store: Store,
}

impl Bench {
    async fn new(kind: Kind) -> Self {
        let server = Redis::start();
        let client = redis::Client::open(format!("redis://{}/", server.addr())).unwrap();
        let connection = client.get_multiplexed_async_connection().await.unwrap();
        Self { kind, server, connection, store: kind.store(7) }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut node = bound("node");
        node.arg(npm::fixture("cabloyjs").join("repeat.mjs"))
            .arg(self.kind.name)
            .arg(self.server.addr().port().to_string())
            .args(args);
        node.env("NODE_PATH", npm::modules("cabloyjs"));
        node
    }

    /// Has `BullMQ` do something.
    fn bullmq(&self, args: &[&str]) -> Value {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What the guard sees of the queue, all that was added since it last looked so with it.
    async fn look(&mut self) -> Seen {
        let mut seen = self.store.look(&mut self.connection, &Memory::default(), Some(0)).await.unwrap();
        seen.queues.remove(self.kind.queue).unwrap()
    }

    /// The job that was last added.
    async fn added(&mut self) -> Found {
        self.look().await.added.pop().unwrap().found.unwrap()
    }

    /// What the guard finds of the schedules that are there.
    async fn find(&mut self) -> Vec<Found> {
        let seen = self.store.look(&mut self.connection, &Memory::default(), None).await.unwrap();
        seen.queues[self.kind.queue].found.clone()
    }

    async fn put_back(&mut self, found: &Found, job: &Job) -> PutBack {
        let now = Timestamp::now().as_millisecond();
        self.store.put_back(&mut self.connection, self.kind.queue, &found.key, &found.template, job, now).await.unwrap()
    }

    fn key(&self, name: &str) -> String {
        format!("bull_shop:queue:{}:{name}", self.kind.queue)
    }

    /// A job, or another hash.
    fn job(&self, id: &str) -> BTreeMap<String, String> {
        self.server.run(&["HGETALL", &self.key(id)])
    }

    fn delayed(&self) -> Vec<String> {
        self.server.run(&["ZRANGE", &self.key("delayed"), "0", "-1"])
    }

    /// Waits until a worker has nothing to do: only such a one waits so.
    async fn until_idle(&self) {
        wait::until("the worker to wait", Duration::from_mins(1), async || {
            let clients: String = self.server.run(&["CLIENT", "LIST"]);
            clients.contains(self.kind.waits)
        })
        .await;
    }
}

/// A worker of `BullMQ`, and what it does.
struct Worker(Child);

impl Worker {
    fn start(bench: &Bench) -> (Self, impl Iterator<Item = Value> + use<>) {
        Self::at_work(bench, &["0"])
    }

    /// One that takes so many milliseconds for each job, and may have a name.
    fn at_work(bench: &Bench, args: &[&str]) -> (Self, impl Iterator<Item = Value> + use<>) {
        let mut command = bench.command(&[&["work"], args].concat());
        command.stdout(Stdio::piped());
        let mut process = spawn(command).unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        (Self(process), output.lines().map_while(Result::ok).map(|line| serde_json::from_str(&line).unwrap()))
    }
}

impl Worker {
    /// Has it end what it has begun, and take no more.
    fn end(mut self) {
        signal(self.0.id(), Signal::TERM);
        self.0.wait().unwrap();
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
    let mut bench = Bench::new(V4).await;
    for repeat in [r#"{"every":3600000}"#, r#"{"cron":"0 3 * * *","tz":"Asia/Shanghai"}"#] {
        let id = bench.bullmq(&["add", ".shop.nightly", repeat]);
        let (id, listed) = (id.as_str().unwrap(), bench.bullmq(&["list"]));
        let theirs = bench.job(id);
        let found = bench.find().await.pop().unwrap();
        bench.bullmq(&["remove", &found.key]);
        assert_eq!((bench.bullmq(&["list"]), bench.delayed()), (json!([]), vec![]));

        let job = bench.kind.next_job(&found);
        assert_eq!(job.id, id, "the tick that BullMQ would have taken");
        assert_eq!(bench.put_back(&found, &job).await, PutBack::Done);
        assert_eq!((bench.bullmq(&["list"]), bench.delayed()), (listed, vec![id.to_owned()]));
        let ours = bench.job(id);
        assert_eq!(essence(&ours), essence(&theirs), "{repeat}");
        // What BullMQ adds is what is there.
        assert_eq!(bench.bullmq(&["add", ".shop.nightly", repeat]), json!(id));
        assert_eq!(bench.delayed(), [id]);
        bench.bullmq(&["remove", &found.key]);
        assert_eq!(bench.delayed(), [""; 0], "BullMQ removes it as its own");
    }
}

/// A job or a schedule, less what is of the moment that it was made at.
fn essence(hash: &BTreeMap<String, String>) -> (BTreeMap<String, String>, Value) {
    let mut hash = hash.clone();
    let mut options: Value = hash.remove("opts").map_or(Value::Null, |text| serde_json::from_str(&text).unwrap());
    for own in ["delay", "timestamp", "ic"] {
        hash.remove(own);
        options.as_object_mut().unwrap().remove(own);
    }
    options["repeat"].as_object_mut().map(|repeat| repeat.remove("count"));
    (hash, options)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_back_is_as_the_bullmq_of_vona_adds_it() {
    require!(npm::found());
    let mut bench = Bench::new(VONA).await;
    let name = ".shop.schedule.nightly";
    for repeat in [
        r#"{"every":3600000}"#,
        r#"{"pattern":"0 3 * * *","tz":"Asia/Shanghai"}"#,
        r#"{"pattern":"0 3 * * *","limit":5,"endDate":"2100-01-01T00:00:00.000Z"}"#,
    ] {
        let id = bench.bullmq(&["add", name, repeat]);
        let (id, listed) = (id.as_str().unwrap(), bench.bullmq(&["list"]));
        let (theirs, schedule) = (bench.job(id), bench.job(&format!("repeat:{name}")));
        let seen = bench.look().await;
        let found = seen.added.last().unwrap().found.clone().unwrap();
        let tick = id.rsplit_once(':').unwrap().1.parse().unwrap();
        assert_eq!(seen.schedules.get(&found.key), Some(&tick), "{repeat}: {:?}", seen.schedules);
        bench.bullmq(&["remove", name]);
        assert_eq!(bench.bullmq(&["list"]), json!([]));

        // An `every` has begun at once, and that job is still there.
        let now = Timestamp::now().as_millisecond();
        let next = if tick > now { tick } else { found.template.next_after(now, Some(tick)).unwrap() };
        let job = found.template.job(bench.kind.dialect(), next, now).unwrap();
        assert_eq!(bench.put_back(&found, &job).await, PutBack::Done);
        assert_eq!(bench.delayed(), std::slice::from_ref(&job.id));
        assert_eq!(essence(&bench.job(&format!("repeat:{name}"))), essence(&schedule), "{repeat}");
        let mut wanted = essence(&theirs);
        wanted.1["jobId"] = json!(job.id);
        if tick > now {
            assert_eq!(job.id, id, "the tick that BullMQ would have taken");
        }
        assert_eq!(essence(&bench.job(&job.id)), wanted, "{repeat}");
        let mut listed = listed;
        listed[0]["next"] = json!(next);
        listed[0]["iterationCount"] = json!(2);
        assert_eq!(bench.bullmq(&["list"]), listed);
        let marker: Vec<String> = bench.server.run(&["ZRANGE", &bench.key("marker"), "0", "-1", "WITHSCORES"]);
        assert!(marker.ends_with(&["1".into(), next.to_string()]), "{marker:?}");

        bench.bullmq(&["remove", name]);
        assert_eq!(bench.delayed(), [""; 0], "BullMQ removes it as its own");
        let _: i64 = bench.server.run(&["DEL", &bench.key("wait")]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_is_replaced() {
    require!(npm::found());
    let mut bench = Bench::new(VONA).await;
    let name = ".shop.schedule.nightly";
    // Both have the same next tick, and so the same id of its job.
    let [wanted, other] = [r#"{"pattern":"0 3 1 1 *"}"#, r#"{"pattern":"0 3 1 1 *","tz":"UTC"}"#];
    bench.bullmq(&["add", name, wanted]);
    let found = bench.find().await.pop().unwrap();
    let job = bench.kind.next_job(&found);
    assert_eq!(bench.put_back(&found, &job).await, PutBack::Present);
    bench.bullmq(&["add", name, other]);
    assert_ne!(bench.find().await.pop().unwrap().key, found.key);
    assert_eq!(bench.put_back(&found, &job).await, PutBack::Done);
    assert_eq!(bench.find().await.pop().unwrap().key, found.key);
    assert_eq!(bench.delayed(), [job.id]);
    assert!(!bench.job(&format!("repeat:{name}")).contains_key("tz"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_worker_runs_it_at_its_tick_and_goes_on() {
    require!(npm::found());
    for (kind, name) in [(V4, ".shop.often"), (VONA, ".shop.schedule.often")] {
        let mut bench = Bench::new(kind).await;
        bench.bullmq(&["add", name, r#"{"every":1000}"#]);
        let found = bench.added().await;
        bench.bullmq(&["remove", kind.dialect().member(&found.key)]);
        // That of Vona has begun at once; in the list of v4 there is just a mark.
        let waiting: Vec<String> = bench.server.run(&["LRANGE", &bench.key("wait"), "0", "-1"]);
        let begun = waiting.iter().filter(|id| id.starts_with("repeat:")).count();
        let (_worker, done) = Worker::start(&bench);
        let mut done = done.skip(begun);
        bench.until_idle().await;
        let now = Timestamp::now().as_millisecond();
        let tick = found.template.next_after(now + 1_000, None).unwrap();
        let job = found.template.job(kind.dialect(), tick, now).unwrap();
        assert_eq!(bench.put_back(&found, &job).await, PutBack::Done);
        let first = done.next().unwrap();
        assert_eq!((&first["job"], &first["data"]), (&json!(job.id), &json!({"about": name})), "{name}");
        assert!(first["at"].as_i64().unwrap() >= job.tick, "{first}");
        let ids: Vec<_> = done.take(2).map(|it| it["job"].as_str().unwrap().to_owned()).collect();
        let after = |ticks: i64| format!("{}{}", found.template.ids, job.tick + ticks * 1_000);
        assert_eq!(ids, [after(1), after(2)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_put_back_once_and_only_by_the_newest_leader() {
    require!(npm::found());
    for (kind, name, repeat) in
        [(V4, ".shop.nightly", r#"{"every":3600000}"#), (VONA, ".shop.schedule.nightly", r#"{"pattern":"0 3 * * *"}"#)]
    {
        let mut bench = Bench::new(kind).await;
        bench.bullmq(&["add", name, repeat]);
        let found = bench.find().await.pop().unwrap();
        let member = kind.dialect().member(&found.key);
        let job = kind.next_job(&found);
        assert_eq!(bench.put_back(&found, &job).await, PutBack::Present);
        bench.bullmq(&["remove", member]);
        assert_eq!(bench.put_back(&found, &job).await, PutBack::Done);
        assert_eq!(bench.put_back(&found, &job).await, PutBack::Present);

        // The job is there though the schedule is not: it has been run, or runs.
        let _: i64 = bench.server.run(&["ZREM", &bench.key("repeat"), member]);
        assert_eq!(bench.put_back(&found, &job).await, PutBack::Taken);
        let later = found.template.next_after(job.tick, Some(job.tick)).unwrap();
        let later = found.template.job(kind.dialect(), later, job.tick).unwrap();
        bench.store = kind.store(6);
        assert_eq!(bench.put_back(&found, &later).await, PutBack::Fenced(7));
        bench.store = kind.store(8);
        assert_eq!(bench.put_back(&found, &later).await, PutBack::Done);

        bench.bullmq(&["remove", member]);
        let _: i64 = bench.server.run(&["DEL", &bench.key("delayed")]);
        let _: String = bench.server.run(&["SET", &bench.key("delayed"), "x"]);
        let no_queue = PutBack::NoQueue { key: bench.key("delayed"), found: "string".into() };
        let events: i64 = bench.server.run(&["XLEN", &bench.key("events")]);
        assert_eq!(bench.put_back(&found, &later).await, no_queue);
        assert_eq!(bench.server.run::<i64>(&["XLEN", &bench.key("events")]), events, "nothing was changed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_jobs_are_removed_but_for_so_many() {
    require!(npm::found());
    let mut bench = Bench::new(V4).await;
    bench.bullmq(&["add", ".shop.often", r#"{"every":200}"#]);
    bench.find().await;
    let (worker, done) = Worker::start(&bench);
    let ids: Vec<_> = done.take(6).map(|it| it["job"].as_str().unwrap().to_owned()).collect();
    drop(worker);
    let key = bench.key("completed");
    let completed = || -> Vec<String> { bench.server.run(&["ZRANGE", &key, "0", "-1"]) };
    let before = completed();
    assert!(before.len() >= 5, "{before:?}");
    let removed = bench.store.trim(&mut bench.connection, "completed", 2).await.unwrap();
    assert_eq!(usize::try_from(removed), Ok(before.len() - 2));
    assert_eq!(completed(), before[before.len() - 2..]);
    assert!(bench.job(&ids[0]).is_empty() && !bench.job(before.last().unwrap()).is_empty());
    assert_eq!(bench.store.trim(&mut bench.connection, "completed", 2).await.unwrap(), 0);
    assert_eq!(bench.store.trim(&mut bench.connection, "failed", 0).await.unwrap(), 0);
}

fn taker(kind: Kind, token: u64) -> takeover::store::Store {
    let file = json!({"role": "queue", "prefix": "bull_shop:queue", "queue": &kind.queue[1..]});
    takeover::store::Store::new(&serde_json::from_value(file).unwrap(), kind.generation, token)
}

fn tick_of(id: &str) -> Timestamp {
    Timestamp::from_millisecond(id.rsplit_once(':').unwrap().1.parse().unwrap()).unwrap()
}

/// A schedule and how its jobs are named, in the default instance.
fn named(kind: Kind, name: &str) -> (String, String) {
    let native = format!("shop.{name}");
    let jobs = format!(".{}", kind.dialect().bean(&native));
    (native, jobs)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_is_taken_out_with_its_next_tick_and_no_other_one() {
    require!(npm::found());
    for (kind, repeat) in [(V4, r#"{"every":3600000}"#), (VONA, r#"{"pattern":"0 3 * * *"}"#)] {
        let mut bench = Bench::new(kind).await;
        let ((native, jobs), (native2, jobs2)) = (named(kind, "nightly"), named(kind, "nightly2"));
        let id = bench.bullmq(&["add", &jobs, repeat]);
        let other = bench.bullmq(&["add", &jobs2, repeat]);
        let mut taker = taker(kind, 7);
        let connection = &mut bench.connection;
        let both = BTreeSet::from([&*native, &*native2]);
        let there = |native: &String| (native.clone(), kind.queue.to_owned());
        assert_eq!(taker.present(connection, &both).await.unwrap(), [&native, &native2].map(there).into());
        assert_eq!(taker.release(connection, &native, kind.queue).await.unwrap(), Release::Done);
        assert_eq!(taker.release(connection, &native, kind.queue).await.unwrap(), Release::Done, "as it was");
        assert_eq!(taker.present(connection, &both).await.unwrap(), [there(&native2)].into());
        let next = tick_of(id.as_str().unwrap());
        let rest = taker.rest(connection, &native).await.unwrap();
        assert_eq!((rest.pending, rest.left.len()), (BTreeMap::from([(String::new(), next)]), 0));

        let handover = Handover { owed: BTreeMap::from([(next, vec!["north".into()])]), missed: 1, from: next };
        let decided = Decided { schedule: "s".into(), handover };
        assert_eq!(taker.decided(connection, &native).await.unwrap(), None);
        assert_eq!(taker.decide(connection, &native, &decided).await.unwrap(), None);
        assert_eq!(taker.decided(connection, &native).await.unwrap(), Some(decided.clone()));
        let old = self::taker(kind, 6);
        assert_eq!(old.release(connection, &native2, kind.queue).await.unwrap(), Release::Fenced(7));
        assert_eq!(old.decide(connection, &native, &decided).await.unwrap(), Some(7));
        assert_eq!(taker.forget(connection, &native2).await.unwrap(), None, "of another one");
        assert!(taker.decided(connection, &native).await.unwrap().is_some());
        assert_eq!(taker.forget(connection, &native).await.unwrap(), None);
        assert_eq!(taker.decided(connection, &native).await.unwrap(), None);
        assert_eq!(taker.rest(connection, &native).await.unwrap(), Rest::default());

        assert_eq!(bench.bullmq(&["list"])[0]["name"], json!(jobs2));
        assert!(bench.job(&format!("repeat:{jobs}")).is_empty());
        assert_eq!(json!(bench.delayed()), json!([other]));
        let _: i64 = bench.server.run(&["DEL", &bench.key("delayed")]);
        let _: String = bench.server.run(&["SET", &bench.key("delayed"), "x"]);
        let no_queue = Release::NoQueue { key: bench.key("delayed"), found: "string".into() };
        assert_eq!(taker.release(&mut bench.connection, &native2, kind.queue).await.unwrap(), no_queue);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tick_that_an_app_is_at_is_waited_for_until_the_app_has_died() {
    require!(npm::found());
    for kind in [V4, VONA] {
        let mut bench = Bench::new(kind).await;
        let (native, jobs) = named(kind, "often");
        bench.bullmq(&["add", &jobs, r#"{"every":1000}"#]);
        let (worker, mut begun) = Worker::at_work(&bench, &["600000"]);
        let first = begun.next().unwrap()["job"].as_str().unwrap().to_owned();
        let taker = taker(kind, 7);
        let at_work = Release::AtWork(first.clone());
        assert_eq!(taker.release(&mut bench.connection, &native, kind.queue).await.unwrap(), at_work);
        assert_eq!(bench.bullmq(&["list"])[0]["name"], json!(jobs), "nothing was changed");
        drop(worker);
        assert_eq!(taker.release(&mut bench.connection, &native, kind.queue).await.unwrap(), at_work, "who knows");
        // As it would expire.
        let _: i64 = bench.server.run(&["DEL", &bench.key(&format!("{first}:lock"))]);
        assert_eq!(taker.release(&mut bench.connection, &native, kind.queue).await.unwrap(), Release::Done);
        let rest = taker.rest(&mut bench.connection, &native).await.unwrap();
        let first = tick_of(&first);
        assert!(rest.left[&first].contains(""), "it is run once more: {rest:?}");
        assert!(rest.pending[""] > first, "and goes on with the next: {rest:?}");
        for list in ["active", "wait"] {
            let ids: Vec<String> = bench.server.run(&["LRANGE", &bench.key(list), "0", "-1"]);
            assert!(ids.iter().all(|id| id == "0"), "{list}: {ids:?}");
        }
        assert_eq!((bench.bullmq(&["list"]), bench.delayed()), (json!([]), vec![]));
    }
}

/// So many jobs as a worker takes them, up to which it is done with all.
fn take(jobs: &mut impl Iterator<Item = Value>, count: usize) -> BTreeSet<String> {
    jobs.take(count).map(|line| line["job"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn in_vona_the_worker_that_took_a_tick_last_says_whether_it_is_left() {
    require!(npm::found());
    let mut bench = Bench::new(VONA).await;
    let (native, jobs) = named(VONA, "often");
    let (_, other) = named(VONA, "other");
    for name in [&jobs, &other] {
        bench.bullmq(&["add", name, r#"{"pattern":"* * * * * *"}"#]);
    }
    let taker = taker(VONA, 7);
    let completed = |bench: &Bench| -> BTreeSet<String> {
        let ids: Vec<String> = bench.server.run(&["ZRANGE", &bench.key("completed"), "0", "-1"]);
        ids.into_iter().filter(|id| id.contains(&jobs)).collect()
    };
    let mut of = Vec::new();
    for worker in ["cabloy-agent/leaves/shop.night,shop.often", "cabloy-agent/leaves/"] {
        let before = completed(&bench);
        let (worker, mut done) = Worker::at_work(&bench, &["0", worker]);
        take(&mut done, 6);
        worker.end();
        of.push(completed(&bench).difference(&before).cloned().collect::<BTreeSet<_>>());
    }
    let [left, run] = &of[..] else { unreachable!() };
    assert!(left.len() >= 2 && run.len() >= 2, "{of:?}");
    // One that was taken again, since the first to take it died.
    let again = left.first().unwrap();
    let _: i64 = bench.server.run(&["HSET", &bench.key(again), "pb", "cabloy-agent/leaves/"]);
    // One that failed before it was left.
    let failed = left.last().unwrap();
    let score: String = bench.server.run(&["ZSCORE", &bench.key("completed"), failed]);
    let _: i64 = bench.server.run(&["ZREM", &bench.key("completed"), failed]);
    let _: i64 = bench.server.run(&["ZADD", &bench.key("failed"), &score, failed]);

    let connection = &mut bench.connection;
    assert_eq!(taker.release(connection, &native, VONA.queue).await.unwrap(), Release::Done);
    let rest = taker.rest(connection, &native).await.unwrap();
    let pending = rest.pending[""];
    let ticks: BTreeSet<_> = left.iter().filter(|id| *id != again).map(|id| tick_of(id)).collect();
    assert_eq!(rest.left.keys().copied().filter(|tick| *tick < pending).collect::<BTreeSet<_>>(), ticks, "{of:?}");
    assert_eq!(taker.forget(connection, &native).await.unwrap(), None);
    assert_eq!(taker.rest(connection, &native).await.unwrap(), Rest::default());
    let kept: BTreeSet<_> = run.iter().chain([again]).cloned().collect();
    assert_eq!(completed(&bench), kept);
    assert!(bench.job(failed).is_empty() && !bench.job(again).is_empty());
    assert_eq!(bench.server.run::<i64>(&["ZCARD", &bench.key("failed")]), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_vona_jobs_stay_until_it_is_known_who_took_them() {
    require!(npm::found());
    let mut bench = Bench::new(VONA).await;
    let (native, jobs) = named(VONA, "often");
    let add = ["add", &jobs, r#"{"pattern":"* * * * * *"}"#, r#"{"removeOnComplete":true,"attempts":3}"#];
    bench.bullmq(&add);
    let mut taker = taker(VONA, 7);
    for _ in 0..2 {
        taker.keep_jobs(&mut bench.connection, &BTreeSet::from([&*native])).await.unwrap();
    }
    let (worker, mut done) = Worker::at_work(&bench, &["0", "cabloy-agent/leaves/shop.often"]);
    let ids = take(&mut done, 3);
    worker.end();
    for id in &ids {
        let options: Value = serde_json::from_str(&bench.job(id)["opts"]).unwrap();
        assert_eq!((&options["removeOnComplete"], &options["attempts"]), (&json!(false), &json!(3)), "{options}");
    }
    assert_eq!(taker.release(&mut bench.connection, &native, VONA.queue).await.unwrap(), Release::Done);
    let rest = taker.rest(&mut bench.connection, &native).await.unwrap();
    assert!(ids.iter().all(|id| rest.left.contains_key(&tick_of(id))), "{ids:?} {rest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tick_that_was_to_be_tried_once_more_is_left() {
    require!(npm::found());
    let mut bench = Bench::new(VONA).await;
    let (native, jobs) = named(VONA, "nightly");
    let next = bench.bullmq(&["add", &jobs, r#"{"pattern":"0 3 * * *"}"#]);
    let next = next.as_str().unwrap();
    let before = tick_of(next) - SignedDuration::from_hours(24);
    let retried = format!("repeat:{jobs}:{}", before.as_millisecond());
    let _: i64 = bench.server.run(&["HSET", &bench.key(&retried), "name", &jobs, "atm", "1"]);
    let _: i64 = bench.server.run(&["ZADD", &bench.key("delayed"), "1", &retried]);
    let taker = taker(VONA, 7);
    assert_eq!(taker.release(&mut bench.connection, &native, VONA.queue).await.unwrap(), Release::Done);
    let rest = taker.rest(&mut bench.connection, &native).await.unwrap();
    assert_eq!(rest.pending, BTreeMap::from([(String::new(), tick_of(next))]));
    assert_eq!(rest.left.into_keys().collect::<Vec<_>>(), [before]);
}
