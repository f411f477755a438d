//! `/metrics`, `/healthz` and `/readyz`.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// What the server tells.
#[derive(Clone)]
pub struct Health {
    metrics: Arc<Metrics>,
    /// How many scopes have not read their lists yet.
    unsynced: Arc<AtomicUsize>,
}

impl Health {
    /// The operator is ready once so many scopes are synced.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, scopes: usize) -> Self {
        Self { metrics, unsynced: Arc::new(AtomicUsize::new(scopes)) }
    }

    /// A scope has read all its lists. To be called once for each.
    pub fn synced(&self) {
        self.unsynced.fetch_sub(1, Ordering::Relaxed);
    }

    fn is_ready(&self) -> bool {
        self.unsynced.load(Ordering::Relaxed) == 0
    }
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], health.metrics.text())
}

async fn ready(State(health): State<Health>) -> impl IntoResponse {
    if health.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the watches have not read their lists yet\n")
    }
}

/// Opens the port.
///
/// # Errors
/// The address cannot be used.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until `shutdown`.
///
/// # Errors
/// The port fails.
pub async fn serve(listener: TcpListener, health: Health, shutdown: CancellationToken) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(health);
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}
