//! Runs that go on elsewhere, and records that belong to nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cabloy_crds::files::AgentFile;
use cabloy_redlock::ledger::{FinishError, ReadError};
use cabloy_redlock::record::{Record, RunResult};
use jiff::Timestamp;

use super::{Action, Core, Key, Moment};
use crate::rule::Rule;
use crate::runs::{Run, decisive, plus};
use crate::schedule::parse_id;
use crate::startup::record_id;

/// How often the ledger is asked for the results of runs that go on elsewhere.
const POLL: Duration = Duration::from_millis(250);

/// How often records are looked for that belong to nothing any more; one found twice in a row is removed.
pub(super) const SWEEP: Duration = Duration::from_secs(30);

/// How soon the ledger is to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ask {
    /// There may be a result by then.
    Soon,
    /// A deadline has passed.
    Now,
}

impl Ask {
    /// Whether the ledger is to be asked about a run.
    pub(super) fn about(run: &Run, now: Timestamp) -> Option<Self> {
        run.is_elsewhere().then(|| if run.is_overdue(now) { Self::Now } else { Self::Soon })
    }
}

impl Core {
    pub(super) fn take_reading(&mut self, result: Result<Vec<Record>, ReadError>, now: Timestamp) {
        let Some((asked, ids)) = self.reading.take().filter(|_| !self.held) else { return };
        if let Ok(records) = result {
            let records: BTreeMap<_, _> = records.into_iter().map(|record| (record.id.clone(), record)).collect();
            for id in &ids {
                let Some(key) = self.key_of(id) else { continue };
                let result = records.get(id).and_then(decisive).filter(|_| self.config.rules.hold(Rule::Confirm));
                if let (Some(record), Some(result)) = (records.get(id), result) {
                    self.confirm(record, result, asked);
                    continue;
                }
                let Some(run) = self.run_mut(&key, id) else { continue };
                if let Some(record) = records.get(id) {
                    run.read(record);
                }
                run.looked(asked);
                self.step_key(&key, now);
            }
        }
        if !self.elsewhere().is_empty() {
            self.ask(Some(Ask::Soon), now);
        }
    }

    /// Has a result recorded that was read: were it lost with the minority that may have it, the next leader would begin
    /// again what this one holds to be over.
    fn confirm(&mut self, record: &Record, result: &RunResult, asked: Timestamp) {
        if !self.confirming.contains_key(&record.id) {
            self.confirming.insert(record.id.clone(), (asked, record.clone()));
            self.actions.push(Action::Confirm { id: record.id.clone(), result: result.clone() });
        }
    }

    pub(super) fn take_confirmed(&mut self, id: &str, answer: &Result<(), FinishError>, now: Timestamp) {
        let Some((asked, record)) = self.confirming.remove(id).filter(|_| !self.held) else { return };
        let Some(key) = self.key_of(id) else { return };
        let Some(run) = self.run_mut(&key, id) else { return };
        match answer {
            Ok(()) => run.read(&record),
            // Its attempt is that of no majority, and so was never called.
            Err(FinishError::NotCurrent) => {}
            // It is read again.
            Err(FinishError::Unreachable | FinishError::Ended) => return,
        }
        run.looked(asked);
        self.step_key(&key, now);
    }

    /// The runs whose result this engine does not wait for itself.
    fn elsewhere(&self) -> Vec<String> {
        let lines = self.lines.values().flat_map(|line| line.runs().map(|(_, run)| run));
        let startups = self.startups.values().map(|it| &it.run);
        lines.chain(startups).filter(|run| run.is_elsewhere()).map(|run| run.id.clone()).collect()
    }

    pub(super) fn ask(&mut self, ask: Option<Ask>, now: Timestamp) {
        let Some(ask) = ask.filter(|_| self.reading.is_none()) else { return };
        match ask {
            Ask::Now => self.wake_at(Key::Poll, Some(now)),
            Ask::Soon if self.wakes.contains_key(&Key::Poll) => {}
            Ask::Soon => self.wake_at(Key::Poll, Some(plus(now, POLL))),
        }
    }

    pub(super) fn poll(&mut self, now: Timestamp) {
        let ids = self.elsewhere();
        if !ids.is_empty() && self.reading.is_none() {
            self.reading = Some((now, ids.clone()));
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
