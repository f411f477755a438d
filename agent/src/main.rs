//! `cabloy-agent`: the sidecar of a `CabloyJS` app.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use cabloy_agent::agent::{Agent, Options};
use cabloy_agent::drain;
use cabloy_agent::shared::Identity;
use cabloy_agent::startup::Place;
use cabloy_crds::names::{AGENT_CONTROL_PORT, AGENT_PORT, CONFIG_DIR, SECRETS_DIR};
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Elects one leader among the agents of a cluster with Redlock, and on the leader runs schedules and startup tasks by
/// calling the app beside it.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the agent, until SIGTERM or SIGINT
    Run(Box<Run>),
    /// Has the agent of this pod stop standing and give up its lease; returns when it has. For a preStop hook
    Drain {
        #[command(flatten)]
        control: Control,
    },
}

#[derive(Debug, Args)]
struct Control {
    /// Port on 127.0.0.1 for what changes the agent's state
    #[arg(long, env = "CABLOY_CONTROL_PORT", default_value_t = AGENT_CONTROL_PORT)]
    control_port: u16,
}

#[derive(Debug, Args)]
struct Run {
    /// Folder of agent.json and redis/redlock/client.json
    #[arg(long, env = "CABLOY_CONFIG_DIR", default_value = CONFIG_DIR)]
    config_dir: PathBuf,
    /// File of the keys that calls to the app are signed with, as Standard Webhooks has it; without it they are not
    #[arg(long, env = "CABLOY_SIGNING_KEY_FILE")]
    signing_key_file: Option<PathBuf>,
    /// Folder of the passwords that the app and the agent have, as Kubernetes mounts it: it is told when they change
    #[arg(long, env = "CABLOY_SECRETS_DIR", default_value = SECRETS_DIR)]
    secrets_dir: PathBuf,
    /// Folder where the app's processes find the file "draining" while the pod drains; without it they are told nothing
    #[arg(long, env = "CABLOY_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// Address of /healthz, /readyz, /status and /metrics
    #[arg(long, env = "CABLOY_LISTEN", default_value_t = SocketAddr::from(([0, 0, 0, 0], AGENT_PORT)))]
    listen: SocketAddr,
    #[command(flatten)]
    control: Control,
    /// Name of the pod; absent outside Kubernetes
    #[arg(long, env = "CABLOY_POD_NAME")]
    pod_name: Option<String>,
    /// UID of the pod
    #[arg(long, env = "CABLOY_POD_UID")]
    pod_uid: Option<String>,
    /// Hash of the pod's revision: its label pod-template-hash or controller-revision-hash. Empty in a pod without one,
    /// such as of a Job: its agent never leads
    #[arg(long, env = "CABLOY_POD_HASH", default_value = "")]
    pod_hash: String,
    /// Whether this agent may lead
    #[arg(long, env = "CABLOY_ELECT", default_value_t = true, action = clap::ArgAction::Set)]
    elect: bool,
    /// Name of the agent outside Kubernetes; default: host name and process id
    #[arg(long, env = "CABLOY_AGENT_NAME", conflicts_with = "pod_name")]
    name: Option<String>,
}

impl Run {
    async fn run(self) -> anyhow::Result<()> {
        let filter = EnvFilter::try_from_env("CABLOY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
        tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .init();
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let agent = Agent::bind(self.options()).await.context("the agent cannot start")?;
        let stop = CancellationToken::new();
        let wait = async {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            stop.cancel();
        };
        tokio::join!(agent.run(stop.clone()), wait);
        Ok(())
    }

    fn options(self) -> Options {
        let Self {
            config_dir,
            signing_key_file,
            secrets_dir,
            state_dir,
            listen,
            control,
            pod_name,
            pod_uid,
            pod_hash,
            elect,
            name,
        } = self;
        let uid = pod_uid.filter(|uid| !uid.is_empty()).unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let (pod, place) = match pod_name.filter(|name| !name.is_empty()) {
            Some(pod) if pod_hash.is_empty() => (pod, Place::Loose),
            Some(pod) => (pod, Place::Pod(pod_hash)),
            None => {
                let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
                (name.unwrap_or_else(|| format!("{host}-{}", std::process::id())), Place::Outside(pod_hash))
            }
        };
        // Of a path that names no folder, none could be watched.
        let signing_key_file = signing_key_file.map(|file| std::path::absolute(&file).unwrap_or(file));
        let identity = Identity { pod, uid, place, elect };
        let control_port = control.control_port;
        Options { identity, config_dir, signing_key_file, secrets_dir, state_dir, listen, control_port }
    }
}

// One thread is enough for what an agent does, and keeps it small.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(run) => run.run().await,
        Command::Drain { control } => drain::drain(control.control_port).await.context("the agent was not drained"),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
