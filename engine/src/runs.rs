//! One run: a tick of a schedule, or a startup task of a revision; what is known of it, and what comes next.
//!
//! Pure: time comes in as an argument, and the engine does what [`Run::next`] says. What is known of a run is its record
//! in the ledger, so a new leader that reads the record goes on just where the one before stopped.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

use cabloy_crds::agent_status::{Awaited, Verdict};
use cabloy_crds::files::Retry;
use cabloy_crds::vocabulary::OnUnknown;
use cabloy_redlock::record::{Record, RunResult};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::rule::{Rule, Rules};

/// How many attempts that never began a run may have beyond its retries: an end, should an app never be reached.
const NOT_BEGUN_LIMIT: u32 = 60;

/// What a claim says beside attempt and nonce; the data of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// When the attempt was claimed.
    pub at: Timestamp,
    /// Before this no other attempt starts, unless there is a result.
    pub deadline: Timestamp,
    /// The pod that runs it.
    pub pod: String,
    /// Its UID; empty where an older agent has claimed.
    #[serde(default)]
    pub uid: String,
}

/// How an attempt ended; the data of a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// What it came to.
    pub kind: OutcomeKind,
    /// The kind of failure in `CamelCase`; empty when done.
    #[serde(default)]
    pub reason: String,
    /// What the app said, shortened.
    #[serde(default)]
    pub message: String,
    /// The app asked for a pause of so many milliseconds before the next attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// When.
    pub at: Timestamp,
}

/// What an attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutcomeKind {
    /// The app did it.
    Done,
    /// It failed; another attempt may do better.
    Failed,
    /// It failed, and another attempt would fail too.
    Refused,
    /// As `Refused`, and the app wants no further ticks of this schedule.
    Disabled,
    /// The run was given up, and the agent hung up on the app: a later tick took its place.
    Cancelled,
    /// It was claimed, and the app knows nothing of it: the term ended before a majority took the claim, or there was no
    /// connection. So is a job that may or may not be in its queue, for it can be there only once.
    NotBegun,
}

impl Outcome {
    /// Whether no other attempt may follow (PROTOCOL 5).
    #[must_use]
    pub fn is_final(&self) -> bool {
        !matches!(self.kind, OutcomeKind::Failed | OutcomeKind::NotBegun)
    }

    /// That the app was not called, and will not be.
    #[must_use]
    pub fn not_begun(at: Timestamp) -> Self {
        Self {
            kind: OutcomeKind::NotBegun,
            reason: "NotBegun".to_owned(),
            message: "the term ended before a majority of the nodes took the claim".to_owned(),
            retry_after_ms: None,
            at,
        }
    }

    /// That the run was given up for a later tick.
    #[must_use]
    pub fn cancelled(at: Timestamp) -> Self {
        Self {
            kind: OutcomeKind::Cancelled,
            reason: "Cancelled".to_owned(),
            message: "a later tick fell due".to_owned(),
            retry_after_ms: None,
            at,
        }
    }
}

/// What the file says of attempts at a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// How long an attempt may take.
    pub timeout: Duration,
    /// How a failed run is tried again.
    pub retry: Retry,
    /// What becomes of a run without a result.
    pub on_unknown: OnUnknown,
}

/// An attempt that has been claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// From 1.
    pub number: u32,
    /// Its name; the result is recorded by it.
    pub nonce: String,
    /// Before this no other attempt starts, unless there is a result.
    pub deadline: Timestamp,
}

/// What is known of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The id of its record.
    pub id: String,
    last: Option<(Attempt, Stage)>,
    /// Who made the last attempt that was read in the ledger.
    by: Option<Awaited>,
    /// The ledger was asked after the deadline of the last attempt, and had no result.
    looked: bool,
    rules: Rules,
}

