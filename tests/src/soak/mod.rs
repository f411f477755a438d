//! A thousand schedules on real agents and Redis servers, while leaders are killed every few seconds and masters come back
//! empty, one at a time.
//!
//! * [`pod`] is an agent and its app; [`count`] is what all apps count together, and what must be true of it.
//! * Each tick has to be done that is due while this runs, and no attempt be begun twice.

pub mod count;
pub mod pod;

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use cabloy_crds::agent_status::{AgentStatus, ScheduleStatus};
use jiff::Timestamp;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use crate::chaos::nemesis::{Stop, is_intact};
use crate::redis::Redis;
use crate::stage::get;
use crate::wait;
use pod::{FLAKY, Plan, Pod, look};

/// The name of the election.
const CLUSTER: &str = "prod/soak";

/// How long an attempt may take, in milliseconds: so long is waited for one whose pod was killed.
const TIMEOUT_MS: u64 = 3_000;

/// How long a master that has come back empty may go without being given its memory.
const SEEDED: Duration = Duration::from_secs(30);

/// How long a leader with all the schedules is waited for at the beginning.
const START: Duration = Duration::from_mins(3);

/// How long a leader is left to lead.
const REIGN: std::ops::Range<u64> = 3_000..5_000;

/// How long what was killed is away.
const AWAY: std::ops::Range<u64> = 100..1_500;

/// How long a master that has its memory again is left alone.
const CALM: std::ops::Range<u64> = 1_000..4_000;

/// Every how many seconds schedules fall due, and of a thousand how many: 138 ticks a second.
const MIX: [(i64, usize); 6] = [(1, 40), (2, 60), (5, 150), (10, 250), (30, 250), (60, 250)];

/// What is run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The agent's program.
    pub agent: PathBuf,
    /// How many pods.
    pub pods: usize,
    /// How long there are faults.
    pub faults_for: Duration,
    /// How long after them all that was due must have been done.
    pub settle: Duration,
}

/// A schedule that is run.
#[derive(Clone, Debug)]
struct Schedule {
    name: String,
    period_ms: i64,
    /// Whether each tick must be done: nothing that is open takes its place.
    all: bool,
    file: Value,
}

/// A thousand: by period and by cron, with all policies for what falls due while a run is open.
fn schedules() -> Vec<Schedule> {
    let periods = MIX.iter().flat_map(|(seconds, count)| std::iter::repeat_n(*seconds, *count));
    periods.enumerate().map(|(index, seconds)| schedule(index, seconds)).collect()
}

fn schedule(index: usize, seconds: i64) -> Schedule {
    let overlap = match index % 10 {
        0 => "Skip",
        1 => "BufferOne",
        2 => "CancelOther",
        3..=6 => "BufferAll",
        _ => "AllowAll",
    };
    let name = if index % 20 == 19 { format!("{FLAKY}-{index}") } else { format!("s-{index}") };
    let mut file = json!({
        "name": name, "timeZone": "UTC", "overlap": overlap, "jitterMs": if index % 4 == 3 { 300 } else { 0 },
        "timeoutMs": TIMEOUT_MS, "onUnknown": "Retry",
        "retry": {"limit": 50, "initialDelayMs": 50, "factor": 2.0, "maxDelayMs": 500},
        "catchUp": {"windowMs": 3_600_000, "policy": "All"},
        "suspend": false, "target": {"http": {"path": "/run", "method": "POST"}}
    });
    match (index % 2, seconds) {
        (0, _) => file["everyMs"] = json!(seconds * 1_000),
        (_, 60) => file["cron"] = json!("* * * * *"),
        (_, _) => file["cron"] = json!(format!("*/{seconds} * * * * *")),
    }
    Schedule { name, period_ms: seconds * 1_000, all: matches!(overlap, "BufferAll" | "AllowAll"), file }
}

/// What it came to.
#[derive(Debug, Default)]
pub struct Report {
    /// How many schedules there were.
    pub schedules: usize,
    /// How long there were faults.
    pub faults_for: Duration,
    /// Ticks that had to be done.
    pub due: usize,
    /// Runs that an app has begun, those included that another might have taken the place of.
    pub runs: usize,
    /// Attempts that an app has begun.
    pub attempts: u64,
    /// Calls that an app answered from what it knew.
    pub repeated: u64,
    /// Leaders that were seen.
    pub leaders: usize,
    /// By what was killed, how often.
    pub kills: BTreeMap<&'static str, u32>,
    /// How often a master came back empty.
    pub emptied: u32,
    /// From when a tick was due to its first attempt, in milliseconds, in order.
    pub lateness: Vec<i64>,
    /// From the last fault to when all was done.
    pub settled: Option<Duration>,
    /// Ticks that were not done, and what is known of them.
    pub lost: Vec<String>,
    /// What must not have happened, and did.
    pub violations: Vec<String>,
    /// Where the agents' logs are, if there is something to look for.
    pub kept: Option<PathBuf>,
}

