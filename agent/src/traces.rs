//! One trace a run: how its spans hang together, whoever makes them.
//!
//! ```text
//! schedule nightly          from when the tick was due to its end; by the leader that finds the run over
//! ├─ claim                  a round to the ledger, one for each attempt
//! ├─ POST /api/report       the call; what the app does hangs below it, by `traceparent`
//! └─ record                 the round to the ledger that tells of the result
//! ```
//!
//! Ids are computed from names, so that agents which know nothing of each other add to the same trace: of trace and root
//! from the run, of the rest from the nonce of the attempt. Spans wait here, a bounded number, for [`crate::export`].

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cabloy_crds::agent_status::{Problem, Verdict};
use cabloy_crds::files::{Target, Tracing};
use jiff::Timestamp;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::{Notify, watch};

use crate::app::Call;
use crate::digest;
use crate::metrics::ResultLabel;
use crate::reload::Config;
use crate::runs::{Ending, Outcome, OutcomeKind};
use crate::schedule::parse_id;

/// So many spans wait at most: some megabytes. What comes then is dropped.
const CAPACITY: usize = 2_048;

/// The flag `sampled` of W3C Trace Context, which OTLP has as well.
const SAMPLED: u32 = 1;

/// Where a call stands in its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The trace; not 0.
    pub trace: u128,
    /// The call's span; not 0.
    pub span: u64,
    /// Whether it is recorded.
    pub sampled: bool,
}

impl Context {
    /// The header `traceparent`, as W3C Trace Context has it.
    #[must_use]
    pub fn traceparent(&self) -> String {
        let Self { trace, span, sampled } = self;
        format!("00-{trace:032x}-{span:016x}-{:02x}", u8::from(*sampled))
    }
}

/// How a run ended, for the root of its trace.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Done, failed or unknown.
    pub verdict: Verdict,
    /// The kind of failure in `CamelCase`; empty when done.
    pub reason: &'a str,
    /// What the app said, shortened.
    pub message: &'a str,
    /// How many attempts were made.
    pub attempts: u32,
    /// When it was due, or else began.
    pub since: Timestamp,
    /// When it ended.
    pub at: Timestamp,
}

impl<'a> End<'a> {
    /// Of a run that began `since` and ended `at`.
    #[must_use]
    pub fn of(ending: &'a Ending, since: Timestamp, at: Timestamp) -> Self {
        let Ending { verdict, reason, message, attempts, .. } = ending;
        Self { verdict: *verdict, reason, message, attempts: *attempts, since, at }
    }
}

/// A run, as its spans name it.
#[derive(Debug)]
struct Subject {
    cluster: String,
    kind: &'static str,
    name: String,
    run: String,
}

impl Subject {
    fn of_call(call: &Call) -> Self {
        Self { cluster: call.cluster.clone(), kind: call.kind, name: call.name.clone(), run: call.run.clone() }
    }

    fn trace(&self) -> u128 {
        trace_id(&self.cluster, &self.name, &self.run)
    }
}

/// A span, less what it has in common with the others of its trace.
struct Part<'a> {
    name: String,
    kind: SpanKind,
    id: u64,
    took: Range<Timestamp>,
    attributes: Vec<KeyValue>,
    /// Kind and text of what went wrong.
    failure: Option<(&'a str, &'a str)>,
}

/// When a run began, as far as this agent has seen that.
#[derive(Debug)]
struct Begun {
    at: Timestamp,
    /// How long after its time it was called first.
    lateness: Option<f64>,
}

/// The spans that wait to be exported, and what those to come need to know.
#[derive(Debug)]
pub struct Traces {
    config: watch::Receiver<Config>,
    /// UID of the pod, which tells runs of tasks of scope `Instance` apart.
    pod: String,
    counts: Family<ResultLabel, Counter>,
    queue: Mutex<VecDeque<Span>>,
    begun: Mutex<BTreeMap<String, Begun>>,
    problem: Mutex<Option<Problem>>,
    news: Notify,
}

