//! A real `CabloyJS` v4 backend (`tests/cabloy-v4`) as processes of this machine.
//!
//! A [`Project`] is a checkout of the app with its npm packages. A [`Pod`] is what a container of it would run: one start
//! script, with the processes that this starts, and folders of its own for what they write.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::mariadb::{self, MariaDb};
use crate::port::free_port;
use crate::process::{Group, bound};
use crate::redis::Redis;
use crate::skip::Unavailable;
use crate::{events, npm, tools, wait};

pub use crate::events::Event;

/// The folder of `tests` with the app's sources.
pub(crate) const FIXTURE: &str = "cabloy-v4";

/// The app's name, which its Redis keys and its database are named by.
pub const APP: &str = "cabloyfx";

/// The route that says that an app serves its default instance.
pub const HEALTH: &str = "/api/a/base/auth/echo";

/// How long a start may take on a busy machine; 5 to 10 seconds on an idle one.
pub const BOOT: Duration = Duration::from_mins(2);

/// How long a stop may take; 2 seconds on an idle machine.
const STOP: Duration = Duration::from_secs(30);

/// Whether this machine can run the app.
///
/// # Errors
/// It cannot.
pub fn found() -> Result<(), Unavailable> {
    npm::found()?;
    mariadb::found()
}

/// A folder with the app's sources and its npm packages.
#[derive(Debug)]
pub struct Project {
    dir: TempDir,
}

impl Project {
    /// As it is in `tests/cabloy-v4`.
    ///
    /// # Panics
    /// The packages cannot be installed, or the folder cannot be made.
    #[must_use]
    pub fn new() -> Self {
        Self::try_new().unwrap_or_else(|error| panic!("tests/{FIXTURE}: {error:#}"))
    }

    fn try_new() -> anyhow::Result<Self> {
        let dir = TempDir::with_prefix("cabloy-v4-")?;
        let fixture = npm::fixture(FIXTURE);
        for name in ["build", "src", "package.json", "package-lock.json"] {
            copy(&fixture.join(name), dir.path(), &["-r"])?;
        }
        let modules = npm::modules(FIXTURE);
        // Nothing writes into packages. Links need one file system for both.
        copy(&modules, dir.path(), &["-al"]).or_else(|_| copy(&modules, dir.path(), &["-af"]))?;
        Ok(Self { dir })
    }

    /// The root folder of the project.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Installs the integration module, by which an agent has beans run.
    ///
    /// # Panics
    /// A folder cannot be copied.
    pub fn add_agent_module(&self) {
        install_agent_module(self.dir()).unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// A process tree of this app, to be started.
    #[must_use]
    pub fn pod(&self, name: &str, database: &MariaDb, redis: SocketAddr) -> Builder<'_> {
        Builder {
            project: self,
            name: name.to_owned(),
            workers: 1,
            config: json!({}),
            boot: None,
            env: BTreeMap::from([
                ("FX_DB_PORT".to_owned(), database.port().to_string()),
                ("FX_REDIS_A".to_owned(), redis.port().to_string()),
            ]),
        }
    }
}

impl Default for Project {
    fn default() -> Self {
        Self::new()
    }
}

/// What the integration module is installed from, and where in a project, as its README says.
pub(crate) const AGENT_MODULE: [(&str, &str); 2] =
    [("examples/cabloy-v4-module", "src/module/cabloy-agent"), ("client", "src/module/cabloy-agent/backend/client")];

/// Installs the integration module into a project.
pub(crate) fn install_agent_module(project: &Path) -> anyhow::Result<()> {
    AGENT_MODULE.iter().try_for_each(|(from, to)| copy(&tools::checkout().join(from), &project.join(to), &["-rT"]))
}

