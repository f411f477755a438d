//! A cluster, as tests use it.

use std::io::BufRead as _;
use std::net::SocketAddr;
use std::ops::Deref;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use std::{env, fmt, fs, io};

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::core::v1 as core;
use kube::api::{ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;

pub use crate::skip::Unavailable;
pub use crate::supervisor::{Info, Shape};

use crate::forward::Forward;
use crate::process;
use crate::supervisor::check_node;
use crate::tools::Tools;
use crate::wait;

/// The program of the supervisor.
const SUPERVISOR: &str = "cabloy-test-cluster";

/// A running cluster, which ends with the process that started it.
#[derive(Debug)]
pub struct Cluster {
    info: Info,
    supervisor: PathBuf,
    /// Its stdin is what keeps the cluster; there is none where the cluster was there before.
    process: Option<Child>,
    _dir: Option<TempDir>,
}

impl Cluster {
    /// The control plane that all tests of this process share, started by the first that asks.
    ///
    /// With `CABLOY_CONTROL_PLANE` naming the folder of a cluster started by `cabloy-test-cluster up --detach`, that one.
    ///
    /// # Panics
    /// It does not start.
    pub fn control_plane() -> &'static Self {
        static CLUSTER: OnceLock<Cluster> = OnceLock::new();
        CLUSTER.get_or_init(|| Self::shared(Shape::ControlPlane, "CABLOY_CONTROL_PLANE"))
    }

    /// The cluster with a node that all tests of this process share; see [`require_node!`](crate::require_node).
    ///
    /// With `CABLOY_NODE` naming the folder of a cluster started by `cabloy-test-cluster up --detach`, that one.
    ///
    /// # Errors
    /// This machine cannot have one, for a reason that is no fault of the code under test.
    ///
    /// # Panics
    /// It should start, but does not.
    pub fn node() -> Result<&'static Self, Unavailable> {
        static CLUSTER: OnceLock<Result<Cluster, Unavailable>> = OnceLock::new();
        let cluster = CLUSTER.get_or_init(|| check_node().map(|()| Self::shared(Shape::Node, "CABLOY_NODE")));
        cluster.as_ref().map_err(Clone::clone)
    }

    fn shared(shape: Shape, variable: &str) -> Self {
        let cluster = match env::var_os(variable) {
            Some(dir) => Self::attach(Path::new(&dir)).context(variable.to_owned()),
            None => Self::start(shape),
        };
        match cluster {
            Ok(cluster) => cluster,
            Err(error) => panic!("no test cluster: {error:#}"),
        }
    }

    /// Starts a cluster of one's own, which ends when this is dropped.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(shape: Shape) -> anyhow::Result<Self> {
        Tools::get();
        let supervisor = supervisor()?;
        let dir = TempDir::with_prefix("cabloy-cluster-")?;
        let mut process = Command::new(&supervisor)
            .args(["up", "--shape"])
            .arg(serde_json::to_value(shape)?.as_str().unwrap_or_default())
            .arg("--dir")
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // An interrupt at the terminal is for the test; the supervisor sees that end.
            .process_group(0)
            .spawn()
            .with_context(|| supervisor.display().to_string())?;
        let mut line = String::new();
        let output = process.stdout.take().context("a pipe was asked for")?;
        io::BufReader::new(output).read_line(&mut line)?;
        ensure!(!line.is_empty(), "the supervisor gave up; it says why above");
        Ok(Self { info: serde_json::from_str(&line)?, supervisor, process: Some(process), _dir: Some(dir) })
    }

    /// Starts a cluster that stays until [`Cluster::stop`], also when this process has ended.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_detached(shape: Shape, dir: &Path) -> anyhow::Result<Self> {
        let shape = serde_json::to_value(shape)?;
        let up = Command::new(supervisor()?)
            .args(["up", "--detach", "--shape", shape.as_str().unwrap_or_default(), "--dir"])
            .arg(dir)
            .stdout(Stdio::null())
            .status()?;
        ensure!(up.success(), "the supervisor gave up; it says why above");
        Self::attach(dir)
    }

    /// Takes the cluster down, and returns when nothing is left of it.
    ///
    /// # Errors
    /// Something is left.
    pub fn stop(&self) -> anyhow::Result<()> {
        let down = Command::new(&self.supervisor).args(["down", "--dir"]).arg(&self.info.dir).status()?;
        ensure!(down.success(), "not all of the cluster in {} could be taken down", self.info.dir.display());
        Ok(())
    }

    /// One that is there already.
    fn attach(dir: &Path) -> anyhow::Result<Self> {
        let text = fs::read(dir.join("cluster.json"))?;
        Ok(Self { info: serde_json::from_slice(&text)?, supervisor: supervisor()?, process: None, _dir: None })
    }

    /// What its supervisor says of it.
    #[must_use]
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.info.kubeconfig
    }

    /// A client with the administrator's rights. Each async runtime needs one of its own, for a client ends with the
    /// runtime that it was made in.
    ///
    /// # Panics
    /// The kubeconfig cannot be used.
    pub async fn client(&self) -> Client {
        match client(&self.info.kubeconfig).await {
            Ok(client) => client,
            Err(error) => panic!("{error:#}"),
        }
    }

    /// A new namespace whose name begins with `prefix`. It stays until the cluster goes.
    ///
    /// # Panics
    /// The API server does not make it.
    pub async fn namespace(&self, prefix: &str) -> Namespace {
        let client = self.client().await;
        let namespace = core::Namespace {
            metadata: ObjectMeta { generate_name: Some(format!("{prefix}-")), ..ObjectMeta::default() },
            ..core::Namespace::default()
        };
        let made = Api::all(client.clone()).create(&PostParams::default(), &namespace).await;
        let name = match made {
            Ok(namespace) => namespace.metadata.name.unwrap_or_default(),
            Err(error) => panic!("namespace {prefix}: {error}"),
        };
        // Without it, pods are refused.
        let accounts = Api::<core::ServiceAccount>::namespaced(client, &name);
        wait::until("the default service account", Duration::from_secs(30), async || accounts.get("default").await)
            .await;
        Namespace(name)
    }

    /// A kubeconfig with the rights of a service account and no more, by a token that the API server issues.
    ///
    /// # Panics
    /// There is no such service account.
    pub async fn kubeconfig_of(&self, namespace: &str, service_account: &str) -> Kubeconfig {
        let token = self.kubectl(&["create", "token", "--namespace", namespace, service_account]).await;
        let token = token.success().trim().to_owned();
        let mut config = match Kubeconfig::read_from(&self.info.kubeconfig) {
            Ok(config) => config,
            Err(error) => panic!("{error}"),
        };
        for user in &mut config.auth_infos {
            user.auth_info =
                Some(kube::config::AuthInfo { token: Some(token.clone().into()), ..kube::config::AuthInfo::default() });
        }
        config
    }

    /// A client with the rights of a service account and no more.
    ///
    /// # Panics
    /// There is no such service account.
    pub async fn client_of(&self, namespace: &str, service_account: &str) -> Client {
        let config = self.kubeconfig_of(namespace, service_account).await;
        match client_from(config).await {
            Ok(client) => client,
            Err(error) => panic!("{error:#}"),
        }
    }

    /// Runs kubectl as the administrator.
    ///
    /// # Panics
    /// It cannot be started.
    pub async fn kubectl(&self, args: &[&str]) -> Output {
        self.kubectl_with(args, "").await
    }

    /// Runs kubectl with something on its stdin, as for `apply --filename=-`.
    ///
    /// # Panics
    /// It cannot be started.
    pub async fn kubectl_with(&self, args: &[&str], stdin: &str) -> Output {
        self.run(&Tools::get().kubectl, args, stdin).await
    }

    /// Runs Helm as the administrator.
    ///
    /// # Panics
    /// It cannot be started.
    pub async fn helm(&self, args: &[&str]) -> Output {
        self.run(&Tools::get().helm, args, "").await
    }

    /// Runs a program with `KUBECONFIG` set, and with folders for caches and settings that are not the user's.
    async fn run(&self, program: &Path, args: &[&str], stdin: &str) -> Output {
        let mut command = Command::new(program);
        command.args(args).env("KUBECONFIG", &self.info.kubeconfig).env("HOME", &self.info.dir);
        for variable in ["XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"] {
            command.env_remove(variable);
        }
        match output(command, stdin).await {
            Ok(output) => output,
            Err(error) => panic!("{}: {error}", program.display()),
        }
    }

    /// Puts the images of a tar file on the node.
    ///
    /// # Panics
    /// There is no node, or it does not take them.
    pub async fn import_image(&self, tar: &Path) {
        self.ctr(&["images", "import", &tar.to_string_lossy()]).await;
    }

    /// Gives an image of the node one more name.
    ///
    /// # Panics
    /// There is no such image.
    pub async fn tag_image(&self, image: &str, name: &str) {
        self.ctr(&["images", "tag", "--force", image, name]).await;
    }

    /// Runs the client of the node's containerd.
    async fn ctr(&self, args: &[&str]) {
        let Some(socket) = &self.info.containerd else {
            panic!("a control plane has no node to put images on");
        };
        let mut command = Command::new("ctr");
        command.arg("--address").arg(socket).args(["--namespace", "k8s.io"]).args(args);
        match output(command, "").await {
            Ok(output) => drop(output.success()),
            Err(error) => panic!("ctr: {error}"),
        }
    }

    /// Opens a way from this machine to an address in the cluster: of a pod, a Service or the node.
    ///
    /// # Panics
    /// There is no node.
    #[must_use]
    pub fn forward(&self, to: SocketAddr) -> Forward {
        let Some(netns) = &self.info.netns else {
            panic!("a control plane has no network of its own");
        };
        match Forward::open(&self.supervisor, netns, to, &self.info.dir) {
            Ok(forward) => forward,
            Err(error) => panic!("forward to {to}: {error:#}"),
        }
    }

    /// The last lines of the log of a program of the cluster, as `kubelet`.
    #[must_use]
    pub fn log_tail(&self, program: &str, lines: usize) -> String {
        process::tail(&self.info.dir.join(format!("logs/{program}.log")), lines)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            drop(process.stdin.take());
            let _ = process.wait();
        }
    }
}

