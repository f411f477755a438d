//! `cabloy-agent drain`: asks the agent of this pod to give up its lease before the app ends.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use http::Request;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// How long the agent is waited for; it bounds itself below that.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why the agent was not drained.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// Nothing listens there.
    #[error("no agent answers on 127.0.0.1:{port}")]
    NoAgent {
        /// The control port.
        port: u16,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// What answers is no agent, or it ended meanwhile.
    #[error("the agent on 127.0.0.1:{port} does not answer as it should")]
    Broken {
        /// The control port.
        port: u16,
        /// What went wrong.
        source: hyper::Error,
    },
    /// It answers something else.
    #[error("the agent on 127.0.0.1:{port} answers {status}")]
    Refused {
        /// The control port.
        port: u16,
        /// Its answer.
        status: http::StatusCode,
    },
    /// It does not answer in time.
    #[error("the agent on 127.0.0.1:{port} does not answer within {} s", TIMEOUT.as_secs())]
    Timeout {
        /// The control port.
        port: u16,
    },
}

/// Drains the agent whose control port is `port`; returns when it neither leads nor stands.
///
/// # Errors
/// See [`DrainError`].
pub async fn drain(port: u16) -> Result<(), DrainError> {
    tokio::time::timeout(TIMEOUT, ask(port)).await.unwrap_or(Err(DrainError::Timeout { port }))
}

async fn ask(port: u16) -> Result<(), DrainError> {
    let broken = |source| DrainError::Broken { port, source };
    let stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await;
    let stream = stream.map_err(|source| DrainError::NoAgent { port, source })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static("/drain");
    request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("127.0.0.1"));
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    let response = tokio::select! {
        response = &mut answer => response,
        _ = connection => answer.await,
    };
    match response.map_err(broken)?.status() {
        status if status.is_success() => Ok(()),
        status => Err(DrainError::Refused { port, status }),
    }
}
