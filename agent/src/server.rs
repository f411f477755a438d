//! The agent's endpoints: what may be read is open, what changes something is for this pod alone.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use cabloy_crds::agent_status::AgentStatus;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::agent::Drain;
use crate::shared::Shared;

/// A port that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct ListenError {
    address: SocketAddr,
    source: std::io::Error,
}

/// Takes a port.
///
/// # Errors
/// It cannot be had.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| ListenError { address, source })
}

/// Answers what may be read, until `stop`.
pub async fn serve_status(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/status", get(async |State(shared): State<Arc<Shared>>| axum::Json(shared.status())))
        .route("/metrics", get(metrics))
        .with_state(shared);
    serve(listener, router, stop).await;
}

/// Answers what changes something, until `stop`.
pub async fn serve_control(listener: TcpListener, state: Drain, stop: CancellationToken) {
    let drain = post(async |State(drain): State<Drain>| {
        drain.drain().await;
        "drained\n"
    });
    serve(listener, Router::new().route("/drain", drain).with_state(state), stop).await;
}

async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!(%error, "endpoints ended");
    }
}

async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    if shared.is_ready() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, not_ready(&shared.status())).into_response()
}

/// Why a pod is not ready, in lines of text.
fn not_ready(status: &AgentStatus) -> String {
    let problems = status.problems.iter().map(|it| format!("{}: {}\n", it.reason, it.message));
    let startups =
        status.startups.iter().map(|it| format!("startup task {}: {:?} {}\n", it.name, it.state, it.message));
    problems.chain(startups).collect()
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    match shared.encode_metrics() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
