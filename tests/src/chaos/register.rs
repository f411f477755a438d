//! The set that all apps write to, and what must be true of the calls that reach it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A call of an agent, as its app passes it on.
#[derive(Debug, Clone, Deserialize)]
pub struct Call {
    /// The process of the agent, as `<pod>.<start>`.
    pub agent: String,
    /// `Idempotency-Key`
    pub key: String,
    /// `Attempt`
    pub attempt: u32,
    /// `Fencing-Token`
    pub token: u64,
    /// `Deadline`, in milliseconds since the Unix epoch.
    pub deadline: i64,
}

/// The call's token is lower than one that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Stale {
    /// The highest that was seen.
    pub token: u64,
}

/// An attempt that has reached an app.
#[derive(Debug)]
struct Attempt {
    began: Instant,
    deadline: i64,
    running: bool,
}

/// A call reaches the app within that time after it was claimed.
const ON_ITS_WAY: Duration = Duration::from_secs(5);

/// A set of elements that is read and written as a whole, as in Jepsen's lock-set: what is acknowledged and yet missing
/// was overwritten by somebody who thought to be alone.
#[derive(Debug)]
pub struct Register {
    guarded: bool,
    set: Vec<String>,
    acknowledged: BTreeSet<String>,
    highest: u64,
    /// The agent process that was first seen with each token.
    owners: BTreeMap<u64, String>,
    runs: BTreeMap<String, BTreeMap<u32, Attempt>>,
    /// When the holder of the highest token was last heard of.
    heard: Option<Instant>,
    counts: Counts,
    gaps: Vec<Duration>,
    violations: Vec<String>,
    /// When clocks of servers were shifted last, which deadlines go by.
    shifted: Option<Instant>,
}

/// What has been seen, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Attempts that have reached an app.
    pub calls: u64,
    /// Elements that were written.
    pub accepted: u64,
    /// Reads and writes whose token was stale.
    pub stale: u64,
}

impl Register {
    /// An empty one; whether it refuses stale tokens is `guarded`.
    #[must_use]
    pub fn new(guarded: bool) -> Self {
        Self {
            guarded,
            set: Vec::new(),
            acknowledged: BTreeSet::new(),
            highest: 0,
            owners: BTreeMap::new(),
            runs: BTreeMap::new(),
            heard: None,
            counts: Counts::default(),
            gaps: Vec::new(),
            violations: Vec::new(),
            shifted: None,
        }
    }

    /// The first half of a call: all of the set.
    ///
    /// # Errors
    /// The token is stale, and the register is guarded.
    pub fn read(&mut self, call: &Call) -> Result<Vec<String>, Stale> {
        self.counts.calls += 1;
        self.begin(call);
        let first = self.owners.entry(call.token).or_insert_with(|| call.agent.clone());
        if *first != call.agent {
            let both = format!("{first} and {}", call.agent);
            self.violations.push(format!("token {} is of both {both} ({})", call.token, call.key));
        }
        let admitted = self.admit(call);
        if admitted.is_err() {
            self.end(call);
        }
        admitted.map(|()| self.set.clone())
    }

    /// The second half: the set with the call's own element.
    ///
    /// # Errors
    /// The token is stale, and the register is guarded.
    pub fn write(&mut self, call: &Call, set: Vec<String>) -> Result<(), Stale> {
        let admitted = self.admit(call);
        self.end(call);
        admitted?;
        self.counts.accepted += 1;
        self.acknowledged.extend(set.last().cloned());
        self.set = set;
        Ok(())
    }

    fn admit(&mut self, call: &Call) -> Result<(), Stale> {
        if call.token < self.highest {
            self.counts.stale += 1;
            return if self.guarded { Err(Stale { token: self.highest }) } else { Ok(()) };
        }
        let now = Instant::now();
        if call.token > self.highest {
            self.gaps.extend(self.heard.map(|heard| now - heard));
            self.highest = call.token;
        }
        self.heard = Some(now);
        Ok(())
    }

    fn begin(&mut self, call: &Call) {
        let attempts = self.runs.entry(call.key.clone()).or_default();
        let attempt = Attempt { began: Instant::now(), deadline: call.deadline, running: true };
        let shifted = self.shifted;
        let by_these_clocks = |attempt: &Attempt| shifted.is_none_or(|shifted| shifted + ON_ITS_WAY < attempt.began);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let open = attempts.range(..call.attempt).find(|(_, attempt)| {
            let open = u128::try_from(attempt.deadline).is_ok_and(|deadline| now < deadline);
            attempt.running && open && by_these_clocks(attempt)
        });
        if let Some((open, _)) = open {
            let text = format!("{} attempt {} began while {open} was running", call.key, call.attempt);
            self.violations.push(text);
        }
        if attempts.insert(call.attempt, attempt).is_some() {
            self.violations.push(format!("{} attempt {} began twice", call.key, call.attempt));
        }
    }

