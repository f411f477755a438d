//! How the end of an attempt gets into the ledger. That outlives the term in which the attempt was claimed: an end is
//! recorded by the attempt's nonce, whoever leads by then (PROTOCOL 6).

use std::time::Duration;

use cabloy_redlock::ledger::FinishError;
use cabloy_redlock::record::RunResult;
use jiff::Timestamp;
use serde_json::json;

use crate::runs::{Attempt, Outcome, plus};

/// How long after the deadline the result of a call is still tried to be recorded.
const FINISH: Duration = Duration::from_mins(1);

/// How long an agent tries to say that an attempt it claimed has not begun.
const DISOWN: Duration = Duration::from_mins(1);

/// How long it waits before it says so again.
const PAUSE: Duration = Duration::from_millis(250);

/// An end that is to be recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Recording {
    /// The run.
    pub id: String,
    /// What is to be recorded.
    pub result: RunResult,
    until: Timestamp,
    /// No call was made for the attempt. A claim that is the current one nowhere yet may become so, when the next leader
    /// writes back what it read.
    insists: bool,
}

/// What comes after an answer of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum After {
    /// It is recorded.
    Recorded,
    /// It is to be tried again after this time.
    Again(Duration),
    /// It is not recorded, and nobody tries any more.
    GivenUp(FinishError),
}

impl Recording {
    /// How a call ended.
    #[must_use]
    pub fn of_call(id: String, attempt: &Attempt, outcome: &Outcome) -> Self {
        Self::new(id, attempt, outcome, plus(attempt.deadline, FINISH), false)
    }

    /// Of an attempt that another agent makes, or nobody, that it was cancelled. From its deadline on the run is over
    /// anyway.
    #[must_use]
    pub fn of_cancelled(id: String, attempt: &Attempt, outcome: &Outcome) -> Self {
        Self::new(id, attempt, outcome, attempt.deadline, true)
    }

    /// Of an attempt whose claim is in doubt, at `now`, that it has not begun: any node may have the claim, and the next
    /// leader, which counts it as begun, need not wait for its deadline then.
    #[must_use]
    pub fn of_disowned(id: String, attempt: &Attempt, now: Timestamp) -> Self {
        Self::new(id, attempt, &Outcome::not_begun(now), attempt.deadline.min(plus(now, DISOWN)), true)
    }

    fn new(id: String, attempt: &Attempt, outcome: &Outcome, until: Timestamp, insists: bool) -> Self {
        let result = RunResult { nonce: attempt.nonce.clone(), done: outcome.is_final(), data: json!(outcome) };
        Self { id, result, until, insists }
    }

    /// What comes after this answer to an attempt to record it.
    #[must_use]
    pub fn after(&self, answer: Result<(), FinishError>, now: Timestamp) -> After {
        let Err(error) = answer else { return After::Recorded };
        let may_help = match error {
            FinishError::Unreachable => true,
            FinishError::NotCurrent => self.insists,
            FinishError::Ended => false,
        };
        if !may_help || now > self.until {
            return After::GivenUp(error);
        }
        After::Again(if self.insists { PAUSE } else { Duration::ZERO })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).unwrap()
    }

    fn attempt() -> Attempt {
        Attempt { number: 1, nonce: "n1".into(), deadline: at(300_000) }
    }

    #[test]
    fn the_end_of_a_call_is_recorded_until_a_minute_after_its_deadline_or_until_another_attempt_has_begun() {
        let recording = Recording::of_call("s/a/1".into(), &attempt(), &Outcome::cancelled(at(5)));
        assert!(recording.result.done && recording.result.nonce == "n1");
        assert_eq!(recording.after(Ok(()), at(0)), After::Recorded);
        assert_eq!(recording.after(Err(FinishError::Unreachable), at(360_000)), After::Again(Duration::ZERO));
        let given_up = After::GivenUp(FinishError::Unreachable);
        assert_eq!(recording.after(Err(FinishError::Unreachable), at(360_001)), given_up);
        assert_eq!(recording.after(Err(FinishError::NotCurrent), at(0)), After::GivenUp(FinishError::NotCurrent));
    }

    #[test]
    fn what_was_not_called_is_insisted_on_while_somebody_may_wait_for_it() {
        let disowned = Recording::of_disowned("s/a/1".into(), &attempt(), at(1_000));
        assert!(!disowned.result.done);
        assert_eq!(disowned.after(Err(FinishError::NotCurrent), at(61_000)), After::Again(PAUSE));
        assert_eq!(disowned.after(Err(FinishError::NotCurrent), at(61_001)), After::GivenUp(FinishError::NotCurrent));
        let cancelled = Recording::of_cancelled("s/a/1".into(), &attempt(), &Outcome::cancelled(at(5)));
        assert_eq!(cancelled.after(Err(FinishError::NotCurrent), at(300_000)), After::Again(PAUSE));
        assert_eq!(cancelled.after(Err(FinishError::Ended), at(0)), After::GivenUp(FinishError::Ended));
    }
}
