//! Nodes that lost their memory: the leader gives it back to one of them (PROTOCOL 7), and when no majority has one,
//! a candidate begins it anew on all (PROTOCOL 8).

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use super::election::{Phase, SPREAD};
use super::{Action, Core, News, NodeId, Purpose, Timer};
use crate::Owner;
use crate::clock::Instant;
use crate::message::{Body, Incarnation, Reply, Request};
use crate::record::{self, Record, Records};
use crate::rule::Rule;

/// A memory begins with tokens above the time of day in milliseconds, which is above all that were given out. If the clock
/// says less, they go on so far above the highest that is known: that may be some minutes old, and no election takes less
/// than a few hundred microseconds.
const LOSS_JUMP: u64 = 1 << 20;
/// No clock makes a token higher than this, in milliseconds since 1970: a slip must not use up all tokens.
const TIME_LIMIT: u64 = 1 << 45;

/// A node on its way to a memory, by the leader.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Seeding {
    /// Answers to earlier steps are out of date.
    round: u64,
    step: Step,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Step {
    /// 7a.
    Marking(Arc<str>),
    /// 7b: what the intact nodes hold that have promised the leader's token.
    Reading { life: Incarnation, asked: BTreeSet<NodeId>, done: usize, merged: Records },
    /// 7d.
    Planting,
    /// Something failed; again at this time.
    Resting(Instant),
}

/// A candidate gives all nodes a memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Bootstrap {
    /// Answers to earlier rounds are out of date.
    round: u64,
    mark: Arc<str>,
    /// Of the grants at nodes that are intact.
    token: u64,
    owner: Owner,
    /// Nodes that have not answered this round.
    asked: BTreeSet<NodeId>,
    /// How each node was found.
    lives: BTreeMap<NodeId, Found>,
    /// What they hold, or held.
    merged: Records,
    stage: Stage,
}

/// A node, as a bootstrap found it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Found {
    life: Incarnation,
    /// It has a memory.
    intact: bool,
    /// The promise that it has, or had.
    promised: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Marking,
    Confirming,
    Planting,
}

/// Why nobody can be elected, when it is for want of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Obstacle {
    /// Too few of the nodes that can be reached have a memory: those that cannot be may have one, and without them it
    /// cannot begin anew.
    NeedsAllNodes,
    /// Nodes without memory rest until then: somebody may still believe in a lease on them.
    Rest {
        /// By our clock.
        until: Instant,
    },
}

impl Core {
    fn next_mark(&mut self) -> Arc<str> {
        self.marks += 1;
        // Nobody else uses it: the process has its name to itself.
        format!("{}.{}", self.agent.process, self.marks).into()
    }

    /// Until when a node without memory rests; `None` for one that has a memory, or may have.
    fn rests_until(&self, id: NodeId) -> Option<Instant> {
        let rest = if self.rules.hold(Rule::Rest) { self.longest_ttl } else { Duration::ZERO };
        self.nodes[id].amnesiac.map(|since| since + rest)
    }

    fn has_rested(&self, id: NodeId) -> bool {
        self.rests_until(id).is_none_or(|until| until <= self.now)
    }

    /// Wakes up when `at` comes, unless it does so earlier.
    fn seed_timer(&mut self, at: Instant, jitter: Duration) {
        if self.seed_at.is_none_or(|earlier| at < earlier) {
            self.seed_at = Some(at);
            self.set_timer(Timer::Seed, at, jitter);
        }
    }

    /// Why nobody can be elected, when it is for want of memory.
    #[must_use]
    pub fn obstacle(&self) -> Option<Obstacle> {
        let forgetful = self.nodes.iter().any(|node| node.amnesiac.is_some());
        if self.remembering() >= self.majority() || !forgetful {
            return None;
        }
        if self.nodes.iter().any(|node| !node.up) {
            return Some(Obstacle::NeedsAllNodes);
        }
        let until = (0..self.nodes.len()).filter_map(|id| self.rests_until(id)).max()?;
        (until > self.now).then_some(Obstacle::Rest { until })
    }

