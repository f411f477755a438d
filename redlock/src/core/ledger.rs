//! Puts, finishes and forgets in flight (PROTOCOL 3 to 6).

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;

use super::election::Phase;
use super::{Action, Core, News, Node, NodeId, OpId, Purpose, Timer};
use crate::clock::Instant;
use crate::ledger::{FinishError, Put, PutError, ReadError};
use crate::message::{Body, Entry, Incarnation, Reply, Request, Verdict};
use crate::record::{self, Record, Records, RunResult};
use crate::rule::{Rule, Rules};

/// Something asked of the ledger that is not decided yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Operation {
    Put(Vec<Item>),
    Finish(Finish),
    Look(Look),
    Forget(Forget),
}

/// What a command is for within its operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Part {
    /// These items of a put, each with the order it was sent with.
    Items(Arc<[(usize, u64)]>),
    /// This round of a finish.
    Round(u64),
    /// A look or a forget.
    Whole,
}

/// One record to store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Item {
    record: Arc<Record>,
    claim: bool,
    acks: Acks,
    /// The claim was refused with this; what is stored instead has it (PROTOCOL 5).
    refused: Option<RunResult>,
    outcome: Option<Result<(), PutError>>,
}

/// A result to record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Finish {
    id: Arc<str>,
    result: Arc<RunResult>,
    round: u64,
    /// The lives that acknowledged the first round, while the second is under way.
    first: Option<Acks>,
    acks: Acks,
    refused: BTreeSet<NodeId>,
    deadline: Instant,
}

/// Records to tell of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Look {
    ids: Option<Arc<[String]>>,
    acks: Acks,
    found: BTreeMap<NodeId, Vec<Record>>,
    deadline: Instant,
}

/// Records to remove.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Forget {
    ids: Arc<[String]>,
    seq: u64,
    acks: Acks,
}

/// Which lives of which nodes acknowledged something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Acks(Vec<(NodeId, Incarnation)>);

impl Acks {
    fn add(&mut self, node: NodeId, life: Incarnation) {
        self.0.retain(|(of, _)| *of != node);
        self.0.push((node, life));
    }

    fn names(&self, node: NodeId, life: &Incarnation) -> bool {
        self.0.iter().any(|(of, by)| *of == node && by == life)
    }

    /// PROTOCOL 9: what a life that is gone acknowledged does not count.
    fn has(&self, id: NodeId, node: &Node) -> bool {
        node.incarnation.as_ref().is_some_and(|life| self.names(id, life))
    }

    fn count(&self, nodes: &[Node], rules: Rules) -> usize {
        if !rules.hold(Rule::DeadLives) {
            return self.0.len();
        }
        nodes.iter().enumerate().filter(|(id, node)| self.has(*id, node)).count()
    }
}

impl Core {
    pub(super) fn put(&mut self, op: OpId, token: u64, puts: Vec<Put>) {
        let Some(lead) = self.lead().filter(|lead| lead.token == token) else {
            let results = puts.iter().map(|_| Err(PutError::TermLost)).collect();
            return self.actions.push(Action::Put { op, results });
        };
        let items = puts.into_iter().map(|Put { id, attempt, nonce, data }| {
            let known = lead.records.get(&id).cloned();
            let claim = known.as_ref().is_none_or(|known| known.nonce != nonce);
            let done = known.as_ref().and_then(|known| known.done_by_other(&nonce)).cloned();
            let results = known.map(|known| known.results.clone()).unwrap_or_default();
            let seq = lead.next_seq();
            Item {
                record: Arc::new(Record { id, attempt, token, seq, nonce, data, results }),
                claim,
                acks: Acks::default(),
                refused: None,
                outcome: done.map(|done| Err(PutError::AlreadyDone(done))),
            }
        });
        let mut items: Vec<_> = items.collect();
        let mut ids = BTreeSet::new();
        for item in items.iter_mut().rev().filter(|item| !ids.insert(item.record.id.clone())) {
            item.outcome = Some(Err(PutError::Overtaken));
        }
        self.overtake(op, &items);
        self.begin(op, Operation::Put(items));
    }

    /// One write of a record at a time: a claim that is taken back would undo another that a majority has taken since.
    fn overtake(&mut self, op: OpId, items: &[Item]) {
        for item in items {
            let Some(earlier) = self.writing.insert(item.record.id.clone(), op) else { continue };
            if !self.rules.hold(Rule::OneWrite) {
                continue;
            }
            let Some(Operation::Put(items)) = self.operations.get_mut(&earlier) else { continue };
            let same = |other: &&mut Item| other.record.id == item.record.id && other.outcome.is_none();
            for item in items.iter_mut().filter(same) {
                item.outcome = Some(Err(PutError::Overtaken));
            }
            self.decide(earlier);
        }
    }

