//! The process that owns one cluster, from its first etcd to the last trace of it.
//!
//! Tests talk to it by its stdin alone: when that closes, because the test process ended however it ended, the cluster
//! goes. When the supervisor itself is killed, the kernel kills what it started (see [`crate::process`]), and the next
//! supervisor sweeps up the files and control groups that are left.

mod cgroup;
mod control_plane;
mod kubeconfig;
mod node;
mod place;
mod state;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use http::Request;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

pub use node::check as check_node;
pub use state::{down, sweep_all};

use crate::cluster::client;
use crate::forward::Forward;
use crate::process::Process;
use crate::tools::{Tools, progress};
use crate::wait::try_until;
use control_plane::{Addresses, ControlPlane};
use node::{Namespaces, Node};
use place::Place;
use state::State;

/// The environment variable by which a sweep knows the processes of a cluster.
pub const MARKER: &str = "CABLOY_TEST_CLUSTER";

/// How often a start is tried when another program takes a port first.
const ATTEMPTS: u32 = 3;

/// How long each step of a start may take; a loaded machine needs several times what an idle one does.
const PATIENCE: Duration = Duration::from_mins(2);

/// What a cluster consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// API server and controllers on loopback: objects, admission and RBAC, but no pod ever runs. Needs no root.
    ControlPlane,
    /// With one node that runs pods, in namespaces of its own. Needs root.
    Node,
}

/// What a supervisor says of its cluster once it is ready.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Info {
    /// Its name on this machine, which its processes carry in their environment and its control group has in its name.
    pub id: String,
    /// What it consists of.
    pub shape: Shape,
    /// The administrator's kubeconfig, for programs on this machine.
    pub kubeconfig: PathBuf,
    /// The folder of the cluster; logs are in `logs`.
    pub dir: PathBuf,
    /// The network namespace of a node, as `nsenter --net=` takes it.
    pub netns: Option<PathBuf>,
    /// The address of a node in that namespace.
    pub node_address: Option<Ipv4Addr>,
    /// The containerd of a node, as `ctr --address` takes it.
    pub containerd: Option<PathBuf>,
    /// The folder of kubectl and its like.
    pub bin: PathBuf,
    /// The supervisor.
    pub pid: u32,
}

/// Starts a cluster, announces it on stdout and owns it until stdin closes (unless `detached`), a signal asks for its
/// end, or one of its programs ends.
///
/// # Errors
/// It does not come up, or one of its programs ended, or something of it cannot be removed.
pub async fn up(shape: Shape, dir: &Path, detached: bool) -> anyhow::Result<()> {
    let stop = stop_requested(detached)?;
    let state = State::register(dir)?;
    let lived = tokio::select! {
        error = live(shape, &state) => error,
        () = stop => Ok(()),
    };
    // The cluster is dropped by now, and with it its processes: what is left are files and control groups.
    lived.and(state.remove())
}

/// Resolves when the cluster shall end.
fn stop_requested(detached: bool) -> anyhow::Result<impl Future<Output = ()>> {
    let mut signals =
        [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?];
    let (close, closed) = oneshot::channel();
    thread::spawn(move || {
        if detached {
            thread::park();
        }
        // What is written there has no meaning; an error is an end as well.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = close.send(());
    });
    Ok(async move {
        let [interrupt, terminate, hangup] = &mut signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            _ = closed => {}
        }
    })
}

/// Starts the cluster and stays with it. Returns only an error; dropping the future ends the cluster.
async fn live(shape: Shape, state: &State) -> anyhow::Result<()> {
    // Building may take minutes, during which the end may be asked for.
    let tools = tokio::task::spawn_blocking(Tools::get).await?;
    let mut cluster = start(shape, state, tools).await?;
    let announcement = serde_json::to_string(&cluster.info)?;
    fs::write(state.dir().join("cluster.json"), &announcement)?;
    println!("{announcement}");
    Err(ended(&mut cluster.processes).await)
}

/// A running cluster.
struct Cluster {
    /// First, since its end ends all that runs in it.
    _namespaces: Option<Namespaces>,
    processes: Vec<Process>,
    _forward: Option<Forward>,
    info: Info,
}

