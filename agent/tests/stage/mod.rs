//! Redis servers, agents as processes, and an app beside each of them.

#![allow(dead_code, reason = "each of the tests that share it uses a part")]

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use cabloy_crds::agent_status::AgentStatus;
use cabloy_tests::port::free_port;
use cabloy_tests::process::{Process, bound, signal};
use cabloy_tests::redis::Redis;
use cabloy_tests::wait;
use jiff::Timestamp;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// For what takes milliseconds, or a lease: the machine may be busy.
pub const SOON: Duration = Duration::from_secs(30);

/// A schedule of that period which calls `/<name>`.
pub fn schedule(name: &str, every_ms: i64) -> Value {
    json!({
        "name": name, "everyMs": every_ms, "timeZone": "UTC", "overlap": "Skip", "jitterMs": 0, "timeoutMs": 20_000,
        "onUnknown": "Skip", "retry": {"limit": 0, "initialDelayMs": 50, "factor": 2.0, "maxDelayMs": 1_000},
        "suspend": false, "target": {"http": {"path": format!("/{name}"), "method": "POST", "body": {"name": name}}}
    })
}

/// A startup task of scope `Cluster` with a gate which calls `/<name>`.
pub fn startup(name: &str) -> Value {
    json!({
        "name": name, "scope": "Cluster", "after": [], "gate": "Ready", "timeoutMs": 60_000,
        "retry": {"limit": 0, "initialDelayMs": 50, "factor": 2.0, "maxDelayMs": 1_000},
        "target": {"http": {"path": format!("/{name}"), "method": "POST"}}
    })
}

/// A call that an app has seen.
#[derive(Clone, Debug)]
pub struct Call {
    /// The agent beside that app.
    pub agent: String,
    pub path: String,
    /// `Idempotency-Key`
    pub key: String,
    pub attempt: u32,
    pub token: Option<u64>,
    pub at: Timestamp,
    pub headers: BTreeMap<String, String>,
}

impl Call {
    pub fn tick(&self) -> Timestamp {
        self.headers["ce-time"].parse().unwrap()
    }

    pub fn deadline(&self) -> Timestamp {
        self.headers["deadline"].parse().unwrap()
    }
}

/// How an app answers a path.
#[derive(Clone, Debug)]
pub enum Answer {
    Status(u16),
    /// 200 with that body.
    Body(Value),
    /// 202, and where to ask on.
    Location(String),
    /// Not at all, until the path has another answer.
    Hang,
    /// One after another; the last one stays.
    Script(Vec<Answer>),
}

type Answers = BTreeMap<(Option<String>, String), Answer>;

/// What all apps of a stage have in common.
#[derive(Debug)]
struct Apps {
    calls: watch::Sender<Vec<Call>>,
    /// By agent, or for all of them, and by path; 200 if there is none.
    answers: watch::Sender<Answers>,
    /// Keys of calls that the agent hung up on, and when.
    hung_up: Mutex<BTreeMap<String, Timestamp>>,
}

/// A call that an app works at.
struct Working(Arc<Apps>, Option<String>);

impl Drop for Working {
    fn drop(&mut self) {
        if let Some(key) = self.1.take() {
            self.0.hung_up.lock().unwrap().insert(key, Timestamp::now());
        }
    }
}

impl Apps {
    fn answer(&self, agent: &str, path: &str) -> Answer {
        let mut answer = Answer::Status(200);
        self.answers.send_modify(|answers| {
            let own = (Some(agent.to_owned()), path.to_owned());
            let key = if answers.contains_key(&own) { own } else { (None, path.to_owned()) };
            match answers.get_mut(&key) {
                Some(Answer::Script(script)) if script.len() > 1 => answer = script.remove(0),
                Some(Answer::Script(script)) => answer = script[0].clone(),
                Some(other) => answer = other.clone(),
                None => {}
            }
        });
        answer
    }
}

