//! A schedule of the app's own is taken over through a rolling update of a whole app of Vona, for two instances: each tick is
//! run once, by the app itself or by the agent.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use cabloy_crds::agent_status::AgentStatus;
use cabloy_tests::cabloy::Pod;
use cabloy_tests::events::{Tick, tick_of, ticks};
use cabloy_tests::mariadb::MariaDb;
use cabloy_tests::redis::Redis;
use cabloy_tests::vona::APP;
use cabloy_tests::vona::whole::{self, Project};
use cabloy_tests::{require, wait};
use serde_json::{Value, json};
use stage::{Agent, SOON, Stage, schedule};

/// Between two ticks, in milliseconds.
const EVERY: i64 = 2_000;

const NATIVE: &str = "fx-probe.report";

/// How the jobs of the schedule are named after the instance.
const BEAN: &str = "fx-probe.schedule.report";

/// Another schedule, which comes after it when a pod adds all.
const OTHER: &str = "fx-probe.schedule.tally";

/// The instances, and what their queues of schedules are called.
const INSTANCES: [(&str, &str); 2] =
    [("", "-||a-schedule.queue.schedule"), ("north", "north||a-schedule.queue.schedule")];

const KEY: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// How long some ticks may take on a busy machine, where leases are lost and the app is slow to answer.
const TICKS: Duration = Duration::from_mins(5);

/// The app's pods, each with an agent beside it.
struct World {
    stage: Stage,
    project: Project,
    database: MariaDb,
    key_file: PathBuf,
}

/// A pod of the app.
struct Member {
    agent: Agent,
    pod: Pod,
}

impl World {
    fn new() -> Self {
        let stage = Stage::new(1);
        stage.files.role("queue", &json!({"host": "127.0.0.1", "port": stage.redis[0].addr().port(), "db": 0}));
        stage.files.edit(|file| {
            file["app"]["name"] = json!(APP);
            file["app"]["generation"] = json!("vona");
            file["app"]["health"] = json!({"http": {"method": "POST", "path": whole::HEALTH}});
            file["election"]["ttlMs"] = json!(3_000);
            file["revisions"] = json!({"old": {"number": 1}, "new": {"number": 2}});
        });
        let key_file = stage.dir().join("key");
        std::fs::write(&key_file, KEY).unwrap();
        let project = Project::new(&json!({
            "instance": {"instances": {"north": {}}},
            "modules": {"cabloy-agent": {"keyFile": key_file}, "a-startup": {"startup": {"debounce": 1_000}}},
            "onions": {"schedule": {
                "fx-probe:report": {
                    "enable": true,
                    "repeat": {"pattern": format!("*/{} * * * * *", EVERY / 1_000)},
                    // Whatever the app says, it must be seen who took a tick.
                    "templateOptions": {"removeOnComplete": true},
                },
                "fx-probe:tally": {"enable": true},
            }},
        }));
        project.add_agent_module();
        Self { stage, project, database: whole::database(), key_file }
    }

    fn redis(&self) -> &Redis {
        &self.stage.redis[0]
    }

    /// The files as the operator has them once the resource says `takesOver`. Each new leader removes all old jobs, but for
    /// those that say who took them.
    fn wanted(&self, released: &[&str]) {
        self.stage.files.edit(|file| {
            let mut schedule = schedule("report", EVERY);
            schedule["takesOver"] = json!(NATIVE);
            schedule["target"] = json!({"bean": {
                "path": "/api/cabloy/agent/run", "module": "fx-probe", "name": "schedule.report", "instances": "All",
            }});
            file["schedules"] = json!([schedule]);
            file["takeover"] = json!({
                "role": "queue", "prefix": format!("bull_{APP}:queue"), "queue": "||a-schedule.queue.schedule",
                "released": released,
            });
            file["guard"] = json!({
                "role": "queue", "prefix": format!("bull_{APP}:queue"), "queue": "||a-schedule.queue.schedule",
                "startups": {
                    "role": "queue",
                    "keys": format!("worker_{APP}:0!a-startup.cacheRedis.startupDebounce!startupDebounce:*"),
                },
                "newest": ["new"], "history": {"completed": 0, "failed": 0},
            });
        });
    }

