//! Real agents on real Redis servers, while pods, servers, links and clocks fail around them.
//!
//! * [`fault`] draws what is done from a seed; [`nemesis`] does it.
//! * [`pod`] is an agent and its app; each call of the agent adds an element to a shared set.
//! * [`register`] is that set, and what must be true of the calls; [`service`] is how apps reach it.
//! * [`report`] says what came of it.
//!
//! What is judged is what the apps see, and nothing that an agent says of itself.

pub mod fault;
pub mod nemesis;
pub mod pod;
pub mod register;
pub mod report;
pub mod service;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::json;
use tempfile::TempDir;

use crate::network::{Namespace, Network};
use crate::redis::{Redis, Version, clock};
use crate::skip::Unavailable;
use fault::{Faults, Kind, Lane};
use nemesis::{History, Stop};
use pod::{Plan, Pod};
use register::Register;
use report::Report;
use service::Service;

/// The name of the election.
const CLUSTER: &str = "prod/chaos";

/// How long after the last fault the second call must be done. A lease that nobody renews, an attempt that nobody ended,
/// and new connections come first.
pub const RECOVERY: Duration = Duration::from_secs(15);

/// How long a run waits for its first calls.
const START: Duration = Duration::from_secs(30);

/// What is run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The agent's program.
    pub agent: PathBuf,
    /// `redis-server`
    pub redis: PathBuf,
    /// Its version.
    pub version: Version,
    /// How many servers.
    pub servers: usize,
    /// How many pods.
    pub pods: usize,
    /// How long a lease lasts.
    pub ttl: Duration,
    /// What repeats the faults.
    pub seed: u64,
    /// How long faults are injected.
    pub faults_for: Duration,
    /// Which kinds of them; those that this machine cannot have are left out and reported.
    pub kinds: Vec<Kind>,
    /// Whether the register refuses stale tokens.
    pub guarded: bool,
}

impl Config {
    /// Three pods on three servers, short leases, and all faults that leave a majority of memories intact.
    ///
    /// # Errors
    /// This machine cannot have that version.
    pub fn new(agent: impl Into<PathBuf>, version: Version) -> Result<Self, Unavailable> {
        Ok(Self {
            agent: agent.into(),
            redis: version.program()?,
            version,
            servers: 3,
            pods: 3,
            ttl: Duration::from_secs(1),
            seed: 1,
            faults_for: Duration::from_secs(20),
            kinds: Kind::usual(),
            guarded: true,
        })
    }
}

/// All that runs.
#[derive(Debug)]
pub struct World {
    plan: Plan,
    pods: Vec<Mutex<Pod>>,
    servers: Vec<Redis>,
    network: Option<Network>,
    service: Service,
    history: Arc<History>,
    dir: TempDir,
}

impl World {
    /// Starts it; `network` and `clock` are what the machine has of them.
    ///
    /// # Errors
    /// A program cannot be started.
    pub fn start(config: &Config, network: Option<Network>, clock: Option<&Path>) -> anyhow::Result<Self> {
        let dir = TempDir::with_prefix("cabloy-chaos-")?;
        let server = |index: usize| {
            let mut builder = Redis::builder().binary(&config.redis).durable();
            builder = builder.dir(dir.path().join(format!("redis-{index}")));
            if let Some(library) = clock {
                builder = builder.movable_clock(library);
            }
            match &network {
                Some(network) => builder.inside(network.hub(), Network::server(index)).start(),
                None => builder.start(),
            }
        };
        let servers: Vec<_> = (0..config.servers).map(server).collect();
        let master = |redis: &Redis| json!({"host": redis.addr().ip(), "port": redis.addr().port(), "db": 0});
        let history = Arc::new(History::default());
        let service = Service::start(Register::new(config.guarded), dir.path(), Arc::clone(&history))?;
        let plan = Plan {
            agent: config.agent.clone(),
            ttl: config.ttl,
            masters: servers.iter().map(master).collect(),
            register: service.socket().to_owned(),
            dir: dir.path().to_owned(),
        };
        let pod = |index: usize| {
            let place: Option<&Namespace> = network.as_ref().map(|network| network.pod(index));
            Pod::start(&plan, &format!("p{index}"), place).map(Mutex::new)
        };
        let pods = (0..config.pods).map(pod).collect::<anyhow::Result<_>>()?;
        Ok(Self { plan, pods, servers, network, service, history, dir })
    }

    /// The register, and who calls it.
    #[must_use]
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// The servers, all of which vote.
    #[must_use]
    pub fn servers(&self) -> &[Redis] {
        &self.servers
    }

