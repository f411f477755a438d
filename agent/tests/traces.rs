//! Traces of runs, as the code of an OpenTelemetry collector reads them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use cabloy_tests::port::free_port;
use cabloy_tests::process::{Process, bound};
use cabloy_tests::{tools, wait};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use stage::{Answer, Call, SOON, Stage, schedule, startup};
use tokio::net::{TcpListener, TcpStream};

/// A span, as the collector has read it.
#[derive(Clone, Debug, Deserialize)]
struct Span {
    service: String,
    pod: String,
    trace: String,
    id: String,
    parent: String,
    name: String,
    kind: String,
    /// In microseconds.
    start: i64,
    end: i64,
    flags: u32,
    status: String,
    message: String,
    attributes: BTreeMap<String, Value>,
}

impl Span {
    fn is_root(&self) -> bool {
        self.parent.is_empty()
    }
}

/// A collector; it ends with the test.
struct Collector {
    port: u16,
    log: PathBuf,
    busy: PathBuf,
    _process: Process,
}

impl Collector {
    async fn start(stage: &Stage) -> Self {
        let (port, log, busy) = (free_port().unwrap(), stage.dir().join("collector"), stage.dir().join("busy"));
        let mut command = bound(tokio::task::spawn_blocking(tools::collector).await.unwrap().unwrap());
        command.arg(format!("127.0.0.1:{port}")).arg(&busy);
        let process = Process::spawn("collector", command, &log).unwrap();
        wait::until("the collector to listen", SOON, async || TcpStream::connect(("127.0.0.1", port)).await).await;
        Self { port, log, busy, _process: process }
    }

    fn spans(&self) -> Vec<Span> {
        let text = fs::read_to_string(&self.log).unwrap();
        let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
    }

    /// The spans, once they are as `enough` wants them.
    async fn until(&self, what: &str, mut enough: impl FnMut(&[Span]) -> bool) -> Vec<Span> {
        wait::until(what, SOON, async || {
            let spans = self.spans();
            if enough(&spans) { Ok(spans) } else { Err(format!("{spans:#?}")) }
        })
        .await
    }
}

fn tracing_to(port: u16) -> Value {
    json!({"endpoint": format!("http://127.0.0.1:{port}"), "sampleRatio": 1.0})
}

/// Trace and span of a call, as the app was told.
fn parent_of(call: &Call) -> (String, String) {
    let parts: Vec<_> = call.headers["traceparent"].split('-').collect();
    assert_eq!((parts[0], parts[3]), ("00", "01"), "{parts:?}");
    (parts[1].to_owned(), parts[2].to_owned())
}

fn roots(spans: &[Span]) -> impl Iterator<Item = &Span> {
    spans.iter().filter(|span| span.is_root())
}

/// The spans of the run that a call belongs to: its root, and the call's own.
fn spans_of<'a>(spans: &'a [Span], call: &Call) -> (&'a Span, &'a Span) {
    let (trace, parent) = parent_of(call);
    let of_trace: Vec<_> = spans.iter().filter(|span| span.trace == trace).collect();
    let roots: Vec<_> = of_trace.iter().filter(|span| span.is_root()).collect();
    assert_eq!(roots.len(), 1, "{}: {of_trace:#?}", call.key);
    let own = of_trace.iter().find(|span| span.id == parent);
    let own = own.unwrap_or_else(|| panic!("the app's parent {parent} is not among {of_trace:#?}"));
    for span in &of_trace {
        assert!(span.is_root() || span.parent == roots[0].id, "{span:?}");
        assert_eq!((span.service.as_str(), span.flags), ("cabloy-agent", 1));
        assert!(span.start <= span.end, "{span:?}");
    }
    (roots[0], own)
}

