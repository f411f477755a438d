//! Calls to the app beside the agent, over HTTP/1.1 on 127.0.0.1.
//!
//! One connection a request: the app's keep-alive timeout can never race a call, and what it costs on loopback is small.

use std::error::Error as _;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use cabloy_crds::agent_status::AppFailure;
use cabloy_crds::files::{self, Health, HttpTarget, Target};
use cabloy_crds::names::ECHO_PATH;
use cabloy_crds::vocabulary::{Generation, Method};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::runs::{Outcome, OutcomeKind, between};
use crate::signing::Signing;
use crate::traces::Context;

/// The longest body of a request that the app reads together with the head: of a longer one the app may have begun with
/// the head alone. Node.js reads 64 KiB at a time.
const READ_AT_ONCE: u64 = 16 * 1024;

/// The longest part of an answer that is read.
const BODY_LIMIT: usize = 64 * 1024;

/// The longest part of an answer that is kept as a message, in characters.
const MESSAGE_LIMIT: usize = 200;

/// How long after a call that did not reach the app the next one is made.
const NOT_REACHED_PAUSE: Duration = Duration::from_millis(500);

/// How long to wait before asking again after a 409, or a 202 that is not over, unless the app says otherwise.
const AGAIN: Duration = Duration::from_secs(1);

/// The longest time that the app may have the agent wait before it asks again.
const AGAIN_LIMIT: Duration = Duration::from_mins(1);

/// Marks a question: the app says what became of the run, if it knows of it, and begins nothing.
const ONLY_IF_KNOWN: &str = "only-if-known";

/// Marks an answer that was given before, to the call itself.
const REPLAYED: &str = "idempotent-replayed";

/// The reason of an attempt that the app answers by a 404.
pub(crate) const NOT_IN_THIS_VERSION: &str = "NotInThisVersion";

/// How long a health check may take.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

/// One attempt at a run, as the app is to be told of it.
#[derive(Clone, Debug)]
pub struct Call {
    /// `<namespace>/<cluster>`.
    pub cluster: String,
    /// `schedule` or `startup`: what the `CloudEvents` type ends in.
    pub kind: &'static str,
    /// Name of the schedule or task.
    pub name: String,
    /// What tells runs of the same name apart: the tick in RFC 3339, or the revision; also the fencing scope.
    pub run: String,
    /// The tick, or when the attempt began.
    pub time: Timestamp,
    /// The fencing token; none for a task that is each pod's own.
    pub token: Option<u64>,
    /// From 1.
    pub attempt: u32,
    /// When the agent gives up.
    pub deadline: Timestamp,
    /// An earlier process of the agent has made it: the app is asked what became of it, and begins nothing.
    pub asks: bool,
    /// Where it stands in the trace of its run.
    pub context: Context,
    /// What is called.
    pub target: Target,
}

impl Call {
    /// Names the run: the same for all its attempts.
    #[must_use]
    pub fn id(&self) -> String {
        let Self { cluster, name, run, .. } = self;
        format!("{cluster}/{name}@{run}")
    }
}

/// The app beside the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    generation: Generation,
    port: u16,
    health: Health,
}

/// Why there is no answer; never what was sent.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No connection.
    #[error("no connection to 127.0.0.1:{port}: {source}")]
    Connect {
        /// The app's port.
        port: u16,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// There was a connection, and the app closed it before it had read the request.
    #[error("the app closed the connection before it had read the request: {0}")]
    Unread(hyper::Error),
    /// The connection broke, or what came was not HTTP.
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
    /// The file asks for what cannot be put into a request.
    #[error("no request can be made of this: {0}")]
    Request(#[from] http::Error),
}

/// A failed health check.
#[derive(Debug, thiserror::Error)]
pub enum Unhealthy {
    /// There is no answer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The answer is not a 2xx.
    #[error("the health check is answered by {0}")]
    Status(StatusCode),
    /// No answer in time.
    #[error("the health check is not answered within {} s", HEALTH_TIMEOUT.as_secs())]
    Timeout,
}

impl Unhealthy {
    /// Which kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> AppFailure {
        match self {
            Self::Call(CallError::Connect { .. }) => AppFailure::Down,
            Self::Call(_) | Self::Timeout => AppFailure::NoAnswer,
            Self::Status(_) => AppFailure::BadAnswer,
        }
    }
}

/// A worker process of the app, as the preload has it name itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Tells it from all others that the app has had.
    pub id: String,
    /// How many there are to be.
    pub of: u32,
}

