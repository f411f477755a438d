//! What the nodes remember of a run, and how two memories of it become one (PROTOCOL 2, 4).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::rule::{Rule, Rules};

/// A run as its claim and its results have it.
///
/// `(token, seq)` is the ballot of the last write: a new leader writes what it read with its own token, so it tells who
/// wrote last, not who started the run. Who needs the latter puts it into `data`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// Which run; one record a run.
    pub id: String,
    /// Which attempt at it, from 1.
    pub attempt: u32,
    /// Token of the leader that wrote this last.
    pub token: u64,
    /// Its order among the writes of that leader.
    pub seq: u64,
    /// Names the attempt; a result is recorded by it, whoever leads by then.
    pub nonce: String,
    /// What the engine keeps there; not looked into.
    pub data: Value,
    /// Results of this and of earlier attempts; they are never removed (PROTOCOL 4).
    pub results: Vec<RunResult>,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RunResult {
    /// Which attempt.
    pub nonce: String,
    /// The run is done: no other attempt at it may start (PROTOCOL 5). A failed attempt that may be tried again is not.
    pub done: bool,
    /// What the engine keeps there; not looked into.
    pub data: Value,
}

impl Record {
    /// The result of the attempt `nonce`.
    #[must_use]
    pub fn result(&self, nonce: &str) -> Option<&RunResult> {
        self.results.iter().find(|result| result.nonce == nonce)
    }

    /// A result that forbids a claim by the attempt `nonce` (PROTOCOL 5).
    #[must_use]
    pub fn done_by_other(&self, nonce: &str) -> Option<&RunResult> {
        self.results.iter().find(|result| result.done && result.nonce != nonce)
    }

    /// Adds a result. The first one of an attempt stays (PROTOCOL 4), but for one thing: somebody may give an attempt up
    /// that another one then sees done, and done goes before given up, wherever the two meet.
    pub fn add_result(&mut self, result: RunResult) {
        match self.results.binary_search_by(|known| known.nonce.cmp(&result.nonce)) {
            Ok(at) if result.done && !self.results[at].done => self.results[at] = result,
            Ok(_) => {}
            Err(at) => self.results.insert(at, result),
        }
    }

    /// The claim with the highest ballot, and the union of results (PROTOCOL 4).
    #[must_use]
    pub fn merge(mut self, mut other: Self) -> Self {
        if (other.token, other.seq) > (self.token, self.seq) {
            std::mem::swap(&mut self, &mut other);
        }
        for result in other.results {
            self.add_result(result);
        }
        self
    }
}

/// Records by id.
pub type Records = BTreeMap<String, Arc<Record>>;

/// Merges what one more node remembers into `all`.
pub fn merge_into(all: &mut Records, records: impl IntoIterator<Item = Record>, rules: Rules) {
    for record in records {
        match all.get_mut(&record.id) {
            Some(known) if !rules.hold(Rule::UnionOfResults) => {
                if (record.token, record.seq) > (known.token, known.seq) {
                    *known = Arc::new(record);
                }
            }
            Some(known) => *known = Arc::new(merge(Record::clone(known), record, rules)),
            None => _ = all.insert(record.id.clone(), Arc::new(record)),
        }
    }
}

/// Whether a write of one token and order comes before another one.
pub(crate) fn is_before(one: (u64, u64), other: (u64, u64), rules: Rules) -> bool {
    if rules.hold(Rule::BallotOrder) {
        return one < other;
    }
    let text = |(token, seq): (u64, u64)| (token.to_string(), seq.to_string());
    text(one) < text(other)
}

/// As [`Record::merge`], by these rules.
fn merge(mut one: Record, mut other: Record, rules: Rules) -> Record {
    if rules.hold(Rule::BallotOrder) {
        return one.merge(other);
    }
    if is_before((one.token, one.seq), (other.token, other.seq), rules) {
        std::mem::swap(&mut one, &mut other);
    }
    // What is taken for the newer one is made to be so.
    let ballot = (one.token, one.seq);
    (one.token, one.seq) = (u64::MAX, u64::MAX);
    Record { token: ballot.0, seq: ballot.1, ..one.merge(other) }
}

/// A record as a node stores it: numbers as text, for the JSON of Redis rounds them, and `data` as text, for it would
/// lose the difference of `{}` and `[]`.
#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(rename = "a")]
    attempt: String,
    #[serde(rename = "t")]
    token: String,
    #[serde(rename = "s")]
    seq: String,
    #[serde(rename = "n")]
    nonce: String,
    #[serde(rename = "d")]
    data: String,
    /// By nonce: `1` for done or `0`, and the data.
    #[serde(rename = "r")]
    results: BTreeMap<String, String>,
}

/// Why what a node holds is no record.
#[derive(Debug, thiserror::Error)]
#[error("record {id:?} cannot be read")]
pub struct Unreadable {
    id: String,
    source: serde_json::Error,
}

impl Record {
    /// As a node stores it.
    #[must_use]
    pub fn encode(&self) -> String {
        let stored = Stored {
            attempt: self.attempt.to_string(),
            token: self.token.to_string(),
            seq: self.seq.to_string(),
            nonce: self.nonce.clone(),
            data: self.data.to_string(),
            results: self.results.iter().map(|result| (result.nonce.clone(), result.encode())).collect(),
        };
        serde_json::json!(stored).to_string()
    }

    /// From what a node stores.
    ///
    /// # Errors
    /// It was not written by [`Record::encode`] and the scripts.
    pub fn decode(id: &str, stored: &str) -> Result<Self, Unreadable> {
        let decode = || {
            use serde::de::Error as _;
            let stored: Stored = serde_json::from_str(stored)?;
            let results = stored.results.into_iter().map(|(nonce, stored)| RunResult::decode(nonce, &stored));
            Ok(Self {
                id: id.to_owned(),
                attempt: stored.attempt.parse().map_err(serde_json::Error::custom)?,
                token: stored.token.parse().map_err(serde_json::Error::custom)?,
                seq: stored.seq.parse().map_err(serde_json::Error::custom)?,
                nonce: stored.nonce,
                data: serde_json::from_str(&stored.data)?,
                results: results.collect::<Result<_, _>>()?,
            })
        };
        decode().map_err(|source| Unreadable { id: id.to_owned(), source })
    }
}

impl RunResult {
    /// As a node stores it beside its nonce.
    #[must_use]
    pub fn encode(&self) -> String {
        format!("{}{}", u8::from(self.done), self.data)
    }

    fn decode(nonce: String, stored: &str) -> Result<Self, serde_json::Error> {
        let (done, data) = match stored.strip_prefix('1') {
            Some(data) => (true, data),
            None => (false, stored.strip_prefix('0').unwrap_or(stored)),
        };
        Ok(Self { nonce, done, data: serde_json::from_str(data)? })
    }
}
