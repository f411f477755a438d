//! Every promise holds in every world.

use std::time::Instant;

use cabloy_redlock::rule::Rules;
use cabloy_sim::many::run_all;
use cabloy_sim::{Check, Tally};

const SEEDS: u64 = 100_000;

#[test]
fn every_promise_holds() {
    let start = Instant::now();
    let (sum, found) = run_all(0..SEEDS, None, Rules::default(), Check::All, |_| true, |_| {});
    if let Some((seed, violation)) = found {
        panic!("seed {seed}: {violation}; its trace: cargo run -p cabloy-sim -- --seed {seed}");
    }
    let Tally { steps, elections, claims, results, faults, .. } = &sum.tally;
    println!("{} seeds, {steps} steps, {elections} elections in {:?}", sum.seeds, start.elapsed());
    assert!(*elections > SEEDS && *claims > SEEDS && *results > SEEDS, "not much happened: {sum:?}");
    assert!(faults.iter().all(|count| *count > 1000), "some faults are rare: {sum:?}");
}

#[test]
fn a_seed_repeats_itself() {
    let trace = |seed| cabloy_sim::run(seed, Rules::default(), Check::All, true).trace;
    for seed in 0..20 {
        assert_eq!(trace(seed), trace(seed), "seed {seed}");
    }
}
