//! Startup tasks of the pod's own revision, each in its turn.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

use cabloy_crds::agent_status::Verdict;
use cabloy_crds::vocabulary::Scope;
use jiff::Timestamp;

use super::readings::Ask;
use super::{Core, Key, Moment, News};
use crate::runs::{Next, Run};
use crate::startup::{Plan, Task};

/// A startup task on the leader.
#[derive(Debug)]
pub(super) struct Startup {
    pub(super) task: Task,
    pub(super) run: Run,
    /// Whether its end has been told.
    told: bool,
}

impl Core {
    pub(super) fn take_plan(&mut self, moment: Moment<'_>) {
        // Of a revision that the file does not know the agent does not stand, and so resigns soon.
        let rules = self.config.rules;
        let Ok(plan) = Plan::under(rules, &self.file, &self.config.place) else { return };
        let mut before: BTreeMap<_, _> = mem::take(&mut self.startups);
        for task in plan.tasks.iter().filter(|it| it.startup.scope == Scope::Cluster) {
            let id = task.id();
            let name: Arc<str> = task.startup.name.as_str().into();
            let known = before.remove(&name).filter(|it| it.run.id == id).map(|it| (it.run, it.told));
            let (run, told) = known.unwrap_or_else(|| {
                let run = moment.records.get(&id).map_or_else(|| Run::new(id), |record| Run::from_record(record));
                (run.under(rules), false)
            });
            self.startups.insert(name, Startup { task: task.clone(), run, told });
        }
        self.plan = plan;
        self.step_startups(moment.now);
    }

    /// Goes through all tasks, and once more when one was found to be done: others may have waited for it.
    pub(super) fn step_startups(&mut self, now: Timestamp) {
        loop {
            let done = self.done.len();
            for name in self.startups.keys().cloned().collect::<Vec<_>>() {
                self.step_task(&name, now);
            }
            if self.done.len() == done {
                return;
            }
        }
    }

    pub(super) fn step_startup(&mut self, name: &Arc<str>, now: Timestamp) {
        let done = self.done.len();
        self.step_task(name, now);
        if self.done.len() > done {
            self.step_startups(now);
        }
    }

    fn step_task(&mut self, name: &Arc<str>, now: Timestamp) {
        let Some(Startup { task, run, told }) = self.startups.get_mut(name).filter(|_| !self.held) else { return };
        run.heed(&self.file.ended);
        let key = Key::Startup(Arc::clone(name));
        let (id, policy) = (task.id(), task.policy());
        let mut wake = None;
        match run.next(&policy, now) {
            _ if self.done.contains(&id) => {}
            Next::Claim(attempt) if self.plan.may_start(task, &self.done) => {
                self.claim(key.clone(), id, attempt, policy.timeout, now);
                self.tell(News::StartupBegins { task: Arc::clone(name), attempt });
            }
            Next::Claim(_) | Next::Look | Next::Busy => {}
            Next::Wait(until) => wake = Some(until),
            Next::Over(ending) => {
                let known = std::mem::replace(told, true);
                let claimed = run.attempt().and_then(|it| it.deadline.checked_sub(policy.timeout).ok());
                if ending.verdict == Verdict::Done {
                    self.done.insert(id.clone());
                    self.tell(News::Done(id.clone()));
                }
                if !known {
                    let since = claimed.unwrap_or(now);
                    self.tell(News::StartupOver { task: Arc::clone(name), id, since, ending });
                }
            }
        }
        self.wake_at(key, wake);
        let Some(Startup { task, run, .. }) = self.startups.get(name) else { return };
        let id = task.id();
        let status = Box::new(task.status(run, self.done.contains(&id), now));
        let (awaits, ask) = (run.awaits().cloned().into_iter().collect(), Ask::about(run, now));
        self.tell(News::Awaits { id, awaits });
        self.tell(News::Startup(status));
        self.ask(ask, now);
    }
}