fn copy(from: &Path, to: &Path, options: &[&str]) -> anyhow::Result<()> {
    let output = bound("cp").args(options).arg("--").arg(from).arg(to).output().context("cp")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A server with the tables and rows that the app makes at its first start, which then takes half the time, and loads
/// schedules: the first start of all finds no instance to load them for.
///
/// # Panics
/// The app cannot be started for it, once a machine and set of packages.
pub async fn database() -> MariaDb {
    let made = tokio::task::spawn_blocking(|| initialized().unwrap_or_else(|error| panic!("{APP}: {error:#}")));
    let data = made.await.unwrap_or_else(|error| panic!("{error}"));
    MariaDb::start_from(&data)
}

/// The data folder of that server, made once a machine and set of packages.
pub(crate) fn initialized() -> anyhow::Result<PathBuf> {
    let lock = fs::read(npm::fixture(FIXTURE).join("package-lock.json"))?;
    let config = fs::read(npm::fixture(FIXTURE).join("src/backend/config/config.prod.js"))?;
    let key = [mariadb::version()?, lock, config].concat();
    tools::made_once(&format!("{FIXTURE}-data-{}", &tools::sha256(&key)[..16]), |folder| {
        let database = MariaDb::start();
        database.create(APP);
        let (project, redis) = (Project::try_new()?, Redis::start());
        let mut pod = project.pod("first", &database, redis.addr()).spawn()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(pod.until_ready());
        pod.terminate();
        runtime.block_on(pod.exit());
        database.keep(folder)
    })
}

/// A [`Pod`] that has not been started yet.
#[derive(Debug)]
pub struct Builder<'a> {
    project: &'a Project,
    name: String,
    workers: u32,
    config: Value,
    boot: Option<Value>,
    env: BTreeMap<String, String>,
}

impl Builder<'_> {
    /// How many worker processes; one if this is not called.
    #[must_use]
    pub fn workers(mut self, workers: u32) -> Self {
        self.workers = workers;
        self
    }

    /// What is merged over the app's own configuration, by `EGG_APP_CONFIG`.
    #[must_use]
    pub fn config(mut self, config: &Value) -> Self {
        merge(&mut self.config, config);
        self
    }

    /// Has it boot with the operator's preload script, by a `boot.json` that names no role, and has these fields besides.
    #[must_use]
    pub fn preload(mut self, boot: &Value) -> Self {
        let mut all = json!({"app": APP, "generation": "v4", "roles": []});
        merge(&mut all, boot);
        self.boot = Some(all);
        self
    }

    /// A variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    /// Starts it, and waits until it serves.
    ///
    /// # Panics
    /// It does not.
    pub async fn start(self) -> Pod {
        let mut pod = self.spawn().unwrap_or_else(|error| panic!("{error:#}"));
        pod.until_ready().await;
        pod
    }

    /// Starts it.
    ///
    /// # Errors
    /// The start script cannot be started.
    pub fn spawn(mut self) -> anyhow::Result<Pod> {
        let dir = TempDir::with_prefix("cabloy-v4-pod-")?;
        let port = free_port()?;
        // Else pods would write their run folder into the project that they share.
        merge(&mut self.config, &json!({"rundir": dir.path().join("run")}));
        if let Some(boot) = &self.boot {
            self.env.insert("NODE_OPTIONS".to_owned(), preload(dir.path(), boot)?);
        }
        let mut command = bound("node");
        command
            .args(["node_modules/.bin/egg-scripts", "start", "src/backend", "--framework=egg-born-backend"])
            .arg(format!("--title=cabloy-server-{APP}"))
            .current_dir(self.project.dir())
            .envs([("EGG_SERVER_ENV", "prod"), ("NODE_ENV", "production")])
            .envs([("HOME", dir.path()), ("EGG_HOME", dir.path())])
            .env("EGG_WORKERS", self.workers.to_string())
            .env("EGG_APP_CONFIG", self.config.to_string())
            .env("PORT", port.to_string())
            .env("FX_POD", &self.name)
            .env("FX_EVENTS", dir.path().join("events"))
            .envs(&self.env);
        let log = dir.path().join("log");
        let group = Group::spawn(&self.name, command, &log)?;
        Ok(Pod { group, port, dir, health: HEALTH, end: Signal::TERM })
    }
}

/// Puts the operator's preload script into a pod's folder, with that `boot.json`: the options of Node.js that run it.
pub(crate) fn preload(pod: &Path, boot: &Value) -> io::Result<String> {
    let folder = pod.join("boot");
    fs::create_dir(&folder)?;
    let preload = folder.join("preload.cjs");
    fs::copy(tools::checkout().join("operator/preload/preload.cjs"), &preload)?;
    fs::write(folder.join("boot.json"), boot.to_string())?;
    Ok(format!("--require {}", preload.display()))
}

