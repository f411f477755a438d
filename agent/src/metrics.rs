//! What the agent counts, for `/metrics`.

use std::sync::atomic::Ordering;
use std::time::Duration;

use cabloy_crds::agent_status::Verdict;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Labels of what is counted for each schedule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ScheduleLabels {
    /// Name of the schedule.
    pub schedule: String,
    /// What became of the tick.
    pub result: TickLabel,
}

/// What became of a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum TickLabel {
    /// The app did it.
    Done,
    /// It failed in the end.
    Failed,
    /// The deadline passed without a result.
    Unknown,
    /// The one before still ran.
    Skipped,
    /// Nobody could run it in time.
    Missed,
}

impl From<Verdict> for TickLabel {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Done => Self::Done,
            Verdict::Failed => Self::Failed,
            Verdict::Unknown => Self::Unknown,
        }
    }
}

/// Label of what is counted for each result.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabel {
    /// `taken` or `refused`.
    pub result: &'static str,
}

/// Label of what is measured of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabel {
    operation: &'static str,
}

/// Labels of what is counted of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    operation: &'static str,
    result: &'static str,
}

/// How long the ledger took, and with which result; cheap to clone.
#[derive(Clone, Debug)]
pub struct LedgerMetrics {
    durations: Family<OperationLabel, Histogram, fn() -> Histogram>,
    operations: Family<OperationLabels, Counter>,
}

impl Default for LedgerMetrics {
    fn default() -> Self {
        // From a round on the same machine to the deadline of a node, and to a lease that passes.
        let histogram: fn() -> Histogram =
            || Histogram::new([0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]);
        Self { durations: Family::new_with_constructor(histogram), operations: Family::default() }
    }
}

impl LedgerMetrics {
    /// An operation of that kind was answered after so long: what each of its parts came to, which are several where they
    /// went in one round.
    pub fn observe(&self, operation: &'static str, took: Duration, results: impl IntoIterator<Item = &'static str>) {
        self.durations.get_or_create(&OperationLabel { operation }).observe(took.as_secs_f64());
        for result in results {
            self.operations.get_or_create(&OperationLabels { operation, result }).inc();
        }
    }
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    /// Ticks that came to an end, by schedule and result.
    pub ticks: Family<ScheduleLabels, Counter>,
    /// How long after its time the first call of a tick was made, in seconds.
    pub lateness: Histogram,
    /// Calls to the app, attempts at startup tasks included.
    pub calls: Counter,
    /// How many times this agent became leader.
    pub transitions: Counter,
    /// Schedules of the app's own that were put back.
    pub native_put_back: Counter,
    /// Schedules of the app's own that are taken over, and were removed as a pod had added them again.
    pub native_removed: Counter,
    /// Old jobs of the app's own schedules that were removed.
    pub native_trimmed: Counter,
    /// Flags of startups that were removed, as they were another revision's.
    pub startup_flags_removed: Counter,
    /// How long the ledger took, and with which result.
    pub ledger: LedgerMetrics,
    /// What became of spans of traces.
    pub spans: Family<ResultLabel, Counter>,
    leader: Gauge,
    token: Gauge,
    lease: Gauge<f64, std::sync::atomic::AtomicU64>,
    healthy: Gauge,
    ready: Gauge,
    masters: Family<MasterLabel, Gauge>,
    reloads: Family<ResultLabel, Counter>,
    registry: Registry,
}

/// Label of what is known of each master.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MasterLabel {
    /// `host:port`.
    pub master: String,
}