/// How far an attempt is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// The claim is on its way: nothing may be called yet, and nothing else be decided.
    Claiming,
    /// It has begun. `here`: this engine waits for its own call; else the ledger is asked for the result.
    Begun { here: bool },
    /// It has begun, and its pod has ended: there will be no result.
    Left,
    /// It ended.
    Ended(Outcome),
}

/// What comes next for a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Claim this attempt now.
    Claim(u32),
    /// Nothing before this moment, unless a result comes.
    Wait(Timestamp),
    /// Nothing before the ledger has been asked: a result may have been recorded just before the deadline.
    Look,
    /// Nothing before the claim that is on its way has come through, or the call that is made here has come to its end.
    Busy,
    /// It is over.
    Over(Ending),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Done, failed or unknown.
    pub verdict: Verdict,
    /// The kind of failure in `CamelCase`; empty when done.
    pub reason: String,
    /// What the app said, shortened.
    pub message: String,
    /// How many attempts were made.
    pub attempts: u32,
    /// The app wants no further ticks.
    pub disabled: bool,
    /// It was given up for a later tick.
    pub cancelled: bool,
}

impl Run {
    /// A run of which nothing has been claimed yet.
    #[must_use]
    pub fn new(id: String) -> Self {
        Self { id, last: None, by: None, looked: false, rules: Rules::default() }
    }

    /// The same, by these rules.
    #[must_use]
    pub fn under(self, rules: Rules) -> Self {
        Self { rules, ..self }
    }

    /// The run as its record has it, with everything begun elsewhere. A record of another make counts as begun, with the
    /// epoch as its deadline.
    #[must_use]
    pub fn from_record(record: &Record) -> Self {
        let mut run = Self::new(record.id.clone());
        run.read(record);
        run
    }

    /// Takes up what the ledger says by now.
    pub fn read(&mut self, record: &Record) {
        let claimed = serde_json::from_value::<Claimed>(record.data.clone()).ok();
        let deadline = claimed.as_ref().map_or(Timestamp::UNIX_EPOCH, |it| it.deadline);
        let attempt = Attempt { number: record.attempt, nonce: record.nonce.clone(), deadline };
        let stage = decisive(record).map_or(Stage::Begun { here: false }, |result| Stage::Ended(outcome(result)));
        let older = |known: &Attempt| match known.number.cmp(&attempt.number) {
            Ordering::Less => false,
            Ordering::Equal => matches!(stage, Stage::Begun { .. }),
            Ordering::Greater => true,
        };
        match &self.last {
            // What runs here is known better here, and a reading may be older than what is known by now.
            Some((_, Stage::Claiming | Stage::Begun { here: true })) if self.rules.hold(Rule::NewestKnown) => {}
            Some((known, _)) if older(known) && self.rules.hold(Rule::NewestKnown) => {}
            _ => {
                self.last = Some((attempt, stage));
                self.looked = false;
                let by = claimed.map(|Claimed { at: since, pod, uid, .. }| Awaited { pod, uid, since });
                self.by = by.filter(|by| !by.uid.is_empty());
            }
        }
    }

