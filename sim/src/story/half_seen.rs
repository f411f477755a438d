//! Why nobody goes by a result that only a minority may hold (`Confirm`).
//!
//! The lease passes on while a startup task is at work. Then it is done, and one node has taken the result when its agent is
//! gone. The leader, which asks the ledger how it stands, reads the result there, and says that the task is done: gates
//! open, and what comes after it begins. Then that node forgets, and that leader is gone. The leader after it finds an
//! attempt without a result, and makes the next one.

use cabloy_redlock::message::Request;

use super::{NEW_TASK, PATIENCE, Scene, TASK_RUN};
use crate::plan::Fault;
use crate::stream::Stream;
use crate::world::nanos;

pub(super) const SCENES: &[Scene] = &[
    NEW_TASK,
    Scene {
        when: |world, cast| world.works(cast.leader) && (0..3).all(|node| world.has_claim(node, TASK_RUN)),
        then: |world, cast| {
            (0..3).for_each(|node| world.hold(Stream::records(cast.leader, node)));
            Ok(())
        },
    },
    Scene {
        when: |world, cast| {
            world.holds(Stream::records(cast.leader, cast.forgetful), |it| matches!(it, Request::Finish { .. }))
        },
        then: |world, cast| {
            world.stand_still(cast.leader, PATIENCE * nanos(world.plan.ttl));
            world.offer_locks(cast.other, &[0, 1, 2])
        },
    },
    Scene {
        when: |world, cast| world.pods[cast.other].believes(world.now),
        then: |world, cast| {
            world.hold(Stream::records(cast.other, cast.third));
            world.release(Stream::records(cast.leader, cast.forgetful));
            Ok(())
        },
    },
    Scene {
        when: |world, _| world.watch.is_told(TASK_RUN),
        then: |world, cast| {
            world.inject(Fault::Flush, cast.other, cast.forgetful)?;
            let next = (cast.other + 1) % world.pods.len();
            world.stand_still(cast.other, PATIENCE * nanos(world.plan.ttl));
            world.offer_locks(next, &[cast.witness, cast.third])
        },
    },
];
