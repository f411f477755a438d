//! The connections to one Redis server: one for the lock, one for records, one that listens.
//!
//! Each is a task of its own that connects again behind the scenes; what cannot be sent is answered at once, so that a
//! dead node delays nobody.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cabloy_redlock::ErrorKind;
use cabloy_redlock::core::{CallId, Event, NodeId};
use cabloy_redlock::message::{Lane, Reply, Request, Wake};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, InfoDict, IntoConnectionInfo as _, ProtocolVersion, PushInfo,
    PushKind, RedisConnectionInfo, RedisError, RedisResult,
};
use secrecy::ExposeSecret as _;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::Master;
use super::script::{self, Keys};
use crate::clock::{Clock as _, SystemClock};

/// How long a connection may take to come about, with its handshake.
const CONNECT: Duration = Duration::from_secs(1);
/// The first wait before connecting again; it doubles up to [`RECONNECT_LIMIT`].
const RECONNECT: Duration = Duration::from_millis(50);
/// No wait before connecting again is longer.
const RECONNECT_LIMIT: Duration = Duration::from_secs(1);
/// When the peer of an idle connection is asked for a sign of life, and how often after that.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// A connection whose peer acknowledges nothing for so long is broken.
const USER_TIMEOUT: Duration = Duration::from_secs(10);

/// What went wrong with a node last; holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct NodeError {
    /// The category.
    pub kind: ErrorKind,
    /// The error code of Redis or of the operating system.
    pub message: String,
}

/// What is known about the state of a node, for people.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// Its connections are up, by lane.
    up: [bool; 2],
    /// Why it does not answer as it should.
    pub error: Option<NodeError>,
    /// Of the server process.
    pub run_id: Option<Arc<str>>,
    /// Its wall clock less ours, in milliseconds.
    pub time_offset_ms: Option<i64>,
    /// What is wrong with its configuration, in words.
    pub warning: Option<String>,
    /// It has every write on disk before it acknowledges it.
    durable: bool,
}

impl Health {
    /// Commands of all kinds can be sent.
    #[must_use]
    pub fn reachable(&self) -> bool {
        self.up == [true; 2]
    }
}

/// A command to send.
#[derive(Debug)]
pub struct Command {
    /// Names the call.
    pub call: CallId,
    /// What.
    pub request: Request,
    /// How long the answer may take.
    pub timeout: Duration,
}

/// Handle to the tasks of one node.
#[derive(Debug)]
pub struct Node {
    lanes: [mpsc::UnboundedSender<Command>; 2],
    master: watch::Sender<Master>,
    health: Arc<Mutex<Health>>,
}

impl Node {
    /// Starts its tasks, which end when `stop` fires; what happens goes to `events`.
    #[must_use]
    pub fn spawn(
        tasks: &TaskTracker,
        stop: &CancellationToken,
        id: NodeId,
        master: Master,
        keys: &Keys,
        events: &mpsc::UnboundedSender<Event>,
    ) -> Self {
        let health = Arc::new(Mutex::new(Health::default()));
        let (sender, master) = watch::channel(master);
        let lanes = [Lane::Lock, Lane::Ledger].map(|lane| {
            let (commands, receiver) = mpsc::unbounded_channel();
            let link = Link {
                id,
                lane,
                master: master.clone(),
                keys: keys.clone(),
                health: health.clone(),
                events: events.clone(),
                commands: receiver,
            };
            let stop = stop.clone();
            tasks.spawn(async move { stop.run_until_cancelled(link.run()).await });
            commands
        });
        let ear = Ear { id, master, channel: keys.wake.clone(), events: events.clone() };
        let stop = stop.clone();
        tasks.spawn(async move { stop.run_until_cancelled(ear.run()).await });
        Self { lanes, master: sender, health }
    }

    /// Sends a command; its answer comes as an event.
    pub fn send(&self, command: Command) {
        let lane = command.request.lane() as usize;
        // A task that has ended was told to: nobody waits for the answer.
        _ = self.lanes[lane].send(command);
    }

    /// Other credentials or another name for the same place.
    pub fn update(&self, master: Master) {
        self.master.send_if_modified(|present| {
            let changed = !present.same_access(&master);
            *present = master;
            changed
        });
    }