/// An answer to the echo.
#[derive(Clone, Debug)]
pub struct Echo {
    /// The answer's status.
    pub status: StatusCode,
    /// What it means.
    pub outcome: Outcome,
    /// Which process answered, if it says.
    pub worker: Option<Worker>,
}

/// An answer, less what is not looked at.
#[derive(Debug)]
struct Response {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Response {
    fn worker(&self) -> Option<Worker> {
        let (id, of) = self.headers.get("cabloy-worker")?.to_str().ok()?.rsplit_once('/')?;
        Some(Worker { id: id.to_owned(), of: of.parse().ok()? })
    }
}

/// What an answer means.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Meaning {
    /// It is over.
    Over(Outcome),
    /// It runs already: ask again, the same way.
    Running(Duration),
    /// It runs: ask there.
    Accepted { location: String, after: Duration },
    /// The token is lower than one the app has seen.
    Stale { highest: Option<u64>, outcome: Outcome },
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Called {
    /// What it came to.
    pub outcome: Outcome,
    /// The app has seen this token, which is higher than the one of the call.
    pub stale: Option<u64>,
}

impl Called {
    /// It ended, and nothing was said of tokens.
    #[must_use]
    pub fn by(outcome: Outcome) -> Self {
        Self { outcome, stale: None }
    }
}

impl App {
    /// The app as the file has it.
    #[must_use]
    pub fn new(app: &files::App) -> Self {
        Self { generation: app.generation, port: app.port, health: app.health.clone() }
    }

    /// Asks the app whether it is alive; gives the process that answered, if it says.
    ///
    /// # Errors
    /// It is not, or does not say so in time.
    pub async fn check(&self) -> Result<Option<Worker>, Unhealthy> {
        let check = async {
            match &self.health {
                Health::Tcp {} => {
                    self.connect(Ipv4Addr::LOCALHOST).await?;
                    Ok(None)
                }
                Health::Http { method, path } => {
                    let request = self.request(*method, path).body(Full::default()).map_err(CallError::from)?;
                    let response = self.send(request, Ipv4Addr::LOCALHOST).await?;
                    if response.status.is_success() {
                        Ok(response.worker())
                    } else {
                        Err(Unhealthy::Status(response.status))
                    }
                }
            }
        };
        tokio::time::timeout(HEALTH_TIMEOUT, check).await.unwrap_or(Err(Unhealthy::Timeout))
    }

    /// Has the app of `CabloyJS` 4 echo, over a connection from the local address `from`; `host` says for which instance.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn echo(&self, host: &str, from: Ipv4Addr) -> Result<Echo, Outcome> {
        let echo = async {
            let request = Self::request_to(host, Method::Post, ECHO_PATH).body(Full::default())?;
            self.send(request, from).await
        };
        let response = echo.await.map_err(|error| failed(&error))?;
        let outcome = match read_answer(self.generation, &response, false, Timestamp::now()) {
            Meaning::Over(outcome) | Meaning::Stale { outcome, .. } => outcome,
            Meaning::Running(_) | Meaning::Accepted { .. } => {
                ended(OutcomeKind::Failed, "Refused", &response.status.to_string())
            }
        };
        Ok(Echo { status: response.status, outcome, worker: response.worker() })
    }

    /// Makes a call and stays with it until the app is done; none if it is a question, and the app does not know the run.
    /// Each of its requests is signed with the keys that there are by then.
    pub async fn call(&self, call: &Call, target: &HttpTarget, signing: &watch::Receiver<Signing>) -> Option<Called> {
        let mut poll: Option<String> = None;
        let mut reached = false;
        loop {
            let answer = match &poll {
                None => self.ask(call, target, signing).await,
                Some(location) => self.poll(location, call, signing).await,
            };
            let meaning = match answer {
                // A poll that fails says nothing about the run.
                Err(_) if poll.is_some() => Meaning::Running(AGAIN),
                // Nor does a question.
                Err(CallError::Connect { .. } | CallError::Unread(_) | CallError::Broken(_)) if call.asks => {
                    Meaning::Running(AGAIN)
                }
                Err(error @ (CallError::Connect { .. } | CallError::Unread(_))) if !reached => {
                    Meaning::Over(not_reached(&error))
                }
                Err(error) => Meaning::Over(failed(&error)),
                Ok(response) if call.asks && poll.is_none() => {
                    read_recollection(self.generation, &response, Timestamp::now())?
                }
                Ok(response) => read_answer(self.generation, &response, poll.is_some(), Timestamp::now()),
            };
            reached = true;
            match meaning {
                Meaning::Over(outcome) => return Some(Called::by(outcome)),
                Meaning::Stale { highest, outcome } => {
                    let stale = highest.filter(|it| call.token.is_some_and(|token| *it > token));
                    return Some(Called { outcome, stale });
                }
                Meaning::Running(after) => tokio::time::sleep(after).await,
                Meaning::Accepted { location, after } => {
                    poll = Some(location);
                    tokio::time::sleep(after).await;
                }
            }
        }
    }

