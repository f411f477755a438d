//! Waiting, trying, leading, resigning (PROTOCOL 1, 2).

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use super::clocks::Clock;
use super::seed::{Bootstrap, Seeding};
use super::{Action, Core, News, NodeId, Purpose, Timer, Told};
use crate::clock::Instant;
use crate::message::{Body, Entry, Incarnation, Reply, Request, Verdict};
use crate::record::{self, Record, Records};
use crate::rule::Rule;
use crate::{Candidacy, Owner, Timing};

/// The first wait after tries that split the nodes among themselves is random within this; it doubles from there.
const BACKOFF: Duration = Duration::from_millis(5);
/// No wait after a failed try is longer.
const BACKOFF_LIMIT: Duration = Duration::from_secs(1);
/// Once a majority of a leader's nodes are free, the others follow within this.
const RELEASE: Duration = Duration::from_millis(2);
/// Those who wait for a lock to be given back spread over so much for each of them.
const STAGGER: Duration = Duration::from_millis(2);
/// Those who wait for one and the same moment spread over this, so that one of them is done before the others begin.
pub(super) const SPREAD: Duration = Duration::from_millis(50);
/// Lua compares numbers exactly below this.
pub(super) const TOKEN_LIMIT: u64 = 1 << 53;
/// A token from elsewhere is believed when it is no further ahead than this: a slip must not use up all tokens.
const JUMP_LIMIT: u64 = 1 << 32;

/// Where the agent is in an election.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    /// Neither of the others.
    Waiting,
    /// Giving all nodes a memory, since no majority has one.
    Bootstrapping(Bootstrap),
    /// Asking for the lock.
    Trying(Try),
    /// Leading.
    Leading(Lead),
}

/// A try for the lock with one token.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Try {
    token: u64,
    owner: Owner,
    /// Nodes that have not answered yet.
    asked: BTreeSet<NodeId>,
    /// Nodes that may hold the lock: all but those that refused it.
    armed: BTreeSet<NodeId>,
    /// Nodes that granted, with the life that did (PROTOCOL 2).
    granted: BTreeMap<NodeId, Incarnation>,
    stage: Stage,
    /// A node refused because of its promise alone, or of a lock that can be taken over: the next token may do at once.
    outbid: bool,
}

/// What a try waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// Grants from a majority.
    Granting,
    /// Records from a majority of exactly the nodes that had granted when the round began.
    Reading(Round),
    /// A majority that has stored what was read.
    WritingBack(Round, Records),
}

/// One question to all nodes that had granted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Round {
    id: u64,
    /// Nodes that have not answered yet.
    asked: BTreeSet<NodeId>,
    /// Nodes that did, as they had to.
    done: BTreeSet<NodeId>,
    /// What they hold.
    merged: Records,
}

/// A term.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lead {
    pub(super) token: u64,
    owner: Owner,
    /// Of the last write.
    pub(super) seq: u64,
    /// Everything read and written.
    pub(super) records: Records,
    /// No claim after this: the end of the lease less the margin.
    claim_until: Instant,
    /// When renewals were sent last.
    renewed: Instant,
    /// Nodes that are being given their memory back.
    pub(super) seeding: BTreeMap<NodeId, Seeding>,
}

impl Lead {
    /// The value of its lock.
    pub(super) fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The order of the next write.
    pub(super) fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }
}

impl Core {
    /// The term, while leading.
    pub(super) fn lead(&mut self) -> Option<&mut Lead> {
        match &mut self.phase {
            Phase::Leading(lead) => Some(lead),
            _ => None,
        }
    }

    /// The token of the term, while leading.
    #[must_use]
    pub fn leads(&self) -> Option<u64> {
        match &self.phase {
            Phase::Leading(lead) => Some(lead.token),
            _ => None,
        }
    }

    /// Whose lock a majority of the nodes hold, as far as is known; mine while I lead.
    #[must_use]
    pub fn leader(&self) -> Option<Owner> {
        match &self.phase {
            Phase::Leading(lead) => Some(lead.owner.clone()),
            _ => self.blocker().map(|(owner, _)| owner),
        }
    }

    pub(super) fn stand(&mut self, candidacy: Candidacy) {
        // The lock says for which revision it was taken: were that an older one, others would go on to ask for it.
        let revised = candidacy.revision != self.candidacy.revision;
        self.candidacy = candidacy;
        self.backs_off = false;
        if !candidacy.stands || revised {
            self.resign();
        }
    }

