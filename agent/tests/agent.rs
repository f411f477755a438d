//! Whole agents: the program itself, as processes beside real Redis servers and little HTTP apps.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod stage;

use std::collections::{BTreeMap, BTreeSet};

use cabloy_crds::agent_status::{AgentStatus, StartupState, Verdict};
use cabloy_tests::redis::Redis;
use cabloy_tests::wait;
use jiff::Timestamp;
use serde_json::{Value, json};
use stage::{Agent, Answer, Call, SOON, Stage, schedule, startup};

/// How long a lease lasts where one has to expire in a test.
const TTL_MS: u64 = 1_500;

/// The period of the schedules that are counted.
const PERIOD_MS: i64 = 200;

fn ticks(calls: &[Call]) -> BTreeSet<i64> {
    calls.iter().map(|call| call.tick().as_millisecond()).collect()
}

/// Every attempt at every tick is called once, and all ticks from the first to the last are called or counted as skipped.
fn assert_none_lost_or_doubled(calls: &[Call], skipped: u64) {
    let attempts: BTreeSet<_> = calls.iter().map(|call| (call.key.clone(), call.attempt)).collect();
    assert_eq!(attempts.len(), calls.len(), "a call was made twice: {calls:#?}");
    let ticks = ticks(calls);
    let (first, last) = (ticks.first().unwrap(), ticks.last().unwrap());
    let span = (last - first) / PERIOD_MS + 1;
    let absent = u64::try_from(span).unwrap() - ticks.len() as u64;
    assert!(absent <= skipped, "{absent} of {span} ticks were not called, and {skipped} skipped: {ticks:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_tick_is_called_once_by_one_of_three() {
    let stage = Stage::new(3);
    stage.files.edit(|file| file["schedules"] = json!([schedule("a", PERIOD_MS)]));
    let agents = [stage.agent("a").start(), stage.agent("b").start(), stage.agent("c").start()];
    let calls = stage.calls_until("20 ticks", |calls| ticks(calls).len() >= 20).await;
    let leader = stage::leader(&agents).await;
    let status = leader.status().await;
    assert_none_lost_or_doubled(&calls, status.schedules[0].skipped);
    assert!(calls.iter().all(|call| call.agent == leader.name()), "one agent makes all calls");
    let host = format!("127.0.0.1:{}", leader.app_port());
    for call in &calls {
        assert_eq!(call.headers["host"], host);
        assert_eq!(call.headers["ce-specversion"], "1.0");
        assert_eq!(call.key, format!("\"prod/shop/a@{}\"", call.tick()));
        assert_eq!(call.token, Some(status.election.as_ref().unwrap().token.unwrap()));
        assert_eq!(call.attempt, 1);
    }
    assert_eq!(leader.metric("cabloy_agent_leader").await, "1");
    assert!(
        leader.metric(r#"cabloy_agent_ticks_total{schedule="a",result="Done"}"#).await.parse::<u32>().unwrap() >= 19
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_the_next_leads_and_no_tick_is_lost_or_doubled() {
    let stage = Stage::new(3);
    stage.files.edit(|file| {
        let mut counted = schedule("a", PERIOD_MS);
        // The tick that the crash cuts short is tried again.
        counted["onUnknown"] = json!("Retry");
        counted["retry"]["limit"] = json!(1);
        file["schedules"] = json!([counted]);
        file["election"]["ttlMs"] = json!(TTL_MS);
    });
    let mut agents = vec![stage.agent("a").start(), stage.agent("b").start(), stage.agent("c").start()];
    stage.calls_until("10 ticks", |calls| ticks(calls).len() >= 10).await;
    let name = stage::leader(&agents).await.name().to_owned();
    let index = agents.iter().position(|agent| agent.name() == name).unwrap();
    let killed = Timestamp::now();
    agents.remove(index).kill();
    let next = |call: &&Call| call.agent != name;
    let calls = stage.calls_until("20 ticks of the next", |calls| calls.iter().filter(next).count() >= 20).await;
    let status = stage::leader(&agents).await.status().await;
    let gap = status.election.as_ref().unwrap().since.unwrap().duration_since(killed);
    println!("the next one led {gap:#} after the crash, ttl {TTL_MS} ms");
    // 100 ms after the lease, and what a busy machine takes.
    assert!(gap.as_millis() < i128::from(TTL_MS) + 1_000, "{gap:#}");
    assert_none_lost_or_doubled(&calls, status.schedules[0].skipped);
    let again: BTreeSet<_> = calls.iter().filter(|call| call.attempt > 1).map(|call| &call.key).collect();
    assert!(again.len() <= 1, "only the tick that the crash cut short is tried again: {again:?}");
    let tokens: Vec<_> = calls.iter().map(|call| call.token).collect();
    assert!(tokens.is_sorted(), "{tokens:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_leader_hands_over_and_ends_what_it_began() {
    let stage = Stage::new(3);
    stage.files.edit(|file| file["schedules"] = json!([schedule("long", 1_000)]));
    stage.answer("/long", Answer::Hang);
    let mut agents = vec![stage.agent("a").start()];
    stage::leader(&agents).await;
    agents.push(stage.agent("b").start());
    agents.push(stage.agent("c").start());
    for agent in &agents {
        agent
            .until("it stands", |status| status.election.as_ref().is_some_and(|it| it.standing && it.leader.is_some()))
            .await;
    }
    let first = stage.calls_until("the first tick", |calls| !calls.is_empty()).await.remove(0);
    let began = Timestamp::now();
    agents[0].drain();
    println!("drain took {:#}", Timestamp::now().duration_since(began));
    let next = stage::leader(&agents).await;
    assert_ne!(next.name(), "a");
    let gap = next.status().await.election.unwrap().since.unwrap().duration_since(began);
    println!("hand-over took {gap:#}");
    assert!(gap.as_millis() < 500, "far from the lease of 10 s: {gap:#}");
    let old = agents[0].status().await;
    assert!(old.draining && old.ready && !old.election.unwrap().standing);
    // The next leader waits for the run, for it goes on; the one that made the call records its result.
    let waits = |status: &AgentStatus| status.schedules[0].running == Some(first.tick());
    next.until("it waits for the run of the other", waits).await;
    stage.answer("/long", Answer::Status(200));
    let done = |status: &AgentStatus| {
        status.schedules[0].results.iter().any(|it| it.tick == first.tick() && it.verdict == Verdict::Done)
    };
    next.until("the result of the other", done).await;
    let calls = stage.calls();
    assert_eq!(calls.iter().filter(|call| call.key == first.key).count(), 1);
    agents[0].drain();
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_an_agent_in_order() {
    let stage = Stage::new(1);
    stage.files.edit(|file| file["schedules"] = json!([schedule("a", 1_000)]));
    let agents = [stage.agent("a").start(), stage.agent("b").start()];
    let name = stage::leader(&agents).await.name().to_owned();
    let [a, b] = agents;
    let (mut first, second) = if name == "a" { (a, b) } else { (b, a) };
    first.terminate();
    assert!(first.exit().await.success());
    second.until("it leads", |status| status.election.as_ref().is_some_and(|it| it.leading)).await;
    assert!(!first.try_drain(), "nobody is there to be drained");
}

fn revisions(new: &str) -> Value {
    json!({"old": {"number": 1}, "new": {"number": 2, "startups": {"migrate": new}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_task_is_done_once_and_gates_all() {
    let stage = Stage::new(3);
    stage.files.edit(|file| {
        file["schedules"] = json!([schedule("a", 200)]);
        let mut warm = startup("warm");
        warm["scope"] = json!("Instance");
        warm["after"] = json!(["migrate"]);
        file["startups"] = json!([startup("migrate"), warm]);
        file["revisions"] = revisions("r1");
    });
    stage.answer("/migrate", Answer::Hang);
    let agents = ["a", "b", "c"].map(|name| stage.agent(name).pod("new").start());
    stage.calls_until("the task", |calls| !calls.is_empty()).await;
    for agent in &agents {
        let (code, said) = agent.get("/readyz").await;
        assert_eq!(code, 503, "{said}");
        agent.until("it knows of the attempt", |status| status.startups[0].state == StartupState::Running).await;
    }
    assert!(stage.calls().iter().all(|call| call.path == "/migrate"), "no schedule and no task after it runs");
    stage.answer("/migrate", Answer::Status(200));
    for agent in &agents {
        agent.until_ready().await;
    }
    let calls = stage.calls_until("a tick", |calls| calls.iter().any(|call| call.path == "/a")).await;
    let of = |path: &str| calls.iter().filter(|call| call.path == path).collect::<Vec<_>>();
    assert_eq!(of("/migrate").len(), 1);
    assert_eq!(of("/migrate")[0].key, "\"prod/shop/migrate@r1\"");
    let warmed: BTreeSet<_> = of("/warm").into_iter().map(|call| call.agent.clone()).collect();
    assert_eq!((of("/warm").len(), warmed.len()), (3, 3), "in each pod once");
    // A pod that comes later finds it done.
    let late = stage.agent("d").pod("new").start();
    late.until_ready().await;
    assert_eq!(stage.calls().iter().filter(|call| call.path == "/migrate").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_a_crash_cut_short_is_handed_over() {
    let stage = Stage::new(3);
    stage.files.edit(|file| {
        let mut task = startup("migrate");
        task["timeoutMs"] = json!(3_000);
        task["retry"]["limit"] = json!(3);
        file["startups"] = json!([task]);
        file["revisions"] = revisions("r1");
        file["election"]["ttlMs"] = json!(TTL_MS);
    });
    stage.answer("/migrate", Answer::Hang);
    let mut agents: Vec<Agent> = ["a", "b"].map(|name| stage.agent(name).pod("new").start()).into();
    let first = stage.calls_until("the task", |calls| !calls.is_empty()).await.remove(0);
    let index = agents.iter().position(|agent| agent.name() == first.agent).unwrap();
    agents.remove(index).kill();
    stage.answer("/migrate", Answer::Status(200));
    agents[0].until_ready().await;
    let calls = stage.calls();
    assert_eq!(calls.iter().map(|call| call.attempt).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(calls[0].key, calls[1].key);
    assert_ne!(calls[0].agent, calls[1].agent);
    assert!(calls[1].at >= first.deadline(), "not before the deadline of the attempt that was cut short");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_fails_keeps_the_gate_shut_and_one_that_the_file_says_is_done_does_not() {
    let stage = Stage::new(1);
    stage.files.edit(|file| {
        file["startups"] = json!([startup("migrate")]);
        file["revisions"] = revisions("r1");
    });
    stage.answer("/migrate", Answer::Status(404));
    let agent = stage.agent("a").pod("new").start();
    let failed = |status: &AgentStatus| status.problems.iter().any(|it| it.reason == "StartupFailed");
    agent.until("the task has failed", failed).await;
    let (code, said) = agent.get("/readyz").await;
    assert_eq!(code, 503);
    assert!(said.contains("NotInThisVersion"), "{said}");
    stage.files.edit(|file| file["floor"] = json!({"token": 1_000, "startups": {"migrate": ["r1"]}}));
    agent.until_ready().await;
    let above = |status: &AgentStatus| status.election.as_ref().is_some_and(|it| it.leading && it.token > Some(1_000));
    agent.until("its token is above the floor", above).await;
    // Nor does that need Redis.
    stage.redis[0].kill();
    stage.agent("b").pod("new").start().until_ready().await;
    assert_eq!(stage.calls().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_revision_never_runs_the_task_of_the_new_one() {
    let stage = Stage::new(3);
    stage.files.edit(|file| {
        file["startups"] = json!([startup("migrate")]);
        file["revisions"] = json!({"old": {"number": 1}});
        file["schedules"] = json!([schedule("a", 200)]);
    });
    let old = ["a", "b"].map(|name| stage.agent(name).pod("old").start());
    for agent in &old {
        agent.until_ready().await;
    }
    let unknown = stage.agent("c").pod("new").start();
    let said = |status: &AgentStatus| status.problems.iter().any(|it| it.reason == "UnknownRevision");
    unknown.until("it says that its revision is not known", said).await;
    assert_eq!(unknown.get("/readyz").await.0, 503);
    assert!(!unknown.status().await.election.unwrap().standing);
    stage.files.edit(|file| file["revisions"] = revisions("r2"));
    unknown.until_ready().await;
    let agents: Vec<_> = old.into_iter().chain([unknown]).collect();
    wait::until("the newest leads", SOON, async || stage::leader(&agents).await.name() == "c").await;
    let migrated: Vec<_> =
        stage.calls().into_iter().filter(|call| call.path == "/migrate").map(|call| call.agent).collect();
    assert_eq!(migrated, ["c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_taken_up_while_it_runs_or_left_alone() {
    let stage = Stage::new(1);
    stage.files.edit(|file| file["schedules"] = json!([schedule("a", 200)]));
    let agent = stage.agent("a").start();
    stage.calls_until("a tick", |calls| calls.iter().any(|call| call.path == "/a")).await;
    let token = agent.status().await.election.unwrap().token;

    stage.files.edit(|file| {
        file["schedules"][0]["everyMs"] = json!(300);
        file["schedules"][0]["target"]["http"]["path"] = json!("/b");
    });
    let calls =
        stage.calls_until("ticks of the new text", |calls| calls.iter().filter(|it| it.path == "/b").count() > 3).await;
    let keys: BTreeSet<_> = calls.iter().map(|call| &call.key).collect();
    assert_eq!(keys.len(), calls.len(), "no tick is doubled by the edit");
    assert_eq!(agent.status().await.election.unwrap().token, token, "and nobody had to resign for it");

    stage.files.edit(|file| file["schedules"][0]["everyMs"] = json!(0));
    agent.until("the bad files are refused", |status| status.config.error.is_some()).await;
    let before = stage.calls().len();
    stage.calls_until("ticks go on by the good files", |calls| calls.len() > before + 3).await;
    assert!(agent.is_ready().await);
    stage.files.edit(|file| file["schedules"][0]["everyMs"] = json!(300));
    agent.until("the files are good again", |status| status.config.error.is_none()).await;
    assert_eq!(agent.metric(r#"cabloy_agent_reloads_total{result="taken"}"#).await, "2", "good again, and nothing new");
    assert_eq!(agent.metric(r#"cabloy_agent_reloads_total{result="refused"}"#).await, "1");

    stage.files.edit(|file| file["schedules"] = json!([]));
    agent.until("the schedule is gone", |status| status.schedules.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_secret_is_named_and_heals() {
    let redis = Redis::builder().password("right").start();
    let stage = Stage::with(vec![redis]);
    stage.files.edit(|file| file["schedules"] = json!([schedule("a", 200)]));
    let secret = stage.dir().join("secrets/password");
    stage.files.password(&secret);
    let agent = stage.agent("a").start();
    let has = |reason: &'static str| move |status: &AgentStatus| status.problems.iter().any(|it| it.reason == reason);
    agent.until("the secret is missed", has("MissingSecret")).await;
    let (code, said) = agent.get("/readyz").await;
    assert_eq!(code, 503);
    assert!(said.contains("redis/redlock/client.json[0].password"), "{said}");
    let problem = agent.status().await.problems.remove(0);
    assert_eq!(problem.path.as_deref(), secret.to_str());

    std::fs::create_dir_all(secret.parent().unwrap()).unwrap();
    std::fs::write(&secret, "wrong\n").unwrap();
    agent.until("the password is wrong", has("WrongPassword")).await;
    agent.until_ready().await;
    std::fs::write(&secret, "right\n").unwrap();
    stage.calls_until("a tick", |calls| !calls.is_empty()).await;
    agent.until("nothing is wrong", |status| status.problems.is_empty()).await;
    assert!(!agent.log().contains("right"), "no password is ever printed");
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_passwords_are_told_though_the_agent_itself_uses_none() {
    let stage = Stage::new(1);
    let secrets = stage.dir().join("secrets");
    // As kubelet does: a new folder, and the link to it in one step.
    let bring = |version: &str| {
        std::fs::create_dir_all(secrets.join(version)).unwrap();
        std::fs::write(secrets.join(version).join("password"), version).unwrap();
        std::os::unix::fs::symlink(version, secrets.join("..data_tmp")).unwrap();
        std::fs::rename(secrets.join("..data_tmp"), secrets.join("..data")).unwrap();
    };
    let agent = stage.agent("a").secrets(&secrets).start();
    let first = agent.until("files", |status| status.config.hash.is_some()).await;
    assert_eq!(first.config.secrets_at, None);
    bring("..1");
    let first = agent.until("the first ones", |status| status.config.secrets_at.is_some()).await.config;
    bring("..2");
    let second = agent.until("other ones", |status| status.config.secrets_at > first.secrets_at).await.config;
    assert_eq!(
        (second.hash, second.loaded_at),
        (first.hash, first.loaded_at),
        "it is no news for the agent's own files"
    );
    let (_, shown) = agent.get("/status").await;
    assert!(!shown.contains("..2"), "nothing is told of what they are");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_stays_ready_while_redis_is_away() {
    let stage = Stage::new(3);
    stage.files.edit(|file| {
        file["schedules"] = json!([schedule("a", 200)]);
        file["election"]["ttlMs"] = json!(TTL_MS);
    });
    let agent = stage.agent("a").start();
    stage.calls_until("a tick", |calls| !calls.is_empty()).await;
    stage.redis[0].kill();
    stage.redis[1].kill();
    agent.until("it does not lead", |status| status.election.as_ref().is_some_and(|it| !it.leading)).await;
    assert!(agent.is_ready().await);
    assert_eq!(agent.get("/healthz").await.0, 200);
    agent
        .until("both are named", |status| status.problems.iter().filter(|it| it.reason == "Unreachable").count() == 2)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_app_is_down_hands_over() {
    let stage = Stage::new(1);
    stage.files.edit(|file| file["app"]["health"] = json!({"http": {"method": "GET", "path": "/health"}}));
    stage.answer("/health", Answer::Status(200));
    let agents = [stage.agent("a").start(), stage.agent("b").start()];
    let name = stage::leader(&agents).await.name().to_owned();
    stage.answer_of(&name, "/health", Answer::Status(500));
    wait::until("the other leads", SOON, async || stage::leader(&agents).await.name() != name).await;
    let old = agents.iter().find(|agent| agent.name() == name).unwrap().status().await;
    assert!(old.problems.iter().any(|it| it.reason == "AppUnhealthy"), "{:?}", old.problems);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_app_fails_run_after_run_makes_room() {
    let stage = Stage::new(1);
    stage.files.edit(|file| file["schedules"] = json!([schedule("a", PERIOD_MS)]));
    let first = stage.agent("a").start();
    first.until("it leads", |status| status.election.as_ref().is_some_and(|it| it.leading)).await;
    stage.answer_of("a", "/a", Answer::Status(500));
    let failures = |calls: &[Call]| ticks(calls).len() >= 10;
    let calls = stage.calls_until("some failures", failures).await;
    assert!(calls.iter().all(|call| call.agent == "a"), "alone it goes on");

    // It has stepped aside in vain, and does so no more for a while.
    let second = stage.agent("b").start();
    second.until("it is well", |status| status.app.healthy).await;
    first.drain();
    stage.calls_until("the other calls", |calls| calls.iter().any(|call| call.agent == "b")).await;
    let third = stage.agent("c").start();
    third.until("it is well", |status| status.app.healthy).await;
    stage.answer_of("b", "/a", Answer::Status(500));
    let calls = stage.calls_until("a third calls", |calls| calls.iter().any(|call| call.agent == "c")).await;
    let status = third.until("it knows the schedule", |status| !status.schedules.is_empty()).await;
    assert_none_lost_or_doubled(&calls, status.schedules[0].skipped);
    assert!(second.log().contains("another agent may lead"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_a_pod_that_has_ended_is_over_by_the_operator_s_word() {
    let stage = Stage::new(1);
    stage.files.edit(|file| {
        file["election"]["ttlMs"] = json!(TTL_MS);
        file["schedules"] = json!([schedule("a", PERIOD_MS)]);
        file["schedules"][0]["timeoutMs"] = json!(600_000);
    });
    stage.answer("/a", Answer::Hang);
    let first = stage.agent("a").start();
    let calls = stage.calls_until("a call", |calls| !calls.is_empty()).await;
    let second = stage.agent("b").start();
    second.until("its app is well", |status| status.app.healthy).await;
    first.kill();
    stage.answer("/a", Answer::Status(200));
    let waits = second.until("it waits for the run of the first", |status| !status.awaits.is_empty()).await;
    let awaited: Vec<_> = waits.awaits.iter().collect();
    assert_eq!((awaited.len(), &*awaited[0].pod), (1, "a"));
    assert!(waits.schedules[0].results.is_empty(), "{:?}", waits.schedules);

    let until = awaited[0].since;
    stage.files.edit(|file| file["ended"] = json!({awaited[0].uid.as_str(): until}));
    let status = second.until("it goes on", |status| status.schedules[0].done > 0).await;
    let last = status.schedules[0].results.iter().find(|it| it.verdict == Verdict::Unknown).unwrap();
    assert_eq!((last.tick, &*last.reason), (calls[0].tick(), "PodEnded"));
    assert!(status.awaits.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_that_may_not_lead_do_not() {
    let stage = Stage::new(1);
    stage.files.edit(|file| file["revisions"] = revisions("r1"));
    let job = stage.agent("job").pod("").start();
    let web = stage.agent("web").pod("old").elect(false).start();
    for agent in [&job, &web] {
        agent.until_ready().await;
        agent.until("its app is well", |status| status.app.healthy).await;
        assert!(!agent.status().await.election.unwrap().standing, "{}", agent.name());
    }
    let leader = stage.agent("a").pod("old").start();
    leader.until("it leads", |status| status.election.as_ref().is_some_and(|it| it.leading)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_mean_what_they_say() {
    let stage = Stage::new(1);
    let names = ["retried", "refused", "running", "accepted", "gone", "failing", "slow"];
    stage.files.edit(|file| {
        let schedules = names.iter().map(|name| {
            let mut schedule = schedule(name, 1_000);
            schedule["retry"]["limit"] = json!(2);
            schedule
        });
        file["schedules"] = schedules.collect();
        file["app"]["generation"] = json!("v4");
        file["schedules"][6]["timeoutMs"] = json!(300);
    });
    stage.answer("/retried", Answer::Script(vec![Answer::Status(500), Answer::Status(503), Answer::Status(200)]));
    stage.answer("/refused", Answer::Status(404));
    stage.answer("/running", Answer::Script(vec![Answer::Status(409), Answer::Status(200)]));
    stage.answer("/accepted", Answer::Location("/jobs/1".into()));
    stage.answer("/jobs/1", Answer::Script(vec![Answer::Status(202), Answer::Status(200)]));
    stage.answer("/gone", Answer::Status(410));
    stage.answer("/failing", Answer::Body(json!({"code": 1001, "message": "no"})));
    stage.answer("/slow", Answer::Hang);
    let agent = stage.agent("a").start();
    let all =
        |status: &AgentStatus| status.schedules.len() == 7 && status.schedules.iter().all(|it| !it.results.is_empty());
    let status = agent.until("a result of each", all).await;
    let first: BTreeMap<_, _> =
        status.schedules.iter().map(|it| (it.name.as_str(), it.results.last().unwrap().clone())).collect();
    let seen = |name: &str| (first[name].verdict, first[name].reason.as_str(), first[name].attempts);
    assert_eq!(seen("retried"), (Verdict::Done, "", 3));
    assert_eq!(seen("refused"), (Verdict::Failed, "NotInThisVersion", 1));
    assert_eq!(seen("running"), (Verdict::Done, "", 1));
    assert_eq!(seen("accepted"), (Verdict::Done, "", 1));
    assert_eq!(seen("gone"), (Verdict::Failed, "Gone", 1));
    assert_eq!(seen("failing"), (Verdict::Failed, "AppFailed", 3));
    assert_eq!(seen("slow"), (Verdict::Unknown, "DeadlineExceeded", 1));
    let calls = stage.calls();
    let running: Vec<_> =
        calls.iter().filter(|call| call.path == "/running").take(2).map(|call| (&call.key, call.attempt)).collect();
    assert_eq!(running[0], running[1], "a 409 is asked again with the same key");
    assert!(calls.iter().any(|call| call.path == "/jobs/1"));
    let gone = status.schedules.iter().find(|it| it.name == "gone").unwrap();
    assert_eq!(gone.next, None);
    assert!(status.problems.iter().any(|it| it.reason == "ScheduleDisabled"), "{:?}", status.problems);
    assert_eq!(calls.iter().filter(|call| call.path == "/gone").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_records_of_what_is_over_are_removed() {
    let stage = Stage::new(3);
    stage.files.edit(|file| file["schedules"] = json!([schedule("a", 200)]));
    let agent = stage.agent("a").start();
    agent.until("20 ticks", |status| status.schedules.first().is_some_and(|it| it.done >= 20)).await;
    stage.files.edit(|file| file["schedules"][0]["suspend"] = json!(true));
    agent
        .until("it is suspended", |status| status.schedules[0].next.is_none() && status.schedules[0].running.is_none())
        .await;
    for redis in &stage.redis {
        wait::until("only the schedule's memory is left", SOON, async || {
            let left: Vec<String> = redis.run(&["HKEYS", "cabloy:{prod/shop}:records"]);
            if left == ["m/a"] { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await;
    }
}

/// The calls of a path.
fn of<'a>(calls: &'a [Call], path: &str) -> Vec<&'a Call> {
    calls.iter().filter(|call| call.path == path).collect()
}

fn assert_consecutive(calls: &[&Call], period: i64) {
    let ticks: Vec<_> =
        calls.iter().map(|call| call.tick().as_millisecond()).collect::<BTreeSet<_>>().into_iter().collect();
    assert!(ticks.windows(2).all(|pair| pair[1] - pair[0] == period), "{ticks:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ticks_wait_run_together_or_take_each_other_s_place() {
    const PERIOD: i64 = 500;
    let stage = Stage::new(3);
    stage.files.edit(|file| {
        let overlapping =
            [("one", "BufferOne"), ("buffer", "BufferAll"), ("all", "AllowAll"), ("other", "CancelOther")];
        let schedules = overlapping.map(|(name, overlap)| {
            let mut schedule = schedule(name, PERIOD);
            schedule["overlap"] = json!(overlap);
            schedule
        });
        file["schedules"] = json!(schedules);
    });
    for path in ["/one", "/buffer", "/all", "/other"] {
        stage.answer(path, Answer::Hang);
    }
    let agent = stage.agent("a").start();
    let calls = stage.calls_until("four at a time", |calls| of(calls, "/all").len() >= 4).await;
    assert_consecutive(&of(&calls, "/all"), PERIOD);
    let schedules = |status: &AgentStatus| -> BTreeMap<_, _> {
        status.schedules.iter().map(|schedule| (schedule.name.clone(), schedule.clone())).collect()
    };
    let waiting = |status: &AgentStatus| {
        let schedules = schedules(status);
        schedules.get("buffer").is_some_and(|it| it.waiting >= 3) && schedules["one"].skipped >= 2
    };
    let status = schedules(&agent.until("three wait", waiting).await);
    assert!(status["all"].runs.len() >= 4, "{:?}", status["all"]);
    assert_eq!((status["one"].waiting, status["buffer"].skipped, status["buffer"].missed), (1, 0, 0));
    let calls = stage.calls_until("four, one after another", |calls| of(calls, "/other").len() >= 4).await;
    assert_eq!((of(&calls, "/one").len(), of(&calls, "/buffer").len()), (1, 1));

    // Each takes the place of the one before, and is not called before the app has seen that one's connection end.
    let others = of(&calls, "/other");
    assert!(others.is_sorted_by_key(|call| call.tick()));
    for pair in others.windows(2) {
        let hung_up = stage.hung_up(&pair[0].key).expect("the agent hung up");
        assert!(hung_up <= pair[1].at, "{:?} {hung_up}", pair[1]);
    }
    assert!(of(&calls, "/all").iter().all(|call| stage.hung_up(&call.key).is_none()));
    let given_up = &status["other"].results[0];
    assert_eq!((given_up.verdict, given_up.reason.as_str()), (Verdict::Failed, "Cancelled"));

    for path in ["/one", "/buffer", "/all", "/other"] {
        stage.answer(path, Answer::Status(200));
    }
    let calls = stage.calls_until("what waited", |calls| of(calls, "/buffer").len() >= 6).await;
    assert_consecutive(&of(&calls, "/buffer"), PERIOD);
    let idle = |status: &AgentStatus| status.schedules.iter().all(|it| it.waiting == 0 && it.done >= 1);
    let status = agent.until("nothing waits", idle).await;
    assert!(!status.problems.iter().any(|it| it.reason == "TickFailed"), "{:?}", status.problems);
    let calls = stage.calls();
    let keys: BTreeSet<_> = calls.iter().map(|call| &call.key).collect();
    assert_eq!(keys.len(), calls.len(), "none is called twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_is_run_once_for_its_id_whoever_leads() {
    let stage = Stage::new(3);
    let asked = |ids: &[&str]| {
        let ids: Vec<_> = ids.iter().map(|id| json!({"id": id})).collect();
        stage.files.edit(|file| file["schedules"][0]["triggers"] = json!(ids));
    };
    stage.files.edit(|file| {
        file["schedules"] = json!([schedule("a", 200)]);
        file["schedules"][0]["suspend"] = json!(true);
        file["election"]["ttlMs"] = json!(TTL_MS);
    });
    let mut agents = vec![stage.agent("a").start(), stage.agent("b").start(), stage.agent("c").start()];
    asked(&["x"]);
    let calls = stage.calls_until("the run", |calls| !calls.is_empty()).await;
    assert_eq!(calls[0].key, "\"prod/shop/a@x\"");
    assert_eq!(calls[0].headers["fencing-scope"], "prod/shop/a@x");
    assert!(calls[0].at.duration_since(calls[0].tick()).as_secs_f64().abs() < 5.0, "{:?}", calls[0]);
    let done = |status: &AgentStatus| {
        status.schedules.first().and_then(|it| it.results.first()).is_some_and(|it| it.trigger.as_deref() == Some("x"))
    };
    let leader = stage::leader(&agents).await;
    leader.until("it is done", done).await;
    let name = leader.name().to_owned();
    let index = agents.iter().position(|agent| agent.name() == name).unwrap();
    agents.remove(index).kill();

    // Another leader, which is asked for another run as well, and for one that is still open when it drains.
    stage.answer("/a", Answer::Hang);
    asked(&["x", "y"]);
    stage.calls_until("the other run", |calls| calls.iter().any(|call| call.key == "\"prod/shop/a@y\"")).await;
    let leader = stage::leader(&agents).await;
    leader.drain();
    let name = leader.name().to_owned();
    let last = agents.iter().find(|agent| agent.name() != name).unwrap();
    let open = |status: &AgentStatus| {
        status.schedules.first().is_some_and(|it| it.runs.iter().any(|run| run.trigger.as_deref() == Some("y")))
    };
    last.until("it waits for the run of the other", open).await;
    asked(&[]);
    stage.answer("/a", Answer::Status(200));
    last.until("it is done", |status| status.schedules.first().is_some_and(|it| it.done == 2)).await;

    // Put in again, and with a new one.
    asked(&["x", "y", "z"]);
    stage.calls_until("the new one", |calls| calls.iter().any(|call| call.key == "\"prod/shop/a@z\"")).await;
    last.until("it is done", |status| status.schedules.first().is_some_and(|it| it.done == 3)).await;
    let keys: Vec<_> = stage.calls().into_iter().map(|call| call.key).collect();
    assert_eq!(keys, ["x", "y", "z"].map(|id| format!("\"prod/shop/a@{id}\"")), "once each");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_is_run_tick_by_tick_whoever_leads() {
    let stage = Stage::new(3);
    stage.files.edit(|file| {
        let mut hourly = schedule("hourly", 3_600_000);
        hourly["backfills"] = json!([{"id": "b", "from": "2026-01-01T00:00:00Z", "to": "2026-01-01T03:00:00Z"}]);
        file["schedules"] = json!([hourly]);
    });
    stage.answer("/hourly", Answer::Script(vec![Answer::Status(500), Answer::Hang]));
    let agents = [stage.agent("a").start(), stage.agent("b").start()];
    let calls = stage.calls_until("the second tick", |calls| calls.len() >= 2).await;
    let leader = stage::leader(&agents).await;
    leader.drain();
    let next = agents.iter().find(|agent| agent.name() != leader.name()).unwrap();
    let open = |status: &AgentStatus| {
        status.schedules.first().is_some_and(|it| it.runs.iter().any(|run| run.backfill.as_deref() == Some("b")))
    };
    next.until("it waits for the run of the other", open).await;
    assert_eq!(stage.calls().len(), calls.len());
    stage.answer("/hourly", Answer::Status(200));
    let over = |status: &AgentStatus| status.schedules.first().is_some_and(|it| (it.done, it.failed) == (2, 1));
    let status = next.until("all are over", over).await;
    assert!(status.schedules[0].runs.is_empty());
    let calls = stage.calls();
    let keys: Vec<_> = calls.iter().map(|call| call.key.as_str()).collect();
    assert_eq!(keys, [0, 1, 2].map(|hour| format!("\"prod/shop/hourly@2026-01-01T0{hour}:00:00Z~b\"")));
    assert!(calls.iter().all(|call| call.key.contains(&call.headers["ce-time"])), "ce-time is the tick");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_pauses_a_schedule_until_it_is_triggered() {
    let stage = Stage::new(1);
    stage.files.edit(|file| {
        file["schedules"] = json!([schedule("a", 200)]);
        file["schedules"][0]["pauseOnFailure"] = json!(true);
    });
    stage.answer("/a", Answer::Script(vec![Answer::Status(200), Answer::Status(200), Answer::Status(500)]));
    let agent = stage.agent("a").start();
    let paused = |status: &AgentStatus| status.problems.iter().any(|it| it.reason == "SchedulePaused");
    let status = agent.until("it is paused", paused).await;
    assert!(status.schedules[0].paused && status.schedules[0].next.is_none());
    let said = &status.problems.iter().find(|it| it.reason == "SchedulePaused").unwrap().message;
    assert!(said.contains("ServerError") && said.contains("trigger"), "{said}");
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(stage.calls().len(), 3);

    stage.answer("/a", Answer::Status(200));
    let triggered = Timestamp::now();
    stage.files.edit(|file| file["schedules"][0]["triggers"] = json!([{"id": "again"}]));
    let calls = stage.calls_until("ticks", |calls| calls.len() >= 7).await;
    assert_eq!(calls[3].key, "\"prod/shop/a@again\"");
    assert!(calls[4..].iter().all(|call| call.tick() >= triggered), "what fell due meanwhile is not caught up");
    agent.until("nothing is wrong", |status| status.problems.is_empty() && !status.schedules[0].paused).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_tick_takes_the_place_of_a_run_that_another_agent_began() {
    let stage = Stage::new(3);
    stage.files.edit(|file| {
        file["schedules"] = json!([schedule("a", 3_000)]);
        file["schedules"][0]["overlap"] = json!("CancelOther");
        file["schedules"][0]["timeoutMs"] = json!(600_000);
    });
    stage.answer_of("a", "/a", Answer::Hang);
    let first = stage.agent("a").start();
    first.until("it leads", |status| status.election.as_ref().is_some_and(|it| it.leading)).await;
    let second = stage.agent("b").start();
    second.until("it stands", |status| status.election.as_ref().is_some_and(|it| it.standing)).await;
    stage.calls_until("a tick", |calls| !calls.is_empty()).await;
    first.drain();
    let calls = stage.calls_until("a tick of the other", |calls| calls.iter().any(|it| it.agent == "b")).await;
    let by = |agent: &'static str| calls.iter().filter(move |call| call.agent == agent);
    let (old, new) = (by("a").next_back().unwrap(), by("b").next().unwrap());
    assert!(new.tick() > old.tick() && new.at < old.deadline());
    assert!(stage.hung_up(&old.key).is_none(), "what another agent calls is not cut short");
    let given_up = |status: &AgentStatus| {
        let results = status.schedules.first().map(|it| it.results.clone()).unwrap_or_default();
        results.iter().any(|it| it.tick == old.tick() && it.reason == "Cancelled")
    };
    second.until("the run of the other is given up", given_up).await;
    stage.answer_of("a", "/a", Answer::Status(200));
    let status = second.until("some more", |status| status.schedules[0].done >= 2).await;
    assert_eq!(status.schedules[0].results.iter().filter(|it| it.tick == old.tick()).count(), 1);
}
