//! The pod's gate: runs the startup tasks that are each pod's own, follows those that the leader runs for all, and opens
//! when those that it waits for are done. Once open it stays so, whatever becomes of Redis or of the files.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cabloy_crds::vocabulary::Scope;
use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::app::Call;
use crate::clock::{Clock, SystemClock};
use crate::files::Loaded;
use crate::ledger::Record;
use crate::runs::{Attempt, Next, Outcome, OutcomeKind, Run, between, plus, whole_ms};
use crate::shared::Shared;
use crate::startup::{Plan, Task};
use crate::target;

/// How often the ledger is asked while tasks of the pod's revision are not known to be done.
const POLL: Duration = Duration::from_secs(1);

/// The longest sleep when nothing is to be asked.
const NAP: Duration = Duration::from_mins(1);

/// How an attempt at a task of scope `Instance` ended: its id, its nonce, and the outcome; none past the deadline.
type Ended = (String, String, Option<Outcome>);

#[derive(Debug)]
struct Gate {
    shared: Arc<Shared>,
    /// The runs of the pod's tasks, by the id of the task. Of scope `Cluster` they are what the ledger says.
    runs: BTreeMap<String, Run>,
    calls: JoinSet<Ended>,
}

/// Runs until `stop`.
pub async fn watch_gate(shared: Arc<Shared>, stop: CancellationToken) {
    let mut config = shared.config.clone();
    let mut app = shared.app.clone();
    let mut done = shared.done.subscribe();
    let mut elector = shared.elector.subscribe();
    let mut gate = Gate { shared, runs: BTreeMap::new(), calls: JoinSet::new() };
    let mut asked = None;
    loop {
        let loaded = config.borrow_and_update().loaded.clone();
        done.mark_unchanged();
        let nap = match loaded {
            Some(loaded) => gate.step(&loaded, SystemClock.utc()),
            None => NAP,
        };
        let ask = gate.open_questions(config.borrow().loaded.as_deref());
        let ask_at =
            if ask.is_empty() { None } else { Some(asked.map_or_else(tokio::time::Instant::now, |at| at + POLL)) };
        let ledger = elector.borrow_and_update().as_ref().map(crate::election::Elector::ledger);
        let read = async {
            let (Some(at), Some(ledger)) = (ask_at, ledger) else { return std::future::pending().await };
            tokio::time::sleep_until(at).await;
            ledger.read(ask).await
        };
        tokio::select! {
            () = stop.cancelled() => return,
            Ok(()) = config.changed() => {}
            Ok(()) = app.changed() => {}
            Ok(()) = done.changed() => {}
            Ok(()) = elector.changed() => {}
            Some(Ok(ended)) = gate.calls.join_next() => gate.take_end(ended),
            records = read => {
                asked = Some(tokio::time::Instant::now());
                // Without an answer nothing is known, and it is asked again.
                if let Ok(records) = records {
                    gate.take_records(&records);
                }
            }
            () = tokio::time::sleep(nap) => {}
        }
    }
}

impl Gate {
    /// Does what can be done now; gives for how long there is nothing more to do.
    fn step(&mut self, loaded: &Arc<Loaded>, now: Timestamp) -> Duration {
        let Ok(plan) = Plan::new(&loaded.file, &self.shared.identity.place) else { return NAP };
        self.shared.note_done(plan.floor(&loaded.file));
        let finished = plan.tasks.iter().map(Task::id).filter(|id| {
            self.runs.get(id).and_then(Run::outcome).is_some_and(|outcome| outcome.kind == OutcomeKind::Done)
        });
        self.shared.note_done(finished.collect::<Vec<_>>());
        let done = self.shared.done.borrow().clone();
        let mut nap = NAP;
        for task in plan.tasks.iter().filter(|task| task.startup.scope == Scope::Instance && !done.contains(&task.id()))
        {
            let run = self.runs.entry(task.id()).or_insert_with(|| Run::new(task.id()));
            match run.next(&task.policy(), now) {
                Next::Claim(number) if plan.may_start(task, &done) && self.shared.app.borrow().healthy => {
                    let deadline = whole_ms(plus(now, task.policy().timeout));
                    let attempt = Attempt { number, nonce: number.to_string(), deadline };
                    run.claiming(attempt.clone());
                    run.begun_here();
                    self.call(loaded, task, attempt, now);
                }
                Next::Wait(until) => nap = nap.min(between(now, until)),
                Next::Claim(_) | Next::Busy | Next::Over(_) => {}
            }
        }
        self.show(&plan, &done, now);
        if plan.is_open(&done) && !self.shared.gate.send_replace(true) {
            tracing::info!("gate open");
        }
        nap
    }

