//! The app's own schedules and startups through rolling updates, by Vona's real modules: lost without the guard, and kept
//! with it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cabloy_tests::events::Event;
use cabloy_tests::redis::Redis;
use cabloy_tests::vona::{self, APP, Pod, SCHEDULES};
use cabloy_tests::{require, wait};
use serde_json::{Value, json};
use stage::{Agent, Stage};
use tokio::time::sleep;

/// A revision has so many schedules that are new, each by one of these letters. Each is deleted or not by a race of its own.
const NEW: [&str; 5] = ["a", "b", "c", "d", "e"];

/// The queues of the default instance: the one that schedules are in, and one that a module has for its own.
const QUEUES: [&str; 2] = ["-||a-schedule.queue.schedule", "-||shop-rota.queue.own"];

/// How often schedules repeat, in milliseconds.
const EVERY: u64 = 1_000;

/// How long pods of both revisions run: time for some ticks.
const OVERLAP: Duration = Duration::from_secs(4);

/// A pod is taken for running for ten seconds after it has ended, and it may take as long to start.
const SETTLED: Duration = Duration::from_mins(2);

/// For what takes a second on an idle machine.
const SOON: Duration = Duration::from_mins(1);

/// The schedule that all revisions have, each with times of its own.
const CHANGED: &str = "changed";

/// The app's pods, each with an agent beside it.
struct World {
    stage: Stage,
    debounce: u64,
    guarded: bool,
    /// What was run, by the pods that have ended.
    past: Vec<Event>,
}

/// A pod of the app.
struct Member {
    agent: Agent,
    pod: Pod,
}

impl World {
    fn new(guarded: bool, debounce: u64) -> Self {
        let stage = Stage::new(1);
        stage.files.role("default", &json!({"host": "127.0.0.1", "port": stage.redis[0].addr().port(), "db": 0}));
        stage.files.edit(|file| {
            file["app"]["name"] = json!(APP);
            file["app"]["generation"] = json!("vona");
            file["app"]["health"] = json!({"http": {"method": "GET", "path": "/"}});
            file["election"]["ttlMs"] = json!(3_000);
            file["revisions"] = json!({});
        });
        Self { stage, debounce, guarded, past: Vec::new() }
    }

    fn redis(&self) -> &Redis {
        &self.stage.redis[0]
    }

    /// The files tell of a new revision.
    fn roll(&self, number: u64) {
        let hash = format!("r{number}");
        self.stage.files.edit(|file| {
            file["revisions"][&hash] = json!({"number": number});
            if self.guarded {
                file["guard"] = json!({
                    "role": "default", "prefix": format!("bull_{APP}:queue"), "queue": "||a-schedule.queue.schedule",
                    "startups": {
                        "role": "default",
                        "keys": format!("worker_{APP}:0!a-startup.cacheRedis.startupDebounce!startupDebounce:*"),
                    },
                    "newest": [hash], "history": {"completed": 50, "failed": 50},
                });
            }
        });
    }

    /// A pod of a revision, which does not run yet; its agent comes first, as kubelet has it.
    fn pod(&self, number: u64, name: &str) -> Member {
        let config = json!({"modules": {"a-startup": {"startup": {"debounce": self.debounce}}}});
        let pod = Pod::new(name, self.redis().addr(), &schedules(number)).config(&config);
        self.member(number, name, pod)
    }

    fn member(&self, number: u64, name: &str, pod: Pod) -> Member {
        let hash = format!("r{number}");
        let agent = self.stage.agent_beside(&format!("shop-web-{hash}-{name}"), pod.port()).pod(&hash).start();
        Member { agent, pod }
    }

    /// The first pod of a new revision starts, and serves.
    async fn start(&self, number: u64) -> Member {
        self.roll(number);
        let mut member = self.pod(number, "x2x4z");
        member.starts().await;
        member
    }

    /// A pod ends as kubelet ends it.
    async fn end(&mut self, mut member: Member) {
        member.agent.drain();
        member.pod.terminate();
        member.pod.exit().await;
        member.agent.terminate();
        member.agent.exit().await;
        self.past.extend(member.pod.events());
    }

