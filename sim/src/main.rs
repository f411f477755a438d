//! Runs many worlds, or one of them once more with a trace.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use cabloy_redlock::rule::{Rule, Rules};
use cabloy_sim::many::{Sum, run_all};
use cabloy_sim::{Check, FAULTS, Tally, run};
use clap::Parser;

#[derive(Parser)]
#[command(about = "Simulates the election under every fault that it must bear")]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 1_000_000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// This seed alone, with a trace.
    #[arg(long)]
    seed: Option<u64>,
    /// Takes a rule away, by its name in rule.rs; a violation is what should be found then.
    #[arg(long)]
    without: Vec<String>,
    /// Worlds of this drill alone, by its number in plan.rs.
    #[arg(long)]
    drill: Option<u64>,
    /// Goes on after a violation, and counts them.
    #[arg(long)]
    count: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let rule = |name: &String| {
        Rule::ALL.iter().find(|rule| format!("{rule:?}") == *name).copied().with_context(|| format!("no rule {name}"))
    };
    let without = args.without.iter().map(rule).collect::<Result<Vec<_>, _>>()?;
    let rules = Rules::without(&without);
    if let Some(seed) = args.seed {
        let outcome = run(seed, rules, Check::All, true);
        for line in &outcome.trace {
            println!("{line}");
        }
        return Ok(if outcome.violation.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let start = Instant::now();
    let report = |sum: &Sum| {
        let Tally { steps, elections, .. } = sum.tally;
        let rate = u128::from(steps) * 1000 / start.elapsed().as_millis().max(1);
        println!("{} seeds, {steps} steps ({rate}/s), {elections} elections", sum.seeds);
    };
    let (sum, found) = run_all(
        args.from..args.from + args.seeds,
        args.drill,
        rules,
        Check::All,
        |_| !args.count,
        |sum| {
            if sum.seeds.is_multiple_of(100_000) {
                report(sum);
            }
        },
    );
    report(&sum);
    let Tally { claims, results, losses, settled, handed_over, faults, .. } = sum.tally;
    println!("{claims} claims, {results} results, memory lost {losses} times");
    println!("settled within {settled:.2} ttls, handed over within {handed_over:.2} ttls");
    for (fault, count) in FAULTS.iter().zip(faults) {
        println!("{count:>12} {fault:?}");
    }
    for (promise, (count, seed)) in &sum.broken {
        println!("{count:>12} broken: {promise:?}, first by seed {seed}");
    }
    let Some((seed, violation)) = found else { return Ok(ExitCode::SUCCESS) };
    println!("seed {seed}: {violation}; its trace: --seed {seed}");
    Ok(ExitCode::FAILURE)
}
