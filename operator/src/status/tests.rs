use std::{collections::BTreeMap, sync::Arc};

use cabloy_crds::{
    agent_status::{ElectionStatus, MasterStatus, SigningStatus, TickResult},
    resource::WorkloadKind,
};
use serde_json::{Value, json};

use super::*;
use crate::{
    agents::AgentPod,
    build::Blocked,
    validate::tests::{identity, sound},
};

fn now() -> Timestamp {
    "2026-01-02T03:04:05.678Z".parse().unwrap()
}

fn live(ready: i64) -> Live {
    Live(json!({
        "metadata": { "generation": 2, "uid": "w" },
        "spec": { "replicas": 2 },
        "status": { "observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": ready },
    }))
}

fn applied(outcome: Outcome) -> Applied {
    let reference = WorkloadRef { kind: WorkloadKind::Deployment, name: "web".into() };
    Applied { workloads: vec![(reference, outcome)], agent_files: None, signing_refused: None, writes: 0 }
}

fn rolled_out() -> Applied {
    applied(Outcome::Applied { live: live(2), notes: Vec::new() })
}

fn pod(name: &str) -> AgentPod {
    AgentPod {
        name: name.into(),
        uid: format!("uid-of-{name}"),
        cluster: "mall".into(),
        namespace: "prod".into(),
        ip: None,
        scheduled: true,
        terminating: false,
        agent_image: Some("agent:1".into()),
        agent_runs: true,
        synced: None,
        secrets: None,
        started: BTreeMap::new(),
        boot: None,
    }
}

fn agent(name: &str) -> AgentStatus {
    AgentStatus {
        pod: name.into(),
        ready: true,
        election: Some(ElectionStatus::default()),
        signing: SigningStatus { keys: 1 },
        startups: vec![warm()],
        ..AgentStatus::default()
    }
}

/// The task of every pod of an app of generation v4.
fn warm() -> agent_status::StartupStatus {
    agent_status::StartupStatus {
        name: "warm-up".into(),
        revision: String::new(),
        state: StartupState::Done,
        attempt: 1,
        deadline: None,
        message: String::new(),
    }
}

fn leader(name: &str) -> AgentStatus {
    let election = ElectionStatus { leading: true, standing: true, token: Some(9), ..ElectionStatus::default() };
    AgentStatus { election: Some(election), ..agent(name) }
}

fn found(agents: Vec<AgentStatus>) -> Found {
    let pods = agents.iter().map(|agent| pod(&agent.pod)).collect();
    let reports = agents
        .into_iter()
        .map(|agent| (format!("uid-of-{}", agent.pod), Report::Answered(Arc::new(agent))))
        .collect::<BTreeMap<_, _>>();
    Found { pods, reports, ..Found::default() }
}

fn status_of(spec: &Value, found: &Found, applied: &Applied) -> CabloyClusterStatus {
    compute(&identity(), found, &Result::Applied(&sound(spec), applied), None, now())
}

fn condition<'a>(status: &'a CabloyClusterStatus, type_: &str) -> &'a Condition {
    status
        .conditions
        .iter()
        .find(|condition| condition.type_ == type_)
        .unwrap_or_else(|| panic!("no {type_} in {status:#?}"))
}

fn triple(status: &CabloyClusterStatus) -> [String; 3] {
    ["Ready", "Reconciling", "Stalled"].map(|type_| {
        let condition = condition(status, type_);
        format!("{}:{}", condition.status, condition.reason)
    })
}

fn problem(reason: &str, path: &str) -> Problem {
    Problem { reason: reason.into(), message: "what is wrong".into(), path: Some(path.into()) }
}

#[test]
fn all_is_well() {
    let status = status_of(&json!({}), &found(vec![agent("web-0"), leader("web-1")]), &rolled_out());
    assert_eq!(triple(&status), ["True:Ready", "False:Done", "False:Done"]);
    assert_eq!(status.leader.as_ref().map(|leader| (leader.pod.as_str(), leader.token)), Some(("web-1", 9)));
    assert_eq!(status.observed_generation, Some(7));
    assert_eq!(condition(&status, "Ready").last_transition_time.0.to_string(), "2026-01-02T03:04:05Z");
    assert!(turned(None, &status).iter().all(|condition| condition.reason == "Ready"));
}