    /// A lease and the locks behind it are of one ttl: answers to commands that were sent with another, or a shorter life
    /// of a lock behind a longer lease, must not be taken for it. So no term and no try outlasts the change.
    pub(super) fn retime(&mut self, timing: Timing) {
        if timing != self.timing {
            self.resign();
        }
        self.timing = timing;
        self.longest_ttl = self.longest_ttl.max(timing.ttl);
    }

    pub(super) fn raise(&mut self, token: u64) {
        if token.saturating_sub(self.promised) > JUMP_LIMIT {
            return;
        }
        self.begin_above(token);
    }

    /// Tokens are higher than this from now on.
    pub(super) fn begin_above(&mut self, token: u64) {
        self.promised = self.promised.max(token);
        self.led_before |= token > 0;
        if self.leads().is_some_and(|mine| mine < token) {
            self.resign();
        }
    }

    /// What was measured before now means nothing.
    pub(super) fn paused(&mut self) {
        for node in &mut self.nodes {
            (node.lease, node.clock) = (None, Clock::default());
        }
        self.resign();
    }

    pub(super) fn up(&mut self, id: NodeId, durable: bool) {
        (self.nodes[id].up, self.nodes[id].durable) = (true, durable);
        if let Phase::Leading(lead) = &self.phase {
            let (token, owner) = (lead.token, lead.owner.clone());
            self.renew_on(id, token, owner);
        }
        if !self.operations.is_empty() {
            self.set_timer(Timer::Repeat, self.now, Duration::ZERO);
        }
    }

    /// Another one whose lock a majority holds, and until when at the longest.
    pub(super) fn blocker(&self) -> Option<(Owner, Instant)> {
        let leases = || self.nodes.iter().filter_map(|node| node.seen.as_ref());
        if !self.rules.hold(Rule::WaitForMajority) {
            let longest = leases().filter(|lease| lease.until > self.now).max_by_key(|lease| lease.until);
            return longest.map(|lease| (lease.owner.clone(), lease.until));
        }
        leases().find_map(|lease| {
            let same = leases().filter(|other| other.owner == lease.owner).map(|other| other.until);
            self.majority_until(same).map(|until| (lease.owner.clone(), until))
        })
    }

    /// Until when a majority bears the mark of a revision newer than mine.
    fn barred(&self) -> Option<Instant> {
        let newer = |(revision, until): (u64, Instant)| (revision > self.candidacy.revision).then_some(until);
        self.majority_until(self.nodes.iter().filter_map(|node| node.stand.and_then(newer)))
    }

    /// After every event: resigns, waits or tries, as what is known by now demands.
    pub(super) fn consider(&mut self) {
        let barred = self.barred();
        match &self.phase {
            Phase::Trying(_) | Phase::Bootstrapping(_) => return,
            Phase::Leading(_) if barred.is_none() => return self.seed(),
            Phase::Leading(_) => self.resign(),
            Phase::Waiting => {}
        }
        let blocker = self.blocker();
        let leader = blocker.as_ref().map(|(owner, _)| owner.clone());
        let told = mem::replace(&mut self.told, Told::Follows(leader.clone()));
        if told != self.told {
            self.actions.push(Action::Announce(News::Follows { leader }));
        }
        let spread = self.spread();
        if let Some((owner, until)) = blocker {
            self.backs_off = false;
            self.set_timer(Timer::Look, until, spread);
            let older = owner.revision().is_some_and(|revision| revision < self.candidacy.revision);
            if self.candidacy.stands && barred.is_none() && older && self.now >= self.marked_until {
                self.mark();
            }
        } else if !self.candidacy.stands || self.promised + 1 >= TOKEN_LIMIT {
            // Nothing to wait for but an event.
        } else if let Some(until) = barred {
            self.backs_off = false;
            self.set_timer(Timer::Look, until, spread);
        } else if !self.backs_off && self.nodes.iter().filter(|node| node.up).count() >= self.majority() {
            if self.remembering() >= self.majority() {
                self.try_for_it();
            } else {
                self.bootstrap();
            }
        }
    }

    /// [`SPREAD`], of a lease that may be short.
    pub(super) fn spread(&self) -> Duration {
        SPREAD.min(self.timing.ttl / 20)
    }