impl Traces {
    /// As `config` asks for, of the pod with that UID; `counts` counts what becomes of spans.
    #[must_use]
    pub fn new(config: watch::Receiver<Config>, pod: String, counts: Family<ResultLabel, Counter>) -> Self {
        Self {
            config,
            pod,
            counts,
            queue: Mutex::default(),
            begun: Mutex::default(),
            problem: Mutex::default(),
            news: Notify::new(),
        }
    }

    /// What the file says of traces; none: there are none.
    #[must_use]
    pub fn settings(&self) -> Option<Tracing> {
        self.config.borrow().loaded.as_ref()?.file.tracing.clone()
    }

    /// Where the call for the attempt `nonce` at a run stands. Where nothing is exported it counts as sampled, so that it
    /// is the app that decides what it records.
    #[must_use]
    pub fn context(&self, cluster: &str, name: &str, run: &str, nonce: &str) -> Context {
        let trace = trace_id(cluster, name, run);
        let sampled = self.settings().is_none_or(|it| is_sampled(trace, it.sample_ratio));
        Context { trace, span: span_id(trace, nonce, "call"), sampled }
    }

    /// Notes that an attempt at the run `id` begins `now`: if it is a tick's first, how late.
    pub fn begin(&self, id: &str, lateness: Option<Duration>, now: Timestamp) {
        if self.settings().is_some() {
            let lateness = lateness.map(|it| it.as_secs_f64());
            self.begun().entry(id.to_owned()).or_insert(Begun { at: now, lateness });
        }
    }

    /// Forgets what the term that has ended had begun: it ends elsewhere.
    pub fn end_term(&self) {
        self.begun().retain(|id, _| id.starts_with("i/"));
    }

    /// The claim of the attempt `nonce` at the run `id` was answered by the ledger.
    pub fn claimed(
        &self,
        id: &str,
        nonce: &str,
        attempt: u32,
        token: u64,
        took: Range<Timestamp>,
        error: Option<&str>,
    ) {
        let Some(subject) = self.subject(id) else { return };
        self.add(&subject, || Part {
            name: "claim".to_owned(),
            kind: SpanKind::Client,
            id: span_id(subject.trace(), nonce, "claim"),
            took,
            attributes: vec![int("cabloy.attempt", attempt.into()), int("cabloy.fencing_token", token)],
            failure: error.map(|error| ("ClaimFailed", error)),
        });
    }

    /// A call ended; without an outcome if it was not answered before its deadline.
    pub fn called(&self, call: &Call, took: Range<Timestamp>, outcome: Option<&Outcome>) {
        self.add(&Subject::of_call(call), || {
            let (name, kind, mut attributes) = match &call.target {
                Target::Http(http) => {
                    // What comes after it may hold anything.
                    let path = http.path.split('?').next().unwrap_or_default();
                    let method = http.method.as_str();
                    let attributes = vec![text("http.request.method", method), text("url.path", path)];
                    (format!("{method} {path}"), SpanKind::Client, attributes)
                }
                Target::Bean(bean) => {
                    let attributes = vec![text("http.request.method", "POST"), text("url.path", &bean.path)];
                    (format!("bean {}.{}", bean.module, bean.name), SpanKind::Client, attributes)
                }
                Target::Queue(it) => (format!("send {}", it.queue), SpanKind::Producer, message("bullmq", &it.queue)),
                Target::WarmUp(_) => ("warm up".to_owned(), SpanKind::Client, vec![]),
                Target::Broadcast(it) => {
                    (format!("publish {}", it.channel), SpanKind::Producer, message("redis", &it.channel))
                }
            };
            attributes.push(int("cabloy.attempt", call.attempt.into()));
            attributes.extend(call.token.map(|token| int("cabloy.fencing_token", token)));
            let failure = match outcome {
                None => Some(("DeadlineExceeded", "no answer before the deadline")),
                Some(it) => (it.kind != OutcomeKind::Done).then_some((&*it.reason, &*it.message)),
            };
            Part { name, kind, id: call.context.span, took, attributes, failure }
        });
    }

