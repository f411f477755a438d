//! The guard of the app's own schedules, which `BullMQ` repeats: puts back what pods of an older revision
//! delete of what the newest one has added (see [`memory`]), and removes old jobs, of which `CabloyJS` keeps all.
//!
//! * [`repeat`] and [`dialect`]: schedules and their jobs as `BullMQ` has them, and in what its versions differ; pure.
//! * [`memory`]: what the newest code wants, and what is missing of it; pure.
//! * [`store`]: what is read and written in Redis; [`queues`]: which queues there are.
//! * [`presence`] and [`flags`]: what each pod does for it when it starts, and as long as it runs.

pub mod dialect;
pub mod flags;
pub mod memory;
pub mod presence;
pub mod queues;
pub mod repeat;
pub mod store;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cabloy_crds::agent_status::{GuardStatus, Problem, PutBackStatus};
use cabloy_crds::files::{AgentFile, Guard as GuardFile};
use cabloy_crds::vocabulary::Generation;
use jiff::Timestamp;
use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::election::{Elector, Term};
use crate::lead::while_leading;
use crate::masters::node::{NodeError, classify, reason};
use crate::shared::Shared;
use crate::startup::Place;
use dialect::Dialect;
use memory::{Memory, Missing, Revisions, Snapshot};
use store::{Journal, Keys, PutBack, Store};

/// Between two looks while a revision rolls out.
const QUICK: Duration = Duration::from_millis(250);

/// Between two looks otherwise.
const CALM: Duration = Duration::from_secs(1);

/// How long a look may take, with all that is written.
const LOOK: Duration = Duration::from_secs(10);

/// Between two removals of old jobs.
const TRIM: Duration = Duration::from_mins(1);

/// So many ticks are tried for one that is put back.
const TICKS: usize = 8;

/// So many that were put back are shown.
const SHOWN: usize = 10;

/// Why a look came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("role {role} at {address}: {error}")]
    Redis { role: String, address: String, error: NodeError },
    #[error("role {role} at {address} does not answer")]
    Timeout { role: String, address: String },
    #[error("{key} of role {role} at {address} is a {found}: that is no queue of BullMQ")]
    NoQueue { role: String, address: String, key: String, found: String },
    #[error("there is no Redis for role {0}")]
    NoServer(String),
}

impl Error {
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Redis { error, .. } => reason(error.kind),
            Self::Timeout { .. } => "Timeout",
            Self::NoQueue { .. } => "NoQueue",
            Self::NoServer(_) => "MissingFile",
        }
    }
}

/// Guards while this agent leads, until `stop`.
pub async fn guard_schedules(shared: Arc<Shared>, stop: CancellationToken) {
    let (working, resting) = (Arc::clone(&shared), Arc::clone(&shared));
    let work = move |elector, term| {
        let shared = Arc::clone(&working);
        async move { Guard { shared, elector, term, open: None, trim_at: Instant::now() }.run().await }
    };
    while_leading(shared, stop, work, move || resting.show_guard(None, None)).await;
}

/// The revisions, as the files have them.
fn revisions(file: &AgentFile, guard: &GuardFile, place: &Place) -> Revisions {
    let own = BTreeSet::from([place.hash().to_owned()]);
    // Outside Kubernetes nobody says which is the newest.
    let newest = if guard.newest.is_empty() { own } else { guard.newest.clone() };
    let all = file.revisions.keys().chain(&newest).cloned().collect();
    let dialect = Dialect::of(file.app.generation);
    let natives = file.schedules.iter().filter_map(|schedule| schedule.takes_over.as_deref());
    let taken_over = natives.map(|native| dialect.bean(native)).collect();
    Revisions { newest, all, taken_over }
}

/// What is known of the queues.
struct Open {
    keys: Keys,
    store: Store,
    memory: Memory,
    journal: Journal,
    trimmed: u64,
}

