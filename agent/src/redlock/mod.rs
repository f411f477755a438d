//! Redlock over independent Redis masters, with ballots that keep what was done safe when clocks are not.
//!
//! * [`core`] is the whole protocol: pure, without sockets, clocks or randomness of its own.
//! * [`message`] is what the core says to a node and what the node answers; [`script`] turns it into Lua calls.
//! * [`record`] is what the nodes remember of runs, and how two memories of the same run are merged.
//! * [`model`] is a node without Redis, for simulation: it does what the scripts do.
//! * [`node`] owns the connections to one Redis server.
//!
//! Limits: a server that was started again is believed to hold all that it had acknowledged (`adopt` in
//! `lua/prelude.lua`), so a majority of servers without persistence that restart at once forget promises and records;
//! and clocks are trusted to keep within [`Timing::drift`] of each other for the length of a lease. Records do not rest
//! on clocks.

pub mod core;
pub mod message;
pub mod model;
pub mod node;
pub mod record;
pub mod script;

use std::fmt;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};

/// One Redis server that takes part.
#[derive(Clone, Debug)]
pub struct Master {
    /// What people call it.
    pub name: String,
    /// DNS name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Database number.
    pub db: u32,
    /// User of the access control list; the default user if absent.
    pub username: Option<String>,
    /// Password of that user.
    pub password: Option<SecretString>,
}

impl Master {
    /// Whether both are the same place, whatever their names and credentials.
    #[must_use]
    pub fn same_place(&self, other: &Self) -> bool {
        (&self.host, self.port, self.db) == (&other.host, other.port, other.db)
    }

    /// Whether both are entered in the same way.
    #[must_use]
    pub fn same_access(&self, other: &Self) -> bool {
        let password = |master: &Self| master.password.as_ref().map(|secret| secret.expose_secret().to_owned());
        self.username == other.username && password(self) == password(other)
    }
}

/// All masters of one election, in the order of the file.
pub type Masters = Vec<Master>;

/// Who stands: one agent, for as long as its pod lives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AgentId {
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod: a `StatefulSet` gives the same name again.
    pub uid: String,
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pod, self.uid)
    }
}

/// Whose lock was seen on a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// An agent of this election.
    Agent {
        /// Who.
        agent: AgentId,
        /// The revision it stood for.
        revision: u64,
        /// The token of its lease.
        token: u64,
    },
    /// Another Redlock client; the value of its lock.
    Other(String),
}

impl Owner {
    /// Reads the value of a lock key.
    #[must_use]
    pub fn parse(value: &str) -> Self {
        Self::parse_agent(value).unwrap_or_else(|| Self::Other(value.to_owned()))
    }

    fn parse_agent(value: &str) -> Option<Self> {
        let (agent, token) = value.rsplit_once(':')?;
        let mut parts = agent.split('/');
        let (pod, uid, revision) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        Some(Self::Agent {
            agent: AgentId { pod: pod.to_owned(), uid: uid.to_owned() },
            revision: revision.parse().ok()?,
            token: token.parse().ok()?,
        })
    }

    /// The revision it leads for, if it is an agent.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        match self {
            Self::Agent { revision, .. } => Some(*revision),
            Self::Other(_) => None,
        }
    }
}

/// The value of the lock key: `<pod>/<uid>/<revision>:<token>`.
impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent { agent, revision, token } => write!(f, "{agent}/{revision}:{token}"),
            Self::Other(value) => f.write_str(value),
        }
    }
}

/// How long a lease lasts, and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Life of the lock key without a renewal.
    pub ttl: Duration,
}

impl Timing {
    /// How far our clock and a node's may part during one lease: `ttl/100`, and 2 ms for what Redis rounds.
    #[must_use]
    pub fn drift(&self) -> Duration {
        self.ttl / 100 + Duration::from_millis(2)
    }

    /// How long a lease counts from the moment its request was sent.
    #[must_use]
    pub fn validity(&self) -> Duration {
        self.ttl.saturating_sub(self.drift())
    }

    /// How long before the end of the lease the leader stops to claim: `ttl/20`, at least 20 ms.
    #[must_use]
    pub fn margin(&self) -> Duration {
        (self.ttl / 20).max(Duration::from_millis(20))
    }

    /// How long one node may take to answer: `ttl/20` within 50 ms and 500 ms.
    #[must_use]
    pub fn node_timeout(&self) -> Duration {
        (self.ttl / 20).clamp(Duration::from_millis(50), Duration::from_millis(500))
    }

    /// How long one node may take with records, of which there may be many: `ttl/5`, at least as long as for the lock.
    #[must_use]
    pub fn ledger_timeout(&self) -> Duration {
        self.node_timeout().max(self.ttl / 5)
    }

    /// How often the leader renews, at the latest.
    #[must_use]
    pub fn renewal(&self) -> Duration {
        self.ttl / 3
    }
}

/// Why a node does not answer as it should; never holds a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ErrorKind {
    /// No connection.
    #[error("cannot be reached")]
    Unreachable,
    /// Connected, but no answer in time.
    #[error("does not answer in time")]
    Timeout,
    /// User and password do not match, or one is missing.
    #[error("user or password is wrong")]
    WrongPassword,
    /// The user's access control list lacks something.
    #[error("the user lacks a permission")]
    NoPermission,
    /// It still reads its files after a start.
    #[error("is still loading its data")]
    Loading,
    /// A replica, or a master that may not write now.
    #[error("does not take writes: a replica, or a master without its replicas")]
    ReadOnly,
    /// It has no memory left for a write.
    #[error("has no memory left")]
    OutOfMemory,
    /// Anything else that Redis said, or that is no Redis.
    #[error("answers with something unexpected")]
    Protocol,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_of_a_lock_reads_back() {
        let owner =
            Owner::Agent { agent: AgentId { pod: "shop-0".into(), uid: "1b-2".into() }, revision: 7, token: 42 };
        assert_eq!(owner.to_string(), "shop-0/1b-2/7:42");
        assert_eq!(Owner::parse(&owner.to_string()), owner);
    }

    #[test]
    fn another_clients_lock_stays_what_it_is() {
        for value in ["", "x", "a/b:1", "a/b/c:1", "a/b/1/2:3", "a/b/1:x"] {
            assert_eq!(Owner::parse(value), Owner::Other(value.to_owned()));
        }
    }
}
