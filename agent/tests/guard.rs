//! The app's own schedules through rolling updates and quick replacements, by the real `CabloyJS` v4 backend: lost without
//! the guard, and kept with it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cabloy_tests::cabloy::{self, APP, BOOT, Event, Pod, Project};
use cabloy_tests::mariadb::MariaDb;
use cabloy_tests::redis::Redis;
use cabloy_tests::{require, wait};
use serde_json::{Value, json};
use stage::{Agent, Stage};
use tokio::time::sleep;

/// So many schedules the app has. Each is deleted or not by a race of its own.
const SCHEDULES: usize = 6;

/// How long pods of both revisions run: time for two ticks.
const OVERLAP: Duration = Duration::from_secs(6);

/// A pod is taken for running for ten seconds after it has ended, and it may take as long to start.
const SETTLED: Duration = Duration::from_mins(2);

/// The app's pods, each with an agent beside it.
struct World {
    stage: Stage,
    project: Project,
    database: MariaDb,
    debounce: u64,
    guarded: bool,
    /// How many worker processes a pod has.
    workers: u32,
    /// Subdomains of the instances, each of which has all schedules.
    instances: Vec<&'static str>,
    /// What was run, by the pods that have ended.
    past: Vec<Event>,
}

/// A pod of the app.
struct Member {
    agent: Agent,
    pod: Pod,
}

impl World {
    async fn new(guarded: bool, debounce: u64) -> Self {
        let stage = Stage::new(1);
        let client = json!({"host": "127.0.0.1", "port": stage.redis[0].addr().port(), "db": 0});
        let mut cache = client.clone();
        cache["keyPrefix"] = json!(format!("cache_{APP}:"));
        stage.files.role("queue", &client);
        stage.files.role("cache", &cache);
        stage.files.edit(|file| {
            file["app"]["name"] = json!(APP);
            file["app"]["generation"] = json!("v4");
            file["app"]["health"] = json!({"http": {"method": "POST", "path": cabloy::HEALTH}});
            file["election"]["ttlMs"] = json!(3_000);
            file["revisions"] = json!({});
        });
        let database = cabloy::database().await;
        let (workers, instances) = (1, vec![""]);
        Self { stage, project: Project::new(), database, debounce, guarded, workers, instances, past: Vec::new() }
    }

    /// Pods have so many worker processes, and there is another instance beside the default one.
    fn with(mut self, workers: u32, tenant: &'static str) -> Self {
        self.workers = workers;
        self.instances.push(tenant);
        // Schedules are loaded for instances that somebody has visited before.
        let row = format!("insert into {APP}.aInstance (name, title, config) values ('{tenant}', '{tenant}', '{{}}')");
        let _ = self.database.query(&row);
        self
    }

    fn redis(&self) -> &Redis {
        &self.stage.redis[0]
    }

