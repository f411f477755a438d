//! What is done to agents, servers, links and clocks, drawn from a seed.

use std::fmt::{self, Display};
use std::time::Duration;

use clap::ValueEnum;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::network::Lost;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// An agent stands still, its app does not.
    AgentPause,
    /// Agent and app stand still together, as a machine does that is paused.
    PodPause,
    /// The same, in the midst of a call: the app has read and not yet written.
    CallPause,
    /// An app stands still, its agent does not.
    AppPause,
    /// An agent is killed and started again beside its app.
    AgentKill,
    /// Agent and app are killed and started again.
    PodKill,
    /// An agent is asked to end and started again.
    AgentStop,
    /// A server stands still.
    ServerPause,
    /// All servers but one stand still.
    MajorityPause,
    /// A server takes scripts and writes and carries out none.
    ClientPause,
    /// A server is killed and comes back with all of its memory, under another run id.
    ServerKill,
    /// A server is killed and comes back empty.
    ServerEmpty,
    /// A server is killed and comes back with the memory of some time before.
    ServerOld,
    /// A server is emptied while it runs.
    ServerFlush,
    /// Links between agents and servers lose what is sent, in one direction or both, or are taken down.
    Partition,
    /// The clocks of one or more servers jump by up to five seconds, and later back.
    ClockShift,
    /// They jump by an hour.
    ClockHour,
    /// All servers are emptied at once.
    AllFlush,
    /// All servers are killed and come back empty.
    AllEmpty,
    /// All servers are killed and come back with all of their memory.
    AllKill,
}

/// Faults of one lane come one after another; lanes run side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// What is done to agents and apps: one pod at a time.
    Pods,
    /// What is done to servers.
    Servers,
    /// What is done to links.
    Links,
    /// What is done to the clocks of servers.
    Clocks,
}

impl Lane {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pods, Self::Servers, Self::Links, Self::Clocks];
}

impl Kind {
    /// Where it belongs.
    #[must_use]
    pub fn lane(self) -> Lane {
        match self {
            Self::AgentPause
            | Self::PodPause
            | Self::CallPause
            | Self::AppPause
            | Self::AgentKill
            | Self::PodKill
            | Self::AgentStop => Lane::Pods,
            Self::Partition => Lane::Links,
            Self::ClockShift | Self::ClockHour => Lane::Clocks,
            _ => Lane::Servers,
        }
    }

    /// Whether a server has another run id or another memory afterwards, and may not vote until it was given one.
    #[must_use]
    pub fn loses_memory(self) -> bool {
        matches!(self, Self::ServerKill | Self::ServerEmpty | Self::ServerOld | Self::ServerFlush)
    }

    /// Whether it strikes all servers at once, so that no memory is left but what agents have.
    #[must_use]
    pub fn is_total(self) -> bool {
        matches!(self, Self::AllFlush | Self::AllEmpty | Self::AllKill)
    }

    /// All kinds that leave a majority of memories intact, as long as one comes after the other. Not an hour of
    /// ticks that are called before their time: when the clocks are set right, none is due for an hour.
    #[must_use]
    pub fn usual() -> Vec<Self> {
        let usual = |kind: &Self| !kind.is_total() && *kind != Self::ClockHour;
        Self::value_variants().iter().copied().filter(usual).collect()
    }
}

impl Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.to_possible_value();
        f.write_str(name.as_ref().map_or("", |name| name.get_name()))
    }
}

/// How links fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Between the pod and the servers of the mask.
    Pod(Lost),
    /// Between each pod and other servers, so that each sees some of them.
    Each(Lost),
    /// The pod's only link is taken down.
    Unplug,
}

/// A fault with all that is drawn for it, whether its kind needs that or not: so the next one does not depend on it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fault {
    /// What is done.
    pub kind: Kind,
    /// The pod that leads, if there is one, and not the one drawn.
    pub leader: bool,
    /// Which pod or server, modulo how many there are.
    pub target: usize,
    /// Which servers, by [`Fault::strikes`].
    pub mask: u32,
    /// How the links fail.
    pub cut: Cut,
    /// How far a clock jumps, in milliseconds.
    pub shift: i64,
    /// How long it lasts, in leases.
    pub lasts: f64,
    /// How long nothing is done in its lane before it, in leases.
    pub rest: f64,
}

