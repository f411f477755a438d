//! Takes up changed files while the agent runs: all of them, or none.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cabloy_crds::agent_status::Problem;
use cabloy_crds::names::AGENT_FILE;
use jiff::Timestamp;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::files::{self, Bad, Loaded};
use crate::signing::Signing;

/// Changes come in bursts; the files are read when none has come for this long.
const SETTLE: Duration = Duration::from_millis(20);

/// How often the files are read although nothing was heard: some file systems tell nothing.
const RECHECK: Duration = Duration::from_secs(10);

/// The same while they are bad.
const RECHECK_BAD: Duration = Duration::from_secs(1);

/// Where the files are.
#[derive(Clone, Debug)]
pub struct Places {
    /// The folder of what the agent works by.
    pub dir: PathBuf,
    /// The file of the keys that calls are signed with, if they are to be signed.
    pub signing_key: Option<PathBuf>,
    /// The folder of the passwords that the app has too; there need be none.
    pub secrets: PathBuf,
}

impl Places {
    /// The link that kubelet makes anew whenever one of the passwords has changed.
    fn secrets_link(&self) -> PathBuf {
        self.secrets.join("..data")
    }
}

/// The files as the agent has them.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// What the agent works by; none until the files are good for the first time.
    pub loaded: Option<Arc<Loaded>>,
    /// When it was taken up.
    pub loaded_at: Option<Timestamp>,
    /// What is wrong with the files as they now are; empty if they are what the agent works by.
    pub problems: Vec<Problem>,
    /// How many times files were taken up.
    pub taken: u64,
    /// How many times changed files were refused.
    pub refused: u64,
    /// When kubelet brought the passwords that are there now, if there are any.
    pub secrets_at: Option<Timestamp>,
}

/// Watches folders, and says when something in them has changed.
#[derive(Debug)]
struct Folders {
    /// None where the operating system has no watches left: the files are re-read from time to time all the same.
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    changes: mpsc::Receiver<()>,
}

impl Folders {
    fn new() -> Self {
        let (sender, changes) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading is an event too, and our own. A full channel has a change in it already.
            if event.map_or(true, |event| !event.kind.is_access()) {
                let _ = sender.try_send(());
            }
        });
        let watcher = watcher.inspect_err(|error| tracing::warn!(%error, "cannot watch files")).ok();
        Self { watcher, watched: BTreeSet::new(), changes }
    }

    /// Watches just these folders. All are watched anew: behind the same path there may be another folder by now.
    fn watch(&mut self, folders: BTreeSet<PathBuf>) {
        let Some(watcher) = &mut self.watcher else { return };
        for folder in std::mem::replace(&mut self.watched, folders) {
            let _ = watcher.unwatch(&folder);
        }
        for folder in &self.watched {
            if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
                tracing::debug!(%error, folder = %folder.display(), "cannot watch");
            }
        }
    }

    /// Waits for changes to come, and then to cease.
    async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            return std::future::pending().await;
        }
        while let Ok(Some(())) = tokio::time::timeout(SETTLE, self.changes.recv()).await {}
    }
}

/// Keeps `config` and `signing` as the files say, until `stop`.
pub async fn watch_files(
    places: Places,
    config: watch::Sender<Config>,
    signing: watch::Sender<Signing>,
    stop: CancellationToken,
) {
    let mut folders = Folders::new();
    let mut secrets = Vec::new();
    loop {
        // Watched before they are read: no change can slip through between the two.
        let link = places.secrets_link();
        folders.watch(files::folders(&places.dir, secrets.iter().chain(&places.signing_key).chain([&link])));
        let (read, keys, secrets_at) = read(places.clone()).await;
        let named = match &read {
            Ok((_, named)) => named,
            Err(bad) => &bad.secrets,
        };
        if *named != secrets {
            secrets.clone_from(named);
            continue;
        }
        config.send_if_modified(|config| {
            let taken = take_up(config, read.map(|(loaded, _)| loaded), Timestamp::now());
            let brought = std::mem::replace(&mut config.secrets_at, secrets_at) != secrets_at;
            taken || brought
        });
        signing.send_if_modified(|signing| take_up_keys(signing, keys));
        let bad = !config.borrow().problems.is_empty() || !signing.borrow().problems.is_empty();
        let recheck = if bad { RECHECK_BAD } else { RECHECK };
        tokio::select! {
            () = stop.cancelled() => return,
            () = folders.changed() => {}
            () = tokio::time::sleep(recheck) => {}
        }
    }
}

