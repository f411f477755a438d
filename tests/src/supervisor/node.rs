//! A node that runs pods: kubelet, containerd, kube-proxy and `CoreDNS`, in namespaces of their own.
//!
//! The node is made as a pod is: one first process holds the namespaces, and all others join it. Its process namespace
//! makes the kernel end everything in it, containers too, when the first process ends; its mount namespace takes all
//! mounts along and gives the node a `/run`, `/var/lib` and `/var/log` of its own; nothing leaves its network namespace.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1 as core;
use kube::{Api, Client};
use rustix::process::Signal;
use serde_json::json;

use super::control_plane::ControlPlane;
use super::place::Place;
use super::state::State;
use super::{MARKER, PATIENCE, cgroup};
use crate::oci::Image;
use crate::process::{Process, bound, signal};
use crate::skip::Unavailable;
use crate::tools::Tools;
use crate::wait::{try_until, try_until_blocking};

/// The node's address; as those of pods and Services from a range that no real network has.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The addresses of pods.
const PODS: &str = "198.18.1.0/24";
/// The name of the node.
const NAME: &str = "node";
/// The image that holds the namespaces of each pod.
const PAUSE: &str = "cabloy.test/pause:1";
/// Where Debian has the network plugins.
const CNI_PLUGINS: &str = "/usr/lib/cni";

/// A little of all that a node asks of the kernel.
const TRIAL: &str = "
mount --make-rshared /
ip link add node type bridge
ip link set lo up
iptables --wait --table nat --new-chain trial
";

