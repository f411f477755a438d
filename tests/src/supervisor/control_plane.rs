//! etcd, API server, controllers and scheduler.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::kubeconfig;
use super::place::Place;
use crate::certs::{Authority, Identity, signing_keys};
use crate::port::free_port;
use crate::process::Process;
use crate::tools::Tools;

/// The range of Service addresses, of those set aside for benchmarks: no real network has them.
const SERVICES: &str = "198.19.0.0/24";
/// The Service `kubernetes.default`, by rule the first of the range.
const KUBERNETES: &str = "198.19.0.1";

/// Where the API server and etcd listen.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// The API server's own, inside of its network namespace.
    pub apiserver: SocketAddr,
    etcd: SocketAddr,
    etcd_peers: SocketAddr,
}

impl Addresses {
    /// Free ports of loopback.
    pub fn free() -> anyhow::Result<Self> {
        let free = || anyhow::Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)));
        Ok(Self { apiserver: free()?, etcd: free()?, etcd_peers: free()? })
    }

    /// The usual ports, for a network namespace where nobody else listens.
    pub fn usual(node: Ipv4Addr) -> Self {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Self { apiserver: SocketAddr::from((node, 6443)), etcd: local(2379), etcd_peers: local(2380) }
    }
}

/// What starts the control plane, and lets others in.
pub struct ControlPlane<'a> {
    dir: &'a Path,
    place: &'a Place,
    tools: &'a Tools,
    addresses: Addresses,
    authority: Authority,
}

impl<'a> ControlPlane<'a> {
    /// Makes its certificates.
    pub fn new(dir: &'a Path, place: &'a Place, tools: &'a Tools, addresses: Addresses) -> anyhow::Result<Self> {
        fs::create_dir_all(dir.join("pki"))?;
        let control = Self { dir, place, tools, addresses, authority: Authority::new()? };
        let address = addresses.apiserver.ip().to_string();
        let server = control.authority.server(&[
            "localhost",
            "127.0.0.1",
            &address,
            KUBERNETES,
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ])?;
        control.write_identity("apiserver", &server)?;
        let to_kubelets = control.authority.client("kube-apiserver", Some("system:masters"))?;
        control.write_identity("apiserver-kubelet", &to_kubelets)?;
        fs::write(control.pki("ca.crt"), &control.authority.pem)?;
        let (private, public) = signing_keys()?;
        fs::write(control.pki("service-account.key"), private)?;
        fs::write(control.pki("service-account.pub"), public)?;
        Ok(control)
    }

    /// Starts etcd and the API server.
    pub fn start_server(&self) -> anyhow::Result<[Process; 2]> {
        let Addresses { apiserver, etcd, etcd_peers } = self.addresses;
        let mut command = self.place.command(&self.tools.etcd);
        command
            .arg("--data-dir")
            .arg(self.dir.join("etcd"))
            // Nothing of a test cluster survives a crash of the machine.
            .arg("--unsafe-no-fsync")
            .arg(format!("--listen-client-urls=http://{etcd}"))
            .arg(format!("--advertise-client-urls=http://{etcd}"))
            .arg(format!("--listen-peer-urls=http://{etcd_peers}"))
            .arg(format!("--initial-advertise-peer-urls=http://{etcd_peers}"))
            .arg(format!("--initial-cluster=default=http://{etcd_peers}"));
        let etcd_process = self.spawn("etcd", command)?;

        let mut command = self.place.command(&self.tools.apiserver);
        command
            .arg(format!("--etcd-servers=http://{etcd}"))
            .arg(format!("--bind-address={}", apiserver.ip()))
            .arg(format!("--advertise-address={}", apiserver.ip()))
            .arg(format!("--secure-port={}", apiserver.port()))
            .arg(format!("--service-cluster-ip-range={SERVICES}"))
            .args(["--authorization-mode=Node,RBAC", "--allow-privileged=true"])
            .arg("--kubelet-preferred-address-types=InternalIP")
            .arg("--service-account-issuer=https://kubernetes.default.svc.cluster.local");
        for (flag, file) in [
            ("cert-dir", ""),
            ("client-ca-file", "ca.crt"),
            ("tls-cert-file", "apiserver.crt"),
            ("tls-private-key-file", "apiserver.key"),
            ("kubelet-certificate-authority", "ca.crt"),
            ("kubelet-client-certificate", "apiserver-kubelet.crt"),
            ("kubelet-client-key", "apiserver-kubelet.key"),
            ("service-account-key-file", "service-account.pub"),
            ("service-account-signing-key-file", "service-account.key"),
        ] {
            command.arg(format!("--{flag}={}", self.pki(file).display()));
        }
        if apiserver.ip().is_loopback() {
            // The Service `kubernetes` may not lead to loopback; nobody is there to use it either.
            command.arg("--endpoint-reconciler-type=none");
        }
        Ok([etcd_process, self.spawn("kube-apiserver", command)?])
    }

    /// Starts the controllers and the scheduler; the server should be there.
    pub fn start_controllers(&self) -> anyhow::Result<[Process; 2]> {
        let config = self.component("kube-controller-manager", "system:kube-controller-manager", None)?;
        let mut command = self.place.command(&self.tools.controller_manager);
        command
            .arg(format!("--kubeconfig={}", config.display()))
            .arg(format!("--root-ca-file={}", self.pki("ca.crt").display()))
            .arg("--service-account-private-key-file")
            .arg(self.pki("service-account.key"))
            .args(["--use-service-account-credentials=true", "--leader-elect=false"])
            .arg("--secure-port=0")
            // Each controller asks for a token of its own; the usual limit makes that half of the start.
            .args(["--kube-api-qps=500", "--kube-api-burst=1000"]);
        let controllers = self.spawn("kube-controller-manager", command)?;

        let config = self.component("kube-scheduler", "system:kube-scheduler", None)?;
        let mut command = self.place.command(&self.tools.scheduler);
        command.arg(format!("--kubeconfig={}", config.display())).args(["--leader-elect=false", "--secure-port=0"]);
        Ok([controllers, self.spawn("kube-scheduler", command)?])
    }

    /// Writes the administrator's kubeconfig, by an address where the server is reached from the machine.
    pub fn write_admin(&self, path: &Path, server: SocketAddr) -> anyhow::Result<()> {
        let admin = self.authority.client("admin", Some("system:masters"))?;
        kubeconfig::write(path, server, &self.authority.pem, &admin)
    }

    /// The kubeconfig of a component that runs beside the server.
    pub fn component(&self, name: &str, user: &str, group: Option<&str>) -> anyhow::Result<PathBuf> {
        let path = self.pki(&format!("{name}.kubeconfig"));
        let identity = self.authority.client(user, group)?;
        kubeconfig::write(&path, self.addresses.apiserver, &self.authority.pem, &identity)?;
        Ok(path)
    }

    /// A certificate for another server of the cluster, as files `<name>.crt` and `<name>.key`.
    pub fn write_server(&self, name: &str, names: &[&str]) -> anyhow::Result<()> {
        self.write_identity(name, &self.authority.server(names)?)
    }

    /// A file among the certificates.
    pub fn pki(&self, file: &str) -> PathBuf {
        self.dir.join("pki").join(file)
    }

    fn write_identity(&self, name: &str, identity: &Identity) -> anyhow::Result<()> {
        fs::write(self.pki(&format!("{name}.crt")), &identity.cert)?;
        fs::write(self.pki(&format!("{name}.key")), &identity.key)?;
        Ok(())
    }

    fn spawn(&self, name: &str, command: std::process::Command) -> anyhow::Result<Process> {
        super::spawn(self.dir, name, command)
    }
}