    pub(super) fn finish(&mut self, op: OpId, id: String, result: RunResult) {
        self.last_round += 1;
        let finish = Finish {
            id: id.into(),
            result: Arc::new(result),
            round: self.last_round,
            first: None,
            acks: Acks::default(),
            refused: BTreeSet::new(),
            deadline: self.now + self.timing.ttl,
        };
        self.begin(op, Operation::Finish(finish));
    }

    pub(super) fn look(&mut self, op: OpId, ids: Option<Vec<String>>) {
        let deadline = self.now + self.timing.ledger_timeout();
        let look = Look { ids: ids.map(Into::into), acks: Acks::default(), found: BTreeMap::new(), deadline };
        self.begin(op, Operation::Look(look));
    }

    pub(super) fn forget(&mut self, op: OpId, token: u64, ids: Vec<String>) {
        let Some(lead) = self.lead().filter(|lead| lead.token == token) else {
            return self.actions.push(Action::Forget { op, result: Err(PutError::TermLost) });
        };
        let seq = lead.next_seq();
        self.begin(op, Operation::Forget(Forget { ids: ids.into(), seq, acks: Acks::default() }));
    }

    fn begin(&mut self, op: OpId, operation: Operation) {
        if self.operations.is_empty() {
            self.set_repeat();
        }
        self.operations.insert(op, operation);
        for node in 0..self.nodes.len() {
            self.send_operation(op, node);
        }
        self.decide(op);
    }

    fn set_repeat(&mut self) {
        let timeout = self.timing.node_timeout();
        self.set_timer(Timer::Repeat, self.now + timeout / 2, timeout / 2);
    }

    /// Asks again whoever has not acknowledged and is not being asked: what is in doubt is repeated, never assumed.
    pub(super) fn repeat(&mut self) {
        let mut asked = BTreeSet::new();
        for call in self.calls.values() {
            if let Purpose::Operation(op, _) = call.purpose {
                asked.insert((op, call.node));
            }
        }
        let ops: Vec<_> = self.operations.keys().copied().collect();
        for op in ops {
            let idle = (0..self.nodes.len()).all(|node| !asked.contains(&(op, node)));
            if self.expire(op) {
                continue;
            }
            if let Some(Operation::Finish(finish)) = self.operations.get_mut(&op)
                && idle
                && finish.first.is_some()
            {
                // The second round cannot complete any more; both are asked anew.
                self.last_round += 1;
                finish.round = self.last_round;
                finish.first = None;
                finish.acks = Acks::default();
            }
            for node in 0..self.nodes.len() {
                if !asked.contains(&(op, node)) {
                    self.send_operation(op, node);
                }
            }
        }
        if !self.operations.is_empty() {
            self.set_repeat();
        }
    }

    /// What does not belong to a term ends in time, for who asked to ask again.
    fn expire(&mut self, op: OpId) -> bool {
        match self.operations.get(&op) {
            Some(Operation::Finish(finish)) if self.now >= finish.deadline => {
                self.end_finish(op, Err(FinishError::Unreachable));
            }
            Some(Operation::Look(look)) if self.now >= look.deadline => {
                self.operations.remove(&op);
                self.actions.push(Action::Look { op, result: Err(ReadError::Unreachable) });
            }
            _ => return false,
        }
        true
    }

    /// Sends a node what it has not acknowledged of an operation.
    fn send_operation(&mut self, op: OpId, id: NodeId) {
        let node = &self.nodes[id];
        let (request, part) = match self.operations.get(&op) {
            Some(Operation::Put(items)) => {
                let Some(token) = self.leads() else { return };
                let open = |item: &Item| item.outcome.is_none() && !item.acks.has(id, node);
                let open: Vec<_> = items.iter().enumerate().filter(|(_, item)| open(item)).collect();
                if open.is_empty() {
                    return;
                }
                let entries = open.iter().map(|(_, item)| Entry { record: item.record.clone(), claim: item.claim });
                let sent = open.iter().map(|(index, item)| (*index, item.record.seq));
                (Request::Put { token, entries: entries.collect() }, Part::Items(sent.collect()))
            }
            Some(Operation::Finish(finish)) => {
                // The second round goes to those that acknowledged the first.
                let wanted = finish.first.as_ref().is_none_or(|first| first.has(id, node));
                if !wanted || finish.acks.has(id, node) {
                    return;
                }
                let request = Request::Finish { id: finish.id.clone(), result: finish.result.clone() };
                (request, Part::Round(finish.round))
            }
            Some(Operation::Look(look)) => {
                if look.acks.has(id, node) {
                    return;
                }
                (Request::Look { ids: look.ids.clone() }, Part::Whole)
            }
            Some(Operation::Forget(forget)) => {
                let Some(token) = self.leads() else { return };
                if forget.acks.has(id, node) {
                    return;
                }
                (Request::Forget { token, seq: forget.seq, ids: forget.ids.clone() }, Part::Whole)
            }
            None => return,
        };
        self.send(id, request, Purpose::Operation(op, part));
    }

