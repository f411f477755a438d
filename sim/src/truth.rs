//! What is promised, checked against what really happened.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use cabloy_redlock::core::NodeId;
use cabloy_redlock::model::ModelNode;
use cabloy_redlock::record::{Record, Records, RunResult};
use serde_json::Value;

/// What a world promises; each is checked at every step that could break it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// No token leads twice.
    TokenOnce,
    /// Tokens grow in the order of election; without clocks, in the order of reading.
    TokenOrder,
    /// No two agents, nor an agent and another Redlock client, believe in a lease at once (I1).
    OneLeader,
    /// A lease ends before the locks that it rests on: why there is one leader.
    LeaseWithinLocks,
    /// A claim that started is known to every later leader.
    ClaimsKnown,
    /// A result that was acknowledged is never unread.
    ResultsKnown,
    /// What a leader has read is known to every later leader.
    ReadingsKnown,
    /// No attempt starts when another is known to be done.
    DoneIsDone,
    /// A node without memory has no say.
    AmnesiacsSilent,
    /// A claim starts when a majority has it.
    ClaimMajority,
    /// When what was done is lost, it is said before anybody leads on.
    LossSaid,
    /// Nobody leads by the lock of a node whose clock is far from the others'.
    FarClocks,
    /// With a majority connected somebody leads within a bound.
    Liveness,
    /// When a leader hands over the next one leads soon.
    HandOver,
    /// Who waits costs nothing (I8).
    IdleCost,
    /// Everything asked of the ledger is answered.
    Answered,

    // Of engines.
    /// All calls under one token come from one process of an agent (I3).
    OneCaller,
    /// No attempt of a run begins twice (I4).
    AttemptOnce,
    /// No attempt of a run begins beside another one whose deadline has not passed.
    OneAttempt,
    /// No run goes on that is done, refused, disabled or cancelled.
    OverIsOver,
    /// No tick is claimed before it has come by the median of the masters' clocks.
    NotAhead,
    /// No tick is begun that is older than the window (I5).
    InWindow,
    /// No tick is lost within the window (I5).
    NoneLost,
    /// Ticks that must not overlap do not, before their deadlines.
    NoOverlap,
    /// What the app has done while all was well is said to be done.
    TrueVerdict,
    /// Nothing of a schedule runs on a pod whose gate is shut.
    GateFirst,
    /// A gate opens when the tasks are done that it waits for.
    GateWaits,
    /// Once all is well a gate opens.
    GateOpens,
    /// A gate that is open stays so.
    GateStays,
    /// A startup task runs on the code of its own revision.
    OwnRevision,
    /// A startup task that is done, and mirrored, is not run again (I7).
    StartupOnce,
    /// A startup task waits for those that it comes after.
    TaskOrder,
    /// A pod's own startup tasks are done there before its gate opens, each in its order, one attempt at a time, and not
    /// again.
    OwnTasks,
    /// No tick is run but of the timetable that was in force at its time, or not yet replaced within a bound.
    Edited,
    /// What runs when its schedule is edited comes to an end that somebody tells.
    EditKeeps,
}

/// A broken promise.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which.
    pub promise: Promise,
    /// How.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.promise, self.what)
    }
}

/// Who claimed when: the token of the leader, and the order among all that was asked in the world.
pub(crate) type Ballot = (u64, u64);

/// A run, as it really went.
#[derive(Debug, Default)]
struct Run {
    /// The newest claim that started.
    started: Option<(Ballot, String)>,
    /// It was to be forgotten: nothing is promised about it any more.
    forgotten: bool,
}

/// A result that was acknowledged.
#[derive(Debug)]
struct Recorded {
    run: String,
    nonce: String,
    done: bool,
    lost: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Truth {
    /// What each leader read, by token.
    terms: BTreeMap<u64, Records>,
    newest_token: u64,
    runs: BTreeMap<String, Run>,
    recorded: Vec<Recorded>,
    /// How often a majority's memory was lost.
    pub(crate) losses: u64,
    /// The last loss has not been announced.
    unsaid: bool,
}

/// The claim that a record is of, as its leader wrote it there.
pub(crate) fn ballot(record: &Record) -> Ballot {
    let part = |index| record.data.get(index).and_then(Value::as_u64).unwrap_or_default();
    (part(0), part(1))
}

impl Truth {
    pub(crate) fn led(&self) -> bool {
        !self.terms.is_empty()
    }

    /// How many terms there were.
    pub(crate) fn elections(&self) -> u64 {
        self.terms.len() as u64
    }

