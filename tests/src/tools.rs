//! The programs that clusters are made of, built from the Go modules in `tests/kube` and kept between runs; and the
//! collector of traces in `tests/otlp`.
//!
//! A folder of the cache is named by a hash of everything that goes into it, is filled aside and then renamed: it is
//! there in full or not at all. Builders of several test processes take turns by a file lock.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;

use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};

use crate::process::bound;

/// The folder of the checkout.
pub(crate) fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The version of Kubernetes; the rest of its numbers are in `tests/kube/go.mod`.
const KUBERNETES: &str = "v1.35.4";

/// The parts of the multi-call binary, under whose names it is linked.
const COMPONENTS: [&str; 7] =
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"];

/// How many Go packages are built between two lines that say so.
const PACKAGES_A_LINE: u32 = 100;

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Tools {
    /// The folder of etcd and the Kubernetes programs, which also serves as `KUBEBUILDER_ASSETS`.
    pub kube: PathBuf,
    /// etcd, as all of the control plane taken from `KUBEBUILDER_ASSETS` where that is set and has it.
    pub etcd: PathBuf,
    /// kube-apiserver.
    pub apiserver: PathBuf,
    /// kube-controller-manager.
    pub controller_manager: PathBuf,
    /// kube-scheduler.
    pub scheduler: PathBuf,
    /// kubectl.
    pub kubectl: PathBuf,
    /// Helm 3.
    pub helm: PathBuf,
    /// kubeconform.
    pub kubeconform: PathBuf,
    /// `CoreDNS`.
    pub coredns: PathBuf,
    /// The static program inside test images: `pause`, `serve ADDR`, `get URL`.
    pub pod: PathBuf,
}

impl Tools {
    /// The programs, built now if this machine has not yet done so: six minutes, once.
    ///
    /// # Panics
    /// They cannot be built.
    pub fn get() -> &'static Self {
        static TOOLS: OnceLock<Tools> = OnceLock::new();
        TOOLS.get_or_init(|| match Self::build() {
            Ok(tools) => tools,
            Err(error) => panic!("cannot build the programs of the test cluster: {error:#}"),
        })
    }

    /// As [`get`](Self::get), without keeping the answer.
    ///
    /// # Errors
    /// They cannot be built.
    pub fn build() -> anyhow::Result<Self> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("kube");
        let minor = KUBERNETES.split('.').nth(1).unwrap_or_default();
        let version = "-X k8s.io/component-base/version.git";
        let kube = Module {
            name: "kube",
            dir: &source,
            ldflags: format!("{version}Version={KUBERNETES} {version}Major=1 {version}Minor={minor}"),
            packages: &[".", "./pod", "helm.sh/helm/v3/cmd/helm", "github.com/yannh/kubeconform/cmd/kubeconform"],
            links: &COMPONENTS,
        }
        .built()?;
        let coredns = Module {
            name: "coredns",
            dir: &source.join("coredns"),
            ldflags: String::new(),
            packages: &["."],
            links: &[],
        }
        .built()?;

        let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
        let preferred = |name: &str| {
            let given = assets.as_ref().map(|folder| folder.join(name));
            given.filter(|path| path.exists()).unwrap_or_else(|| kube.join(name))
        };
        Ok(Self {
            etcd: preferred("etcd"),
            apiserver: preferred("kube-apiserver"),
            controller_manager: preferred("kube-controller-manager"),
            scheduler: preferred("kube-scheduler"),
            kubectl: preferred("kubectl"),
            helm: kube.join("helm"),
            kubeconform: kube.join("kubeconform"),
            coredns: coredns.join("coredns"),
            pod: kube.join("pod"),
            kube,
        })
    }
}

/// The program that takes traces: built once, in a minute.
///
/// # Errors
/// It cannot be built.
pub fn collector() -> anyhow::Result<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("otlp");
    let module = Module { name: "otlp", dir: &dir, ldflags: String::new(), packages: &["."], links: &[] };
    Ok(module.built()?.join("otlp"))
}

/// A Go module and what is built from it.
struct Module<'a> {
    name: &'a str,
    dir: &'a Path,
    ldflags: String,
    packages: &'a [&'a str],
    links: &'a [&'a str],
}

