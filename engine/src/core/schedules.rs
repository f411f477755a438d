//! Schedules: from the files and the ledger to lines, and what each says is to be done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cabloy_crds::agent_status::TickResult;
use cabloy_redlock::record::Record;
use jiff::Timestamp;

use super::readings::Ask;
use super::{Action, Core, Key, Moment, News};
use crate::rule::Rule;
use crate::schedule::{self, Line, Memory, Occasion, memory_id, parse_id, run_id};

impl Core {
    pub(super) fn step_schedule(&mut self, name: &Arc<str>, now: Timestamp) {
        let Some(line) = self.lines.get_mut(name) else { return };
        line.runs_mut().for_each(|run| run.heed(&self.file.ended));
        let actions = line.step(now);
        self.heed(name, actions, now);
        self.after_step(name, now);
    }

    /// Does what a schedule says is to be done.
    fn heed(&mut self, name: &Arc<str>, actions: Vec<schedule::Action>, now: Timestamp) {
        let Some(timeout) = self.lines.get(name).map(Line::timeout) else { return };
        let schedule = || Arc::clone(name);
        for action in actions {
            match action {
                schedule::Action::Claim { occasion, attempt } => {
                    let id = run_id(name, &occasion);
                    self.claim(Key::Schedule(schedule()), id, attempt, timeout, now);
                }
                schedule::Action::Stop(id) => self.cancel(name, id),
                schedule::Action::Forget(id) if self.config.rules.hold(Rule::MemoryFirst) => {
                    self.keeping.over(name, [id]);
                }
                schedule::Action::Forget(id) => self.keeping.remove([id]),
                schedule::Action::Over(result) => self.tell_over(schedule(), result),
                schedule::Action::Skipped(ticks) => self.tell(News::Skipped { schedule: schedule(), ticks }),
                schedule::Action::Missed(ticks) => self.tell(News::Missed { schedule: schedule(), ticks }),
            }
        }
    }

    fn tell_over(&mut self, schedule: Arc<str>, result: Box<TickResult>) {
        let TickResult { tick, trigger, backfill, at, .. } = &*result;
        let due = self.lines.get(&schedule).map_or(*tick, |line| line.due(*tick));
        let (occasion, since) = match (trigger, backfill) {
            (Some(id), _) => (Occasion::Trigger(id.clone()), *tick),
            (None, Some(id)) => (Occasion::Backfill { tick: *tick, id: id.clone() }, *at),
            (None, None) => (Occasion::Tick(*tick), due),
        };
        self.tell(News::Over { id: run_id(&schedule, &occasion), since, schedule, result });
    }

    /// Has the attempt that runs at the run `id` end, and that recorded.
    fn cancel(&mut self, name: &Arc<str>, id: String) {
        let run = self.lines.get_mut(name).and_then(|line| line.run_mut(&id));
        if let Some(attempt) = run.and_then(|run| run.running().cloned()) {
            self.actions.push(Action::Cancel { id, attempt });
        }
    }

    fn after_step(&mut self, name: &Arc<str>, now: Timestamp) {
        let Some(line) = self.lines.get(name) else { return };
        let (status, alarm, wake) = (Box::new(line.status()), line.alarm(), line.wake());
        let ask = line.runs().filter_map(|(_, run)| Ask::about(run, now)).max();
        let awaits = line.runs().filter_map(|(_, run)| run.awaits().cloned()).collect();
        self.keeping.note(name, line.is_unsaved());
        self.tell(News::Awaits { id: memory_id(name), awaits });
        self.tell(News::Schedule(status, alarm));
        // A deadline that has passed waits for what the ledger says, and not for a time.
        self.wake_at(Key::Schedule(Arc::clone(name)), wake.filter(|at| *at > now));
        self.ask(ask, now);
    }

    /// Takes up the schedules of the file, from what the ledger knows of them.
    pub(super) fn take_schedules(&mut self, moment: Moment<'_>) {
        let file = Arc::clone(&self.file);
        let (mut memories, mut runs) = self.remembered(moment);
        let wanted: BTreeSet<&str> = file.schedules.iter().map(|it| it.name.as_str()).collect();
        let gone: Vec<_> = self.lines.keys().filter(|name| !wanted.contains(&***name)).cloned().collect();
        for name in gone {
            self.lines.remove(&name);
            self.keeping.drop(&name);
            self.wake_at(Key::Schedule(Arc::clone(&name)), None);
            self.tell(News::Awaits { id: memory_id(&name), awaits: BTreeSet::new() });
            self.tell(News::ScheduleGone(name));
        }
        let rules = self.config.rules;
        for schedule in &file.schedules {
            let name: Arc<str> = schedule.name.as_str().into();
            let taken = match self.lines.get_mut(&name) {
                Some(line) if line.schedule() == schedule || !rules.hold(Rule::EditAtOnce) => Ok(()),
                Some(line) if rules.hold(Rule::EditInPlace) => line.update(schedule.clone(), moment.now),
                _ => {
                    let memory = memories.remove(&schedule.name);
                    let records = runs.remove(&schedule.name).unwrap_or_default();
                    Line::under(rules, schedule.clone(), memory, records, moment.now).map(|(line, actions)| {
                        let over = actions.into_iter().filter_map(|it| match it {
                            schedule::Action::Forget(id) => Some(id),
                            _ => None,
                        });
                        self.keeping.over(&name, over);
                        if line.has_taken_over() {
                            self.tell(News::TakenOver(Arc::clone(&name)));
                        }
                        self.lines.insert(Arc::clone(&name), line);
                    })
                }
            };
            if let Err(error) = taken {
                self.tell(News::Unusable { schedule: Arc::clone(&name), error: error.to_string() });
            }
            self.step_schedule(&name, moment.now);
        }
        self.take_over(moment.now);
    }

    /// Has schedules take the place of those of the app's own of which it is known how.
    pub(super) fn take_over(&mut self, now: Timestamp) {
        if self.held {
            return;
        }
        for (name, handover) in std::mem::take(&mut self.handovers) {
            if let Some(line) = self.lines.get_mut(&name).filter(|line| line.waits()) {
                let actions = line.take_over(&handover);
                self.heed(&name, actions, now);
                self.step_schedule(&name, now);
            }
            self.handovers.insert(name, handover);
        }
    }

    /// What the ledger has of schedules, by name: their memories, and the records of their runs.
    fn remembered(
        &mut self,
        moment: Moment<'_>,
    ) -> (BTreeMap<String, Memory>, BTreeMap<String, BTreeMap<Occasion, Record>>) {
        let mut memories = BTreeMap::new();
        let mut runs: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for record in moment.records.values() {
            match parse_id(&record.id) {
                Some((name, Some(occasion))) => {
                    runs.entry(name.to_owned()).or_default().insert(occasion, Record::clone(record));
                }
                Some((name, None)) => match serde_json::from_value(record.data.clone()) {
                    Ok(memory) => _ = memories.insert(name.to_owned(), memory),
                    Err(error) => {
                        let error = format!("its memory cannot be read, and begins anew: {error}");
                        self.tell(News::Unusable { schedule: name.into(), error });
                    }
                },
                None => {}
            }
        }
        (memories, runs)
    }
}
