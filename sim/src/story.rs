//! Chains of events that chance does not find, for rules that are needed too seldom.
//!
//! A story is a list of scenes. A scene begins when something has come to be so, and then something befalls who plays in
//! it: a connection stands still, a node forgets, an agent is asked something. What they make of that is up to them; where
//! they do not go along the story stays as it is, and is over after some time.

mod finish_twice;
mod seed_fence;
mod seed_in_flight;

use cabloy_redlock::Candidacy;
use cabloy_redlock::core::{NodeId, OpId};

use crate::clock::Time;
use crate::truth::Violation;
use crate::world::{PodId, World, nanos};

/// A run that nobody claims but who plays in a story.
const RUN: &str = "story";

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
}

impl Tale {
    pub(crate) const ALL: [Self; 3] = [Self::FinishTwice, Self::SeedFence, Self::SeedInFlight];

    fn scenes(self) -> &'static [Scene] {
        match self {
            Self::FinishTwice => finish_twice::SCENES,
            Self::SeedFence => seed_fence::SCENES,
            Self::SeedInFlight => seed_in_flight::SCENES,
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

    fn has_claim(&self, node: NodeId) -> bool {
        self.nodes[node].model.memory().record(RUN).is_some()
    }

    fn has_result(&self, node: NodeId) -> bool {
        self.nodes[node].model.memory().record(RUN).is_some_and(|record| !record.results.is_empty())
    }

    /// It is about to be seeded.
    fn is_marked(&self, node: NodeId) -> bool {
        !self.nodes[node].intact && !self.nodes[node].model.life().mark.is_empty()
    }

    fn is_decided(&self, pod: PodId, op: OpId) -> bool {
        !self.pods[pod].asked.contains_key(&op)
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
