//! The register as the apps reach it: HTTP by a Unix socket, which no network namespace keeps from them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};

use super::nemesis::History;
use super::register::{Call, Register, Stale};
use crate::process;

/// The register, served for as long as this is there.
#[derive(Debug)]
pub struct Service {
    shared: Arc<Shared>,
    socket: PathBuf,
    _runtime: Runtime,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<Inner>,
    changed: Condvar,
    history: Arc<History>,
}

#[derive(Debug)]
struct Inner {
    register: Register,
    trap: Option<Trap>,
}

/// Processes to be stopped when an agent's call has read the set, before it learns what it has read.
#[derive(Debug)]
struct Trap {
    agent: String,
    processes: Vec<u32>,
}

#[derive(Debug, Deserialize)]
struct Write {
    call: Call,
    set: Vec<String>,
}

impl Service {
    /// Serves it at a socket in `dir`, and notes each call.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(register: Register, dir: &Path, history: Arc<History>) -> io::Result<Self> {
        let socket = dir.join("register");
        let state = Mutex::new(Inner { register, trap: None });
        let shared = Arc::new(Shared { state, changed: Condvar::new(), history });
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = {
            let _guard = runtime.enter();
            UnixListener::bind(&socket)?
        };
        let router = Router::new()
            .route("/read", post(read))
            .route("/write", post(write))
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&shared));
        runtime.spawn(async { axum::serve(listener, router).await });
        Ok(Self { shared, socket, _runtime: runtime })
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Looks at the register.
    pub fn look<T>(&self, look: impl FnOnce(&Register) -> T) -> T {
        look(&self.shared.lock().register)
    }

    /// Tells it that the clocks of servers are about to be shifted.
    pub fn clocks_shift(&self) {
        self.shared.lock().register.clocks_shift();
    }

    /// Looks at the register whenever it has changed, until `look` sees something or the time is up.
    pub fn until<T>(&self, timeout: Duration, mut look: impl FnMut(&Register) -> Option<T>) -> Option<T> {
        let mut seen = None;
        let state = self.shared.lock();
        let waited = self.shared.changed.wait_timeout_while(state, timeout, |state| {
            seen = look(&state.register);
            seen.is_none()
        });
        drop(waited);
        seen
    }

    /// Stops the processes in the midst of the next call of that agent; whether there was one in time. Nothing is stopped
    /// otherwise.
    #[must_use]
    pub fn stop_within_call(&self, agent: &str, processes: Vec<u32>, timeout: Duration) -> bool {
        let mut state = self.shared.lock();
        state.trap = Some(Trap { agent: agent.to_owned(), processes });
        let waited = self.shared.changed.wait_timeout_while(state, timeout, |state| state.trap.is_some());
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.trap.take().is_none()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note<T>(&self, half: &str, call: &Call, answer: &Result<T, Stale>) {
        let Call { agent, key, attempt, token, .. } = call;
        let outcome =
            answer.as_ref().map_or_else(|stale| format!("stale, {} was seen", stale.token), |_| "done".into());
        self.history.note(&format!("{half} of {agent} with token {token}, {key} attempt {attempt}: {outcome}"));
    }
}

async fn read(State(shared): State<Arc<Shared>>, Json(call): Json<Call>) -> Response {
    let mut state = shared.lock();
    let answer = state.register.read(&call);
    shared.note("read", &call, &answer);
    let trapped = state.trap.take_if(|trap| trap.agent == call.agent && answer.is_ok());
    for process in trapped.into_iter().flat_map(|trap| trap.processes) {
        process::freeze(process);
    }
    shared.changed.notify_all();
    reply(answer)
}

async fn write(State(shared): State<Arc<Shared>>, Json(Write { call, set }): Json<Write>) -> Response {
    let answer = shared.lock().register.write(&call, set);
    shared.note("write", &call, &answer);
    shared.changed.notify_all();
    reply(answer.map(|()| true))
}

fn reply<T: serde::Serialize>(answer: Result<T, Stale>) -> Response {
    match answer {
        Ok(body) => Json(body).into_response(),
        Err(stale) => (StatusCode::PRECONDITION_FAILED, Json(stale)).into_response(),
    }
}
