//! What becomes of a tick that falls due while the run of an earlier one is open.

use std::time::Duration;

use cabloy_crds::vocabulary::Overlap;
use jiff::Timestamp;

use super::occasion::Occasion;
use super::{Action, Line, Open};
use crate::rule::Rule;
use crate::runs::between;

/// How many ticks wait at most; what falls due beyond them is skipped.
pub(super) const WAITING: usize = 1_000;

/// How many ticks of a schedule run at the same time at most.
pub(super) const TOGETHER: usize = 100;

/// A run is taken up late when more than this part of the time between two ticks has passed.
const LATE: u32 = 10;

impl Line {
    /// Has `tick`, which has fallen due and follows `before`, wait its turn, and says how many ticks are dropped for that.
    pub(super) fn offer(&mut self, tick: Timestamp, before: Timestamp) -> u64 {
        let busy = self.is_busy(tick, before);
        let waiting = self.memory.waiting.len();
        let in_time = self.timetable.due(tick) > self.began;
        let is_dropped = match self.schedule.overlap {
            Overlap::Skip => busy,
            Overlap::BufferOne => busy && waiting > 0,
            Overlap::BufferAll => in_time && waiting >= WAITING,
            // The newest one alone goes on.
            Overlap::CancelOther => {
                let owed = &self.memory.owed;
                self.memory.waiting.retain(|tick| owed.contains_key(tick));
                let dropped = waiting - self.memory.waiting.len();
                self.memory.waiting.push_back(tick);
                return dropped as u64;
            }
            Overlap::AllowAll => in_time && self.ticks().count() >= TOGETHER,
        };
        // What fell due while nobody led has room of its own.
        if is_dropped || waiting >= 2 * WAITING {
            return 1;
        }
        self.memory.waiting.push_back(tick);
        0
    }

    /// Whether a run is open that keeps `tick`, which follows `before`, from being run at once. A run that was taken up
    /// late, for nobody led or the app was not there, has its time all the same: `tick` waits for it then.
    fn is_busy(&self, tick: Timestamp, before: Timestamp) -> bool {
        let (due, period) = (self.timetable.due(tick), between(before, tick));
        let keeps = |of: Timestamp, open: &Open| {
            let late = |since| between(self.timetable.due(of), since) > period / LATE;
            let in_time = |since| !late(since) || between(since, due) >= period;
            !open.run.has_not_begun() && open.since.is_none_or(in_time)
        };
        due > self.began && self.ticks().any(|(of, open)| keeps(of, open))
    }

    /// Whether a tick that waits can be taken up.
    pub(super) fn has_room(&self) -> bool {
        let together = self.schedule.overlap == Overlap::AllowAll || !self.rules.hold(Rule::Turn);
        let limit = if together { TOGETHER } else { 1 };
        self.ticks().count() < limit
    }

    /// Whether an attempt at an open run may be claimed: ticks go one after another, unless all are allowed at once.
    pub(super) fn has_turn(&self, occasion: &Occasion) -> bool {
        let Some(tick) = occasion.tick() else { return true };
        let together = self.schedule.overlap == Overlap::AllowAll || !self.rules.hold(Rule::Turn);
        together || self.ticks().next().is_none_or(|(first, _)| first == tick)
    }

    /// Gives up what runs, where a newer tick is to take its place.
    pub(super) fn cancel_others(&mut self) {
        if self.schedule.overlap != Overlap::CancelOther {
            return;
        }
        let open = self.ticks().last().map(|(tick, _)| tick);
        let newest = self.memory.waiting.back().copied().max(open);
        let owed = &self.memory.owed;
        for (occasion, open) in &mut self.open {
            let older = occasion.tick().filter(|tick| !owed.contains_key(tick));
            open.is_given_up |= older.is_some_and(|tick| Some(tick) < newest);
        }
    }

    /// Has attempts that run ended whose run is given up, each once.
    pub(super) fn stop_attempts(&mut self, actions: &mut Vec<Action>) {
        for open in self.open.values_mut().filter(|open| open.is_given_up) {
            let Some(attempt) = open.run.running().filter(|_| open.run.claim_on_its_way().is_none()) else { continue };
            if open.stopped.as_ref() != Some(&attempt.nonce) {
                open.stopped = Some(attempt.nonce.clone());
                actions.push(Action::Stop(open.run.id.clone()));
            }
        }
    }

    /// How old a tick may become that waits; nothing where waiting is what was asked for.
    pub(super) fn patience(&self) -> Option<Duration> {
        match self.schedule.overlap {
            Overlap::BufferOne | Overlap::BufferAll => None,
            Overlap::Skip | Overlap::CancelOther | Overlap::AllowAll => Some(self.window()),
        }
    }
}
