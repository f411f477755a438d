//! The running election: owns the tasks, sockets and timers around [`crate::redlock::core`].

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Instant;
use crate::ledger::{Ledger, Record};
pub use crate::redlock::{AgentId, ErrorKind, Master, Masters, Owner, Timing};

/// Whether the agent would lead, and what for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Candidacy {
    /// It would; `false` while it leads makes it resign.
    pub stands: bool,
    /// Of its pod's template; the newest goes first.
    pub revision: u64,
}

/// What the agent is at the moment.
#[derive(Clone, Debug)]
pub enum Role {
    /// Another one leads, or none does.
    Follower {
        /// Whose lock a majority of the nodes hold, as far as is known.
        leader: Option<Owner>,
    },
    /// It leads, until [`Term::lost`].
    Leader(Term),
}

/// The time for which one token leads; cheap to clone.
#[derive(Clone, Debug)]
pub struct Term {
    token: u64,
    since: Instant,
    lost: CancellationToken,
}

impl Term {
    /// The fencing token: higher than that of every earlier term.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.token
    }

    /// When it began.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Fires when nothing may be claimed any more: a margin before the lease ends, whatever renewals do, or at once when
    /// the agent resigns.
    #[must_use]
    pub fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Whether a claim may be made right now, by the clock and not only by the timer behind [`Term::lost`].
    #[must_use]
    pub fn may_claim(&self) -> bool {
        false
    }

    /// What the fenced read found, and everything written since, by id.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        Vec::new()
    }
}

/// A node, as `/status` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// What people call it.
    pub name: String,
    /// `host:port/db`.
    pub address: String,
    /// It answers.
    pub reachable: bool,
    /// Why it does not.
    pub error: Option<NodeError>,
    /// Of the server process.
    pub run_id: Option<String>,
    /// How far its wall clock is ahead of ours, in milliseconds, give or take the way of the message.
    pub time_offset_ms: Option<i64>,
    /// What is wrong with its configuration, in words.
    pub warning: Option<String>,
}

/// What went wrong with a node last; holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct NodeError {
    /// The category.
    pub kind: ErrorKind,
    /// The error code of Redis or of the operating system.
    pub message: String,
}

/// The election, as `/status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ElectionStatus {
    /// In the order of the file.
    pub nodes: Vec<NodeStatus>,
    /// It leads.
    pub leading: bool,
    /// Whose lock a majority of the nodes hold, this agent included.
    pub leader: Option<Owner>,
    /// How long it may still claim, while it leads.
    pub claims_for: Option<Duration>,
    /// The highest token that any node has promised.
    pub promised: u64,
}

/// Handle to the one election task; cheap to clone.
#[derive(Clone, Debug)]
pub struct Elector {
    role: watch::Receiver<Role>,
}

impl Elector {
    /// Starts the election of `cluster` (`<namespace>/<name>`) as tasks of `tasks`; they resign and end when `shutdown`
    /// fires. It does not stand before [`Elector::stand`].
    #[must_use]
    pub fn spawn(
        tasks: &TaskTracker,
        shutdown: CancellationToken,
        id: AgentId,
        masters: Masters,
        timing: Timing,
        cluster: &str,
    ) -> Self {
        let _ = (tasks, shutdown, id, masters, timing, cluster);
        let (_, role) = watch::channel(Role::Follower { leader: None });
        Self { role }
    }

    /// Follows the role; the present value is there at once.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Role> {
        self.role.clone()
    }

    /// Says whether to stand, from now on.
    pub fn stand(&self, candidacy: Candidacy) {
        let _ = candidacy;
    }

    /// Stops standing and gives the lease back; returns when every node that can be reached has answered, or after
    /// their timeout. [`Elector::stand`] stands again.
    pub async fn resign(&self) {}

    /// Goes over to other masters or timing. A change of the set (not of credentials alone) while leading resigns first.
    pub fn reconfigure(&self, masters: Masters, timing: Timing) {
        let _ = (masters, timing);
    }

    /// As it is now.
    #[must_use]
    pub fn status(&self) -> ElectionStatus {
        ElectionStatus::default()
    }

    /// The records of runs.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        Ledger {}
    }
}