struct Guard {
    shared: Arc<Shared>,
    elector: Elector,
    term: Term,
    open: Option<Open>,
    trim_at: Instant,
}

impl Guard {
    /// Returns when another leader is seen to have been at work.
    async fn run(mut self) {
        let mut config = self.shared.config.clone();
        loop {
            config.mark_unchanged();
            let Some(loaded) = self.shared.loaded() else { return };
            let pause = if let Some(file) = &loaded.file.guard {
                let revisions = revisions(&loaded.file, file, &self.shared.identity.place);
                match self.step(file, loaded.file.app.generation, &revisions).await {
                    Ok(Some(pause)) => pause,
                    Ok(None) => return,
                    Err(error) => {
                        tracing::warn!(reason = error.reason(), %error, "the app's own schedules are not guarded");
                        // What has been read may be out of date when the server is back.
                        self.open = None;
                        let problem = Problem {
                            reason: "NotGuarded".into(),
                            message: format!("the app's own schedules are not guarded: {error}"),
                            path: None,
                        };
                        self.shared.show_guard(None, Some(problem));
                        CALM
                    }
                }
            } else {
                self.open = None;
                self.shared.show_guard(None, None);
                Duration::MAX
            };
            tokio::select! {
                changed = config.changed() => if changed.is_err() { return },
                () = sleep(pause) => {}
            }
        }
    }

    /// Looks once, and does what there is to do; gives how long to wait, none if a leader with a higher token has been here.
    async fn step(
        &mut self,
        file: &GuardFile,
        generation: Generation,
        revisions: &Revisions,
    ) -> Result<Option<Duration>, Error> {
        let shared = Arc::clone(&self.shared);
        let keys = Keys::new(file, generation);
        with_role(&shared, &file.role, async |mut connection| self.look(&mut connection, file, keys, revisions).await)
            .await
    }

    async fn look(
        &mut self,
        connection: &mut MultiplexedConnection,
        file: &GuardFile,
        keys: Keys,
        revisions: &Revisions,
    ) -> Result<Option<Duration>, Failed> {
        let open = if let Some(open) = self.open.take().filter(|open| open.keys == keys) {
            open
        } else {
            let mut store = Store::new(keys.clone(), self.term.token());
            let (memory, journal) = store.load(connection).await?;
            Open { keys, store, memory, journal, trimmed: 0 }
        };
        let open = self.open.insert(open);
        let since = open.memory.rolling_since(revisions);
        let seen = open.store.look(connection, &open.memory, since).await?;
        let missing = open.memory.observe(&seen, revisions);
        for missing in &missing {
            // The lease may have ended while Redis was waited for.
            if !self.term.may_claim() {
                return Ok(None);
            }
            if let Some(token) = put_back(open, connection, missing, &seen, &self.shared).await? {
                self.elector.raise(token);
                return Ok(None);
            }
        }
        if let Some(token) = open.store.save(connection, &open.memory, &open.journal).await? {
            self.elector.raise(token);
            return Ok(None);
        }
        let stale: Vec<_> =
            seen.since.keys().filter(|hash| !revisions.all.contains(*hash) && !seen.lives(hash, seen.now)).collect();
        if !stale.is_empty() {
            open.store.forget(connection, &stale).await?;
        }
        // Who takes schedules over learns from old jobs what apps have left.
        let may_trim = Instant::now() >= self.trim_at && !self.shared.takes_over();
        if let Some(history) = file.history.filter(|_| may_trim) {
            self.trim_at = Instant::now() + TRIM;
            for (state, keep) in [("completed", history.completed), ("failed", history.failed)] {
                let Some(keep) = keep else { continue };
                let removed = open.store.trim(connection, state, keep).await?;
                open.trimmed = open.trimmed.saturating_add(removed);
                self.shared.metrics.native_trimmed.inc_by(removed);
            }
        }
        let rolling = open.memory.rolling_since(revisions).is_some();
        self.shared.show_guard(Some(status(open, &seen, rolling)), None);
        Ok(Some(if rolling { QUICK } else { CALM }))
    }
}

