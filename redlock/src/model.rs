//! A node without Redis, for simulators and model checkers: it does what the scripts do, and a test holds them together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Instant;
use crate::message::{Body, Entry, Incarnation, Reply, Request, Verdict, Wake};
use crate::record::{Record, RunResult, is_before};
use crate::rule::{Rule, Rules};
use crate::{AgentId, Owner};

/// One Redis server with the memory of one election.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelNode {
    run: Arc<str>,
    memory: Memory,
    rules: Rules,
    /// How many hear what it publishes.
    pub listeners: u32,
}

/// What a server holds, and may keep, lose or get back from an earlier time when it is started again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Memory {
    /// The life that this memory is of.
    seeded: Option<Incarnation>,
    /// The life that is to be seeded.
    marked: Option<Incarnation>,
    promised: u64,
    led: bool,
    lock: Option<Lock>,
    stand: Option<Stand>,
    records: BTreeMap<String, Record>,
}

/// The lock, while it is taken.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Lock {
    value: String,
    until: Instant,
    /// For how long it was taken; not known of another client's.
    ttl: Option<Duration>,
}

/// That a candidate of a revision stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Stand {
    revision: u64,
    until: Instant,
    ttl: Duration,
}

impl Memory {
    /// What it holds of a run.
    #[must_use]
    pub fn record(&self, id: &str) -> Option<&Record> {
        self.records.get(id)
    }
}

impl ModelNode {
    /// An empty server.
    #[must_use]
    pub fn new(run: &str, rules: Rules) -> Self {
        Self { run: run.into(), memory: Memory::default(), rules, listeners: 2 }
    }

    /// What it holds now.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The server was started again, or another one took its place, with what is left of some memory.
    pub fn restart(&mut self, run: &str, memory: Memory) {
        self.run = run.into();
        self.memory = memory;
    }

    /// FLUSHALL.
    pub fn flush(&mut self) {
        self.memory = Memory::default();
    }

    /// Whether the memory is of this life of the server.
    #[must_use]
    pub fn intact(&self) -> bool {
        self.memory.seeded.as_ref().is_some_and(|life| life.run == self.run) || !self.rules.hold(Rule::Amnesia)
    }

    /// The life that answers.
    #[must_use]
    pub fn life(&self) -> Incarnation {
        let Memory { seeded, marked, .. } = &self.memory;
        let life = if self.intact() { seeded } else { marked };
        let mark = life.as_ref().filter(|life| life.run == self.run).map(|life| life.mark.clone());
        Incarnation { run: self.run.clone(), mark: mark.unwrap_or_default() }
    }

    /// The lock is gone, at whatever moment: clocks that cannot be trusted.
    pub fn expire(&mut self) {
        self.memory.lock = None;
    }

    /// `SET lock value PX ttl` by another Redlock client; `false` if it is taken.
    pub fn lock(&mut self, now: Instant, value: &str, ttl: Duration) -> bool {
        let free = self.owner(now).is_none();
        if free {
            self.memory.lock = Some(Lock { value: value.to_owned(), until: now + ttl, ttl: None });
        }
        free
    }

    /// A lock lasts for its ttl and no longer, and so does the mark of who stands. They seem to last longer where they were
    /// taken while the clock was ahead, which has been set right since; the holder believes in no more than the ttl.
    fn cut(&mut self, now: Instant) {
        if !self.rules.hold(Rule::Cut) {
            return;
        }
        if let Some(Lock { until, ttl: Some(ttl), .. }) = &mut self.memory.lock {
            *until = (*until).min(now + *ttl);
        }
        if let Some(Stand { until, ttl, .. }) = &mut self.memory.stand {
            *until = (*until).min(now + *ttl);
        }
    }

    fn owner(&self, now: Instant) -> Option<&str> {
        self.memory.lock.as_ref().filter(|lock| lock.until > now).map(|lock| lock.value.as_str())
    }

    fn standing(&self, now: Instant) -> u64 {
        self.memory.stand.filter(|stand| stand.until > now).map_or(0, |stand| stand.revision)
    }

