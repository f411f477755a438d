//! The replicated records of runs (PROTOCOL 3 to 6).

pub use cabloy_redlock::ledger::{FinishError, Put, PutError, ReadError};
pub use cabloy_redlock::record::{Record, RunResult};
use tokio::sync::{mpsc, oneshot};

use crate::election::{Ask, Term};

/// Handle to the records; cheap to clone.
#[derive(Clone, Debug)]
pub struct Ledger {
    requests: mpsc::UnboundedSender<Ask>,
}

impl Ledger {
    pub(crate) fn new(requests: mpsc::UnboundedSender<Ask>) -> Self {
        Self { requests }
    }

    /// Writes records, all in one pipelined round; results in the order of `puts`. `Ok` means that a majority has it.
    ///
    /// A write in doubt is repeated until the term is lost; a claim counts as started only when this says `Ok`.
    pub async fn put(&self, term: &Term, puts: Vec<Put>) -> Vec<Result<(), PutError>> {
        let count = puts.len();
        let token = term.token();
        self.ask(|done| Ask::Put { token, puts, done }).await.unwrap_or_else(|| vec![Err(PutError::Ended); count])
    }

    /// Records how an attempt ended, by its nonce, leading or not (PROTOCOL 6); tries for one ttl.
    ///
    /// # Errors
    /// See [`FinishError`].
    pub async fn finish(&self, id: &str, result: RunResult) -> Result<(), FinishError> {
        let id = id.to_owned();
        self.ask(|done| Ask::Finish { id, result, done }).await.unwrap_or(Err(FinishError::Ended))
    }

    /// What a majority of the nodes hold of these runs, merged, leading or not; a run without a record is left out.
    ///
    /// A claim in there may still be in doubt.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read(&self, ids: Vec<String>) -> Result<Vec<Record>, ReadError> {
        self.ask(|done| Ask::Look { ids, done }).await.unwrap_or(Err(ReadError::Ended))
    }

    /// Removes records that mean nothing any more.
    ///
    /// A node that is down now may bring them back without their results, so another record (a low-water mark) must
    /// say that they are over, before.
    ///
    /// # Errors
    /// See [`PutError`].
    pub async fn forget(&self, term: &Term, ids: Vec<String>) -> Result<(), PutError> {
        let token = term.token();
        self.ask(|done| Ask::Forget { token, ids, done }).await.unwrap_or(Err(PutError::Ended))
    }

    /// `None`: the elector has ended.
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
        let (done, answer) = oneshot::channel();
        self.requests.send(request(done)).ok()?;
        answer.await.ok()
    }
}
