//! A node without Redis, for simulators and model checkers: it does what the scripts do, and a test holds them together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Owner;
use super::message::{Body, Entry, Incarnation, Reply, Request, Verdict, Wake};
use super::record::{Record, RunResult};
use crate::clock::Instant;

/// One Redis server with the memory of one election.
#[derive(Clone, Debug)]
pub struct ModelNode {
    run: Arc<str>,
    mark: Option<Arc<str>>,
    /// The run id under which the memory was begun.
    adopted: Option<Arc<str>>,
    promised: u64,
    floor: u64,
    lock: Option<(String, Option<Instant>)>,
    stand: Option<(u64, Instant)>,
    records: BTreeMap<String, Record>,
}

impl ModelNode {
    /// An empty server.
    #[must_use]
    pub fn new(run: &str, floor: u64) -> Self {
        Self {
            run: run.into(),
            mark: None,
            adopted: None,
            promised: 0,
            floor,
            lock: None,
            stand: None,
            records: BTreeMap::new(),
        }
    }

    /// The server was started again, with all it had.
    pub fn restart(&mut self, run: &str) {
        self.run = run.into();
    }

    /// The lock is gone, at whatever moment: clocks that cannot be trusted.
    pub fn expire(&mut self) {
        self.lock = None;
    }

    /// `SET lock value PX ttl` by another Redlock client; `false` if it is taken.
    pub fn lock(&mut self, now: Instant, value: &str, ttl: Duration) -> bool {
        let free = self.owner(now).is_none();
        if free {
            self.lock = Some((value.to_owned(), Some(now + ttl)));
        }
        free
    }

    fn owner(&self, now: Instant) -> Option<&str> {
        let (value, until) = self.lock.as_ref()?;
        until.is_none_or(|until| until > now).then_some(value.as_str())
    }

    fn standing(&self, now: Instant) -> u64 {
        self.stand.filter(|(_, until)| *until > now).map_or(0, |(revision, _)| revision)
    }

    /// Carries out a request at `now` of its own clock: the answer, and what is published.
    pub fn apply(&mut self, now: Instant, request: &Request) -> (Reply, Option<Wake>) {
        if self.adopted.as_ref() != Some(&self.run) {
            self.adopted = Some(self.run.clone());
            self.mark = Some(now.as_nanos().to_string().into());
            self.promised = self.promised.max(self.floor);
        }
        let mut wake = None;
        let body = match request {
            Request::Grant { token, agent, revision, ttl } => {
                let owner = self.owner(now);
                let mine = owner.is_some_and(|value| value.starts_with(&format!("{agent}/")));
                let refused = (owner.is_some() && !mine) || *token <= self.promised || self.standing(now) > *revision;
                (!refused).then(|| {
                    let owner = Owner::Agent { agent: agent.clone(), revision: *revision, token: *token };
                    self.promised = *token;
                    self.lock = Some((owner.to_string(), Some(now + *ttl)));
                    Body::Empty
                })
            }
            Request::Renew { token, owner, ttl } => {
                let value = owner.to_string();
                let mine = self.promised == *token && self.owner(now).is_none_or(|held| held == value);
                mine.then(|| {
                    self.lock = Some((value, Some(now + *ttl)));
                    wake = Some(Wake::Held { owner: owner.clone(), ttl: *ttl });
                    Body::Empty
                })
            }
            Request::Release { owner, publish } => (self.owner(now) == Some(&owner.to_string())).then(|| {
                self.lock = None;
                wake = publish.then(|| Wake::Free { owner: owner.clone() });
                Body::Empty
            }),
            Request::Stand { revision, ttl } => (self.standing(now) <= *revision).then(|| {
                self.stand = Some((*revision, now + *ttl));
                wake = Some(Wake::Stand { revision: *revision, ttl: *ttl });
                Body::Empty
            }),
            Request::Read { token } => {
                (self.promised == *token).then(|| Body::Records(self.records.values().cloned().collect()))
            }
            Request::Put { token, entries } => (self.promised == *token)
                .then(|| Body::Verdicts(entries.iter().map(|entry| self.put(*token, entry)).collect())),
            Request::Finish { id, result } => self.finish(id, result).then_some(Body::Empty),
            Request::Look { ids } => {
                Some(Body::Records(ids.iter().filter_map(|id| self.records.get(id)).cloned().collect()))
            }
            Request::Forget { token, seq, ids } => (self.promised == *token).then(|| {
                for id in ids.iter() {
                    if self.records.get(id).is_some_and(|known| (known.token, known.seq) <= (*token, *seq)) {
                        self.records.remove(id);
                    }
                }
                Body::Empty
            }),
        };
        let left = |until: Instant| until.since(now);
        let reply = Reply {
            incarnation: Incarnation { run: self.run.clone(), mark: self.mark.clone().unwrap_or_default() },
            promised: self.promised,
            owner: self
                .owner(now)
                .map(|value| (Owner::parse(value), self.lock.as_ref().and_then(|(_, until)| *until).map(left))),
            stand: self.stand.filter(|(_, until)| *until > now).map(|(revision, until)| (revision, left(until))),
            time: now.as_nanos() / 1000,
            accepted: body.is_some(),
            body: body.unwrap_or(Body::Empty),
        };
        (reply, wake)
    }

    fn put(&mut self, token: u64, Entry { record, claim }: &Entry) -> Verdict {
        let mut record = Record::clone(record);
        if let Some(known) = self.records.get(&record.id) {
            if *claim && known.done_by_other(&record.nonce).is_some() {
                return Verdict::Done(known.clone());
            }
            if (known.token, known.seq) > (token, record.seq) {
                return Verdict::Overtaken;
            }
            // What is known here goes before what is brought.
            let brought = std::mem::replace(&mut record.results, known.results.clone());
            for result in brought {
                record.add_result(result);
            }
        }
        self.records.insert(record.id.clone(), record);
        Verdict::Stored
    }

    fn finish(&mut self, id: &str, result: &RunResult) -> bool {
        let Some(known) = self.records.get_mut(id) else { return false };
        if known.result(&result.nonce).is_some_and(|known| known.done || !result.done) {
            return true;
        }
        let current = known.nonce == result.nonce;
        if current {
            known.add_result(result.clone());
        }
        current
    }
}
