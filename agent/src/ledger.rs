//! The replicated records of runs (PROTOCOL 3 to 6).

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::election::{Ask, Term};
pub use crate::redlock::record::{Record, RunResult};

/// A record to write; the leader adds token and sequence number.
///
/// It is a *claim*, which starts an attempt, if its nonce is not the one that the leader knows for that id.
#[derive(Clone, Debug, PartialEq)]
pub struct Put {
    /// Which run.
    pub id: String,
    /// Which attempt at it, from 1.
    pub attempt: u32,
    /// Names the attempt.
    pub nonce: String,
    /// What to keep there.
    pub data: Value,
}

/// Why a record was not written.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PutError {
    /// The term ended first. A claim may still have reached some nodes: the next leader may see it as started.
    #[error("the term has ended")]
    TermLost,
    /// Another attempt at the run is done already (PROTOCOL 5); the claim was taken back.
    #[error("the run is done already, by attempt {}", .0.nonce)]
    AlreadyDone(RunResult),
    /// A later write of the same record took its place.
    #[error("a later write of the same record took its place")]
    Overtaken,
    /// The elector has been shut down.
    #[error("the elector has ended")]
    Ended,
}

/// Why a result was not recorded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FinishError {
    /// The attempt is not the current one of that run on a majority of nodes: a later one has begun, or none ever did.
    #[error("the attempt is not the current one")]
    NotCurrent,
    /// No majority answered in time; asking again is safe.
    #[error("no majority of the nodes answered in time")]
    Unreachable,
    /// The elector has been shut down.
    #[error("the elector has ended")]
    Ended,
}

/// Why records were not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No majority answered in time.
    #[error("no majority of the nodes answered in time")]
    Unreachable,
    /// The elector has been shut down.
    #[error("the elector has ended")]
    Ended,
}

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
