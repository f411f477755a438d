//! An agent: its core, and what its driver does around it.

use std::collections::BTreeMap;
use std::sync::Arc;

use cabloy_redlock::clock::Instant;
use cabloy_redlock::core::{Action, CallId, Config, Core, Event, News, NodeId, OpId, Timer};
use cabloy_redlock::message::Request;
use cabloy_redlock::record::Record;
use cabloy_redlock::rule::Rules;
use cabloy_redlock::{AgentId, Candidacy, ErrorKind, Timing};

use crate::clock::{Clock, Time};
use crate::plan::Clocks;
use crate::truth::{Promise, Violation, broken};
use crate::work::Asked;
use crate::world::{Check, Due, PodId, World};

pub(crate) struct Pod {
    pub(crate) core: Core,
    /// `CLOCK_BOOTTIME` of its machine.
    pub(crate) clock: Clock,
    /// Which process of the pod this is.
    pub(crate) process: u32,
    pub(crate) alive: bool,
    /// It stands still, alone or with its machine.
    pub(crate) stopped: bool,
    /// When its machine went on last.
    resumed: Time,
    /// What it will find when it goes on.
    pub(crate) backlog: Vec<Due>,
    timers: BTreeMap<Timer, (Instant, u64)>,
    set: u64,
    /// Commands under way, and when they time out.
    open: BTreeMap<CallId, (NodeId, Instant)>,
    /// The newest call that each node answered.
    newest: Vec<CallId>,
    /// Of each node: a clock between the two went wrong, and no answer has shown it yet.
    pub(crate) tainted: Vec<bool>,
    /// Until when it may claim, by its clock.
    pub(crate) belief: Option<Instant>,
    /// It has heard that somebody led before, if only from the operator.
    pub(crate) knows: bool,
    /// Of each node: it was heard to have a memory, and has not lost it since.
    pub(crate) heard: Vec<bool>,
    pub(crate) token: Option<u64>,
    pub(crate) candidacy: Candidacy,
    pub(crate) timing: Timing,
    pub(crate) records: BTreeMap<String, Arc<Record>>,
    pub(crate) asked: BTreeMap<OpId, Asked>,
    /// So many results were recorded before it began to read.
    must_know: usize,
    /// So often a majority's memory was lost before it began to read.
    losses: u64,
    /// The newest token that led before it began to read.
    newest_token: u64,
    /// Commands sent to each node.
    pub(crate) sent: Vec<u64>,
}

impl Pod {
    pub(crate) fn new(id: PodId, clock: Clock, timing: Timing, nodes: usize, floor: u64, rules: Rules) -> Self {
        Self {
            core: core(id, 0, timing, nodes, floor, rules),
            clock,
            process: 0,
            alive: true,
            stopped: false,
            resumed: 0,
            backlog: Vec::new(),
            timers: BTreeMap::new(),
            set: 0,
            open: BTreeMap::new(),
            newest: vec![0; nodes],
            tainted: vec![false; nodes],
            belief: None,
            knows: floor > 0,
            heard: vec![false; nodes],
            token: None,
            candidacy: Candidacy { stands: true, revision: 1 },
            timing,
            records: BTreeMap::new(),
            asked: BTreeMap::new(),
            must_know: 0,
            losses: 0,
            newest_token: 0,
            sent: vec![0; nodes],
        }
    }

    /// Another process takes the place of this one.
    pub(crate) fn replace(&mut self, id: PodId, floor: u64, rules: Rules) {
        let nodes = self.sent.len();
        let process = self.process + 1;
        let fresh = Self::new(id, self.clock, self.timing, nodes, floor, rules);
        let candidacy = Candidacy { stands: true, ..self.candidacy };
        *self = Self { core: core(id, process, self.timing, nodes, floor, rules), process, candidacy, ..fresh };
    }

    /// Whether it may claim, by its own clock.
    pub(crate) fn believes(&self, now: Time) -> bool {
        self.alive && self.belief.is_some_and(|until| until > self.clock.read(now))
    }

