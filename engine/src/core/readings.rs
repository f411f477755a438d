//! Runs that go on elsewhere, and records that belong to nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use cabloy_crds::files::AgentFile;
use cabloy_redlock::ledger::ReadError;
use cabloy_redlock::record::Record;
use jiff::Timestamp;

use super::{Action, Core, Key, Moment};
use crate::runs::plus;
use crate::schedule::parse_id;
use crate::startup::record_id;

/// How often the ledger is asked for the results of runs that go on elsewhere.
const POLL: Duration = Duration::from_millis(250);

/// How often records are looked for that belong to nothing any more; one found twice in a row is removed.
pub(super) const SWEEP: Duration = Duration::from_secs(30);

impl Core {
    pub(super) fn take_reading(&mut self, result: Result<Vec<Record>, ReadError>, now: Timestamp) {
        self.reading = false;
        if self.held {
            return;
        }
        for record in result.unwrap_or_default() {
            let Some(key) = self.key_of(&record.id) else { continue };
            if let Some(run) = self.run_mut(&key, &record.id) {
                run.read(&record);
                self.step_key(&key, now);
            }
        }
        if !self.elsewhere().is_empty() {
            self.ask_soon(now);
        }
    }

    /// The runs whose result this engine does not wait for itself.
    fn elsewhere(&self) -> Vec<String> {
        let lines = self.lines.values().flat_map(|line| line.runs().map(|(_, run)| run));
        let startups = self.startups.values().map(|it| &it.run);
        lines.chain(startups).filter(|run| run.is_elsewhere()).map(|run| run.id.clone()).collect()
    }

    pub(super) fn ask_soon(&mut self, now: Timestamp) {
        if !self.reading && !self.wakes.contains_key(&Key::Poll) {
            self.wake_at(Key::Poll, Some(plus(now, POLL)));
        }
    }

    pub(super) fn poll(&mut self) {
        let ids = self.elsewhere();
        if !ids.is_empty() {
            self.reading = true;
            self.actions.push(Action::Read(ids));
        }
    }

    /// Removes the records of schedules and revisions that were in no file at the last sweep either: pods take up new
    /// files within seconds of each other, and a leader with older ones must not remove what another has just begun.
    pub(super) fn sweep(&mut self, moment: Moment<'_>) {
        let stray = strays(&self.file, moment.records.keys().map(String::as_str));
        self.keeping.remove(stray.intersection(&self.stray).cloned());
        self.stray = stray;
        self.wake_at(Key::Sweep, Some(plus(moment.now, SWEEP)));
    }
}

/// The records that belong to nothing in the files.
fn strays<'a>(file: &AgentFile, ids: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let schedules: BTreeSet<&str> = file.schedules.iter().map(|it| it.name.as_str()).collect();
    let tasks: BTreeSet<String> = file
        .revisions
        .values()
        .flat_map(|revision| &revision.startups)
        .map(|(task, revision)| record_id(task, revision))
        .collect();
    let is_stray = |id: &&str| match parse_id(id) {
        Some((name, _)) => !schedules.contains(name),
        // Outside Kubernetes there may be no revisions in the file; what is done stays done then.
        None => id.starts_with("u/") && !file.revisions.is_empty() && !tasks.contains(*id),
    };
    ids.filter(is_stray).map(str::to_owned).collect()
}