    /// What comes next at `now`.
    #[must_use]
    pub fn next(&self, policy: &Policy, now: Timestamp) -> Next {
        let Some((attempt, stage)) = &self.last else { return Next::Claim(1) };
        let again = attempt.number <= policy.retry.limit;
        let over = |verdict, reason: &str, message: &str| Ending {
            verdict,
            reason: reason.to_owned(),
            message: message.to_owned(),
            attempts: attempt.number,
            disabled: false,
            cancelled: false,
        };
        match stage {
            // A call ends by its deadline, whatever becomes of the time of day meanwhile.
            Stage::Claiming | Stage::Begun { here: true } => Next::Busy,
            Stage::Begun { here: false } if now < attempt.deadline && self.rules.hold(Rule::Deadline) => {
                Next::Wait(attempt.deadline)
            }
            Stage::Begun { here: false } if self.is_overdue(now) => Next::Look,
            Stage::Begun { .. } | Stage::Left if again && policy.on_unknown == OnUnknown::Retry => {
                Next::Claim(attempt.number + 1)
            }
            Stage::Left => Next::Over(over(Verdict::Unknown, "PodEnded", "its pod ended without a result")),
            Stage::Begun { .. } => {
                Next::Over(over(Verdict::Unknown, "DeadlineExceeded", "the deadline passed without a result"))
            }
            Stage::Ended(outcome) => match outcome.kind {
                OutcomeKind::Done => Next::Over(over(Verdict::Done, "", "")),
                // No attempt of the app's, and so none of its retries either.
                OutcomeKind::NotBegun if attempt.number <= policy.retry.limit.saturating_add(NOT_BEGUN_LIMIT) => {
                    let at = plus(outcome.at, Duration::from_millis(outcome.retry_after_ms.unwrap_or_default()));
                    if now < at { Next::Wait(at) } else { Next::Claim(attempt.number + 1) }
                }
                OutcomeKind::Failed if again => {
                    let pause =
                        policy.retry.delay_ms(attempt.number + 1).max(outcome.retry_after_ms.unwrap_or_default());
                    let at = plus(outcome.at, Duration::from_millis(pause));
                    if now < at { Next::Wait(at) } else { Next::Claim(attempt.number + 1) }
                }
                kind => Next::Over(Ending {
                    disabled: kind == OutcomeKind::Disabled,
                    cancelled: kind == OutcomeKind::Cancelled,
                    ..over(Verdict::Failed, &outcome.reason, &outcome.message)
                }),
            },
        }
    }

    /// How it ends if it is given up now.
    #[must_use]
    pub fn cancelled(&self) -> Ending {
        let Outcome { reason, message, .. } = Outcome::cancelled(Timestamp::UNIX_EPOCH);
        let attempts = self.attempt().map_or(0, |attempt| attempt.number);
        Ending { verdict: Verdict::Failed, reason, message, attempts, disabled: false, cancelled: true }
    }

    /// Notes that a claim is on its way.
    pub fn claiming(&mut self, attempt: Attempt) {
        self.last = Some((attempt, Stage::Claiming));
        self.looked = false;
    }

    /// Notes that the claim came through, and that the call is made here; gives the attempt.
    pub fn begun_here(&mut self) -> Option<&Attempt> {
        let (attempt, stage) = self.last.as_mut().filter(|(_, stage)| *stage == Stage::Claiming)?;
        *stage = Stage::Begun { here: true };
        Some(attempt)
    }

    /// Notes that the call for the attempt `nonce` came to no answer: whether there is a result, the ledger knows.
    pub fn unanswered(&mut self, nonce: &str) {
        let mine =
            |(attempt, stage): &&mut (Attempt, Stage)| attempt.nonce == nonce && *stage == Stage::Begun { here: true };
        if let Some((_, stage)) = self.last.as_mut().filter(mine) {
            *stage = Stage::Begun { here: false };
            // Who called would have recorded a result.
            (self.by, self.looked) = (None, true);
        }
    }

    /// Notes that the ledger, `asked` at that time, has said all that it knows.
    pub fn looked(&mut self, asked: Timestamp) {
        self.looked |= self.attempt().is_some_and(|attempt| attempt.deadline <= asked) && self.is_elsewhere();
    }

    /// Whether the deadline of an attempt that is made elsewhere has passed, and the ledger has not been asked since.
    #[must_use]
    pub fn is_overdue(&self, now: Timestamp) -> bool {
        let past = self.attempt().is_some_and(|attempt| attempt.deadline <= now);
        past && self.is_elsewhere() && !self.looked && self.rules.hold(Rule::LookFirst)
    }

    /// Whose attempt is waited for.
    #[must_use]
    pub fn awaits(&self) -> Option<&Awaited> {
        self.by.as_ref().filter(|_| self.is_elsewhere())
    }