    pub(crate) fn is_tainted(&self) -> bool {
        self.tainted.contains(&true)
    }
}

fn core(id: PodId, process: u32, timing: Timing, nodes: usize, floor: u64, rules: Rules) -> Core {
    let agent = AgentId { pod: format!("a{id}"), uid: "u".into(), process: format!("a{id}.{process}") };
    Core::new(Config { agent, nodes, timing, floor, rules })
}

impl World {
    pub(crate) fn start(&mut self, id: PodId) -> Result<(), Violation> {
        if !self.pods[id].alive {
            return Ok(());
        }
        if self.pods[id].stopped {
            self.plan_in(1_000_000, Due::Start(id));
            return Ok(());
        }
        self.say(|| format!("a{id} starts"));
        for node in 0..self.nodes.len() {
            let whole = !self.nodes[node].down;
            self.links[id][node].up = whole;
            if whole {
                self.step(id, Event::Up { node, durable: self.is_durable() })?;
                self.step(id, Event::Listening(node))?;
            }
        }
        if self.with_engine {
            self.desks[id].started = true;
            self.pods[id].candidacy.stands = !self.desks[id].app.down;
            self.gate_step(id)?;
            self.look_back(id)?;
        }
        let candidacy = self.pods[id].candidacy;
        self.step(id, Event::Stand(candidacy))
    }

    /// Something reaches an agent that is running.
    pub(crate) fn reach(&mut self, due: Due) -> Result<(), Violation> {
        match due {
            Due::Reply { pod, process, call, node, reply, written } => {
                let link = self.links[pod][node];
                let known = self.is_process(pod, process) && self.pods[pod].open.contains_key(&call);
                if !known || link.deaf > self.now {
                    return Ok(());
                }
                let player = &mut self.pods[pod];
                player.open.remove(&call);
                if call > player.newest[node] {
                    player.newest[node] = call;
                    player.heard[node] = reply.intact && reply.incarnation.run == self.nodes[node].model.life().run;
                    if written >= self.nodes[node].jumped && written >= player.resumed {
                        player.tainted[node] = false;
                    }
                }
                self.step(pod, Event::Reply { call, result: Ok(*reply) })
            }
            Due::Failure { pod, process, call, error } => {
                let Some((_, at)) = self.pods[pod].open.get(&call).copied().filter(|_| self.is_process(pod, process))
                else {
                    return Ok(());
                };
                let player = &mut self.pods[pod];
                if error == ErrorKind::Timeout && player.clock.read(self.now) < at {
                    // Its clock stood still in between.
                    let when = player.clock.when(at);
                    self.plan_at(when, Due::Failure { pod, process, call, error });
                    return Ok(());
                }
                player.open.remove(&call);
                self.step(pod, Event::Reply { call, result: Err(error) })
            }
            Due::Wake { pod, process, node, wake } => {
                if !self.is_process(pod, process) || !self.links[pod][node].up {
                    return Ok(());
                }
                self.step(pod, Event::Wake { node, wake })
            }
            Due::Timer { pod, process, timer, set } => {
                let Some((at, _)) = self.pods[pod].timers.get(&timer).copied().filter(|timer| timer.1 == set) else {
                    return Ok(());
                };
                if !self.is_process(pod, process) {
                    return Ok(());
                }
                let player = &mut self.pods[pod];
                if player.clock.read(self.now) < at {
                    let when = player.clock.when(at);
                    self.plan_at(when, Due::Timer { pod, process, timer, set });
                    return Ok(());
                }
                player.timers.remove(&timer);
                self.step(pod, Event::Timer(timer))
            }
            Due::Event { pod, process, event } => {
                if self.is_process(pod, process) {
                    self.step(pod, event)
                } else {
                    Ok(())
                }
            }
            Due::Engine(due) => self.engine_happens(due),
            _ => Ok(()),
        }
    }