    /// A leader gives its lock back. When a majority of the nodes are free, the others follow at once, and with those
    /// free as well two candidates cannot both fail: that is worth a moment. The more wait, the further they spread, so that
    /// the first is done before most of the others begin.
    ///
    /// What another candidate gives back after a try that failed is no reason to cut short a pause after one's own: two of
    /// them would wake each other without end. `led`: a majority had that lock.
    pub(super) fn freed(&mut self, owner: &Owner, listeners: u32, led: bool) {
        let pauses = self.failures > 0 && self.backs_off && !led;
        if matches!(self.phase, Phase::Waiting) && !pauses {
            let held = self.nodes.iter().any(|node| node.seen.as_ref().is_some_and(|seen| seen.owner == *owner));
            let least = if held { RELEASE } else { Duration::ZERO };
            // The one that left hears it too.
            let spread = (STAGGER * listeners.saturating_sub(2)).min(self.timing.ttl / 10);
            self.backs_off = !(least + spread).is_zero();
            if self.backs_off {
                self.set_timer(Timer::Look, self.now + least, spread);
            }
        }
    }

    /// Newest revision first: makes the leader of an older one resign, and keeps others of it from standing.
    fn mark(&mut self) {
        self.marked_until = self.now + self.timing.ttl / 2;
        let (revision, ttl) = (self.candidacy.revision, self.timing.ttl);
        for node in 0..self.nodes.len() {
            self.send(node, Request::Stand { revision, ttl }, Purpose::Tell);
        }
    }

    /// PROTOCOL 1: the highest promise seen + 1, and the value of a lock that is taken with it.
    pub(super) fn propose(&mut self) -> (u64, Owner) {
        let token = self.promised + 1;
        // No token is proposed twice: a grant of the earlier try, since released, would count for the later one.
        if self.rules.hold(Rule::FreshToken) {
            self.promised = token;
        }
        (token, Owner::Agent { agent: self.agent.clone(), revision: self.candidacy.revision, token })
    }

    /// Asks all nodes for the lock.
    fn try_for_it(&mut self) {
        let (token, owner) = self.propose();
        self.phase = Phase::Trying(Try {
            token,
            owner,
            asked: (0..self.nodes.len()).collect(),
            armed: (0..self.nodes.len()).collect(),
            granted: BTreeMap::new(),
            stage: Stage::Granting,
            outbid: false,
        });
        for node in 0..self.nodes.len() {
            self.nodes[node].lease = None;
            self.ask_grant(node, token);
        }
    }

    fn ask_grant(&mut self, node: NodeId, token: u64) {
        self.send(node, self.grant(node, token), Purpose::Grant(token));
    }

    /// What asks a node for the lock.
    pub(super) fn grant(&self, node: NodeId, token: u64) -> Request {
        let (agent, revision) = (self.agent.clone(), self.candidacy.revision);
        let (ttl, former) = (self.timing.ttl, self.nodes[node].former.clone());
        Request::Grant { token, agent, revision, ttl, former }
    }

    pub(super) fn granted(&mut self, id: NodeId, sent: Instant, token: u64, reply: Option<Reply>) {
        let lease = self.lease_from(id, sent);
        match &mut self.phase {
            Phase::Trying(attempt) if attempt.token == token => {
                attempt.asked.remove(&id);
                match reply {
                    Some(reply) if reply.accepted => {
                        self.nodes[id].lease = lease;
                        attempt.granted.insert(id, reply.incarnation);
                        if let Stage::Reading(round) = &mut attempt.stage
                            && !self.rules.hold(Rule::LateGrant)
                        {
                            round.done.insert(id);
                        }
                    }
                    Some(reply) => {
                        attempt.armed.remove(&id);
                        let open = reply.owner.is_none() || self.nodes[id].former.is_some();
                        attempt.outbid |= reply.intact && reply.promised >= token && open;
                    }
                    None => {}
                }
                // A grant that comes during a round has no part in it; if the round fails, the next one has it.
                if matches!(attempt.stage, Stage::Granting) {
                    self.begin_read();
                }
            }
            Phase::Leading(lead) if lead.token == token => {
                self.nodes[id].joining = false;
                if reply.is_some_and(|reply| reply.accepted) {
                    self.nodes[id].lease = lease;
                    self.repair(id);
                    self.reckon();
                }
            }
            // Of a try that is over: its release follows on the same connection.
            _ => {}
        }
    }

