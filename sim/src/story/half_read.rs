//! Why nobody leads by what only a minority may know (PROTOCOL 2).
//!
//! One node has taken a claim when the next leader reads it there. Before what it read has reached any other node, it gives
//! its lock back, and that one node cannot be reached: the leader after it knows nothing of the claim.

use super::{RUN, Scene};
use crate::stream::Stream;

pub(super) const SCENES: &[Scene] = &[
    Scene {
        when: |_, _| true,
        then: |world, cast| {
            world.hold(Stream::records(cast.leader, cast.witness));
            world.hold(Stream::records(cast.leader, cast.third));
            world.claim_run(cast.leader, RUN).map(|_| ())
        },
    },
    Scene {
        when: |world, cast| world.has_claim(cast.forgetful, RUN),
        then: |world, cast| {
            world.hold(Stream::locks(cast.other, cast.third));
            world.hold(Stream::records(cast.other, cast.third));
            world.hold(Stream::records(cast.other, cast.witness));
            world.offer_locks(cast.other, &[cast.forgetful, cast.witness])
        },
    },
    Scene {
        when: |world, cast| world.read_is_held(cast.other, cast.witness),
        then: |world, cast| {
            world.let_one_round_through(Stream::records(cast.other, cast.witness));
            Ok(())
        },
    },
    Scene {
        when: |world, cast| world.pods[cast.other].believes(world.now),
        then: |world, cast| world.succeed_without(cast.forgetful, cast.other),
    },
];