/// The name of a namespace made for a test.
#[derive(Debug, Clone)]
pub struct Namespace(String);

impl Namespace {
    /// One that is there.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self(name.to_owned())
    }
}

impl Deref for Namespace {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a program said.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to stdout.
    pub stdout: String,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl Output {
    /// Its stdout.
    ///
    /// # Panics
    /// It failed.
    #[must_use]
    #[track_caller]
    pub fn success(self) -> String {
        let Self { status, stdout, stderr } = self;
        assert!(status.success(), "{status}\n{stdout}{stderr}");
        stdout
    }
}

async fn output(command: Command, stdin: &str) -> io::Result<Output> {
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let input = child.stdin.take();
    let feed = async {
        if let Some(mut input) = input {
            // A program that does not want to read says so by its status.
            let _ = input.write_all(stdin.as_bytes()).await;
        }
    };
    let ((), output) = tokio::join!(feed, child.wait_with_output());
    let output = output?;
    Ok(Output {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// A client by a kubeconfig file.
pub(crate) async fn client(kubeconfig: &Path) -> anyhow::Result<Client> {
    client_from(Kubeconfig::read_from(kubeconfig)?).await
}

async fn client_from(config: Kubeconfig) -> anyhow::Result<Client> {
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// The program of the supervisor: where Cargo says, else beside the test that runs. Tests of other packages have it built,
/// for Cargo builds programs only for the tests of their own package.
fn supervisor() -> anyhow::Result<PathBuf> {
    if let Some(path) = env::var_os(format!("CARGO_BIN_EXE_{SUPERVISOR}")) {
        return Ok(path.into());
    }
    let program = env::current_exe()?;
    let folder = program.parent().context("a program in a target folder")?;
    // A test is target/debug/deps/test-0123456789abcdef, the demo target/debug/cabloy-demo.
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--package", "cabloy-tests", "--bin", SUPERVISOR]);
    build.current_dir(env!("CARGO_MANIFEST_DIR"));
    if folder.ends_with("release") {
        build.arg("--release");
    }
    let path = folder.join(SUPERVISOR);
    match build.status() {
        Ok(status) if !status.success() => bail!("{SUPERVISOR} does not build"),
        _ => ensure!(path.exists(), "{} is not there", path.display()),
    }
    Ok(path)
}
