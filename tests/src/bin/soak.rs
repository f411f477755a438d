//! The soak for as long as one likes: `make soak MINUTES=…`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use cabloy_tests::soak::{Config, run};
use clap::Parser;

/// A thousand schedules on real agents and Redis servers, while leaders are killed every few seconds and masters come
/// back empty. Ends with 1 if a tick was lost, or an attempt begun twice.
#[derive(Debug, Parser)]
#[command(name = "cabloy-soak")]
struct Args {
    /// The agent's program.
    #[arg(long, default_value = "target/debug/cabloy-agent")]
    agent: PathBuf,
    /// For how many minutes there are faults.
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// How many pods.
    #[arg(long, default_value_t = 3)]
    pods: usize,
}

fn main() -> anyhow::Result<ExitCode> {
    let Args { agent, minutes, pods } = Args::parse();
    let faults_for = Duration::from_secs_f64(minutes * 60.0);
    let report = run(&Config { agent, pods, faults_for, settle: Duration::from_mins(2) })?;
    print!("{report}");
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
