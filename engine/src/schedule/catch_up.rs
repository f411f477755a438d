//! What becomes of ticks that fell due while nobody could run them.

use std::collections::VecDeque;
use std::time::Duration;

use cabloy_crds::vocabulary::CatchUpPolicy;
use jiff::Timestamp;

use super::occasion::Occasion;
use super::overlap::WAITING;
use super::{Action, Line};
use crate::rule::Rule;
use crate::runs::{between, plus};

/// A tick that is no later than this is in time, whatever is asked for: a hand-over takes some hundred milliseconds, and
/// a crash a lease.
const GRACE: Duration = Duration::from_secs(10);

/// How long before its time a tick is run by whoever does not wait for it.
const AHEAD: Duration = Duration::from_millis(500);

/// How many missed ticks are counted one by one at a time; after that the rest is passed over uncounted.
pub(super) const COUNTED: u64 = 10_000;

impl Line {
    /// How late a tick may be run.
    pub(super) fn window(&self) -> Duration {
        match self.schedule.catch_up.policy {
            CatchUpPolicy::None => GRACE,
            CatchUpPolicy::Latest | CatchUpPolicy::All => {
                Duration::from_millis(self.schedule.catch_up.window_ms).max(GRACE)
            }
        }
    }

    fn is_due(&self, tick: Timestamp, now: Timestamp) -> bool {
        let ahead = if self.rules.hold(Rule::Due) { Duration::ZERO } else { AHEAD };
        self.timetable.due(tick) <= plus(now, ahead)
    }

    /// Moves ticks that have fallen due behind the low-water mark.
    pub(super) fn take_due(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        let window = self.window();
        let kept = match self.schedule.catch_up.policy {
            CatchUpPolicy::None => 0,
            CatchUpPolicy::Latest => 1,
            CatchUpPolicy::All => WAITING,
        };
        let (mut missed, mut skipped) = (0, 0);
        // The late ticks that are run all the same, each after the tick before it.
        let mut late: VecDeque<(Timestamp, Timestamp)> = VecDeque::new();
        while let Some(tick) = self.next.filter(|tick| self.is_due(*tick, now)) {
            let before = std::mem::replace(&mut self.memory.low_water, tick);
            let age = between(self.timetable.due(tick), now);
            if age <= GRACE {
                for (tick, before) in late.drain(..) {
                    skipped += self.offer(tick, before);
                }
                skipped += self.offer(tick, before);
            } else {
                let goes = (age > window && self.rules.hold(Rule::Window)) || kept == 0;
                if !goes {
                    late.push_back((tick, before));
                }
                // Where more are late than are run, the oldest go.
                if goes || late.len() > kept && late.pop_front().is_some() {
                    missed += 1;
                    if missed == COUNTED {
                        let from = self.timetable.before_last(kept + 1, now - GRACE).max(now - window);
                        self.memory.low_water = self.memory.low_water.max(from);
                    }
                }
            }
            self.next = self.timetable.next_after(self.memory.low_water);
        }
        for (tick, before) in late {
            skipped += self.offer(tick, before);
        }
        // A tick whose jitter is longer than the next one's falls due after it.
        self.memory.waiting.make_contiguous().sort_unstable();
        for (count, action) in [(missed, Action::Missed as fn(u64) -> Action), (skipped, Action::Skipped)] {
            if count > 0 {
                self.unsaved = true;
                actions.push(action(count));
            }
        }
        self.memory.missed += missed;
        self.memory.skipped += skipped;
    }

    /// Takes up ticks that wait, as many as there is room for.
    pub(super) fn take_waiting(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        while self.has_room() && !self.unkept {
            // Of what the app had left to be run, some may fall due only later.
            let Some(tick) = self.memory.waiting.front().copied().filter(|tick| self.is_due(*tick, now)) else { break };
            self.memory.waiting.pop_front();
            let age = between(self.timetable.due(tick), now);
            let is_late = self.patience().is_some_and(|patience| age > patience);
            if is_late && !self.is_owed(tick) && self.rules.hold(Rule::Window) {
                self.memory.missed += 1;
                self.unsaved = true;
                actions.push(Action::Missed(1));
            } else {
                self.take_up(Occasion::Tick(tick), now);
            }
        }
    }
}