#[test]
fn kstatus_tells_what_time_mends_from_what_people_must() {
    let agents = found(vec![leader("web-0")]);
    let rolling = status_of(&json!({}), &agents, &applied(Outcome::Applied { live: live(1), notes: Vec::new() }));
    assert_eq!(triple(&rolling), ["False:RollingOut", "True:RollingOut", "False:InProgress"]);
    let blocked = status_of(&json!({}), &agents, &applied(Outcome::Left(Blocked::AlreadyClaimed("other".into()))));
    assert_eq!(triple(&blocked), ["False:AlreadyClaimed", "False:Blocked", "True:AlreadyClaimed"]);
    assert_eq!(blocked.workloads[0].state, "AlreadyClaimed");
    let leaderless = status_of(&json!({}), &found(vec![agent("web-0")]), &rolled_out());
    assert_eq!(triple(&leaderless)[1], "True:NoLeader");
    let nobody = status_of(&json!({}), &Found::default(), &rolled_out());
    assert_eq!(triple(&nobody), ["False:NoAgents", "True:NoAgents", "False:InProgress"]);
}

#[test]
fn the_guard_says_what_it_sees_and_does() {
    use cabloy_crds::agent_status::{GuardStatus, PutBackStatus};
    const TYPE: &str = "NativeSchedulesGuarded";
    let spec = json!({ "nativeSchedules": "Guard" });
    let of = |put_back: u64, rolling: bool| {
        let last = PutBackStatus {
            queue: "-||a-base||schedule".into(),
            key: ".shop.s::::3000".into(),
            at: now(),
            next: now(),
        };
        let last = if put_back > 0 { vec![last] } else { vec![] };
        let guard = GuardStatus { rolling, queues: 2, schedules: 6, put_back, last, trimmed: 0 };
        status_of(&spec, &found(vec![AgentStatus { guard: Some(guard), ..leader("web-0") }]), &rolled_out())
    };
    let (before, after) = (of(0, true), of(3, true));
    let said = condition(&after, TYPE);
    assert_eq!((&*said.status, &*said.reason), ("True", "Guarded"));
    assert!(said.message.contains("6 schedules in the queues of 2 instances: what pods"), "{}", said.message);
    assert!(!condition(&of(3, false), TYPE).message.contains("what pods"));
    assert_eq!(news(Some(&before), &after), News::Ticks);
    assert_eq!(news(Some(&after), &of(3, false)), News::Urgent);
    let note = put_back(Some(&before), &after).unwrap();
    assert!(note.contains("3 times one was put back") && note.contains(".shop.s::::3000"), "{note}");
    assert_eq!((put_back(Some(&after), &after), put_back(None, &after)), (None, None));

    let reason = |agents, spec: &Value| {
        let status = status_of(spec, &found(agents), &rolled_out());
        let condition = condition(&status, TYPE);
        format!("{}:{}", condition.status, condition.reason)
    };
    let mut unwell = leader("web-0");
    unwell.problems = vec![problem("NotGuarded", "")];
    assert_eq!(reason(vec![unwell], &spec), "False:NotGuarded");
    assert_eq!(reason(vec![leader("web-0")], &spec), "Unknown:Starting");
    assert_eq!(reason(vec![agent("web-0")], &spec), "Unknown:NoLeader");
    let vona = json!({ "nativeSchedules": "Guard", "app": { "name": "shop", "generation": "vona" } });
    assert_eq!(reason(vec![leader("web-0")], &vona), "Unknown:Starting");
    let off = status_of(&json!({}), &found(vec![leader("web-0")]), &rolled_out());
    assert!(off.conditions.iter().all(|condition| condition.type_ != TYPE));
}

