//! What the core says to a node, and what the node answers.

use std::sync::Arc;
use std::time::Duration;

use crate::record::{Record, RunResult};
use crate::{AgentId, Owner};

/// One life of a node's memory: every answer names it, and answers of a life that is gone never count (PROTOCOL 9).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation {
    /// Run id of the server process.
    pub run: Arc<str>,
    /// Mark under which the memory was seeded, or, of an amnesiac node, is about to be; empty if there is none.
    pub mark: Arc<str>,
}

/// A command to one node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// Lock and promise (PROTOCOL 1).
    Grant {
        /// To promise; must be higher than every promise before.
        token: u64,
        /// Who asks, for which revision.
        agent: AgentId,
        /// Refused while a newer one stands.
        revision: u64,
        /// Of the lock.
        ttl: Duration,
        /// The lock of an earlier process in the pod, as it was seen here, which may be taken over. Only this very one:
        /// what such a process has on its way must not take the lock of the present one.
        former: Option<Owner>,
    },
    /// All records, fenced by the promise (PROTOCOL 2).
    Read {
        /// Must be what the node promised.
        token: u64,
    },
    /// Records to store (PROTOCOL 3 to 5).
    Put {
        /// Must be what the node promised.
        token: u64,
        /// What to store.
        entries: Arc<[Entry]>,
    },
    /// A longer life for the lock (PROTOCOL 1).
    Renew {
        /// Must be what the node promised.
        token: u64,
        /// Whose lock.
        owner: Owner,
        /// Of the lock, from now.
        ttl: Duration,
    },
    /// Deletes the lock if it is still this owner's.
    Release {
        /// Whose lock.
        owner: Owner,
        /// Whether those who wait are told.
        publish: bool,
    },
    /// Leaves a mark that a candidate of this revision stands.
    Stand {
        /// Of the candidate.
        revision: u64,
        /// Life of the mark.
        ttl: Duration,
    },
    /// Records a result by its nonce (PROTOCOL 6).
    Finish {
        /// Which run.
        id: Arc<str>,
        /// How the attempt ended.
        result: Arc<RunResult>,
    },
    /// Marks an amnesiac node as about to be seeded (PROTOCOL 7a, 8); a later mark takes the place of an earlier one.
    Mark {
        /// Never used before, by anybody.
        mark: Arc<str>,
    },
    /// What an amnesiac node still holds, from before it lost its memory; only while it bears this mark (PROTOCOL 8).
    Recall {
        /// The life that was marked.
        life: Incarnation,
    },
    /// A memory for an amnesiac node; only while it bears this mark (PROTOCOL 7d).
    Seed {
        /// The life that was marked, which begins with this.
        life: Incarnation,
        /// Its promise.
        promised: u64,
        /// Whether somebody has led by the memory that it is a copy of.
        led: bool,
        /// All its records.
        records: Arc<[Arc<Record>]>,
    },
    /// Records as they are here; no fence, so nothing may be concluded for an election.
    Look {
        /// Which; all if none are named.
        ids: Option<Arc<[String]>>,
    },
    /// Removes records (PROTOCOL 3).
    Forget {
        /// Must be what the node promised.
        token: u64,
        /// Records written later stay.
        seq: u64,
        /// Which.
        ids: Arc<[String]>,
    },
}

/// One record of a [`Request::Put`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// What to store.
    pub record: Arc<Record>,
    /// It starts an attempt, and so is refused where another attempt is done (PROTOCOL 5).
    pub claim: bool,
}

/// Which of a node's connections carries a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// The lock: short commands that nothing may delay.
    Lock,
    /// Records, possibly many.
    Ledger,
}