    pub(super) fn operation_reply(&mut self, op: OpId, part: Part, id: NodeId, reply: Option<Reply>) {
        let Some(reply) = reply else { return };
        match (self.operations.get_mut(&op), part) {
            (Some(Operation::Put(_) | Operation::Forget(_)), _) if !reply.accepted => {
                if reply.intact && self.leads().is_some_and(|token| reply.promised < token) {
                    self.join(id);
                }
                self.give_way();
            }
            (Some(Operation::Put(_)), Part::Items(sent)) => {
                let Body::Verdicts(verdicts) = reply.body else { return };
                for ((index, seq), verdict) in sent.iter().zip(verdicts) {
                    self.item_reply(op, *index, *seq, id, &reply.incarnation, verdict);
                }
            }
            (Some(Operation::Finish(finish)), Part::Round(round)) if finish.round == round => {
                // The second round counts only for the lives that acknowledged the first.
                let counts = finish.first.as_ref().is_none_or(|first| first.names(id, &reply.incarnation));
                if reply.accepted && counts {
                    finish.refused.remove(&id);
                    finish.acks.add(id, reply.incarnation);
                } else if !reply.accepted && reply.intact {
                    finish.refused.insert(id);
                }
            }
            (Some(Operation::Look(look)), Part::Whole) => {
                let Body::Records(records) = reply.body else { return };
                look.acks.add(id, reply.incarnation);
                look.found.insert(id, records);
            }
            (Some(Operation::Forget(forget)), Part::Whole) => forget.acks.add(id, reply.incarnation),
            _ => {}
        }
        self.decide(op);
    }

    fn item_reply(&mut self, op: OpId, index: usize, seq: u64, node: NodeId, life: &Incarnation, verdict: Verdict) {
        let Some(Operation::Put(items)) = self.operations.get_mut(&op) else { return };
        let item = &mut items[index];
        // An answer about what was sent before the item was corrected says nothing about it.
        if item.outcome.is_some() || item.record.seq != seq {
            return;
        }
        match verdict {
            Verdict::Stored => item.acks.add(node, life.clone()),
            Verdict::Overtaken => item.outcome = Some(Err(PutError::Overtaken)),
            Verdict::Done(stored) => {
                let Some(result) = stored.done_by_other(&item.record.nonce).cloned() else { return };
                let Phase::Leading(lead) = &mut self.phase else { return };
                // PROTOCOL 5: the claim is dropped, and the result put at a higher seq over what became of it.
                let known = lead.records.get(&stored.id).map(|known| Record::clone(known));
                let (token, seq) = (lead.token, lead.next_seq());
                let merged = match known {
                    Some(known) => known.merge(stored),
                    None => stored,
                };
                item.record = Arc::new(Record { token, seq, ..merged });
                item.claim = false;
                item.acks = Acks::default();
                item.refused = Some(result);
                for node in 0..self.nodes.len() {
                    let Some(Operation::Put(items)) = self.operations.get(&op) else { return };
                    let entry = Entry { record: items[index].record.clone(), claim: false };
                    let part = Part::Items(Arc::new([(index, seq)]));
                    self.send(node, Request::Put { token, entries: Arc::new([entry]) }, Purpose::Operation(op, part));
                }
            }
        }
    }

