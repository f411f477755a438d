//! Electors over real Redis servers, each with threads of its own.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cabloy_agent::clock::{Clock as _, Instant, SystemClock};
use cabloy_agent::election::{Candidacy, ElectionStatus, Elector, Master, Masters, Owner, Pod, Role, Term, Timing};
use cabloy_tests::redis::Redis;
use cabloy_tests::wait;
use futures::future::select_all;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub const TTL: Duration = Duration::from_millis(1500);
pub const TIMING: Timing = Timing { ttl: TTL };
/// For what takes milliseconds: the machine may be busy.
pub const SOON: Duration = Duration::from_secs(30);
pub const LOCK: &str = "cabloy:{prod/shop}:lock";

/// Every term that began in a test, in order.
pub type Terms = Arc<Mutex<Vec<Term>>>;

/// An agent with threads of its own, so that it can be killed.
pub struct Agent {
    pub name: String,
    runtime: Option<Runtime>,
    pub elector: Elector,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Agent {
    pub fn start(name: &str, masters: Masters, revision: u64, terms: &Terms) -> Self {
        let agent = Self::idle(name, masters, terms);
        agent.elector.stand(Candidacy { stands: true, revision });
        agent
    }

    pub fn idle(name: &str, masters: Masters, terms: &Terms) -> Self {
        // RUST_LOG=cabloy_agent=trace shows every event and action.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let pod = Pod { name: name.to_owned(), uid: format!("uid-{name}") };
        let elector = {
            let _guard = runtime.enter();
            Elector::spawn(&tasks, shutdown.clone(), pod, masters, TIMING, "prod/shop")
        };
        let (mut role, terms) = (elector.watch(), terms.clone());
        runtime.spawn(async move {
            while role.changed().await.is_ok() {
                let Role::Leader(term) = role.borrow_and_update().clone() else { continue };
                let mut terms = terms.lock().unwrap();
                for earlier in &*terms {
                    assert!(earlier.token() < term.token(), "token {} after {}", term.token(), earlier.token());
                }
                terms.push(term);
            }
        });
        Self { name: name.to_owned(), runtime: Some(runtime), elector, tasks, shutdown }
    }

    /// As SIGKILL: nothing is released.
    pub fn kill(mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        tokio::time::timeout(SOON, self.tasks.wait()).await.expect("all tasks end");
    }

    pub fn term(&self) -> Option<Term> {
        match &*self.elector.watch().borrow() {
            Role::Leader(term) => Some(term.clone()),
            Role::Follower { .. } => None,
        }
    }

    pub fn leads(&self) -> bool {
        self.term().is_some_and(|term| term.may_claim())
    }

    pub fn status(&self) -> ElectionStatus {
        self.elector.status()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub fn servers<const N: usize>() -> [Redis; N] {
    std::array::from_fn(|_| Redis::start())
}

pub fn masters<'a>(servers: impl IntoIterator<Item = &'a Redis>) -> Masters {
    let master = |(index, redis): (usize, &Redis)| Master {
        name: format!("m{index}"),
        host: redis.addr().ip().to_string(),
        port: redis.addr().port(),
        db: 0,
        username: None,
        password: None,
    };
    servers.into_iter().enumerate().map(master).collect()
}

pub fn start<const N: usize>(masters: &Masters, terms: &Terms) -> Vec<Agent> {
    (0..N).map(|index| Agent::start(&format!("shop-{index}"), masters.clone(), 1, terms)).collect()
}

/// Waits until one of them leads.
pub async fn leader<'a>(agents: impl IntoIterator<Item = &'a Agent>) -> (usize, Term) {
    let leading = agents.into_iter().enumerate().map(|(index, agent)| {
        let mut role = agent.elector.watch();
        Box::pin(async move {
            let term = match &*role.wait_for(|role| matches!(role, Role::Leader(_))).await.unwrap() {
                Role::Leader(term) => term.clone(),
                Role::Follower { .. } => unreachable!(),
            };
            (index, term)
        })
    });
    tokio::time::timeout(SOON, select_all(leading)).await.expect("nobody leads").0
}

pub async fn follows(agent: &Agent, leader: &str) {
    let mut role = agent.elector.watch();
    let is = |role: &Role| match role {
        Role::Follower { leader: Some(Owner::Agent { agent, .. }) } => agent.pod == leader,
        _ => false,
    };
    let seen = tokio::time::timeout(SOON, role.wait_for(is)).await.is_ok();
    assert!(seen, "{leader} is not seen to lead: {:#?}", agent.status());
}

pub fn now() -> Instant {
    SystemClock.now()
}

/// How many commands agents have sent to a server since it started: all but what scripts send on their way, and what this
/// itself takes.
pub fn commands_run(server: &Redis) -> u32 {
    const NOT_THEIRS: [&str; 14] = [
        "client", "del", "get", "hdel", "hget", "hgetall", "hmget", "hset", "info", "pexpire", "pttl", "publish",
        "set", "time",
    ];
    let stats: String = server.run(&["INFO", "commandstats"]);
    let calls = stats.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(":calls="));
    let theirs = calls.filter(|(name, _)| !name.split('|').next().is_some_and(|command| NOT_THEIRS.contains(&command)));
    theirs.map(|(_, calls)| calls.split(',').next().unwrap().parse::<u32>().unwrap()).sum()
}

/// Waits until so many agents hear what a server publishes: they send nothing more for it.
pub async fn listen(servers: &[Redis], agents: usize) {
    for server in servers {
        let listeners = || server.run::<String>(&["CLIENT", "LIST", "TYPE", "pubsub"]).lines().count();
        wait::until("all agents to listen", SOON, async || listeners() == agents).await;
    }
}