    fn end(&mut self, call: &Call) {
        let attempt = self.runs.get_mut(&call.key).and_then(|attempts| attempts.get_mut(&call.attempt));
        if let Some(attempt) = attempt {
            attempt.running = false;
        }
    }

    /// The clocks of servers are about to be shifted: deadlines that were set by them are not theirs any more.
    pub fn clocks_shift(&mut self) {
        self.shifted = Some(Instant::now());
    }

    /// What was acknowledged and is missing.
    #[must_use]
    pub fn lost(&self) -> Vec<String> {
        let present: BTreeSet<_> = self.set.iter().collect();
        self.acknowledged.iter().filter(|element| !present.contains(element)).cloned().collect()
    }

    /// What must not have happened, and did.
    #[must_use]
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// Whether nothing was lost or violated.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.lost().is_empty() && self.violations.is_empty()
    }

    /// The agent process with the highest token.
    #[must_use]
    pub fn leader(&self) -> Option<&str> {
        self.owners.get(&self.highest).map(String::as_str)
    }

    /// The highest token, 0 if there is none.
    #[must_use]
    pub fn highest(&self) -> u64 {
        self.highest
    }

    /// What has been seen, in numbers.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// How many ticks have reached an app.
    #[must_use]
    pub fn ticks(&self) -> usize {
        self.runs.len()
    }

    /// By token, the agent processes that have called an app as leaders.
    #[must_use]
    pub fn terms(&self) -> &BTreeMap<u64, String> {
        &self.owners
    }

    /// From the last that was heard of a leader to the first of the next, by the rise of the token.
    #[must_use]
    pub fn gaps(&self) -> &[Duration] {
        &self.gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(agent: &str, tick: u32, attempt: u32, token: u64) -> Call {
        Call { agent: agent.into(), key: tick.to_string(), attempt, token, deadline: i64::MAX }
    }

    fn add(mut set: Vec<String>, element: &str) -> Vec<String> {
        set.push(element.into());
        set
    }

    /// An old leader reads, a new one does its work, and the old one writes.
    fn overtaken(guarded: bool) -> (Register, Result<(), Stale>) {
        let mut register = Register::new(guarded);
        let old = call("a.1", 1, 1, 1);
        let seen = register.read(&old).unwrap();
        let new = call("b.1", 2, 1, 2);
        let set = register.read(&new).unwrap();
        register.write(&new, add(set, "2")).unwrap();
        let late = register.write(&old, add(seen, "1"));
        (register, late)
    }

    #[test]
    fn a_guard_keeps_what_was_acknowledged() {
        let (register, late) = overtaken(true);
        assert_eq!(late, Err(Stale { token: 2 }));
        assert_eq!((register.lost(), register.violations().len()), (vec![], 0));
        assert_eq!(register.counts(), Counts { calls: 2, accepted: 1, stale: 1 });
        assert_eq!((register.leader(), register.terms().len(), register.gaps().len()), (Some("b.1"), 2, 1));
    }

    #[test]
    fn without_one_it_is_lost() {
        let (register, late) = overtaken(false);
        assert_eq!(late, Ok(()));
        assert_eq!(register.lost(), ["2"]);
    }

    #[test]
    fn a_token_of_two_agents_is_seen() {
        let mut register = Register::new(true);
        let _ = register.read(&call("a.1", 1, 1, 1));
        let _ = register.read(&call("a.2", 2, 1, 1));
        assert_eq!(register.violations(), ["token 1 is of both a.1 and a.2 (2)"]);
    }

    #[test]
    fn an_attempt_that_begins_twice_or_too_early_is_seen() {
        let mut register = Register::new(true);
        let first = call("a.1", 1, 1, 1);
        let _ = register.read(&first);
        let _ = register.read(&call("b.1", 1, 2, 2));
        let _ = register.read(&call("c.1", 1, 2, 3));
        assert_eq!(
            register.violations(),
            [
                "1 attempt 2 began while 1 was running",
                "1 attempt 2 began while 1 was running",
                "1 attempt 2 began twice"
            ]
        );

        let mut register = Register::new(true);
        let set = register.read(&first).unwrap();
        register.write(&first, set).unwrap();
        let _ = register.read(&call("b.1", 1, 2, 2));
        let _ = register.read(&Call { deadline: 1, ..call("b.1", 1, 3, 2) });
        assert_eq!(register.violations(), ["1 attempt 3 began while 2 was running"]);
        let _ = register.read(&call("b.1", 1, 4, 2));
        assert_eq!(register.violations().len(), 2, "attempt 3 is past its deadline, and 2 is not");

        let mut register = Register::new(true);
        let _ = register.read(&first);
        register.clocks_shift();
        let _ = register.read(&call("b.1", 1, 2, 2));
        assert!(register.is_clean(), "by the clocks of now the first has no time left");
    }
}