    /// Takes up which pods have ended, and until when what they had claimed ended with them.
    pub fn heed(&mut self, ended: &BTreeMap<String, Timestamp>) {
        let covered = |since, until| since <= until || !self.rules.hold(Rule::EndedSince);
        let left = self.awaits().is_some_and(|by| ended.get(&by.uid).is_some_and(|until| covered(by.since, *until)));
        if let (Some((_, stage)), true) = (self.last.as_mut(), left) {
            *stage = Stage::Left;
        }
    }

    /// Notes that it is not known whether the claim came through: it counts as begun, and nobody calls.
    pub fn in_doubt(&mut self) {
        (self.by, self.looked) = (None, false);
        if let Some((_, stage)) = self.last.as_mut() {
            *stage = Stage::Begun { here: false };
        }
    }

    /// Notes how the attempt `nonce` ended; of any other than the last one there is nothing to note.
    pub fn ended(&mut self, nonce: &str, outcome: Outcome) {
        let by_nonce = self.rules.hold(Rule::ByNonce);
        if let Some((_, stage)) = self.last.as_mut().filter(|(attempt, _)| attempt.nonce == nonce || !by_nonce) {
            *stage = Stage::Ended(outcome);
        }
    }

    /// Notes that the ledger refused the claim, since another attempt is done already.
    pub fn refused(&mut self, result: &RunResult) {
        if let Some((_, stage)) = self.last.as_mut() {
            *stage = Stage::Ended(outcome(result));
        }
    }

    /// Whether a result may come that this engine does not wait for: the ledger is to be asked.
    #[must_use]
    pub fn is_elsewhere(&self) -> bool {
        matches!(self.last, Some((_, Stage::Begun { here: false })))
    }

    /// The last attempt, begun or not.
    #[must_use]
    pub fn attempt(&self) -> Option<&Attempt> {
        self.last.as_ref().map(|(attempt, _)| attempt)
    }

    /// The attempt that runs, here or elsewhere.
    #[must_use]
    pub fn running(&self) -> Option<&Attempt> {
        self.last.as_ref().filter(|(_, stage)| !matches!(stage, Stage::Ended(_))).map(|(attempt, _)| attempt)
    }

    /// The attempt whose claim is on its way.
    #[must_use]
    pub fn claim_on_its_way(&self) -> Option<&Attempt> {
        self.last.as_ref().filter(|(_, stage)| *stage == Stage::Claiming).map(|(attempt, _)| attempt)
    }

    /// Whether the app knows nothing of the run so far.
    #[must_use]
    pub fn has_not_begun(&self) -> bool {
        match &self.last {
            None => true,
            Some((_, stage)) => matches!(stage, Stage::Ended(outcome) if outcome.kind == OutcomeKind::NotBegun),
        }
    }

    /// How the last attempt ended, if it did.
    #[must_use]
    pub fn outcome(&self) -> Option<&Outcome> {
        match &self.last {
            Some((_, Stage::Ended(outcome))) => Some(outcome),
            _ => None,
        }
    }
}

/// The result by which the run of a record goes on, or has ended.
#[must_use]
pub fn decisive(record: &Record) -> Option<&RunResult> {
    record.results.iter().find(|result| result.done).or_else(|| record.result(&record.nonce))
}

/// A result as the ledger has it. One of another make is read by the one thing that every make has in common.
fn outcome(result: &RunResult) -> Outcome {
    serde_json::from_value(result.data.clone()).unwrap_or_else(|error| Outcome {
        kind: if result.done { OutcomeKind::Refused } else { OutcomeKind::Failed },
        reason: "UnreadableResult".to_owned(),
        message: error.to_string(),
        retry_after_ms: None,
        at: Timestamp::UNIX_EPOCH,
    })
}

/// `time` and `span`; the end of time if that is after it.
#[must_use]
pub fn plus(time: Timestamp, span: Duration) -> Timestamp {
    time.checked_add(span).unwrap_or(Timestamp::MAX)
}

