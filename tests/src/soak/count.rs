//! What the apps have been called for, and what must be true of that.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

/// A call of an agent, as the app reads it.
#[derive(Clone, Debug)]
pub struct Call {
    /// `Idempotency-Key`
    pub key: String,
    /// The schedule.
    pub schedule: String,
    /// When its tick was due, in milliseconds since the Unix epoch.
    pub tick: i64,
    /// `Attempt`
    pub attempt: u32,
    /// `Fencing-Token`
    pub token: u64,
    /// `Deadline`
    pub deadline: Timestamp,
}

/// How far an attempt is that an app has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Done,
    Failed,
    /// It went with its app.
    Killed,
}

#[derive(Debug)]
struct Attempt {
    /// The process of an app that began it.
    app: u64,
    deadline: Timestamp,
    state: State,
}

/// All that apps have begun, whichever of them.
#[derive(Debug, Default)]
pub struct Count {
    runs: BTreeMap<String, BTreeMap<u32, Attempt>>,
    /// By schedule, the ticks that were done.
    done: BTreeMap<String, BTreeSet<i64>>,
    /// The pod that was first seen with each token.
    owners: BTreeMap<u64, usize>,
    /// From when a tick was due to when an app began it, in milliseconds.
    pub lateness: Vec<i64>,
    /// Attempts that an app has begun.
    pub attempts: u64,
    /// Calls that an app answered without beginning anything.
    pub repeated: u64,
    /// What must not have happened, and did.
    pub violations: Vec<String>,
}

impl Count {
    /// An app of `pod` begins an attempt.
    pub fn begin(&mut self, pod: usize, app: u64, call: &Call, now: Timestamp) {
        let Call { key, tick, attempt, token, deadline, .. } = call;
        self.attempts += 1;
        let owner = *self.owners.entry(*token).or_insert(pod);
        if owner != pod {
            self.violations.push(format!("token {token} is of pods {owner} and {pod} ({key})"));
        }
        let attempts = self.runs.entry(key.clone()).or_default();
        if attempts.is_empty() {
            self.lateness.push(now.as_millisecond() - tick);
        }
        for (number, other) in attempts.iter() {
            if number == attempt {
                self.violations.push(format!("{key} attempt {attempt} has begun twice, first {:?}", other.state));
            } else if other.state == State::Running && now < other.deadline {
                self.violations.push(format!("{key} attempt {attempt} has begun while attempt {number} runs"));
            }
        }
        attempts.insert(*attempt, Attempt { app, deadline: *deadline, state: State::Running });
    }

    /// What an app had begun has ended.
    pub fn end(&mut self, call: &Call, done: bool) {
        if let Some(attempt) = self.runs.get_mut(&call.key).and_then(|attempts| attempts.get_mut(&call.attempt)) {
            attempt.state = if done { State::Done } else { State::Failed };
        }
        if done {
            self.done.entry(call.schedule.clone()).or_default().insert(call.tick);
        }
    }

    /// An app was killed, and all that it worked at went with it.
    pub fn killed(&mut self, app: u64) {
        for attempt in self.runs.values_mut().flat_map(BTreeMap::values_mut) {
            if attempt.app == app && attempt.state == State::Running {
                attempt.state = State::Killed;
            }
        }
    }

    /// The pod with the highest token.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        self.owners.last_key_value().map(|(_, pod)| *pod)
    }

    /// How many leaders were seen.
    #[must_use]
    pub fn leaders(&self) -> usize {
        self.owners.len()
    }

    /// How many runs an app has begun.
    #[must_use]
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// Whether the tick of a schedule was done.
    #[must_use]
    pub fn is_done(&self, schedule: &str, tick: i64) -> bool {
        self.done.get(schedule).is_some_and(|ticks| ticks.contains(&tick))
    }

    /// What is known of a tick, for whoever looks for its loss.
    #[must_use]
    pub fn tell(&self, schedule: &str, tick: i64) -> String {
        let time = Timestamp::from_millisecond(tick).unwrap_or_default();
        let end = format!("/{schedule}@{time}\"");
        let attempts = self.runs.iter().find(|(key, _)| key.ends_with(&end)).map(|(_, attempts)| attempts);
        format!("{schedule}@{time}: {attempts:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(attempt: u32, token: u64) -> Call {
        Call {
            key: "\"prod/soak/a@1970-01-01T00:00:01Z\"".into(),
            schedule: "a".into(),
            tick: 1_000,
            attempt,
            token,
            deadline: at(5_000),
        }
    }

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).expect("it is a time")
    }

    #[test]
    fn a_second_start_and_one_beside_another_are_seen() {
        let mut count = Count::default();
        count.begin(0, 1, &call(1, 7), at(1_200));
        count.begin(0, 1, &call(1, 7), at(1_300));
        assert_eq!(count.violations.len(), 1, "{:?}", count.violations);
        count.begin(1, 2, &call(2, 8), at(1_400));
        assert_eq!(count.violations.len(), 2, "the first one still runs");
        count.begin(2, 3, &call(3, 8), at(6_000));
        assert_eq!(count.violations.len(), 3, "a token of two pods, and no more: both deadlines have passed");
        assert_eq!((count.lateness.as_slice(), count.leader(), count.leaders()), (&[200][..], Some(1), 2));
    }

    #[test]
    fn what_was_killed_or_has_failed_may_be_done_again() {
        let mut count = Count::default();
        count.begin(0, 1, &call(1, 7), at(1_200));
        count.killed(1);
        count.begin(1, 2, &call(2, 8), at(1_400));
        count.end(&call(2, 8), false);
        assert!(!count.is_done("a", 1_000));
        count.begin(1, 2, &call(3, 8), at(1_500));
        count.end(&call(3, 8), true);
        assert!(count.is_done("a", 1_000) && !count.is_done("a", 2_000));
        assert!(count.violations.is_empty(), "{:?}", count.violations);
        assert!(count.tell("a", 1_000).contains("Killed"), "{}", count.tell("a", 1_000));
    }
}
