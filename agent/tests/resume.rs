//! Agents that are killed beside a living app, and started again in the same pod: the app is asked what became of the runs that
//! it was called for, and nobody waits for their deadlines.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod stage;

use cabloy_crds::agent_status::{AgentStatus, TickResult, Verdict};
use jiff::Timestamp;
use serde_json::{Value, json};
use stage::{Agent, Answer, Call, Stage, schedule, startup};

/// How long a lease lasts where one has to expire.
const TTL_MS: u64 = 1_500;

/// Nobody waits for a deadline that is so far away.
const TIMEOUT_MS: u64 = 600_000;

const UID: &str = "0b5e";

fn long(name: &str, remembers: bool) -> Value {
    let mut schedule = schedule(name, 1_000);
    schedule["timeoutMs"] = json!(TIMEOUT_MS);
    schedule["target"]["http"]["remembersRuns"] = json!(remembers);
    schedule
}

fn result_of(status: &AgentStatus, name: &str, tick: Timestamp) -> Option<TickResult> {
    let schedule = status.schedules.iter().find(|it| it.name == name)?;
    schedule.results.iter().find(|it| it.tick == tick).cloned()
}

/// The calls of the run that `first` began: those that began it, and the questions.
fn of_run<'a>(calls: &'a [Call], first: &Call) -> (Vec<&'a Call>, Vec<&'a Call>) {
    let is_question = |call: &&Call| call.headers.contains_key("only-if-known");
    let (asks, calls): (Vec<_>, Vec<_>) = calls.iter().filter(|call| call.key == first.key).partition(is_question);
    (calls, asks)
}

/// The first call for that path, once there is one.
async fn first_of(stage: &Stage, path: &str) -> Call {
    let calls = stage.calls_until(path, |calls| calls.iter().any(|call| call.path == path)).await;
    calls.into_iter().find(|call| call.path == path).unwrap()
}

/// Kills an agent, and starts another one in its place.
fn start_again(stage: &Stage, agent: Agent) -> Agent {
    let (name, app_port) = (agent.name().to_owned(), agent.app_port());
    agent.kill();
    stage.agent_again(&name, app_port).uid(UID).start()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_agent_had_called_is_asked_for_by_the_next_in_its_pod() {
    let stage = Stage::new(3);
    stage.files.edit(|file| file["schedules"] = json!([long("knows", true), long("plain", false)]));
    for path in ["/knows", "/plain"] {
        stage.answer(path, Answer::Hang);
    }
    stage.answer("?/knows", Answer::Script(vec![Answer::Status(503), Answer::Status(409), Answer::Status(200)]));
    let agent = stage.agent("a").uid(UID).start();
    let (first, plain) = (first_of(&stage, "/knows").await, first_of(&stage, "/plain").await);
    let agent = start_again(&stage, agent);

    let done = |status: &AgentStatus| result_of(status, "knows", first.tick()).is_some();
    let status = agent.until("the result of the run", done).await;
    let result = result_of(&status, "knows", first.tick()).unwrap();
    assert_eq!((result.verdict, result.attempts), (Verdict::Done, 1));
    assert!(result.at < first.deadline());
    let calls = stage.calls();
    let (begun, asked) = of_run(&calls, &first);
    assert_eq!(begun.len(), 1, "the app has begun it once");
    assert_eq!(asked.len(), 3, "asked again while it says that it goes on, or cannot say");
    for call in asked {
        assert_eq!(call.headers["only-if-known"], "?1");
        let essence = |call: &Call| (call.attempt, call.deadline(), call.tick(), call.headers["fencing-scope"].clone());
        assert_eq!(essence(call), essence(&first), "the very same attempt");
        assert!(call.token >= first.token, "the app would refuse a lower one");
    }
    // The lease that it took over is another term.
    assert!(status.election.as_ref().unwrap().token > first.token);

    // Who remembers nothing is neither asked nor called: its deadline holds.
    let (begun, asked) = of_run(&calls, &plain);
    assert_eq!((begun.len(), asked.len()), (1, 0));
    assert!(status.awaits.iter().any(|it| it.uid == UID), "{:?}", status.awaits);
    assert_eq!(result_of(&status, "plain", plain.tick()), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_does_not_lead_any_more_asks_too() {
    let stage = Stage::new(3);
    stage.files.edit(|file| {
        file["schedules"] = json!([long("knows", true)]);
        file["election"]["ttlMs"] = json!(TTL_MS);
    });
    stage.answer("/knows", Answer::Hang);
    let agent = stage.agent("a").uid(UID).start();
    let first = first_of(&stage, "/knows").await;
    let (name, app_port) = (agent.name().to_owned(), agent.app_port());
    agent.kill();
    let other = stage.agent("b").start();
    other.until("it leads and waits", |status| status.awaits.iter().any(|it| it.uid == UID)).await;
    let agent = stage.agent_again(&name, app_port).uid(UID).start();
    let done = |status: &AgentStatus| result_of(status, "knows", first.tick()).is_some();
    let status = other.until("the result of the run", done).await;
    assert_eq!(result_of(&status, "knows", first.tick()).unwrap().verdict, Verdict::Done);
    assert!(!agent.status().await.election.unwrap().leading);
    let calls = stage.calls();
    let (begun, asked) = of_run(&calls, &first);
    assert_eq!((begun.len(), asked.len()), (1, 1));
    assert!(asked.iter().all(|call| call.agent == "a"), "an app is asked by the agent beside it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_opens_by_the_task_that_the_agent_before_had_begun() {
    let stage = Stage::new(1);
    stage.files.edit(|file| {
        let mut task = startup("migrate");
        task["timeoutMs"] = json!(TIMEOUT_MS);
        task["target"]["http"]["remembersRuns"] = json!(true);
        file["startups"] = json!([task]);
        file["revisions"] = json!({"new": {"number": 1, "startups": {"migrate": "r1"}}});
    });
    stage.answer("/migrate", Answer::Hang);
    let agent = stage.agent("a").pod("new").uid(UID).start();
    let first = first_of(&stage, "/migrate").await;
    let app_port = agent.app_port();
    agent.kill();
    let agent = stage.agent_again("a", app_port).pod("new").uid(UID).start();
    agent.until_ready().await;
    let calls = stage.calls();
    let (begun, asked) = of_run(&calls, &first);
    assert_eq!((begun.len(), asked.len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_what_the_app_does_not_know_the_deadline_decides() {
    let stage = Stage::new(1);
    stage.files.edit(|file| {
        file["schedules"] = json!([long("knows", true)]);
        file["schedules"][0]["timeoutMs"] = json!(6_000);
    });
    stage.answer("/knows", Answer::Hang);
    // Also of a wrong route.
    stage.answer("?/knows", Answer::Status(404));
    let agent = stage.agent("a").uid(UID).start();
    let first = first_of(&stage, "/knows").await;
    let agent = start_again(&stage, agent);
    let over = |status: &AgentStatus| result_of(status, "knows", first.tick()).is_some();
    let status = agent.until("the run is over", over).await;
    let result = result_of(&status, "knows", first.tick()).unwrap();
    assert_eq!((result.verdict, &*result.reason), (Verdict::Unknown, "DeadlineExceeded"));
    assert!(result.at >= first.deadline());
}