/// Whether this machine can have a node.
///
/// # Errors
/// It cannot.
pub fn check() -> Result<(), Unavailable> {
    let unavailable = |reason: String| Err(Unavailable::new(reason));
    if !rustix::process::geteuid().is_root() {
        return unavailable("a node needs root".to_owned());
    }
    let missing = missing_packages();
    if !missing.is_empty() {
        return unavailable(format!(
            "missing Debian packages: {} (tests/setup-debian.sh installs them)",
            missing.join(" ")
        ));
    }
    let tried = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-ec", TRIAL])
        .stdin(Stdio::null())
        .output();
    match tried {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => unavailable(format!(
            "namespaces, a bridge or iptables cannot be had here: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => unavailable(format!("unshare: {error}")),
    }
}

/// The Debian packages that a node needs and this machine lacks.
fn missing_packages() -> Vec<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let lacks = |file: &&str| match file.strip_prefix('/') {
        Some(_) => !Path::new(file).exists(),
        None => !folders.iter().any(|folder| folder.join(file).exists()),
    };
    let plugins = [&format!("{CNI_PLUGINS}/ptp"), &format!("{CNI_PLUGINS}/host-local")];
    let needed: [(&str, Vec<&str>); 6] = [
        ("containerd", vec!["containerd", "ctr"]),
        ("runc", vec!["runc"]),
        ("containernetworking-plugins", plugins.map(String::as_str).to_vec()),
        ("iptables", vec!["iptables"]),
        ("iproute2", vec!["ip"]),
        ("util-linux", vec!["setpriv", "unshare", "nsenter"]),
    ];
    let missing = needed.iter().filter(|(_, files)| files.iter().any(lacks));
    missing.map(|(package, _)| *package).collect()
}

/// Where the node's containerd listens, seen from the machine.
pub fn containerd_socket(dir: &Path) -> PathBuf {
    dir.join("node/run/containerd/containerd.sock")
}

/// The namespaces of the node, which end with all that runs in them when this is dropped.
pub struct Namespaces {
    process: Process,
    init: u32,
    id: String,
}

impl Namespaces {
    pub fn create(state: &State, tools: &Tools) -> anyhow::Result<Self> {
        let root = state.dir().join("node");
        for hidden in ["/run", "/var/lib", "/var/log"] {
            ensure!(!root.starts_with(hidden), "a node has its own {hidden}, so its files cannot be there");
            fs::create_dir_all(root.join(&hidden[1..]))?;
        }
        cgroup::create(state.id())?;

        let mut command = bound("unshare");
        command
            .args(["--net", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"])
            .args(["sh", "-euc", SETUP, "setup"])
            .arg(&root)
            .arg(ADDRESS.to_string())
            .arg(&tools.pod)
            .env(MARKER, state.id());
        let mut process = super::spawn(state.dir(), "namespaces", command)?;
        let children = format!("/proc/{pid}/task/{pid}/children", pid = process.pid());
        let ready = root.join("ready");
        let init = try_until_blocking("namespaces", Duration::from_secs(10), || {
            if process.exited().is_some() {
                return Some(None);
            }
            let child = fs::read_to_string(&children).ok()?;
            ready.exists().then(|| child.trim().parse().ok())
        })?;
        Ok(Self { init: init.with_context(|| process.log_tail(10))?, process, id: state.id().to_owned() })
    }

    pub fn place(&self) -> Place {
        Place::inside(&self.id, self.init)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        // The end of the first process is that of all others, and comes after theirs; `unshare` waits for it. One that
        // hangs in the kernel is left to it.
        signal(self.init, Signal::KILL);
        let _ = try_until_blocking("the node to end", Duration::from_secs(20), || self.process.exited());
    }
}

/// What the first process does before it becomes the one that waits: its own mounts, and a network of loopback and one
/// interface. That is a bridge because every kernel has those; packets for anywhere else go there and end.
const SETUP: &str = r#"
root=$1 address=$2 pod=$3
mount --make-rshared /
for folder in run var/lib var/log; do
    mount --bind "$root/$folder" "/$folder"
done
ip link set lo up
ip link add node type bridge
ip address add "$address/24" dev node
ip link set node up
ip route add default dev node
echo 1 >/proc/sys/net/ipv4/ip_forward
: >"$root/ready"
exec "$pod" pause
"#;

/// What starts the programs of the node.
pub struct Node<'a> {
    state: &'a State,
    place: &'a Place,
    tools: &'a Tools,
    control: &'a ControlPlane<'a>,
}

impl<'a> Node<'a> {
    /// Writes the configuration of its programs.
    pub fn new(
        state: &'a State,
        place: &'a Place,
        tools: &'a Tools,
        control: &'a ControlPlane<'a>,
    ) -> anyhow::Result<Self> {
        let node = Self { state, place, tools, control };
        fs::create_dir_all(node.file("cni"))?;
        fs::write(node.file("containerd.toml"), node.containerd_config())?;
        let address = ADDRESS.to_string();
        control.write_server("kubelet", &[NAME, &address])?;
        for (file, config) in [
            ("cni/pods.conflist", network()),
            ("kubelet.yaml", node.kubelet_config()),
            ("kube-proxy.yaml", node.proxy_config()?),
        ] {
            fs::write(node.file(file), serde_json::to_vec_pretty(&config)?)?;
        }
        fs::write(node.file("resolv.conf"), format!("nameserver {ADDRESS}\n"))?;
        fs::write(node.file("Corefile"), node.corefile()?)?;
        Image::new(PAUSE)
            .file("/pause", &tools.pod)?
            .entrypoint(&["/pause", "pause"])
            .write(&node.file("pause.tar"))?;
        Ok(node)
    }

    /// Starts the runtime.
    pub fn start_containerd(&self) -> anyhow::Result<Process> {
        let mut command = self.place.command("containerd");
        command.arg("--config").arg(self.file("containerd.toml"));
        self.spawn("containerd", command)
    }

    /// Starts what talks to the API server.
    pub fn start_agents(&self) -> anyhow::Result<[Process; 3]> {
        // containerd has had the time that the API server took to start.
        try_until_blocking("containerd to take the pause image", PATIENCE, || {
            let mut command = self.place.command("ctr");
            command.args(["--namespace", "k8s.io", "images", "import"]).arg(self.file("pause.tar"));
            succeed(command)
        })?;
        let mut kubelet = self.place.command(self.tools.kube.join("kubelet"));
        let user = format!("system:node:{NAME}");
        let identity = self.control.component("kubelet", &user, Some("system:nodes"))?;
        kubelet
            .arg(format!("--config={}", self.file("kubelet.yaml").display()))
            .arg(format!("--kubeconfig={}", identity.display()))
            .arg(format!("--hostname-override={NAME}"))
            .arg(format!("--node-ip={ADDRESS}"));
        let mut proxy = self.place.command(self.tools.kube.join("kube-proxy"));
        proxy.arg(format!("--config={}", self.file("kube-proxy.yaml").display()));
        let mut dns = self.place.command(&self.tools.coredns);
        dns.arg("-conf").arg(self.file("Corefile"));
        Ok([self.spawn("kubelet", kubelet)?, self.spawn("kube-proxy", proxy)?, self.spawn("coredns", dns)?])
    }

    /// Waits until the node takes pods and names resolve.
    pub async fn ready(&self, client: &Client) -> anyhow::Result<()> {
        let nodes = Api::<core::Node>::all(client.clone());
        try_until("the node to be ready", PATIENCE, async || {
            let status = nodes.get(NAME).await?.status.unwrap_or_default();
            let conditions = status.conditions.unwrap_or_default();
            let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready");
            let ready = ready.context("no condition yet")?;
            ensure!(ready.status == "True", "{}", ready.message.unwrap_or_default());
            Ok(())
        })
        .await?;
        try_until("the name of the API server to resolve", PATIENCE, async || {
            let mut command = self.place.command(&self.tools.pod);
            command.args(["lookup", &ADDRESS.to_string(), "kubernetes.default.svc.cluster.local."]);
            succeed(command)
        })
        .await?;
        Ok(())
    }

    fn containerd_config(&self) -> String {
        // The machine's root may lack CAP_SYS_RESOURCE, and then cannot lower a score: restrict_oom_score_adj.
        format!(
            r#"
version = 2
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{cni}"
"#,
            cni = self.file("cni").display()
        )
    }

    fn kubelet_config(&self) -> serde_json::Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": self.control.pki("ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": self.control.pki("kubelet.crt"),
            "tlsPrivateKeyFile": self.control.pki("kubelet.key"),
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": cgroup::name(self.state.id()),
            "failCgroupV1": false,
            "failSwapOn": false,
            "clusterDomain": "cluster.local",
            "clusterDNS": [ADDRESS],
            "resolvConf": self.file("resolv.conf"),
            // A machine that is low on disk still runs tests.
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
        })
    }

    fn proxy_config(&self) -> anyhow::Result<serde_json::Value> {
        let identity = self.control.component("kube-proxy", "system:kube-proxy", None)?;
        Ok(json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": identity},
            "hostnameOverride": NAME,
            "mode": "iptables",
            "clusterCIDR": PODS,
            // Limits of the whole machine, which are not the node's to set.
            "conntrack": {"maxPerCore": 0, "min": 0},
        }))
    }

    fn corefile(&self) -> anyhow::Result<String> {
        // There is no other network that a name could be of, and "it does not exist" is a quicker answer than a failure.
        let identity = self.control.component("coredns", "coredns", Some("system:masters"))?;
        Ok(format!(
            ".:53 {{
    bind {ADDRESS}
    errors
    cache 5
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {}
        ttl 5
    }}
    template ANY ANY . {{
        rcode NXDOMAIN
    }}
}}
",
            identity.display()
        ))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.state.dir().join("node").join(name)
    }

    fn spawn(&self, name: &str, command: Command) -> anyhow::Result<Process> {
        super::spawn(self.state.dir(), name, command)
    }
}

/// One link for each pod, and no bridge: what pods send to each other passes the node, where Services are made.
fn network() -> serde_json::Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [{
            "type": "ptp",
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": PODS}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
}

/// Runs a short command; what it said is the error.
fn succeed(mut command: Command) -> anyhow::Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
