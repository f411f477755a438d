//! `client/`, which apps guard their routes with: its own tests on a real Redis, and behind it an app that a real agent
//! calls.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod stage;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cabloy_crds::agent_status::{TickResult, Verdict};
use cabloy_tests::port::free_port;
use cabloy_tests::process::{Process, bound, spawn, tail};
use cabloy_tests::redis::Redis;
use cabloy_tests::{npm, wait};
use serde::Deserialize;
use serde_json::json;
use stage::{Agent, SOON, Stage, Start, get, schedule};

const KEYS: [&str; 2] = ["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"];

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/test").join(name)
}

#[test]
fn the_client_passes_its_own_tests_on_each_node() {
    // koa and the ioredis of CabloyJS 4 here, a newer ioredis there.
    let (v4, newer) = (npm::modules("preload"), npm::modules("redlock"));
    let dir = tempfile::TempDir::with_prefix("cabloy-client-").unwrap();
    let runs =
        [("node12", vec![&v4]), ("node20", vec![&v4, &newer]), ("node24", vec![&v4, &newer])].map(|(node, modules)| {
            let redis = Redis::start();
            let log = dir.path().join(node);
            let output = std::fs::File::create(&log).unwrap();
            let mut command = bound(v4.join(node).join("bin/node"));
            command.arg(script("run.js")).arg(redis.addr().port().to_string()).args(modules);
            command.stdout(output.try_clone().unwrap()).stderr(output);
            (node, redis, log, spawn(command).unwrap())
        });
    for (node, _redis, log, mut child) in runs {
        let status = child.wait().unwrap();
        let said = std::fs::read_to_string(&log).unwrap();
        assert!(status.success(), "{node}: {said}");
        assert!(tail(&log, 1).contains("Redis by ioredis"), "{node}: {said}");
    }
}

/// What the app was asked, and did.
#[derive(Debug, Deserialize)]
struct Seen {
    /// How often each run's work was done, by its key.
    ran: BTreeMap<String, u32>,
    calls: Vec<Call>,
}

#[derive(Debug, Deserialize)]
struct Call {
    path: String,
    key: String,
    attempt: u32,
    token: u64,
    /// It was asked what became of the run.
    asks: bool,
    /// As the app answered.
    status: u16,
}

/// An app with the client in it, and its key file.
struct App {
    port: u16,
    process: Process,
    key_file: PathBuf,
}

impl App {
    fn start(dir: &Path, keys: &str) -> Self {
        let port = free_port().unwrap();
        let key_file = dir.join("key-of-the-app");
        std::fs::write(&key_file, keys).unwrap();
        let mut command = bound("node");
        command.arg(script("app.js")).arg(port.to_string()).arg(&key_file);
        Self { port, process: Process::spawn("app", command, &dir.join("app.log")).unwrap(), key_file }
    }

    fn write_keys(&self, keys: &str) {
        std::fs::write(self.key_file.with_extension("new"), keys).unwrap();
        std::fs::rename(self.key_file.with_extension("new"), &self.key_file).unwrap();
    }

    async fn seen(&self) -> Seen {
        wait::until("the app to tell its calls", SOON, async || match get(self.port, "/calls").await {
            Ok((_, text)) => Ok(serde_json::from_str(&text).unwrap()),
            Err(error) => Err(format!("{error}: {}", self.process.log_tail(5))),
        })
        .await
    }
}

/// An agent that signs with the first key, beside `app`.
fn start_agent(stage: &Stage, app: &App) -> Agent {
    with_key(stage, stage.agent_beside("a", app.port)).start()
}

/// One that signs with the first key.
fn with_key<'a>(stage: &Stage, agent: Start<'a>) -> Start<'a> {
    let key_file = stage.dir().join("key-of-the-agent");
    std::fs::write(&key_file, KEYS[0]).unwrap();
    agent.signing_key(&key_file)
}

/// The first result of a schedule that is as `enough` wants it.
async fn result(agent: &Agent, name: &str, enough: impl Fn(&TickResult) -> bool) -> TickResult {
    let found = |status: &cabloy_crds::agent_status::AgentStatus| {
        let schedule = status.schedules.iter().find(|schedule| schedule.name == name)?;
        schedule.results.iter().find(|result| enough(result)).cloned()
    };
    let status = agent.until(&format!("a result of {name}"), |status| found(status).is_some()).await;
    found(&status).unwrap()
}