/// What is measured when somebody asks.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Whether this agent leads.
    pub leading: bool,
    /// The highest token seen.
    pub token: u64,
    /// For how many seconds it may still claim.
    pub lease: f64,
    /// Whether the app answers.
    pub healthy: bool,
    /// Whether `/readyz` says yes.
    pub ready: bool,
    /// The masters, and whether each can be reached.
    pub masters: Vec<(String, bool)>,
    /// How many times files were taken up.
    pub taken: u64,
    /// How many times files were refused.
    pub refused: u64,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            ticks: Family::default(),
            // From a millisecond, which is good, to the time after which a tick is missed.
            lateness: Histogram::new([
                0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
            ]),
            calls: Counter::default(),
            transitions: Counter::default(),
            native_put_back: Counter::default(),
            native_removed: Counter::default(),
            native_trimmed: Counter::default(),
            startup_flags_removed: Counter::default(),
            ledger: LedgerMetrics::default(),
            spans: Family::default(),
            leader: Gauge::default(),
            token: Gauge::default(),
            lease: Gauge::default(),
            healthy: Gauge::default(),
            ready: Gauge::default(),
            masters: Family::default(),
            reloads: Family::default(),
            registry: Registry::with_prefix("cabloy_agent"),
        };
        let Self {
            ticks,
            lateness,
            calls,
            transitions,
            native_put_back,
            native_removed,
            native_trimmed,
            startup_flags_removed,
            ledger,
            spans,
            leader,
            token,
            lease,
            healthy,
            ready,
            masters,
            reloads,
            registry,
        } = &mut metrics;
        registry.register("ticks", "Ticks that came to an end", ticks.clone());
        registry.register("tick_lateness_seconds", "How long after its time a tick was called first", lateness.clone());
        registry.register("calls", "Calls to the app", calls.clone());
        registry.register("leader_transitions", "How many times this agent became leader", transitions.clone());
        registry.register(
            "native_schedules_put_back",
            "Schedules of the app's own that were put back",
            native_put_back.clone(),
        );
        registry.register(
            "native_schedules_removed",
            "Schedules of the app's own that are taken over, and were removed as a pod had added them again",
            native_removed.clone(),
        );
        registry.register(
            "native_jobs_trimmed",
            "Old jobs of the app's own schedules that were removed",
            native_trimmed.clone(),
        );
        registry.register(
            "startup_flags_removed",
            "Flags of another revision's startups that were removed",
            startup_flags_removed.clone(),
        );
        registry.register(
            "ledger_duration_seconds",
            "How long the masters took to answer for the ledger, by a majority",
            ledger.durations.clone(),
        );
        registry.register("ledger_operations", "Operations of the ledger, by result", ledger.operations.clone());
        registry.register("spans", "Spans of traces: exported, rejected by the collector, or dropped", spans.clone());
        registry.register("leader", "Whether this agent leads", leader.clone());
        registry.register("fencing_token", "The highest fencing token seen", token.clone());
        registry.register("lease_remaining_seconds", "For how long the leader may still claim", lease.clone());
        registry.register("app_healthy", "Whether the app answers its health check", healthy.clone());
        registry.register("ready", "Whether the pod is ready by the agent", ready.clone());
        registry.register("master_reachable", "Whether a Redis master can be used", masters.clone());
        registry.register("reloads", "Files taken up and refused", reloads.clone());
        metrics
    }
}

impl Metrics {
    /// Everything, in the text format of `OpenMetrics`.
    ///
    /// # Errors
    /// The text cannot be written, which a string never refuses.
    pub fn encode(&self, snapshot: &Snapshot) -> Result<String, std::fmt::Error> {
        let Snapshot { leading, token, lease, healthy, ready, masters, taken, refused } = snapshot;
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.leader.set((*leading).into());
        self.token.set(number(*token));
        self.lease.set(*lease);
        self.healthy.set((*healthy).into());
        self.ready.set((*ready).into());
        self.masters.clear();
        for (master, reachable) in masters {
            self.masters.get_or_create(&MasterLabel { master: master.clone() }).set((*reachable).into());
        }
        self.set_reloads("taken", *taken);
        self.set_reloads("refused", *refused);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// These are counted elsewhere.
    fn set_reloads(&self, result: &'static str, count: u64) {
        self.reloads.get_or_create(&ResultLabel { result }).inner().store(count, Ordering::Relaxed);
    }

    /// Counts what became of ticks of `schedule`.
    pub fn count(&self, schedule: &str, result: TickLabel, ticks: u64) {
        self.ticks.get_or_create(&ScheduleLabels { schedule: schedule.to_owned(), result }).inc_by(ticks);
    }
}