    /// The result of a call was sent to the ledger: whether it is recorded there.
    pub fn recorded(&self, call: &Call, nonce: &str, took: Range<Timestamp>, done: bool) {
        self.add(&Subject::of_call(call), || Part {
            name: "record".to_owned(),
            kind: SpanKind::Client,
            id: span_id(call.context.trace, nonce, "record"),
            took,
            attributes: vec![int("cabloy.attempt", call.attempt.into())],
            failure: (!done).then_some(("NotRecorded", "a later attempt has begun, or no majority answered in time")),
        });
    }

    /// The run `id` is over.
    pub fn over(&self, id: &str, token: Option<u64>, end: &End<'_>) {
        let begun = self.begun().remove(id);
        let Some(subject) = self.subject(id) else { return };
        self.add(&subject, || {
            let End { verdict, reason, message, attempts, since, at } = *end;
            let lateness = begun.as_ref().and_then(|it| it.lateness);
            let since = begun.map_or(since, |it| since.min(it.at));
            let mut attributes =
                vec![text("cabloy.verdict", verdict_name(verdict)), int("cabloy.attempts", attempts.into())];
            attributes.extend(token.map(|token| int("cabloy.fencing_token", token)));
            attributes.extend(lateness.map(|it| attribute("cabloy.lateness", Value::DoubleValue(it))));
            Part {
                name: format!("{} {}", subject.kind, subject.name),
                kind: SpanKind::Internal,
                id: root_id(subject.trace()),
                took: since..at,
                attributes,
                failure: (verdict != Verdict::Done).then_some((reason, message)),
            }
        });
    }

    /// The run whose record is `id`; none if it is no run's, or there are no files yet.
    fn subject(&self, id: &str) -> Option<Subject> {
        let cluster = self.config.borrow().loaded.as_ref()?.file.cluster.clone();
        let (kind, name, run) = if let Some(task) = id.strip_prefix("i/") {
            ("startup", task, self.pod.clone())
        } else if let Some((task, revision)) = id.strip_prefix("u/").and_then(|it| it.split_once('/')) {
            ("startup", task, revision.to_owned())
        } else {
            let (name, occasion) = parse_id(id)?;
            ("schedule", name, occasion?.name())
        };
        Some(Subject { cluster, kind, name: name.to_owned(), run })
    }

    /// Makes a span, if it is to be recorded, and has it wait.
    fn add<'a>(&self, subject: &Subject, part: impl FnOnce() -> Part<'a>) {
        let trace = subject.trace();
        if self.settings().is_none_or(|it| !is_sampled(trace, it.sample_ratio)) {
            return;
        }
        let span = span(subject, trace, part());
        let mut queue = self.queue();
        if queue.len() < CAPACITY {
            queue.push_back(span);
            self.news.notify_one();
        } else {
            self.count("dropped", 1);
        }
    }

    /// The oldest spans that wait, so many at most.
    #[must_use]
    pub fn take(&self, limit: usize) -> Vec<Span> {
        let mut queue = self.queue();
        let count = queue.len().min(limit);
        queue.drain(..count).collect()
    }

    /// Returns when spans have come since it was asked last.
    pub async fn come(&self) {
        self.news.notified().await;
    }

    /// Counts what became of spans: `exported`, `rejected` by the collector, or `dropped` for want of room or a collector.
    pub fn count(&self, result: &'static str, spans: u64) {
        self.counts.get_or_create(&ResultLabel { result }).inc_by(spans);
    }

    /// Notes what keeps spans from being exported, if anything does; whether that has turned.
    pub fn note(&self, problem: Option<Problem>) -> bool {
        let mut known = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        let turned = known.is_some() != problem.is_some();
        *known = problem;
        turned
    }

    /// What keeps spans from being exported.
    #[must_use]
    pub fn problem(&self) -> Option<Problem> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Span>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begun(&self) -> MutexGuard<'_, BTreeMap<String, Begun>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The trace of a run: the same for all its attempts, on whatever pod.
fn trace_id(cluster: &str, name: &str, run: &str) -> u128 {
    // All zeros would be no trace.
    digest::number(&[cluster.as_bytes(), name.as_bytes(), run.as_bytes()]).max(1)
}

fn root_id(trace: u128) -> u64 {
    span_id(trace, "", "run")
}

