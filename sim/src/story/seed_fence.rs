//! Why a seed is made of what nodes say that have promised the seeder's token (PROTOCOL 7b).
//!
//! Another agent is elected by two nodes, one of which forgets. The leader before it does not know, for it is by those two
//! that it would hear of it, and gives the forgetful node what it has, which lacks what its successor has started since. The
//! forgetful node and the one that never promised the successor anything are a majority that has not heard of that.

use super::{PATIENCE, RUN, Scene};
use crate::plan::Fault;
use crate::stream::Stream;
use crate::world::nanos;

pub(super) const SCENES: &[Scene] = &[
    Scene {
        when: |_, _| true,
        then: |world, cast| {
            world.hold(Stream::locks(cast.leader, cast.witness));
            world.hold(Stream::records(cast.leader, cast.witness));
            world.offer_locks(cast.other, &[cast.forgetful, cast.witness])
        },
    },
    Scene {
        when: |world, cast| world.pods[cast.other].believes(world.now),
        then: |world, cast| {
            cast.op = world.claim_run(cast.other, RUN)?;
            Ok(())
        },
    },
    Scene {
        when: |world, cast| world.is_decided(cast.other, cast.op),
        then: |world, cast| {
            let span = PATIENCE * nanos(world.plan.ttl);
            (0..3).for_each(|node| world.cut(cast.other, node, span, true, true));
            world.inject(Fault::Flush, cast.leader, cast.forgetful).map(|_| ())
        },
    },
    Scene {
        when: |world, cast| world.is_marked(cast.forgetful),
        // Where it is asked, the witness says that it has promised more.
        then: |world, cast| {
            world.release(Stream::records(cast.leader, cast.witness));
            Ok(())
        },
    },
    Scene {
        when: |world, cast| world.nodes[cast.forgetful].intact,
        then: |world, cast| world.succeed_without(cast.witness, cast.leader),
    },
];