/// The calls of a run, by schedule and tick.
fn calls<'a>(seen: &'a Seen, name: &str, result: &TickResult) -> Vec<&'a Call> {
    let key = format!("\"prod/shop/{name}@{}\"", result.tick);
    seen.calls.iter().filter(|call| call.key == key).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_with_the_client_does_each_run_of_a_real_agent_once() {
    let stage = Stage::new(1);
    let app = App::start(stage.dir(), KEYS[0]);
    let names = ["plain", "lost", "slow", "accepted"];
    stage.files.edit(|file| {
        let schedules = names.iter().map(|name| {
            let mut schedule = schedule(name, 3_000);
            schedule["retry"]["limit"] = json!(20);
            schedule["onUnknown"] = json!("Retry");
            schedule["target"]["http"]["body"] = json!({"word": "Übermut"});
            schedule
        });
        file["schedules"] = schedules.collect();
        // The app takes a second.
        file["schedules"][2]["timeoutMs"] = json!(400);
    });
    let agent = start_agent(&stage, &app);
    for name in names {
        let result = result(&agent, name, |_| true).await;
        assert_eq!(result.verdict, Verdict::Done, "{name}: {result:?}");
        let seen = app.seen().await;
        let calls = calls(&seen, name, &result);
        let statuses: Vec<_> = calls.iter().map(|call| (call.attempt, call.status)).collect();
        let last = statuses.last().copied().unwrap();
        match name {
            "plain" => assert_eq!(statuses, [(1, 200)]),
            "lost" => assert_eq!(statuses, [(1, 200), (2, 200)], "the second is what was kept"),
            "slow" => {
                assert!(statuses.iter().any(|call| call.1 == 409), "{statuses:?}");
                assert!(last.0 > 1 && last.1 == 200, "{statuses:?}");
            }
            _ => {
                assert_eq!(statuses, [(1, 202)]);
                let poll = format!(
                    "/jobs/{}",
                    calls[0].key.trim_matches('"').replace('/', "%2F").replace('@', "%40").replace(':', "%3A")
                );
                let polls: Vec<_> =
                    seen.calls.iter().filter(|call| call.path == poll).map(|call| call.status).collect();
                assert_eq!(polls, [202, 204], "{:?}", seen.calls);
            }
        }
    }
    let seen = app.seen().await;
    assert!(seen.ran.len() >= 4 && seen.ran.values().all(|count| *count == 1), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_refuses_a_wrong_key_until_the_app_has_the_right_one() {
    let stage = Stage::new(1);
    let app = App::start(stage.dir(), KEYS[1]);
    stage.files.edit(|file| file["schedules"] = json!([schedule("plain", 500)]));
    let agent = start_agent(&stage, &app);
    let refused = result(&agent, "plain", |_| true).await;
    assert_eq!((refused.verdict, refused.reason.as_str()), (Verdict::Failed, "Forbidden"));
    assert!(refused.message.contains("no signature is by a key of this app"), "{refused:?}");
    let seen = app.seen().await;
    assert!(seen.ran.is_empty() && seen.calls.iter().all(|call| call.status == 401), "{seen:?}");
    app.write_keys(&format!("{}\n{}\n", KEYS[1], KEYS[0]));
    result(&agent, "plain", |result| result.verdict == Verdict::Done).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_that_the_client_has_seen_is_where_the_agent_goes_on() {
    let stage = Stage::new(1);
    let app = App::start(stage.dir(), KEYS[0]);
    stage.files.edit(|file| {
        let mut schedule = schedule("fenced", 3_000);
        schedule["retry"]["limit"] = json!(3);
        file["schedules"] = json!([schedule]);
    });
    let agent = start_agent(&stage, &app);
    let result = result(&agent, "fenced", |_| true).await;
    assert_eq!((result.verdict, result.attempts), (Verdict::Done, 2), "{result:?}");
    let seen = app.seen().await;
    let calls = calls(&seen, "fenced", &result);
    assert_eq!(calls.iter().map(|call| call.status).collect::<Vec<_>>(), [412, 200], "{calls:?}");
    assert!(calls[1].token > calls[0].token + 1000, "{calls:?}");
    assert_eq!(seen.ran[calls[0].key.trim_matches('"')], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_tells_an_agent_that_was_started_again_what_became_of_a_run() {
    let stage = Stage::new(1);
    let app = App::start(stage.dir(), KEYS[0]);
    stage.files.edit(|file| {
        let mut schedule = schedule("held", 1_000);
        schedule["timeoutMs"] = json!(600_000);
        schedule["target"]["http"]["remembersRuns"] = json!(true);
        file["schedules"] = json!([schedule]);
    });
    let uid = "5e1f";
    let killed = with_key(&stage, stage.agent_beside("a", app.port)).uid(uid).start();
    let key = wait::until("the app to begin the run", SOON, async || app.seen().await.ran.into_keys().next()).await;
    killed.kill();
    let agent = with_key(&stage, stage.agent_again("a", app.port)).uid(uid).start();
    // It goes on, and says so.
    wait::until("the app to be asked", SOON, async || app.seen().await.calls.iter().any(|call| call.asks)).await;
    get(app.port, "/release").await.unwrap();
    let result = result(&agent, "held", |result| key.ends_with(&result.tick.to_string())).await;
    assert_eq!((result.verdict, result.attempts), (Verdict::Done, 1), "long before the deadline: {result:?}");
    let seen = app.seen().await;
    assert_eq!(seen.ran[&key], 1, "{seen:?}");
    let questions: Vec<_> = calls(&seen, "held", &result).into_iter().filter(|call| call.asks).collect();
    assert!(questions.iter().all(|call| call.attempt == 1), "{questions:?}");
    let statuses: Vec<_> = questions.iter().map(|call| call.status).collect();
    let (last, before) = statuses.split_last().unwrap();
    assert!(*last == 200 && !before.is_empty() && before.iter().all(|status| *status == 409), "{statuses:?}");
}