    /// Its own network, if it has one.
    #[must_use]
    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// A pod, for whoever does something to it.
    pub fn pod(&self, index: usize) -> MutexGuard<'_, Pod> {
        self.pods[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts again what has ended of a pod.
    ///
    /// # Errors
    /// A program cannot be started.
    pub fn revive(&self, pod: usize) -> anyhow::Result<()> {
        self.pod(pod).revive(&self.plan)
    }

    /// The pod whose agent has the highest token.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        let agent = self.service.look(|register| register.leader().map(str::to_owned))?;
        (0..self.pods.len()).find(|index| agent.starts_with(&format!("p{index}.")))
    }

    /// Waits until two more calls are done: the second has begun after this was asked. How long that took.
    pub fn served(&self, timeout: Duration) -> Option<Duration> {
        let begun = Instant::now();
        let before = self.service.look(|register| register.counts().accepted);
        let more = |register: &Register| (register.counts().accepted >= before + 2).then_some(());
        self.service.until(timeout, more).map(|()| begun.elapsed())
    }

    /// Leaves logs and history where they are, and says where that is.
    fn keep(mut self) -> anyhow::Result<PathBuf> {
        std::fs::write(self.dir.path().join("history"), self.history.text())?;
        self.dir.disable_cleanup(true);
        Ok(self.dir.path().to_owned())
    }
}

/// What this machine has for the faults that are wanted.
#[derive(Debug)]
struct Means {
    /// The kinds that it can have.
    kinds: Vec<Kind>,
    /// Those that it cannot, and why.
    unavailable: Vec<(Kind, Unavailable)>,
    /// The library that moves clocks, if one is to be moved.
    clock: Option<PathBuf>,
    /// Whether a link is to be cut.
    network: bool,
}

impl Means {
    fn find(wanted: &[Kind]) -> Self {
        let (mut kinds, mut unavailable) = (Vec::new(), Vec::new());
        let (network, clock) = (Network::check(), clock::library());
        for kind in wanted.iter().copied() {
            let missing = match kind {
                Kind::Partition => network.as_ref().err(),
                Kind::ClockShift | Kind::ClockHour => clock.as_ref().err(),
                _ => None,
            };
            match missing {
                Some(reason) => unavailable.push((kind, reason.clone())),
                None => kinds.push(kind),
            }
        }
        let network = kinds.contains(&Kind::Partition);
        let clock = clock.ok().filter(|_| kinds.iter().any(|kind| kind.lane() == Lane::Clocks));
        Self { kinds, unavailable, clock, network }
    }
}

/// Runs all of it, and says what came of it.
///
/// # Errors
/// Something of the stage itself failed.
pub fn run(config: &Config) -> anyhow::Result<Report> {
    let Means { kinds, unavailable, clock, network } = Means::find(&config.kinds);
    let network = network.then(|| Network::new(config.servers, config.pods)).transpose().context("a network")?;
    let world = World::start(config, network, clock.as_deref())?;
    world.served(START).with_context(|| format!("no agent has begun to lead: {}", world.pod(0).log_tail()))?;

    let stop = Stop::default();
    let begun = Instant::now();
    let lanes = thread::scope(|scope| {
        let lane = |lane| {
            let (world, stop) = (&world, &stop);
            let faults = Faults::new(config.seed, lane, &kinds);
            scope.spawn(move || nemesis::work(world, stop, faults))
        };
        let lanes = Lane::ALL.map(lane);
        stop.rest(config.faults_for);
        stop.stop();
        lanes.map(|lane| lane.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a lane of faults failed"))))
    });
    let faults_for = begun.elapsed();
    let mut faults = BTreeMap::new();
    let mut unserved = Vec::new();
    for lane in lanes {
        let done = lane?;
        faults.extend(done.faults);
        unserved.extend(done.unserved);
    }

    let recovery = world.served(RECOVERY);
    if recovery.is_none() {
        unserved.push(format!("nobody has led for {RECOVERY:?} after the last fault"));
    }
    let mut report = world.service.look(|register| {
        let mut gaps = register.gaps().to_vec();
        gaps.sort_unstable();
        let mut leaders = BTreeMap::new();
        for agent in register.terms().values() {
            let pod = agent.split('.').next().unwrap_or_default();
            *leaders.entry(pod.to_owned()).or_default() += 1;
        }
        Report {
            version: config.version,
            seed: config.seed,
            faults_for,
            faults,
            unavailable,
            terms: register.terms().len(),
            leaders,
            gaps,
            ticks: register.ticks(),
            counts: register.counts(),
            recovery,
            lost: register.lost(),
            violations: register.violations().iter().cloned().chain(unserved).collect(),
            kept: None,
        }
    });
    if !report.is_clean() {
        report.kept = Some(world.keep()?);
    }
    Ok(report)
}
