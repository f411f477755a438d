//! The pod's gate: carries out what [`cabloy_engine::gate`] decides, over the ledger and the app.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cabloy_engine::core::Start;
use cabloy_engine::gate::Gate;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, SystemClock};
use crate::engine;
use crate::files::Loaded;
use crate::runs::{Outcome, between};
use crate::shared::{Identity, Shared};
use crate::target;
use crate::traces::End;

/// How often the ledger is asked while tasks of the pod's revision are not known to be done.
const POLL: Duration = Duration::from_secs(1);

/// The longest sleep when nothing is to be asked.
const NAP: Duration = Duration::from_mins(1);

/// How an attempt at a task of scope `Instance` ended: its id, its nonce, and the outcome; none past the deadline.
type Ended = (String, String, Option<Outcome>);

/// Runs until `stop`.
pub async fn watch_gate(shared: Arc<Shared>, stop: CancellationToken) {
    let mut config = shared.config.clone();
    let mut app = shared.app.clone();
    let mut done = shared.done.subscribe();
    let mut elector = shared.elector.subscribe();
    let Identity { uid, place, .. } = shared.identity.clone();
    let (mut gate, mut calls) = (Gate::new(uid, place), JoinSet::new());
    let mut asked = None;
    loop {
        gate.note_done(done.borrow_and_update().iter().cloned());
        let loaded = config.borrow_and_update().loaded.clone();
        let healthy = app.borrow_and_update().healthy;
        if let Some(loaded) = loaded {
            for start in gate.step(&loaded.file, healthy, SystemClock.utc()) {
                call(&shared, Arc::clone(&loaded), start, &mut calls);
            }
        }
        show(&shared, &gate);
        let now = SystemClock.utc();
        let nap = gate.wake(now).map_or(NAP, |at| between(now, at).min(NAP));
        let questions = gate.questions();
        elector.mark_unchanged();
        let ledger = shared.ledger().filter(|_| !questions.is_empty());
        let ask_at = asked.map_or_else(Instant::now, |at| at + POLL);
        let read = async {
            let Some(ledger) = ledger else { return std::future::pending().await };
            tokio::time::sleep_until(ask_at).await;
            ledger.read_confirmed(questions).await
        };
        tokio::select! {
            () = stop.cancelled() => return,
            Ok(()) = config.changed() => {}
            Ok(()) = app.changed() => {}
            Ok(()) = done.changed() => {}
            Ok(()) = elector.changed() => {}
            Some(Ok((id, nonce, outcome))) = calls.join_next() => {
                tracing::info!(id, outcome = ?outcome.as_ref().map(|it: &Outcome| it.kind), "startup task of this pod over");
                let now = SystemClock.utc();
                if let Some(ending) = gate.ended(&id, &nonce, outcome, now) {
                    shared.traces.over(&id, None, &End::of(&ending, now, now));
                }
            }
            records = read => {
                asked = Some(Instant::now());
                // Without an answer nothing is known, and it is asked again.
                if let Ok(records) = records {
                    gate.read(&records);
                }
            }
            () = tokio::time::sleep(nap) => {}
        }
    }
}

fn call(shared: &Arc<Shared>, loaded: Arc<Loaded>, start: Start, calls: &mut JoinSet<Ended>) {
    tracing::info!(task = %start.name, attempt = start.attempt.number, "startup task of this pod begins");
    shared.metrics.calls.inc();
    let (shared, id, nonce) = (Arc::clone(shared), start.id.clone(), start.attempt.nonce.clone());
    let left = between(start.time, start.attempt.deadline);
    shared.traces.begin(&id, None, start.time);
    let call = engine::call(&shared, &loaded, start, None);
    calls.spawn(async move {
        let called = target::call(&shared.ways(&loaded), &call, left).await;
        let outcome = called.map(|called| called.outcome);
        shared.traces.called(&call, call.time..SystemClock.utc(), outcome.as_ref());
        (id, nonce, outcome)
    });
}

/// Tells the others what is done, how the tasks are, and whether the gate is open.
fn show(shared: &Shared, gate: &Gate) {
    shared.note_done(gate.done().iter().cloned());
    let tasks = gate.tasks(SystemClock.utc());
    let names: BTreeSet<&str> = tasks.iter().map(|it| it.status.name.as_str()).collect();
    shared.keep_startups(&names);
    for seen in tasks {
        if seen.is_certain || !shared.is_shown(&seen.status.name) {
            shared.show_startup(seen.status);
        }
    }
    if gate.is_open() && !shared.gate.send_replace(true) {
        tracing::info!("gate open");
    }
}