    /// As `/status` shows it.
    #[must_use]
    pub fn health(&self) -> Health {
        locked(&self.health).clone()
    }

    /// What it is now.
    #[must_use]
    pub fn master(&self) -> Master {
        self.master.borrow().clone()
    }
}

fn locked(health: &Mutex<Health>) -> MutexGuard<'_, Health> {
    health.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The task behind one connection that carries commands.
struct Link {
    id: NodeId,
    lane: Lane,
    master: watch::Receiver<Master>,
    keys: Keys,
    health: Arc<Mutex<Health>>,
    events: mpsc::UnboundedSender<Event>,
    commands: mpsc::UnboundedReceiver<Command>,
}

impl Link {
    async fn run(mut self) {
        let mut wait = RECONNECT;
        loop {
            let master = self.master.borrow_and_update().clone();
            let (pushes, mut gone) = mpsc::unbounded_channel();
            let error = match self.refusing(connect(&master, pushes)).await {
                Ok((connection, health)) => {
                    wait = RECONNECT;
                    self.up(&master, health);
                    let error = self.serve(connection, &mut gone).await;
                    self.down(&master, error.clone());
                    error
                }
                Err(error) => {
                    debug!(node = master.name, lane = ?self.lane, error = %error, "cannot connect");
                    Some(error)
                }
            };
            if let Some(error) = error {
                locked(&self.health).error = Some(error);
                // Half of it at random, so that many agents do not come back to a node at once.
                let pause = wait.mul_f64(0.5 + rand::random::<f64>() / 2.0);
                self.refusing(sleep(pause)).await;
                wait = (wait * 2).min(RECONNECT_LIMIT);
            }
        }
    }

    /// Answers commands with the reason why they cannot be sent, until `until` is over.
    async fn refusing<T>(&mut self, until: impl Future<Output = T>) -> T {
        tokio::pin!(until);
        loop {
            tokio::select! {
                done = &mut until => return done,
                command = self.commands.recv() => match command {
                    Some(command) => {
                        let kind = locked(&self.health).error.as_ref().map_or(ErrorKind::Unreachable, |error| error.kind);
                        self.answer(command.call, Err(kind));
                    }
                    None => return until.await,
                },
            }
        }
    }

    /// Carries commands, all at once, until the connection breaks or the credentials change.
    async fn serve(
        &mut self,
        connection: MultiplexedConnection,
        gone: &mut mpsc::UnboundedReceiver<PushInfo>,
    ) -> Option<NodeError> {
        let keys = self.keys.clone();
        let mut calls = FuturesUnordered::new();
        let broken = loop {
            tokio::select! {
                command = self.commands.recv() => {
                    let Some(command) = command else { break None };
                    let (connection, keys) = (connection.clone(), &keys);
                    calls.push(async move {
                        let run = script::run(&connection, keys, &command.request);
                        (command.call, timeout(command.timeout, run).await)
                    });
                }
                Some((call, result)) = calls.next(), if !calls.is_empty() => match result {
                    Ok(Ok(reply)) => {
                        self.note(&reply);
                        self.answer(call, Ok(reply));
                    }
                    Ok(Err(error)) => {
                        let broken = error.is_unrecoverable_error() || error.is_io_error();
                        let error = classify(&error);
                        self.answer(call, Err(error.kind));
                        locked(&self.health).error = Some(error.clone());
                        if broken {
                            break Some(error);
                        }
                    }
                    Err(_) => {
                        let error = NodeError { kind: ErrorKind::Timeout, message: "no answer".into() };
                        self.answer(call, Err(error.kind));
                        locked(&self.health).error = Some(error);
                    }
                },
                push = gone.recv() => if push.is_none_or(|push| push.kind == PushKind::Disconnection) {
                    break Some(NodeError { kind: ErrorKind::Unreachable, message: "the connection was closed".into() });
                },
                changed = self.master.changed() => if changed.is_ok() { break None },
            }
        };
        // Whether these were carried out is not known; to the core that is the same as no answer.
        drop(connection);
        while let Some((call, result)) = calls.next().await {
            match result {
                Ok(Ok(reply)) => self.answer(call, Ok(reply)),
                _ => self.answer(call, Err(ErrorKind::Unreachable)),
            }
        }
        broken
    }

