//! Real Redis servers, as many as a test asks for, that can be killed, paused and started again.

pub mod clock;
mod version;

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use rustix::process::Signal;
use tempfile::TempDir;

pub use version::Version;

use crate::network::Namespace;
use crate::port::free_port;
use crate::process::{Process, bound};
use crate::wait;

/// How often a start is tried when another program takes the port first.
const ATTEMPTS: u32 = 5;

/// The port of a server that has an address of its own.
const PORT: u16 = 6379;

/// The Unix socket of such a server, in its folder.
const SOCKET: &str = "socket";

/// The file that a server writes its snapshots to.
const SNAPSHOT: &str = "dump.rdb";

/// The snapshot that was kept.
const KEPT: &str = "kept.rdb";

/// How a server is started.
#[derive(Debug, Default)]
pub struct Builder {
    binary: Option<PathBuf>,
    dir: Option<PathBuf>,
    place: Option<(Namespace, Ipv4Addr)>,
    clock: Option<PathBuf>,
    password: Option<String>,
    settings: Vec<(String, String)>,
}

impl Builder {
    /// Which `redis-server` to run, instead of the one in PATH.
    #[must_use]
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = Some(path.into());
        self
    }

    /// The folder of its files, which then stays, instead of one that goes with the server.
    #[must_use]
    pub fn dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.dir = Some(path.into());
        self
    }

    /// In a network namespace, at the usual port of an address there; the test talks to it by a Unix socket.
    #[must_use]
    pub fn inside(mut self, namespace: &Namespace, address: Ipv4Addr) -> Self {
        self.place = Some((namespace.clone(), address));
        self
    }

    /// With a wall clock that [`Redis::shift_clock`] moves; `library` is what [`clock::library`] found.
    #[must_use]
    pub fn movable_clock(mut self, library: impl Into<PathBuf>) -> Self {
        self.clock = Some(library.into());
        self
    }

    /// The password of its default user.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self.setting("requirepass", password)
    }

    /// Every write is on disk before it is answered, so that a restart loses nothing.
    #[must_use]
    pub fn durable(self) -> Self {
        self.setting("appendonly", "yes").setting("appendfsync", "always")
    }

    /// Any other line of redis.conf.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start(self) -> Redis {
        match self.try_start() {
            Ok(redis) => redis,
            Err(error) => panic!("redis-server: {error:#} (tests/setup-debian.sh installs it)"),
        }
    }

    fn url(&self, addr: SocketAddr, dir: &Path) -> String {
        let password = self.password.as_deref().map(escaped);
        if self.place.is_some() {
            let query = password.map(|password| format!("?pass={password}")).unwrap_or_default();
            return format!("redis+unix://{}{query}", dir.join(SOCKET).display());
        }
        let password = password.map(|password| format!(":{password}@")).unwrap_or_default();
        format!("redis://{password}{addr}")
    }

    fn is_durable(&self) -> bool {
        self.settings.iter().any(|(name, value)| name == "appendonly" && value == "yes")
    }

    fn try_start(self) -> anyhow::Result<Redis> {
        let own = TempDir::with_prefix("cabloy-redis-")?;
        let dir = self.dir.clone().unwrap_or_else(|| own.path().to_owned());
        fs::create_dir_all(&dir)?;
        let mut attempt = 1;
        loop {
            let addr = match &self.place {
                Some((_, address)) => SocketAddr::from((*address, PORT)),
                None => SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)),
            };
            match launch(&self, addr, &dir, &[]) {
                Ok(process) => {
                    return Ok(Redis { process: Mutex::new(process), builder: self, addr, dir, _own: own });
                }
                Err(error) if attempt == ATTEMPTS => return Err(error),
                Err(_) => attempt += 1,
            }
        }
    }
}

/// A running server; it ends when dropped, or with the test process.
#[derive(Debug)]
pub struct Redis {
    // First, so that the server is gone before its folder is.
    process: Mutex<Process>,
    builder: Builder,
    addr: SocketAddr,
    dir: PathBuf,
    _own: TempDir,
}

impl Redis {
    /// A server without a password that keeps nothing on disk.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// For anything else.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Where it listens; the same for all of its life.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The URL that the test reaches it by, with the password if there is one.
    #[must_use]
    pub fn url(&self) -> String {
        self.builder.url(self.addr, &self.dir)
    }

