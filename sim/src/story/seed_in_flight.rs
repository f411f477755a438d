//! Why a seed has what is in flight (PROTOCOL 7c), though what a life that is gone acknowledged does not count (9).
//!
//! An agent tells which of two lives is the later one by its calls: later calls meet later lives. That is so on one
//! connection, but locks and records go by two. Here a node forgets, and its seed is so late that the leader marks the node
//! once more; that mark is late in its turn, on the other connection. The seed and a claim that was sent after the mark
//! arrive first, the node acknowledges the claim, forgets it, and is marked. The leader reads what the two others have, to
//! whom the claim was lost on its way, and sends the next seed. Only now it hears that the claim was acknowledged, by a
//! life that it takes for the newest, and when one of the others has the claim as well it counts two. Had the seed not
//! had the claim, the node that took it and the third one would be a majority that knows nothing.

use cabloy_redlock::message::Request;

use super::{Cast, RUN, Scene};
use crate::plan::Fault;
use crate::stream::Stream;
use crate::world::World;

pub(super) const SCENES: &[Scene] = &[
    Scene {
        when: |_, _| true,
        then: |world, cast| world.inject(Fault::Flush, cast.leader, cast.forgetful).map(|_| ()),
    },
    Scene {
        when: |world, cast| world.is_marked(cast.forgetful),
        then: |world, cast| {
            world.hold(Stream::records(cast.leader, cast.forgetful));
            Ok(())
        },
    },
    Scene {
        when: seed_is_held,
        then: |world, cast| {
            world.hold(Stream::locks(cast.leader, cast.forgetful));
            Ok(())
        },
    },
    Scene {
        when: |world, cast| {
            world.holds(Stream::locks(cast.leader, cast.forgetful), |request| matches!(request, Request::Mark { .. }))
        },
        then: |world, cast| {
            world.hold(Stream::records(cast.leader, cast.forgetful).back());
            let others = [cast.witness, cast.third];
            cast.op = world.unheard(cast.leader, &others, |world| world.claim_run(cast.leader, RUN))?;
            world.release(Stream::records(cast.leader, cast.forgetful));
            Ok(())
        },
    },
    Scene {
        when: |world, cast| world.has_claim(cast.forgetful, RUN),
        then: |world, cast| {
            world.inject(Fault::Flush, cast.leader, cast.forgetful)?;
            world.hold(Stream::records(cast.leader, cast.forgetful));
            world.release(Stream::locks(cast.leader, cast.forgetful));
            Ok(())
        },
    },
    Scene {
        when: seed_is_held,
        then: |world, cast| {
            // Nor does it hear of the life after, before the claim has reached the witness.
            world.hold(Stream::locks(cast.leader, cast.forgetful));
            world.hold(Stream::records(cast.leader, cast.third));
            world.release(Stream::records(cast.leader, cast.forgetful).back());
            Ok(())
        },
    },
    Scene {
        when: |world, cast| world.is_decided(cast.leader, cast.op),
        then: |world, cast| {
            world.release(Stream::records(cast.leader, cast.forgetful));
            Ok(())
        },
    },
    Scene {
        when: |world, cast| world.nodes[cast.forgetful].intact,
        then: |world, cast| world.succeed_without(cast.witness, cast.leader),
    },
];

fn seed_is_held(world: &World, cast: &Cast) -> bool {
    world.holds(Stream::records(cast.leader, cast.forgetful), |request| matches!(request, Request::Seed { .. }))
}
