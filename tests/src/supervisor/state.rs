//! What a cluster leaves on the machine, written down so that it can be removed by somebody else.
//!
//! A supervisor holds a lock on its record for as long as it lives; the kernel gives it back when it dies, so a record
//! that can be locked is one to sweep. One more lock orders those who look at the records.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::MARKER;
use super::cgroup;
use crate::process::signal;
use crate::tools::progress;
use crate::wait::try_until_blocking;

/// The record of one cluster.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// In the marker of its processes and in the name of its control group.
    id: String,
    dir: PathBuf,
    /// The supervisor.
    pid: u32,
}

/// A cluster's claim on its folder and its name.
#[derive(Debug)]
pub struct State {
    record: Record,
    path: PathBuf,
    /// Locked as long as this lives.
    _lock: File,
}

impl State {
    /// Sweeps after dead supervisors and claims a folder for a new cluster: a new or an empty one.
    pub fn register(dir: &Path) -> anyhow::Result<Self> {
        sweep_all()?;
        let run = run_dir()?;
        let _order = lock_all(&run)?;
        let dir = claim(dir).with_context(|| dir.display().to_string())?;
        let (mut lock, path) = tempfile::Builder::new().prefix("").suffix(".json").tempfile_in(&run)?.keep()?;
        lock.lock()?;
        let id = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let record = Record { id, dir, pid: std::process::id() };
        lock.write_all(&serde_json::to_vec(&record)?)?;
        Ok(Self { record, path, _lock: lock })
    }

    /// The unique name of the cluster on this machine.
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.record.dir
    }

    /// Removes every trace.
    pub fn remove(&self) -> anyhow::Result<()> {
        remove(&self.record)?;
        fs::remove_file(&self.path)?;
        Ok(())
    }
}

/// Removes what dead supervisors left.
///
/// # Errors
/// Something of it cannot be removed.
pub fn sweep_all() -> anyhow::Result<()> {
    let run = run_dir()?;
    let _order = lock_all(&run)?;
    for path in records(&run)? {
        sweep(&path)?;
    }
    Ok(())
}

/// Ends the cluster in a folder, if there is one, and waits until it is gone.
///
/// # Errors
/// It does not go.
pub fn down(dir: &Path) -> anyhow::Result<()> {
    let run = run_dir()?;
    let Ok(dir) = dir.canonicalize() else {
        return Ok(());
    };
    for path in records(&run)? {
        let Ok(record) = fs::read(&path).map_err(anyhow::Error::from).and_then(|text| parse(&text)) else {
            continue;
        };
        if record.dir != dir {
            continue;
        }
        let order = lock_all(&run)?;
        if !sweep(&path)? {
            drop(order);
            // Alive, since it holds its lock; so its id is its own.
            signal(record.pid, Signal::TERM);
            try_until_blocking("the end of the supervisor", Duration::from_mins(1), || !path.exists())?;
        }
    }
    Ok(())
}

/// Where the records are: on a file system that a restart of the machine empties, as it ends what they tell of.
fn run_dir() -> anyhow::Result<PathBuf> {
    let user = rustix::process::geteuid();
    let run = if user.is_root() {
        PathBuf::from("/run/cabloy-tests")
    } else {
        std::env::temp_dir().join(format!("cabloy-tests-{}", user.as_raw()))
    };
    fs::create_dir_all(&run).with_context(|| run.display().to_string())?;
    Ok(run)
}

fn lock_all(run: &Path) -> io::Result<File> {
    let lock = File::create(run.join("lock"))?;
    lock.lock()?;
    Ok(lock)
}

fn records(run: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(run)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// Removes what a dead supervisor left; whether it was dead.
fn sweep(path: &Path) -> anyhow::Result<bool> {
    let Ok(mut file) = File::open(path) else {
        return Ok(true);
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    // One that died before it had written its record had made nothing either.
    if let Ok(record) = parse(&text) {
        progress(&format!("sweeping after a supervisor that died: {}", record.dir.display()));
        remove(&record)?;
    }
    fs::remove_file(path)?;
    Ok(true)
}

fn parse(text: &[u8]) -> anyhow::Result<Record> {
    Ok(serde_json::from_slice(text)?)
}

/// A folder that holds nothing yet, so that all of it may be removed.
fn claim(dir: &Path) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(dir)?;
    ensure!(fs::read_dir(dir)?.next().is_none(), "the folder is not empty");
    Ok(dir.canonicalize()?)
}

fn remove(record: &Record) -> anyhow::Result<()> {
    let timeout = Duration::from_secs(30);
    try_until_blocking("the end of all processes", timeout, || {
        let left = processes(&record.id);
        for pid in &left {
            signal(*pid, Signal::KILL);
        }
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })?;
    try_until_blocking("control groups to be empty", timeout, || cgroup::remove(&record.id))?;
    // The kernel lets go of the mounts of a dead namespace a moment after its last process.
    try_until_blocking("the folder to be free", timeout, || match fs::remove_dir_all(&record.dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    })?;
    Ok(())
}

/// The processes that carry the marker of a cluster.
fn processes(id: &str) -> Vec<u32> {
    let marker = format!("{MARKER}={id}");
    let carries = |pid: &u32| {
        // Processes come and go, and those of other users are none of ours.
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == marker.as_bytes())
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(carries).collect()
}
