//! An agent as a process, and the app beside it: a server with a runtime of its own, so that it can go as a killed
//! process goes, with all its connections and all that it knows.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

use super::count::{Call, Count};
use crate::port::free_port;
use crate::process::{Process, bound};
use crate::wait;

/// Schedules of such names fail at their first attempt.
pub const FLAKY: &str = "flaky";

/// How long an app works at a run at most.
const WORK_MS: u64 = 20;

/// The counter that all apps share.
pub type Shared = Arc<Mutex<Count>>;

/// Looks at the counter.
pub fn look(count: &Shared) -> MutexGuard<'_, Count> {
    count.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a pod is made from.
#[derive(Debug)]
pub struct Plan {
    /// The agent's program.
    pub agent: PathBuf,
    /// `agent.json`, less the port of the app.
    pub file: Value,
    /// The masters, as in `client.json`.
    pub masters: Value,
    /// A folder for each pod is made in it.
    pub dir: PathBuf,
}

/// A pod; all of it ends when it is dropped.
#[derive(Debug)]
pub struct Pod {
    index: usize,
    count: Shared,
    app_port: u16,
    /// Where its agent answers.
    pub port: u16,
    control_port: u16,
    /// How many apps it has had; of each of them there is none other with the same number in any pod.
    apps: u64,
    app: Option<Runtime>,
    agent: Option<Process>,
}

impl Pod {
    /// Starts it.
    ///
    /// # Errors
    /// A program cannot be started.
    pub fn start(plan: &Plan, index: usize, count: &Shared) -> anyhow::Result<Self> {
        let mut pod = Self {
            index,
            count: Arc::clone(count),
            app_port: free_port()?,
            port: free_port()?,
            control_port: free_port()?,
            apps: 0,
            app: None,
            agent: None,
        };
        pod.revive(plan)?;
        Ok(pod)
    }

    /// Kills the agent.
    pub fn kill_agent(&mut self) {
        self.agent = None;
    }

    /// Kills the app.
    pub fn kill_app(&mut self) {
        if let Some(runtime) = self.app.take() {
            // What begins between the two is gone all the same.
            look(&self.count).killed(self.number());
            runtime.shutdown_timeout(Duration::from_secs(5));
            look(&self.count).killed(self.number());
        }
    }

    fn number(&self) -> u64 {
        self.apps * 1_000 + self.index as u64
    }

    /// Starts again what was killed.
    ///
    /// # Errors
    /// A program cannot be started.
    pub fn revive(&mut self, plan: &Plan) -> anyhow::Result<()> {
        if self.app.is_none() {
            self.apps += 1;
            let app = App {
                pod: self.index,
                number: self.number(),
                count: Arc::clone(&self.count),
                memory: Arc::new(Mutex::new(BTreeMap::new())),
            };
            self.app = Some(serve(self.app_port, app).context("the app")?);
        }
        if self.agent.is_none() {
            self.agent = Some(self.start_agent(plan).context("the agent")?);
        }
        Ok(())
    }

    fn start_agent(&self, plan: &Plan) -> anyhow::Result<Process> {
        let name = format!("p{}", self.index);
        let config = plan.dir.join(&name).join("config");
        let role = config.join("redis/redlock");
        fs::create_dir_all(&role)?;
        let mut file = plan.file.clone();
        file["app"]["port"] = self.app_port.into();
        fs::write(config.join("agent.json"), file.to_string())?;
        fs::write(role.join("client.json"), plan.masters.to_string())?;
        let mut command = bound(&plan.agent);
        command
            .arg("run")
            .arg(format!("--name={name}"))
            .arg(format!("--config-dir={}", config.display()))
            .arg(format!("--listen=127.0.0.1:{}", self.port))
            .arg(format!("--control-port={}", self.control_port))
            // A line a run would be most of what there is to do.
            .env("CABLOY_LOG", "warn");
        Ok(Process::spawn(&name, command, &plan.dir.join(format!("{name}.log")))?)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.kill_agent();
        self.kill_app();
    }
}

/// What an app knows of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Running,
    Done,
}

#[derive(Clone, Debug)]
struct App {
    pod: usize,
    number: u64,
    count: Shared,
    memory: Arc<Mutex<BTreeMap<String, Known>>>,
}

impl App {
    fn memory(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn serve(port: u16, app: App) -> anyhow::Result<Runtime> {
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|error: io::Error| error.to_string());
    let listener = wait::try_until_blocking("the app's port", Duration::from_secs(10), bind)?;
    listener.set_nonblocking(true)?;
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let listener = {
        let _guard = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    let router = Router::new().fallback(work).with_state(app);
    runtime.spawn(async { axum::serve(listener, router).await });
    Ok(runtime)
}

/// As `client/` has it: what has been done is answered from memory, and what runs with 409.
async fn work(State(app): State<App>, headers: HeaderMap) -> StatusCode {
    let Some(call) = read(&headers) else {
        look(&app.count).violations.push(format!("a call that cannot be read: {headers:?}"));
        return StatusCode::BAD_REQUEST;
    };
    let known = app.memory().get(&call.key).copied();
    if let Some(known) = known {
        look(&app.count).repeated += 1;
        return if known == Known::Done { StatusCode::OK } else { StatusCode::CONFLICT };
    }
    app.memory().insert(call.key.clone(), Known::Running);
    // It goes on when the agent has gone, as a request of a Node.js server does.
    tokio::spawn(run(app, call)).await.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

async fn run(app: App, call: Call) -> StatusCode {
    look(&app.count).begin(app.pod, app.number, &call, Timestamp::now());
    tokio::time::sleep(Duration::from_millis(rand::random_range(1..=WORK_MS))).await;
    let done = !(call.schedule.starts_with(FLAKY) && call.attempt == 1);
    look(&app.count).end(&call, done);
    if done {
        app.memory().insert(call.key, Known::Done);
        StatusCode::OK
    } else {
        app.memory().remove(&call.key);
        StatusCode::INTERNAL_SERVER_ERROR
    }
}

fn read(headers: &HeaderMap) -> Option<Call> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    Some(Call {
        key: text("idempotency-key")?.to_owned(),
        schedule: text("ce-subject")?.to_owned(),
        tick: text("ce-time")?.parse::<Timestamp>().ok()?.as_millisecond(),
        attempt: text("attempt")?.parse().ok()?,
        token: text("fencing-token")?.parse().ok()?,
        deadline: text("deadline")?.parse().ok()?,
    })
}