/// Works with the queues in the Redis of a role, for as long as a look may take.
pub(crate) async fn with_role<T>(
    shared: &Shared,
    role: &str,
    work: impl AsyncFnOnce(MultiplexedConnection) -> Result<T, Failed>,
) -> Result<T, Error> {
    let loaded = shared.loaded();
    let server = loaded.as_ref().and_then(|loaded| loaded.servers.get(role));
    let Some(server) = server else { return Err(Error::NoServer(role.to_owned())) };
    let (role, address) = (role.to_owned(), server.name.clone());
    let failed = |error| Error::Redis { role: role.clone(), address: address.clone(), error };
    let step = async {
        let connection = shared.roles.connection(&role, server).await.map_err(failed)?;
        work(connection).await.map_err(|error| match error {
            Failed::Redis(error) => failed(classify(&error)),
            Failed::NoQueue { key, found } => {
                Error::NoQueue { role: role.clone(), address: address.clone(), key, found }
            }
        })
    };
    let late = || Error::Timeout { role: role.clone(), address: address.clone() };
    timeout(LOOK, step).await.unwrap_or_else(|_| Err(late()))
}

/// Why a look came to nothing, before it is said where.
pub(crate) enum Failed {
    Redis(redis::RedisError),
    NoQueue { key: String, found: String },
}

impl From<redis::RedisError> for Failed {
    fn from(error: redis::RedisError) -> Self {
        Self::Redis(error)
    }
}

/// Puts a schedule back; gives the token of another leader if that is higher.
async fn put_back(
    open: &mut Open,
    connection: &mut MultiplexedConnection,
    missing: &Missing,
    seen: &Snapshot,
    shared: &Shared,
) -> Result<Option<u64>, Failed> {
    let Missing { queue, key } = missing;
    let known = open.memory.queues.get(queue);
    let Some(template) = known.and_then(|known| known.templates.get(key)) else { return Ok(None) };
    // The app itself has said when the next tick is, if it is yet to come.
    let last = known.and_then(|known| known.last.get(key)).copied();
    let mut tick = last.filter(|tick| *tick > seen.now).or_else(|| template.next_after(seen.now, last));
    for _ in 0..TICKS {
        let job = tick.and_then(|tick| template.job(open.keys.dialect(), tick, seen.now));
        let Some(job) = job else { break };
        match open.store.put_back(connection, queue, key, template, &job, seen.now).await? {
            PutBack::Done => {
                tracing::info!(queue, key, next = job.tick, "a schedule of the app's own was deleted, and is put back");
                shared.metrics.native_put_back.inc();
                let time = |at: i64| Timestamp::from_millisecond(at).unwrap_or_default();
                let entry =
                    PutBackStatus { queue: queue.clone(), key: key.clone(), at: time(seen.now), next: time(job.tick) };
                open.journal.put_back = open.journal.put_back.saturating_add(1);
                open.journal.last.insert(0, entry);
                open.journal.last.truncate(SHOWN);
                return Ok(None);
            }
            PutBack::Present => return Ok(None),
            PutBack::Taken => tick = template.next_after(job.tick, Some(job.tick)),
            PutBack::Fenced(token) => return Ok(Some(token)),
            PutBack::NoQueue { key, found } => return Err(Failed::NoQueue { key, found }),
        }
    }
    tracing::warn!(queue, key, "a schedule of the app's own was deleted, and has no tick to come");
    open.memory.give_up(missing);
    Ok(None)
}

fn status(open: &Open, seen: &Snapshot, rolling: bool) -> GuardStatus {
    GuardStatus {
        rolling,
        queues: seen.queues.len(),
        schedules: seen.queues.values().map(|queue| queue.schedules.len()).sum(),
        put_back: open.journal.put_back,
        last: open.journal.last.clone(),
        trimmed: open.trimmed,
    }
}