    fn answer(&self, call: CallId, result: Result<Reply, ErrorKind>) {
        _ = self.events.send(Event::Reply { call, result });
    }

    fn note(&self, reply: &Reply) {
        let mut health = locked(&self.health);
        health.error = None;
        health.time_offset_ms = Some(offset_ms(reply.time));
        if health.run_id.as_deref() != Some(&*reply.incarnation.run) {
            health.run_id = Some(reply.incarnation.run.clone());
        }
    }

    fn up(&self, master: &Master, health: Health) {
        let both = {
            let mut known = locked(&self.health);
            let mut up = known.up;
            up[self.lane as usize] = true;
            *known = Health { up, ..health };
            known.reachable()
        };
        if both {
            info!(node = master.name, "connected");
            if let Some(warning) = &locked(&self.health).warning {
                warn!(node = master.name, warning, "configuration of the server");
            }
            let durable = locked(&self.health).durable;
            _ = self.events.send(Event::Up { node: self.id, durable });
        }
    }

    fn down(&self, master: &Master, error: Option<NodeError>) {
        let was = {
            let mut known = locked(&self.health);
            let was = known.reachable();
            known.up[self.lane as usize] = false;
            was
        };
        if was {
            let error = error.map(|error| error.to_string());
            warn!(node = master.name, error, "disconnected");
            _ = self.events.send(Event::Down(self.id));
        }
    }
}

/// The task behind the connection that listens.
struct Ear {
    id: NodeId,
    master: watch::Receiver<Master>,
    channel: String,
    events: mpsc::UnboundedSender<Event>,
}

impl Ear {
    async fn run(mut self) {
        let mut wait = RECONNECT;
        loop {
            let master = self.master.borrow_and_update().clone();
            let subscribed = async {
                let mut pubsub = client(&master, ProtocolVersion::RESP2)?.get_async_pubsub().await?;
                pubsub.subscribe(&self.channel).await?;
                RedisResult::Ok(pubsub)
            };
            if let Ok(Ok(pubsub)) = timeout(CONNECT, subscribed).await {
                wait = RECONNECT;
                _ = self.events.send(Event::Listening(self.id));
                let mut messages = pubsub.into_on_message();
                loop {
                    tokio::select! {
                        message = messages.next() => match message {
                            Some(message) => self.hear(message.get_payload_bytes()),
                            None => break,
                        },
                        changed = self.master.changed() => if changed.is_ok() { break },
                    }
                }
            }
            sleep(wait.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
            wait = (wait * 2).min(RECONNECT_LIMIT);
        }
    }

    fn hear(&self, message: &[u8]) {
        if let Some(wake) = Wake::parse(&String::from_utf8_lossy(message)) {
            _ = self.events.send(Event::Wake { node: self.id, wake });
        }
    }
}

/// What connects to `master`; nothing is sent yet.
pub(crate) fn client(master: &Master, protocol: ProtocolVersion) -> RedisResult<Client> {
    let mut settings =
        RedisConnectionInfo::default().set_db(i64::from(master.db)).set_protocol(protocol).set_skip_set_lib_name();
    if let Some(username) = &master.username {
        settings = settings.set_username(username);
    }
    if let Some(password) = &master.password {
        settings = settings.set_password(password.expose_secret());
    }
    let tcp = TcpSettings::default()
        .set_nodelay(true)
        .set_keepalive(TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE).with_retries(2))
        .set_user_timeout(USER_TIMEOUT);
    let info = ConnectionAddr::Tcp(master.host.clone(), master.port).into_connection_info()?;
    Client::open(info.set_tcp_settings(tcp).set_redis_settings(settings))
}

/// Connects, loads the scripts, and looks at the server.
async fn connect(
    master: &Master,
    pushes: mpsc::UnboundedSender<PushInfo>,
) -> Result<(MultiplexedConnection, Health), NodeError> {
    let connected = async {
        // With RESP3 the end of a connection is noticed while nothing is sent.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_push_sender(pushes);
        let client = client(master, ProtocolVersion::RESP3)?;
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let health = examine(&mut connection).await?;
        script::load(&mut connection).await?;
        RedisResult::Ok((connection, health))
    };
    match timeout(CONNECT, connected).await {
        Ok(done) => done.map_err(|error| classify(&error)),
        Err(_) => Err(NodeError { kind: ErrorKind::Timeout, message: "no connection".into() }),
    }
}

