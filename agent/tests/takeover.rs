//! A schedule of the app's own is taken over through a rolling update of the real `CabloyJS` v4 backend, for two instances:
//! each tick is run once, by the app itself or by the agent.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cabloy_tests::cabloy::{self, APP, Pod, Project};
use cabloy_tests::events::{Tick, tick_of, ticks};
use cabloy_tests::mariadb::MariaDb;
use cabloy_tests::redis::Redis;
use cabloy_tests::{require, wait};
use serde_json::{Value, json};
use stage::{Agent, SOON, Stage, schedule};

/// Between two ticks, in milliseconds.
const EVERY: i64 = 2_000;

const NATIVE: &str = "fx-probe.night";

const INSTANCES: [&str; 2] = ["", "south"];

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
    async fn new() -> Self {
        let stage = Stage::new(1);
        stage.files.role("queue", &json!({"host": "127.0.0.1", "port": stage.redis[0].addr().port(), "db": 0}));
        stage.files.edit(|file| {
            file["app"]["name"] = json!(APP);
            file["app"]["generation"] = json!("v4");
            file["app"]["health"] = json!({"http": {"method": "POST", "path": cabloy::HEALTH}});
            file["election"]["ttlMs"] = json!(3_000);
            file["revisions"] = json!({"old": {"number": 1}, "new": {"number": 2}});
        });
        let key_file = stage.dir().join("key");
        std::fs::write(&key_file, KEY).unwrap();
        let project = Project::new();
        project.add_agent_module();
        let database = cabloy::database().await;
        let values = "('south', '', '{}', 0)";
        let _ = database.query(&format!("insert into {APP}.aInstance (name, title, config, disabled) values {values}"));
        Self { stage, project, database, key_file }
    }

    fn redis(&self) -> &Redis {
        &self.stage.redis[0]
    }

    /// The files as the operator has them once the resource says `takesOver`.
    fn wanted(&self, released: &[&str]) {
        self.stage.files.edit(|file| {
            let mut schedule = schedule("night", EVERY);
            schedule["takesOver"] = json!(NATIVE);
            schedule["target"] = json!({"bean": {
                "path": "/api/cabloy/agent/run", "module": "fx-probe", "name": "schedule.report", "instances": "All",
            }});
            file["schedules"] = json!([schedule]);
            file["takeover"] = json!({
                "role": "queue", "prefix": format!("bull_{APP}:queue"), "queue": "||a-base||schedule",
                "released": released,
            });
        });
    }

    /// A pod starts, with an agent beside it, and serves.
    async fn start(&self, hash: &str, takes_over: &[&str]) -> Member {
        let boot = self.stage.dir().join(format!("boot-{hash}"));
        std::fs::create_dir(&boot).unwrap();
        let file = json!({"app": APP, "generation": "v4", "roles": [], "takesOver": takes_over});
        std::fs::write(boot.join("boot.json"), file.to_string()).unwrap();
        let preload = Path::new(env!("CARGO_MANIFEST_DIR")).join("../operator/preload/preload.cjs");
        let config = json!({
            "modules": {
                "fx-probe": {"schedules": {"night": {"bean": "report", "repeat": {"every": EVERY}}}},
                "cabloy-agent": {"keyFile": self.key_file},
            },
            // Else the second pod, which has schedules of its own to add, would add none.
            "queue": {"startup": {"debounce": 1_000}},
        });
        let builder = self.project.pod(hash, &self.database, self.redis().addr()).config(&config);
        let builder = builder.env("CABLOY_BOOT_DIR", boot.to_str().unwrap());
        let mut pod = builder.env("NODE_OPTIONS", format!("--require {}", preload.display())).spawn().unwrap();
        let start = self.stage.agent_beside(&format!("shop-web-{hash}-x2x4z"), pod.port());
        let agent = start.pod(hash).signing_key(&self.key_file).start();
        pod.until_ready().await;
        Member { agent, pod }
    }

    /// Ids of the jobs of the schedule that the app has dealt with, by instance.
    fn jobs(&self) -> BTreeSet<Tick> {
        let mut jobs = BTreeSet::new();
        for (queue, instance) in [("-", ""), ("south", "south")] {
            let prefix = format!("bull_{APP}:queue:{queue}||a-base||schedule:");
            let ids: Vec<String> = self.redis().run(&["ZRANGE", &format!("{prefix}completed"), "0", "-1"]);
            for id in ids {
                let name: String = self.redis().run(&["HGET", &format!("{prefix}{id}"), "name"]);
                if name == format!("{instance}.{NATIVE}") {
                    jobs.insert((tick_of(&id), instance.to_owned()));
                }
            }
        }
        jobs
    }
}

