//! What is shown of a schedule.

use cabloy_crds::agent_status::{Problem, RunStatus, ScheduleStatus, TickResult, Verdict};

use super::Line;
use super::memory::Memory;
use super::occasion::Occasion;
use crate::runs::whole_ms;

impl Line {
    /// As `/status` shows it.
    #[must_use]
    pub fn status(&self) -> ScheduleStatus {
        let Memory { created, results, done, failed, skipped, missed, waiting, .. } = &self.memory;
        let runs = self.open.iter().filter_map(|(occasion, open)| {
            let attempt = open.run.running()?;
            Some(RunStatus {
                tick: match occasion {
                    Occasion::Tick(tick) | Occasion::Backfill { tick, .. } => *tick,
                    Occasion::Trigger(_) => whole_ms(open.taken_up),
                },
                trigger: occasion.trigger().map(str::to_owned),
                backfill: occasion.backfill().map(str::to_owned),
                attempt: attempt.number,
                deadline: attempt.deadline,
            })
        });
        ScheduleStatus {
            name: self.schedule.name.clone(),
            created: *created,
            next: self.next.map(|tick| self.timetable.due(tick)),
            running: self.ticks().find(|(_, open)| open.run.running().is_some()).map(|(tick, _)| tick),
            runs: runs.collect(),
            waiting: waiting.len() as u64,
            waits_for: self.waits().then(|| "the leader to look at the app's own schedule".to_owned()),
            paused: self.is_paused(),
            results: results.iter().cloned().collect(),
            done: *done,
            failed: *failed,
            skipped: *skipped,
            missed: *missed,
        }
    }

    /// What somebody should look at about it.
    #[must_use]
    pub fn alarm(&self) -> Option<Problem> {
        let name = &self.schedule().name;
        let problem = |reason: &str, message: String| Problem {
            reason: reason.to_owned(),
            message,
            path: Some(format!("schedules.{name}")),
        };
        if self.is_disabled() {
            let message = format!("the app wants no further ticks of {name} (410); edit the schedule to begin again");
            return Some(problem("ScheduleDisabled", message));
        }
        let results = &self.memory.results;
        let failed = |it: &&TickResult| it.verdict != Verdict::Done && !is_cancelled(it);
        if self.is_paused() {
            let last = results.iter().find(failed);
            let what = last.map(|it| format!(" ({} at {}: {})", it.reason, it.tick, it.message)).unwrap_or_default();
            let message = format!(
                "{name} is paused after a failure{what}, as pauseOnFailure asks; edit or trigger the schedule to begin again"
            );
            return Some(problem("SchedulePaused", message));
        }
        let last = results.front().filter(failed)?;
        let reason = match last.verdict {
            Verdict::Unknown => "TickUnknown",
            Verdict::Done | Verdict::Failed => "TickFailed",
        };
        Some(problem(reason, format!("{name} at {}: {}: {}", last.tick, last.reason, last.message)))
    }
}

/// Whether a run was given up for a later tick, which is what was asked for.
fn is_cancelled(result: &TickResult) -> bool {
    result.reason == "Cancelled"
}
