//! Schedules that take the place of one of the app's own, which is a repeatable job of `BullMQ`.
//!
//! The operator has the app's pods booted such that their app does not run it (the preload): an app that takes a tick of it
//! leaves the tick to the agents, and says so in the queue: in `CabloyJS` 4 by what the tick's job returns, in Vona by the name
//! of the worker that took it. Pods that were there before run the ticks that they take. So
//! each tick is run by its app, or left, until the operator knows that no pod is of the kind that runs it. Then the leader
//! takes what is left of the schedule out of the queues, in one step each, and knows all: which ticks were left, for which
//! instances, and with which tick each instance would have gone on. From that follows what its own schedule begins with
//! ([`Handover`]); the engine keeps that in the ledger, and only then the traces in the queues are removed. What a pod of the
//! other kind adds after that, such as one of a revision that is rolled back to, is taken out again.
//!
//! * [`store`]: what is read and written in Redis.

pub mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cabloy_crds::agent_status::Problem;
use cabloy_crds::files::{Schedule, Takeover};
use cabloy_crds::vocabulary::Generation;
use redis::aio::MultiplexedConnection;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::election::{Elector, Term};
use crate::guard::{Error, Failed, with_role};
use crate::lead::while_leading;
use crate::schedule::Handover;
use crate::shared::{Shared, Takes};
use store::{Decided, Release, Store};

/// Between two looks while a schedule waits.
const PACE: Duration = Duration::from_millis(250);

/// Between two looks otherwise.
const CALM: Duration = Duration::from_secs(1);

/// Takes schedules of the app's own over while this agent leads, until `stop`.
pub async fn take_over_schedules(shared: Arc<Shared>, stop: CancellationToken) {
    let (working, resting) = (Arc::clone(&shared), Arc::clone(&shared));
    let work = move |elector, term| {
        let shared = Arc::clone(&working);
        async move { Taker { shared, elector, term, store: None }.run().await }
    };
    let over = move || resting.show_takeovers(BTreeMap::new(), None);
    while_leading(shared, stop, work, over).await;
}

/// What a look came to.
enum Looked {
    /// What each schedule waits for that takes over nothing yet.
    Waits(BTreeMap<String, String>),
    /// A leader with a higher token has been here.
    Fenced(u64),
}

struct Taker {
    shared: Arc<Shared>,
    elector: Elector,
    term: Term,
    store: Option<Store>,
}

impl Taker {
    /// Returns when another leader is seen to have been at work.
    async fn run(mut self) {
        let mut config = self.shared.config.clone();
        let mut shown = self.shared.takes.subscribe();
        loop {
            config.mark_unchanged();
            shown.mark_unchanged();
            let Some(loaded) = self.shared.loaded() else { return };
            let takes: Vec<_> = loaded.file.schedules.iter().filter(|it| it.takes_over.is_some()).collect();
            let pause = match &loaded.file.takeover {
                Some(file) if self.has_work(&takes) => {
                    match self.step(file, loaded.file.app.generation, &takes).await {
                        Ok(Looked::Waits(waits)) => {
                            let pace = if waits.is_empty() { CALM } else { PACE };
                            self.shared.show_takeovers(waits, None);
                            pace
                        }
                        Ok(Looked::Fenced(token)) => {
                            self.elector.raise(token);
                            return;
                        }
                        Err(error) => {
                            tracing::warn!(reason = error.reason(), %error, "schedules of the app's own are not taken over");
                            let problem = Problem {
                                reason: "NotTakenOver".into(),
                                message: format!("schedules of the app's own are not taken over: {error}"),
                                path: None,
                            };
                            self.shared.show_takeovers(BTreeMap::new(), Some(problem));
                            CALM
                        }
                    }
                }
                Some(_) | None => {
                    self.shared.show_takeovers(BTreeMap::new(), None);
                    Duration::MAX
                }
            };
            tokio::select! {
                changed = config.changed() => if changed.is_err() { return },
                changed = shown.changed() => if changed.is_err() { return },
                () = sleep(pause) => {}
            }
        }
    }

    /// Whether the engine has come to one of these schedules.
    fn has_work(&self, takes: &[&Schedule]) -> bool {
        let stages = self.shared.takes.borrow();
        takes.iter().any(|schedule| stages.contains_key(&schedule.name))
    }

    /// Looks once, and does what there is to do.
    async fn step(&mut self, file: &Takeover, generation: Generation, takes: &[&Schedule]) -> Result<Looked, Error> {
        let shared = Arc::clone(&self.shared);
        let look = async |mut connection| self.look(&mut connection, file, generation, takes).await;
        with_role(&shared, &file.role, look).await
    }

