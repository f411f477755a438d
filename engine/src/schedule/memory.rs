//! What is remembered of a schedule, whoever leads.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use cabloy_crds::agent_status::{TickResult, Verdict};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::occasion::Occasion;

/// How many results a schedule remembers.
const RESULTS: usize = 10;

/// How many triggers and backfills are remembered that are in the file no more.
const HANDLED: usize = 50;

/// What is remembered of a schedule: the data of its record `m/<schedule>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// When a leader first saw it; no tick before is run.
    pub created: Timestamp,
    /// All ticks up to this one have been dealt with, or wait, or are open.
    pub low_water: Timestamp,
    /// All ticks up to this one are over. Says no more than the fields beside it; it is what the first version knew.
    pub settled: Timestamp,
    /// Ticks up to the low-water mark that are still to be run, in order.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    pub waiting: VecDeque<Timestamp>,
    /// Ticks up to the low-water mark whose runs had been taken up and were not over. Absent in what the first version wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<BTreeSet<Timestamp>>,
    /// The schedule of the app's own that was taken over: as long as the schedule is to do so, it has ticks of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_over: Option<String>,
    /// Ticks that wait or are open and that the app had left to be run, and for which instances, where that is not said by
    /// the schedule.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub owed: BTreeMap<Timestamp, Vec<String>>,
    /// By what rule; ticks of another one are not caught up.
    pub rule: String,
    /// It was suspended; ticks from that time are not caught up.
    #[serde(default)]
    pub suspended: bool,
    /// The app wants no further ticks of the schedule as this digest has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<String>,
    /// A run of the schedule as this digest has it has failed, and it is to pause then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<String>,
    /// Triggers (`t/<id>`) and backfills (`b/<id>`) that are over, in that order.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    pub handled: VecDeque<String>,
    /// How far the backfills are that are not over: by id, the last tick that is.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub backfilled: BTreeMap<String, Timestamp>,
    /// What the last runs came to, newest first.
    #[serde(default)]
    pub results: VecDeque<TickResult>,
    /// Runs that were done.
    #[serde(default)]
    pub done: u64,
    /// Runs that failed or whose result is not known.
    #[serde(default)]
    pub failed: u64,
    /// Ticks that were dropped because one before still ran.
    #[serde(default)]
    pub skipped: u64,
    /// Ticks that nobody could run in time.
    #[serde(default)]
    pub missed: u64,
}

impl Memory {
    /// Of a schedule that nobody has seen before `now`.
    #[must_use]
    pub fn new(created: Timestamp, now: Timestamp, rule: String, suspended: bool) -> Self {
        Self {
            created,
            low_water: now,
            settled: now,
            waiting: VecDeque::new(),
            open: None,
            taken_over: None,
            owed: BTreeMap::new(),
            rule,
            suspended,
            disabled: None,
            paused: None,
            handled: VecDeque::new(),
            backfilled: BTreeMap::new(),
            results: VecDeque::new(),
            done: 0,
            failed: 0,
            skipped: 0,
            missed: 0,
        }
    }

    /// Whether a run is over: a record that says otherwise was brought back by a node that slept.
    #[must_use]
    pub fn is_over(&self, occasion: &Occasion) -> bool {
        match occasion {
            Occasion::Tick(tick) => {
                let left = |open: &BTreeSet<_>| open.contains(tick) || self.waiting.contains(tick);
                *tick <= self.settled || *tick <= self.low_water && self.open.as_ref().is_some_and(|open| !left(open))
            }
            Occasion::Trigger(id) => self.is_handled(&trigger_name(id)),
            Occasion::Backfill { tick, id } => {
                self.is_handled(&backfill_name(id)) || self.backfilled.get(id).is_some_and(|last| tick <= last)
            }
        }
    }

    /// Whether a trigger or backfill is over, by its name here.
    #[must_use]
    pub fn is_handled(&self, name: &str) -> bool {
        self.handled.iter().any(|handled| handled == name)
    }