/// Waits until the app of a pod has dealt with so many more ticks of each instance, in whichever way `which` says.
async fn more(what: &str, count: usize, which: impl Fn() -> Vec<Tick>) {
    let begin = which();
    wait::until(what, TICKS, async || {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for (_, instance) in &which()[begin.len()..] {
            *counts.entry(instance.clone()).or_default() += 1;
        }
        if INSTANCES.iter().all(|instance| counts.get(*instance).is_some_and(|it| *it >= count)) {
            Ok(())
        } else {
            Err(format!("{counts:?}"))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_tick_is_run_once_over_a_takeover() {
    require!(cabloy::found());
    let world = World::new().await;
    let mut old = world.start("old", &[]).await;
    more("the app to run its schedule", 2, || ticks(&old.pod.events()).0).await;

    world.wanted(&[]);
    let new = world.start("new", &[NATIVE, "fx-probe.nowhere", "nowhere.night"]).await;
    let left = || {
        let left: Vec<String> =
            world.redis().run(&["ZRANGE", &format!("bull_{APP}:queue:cabloy-agent:left"), "0", "-1"]);
        let of = |mark: String| {
            let instance = if mark.contains(" south||") { "south" } else { "" };
            (tick_of(&mark), instance.to_owned())
        };
        left.into_iter().map(of).collect()
    };
    more("the new pod to leave ticks to the agent, beside the old one", 1, left).await;
    let waits = |agent: &Value| agent["schedules"][0]["waitsFor"].as_str().unwrap_or_default().to_owned();
    let status = json!(new.agent.until("a schedule that waits", |status| !status.schedules.is_empty()).await);
    assert!(waits(&status).contains("every pod to boot without fx-probe.night"), "{status}");

    old.agent.drain();
    old.pod.terminate();
    old.pod.exit().await;
    old.agent.terminate();
    old.agent.exit().await;
    more("the new pod to leave ticks to the agent, alone", 2, left).await;
    assert_eq!(ticks(&new.pod.events()), (vec![], vec![]), "the agent waits for the operator's word");

    world.wanted(&[NATIVE]);
    let last_of = |jobs: &BTreeSet<Tick>, instance: &str| {
        jobs.iter().rfind(|(_, of)| of == instance).map(|(tick, _)| *tick).unwrap()
    };
    wait::until("each tick that the app had to be run, and those that come after them", TICKS, async || {
        let (own, called) = ticks(&[old.pod.events(), new.pod.events()].concat());
        // What the app's own queue passed over, for the app was busy, never was a tick.
        let jobs = world.jobs();
        let lost: Vec<_> = jobs.iter().filter(|tick| !own.contains(tick) && !called.contains(tick)).collect();
        let after = INSTANCES.map(|instance| {
            let jobs_end = last_of(&jobs, instance);
            called.iter().filter(|(tick, of)| of == instance && *tick > jobs_end).count()
        });
        if lost.is_empty() && after.iter().all(|count| *count >= 3) {
            Ok(())
        } else {
            Err(format!("not run: {lost:?}; after them: {after:?}"))
        }
    })
    .await;
    let status = new.agent.until("nothing to be waited for", |status| status.schedules[0].waits_for.is_none()).await;
    assert_eq!((status.schedules[0].failed, status.schedules[0].missed), (0, 0), "{status:?}");
    let jobs = world.jobs();
    let (own, called) = ticks(&[old.pod.events(), new.pod.events()].concat());
    println!("{} ticks run by the app, {} by the agent", own.len(), called.len());
    assert!(own.iter().all(|tick| ticks(&old.pod.events()).0.contains(tick)), "the new pod runs none by itself");

    let mut times: BTreeMap<Tick, usize> = BTreeMap::new();
    own.iter().chain(&called).for_each(|tick| *times.entry(tick.clone()).or_default() += 1);
    let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "run twice: {twice:?}");
    for instance in INSTANCES {
        let of = |ticks: &mut dyn Iterator<Item = &Tick>| {
            ticks.filter(|(_, of)| of == instance).map(|(tick, _)| *tick).collect::<BTreeSet<_>>()
        };
        let last_job = last_of(&jobs, instance);
        let (jobs, called) = (of(&mut jobs.iter()), of(&mut called.iter()));
        let end = *called.last().unwrap();
        assert!(jobs.intersection(&called).count() >= 3, "ticks that the new pod left: {jobs:?} {called:?}");
        // From the last that the app had, each that is due.
        let after: BTreeSet<_> = called.iter().copied().filter(|tick| *tick > last_job).collect();
        let wanted: BTreeSet<_> = (1..=(end - last_job) / EVERY).map(|it| last_job + it * EVERY).collect();
        assert_eq!(after, wanted, "{instance:?}");
    }

    let traces = || -> (Vec<String>, Vec<String>) {
        let own = |name: &str| format!("bull_{APP}:queue:cabloy-agent:{name}");
        (world.redis().run(&["ZRANGE", &own("left"), "0", "-1"]), world.redis().run(&["HKEYS", &own("takeovers")]))
    };
    wait::until("no traces to be left", SOON, async || traces() == (vec![], vec!["token".to_owned()])).await;

    // A pod of the revision before comes back, and adds the schedule again. Until that is removed, it may run what is due.
    let undone = world.start("undone", &[]).await;
    let removed = || async { new.agent.metric("cabloy_agent_native_schedules_removed_total").await };
    wait::until("what it has added to be removed, for each instance", SOON, async || {
        let removed = removed().await;
        if removed.parse::<f64>().unwrap() >= 2.0 { Ok(()) } else { Err(removed) }
    })
    .await;
    let before = ticks(&undone.pod.events()).0;
    more("the agent to go on", 2, || ticks(&new.pod.events()).1).await;
    let (own, called) = ticks(&[undone.pod.events(), new.pod.events()].concat());
    assert_eq!(own, before, "run by the app after it was removed");
    assert_eq!(called.iter().collect::<BTreeSet<_>>().len(), called.len(), "{called:?}");
}
