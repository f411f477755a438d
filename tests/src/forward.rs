//! Reaching an address in the network of a node from the machine outside of it.
//!
//! A socket stays in the network namespace that it was made in: a listener of the outside is handed, as stdin, to a
//! process that has moved inside and connects from there.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use anyhow::Context as _;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;

use crate::process::{Process, bound};

/// An open way in; it closes when dropped, or with the process that opened it.
#[derive(Debug)]
pub struct Forward {
    addr: SocketAddr,
    _process: Process,
}

impl Forward {
    /// Opens a way to `to` in a network namespace, by way of the supervisor's program; `dir` is that of the cluster.
    ///
    /// # Errors
    /// There is no free port, or the process cannot be started.
    pub fn open(supervisor: &Path, netns: &Path, to: SocketAddr, dir: &Path) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let addr = listener.local_addr()?;
        let mut command = bound("nsenter");
        command
            .arg(format!("--net={}", netns.display()))
            .arg("--")
            .arg(supervisor)
            .args(["relay", &to.to_string()])
            .stdin(OwnedFd::from(listener));
        let process = Process::spawn("relay", command, &dir.join("logs/relay.log")).context("relay")?;
        Ok(Self { addr, _process: process })
    }

    /// Where to connect to, on the outside. It takes connections from the start.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// The other end: connects whoever comes to the listener on stdin with an address. Returns only an error.
///
/// # Errors
/// There is no listener on stdin.
pub async fn relay(to: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (mut outside, _) = listener.accept().await.context("a listener on stdin")?;
        tokio::spawn(async move {
            // A connection that cannot be made ends as it would on the inside: closed.
            if let Ok(mut inside) = TcpStream::connect(to).await {
                let _ = copy_bidirectional(&mut outside, &mut inside).await;
            }
        });
    }
}