    fn is_process(&self, pod: PodId, process: u32) -> bool {
        self.pods[pod].alive && self.pods[pod].process == process
    }

    /// An agent goes on, and finds what has come in the meantime: in the order in which it came, or in any other.
    pub(crate) fn resume(&mut self, id: PodId) -> Result<(), Violation> {
        let player = &mut self.pods[id];
        if !player.stopped {
            return Ok(());
        }
        player.stopped = false;
        let frozen = player.clock.is_stopped();
        if frozen {
            player.clock.go_on(self.now);
            player.resumed = self.now;
        }
        let backlog = std::mem::take(&mut player.backlog);
        // What became of connections is known in the order in which it happened.
        let (news, mut backlog): (Vec<_>, Vec<_>) =
            backlog.into_iter().partition(|due| matches!(due, Due::Event { .. } | Due::Engine(_)));
        self.say(|| format!("a{id} goes on"));
        if self.dice.chance(300) {
            for last in (1..backlog.len()).rev() {
                let other = self.dice.place(last + 1);
                backlog.swap(last, other);
            }
        }
        if frozen && self.plan.notices && self.pods[id].alive {
            self.step(id, Event::Paused)?;
        }
        if self.with_engine {
            self.read_files(id)?;
        }
        news.into_iter().chain(backlog).try_for_each(|due| self.reach(due))
    }

    /// Its core takes a step, and its driver does what it says.
    pub(crate) fn step(&mut self, id: PodId, event: Event) -> Result<(), Violation> {
        self.outcome.tally.steps += 1;
        let pod = &mut self.pods[id];
        pod.knows |= matches!(event, Event::Raise(_));
        let now = pod.clock.read(self.now);
        let actions = pod.core.step(now, event);
        if self.with_engine {
            self.set_time(id);
        }
        actions.into_iter().try_for_each(|action| self.carry_out(id, now, action))
    }

    fn carry_out(&mut self, id: PodId, now: Instant, action: Action) -> Result<(), Violation> {
        let pod = &mut self.pods[id];
        let process = pod.process;
        match action {
            Action::Send { call, node, request, timeout } => {
                if matches!(request, Request::Read { .. }) && pod.token.is_none() {
                    (pod.must_know, pod.losses) = (self.truth.recorded(), self.truth.losses);
                    pod.newest_token = self.truth.newest_token();
                }
                pod.sent[node] += 1;
                let at = now + timeout;
                pod.open.insert(call, (node, at));
                let when = pod.clock.when(at);
                self.plan_at(when, Due::Failure { pod: id, process, call, error: ErrorKind::Timeout });
                self.send(id, call, node, request);
            }
            Action::SetTimer { timer, at, jitter } => {
                let part = u32::try_from(self.dice.below(1000)).unwrap_or_default();
                let at = (at + jitter * part / 1000).max(now);
                pod.set += 1;
                let set = pod.set;
                pod.timers.insert(timer, (at, set));
                let when = pod.clock.when(at).max(self.now);
                self.plan_at(when, Due::Timer { pod: id, process, timer, set });
            }
            Action::Announce(news) => return self.hear(id, news),
            Action::Put { op, results } => return self.put_decided(id, op, results),
            Action::Finish { op, result } => return self.finish_decided(id, op, result),
            Action::Look { op, result } => return self.look_decided(id, op, result),
            Action::Forget { op, result } => {
                self.say(|| format!("a{id} forget {op}: {result:?}"));
                self.pods[id].asked.remove(&op);
            }
        }
        Ok(())
    }

