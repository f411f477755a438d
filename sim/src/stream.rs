//! Streams of messages, each in order, that a story lets stand still.

use std::fmt;

use cabloy_redlock::core::NodeId;
use cabloy_redlock::message::{Lane, Request};

use crate::clock::Time;
use crate::world::{Due, PodId, World};

/// One direction of one of the two connections between an agent and a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stream {
    pub(crate) pod: PodId,
    pub(crate) node: NodeId,
    /// Its place among those of the two.
    pub(crate) lane: usize,
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pod, node, lane } = self;
        let way = if *lane < 2 { "->" } else { "<-" };
        let what = if lane % 2 == 0 { "locks" } else { "records" };
        write!(f, "a{pod} {way} n{node}, {what},")
    }
}

impl Stream {
    /// What an agent says to a node about its lock.
    pub(crate) fn locks(pod: PodId, node: NodeId) -> Self {
        Self { pod, node, lane: 0 }
    }

    /// What an agent says to a node about records.
    pub(crate) fn records(pod: PodId, node: NodeId) -> Self {
        Self { pod, node, lane: 1 }
    }

    pub(crate) fn of(pod: PodId, node: NodeId, request: &Request) -> Self {
        match request.lane() {
            Lane::Lock => Self::locks(pod, node),
            Lane::Ledger => Self::records(pod, node),
        }
    }

    /// What the node answers.
    pub(crate) fn back(self) -> Self {
        Self { lane: 2 + self.lane, ..self }
    }
}

impl World {
    /// A message is on its way.
    pub(crate) fn carry(&mut self, stream: Stream, at: Time, message: Due) {
        match self.held.get_mut(&stream) {
            Some(held) => held.push(message),
            None => self.plan_at(at, message),
        }
    }

    /// What is sent from now on arrives no earlier than when it is released.
    pub(crate) fn hold(&mut self, stream: Stream) {
        self.say(|| format!("{stream} stands still"));
        self.held.entry(stream).or_default();
    }

    /// Whether a request waits there.
    pub(crate) fn holds(&self, stream: Stream, which: fn(&Request) -> bool) -> bool {
        let held = self.held.get(&stream).into_iter().flatten();
        held.into_iter().any(|due| matches!(due, Due::Request { request, .. } if which(request)))
    }

    /// What waited there arrives, in order.
    pub(crate) fn release(&mut self, stream: Stream) {
        self.say(|| format!("{stream} goes on"));
        for message in self.held.remove(&stream).into_iter().flatten() {
            self.plan_in(0, message);
        }
    }

    /// What engines asked the ledger reaches them no earlier than when it is released, and whatever else does.
    pub(crate) fn hold_readings(&mut self) {
        self.say(|| "what engines asked the ledger waits".into());
        self.readings = Some(Vec::new());
    }

    pub(crate) fn release_readings(&mut self) {
        for due in self.readings.take().into_iter().flatten() {
            self.engine_in(0, due);
        }
    }

    pub(crate) fn release_all(&mut self) {
        self.release_readings();
        while let Some((stream, _)) = self.held.first_key_value() {
            self.release(*stream);
        }
    }

    /// What an agent says to these nodes meanwhile is lost.
    pub(crate) fn unheard<R>(&mut self, pod: PodId, nodes: &[NodeId], says: impl FnOnce(&mut Self) -> R) -> R {
        let before = self.links[pod].clone();
        for node in nodes {
            self.links[pod][*node].mute = Time::MAX;
        }
        let result = says(self);
        for node in nodes {
            self.links[pod][*node].mute = before[*node].mute;
        }
        result
    }
}
