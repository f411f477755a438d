//! Faults, injected as the plan says.

use cabloy_redlock::clock::Instant;
use cabloy_redlock::core::{Event, NodeId};
use cabloy_redlock::model::Memory as Kept;
use cabloy_redlock::{Candidacy, Timing};
use std::time::Duration;

use crate::clock::Time;
use crate::plan::{FAULTS, Fault, Memory};
use crate::truth::Violation;
use crate::world::{Due, PodId, World, nanos};

impl World {
    /// The next fault.
    pub(crate) fn trouble(&mut self) -> Result<(), Violation> {
        if self.calm {
            return Ok(());
        }
        let next = self.around(self.plan.trouble);
        self.plan_in(next, Due::Trouble);
        let Some(kind) = self.dice.weighted(&self.plan.weights) else { return Ok(()) };
        let (pod, node) = (self.dice.place(self.pods.len()), self.dice.place(self.nodes.len()));
        if self.inject(FAULTS[kind], pod, node)? {
            self.outcome.tally.faults[kind] += 1;
        }
        Ok(())
    }

    /// `false` if it cannot happen now.
    pub(crate) fn inject(&mut self, fault: Fault, pod: PodId, node: NodeId) -> Result<bool, Violation> {
        let ttl = nanos(self.plan.ttl);
        let while_ = self.around(800);
        match fault {
            Fault::Cut => self.cut(pod, node, while_, true, true),
            Fault::CutOneWay => {
                let to_node = self.dice.chance(500);
                self.cut(pod, node, while_, to_node, !to_node);
            }
            Fault::Isolate => self.isolate(node, while_),
            Fault::RestartKept | Fault::RestartEmpty | Fault::RestartOld | Fault::Promote => {
                return Ok(self.restart(node, fault));
            }
            Fault::Flush => {
                // Who did not hear a node between two losses under one run id takes them for one, and does not let it rest
                // anew. That matters only where more than a minority lose their memory.
                let heard = self.pods.iter().all(|pod| !pod.alive || pod.heard[node]);
                if !self.may_forget(node) || (self.plan.memory == Memory::Any && !heard) {
                    return Ok(false);
                }
                self.say(|| format!("n{node} FLUSHED"));
                self.nodes[node].model.flush();
                self.forgot(node);
            }
            Fault::Stall => {
                self.say(|| format!("n{node} stalls"));
                self.nodes[node].stalled = self.now + while_;
            }
            Fault::Jump => {
                // Two jumps that undo each other between two answers show in none.
                if self.pods.iter().any(|pod| pod.tainted[node]) {
                    return Ok(false);
                }
                let far = i64::try_from(self.dice.between(ttl, 3 * ttl)).unwrap_or_default();
                let by = if self.dice.chance(700) { far } else { -far };
                self.jump(node, by);
            }
            Fault::Expire => {
                self.say(|| format!("the lock of n{node} is gone"));
                self.nodes[node].model.expire();
            }
            Fault::Reconnect => {
                if self.nodes[node].down {
                    return Ok(false);
                }
                let after = self.around(20);
                self.reconnect(pod, node, after);
            }
            Fault::Foreign => self.foreign_client(),
            Fault::Storm => {
                self.say(|| "most messages are lost".into());
                self.storm = self.now + while_;
                self.plan_in(while_, Due::Lull);
            }
            _ => return self.inject_agent(fault, pod),
        }
        Ok(true)
    }

