//! A chain of events too long to meet by chance: why a result counts after a second round only (PROTOCOL 6).
//!
//! One node takes a result and loses its memory before any other has heard of it; it is given it back without the result.
//! Then a second node takes the result: a majority has acknowledged it, and yet the other two know nothing.

use cabloy_redlock::Candidacy;
use cabloy_redlock::core::NodeId;

use crate::plan::Fault;
use crate::truth::Violation;
use crate::world::{Due, PodId, World, nanos};

/// How far it has got.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Story {
    finisher: PodId,
    second: NodeId,
}

impl World {
    /// A node took a result.
    pub(crate) fn story_begins(&mut self, finisher: PodId, first: NodeId) {
        let fit = self.nodes.len() == 3 && self.nodes.iter().all(|node| node.intact && !node.down);
        if !self.plan.story || self.story.is_some() || self.calm || !fit {
            return;
        }
        let second = (first + 1) % 3;
        self.say(|| format!("a{finisher} is cut off, and n{first} will lose its memory"));
        self.story = Some(Story { finisher, second });
        let ttl = nanos(self.plan.ttl);
        for node in 0..3 {
            let until = self.now + if node == second { ttl * 6 / 10 } else { 2 * ttl };
            self.links[finisher][node].mute = until;
            self.plan_at(until + 1, Due::Heal { pod: finisher, node });
        }
        self.plan_in(ttl / 100, Due::Loss(first));
    }

    pub(crate) fn lose_memory(&mut self, node: NodeId) {
        let ready = !self.nodes[node].down && self.restart(node, Fault::RestartEmpty);
        if ready {
            self.node_up(node);
        }
        // The former leader may be the one that is cut off.
        self.nodes.iter_mut().for_each(|node| node.model.expire());
    }

    /// A result is recorded.
    pub(crate) fn story_ends(&mut self, finisher: PodId) -> Result<(), Violation> {
        let Some(story) = self.story.filter(|story| story.finisher == finisher && !self.calm) else { return Ok(()) };
        let ttl = nanos(self.plan.ttl);
        (0..self.pods.len()).for_each(|pod| self.cut(pod, story.second, ttl, true, true));
        for pod in 0..self.pods.len() {
            if self.pods[pod].believes(self.now) {
                let candidacy = self.pods[pod].candidacy;
                self.stand(pod, Candidacy { stands: false, ..candidacy })?;
            }
        }
        Ok(())
    }
}