    /// The first pod of a new revision, whose schedules repeat so often, starts, and serves.
    async fn roll(&self, number: u64, every: u64) -> Member {
        let hash = format!("r{number}");
        self.stage.files.edit(|file| {
            file["revisions"][&hash] = json!({"number": number});
            if self.guarded {
                file["guard"] = json!({
                    "role": "queue", "prefix": format!("bull_{APP}:queue"), "queue": "||a-base||schedule",
                    "startups": {"role": "cache", "keys": format!("cache_{APP}:*:a-base:startupDebounce:*")},
                    "newest": [hash], "history": {"completed": 50, "failed": 50},
                });
            }
        });
        let schedules =
            (0..SCHEDULES).map(|it| (format!("s{it}"), json!({"bean": "tick", "repeat": {"every": every}})));
        let mut schedules: serde_json::Map<String, Value> = schedules.collect();
        schedules.insert("tick".into(), json!({"disable": true}));
        let instances: Vec<_> = self.instances.iter().map(|name| json!({"subdomain": name})).collect();
        let config = json!({
            "instances": instances,
            "modules": {"fx-probe": {"schedules": schedules}},
            "queue": {"startup": {"debounce": self.debounce}},
        });
        let pod = self.project.pod(&hash, &self.database, self.redis().addr()).workers(self.workers).config(&config);
        let mut pod = pod.spawn().unwrap();
        // As kubelet has it, the agent comes first.
        let agent = self.stage.agent_beside(&format!("shop-web-{hash}-x2x4z"), pod.port()).pod(&hash).start();
        pod.until_ready().await;
        Member { agent, pod }
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

    /// The schedules that there are.
    fn schedules(&self) -> BTreeSet<String> {
        let of = |instance: &&str| -> BTreeSet<String> {
            let name = if instance.is_empty() { "-" } else { instance };
            self.redis().run(&["ZRANGE", &format!("bull_{APP}:queue:{name}||a-base||schedule:repeat"), "0", "-1"])
        };
        self.instances.iter().flat_map(of).collect()
    }

    /// Those that there are to be.
    fn keys(&self, every: u64) -> BTreeSet<String> {
        let of = |instance| (0..SCHEDULES).map(move |it| format!("{instance}.fx-probe.s{it}::::{every}"));
        self.instances.iter().flat_map(of).collect()
    }

    /// Waits until the guard sees that pods of one revision alone run.
    async fn settled(&self, member: &Member) {
        wait::until("one revision to be all there is", SETTLED, async || {
            let guard = member.agent.status().await.guard;
            guard.is_some_and(|guard| !guard.rolling && guard.schedules > 0)
        })
        .await;
    }

    /// Waits until all schedules of a pod are run by it, twice from now on.
    async fn all_run(&self, member: &Member) {
        let before = member.pod.events().len();
        wait::until("all schedules to be run", BOOT, async || {
            let events = member.pod.events();
            let runs = count(runs(&events[before..]));
            if runs.len() == SCHEDULES * self.instances.len() && runs.values().all(|times| *times >= 2) {
                Ok(())
            } else {
                Err(format!("{runs:?}"))
            }
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

/// The jobs of schedules that were run.
fn jobs(events: &[Event]) -> Vec<String> {
    let runs = events.iter().filter(|event| event.kind == "schedule");
    runs.map(|event| event.more["job"].as_str().unwrap().to_owned()).collect()
}

/// The schedules that were run, by what the ids of their jobs begin with.
fn runs(events: &[Event]) -> Vec<String> {
    jobs(events).iter().map(|job| job.rsplit_once(':').unwrap().0.to_owned()).collect()
}

fn count(runs: Vec<String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for run in runs {
        *counts.entry(run).or_default() += 1;
    }
    counts
}

/// Rolling updates, one after the other, each with other times for all schedules of two instances.
async fn rolling_updates(rounds: u64) {
    let mut world = World::new(true, 10_000).await.with(2, "acme");
    let mut old = world.roll(1, 2_000).await;
    let (mut put_back, mut kept) = (0, 0);
    for round in 0..rounds {
        world.settled(&old).await;
        let every = if round % 2 == 0 { 3_000 } else { 2_000 };
        let new = world.roll(round + 2, every).await;
        sleep(OVERLAP).await;
        world.end(old).await;
        world.all_run(&new).await;
        world.settled(&new).await;
        assert_eq!(world.schedules(), world.keys(every), "round {round}");
        world.nothing_twice(&[&new]);
        let guard = new.agent.status().await.guard.unwrap();
        println!("round {round}: {} were put back", guard.put_back - put_back);
        put_back = guard.put_back;
        kept += world.keys(every).len();
        old = new;
    }
    println!("{kept} schedules through {rounds} rolling updates, {put_back} times put back");
    assert!(put_back > 0, "nothing was deleted");
    let (_, metrics) = old.agent.get("/metrics").await;
    assert!(metrics.contains("cabloy_agent_native_schedules_put_back_total"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_schedule_is_lost_in_rolling_updates() {
    require!(cabloy::found());
    rolling_updates(2).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: for who changes the guard"]
async fn no_schedule_is_lost_in_many_rolling_updates() {
    require!(cabloy::found());
    rolling_updates(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_guard_a_rolling_update_loses_schedules() {
    require!(cabloy::found());
    let mut world = World::new(false, 1_000).await;
    let old = world.roll(1, 2_000).await;
    world.all_run(&old).await;
    let new = world.roll(2, 3_000).await;
    sleep(OVERLAP).await;
    world.end(old).await;
    let left = world.schedules();
    let lost = world.keys(3_000).difference(&left).count();
    println!("lost {lost} of {SCHEDULES}");
    assert!(lost > 0, "{left:?}");
    drop(new);
}

/// Pods that are replaced as soon as they serve, one after the other, each before the flags of startups of the one before
/// are gone.
async fn replacements(rounds: u64) {
    let mut world = World::new(true, 120_000).await;
    let mut old = world.roll(1, 2_000).await;
    for round in 0..rounds {
        world.end(old).await;
        let every = if round % 2 == 0 { 3_000 } else { 2_000 };
        let new = world.roll(round + 2, every).await;
        for startup in ["startup.once", "startup.inst"] {
            let runs = new.pod.events().iter().filter(|event| event.kind == startup).count();
            assert_eq!(runs, 1, "round {round}: {startup}");
        }
        wait::until("the old schedules to go", BOOT, async || {
            let there = world.schedules();
            if there == world.keys(every) { Ok(()) } else { Err(format!("{there:?}")) }
        })
        .await;
        world.all_run(&new).await;
        assert_eq!(world.schedules(), world.keys(every), "round {round}");
        world.nothing_twice(&[&new]);
        old = new;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_schedule_is_lost_in_quick_replacements() {
    require!(cabloy::found());
    replacements(2).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: for who changes the guard"]
async fn no_schedule_is_lost_in_many_quick_replacements() {
    require!(cabloy::found());
    replacements(12).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_guard_a_quick_replacement_loses_all_schedules() {
    require!(cabloy::found());
    let mut world = World::new(false, 120_000).await;
    let old = world.roll(1, 2_000).await;
    world.end(old).await;
    let new = world.roll(2, 3_000).await;
    wait::until("all schedules to be lost", BOOT, async || {
        let there = world.schedules();
        if there.is_empty() { Ok(()) } else { Err(format!("{there:?}")) }
    })
    .await;
    assert!(new.pod.events().iter().all(|event| event.kind != "startup.once"), "nor are its startups run");
}