async fn examine(connection: &mut MultiplexedConnection) -> RedisResult<Health> {
    let (server, memory, replication, (seconds, micros)): (InfoDict, InfoDict, InfoDict, (u64, u64)) = redis::pipe()
        .cmd("INFO")
        .arg("server")
        .cmd("INFO")
        .arg("memory")
        .cmd("INFO")
        .arg("replication")
        .cmd("TIME")
        .query_async(connection)
        .await?;
    // A user who may not ask is a server that may lose what it acknowledged.
    let durable = is_durable(connection).await.unwrap_or(false);
    let policy: String = memory.get("maxmemory_policy").unwrap_or_default();
    let role: String = replication.get("role").unwrap_or_default();
    let mut warnings = Vec::new();
    if policy != "noeviction" {
        warnings.push(format!("maxmemory-policy is {policy}: Redis may drop the lock; it should be noeviction"));
    }
    if role == "slave" {
        warnings.push("is a replica: a master is needed".to_owned());
    }
    Ok(Health {
        run_id: server.get::<String>("run_id").map(Arc::from),
        time_offset_ms: Some(offset_ms(seconds * 1_000_000 + micros)),
        warning: (!warnings.is_empty()).then(|| warnings.join("; ")),
        durable,
        ..Health::default()
    })
}

/// Whether every write is on disk before it is acknowledged.
async fn is_durable(connection: &mut MultiplexedConnection) -> RedisResult<bool> {
    let get = |name: &str| redis::cmd("CONFIG").arg("GET").arg(name).clone();
    let (_, appendonly): (String, String) = get("appendonly").query_async(connection).await?;
    let (_, appendfsync): (String, String) = get("appendfsync").query_async(connection).await?;
    Ok(appendonly == "yes" && appendfsync == "always")
}

/// How far a node's wall clock, in microseconds, is ahead of ours, in milliseconds.
fn offset_ms(node: u64) -> i64 {
    let ours = SystemClock.utc().as_microsecond();
    (i64::try_from(node).unwrap_or(i64::MAX) - ours) / 1000
}

/// The reason that problems and outcomes have for a category.
#[must_use]
pub fn reason(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Unreachable => "Unreachable",
        ErrorKind::Timeout => "Timeout",
        ErrorKind::WrongPassword => "WrongPassword",
        ErrorKind::NoPermission => "NoPermission",
        ErrorKind::Loading => "Loading",
        ErrorKind::ReadOnly => "ReadOnlyMaster",
        ErrorKind::OutOfMemory => "OutOfMemory",
        ErrorKind::Protocol => "UnexpectedAnswer",
    }
}

/// The category of an error, and its code alone: what Redis says around it may quote a command.
pub(crate) fn classify(error: &RedisError) -> NodeError {
    let text = error.to_string();
    let code = error.code().unwrap_or_default();
    // Inside a script, older servers wrap the code into a text of their own.
    let says = |wanted: &str| code == wanted || (code == "ERR" && text.contains(wanted));
    let kind = if matches!(error.kind(), redis::ErrorKind::AuthenticationFailed) || says("WRONGPASS") || says("NOAUTH")
    {
        ErrorKind::WrongPassword
    } else if says("NOPERM") || text.contains("ACL failure in script") {
        ErrorKind::NoPermission
    } else if says("LOADING") {
        ErrorKind::Loading
    } else if says("READONLY") || says("MASTERDOWN") || says("NOREPLICAS") {
        ErrorKind::ReadOnly
    } else if says("OOM") {
        ErrorKind::OutOfMemory
    } else if error.is_timeout() {
        ErrorKind::Timeout
    } else if error.is_io_error() || error.is_connection_dropped() || error.is_connection_refusal() {
        ErrorKind::Unreachable
    } else {
        ErrorKind::Protocol
    };
    let message = if code.is_empty() { error.category().to_owned() } else { code.to_owned() };
    NodeError { kind, message }
}
