//! The file by which the app's processes know that their pod is about to end.
//!
//! A file, for it reaches all of them however many there are, nobody outside the pod can make it, and any program can look
//! for it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cabloy_crds::names::DRAINING_FILE;

/// The mark of a pod that drains; none where the app is to be told nothing.
#[derive(Clone, Debug)]
pub struct Mark(Option<PathBuf>);

impl Mark {
    /// The mark in that folder. One that an agent before this one has left there is taken away: this one does not drain.
    #[must_use]
    pub fn in_folder(dir: Option<&Path>) -> Self {
        let mark = Self(dir.map(|dir| dir.join(DRAINING_FILE)));
        mark.clear();
        mark
    }

    /// Has the app's processes begin nothing more.
    pub fn set(&self) {
        self.change(|file| fs::write(file, ""));
    }

    /// Has them go on.
    pub fn clear(&self) {
        self.change(|file| match fs::remove_file(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        });
    }

    /// Without the mark the app hears of its end by SIGTERM alone, so what fails is told and no more.
    fn change(&self, change: impl FnOnce(&Path) -> io::Result<()>) {
        if let Some(file) = &self.0
            && let Err(error) = change(file)
        {
            tracing::error!(file = %file.display(), %error, "the app cannot be told whether its pod drains");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_there_from_the_drain_until_the_next_agent() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(DRAINING_FILE);
        let mark = Mark::in_folder(Some(dir.path()));
        assert!(!file.exists());
        mark.set();
        mark.set();
        assert!(file.exists());
        let _next = Mark::in_folder(Some(dir.path()));
        assert!(!file.exists());
        mark.clear();
        Mark::in_folder(None).set();
        Mark::in_folder(Some(&file.join("no folder"))).set();
    }
}
