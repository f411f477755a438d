//! Ports for servers that are started with the number of one.
//!
//! A port that the system itself gives for port 0 is free only until somebody else is given it: an outgoing connection,
//! or the test that runs beside this one. So these are below those that the system gives, and each is locked by a file
//! for as long as the process lives that has got it.

use std::fs::{self, File, TryLockError};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};
use std::{env, io};

/// The system gives ports from 32768 on; from 30000 on are those of services in Kubernetes.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// The locks of the ports that this process has got, and the one to be tried next.
static GOT: Mutex<(Vec<File>, Option<u16>)> = Mutex::new((Vec::new(), None));

/// A port of loopback that nobody listens on now, and that no other test is given while this process lives.
///
/// # Errors
/// There is none, or the files that they are locked by cannot be made.
pub fn free_port() -> io::Result<u16> {
    let mut got = GOT.lock().unwrap_or_else(PoisonError::into_inner);
    let (locks, next) = &mut *got;
    let folder = env::temp_dir().join("cabloy-ports");
    fs::create_dir_all(&folder)?;
    // Processes begin at places of their own, so that what was just let go of is not taken at once.
    let begin = next.unwrap_or_else(|| PORTS.start + own_place());
    for port in (begin..PORTS.end).chain(PORTS.start..begin) {
        let lock = File::create(folder.join(port.to_string()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => continue,
            Err(TryLockError::Error(error)) => return Err(error),
        }
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            locks.push(lock);
            *next = Some(if port + 1 == PORTS.end { PORTS.start } else { port + 1 });
            return Ok(port);
        }
    }
    Err(io::Error::other(format!("each port from {} to {} is in use", PORTS.start, PORTS.end - 1)))
}

/// Where in the ports this process begins.
fn own_place() -> u16 {
    let places = u32::from(PORTS.end - PORTS.start);
    // Ids of processes follow each other.
    let place = std::process::id().wrapping_mul(37) % places;
    u16::try_from(place).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_port_is_given_once() {
        let ports: BTreeSet<_> = (0..50).map(|_| free_port().unwrap()).collect();
        assert_eq!(ports.len(), 50);
        assert!(ports.iter().all(|port| PORTS.contains(port)));
    }

    #[test]
    fn what_another_process_has_got_is_passed_over() {
        let first = free_port().unwrap();
        // A lock belongs to whoever has the file open, not to the process.
        let other = File::create(env::temp_dir().join("cabloy-ports").join((first + 1).to_string())).unwrap();
        let is_ours = other.try_lock().is_ok();
        let listens = free_port().ok().map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap());
        let next = listens.unwrap().local_addr().unwrap().port();
        assert!(!is_ours || next != first + 1, "{first} {next}");
    }
}
