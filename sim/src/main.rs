//! Runs many worlds, or one of them once more with a trace.

use std::process::ExitCode;
use std::time::Instant;

use cabloy_engine::rule as engine;
use cabloy_redlock::rule::{Rule, Rules};
use cabloy_sim::many::{Sum, run_all};
use cabloy_sim::{Check, EVENTS, FAULTS, Laws, Tally, run};
use clap::Parser;

#[derive(Parser)]
#[command(about = "Simulates the election, and the engine on top of it, under every fault that they must bear")]
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
    /// With the schedule engine on top of the election.
    #[arg(long)]
    engine: bool,
    /// Goes on after a violation, and counts them.
    #[arg(long)]
    count: bool,
}

impl Args {
    fn laws(&self) -> anyhow::Result<Laws> {
        let (mut election, mut engine) = (Vec::new(), Vec::new());
        for name in &self.without {
            let of_election = Rule::ALL.iter().find(|rule| format!("{rule:?}") == *name);
            let of_engine = engine::Rule::ALL.iter().find(|rule| format!("{rule:?}") == *name && self.engine);
            anyhow::ensure!(of_election.is_some() || of_engine.is_some(), "there is no rule {name}");
            election.extend(of_election);
            engine.extend(of_engine);
        }
        let engine = self.engine.then(|| engine::Rules::without(&engine));
        Ok(Laws { election: Rules::without(&election), engine })
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let laws = args.laws()?;
    if let Some(seed) = args.seed {
        let outcome = run(seed, laws, Check::All, true);
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
        laws,
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
    if args.engine {
        let Tally { engine_steps, calls, questions, events, .. } = sum.tally;
        println!("{engine_steps} steps of engines, {calls} calls, {questions} asked about");
        for (event, count) in EVENTS.iter().zip(events) {
            println!("{count:>12} {event:?}");
        }
    }
    for (promise, (count, seed)) in &sum.broken {
        println!("{count:>12} broken: {promise:?}, first by seed {seed}");
    }
    let Some((seed, violation)) = found else { return Ok(ExitCode::SUCCESS) };
    println!("seed {seed}: {violation}; its trace: --seed {seed}{}", if args.engine { " --engine" } else { "" });
    Ok(ExitCode::FAILURE)
}
