//! What may be asked of the replicated records, and why it may fail (PROTOCOL 3 to 6).

use serde_json::Value;

use crate::record::RunResult;

/// A record to write; the leader adds token and sequence number.
///
/// It is a *claim*, which starts an attempt, if its nonce is not the one that the leader knows for that id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
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
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
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
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ReadError {
    /// No majority answered in time.
    #[error("no majority of the nodes answered in time")]
    Unreachable,
    /// The elector has been shut down.
    #[error("the elector has ended")]
    Ended,
}