impl Request {
    /// The connection it goes by.
    #[must_use]
    pub fn lane(&self) -> Lane {
        match self {
            Self::Grant { .. } | Self::Renew { .. } | Self::Release { .. } | Self::Stand { .. } | Self::Mark { .. } => {
                Lane::Lock
            }
            Self::Read { .. }
            | Self::Put { .. }
            | Self::Finish { .. }
            | Self::Look { .. }
            | Self::Forget { .. }
            | Self::Recall { .. }
            | Self::Seed { .. } => Lane::Ledger,
        }
    }
}

/// What a node answers to any [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reply {
    /// Of the memory that answered.
    pub incarnation: Incarnation,
    /// The memory was seeded under this run of the server. If not, the node is *amnesiac*: it has no say, and what it
    /// holds is of the past.
    pub intact: bool,
    /// The highest token it has promised, as far as it remembers.
    pub promised: u64,
    /// Somebody has led by its memory, so that it would be missed: a leader has renewed its lock here, or put a record.
    pub led: bool,
    /// Whose lock it holds now, and for how long; without an end for a foreign lock that has none.
    pub owner: Option<(Owner, Option<Duration>)>,
    /// The newest revision that stands, and for how long the mark lives.
    pub stand: Option<(u64, Duration)>,
    /// Its wall clock, in microseconds since 1970.
    pub time: u64,
    /// It did what it was asked.
    pub accepted: bool,
    /// What was asked for.
    pub body: Body,
}

/// The part of a reply that depends on the request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Body {
    /// Nothing.
    Empty,
    /// To a [`Request::Read`], [`Request::Look`] or [`Request::Recall`].
    Records(Vec<Record>),
    /// To a [`Request::Put`], in its order.
    Verdicts(Vec<Verdict>),
}

/// What a node did with one record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Stored, or it was there already.
    Stored,
    /// A later write is there (PROTOCOL 3).
    Overtaken,
    /// The claim is refused; this record has a done result of another attempt (PROTOCOL 5).
    Done(Record),
}

/// A message on the wake channel of a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Wake {
    /// A lock was taken, or renewed. It spares those who wait every question.
    Held {
        /// Whose lock.
        owner: Owner,
        /// Its life from now.
        ttl: Duration,
    },
    /// A lock was given back.
    Free {
        /// Whose it was.
        owner: Owner,
        /// How many hear this, so that they can spread themselves.
        listeners: u32,
    },
    /// Somebody leads by the node's memory from now on, for the first time.
    Led,
    /// A candidate of a revision stands that is newer than the leader's.
    Stand {
        /// Which.
        revision: u64,
        /// Life of its mark from now.
        ttl: Duration,
    },
}

impl Wake {
    /// Reads a message; `None` for one of another version.
    #[must_use]
    pub fn parse(message: &str) -> Option<Self> {
        if message == "led" {
            return Some(Self::Led);
        }
        let (kind, rest) = message.split_once(' ')?;
        let (number, rest) = rest.split_once(' ')?;
        let ttl = Duration::from_millis(number.parse().ok()?);
        match kind {
            "free" => Some(Self::Free { owner: Owner::parse(rest), listeners: number.parse().ok()? }),
            "held" => Some(Self::Held { owner: Owner::parse(rest), ttl }),
            "stand" => Some(Self::Stand { revision: rest.parse().ok()?, ttl }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wake_messages_are_read() {
        let owner = Owner::parse("a/b/c/1:2");
        let ttl = Duration::from_millis(1500);
        assert_eq!(Wake::parse("held 1500 a/b/c/1:2"), Some(Wake::Held { owner: owner.clone(), ttl }));
        assert_eq!(Wake::parse("free 7 a/b/c/1:2"), Some(Wake::Free { owner, listeners: 7 }));
        assert_eq!(Wake::parse("stand 1500 4"), Some(Wake::Stand { revision: 4, ttl }));
        assert_eq!(Wake::parse("led"), Some(Wake::Led));
        for other in ["", "free", "free a", "held x a", "stand 1 x", "else 1 2"] {
            assert_eq!(Wake::parse(other), None, "{other}");
        }
    }
}
