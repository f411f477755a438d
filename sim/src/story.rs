//! Chains of events that chance does not find, for rules that are needed too seldom: of elections and the ledger, and of
//! engines on top of them.
//!
//! A story is a list of scenes. A scene begins when something has come to be so, and then something befalls who plays in
//! it: a connection stands still, a node forgets, an agent is asked something. What they make of that is up to them; where
//! they do not go along the story stays as it is, and is over after some time.

mod finish_twice;
mod half_done;
mod half_read;
mod half_seen;
mod late_claim;
mod old_reading;
mod seed_fence;
mod seed_in_flight;

use cabloy_redlock::Candidacy;
use cabloy_redlock::core::{NodeId, OpId};
use cabloy_redlock::message::Request;

use crate::clock::Time;
use crate::plan::Fault;
use crate::stream::Stream;
use crate::truth::Violation;
use crate::world::{PodId, World, nanos};

/// A run that nobody claims but who plays in a story.
const RUN: &str = "story";

/// A startup task that is new in a story of engines.
const TASK: &str = "story";

/// Its run, on the first revision.
const TASK_RUN: &str = "u/story/r1";

/// How stories of engines begin.
const NEW_TASK: Scene = Scene {
    when: |_, _| true,
    then: |world, _| {
        world.add_task(TASK);
        Ok(())
    },
};

/// A story takes no longer than so many ttls.
const PATIENCE: u64 = 3;

/// Which story is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tale {
    /// [`finish_twice`].
    FinishTwice,
    /// [`seed_fence`].
    SeedFence,
    /// [`seed_in_flight`].
    SeedInFlight,
    /// [`half_read`].
    HalfRead,
    /// [`half_done`].
    HalfDone,
    /// [`half_seen`].
    HalfSeen,
    /// [`late_claim`].
    LateClaim,
    /// [`old_reading`].
    OldReading,
}

impl Tale {
    /// Those of elections and the ledger alone.
    pub(crate) const OF_ELECTION: [Self; 4] = [Self::FinishTwice, Self::SeedFence, Self::SeedInFlight, Self::HalfRead];
    /// Those of worlds with engines.
    pub(crate) const OF_ENGINES: [Self; 4] = [Self::HalfDone, Self::HalfSeen, Self::LateClaim, Self::OldReading];

    fn scenes(self) -> &'static [Scene] {
        match self {
            Self::FinishTwice => finish_twice::SCENES,
            Self::SeedFence => seed_fence::SCENES,
            Self::SeedInFlight => seed_in_flight::SCENES,
            Self::HalfRead => half_read::SCENES,
            Self::HalfDone => half_done::SCENES,
            Self::HalfSeen => half_seen::SCENES,
            Self::LateClaim => late_claim::SCENES,
            Self::OldReading => old_reading::SCENES,
        }
    }
}

/// What happens as soon as something is so.
struct Scene {
    when: fn(&World, &Cast) -> bool,
    then: fn(&mut World, &mut Cast) -> Result<(), Violation>,
}

/// Who plays.
#[derive(Clone, Copy, Debug)]
struct Cast {
    /// Leads in the beginning.
    leader: PodId,
    /// Another agent; a third one leads in the end.
    other: PodId,
    /// The node that forgets.
    forgetful: NodeId,
    /// The node that has what was decided, and cannot be reached in the end.
    witness: NodeId,
    /// The node that has not.
    third: NodeId,
    /// What was asked last.
    op: OpId,
}

/// How far a story has got.
pub(crate) struct Story {
    /// What is still to come.
    scenes: &'static [Scene],
    cast: Cast,
    /// When it ends, however far it has got.
    over: Time,
}

impl World {
    /// The story goes on, if there is one and it is time.
    pub(crate) fn tell(&mut self) -> Result<(), Violation> {
        let Some(tale) = self.plan.story.filter(|_| !self.calm) else { return Ok(()) };
        let Some(mut story) = self.story.take().or_else(|| self.begin(tale)) else { return Ok(()) };
        if self.now >= story.over {
            self.say(|| "the story is over".into());
            self.plan.story = None;
            self.release_all();
            return Ok(());
        }
        if let [scene, rest @ ..] = story.scenes
            && (scene.when)(self, &story.cast)
        {
            story.scenes = rest;
            (scene.then)(self, &mut story.cast)?;
        }
        self.story = Some(story);
        Ok(())
    }

    /// Begins once all have started, somebody leads, and everybody is well.
    fn begin(&mut self, tale: Tale) -> Option<Story> {
        let leader = self.pods.iter().position(|pod| pod.believes(self.now))?;
        let well = self.nodes.iter().all(|node| node.intact && !node.down);
        if !well || self.now < nanos(self.plan.ttl) / 10 {
            return None;
        }
        let other = (leader + 1) % self.pods.len();
        let forgetful = self.dice.place(3);
        let (witness, third) = ((forgetful + 1) % 3, (forgetful + 2) % 3);
        let cast = Cast { leader, other, forgetful, witness, third, op: 0 };
        self.say(|| format!("a story: {tale:?}, by {cast:?}"));
        Some(Story { scenes: tale.scenes(), cast, over: self.now + PATIENCE * nanos(self.plan.ttl) })
    }

    fn has_claim(&self, node: NodeId, run: &str) -> bool {
        self.nodes[node].model.memory().record(run).is_some()
    }

    fn has_result(&self, node: NodeId, run: &str) -> bool {
        self.nodes[node].model.memory().record(run).is_some_and(|record| !record.results.is_empty())
    }

    /// The app of a pod works at the new task.
    fn works(&self, pod: PodId) -> bool {
        self.desks[pod].app.running.values().any(|work| work.run == TASK_RUN)
    }

    /// It is about to be seeded.
    fn is_marked(&self, node: NodeId) -> bool {
        !self.nodes[node].intact && !self.nodes[node].model.life().mark.is_empty()
    }

    fn is_decided(&self, pod: PodId, op: OpId) -> bool {
        !self.pods[pod].asked.contains_key(&op)
    }

    /// What a candidate wants to read at this node waits there.
    fn read_is_held(&self, pod: PodId, node: NodeId) -> bool {
        self.holds(Stream::records(pod, node), |request| matches!(request, Request::Read { .. }))
    }

    /// What waits there arrives, and nothing that comes after it.
    fn let_one_round_through(&mut self, stream: Stream) {
        self.release(stream);
        self.hold(stream);
    }

    /// Another agent may have the locks of these nodes at once.
    fn offer_locks(&mut self, next: PodId, nodes: &[NodeId]) -> Result<(), Violation> {
        for node in nodes {
            self.inject(Fault::Expire, next, *node)?;
            self.reconnect(next, *node, 2000);
        }
        Ok(())
    }

    /// Nobody reaches this node, and the leader gives its lock back: the next one has to do with the two others.
    fn succeed_without(&mut self, node: NodeId, leader: PodId) -> Result<(), Violation> {
        self.isolate(node, nanos(self.plan.ttl));
        self.withdraw(leader)
    }

    fn withdraw(&mut self, pod: PodId) -> Result<(), Violation> {
        let candidacy = self.pods[pod].candidacy;
        self.stand(pod, Candidacy { stands: false, ..candidacy })
    }
}