    /// How many nodes can be reached and have a memory, or may have.
    pub(super) fn remembering(&self) -> usize {
        self.nodes.iter().filter(|node| node.up && node.amnesiac.is_none()).count()
    }
}

/// PROTOCOL 7: the leader seeds one node.
impl Core {
    /// Begins with each node that has no memory and has rested.
    pub(super) fn seed(&mut self) {
        for id in 0..self.nodes.len() {
            let Some(until) = self.rests_until(id).filter(|_| self.nodes[id].up) else { continue };
            let until = match self.lead().and_then(|lead| lead.seeding.get(&id)) {
                Some(Seeding { step: Step::Resting(again), .. }) => until.max(*again),
                Some(_) => continue,
                None => until,
            };
            if until > self.now {
                self.seed_timer(until, Duration::ZERO);
            } else {
                self.mark_node(id);
            }
        }
    }

    fn mark_node(&mut self, id: NodeId) {
        let (mark, round) = (self.next_mark(), self.next_round());
        let Some(lead) = self.lead() else { return };
        lead.seeding.insert(id, Seeding { round, step: Step::Marking(mark.clone()) });
        self.send(id, Request::Mark { mark }, Purpose::Seed(round));
    }

    fn seed_later(&mut self, id: NodeId) {
        let again = self.now + self.timing.node_timeout();
        let round = self.next_round();
        if let Some(lead) = self.lead() {
            lead.seeding.insert(id, Seeding { round, step: Step::Resting(again) });
            self.seed_timer(again, Duration::ZERO);
        }
    }

    /// An answer to 7a or 7d.
    pub(super) fn seed_reply(&mut self, id: NodeId, round: u64, reply: Option<Reply>) {
        // It may have been started once more since it was last heard of.
        let rested = self.has_rested(id);
        let Some(lead) = self.lead() else { return };
        let Some(seeding) = lead.seeding.get(&id).filter(|seeding| seeding.round == round) else { return };
        match (&seeding.step, reply) {
            // It got its memory from somebody else, or this is the answer to my seed.
            (_, Some(reply)) if reply.intact => {
                lead.seeding.remove(&id);
                let (token, owner) = (lead.token, lead.owner().clone());
                // Its lock is missing.
                self.renew_on(id, token, owner);
            }
            (Step::Marking(mark), Some(reply)) if reply.accepted && reply.incarnation.mark == *mark && rested => {
                self.read_for(id, reply.incarnation);
            }
            _ => self.seed_later(id),
        }
    }

    /// 7b, sent only now that the mark is known to be there.
    fn read_for(&mut self, id: NodeId, life: Incarnation) {
        if !self.rules.hold(Rule::SeedFence) {
            return self.plant(id, life, Records::new());
        }
        let round = self.next_round();
        let intact = |other: &NodeId| *other != id && self.nodes[*other].amnesiac.is_none() && self.nodes[*other].up;
        let asked: BTreeSet<_> = (0..self.nodes.len()).filter(intact).collect();
        let Some(lead) = self.lead() else { return };
        let token = lead.token;
        let step = Step::Reading { life, asked: asked.clone(), done: 0, merged: Records::new() };
        lead.seeding.insert(id, Seeding { round, step });
        if asked.len() < self.majority() {
            return self.seed_later(id);
        }
        for node in asked {
            self.send(node, Request::Read { token }, Purpose::SeedRead(round));
        }
    }