#[test]
fn each_problem_has_its_condition_and_is_said_once() {
    let missing = problem("MissingSecret", "/etc/cabloy/secrets/default/password");
    let wrong = problem("WrongPassword", "redis:6379");
    let evicts = problem("RedisConfiguration", "redis:6379");
    let tick = problem("TickFailed", "schedules[tick]");
    let lost = problem("StateLost", "");
    let with = |mut agent: AgentStatus| {
        let master = |problem: &Problem| MasterStatus {
            address: "redis:6379".into(),
            reachable: false,
            problem: Some(problem.clone()),
        };
        agent.problems = vec![missing.clone(), wrong.clone(), evicts.clone(), tick.clone(), lost.clone()];
        if let Some(election) = &mut agent.election {
            election.masters = vec![master(&wrong), master(&evicts)];
        }
        agent
    };
    let status = status_of(&json!({}), &found(vec![with(agent("web-0")), with(leader("web-1"))]), &rolled_out());
    for (type_, reason) in [
        ("CredentialsAvailable", "MissingSecret"),
        ("RedisReachable", "WrongPassword"),
        ("RedisConfigured", "RedisConfiguration"),
        ("StateKept", "StateLost"),
        ("SchedulesHealthy", "TickFailed"),
    ] {
        let condition = condition(&status, type_);
        assert_eq!((condition.status.as_str(), condition.reason.as_str()), ("False", reason), "{type_}");
    }
    assert_eq!(condition(&status, "AgentsHealthy").status, "True", "nothing is said twice");
    let message = &condition(&status, "RedisReachable").message;
    assert_eq!(message, "redis:6379: what is wrong (pod web-0 and 1 more)");
    assert_eq!(condition(&status, "Ready").reason, "MissingSecret", "advice alone makes nothing unready");
}

#[test]
fn calls_that_are_not_signed_are_told_and_make_nothing_unready() {
    let of = |agents: Vec<AgentStatus>, refused: Option<&str>| {
        let applied = Applied { signing_refused: refused.map(str::to_owned), ..rolled_out() };
        let status = status_of(&json!({}), &found(agents), &applied);
        assert_eq!(condition(&status, "AgentsHealthy").status, "True", "nothing is said twice");
        assert_eq!(condition(&status, "Ready").status, "True");
        let condition = condition(&status, "CallsSigned");
        (condition.reason.clone(), condition.message.clone())
    };
    let with = |problem: Option<Problem>| AgentStatus {
        signing: SigningStatus::default(),
        problems: problem.into_iter().collect(),
        ..leader("web-0")
    };
    assert_eq!(of(vec![leader("web-0")], Some("no right")).0, "Signed", "somebody else has made the key");
    let missing = Some(problem("MissingSigningKey", "/etc/cabloy/signing/key"));
    assert_eq!(
        of(vec![with(missing.clone())], None),
        ("MissingSigningKey".into(), "/etc/cabloy/signing/key: what is wrong (pod web-0)".into())
    );
    assert!(of(vec![with(missing)], Some("no right")).1.ends_with("may make no Secret for it: no right"));
    let invalid = Some(problem("InvalidSigningKey", "/etc/cabloy/signing/key"));
    assert_eq!(of(vec![with(invalid)], None).0, "InvalidSigningKey");
    let (reason, message) = of(vec![with(None), agent("web-1")], None);
    assert_eq!(reason, "NotSigned");
    assert!(message.contains("web-0") && message.contains("agent.version"), "{message}");
}

#[test]
fn traces_that_do_not_arrive_are_told_and_make_nothing_unready() {
    let tracing = json!({ "agent": { "tracing": { "endpoint": "http://otel:4318" } } });
    let of = |spec: &Value, problems: Vec<Problem>| {
        let agents = found(vec![AgentStatus { problems, ..leader("web-0") }]);
        let status = status_of(spec, &agents, &rolled_out());
        assert_eq!(condition(&status, "Ready").status, "True");
        status
            .conditions
            .iter()
            .find(|it| it.type_ == "TracesExported")
            .map(|it| (it.status.clone(), it.reason.clone()))
    };
    let pair = |status: &str, reason: &str| Some((status.to_owned(), reason.to_owned()));
    assert_eq!(of(&json!({}), vec![]), None);
    assert_eq!(of(&tracing, vec![]), pair("True", "Fine"));
    let away = problem("SpansNotExported", "agent.json: tracing.endpoint");
    assert_eq!(of(&tracing, vec![away]), pair("False", "SpansNotExported"));
}

