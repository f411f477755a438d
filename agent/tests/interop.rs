//! The agent and the Redlock libraries that CabloyJS apps use, on the same lock.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod electors;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use cabloy_agent::clock::Instant;
use cabloy_agent::election::{Owner, Role, Term};
use cabloy_tests::npm;
use cabloy_tests::process::{bound, spawn};
use cabloy_tests::redis::Redis;
use electors::{Agent, LOCK, TTL, Terms, masters, now, servers};

/// For what takes milliseconds, or a lease: the machine may be busy.
const SOON: Duration = Duration::from_secs(20);

/// A Node.js process with one of the libraries.
struct Library {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Library {
    fn start(name: &str, servers: &[Redis]) -> Self {
        let modules = npm::modules("redlock");
        let mut node = bound("node");
        node.arg(npm::fixture("redlock").join("client.js")).args([name, LOCK]).env("NODE_PATH", modules);
        node.args(servers.iter().map(|server| server.addr().port().to_string()));
        let mut process = spawn({
            node.stdin(Stdio::piped()).stdout(Stdio::piped());
            node
        })
        .unwrap();
        let (input, output) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        Self { process, input, output }
    }

    /// Begins something; its answer is to be read.
    fn begin(&mut self, command: &str) {
        writeln!(self.input, "{command}").unwrap();
    }

    /// The answer, and when it came.
    fn answer(&mut self) -> (String, Instant) {
        let mut line = String::new();
        assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "the library's process has ended");
        (line.trim_end().to_owned(), now())
    }

    fn tell(&mut self, command: &str) -> String {
        self.begin(command);
        self.answer().0
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // Both fail only for a process that has ended already.
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// An agent that stands for as long as it is there.
fn start(servers: &[Redis]) -> Agent {
    Agent::start("shop-0", masters(servers), 1, &Terms::default())
}

async fn leads(agent: &Agent) -> Term {
    let mut role = agent.elector.watch();
    let role = tokio::time::timeout(SOON, role.wait_for(|role| matches!(role, Role::Leader(_))));
    match &*role.await.expect("it does not lead").unwrap() {
        Role::Leader(term) => term.clone(),
        Role::Follower { .. } => unreachable!(),
    }
}

/// Waits until it knows that somebody else has the lock.
async fn waits(agent: &Agent) {
    let mut role = agent.elector.watch();
    let other = |role: &Role| matches!(role, Role::Follower { leader: Some(Owner::Other(_)) });
    tokio::time::timeout(SOON, role.wait_for(other)).await.expect("it does not see the other one").unwrap();
}

async fn it_respects_our_lock(library: &str) {
    let servers = servers::<3>();
    let mut theirs = Library::start(library, &servers);
    let agent = start(&servers);
    let term = leads(&agent).await;
    // It tries, which leaves our lock as it is.
    for _ in 0..5 {
        let refused = theirs.tell("acquire 1000");
        assert!(refused.starts_with("LockError") || refused.starts_with("ExecutionError"), "{refused}");
    }
    // It waits, for longer than the lock lives without a renewal, until we give it up.
    theirs.begin("wait 60000");
    assert!(tokio::time::timeout(TTL * 2, term.lost().cancelled()).await.is_err(), "it took the lock away");
    // On a busy machine one server may have missed a renewal.
    let value = |server: &Redis| server.run::<Option<String>>(&["GET", LOCK]);
    let values: Vec<_> = servers.iter().filter_map(value).collect();
    let ours = values.iter().filter(|value| value.ends_with(&format!(":{}", term.token()))).count();
    assert!(term.may_claim() && ours >= 2, "{values:?}");
    let stopped = now();
    agent.stop().await;
    let (answer, at) = theirs.answer();
    assert_eq!(answer, "done");
    assert!(at > stopped);

    // So that what was refused above was not refused for another reason.
    assert_eq!(theirs.tell("release"), "done");
    assert_eq!(theirs.tell("acquire 1000"), "done");
}

async fn its_lock_is_respected(library: &str) {
    let servers = servers::<3>();
    let mut theirs = Library::start(library, &servers);
    // Extended it lasts longer than it was first acquired for, and then it is ours.
    assert_eq!(theirs.tell("acquire 1000"), "done");
    let agent = start(&servers);
    waits(&agent).await;
    let extended = now();
    assert_eq!(theirs.tell("extend 3000"), "done");
    let term = leads(&agent).await;
    let held = term.since().since(extended);
    assert!(held > Duration::from_millis(2900) && held < Duration::from_millis(4500), "{held:?}");
    println!("{library}: we lead {held:?} after an extension by 3 s");
    assert_ne!(theirs.tell("acquire 1000"), "done");
    agent.stop().await;

    // Released it is ours, if not at once then when it would have expired.
    assert_eq!(theirs.tell("wait 4000"), "done");
    let agent = start(&servers);
    waits(&agent).await;
    let released = now();
    assert_eq!(theirs.tell("release"), "done");
    let next = leads(&agent).await;
    assert!(next.since() > released && next.token() > term.token());
    println!("{library}: we lead {:?} after a release", next.since().since(released));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redlock_respects_our_lock() {
    it_respects_our_lock("redlock").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lock_of_redlock_is_respected() {
    its_lock_is_respected("redlock").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sesamecare_redlock_respects_our_lock() {
    it_respects_our_lock("@sesamecare-oss/redlock").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lock_of_sesamecare_redlock_is_respected() {
    its_lock_is_respected("@sesamecare-oss/redlock").await;
}
