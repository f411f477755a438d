//! A wall clock that a test moves, by libfaketime: what `TIME` answers and when keys expire.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::skip::Unavailable;

/// The library among Debian's, one folder for each architecture.
const LIBRARIES: &str = "/usr/lib";
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";

/// The folder and the name of the library.
///
/// # Errors
/// It is not installed.
pub fn library() -> Result<PathBuf, Unavailable> {
    let folders = fs::read_dir(LIBRARIES).into_iter().flatten().filter_map(Result::ok);
    folders
        .map(|folder| folder.path().join(LIBRARY))
        .find(|path| path.exists())
        .ok_or_else(|| Unavailable::new("libfaketime is missing (tests/setup-debian.sh installs it)"))
}

/// Has the program take the time from a file in `dir`, which must be there before it starts.
pub(super) fn lend(command: &mut Command, library: &Path, dir: &Path) -> io::Result<()> {
    if !file(dir).exists() {
        shift(dir, 0)?;
    }
    // The C library is named as well, so that its memory allocator goes before the one of Debian's Redis: that asks for
    // the time when it starts, while libfaketime, which starts first, asks it for memory.
    let preload = format!("{} libc.so.6", library.display());
    command.env("LD_PRELOAD", preload).env("FAKETIME_TIMESTAMP_FILE", file(dir));
    // Timers go by the clock that no one sets, and a shift counts as soon as the server looks at the clock.
    command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("FAKETIME_NO_CACHE", "1");
    Ok(())
}

/// Moves the clock to that many milliseconds from the true time. By a rename, since it is read all the time.
pub(super) fn shift(dir: &Path, ms: i64) -> io::Result<()> {
    let aside = dir.join("clock.new");
    let sign = if ms < 0 { '-' } else { '+' };
    fs::write(&aside, format!("{sign}{}.{:03}\n", ms.unsigned_abs() / 1000, ms.unsigned_abs() % 1000))?;
    fs::rename(aside, file(dir))
}

fn file(dir: &Path) -> PathBuf {
    dir.join("clock")
}