    async fn look(
        &mut self,
        connection: &mut MultiplexedConnection,
        file: &Takeover,
        generation: Generation,
        takes: &[&Schedule],
    ) -> Result<Looked, Failed> {
        let store = match self.store.take().filter(|store| store.is_of(file, generation)) {
            Some(store) => store,
            None => Store::new(file, generation, self.term.token()),
        };
        let store = self.store.insert(store);
        let (mut waits, mut held, mut cleared) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        for schedule in takes {
            let (name, Some(native)) = (&schedule.name, &schedule.takes_over) else { continue };
            let stage = self.shared.takes.borrow().get(name).copied();
            // The lease may have ended while Redis was waited for.
            if !self.term.may_claim() {
                break;
            }
            let fenced = match stage {
                Some(Takes::Waits) if !file.released.contains(native) => {
                    held.insert(native.as_str());
                    waits.insert(name.clone(), format!("every pod to boot without {native}, as the operator sees to"));
                    None
                }
                Some(Takes::Waits) => match take_over(store, connection, schedule, native, &self.term).await? {
                    Took::Handover(handover) => {
                        self.shared.hand_over(name, &handover);
                        None
                    }
                    Took::Waits(what) => {
                        waits.insert(name.clone(), what);
                        None
                    }
                    Took::Fenced(token) => Some(token),
                },
                Some(Takes::Kept) => {
                    let fenced = store.forget(connection, native).await?;
                    if fenced.is_none() {
                        tracing::info!(schedule = name, native, "a schedule of the app's own is taken over");
                        self.shared.show_take(name, Takes::Cleared);
                    }
                    fenced
                }
                Some(Takes::Cleared) => {
                    cleared.insert(native.as_str());
                    None
                }
                // The engine has not come to it, or its memory is on its way.
                Some(Takes::Begun) | None => None,
            };
            if let Some(token) = fenced {
                return Ok(Looked::Fenced(token));
            }
        }
        store.keep_jobs(connection, &held).await?;
        if let Some(token) = keep_out(store, connection, &cleared, &self.shared).await? {
            return Ok(Looked::Fenced(token));
        }
        Ok(Looked::Waits(waits))
    }
}

/// Takes schedules that are taken over out of the queues again, where a pod that boots as before has added them; gives the
/// token of another leader if that is higher. Their ticks are those of the schedules in their place.
async fn keep_out(
    store: &mut Store,
    connection: &mut MultiplexedConnection,
    natives: &BTreeSet<&str>,
    shared: &Shared,
) -> Result<Option<u64>, Failed> {
    if natives.is_empty() {
        return Ok(None);
    }
    for (native, queue) in store.present(connection, natives).await? {
        match store.release(connection, &native, &queue).await? {
            Release::Done => {
                tracing::warn!(native, queue, "a pod has added a schedule that is taken over, and it is removed");
                shared.metrics.native_removed.inc();
            }
            // It is looked at again.
            Release::AtWork(_) => continue,
            Release::Fenced(token) => return Ok(Some(token)),
            Release::NoQueue { key, found } => return Err(Failed::NoQueue { key, found }),
        }
        if let Some(token) = store.forget(connection, &native).await? {
            return Ok(Some(token));
        }
    }
    Ok(None)
}

/// What came of it.
enum Took {
    Handover(Handover),
    /// It waits for that.
    Waits(String),
    /// A leader with a higher token has been here.
    Fenced(u64),
}

/// Takes a schedule of the app's own over that the app of no pod runs any more.
async fn take_over(
    store: &mut Store,
    connection: &mut MultiplexedConnection,
    schedule: &Schedule,
    native: &str,
    term: &Term,
) -> Result<Took, Failed> {
    if let Some(decided) = store.decided(connection, native).await?.filter(|it| it.schedule == schedule.name) {
        return Ok(Took::Handover(decided.handover));
    }
    store.queues.start_over();
    while !store.queues.is_whole() {
        store.queues.look(connection).await?;
    }
    let mut at_work = Vec::new();
    for queue in store.queues.names() {
        match store.release(connection, native, queue).await? {
            Release::Done => {}
            Release::AtWork(job) => at_work.push(format!("{job} in {queue}")),
            Release::Fenced(token) => return Ok(Took::Fenced(token)),
            Release::NoQueue { key, found } => return Err(Failed::NoQueue { key, found }),
        }
    }
    if !at_work.is_empty() {
        return Ok(Took::Waits(format!("the app to end its jobs of {native}: {}", at_work.join(", "))));
    }
    let rest = store.rest(connection, native).await?;
    let handover = match Handover::new(schedule, &rest, term.time()) {
        Ok(handover) => handover,
        Err(error) => return Ok(Took::Waits(error.to_string())),
    };
    tracing::info!(
        schedule = schedule.name, native, instances = rest.pending.len(), owed = handover.owed.len(), from = %handover.from,
        "a schedule of the app's own is taken out of its queues"
    );
    let decided = Decided { schedule: schedule.name.clone(), handover };
    Ok(match store.decide(connection, native, &decided).await? {
        Some(token) => Took::Fenced(token),
        None => Took::Handover(decided.handover),
    })
}
