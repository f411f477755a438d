//! The pod's gate: runs the startup tasks that are each pod's own, follows those that the leader runs for all, and opens
//! when those that it waits for are done. Once open it stays so, whatever becomes of Redis or of the files.
//!
//! Pure, as [`crate::core`]: the driver hands in what happens, and makes the calls.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cabloy_crds::agent_status::StartupStatus;
use cabloy_crds::files::AgentFile;
use cabloy_crds::vocabulary::Scope;
use cabloy_redlock::record::Record;
use jiff::Timestamp;

use crate::core::{Kind, Start};
use crate::rule::{Rule, Rules};
use crate::runs::{Attempt, Ending, Next, Outcome, OutcomeKind, Run, plus, whole_ms};
use crate::startup::{Place, Plan, Task};

/// What one pod knows of its startup tasks.
#[derive(Debug)]
pub struct Gate {
    uid: String,
    place: Place,
    plan: Plan,
    /// The runs of the pod's tasks, by the id of the task. Of scope `Cluster` they are what the ledger says.
    runs: BTreeMap<String, Run>,
    done: BTreeSet<String>,
    open: bool,
    rules: Rules,
}

/// A startup task as the pod sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// As `/status` shows it.
    pub status: StartupStatus,
    /// Nobody else knows better: the leader does, of what it runs.
    pub is_certain: bool,
}

impl Gate {
    /// The gate of the pod with that UID, shut.
    #[must_use]
    pub fn new(uid: String, place: Place) -> Self {
        Self::under(uid, place, Rules::default())
    }

    /// The same, by these rules.
    #[must_use]
    pub fn under(uid: String, place: Place, rules: Rules) -> Self {
        Self { uid, place, plan: Plan::default(), runs: BTreeMap::new(), done: BTreeSet::new(), open: false, rules }
    }

    /// Whether the gate is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// The ids of the tasks that are known to be done.
    #[must_use]
    pub fn done(&self) -> &BTreeSet<String> {
        &self.done
    }

    /// Does what can be done now, with the files as they are; gives the calls to be made. `healthy`: the app answers its
    /// health check.
    #[must_use]
    pub fn step(&mut self, file: &AgentFile, healthy: bool, now: Timestamp) -> Vec<Start> {
        // Of a revision that the file does not know nothing can be said yet.
        let Ok(plan) = Plan::under(self.rules, file, &self.place) else { return Vec::new() };
        self.done.extend(plan.floor(file));
        let is_done = |run: &Run| run.outcome().is_some_and(|outcome| outcome.kind == OutcomeKind::Done);
        let finished = plan.tasks.iter().map(Task::id).filter(|id| self.runs.get(id).is_some_and(is_done));
        self.done.extend(finished.collect::<Vec<_>>());
        let mut calls = Vec::new();
        for task in plan.tasks.iter().filter(|it| it.startup.scope == Scope::Instance && !self.done.contains(&it.id()))
        {
            let run = self.runs.entry(task.id()).or_insert_with(|| Run::new(task.id()));
            let policy = task.policy();
            let Next::Claim(number) = run.next(&policy, now) else { continue };
            if healthy && plan.may_start(task, &self.done) {
                let deadline = whole_ms(plus(now, policy.timeout));
                let attempt = Attempt { number, nonce: number.to_string(), deadline };
                run.claiming(attempt.clone());
                run.begun_here();
                calls.push(self::start(task, &self.uid, attempt, now));
            }
        }
        self.open = plan.is_open(&self.done) || (self.open && self.rules.hold(Rule::Latch));
        self.plan = plan;
        calls
    }

    /// When [`Gate::step`] has something to do, if nothing happens before.
    #[must_use]
    pub fn wake(&self, now: Timestamp) -> Option<Timestamp> {
        let own = self.plan.tasks.iter().filter(|it| it.startup.scope == Scope::Instance);
        let next = own.filter_map(|task| match self.runs.get(&task.id())?.next(&task.policy(), now) {
            Next::Wait(until) => Some(until),
            Next::Claim(_) | Next::Look | Next::Busy | Next::Over(_) => None,
        });
        next.min()
    }

    /// Notes that tasks are done, as somebody else found.
    pub fn note_done(&mut self, ids: impl IntoIterator<Item = String>) {
        self.done.extend(ids);
    }

    /// Notes how a call for a task of scope `Instance` ended; none if there was no answer before the deadline. Gives how the
    /// task ended, if that was the last attempt at it.
    pub fn ended(&mut self, id: &str, nonce: &str, outcome: Option<Outcome>, now: Timestamp) -> Option<Ending> {
        let run = self.runs.get_mut(id)?;
        match outcome {
            Some(outcome) => run.ended(nonce, outcome),
            None => run.unanswered(nonce),
        }
        let task = self.plan.tasks.iter().find(|task| task.id() == id)?;
        match run.next(&task.policy(), now) {
            Next::Over(ending) => Some(ending),
            Next::Claim(_) | Next::Wait(_) | Next::Look | Next::Busy => None,
        }
    }

    /// The runs of the leader that this pod wants to know about.
    #[must_use]
    pub fn questions(&self) -> Vec<String> {
        let is_done = |task: &Task| self.done.contains(&task.id());
        let waits = !self.plan.is_open(&self.done)
            || self.plan.tasks.iter().any(|it| it.startup.scope == Scope::Instance && !is_done(it));
        let asked = self.plan.tasks.iter().filter(|it| waits && it.startup.scope == Scope::Cluster && !is_done(it));
        asked.map(Task::id).collect()
    }

    /// Takes up what the ledger says of them.
    pub fn read(&mut self, records: &[Record]) {
        for record in records {
            self.runs.entry(record.id.clone()).or_insert_with(|| Run::new(record.id.clone())).read(record);
        }
    }

    /// The tasks of the pod's revision, in the order of the file.
    #[must_use]
    pub fn tasks(&self, now: Timestamp) -> Vec<Seen> {
        let seen = |task: &Task| {
            let (id, unknown) = (task.id(), Run::new(task.id()));
            let (run, done) = (self.runs.get(&id).unwrap_or(&unknown), self.done.contains(&id));
            let is_certain = task.startup.scope == Scope::Instance || done || run.attempt().is_some();
            Seen { status: task.status(run, done, now), is_certain }
        };
        self.plan.tasks.iter().map(seen).collect()
    }
}

fn start(task: &Task, uid: &str, attempt: Attempt, now: Timestamp) -> Start {
    Start {
        id: task.id(),
        kind: Kind::Startup,
        name: Arc::from(task.startup.name.as_str()),
        // Another start of the pod is another run; a restart of the agent alone is not.
        run: uid.to_owned(),
        time: now,
        attempt,
        lateness: None,
        // It is called again, by the same key: it has to be done in this life of the agent.
        asks: false,
        target: task.startup.target.clone(),
    }
}