    /// A pod starts, with an agent beside it, and serves.
    async fn start(&self, hash: &str, takes_over: &[&str]) -> Member {
        let boot = json!({"takesOver": takes_over});
        let pod = self.project.start_preloaded(hash, &self.database, self.redis().addr(), &boot).await;
        let start = self.stage.agent_beside(&format!("shop-web-{hash}-x2x4z"), pod.port());
        Member { agent: start.pod(hash).signing_key(&self.key_file).start(), pod }
    }

    /// The agent of a pod dies, and is started again.
    fn start_agent_again(&self, hash: &str, member: &mut Member) {
        let start = self.stage.agent_again(member.agent.name(), member.pod.port());
        let again = start.pod(hash).signing_key(&self.key_file).start();
        std::mem::replace(&mut member.agent, again).kill();
    }

    fn key(queue: &str, name: &str) -> String {
        format!("bull_{APP}:queue:{queue}:{name}")
    }

    /// The ticks of a schedule that have been added to the app's queues, in order.
    fn added(&self, bean: &str) -> Vec<Tick> {
        let mut added = Vec::new();
        for (instance, queue) in INSTANCES {
            let events: Vec<(String, BTreeMap<String, String>)> =
                self.redis().run(&["XRANGE", &Self::key(queue, "events"), "-", "+"]);
            let jobs = events.iter().filter(|(_, event)| event["event"] == "added").map(|(_, event)| &event["jobId"]);
            let of = format!("repeat:{instance}.{bean}:");
            added.extend(jobs.filter(|id| id.starts_with(&of)).map(|id| (tick_of(id), instance.to_owned())));
        }
        added
    }

    /// The ticks that apps have left, by the workers that took them.
    fn left(&self) -> Vec<Tick> {
        let mut left = Vec::new();
        for (instance, queue) in INSTANCES {
            let ids: Vec<String> = self.redis().run(&["ZRANGE", &Self::key(queue, "completed"), "0", "-1"]);
            for id in ids.iter().filter(|id| id.contains(BEAN)) {
                let worker: Option<String> = self.redis().run(&["HGET", &Self::key(queue, id), "pb"]);
                if worker.is_some_and(|worker| worker.contains(NATIVE)) {
                    left.push((tick_of(id), instance.to_owned()));
                }
            }
        }
        left
    }

    /// The instances whose queues have the schedule.
    fn present(&self) -> Vec<&'static str> {
        let is_in = |queue: &str| {
            let schedules: Vec<String> = self.redis().run(&["ZRANGE", &Self::key(queue, "repeat"), "0", "-1"]);
            schedules.iter().any(|name| name.ends_with(BEAN))
        };
        INSTANCES.into_iter().filter(|(_, queue)| is_in(queue)).map(|(instance, _)| instance).collect()
    }
}

