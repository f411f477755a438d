//! A real Vona app (`tests/vona/app/schedules.mjs`) as processes of this machine: Vona's own core and modules, without a
//! database. One with a database, a web server and all of Vona is in [`whole`].

pub mod whole;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cabloy::{BOOT, post};
use crate::events::{self, Event};
use crate::port::free_port;
use crate::process::{Process, bound};
use crate::skip::Unavailable;
use crate::{npm, wait};

/// The folder of `tests` with the app's sources.
const FIXTURE: &str = "vona";

/// The app's name, which its Redis keys are named by.
pub const APP: &str = "shop";

/// What the names of its schedules begin with in Redis, for its default instance.
pub const SCHEDULES: &str = ".shop-rota.schedule.";

/// How long a stop may take: after five seconds it gives up by itself.
const STOP: Duration = Duration::from_secs(30);

/// Whether this machine can run the app.
///
/// # Errors
/// It cannot.
pub fn found() -> Result<(), Unavailable> {
    npm::found()
}

/// The Node.js that Vona asks for, of 24.
fn node() -> PathBuf {
    npm::modules("preload").join("node24/bin/node")
}

/// What a container of the app runs, and what it writes. Its process ends when this is dropped, or with the test process.
#[derive(Debug)]
pub struct Pod {
    // First, so that it is gone before its folder is.
    process: Option<Process>,
    name: String,
    port: u16,
    env: Vec<(String, String)>,
    dir: TempDir,
}

impl Pod {
    /// One of a revision with these schedules (their options by name), all of whose roles are on one Redis; it does not run
    /// yet.
    ///
    /// # Panics
    /// The packages cannot be installed, or its folder cannot be made.
    #[must_use]
    pub fn new(name: &str, redis: SocketAddr, schedules: &Value) -> Self {
        let dir = TempDir::with_prefix("vona-pod-").unwrap_or_else(|error| panic!("{error}"));
        let app = dir.path().join("app");
        let made = npm::copy(&npm::fixture(FIXTURE).join("app"), &app)
            .and_then(|()| symlink(npm::modules(FIXTURE), app.join("node_modules")))
            .and_then(|()| fs::write(app.join("config/config.prod.ts"), "export default async () => ({});"));
        made.unwrap_or_else(|error| panic!("tests/{FIXTURE}: {error}"));
        let port = free_port().unwrap_or_else(|error| panic!("{error}"));
        let env = [
            ("REDIS_DEFAULT_HOST", redis.ip().to_string()),
            ("REDIS_DEFAULT_PORT", redis.port().to_string()),
            ("REDIS_DEFAULT_PASSWORD", String::new()),
            ("REDIS_DEFAULT_DB", "0".to_owned()),
            ("FX_SCHEDULES", schedules.to_string()),
            ("FX_CONFIG", json!({}).to_string()),
            ("FX_PORT", port.to_string()),
            ("FX_EVENTS", dir.path().join("events").display().to_string()),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value)).into();
        Self { process: None, name: name.to_owned(), port, env, dir }
    }

    /// What is merged over its configuration.
    #[must_use]
    pub fn config(mut self, config: &Value) -> Self {
        self.env.push(("FX_CONFIG".to_owned(), config.to_string()));
        self
    }

    /// Its first start fails at a startup that has `debounce`.
    #[must_use]
    pub fn fails_once(mut self) -> Self {
        self.env.push(("FX_FAIL".to_owned(), self.dir.path().join("failed").display().to_string()));
        self
    }

    /// Starts it, or starts it again.
    ///
    /// # Panics
    /// There is no process.
    pub fn start(&mut self) {
        let mut command = bound(node());
        command.arg("schedules.mjs").current_dir(self.dir.path().join("app"));
        command.env("HOME", self.dir.path()).envs(self.env.iter().map(|(name, value)| (name, value)));
        // One that runs ends first.
        self.process = None;
        let process = Process::spawn(&self.name, command, &self.dir.path().join("log"));
        self.process = Some(process.unwrap_or_else(|error| panic!("{}: {error}", self.name)));
    }

    /// Where it listens, on loopback.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What its module `shop-rota` has done so far, in order.
    ///
    /// # Panics
    /// It did not write what it should have.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        events::read(&self.dir.path().join("events"))
    }

    /// Waits until it answers.
    ///
    /// # Panics
    /// It does not in time, or ends.
    pub async fn until_ready(&mut self) {
        let said = wait::try_until("an app of Vona to serve", BOOT, async || {
            if self.process.as_mut().is_none_or(|process| process.exited().is_some()) {
                return Ok(Err("it ended".to_owned()));
            }
            post(self.port, "/", &[], "").await.map(|_| Ok(())).map_err(|error| error.to_string())
        });
        let said = said.await.map_err(|error| error.to_string()).flatten();
        said.unwrap_or_else(|error| panic!("{error}: {}", self.log_tail()));
    }

    /// Tells it to end, by the signal that this version of Vona ends in order by.
    pub fn terminate(&self) {
        if let Some(process) = &self.process {
            // Fails for one that has ended.
            _ = process.signal(Signal::INT);
        }
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// It does not in time.
    pub async fn exit(&mut self) {
        wait::until("an app of Vona to end", STOP, async || {
            self.process.as_mut().is_none_or(|it| it.exited().is_some())
        })
        .await;
    }

    fn log_tail(&self) -> String {
        self.process.as_ref().map(|process| process.log_tail(40)).unwrap_or_default()
    }
}
