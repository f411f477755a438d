//! Networks of a test's own: namespaces that are joined by a bridge, and whose links can be cut one by one.
//!
//! A namespace is there for as long as a process is in it. The one that holds it ends with the test process (see
//! [`crate::process`]), so that nothing has to be cleaned up; nothing leads out of it.

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;

use crate::process::{Process, bound};
use crate::skip::Unavailable;
use crate::wait;

/// A network namespace; it goes when the last handle does.
#[derive(Debug, Clone)]
pub struct Namespace(Arc<Holder>);

#[derive(Debug)]
struct Holder {
    process: Process,
    _dir: TempDir,
}

impl Namespace {
    /// An empty one, but for loopback.
    fn new(name: &str) -> anyhow::Result<Self> {
        let dir = TempDir::with_prefix("cabloy-network-")?;
        let mut command = bound("unshare");
        // It says that it is there once there is loopback, which no namespace but its own has just now.
        command.args(["--net", "sh", "-ec", "ip link set lo up; : >ready; exec sleep infinity"]).current_dir(&dir);
        let mut process = Process::spawn(name, command, &dir.path().join("log"))?;
        let ready = dir.path().join("ready");
        wait::try_until_blocking("a network namespace", Duration::from_secs(10), || match process.exited() {
            Some(status) => Some(Err(anyhow::anyhow!("ended with {status}: {}", process.log_tail(5)))),
            None => ready.exists().then_some(Ok(())),
        })??;
        Ok(Self(Arc::new(Holder { process, _dir: dir })))
    }

    /// As `nsenter --net=` takes it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.pid()))
    }

    /// A [`bound`] command for a program there.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = bound("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program.as_ref());
        command
    }

    fn pid(&self) -> u32 {
        self.0.process.pid()
    }

    fn run(&self, script: &str) -> anyhow::Result<()> {
        let output = self.command("sh").args(["-ec", script]).output()?;
        ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }
}

/// Servers with an address each on one hub, and pods with a namespace and a link to the hub each.
#[derive(Debug)]
pub struct Network {
    hub: Namespace,
    pods: Vec<Namespace>,
}

/// A little of all that it asks of the kernel.
const TRIAL: &str = "ip link add hub type bridge; ip link add pod type veth peer name eth0; iptables --wait -L";

/// What does not pass between a pod and a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// What the pod sends.
    Requests,
    /// What the server sends.
    Replies,
    /// Anything.
    Both,
}

impl Network {
    /// Whether this machine can have one.
    ///
    /// # Errors
    /// It cannot.
    pub fn check() -> Result<(), Unavailable> {
        if !rustix::process::geteuid().is_root() {
            return Err(Unavailable::new("network namespaces need root"));
        }
        let tried = Command::new("unshare").args(["--net", "sh", "-ec", TRIAL]).stdin(Stdio::null()).output();
        match tried {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                Err(Unavailable::new(format!("no network of one's own can be had here: {}", said.trim())))
            }
            Err(error) => Err(Unavailable::new(format!("unshare: {error}"))),
        }
    }

    /// Lays it out.
    ///
    /// # Errors
    /// This machine cannot have it.
    pub fn new(servers: usize, pods: usize) -> anyhow::Result<Self> {
        let hub = Namespace::new("hub")?;
        hub.run("ip link add hub type bridge; ip link set hub up")?;
        for server in 0..servers {
            hub.run(&format!("ip address add {}/24 dev hub", Self::server(server)))?;
        }
        let pods = (0..pods).map(|pod| {
            let namespace = Namespace::new("pod")?;
            let (address, peer) = (Self::pod_address(pod), namespace.pid());
            hub.run(&format!(
                "ip link add pod{pod} type veth peer name eth0 netns {peer}
                ip link set pod{pod} master hub up"
            ))?;
            namespace.run(&format!("ip address add {address}/24 dev eth0; ip link set eth0 up"))?;
            Ok(namespace)
        });
        let pods = pods.collect::<anyhow::Result<_>>().context("a pod")?;
        Ok(Self { hub, pods })
    }

    /// Where the servers are.
    #[must_use]
    pub fn hub(&self) -> &Namespace {
        &self.hub
    }

    /// Where a pod is.
    #[must_use]
    pub fn pod(&self, pod: usize) -> &Namespace {
        &self.pods[pod]
    }

    /// The address of a server, of a range that no real network has.
    #[must_use]
    pub fn server(server: usize) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, 0, 10 + octet(server))
    }

    fn pod_address(pod: usize) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, 0, 100 + octet(pod))
    }

    /// Loses what passes between a pod and a server, without a word to either.
    ///
    /// # Errors
    /// The rules are not taken.
    pub fn cut(&self, pod: usize, server: usize, lost: Lost) -> anyhow::Result<()> {
        let address = Self::server(server);
        let rules = match lost {
            Lost::Requests => format!("iptables --wait -A OUTPUT -d {address} -j DROP"),
            Lost::Replies => format!("iptables --wait -A INPUT -s {address} -j DROP"),
            Lost::Both => {
                format!("iptables --wait -A OUTPUT -d {address} -j DROP; iptables --wait -A INPUT -s {address} -j DROP")
            }
        };
        self.pods[pod].run(&rules)
    }

    /// Takes the link of a pod down, which it notices.
    ///
    /// # Errors
    /// It cannot be.
    pub fn unplug(&self, pod: usize) -> anyhow::Result<()> {
        self.pods[pod].run("ip link set eth0 down")
    }

    /// Undoes all that was done to the links of all pods.
    ///
    /// # Errors
    /// It cannot be.
    pub fn heal(&self) -> anyhow::Result<()> {
        self.pods.iter().try_for_each(|pod| pod.run("iptables --wait -F; ip link set eth0 up"))
    }
}

/// There are a few of each only.
fn octet(index: usize) -> u8 {
    u8::try_from(index).unwrap_or(u8::MAX) % 50
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::Redis;

    #[test]
    fn links_are_cut_one_by_one_and_heal() {
        crate::require!(Network::check());
        let network = Network::new(2, 2).unwrap();
        let _servers = [0, 1].map(|server| Redis::builder().inside(network.hub(), Network::server(server)).start());
        let reaches = |pod: usize, server: usize| {
            let address = Network::server(server).to_string();
            let mut ping = network.pod(pod).command("timeout");
            ping.args(["1", "redis-cli", "-h", &address, "ping"]);
            ping.output().unwrap().stdout == b"PONG\n"
        };
        assert!(reaches(0, 0) && reaches(0, 1) && reaches(1, 0));
        network.cut(0, 0, Lost::Replies).unwrap();
        assert!(!reaches(0, 0) && reaches(0, 1) && reaches(1, 0));
        network.unplug(1).unwrap();
        assert!(!reaches(1, 0));
        network.heal().unwrap();
        assert!(reaches(0, 0) && reaches(1, 0));
    }
}