    /// Notes that a trigger or backfill is over. Of those that are not `wanted` any more only the last are remembered.
    pub fn handle(&mut self, name: String, wanted: impl Fn(&str) -> bool) {
        if let Some(id) = name.strip_prefix("b/") {
            self.backfilled.remove(id);
        }
        self.handled.push_back(name);
        let mut surplus = self.handled.iter().filter(|name| !wanted(name)).count().saturating_sub(HANDLED);
        self.handled.retain(|name| {
            let goes = surplus > 0 && !wanted(name);
            surplus -= usize::from(goes);
            !goes
        });
    }

    /// Notes how far a backfill is. Of those that are not `wanted` any more only some are remembered.
    pub fn backfill(&mut self, id: &str, tick: Timestamp, wanted: impl Fn(&str) -> bool) {
        self.backfilled.insert(id.to_owned(), tick);
        let mut surplus = self.backfilled.keys().filter(|id| !wanted(id)).count().saturating_sub(HANDLED);
        self.backfilled.retain(|known, _| {
            let goes = surplus > 0 && known != id && !wanted(known);
            surplus -= usize::from(goes);
            !goes
        });
    }

    /// Takes in what a run came to.
    pub fn add(&mut self, result: TickResult) {
        match result.verdict {
            Verdict::Done => self.done += 1,
            Verdict::Failed | Verdict::Unknown => self.failed += 1,
        }
        self.results.push_front(result);
        self.results.truncate(RESULTS);
    }
}

/// The name of a trigger among those that are over.
pub(super) fn trigger_name(id: &str) -> String {
    format!("t/{id}")
}

/// The name of a backfill among those that are over.
pub(super) fn backfill_name(id: &str) -> String {
    format!("b/{id}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn memory() -> Memory {
        Memory::new(at(0), at(0), "every 1000 ms".into(), false)
    }

    #[test]
    fn what_the_first_version_wrote_is_read() {
        let memory: Memory = serde_json::from_value(json!({
            "created": at(0), "lowWater": at(9), "settled": at(5), "waiting": [at(8)], "rule": "every 1000 ms",
            "suspended": false, "done": 3, "failed": 1, "skipped": 1, "missed": 0,
            "results": [{"tick": at(5), "verdict": "Done", "attempts": 1, "at": at(5)}],
        }))
        .unwrap();
        let is_over = |second| memory.is_over(&Occasion::Tick(at(second)));
        assert_eq!([5, 6, 8, 10].map(is_over), [true, false, false, false], "what was open is not known");
        assert!(memory.open.is_none() && memory.handled.is_empty());
    }

    #[test]
    fn of_ticks_side_by_side_each_is_known_to_be_over_or_not() {
        let memory = Memory {
            settled: at(2),
            low_water: at(9),
            open: Some([at(4)].into()),
            waiting: [at(8)].into(),
            ..memory()
        };
        let is_over = |second| memory.is_over(&Occasion::Tick(at(second)));
        assert_eq!([1, 3, 4, 7, 8, 9, 10].map(is_over), [true, true, false, true, false, true, false]);
    }

    #[test]
    fn what_was_asked_for_is_remembered_while_it_is_wanted_and_some_time_longer() {
        let mut memory = memory();
        for number in 0..200 {
            memory.handle(trigger_name(&number.to_string()), |name| name == "t/3");
        }
        let is_over = |id: u32| memory.is_over(&Occasion::Trigger(id.to_string()));
        assert!(is_over(3) && !is_over(4) && !is_over(149) && is_over(150) && is_over(199) && !is_over(200));
        memory.backfill("b", at(5), |_| true);
        let is_over =
            |memory: &Memory, second| memory.is_over(&Occasion::Backfill { tick: at(second), id: "b".into() });
        assert!(is_over(&memory, 5) && !is_over(&memory, 6));
        memory.handle(backfill_name("b"), |_| true);
        assert!(is_over(&memory, 6) && memory.backfilled.is_empty());
        for number in 0..200 {
            memory.backfill(&number.to_string(), at(1), |id| id == "0");
        }
        assert!(memory.backfilled.len() == 51 && memory.backfilled.contains_key("0"));
    }
}
