//! How a real `CabloyJS` v4 backend ends, with an agent beside it and without: what it has begun is done, and it begins nothing
//! more.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod stage;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use cabloy_tests::cabloy::{self, APP, BOOT, HEALTH, Pod, Project};
use cabloy_tests::redis::Redis;
use cabloy_tests::{require, wait};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use stage::Stage;

const PING: &str = "/api/fx/probe/probe/ping";
const PUSH: &str = "/api/fx/probe/probe/push";

/// How long a worker of `BullMQ` waits for an answer to its question for a job.
const QUESTION: Duration = Duration::from_secs(5);

/// A connection that a client keeps.
struct Connection(TcpStream);

impl Connection {
    async fn open(port: u16) -> Self {
        Self(TcpStream::connect(("127.0.0.1", port)).await.unwrap())
    }

    /// The head of an answer, once all of the answer is there.
    async fn post(&mut self, path: &str, body: &Value) -> String {
        let body = body.to_string();
        let head = format!("POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n");
        let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
        self.0.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.split("content-length: ").nth(1).and_then(|it| it.lines().next()).unwrap();
                if body.len() >= length.parse().unwrap() {
                    return head.to_owned();
                }
            }
            assert!(self.0.read_buf(&mut answer).await.unwrap() > 0, "cut off after {text:?}");
        }
    }
}

/// The numbers of the jobs that have begun or are done.
fn jobs(pod: &Pod, kind: &str) -> Vec<u64> {
    pod.events().iter().filter(|it| it.kind == kind).map(|it| it.more["data"]["n"].as_u64().unwrap()).collect()
}

/// Pushes a job that takes so long.
async fn push(pod: &Pod, n: u64, ms: u64) {
    let body = json!({"queue": "busy", "data": {"n": n, "ms": ms}}).to_string();
    let answer = pod.post(PUSH, &[("content-type", "application/json")], &body).await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// How many jobs are being done, and how many wait.
fn left(redis: &Redis) -> (usize, usize) {
    let length = |list: &str| redis.run(&["LLEN", &format!("bull_{APP}:queue:-||fx-probe||busy:{list}")]);
    (length("active"), length("wait"))
}

/// A real app with two worker processes, its agent, and a queue that each worker process takes jobs of.
#[tokio::test(flavor = "multi_thread")]
async fn an_app_ends_what_it_has_begun_and_begins_nothing_once_its_pod_is_to_end() {
    require!(cabloy::found());
    let (project, redis, stage) = (Project::new(), Redis::start(), Stage::new(1));
    let database = cabloy::database().await;
    let (boot, marks) = (stage.dir().join("boot"), stage.dir().join("state"));
    fs::create_dir(&boot).unwrap();
    fs::create_dir(&marks).unwrap();
    let preload = boot.join("preload.cjs");
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("../operator/preload/preload.cjs"), &preload).unwrap();
    fs::write(boot.join("boot.json"), json!({"app": APP, "generation": "v4", "roles": []}).to_string()).unwrap();
    let mut pod = project
        .pod("a", &database, redis.addr())
        .workers(2)
        .env("CABLOY_BOOT_DIR", boot.to_str().unwrap())
        .env("CABLOY_STATE_DIR", marks.to_str().unwrap())
        .env("NODE_OPTIONS", format!("--require {}", preload.display()))
        .spawn()
        .unwrap();
    stage.files.edit(|file| {
        file["app"] = json!({"name": APP, "generation": "v4", "health": {"http": {"method": "POST", "path": HEALTH}}});
        file["startups"] = json!([{
            "name": "warm-up", "scope": "Instance", "after": [], "gate": "Ready", "timeoutMs": 120_000,
            "retry": {"limit": 1_000, "initialDelayMs": 100, "factor": 2.0, "maxDelayMs": 1_000},
            "target": {"warmUp": {"instances": [""]}},
        }]);
    });
    let agent = stage.agent_beside("a", pod.port()).state_dir(&marks).start();
    wait::until("the agent to be ready", BOOT, async || agent.is_ready().await).await;
    let done = async |n: u64| {
        wait::until("a job to be done", stage::SOON, async || {
            let done = jobs(&pod, "queue.done");
            if done.contains(&n) { Ok(()) } else { Err(format!("{done:?}")) }
        })
        .await;
    };
    push(&pod, 0, 0).await;
    done(0).await;

    // An agent that drains and comes back has changed its mind.
    let mut kept = [Connection::open(pod.port()).await, Connection::open(pod.port()).await];
    agent.drain();
    for connection in &mut kept {
        wait::until("the connection to be let go", stage::SOON, async || {
            let head = connection.post(PING, &json!({})).await;
            if head.contains("connection: close") { Ok(()) } else { Err(head) }
        })
        .await;
    }
    agent.kill();
    let agent = stage.agent_beside("b", pod.port()).state_dir(&marks).start();
    agent.until_ready().await;
    let mut kept = Connection::open(pod.port()).await;
    wait::until("connections to be kept again", stage::SOON, async || {
        let head = kept.post(PING, &json!({})).await;
        if head.contains("connection: close") {
            kept = Connection::open(pod.port()).await;
            return Err(head);
        }
        Ok(())
    })
    .await;
    push(&pod, 1, 0).await;
    done(1).await;

    // The pod is to end: jobs, and a request, that are longer than egg would wait for go on, and what comes now is left for
    // other pods. The request is the longest, and one of the processes has none.
    let long = u64::try_from(QUESTION.as_millis()).unwrap() * 5 / 2;
    push(&pod, 2, long).await;
    push(&pod, 3, long).await;
    wait::until("both processes to be at work", stage::SOON, async || jobs(&pod, "queue.start").len() == 4).await;
    agent.drain();
    let told = tokio::time::Instant::now();
    push(&pod, 4, 0).await;
    let slow = async {
        let mut connection = Connection::open(pod.port()).await;
        connection.post(PING, &json!({"ms": long * 5 / 4})).await
    };
    let end = async {
        tokio::time::sleep_until(told + QUESTION).await;
        pod.terminate();
    };
    let (head, ()) = tokio::join!(slow, end);
    assert!(head.starts_with("http/1.1 200") && head.contains("connection: close"), "{head}");
    let said = || format!("{:?}\n{}", pod.events(), pod.log_tail(30));
    wait::until("the jobs to be done", stage::SOON, async || {
        let mut done = jobs(&pod, "queue.done");
        done.sort_unstable();
        if done == [0, 1, 2, 3] { Ok(()) } else { Err(said()) }
    })
    .await;
    pod.exit().await;
    assert_eq!(left(&redis), (0, 1), "{:?}", pod.events());
    let refused = TcpStream::connect(("127.0.0.1", pod.port())).await;
    assert!(refused.is_err());
}