    async fn ask(
        &self,
        call: &Call,
        target: &HttpTarget,
        signing: &watch::Receiver<Signing>,
    ) -> Result<Response, CallError> {
        let body = target.body.as_ref().map(Value::to_string).unwrap_or_default();
        let signature = signing.borrow().headers(&call.id(), Timestamp::now(), body.as_bytes());
        let mut request = self.request(target.method, &target.path).body(Full::from(body))?;
        request.headers_mut().extend(header_map(headers(call, target))?);
        request.headers_mut().extend(header_map(signature)?);
        self.send(request, Ipv4Addr::LOCALHOST).await
    }

    async fn poll(
        &self,
        location: &str,
        call: &Call,
        signing: &watch::Receiver<Signing>,
    ) -> Result<Response, CallError> {
        let signature = signing.borrow().headers(&call.id(), Timestamp::now(), b"");
        let mut request = self.request(Method::Get, location).body(Full::default())?;
        request.headers_mut().extend(header_map(signature)?);
        self.send(request, Ipv4Addr::LOCALHOST).await
    }

    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        // The host decides which of the app's instances answers, and another one than 127.0.0.1 would change the base
        // URL that the app remembers.
        Self::request_to(&format!("127.0.0.1:{}", self.port), method, path)
    }

    fn request_to(host: &str, method: Method, path: &str) -> http::request::Builder {
        Request::builder()
            .method(method.as_str())
            .uri(path)
            .header(header::HOST, host)
            .header(header::CONNECTION, "close")
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("cabloy-agent/", env!("CARGO_PKG_VERSION")))
    }

    async fn connect(&self, from: Ipv4Addr) -> Result<TcpStream, CallError> {
        let connect = async {
            let socket = TcpSocket::new_v4()?;
            if from != Ipv4Addr::LOCALHOST {
                socket.bind(SocketAddr::from((from, 0)))?;
            }
            socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))).await
        };
        let stream = connect.await.map_err(|source| CallError::Connect { port: self.port, source })?;
        // Without it a small request may wait for the acknowledgement of another; a failure costs only that.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    async fn send(&self, request: Request<Full<Bytes>>, from: Ipv4Addr) -> Result<Response, CallError> {
        let stream = self.connect(from).await?;
        let read_at_once = request.body().size_hint().exact().is_some_and(|size| size <= READ_AT_ONCE);
        let (mut sender, mut connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let exchange = async move {
            let (parts, mut body) = sender.send_request(request).await.map_err(CallError::Unread)?.into_parts();
            let mut read = Vec::new();
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame?.into_data() {
                    let room = BODY_LIMIT - read.len();
                    read.extend_from_slice(&data[..data.len().min(room)]);
                }
                if read.len() == BODY_LIMIT || body.is_end_stream() {
                    break;
                }
            }
            Ok(Response { status: parts.status, headers: parts.headers, body: read.into() })
        };
        tokio::pin!(exchange);
        // The connection is driven beside the exchange, and dropped with it. If it ends first, all there is to read has
        // been handed over.
        let response = tokio::select! {
            response = &mut exchange => response,
            _ = &mut connection => exchange.await,
        };
        match response {
            Err(CallError::Unread(error))
                if !(read_at_once && is_unread(&error, connection.into_parts().io.inner())) =>
            {
                Err(error.into())
            }
            response => response,
        }
    }
}

/// Whether a request without an answer was never read. An app that ends closes connections that it has not looked at yet,
/// and the kernel answers what it had not read, or what comes after, by a reset; what it had read, it does not.
/// (RFC 9293, 3.10.4 and 3.10.7; RFC 1122, 4.2.2.13)
fn is_unread(error: &hyper::Error, stream: &TcpStream) -> bool {
    let is_reset = |error: &std::io::Error| matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
    let cause = error.source().and_then(|source| source.downcast_ref());
    error.is_canceled()
        || cause.is_some_and(is_reset)
        || stream.take_error().ok().flatten().is_some_and(|it| is_reset(&it))
}