    /// How long my lock counts on a node that has just answered; not at all if its clock and ours did not keep pace.
    fn lease_from(&self, id: NodeId, sent: Instant) -> Option<Instant> {
        let from = if self.rules.hold(Rule::LeaseFromSending) { sent } else { self.now };
        let validity = if self.rules.hold(Rule::Drift) { self.timing.validity() } else { self.timing.ttl };
        self.nodes[id].clock.trusted(sent).then(|| from + validity)
    }

    /// PROTOCOL 2: once a majority has granted, reads from exactly those nodes; gives up when none can any more.
    fn begin_read(&mut self) {
        let (majority, round) = (self.majority(), self.next_round());
        let Phase::Trying(attempt) = &mut self.phase else { return };
        if attempt.granted.len() < majority {
            attempt.stage = Stage::Granting;
            if attempt.granted.len() + attempt.asked.len() < majority {
                self.give_up();
            }
            return;
        }
        if !self.rules.hold(Rule::ReadRound) {
            return self.begin_term(Records::new(), &BTreeSet::new());
        }
        let token = attempt.token;
        let asked: BTreeSet<_> = attempt.granted.keys().copied().collect();
        let nodes = asked.clone();
        attempt.stage = Stage::Reading(Round { id: round, asked, done: BTreeSet::new(), merged: Records::new() });
        for node in nodes {
            self.send(node, Request::Read { token }, Purpose::Read(round));
        }
    }

    pub(super) fn next_round(&mut self) -> u64 {
        self.last_round += 1;
        self.last_round
    }

    pub(super) fn read(&mut self, id: NodeId, round: u64, reply: Option<Reply>) {
        let majority = self.majority();
        let Phase::Trying(attempt) = &mut self.phase else { return };
        let Stage::Reading(reading) = &mut attempt.stage else { return };
        if reading.id != round || !reading.asked.remove(&id) {
            return;
        }
        // Fenced: the promise still holds, in the life that gave it.
        match reply {
            Some(Reply { accepted: true, incarnation, body: Body::Records(records), .. })
                if attempt.granted.get(&id) == Some(&incarnation) =>
            {
                reading.done.insert(id);
                record::merge_into(&mut reading.merged, records, self.rules);
                if reading.done.len() >= majority {
                    let merged = mem::take(&mut reading.merged);
                    self.write_back(merged);
                }
            }
            _ => self.strike(id),
        }
    }

    /// PROTOCOL 2: writes the merge to a majority before leading. Nothing to write is written already.
    fn write_back(&mut self, merged: Records) {
        let round = self.next_round();
        let Phase::Trying(attempt) = &mut self.phase else { return };
        let token = attempt.token;
        let records: Records = (1..)
            .zip(merged)
            .map(|(seq, (id, record))| (id, Arc::new(Record { token, seq, ..Arc::unwrap_or_clone(record) })))
            .collect();
        if records.is_empty() || !self.rules.hold(Rule::WriteBack) {
            return self.begin_term(records, &BTreeSet::new());
        }
        let asked: BTreeSet<_> = attempt.granted.keys().copied().collect();
        let nodes = asked.clone();
        let writing = Round { id: round, asked, done: BTreeSet::new(), merged: Records::new() };
        let entries = entries(&records);
        attempt.stage = Stage::WritingBack(writing, records);
        for node in nodes {
            self.send(node, Request::Put { token, entries: entries.clone() }, Purpose::WriteBack(round));
        }
    }

    pub(super) fn written_back(&mut self, id: NodeId, round: u64, reply: Option<Reply>) {
        let majority = self.majority();
        let Phase::Trying(attempt) = &mut self.phase else { return };
        let Stage::WritingBack(writing, records) = &mut attempt.stage else { return };
        if writing.id != round || !writing.asked.remove(&id) {
            return;
        }
        let stored = |verdicts: &[Verdict]| verdicts.iter().all(|verdict| *verdict == Verdict::Stored);
        match reply {
            Some(Reply { accepted: true, incarnation, body: Body::Verdicts(verdicts), .. })
                if attempt.granted.get(&id) == Some(&incarnation) && stored(&verdicts) =>
            {
                writing.done.insert(id);
                if writing.done.len() >= majority {
                    let (records, done) = (mem::take(records), mem::take(&mut writing.done));
                    self.begin_term(records, &done);
                }
            }
            _ => self.strike(id),
        }
    }

