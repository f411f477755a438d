//! Why nobody leads by what only a minority may know (`WriteBack`, PROTOCOL 2).
//!
//! A startup task is done, and one node has taken the result when its agent is gone. The next leader reads it there, and says
//! that the task is done: gates open, and what comes after it begins. Then that node forgets, and that leader is gone before
//! what it read has reached any other node. The leader after it finds an attempt without a result, and makes the next one.

use super::{NEW_TASK, PATIENCE, Scene, TASK_RUN};
use crate::plan::Fault;
use crate::stream::Stream;
use crate::world::nanos;

pub(super) const SCENES: &[Scene] = &[
    NEW_TASK,
    Scene {
        when: |world, cast| world.works(cast.leader) && (0..3).all(|node| world.has_claim(node, TASK_RUN)),
        then: |world, cast| {
            world.hold(Stream::records(cast.leader, cast.witness));
            world.hold(Stream::records(cast.leader, cast.third));
            Ok(())
        },
    },
    Scene {
        when: |world, cast| world.has_result(cast.forgetful, TASK_RUN),
        then: |world, cast| {
            world.hold(Stream::locks(cast.other, cast.third));
            world.hold(Stream::records(cast.other, cast.third));
            world.hold(Stream::records(cast.other, cast.witness));
            world.stand_still(cast.leader, PATIENCE * nanos(world.plan.ttl));
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
        when: |world, _| world.watch.is_told(TASK_RUN),
        then: |world, cast| {
            world.inject(Fault::Flush, cast.other, cast.forgetful)?;
            let next = (cast.other + 1) % world.pods.len();
            world.stand_still(cast.other, PATIENCE * nanos(world.plan.ttl));
            world.offer_locks(next, &[cast.witness, cast.third])
        },
    },
];
