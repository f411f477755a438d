//! Brings spans to a collector: OTLP 1 over HTTP, as protobuf, in batches.
//!
//! What is not taken at once is dropped and counted: a trace is never worth a tick, nor the memory of a sidecar.

use std::sync::Arc;
use std::time::Duration;

use cabloy_crds::agent_status::Problem;
use cabloy_crds::names::AGENT_FILE;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::shared::{Identity, Shared};
use crate::traces::text;

/// How long spans may wait for others to go with them.
const GATHER: Duration = Duration::from_millis(500);

/// So many go in one request.
const BATCH: usize = 512;

/// How long a collector may take.
const ANSWER: Duration = Duration::from_secs(5);

/// How long what still waits is tried to be brought there at the end.
const FLUSH: Duration = Duration::from_secs(1);

/// The longest answer that is read.
const BODY_LIMIT: usize = 64 * 1024;

/// Why spans were not taken.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// No request can be made of it; such a file is not taken up.
    #[error("no request can be sent to {0}")]
    Endpoint(String),
    /// No connection.
    #[error("no connection to {0}: {1}")]
    Connect(String, std::io::Error),
    /// No answer in time.
    #[error("no answer within {} s", ANSWER.as_secs())]
    Timeout,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
    /// The answer could not be read.
    #[error("the answer cannot be read: {0}")]
    Unreadable(String),
    /// Another answer than 2xx.
    #[error("the collector answers {0}")]
    Refused(StatusCode),
}

/// Exports what comes together in [`Shared::traces`], until `end`, and then what is left, within bounds.
pub async fn export_spans(shared: Arc<Shared>, end: CancellationToken) {
    let traces = &shared.traces;
    let work = async {
        loop {
            tokio::select! {
                () = traces.come() => {}
                () = end.cancelled() => return,
            }
            tokio::select! {
                () = tokio::time::sleep(GATHER) => {}
                () = end.cancelled() => return,
            }
            export_all(&shared).await;
        }
    };
    // What is on its way is let through, and then what still waits.
    let all = async {
        work.await;
        export_all(&shared).await;
    };
    let late = async {
        end.cancelled().await;
        tokio::time::sleep(FLUSH).await;
    };
    tokio::select! {
        () = all => {}
        () = late => {}
    }
    traces.count("dropped", count(&traces.take(usize::MAX)));
}

async fn export_all(shared: &Shared) {
    let traces = &shared.traces;
    loop {
        let spans = traces.take(BATCH);
        if spans.is_empty() {
            return;
        }
        // Counted when it is dropped, also where the export is cut short.
        let mut batch = Batch { shared, spans: count(&spans), exported: 0, rejected: 0 };
        let Some(settings) = traces.settings() else { continue };
        let sent = tokio::time::timeout(ANSWER, send(&settings.endpoint, &shared.identity, spans)).await;
        match sent.unwrap_or(Err(ExportError::Timeout)) {
            Ok(rejected) => {
                batch.rejected = rejected.min(batch.spans);
                batch.exported = batch.spans - batch.rejected;
                if traces.note(None) {
                    tracing::info!(endpoint = settings.endpoint, "spans are exported again");
                }
            }
            Err(error) => {
                let message =
                    format!("spans are dropped, for they cannot be exported to {}: {error}", settings.endpoint);
                let path = Some(format!("{AGENT_FILE}: tracing.endpoint"));
                if traces.note(Some(Problem { reason: "SpansNotExported".to_owned(), message, path })) {
                    tracing::warn!(endpoint = settings.endpoint, %error, "spans cannot be exported and are dropped");
                }
            }
        }
    }
}

fn count(spans: &[Span]) -> u64 {
    u64::try_from(spans.len()).unwrap_or(u64::MAX)
}

/// Spans on their way.
struct Batch<'a> {
    shared: &'a Shared,
    spans: u64,
    exported: u64,
    rejected: u64,
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let Self { shared, spans, exported, rejected } = self;
        for (result, spans) in
            [("exported", *exported), ("rejected", *rejected), ("dropped", *spans - *exported - *rejected)]
        {
            if spans > 0 {
                shared.traces.count(result, spans);
            }
        }
    }
}

/// How many of them the collector rejected.
async fn send(endpoint: &str, identity: &Identity, spans: Vec<Span>) -> Result<u64, ExportError> {
    let bad = || ExportError::Endpoint(endpoint.to_owned());
    let uri: Uri = format!("{}/v1/traces", endpoint.trim_end_matches('/')).parse().map_err(|_| bad())?;
    let (Some(authority), Some(path)) = (uri.authority(), uri.path_and_query()) else { return Err(bad()) };
    let connection = TcpStream::connect(authority.as_str()).await;
    let stream = connection.map_err(|error| ExportError::Connect(authority.to_string(), error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::new(Full::<Bytes>::from(export_request(identity, spans).encode_to_vec()));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = Uri::from(path.clone());
    let headers = request.headers_mut();
    headers.insert(header::HOST, HeaderValue::try_from(authority.as_str()).map_err(|_| bad())?);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("cabloy-agent/", env!("CARGO_PKG_VERSION"))));
    let exchange = async {
        let response = sender.send_request(request).await?;
        if !response.status().is_success() {
            return Err(ExportError::Refused(response.status()));
        }
        let body = Limited::new(response.into_body(), BODY_LIMIT).collect().await;
        let body = body.map_err(|error| ExportError::Unreadable(error.to_string()))?.to_bytes();
        let answer = ExportTraceServiceResponse::decode(body);
        let answer = answer.map_err(|error| ExportError::Unreadable(error.to_string()))?;
        let rejected = answer.partial_success.map_or(0, |it| it.rejected_spans);
        Ok(u64::try_from(rejected).unwrap_or_default())
    };
    tokio::pin!(exchange);
    // As in a call to the app, the connection is driven beside the exchange.
    tokio::select! {
        answer = &mut exchange => answer,
        _ = connection => exchange.await,
    }
}

fn export_request(identity: &Identity, spans: Vec<Span>) -> ExportTraceServiceRequest {
    let Identity { pod, uid, .. } = identity;
    let version = env!("CARGO_PKG_VERSION");
    let attributes = vec![
        text("service.name", "cabloy-agent"),
        text("service.version", version),
        text("service.instance.id", uid),
        text("k8s.pod.name", pod),
        text("k8s.pod.uid", uid),
    ];
    let scope = InstrumentationScope {
        name: "cabloy-agent".to_owned(),
        version: version.to_owned(),
        ..InstrumentationScope::default()
    };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans, schema_url: String::new() }],
            schema_url: String::new(),
        }],
    }
}