    fn hear(&mut self, id: PodId, news: News) -> Result<(), Violation> {
        let pod = &mut self.pods[id];
        match news {
            News::Leads { token, claim_until, records } => {
                pod.belief = Some(claim_until);
                pod.token = Some(token);
                pod.records = records.clone();
                let before = (pod.must_know, pod.losses, pod.newest_token);
                let left = claim_until.since(pod.clock.read(self.now));
                self.say(|| format!("a{id} LEADS with {token}, for {left:?}"));
                // What is known outside is some elections old; that there was one is known to all.
                if self.mirror == 0 {
                    for pod in 0..self.pods.len() {
                        let process = self.pods[pod].process;
                        self.plan_in(1000, Due::Event { pod, process, event: Event::Raise(1) });
                    }
                }
                if self.mirror == 0 || self.dice.chance(300) {
                    self.mirror = self.mirror.max(self.truth.newest_token().max(1));
                }
                let in_order = self.plan.clocks == Clocks::Kept;
                self.truth.leads(token, in_order, before, &records)?;
                if self.with_engine {
                    self.engine_leads(id, token);
                } else {
                    self.truth.readings_are_known(token)?;
                }
                self.far_clocks(id, token)?;
                self.one_leads(id, token)
            }
            News::Lasts { claim_until } => {
                pod.belief = Some(claim_until);
                let left = claim_until.since(pod.clock.read(self.now));
                self.say(|| format!("a{id} leads for {left:?}"));
                match self.pods[id].token {
                    Some(token) => self.one_leads(id, token),
                    None => Ok(()),
                }
            }
            News::Follows { leader } => {
                (pod.belief, pod.token) = (None, None);
                self.say(|| match leader {
                    Some(leader) => format!("a{id} follows {leader}"),
                    None => format!("a{id} follows nobody"),
                });
                if self.with_engine {
                    self.engine_follows(id);
                }
                Ok(())
            }
            News::Recorded(records) => {
                pod.records.extend(records.into_iter().map(|record| (record.id.clone(), record)));
                Ok(())
            }
            News::Forgotten(ids) => {
                for id in &*ids {
                    pod.records.remove(id);
                }
                Ok(())
            }
            News::StateLost { floor } => {
                self.say(|| format!("a{id} says that memory was lost; tokens are above {floor}"));
                self.truth.loss_said();
                Ok(())
            }
        }
    }

    /// I1: while clocks keep pace nobody else believes in a lease now, and the locks outlast the lease.
    fn one_leads(&mut self, id: PodId, token: u64) -> Result<(), Violation> {
        if self.plan.clocks == Clocks::Loose || !self.pods[id].believes(self.now) {
            return Ok(());
        }
        let pod = &self.pods[id];
        if self.plan.clocks == Clocks::Kept && self.check == Check::All {
            let lease = pod.belief.unwrap_or_default() + pod.timing.margin();
            let lease = pod.clock.when(lease);
            if self.locks.majority_until(token, self.plan.majority()).is_some_and(|locks| locks < lease) {
                return broken(Promise::LeaseWithinLocks, format!("the lease of a{id} ends after its locks"));
            }
        }
        if pod.is_tainted() {
            return Ok(());
        }
        for (other, player) in self.pods.iter().enumerate() {
            if other != id && player.believes(self.now) && !player.is_tainted() {
                return broken(Promise::OneLeader, format!("a{id} and a{other} both lead"));
            }
        }
        if let Some(client) = self.foreign.iter().find(|client| client.believes(self.now)) {
            return broken(Promise::OneLeader, format!("a{id} leads and {} holds the lock", client.name));
        }
        Ok(())
    }

    /// With all nodes heard, the lock of the one whose clock is far away counts for nobody.
    fn far_clocks(&self, id: PodId, token: u64) -> Result<(), Violation> {
        let heard = self.pods[id].newest.iter().all(|call| *call > 0);
        let Some(far) = self.plan.far.filter(|_| heard && self.plan.clocks == Clocks::Kept) else { return Ok(()) };
        let near = (0..self.nodes.len()).filter(|node| *node != far);
        match self.locks.taken(token, near) {
            Some(nodes) if nodes < self.plan.majority() => {
                broken(Promise::FarClocks, format!("token {token} leads by the lock of n{far}"))
            }
            _ => Ok(()),
        }
    }
}