impl Fault {
    /// Whether a server is among those that were drawn; one is at least.
    #[must_use]
    pub fn strikes(&self, server: usize, servers: usize) -> bool {
        let sets = (1 << servers) - 1;
        (self.mask % sets + 1) >> server & 1 == 1
    }

    /// As a span of time.
    #[must_use]
    pub fn span(leases: f64, ttl: Duration) -> Duration {
        ttl.mul_f64(leases)
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, leader, target, mask, cut, shift, lasts, .. } = self;
        write!(f, "{kind} for {lasts:.2} leases")?;
        match kind.lane() {
            Lane::Pods if *leader => write!(f, " of the leader, else of pod {target}"),
            Lane::Pods => write!(f, " of pod {target}"),
            Lane::Servers if kind.is_total() => Ok(()),
            Lane::Servers => write!(f, " of server {target}"),
            Lane::Links => write!(f, " {cut:?} of pod {target}, servers {mask}"),
            Lane::Clocks => write!(f, " of servers {mask} by {shift} ms"),
        }
    }
}

/// The endless sequence of faults of a lane; the same for the same seed and kinds.
#[derive(Debug)]
pub struct Faults {
    rng: StdRng,
    kinds: Vec<Kind>,
}

impl Faults {
    /// Of those of the kinds that belong to the lane.
    #[must_use]
    pub fn new(seed: u64, lane: Lane, kinds: &[Kind]) -> Self {
        let kinds = kinds.iter().copied().filter(|kind| kind.lane() == lane).collect();
        // Any constant apart will do.
        let seed = seed.wrapping_add((lane as u64) << 56);
        Self { rng: StdRng::seed_from_u64(seed), kinds }
    }
}

impl Iterator for Faults {
    type Item = Fault;

    fn next(&mut self) -> Option<Fault> {
        if self.kinds.is_empty() {
            return None;
        }
        let rng = &mut self.rng;
        let lost = [Lost::Requests, Lost::Replies, Lost::Both, Lost::Both][rng.random_range(0..4)];
        // Less than a lease, about one, and many.
        let far = [100, 300, 700, 2_000, 5_000][rng.random_range(0..5)];
        let kind = self.kinds[rng.random_range(0..self.kinds.len())];
        let far = if kind == Kind::ClockHour { 3_600_000 } else { far };
        Some(Fault {
            kind,
            leader: rng.random_bool(0.7),
            target: rng.random_range(0..60),
            mask: rng.random_range(0..1000),
            cut: [Cut::Pod(lost), Cut::Each(lost), Cut::Unplug][rng.random_range(0..3)],
            shift: if rng.random_bool(0.5) { far } else { -far },
            lasts: rng.random_range(0.1..2.5),
            rest: rng.random_range(0.1..1.5),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_repeats_and_another_does_not() {
        let kinds = Kind::usual();
        let drawn = |seed, lane| Faults::new(seed, lane, &kinds).take(50).collect::<Vec<_>>();
        for lane in Lane::ALL {
            assert_eq!(drawn(1, lane), drawn(1, lane));
            assert_ne!(drawn(1, lane), drawn(2, lane));
            assert!(drawn(1, lane).iter().all(|fault| fault.kind.lane() == lane && !fault.kind.is_total()));
        }
        assert_eq!(Faults::new(1, Lane::Links, &[Kind::PodKill]).next(), None);
    }

    #[test]
    fn at_least_one_server_is_struck_and_all_sets_are_drawn() {
        let sets: BTreeSet<Vec<bool>> = Faults::new(1, Lane::Clocks, &[Kind::ClockShift])
            .take(200)
            .map(|fault| (0..3).map(|server| fault.strikes(server, 3)).collect())
            .collect();
        assert_eq!(sets.len(), 7);
        assert!(!sets.contains(&vec![false; 3]));
    }
}
