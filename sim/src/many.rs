//! Many seeds, on all cores.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use cabloy_redlock::rule::Rules;

use crate::plan::{DRILLS, FAULTS};
use crate::world::{Check, Outcome, run};
use crate::{Promise, Violation};

/// What many worlds came to.
#[derive(Clone, Debug, Default)]
pub struct Sum {
    /// Worlds.
    pub seeds: u64,
    /// Steps of cores.
    pub steps: u64,
    /// Terms.
    pub elections: u64,
    /// Claims that started.
    pub claims: u64,
    /// Results that were recorded.
    pub results: u64,
    /// Times that no majority had a memory.
    pub losses: u64,
    /// By the order of [`FAULTS`].
    pub faults: [u64; FAULTS.len()],
    /// The longest that it took until somebody led once all was well, in ttls.
    pub settled: f64,
    /// How long the slowest hand-over took, in ttls.
    pub handed_over: f64,
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
        self.steps += outcome.steps;
        self.elections += outcome.elections;
        self.claims += outcome.claims;
        self.results += outcome.results;
        self.losses += outcome.losses;
        for (all, one) in self.faults.iter_mut().zip(outcome.faults) {
            *all += one;
        }
        self.settled = self.settled.max(outcome.settled);
        self.handed_over = self.handed_over.max(outcome.handed_over);
    }
}

/// Runs the worlds of `seeds` until one breaks a promise that is `wanted`: the sum of all, and the lowest such seed. Of a
/// `drill` only its own seeds are of interest.
pub fn run_all(
    seeds: Range<u64>,
    drill: Option<u64>,
    rules: Rules,
    check: Check,
    wanted: impl Fn(Promise) -> bool + Sync,
    progress: impl Fn(&Sum) + Sync,
) -> (Sum, Option<(u64, Violation)>) {
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
            let outcome = run(seed, rules, check, false);
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
