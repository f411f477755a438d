//! The packages of `tests/preload`, installed once and kept outside of the checkout.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};

/// The folder of `package.json`, its lock file, and the scripts that tests run.
pub fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("preload")
}

/// `node_modules` of the fixture, installed now if this machine has not yet done so: half a minute, once.
pub fn modules() -> &'static Path {
    static MODULES: OnceLock<PathBuf> = OnceLock::new();
    MODULES.get_or_init(|| install().unwrap_or_else(|error| panic!("npm packages of the tests: {error:#}")))
}

/// A folder is named by what is in it, filled aside and then renamed: it is there in full or not at all.
fn install() -> anyhow::Result<PathBuf> {
    let lock = fs::read(fixture().join("package-lock.json"))?;
    let hash = Sha256::digest(&lock);
    let hash = hash.iter().take(8).fold(0_u64, |number, &byte| number << 8 | u64::from(byte));
    let cache = cache()?;
    let folder = cache.join(format!("preload-{hash:016x}"));
    if !folder.exists() {
        fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
        let turn = File::create(cache.join("preload.lock"))?;
        turn.lock()?;
        if !folder.exists() {
            let aside = tempfile::Builder::new().prefix(".installing-").tempdir_in(&cache)?;
            for file in ["package.json", "package-lock.json"] {
                fs::copy(fixture().join(file), aside.path().join(file))?;
            }
            let output = Command::new("npm")
                .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
                .current_dir(aside.path())
                .stdin(Stdio::null())
                .output()
                .context("npm (Node.js must be installed)")?;
            ensure!(output.status.success(), "npm ci: {}", String::from_utf8_lossy(&output.stderr));
            fs::rename(aside.keep(), &folder)?;
        }
    }
    Ok(folder.join("node_modules"))
}

fn cache() -> anyhow::Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("CABLOY_CACHE")
        .or_else(|| set("XDG_CACHE_HOME"))
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .context("none of CABLOY_CACHE, XDG_CACHE_HOME and HOME is set")?;
    Ok(base.join("cabloy"))
}