    /// What befalls an agent.
    fn inject_agent(&mut self, fault: Fault, pod: PodId) -> Result<bool, Violation> {
        let ttl = nanos(self.plan.ttl);
        let alive = self.pods[pod].alive;
        match fault {
            Fault::PauseProcess | Fault::PauseMachine => {
                let machine = fault == Fault::PauseMachine;
                if !alive || self.pods[pod].stopped || (machine && self.pods[pod].is_tainted()) {
                    return Ok(false);
                }
                if machine {
                    let player = &mut self.pods[pod];
                    player.clock.stop(self.now);
                    player.tainted.fill(true);
                }
                let span = if machine { self.dice.between(ttl, 3 * ttl) } else { self.around(1000) };
                self.stand_still(pod, span);
            }
            Fault::RestartAgent => {
                if !alive {
                    return Ok(false);
                }
                let after = self.around(300);
                self.restart_agent(pod, after);
            }
            Fault::KillAgent => {
                if !alive || self.pods.iter().filter(|pod| pod.alive).count() < 3 {
                    return Ok(false);
                }
                self.say(|| format!("a{pod} is killed for good"));
                self.pods[pod].alive = false;
            }
            Fault::Stand | Fault::Revise => {
                if !alive || self.pods[pod].stopped {
                    return Ok(false);
                }
                let Candidacy { stands, revision } = self.pods[pod].candidacy;
                let candidacy = if fault == Fault::Stand {
                    Candidacy { stands: !stands, revision }
                } else {
                    Candidacy { stands, revision: revision + self.dice.between(1, 2) }
                };
                return self.stand(pod, candidacy).map(|()| true);
            }
            Fault::Retime => {
                if !alive || self.pods[pod].stopped {
                    return Ok(false);
                }
                let ttl = self.plan.ttl * self.dice.one_of(&[1, 2, 4]) / 2;
                self.say(|| format!("a{pod} has a ttl of {ttl:?}"));
                return self.retime(pod, Timing { ttl }).map(|()| true);
            }
            Fault::Raise => {
                if !alive || self.pods[pod].stopped {
                    return Ok(false);
                }
                let token = self.truth.newest_token() + self.dice.between(0, 3);
                self.say(|| format!("a{pod} hears of token {token}"));
                self.step(pod, Event::Raise(token))?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The process of an agent ends, and another one begins in its pod after some time.
    pub(crate) fn restart_agent(&mut self, pod: PodId, after: Time) {
        self.say(|| format!("a{pod} is killed, and started again"));
        let (mirror, rules) = (self.mirror, self.rules);
        self.pods[pod].clock.go_on_if_stopped(self.now);
        self.pods[pod].replace(pod, mirror, rules);
        if self.with_engine {
            self.agent_begins_anew(pod);
        }
        self.plan_in(after, Due::Start(pod));
    }

    /// An agent's process stands still, and if its clock does as well, its machine.
    pub(crate) fn stand_still(&mut self, pod: PodId, span: Time) {
        let machine = self.pods[pod].clock.is_stopped();
        self.say(|| format!("a{pod} stands still{}", if machine { ", with its clock" } else { "" }));
        self.pods[pod].stopped = true;
        self.plan_in(span, Due::Resume(pod));
    }

    pub(crate) fn stand(&mut self, pod: PodId, candidacy: Candidacy) -> Result<(), Violation> {
        let Candidacy { stands, revision } = candidacy;
        self.say(|| format!("a{pod} {} for revision {revision}", if stands { "stands" } else { "does not stand" }));
        self.pods[pod].candidacy = candidacy;
        self.step(pod, Event::Stand(candidacy))
    }

    pub(crate) fn retime(&mut self, pod: PodId, timing: Timing) -> Result<(), Violation> {
        self.longest_ttl = self.longest_ttl.max(timing.ttl);
        self.pods[pod].timing = timing;
        self.step(pod, Event::Timing(timing))
    }

    /// What one says to the other is lost for a while; at times the agent's driver notices.
    pub(crate) fn cut(&mut self, pod: PodId, node: NodeId, span: Time, to_node: bool, to_agent: bool) {
        self.say(|| {
            let way = if to_node && to_agent {
                "--"
            } else if to_node {
                "->"
            } else {
                "<-"
            };
            format!("CUT a{pod} {way} n{node} for {:?}", Duration::from_nanos(span))
        });
        let until = self.now + span;
        let link = &mut self.links[pod][node];
        link.mute = link.mute.max(if to_node { until } else { 0 });
        link.deaf = link.deaf.max(if to_agent { until } else { 0 });
        if self.dice.chance(500) {
            self.disconnect(pod, node);
        }
        self.plan_at(until + 1, Due::Heal { pod, node });
    }

    pub(crate) fn isolate(&mut self, node: NodeId, span: Time) {
        (0..self.pods.len()).for_each(|pod| self.cut(pod, node, span, true, true));
    }

    pub(crate) fn reconnect(&mut self, pod: PodId, node: NodeId, after: Time) {
        self.disconnect(pod, node);
        self.plan_in(after, Due::Heal { pod, node });
    }

    fn disconnect(&mut self, pod: PodId, node: NodeId) {
        if self.links[pod][node].up {
            self.links[pod][node].up = false;
            let process = self.pods[pod].process;
            self.plan_in(1000, Due::Event { pod, process, event: Event::Down(node) });
        }
    }

    /// The driver connects again, if the way is free.
    pub(crate) fn heal(&mut self, pod: PodId, node: NodeId) {
        let link = &mut self.links[pod][node];
        if link.up || link.mute > self.now || link.deaf > self.now || self.nodes[node].down {
            return;
        }
        link.up = true;
        let process = self.pods[pod].process;
        let durable = self.is_durable();
        self.plan_in(2000, Due::Event { pod, process, event: Event::Up { node, durable } });
        self.plan_in(3000, Due::Event { pod, process, event: Event::Listening(node) });
    }

    /// Whether one more node may be without memory.
    fn may_forget(&self, node: NodeId) -> bool {
        match self.plan.memory {
            Memory::Kept => false,
            Memory::Durable => true,
            // A loss is known for one by who has heard of the election before, if only from the operator.
            Memory::Any => !self.truth.led() || self.pods.iter().filter(|pod| pod.alive).all(|pod| pod.knows),
            // Before a majority has a memory for the first time nothing can be lost.
            Memory::Minority => {
                self.intact() - usize::from(self.nodes[node].intact) >= self.plan.majority()
                    || (!self.truth.led() && self.intact() < self.plan.majority())
            }
        }
    }

    /// A node has no memory any more.
    fn forgot(&mut self, node: NodeId) {
        let had_majority = self.intact() >= self.plan.majority();
        self.nodes[node].intact = false;
        for pod in &mut self.pods {
            pod.heard[node] = false;
        }
        if self.plan.memory == Memory::Any && self.intact() < self.plan.majority() {
            self.say(|| "no majority has a memory".into());
            // A leader may have what is lost, and give it to a node that it was about to seed: then nothing is lost.
            let leads = self.pods.iter().any(|pod| pod.alive && pod.core.leads().is_some());
            let lost = had_majority && !leads && !self.seeds_under_way();
            let models: Vec<_> = self.nodes.iter().map(|node| &node.model).collect();
            self.truth.lose(lost, &models);
            self.watch.lose();
        }
    }

    fn intact(&self) -> usize {
        self.nodes.iter().filter(|node| node.intact).count()
    }

    pub(crate) fn restart(&mut self, id: NodeId, fault: Fault) -> bool {
        if self.nodes[id].down || !self.may_forget(id) {
            return false;
        }
        let memory = match fault {
            Fault::RestartKept => self.nodes[id].model.memory().clone(),
            Fault::RestartEmpty => Kept::default(),
            _ => match self.nodes[id].snapshots.len() {
                0 => Kept::default(),
                count => self.nodes[id].snapshots[self.dice.place(count)].clone(),
            },
        };
        let server = &mut self.nodes[id];
        server.restarts += 1;
        let run = format!("n{id}.{}", server.restarts);
        server.model.restart(&run, memory);
        server.down = true;
        self.say(|| format!("n{id} {fault:?} as {run}"));
        self.forgot(id);
        let after = if fault == Fault::Promote { 0 } else { self.around(400) };
        for pod in 0..self.pods.len() {
            if self.dice.chance(800) {
                self.disconnect(pod, id);
            }
        }
        self.plan_in(after, Due::NodeUp(id));
        true
    }

    pub(crate) fn node_up(&mut self, id: NodeId) {
        if !std::mem::take(&mut self.nodes[id].down) {
            return;
        }
        self.say(|| format!("n{id} answers again"));
        for pod in 0..self.pods.len() {
            let after = self.around(10);
            self.plan_in(after, Due::Heal { pod, node: id });
        }
    }

    pub(crate) fn jump(&mut self, id: NodeId, by: i64) {
        self.say(|| format!("the clock of n{id} jumps by {} ms", by / 1_000_000));
        self.now_by_median();
        if by < 0 && self.with_engine {
            self.clocks_go_back();
        }
        let now = self.now;
        let server = &mut self.nodes[id];
        server.clock.jump(now, by);
        server.jumped = now;
        for pod in &mut self.pods {
            pod.tainted[id] = true;
        }
        for client in &mut self.foreign {
            // Nor does a lock count that it got before.
            (client.until, client.got) = (None, 0);
        }
    }

    pub(crate) fn is_durable(&self) -> bool {
        self.plan.memory == Memory::Durable
    }

    /// What the clock of a node shows.
    pub(crate) fn shows(&self, id: NodeId) -> Instant {
        self.nodes[id].clock.read(self.now)
    }
}
