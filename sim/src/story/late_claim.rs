//! Why nothing is called after its deadline (`InTime`), though its claim has come through.
//!
//! A majority takes a leader's claim, and the leader's process stands still before its engine hears of that. The deadline
//! passes without a result, and the next leader makes the next attempt. Then the process goes on, and finds the word that
//! its claim has come through.

use super::{NEW_TASK, PATIENCE, Scene, TASK_RUN};
use crate::engine::Asked as OfEngine;
use crate::work::Asked;
use crate::world::{PodId, World, nanos};

pub(super) const SCENES: &[Scene] = &[
    NEW_TASK,
    Scene {
        when: |world, cast| {
            let takers = (0..3).filter(|node| world.has_claim(*node, TASK_RUN)).count();
            takers > 1 && is_unheard(world, cast.leader)
        },
        then: |world, cast| {
            world.stand_still(cast.leader, PATIENCE * nanos(world.plan.ttl));
            Ok(())
        },
    },
    Scene {
        when: |world, cast| (0..world.pods.len()).any(|pod| pod != cast.leader && world.works(pod)),
        then: |world, cast| world.resume(cast.leader),
    },
];

/// The agent knows what became of its engine's claims, and the engine does not yet.
fn is_unheard(world: &World, pod: PodId) -> bool {
    let asked = |it: &Asked| matches!(it, Asked::Engine(OfEngine::Put { .. }));
    !world.desks[pod].is_settled() && !world.pods[pod].asked.values().any(asked)
}