    /// The schedules that there are, and how often each repeats.
    fn there(&self) -> BTreeMap<String, u64> {
        let mut there = BTreeMap::new();
        for queue in QUEUES {
            let key = format!("bull_{APP}:queue:{queue}:repeat");
            let names: Vec<String> = self.redis().run(&["ZRANGE", &key, "0", "-1"]);
            for name in names {
                let every: Option<u64> = self.redis().run(&["HGET", &format!("{key}:{name}"), "every"]);
                there.extend(name.strip_prefix(SCHEDULES).map(str::to_owned).zip(every));
            }
        }
        there
    }

    /// Waits until the guard sees that pods of one revision alone run.
    async fn settled(&self, member: &Member) {
        wait::until("one revision to be all there is", SETTLED, async || {
            let guard = member.agent.status().await.guard;
            guard.is_some_and(|guard| !guard.rolling && guard.schedules > 0)
        })
        .await;
    }

    /// Waits until all schedules of a revision are run by its pod, twice from now on.
    async fn all_run(&self, member: &Member, number: u64) {
        let before = member.pod.events().len();
        let wanted: BTreeSet<String> = wanted(number).into_keys().collect();
        wait::until("all schedules to be run", SOON, async || {
            let runs = runs(&member.pod.events()[before..]);
            let twice = runs.iter().filter(|(_, times)| **times >= 2).map(|(name, _)| name.clone());
            if twice.collect::<BTreeSet<_>>() == wanted { Ok(()) } else { Err(format!("{runs:?}, {:?}", self.there())) }
        })
        .await;
    }

    /// That no tick has been run twice.
    fn nothing_twice(&self, members: &[&Member]) {
        let mut events = self.past.clone();
        events.extend(members.iter().flat_map(|member| member.pod.events()));
        let mut seen = BTreeSet::new();
        for job in jobs(&events) {
            assert!(seen.insert(job.clone()), "{job} was run twice");
        }
    }
}

impl Member {
    async fn starts(&mut self) {
        self.pod.start();
        self.pod.until_ready().await;
        self.until_run("startup.inst", 1).await;
    }

    /// Waits until a startup has been run so often.
    async fn until_run(&self, startup: &str, times: usize) {
        wait::until(&format!("{startup} to be run"), SOON, async || self.times(startup) >= times).await;
    }

    fn times(&self, kind: &str) -> usize {
        self.pod.events().iter().filter(|event| event.kind == kind).count()
    }
}

/// The schedules that a revision has, and how often each repeats.
fn wanted(number: u64) -> BTreeMap<String, u64> {
    let new = NEW.iter().map(|it| (format!("r{number}{it}"), EVERY));
    new.chain([(CHANGED.to_owned(), EVERY + number % 2)]).collect()
}

/// Their options. Those of the last letters are in the module's own queue.
fn schedules(number: u64) -> Value {
    let options = |name: &str, every: u64| {
        let is_own = name.ends_with(['d', 'e']) && name != CHANGED;
        let queue = if is_own { "shop-rota:own" } else { "a-schedule:schedule" };
        json!({"repeat": {"every": every}, "queue": queue})
    };
    wanted(number).into_iter().map(|(name, every)| (name.clone(), options(&name, every))).collect()
}

/// The jobs of schedules that were run.
fn jobs(events: &[Event]) -> Vec<String> {
    let runs = events.iter().filter(|event| event.kind == "schedule");
    runs.map(|event| event.more["job"].as_str().unwrap().to_owned()).collect()
}

/// The schedules that were run, and how often.
fn runs(events: &[Event]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for job in jobs(events) {
        let name = job.strip_prefix("repeat:").and_then(|it| it.strip_prefix(SCHEDULES)?.split(':').next());
        *counts.entry(name.unwrap().to_owned()).or_default() += 1;
    }
    counts
}

