//! Where the programs of a cluster run: on the machine itself, or inside the namespaces of a node.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use super::MARKER;
use crate::process::bound;

/// A place to run programs in, that end with the supervisor.
#[derive(Debug, Clone)]
pub struct Place {
    id: String,
    /// The first process of the node, whose namespaces are joined.
    init: Option<u32>,
}

impl Place {
    /// The machine itself.
    pub fn host(id: &str) -> Self {
        Self { id: id.to_owned(), init: None }
    }

    /// The namespaces of a process.
    pub fn inside(id: &str, init: u32) -> Self {
        Self { id: id.to_owned(), init: Some(init) }
    }

    /// The network namespace.
    pub fn netns(&self) -> Option<PathBuf> {
        self.init.map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net")))
    }

    /// A command for a program there.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = match self.init {
            None => bound(program),
            Some(pid) => {
                let mut command = bound("nsenter");
                command.args(["--target", &pid.to_string(), "--net", "--mount", "--pid", "--"]).arg(program.as_ref());
                command
            }
        };
        command.env(MARKER, &self.id);
        command
    }
}
