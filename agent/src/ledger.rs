//! The replicated records of runs (PROTOCOL 3 to 6).

use cabloy_engine::runs::decisive;
pub use cabloy_redlock::ledger::{FinishError, Put, PutError, ReadError};
pub use cabloy_redlock::record::{Record, RunResult};
use tokio::sync::{mpsc, oneshot};

use crate::clock::{Clock, SystemClock};
use crate::election::{Ask, Term};
use crate::metrics::LedgerMetrics;

/// Handle to the records; cheap to clone.
#[derive(Clone, Debug)]
pub struct Ledger {
    requests: mpsc::UnboundedSender<Ask>,
    metrics: LedgerMetrics,
}

impl Ledger {
    pub(crate) fn new(requests: mpsc::UnboundedSender<Ask>) -> Self {
        Self { requests, metrics: LedgerMetrics::default() }
    }

    /// The same records, with what is asked of them measured there.
    #[must_use]
    pub fn measured(self, metrics: LedgerMetrics) -> Self {
        Self { metrics, ..self }
    }

    /// Writes records, all in one pipelined round; results in the order of `puts`. `Ok` means that a majority has it.
    ///
    /// A write in doubt is repeated until the term is lost; a claim counts as started only when this says `Ok`.
    pub async fn put(&self, term: &Term, puts: Vec<Put>) -> Vec<Result<(), PutError>> {
        let count = puts.len();
        let token = term.token();
        // Memories of schedules have no attempts.
        let operation = if puts.iter().any(|put| put.attempt > 0) { "claim" } else { "save" };
        let answer = async {
            let answer = self.ask(|done| Ask::Put { token, puts, done }).await;
            answer.unwrap_or_else(|| vec![Err(PutError::Ended); count])
        };
        self.measure(operation, answer, |results| results.iter().map(|it| said(it, put_error)).collect()).await
    }

    /// Records how an attempt ended, by its nonce, leading or not (PROTOCOL 6); tries for one ttl.
    ///
    /// # Errors
    /// See [`FinishError`].
    pub async fn finish(&self, id: &str, result: RunResult) -> Result<(), FinishError> {
        let id = id.to_owned();
        let answer =
            async { self.ask(|done| Ask::Finish { id, result, done }).await.unwrap_or(Err(FinishError::Ended)) };
        self.measure("finish", answer, |result| vec![said(result, finish_error)]).await
    }

    /// What a majority of the nodes hold of these runs, merged, leading or not; a run without a record is left out.
    ///
    /// A claim in there may still be in doubt.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read(&self, ids: Vec<String>) -> Result<Vec<Record>, ReadError> {
        self.look(Some(ids)).await
    }

    /// The same, but of a run with a result that counts only if a majority has that by now: it is recorded once more. Else
    /// the run is left out.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read_confirmed(&self, ids: Vec<String>) -> Result<Vec<Record>, ReadError> {
        let mut confirmed = Vec::new();
        for record in self.read(ids).await? {
            let known = match decisive(&record) {
                Some(result) => self.finish(&record.id, result.clone()).await.is_ok(),
                None => true,
            };
            confirmed.extend(known.then_some(record));
        }
        Ok(confirmed)
    }

    /// The same as [`Ledger::read`] of all runs.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read_all(&self) -> Result<Vec<Record>, ReadError> {
        self.look(None).await
    }

    async fn look(&self, ids: Option<Vec<String>>) -> Result<Vec<Record>, ReadError> {
        let answer = async { self.ask(|done| Ask::Look { ids, done }).await.unwrap_or(Err(ReadError::Ended)) };
        self.measure("read", answer, |result| vec![said(result, read_error)]).await
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
        let answer = async { self.ask(|done| Ask::Forget { token, ids, done }).await.unwrap_or(Err(PutError::Ended)) };
        self.measure("forget", answer, |result| vec![said(result, put_error)]).await
    }

    async fn measure<T>(
        &self,
        operation: &'static str,
        answer: impl Future<Output = T>,
        results: impl FnOnce(&T) -> Vec<&'static str>,
    ) -> T {
        let asked = SystemClock.now();
        let answer = answer.await;
        self.metrics.observe(operation, SystemClock.now().since(asked), results(&answer));
        answer
    }

    /// `None`: the elector has ended.
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
        let (done, answer) = oneshot::channel();
        self.requests.send(request(done)).ok()?;
        answer.await.ok()
    }
}

/// The label of a result.
fn said<T, E>(result: &Result<T, E>, error: impl FnOnce(&E) -> &'static str) -> &'static str {
    result.as_ref().map_or_else(error, |_| "ok")
}

fn put_error(error: &PutError) -> &'static str {
    match error {
        PutError::TermLost => "term_lost",
        PutError::AlreadyDone(_) => "already_done",
        PutError::Overtaken => "overtaken",
        PutError::Ended => "ended",
    }
}

fn finish_error(error: &FinishError) -> &'static str {
    match error {
        FinishError::NotCurrent => "not_current",
        FinishError::Unreachable => "unreachable",
        FinishError::Ended => "ended",
    }
}

fn read_error(error: &ReadError) -> &'static str {
    match error {
        ReadError::Unreachable => "unreachable",
        ReadError::Ended => "ended",
    }
}