    /// Carries out a request at `now` of its own clock: the answer, and what is published.
    pub fn apply(&mut self, now: Instant, request: &Request) -> (Reply, Vec<Wake>) {
        self.cut(now);
        let mut wakes = Vec::new();
        let led = self.memory.led;
        let body = match request {
            Request::Release { owner, publish } => (self.owner(now) == Some(&owner.to_string())).then(|| {
                self.memory.lock = None;
                wakes.extend(publish.then(|| Wake::Free { owner: owner.clone(), listeners: self.listeners }));
                Body::Empty
            }),
            Request::Stand { revision, ttl } => (self.standing(now) <= *revision).then(|| {
                self.memory.stand = Some(Stand { revision: *revision, until: now + *ttl, ttl: *ttl });
                wakes.push(Wake::Stand { revision: *revision, ttl: *ttl });
                Body::Empty
            }),
            Request::Mark { mark } => (!self.intact()).then(|| {
                self.memory.marked = Some(Incarnation { run: self.run.clone(), mark: mark.clone() });
                Body::Empty
            }),
            Request::Recall { life } => (!self.intact() && self.is_marked(life))
                .then(|| Body::Records(self.memory.records.values().cloned().collect())),
            Request::Seed { life, promised, led, records } => self.may_seed(life).then(|| {
                self.memory = Memory {
                    seeded: Some(Incarnation { run: self.run.clone(), mark: life.mark.clone() }),
                    marked: None,
                    promised: *promised,
                    led: *led,
                    lock: self.memory.lock.take(),
                    stand: self.memory.stand,
                    records: records.iter().map(|record| (record.id.clone(), Record::clone(record))).collect(),
                };
                Body::Empty
            }),
            _ if !self.intact() => None,
            Request::Grant { token, agent, revision, ttl, former } => {
                let refused = !self.may_grant(now, *token, agent, *revision, former.as_ref());
                (!refused).then(|| {
                    let owner = Owner::Agent { agent: agent.clone(), revision: *revision, token: *token };
                    self.memory.promised = *token;
                    self.memory.lock = Some(Lock { value: owner.to_string(), until: now + *ttl, ttl: Some(*ttl) });
                    wakes.push(Wake::Held { owner, ttl: *ttl });
                    Body::Empty
                })
            }
            Request::Renew { token, owner, ttl } => {
                let value = owner.to_string();
                let mine = self.memory.promised == *token && self.owner(now).is_none_or(|held| held == value);
                mine.then(|| {
                    self.memory.led = true;
                    self.memory.lock = Some(Lock { value, until: now + *ttl, ttl: Some(*ttl) });
                    wakes.push(Wake::Held { owner: owner.clone(), ttl: *ttl });
                    Body::Empty
                })
            }
            Request::Read { token } => (self.memory.promised == *token || !self.rules.hold(Rule::FencedRead))
                .then(|| Body::Records(self.memory.records.values().cloned().collect())),
            Request::Put { token, entries } => (self.memory.promised == *token || !self.rules.hold(Rule::FencedPut))
                .then(|| {
                    self.memory.led = true;
                    Body::Verdicts(entries.iter().map(|entry| self.put(*token, entry)).collect())
                }),
            Request::Finish { id, result } => self.finish(id, result).then_some(Body::Empty),
            Request::Look { ids: Some(ids) } => {
                Some(Body::Records(ids.iter().filter_map(|id| self.memory.records.get(id)).cloned().collect()))
            }
            Request::Look { ids: None } => Some(Body::Records(self.memory.records.values().cloned().collect())),
            Request::Forget { token, seq, ids } => (self.memory.promised == *token).then(|| {
                for id in ids.iter() {
                    if self.memory.records.get(id).is_some_and(|known| (known.token, known.seq) <= (*token, *seq)) {
                        self.memory.records.remove(id);
                    }
                }
                Body::Empty
            }),
        };
        if self.memory.led && !led && !matches!(request, Request::Seed { .. }) {
            wakes.insert(0, Wake::Led);
        }
        let left = |until: Instant| until.since(now);
        let reply = Reply {
            incarnation: self.life(),
            intact: self.intact(),
            promised: self.memory.promised,
            led: self.memory.led,
            owner: self
                .owner(now)
                .map(|value| (Owner::parse(value), self.memory.lock.as_ref().map(|lock| left(lock.until)))),
            stand: self.memory.stand.filter(|it| it.until > now).map(|it| (it.revision, left(it.until))),
            time: now.as_nanos() / 1000,
            accepted: body.is_some(),
            body: body.unwrap_or(Body::Empty),
        };
        (reply, wakes)
    }

    fn is_marked(&self, life: &Incarnation) -> bool {
        life.run == self.run && self.memory.marked.as_ref() == Some(life)
    }

    /// PROTOCOL 1.
    fn may_grant(&self, now: Instant, token: u64, agent: &AgentId, revision: u64, former: Option<&Owner>) -> bool {
        let owner = self.owner(now);
        let mine = owner.is_some_and(|value| {
            let former = former.is_some_and(|former| former.to_string() == value);
            let same_process = value.starts_with(&format!("{agent}/"));
            let same_pod = !self.rules.hold(Rule::FormerSeen) && value.starts_with(&agent.pod_prefix());
            same_process || former || same_pod
        });
        let stale = if self.rules.hold(Rule::StrictPromise) {
            token <= self.memory.promised
        } else {
            token < self.memory.promised
        };
        let foreign = owner.is_some() && !mine;
        !foreign && !stale && self.standing(now) <= revision
    }

    /// PROTOCOL 7d.
    fn may_seed(&self, life: &Incarnation) -> bool {
        let again = !self.rules.hold(Rule::SeedAmnesiacOnly) && self.memory.seeded.as_ref() == Some(life);
        let open = !self.intact() && (self.is_marked(life) || !self.rules.hold(Rule::SeedOneLife));
        open || again
    }

    fn put(&mut self, token: u64, Entry { record, claim }: &Entry) -> Verdict {
        let mut record = Record::clone(record);
        if let Some(known) = self.memory.records.get(&record.id) {
            if *claim && known.done_by_other(&record.nonce).is_some() && self.rules.hold(Rule::ClaimRefusal) {
                return Verdict::Done(known.clone());
            }
            let is_older = is_before((token, record.seq), (known.token, known.seq), self.rules);
            if is_older && self.rules.hold(Rule::PutOrder) {
                return Verdict::Overtaken;
            }
            if self.rules.hold(Rule::StickyResults) {
                // What is known here goes before what is brought.
                let brought = std::mem::replace(&mut record.results, known.results.clone());
                for result in brought {
                    record.add_result(result);
                }
            }
        }
        self.memory.records.insert(record.id.clone(), record);
        Verdict::Stored
    }

    fn finish(&mut self, id: &str, result: &RunResult) -> bool {
        let Some(known) = self.memory.records.get_mut(id) else { return false };
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
