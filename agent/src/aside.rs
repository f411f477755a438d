//! When a leader makes room for another one: its app answers the health check, and fails run after run.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;

use crate::runs::{OutcomeKind, between};

/// After so many runs in a row that failed, another may do better.
const FAILURES: usize = 3;

/// How long the agent does not stand then. Another one that can leads within milliseconds; if none can, this one goes on.
pub const ASIDE: Duration = Duration::from_secs(1);

/// No agent steps aside more often: where every app fails, the lease must not go round and round.
const AGAIN: Duration = Duration::from_mins(10);

/// What this agent's app has failed at since it last did something well.
#[derive(Debug, Default)]
pub struct Failures {
    runs: BTreeSet<String>,
    stepped_aside: Option<Timestamp>,
}

impl Failures {
    /// Notes how an attempt at the run `id` ended, at `now`; nothing if there was no answer before its deadline. Whether
    /// the agent is to step aside for that.
    pub fn note(&mut self, id: &str, ended: Option<OutcomeKind>, now: Timestamp) -> bool {
        match ended {
            Some(OutcomeKind::Done) => self.runs.clear(),
            // Any app would refuse it, or nobody let it end.
            Some(OutcomeKind::Refused | OutcomeKind::Disabled | OutcomeKind::Cancelled) => {}
            Some(OutcomeKind::Failed | OutcomeKind::NotBegun) | None => _ = self.runs.insert(id.to_owned()),
        }
        let lately = self.stepped_aside.is_some_and(|at| between(at, now) < AGAIN);
        if self.runs.len() < FAILURES {
            return false;
        }
        self.runs.clear();
        if !lately {
            self.stepped_aside = Some(now);
        }
        !lately
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_in_a_row_count_and_not_too_often() {
        let mut failures = Failures::default();
        let mut note = |id: &str, ended, second| failures.note(id, ended, Timestamp::from_second(second).unwrap());
        let failed = Some(OutcomeKind::Failed);
        for (id, ended) in [
            ("1", failed),
            ("1", failed),
            ("1", failed),
            ("2", failed),
            ("3", Some(OutcomeKind::Done)),
            ("4", failed),
            ("5", None),
            ("6", Some(OutcomeKind::Refused)),
            ("6", Some(OutcomeKind::Cancelled)),
        ] {
            assert!(!note(id, ended, 0), "{id}");
        }
        assert!(note("7", Some(OutcomeKind::NotBegun), 0), "the third in a row");
        for id in 10..30 {
            assert!(!note(&id.to_string(), failed, 599), "it has stepped aside lately");
        }
        assert!(["a", "b", "c"].into_iter().any(|id| note(id, failed, 600)));
    }
}