/// Reads on a thread of its own: a file system may take its time.
async fn read(places: Places) -> (Result<(Loaded, Vec<PathBuf>), Bad>, Signing, Option<Timestamp>) {
    let read = move || {
        let keys = places.signing_key.as_deref().map(Signing::read).unwrap_or_default();
        (files::load(&places.dir), keys, made_at(&places.secrets_link()))
    };
    tokio::task::spawn_blocking(read).await.unwrap_or_else(|error| {
        let problem = Problem { reason: "UnreadableFile".to_owned(), message: error.to_string(), path: None };
        (Err(Bad { problems: vec![problem], secrets: Vec::new() }), Signing::default(), None)
    })
}

/// When a link was made, if it is there.
fn made_at(link: &Path) -> Option<Timestamp> {
    Timestamp::try_from(link.symlink_metadata().ok()?.modified().ok()?).ok()
}

/// Takes up the keys that were read; whether anything has changed by it.
fn take_up_keys(signing: &mut Signing, read: Signing) -> bool {
    if *signing == read {
        return false;
    }
    for Problem { reason, message, path } in &read.problems {
        tracing::warn!(reason, path = path.as_deref().unwrap_or_default(), message, "signing keys");
    }
    tracing::info!(keys = read.keys(), "signing keys taken up");
    *signing = read;
    true
}

/// Takes up what was read, or says why not; whether anything has changed by it.
fn take_up(config: &mut Config, read: Result<Loaded, Bad>, now: Timestamp) -> bool {
    match read.and_then(|loaded| same_cluster(config, loaded)) {
        Ok(loaded) => {
            let mended = !std::mem::take(&mut config.problems).is_empty();
            if config.loaded.as_ref().is_some_and(|known| known.fingerprint == loaded.fingerprint) {
                return mended;
            }
            tracing::info!(hash = loaded.hash, schedules = loaded.file.schedules.len(), "files taken up");
            config.loaded = Some(Arc::new(loaded));
            config.loaded_at = Some(now);
            config.taken += 1;
            true
        }
        Err(Bad { problems, .. }) if problems == config.problems => false,
        Err(Bad { problems, .. }) => {
            for Problem { reason, message, path } in &problems {
                let path = path.as_deref().unwrap_or_default();
                tracing::warn!(reason, path, message, kept = config.loaded.is_some(), "files refused");
            }
            config.problems = problems;
            config.refused += 1;
            true
        }
    }
}

/// The election, and all that is remembered, go by the name of the cluster.
fn same_cluster(config: &Config, loaded: Loaded) -> Result<Loaded, Bad> {
    match &config.loaded {
        Some(known) if known.file.cluster != loaded.file.cluster => {
            let message = format!("cluster: it cannot change from {} while the agent runs", known.file.cluster);
            let problem = Problem { reason: "InvalidFile".to_owned(), message, path: Some(AGENT_FILE.to_owned()) };
            Err(Bad { problems: vec![problem], secrets: Vec::new() })
        }
        _ => Ok(loaded),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(fingerprint: u128) -> Loaded {
        loaded_of("prod/shop", fingerprint)
    }

    fn loaded_of(cluster: &str, fingerprint: u128) -> Loaded {
        let file: cabloy_crds::files::AgentFile = serde_json::from_value(serde_json::json!({
            "cluster": cluster,
            "app": {"name": "shop", "generation": "v4", "port": 7002, "health": {"tcp": {}}},
            "election": {"ttlMs": 10_000},
        }))
        .unwrap();
        Loaded {
            file: Arc::new(file),
            masters: vec![],
            servers: std::collections::BTreeMap::new(),
            roles: std::collections::BTreeMap::new(),
            hash: fingerprint.to_string(),
            fingerprint,
        }
    }

    fn bad() -> Bad {
        Bad { problems: vec![Problem { reason: "R".into(), message: "m".into(), path: None }], secrets: vec![] }
    }

    #[test]
    fn bad_files_change_nothing_but_what_is_said() {
        let mut config = Config::default();
        let now = Timestamp::UNIX_EPOCH;
        assert!(take_up(&mut config, Err(bad()), now) && config.loaded.is_none());
        assert!(!take_up(&mut config, Err(bad()), now), "the same again is no news");
        assert!(take_up(&mut config, Ok(loaded(1)), now) && config.problems.is_empty());
        assert!(!take_up(&mut config, Ok(loaded(1)), now), "nor are the same files");
        assert!(take_up(&mut config, Err(bad()), now));
        assert_eq!(config.loaded.as_ref().unwrap().hash, "1");
        assert!(take_up(&mut config, Ok(loaded(1)), now), "that they are good again is news");
        assert_eq!((config.taken, config.refused), (1, 2));
        assert!(take_up(&mut config, Ok(loaded_of("prod/other", 2)), now));
        assert_eq!(config.loaded.as_ref().unwrap().hash, "1");
    }
}
