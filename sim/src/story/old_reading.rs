//! Why a reading that is older than what is known undoes nothing (`NewestKnown`).
//!
//! A pod is gone while it is at a task. The next leader asks the ledger about the attempt, and before the answer reaches its
//! engine the operator says that the pod has ended: the next attempt is claimed and called. Then the answer comes, and knows
//! of the first attempt alone.

use cabloy_engine::core::Event;

use super::{NEW_TASK, Scene, TASK_RUN};
use crate::engine::{Due, time};

pub(super) const SCENES: &[Scene] = &[
    NEW_TASK,
    Scene {
        when: |world, cast| world.works(cast.leader),
        then: |world, cast| {
            world.replace_pod(cast.leader, 1);
            world.hold_readings();
            Ok(())
        },
    },
    Scene {
        when: |world, _| world.readings.iter().flatten().any(is_of_task),
        then: |world, cast| {
            let now = time(world.now_by_median());
            world.word(format!("u{}.0", cast.leader), now);
            Ok(())
        },
    },
    Scene {
        when: |world, _| (0..world.pods.len()).any(|pod| world.works(pod)),
        then: |world, _| {
            world.release_readings();
            Ok(())
        },
    },
];

/// What an engine has asked about the task, and the ledger knew of.
fn is_of_task(due: &Due) -> bool {
    let Due::Tell { event: Event::Read(Ok(records)), .. } = due else { return false };
    records.iter().any(|record| record.id == TASK_RUN)
}