async fn app(State((apps, agent)): State<(Arc<Apps>, String)>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let headers: BTreeMap<String, String> =
        request.headers().iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    // A check or a poll is no call.
    let key = headers.get("idempotency-key").cloned();
    let mut working = Working(Arc::clone(&apps), key.clone());
    if path != "/health" {
        let call = Call {
            agent: agent.clone(),
            path: path.clone(),
            key: key.unwrap_or_default(),
            attempt: headers.get("attempt").map_or(0, |it| it.parse().unwrap()),
            token: headers.get("fencing-token").map(|it| it.parse().unwrap()),
            at: Timestamp::now(),
            headers,
        };
        apps.calls.send_modify(|calls| calls.push(call));
    }
    // How a question what became of a run is answered is said apart.
    let path = if request.headers().contains_key("only-if-known") { format!("?{path}") } else { path };
    let mut changes = apps.answers.subscribe();
    loop {
        changes.mark_unchanged();
        let status = match apps.answer(&agent, &path) {
            Answer::Status(status) => status,
            Answer::Body(body) => {
                working.1 = None;
                return axum::Json(body).into_response();
            }
            Answer::Location(location) => {
                working.1 = None;
                return Response::builder().status(202).header("location", location).body(Body::empty()).unwrap();
            }
            Answer::Hang | Answer::Script(_) => {
                changes.changed().await.unwrap();
                continue;
            }
        };
        working.1 = None;
        return StatusCode::from_u16(status).unwrap().into_response();
    }
}

/// The files of all agents of a stage, in a folder each, laid out as in a projected volume.
#[derive(Debug)]
pub struct Files(Mutex<State_>);

#[derive(Debug)]
struct State_ {
    root: PathBuf,
    file: Value,
    masters: Value,
    /// `client.json` of other roles.
    roles: BTreeMap<String, Value>,
    /// Folders and app ports of the agents.
    agents: Vec<(PathBuf, u16)>,
    version: u32,
}

impl Files {
    /// Changes `agent.json` for all agents, those to come too.
    pub fn edit(&self, edit: impl FnOnce(&mut Value)) {
        let mut state = self.0.lock().unwrap();
        edit(&mut state.file);
        state.write();
    }

    /// Names the secret file of all masters.
    pub fn password(&self, file: &Path) {
        let mut state = self.0.lock().unwrap();
        for master in state.masters.as_array_mut().unwrap() {
            master["password"] = json!({"$file": file});
        }
        state.write();
    }

    /// Says which server a role uses.
    pub fn role(&self, role: &str, client: &Value) {
        let mut state = self.0.lock().unwrap();
        state.roles.insert(role.to_owned(), client.clone());
        state.write();
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.0.lock().unwrap().root.join(name)
    }

    fn add(&self, name: &str, port: u16) -> PathBuf {
        let dir = self.dir(name);
        let mut state = self.0.lock().unwrap();
        state.agents.push((dir.clone(), port));
        state.write();
        dir
    }
}

impl State_ {
    /// As kubelet does: another folder, and one rename.
    fn write(&mut self) {
        self.version += 1;
        for (dir, port) in &self.agents {
            let version = format!("..v{}", self.version);
            for (role, client) in self.roles.iter().chain([(&"redlock".to_owned(), &self.masters)]) {
                let role = dir.join(&version).join("redis").join(role);
                std::fs::create_dir_all(&role).unwrap();
                std::fs::write(role.join("client.json"), client.to_string()).unwrap();
            }
            let mut file = self.file.clone();
            file["app"]["port"] = json!(port);
            std::fs::write(dir.join(&version).join("agent.json"), file.to_string()).unwrap();
            let (link, data) = (dir.join("..data_tmp"), dir.join("..data"));
            let old = std::fs::read_link(&data).ok();
            symlink(&version, &link).unwrap();
            std::fs::rename(&link, &data).unwrap();
            match old {
                Some(old) => std::fs::remove_dir_all(dir.join(old)).unwrap(),
                None => {
                    for name in ["agent.json", "redis"] {
                        symlink(Path::new("..data").join(name), dir.join(name)).unwrap();
                    }
                }
            }
        }
    }
}

/// All of it.
#[derive(Debug)]
pub struct Stage {
    pub redis: Vec<Redis>,
    pub files: Files,
    apps: Arc<Apps>,
    servers: Mutex<JoinSet<()>>,
    dir: TempDir,
}