#[test]
fn an_agent_that_does_not_answer_is_named() {
    let mut found = found(vec![leader("web-0")]);
    found.pods.push(pod("web-1"));
    found.reports.insert("uid-of-web-1".into(), Report::Failed("no answer within 1 s".into()));
    let status = status_of(&json!({}), &found, &rolled_out());
    let reachable = condition(&status, "AgentsReachable");
    assert_eq!(reachable.reason, "NoAnswer");
    assert!(
        reachable.message.contains("web-1: no answer") && reachable.message.contains("network policy"),
        "{}",
        reachable.message
    );
}

#[test]
fn refused_keeps_what_was_said_of_the_work() {
    let before = status_of(&json!({}), &found(vec![leader("web-0")]), &rolled_out());
    let refusals = [Refusal::unsupported("redis.connections.default.tls", "TLS is not supported yet")];
    let status = compute(&identity(), &found(vec![leader("web-0")]), &Result::Refused(&refusals), Some(&before), now());
    assert_eq!(triple(&status), ["False:NotSupportedYet", "False:Blocked", "True:NotSupportedYet"]);
    assert_eq!(status.workloads, before.workloads);
    assert_eq!(status.leader, before.leader);
    let turned: Vec<_> = turned(Some(&before), &status).iter().map(|condition| condition.type_.clone()).collect();
    assert_eq!(turned, ["Accepted"], "one Event, not one for each summary");
}

#[test]
fn times_move_only_when_the_answer_does() {
    let one = status_of(&json!({}), &found(vec![agent("web-0")]), &rolled_out());
    let later = now() + jiff::SignedDuration::from_secs(60);
    let same = compute(
        &identity(),
        &found(vec![agent("web-0")]),
        &Result::Applied(&sound(&json!({})), &rolled_out()),
        Some(&one),
        later,
    );
    assert_eq!(news(Some(&one), &same), News::None);
    let elected = compute(
        &identity(),
        &found(vec![leader("web-0")]),
        &Result::Applied(&sound(&json!({})), &rolled_out()),
        Some(&one),
        later,
    );
    assert_eq!(news(Some(&one), &elected), News::Urgent);
    let time = |status: &CabloyClusterStatus, type_: &str| condition(status, type_).last_transition_time.0;
    assert_eq!(time(&elected, "RolledOut"), time(&one, "RolledOut"));
    assert!(time(&elected, "LeaderElected") > time(&one, "LeaderElected"));
}

#[test]
fn ticks_are_no_urgent_news_and_failures_are() {
    let with = |tick: &str, failed: u64| {
        let tick: Timestamp = tick.parse().unwrap();
        let schedule = agent_status::ScheduleStatus {
            name: "tick".into(),
            created: tick,
            next: Some(tick),
            running: None,
            runs: vec![],
            waiting: 0,
            waits_for: None,
            paused: false,
            results: vec![TickResult {
                tick,
                trigger: None,
                backfill: None,
                verdict: Verdict::Done,
                reason: String::new(),
                message: String::new(),
                attempts: 1,
                at: tick,
            }],
            done: 5,
            failed,
            skipped: 0,
            missed: 0,
        };
        let agent = AgentStatus { schedules: vec![schedule], ..leader("web-0") };
        status_of(&json!({}), &found(vec![agent]), &rolled_out())
    };
    let before = with("2026-01-01T00:00:00Z", 0);
    assert_eq!(before.schedules[0].last_result.as_deref(), Some("Done"));
    assert_eq!(news(Some(&before), &with("2026-01-01T00:00:05Z", 0)), News::Ticks);
    assert_eq!(news(Some(&before), &with("2026-01-01T00:00:05Z", 1)), News::Urgent);
}

