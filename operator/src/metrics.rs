//! What Prometheus reads at `/metrics`.

use std::{sync::atomic::AtomicU64, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Upper bounds of the durations of reconciliations, in seconds.
const BUCKETS: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Label of failures: the error's variant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    error: &'static str,
}

/// Label of writes and clusters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

/// The operator's metrics.
pub struct Metrics {
    registry: Registry,
    reconciles: Counter,
    failures: Family<FailureLabels, Counter>,
    duration: Histogram,
    writes: Family<KindLabels, Counter>,
    resources: Gauge<i64>,
    ready: Gauge<f64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Registry::with_prefix("cabloy_operator"),
            reconciles: Counter::default(),
            failures: Family::default(),
            duration: Histogram::new(BUCKETS),
            writes: Family::default(),
            resources: Gauge::default(),
            ready: Gauge::default(),
        };
        metrics.registered()
    }
}

impl Metrics {
    fn registered(mut self) -> Self {
        let registry = &mut self.registry;
        registry.register("reconciles", "Reconciliations that were begun", self.reconciles.clone());
        registry.register("failures", "Reconciliations that failed, by error", self.failures.clone());
        registry.register_with_unit(
            "reconcile_duration",
            "How long reconciliations took",
            Unit::Seconds,
            self.duration.clone(),
        );
        registry.register("writes", "Objects that were written, by kind", self.writes.clone());
        registry.register("resources", "CabloyCluster resources that are watched", self.resources.clone());
        registry.register("resources_ready", "Share of them that are ready, from 0 to 1", self.ready.clone());
        self
    }

    /// A reconciliation has ended after `duration`; `failure` is the error's variant.
    pub fn reconciled(&self, duration: Duration, failure: Option<&'static str>) {
        self.reconciles.inc();
        self.duration.observe(duration.as_secs_f64());
        if let Some(error) = failure {
            self.failures.get_or_create(&FailureLabels { error }).inc();
        }
    }

    /// So many objects of a kind were written.
    pub fn wrote(&self, kind: &'static str, count: usize) {
        self.writes.get_or_create(&KindLabels { kind }).inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// So many resources are there, and so many of them are ready.
    pub fn counted(&self, resources: usize, ready: usize) {
        self.resources.set(i64::try_from(resources).unwrap_or(i64::MAX));
        let as_float = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        self.ready.set(if resources == 0 { 1.0 } else { as_float(ready) / as_float(resources) });
    }

    /// All metrics as text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_documented() {
        let metrics = Metrics::default();
        metrics.reconciled(Duration::from_millis(3), Some("ApplyWorkload"));
        metrics.wrote("objects", 2);
        metrics.counted(2, 1);
        let text = metrics.text();
        for line in [
            "cabloy_operator_reconciles_total 1",
            "cabloy_operator_failures_total{error=\"ApplyWorkload\"} 1",
            "cabloy_operator_reconcile_duration_seconds_count 1",
            "cabloy_operator_writes_total{kind=\"objects\"} 2",
            "cabloy_operator_resources 2",
            "cabloy_operator_resources_ready 0.5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
    }
}
