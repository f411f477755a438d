//! Container images for the node tests and the demo, as tar files that `ctr images import` takes.
//!
//! The project's own images are built by buildah from the `Dockerfile` as it stands. A base image that no registry serves
//! is made of this machine's parts and kept under its public name, so that neither the Dockerfile nor the manifests of the
//! examples differ from what a user writes.
//!
//! Everything lives in the cache's folder `cabloy/images`: buildah's storage, Cargo's caches and
//! the tar files. The tar files of one recipe are in a folder named by the hash of all that they are made of; the folder
//! appears by a rename, so what exists is complete and fresh.

pub mod cabloy_v4;

use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::SystemTime,
};

use anyhow::{Context, Result, bail, ensure};

use crate::tools;

/// The tag of the project's own images.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the project's own images are built from, as paths in the checkout.
const SOURCES: [&str; 11] = [
    ".dockerignore",
    "Cargo.lock",
    "Cargo.toml",
    "Dockerfile",
    "agent",
    "crds",
    "engine",
    "operator",
    "redlock",
    "sim/Cargo.toml",
    "tests/Cargo.toml",
];

/// How many tar folders of one recipe are kept: switching between two states of a checkout needs no build.
const KEPT: usize = 3;

/// Names and passwords of users, as the public images have them beside root.
const PASSWD: &str =
    "root:x:0:0:root:/root:/bin/sh\nredis:x:999:999::/data:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\n";

/// The Redis image's `redis-server`: the public image's build has protected mode off, Debian's has it on.
const REDIS_SERVER: &str = r#"#!/bin/sh
case "$1" in
  -h|--help|-v|--version|--test-memory|--check-system) exec /usr/bin/redis-server "$@" ;;
  -|*.conf) config=$1; shift ;;
esac
exec /usr/bin/redis-server ${config:+"$config"} --protected-mode no "$@"
"#;

/// The Redis image's entry point: options and a configuration file are arguments of the server, as in the public image.
const REDIS_ENTRYPOINT: &str = r#"#!/bin/sh
case "$1" in
  -*|*.conf) set -- redis-server "$@" ;;
esac
exec "$@"
"#;

/// The Node image's entry point: what is no program is a script or an option for node, as in the public image.
const NODE_ENTRYPOINT: &str = r#"#!/bin/sh
if [ "${1#-}" != "$1" ] || [ -z "$(command -v "$1")" ] || { [ -f "$1" ] && ! [ -x "$1" ]; }; then
  set -- node "$@"
fi
exec "$@"
"#;

/// Programs for `sh -c` in the stand-in images.
const SHELL: [&str; 14] =
    ["sh", "cat", "cp", "date", "echo", "env", "hostname", "id", "ls", "mkdir", "rm", "sleep", "test", "true"];

/// The project's own images of the checkout's present state.
#[derive(Debug, Clone)]
pub struct Images {
    /// Archive of `docker.io/cabloy/cabloy-agent:<version>`.
    pub agent_tar: PathBuf,
    /// Archive of `docker.io/cabloy/cabloy-operator:<version>`.
    pub operator_tar: PathBuf,
    /// The images' tag.
    pub version: &'static str,
}

/// Builds the agent's and the operator's image, unless their sources are as at an earlier build.
///
/// # Errors
/// When buildah is missing or may not run (it wants root), and when the build fails; Cargo's output goes to stderr.
pub fn build() -> Result<Images> {
    let store = Store::open()?;
    // A copy, for the sources may be edited while they are built.
    let context = tempfile::Builder::new().prefix("context-").tempdir_in(store.dir.join("tmp"))?;
    let context = context.path();
    run(Command::new("cp").args(["-a", "--parents", "-t"]).arg(context).args(SOURCES).current_dir(tools::checkout()))?;
    let mut key = Key::of("cabloy 2");
    for source in SOURCES {
        key.tree(context, Path::new(source))?;
    }
    let image = |target| format!("docker.io/cabloy/cabloy-{target}:{VERSION}");
    let names = ["agent", "operator"].map(|target| format!("cabloy-{target}-{VERSION}.tar"));
    let dir = store.kept("cabloy", &key, |store, dir| {
        store.rust_base(context)?;
        for (target, file) in ["agent", "operator"].into_iter().zip(&names) {
            let name = image(target);
            run(store
                .buildah("bud")
                .args(["--isolation", "chroot", "--pull-never", "--layers", "--target", target])
                .args(["--build-arg", &format!("VERSION={VERSION}"), "--tag", &name])
                .arg(context))?;
            store.save(&name, &dir.join(file))?;
        }
        // The layers were for the second target. Cargo's caches make the next build quick, not these.
        run(store.buildah("rmi").args(["--prune", "--force"]))
    })?;
    let [agent_tar, operator_tar] = names.map(|name| dir.join(name));
    Ok(Images { agent_tar, operator_tar, version: VERSION })
}