#[test]
fn what_a_takeover_waits_for_is_said() {
    let spec = json!({ "schedules": [
        { "name": "night", "every": "5s", "takesOver": "m.night", "target": { "http": { "path": "/" } } },
    ] });
    let with = |waits_for: Option<&str>, pods_wait: bool| {
        let schedule = json!({
            "name": "night", "created": "2026-01-01T00:00:00Z", "waitsFor": waits_for, "results": [], "done": 0, "failed": 0,
            "skipped": 0, "missed": 0,
        });
        let agent = AgentStatus { schedules: vec![serde_json::from_value(schedule).unwrap()], ..leader("web-0") };
        let mut found = found(vec![agent]);
        if !pods_wait {
            found.pods.iter_mut().for_each(|pod| pod.boot = Some("b".into()));
            let map = json!({ "metadata": { "annotations": { "cabloy.io/takes-over": "m.night" } } });
            found.config_maps.insert("b".into(), serde_json::from_value(map).unwrap());
        }
        let status = status_of(&spec, &found, &rolled_out());
        let said = condition(&status, "SchedulesTakenOver").clone();
        assert_eq!(status.schedules[0].waits_for.as_deref(), waits_for);
        assert_eq!(triple(&status)[0], "True:Ready", "it makes nothing unready");
        (said.status, said.reason, said.message)
    };
    let (status, reason, message) = with(Some("the operator"), true);
    assert_eq!((&*status, &*reason), ("False", "WaitingForPods"));
    assert!(message.contains("night waits until nothing runs m.night any more: pod web-0"), "{message}");
    let (status, reason, message) = with(Some("the app to end its jobs of m.night: repeat:1:2"), false);
    assert_eq!((&*status, &*reason), ("False", "WaitingForJobs"));
    assert!(message.contains("repeat:1:2"), "{message}");
    let (status, reason, message) = with(None, true);
    assert_eq!((&*status, &*reason), ("False", "NativeIsBack"));
    assert!(message.contains("m.night may be run by the app and by night: pod web-0"), "{message}");
    let (status, reason, _) = with(None, false);
    assert_eq!((&*status, &*reason), ("True", "TakenOver"));
    let nobody = status_of(&spec, &Found::default(), &rolled_out());
    assert_eq!(condition(&nobody, "SchedulesTakenOver").reason, "NoLeader");
    assert!(
        status_of(&json!({}), &Found::default(), &rolled_out())
            .conditions
            .iter()
            .all(|it| it.type_ != "SchedulesTakenOver")
    );
}

#[test]
fn a_held_resource_keeps_its_other_conditions() {
    let before = status_of(&json!({}), &found(vec![leader("web-0")]), &rolled_out());
    let paused = held(&identity(), "Paused", "remove it", Some(&before), now());
    assert_eq!(triple(&paused), ["Unknown:Paused", "False:Paused", "False:Paused"]);
    assert_eq!(condition(&paused, "LeaderElected"), condition(&before, "LeaderElected"));
    assert_eq!(paused.conditions.len(), before.conditions.len());
}

#[test]
fn what_was_asked_for_and_cannot_be_done_is_said_with_the_schedules() {
    let mut validated = sound(&json!({}));
    validated.bad_triggers.push(Refusal::Invalid { field: "cabloy.io/trigger".into(), message: "no id".into() });
    let of = |found: &Found| {
        let status = compute(&identity(), found, &Result::Applied(&validated, &rolled_out()), None, now());
        let said = condition(&status, "SchedulesHealthy").clone();
        assert_eq!((said.status.as_str(), said.reason.as_str()), ("False", "BadTrigger"));
        assert!(turned(None, &status).iter().any(|it| it.reason == "BadTrigger" && is_alarming(it)), "an Event");
        said.message
    };
    assert_eq!(of(&Found::default()), "cabloy.io/trigger: no id");
    let paused = AgentStatus { problems: vec![problem("SchedulePaused", "schedules.a")], ..leader("web-0") };
    assert!(of(&found(vec![paused])).contains("what is wrong"), "and what else there is to say");
    let ready =
        compute(&identity(), &found(vec![leader("web-0")]), &Result::Applied(&validated, &rolled_out()), None, now());
    assert_eq!(triple(&ready)[0], "True:Ready", "it makes nothing unready");
}