#[tokio::test]
async fn each_run_is_one_trace_and_its_call_the_parent_of_what_the_app_does() {
    let stage = Stage::new(3);
    let collector = Collector::start(&stage).await;
    stage.files.edit(|file| {
        file["tracing"] = tracing_to(collector.port);
        let mut retried = schedule("retried", 500);
        retried["retry"]["limit"] = json!(1);
        let mut refused = schedule("refused", 1_000);
        refused["target"]["http"]["path"] = json!("/refused?token=secret");
        file["schedules"] = json!([schedule("tick", 200), retried, refused]);
        let mut own = startup("warm");
        own["scope"] = json!("Instance");
        file["startups"] = json!([startup("migrate"), own]);
    });
    stage.answer("/retried", Answer::Script([500, 200].repeat(500).into_iter().map(Answer::Status).collect()));
    stage.answer("/refused", Answer::Status(404));
    let mut agent = stage.agent("a").start();
    let names = ["schedule tick", "schedule retried", "schedule refused", "startup migrate", "startup warm"];
    let seen = |spans: &[Span]| {
        let all = names.iter().all(|name| roots(spans).any(|span| span.name == *name));
        all && roots(spans).filter(|span| span.name == names[0]).count() >= 10
    };
    collector.until("a root of each kind, and ten of ticks", seen).await;
    let claims = agent.metric(r#"cabloy_agent_ledger_operations_total{operation="claim",result="ok"}"#).await;
    assert!(claims.parse::<u64>().unwrap() > 10, "{claims}");
    let rounds = agent.metric(r#"cabloy_agent_ledger_duration_seconds_count{operation="finish"}"#).await;
    assert!(rounds.parse::<u64>().unwrap() > 10, "{rounds}");
    // What has ended when the agent ends is exported all the same.
    agent.terminate();
    assert!(agent.exit().await.success());
    let (spans, calls) = (collector.spans(), stage.calls());
    assert!(calls.len() > 20, "{}", calls.len());

    let whole = |call: &&Call| spans.iter().any(|span| span.is_root() && span.trace == parent_of(call).0);
    let traced: Vec<_> = calls.iter().filter(whole).collect();
    assert!(calls.len() - traced.len() <= 3, "all but the runs that were open at the end");
    let keys: BTreeSet<_> = traced.iter().map(|call| &call.key).collect();
    assert_eq!(roots(&spans).count(), keys.len(), "one trace a run");
    for call in &traced {
        let (root, own) = spans_of(&spans, call);
        let of_trace: Vec<_> = spans.iter().filter(|span| span.trace == root.trace).collect();
        let count = |name: &str| of_trace.iter().filter(|span| span.name == name).count();
        let path = &call.path;
        assert_eq!(own.name, format!("POST {path}"));
        assert_eq!((own.kind.as_str(), root.kind.as_str()), ("Client", "Internal"));
        assert_eq!(own.attributes["cabloy.attempt"], call.attempt);
        assert_eq!(own.attributes["url.path"], path.as_str(), "and no query");
        assert_eq!(root.pod, "a");
        assert_eq!(root.attributes["cabloy.cluster"], "prod/shop");
        assert!(root.start <= own.start && own.end <= root.end, "{root:?} {own:?}");
        let attempts = calls.iter().filter(|it| it.key == call.key).count();
        assert_eq!(root.attributes["cabloy.attempts"], attempts);
        if path == "/warm" {
            assert_eq!((count("claim"), count("record")), (0, 0), "it is in no ledger");
            assert_eq!(root.attributes["cabloy.startup"], "warm");
            continue;
        }
        assert_eq!(
            (count("claim"), count("record"), count(&own.name)),
            (attempts, attempts, attempts),
            "{of_trace:#?}"
        );
        assert_eq!(root.attributes["cabloy.fencing_token"], call.token.unwrap());
        if path == "/migrate" {
            assert_eq!(
                (&root.attributes["cabloy.startup"], &root.attributes["cabloy.revision"]),
                (&json!("migrate"), &json!("none"))
            );
            continue;
        }
        let tick: Timestamp = call.headers["ce-time"].parse().unwrap();
        assert_eq!(root.start, tick.as_microsecond(), "it begins when it was due");
        assert_eq!(root.attributes["cabloy.tick"], tick.to_string());
        assert!(root.attributes["cabloy.lateness"].as_f64().unwrap() >= 0.0);
        let (verdict, status) = if path == "/refused" { ("Failed", "Error") } else { ("Done", "Unset") };
        assert_eq!((&root.attributes["cabloy.verdict"], root.status.as_str()), (&json!(verdict), status));
        if path == "/refused" {
            assert_eq!(root.attributes["error.type"], "NotInThisVersion");
            assert!(root.message.starts_with("NotInThisVersion: 404"), "{}", root.message);
        }
        let failed = path == "/refused" || path == "/retried" && call.attempt == 1;
        assert_eq!(own.status, if failed { "Error" } else { "Unset" });
    }
    assert!(traced.iter().any(|call| call.path == "/retried" && call.attempt == 2));
    let all = format!("{spans:?}");
    assert!(!all.contains("secret"), "a query may hold anything");
}

#[tokio::test]
async fn attempts_of_several_leaders_are_in_one_trace() {
    let stage = Stage::new(3);
    let collector = Collector::start(&stage).await;
    stage.files.edit(|file| {
        file["tracing"] = tracing_to(collector.port);
        file["election"]["ttlMs"] = json!(1_000);
        let mut slow = schedule("slow", 1_000);
        slow["timeoutMs"] = json!(2_000);
        slow["onUnknown"] = json!("Retry");
        slow["retry"]["limit"] = json!(1);
        file["schedules"] = json!([slow]);
    });
    stage.answer_of("a", "/slow", Answer::Hang);
    let first = stage.agent("a").start();
    let calls = stage.calls_until("the first attempt", |calls| !calls.is_empty()).await;
    let key = calls[0].key.clone();
    let _second = stage.agent("b").start();
    first.kill();
    let again = |calls: &[Call]| calls.iter().any(|it| it.key == key && it.agent == "b");
    let calls = stage.calls_until("the second attempt", again).await;
    let [first, second] = ["a", "b"].map(|agent| calls.iter().find(|it| it.key == key && it.agent == agent).unwrap());
    assert_eq!((first.attempt, second.attempt), (1, 2));
    let ((one, span), (other, another)) = (parent_of(first), parent_of(second));
    assert_eq!(one, other);
    assert_ne!(span, another);
    let spans = collector.until("the root", |spans| roots(spans).any(|root| root.trace == one)).await;
    let (root, own) = spans_of(&spans, second);
    assert_eq!((root.pod.as_str(), own.pod.as_str()), ("b", "b"));
    assert_eq!(root.attributes["cabloy.attempts"], 2);
}

/// The ticks that were called, of which none was left out.
fn assert_no_tick_is_missing(calls: &[Call], every: i64) {
    let ticks: BTreeSet<_> = calls.iter().map(|call| call.tick().as_millisecond()).collect();
    assert_eq!(ticks.len(), calls.len(), "none is called twice");
    for (one, next) in ticks.iter().zip(ticks.iter().skip(1)) {
        assert_eq!(next - one, every, "{ticks:?}");
    }
}

#[tokio::test]
async fn a_collector_that_is_away_costs_no_tick_and_is_taken_up_while_the_agent_runs() {
    const EVERY: i64 = 200;
    const DROPPED: &str = r#"cabloy_agent_spans_total{result="dropped"}"#;
    let stage = Stage::new(3);
    // Connections are made, and nothing is ever answered.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    stage.files.edit(|file| {
        file["tracing"] = tracing_to(silent.local_addr().unwrap().port());
        let mut tick = schedule("tick", EVERY);
        tick["overlap"] = json!("BufferAll");
        file["schedules"] = json!([tick]);
    });
    let mut agent = stage.agent("a").start();
    let away = |status: &cabloy_crds::agent_status::AgentStatus| {
        status.problems.iter().any(|it| it.reason == "SpansNotExported")
    };
    agent.until("a problem with a silent collector", away).await;
    stage.files.edit(|file| file["tracing"] = tracing_to(free_port().unwrap()));
    let dropped: u64 = agent.metric(DROPPED).await.parse().unwrap();
    assert!(dropped > 0);
    wait::until("spans dropped where nobody listens", SOON, async || {
        agent.metric(DROPPED).await.parse::<u64>().unwrap() > dropped + 10
    })
    .await;

    let collector = Collector::start(&stage).await;
    stage.files.edit(|file| file["tracing"] = tracing_to(collector.port));
    collector.until("spans", |spans| !spans.is_empty()).await;
    agent.until("all is well", |status| status.problems.is_empty()).await;
    fs::write(&collector.busy, "").unwrap();
    agent.until("a problem with a collector that is busy", away).await;
    fs::remove_file(&collector.busy).unwrap();
    agent.until("all is well again", |status| status.problems.is_empty()).await;
    assert_ne!(agent.metric(r#"cabloy_agent_spans_total{result="exported"}"#).await, "0");

    stage.files.edit(|file| file["tracing"]["sampleRatio"] = json!(0.0));
    let unsampled = |calls: &[Call]| calls.iter().any(|it| it.headers["traceparent"].ends_with("-00"));
    let calls = stage.calls_until("a call that is not sampled", unsampled).await;
    let first = calls.iter().find(|it| it.headers["traceparent"].ends_with("-00")).unwrap();
    let (trace, after) = (first.headers["traceparent"][3..35].to_owned(), calls.len());
    stage.calls_until("ten more", |calls| calls.len() > after + 10).await;
    assert!(collector.spans().iter().all(|span| span.trace != trace));

    stage.files.edit(|file| _ = file.as_object_mut().unwrap().remove("tracing"));
    let sampled = |calls: &[Call]| calls.last().is_some_and(|it| it.headers["traceparent"].ends_with("-01"));
    stage.calls_until("the app to decide by itself", sampled).await;
    assert_no_tick_is_missing(&stage.calls(), EVERY);
    let said = |what: &str| agent.log().lines().filter(|line| line.contains(what)).count();
    assert_eq!(said("spans cannot be exported"), 2, "once each time: {}", agent.log());

    // Nor does a silent collector keep an agent from ending.
    stage.files.edit(|file| file["tracing"] = tracing_to(silent.local_addr().unwrap().port()));
    agent.until("the file", |status| status.config.error.is_none()).await;
    let after = stage.calls().len();
    stage.calls_until("ten more", |calls| calls.len() > after + 10).await;
    agent.terminate();
    assert!(agent.exit().await.success());
}