/// Archive of `docker.io/library/redis:7`: the public image, or Debian's Redis under its name.
///
/// # Errors
/// When the image can neither be pulled nor be made, as without `redis-server` on this machine.
pub fn redis() -> Result<PathBuf> {
    let server = program("redis-server")?;
    let mut key = Key::of("redis 3");
    key.file_identity(&server)?;
    let store = Store::open()?;
    let dir = store.kept("redis", &key, |store, dir| {
        let name = "docker.io/library/redis:7";
        if !store.pull(name) {
            let version = output(Command::new(&server).arg("--version"))?;
            ensure!(version.contains(" v=7."), "redis:7 is wanted, this machine has {version}");
            store.make(
                name,
                &key,
                &[
                    ["--env", "PATH=/usr/local/bin:/usr/bin:/bin"],
                    ["--workingdir", "/data"],
                    ["--volume", "/data"],
                    ["--port", "6379/tcp"],
                    ["--entrypoint", r#"["docker-entrypoint.sh"]"#],
                    ["--cmd", "redis-server"],
                ],
                |root| {
                    programs(root, &["redis-server", "redis-cli"])?;
                    script(root, "redis-server", REDIS_SERVER)?;
                    script(root, "docker-entrypoint.sh", REDIS_ENTRYPOINT)?;
                    open_folder(&root.join("data"))
                },
            )?;
        }
        store.save(name, &dir.join("redis-7.tar"))
    })?;
    Ok(dir.join("redis-7.tar"))
}

/// Archive of `docker.io/library/node:20-slim`: the public image, or this machine's node under its name (without npm).
///
/// # Errors
/// When the image can neither be pulled nor be made, as without a node 20 on this machine.
pub fn node() -> Result<PathBuf> {
    let node = program("node")?;
    let mut key = Key::of("node 2");
    key.file_identity(&node)?;
    let store = Store::open()?;
    let dir = store.kept("node", &key, |store, dir| {
        let name = "docker.io/library/node:20-slim";
        if !store.pull(name) {
            let version = output(Command::new(&node).arg("--version"))?;
            ensure!(version.starts_with("v20."), "node:20-slim is wanted, this machine has {version}");
            store.make(
                name,
                &key,
                &[
                    ["--env", "PATH=/usr/local/bin:/usr/bin:/bin"],
                    ["--env", &format!("NODE_VERSION={}", version.trim().trim_start_matches('v'))],
                    ["--entrypoint", r#"["docker-entrypoint.sh"]"#],
                    ["--cmd", "node"],
                ],
                |root| {
                    programs(root, &["node"])?;
                    script(root, "docker-entrypoint.sh", NODE_ENTRYPOINT)?;
                    fs::create_dir_all(root.join("home/node"))?;
                    Ok(())
                },
            )?;
        }
        store.save(name, &dir.join("node-20.tar"))
    })?;
    Ok(dir.join("node-20.tar"))
}

/// What a folder of tar files is made of, as a hash.
struct Key(DefaultHasher);

impl Key {
    /// `recipe` is raised when the code that makes the files changes.
    fn of(recipe: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        recipe.hash(&mut hasher);
        Self(hasher)
    }

    /// Takes a file's name and content, or those of all files under a folder.
    fn tree(&mut self, root: &Path, path: &Path) -> Result<()> {
        path.hash(&mut self.0);
        let full = root.join(path);
        if full.is_dir() {
            let mut names = fs::read_dir(full)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
            names.sort();
            return names.iter().try_for_each(|name| self.tree(root, &path.join(name)));
        }
        fs::read(&full).with_context(|| format!("cannot read {}", full.display()))?.hash(&mut self.0);
        Ok(())
    }

    /// Takes a text.
    fn text(&mut self, text: &str) {
        text.hash(&mut self.0);
    }

    /// Takes a large file's size and time instead of its content.
    fn file_identity(&mut self, path: &Path) -> Result<()> {
        let meta = fs::metadata(path)?;
        (path, meta.len(), meta.modified()?).hash(&mut self.0);
        Ok(())
    }

    fn hex(&self) -> String {
        format!("{:016x}", self.0.finish())
    }
}

/// The cache folder of images.
struct Store {
    dir: PathBuf,
}

impl Store {
    fn open() -> Result<Self> {
        let dir = std::path::absolute(tools::cache_dir()?.join("images"))?;
        fs::create_dir_all(dir.join("tmp")).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// The folder `<kind>-<key>`; `make` fills it when it is not there yet, one build at a time on this machine.
    fn kept(&self, kind: &str, key: &Key, make: impl FnOnce(&Self, &Path) -> Result<()>) -> Result<PathBuf> {
        let dir = self.dir.join(format!("{kind}-{}", key.hex()));
        if dir.is_dir() {
            return Ok(dir);
        }
        let lock = fs::File::create(self.dir.join("lock"))?;
        lock.lock()?;
        if dir.is_dir() {
            return Ok(dir);
        }
        tools::progress(&format!("making the image files of {kind} in {} …", dir.display()));
        let part = self.dir.join("tmp/part");
        if part.exists() {
            fs::remove_dir_all(&part)?;
        }
        fs::create_dir(&part)?;
        // Left by a build that was killed: under the lock there is no other.
        output(self.buildah("rm").arg("--all"))?;
        make(self, &part).with_context(|| format!("cannot make the image files of {kind}"))?;
        fs::rename(&part, &dir)?;
        self.forget_old(kind)?;
        Ok(dir)
    }

    fn forget_old(&self, kind: &str) -> Result<()> {
        let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&format!("{kind}-")) {
                found.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        found.sort();
        for (_, old) in found.iter().rev().skip(KEPT) {
            fs::remove_dir_all(old)?;
        }
        Ok(())
    }

    /// A buildah command on a storage of our own, so that nothing is left in the system's.
    fn buildah(&self, command: &str) -> Command {
        let mut buildah = Command::new("buildah");
        buildah
            // Cargo's caches are cache mounts, which buildah keeps in the folder for temporary files.
            .env("TMPDIR", self.dir.join("tmp"))
            .arg("--root")
            .arg(self.dir.join("storage"))
            .arg("--runroot")
            .arg(self.dir.join("run"))
            .arg(command);
        buildah
    }

    /// Whether the image is here now: a pulled one, found or fetched. One that was made here is not: it may be of an
    /// older recipe.
    fn pull(&self, name: &str) -> bool {
        self.recipe_of(name).is_some_and(|recipe| recipe.is_empty())
            || self.recipe_of(name).is_none()
                && self
                    .buildah("pull")
                    .args(["--quiet", name])
                    .stdin(Stdio::null())
                    .output()
                    .is_ok_and(|o| o.status.success())
    }

    /// The key under which a local image was made; empty for a pulled one, none when there is no such image.
    fn recipe_of(&self, name: &str) -> Option<String> {
        let format = r#"{{index .OCIv1.Config.Labels "cabloy.recipe"}}"#;
        let output = self.buildah("inspect").args(["--type", "image", "--format", format, name]).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Makes an image of one layer that `fill` writes.
    fn make(&self, name: &str, key: &Key, config: &[[&str; 2]], fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let container = output(self.buildah("from").arg("scratch"))?;
        let container = container.trim();
        let made = (|| {
            let root = output(self.buildah("mount").arg(container))?;
            fill(Path::new(root.trim()))?;
            run(self.buildah("umount").arg(container))?;
            run(self.buildah("config").args(config.as_flattened()).args([
                "--label",
                &format!("cabloy.recipe={}", key.hex()),
                container,
            ]))?;
            run(self.buildah("commit").args(["--quiet", container, name]))
        })();
        output(self.buildah("rm").arg(container))?;
        made.with_context(|| format!("cannot make a stand-in for {name}"))
    }

    /// Moves an image into a tar file.
    fn save(&self, name: &str, tar: &Path) -> Result<()> {
        run(self.buildah("push").args(["--quiet", name]).arg(format!("docker-archive:{}:{name}", tar.display())))?;
        run(self.buildah("rmi").arg(name))
    }

    /// The base image of the Dockerfile's build: pulled, or Debian's gcc and this machine's Rust.
    fn rust_base(&self, context: &Path) -> Result<()> {
        let dockerfile = fs::read_to_string(context.join("Dockerfile"))?;
        let base = dockerfile
            .lines()
            .find_map(|line| line.strip_prefix("FROM docker.io/library/rust:")?.strip_suffix(" AS build"));
        let base =
            base.context("the Dockerfile's build stage is no longer FROM docker.io/library/rust:<version>-<suite>")?;
        let (release, suite) = base.split_once('-').context("the Rust image's tag names no Debian suite")?;
        let name = format!("docker.io/library/rust:{base}");
        let version = output(Command::new("rustc").arg("--version"))?;

        let mut key = Key::of("rust 1");
        (suite, &version).hash(&mut key.0);
        if self.recipe_of(&name).is_some_and(|recipe| recipe == key.hex()) || self.pull(&name) {
            return Ok(());
        }
        ensure!(
            version.starts_with(&format!("rustc {release}.")),
            "{name} cannot be pulled, and this machine's Rust is not {release} but {version}"
        );
        let bin = "/usr/local/cargo/bin";
        let env = ["CARGO_HOME=/usr/local/cargo".to_owned(), format!("PATH={bin}:/usr/sbin:/usr/bin:/sbin:/bin")];
        self.make(&name, &key, &[["--env", &env[0]], ["--env", &env[1]]], |root| {
            run(Command::new("debootstrap")
                .args(["--variant=minbase", "--include=ca-certificates,gcc,libc6-dev", suite])
                .arg(root)
                .arg(debian_mirror(suite)?))?;
            for left in ["var/cache/apt/archives", "var/lib/apt/lists"] {
                fs::remove_dir_all(root.join(left))?;
            }
            // Cargo reaches its registry as it does outside: with this machine's certificates and configuration.
            fs::copy("/etc/ssl/certs/ca-certificates.crt", root.join("etc/ssl/certs/ca-certificates.crt"))?;
            fs::create_dir_all(root.join(&bin[1..]))?;
            let home = env::var_os("CARGO_HOME")
                .map_or_else(|| PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cargo"), PathBuf::from);
            if home.join("config.toml").exists() {
                fs::copy(home.join("config.toml"), root.join("usr/local/cargo/config.toml"))?;
            }
            let toolchain = root.join("usr/local/rustup/toolchains/local");
            fs::create_dir_all(&toolchain)?;
            let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
            for part in ["bin", "lib"] {
                run(Command::new("cp").arg("-a").arg(Path::new(sysroot.trim()).join(part)).arg(&toolchain))?;
            }
            for tool in ["cargo", "rustc"] {
                std::os::unix::fs::symlink(
                    format!("/usr/local/rustup/toolchains/local/bin/{tool}"),
                    root.join(&bin[1..]).join(tool),
                )?;
            }
            Ok(())
        })
    }
}

/// The mirror that this machine's apt uses for a Debian suite.
fn debian_mirror(suite: &str) -> Result<String> {
    let filters = ["Created-By: Packages".to_owned(), format!("Codename: {suite}")];
    let listed = output(Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]).args(filters))?;
    let first = listed.lines().next().map(str::to_owned);
    first.with_context(|| format!("apt knows no mirror of Debian {suite}: run apt-get update"))
}

/// Copies programs of this machine into a root folder, with a small shell and all that they load.
fn programs(root: &Path, names: &[&str]) -> Result<()> {
    for (link, target) in [("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")] {
        fs::create_dir_all(root.join(target))?;
        std::os::unix::fs::symlink(target, root.join(link))?;
    }
    for name in names.iter().chain(&SHELL) {
        let file = program(name)?;
        fs::copy(&file, root.join("usr/bin").join(name)).with_context(|| format!("cannot copy {}", file.display()))?;
        let loaded = output(Command::new("ldd").arg(&file))?;
        let libraries = loaded.split_whitespace().filter(|word| word.starts_with('/'));
        run(Command::new("cp").args(["-L", "--parents", "-t"]).arg(root).args(libraries))?;
    }
    fs::create_dir_all(root.join("etc"))?;
    fs::write(root.join("etc/nsswitch.conf"), "hosts: files dns\n")?;
    fs::write(root.join("etc/passwd"), PASSWD)?;
    open_folder(&root.join("tmp"))
}

/// A folder that any user may write to.
fn open_folder(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    Ok(fs::set_permissions(dir, fs::Permissions::from_mode(0o1777))?)
}

/// Writes an executable file into the folder that the public images use for their own programs.
fn script(root: &Path, name: &str, text: &str) -> Result<()> {
    let file = root.join("usr/local/bin").join(name);
    fs::create_dir_all(file.with_file_name(""))?;
    fs::write(&file, text)?;
    Ok(fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?)
}

/// Where a program of this machine is.
fn program(name: &str) -> Result<PathBuf> {
    env::split_paths(&env::var_os("PATH").unwrap_or_default())
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("{name} is not installed (tests/setup-debian.sh installs what the tests need)"))
}

/// Runs a command to its end with its output on our stderr.
fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .stdout(io::stderr())
        .status()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// Runs a command and gives its output.
fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        io::stderr().write_all(&output.stderr)?;
        bail!("{command:?}: {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}
