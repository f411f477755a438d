//! What each pod does for the guard: tells that it runs, and of which revision it is, and sees to the [`flags`] of
//! startups when its app starts. The flags that are there when the first pod of a revision starts are those of the code
//! before, and would keep the new code from running its own startups, the one that adds its schedules among them.

use std::sync::Arc;
use std::time::Duration;

use cabloy_crds::files::{AgentFile, Guard as GuardFile};
use redis::RedisResult;
use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::flags::{self, Action, Phase, action};
use super::store::{self, Keys};
use crate::files::Loaded;
use crate::masters::node::{NodeError, classify};
use crate::shared::{Identity, Shared};
use crate::startup::Place;

/// Between two words of a pod that it runs.
const PACE: Duration = Duration::from_secs(1);

/// How long Redis may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Runs until `stop`.
pub async fn show_presence(shared: Arc<Shared>, stop: CancellationToken) {
    let (mut config, mut app) = (shared.config.clone(), shared.app.clone());
    let mut presence = Presence { shared, first: None, serves: None, vouched: false };
    loop {
        config.mark_unchanged();
        app.mark_unchanged();
        let loaded = presence.shared.loaded();
        let guard = loaded.as_ref().and_then(|loaded| Some((loaded, loaded.file.guard.as_ref()?)));
        let pause = match guard {
            Some((loaded, guard)) => {
                if let Err(error) = presence.tell(loaded, guard).await {
                    tracing::debug!(%error, "the guard does not hear that this pod runs");
                }
                PACE
            }
            None => Duration::MAX,
        };
        tokio::select! {
            () = stop.cancelled() => break,
            changed = config.changed() => if changed.is_err() { break },
            // How the app is decides what becomes of flags.
            changed = app.changed() => if changed.is_err() { break },
            () = sleep(pause) => {}
        }
    }
    let loaded = presence.shared.loaded();
    if let Some((loaded, guard)) = loaded.as_ref().and_then(|loaded| Some((loaded, loaded.file.guard.as_ref()?))) {
        // An agent ends after its app: nobody need wait for that to come through its startups.
        if let Err(error) = presence.announce(loaded, guard, false).await {
            tracing::debug!(%error, "the guard does not hear that this pod ends");
        }
    }
}

/// Why something came to nothing; it is tried again.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("there is no Redis for role {0}")]
    NoServer(String),
    #[error("role {0}: {1}")]
    Redis(String, NodeError),
    #[error("role {0} does not answer")]
    Timeout(String),
}

struct Presence {
    shared: Arc<Shared>,
    /// Whether no pod of this revision has started before, once that is known.
    first: Option<bool>,
    /// Since when the app serves.
    serves: Option<Instant>,
    /// Whether flags have been vouched for since then, for long enough.
    vouched: bool,
}

impl Presence {
    async fn tell(&mut self, loaded: &Loaded, guard: &GuardFile) -> Result<(), Error> {
        let generation = loaded.file.app.generation;
        let phase = Phase::of(&self.shared.app.borrow());
        let others = self.announce(loaded, guard, phase.may_start()).await?;
        self.vouched &= phase == Phase::Healthy;
        self.serves = self.serves.filter(|_| phase == Phase::Healthy);
        let keys = Keys::new(guard, generation);
        let first = match self.first {
            Some(first) => first,
            None => *self.first.insert(self.is_first(loaded, guard, &keys).await?),
        };
        let Some(action) = action(generation, phase, first, others, self.vouched) else { return Ok(()) };
        let count = ask(&self.shared, loaded, &guard.startups.role, async |mut connection| {
            flags::see_to(&mut connection, &guard.startups.keys, action).await
        })
        .await?;
        match action {
            Action::Vouch => {
                let serves = self.serves.get_or_insert_with(Instant::now);
                self.vouched = serves.elapsed() >= flags::VOUCHES;
            }
            Action::RemoveUnproven if count > 0 => {
                tracing::info!(count, "startups that failed or died are not skipped");
                self.shared.metrics.startup_flags_removed.inc_by(count);
            }
            Action::RemoveUnproven => {}
            Action::RemoveAll => {
                tracing::info!(count, "startups of this revision are not skipped for those of another");
                self.shared.metrics.startup_flags_removed.inc_by(count);
                self.note_started(loaded, guard, &keys).await?;
                self.first = Some(false);
            }
        }
        Ok(())
    }

    /// Gives how many apps of other pods are at their startups.
    async fn announce(&self, loaded: &Loaded, guard: &GuardFile, starting: bool) -> Result<u64, Error> {
        let Identity { place, uid, .. } = &self.shared.identity;
        ask(&self.shared, loaded, &guard.role, async |mut connection| {
            store::announce(&mut connection, &Keys::new(guard, loaded.file.app.generation), place.hash(), uid, starting)
                .await
        })
        .await
    }

    async fn is_first(&self, loaded: &Loaded, guard: &GuardFile, keys: &Keys) -> Result<bool, Error> {
        let Identity { pod, place, .. } = &self.shared.identity;
        if is_old(&loaded.file, guard, place) {
            return Ok(false);
        }
        let last = ask(&self.shared, loaded, &guard.role, async |mut connection| {
            store::started(&mut connection, keys, &workload_of(pod, place)).await
        });
        Ok(last.await?.as_deref() != Some(place.hash()))
    }

    async fn note_started(&self, loaded: &Loaded, guard: &GuardFile, keys: &Keys) -> Result<(), Error> {
        let Identity { pod, place, .. } = &self.shared.identity;
        ask(&self.shared, loaded, &guard.role, async |mut connection| {
            store::note_started(&mut connection, keys, &workload_of(pod, place), place.hash()).await
        })
        .await
    }
}

async fn ask<T>(
    shared: &Shared,
    loaded: &Loaded,
    role: &str,
    question: impl AsyncFnOnce(MultiplexedConnection) -> RedisResult<T>,
) -> Result<T, Error> {
    let server = loaded.servers.get(role).ok_or_else(|| Error::NoServer(role.to_owned()))?;
    let failed = |error| Error::Redis(role.to_owned(), error);
    let connection = shared.roles.connection(role, server).await.map_err(failed)?;
    let answer = timeout(ANSWER, question(connection)).await.map_err(|_| Error::Timeout(role.to_owned()))?;
    answer.map_err(|error| failed(classify(&error)))
}

/// Whether the files know a newer revision of the pod's workload.
fn is_old(file: &AgentFile, guard: &GuardFile, place: &Place) -> bool {
    file.revisions.contains_key(place.hash()) && !guard.newest.is_empty() && !guard.newest.contains(place.hash())
}

/// A name that all pods of a workload share, and pods of others do not: the pod's, less what tells it from its like.
fn workload_of(pod: &str, place: &Place) -> String {
    let Place::Pod(hash) = place else { return String::new() };
    let stem = pod.rsplit_once('-').map_or(pod, |(stem, _)| stem);
    stem.strip_suffix(hash.as_str()).and_then(|stem| stem.strip_suffix('-')).unwrap_or(stem).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_a_workload_share_a_name() {
        let of = |pod: &str, hash: &str| workload_of(pod, &Place::Pod(hash.into()));
        assert_eq!(of("shop-web-5d9c7b8f6d-x2x4z", "5d9c7b8f6d"), "shop-web");
        assert_eq!(of("shop-db-0", "shop-db-7c9d8f"), "shop-db", "a StatefulSet");
        assert_eq!(of("shop-node-x2x4z", "7c9d8f"), "shop-node", "a DaemonSet");
        assert_eq!(workload_of("host-17", &Place::Outside("a".into())), "");
    }
}