impl Report {
    /// Whether nothing was lost or violated.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.violations.is_empty()
    }

    /// The lateness that so many percent of the ticks do not exceed, in milliseconds.
    #[must_use]
    pub fn lateness(&self, percent: usize) -> i64 {
        let index = (self.lateness.len() * percent / 100).min(self.lateness.len().saturating_sub(1));
        self.lateness.get(index).copied().unwrap_or_default()
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { schedules, faults_for, due, runs, attempts, repeated, leaders, emptied, .. } = self;
        writeln!(f, "soak: {schedules} schedules, faults for {faults_for:.0?}")?;
        let kills: Vec<_> = self.kills.iter().map(|(what, count)| format!("{what} {count}")).collect();
        writeln!(f, "  killed: {}; masters emptied: {emptied}; leaders: {leaders}", kills.join(", "))?;
        writeln!(
            f,
            "  ticks that had to be done: {due}; runs: {runs}, in {attempts} attempts, {repeated} repeated calls"
        )?;
        let [p50, p99, max] = [50, 99, 100].map(|percent| self.lateness(percent));
        writeln!(f, "  first attempt after a tick was due: p50 {p50} ms, p99 {p99} ms, max {max} ms")?;
        match self.settled {
            Some(settled) => writeln!(f, "  all done {settled:.1?} after the last fault")?,
            None => writeln!(f, "  not all done")?,
        }
        writeln!(f, "  ticks lost: {}; violations: {}", self.lost.len(), self.violations.len())?;
        for line in self.lost.iter().take(10).chain(self.violations.iter().take(10)) {
            writeln!(f, "    {line}")?;
        }
        if let Some(kept) = &self.kept {
            writeln!(f, "  logs: {}", kept.display())?;
        }
        Ok(())
    }
}

/// All that runs.
struct World {
    plan: Plan,
    pods: Vec<Mutex<Pod>>,
    masters: Vec<Redis>,
    count: pod::Shared,
    runtime: Runtime,
    dir: TempDir,
}

impl World {
    fn start(config: &Config, schedules: &[Schedule]) -> anyhow::Result<Self> {
        let dir = TempDir::with_prefix("cabloy-soak-")?;
        let masters: Vec<_> = (0..3).map(|_| Redis::start()).collect();
        let master = |redis: &Redis| json!({"host": "127.0.0.1", "port": redis.addr().port(), "db": 0});
        let file = json!({
            "cluster": CLUSTER,
            "app": {"name": "soak", "generation": "generic", "port": 1, "health": {"tcp": {}}},
            "election": {"ttlMs": 1_500},
            "schedules": schedules.iter().map(|it| &it.file).collect::<Vec<_>>(),
        });
        let plan = Plan {
            agent: config.agent.clone(),
            file,
            masters: masters.iter().map(master).collect(),
            dir: dir.path().to_owned(),
        };
        let count = pod::Shared::default();
        let start = |index| Pod::start(&plan, index, &count).map(Mutex::new);
        let pods = (0..config.pods).map(start).collect::<anyhow::Result<_>>()?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Self { plan, pods, masters, count, runtime, dir })
    }

    fn pod(&self, index: usize) -> MutexGuard<'_, Pod> {
        self.pods[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The schedules as the leader has them, once there is one that has them all.
    fn led(&self, schedules: usize) -> anyhow::Result<Vec<ScheduleStatus>> {
        let led = wait::try_until_blocking("a leader with all schedules", START, || {
            let all = (0..self.pods.len()).find_map(|index| {
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.pod(index).port));
                let text = self.runtime.block_on(get(address, "/status")).ok()?;
                let status: AgentStatus = serde_json::from_str(&text).ok()?;
                (status.schedules.len() == schedules).then_some(status.schedules)
            });
            all.ok_or("none yet")
        })?;
        Ok(led)
    }

    /// Kills leaders, in three ways by turns, until it is enough; all run again by then.
    fn kill_leaders(&self, stop: &Stop) -> anyhow::Result<BTreeMap<&'static str, u32>> {
        let mut kills = BTreeMap::new();
        let mut ways = ["agent", "pod", "app"].into_iter().cycle();
        while stop.rest(random(&REIGN)) {
            let Some(leader) = look(&self.count).leader() else { continue };
            let Some(way) = ways.next() else { break };
            let mut pod = self.pod(leader);
            if way != "app" {
                pod.kill_agent();
            }
            if way != "agent" {
                pod.kill_app();
            }
            *kills.entry(way).or_default() += 1;
            stop.rest(random(&AWAY));
            pod.revive(&self.plan)?;
        }
        Ok(kills)
    }

    /// Has masters come back empty, the next one when the last has been given its memory; how often.
    fn empty_masters(&self, stop: &Stop) -> anyhow::Result<u32> {
        let mut emptied = 0;
        for master in self.masters.iter().cycle() {
            if !stop.rest(random(&CALM)) {
                break;
            }
            master.kill();
            stop.rest(random(&AWAY));
            master.restart_empty();
            emptied += 1;
            let seeded = || if is_intact(master, CLUSTER) { Ok(()) } else { Err("it has none") };
            wait::try_until_blocking("a master to be given its memory", SEEDED, seeded)?;
        }
        Ok(emptied)
    }
}

