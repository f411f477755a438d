//! An agent and the app beside it, as processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::network::Namespace;
use crate::port::free_port;
use crate::process::{Process, bound, freeze, signal};
use crate::wait;

/// How often the schedule falls due.
const EVERY: Duration = Duration::from_millis(100);

/// How long an attempt may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What all pods of a run have in common.
#[derive(Debug)]
pub struct Plan {
    /// The agent's program.
    pub agent: PathBuf,
    /// How long a lease lasts.
    pub ttl: Duration,
    /// The masters, as in `client.json`.
    pub masters: Value,
    /// The socket of the register.
    pub register: PathBuf,
    /// A folder for each pod is made in it.
    pub dir: PathBuf,
}

/// Ports on loopback.
#[derive(Debug, Clone, Copy)]
struct Ports {
    app: u16,
    agent: u16,
    control: u16,
}

/// A pod; its processes end when it is dropped.
#[derive(Debug)]
pub struct Pod {
    name: String,
    dir: PathBuf,
    place: Option<Namespace>,
    ports: Ports,
    agent: Process,
    app: Process,
    starts: u32,
}

impl Pod {
    /// Starts it, in a network namespace if there is one.
    ///
    /// # Errors
    /// A program cannot be started.
    pub fn start(plan: &Plan, name: &str, place: Option<&Namespace>) -> anyhow::Result<Self> {
        let ports = match place {
            Some(_) => Ports { app: 7002, agent: 7070, control: 7071 },
            None => Ports { app: free_port()?, agent: free_port()?, control: free_port()? },
        };
        let (dir, place) = (plan.dir.join(name), place.cloned());
        fs::create_dir_all(&dir)?;
        let app = start_app(plan, &dir, place.as_ref(), ports)?;
        let agent = start_agent(plan, &dir, place.as_ref(), ports, &process_name(name, 1))?;
        Ok(Self { name: name.to_owned(), dir, place, ports, agent, app, starts: 1 })
    }

    /// The name of its agent's process, another one for each start.
    #[must_use]
    pub fn agent(&self) -> String {
        process_name(&self.name, self.starts)
    }

    /// What its agent said last.
    #[must_use]
    pub fn log_tail(&self) -> String {
        self.agent.log_tail(5)
    }

    /// The ids of its processes: agent, then app.
    #[must_use]
    pub fn processes(&self) -> [u32; 2] {
        [self.agent.pid(), self.app.pid()]
    }

    /// Lets all of it go on.
    pub fn thaw(&self) {
        self.processes().into_iter().for_each(|process| signal(process, Signal::CONT));
    }

    /// Stops its agent in its tracks.
    pub fn freeze_agent(&self) {
        freeze(self.agent.pid());
    }

    /// Stops its app in its tracks.
    pub fn freeze_app(&self) {
        freeze(self.app.pid());
    }

    /// Kills the agent alone.
    pub fn kill_agent(&mut self) {
        self.agent.kill();
    }

    /// Kills all of it; the agent first, which then has nothing to say of the end of its app.
    pub fn kill(&mut self) {
        self.agent.kill();
        self.app.kill();
    }

    /// Ends the agent as a container is ended, and waits until it has.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop_agent(&mut self) -> anyhow::Result<()> {
        signal(self.agent.pid(), Signal::TERM);
        wait::try_until_blocking("the agent to end", Duration::from_secs(10), || self.agent.exited())
            .with_context(|| self.agent.log_tail(5))?;
        Ok(())
    }

    /// Starts again what has ended.
    ///
    /// # Errors
    /// A program cannot be started.
    pub(super) fn revive(&mut self, plan: &Plan) -> anyhow::Result<()> {
        if self.app.exited().is_some() {
            self.app = start_app(plan, &self.dir, self.place.as_ref(), self.ports)?;
        }
        if self.agent.exited().is_some() {
            self.starts += 1;
            self.agent = start_agent(plan, &self.dir, self.place.as_ref(), self.ports, &self.agent())?;
        }
        Ok(())
    }
}

fn process_name(pod: &str, start: u32) -> String {
    format!("{pod}.{start}")
}

fn command(place: Option<&Namespace>, program: &Path) -> Command {
    match place {
        Some(namespace) => namespace.command(program),
        None => bound(program),
    }
}

fn start_app(plan: &Plan, dir: &Path, place: Option<&Namespace>, ports: Ports) -> anyhow::Result<Process> {
    let ready = dir.join("ready");
    // It is not there at the first start.
    let _ = fs::remove_file(&ready);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("chaos/app.js");
    let mut node = command(place, "node".as_ref());
    node.arg(script).env("PORT", ports.app.to_string()).env("REGISTER", &plan.register).env("READY", &ready);
    let process = Process::spawn("app", node, &dir.join("app.log")).context("node")?;
    wait::try_until_blocking("the app to listen", Duration::from_secs(30), || ready.exists())
        .with_context(|| process.log_tail(5))?;
    Ok(process)
}

fn start_agent(
    plan: &Plan,
    dir: &Path,
    place: Option<&Namespace>,
    ports: Ports,
    name: &str,
) -> anyhow::Result<Process> {
    let config = dir.join("config");
    let role = config.join("redis/redlock");
    fs::create_dir_all(&role)?;
    fs::write(config.join("agent.json"), agent_file(plan, ports.app, name).to_string())?;
    fs::write(role.join("client.json"), plan.masters.to_string())?;
    let mut agent = command(place, &plan.agent);
    agent
        .arg("run")
        .arg(format!("--name={name}"))
        .arg(format!("--config-dir={}", config.display()))
        .arg(format!("--listen=127.0.0.1:{}", ports.agent))
        .arg(format!("--control-port={}", ports.control));
    Process::spawn(name, agent, &dir.join("agent.log")).context("the agent")
}

/// One schedule, whose calls name the agent's process.
fn agent_file(plan: &Plan, port: u16, name: &str) -> Value {
    let ms = |duration: Duration| json!(duration.as_millis());
    json!({
        "cluster": super::CLUSTER,
        "app": {"name": "chaos", "generation": "generic", "port": port, "health": {"tcp": {}}},
        "election": {"ttlMs": ms(plan.ttl)},
        "schedules": [{
            "name": "add", "everyMs": ms(EVERY), "timeZone": "UTC", "overlap": "Skip", "jitterMs": 0,
            "timeoutMs": ms(TIMEOUT), "onUnknown": "Retry",
            "retry": {"limit": 2, "initialDelayMs": 50, "factor": 2.0, "maxDelayMs": 500},
            "suspend": false, "target": {"http": {"path": "/add", "method": "POST", "body": {"agent": name}}}
        }],
    })
}