    /// An answer to 7b.
    pub(super) fn seed_read(&mut self, from: NodeId, round: u64, reply: Option<Reply>) {
        let (majority, rules) = (self.majority(), self.rules);
        let Some(lead) = self.lead() else { return };
        let token = lead.token;
        let Some((&id, seeding)) = lead.seeding.iter_mut().find(|(_, seeding)| seeding.round == round) else { return };
        let Step::Reading { life, asked, done, merged } = &mut seeding.step else { return };
        if !asked.remove(&from) {
            return;
        }
        match reply {
            Some(Reply { accepted: true, body: Body::Records(records), .. }) => {
                *done += 1;
                record::merge_into(merged, records, rules);
            }
            Some(reply) if reply.intact && reply.promised < token => {
                // It has not promised yet; it is asked to, and the seed tried again.
                self.join(from);
                return self.seed_later(id);
            }
            _ => {}
        }
        let (have, left) = (*done, asked.len());
        if have >= majority {
            let (life, merged) = (life.clone(), mem::take(merged));
            self.plant(id, life, merged);
        } else if have + left < majority {
            self.give_way();
            self.seed_later(id);
        }
    }

    /// 7c and 7d.
    fn plant(&mut self, id: NodeId, life: Incarnation, mut merged: Records) {
        let (round, rules) = (self.next_round(), self.rules);
        let in_flight = if rules.hold(Rule::SeedInFlight) { self.in_flight() } else { Vec::new() };
        record::merge_into(&mut merged, in_flight, rules);
        let Some(lead) = self.lead() else { return };
        record::merge_into(&mut merged, lead.records.values().map(|record| Record::clone(record)), rules);
        let promised = lead.token;
        lead.seeding.insert(id, Seeding { round, step: Step::Planting });
        let records = merged.into_values().collect();
        self.send(id, Request::Seed { life, promised, led: true, records }, Purpose::Seed(round));
    }
}

/// PROTOCOL 8: a candidate seeds all nodes that have no memory.
impl Core {
    /// Begins, if all nodes can be reached and have rested; else waits for that.
    pub(super) fn bootstrap(&mut self) {
        match self.obstacle() {
            Some(Obstacle::NeedsAllNodes) if self.rules.hold(Rule::BootstrapAll) => {
                // Another candidate may have reached them all since: whether those here are as they were is asked anew.
                let again = self.now + self.timing.ttl;
                if self.seed_at.is_none() {
                    for id in (0..self.nodes.len()).filter(|id| self.nodes[*id].up).collect::<Vec<_>>() {
                        self.send(id, Request::Look { ids: Some(Arc::new([])) }, Purpose::Tell);
                    }
                }
                return self.seed_timer(again, SPREAD);
            }
            Some(Obstacle::Rest { until }) => return self.seed_timer(until, self.spread()),
            _ => {}
        }
        let (token, owner) = self.propose();
        let (mark, round) = (self.next_mark(), self.next_round());
        let nodes: Vec<_> = (0..self.nodes.len()).filter(|id| self.nodes[*id].up).collect();
        self.phase = Phase::Bootstrapping(Bootstrap {
            round,
            mark: mark.clone(),
            token,
            owner,
            asked: nodes.iter().copied().collect(),
            lives: BTreeMap::new(),
            merged: Records::new(),
            stage: Stage::Marking,
        });
        for id in nodes {
            let request = if self.nodes[id].amnesiac.is_some() {
                Request::Mark { mark: mark.clone() }
            } else {
                self.grant(id, token)
            };
            self.send(id, request, Purpose::Bootstrap(round));
        }
    }

