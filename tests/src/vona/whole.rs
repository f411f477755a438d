//! A whole app of Vona (`tests/vona/app/server.mjs`): Vona's core and all its modules that an app has in production, with a
//! database, instances (tenants) and a web server.
//!
//! A [`Project`] is a checkout of the app with its npm packages, built at each start. A [`Pod`] is what a container of it
//! would run.

use std::fs;
use std::net::SocketAddr;

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{APP, FIXTURE, node};
use crate::cabloy::{Pod, merge, preload};
use crate::mariadb::{self, MariaDb};
use crate::port::free_port;
use crate::process::{Group, bound};
use crate::skip::Unavailable;
use crate::{npm, tools};

/// The route that says that a process serves its default instance.
pub const HEALTH: &str = "/api/fx/probe/ping";

/// Whether this machine can run the app.
///
/// # Errors
/// It cannot.
pub fn found() -> Result<(), Unavailable> {
    npm::found()?;
    mariadb::found()
}

/// A server with an empty database for the app, which makes its tables at its first start.
///
/// # Panics
/// The server cannot be started.
#[must_use]
pub fn database() -> MariaDb {
    let database = MariaDb::start();
    database.create(APP);
    database
}

/// A folder with the app's sources and its npm packages.
#[derive(Debug)]
pub struct Project {
    dir: TempDir,
}

impl Project {
    /// As it is in `tests/vona`, with that over its own configuration, and over that what the preload script gives it.
    ///
    /// # Panics
    /// The packages cannot be installed, or the folder cannot be made.
    #[must_use]
    pub fn new(config: &Value) -> Self {
        Self::try_new(config).unwrap_or_else(|error| panic!("tests/{FIXTURE}: {error:#}"))
    }

    fn try_new(config: &Value) -> anyhow::Result<Self> {
        let dir = TempDir::with_prefix("cabloy-vona-")?;
        npm::copy(&npm::fixture(FIXTURE).join("app"), dir.path())?;
        npm::link(&npm::modules(FIXTURE), &dir.path().join("node_modules"))?;
        let declared = dir.path().join("env/.env");
        fs::write(&declared, fs::read_to_string(&declared)? + "CABLOY_APP_CONFIG =\n")?;
        let merged = format!(
            "import {{ deepExtend }} from 'vona';\n\
             export default async app => deepExtend({config}, JSON.parse(app.meta.env.CABLOY_APP_CONFIG || '{{}}'));\n"
        );
        fs::write(dir.path().join("config/config.prod.ts"), merged)?;
        Ok(Self { dir })
    }

    /// Installs the integration module, by which an agent has beans run.
    ///
    /// # Panics
    /// A folder cannot be copied.
    pub fn add_agent_module(&self) {
        let folders =
            [("examples/vona-module", "src/module/cabloy-agent"), ("client", "node_modules/cabloy-agent-client")];
        for (from, to) in folders {
            let copied = npm::copy(&tools::checkout().join(from), &self.dir.path().join(to));
            copied.unwrap_or_else(|error| panic!("{from}: {error}"));
        }
    }

    /// Starts a pod with so many processes that serve, and waits until one does.
    ///
    /// # Panics
    /// None does.
    pub async fn start(&self, name: &str, workers: u32, database: &MariaDb, redis: SocketAddr) -> Pod {
        serving(name, self.spawn(name, workers, database, redis, None)).await
    }

    /// Starts a pod that boots with the operator's preload script, by a `boot.json` that names no role, and has these fields
    /// besides; waits until it serves.
    ///
    /// # Panics
    /// It does not.
    pub async fn start_preloaded(&self, name: &str, database: &MariaDb, redis: SocketAddr, boot: &Value) -> Pod {
        let mut all = json!({"app": APP, "generation": "vona", "mergesConfig": true, "roles": []});
        merge(&mut all, boot);
        serving(name, self.spawn(name, 1, database, redis, Some(&all))).await
    }

    fn spawn(
        &self,
        name: &str,
        workers: u32,
        database: &MariaDb,
        redis: SocketAddr,
        boot: Option<&Value>,
    ) -> anyhow::Result<Pod> {
        let dir = TempDir::with_prefix("cabloy-vona-pod-")?;
        let port = free_port()?;
        let mut command = bound(node());
        command
            .arg("server.mjs")
            .current_dir(self.dir.path())
            .env("HOME", dir.path())
            .env("SERVER_WORKERS", workers.to_string())
            .env("SERVER_LISTEN_PORT", port.to_string())
            .env("REDIS_DEFAULT_HOST", redis.ip().to_string())
            .env("REDIS_DEFAULT_PORT", redis.port().to_string())
            .envs([("REDIS_DEFAULT_PASSWORD", ""), ("REDIS_DEFAULT_DB", "0")])
            .env("DATABASE_CLIENT_MYSQL_PORT", database.port().to_string())
            .envs(["USER", "PASSWORD"].map(|field| (format!("DATABASE_CLIENT_MYSQL_{field}"), mariadb::USER)))
            .env("FX_EVENTS", dir.path().join("events"));
        if let Some(boot) = boot {
            command.env("NODE_OPTIONS", preload(dir.path(), boot)?);
        }
        let log = dir.path().join("log");
        let group = Group::spawn(name, command, &log)?;
        // This version of Vona ends in order by no other.
        Ok(Pod { group, port, dir, health: HEALTH, end: Signal::INT })
    }
}

/// A pod that was started, once it serves.
async fn serving(name: &str, pod: anyhow::Result<Pod>) -> Pod {
    let mut pod = pod.unwrap_or_else(|error| panic!("{name}: {error:#}"));
    pod.until_ready().await;
    pod
}