    /// Draws the conclusion from the acknowledgements of an operation so far.
    fn decide(&mut self, op: OpId) {
        let majority = self.majority();
        match self.operations.get_mut(&op) {
            Some(Operation::Put(items)) => {
                let mut stored = Vec::new();
                let needed = if self.rules.hold(Rule::ClaimMajority) { majority } else { 1 };
                for item in items.iter_mut().filter(|item| item.outcome.is_none()) {
                    if item.acks.count(&self.nodes, self.rules) >= needed {
                        item.outcome =
                            Some(item.refused.take().map_or(Ok(()), |done| Err(PutError::AlreadyDone(done))));
                        stored.push(item.record.clone());
                    }
                }
                let decided = items.iter().all(|item| item.outcome.is_some());
                self.record(stored);
                if decided && let Some(Operation::Put(items)) = self.operations.remove(&op) {
                    for item in &items {
                        if self.writing.get(&item.record.id) == Some(&op) {
                            self.writing.remove(&item.record.id);
                        }
                    }
                    let results = items.into_iter().filter_map(|item| item.outcome).collect();
                    self.actions.push(Action::Put { op, results });
                }
            }
            Some(Operation::Finish(finish)) => {
                if finish.acks.count(&self.nodes, self.rules) >= majority {
                    if finish.first.is_some() || !self.rules.hold(Rule::FinishTwice) {
                        return self.end_finish(op, Ok(()));
                    }
                    // PROTOCOL 6: a second round, sent after the first majority, to the lives that were in it.
                    self.last_round += 1;
                    finish.round = self.last_round;
                    finish.first = Some(mem::take(&mut finish.acks));
                    for node in 0..self.nodes.len() {
                        self.send_operation(op, node);
                    }
                } else if finish.refused.len() >= majority {
                    self.end_finish(op, Err(FinishError::NotCurrent));
                }
            }
            Some(Operation::Look(look)) if look.acks.count(&self.nodes, self.rules) >= majority => {
                let mut merged = Records::new();
                let alive = |id: &NodeId| look.acks.has(*id, &self.nodes[*id]);
                for (_, records) in mem::take(&mut look.found).into_iter().filter(|(id, _)| alive(id)) {
                    record::merge_into(&mut merged, records, self.rules);
                }
                self.operations.remove(&op);
                let records = merged.into_values().map(Arc::unwrap_or_clone).collect();
                self.actions.push(Action::Look { op, result: Ok(records) });
            }
            Some(Operation::Forget(forget)) if forget.acks.count(&self.nodes, self.rules) >= majority => {
                let ids = forget.ids.clone();
                self.operations.remove(&op);
                if let Some(lead) = self.lead() {
                    for id in &*ids {
                        lead.records.remove(id);
                    }
                }
                self.actions.push(Action::Announce(News::Forgotten(ids)));
                self.actions.push(Action::Forget { op, result: Ok(()) });
            }
            _ => {}
        }
    }

    fn end_finish(&mut self, op: OpId, result: Result<(), FinishError>) {
        let Some(Operation::Finish(finish)) = self.operations.remove(&op) else { return };
        if result.is_ok()
            && let Some(lead) = self.lead()
            && let Some(known) = lead.records.get(&*finish.id)
        {
            let mut record = Record::clone(known);
            record.add_result(RunResult::clone(&finish.result));
            self.record(vec![Arc::new(record)]);
        }
        self.actions.push(Action::Finish { op, result });
    }

    /// Takes in what a majority has stored.
    fn record(&mut self, stored: Vec<Arc<Record>>) {
        let Some(lead) = self.lead() else { return };
        if stored.is_empty() {
            return;
        }
        let stored: Vec<_> = stored
            .into_iter()
            .map(|record| match lead.records.get(&record.id) {
                Some(known) if **known != *record => Arc::new(Record::clone(known).merge(Arc::unwrap_or_clone(record))),
                _ => record,
            })
            .collect();
        lead.records.extend(stored.iter().map(|record| (record.id.clone(), record.clone())));
        self.actions.push(Action::Announce(News::Recorded(stored)));
    }

    /// The records of claims and other writes that are not decided yet.
    pub(super) fn in_flight(&self) -> Vec<Record> {
        let puts = self.operations.values().filter_map(|operation| match operation {
            Operation::Put(items) => Some(items),
            _ => None,
        });
        let open = puts.flatten().filter(|item| item.outcome.is_none());
        open.map(|item| Record::clone(&item.record)).collect()
    }

    /// The term is over: what it had in flight is in doubt for ever. Results do not depend on it.
    pub(super) fn end_terms_operations(&mut self) {
        self.writing.clear();
        for (op, operation) in mem::take(&mut self.operations) {
            match operation {
                Operation::Put(items) => {
                    let outcome = |item: Item| item.outcome.unwrap_or(Err(PutError::TermLost));
                    let results = items.into_iter().map(outcome).collect();
                    self.actions.push(Action::Put { op, results });
                }
                Operation::Forget(_) => self.actions.push(Action::Forget { op, result: Err(PutError::TermLost) }),
                Operation::Finish(_) | Operation::Look(_) => _ = self.operations.insert(op, operation),
            }
        }
    }

    /// Gives up everything in flight, before another core takes the place of this one.
    #[must_use]
    pub fn abandon(&mut self) -> Vec<Action> {
        self.end_terms_operations();
        for (op, operation) in mem::take(&mut self.operations) {
            match operation {
                Operation::Look(_) => self.actions.push(Action::Look { op, result: Err(ReadError::Unreachable) }),
                Operation::Finish(_) => {
                    self.actions.push(Action::Finish { op, result: Err(FinishError::Unreachable) });
                }
                Operation::Put(_) | Operation::Forget(_) => {}
            }
        }
        mem::take(&mut self.actions)
    }
}
