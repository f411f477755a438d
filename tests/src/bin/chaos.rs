//! Chaos for as long as one likes: `make chaos MINUTES=…`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cabloy_tests::chaos::fault::{Faults, Kind, Lane};
use cabloy_tests::chaos::{self, Config};
use cabloy_tests::redis::Version;
use clap::Parser;

/// Real agents on real Redis servers, while pods, servers, links and clocks fail around them. Ends with 1 if anything
/// was lost or violated.
#[derive(Debug, Parser)]
#[command(name = "cabloy-chaos")]
struct Args {
    /// The agent's program.
    #[arg(long, default_value = "target/debug/cabloy-agent")]
    agent: PathBuf,
    /// The versions of Redis, which share the time; by default all that can be had.
    #[arg(long, value_delimiter = ',')]
    redis: Vec<Version>,
    /// For how many minutes faults are injected, in all.
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// What repeats the faults; any other one by default.
    #[arg(long)]
    seed: Option<u64>,
    /// Only these kinds of faults; by default all that leave a majority of memories intact.
    #[arg(long, value_delimiter = ',')]
    faults: Vec<Kind>,
    /// How many milliseconds a lease lasts; the shortest there is shows the most.
    #[arg(long, default_value_t = 500)]
    ttl: u64,
    /// How many servers.
    #[arg(long, default_value_t = 3)]
    servers: usize,
    /// How many pods.
    #[arg(long, default_value_t = 3)]
    pods: usize,
    /// Without the check of the token: elements get lost.
    #[arg(long)]
    unguarded: bool,
    /// Prints the first so many faults of each lane and ends.
    #[arg(long)]
    list: Option<usize>,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seed = args.seed.unwrap_or(since_1970.as_secs());
    let kinds = if args.faults.is_empty() { Kind::usual() } else { args.faults };
    if let Some(count) = args.list {
        for lane in Lane::ALL {
            Faults::new(seed, lane, &kinds).take(count).for_each(|fault| println!("{lane:?}: {fault}"));
        }
        return Ok(ExitCode::SUCCESS);
    }

    let wanted = if args.redis.is_empty() { Version::ALL.to_vec() } else { args.redis };
    let mut configs = Vec::new();
    for version in wanted {
        match Config::new(&args.agent, version) {
            Ok(config) => configs.push(config),
            Err(unavailable) => eprintln!("NOT RUN: {unavailable}"),
        }
    }
    let count = u32::try_from(configs.len())?;
    anyhow::ensure!(count > 0, "there is no Redis to run on");
    let share = Duration::from_secs_f64(args.minutes * 60.0) / count;
    let mut clean = true;
    for config in configs {
        let config = Config {
            servers: args.servers,
            pods: args.pods,
            ttl: Duration::from_millis(args.ttl),
            seed,
            faults_for: share,
            kinds: kinds.clone(),
            guarded: !args.unguarded,
            ..config
        };
        let report = chaos::run(&config)?;
        println!("{report}");
        clean &= report.is_clean();
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