/// The headers of a call: `CloudEvents` 1.0 in binary mode, and what makes a repeated call harmless.
fn headers(call: &Call, target: &HttpTarget) -> Vec<(&'static str, String)> {
    let Call { cluster, kind, name, time, token, attempt, deadline, asks, context, .. } = call;
    let id = call.id();
    let mut texts = vec![
        ("ce-specversion", "1.0".to_owned()),
        ("ce-id", format!("{id}#{attempt}")),
        ("ce-source", format!("/cabloy/{cluster}")),
        ("ce-type", format!("io.cabloy.{kind}")),
        ("ce-subject", name.clone()),
        ("ce-time", time.to_string()),
        ("idempotency-key", format!("\"{id}\"")),
        ("fencing-scope", id.clone()),
        ("attempt", attempt.to_string()),
        ("deadline", deadline.to_string()),
        ("traceparent", context.traceparent()),
    ];
    texts.extend(token.map(|token| ("fencing-token", token.to_string())));
    if target.body.is_some() {
        texts.push(("content-type", "application/json".to_owned()));
    }
    if *asks {
        // A boolean of RFC 8941.
        texts.push((ONLY_IF_KNOWN, "?1".to_owned()));
    }
    texts
}

fn header_map(texts: Vec<(&'static str, String)>) -> Result<HeaderMap, http::Error> {
    texts.into_iter().map(|(name, text)| Ok((HeaderName::from_static(name), HeaderValue::try_from(text)?))).collect()
}

/// A call that the app has not even heard: it is about to end, or not there yet, and a tick must not be lost by that.
fn not_reached(error: &CallError) -> Outcome {
    not_begun("NoConnection", &error.to_string())
}

/// An attempt of which the other side knows nothing: the next one follows soon.
pub(crate) fn not_begun(reason: &str, message: &str) -> Outcome {
    let pause = u64::try_from(NOT_REACHED_PAUSE.as_millis()).ok();
    Outcome { retry_after_ms: pause, ..ended(OutcomeKind::NotBegun, reason, message) }
}

/// An attempt that ends now.
pub(crate) fn ended(kind: OutcomeKind, reason: &str, message: &str) -> Outcome {
    Outcome { kind, reason: reason.to_owned(), message: shorten(message), retry_after_ms: None, at: Timestamp::now() }
}

/// A call that came to no answer.
fn failed(error: &CallError) -> Outcome {
    let (kind, reason) = match error {
        CallError::Connect { .. } | CallError::Unread(_) => (OutcomeKind::Failed, "NoConnection"),
        CallError::Broken(_) => (OutcomeKind::Failed, "ConnectionBroke"),
        CallError::Request(_) => (OutcomeKind::Refused, "BadRequest"),
    };
    ended(kind, reason, &error.to_string())
}

/// What an answer means (docs/agent.md has the table). `polled`: it answers the question after an accepted run.
fn read_answer(generation: Generation, response: &Response, polled: bool, now: Timestamp) -> Meaning {
    let Response { status, headers, body } = response;
    let after = retry_after(headers, now);
    let outcome = |kind: OutcomeKind, reason: &str| {
        let message = if kind == OutcomeKind::Done { String::new() } else { format!("{status}: {}", text(body)) };
        let retry_after_ms = after.map(|it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX));
        Outcome { kind, reason: reason.to_owned(), message: shorten(&message), retry_after_ms, at: now }
    };
    let again = after.unwrap_or(AGAIN).min(AGAIN_LIMIT);
    let location = headers.get(header::LOCATION).and_then(|location| location.to_str().ok()).and_then(own_path);
    match (status.as_u16(), location) {
        (202, Some(location)) => Meaning::Accepted { location, after: again },
        (202, None) if polled => Meaning::Running(again),
        (200..=299, _) => match failure_code(generation, body) {
            None => Meaning::Over(outcome(OutcomeKind::Done, "")),
            Some(code) => Meaning::Over(Outcome {
                message: shorten(&format!("the app answers code {code}: {}", text(body))),
                ..outcome(OutcomeKind::Failed, "AppFailed")
            }),
        },
        (404, _) => Meaning::Over(outcome(OutcomeKind::Refused, NOT_IN_THIS_VERSION)),
        (409, _) => Meaning::Running(again),
        (410, _) => Meaning::Over(outcome(OutcomeKind::Disabled, "Gone")),
        (412, _) => {
            Meaning::Stale { highest: highest_token(body), outcome: outcome(OutcomeKind::Failed, "StaleToken") }
        }
        (429, _) => Meaning::Over(outcome(OutcomeKind::Failed, "TooManyRequests")),
        (503, _) => Meaning::Over(outcome(OutcomeKind::Failed, "Unavailable")),
        (500..=599, _) => Meaning::Over(outcome(OutcomeKind::Failed, "ServerError")),
        (401 | 403, _) => Meaning::Over(outcome(OutcomeKind::Refused, "Forbidden")),
        _ => Meaning::Over(outcome(OutcomeKind::Refused, "Refused")),
    }
}