    /// A node failed a round of the present try: its grant counts no more. If the round cannot succeed without it, a new
    /// one begins with the nodes that have granted by now.
    fn strike(&mut self, id: NodeId) {
        let majority = self.majority();
        let Phase::Trying(attempt) = &mut self.phase else { return };
        attempt.granted.remove(&id);
        self.nodes[id].lease = None;
        let (Stage::Reading(round) | Stage::WritingBack(round, _)) = &mut attempt.stage else { return };
        round.asked.remove(&id);
        round.done.remove(&id);
        if round.done.len() + round.asked.len() < majority {
            self.begin_read();
        }
    }

    /// A node has begun a new life: whatever the old one granted or acknowledged counts no more (PROTOCOL 2, 9).
    pub(super) fn forsake(&mut self, id: NodeId) {
        self.nodes[id].lease = None;
        self.strike(id);
        self.reckon();
    }

    /// A failed try releases what it may have got, and says so only if others can be waiting for it.
    fn give_up(&mut self) {
        let Phase::Trying(attempt) = mem::replace(&mut self.phase, Phase::Waiting) else { return };
        // Others may have heard of a majority under this owner: then they wait for a word.
        let publish = attempt.armed.len() >= self.majority();
        for node in attempt.armed {
            self.nodes[node].lease = None;
            if self.rules.hold(Rule::ReleasePartial) {
                let owner = attempt.owner.clone();
                self.send(node, Request::Release { owner, publish }, Purpose::Release);
            }
        }
        // Outbid for the first time: nothing stands against the next token, which is known now.
        let at_once = attempt.outbid && self.failures == 0;
        self.back_off();
        self.backs_off &= !at_once;
    }

    /// After something failed: the next try comes after a random while, which grows.
    pub(super) fn back_off(&mut self) {
        self.failures += 1;
        self.backs_off = true;
        let doubled = BACKOFF.saturating_mul(1 << (self.failures - 1).min(16));
        let window = doubled.min(BACKOFF_LIMIT).min(self.timing.ttl / 4);
        // The least wait keeps a tight loop away; which candidate comes first is random.
        self.set_timer(Timer::Look, self.now + window / 8, window);
    }

    /// Leads, if the lease still has time to claim in.
    fn begin_term(&mut self, records: Records, written: &BTreeSet<NodeId>) {
        let claim_until = self.held_until() - self.timing.margin();
        if claim_until <= self.now {
            return self.give_up();
        }
        let Phase::Trying(attempt) = mem::replace(&mut self.phase, Phase::Waiting) else { return };
        let (token, owner) = (attempt.token, attempt.owner);
        self.failures = 0;
        self.told = Told::Nothing;
        let seq = u64::try_from(records.len()).unwrap_or(u64::MAX);
        let (announced, seeding) = (records.clone(), BTreeMap::new());
        self.phase = Phase::Leading(Lead { token, owner, seq, records, claim_until, renewed: self.now, seeding });
        for (id, node) in self.nodes.iter_mut().enumerate() {
            node.joining = attempt.asked.contains(&id);
        }
        self.actions.push(Action::Announce(News::Leads { token, claim_until, records: announced }));
        self.set_timer(Timer::End, claim_until, Duration::ZERO);
        self.set_renewal();
        for id in attempt.granted.into_keys().filter(|id| !written.contains(id)) {
            self.repair(id);
        }
    }

    /// Until when a majority of the nodes hold my lock, by our clock; the past if none does.
    fn held_until(&self) -> Instant {
        let far = self.far();
        let leases = self.nodes.iter().zip(far).filter_map(|(node, far)| node.lease.filter(|_| !far));
        if !self.rules.hold(Rule::LeaseMajority) {
            let mut held: Vec<_> = leases.filter(|until| *until > self.now).collect();
            held.sort_unstable_by(|a, b| b.cmp(a));
            return held.get(held.len() / 2).copied().unwrap_or_default();
        }
        self.majority_until(leases).unwrap_or_default()
    }

