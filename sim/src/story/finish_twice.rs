//! Why a result counts after a second round only (PROTOCOL 6).
//!
//! One node takes a result and forgets it before any other has heard of it; it is given its memory back without the result.
//! Then a second node takes the result: a majority has acknowledged it, and yet the other two know nothing.

use super::{RUN, Scene};
use crate::plan::Fault;
use crate::stream::Stream;

pub(super) const SCENES: &[Scene] = &[
    Scene {
        when: |_, _| true,
        then: |world, cast| {
            world.withdraw(cast.other)?;
            cast.op = world.claim_run(cast.leader, RUN)?;
            Ok(())
        },
    },
    Scene {
        when: |world, cast| world.is_decided(cast.leader, cast.op) && (0..3).all(|node| world.has_claim(node, RUN)),
        then: |world, cast| {
            world.hold(Stream::records(cast.other, cast.witness));
            world.hold(Stream::records(cast.other, cast.third));
            let Some(attempt) = world.pods[cast.leader].records.get(RUN) else { return Ok(()) };
            cast.op = world.finish_run(cast.other, RUN.to_owned(), attempt.nonce.clone(), true)?;
            Ok(())
        },
    },
    Scene {
        when: |world, cast| world.has_result(cast.forgetful, RUN),
        // It hears nothing of the new life, for it asks nothing.
        then: |world, cast| world.inject(Fault::Flush, cast.other, cast.forgetful).map(|_| ()),
    },
    Scene {
        when: |world, cast| world.nodes[cast.forgetful].intact,
        then: |world, cast| {
            world.hold(Stream::records(cast.other, cast.forgetful));
            world.release(Stream::records(cast.other, cast.witness));
            Ok(())
        },
    },
    Scene {
        when: |world, cast| world.is_decided(cast.other, cast.op),
        then: |world, cast| world.succeed_without(cast.witness, cast.leader),
    },
];
