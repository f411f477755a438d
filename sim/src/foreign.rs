//! Other Redlock clients that want the same lock, each for a while.

use cabloy_redlock::Owner;
use cabloy_redlock::core::NodeId;
use cabloy_redlock::message::Request;
use std::time::Duration;

use crate::clock::Time;
use crate::plan::Clocks;
use crate::truth::{Promise, Violation, broken};
use crate::world::{Due, World, nanos};

/// Another client's try for the lock.
#[derive(Debug)]
pub(crate) struct Foreign {
    /// The value of its lock.
    pub(crate) name: String,
    ttl: Time,
    since: Time,
    pub(crate) got: usize,
    asked: usize,
    /// Until when it believes that it holds the lock.
    pub(crate) until: Option<Time>,
}

/// What such a client does next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Lock(usize, NodeId),
    Unlock(usize, NodeId),
    Release(usize),
}

impl Foreign {
    pub(crate) fn believes(&self, now: Time) -> bool {
        self.until.is_some_and(|until| until > now)
    }
}

impl World {
    pub(crate) fn foreign_client(&mut self) {
        let client = self.foreign.len();
        let ttl = self.dice.between(nanos(self.plan.ttl) / 4, nanos(self.plan.ttl) * 2);
        let name = format!("client {client}");
        self.say(|| format!("{name} wants the lock"));
        self.foreign.push(Foreign { name, ttl, since: self.now, got: 0, asked: 0, until: None });
        for node in 0..self.nodes.len() {
            let way = self.dice.between(100, 5000) * 1000;
            self.plan_in(way, Due::Foreign(Step::Lock(client, node)));
        }
        let hold = self.dice.below(ttl) + ttl / 20;
        self.plan_in(hold, Due::Foreign(Step::Release(client)));
    }

    pub(crate) fn foreign_step(&mut self, step: Step) -> Result<(), Violation> {
        match step {
            Step::Lock(client, node) => {
                let server = &mut self.nodes[node];
                let (now, Foreign { name, ttl, .. }) = (server.clock.read(self.now), &self.foreign[client]);
                let got = !server.down && server.stalled <= self.now;
                let got = got && server.model.lock(now, name, Duration::from_nanos(*ttl));
                let it = &mut self.foreign[client];
                it.asked += 1;
                it.got += usize::from(got);
                if it.asked == self.nodes.len() && it.got >= self.plan.majority() {
                    it.until = Some(it.since + it.ttl - it.ttl / 100 - 2_000_000);
                    let name = it.name.clone();
                    self.say(|| format!("{name} holds the lock"));
                    return self.foreign_alone(client);
                }
            }
            Step::Release(client) => {
                self.foreign[client].until = None;
                for node in 0..self.nodes.len() {
                    let way = self.dice.between(100, 5000) * 1000;
                    self.plan_in(way, Due::Foreign(Step::Unlock(client, node)));
                }
            }
            Step::Unlock(client, node) => {
                let server = &mut self.nodes[node];
                let owner = Owner::Other(self.foreign[client].name.clone());
                if !server.down {
                    let now = server.clock.read(self.now);
                    server.model.apply(now, &Request::Release { owner, publish: false });
                }
            }
        }
        Ok(())
    }

    fn foreign_alone(&self, client: usize) -> Result<(), Violation> {
        if self.plan.clocks == Clocks::Loose {
            return Ok(());
        }
        let leads = |pod: &crate::pod::Pod| pod.believes(self.now) && !pod.is_tainted();
        match self.pods.iter().position(leads) {
            Some(pod) => {
                broken(Promise::OneLeader, format!("{} holds the lock and a{pod} leads", self.foreign[client].name))
            }
            None => Ok(()),
        }
    }
}