/// `time` less the part of a millisecond: what is written down and sent is no finer.
#[must_use]
pub fn whole_ms(time: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time)
}

/// How long `later` is after `earlier`; zero if it is not.
#[must_use]
pub fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).unwrap()
    }

    fn policy(limit: u32, on_unknown: OnUnknown) -> Policy {
        let retry = Retry { limit, initial_delay_ms: 100, factor: 2.0, max_delay_ms: 1_000 };
        Policy { timeout: Duration::from_secs(1), retry, on_unknown }
    }

    fn outcome(kind: OutcomeKind, ms: i64) -> Outcome {
        Outcome { kind, reason: "R".into(), message: "m".into(), retry_after_ms: None, at: at(ms) }
    }

    fn claim(run: &mut Run, number: u32, deadline: i64) {
        run.claiming(Attempt { number, nonce: format!("n{number}"), deadline: at(deadline) });
    }

    fn verdict(next: &Next) -> Option<(Verdict, u32)> {
        match next {
            Next::Over(ending) => Some((ending.verdict, ending.attempts)),
            _ => None,
        }
    }

    #[test]
    fn a_run_is_claimed_called_and_done() {
        let policy = policy(0, OnUnknown::Skip);
        let mut run = Run::new("s/a/1".into());
        assert_eq!(run.next(&policy, at(0)), Next::Claim(1));
        claim(&mut run, 1, 1_000);
        assert_eq!(run.next(&policy, at(5_000)), Next::Busy, "nothing is decided over a claim in doubt");
        assert_eq!(run.begun_here().unwrap().nonce, "n1");
        assert!(run.begun_here().is_none(), "a call is made once");
        assert_eq!(run.next(&policy, at(2_000)), Next::Busy, "the call is here, and ends in time by itself");
        run.ended("n0", outcome(OutcomeKind::Failed, 500));
        run.unanswered("n0");
        assert_eq!(run.next(&policy, at(999)), Next::Busy, "a stranger's result is no result");
        run.ended("n1", outcome(OutcomeKind::Done, 500));
        assert_eq!(verdict(&run.next(&policy, at(999))), Some((Verdict::Done, 1)));
    }

    #[test]
    fn failures_are_tried_again_as_often_and_as_late_as_allowed() {
        let policy = policy(2, OnUnknown::Skip);
        let mut run = Run::new("s/a/1".into());
        for (number, pause) in [(1, 100), (2, 200)] {
            claim(&mut run, number, 1_000);
            run.begun_here();
            run.ended(&format!("n{number}"), outcome(OutcomeKind::Failed, 500));
            assert_eq!(run.next(&policy, at(500)), Next::Wait(at(500 + pause)));
            assert_eq!(run.next(&policy, at(500 + pause)), Next::Claim(number + 1));
        }
        claim(&mut run, 3, 1_000);
        run.begun_here();
        run.ended("n3", outcome(OutcomeKind::Failed, 500));
        assert_eq!(verdict(&run.next(&policy, at(500))), Some((Verdict::Failed, 3)));
    }

    #[test]
    fn a_refusal_is_final_and_the_app_s_own_pause_is_kept() {
        let policy = policy(2, OnUnknown::Retry);
        let mut run = Run::new("s/a/1".into());
        claim(&mut run, 1, 1_000);
        run.begun_here();
        run.ended("n1", Outcome { retry_after_ms: Some(900), ..outcome(OutcomeKind::Failed, 500) });
        assert_eq!(run.next(&policy, at(600)), Next::Wait(at(1_400)));
        run.ended("n1", outcome(OutcomeKind::Refused, 500));
        assert_eq!(verdict(&run.next(&policy, at(600))), Some((Verdict::Failed, 1)));
    }

    #[test]
    fn a_run_that_was_given_up_is_over_whatever_retries_it_had() {
        let policy = policy(2, OnUnknown::Retry);
        let mut run = Run::new("s/a/1".into());
        claim(&mut run, 1, 1_000);
        run.begun_here();
        let cancelled = Outcome::cancelled(at(500));
        assert!(cancelled.is_final());
        run.ended("n1", cancelled);
        let Next::Over(ending) = run.next(&policy, at(600)) else { panic!("it is over") };
        assert_eq!((ending.verdict, &*ending.reason, ending.cancelled), (Verdict::Failed, "Cancelled", true));
        assert_eq!(ending, run.cancelled());
    }

    #[test]
    fn an_attempt_that_never_began_is_followed_by_the_next_at_once() {
        let policy = policy(0, OnUnknown::Skip);
        let not_begun = Outcome::not_begun(at(200));
        let result = RunResult { nonce: "n1".into(), done: not_begun.is_final(), data: json!(not_begun) };
        let run = Run::from_record(&record(1, 300_000, vec![result]));
        assert_eq!(run.next(&policy, at(200)), Next::Claim(2), "though no retry is allowed");
        let mut run = Run::new("s/a/1".into());
        for (number, next) in [(1, Next::Wait(at(700))), (60, Next::Wait(at(700)))] {
            claim(&mut run, number, 300_000);
            run.begun_here();
            run.ended(&format!("n{number}"), Outcome { retry_after_ms: Some(500), ..Outcome::not_begun(at(200)) });
            assert_eq!(run.next(&policy, at(699)), next);
            assert_eq!(run.next(&policy, at(700)), Next::Claim(number + 1));
        }
        claim(&mut run, 61, 300_000);
        run.begun_here();
        run.ended("n61", Outcome::not_begun(at(200)));
        assert_eq!(verdict(&run.next(&policy, at(700))), Some((Verdict::Failed, 61)), "but not for ever");
    }

    #[test]
    fn without_a_result_the_deadline_rules() {
        for (on_unknown, limit, expected) in
            [(OnUnknown::Skip, 2, None), (OnUnknown::Retry, 2, Some(Next::Claim(2))), (OnUnknown::Retry, 0, None)]
        {
            let policy = policy(limit, on_unknown);
            let mut run = Run::new("s/a/1".into());
            claim(&mut run, 1, 1_000);
            run.in_doubt();
            assert!(run.is_elsewhere());
            assert_eq!(run.next(&policy, at(999)), Next::Wait(at(1_000)));
            assert_eq!(run.next(&policy, at(1_000)), Next::Look, "a result may just have been recorded");
            run.looked(at(999));
            assert_eq!(run.next(&policy, at(1_000)), Next::Look, "that was too early");
            run.looked(at(1_000));
            let next = run.next(&policy, at(1_000));
            match expected {
                Some(expected) => assert_eq!(next, expected),
                None => assert_eq!(verdict(&next), Some((Verdict::Unknown, 1))),
            }
        }
    }

    /// What a leader writes about a run, as the next leader reads it.
    fn record(attempt: u32, deadline: i64, results: Vec<RunResult>) -> Record {
        let data = json!(Claimed { at: at(0), deadline: at(deadline), pod: "p".into(), uid: "u".into() });
        Record { id: "s/a/1".into(), attempt, token: 1, seq: 1, nonce: format!("n{attempt}"), data, results }
    }

    #[test]
    fn a_new_leader_goes_on_from_the_record() {
        let policy = policy(3, OnUnknown::Retry);
        let open = record(2, 1_000, vec![]);
        let mut run = Run::from_record(&open);
        assert_eq!(run.next(&policy, at(999)), Next::Wait(at(1_000)));
        let failed = RunResult { nonce: "n2".into(), done: false, data: json!(outcome(OutcomeKind::Failed, 900)) };
        run.read(&record(2, 1_000, vec![failed]));
        assert_eq!(run.next(&policy, at(999)), Next::Wait(at(900 + 200)));
        let late = RunResult { nonce: "n1".into(), done: true, data: json!(outcome(OutcomeKind::Done, 950)) };
        let run = Run::from_record(&record(2, 1_000, vec![late]));
        assert_eq!(verdict(&run.next(&policy, at(999))), Some((Verdict::Done, 2)), "done by whichever attempt is done");
    }

    #[test]
    fn what_a_pod_had_begun_when_it_ended_is_waited_for_no_longer() {
        let mut run = Run::from_record(&record(1, 300_000, vec![]));
        let pod = run.awaits().unwrap().uid.clone();
        let ended = |uid: &str, until: i64| BTreeMap::from([(uid.to_owned(), at(until))]);
        run.heed(&ended("another", 500));
        run.heed(&ended(&pod, -1));
        let policy_of = |on_unknown| policy(3, on_unknown);
        assert_eq!(run.next(&policy_of(OnUnknown::Retry), at(600)), Next::Wait(at(300_000)), "it has begun since");
        run.heed(&ended(&pod, 0));
        assert_eq!(run.awaits(), None);
        run.read(&record(1, 300_000, vec![]));
        assert_eq!(run.next(&policy_of(OnUnknown::Retry), at(600)), Next::Claim(2));
        assert_eq!(verdict(&run.next(&policy_of(OnUnknown::Skip), at(600))), Some((Verdict::Unknown, 1)));
        let done = RunResult { nonce: "n1".into(), done: true, data: json!(outcome(OutcomeKind::Done, 550)) };
        run.read(&record(1, 300_000, vec![done]));
        assert_eq!(verdict(&run.next(&policy_of(OnUnknown::Retry), at(600))), Some((Verdict::Done, 1)), "it was");
    }

    #[test]
    fn an_old_reading_undoes_nothing() {
        let policy = policy(3, OnUnknown::Retry);
        let mut run = Run::from_record(&record(1, 1_000, vec![]));
        claim(&mut run, 2, 2_000);
        run.read(&record(1, 1_000, vec![]));
        assert_eq!(run.next(&policy, at(1_500)), Next::Busy);
        run.begun_here();
        run.ended("n2", outcome(OutcomeKind::Done, 1_600));
        run.read(&record(1, 1_000, vec![]));
        assert_eq!(verdict(&run.next(&policy, at(1_700))), Some((Verdict::Done, 2)));
    }

    proptest! {
        /// Whatever happens, attempt n+1 is claimed only after a result of attempt n, or its deadline; attempts count up
        /// by one, and no more of them are claimed than the file allows.
        #[test]
        fn attempts_follow_one_another(limit in 0_u32..4, retry_unknown: bool, steps in prop::collection::vec((0_u8..6, 0_i64..400), 1..60)) {
            let policy = policy(limit, if retry_unknown { OnUnknown::Retry } else { OnUnknown::Skip });
            let mut run = Run::new("s/a/1".into());
            let (mut now, mut last, mut ended) = (0, 0, true);
            for (what, after) in steps {
                now += after;
                let deadline = run.attempt().map(|it| it.deadline);
                match run.next(&policy, at(now)) {
                    Next::Claim(number) => {
                        prop_assert_eq!(number, last + 1);
                        prop_assert!(number <= limit + 1);
                        prop_assert!(ended || deadline.is_some_and(|it| it <= at(now)));
                        claim(&mut run, number, now + 1_000);
                        (last, ended) = (number, false);
                    }
                    Next::Over(_) => break,
                    Next::Wait(until) => prop_assert!(until > at(now)),
                    Next::Look => run.looked(at(now)),
                    Next::Busy if run.claim_on_its_way().is_none() => run.unanswered(&format!("n{last}")),
                    Next::Busy => match what {
                        0 => run.in_doubt(),
                        _ => prop_assert!(run.begun_here().is_some()),
                    },
                }
                if what == 1 && matches!(run.last, Some((_, Stage::Begun { .. }))) {
                    run.ended(&format!("n{last}"), outcome(OutcomeKind::Failed, now));
                    ended = true;
                }
            }
        }
    }
}