/// What the answer to the question what became of a run means; none if it says nothing of it. Of all failures only those
/// count that the app had answered to the call itself.
fn read_recollection(generation: Generation, response: &Response, now: Timestamp) -> Option<Meaning> {
    let replayed = response.headers.get(REPLAYED).is_some_and(|it| it.as_bytes() == b"true");
    match response.status.as_u16() {
        200..=299 | 409 => Some(read_answer(generation, response, false, now)),
        _ if replayed => Some(read_answer(generation, response, false, now)),
        // It cannot say just now.
        429 | 503 => {
            let after = retry_after(&response.headers, now).unwrap_or(AGAIN);
            Some(Meaning::Running(after.min(AGAIN_LIMIT)))
        }
        _ => None,
    }
}

/// A `ctx.fail` of `CabloyJS` 4 is a 200 with a code other than 0.
fn failure_code(generation: Generation, body: &[u8]) -> Option<Value> {
    if generation != Generation::V4 {
        return None;
    }
    let body: Value = serde_json::from_slice(body).ok()?;
    body.get("code").filter(|code| !code.is_null() && code.as_i64() != Some(0)).cloned()
}

/// The highest token seen, from the body of a 412: a number, or `{"token": number}`.
fn highest_token(body: &[u8]) -> Option<u64> {
    let body: Value = serde_json::from_slice(body).ok()?;
    body.get("token").unwrap_or(&body).as_u64()
}

/// `Retry-After`, in seconds or as a date.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    Some(between(now, date.timestamp()))
}

/// The path of a `Location` on the app itself; the agent goes nowhere else.
fn own_path(location: &str) -> Option<String> {
    let uri: http::Uri = location.parse().ok()?;
    let local = uri.host().is_none_or(|host| matches!(host, "127.0.0.1" | "localhost"));
    let path = uri.path_and_query()?.as_str();
    (local && path.starts_with('/')).then(|| path.to_owned())
}

fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(4 * MESSAGE_LIMIT)]).trim().to_owned()
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(MESSAGE_LIMIT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn response(status: u16, headers: &[(&'static str, &str)], body: &Value) -> Response {
        let headers = headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        Response {
            status: StatusCode::from_u16(status).unwrap(),
            headers: headers.collect(),
            body: body.to_string().into(),
        }
    }

    fn now() -> Timestamp {
        "2026-11-23T10:00:00Z".parse().unwrap()
    }

    fn over(generation: Generation, response: &Response) -> (OutcomeKind, String, Option<u64>) {
        match read_answer(generation, response, false, now()) {
            Meaning::Over(outcome) | Meaning::Stale { outcome, .. } => {
                (outcome.kind, outcome.reason, outcome.retry_after_ms)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_status_has_its_meaning() {
        use OutcomeKind::{Disabled, Done, Failed, Refused};
        for (status, kind, reason) in [
            (200, Done, ""),
            (202, Done, ""),
            (204, Done, ""),
            (302, Refused, "Refused"),
            (400, Refused, "Refused"),
            (401, Refused, "Forbidden"),
            (403, Refused, "Forbidden"),
            (404, Refused, "NotInThisVersion"),
            (410, Disabled, "Gone"),
            (412, Failed, "StaleToken"),
            (422, Refused, "Refused"),
            (423, Refused, "Refused"),
            (429, Failed, "TooManyRequests"),
            (500, Failed, "ServerError"),
            (503, Failed, "Unavailable"),
        ] {
            let answer = over(Generation::Generic, &response(status, &[], &json!({})));
            assert_eq!(answer, (kind, reason.to_owned(), None), "{status}");
        }
    }

    #[test]
    fn a_v4_app_fails_with_status_200() {
        for (body, kind) in [
            (json!({"code": 0}), OutcomeKind::Done),
            (json!({"data": 1}), OutcomeKind::Done),
            (json!([]), OutcomeKind::Done),
            (json!({"code": 1001, "message": "x"}), OutcomeKind::Failed),
            (json!({"code": "403"}), OutcomeKind::Failed),
        ] {
            assert_eq!(over(Generation::V4, &response(200, &[], &body)).0, kind, "{body}");
            assert_eq!(over(Generation::Generic, &response(200, &[], &body)).0, OutcomeKind::Done, "{body}");
        }
    }

    #[test]
    fn the_app_says_when_to_come_back() {
        let seconds = response(503, &[("retry-after", "7")], &json!(null));
        assert_eq!(over(Generation::V4, &seconds).2, Some(7_000));
        let date = response(429, &[("retry-after", "Mon, 23 Nov 2026 10:00:30 GMT")], &json!(null));
        assert_eq!(over(Generation::V4, &date).2, Some(30_000));
    }

    #[test]
    fn runs_that_go_on_are_asked_for_again() {
        let read = |response: &Response, polled| read_answer(Generation::V4, response, polled, now());
        assert_eq!(read(&response(409, &[], &json!(null)), false), Meaning::Running(AGAIN));
        let accepted = response(202, &[("location", "/jobs/7?x=1"), ("retry-after", "2")], &json!(null));
        let expected = Meaning::Accepted { location: "/jobs/7?x=1".into(), after: Duration::from_secs(2) };
        assert_eq!(read(&accepted, false), expected);
        assert_eq!(read(&response(202, &[], &json!(null)), true), Meaning::Running(AGAIN));
        let elsewhere = response(202, &[("location", "http://example.com/jobs/7")], &json!(null));
        assert!(matches!(read(&elsewhere, false), Meaning::Over(_)), "the agent calls nobody but its app");
    }

    #[test]
    fn a_question_is_answered_by_what_was_answered_before_or_not_at_all() {
        let read = |status, headers: &[(&'static str, &str)]| {
            read_recollection(Generation::V4, &response(status, headers, &json!(null)), now())
        };
        let kind = |meaning| match meaning {
            Some(Meaning::Over(outcome) | Meaning::Stale { outcome, .. }) => Some(outcome.kind),
            _ => None,
        };
        let again = ("idempotent-replayed", "true");
        assert_eq!(kind(read(200, &[])), Some(OutcomeKind::Done));
        assert_eq!(kind(read(500, &[again])), Some(OutcomeKind::Failed), "as it failed then");
        assert_eq!(kind(read(503, &[again])), Some(OutcomeKind::Failed));
        assert_eq!(kind(read(410, &[again])), Some(OutcomeKind::Disabled));
        assert_eq!(read(409, &[]), Some(Meaning::Running(AGAIN)));
        assert_eq!(read(503, &[("retry-after", "7")]), Some(Meaning::Running(Duration::from_secs(7))));
        let accepted = Meaning::Accepted { location: "/jobs/7".into(), after: AGAIN };
        assert_eq!(read(202, &[("location", "/jobs/7")]), Some(accepted));
        for status in [302, 401, 404, 410, 412, 500, 504] {
            assert_eq!(read(status, &[]), None, "{status} says nothing of the run");
        }
    }

    #[test]
    fn a_stale_token_tells_the_highest() {
        for body in [json!(42), json!({"token": 42})] {
            match read_answer(Generation::V4, &response(412, &[], &body), false, now()) {
                Meaning::Stale { highest, .. } => assert_eq!(highest, Some(42)),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn the_headers_are_as_documented() {
        let target = HttpTarget {
            path: "/run".into(),
            method: Method::Post,
            body: Some(json!({"a": 1})),
            remembers_runs: false,
        };
        let call = Call {
            cluster: "prod/shop".into(),
            kind: "schedule",
            name: "nightly".into(),
            run: "2026-11-23T03:00:00Z".into(),
            time: "2026-11-23T03:00:00Z".parse().unwrap(),
            token: Some(7),
            attempt: 2,
            deadline: "2026-11-23T03:05:00Z".parse().unwrap(),
            asks: false,
            context: Context { trace: 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef, span: 0xab, sampled: true },
            target: Target::Http(target.clone()),
        };
        let headers = header_map(headers(&call, &target)).unwrap();
        for (name, value) in [
            ("idempotency-key", "\"prod/shop/nightly@2026-11-23T03:00:00Z\""),
            ("ce-id", "prod/shop/nightly@2026-11-23T03:00:00Z#2"),
            ("ce-time", "2026-11-23T03:00:00Z"),
            ("fencing-token", "7"),
            ("fencing-scope", "prod/shop/nightly@2026-11-23T03:00:00Z"),
            ("attempt", "2"),
            ("deadline", "2026-11-23T03:05:00Z"),
            ("traceparent", "00-0123456789abcdef0123456789abcdef-00000000000000ab-01"),
            ("content-type", "application/json"),
        ] {
            assert_eq!(headers.get(name).unwrap(), value, "{name}");
        }
        assert_eq!(headers.get(ONLY_IF_KNOWN), None);
        let question = header_map(self::headers(&Call { asks: true, ..call }, &target)).unwrap();
        assert_eq!(question.get(ONLY_IF_KNOWN).unwrap(), "?1");
        assert_eq!(question.len(), headers.len() + 1, "and the rest as it was");
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        assert_eq!(shorten(&"ü".repeat(300)).chars().count(), MESSAGE_LIMIT + 1);
        assert_eq!(shorten("short"), "short");
    }

    async fn called(port: u16) -> Outcome {
        let app = App { generation: Generation::Generic, port, health: Health::Tcp {} };
        let target = HttpTarget { path: "/tick".into(), method: Method::Post, body: None, remembers_runs: false };
        let call = Call {
            cluster: "prod/shop".into(),
            kind: "schedule",
            name: "tick".into(),
            run: "2026-11-23T10:00:00Z".into(),
            time: now(),
            token: Some(1),
            attempt: 1,
            deadline: crate::runs::plus(Timestamp::now(), Duration::from_secs(20)),
            asks: false,
            context: Context { trace: 1, span: 1, sampled: false },
            target: Target::Http(target.clone()),
        };
        app.call(&call, &target, &watch::channel(Signing::default()).1).await.unwrap().outcome
    }

    #[tokio::test]
    async fn what_the_app_closes_unread_has_not_begun_and_what_it_read_has() {
        /// What the app does with the connection of a call.
        #[derive(Debug, Clone, Copy)]
        enum Does {
            /// Takes it, and closes it before a request has come.
            ClosesAtOnce,
            /// Takes it, and closes it when a request has come, unread.
            ClosesUnread,
            /// Reads the request, and is gone.
            Reads,
        }
        for does in [Does::ClosesAtOnce, Does::ClosesUnread, Does::Reads] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let app = async move {
                match does {
                    Does::ClosesAtOnce => drop(listener.accept().await.unwrap()),
                    Does::ClosesUnread => listener.accept().await.unwrap().0.readable().await.unwrap(),
                    Does::Reads => {
                        let (mut stream, _) = listener.accept().await.unwrap();
                        assert!(stream.read(&mut [0; 16 * 1024]).await.unwrap() > 0);
                    }
                }
            };
            let (outcome, ()) = tokio::join!(called(port), app);
            let expected = match does {
                Does::Reads => (OutcomeKind::Failed, "ConnectionBroke"),
                _ => (OutcomeKind::NotBegun, "NoConnection"),
            };
            assert_eq!((outcome.kind, &*outcome.reason), expected, "{does:?}: {}", outcome.message);
        }
    }

    #[tokio::test]
    async fn only_what_the_app_never_heard_of_has_not_begun() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // The app says that the run goes on, and is gone when it is asked again.
        let app = async {
            let (stream, _) = listener.accept().await.unwrap();
            drop(listener);
            let mut stream = tokio::io::BufReader::new(stream);
            let mut line = String::new();
            while line != "\r\n" {
                line.clear();
                stream.read_line(&mut line).await.unwrap();
            }
            let answer = b"HTTP/1.1 409 Conflict\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        };
        let (outcome, ()) = tokio::join!(called(port), app);
        assert_eq!((outcome.kind, &*outcome.reason), (OutcomeKind::Failed, "NoConnection"), "it had begun");

        let outcome = called(port).await;
        assert_eq!((outcome.kind, &*outcome.reason), (OutcomeKind::NotBegun, "NoConnection"));
        assert_eq!(outcome.retry_after_ms, Some(500));
        assert!(!outcome.is_final());
    }
}
