//! The command line.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;
use tracing_subscriber::EnvFilter;

use crate::{
    build::Settings,
    controller::{self, Shared},
    metrics::Metrics,
    server::{self, Health},
};

/// Runs `CabloyJS` apps on several Redis servers from one Kubernetes resource.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the operator.
    Run(Run),
}

/// Options of `run`.
#[derive(Debug, Args)]
struct Run {
    /// Repository of the agent's image.
    #[arg(long, env = "CABLOY_AGENT_IMAGE", default_value = "cabloy/cabloy-agent")]
    agent_image: String,
    /// Version of the agent that new workloads get.
    #[arg(long, env = "CABLOY_AGENT_VERSION", default_value = env!("CARGO_PKG_VERSION"))]
    agent_version: String,
    /// When nodes pull the agent's image: `Always`, `IfNotPresent` or `Never`.
    #[arg(long, env = "CABLOY_AGENT_PULL_POLICY", default_value = "IfNotPresent", value_parser = ["Always", "IfNotPresent", "Never"])]
    agent_pull_policy: String,
    /// Where /metrics, /healthz and /readyz are served.
    #[arg(long, env = "CABLOY_LISTEN", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// A namespace to look after; can be repeated. Left out: all.
    #[arg(long = "watch-namespace", env = "CABLOY_WATCH_NAMESPACES", value_delimiter = ',')]
    watch_namespaces: Vec<String>,
    /// How many resources are reconciled at the same time.
    #[arg(long, env = "CABLOY_CONCURRENCY", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,
    /// What is logged: error, warn, info, debug, trace, or directives such as "info,kube=debug".
    #[arg(long, env = "CABLOY_LOG", default_value = "info")]
    log: String,
    /// In which form.
    #[arg(long, env = "CABLOY_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    /// The operator cannot start, or has to end.
    pub async fn run(self) -> anyhow::Result<()> {
        let Command::Run(options) = self.command;
        options.run().await
    }
}

impl Run {
    async fn run(self) -> anyhow::Result<()> {
        log(&self.log, self.log_format)?;
        // Before the first TLS connection: the process has one provider of cryptography.
        let client = Client::try_default().await.context("no way to the API server is configured")?;
        let shutdown = CancellationToken::new();
        let tasks = TaskTracker::new();
        let metrics = Arc::new(Metrics::default());
        let mut scopes: Vec<_> = self.watch_namespaces.into_iter().filter(|name| !name.is_empty()).map(Some).collect();
        scopes.sort();
        scopes.dedup();
        if scopes.is_empty() {
            scopes.push(None);
        }
        let health = Health::new(metrics.clone(), scopes.len());
        let listener =
            server::bind(self.listen).await.with_context(|| format!("{} cannot be listened on", self.listen))?;
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            agent = format!("{}:{}", self.agent_image, self.agent_version),
            listen = %listener.local_addr()?,
            namespaces = ?scopes.iter().flatten().collect::<Vec<_>>(),
            "the operator starts"
        );
        let server = tasks
            .spawn(server::serve(listener, health.clone(), shutdown.clone()).instrument(tracing::info_span!("server")));
        let shared = Arc::new(Shared {
            client,
            settings: Settings {
                agent_image: self.agent_image,
                agent_version: self.agent_version,
                agent_pull_policy: self.agent_pull_policy,
            },
            metrics,
            health,
            permits: Semaphore::new(self.concurrency.into()),
            concurrency: self.concurrency,
        });
        for namespace in scopes {
            let span = tracing::info_span!("controller", scope = namespace.as_deref().unwrap_or("all"));
            tasks.spawn(controller::run(shared.clone(), namespace, tasks.clone(), shutdown.clone()).instrument(span));
        }
        let mut terminate = signal(SignalKind::terminate())?;
        let ended = tokio::select! {
            _ = terminate.recv() => Ok(()),
            interrupted = tokio::signal::ctrl_c() => interrupted.map_err(anyhow::Error::from),
            end = server => end.context("the server panicked").and_then(|end| end.context("the server failed")),
        };
        tracing::info!("the operator ends: running reconciliations are finished");
        shutdown.cancel();
        tasks.close();
        tasks.wait().await;
        ended
    }
}

fn log(directives: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter =
        EnvFilter::try_new(directives).with_context(|| format!("CABLOY_LOG: {directives:?} is not understood"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => builder.init(),
    }
    Ok(())
}
