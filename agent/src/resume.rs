//! An agent that was started again beside a living app asks it about the runs that the process before has called it for:
//! carries out what [`cabloy_engine::resume`] finds, over the ledger and the app, leading or not.

use std::sync::Arc;
use std::time::Duration;

use cabloy_engine::recording::Recording;
use cabloy_engine::resume::{Process, Resumed, resumed};
use cabloy_engine::rule::Rules;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::Called;
use crate::election::Elector;
use crate::engine;
use crate::files::Loaded;
use crate::runs::{Outcome, between};
use crate::shared::{Identity, Shared};
use crate::target;

/// How long to wait before the ledger is read again, where no majority has answered.
const PAUSE: Duration = Duration::from_secs(1);

/// Finds the runs, and has each asked for as one of `calls`.
pub async fn ask_again(shared: Arc<Shared>, calls: TaskTracker, end: CancellationToken) {
    let find = async {
        let (mut electors, mut config) = (shared.elector.subscribe(), shared.config.clone());
        // Who they belong to lives as long as this.
        let elector = electors.wait_for(Option::is_some).await.ok()?.clone()?;
        let loaded = config.wait_for(|it| it.loaded.is_some()).await.ok()?.loaded.clone()?;
        let ledger = elector.ledger().measured(shared.metrics.ledger.clone());
        let records = loop {
            match ledger.read_all().await {
                Ok(records) => break records,
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        };
        Some((elector, loaded, records))
    };
    let found = tokio::select! {
        () = end.cancelled() => return,
        found = find => found,
    };
    let Some((elector, loaded, records)) = found else { return };
    let Identity { uid, place, .. } = &shared.identity;
    let process = Process { uid, place, nonces: &shared.process };
    for resumed in resumed(&records, &loaded.file, process, Rules::default(), elector.time()) {
        calls.spawn(ask(Arc::clone(&shared), elector.clone(), Arc::clone(&loaded), resumed));
    }
}

/// Asks for one until the app tells how it ended, and records that; nobody need wait for its deadline then.
async fn ask(shared: Arc<Shared>, elector: Elector, loaded: Arc<Loaded>, Resumed { start, token }: Resumed) {
    let (id, attempt) = (start.id.clone(), start.attempt.clone());
    tracing::info!(id, attempt = attempt.number, "an agent before this one has begun it: the app is asked");
    let hung_up = shared.open_call(&attempt.nonce);
    let call = engine::call(&shared, &loaded, start, Some(token));
    let begun = elector.time();
    let ways = shared.ways(&loaded);
    let called = tokio::select! {
        biased;
        () = hung_up.cancelled() => Some(Called::by(Outcome::cancelled(elector.time()))),
        called = target::call(&ways, &call, between(begun, attempt.deadline)) => called,
    };
    if let Some(Called { outcome, .. }) = called {
        let outcome = Outcome { at: elector.time(), ..outcome };
        shared.traces.called(&call, begun..outcome.at, Some(&outcome));
        let recording = Recording::of_call(id.clone(), &attempt, &outcome);
        let ledger = elector.ledger().measured(shared.metrics.ledger.clone());
        let recorded = engine::record(&ledger, &recording, || elector.time()).await;
        shared.traces.recorded(&call, &attempt.nonce, outcome.at..elector.time(), recorded);
        tracing::info!(id, outcome = ?outcome.kind, recorded, "the app has told how it ended");
    } else {
        tracing::warn!(id, "the app does not tell how it ended: its deadline holds");
    }
    shared.close_call(&attempt.nonce);
}