    pub(super) fn bootstrap_reply(&mut self, id: NodeId, round: u64, reply: Option<Reply>) {
        let rules = self.rules;
        // It may have been started once more since it was last heard of.
        let rested = self.has_rested(id);
        let Phase::Bootstrapping(boot) = &mut self.phase else { return };
        if boot.round != round || !boot.asked.remove(&id) {
            return;
        }
        match (&boot.stage, reply) {
            (Stage::Marking, Some(reply))
                if reply.accepted && rested && (reply.intact || reply.incarnation.mark == boot.mark) =>
            {
                let Reply { incarnation: life, intact, promised, .. } = reply;
                boot.lives.insert(id, Found { life, intact, promised });
            }
            (
                Stage::Confirming,
                Some(Reply { accepted: true, incarnation, intact, body: Body::Records(records), .. }),
            ) if boot.lives.get(&id).is_some_and(|found| (&found.life, found.intact) == (&incarnation, intact)) => {
                record::merge_into(&mut boot.merged, records, rules);
            }
            // What became of each seed shows when the lock is asked for.
            (Stage::Planting, _) => {}
            _ => return self.abort_bootstrap(),
        }
        if boot.asked.is_empty() {
            match boot.stage {
                Stage::Marking if !rules.hold(Rule::BootstrapConfirm) => self.plant_all(),
                Stage::Marking => self.confirm(),
                Stage::Confirming => self.plant_all(),
                Stage::Planting => self.end_bootstrap(),
            }
        }
    }

    /// Each node is still as it was marked, and none was granted to another: sent only now that all are marked.
    fn confirm(&mut self) {
        let round = self.next_round();
        let Phase::Bootstrapping(boot) = &mut self.phase else { return };
        (boot.round, boot.stage) = (round, Stage::Confirming);
        boot.asked = boot.lives.keys().copied().collect();
        let token = boot.token;
        for (id, Found { life, intact, .. }) in boot.lives.clone() {
            let request = if intact { Request::Read { token } } else { Request::Recall { life } };
            self.send(id, request, Purpose::Bootstrap(round));
        }
    }

    fn plant_all(&mut self) {
        let round = self.next_round();
        let Phase::Bootstrapping(boot) = &mut self.phase else { return };
        (boot.round, boot.stage) = (round, Stage::Planting);
        let records: Arc<[Arc<Record>]> = boot.merged.values().cloned().collect();
        let lost: Vec<_> = boot.lives.clone().into_iter().filter(|(_, found)| !found.intact).collect();
        boot.asked = lost.iter().map(|(id, _)| *id).collect();
        // A server that has every write on disk remembers all that it acknowledged. Unless a majority does, the highest token
        // that is known may be older than the loss. One that never had a memory, for nobody had reached it, has lost none.
        let remembers =
            |(id, found): &(&NodeId, &Found)| found.intact || (self.nodes[**id].durable && found.promised > 0);
        let complete = boot.lives.iter().filter(remembers).count() >= self.majority();
        let led = self.led_before;
        // Two who did not hear of each other's losses, and one who heard of none, would count on from the same place; time
        // goes on whoever hears of it, and faster than elections.
        let time = self.time_offset().map_or(0, |offset| offset + i128::from(self.now.as_nanos()));
        let millis =
            u64::try_from(time / 1_000_000).ok().filter(|millis| *millis > self.promised && *millis < TIME_LIMIT);
        self.promised = millis.unwrap_or(self.promised + LOSS_JUMP);
        if led && !complete {
            self.actions.push(Action::Announce(News::StateLost { floor: self.promised }));
        }
        // Who proposed a token to a node that has forgotten it must not meet it again.
        let promised = self.promised;
        for (id, Found { life, .. }) in lost {
            self.send(id, Request::Seed { life, promised, led, records: records.clone() }, Purpose::Bootstrap(round));
        }
    }

    fn end_bootstrap(&mut self) {
        self.phase = Phase::Waiting;
        let lost = self.nodes.iter().filter(|node| node.amnesiac.is_some()).count();
        if self.nodes.len() - lost < self.majority() {
            self.back_off();
        }
    }

    /// Gives back what it got on the way.
    pub(super) fn abort_bootstrap(&mut self) {
        let Phase::Bootstrapping(boot) = mem::replace(&mut self.phase, Phase::Waiting) else { return };
        for (id, found) in boot.lives {
            if found.intact {
                let request = Request::Release { owner: boot.owner.clone(), publish: false };
                self.send(id, request, Purpose::Release);
            }
        }
        self.back_off();
    }
}
