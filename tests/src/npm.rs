//! npm packages that tests need, installed once and kept outside of the checkout.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, ensure};

use crate::process::bound;
use crate::tools::{cache_dir, sha256};

/// The `node_modules` of a folder with a `package.json` and its lock file, installed now if this machine has not yet
/// done so: half a minute, once.
///
/// # Errors
/// They cannot be installed.
pub fn modules(package: &Path) -> anyhow::Result<PathBuf> {
    let lock = fs::read(package.join("package-lock.json"))?;
    let name = package.file_name().context("a folder with a name")?.to_string_lossy();
    let cache = cache_dir()?;
    // A folder is named by what is in it, filled aside and then renamed: it is there in full or not at all.
    let folder = cache.join(format!("{name}-{}", &sha256(&lock)[..16]));
    if !folder.exists() {
        fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
        let turn = File::create(cache.join(format!("{name}.lock")))?;
        turn.lock()?;
        if !folder.exists() {
            let aside = tempfile::Builder::new().prefix(".installing-").tempdir_in(&cache)?;
            for file in ["package.json", "package-lock.json"] {
                fs::copy(package.join(file), aside.path().join(file))?;
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
