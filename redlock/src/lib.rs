//! Redlock over independent Redis masters, with ballots that keep what was done safe when clocks are not.
//!
//! Pure: no sockets, no clock, no randomness. The agent drives it over real Redis; simulators and model checkers drive the
//! same code over nodes of their own.
//!
//! * [`core`] is the whole protocol of one agent.
//! * [`message`] is what the core says to a node and what the node answers.
//! * [`record`] is what the nodes remember of runs, and how two memories of the same run are merged; [`ledger`] is what may
//!   be asked of them.
//! * [`model`] is a node without Redis: it does what the agent's scripts do.
//! * [`rule`] names the rules that a simulator may take away, to see that it notices.
//! * [`clock`] has moments.

pub mod clock;
pub mod core;
pub mod ledger;
pub mod message;
pub mod model;
pub mod record;
pub mod rule;

use std::fmt;
use std::time::Duration;

/// Who stands: one process of an agent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentId {
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod: a `StatefulSet` gives the same name again.
    pub uid: String,
    /// Of the process, random: what an earlier one in the pod has on its way, such as a release, must not pass for this
    /// one's.
    pub process: String,
}

impl AgentId {
    /// Whether both are in one pod, so that one is what became of the other: its lock may be taken over.
    #[must_use]
    pub fn same_pod(&self, other: &Self) -> bool {
        (&self.pod, &self.uid) == (&other.pod, &other.uid)
    }

    /// How the value of each lock of this pod begins, whichever process took it.
    #[must_use]
    pub fn pod_prefix(&self) -> String {
        format!("{}/{}/", self.pod, self.uid)
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.pod, self.uid, self.process)
    }
}

/// Whether an agent would lead, and what for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Candidacy {
    /// It would; `false` while it leads makes it resign.
    pub stands: bool,
    /// Of its pod's template; the newest goes first.
    pub revision: u64,
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
        let (pod, uid, process, revision) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() {
            return None;
        }
        Some(Self::Agent {
            agent: AgentId { pod: pod.to_owned(), uid: uid.to_owned(), process: process.to_owned() },
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

/// The value of the lock key: `<pod>/<uid>/<process>/<revision>:<token>`.
impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent { agent, revision, token } => write!(f, "{agent}/{revision}:{token}"),
            Self::Other(value) => f.write_str(value),
        }
    }
}

/// How long a lease lasts, and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

    /// How far our clock and a node's may part in `span`, by rate and by what is rounded: the same bound as
    /// [`Timing::drift`].
    #[must_use]
    pub fn drift_over(span: Duration) -> Duration {
        span / 100 + Duration::from_millis(2)
    }

    /// How far a node's wall clock may be from the median of all, before its lock counts no more: one ttl.
    #[must_use]
    pub fn skew_limit(&self) -> Duration {
        self.ttl
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
        let agent = AgentId { pod: "shop-0".into(), uid: "1b-2".into(), process: "f3".into() };
        let owner = Owner::Agent { agent, revision: 7, token: 42 };
        assert_eq!(owner.to_string(), "shop-0/1b-2/f3/7:42");
        assert_eq!(Owner::parse(&owner.to_string()), owner);
    }

    #[test]
    fn another_clients_lock_stays_what_it_is() {
        for value in ["", "x", "a/b:1", "a/b/1:1", "a/b/c/d:1", "a/b/c/1/2:3", "a/b/c/1:x"] {
            assert_eq!(Owner::parse(value), Owner::Other(value.to_owned()));
        }
    }
}