/// As with `agent.enabled: false`: nobody says that the pod is about to end before SIGTERM does.
#[tokio::test(flavor = "multi_thread")]
async fn an_app_without_an_agent_ends_what_it_has_begun_and_begins_nothing_from_sigterm_on() {
    require!(cabloy::found());
    let (project, redis) = (Project::new(), Redis::start());
    let database = cabloy::database().await;
    let mut pod = project.pod("a", &database, redis.addr()).workers(2).preload(&json!({})).start().await;
    // A process takes jobs once it has had a request.
    wait::until("both processes to have had a request", BOOT, async || {
        pod.post(PING, &[], "").await.map_err(|error| error.to_string())?;
        let events = pod.events();
        let pids: BTreeSet<_> = events.iter().filter(|it| it.kind == "ping").map(|it| it.pid).collect();
        if pids.len() == 2 { Ok(()) } else { Err(format!("{pids:?}")) }
    })
    .await;

    // Longer than egg would wait for.
    let long = u64::try_from(QUESTION.as_millis()).unwrap() * 3 / 2;
    let slow = async {
        let mut connection = Connection::open(pod.port()).await;
        connection.post(PING, &json!({"ms": long * 2})).await
    };
    let end = async {
        push(&pod, 0, long).await;
        push(&pod, 1, long).await;
        wait::until("both processes to be at work", stage::SOON, async || jobs(&pod, "queue.start").len() == 2).await;
        push(&pod, 2, 0).await;
        pod.terminate();
    };
    let (head, ()) = tokio::join!(slow, end);
    assert!(head.starts_with("http/1.1 200") && head.contains("connection: close"), "{head}");
    pod.exit().await;
    let mut done = jobs(&pod, "queue.done");
    done.sort_unstable();
    assert_eq!(done, [0, 1], "{:?}\n{}", pod.events(), pod.log_tail(30));
    assert_eq!(left(&redis), (0, 1), "{:?}", pod.events());
}