impl Stage {
    pub fn new(masters: usize) -> Self {
        Self::with((0..masters).map(|_| Redis::start()).collect())
    }

    pub fn with(redis: Vec<Redis>) -> Self {
        let dir = TempDir::with_prefix("cabloy-agent-").unwrap();
        let masters =
            redis.iter().map(|redis| json!({"host": "127.0.0.1", "port": redis.addr().port(), "db": 0})).collect();
        let file = json!({
            "cluster": "prod/shop",
            "app": {"name": "shop", "generation": "generic", "port": 1, "health": {"tcp": {}}},
            "election": {"ttlMs": 10_000},
        });
        let root = dir.path().join("config");
        let files = State_ { root, file, masters, roles: BTreeMap::new(), agents: vec![], version: 0 };
        let files = Files(Mutex::new(files));
        let apps =
            Apps { calls: watch::Sender::default(), answers: watch::Sender::default(), hung_up: Mutex::default() };
        Self { redis, files, apps: Arc::new(apps), servers: Mutex::default(), dir }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// How all apps answer `path` from now on; with a question mark before it, the question what became of a run.
    pub fn answer(&self, path: &str, answer: Answer) {
        self.apps.answers.send_modify(|answers| _ = answers.insert((None, path.to_owned()), answer));
    }

    /// How the app beside `agent` answers `path` from now on.
    pub fn answer_of(&self, agent: &str, path: &str, answer: Answer) {
        self.apps.answers.send_modify(|answers| _ = answers.insert((Some(agent.to_owned()), path.to_owned()), answer));
    }

    /// When the agent hung up on the call with that key, if it did.
    pub fn hung_up(&self, key: &str) -> Option<Timestamp> {
        self.apps.hung_up.lock().unwrap().get(key).copied()
    }

    /// All calls so far, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.apps.calls.borrow().clone()
    }

    /// The calls, once they are as `enough` wants them.
    pub async fn calls_until(&self, what: &str, mut enough: impl FnMut(&[Call]) -> bool) -> Vec<Call> {
        let mut calls = self.apps.calls.subscribe();
        if let Ok(calls) = tokio::time::timeout(SOON, calls.wait_for(|calls| enough(calls))).await {
            return calls.unwrap().clone();
        }
        panic!("waited {SOON:?} for {what}, and saw {:#?}", self.calls())
    }

    /// An agent with an app of its own, to be started.
    pub fn agent(&self, name: &str) -> Start<'_> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = axum::Router::new().fallback(app).with_state((Arc::clone(&self.apps), name.to_owned()));
        let listener = TcpListener::from_std(listener).unwrap();
        self.servers.lock().unwrap().spawn(async move { axum::serve(listener, router).await.unwrap() });
        self.agent_beside(name, port)
    }

    /// An agent in the place of one that has ended: its files, and its app.
    pub fn agent_again(&self, name: &str, app_port: u16) -> Start<'_> {
        let config = self.files.dir(name);
        Start { stage: self, name: name.to_owned(), app_port, config, args: vec![] }
    }

    /// An agent with an app that listens there, to be started.
    pub fn agent_beside(&self, name: &str, app_port: u16) -> Start<'_> {
        let config = self.files.add(name, app_port);
        Start { stage: self, name: name.to_owned(), app_port, config, args: vec![] }
    }
}

/// An agent that has not been started yet.
pub struct Start<'a> {
    stage: &'a Stage,
    name: String,
    app_port: u16,
    config: PathBuf,
    args: Vec<String>,
}

