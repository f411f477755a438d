//! The npm packages that tests run real programs of, installed once and kept outside of the checkout.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::{fs, io};

use anyhow::{Context as _, ensure};

use crate::process::bound;
use crate::skip::Unavailable;
use crate::tools;

/// A folder of `tests` with a `package.json`, its lock file, and the scripts that tests run.
#[must_use]
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Copies a folder with all that is in it, such as an app of a fixture, to where a test runs it.
///
/// # Errors
/// One of the files cannot be read or written.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Makes a folder with a link to each package of another, so that more can be added to it.
///
/// # Errors
/// The folder cannot be read, or is there already.
pub fn link(modules: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(modules)? {
        let entry = entry?;
        symlink(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
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

fn install(name: &str) -> anyhow::Result<PathBuf> {
    let lock = fs::read(fixture(name).join("package-lock.json"))?;
    let folder = tools::made_once(&format!("{name}-{}", &tools::sha256(&lock)[..16]), |folder| {
        tools::progress(&format!("installing the npm packages of tests/{name} …"));
        fs::create_dir(folder)?;
        for file in ["package.json", "package-lock.json"] {
            fs::copy(fixture(name).join(file), folder.join(file))?;
        }
        let output = bound("npm")
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
            .current_dir(folder)
            .stdin(Stdio::null())
            .output()
            .context("npm (Node.js must be installed)")?;
        ensure!(output.status.success(), "npm ci: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    })?;
    Ok(folder.join("node_modules"))
}