impl Module<'_> {
    /// The folder with its programs, built first if the cache has none of just these sources.
    fn built(&self) -> anyhow::Result<PathBuf> {
        let cache = cache_dir()?;
        let folder = cache.join(format!("{}-{}", self.name, self.fingerprint()?));
        if folder.exists() {
            return Ok(folder);
        }
        fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
        let lock = File::create(cache.join(format!("{}.lock", self.name)))?;
        lock.lock()?;
        if !folder.exists() {
            self.build_into(&cache, &folder)?;
        }
        Ok(folder)
    }

    fn build_into(&self, cache: &Path, folder: &Path) -> anyhow::Result<()> {
        progress(&format!("building {} into {} (minutes, once) …", self.name, folder.display()));
        let prefix = format!(".building-{}-", self.name);
        for entry in fs::read_dir(cache)? {
            let entry = entry?;
            // Nobody else builds this now: it is of one that was killed.
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        let aside = tempfile::Builder::new().prefix(&prefix).tempdir_in(cache)?;
        let mut build = bound("go");
        build
            .args(["build", "-v", "-trimpath", "-buildvcs=false", "-ldflags"])
            .arg(format!("-s -w {}", self.ldflags))
            .arg("-o")
            .arg(aside.path())
            .args(self.packages)
            .current_dir(self.dir)
            .envs([("CGO_ENABLED", "0"), ("GOFLAGS", "-mod=readonly")])
            .stderr(Stdio::piped());
        let mut build = build.spawn().context("go")?;
        if let Some(said) = build.stderr.take() {
            self.tell(BufReader::new(said));
        }
        let status = build.wait()?;
        ensure!(status.success(), "go build ended with {status}");
        for link in self.links {
            symlink(self.name, aside.path().join(link))?;
        }
        fs::rename(aside.keep(), folder)?;
        progress(&format!("built {}", self.name));
        Ok(())
    }

    /// Tells how far a build is, by the packages that Go names as it comes to them; what else Go says is told as it is.
    fn tell(&self, said: impl BufRead) {
        let mut packages = 0;
        for line in said.lines().map_while(Result::ok) {
            if line.contains(' ') {
                progress(&line);
                continue;
            }
            packages += 1;
            if packages % PACKAGES_A_LINE == 0 {
                progress(&format!("building {}: {packages} packages so far", self.name));
            }
        }
    }

    fn fingerprint(&self) -> anyhow::Result<String> {
        let mut all = format!("{} {:?} {:?}", self.ldflags, self.packages, self.links).into_bytes();
        for file in ["go.mod", "go.sum", "main.go", "pod/main.go"] {
            match fs::read(self.dir.join(file)) {
                Ok(content) => all.extend(content),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).context(file),
            }
        }
        let mut digest = sha256(&all);
        digest.truncate(16);
        Ok(digest)
    }
}

/// A digest in hexadecimal digits.
pub(crate) fn sha256(content: &[u8]) -> String {
    let mut digits = String::new();
    for byte in Sha256::digest(content) {
        // Writing to a string does not fail.
        let _ = write!(digits, "{byte:02x}");
    }
    digits
}

/// A folder of the cache, by `make` if this machine has none yet: there in full or not at all.
pub(crate) fn made_once(name: &str, make: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<PathBuf> {
    let cache = cache_dir()?;
    let folder = cache.join(name);
    if folder.exists() {
        return Ok(folder);
    }
    fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    let turn = File::create(cache.join(format!("{name}.lock")))?;
    turn.lock()?;
    if !folder.exists() {
        let aside = tempfile::Builder::new().prefix(".filling-").tempdir_in(&cache)?;
        let filled = aside.path().join("filled");
        make(&filled)?;
        fs::rename(&filled, &folder)?;
    }
    Ok(folder)
}

/// Outside of the checkout, so that a clean one is quick and nothing of it gets into an image.
pub(crate) fn cache_dir() -> anyhow::Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let base = set("CABLOY_CACHE")
        .or_else(|| set("XDG_CACHE_HOME"))
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .context("none of CABLOY_CACHE, XDG_CACHE_HOME and HOME is set")?;
    Ok(base.join("cabloy"))
}

/// A line for whoever waits. Not `eprintln!`: the test harness hides that, and it panics when nobody reads.
pub(crate) fn progress(line: &str) {
    let _ = writeln!(std::io::stderr(), "cabloy-tests: {line}");
}