/// How many worker processes take jobs of each queue, by what `CLIENT LIST` of role queue's Redis says: `BullMQ` names its
/// connections `bull_<app>:queue:` and the queue in base64; those that only listen to events end in `:qe`.
#[must_use]
pub fn consumers(clients: &str) -> BTreeMap<String, usize> {
    let mut consumers = BTreeMap::new();
    for client in clients.lines() {
        let name = client.split(' ').find_map(|field| field.strip_prefix("name=bull_")).unwrap_or_default();
        let queue = name.split_once(":queue:").and_then(|(_, queue)| BASE64_STANDARD.decode(queue).ok());
        if let Some(queue) = queue {
            *consumers.entry(String::from_utf8_lossy(&queue).into_owned()).or_default() += 1;
        }
    }
    consumers
}

/// As `EGG_APP_CONFIG` is merged: objects into objects, anything else in the place of what was there.
pub(crate) fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (name, value) in over {
                merge(base.entry(name).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over.clone(),
    }
}

/// A running app; all its processes end when it is dropped, or with the test process.
#[derive(Debug)]
pub struct Pod {
    // First, so that the processes are gone before their folder is.
    pub(crate) group: Group,
    pub(crate) port: u16,
    pub(crate) dir: TempDir,
    /// The route that says that it serves its default instance.
    pub(crate) health: &'static str,
    /// The signal that it ends in order by.
    pub(crate) end: Signal,
}

/// An answer of the app.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body, or null where that is not JSON.
    pub body: Value,
}

impl Pod {
    /// Where it listens, on loopback.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What its processes have said, less what they write into files of their own.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        self.group.leader().log_tail(lines)
    }

    /// The home folder of its processes.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.dir.path()
    }

    /// What `fx-probe` has done so far, in order.
    ///
    /// # Panics
    /// It did not write what it should have.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        events::read(&self.dir.path().join("events"))
    }

    /// Waits until the app answers its health check.
    ///
    /// # Panics
    /// It does not in time, or ends.
    pub async fn until_ready(&mut self) {
        let (port, health, group) = (self.port, self.health, &mut self.group);
        let said = wait::try_until("an app of CabloyJS to serve", BOOT, async || {
            if let Some(status) = group.exited() {
                return Ok(Err(format!("it ended with {status}")));
            }
            match post(port, health, &[], "").await {
                Ok(Answer { status: 200, .. }) => Ok(Ok(())),
                Ok(Answer { status, .. }) => Err(format!("{status}")),
                Err(error) => Err(error.to_string()),
            }
        });
        let said = said.await.map_err(|error| error.to_string()).flatten();
        said.unwrap_or_else(|error| panic!("{error}: {}", self.log_tail(40)));
    }

    /// Calls a route of it.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> io::Result<Answer> {
        post(self.port, path, headers, body).await
    }

    /// Tells it to end, as kubelet does.
    pub fn terminate(&self) {
        // Fails for one that has ended.
        let _ = self.group.leader().signal(self.end);
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// It does not in time.
    pub async fn exit(&mut self) {
        let group = &mut self.group;
        wait::until("an app of CabloyJS to end", STOP, async || group.exited()).await;
    }
}

/// A request to a port of loopback that names 127.0.0.1 as its host, for another name may be that of another instance, and is
/// remembered.
///
/// # Errors
/// There is no answer.
pub async fn post(port: u16, path: &str, headers: &[(&str, &str)], body: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let headers: String = headers.iter().flat_map(|(name, value)| [name, ": ", value, "\r\n"]).collect();
    let length = body.len();
    let request = format!("POST {path} HTTP/1.0\r\nhost: 127.0.0.1\r\ncontent-length: {length}\r\n{headers}\r\n{body}");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let strange = || io::Error::other(answer.to_string());
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(strange)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(strange)?;
    Ok(Answer { status, body: serde_json::from_str(body).unwrap_or_default() })
}