async fn start(shape: Shape, state: &State, tools: &Tools) -> anyhow::Result<Cluster> {
    let mut attempt = 1;
    loop {
        match start_once(shape, state, tools).await {
            Err(error) if attempt < ATTEMPTS && format!("{error:#}").contains("address already in use") => {
                progress("a port was taken meanwhile; trying others");
                fs::remove_dir_all(state.dir().join("etcd"))?;
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}

async fn start_once(shape: Shape, state: &State, tools: &Tools) -> anyhow::Result<Cluster> {
    let dir = state.dir();
    fs::create_dir_all(dir.join("logs"))?;
    let namespaces = match shape {
        Shape::ControlPlane => None,
        Shape::Node => Some(Namespaces::create(state, tools)?),
    };
    let (place, addresses) = match &namespaces {
        None => (Place::host(state.id()), Addresses::free()?),
        Some(namespaces) => (namespaces.place(), Addresses::usual(node::ADDRESS)),
    };
    let control = ControlPlane::new(dir, &place, tools, addresses)?;
    let node = namespaces.as_ref().map(|_| Node::new(state, &place, tools, &control)).transpose()?;

    let mut processes = Vec::from(control.start_server()?);
    if let Some(node) = &node {
        processes.push(node.start_containerd()?);
    }
    let forward = place
        .netns()
        .map(|netns| Forward::open(&std::env::current_exe()?, &netns, addresses.apiserver, dir))
        .transpose()?;
    let kubeconfig = dir.join("kubeconfig");
    let outside = forward.as_ref().map_or(addresses.apiserver, Forward::addr);
    control.write_admin(&kubeconfig, outside)?;
    let client = client(&kubeconfig).await?;
    unless_ended(&mut processes, server_ready(&client)).await?;

    processes.extend(control.start_controllers()?);
    if let Some(node) = &node {
        processes.extend(node.start_agents()?);
    }
    unless_ended(&mut processes, async {
        controllers_ready(&client).await?;
        match &node {
            Some(node) => node.ready(&client).await,
            None => Ok(()),
        }
    })
    .await?;

    Ok(Cluster {
        info: Info {
            id: state.id().to_owned(),
            shape,
            kubeconfig,
            dir: dir.to_owned(),
            netns: place.netns(),
            node_address: node.as_ref().map(|_| node::ADDRESS),
            containerd: node.as_ref().map(|_| node::containerd_socket(dir)),
            bin: tools.kube.clone(),
            pid: std::process::id(),
        },
        _namespaces: namespaces,
        processes,
        _forward: forward,
    })
}

async fn server_ready(client: &Client) -> anyhow::Result<()> {
    try_until("the API server to be ready", PATIENCE, async || {
        client.request_text(Request::get("/readyz").body(Vec::new())?).await?;
        anyhow::Ok(())
    })
    .await
    .map_err(Into::into)
}

/// The last thing that controllers must have done before a pod can be made.
async fn controllers_ready(client: &Client) -> anyhow::Result<()> {
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), "default");
    try_until("the default service account", PATIENCE, async || accounts.get("default").await).await?;
    Ok(())
}

/// Starts a program whose output goes to the log of its name.
fn spawn(dir: &Path, name: &str, command: Command) -> anyhow::Result<Process> {
    let log = dir.join("logs").join(format!("{name}.log"));
    Process::spawn(name, command, &log).with_context(|| name.to_owned())
}

/// Does something that makes sense only for as long as all programs run.
async fn unless_ended(processes: &mut [Process], work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let done = tokio::select! {
        done = work => done,
        error = ended(processes) => return Err(error),
    };
    done.with_context(|| {
        let logs = processes.iter().map(|p| format!("{}:\n{}\n", p.name(), p.log_tail(15)));
        logs.collect::<String>()
    })
}

/// Resolves when one of the programs has ended.
async fn ended(processes: &mut [Process]) -> anyhow::Error {
    loop {
        for process in &mut *processes {
            if let Some(status) = process.exited() {
                return anyhow::anyhow!("{} ended with {status}:\n{}", process.name(), process.log_tail(30));
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
