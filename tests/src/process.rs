//! Child processes that never outlive their owner.
//!
//! The owner ends them when it drops them; the kernel does when the owner is killed. The latter is asked of util-linux'
//! `setpriv`, since asking for it oneself needs code between fork and exec, which Rust calls unsafe.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, mpsc};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::wait;

/// A command whose process the kernel kills when the process that started it is gone. An interrupt at the terminal is for
/// that one alone, so that it may end the other in its own way.
pub fn bound(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program.as_ref()).stdin(Stdio::null()).process_group(0);
    command
}

type Request = (Command, mpsc::Sender<io::Result<Child>>);

/// The thread that starts every child. The kernel takes the end of the *thread* that started a child for the death of
/// its parent, and each test has a thread of its own: what tests share must be started by one that stays.
static STARTER: LazyLock<mpsc::Sender<Request>> = LazyLock::new(|| {
    let (requests, inbox) = mpsc::channel::<Request>();
    thread::spawn(move || {
        for (mut command, reply) in inbox {
            // Whoever asked may have given up; the child then ends with its handle.
            let _ = reply.send(command.spawn());
        }
    });
    requests
});

/// Starts a [`bound`] command.
///
/// # Errors
/// The program cannot be started.
pub fn spawn(command: Command) -> io::Result<Child> {
    let (reply, answer) = mpsc::channel();
    let gone = |_| io::Error::other("the thread that starts processes is gone");
    STARTER.send((command, reply)).map_err(|_| io::Error::other("the thread that starts processes is gone"))?;
    answer.recv().map_err(gone)?
}

/// A running program with a name and a log file, killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a [`bound`] command whose output is appended to `log`.
    ///
    /// # Errors
    /// The log cannot be opened, or the program cannot be started.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> io::Result<Self> {
        let output = File::options().create(true).append(true).open(log)?;
        command.stdout(output.try_clone()?).stderr(output);
        Ok(Self { name: name.to_owned(), child: spawn(command)?, log: log.to_owned() })
    }

    /// What it is called in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Its exit status, once it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&mut self) {
        // Both fail only for a process that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A running program together with all that it starts and that stays in its process group: killed as one, when dropped or
/// when the test process is gone. The kernel alone would end no more than the first of them.
#[derive(Debug)]
pub struct Group {
    leader: Process,
    watcher: Child,
}

impl Group {
    /// As [`Process::spawn`].
    ///
    /// # Errors
    /// The log cannot be opened, or the program cannot be started.
    pub fn spawn(name: &str, command: Command, log: &Path) -> io::Result<Self> {
        let leader = Process::spawn(name, command, log)?;
        // Its stdin ends with this process, however that ends.
        let mut watcher = Command::new("sh");
        watcher.args(["-c", "cat; kill -KILL -- \"-$0\"", &leader.pid().to_string()]);
        watcher.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        Ok(Self { watcher: watcher.spawn()?, leader })
    }

    /// The process that was started first.
    #[must_use]
    pub fn leader(&self) -> &Process {
        &self.leader
    }

    /// The exit status of the first process, once it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.leader.exited()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // It must not come to its second command.
        let _ = self.watcher.kill();
        let _ = self.watcher.wait();
        let _ = kill_process_group(Pid::from_child(&self.leader.child), Signal::KILL);
        self.leader.kill();
    }
}

/// Sends a signal to a process that is no child; one that has ended meanwhile is none of anybody's concern.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Stops a process in its tracks, and returns when it does nothing any more; [`Signal::CONT`] lets it go on.
pub fn freeze(pid: u32) {
    signal(pid, Signal::STOP);
    let state = format!("/proc/{pid}/stat");
    // All of its threads have stopped when the kernel shows it so; one that has ended does nothing either.
    let _ =
        wait::try_until_blocking("a process to stop", Duration::from_secs(5), || match fs::read_to_string(&state) {
            Ok(stat) => stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['T', 'Z', 'X'])),
            Err(_) => true,
        });
}

/// The last lines of a log file; empty if there is none.
#[must_use]
pub fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn what_a_group_has_started_ends_with_it() {
        let dir = tempfile::TempDir::with_prefix("cabloy-group-").unwrap();
        let mut command = bound("sh");
        command.args(["-c", "sleep 1000 & echo $!; wait"]);
        let log = dir.path().join("log");
        let group = Group::spawn("group", command, &log).unwrap();
        let pid = wait::try_until_blocking("a child", SOON, || tail(&log, 1).parse::<u32>().ok()).unwrap();
        let is_alive = || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"));
        assert!(is_alive());
        drop(group);
        wait::try_until_blocking("the child to end", SOON, || !is_alive()).unwrap();
    }
}