    /// How many results are recorded by now: so many must be known to who begins to read.
    pub(crate) fn recorded(&self) -> usize {
        self.recorded.len()
    }

    pub(crate) fn newest_token(&self) -> u64 {
        self.newest_token
    }

    /// A term begins. So many results were recorded and losses had happened before it read, and this token led.
    pub(crate) fn leads(
        &mut self,
        token: u64,
        in_order: bool,
        (must_know, losses, newest): (usize, u64, u64),
        records: &Records,
    ) -> Result<(), Violation> {
        if self.terms.contains_key(&token) {
            return broken(Promise::TokenOnce, format!("token {token} leads for the second time"));
        }
        // Without clocks the order is that of reading: who reads once a higher token leads finds no majority.
        let newest = if in_order { self.newest_token } else { newest };
        // Who never heard of a token that an app or an operator raised above the time of day cannot go on above it, once no
        // server remembers it.
        if token < newest && self.losses == 0 {
            return broken(Promise::TokenOrder, format!("token {token} leads after {newest}"));
        }
        if self.unsaid && losses == self.losses {
            return broken(Promise::LossSaid, format!("token {token} leads, and nobody said that memory was lost"));
        }
        self.newest_token = self.newest_token.max(token);
        self.terms.insert(token, records.clone());
        let runs = self.runs.keys().cloned().collect::<Vec<_>>();
        runs.iter().try_for_each(|run| self.claims_are_known(run))?;
        let known = |run: &str, nonce: &str| records.get(run).and_then(|run| run.result(nonce)).map(|it| it.done);
        self.results_are_known(must_know, |_| true, known, &format!("the leader with token {token}"))
    }

    /// A leader knows every attempt that was started with a lower token, or a later one.
    fn claims_are_known(&self, id: &str) -> Result<(), Violation> {
        let Some(Run { started: Some((claim, nonce)), forgotten: false }) = self.runs.get(id) else { return Ok(()) };
        for (token, known) in self.terms.range(claim.0 + 1..) {
            if known.get(id).is_none_or(|known| ballot(known) < *claim) {
                return broken(Promise::ClaimsKnown, format!("the leader with token {token} does not know of {nonce}"));
            }
        }
        Ok(())
    }

    /// A leader knows what the one before it has read, and the next one what it has read: whoever acted upon that, it stays
    /// so. What is to be forgotten may be gone, and so may everything once a majority's memory was lost.
    pub(crate) fn readings_are_known(&self, token: u64) -> Result<(), Violation> {
        let here = self.terms.get_key_value(&token).filter(|_| self.losses == 0);
        let before = self.terms.range(..token).next_back().zip(here);
        let after = here.zip(self.terms.range(token + 1..).next());
        for ((earlier, read), (later, known)) in before.into_iter().chain(after) {
            for (id, record) in read.iter().filter(|(id, _)| !self.runs.get(*id).is_some_and(|run| run.forgotten)) {
                let has = |known: &Arc<Record>| {
                    let result = |it: &RunResult| known.result(&it.nonce).is_some_and(|known| known.done || !it.done);
                    ballot(known) >= ballot(record) && record.results.iter().all(result)
                };
                if !known.get(id).is_some_and(has) {
                    let what = format!("the leader with token {later} does not know of {id} what {earlier} has read");
                    return broken(Promise::ReadingsKnown, what);
                }
            }
        }
        Ok(())
    }

    /// The first `count` results, of runs that are of interest, are `known`.
    fn results_are_known(
        &self,
        count: usize,
        of_interest: impl Fn(&str) -> bool,
        known: impl Fn(&str, &str) -> Option<bool>,
        to: &str,
    ) -> Result<(), Violation> {
        for Recorded { run, nonce, done, lost } in &self.recorded[..count] {
            let forgotten = self.runs.get(run).is_some_and(|run| run.forgotten);
            if *lost || forgotten || !of_interest(run) {
                continue;
            }
            if known(run, nonce).is_none_or(|known| *done && !known) {
                return broken(Promise::ResultsKnown, format!("{to} does not know the result of {nonce}"));
            }
        }
        Ok(())
    }

    /// A claim was acknowledged. `before`: so many results were recorded before it was asked.
    pub(crate) fn started(&mut self, id: &str, claim: Ballot, nonce: &str, before: usize) -> Result<(), Violation> {
        let done = |it: &&Recorded| it.run == id && it.done && !it.lost && it.nonce != nonce;
        let done = self.recorded[..before].iter().find(done);
        let run = self.runs.entry(id.to_owned()).or_default();
        if let Some(done) = done.filter(|_| !run.forgotten) {
            return broken(Promise::DoneIsDone, format!("{nonce} started, though {} was done before", done.nonce));
        }
        if run.started.as_ref().is_none_or(|(newest, _)| *newest < claim) {
            run.started = Some((claim, nonce.to_owned()));
        }
        self.claims_are_known(id)
    }

