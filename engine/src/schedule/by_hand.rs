//! Runs that somebody asked for: triggers, and backfills of a time.
//!
//! They go beside what falls due by itself, whatever `overlap` says, and also while the schedule is suspended or paused.

use std::time::Duration;

use cabloy_crds::files::Backfill;
use jiff::Timestamp;

use super::Line;
use super::memory::{backfill_name, trigger_name};
use super::occasion::Occasion;
use super::overlap::TOGETHER;

impl Line {
    /// Takes up what was asked for and has not been run: all triggers at once, and of backfills one tick after another.
    pub(super) fn take_by_hand(&mut self, now: Timestamp) {
        for trigger in self.schedule.triggers.clone() {
            let occasion = Occasion::Trigger(trigger.id);
            let running = self.open.keys().filter(|it| it.trigger().is_some()).count();
            if running >= TOGETHER || self.open.contains_key(&occasion) || self.memory.is_over(&occasion) {
                continue;
            }
            // Whoever asks for a run has seen to what had failed.
            if self.memory.paused.take().is_some() {
                self.memory.low_water = self.memory.low_water.max(now);
                self.unsaved = true;
                self.resume();
            }
            self.take_up(occasion, now);
        }
        if self.open.keys().any(|it| it.backfill().is_some()) {
            return;
        }
        for backfill in self.schedule.backfills.clone() {
            if self.memory.is_handled(&backfill_name(&backfill.id)) {
                continue;
            }
            if let Some(tick) = self.next_of(&backfill) {
                self.take_up(Occasion::Backfill { tick, id: backfill.id }, now);
                return;
            }
            self.handled(backfill_name(&backfill.id));
        }
    }

    /// The tick that is next in a backfill; none if it is over.
    fn next_of(&self, backfill: &Backfill) -> Option<Timestamp> {
        let before = backfill.from.checked_sub(Duration::from_nanos(1)).ok()?;
        let last = self.memory.backfilled.get(&backfill.id).copied().map_or(before, |last| last.max(before));
        self.timetable.next_after(last).filter(|tick| *tick < backfill.to)
    }

    /// Notes that a trigger or backfill is over.
    pub(super) fn handled(&mut self, name: String) {
        let schedule = &self.schedule;
        self.memory.handle(name, |name| {
            schedule.triggers.iter().any(|it| trigger_name(&it.id) == name)
                || schedule.backfills.iter().any(|it| backfill_name(&it.id) == name)
        });
        self.unsaved = true;
    }

    /// Notes that a run that was asked for is over.
    pub(super) fn settle_by_hand(&mut self, occasion: &Occasion) {
        match occasion {
            Occasion::Tick(_) => {}
            Occasion::Trigger(id) => self.handled(trigger_name(id)),
            Occasion::Backfill { tick, id } => {
                let schedule = &self.schedule;
                self.memory.backfill(id, *tick, |id| schedule.backfills.iter().any(|it| it.id == id));
            }
        }
    }
}
