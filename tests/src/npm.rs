//! The npm packages that tests run real programs of, installed once and kept outside of the checkout.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, ensure};

use crate::process::bound;
use crate::skip::Unavailable;
use crate::tools;

/// A folder of `tests` with a `package.json`, its lock file, and the scripts that tests run.
#[must_use]
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Whether this machine has Node.js and npm.
///
/// # Errors
/// It has not.
pub fn found() -> Result<(), Unavailable> {
    for program in ["node", "npm"] {
        let version = bound(program).arg("--version").stdin(Stdio::null()).output();
        if !version.is_ok_and(|version| version.status.success()) {
            return Err(Unavailable::new(format!("{program} is missing: install Node.js")));
        }
    }
    Ok(())
}

/// `node_modules` of a fixture, installed now if this machine has not yet done so: half a minute at most, once.
///
/// # Panics
/// They cannot be installed.
#[must_use]
pub fn modules(name: &str) -> PathBuf {
    install(name).unwrap_or_else(|error| panic!("npm packages of tests/{name}: {error:#}"))
}

/// A folder is named by what is in it, filled aside and then renamed: it is there in full or not at all.
fn install(name: &str) -> anyhow::Result<PathBuf> {
    let lock = fs::read(fixture(name).join("package-lock.json"))?;
    let cache = tools::cache_dir()?;
    let folder = cache.join(format!("{name}-{}", &tools::sha256(&lock)[..16]));
    if !folder.exists() {
        fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
        let turn = File::create(cache.join(format!("{name}.lock")))?;
        turn.lock()?;
        if !folder.exists() {
            tools::progress(&format!("installing the npm packages of tests/{name} …"));
            let aside = tempfile::Builder::new().prefix(".installing-").tempdir_in(&cache)?;
            for file in ["package.json", "package-lock.json"] {
                fs::copy(fixture(name).join(file), aside.path().join(file))?;
            }
            let output = bound("npm")
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