/// Waits until so many more ticks of each instance have been dealt with, in whichever way `which` says.
async fn more(what: &str, count: usize, which: impl Fn() -> Vec<Tick>) {
    let of = |instance: &str| which().iter().filter(|(_, of)| of == instance).count();
    let begin = INSTANCES.map(|(instance, _)| of(instance));
    wait::until(what, TICKS, async || {
        let counts = INSTANCES.map(|(instance, _)| of(instance));
        let enough = counts.iter().zip(begin).all(|(now, begin)| *now >= begin + count);
        if enough { Ok(()) } else { Err(format!("{counts:?} after {begin:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_tick_is_run_once_over_a_takeover_in_vona() {
    require!(whole::found());
    let world = World::new();
    let mut old = world.start("old", &[]).await;
    more("the app to run its schedule", 2, || ticks(&old.pod.events()).0).await;

    let before = world.added(OTHER);
    assert_eq!(before.len(), INSTANCES.len());
    world.wanted(&[]);
    let mut new = world.start("new", &[NATIVE, "fx-probe.nowhere", "nowhere.night"]).await;
    wait::until("the new pod to add what it does not leave", SOON, async || {
        let added = world.added(OTHER);
        if added.len() >= 2 * before.len() { Ok(()) } else { Err(format!("{added:?}")) }
    })
    .await;
    more("the new pod to leave ticks to the agent, beside the old one", 1, || world.left()).await;
    let waits = |agent: &Value| agent["schedules"][0]["waitsFor"].as_str().unwrap_or_default().to_owned();
    let status = json!(new.agent.until("a schedule that waits", |status| !status.schedules.is_empty()).await);
    assert!(waits(&status).contains("every pod to boot without fx-probe.report"), "{status}");

    old.agent.drain();
    old.pod.terminate();
    old.pod.exit().await;
    old.agent.terminate();
    old.agent.exit().await;
    more("the new pod to leave ticks to the agent, alone", 2, || world.left()).await;
    // Another leader begins, and looks at the old jobs.
    world.start_agent_again("new", &mut new);
    new.agent.until("the guard to have looked", |status| status.guard.is_some()).await;
    assert_eq!(ticks(&new.pod.events()), (vec![], vec![]), "the agent waits for the operator's word");

    let left: BTreeSet<Tick> = world.left().into_iter().collect();
    world.wanted(&[NATIVE]);
    let taken_over = |status: &AgentStatus| status.schedules.iter().any(|schedule| schedule.waits_for.is_none());
    new.agent.until("nothing to be waited for", taken_over).await;
    let added: BTreeSet<_> = world.added(BEAN).into_iter().collect();
    let newest = added.last().unwrap().0;
    let own = || ticks(&new.pod.events()).1.into_iter().filter(|(tick, _)| *tick > newest).collect();
    more("the agent to have ticks of its own run", 2, own).await;
    let status = new.agent.status().await;
    assert_eq!((status.schedules[0].failed, status.schedules[0].missed), (0, 0), "{status:?}");
    let (own, called) = ticks(&[old.pod.events(), new.pod.events()].concat());
    println!("{} ticks run by the app, {} by the agent, {} of them left", own.len(), called.len(), left.len());
    assert_eq!(ticks(&new.pod.events()).0, [], "the new pod runs none by itself");

    let mut times: BTreeMap<Tick, usize> = BTreeMap::new();
    own.iter().chain(&called).for_each(|tick| *times.entry(tick.clone()).or_default() += 1);
    let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "run twice: {twice:?}");
    // What the app's own queue passed over, for the app was busy, never was a tick.
    let lost: Vec<_> = added.iter().filter(|tick| !times.contains_key(*tick)).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
    assert!(left.iter().all(|tick| called.contains(tick)), "{left:?} {called:?}");
    for (instance, _) in INSTANCES {
        let of = |ticks: &mut dyn Iterator<Item = &Tick>| {
            ticks.filter(|(_, of)| of == instance).map(|(tick, _)| *tick).collect::<BTreeSet<_>>()
        };
        let (added, called) = (of(&mut added.iter()), of(&mut called.iter()));
        let (newest, end) = (*added.last().unwrap(), *called.last().unwrap());
        // From the last that the app had, each that is due.
        let after: BTreeSet<_> = called.iter().copied().filter(|tick| *tick > newest).collect();
        let wanted: BTreeSet<_> = (1..=(end - newest) / EVERY).map(|it| newest + it * EVERY).collect();
        assert_eq!(after, wanted, "{instance:?}");
    }

    let traces = || -> (Vec<Tick>, Vec<String>, Vec<String>) {
        let own = |name: &str| format!("bull_{APP}:queue:cabloy-agent:{name}");
        let keys = world.redis().run(&["HKEYS", &own("takeovers")]);
        (world.left(), world.redis().run(&["ZRANGE", &own("left"), "0", "-1"]), keys)
    };
    wait::until("no traces to be left", SOON, async || traces() == (vec![], vec![], vec!["token".to_owned()])).await;
    assert_eq!(world.present(), [""; 0]);

    // A pod of the revision before comes back, and adds the schedule again.
    let undone = world.start("undone", &[]).await;
    wait::until("what it has added to be removed, for each instance", SOON, async || {
        let removed = new.agent.metric("cabloy_agent_native_schedules_removed_total").await;
        if removed.parse::<f64>().unwrap() >= 2.0 { Ok(()) } else { Err(removed) }
    })
    .await;
    // What it took before that is over by then.
    let before = ticks(&undone.pod.events()).0;
    more("the agent to go on", 2, || ticks(&[undone.pod.events(), new.pod.events()].concat()).1).await;
    assert_eq!((ticks(&undone.pod.events()).0, world.present()), (before, vec![]));
    let called = ticks(&[undone.pod.events(), new.pod.events()].concat()).1;
    let once: BTreeSet<_> = called.iter().collect();
    assert_eq!(once.len(), called.len(), "{called:?}");
}
