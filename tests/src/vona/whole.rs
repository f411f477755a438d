//! A whole app of Vona (`tests/vona/app/server.mjs`): Vona's core and all its modules that an app has in production, with a
//! database, instances (tenants) and a web server.
//!
//! A [`Project`] is a checkout of the app with its npm packages, built at each start. A [`Pod`] is what a container of it
//! would run.

use std::fs;
use std::net::SocketAddr;

use serde_json::Value;
use tempfile::TempDir;

use super::{APP, FIXTURE, node};
use crate::cabloy::Pod;
use crate::mariadb::{self, MariaDb};
use crate::process::{Group, bound};
use crate::redis::free_port;
use crate::skip::Unavailable;
use crate::{npm, tools};

/// The route that says that a process serves its default instance.
const HEALTH: &str = "/api/fx/probe/ping";

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
    /// As it is in `tests/vona`, with that over its own configuration.
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
        fs::write(dir.path().join("config/config.prod.ts"), format!("export default async () => ({config});\n"))?;
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
        let pod = self.spawn(name, workers, database, redis);
        let mut pod = pod.unwrap_or_else(|error| panic!("{name}: {error:#}"));
        pod.until_ready().await;
        pod
    }

    fn spawn(&self, name: &str, workers: u32, database: &MariaDb, redis: SocketAddr) -> anyhow::Result<Pod> {
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
        let log = dir.path().join("log");
        let group = Group::spawn(name, command, &log)?;
        Ok(Pod { group, port, dir, health: HEALTH })
    }
}
