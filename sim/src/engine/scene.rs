//! What a seed's schedules, startup tasks and apps are like.

use std::collections::BTreeMap;
use std::time::Duration;

use cabloy_crds::files::{AgentFile, App, CatchUp, Election, Floor, Health, HttpTarget, Retry, Revision, Schedule};
use cabloy_crds::files::{Startup, Target};
use cabloy_crds::vocabulary::{CatchUpPolicy, Gate, Generation, Method, OnUnknown, Overlap, Scope};

use super::trouble::EVENTS;
use crate::dice::Dice;

/// What is run, by what rules, and how apps take it.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    /// The files at the beginning.
    pub(crate) file: AgentFile,
    /// By the order of [`EVENTS`].
    pub(crate) weights: [u64; EVENTS.len()],
    /// Mean time between two events, in thousandths of the ttl.
    pub(crate) trouble: u64,
    /// Of a thousand calls: there is no connection.
    pub(crate) unreached: u64,
    /// Of a thousand calls: they fail.
    pub(crate) fails: u64,
    /// Of a thousand calls: they are never answered.
    pub(crate) hangs: u64,
    /// Of a thousand calls: they take longer than the others.
    pub(crate) long: u64,
}

impl Scene {
    pub(crate) fn draw(ttl: Duration, dice: &mut Dice) -> Self {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let count = dice.between(1, 3);
        let schedules = (0..count).map(|number| schedule(number, ttl_ms, dice)).collect();
        let startups = if dice.chance(600) { startups(ttl_ms, dice) } else { Vec::new() };
        let mut weights = [0; EVENTS.len()];
        for weight in &mut weights {
            if dice.chance(500) {
                *weight = dice.between(1, 8);
            }
        }
        let file = AgentFile {
            cluster: "prod/shop".to_owned(),
            app: App { name: "shop".to_owned(), generation: Generation::Generic, port: 1, health: Health::Tcp {} },
            election: Election { ttl_ms },
            floor: Floor::default(),
            revisions: BTreeMap::from([(hash(1), revision(1, &startups))]),
            schedules,
            startups,
            ended: BTreeMap::new(),
            guard: None,
            takeover: None,
            tracing: None,
        };
        Self {
            file,
            weights,
            trouble: dice.one_of(&[300, 1000, 3000]),
            unreached: dice.one_of(&[0, 0, 50, 300]),
            fails: dice.one_of(&[0, 100, 400]),
            hangs: dice.one_of(&[0, 20, 200]),
            long: dice.one_of(&[0, 100, 400]),
        }
    }
}

impl Scene {
    /// For a story: nothing befalls apps, and they do what they are asked to.
    pub(crate) fn quieten(&mut self) {
        self.weights = [0; EVENTS.len()];
        (self.unreached, self.fails, self.hangs, self.long) = (0, 0, 0, 0);
        self.file.schedules.truncate(1);
    }
}

/// The hash of the pods of a revision.
pub(crate) fn hash(revision: u64) -> String {
    format!("h{revision}")
}

/// For which revision of itself a task counts as done on the code of `revision`: each has its own.
pub(crate) fn task_revision(revision: u64) -> String {
    format!("r{revision}")
}

/// A revision of the app, with all tasks.
pub(crate) fn revision(number: u64, startups: &[Startup]) -> Revision {
    let startups = startups.iter().map(|it| (it.name.clone(), task_revision(number))).collect();
    Revision { number, startups }
}

fn target(remembers_runs: bool) -> Target {
    Target::Http(HttpTarget { path: "/".to_owned(), method: Method::Post, body: None, remembers_runs })
}

/// A schedule, by its number.
pub(crate) fn schedule(number: u64, ttl_ms: u64, dice: &mut Dice) -> Schedule {
    let every = every(ttl_ms, dice);
    let overlap = dice.one_of(&[
        Overlap::Skip,
        Overlap::BufferOne,
        Overlap::BufferAll,
        Overlap::BufferAll,
        Overlap::CancelOther,
        Overlap::AllowAll,
        Overlap::AllowAll,
    ]);
    let policy = dice.one_of(&[CatchUpPolicy::None, CatchUpPolicy::Latest, CatchUpPolicy::All, CatchUpPolicy::All]);
    Schedule {
        name: format!("s{number}"),
        cron: None,
        every_ms: Some(every),
        time_zone: "UTC".to_owned(),
        overlap,
        jitter_ms: dice.one_of(&[0, 0, every / 4]),
        timeout_ms: every * dice.one_of(&[2, 4, 8]) / 4,
        on_unknown: dice.one_of(&[OnUnknown::Skip, OnUnknown::Retry]),
        retry: retry(dice.one_of(&[0, 1, 3]), ttl_ms),
        suspend: false,
        catch_up: CatchUp { window_ms: dice.one_of(&[15_000, 3_600_000, 3_600_000]), policy },
        pause_on_failure: false,
        triggers: Vec::new(),
        backfills: Vec::new(),
        takes_over: None,
        target: target(dice.chance(500)),
    }
}

/// How far ticks are apart, in milliseconds.
pub(crate) fn every(ttl_ms: u64, dice: &mut Dice) -> u64 {
    ttl_ms * dice.one_of(&[1, 2, 4, 8]) / 4
}

fn startups(ttl_ms: u64, dice: &mut Dice) -> Vec<Startup> {
    let seed = Startup {
        after: vec!["migrate".to_owned()],
        gate: dice.one_of(&[Gate::Ready, Gate::None]),
        ..startup("seed", ttl_ms)
    };
    let own = Startup {
        scope: Scope::Instance,
        after: vec![dice.one_of(&["migrate", "seed"]).to_owned()],
        gate: dice.one_of(&[Gate::Ready, Gate::Ready, Gate::None]),
        ..startup("warm", ttl_ms)
    };
    let mut startups = vec![startup("migrate", ttl_ms), seed];
    startups.extend(dice.chance(600).then_some(own));
    startups
}

/// A task that gates wait for.
pub(crate) fn startup(name: &str, ttl_ms: u64) -> Startup {
    Startup {
        name: name.to_owned(),
        scope: Scope::Cluster,
        after: Vec::new(),
        gate: Gate::Ready,
        timeout_ms: ttl_ms,
        retry: retry(1_000, ttl_ms),
        target: target(true),
    }
}

fn retry(limit: u32, ttl_ms: u64) -> Retry {
    Retry { limit, initial_delay_ms: ttl_ms / 10, factor: 1.0, max_delay_ms: ttl_ms / 10 }
}