    fn call(&mut self, loaded: &Arc<Loaded>, task: &Task, attempt: Attempt, now: Timestamp) {
        let identity = &self.shared.identity;
        let call = Call {
            cluster: loaded.file.cluster.clone(),
            kind: "startup",
            name: task.startup.name.clone(),
            // Another start of the pod is another run; a restart of the agent alone is not.
            run: identity.uid.clone(),
            time: now,
            token: None,
            attempt: attempt.number,
            deadline: attempt.deadline,
            trace: uuid::Uuid::new_v4().as_u128(),
            target: task.startup.target.clone(),
        };
        let (loaded, id) = (Arc::clone(loaded), task.id());
        let (shared, left) = (Arc::clone(&self.shared), between(now, attempt.deadline));
        tracing::info!(task = call.name, attempt = attempt.number, "startup task of this pod begins");
        self.shared.metrics.calls.inc();
        self.calls.spawn(async move {
            let called = target::call(&shared.ways(&loaded), &call, left).await;
            let outcome = called.map(|called| called.outcome);
            (id, attempt.nonce, outcome)
        });
    }

    fn take_end(&mut self, (id, nonce, outcome): Ended) {
        tracing::info!(id, outcome = ?outcome.as_ref().map(|it| it.kind), "startup task of this pod over");
        if let Some(run) = self.runs.get_mut(&id) {
            match outcome {
                Some(outcome) => run.ended(&nonce, outcome),
                None => run.unanswered(&nonce),
            }
        }
    }

    /// The tasks of the leader that this pod wants to know about.
    fn open_questions(&self, loaded: Option<&Loaded>) -> Vec<String> {
        let plan = loaded.and_then(|it| Plan::new(&it.file, &self.shared.identity.place).ok()).unwrap_or_default();
        let done = self.shared.done.borrow();
        if plan.is_open(&done)
            && plan.tasks.iter().all(|it| it.startup.scope == Scope::Cluster || done.contains(&it.id()))
        {
            return Vec::new();
        }
        plan.tasks
            .iter()
            .filter(|it| it.startup.scope == Scope::Cluster)
            .map(Task::id)
            .filter(|id| !done.contains(id))
            .collect()
    }

    fn take_records(&mut self, records: &[Record]) {
        for record in records {
            self.runs.entry(record.id.clone()).or_insert_with(|| Run::new(record.id.clone())).read(record);
        }
    }

    fn show(&self, plan: &Plan, done: &BTreeSet<String>, now: Timestamp) {
        let names: BTreeSet<&str> = plan.tasks.iter().map(|it| it.startup.name.as_str()).collect();
        self.shared.keep_startups(&names);
        for task in &plan.tasks {
            let id = task.id();
            let run = self.runs.get(&id).cloned().unwrap_or_else(|| Run::new(id.clone()));
            // The leader knows more of its own.
            if task.startup.scope == Scope::Instance
                || done.contains(&id)
                || run.attempt().is_some()
                || !self.shared.is_shown(&task.startup.name)
            {
                self.shared.show_startup(task.status(&run, done.contains(&id), now));
            }
        }
    }
}