    /// Gives a node that joined the term late what the others have, so that it can stand in for one of them.
    fn repair(&mut self, id: NodeId) {
        let Some(lead) = self.lead() else { return };
        if !lead.records.is_empty() {
            let (token, entries) = (lead.token, entries(&lead.records));
            self.send(id, Request::Put { token, entries }, Purpose::Tell);
        }
    }

    fn set_renewal(&mut self) {
        let every = self.timing.renewal();
        self.set_timer(Timer::Renew, self.now + every * 9 / 10, every / 10);
    }

    pub(super) fn renew(&mut self) {
        let now = self.now;
        let Some(lead) = self.lead() else { return };
        lead.renewed = now;
        let (token, owner) = (lead.token, lead.owner.clone());
        for node in 0..self.nodes.len() {
            self.renew_on(node, token, owner.clone());
        }
        self.set_renewal();
    }

    pub(super) fn renew_on(&mut self, node: NodeId, token: u64, owner: Owner) {
        self.send(node, Request::Renew { token, owner, ttl: self.timing.ttl }, Purpose::Renew(token));
    }

    pub(super) fn renewed(&mut self, id: NodeId, sent: Instant, token: u64, reply: Option<Reply>) {
        let validity = self.timing.validity();
        if self.leads() != Some(token) {
            return;
        }
        match reply {
            Some(reply) if reply.accepted => {
                self.nodes[id].lease = self.nodes[id].lease.max(self.lease_from(id, sent));
                self.reckon();
            }
            Some(reply) => {
                self.nodes[id].lease = None;
                if reply.intact && reply.promised < token {
                    self.join(id);
                }
                self.reckon();
                self.give_way();
            }
            None => {}
        }
        let under_way = |call: &super::Call| matches!(call.purpose, Purpose::Renew(_));
        let held_until = self.held_until();
        let timeout = self.timing.node_timeout();
        let waiting = self.calls.values().any(under_way);
        // A round without a majority is repeated soon, for as long as the term lasts.
        let short = self.lead().is_some_and(|lead| held_until < lead.renewed + validity);
        if short && !waiting {
            self.set_timer(Timer::Renew, self.now + timeout / 2, timeout / 2);
        }
    }

    /// Asks a node that has not promised the term yet to do so.
    pub(super) fn join(&mut self, id: NodeId) {
        let Some(token) = self.leads() else { return };
        if !mem::replace(&mut self.nodes[id].joining, true) {
            self.ask_grant(id, token);
        }
    }

    /// The term lasts as long as a majority holds the lock.
    pub(super) fn reckon(&mut self) {
        let claim_until = self.held_until() - self.timing.margin();
        let Some(lead) = self.lead() else { return };
        if claim_until != lead.claim_until {
            lead.claim_until = claim_until;
            self.actions.push(Action::Announce(News::Lasts { claim_until }));
            self.set_timer(Timer::End, claim_until, Duration::ZERO);
        }
    }

    /// Resigns when a majority has promised a higher token: nothing can be written any more.
    pub(super) fn give_way(&mut self) {
        let Some(token) = self.leads() else { return };
        if self.nodes.iter().filter(|node| node.promised > token).count() >= self.majority() {
            self.resign();
        }
    }

    /// The term is over when the time to claim is, whatever became of renewals.
    pub(super) fn end_if_due(&mut self) {
        let now = self.now;
        if self.lead().is_some_and(|lead| now >= lead.claim_until) {
            self.end_term();
        }
    }

    /// Gives the lease back at once, and says so.
    fn resign(&mut self) {
        match self.phase {
            Phase::Trying(_) => return self.give_up(),
            Phase::Bootstrapping(_) => return self.abort_bootstrap(),
            Phase::Waiting | Phase::Leading(_) => {}
        }
        if let Some(owner) = self.end_term() {
            for node in 0..self.nodes.len() {
                self.nodes[node].lease = None;
                self.send(node, Request::Release { owner: owner.clone(), publish: true }, Purpose::Release);
            }
        }
    }

    fn end_term(&mut self) -> Option<Owner> {
        let Phase::Leading(lead) = mem::replace(&mut self.phase, Phase::Waiting) else { return None };
        self.backs_off = false;
        self.end_terms_operations();
        Some(lead.owner)
    }
}

/// All records, none as a claim.
fn entries(records: &Records) -> Arc<[Entry]> {
    records.values().map(|record| Entry { record: record.clone(), claim: false }).collect()
}
