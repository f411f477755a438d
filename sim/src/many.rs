//! Many seeds, on all cores.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::plan::DRILLS;
use crate::world::{Check, Laws, Outcome, Tally, run};
use crate::{Promise, Violation};

/// What many worlds came to.
#[derive(Clone, Debug, Default)]
pub struct Sum {
    /// Worlds.
    pub seeds: u64,
    /// What happened in them.
    pub tally: Tally,
    /// Broken promises: how often, and the lowest seed that did.
    pub broken: BTreeMap<Promise, (u64, u64)>,
}

impl Sum {
    fn add(&mut self, seed: u64, outcome: &Outcome) {
        if let Some(Violation { promise, .. }) = outcome.violation {
            let (count, lowest) = self.broken.entry(promise).or_insert((0, seed));
            (*count, *lowest) = (*count + 1, seed.min(*lowest));
        }
        self.seeds += 1;
        self.tally.add(&outcome.tally);
    }
}

/// Runs the worlds of `seeds` until one breaks a promise that is `wanted`: the sum of all, and the lowest such seed. Of a
/// `drill` only its own seeds are of interest.
pub fn run_all(
    seeds: Range<u64>,
    drill: Option<u64>,
    laws: impl Into<Laws>,
    check: Check,
    wanted: impl Fn(Promise) -> bool + Sync,
    progress: impl Fn(&Sum) + Sync,
) -> (Sum, Option<(u64, Violation)>) {
    let laws = laws.into();
    let next = AtomicU64::new(seeds.start);
    let end = AtomicU64::new(seeds.end);
    let sum = Mutex::new(Sum::default());
    let found = Mutex::new(None);
    let worker = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end.load(Ordering::Relaxed) {
                return;
            }
            if drill.is_some_and(|drill| seed % DRILLS != drill) {
                continue;
            }
            let outcome = run(seed, laws, check, false);
            let mut all = sum.lock().unwrap_or_else(PoisonError::into_inner);
            all.add(seed, &outcome);
            if all.seeds.is_multiple_of(10_000) {
                progress(&all);
            }
            drop(all);
            if let Some(violation) = outcome.violation.filter(|it| wanted(it.promise)) {
                // Lower seeds that others are at may yet break it too.
                end.fetch_min(seed, Ordering::Relaxed);
                let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                if found.as_ref().is_none_or(|(lowest, _)| seed < *lowest) {
                    *found = Some((seed, violation));
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(worker);
        }
    });
    let into = PoisonError::into_inner;
    (sum.into_inner().unwrap_or_else(into), found.into_inner().unwrap_or_else(PoisonError::into_inner))
}
