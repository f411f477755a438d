//! Images of the real `CabloyJS` v4 backend of `tests/cabloy-v4`, and of a `MariaDB` server with its database.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Key, Store, open_folder, program, programs, run};
use crate::cabloy::{self, APP, FIXTURE};
use crate::{mariadb, npm, tools};

/// The port that the app listens on.
pub const PORT: u16 = 7002;

/// What of the fixture is in the image, beside the packages.
const PARTS: [&str; 4] = ["build", "src", "package.json", "package-lock.json"];

/// Archive of `docker.io/library/cabloyfx:1`: Node.js of this machine, the app with the integration module in it, and its
/// npm packages.
///
/// # Errors
/// The packages cannot be installed, or the image cannot be made.
pub fn app() -> Result<PathBuf> {
    let node = program("node")?;
    let fixture = npm::fixture(FIXTURE);
    let mut key = Key::of("cabloy-v4 2");
    key.file_identity(&node)?;
    for part in PARTS {
        key.tree(&fixture, Path::new(part))?;
    }
    for (from, _) in cabloy::AGENT_MODULE {
        key.tree(&tools::checkout(), Path::new(from))?;
    }
    let store = Store::open()?;
    let dir = store.kept(APP, &key, |store, dir| {
        let modules = npm::modules(FIXTURE);
        let name = format!("docker.io/library/{APP}:1");
        let start = format!(
            r#"["node","node_modules/.bin/egg-scripts","start","src/backend","--framework=egg-born-backend","--title=cabloy-server-{APP}"]"#
        );
        let port = format!("PORT={PORT}");
        let config = [
            ["--env", "PATH=/usr/local/bin:/usr/bin:/bin"],
            ["--env", "HOME=/home/node"],
            ["--env", "EGG_HOME=/home/node"],
            ["--env", "EGG_SERVER_ENV=prod"],
            ["--env", "NODE_ENV=production"],
            ["--env", &port],
            ["--workingdir", "/app"],
            ["--entrypoint", &start],
        ];
        store.make(&name, &key, &config, |root| {
            programs(root, &["node"])?;
            open_folder(&root.join("home/node"))?;
            fs::create_dir_all(root.join("app"))?;
            let parts = PARTS.iter().map(|part| fixture.join(part));
            run(Command::new("cp").arg("-a").args(parts).arg(modules).arg(root.join("app")))?;
            cabloy::install_agent_module(&root.join("app"))
        })?;
        store.save(&name, &dir.join("app.tar"))
    })?;
    Ok(dir.join("app.tar"))
}

/// Archive of `docker.io/library/cabloyfx-db:1`: this machine's `MariaDB` with the app's tables, and a user for the app who
/// may come from anywhere.
///
/// # Errors
/// The database cannot be set up, or the image cannot be made.
pub fn database() -> Result<PathBuf> {
    let server = program("mariadbd")?;
    let data = cabloy::initialized()?;
    let mut key = Key::of("cabloy-v4-db 1");
    key.file_identity(&server)?;
    key.text(&data.display().to_string());
    let store = Store::open()?;
    let dir = store.kept(&format!("{APP}.db"), &key, |store, dir| {
        let name = format!("docker.io/library/{APP}-db:1");
        let mut start =
            ["mariadbd", "--no-defaults", "--user=root", "--datadir=/data", "--bind-address=0.0.0.0"].to_vec();
        start.extend(["--socket=/tmp/mariadb.sock", "--pid-file=/tmp/mariadb.pid", "--init-file=/init.sql"]);
        start.extend(mariadb::SETTINGS);
        let start = serde_json::to_string(&start)?;
        let config = [["--env", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/bin"], ["--entrypoint", &start]];
        store.make(&name, &key, &config, |root| {
            programs(root, &["mariadbd", "mariadb"])?;
            // Messages and character sets.
            fs::create_dir_all(root.join("usr/share"))?;
            run(Command::new("cp").args(["-a", "/usr/share/mysql"]).arg(root.join("usr/share")))?;
            run(Command::new("cp").args(["-a"]).arg(&data).arg(root.join("data")))?;
            let user = mariadb::USER;
            let sql = format!(
                "create user if not exists '{user}'@'%' identified by '{user}';\ngrant all on *.* to '{user}'@'%';\n"
            );
            Ok(fs::write(root.join("init.sql"), sql)?)
        })?;
        store.save(&name, &dir.join("db.tar"))
    })?;
    Ok(dir.join("db.tar"))
}

/// The database `db` as a user deploys it.
#[must_use]
pub fn database_manifest() -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: db}}
spec:
  selector: {{matchLabels: {{app: db}}}}
  template:
    metadata: {{labels: {{app: db}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: db
          image: {APP}-db:1
          readinessProbe: {{tcpSocket: {{port: 3306}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: db}}
spec: {{selector: {{app: db}}, ports: [{{port: 3306}}]}}
"
    )
}

/// What the app is configured with to reach that database, and to be reached itself.
#[must_use]
pub fn config() -> Value {
    let database =
        json!({"host": "db", "port": 3306, "user": mariadb::USER, "password": mariadb::USER, "database": APP});
    json!({"cluster": {"listen": {"hostname": "0.0.0.0"}}, "mysql": {"clients": {"__ebdb": database}}})
}