fn span_id(trace: u128, nonce: &str, part: &str) -> u64 {
    let digest = digest::number(&[&trace.to_be_bytes(), nonce.as_bytes(), part.as_bytes()]);
    lower_half(digest).max(1)
}

#[expect(clippy::cast_possible_truncation, reason = "that is what is asked for")]
fn lower_half(number: u128) -> u64 {
    number as u64
}

/// Whether a trace belongs to the share that is recorded: all agents say the same, as does the sampler
/// `TraceIdRatioBased` of OpenTelemetry's libraries.
fn is_sampled(trace: u128, ratio: f64) -> bool {
    #[expect(clippy::cast_precision_loss, reason = "a share needs no more digits")]
    let place = (lower_half(trace) >> 1) as f64 / (1_u64 << 63) as f64;
    place < ratio
}

fn span(subject: &Subject, trace: u128, part: Part<'_>) -> Span {
    let Subject { cluster, kind, name, run } = subject;
    let Part { name: part_name, kind: span_kind, id, took, mut attributes, failure } = part;
    let named = match *kind {
        "schedule" => ["cabloy.schedule", "cabloy.tick"],
        _ => ["cabloy.startup", "cabloy.revision"],
    };
    attributes.extend([text("cabloy.cluster", cluster), text(named[0], name), text(named[1], run)]);
    attributes.extend(failure.map(|(reason, _)| text("error.type", reason)));
    let root = root_id(trace);
    Span {
        trace_id: trace.to_be_bytes().to_vec(),
        span_id: id.to_be_bytes().to_vec(),
        parent_span_id: if id == root { Vec::new() } else { root.to_be_bytes().to_vec() },
        flags: SAMPLED,
        name: part_name,
        kind: span_kind.into(),
        start_time_unix_nano: nanos(took.start),
        end_time_unix_nano: nanos(took.end.max(took.start)),
        attributes,
        status: failure.map(|(reason, message)| Status {
            code: StatusCode::Error.into(),
            message: format!("{reason}: {message}"),
        }),
        ..Span::default()
    }
}

fn nanos(time: Timestamp) -> u64 {
    u64::try_from(time.as_nanosecond()).unwrap_or_default()
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// An attribute that is a text.
#[must_use]
pub fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn int(key: &str, value: u64) -> KeyValue {
    attribute(key, Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)))
}

/// Attributes of what goes through Redis.
fn message(system: &str, destination: &str) -> Vec<KeyValue> {
    vec![text("messaging.system", system), text("messaging.destination.name", destination)]
}

fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Done => "Done",
        Verdict::Failed => "Failed",
        Verdict::Unknown => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_the_share_that_is_asked_for_is_sampled() {
        let traces: Vec<_> = (0..10_000).map(|tick: u32| trace_id("prod/shop", "tick", &tick.to_string())).collect();
        let share = |ratio| traces.iter().filter(|trace| is_sampled(**trace, ratio)).count();
        assert_eq!((share(0.0), share(1.0)), (0, 10_000));
        assert!((2_300..2_700).contains(&share(0.25)), "{}", share(0.25));
        let both = traces.iter().all(|trace| !is_sampled(*trace, 0.25) || is_sampled(*trace, 0.5));
        assert!(both, "who records more records all that others do");
        assert!(!is_sampled(u128::from(u64::MAX), 0.999), "by the lower half");
    }

    #[test]
    fn no_two_spans_of_a_trace_have_the_same_id() {
        let trace = trace_id("prod/shop", "tick", "2026-11-23T03:00:00Z");
        let parts = ["claim", "call", "record"];
        let ids = ["n1", "n2"].into_iter().flat_map(|nonce| parts.map(|part| span_id(trace, nonce, part)));
        let ids: std::collections::BTreeSet<_> = ids.chain([root_id(trace)]).collect();
        assert_eq!(ids.len(), 7);
        let context = Context { trace: 0xab, span: 0xcd, sampled: false };
        assert_eq!(context.traceparent(), format!("00-{}ab-{}cd-00", "0".repeat(30), "0".repeat(14)));
    }
}