    /// The newest claim that started.
    pub(crate) fn newest(&self, id: &str) -> Option<Ballot> {
        self.runs.get(id).filter(|run| !run.forgotten)?.started.as_ref().map(|(claim, _)| *claim)
    }

    pub(crate) fn finished(&mut self, run: &str, nonce: &str, done: bool) {
        self.recorded.push(Recorded { run: run.to_owned(), nonce: nonce.to_owned(), done, lost: false });
    }

    /// Whether an attempt is recorded as done.
    pub(crate) fn is_done(&self, run: &str) -> bool {
        self.recorded.iter().any(|it| it.run == run && it.done && !it.lost)
    }

    /// Nothing is promised about a run any more.
    pub(crate) fn forget(&mut self, id: &str) {
        self.runs.entry(id.to_owned()).or_default().forgotten = true;
    }

    /// What a majority holds was told. `before`: so many results were recorded before it was asked, `claims`: the newest
    /// that had started then.
    pub(crate) fn looked(
        &self,
        ids: &[String],
        records: &[Record],
        before: usize,
        claims: &[Option<Ballot>],
    ) -> Result<(), Violation> {
        let find = |id: &str| records.iter().find(|record| record.id == id);
        for (id, claim) in ids.iter().zip(claims) {
            let forgotten = self.runs.get(id).is_some_and(|run| run.forgotten);
            if let Some(claim) = claim
                && !forgotten
                && find(id).is_none_or(|record| ballot(record) < *claim)
            {
                return broken(Promise::ClaimsKnown, format!("a look at {id} does not see the claim {claim:?}"));
            }
        }
        let known = |run: &str, nonce: &str| find(run).and_then(|run| run.result(nonce)).map(|it| it.done);
        self.results_are_known(before, |run| ids.iter().any(|id| id == run), known, "a look")
    }

    /// No majority has a memory any more: what no server has at all is lost, and must be said to be.
    /// One that is lost while another is being overcome needs no word of its own.
    pub(crate) fn lose(&mut self, lost: bool, nodes: &[&ModelNode]) {
        self.losses += 1;
        let mut any = false;
        let holds = |test: &dyn Fn(&Record) -> bool, id: &str| {
            nodes.iter().any(|node| node.memory().record(id).is_some_and(test))
        };
        for (id, run) in &mut self.runs {
            any |= run.started.take_if(|(claim, _)| !holds(&|record| ballot(record) >= *claim, id)).is_some();
        }
        for recorded in &mut self.recorded {
            let Recorded { run, nonce, done, .. } = &*recorded;
            let gone = !holds(&|record| record.result(nonce).is_some_and(|known| known.done || !done), run);
            any |= gone && !recorded.lost;
            recorded.lost |= gone;
        }
        self.unsaid |= any && lost;
    }

    /// Somebody said that memory was lost.
    pub(crate) fn loss_said(&mut self) {
        self.unsaid = false;
    }
}

pub(crate) fn broken<T>(promise: Promise, what: String) -> Result<T, Violation> {
    Err(Violation { promise, what })
}

/// Until when locks really last, by token and node.
#[derive(Debug, Default)]
pub(crate) struct Locks(BTreeMap<u64, Vec<u64>>);

impl Locks {
    pub(crate) fn set(&mut self, nodes: usize, token: u64, node: NodeId, until: u64) {
        self.0.entry(token).or_insert_with(|| vec![0; nodes])[node] = until;
        while self.0.len() > 8 {
            self.0.pop_first();
        }
    }

    /// Until when a majority of all nodes keep the lock; `None` if so old that it is not known any more.
    pub(crate) fn majority_until(&self, token: u64, majority: usize) -> Option<u64> {
        let mut until = self.0.get(&token)?.clone();
        until.sort_unstable_by(|a, b| b.cmp(a));
        until.get(majority - 1).copied()
    }

    /// On how many of `nodes` it was ever taken.
    pub(crate) fn taken(&self, token: u64, nodes: impl Iterator<Item = NodeId>) -> Option<usize> {
        let until = self.0.get(&token)?;
        Some(nodes.filter(|node| until[*node] > 0).count())
    }
}
