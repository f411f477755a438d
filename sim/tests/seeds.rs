//! Every promise holds in every world.

use std::time::Instant;

use cabloy_redlock::rule::Rules;
use cabloy_sim::Check;
use cabloy_sim::many::run_all;

const SEEDS: u64 = 100_000;

#[test]
fn every_promise_holds() {
    let start = Instant::now();
    let (sum, found) = run_all(0..SEEDS, None, Rules::default(), Check::All, |_| true, |_| {});
    if let Some((seed, violation)) = found {
        panic!("seed {seed}: {violation}; its trace: cargo run -p cabloy-sim -- --seed {seed}");
    }
    println!("{} seeds, {} steps, {} elections in {:?}", sum.seeds, sum.steps, sum.elections, start.elapsed());
    assert!(sum.elections > SEEDS && sum.claims > SEEDS && sum.results > SEEDS, "not much happened: {sum:?}");
    assert!(sum.faults.iter().all(|count| *count > 1000), "some faults are rare: {sum:?}");
}

#[test]
fn a_seed_repeats_itself() {
    let trace = |seed| cabloy_sim::run(seed, Rules::default(), Check::All, true).trace;
    for seed in 0..20 {
        assert_eq!(trace(seed), trace(seed), "seed {seed}");
    }
}