impl Start<'_> {
    /// In a pod of the revision with that hash.
    pub fn pod(mut self, hash: &str) -> Self {
        self.args.extend(["--pod-name".into(), self.name.clone(), "--pod-hash".into(), hash.into()]);
        self
    }

    /// In the pod with that UID.
    pub fn uid(mut self, uid: &str) -> Self {
        self.args.extend(["--pod-uid".into(), uid.into()]);
        self
    }

    pub fn elect(mut self, elect: bool) -> Self {
        self.args.extend(["--elect".into(), elect.to_string()]);
        self
    }

    pub fn signing_key(mut self, file: &Path) -> Self {
        self.args.extend(["--signing-key-file".into(), file.to_str().unwrap().to_owned()]);
        self
    }

    /// The folder of the passwords that the app has too.
    pub fn secrets(mut self, dir: &Path) -> Self {
        self.args.extend(["--secrets-dir".into(), dir.to_str().unwrap().to_owned()]);
        self
    }

    /// Tells the app's processes there that the pod drains.
    pub fn state_dir(mut self, dir: &Path) -> Self {
        self.args.extend(["--state-dir".into(), dir.to_str().unwrap().to_owned()]);
        self
    }

    pub fn start(mut self) -> Agent {
        if self.args.iter().all(|arg| arg != "--pod-name") {
            self.args.extend(["--name".into(), self.name.clone()]);
        }
        let (port, control_port) = (free_port().unwrap(), free_port().unwrap());
        let mut command = bound(env!("CARGO_BIN_EXE_cabloy-agent"));
        command.arg("run").arg("--config-dir").arg(&self.config).args(&self.args);
        command.arg(format!("--listen=127.0.0.1:{port}")).arg(format!("--control-port={control_port}"));
        let log = self.stage.dir().join(format!("{}.log", self.name));
        let process = Process::spawn(&self.name, command, &log).unwrap();
        Agent { process, log, port, control_port, app_port: self.app_port }
    }
}

/// An agent as a process.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    log: PathBuf,
    port: u16,
    control_port: u16,
    app_port: u16,
}

impl Agent {
    pub fn name(&self) -> &str {
        self.process.name()
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn app_port(&self) -> u16 {
        self.app_port
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub fn kill(mut self) {
        self.process.kill();
    }

    pub fn terminate(&self) {
        signal(self.process.pid(), rustix::process::Signal::TERM);
    }

    pub async fn exit(&mut self) -> ExitStatus {
        let process = &mut self.process;
        wait::until("the agent to end", SOON, async || process.exited()).await
    }

    /// What preStop does.
    pub fn drain(&self) {
        assert!(self.try_drain());
    }

    pub fn try_drain(&self) -> bool {
        self.drain_command().status().unwrap().success()
    }

    pub fn drain_command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cabloy-agent"));
        command.arg("drain").arg(format!("--control-port={}", self.control_port));
        command
    }

    /// Status and body.
    pub async fn get(&self, path: &str) -> (u16, String) {
        wait::until(&format!("{path} of {}", self.name()), SOON, async || get(self.port, path).await).await
    }

    pub async fn status(&self) -> AgentStatus {
        serde_json::from_str(&self.get("/status").await.1).unwrap()
    }

    pub async fn is_ready(&self) -> bool {
        self.get("/readyz").await.0 == 200
    }

    pub async fn until_ready(&self) {
        wait::until(&format!("{} to be ready", self.name()), SOON, async || match self.get("/readyz").await {
            (200, _) => Ok(()),
            (_, said) => Err(said),
        })
        .await;
    }

    /// The status, once it is as `enough` wants it.
    pub async fn until(&self, what: &str, enough: impl Fn(&AgentStatus) -> bool) -> AgentStatus {
        wait::until(&format!("{}: {what}", self.name()), SOON, async || {
            let status = self.status().await;
            if enough(&status) { Ok(status) } else { Err(format!("{status:#?}\n{}", self.process.log_tail(20))) }
        })
        .await
    }

    pub async fn metric(&self, name: &str) -> String {
        let (_, text) = self.get("/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in {text}")).to_owned()
    }
}

/// Status and body of what is at a path of a port of this host.
pub async fn get(port: u16, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| std::io::Error::other(text.clone()))?;
    let status =
        head.split(' ').nth(1).and_then(|it| it.parse().ok()).ok_or_else(|| std::io::Error::other(text.clone()))?;
    Ok((status, body.to_owned()))
}

/// The one of `agents` that leads, once there is one.
pub async fn leader(agents: &[Agent]) -> &Agent {
    wait::until("a leader", SOON, async || {
        for agent in agents {
            if agent.status().await.election.is_some_and(|it| it.leading) {
                return Some(agent);
            }
        }
        None
    })
    .await
}
