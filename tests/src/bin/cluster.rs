//! One test cluster: started, owned and taken down by this process.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::{fs, io};

use anyhow::{Context as _, bail};
use cabloy_tests::supervisor::{self, Shape};
use cabloy_tests::{forward, tools::Tools};
use clap::{Parser, Subcommand};

/// Real Kubernetes clusters for tests and demo.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Start a cluster, print one line of JSON when it is ready, and take it down when stdin closes or at a signal.
    Up {
        #[arg(long, value_enum, default_value = "control-plane")]
        shape: Shape,
        /// A new or empty folder, removed with the cluster.
        #[arg(long)]
        dir: PathBuf,
        /// Return once it is ready, and leave it running until `down`.
        #[arg(long)]
        detach: bool,
        /// What `--detach` starts.
        #[arg(long, hide = true)]
        detached: bool,
    },
    /// Take a cluster down, if it is there.
    Down {
        #[arg(long)]
        dir: PathBuf,
    },
    /// Remove what supervisors left that were killed; each new one does that as well.
    Sweep,
    /// Build the programs of a cluster, if that has not been done, and print the folder of kubectl and its like.
    Build,
    /// Say what this machine lacks to run a node.
    Doctor,
    /// Connect whoever comes to the listener on stdin with an address; run by the others.
    #[command(hide = true)]
    Relay { to: SocketAddr },
}

fn main() -> ExitCode {
    let outcome = match Args::parse().command {
        Task::Up { shape, dir, detach: true, .. } => detach(shape, &dir),
        Task::Up { shape, dir, detached, .. } => run(supervisor::up(shape, &dir, detached)),
        Task::Down { dir } => supervisor::down(&dir),
        Task::Sweep => supervisor::sweep_all(),
        Task::Build => Tools::build().map(|tools| println!("{}", tools.kube.display())),
        Task::Doctor => supervisor::check_node().map(|()| println!("a node can run here")).map_err(Into::into),
        Task::Relay { to } => run(forward::relay(to)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cabloy-test-cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(work);
    // Whatever blocks a thread, as a build, does not hold up the end.
    runtime.shutdown_background();
    outcome
}

/// Starts a supervisor that outlives this process and the terminal, and waits until its cluster is ready.
fn detach(shape: Shape, dir: &Path) -> anyhow::Result<()> {
    // Building prints its progress here, and not into the log of the supervisor.
    Tools::build()?;
    let log = tempfile::NamedTempFile::with_prefix("cabloy-test-cluster-")?;
    let mut supervisor = Command::new("setsid")
        .arg(std::env::current_exe()?)
        .args(["up", "--detached", "--shape"])
        .arg(serde_json::to_value(shape)?.as_str().unwrap_or_default())
        .arg("--dir")
        .arg(dir)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.reopen()?)
        .process_group(0)
        .spawn()?;
    let mut line = String::new();
    let output = supervisor.stdout.take().context("a pipe was asked for")?;
    io::BufRead::read_line(&mut io::BufReader::new(output), &mut line)?;
    if line.is_empty() {
        let said = fs::read_to_string(log.path())?;
        bail!("{}", said.trim().trim_start_matches("cabloy-test-cluster: "));
    }
    print!("{line}");
    Ok(())
}