    /// The folder of its files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The id of its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// Kills it, as a crash would.
    pub fn kill(&self) {
        self.process().kill();
    }

    /// Stops it in its tracks: connections stay open and nothing answers.
    ///
    /// # Panics
    /// It is not running.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets a paused server go on.
    ///
    /// # Panics
    /// It is not running.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills it and starts it again at the same address, with what its folder holds: everything if it is durable, a
    /// snapshot if [`save`](Self::save) made one, else nothing.
    ///
    /// # Panics
    /// It does not start.
    pub fn restart(&self) {
        self.relaunch(&[]);
    }

    fn relaunch(&self, settings: &[(&str, &str)]) {
        let mut process = self.process();
        process.kill();
        match launch(&self.builder, self.addr, &self.dir, settings) {
            Ok(started) => *process = started,
            Err(error) => panic!("redis-server: {error:#}"),
        }
    }

    /// As [`restart`](Self::restart), with an empty memory whatever its folder holds.
    ///
    /// # Panics
    /// It does not start.
    pub fn restart_empty(&self) {
        self.kill();
        self.forget(&[SNAPSHOT]);
        self.restart();
    }

    /// As [`restart`](Self::restart), with what was in its memory when [`snapshot`](Self::snapshot) was called, even if
    /// it is durable.
    ///
    /// # Panics
    /// It does not start, or there was no snapshot.
    pub fn restart_from_snapshot(&self) {
        self.kill();
        self.forget(&[]);
        if let Err(error) = fs::copy(self.dir.join(KEPT), self.dir.join(SNAPSHOT)) {
            panic!("no snapshot was kept in {}: {error}", self.dir.display());
        }
        // A snapshot is not read by a server that has a log.
        self.relaunch(&[("appendonly", "no")]);
        if self.builder.is_durable() {
            let () = self.run(&["CONFIG", "SET", "appendonly", "yes"]);
            let written = wait::try_until_blocking("the log to be written", Duration::from_secs(10), || {
                let info: redis::InfoDict = self.try_run(&["INFO", "persistence"]).map_err(|it| it.to_string())?;
                let busy = ["aof_rewrite_in_progress", "aof_rewrite_scheduled"];
                let done = busy.iter().all(|field| info.get(field) == Some(0));
                if done { Ok(()) } else { Err("it is being written".to_owned()) }
            });
            if let Err(error) = written {
                panic!("redis {}: {error}", self.addr);
            }
        }
    }

    /// Removes what a server keeps of its memory: its log, and files by name.
    fn forget(&self, files: &[&str]) {
        // The log is a file in 6.2, and a folder since 7.0.
        let _ = fs::remove_file(self.dir.join("appendonly.aof"));
        let _ = fs::remove_dir_all(self.dir.join("appendonlydir"));
        for file in files {
            let _ = fs::remove_file(self.dir.join(file));
        }
    }

    /// Writes a snapshot that later restarts begin with.
    ///
    /// # Panics
    /// The server does not answer.
    pub fn save(&self) {
        let () = self.run(&["SAVE"]);
    }

    /// Keeps a copy of its memory, for [`restart_from_snapshot`](Self::restart_from_snapshot).
    ///
    /// # Panics
    /// The server does not answer, or the copy cannot be made.
    pub fn snapshot(&self) {
        self.save();
        let kept = fs::rename(self.dir.join(SNAPSHOT), self.dir.join(KEPT));
        if let Err(error) = kept {
            panic!("{}: {error}", self.dir.display());
        }
    }

    /// Empties its memory while it runs.
    ///
    /// # Panics
    /// The server does not answer.
    pub fn flush(&self) {
        let () = self.run(&["FLUSHALL"]);
    }

    /// Lets it take commands, and carry out no script and no write until [`resume_clients`](Self::resume_clients).
    ///
    /// # Panics
    /// The server does not answer.
    pub fn pause_clients(&self) {
        // Its end is by the wall clock, which may be moved; nor could a pause of all commands be ended.
        let () = self.run(&["CLIENT", "PAUSE", "3600000", "WRITE"]);
    }