fn random(range: &std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rand::random_range(range.clone()))
}

/// Runs all of it, and says what came of it.
///
/// # Errors
/// Something of the stage itself failed, or nobody led at the beginning.
pub fn run(config: &Config) -> anyhow::Result<Report> {
    let schedules = schedules();
    let mut world = World::start(config, &schedules)?;
    let led = world.led(schedules.len())?;
    let created: BTreeMap<_, _> = led.into_iter().map(|it| (it.name, it.created.as_millisecond())).collect();

    let stop = Stop::default();
    let begun = Instant::now();
    let (kills, emptied) = thread::scope(|scope| {
        let kills = scope.spawn(|| world.kill_leaders(&stop));
        let emptied = scope.spawn(|| world.empty_masters(&stop));
        stop.rest(config.faults_for);
        stop.stop();
        (kills.join(), emptied.join())
    });
    let failed = |_| anyhow::anyhow!("a lane of faults failed");
    let kills = kills.map_err(failed)??;
    let (emptied, unseeded) = match emptied.map_err(failed)? {
        Ok(emptied) => (emptied, None),
        Err(error) => (0, Some(error.to_string())),
    };
    let faults_for = begun.elapsed();

    let over = Timestamp::now().as_millisecond();
    let must = schedules.iter().filter(|schedule| schedule.all).flat_map(|schedule| {
        let Schedule { name, period_ms, .. } = schedule;
        let first = created.get(name).map_or(i64::MAX, |created| created.div_euclid(*period_ms) + 1);
        (first..).map(move |number| number * period_ms).take_while(|tick| *tick <= over).map(move |tick| (name, tick))
    });
    let must: Vec<_> = must.collect();
    let rest = Instant::now();
    let left = |count: &count::Count| {
        let open = must.iter().filter(|(name, tick)| !count.is_done(name, *tick));
        open.map(|(name, tick)| (name.to_owned().clone(), *tick)).collect::<Vec<_>>()
    };
    let done = wait::try_until_blocking("all that was due to be done", config.settle, || {
        let open = left(&look(&world.count)).len();
        if open == 0 { Ok(()) } else { Err(format!("{open} are not")) }
    });
    let settled = done.is_ok().then(|| rest.elapsed());
    let missed = world.led(schedules.len()).context("at the end")?;
    let missed = missed.iter().filter(|it| it.missed > 0).map(|it| format!("{} of {} were missed", it.missed, it.name));
    let missed: Vec<_> = missed.collect();

    let mut count = look(&world.count);
    let lost = left(&count).iter().map(|(name, tick)| count.tell(name, *tick)).collect();
    let mut lateness = std::mem::take(&mut count.lateness);
    lateness.sort_unstable();
    let violations = count.violations.iter().cloned().chain(missed).chain(unseeded).collect();
    let mut report = Report {
        schedules: schedules.len(),
        faults_for,
        due: must.len(),
        runs: count.runs(),
        attempts: count.attempts,
        repeated: count.repeated,
        leaders: count.leaders(),
        kills,
        emptied,
        lateness,
        settled,
        lost,
        violations,
        kept: None,
    };
    drop(count);
    if !report.is_clean() {
        world.dir.disable_cleanup(true);
        report.kept = Some(world.dir.path().to_owned());
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_a_thousand_of_all_kinds() {
        let all = schedules();
        assert_eq!(all.len(), 1_000);
        assert_eq!(all.iter().filter(|it| it.all).count(), 700);
        assert_eq!(all.iter().filter(|it| it.file.get("cron").is_some()).count(), 500);
        let names: std::collections::BTreeSet<_> = all.iter().map(|it| &it.name).collect();
        assert_eq!(names.len(), all.len());
    }
}