/// Rolling updates, one after the other, each with other schedules and other times of one; in each an old pod starts again
/// in the middle, so that this one is as it was before.
async fn rolling_updates(rounds: u64) {
    let mut world = World::new(true, 1_000);
    let mut old = world.start(1).await;
    let mut put_back = 0;
    for number in 2..2 + rounds {
        world.settled(&old).await;
        let new = world.start(number).await;
        sleep(OVERLAP).await;
        old.pod.terminate();
        old.pod.exit().await;
        let before = old.times("startup.inst");
        old.pod.start();
        old.until_run("startup.inst", before + 1).await;
        sleep(OVERLAP / 2).await;
        world.end(old).await;
        world.all_run(&new, number).await;
        world.settled(&new).await;
        assert_eq!(world.there(), wanted(number), "revision {number}");
        world.nothing_twice(&[&new]);
        let guard = new.agent.status().await.guard.unwrap();
        println!("revision {number}: {} were put back", guard.put_back - put_back);
        put_back = guard.put_back;
        old = new;
    }
    println!(
        "{} schedules through {rounds} rolling updates, {put_back} times put back",
        rounds * (NEW.len() as u64 + 1)
    );
    assert!(put_back > 0, "nothing was deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_schedule_is_lost_in_rolling_updates() {
    require!(vona::found());
    rolling_updates(2).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: for who changes the guard"]
async fn no_schedule_is_lost_in_many_rolling_updates() {
    require!(vona::found());
    rolling_updates(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_guard_a_rolling_update_loses_schedules() {
    require!(vona::found());
    let mut world = World::new(false, 1_000);
    let mut old = world.start(1).await;
    let new = world.start(2).await;
    wait::until("a schedule to be lost", SOON, async || wanted(2).keys().any(|name| !world.there().contains_key(name)))
        .await;
    old.pod.terminate();
    old.pod.exit().await;
    old.pod.start();
    old.until_run("startup.inst", 2).await;
    world.end(old).await;
    let (left, wanted) = (world.there(), wanted(2));
    let lost = wanted.keys().filter(|name| !left.contains_key(*name)).count();
    println!("lost {lost} of {} new ones", NEW.len());
    assert!(lost > 0, "{left:?}");
    assert_eq!(left.get(CHANGED), Some(&(EVERY + 1)), "and one is as it was before");
    drop(new);
}

/// The first start of a pod fails, and it is started again at once; then comes a pod of a new revision.
async fn startups(guarded: bool) -> [usize; 3] {
    let mut world = World::new(guarded, 120_000);
    world.roll(1);
    let config = json!({"modules": {"a-startup": {"startup": {"debounce": world.debounce}}}});
    let pod = Pod::new("x2x4z", world.redis().addr(), &schedules(1)).config(&config).fails_once();
    let mut failing = world.member(1, "x2x4z", pod);
    failing.pod.start();
    failing.pod.exit().await;
    assert_eq!(failing.times("startup.once"), 1);
    if guarded {
        wait::until("the flag of what has failed to go", SOON, async || flags(&world).is_empty()).await;
    }
    failing.pod.start();
    failing.pod.until_ready().await;
    failing.until_run("schedule", 1).await;
    let again = failing.times("startup.once") - 1;
    world.end(failing).await;

    world.roll(2);
    let mut first = world.pod(2, "x2x4z");
    if guarded {
        wait::until("the flags of the code before to go", SOON, async || flags(&world).is_empty()).await;
    }
    first.pod.start();
    first.pod.until_ready().await;
    if guarded {
        first.until_run("startup.inst", 1).await;
    }
    // It takes ticks when it has come through the startups of its instance.
    wait::until("a schedule of the code before to go", SOON, async || !world.there().contains_key("r1a")).await;
    [again, first.times("startup.once"), first.times("startup.inst")]
}

/// The flags of startups.
fn flags(world: &World) -> Vec<String> {
    world.redis().run(&["KEYS", "*startupDebounce:*"])
}

#[tokio::test(flavor = "multi_thread")]
async fn startups_are_not_skipped_for_those_that_failed_or_of_other_code() {
    require!(vona::found());
    assert_eq!(startups(true).await, [1, 1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_guard_startups_are_skipped() {
    require!(vona::found());
    assert_eq!(startups(false).await, [0, 0, 0]);
}