    /// Ends that.
    ///
    /// # Panics
    /// The server does not answer.
    pub fn resume_clients(&self) {
        let () = self.run(&["CLIENT", "UNPAUSE"]);
    }

    /// Moves its clock to that many milliseconds from the true time.
    ///
    /// # Panics
    /// Its clock cannot be moved.
    pub fn shift_clock(&self, ms: i64) {
        assert!(self.builder.clock.is_some(), "redis {}: it was not built with a movable clock", self.addr);
        if let Err(error) = clock::shift(&self.dir, ms) {
            panic!("redis {}: {error}", self.addr);
        }
    }

    /// Runs a command on a connection of its own.
    ///
    /// # Panics
    /// The server does not answer, or with an error.
    #[must_use]
    pub fn run<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        match self.try_run(command) {
            Ok(value) => value,
            Err(error) => panic!("redis {}: {command:?}: {error}", self.addr),
        }
    }

    /// As [`run`](Self::run), of a server that may be down.
    ///
    /// # Errors
    /// The server does not answer, or with an error.
    pub fn try_run<T: redis::FromRedisValue>(&self, command: &[&str]) -> redis::RedisResult<T> {
        run(&self.url(), command)
    }

    /// How many commands the server has processed since it started; asking counts too.
    ///
    /// # Panics
    /// The server does not answer.
    #[must_use]
    pub fn commands_processed(&self) -> u64 {
        let stats: redis::InfoDict = self.run(&["INFO", "stats"]);
        stats.get("total_commands_processed").unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        if let Err(error) = self.process().signal(signal) {
            panic!("redis {}: {error}", self.addr);
        }
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        // A test that failed while it held the lock says so itself.
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As a part of a URL.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            escaped.push(byte.into());
        } else {
            // Writing to a string does not fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

fn run<T: redis::FromRedisValue>(url: &str, command: &[&str]) -> redis::RedisResult<T> {
    let timeout = Duration::from_secs(5);
    let mut connection = redis::Client::open(url)?.get_connection_with_timeout(timeout)?;
    connection.set_read_timeout(Some(timeout))?;
    let mut request = redis::Cmd::new();
    for part in command {
        request.arg(*part);
    }
    request.query(&mut connection)
}

/// Starts a server and waits until this very process answers at the address: another one may have taken the port.
fn launch(builder: &Builder, addr: SocketAddr, dir: &Path, settings: &[(&str, &str)]) -> anyhow::Result<Process> {
    let program = builder.binary.as_deref().unwrap_or("redis-server".as_ref());
    let mut command = match &builder.place {
        Some((namespace, _)) => namespace.command(program),
        None => bound(program),
    };
    let (ip, port) = (addr.ip().to_string(), addr.port().to_string());
    command.current_dir(dir).args(["--bind", &ip, "--port", &port, "--save", "", "--daemonize", "no"]);
    if builder.place.is_some() {
        // Who is in the namespace may come from elsewhere than loopback, without a password.
        command.args(["--protected-mode", "no", "--unixsocket"]).arg(dir.join(SOCKET));
    }
    if let Some(library) = &builder.clock {
        clock::lend(&mut command, library, dir)?;
    }
    let own = builder.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in own.chain(settings.iter().copied()) {
        command.arg(format!("--{name}")).arg(value);
    }
    let log = dir.join("redis.log");
    let mut process = Process::spawn("redis-server", command, &log).context("cannot be started")?;
    let url = builder.url(addr, dir);
    let pid = process.pid().to_string();
    // The outer error is one that may pass, the inner one is for good.
    wait::try_until_blocking("an answer", Duration::from_secs(10), || {
        if let Some(status) = process.exited() {
            return Ok(Err(anyhow!("ended with {status}: {}", process.log_tail(10))));
        }
        let info: redis::InfoDict = run(&url, &["INFO"]).map_err(|error| error.to_string())?;
        let answered: String = info.get("process_id").unwrap_or_default();
        // It answers this before it has read its files, and nothing else.
        let loading: String = info.get("loading").unwrap_or_default();
        if answered == pid && loading == "0" {
            Ok(Ok(()))
        } else {
            Err(format!("process {answered}, loading {loading}"))
        }
    })??;
    Ok(process)
}
