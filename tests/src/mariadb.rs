//! A real `MariaDB` server, for apps that keep their data in one.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::port::free_port;
use crate::process::{Process, bound};
use crate::skip::Unavailable;
use crate::{tools, wait};

/// How often a start is tried when another program takes the port first.
const ATTEMPTS: u32 = 5;

/// How long a start or a stop may take on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);

/// The user that apps are to log in as, from loopback; its password is the same.
pub const USER: &str = "cabloy";

/// Small, and with nothing kept for a crash of the machine.
pub(crate) const SETTINGS: [&str; 10] = [
    "--innodb-buffer-pool-size=32M",
    "--innodb-log-file-size=8M",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-doublewrite=OFF",
    "--performance-schema=OFF",
    "--skip-name-resolve",
    "--sql-mode=NO_ENGINE_SUBSTITUTION",
    "--character-set-server=utf8mb4",
    "--collation-server=utf8mb4_general_ci",
    // Nobody reads them, and an upgrade of the package would have other ones.
    "--lc-messages=en_US",
];

/// Whether this machine has `MariaDB`.
///
/// # Errors
/// It has not.
pub fn found() -> Result<(), Unavailable> {
    for program in ["mariadbd", "mariadb", "mariadb-install-db"] {
        let help = bound(program).arg("--version").stdin(Stdio::null()).output();
        // The script to install knows no version, and may say so.
        if !help.is_ok_and(|help| help.status.code().is_some_and(|code| code < 126)) {
            return Err(Unavailable::new(format!("{program} is missing: tests/setup-debian.sh installs it")));
        }
    }
    Ok(())
}

/// A running server; it ends when dropped, or with the test process.
#[derive(Debug)]
pub struct MariaDb {
    // First, so that the server is gone before its folder is.
    process: Process,
    port: u16,
    dir: TempDir,
}

impl MariaDb {
    /// A server with no more in it than [`USER`].
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start() -> Self {
        Self::try_start(None).unwrap_or_else(|error| panic!("mariadbd: {error:#}"))
    }

    /// A server with a copy of what [`keep`](Self::keep) has put there.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start_from(data: &Path) -> Self {
        Self::try_start(Some(data)).unwrap_or_else(|error| panic!("mariadbd: {error:#}"))
    }

    fn try_start(data: Option<&Path>) -> anyhow::Result<Self> {
        let template = match data {
            Some(data) => data.to_owned(),
            None => empty()?,
        };
        let dir = TempDir::with_prefix("cabloy-mariadb-")?;
        let copied = bound("cp").arg("-a").arg(template).arg(dir.path().join("data")).output().context("cp")?;
        ensure!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        fs::write(
            dir.path().join("init.sql"),
            format!(
                "create user if not exists '{USER}'@'127.0.0.1' identified by '{USER}';\n\
                 grant all on *.* to '{USER}'@'127.0.0.1';\n"
            ),
        )?;
        let mut attempt = 1;
        loop {
            let port = free_port()?;
            match launch(dir.path(), port) {
                Ok(process) => return Ok(Self { process, port, dir }),
                Err(error) if attempt == ATTEMPTS => return Err(error),
                Err(_) => attempt += 1,
            }
        }
    }

    /// Where it listens, on loopback.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What a statement gives: rows as lines, columns with tabs between them.
    ///
    /// # Panics
    /// The server refuses it.
    #[must_use]
    pub fn query(&self, statement: &str) -> String {
        self.try_query(statement).unwrap_or_else(|error| panic!("{statement}: {error:#}"))
    }

    fn try_query(&self, statement: &str) -> anyhow::Result<String> {
        let output = bound("mariadb")
            .args(["--no-defaults", "--batch", "--skip-column-names", "--user=root"])
            .arg(format!("--socket={}", self.dir.path().join("socket").display()))
            .arg(format!("--execute={statement}"))
            .output()
            .context("mariadb")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// An empty database, made if there is none of that name.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn create(&self, database: &str) {
        let _ = self.query(&format!(
            "create database if not exists `{database}` character set utf8mb4 collate utf8mb4_general_ci"
        ));
    }

    /// Stops the server and keeps what is in it at `data`, which is not there yet.
    ///
    /// # Errors
    /// It does not stop in time, or the folder cannot be moved there.
    pub fn keep(mut self, data: &Path) -> anyhow::Result<()> {
        self.process.signal(Signal::TERM)?;
        wait::try_until_blocking("mariadbd to stop", LIMIT, || self.process.exited())?;
        // Perhaps to another file system, and there in full or not at all.
        let aside = tempfile::Builder::new().prefix(".keeping-").tempdir_in(data.parent().context("no folder")?)?;
        let copied = bound("cp").arg("-a").arg(self.dir.path().join("data")).arg(aside.path()).output()?;
        ensure!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        fs::rename(aside.path().join("data"), data)?;
        Ok(())
    }
}

fn launch(dir: &Path, port: u16) -> anyhow::Result<Process> {
    let at = |name: &str| dir.join(name).display().to_string();
    let mut command = bound("mariadbd");
    command
        .args(["--no-defaults", "--user=root"])
        .arg(format!("--bind-address={}", Ipv4Addr::LOCALHOST))
        .arg(format!("--port={port}"))
        .arg(format!("--datadir={}", at("data")))
        .arg(format!("--socket={}", at("socket")))
        .arg(format!("--pid-file={}", at("pid")))
        // Done before the first client is let in.
        .arg(format!("--init-file={}", at("init.sql")))
        .args(SETTINGS);
    let mut process = Process::spawn("mariadbd", command, &dir.join("log"))?;
    let listening = wait::try_until_blocking("mariadbd to listen", LIMIT, || {
        if process.exited().is_some() {
            return Ok(Err(process.log_tail(10)));
        }
        std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map(|_| Ok(()))
    })?;
    listening.map_err(|log| anyhow::anyhow!("it ended: {log}"))?;
    Ok(process)
}

/// What folders of different servers are told apart by.
pub(crate) fn version() -> anyhow::Result<Vec<u8>> {
    Ok(bound("mariadbd").arg("--version").output().context("mariadbd")?.stdout)
}

/// The folder of a server that nobody has used, made once a machine and version.
fn empty() -> anyhow::Result<PathBuf> {
    let key = [version()?, SETTINGS.concat().into_bytes()].concat();
    tools::made_once(&format!("mariadb-{}", &tools::sha256(&key)[..16]), |folder| {
        let output = bound("mariadb-install-db")
            .args(["--no-defaults", "--user=root", "--auth-root-authentication-method=normal", "--skip-test-db"])
            .arg(format!("--datadir={}", folder.display()))
            .args(SETTINGS)
            .output()
            .context("mariadb-install-db")?;
        ensure!(output.status.success(), "mariadb-install-db: {}", String::from_utf8_lossy(&output.stdout));
        Ok(())
    })
}
