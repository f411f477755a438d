//! The whole protocol as a pure state machine: `step(now, event) -> actions`, without sockets, clock or randomness.
//!
//! The driver hands in what happens and carries out what comes back. The simulator and the model checker do the same
//! with nodes of their own, so nothing about the protocol may live anywhere else than here and in the scripts.
//!
//! * this file: events, actions, what is known of each node, and calls to nodes;
//! * `election`: waiting, trying, leading, resigning (PROTOCOL 1, 2);
//! * `ledger`: puts, finishes and forgets in flight (PROTOCOL 3 to 6);
//! * `seed`: nodes that lost their memory (PROTOCOL 7, 8);
//! * `clocks`: whether a node's clock and ours keep pace.

mod clocks;
mod election;
mod ledger;
mod seed;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use self::clocks::{Clock, Reading};
use self::election::Phase;
use self::ledger::Operation;
pub use self::seed::Obstacle;
use crate::clock::Instant;
use crate::ledger::{FinishError, Put, PutError, ReadError};
use crate::message::{Incarnation, Lane, Reply, Request, Wake};
use crate::record::{Record, Records, RunResult};
use crate::rule::{Rule, Rules};
use crate::{AgentId, Candidacy, ErrorKind, Owner, Timing};

/// A node, by its place in the list of masters.
pub type NodeId = usize;

/// A command under way; numbers grow in the order of sending.
pub type CallId = u64;

/// A ledger operation; named by the driver.
pub type OpId = u64;

/// What a core is made with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// Who it stands as.
    pub agent: AgentId,
    /// How many masters there are.
    pub nodes: usize,
    /// Of leases.
    pub timing: Timing,
    /// Tokens are higher than this; the highest that is known from elsewhere.
    pub floor: u64,
    /// All, but for a simulator's negative controls.
    pub rules: Rules,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Whether to stand, from now on. Not to stand while leading is to resign.
    Stand(Candidacy),
    /// Another ttl; a leader resigns for it.
    Timing(Timing),
    /// A token was seen elsewhere: mine must be higher. One that is out of all proportion is not believed.
    Raise(u64),
    /// Mine must be higher, as somebody says who has followed the elections.
    Floor(u64),
    /// Our clock may have stood still, or did not go as it should: no lease counts.
    Paused,
    /// Commands can be sent to a node.
    Up {
        /// Which.
        node: NodeId,
        /// It has every write on disk before it acknowledges it, so that a restart loses nothing.
        durable: bool,
    },
    /// Commands cannot be sent to a node.
    Down(NodeId),
    /// Wake messages of a node are heard from now on; some may have been missed before.
    Listening(NodeId),
    /// A node answered, or did not within the time that [`Action::Send`] gave.
    Reply {
        /// To what.
        call: CallId,
        /// Its answer.
        result: Result<Reply, ErrorKind>,
    },
    /// A message on a node's wake channel.
    Wake {
        /// Where.
        node: NodeId,
        /// What it says.
        wake: Wake,
    },
    /// A timer that was set has run out.
    Timer(Timer),
    /// Write records in the term of `token`; answered by [`Action::Put`].
    Put {
        /// Names the operation.
        op: OpId,
        /// The term.
        token: u64,
        /// What.
        puts: Vec<Put>,
    },
    /// Record a result by its nonce; answered by [`Action::Finish`].
    Finish {
        /// Names the operation.
        op: OpId,
        /// Which run.
        id: String,
        /// How the attempt ended.
        result: RunResult,
    },
    /// Tell what a majority of the nodes hold; answered by [`Action::Look`].
    Look {
        /// Names the operation.
        op: OpId,
        /// Which runs; all if none are named.
        ids: Option<Vec<String>>,
    },
    /// Remove records in the term of `token`; answered by [`Action::Forget`].
    Forget {
        /// Names the operation.
        op: OpId,
        /// The term.
        token: u64,
        /// Which.
        ids: Vec<String>,
    },
}

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send a command; its [`Event::Reply`] must come, at the latest after `timeout`.
    Send {
        /// Names the call.
        call: CallId,
        /// To whom.
        node: NodeId,
        /// What.
        request: Request,
        /// How long the answer may take.
        timeout: Duration,
    },
    /// Set a timer, or set it anew: it runs out at `at` plus a random part of `jitter`.
    SetTimer {
        /// Which.
        timer: Timer,
        /// When, at the earliest.
        at: Instant,
        /// How much later, at the latest.
        jitter: Duration,
    },
    /// Tell the agent.
    Announce(News),
    /// A [`Event::Put`] is decided; results in the order of its puts.
    Put {
        /// Which.
        op: OpId,
        /// How it went.
        results: Vec<Result<(), PutError>>,
    },
    /// A [`Event::Finish`] is decided.
    Finish {
        /// Which.
        op: OpId,
        /// How it went.
        result: Result<(), FinishError>,
    },
    /// A [`Event::Look`] is decided.
    Look {
        /// Which.
        op: OpId,
        /// What was found.
        result: Result<Vec<Record>, ReadError>,
    },
    /// A [`Event::Forget`] is decided.
    Forget {
        /// Which.
        op: OpId,
        /// How it went.
        result: Result<(), PutError>,
    },
}

/// Timers; one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// Look again whether to try for the lock.
    Look,
    /// Renew the lease.
    Renew,
    /// The end of the time in which the leader may claim.
    End,
    /// Repeat what nodes have not acknowledged.
    Repeat,
    /// Look again whether nodes without memory can be seeded.
    Seed,
}

/// What the agent is told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum News {
    /// It does not lead; a term that it led is over.
    Follows {
        /// Whose lock a majority of the nodes hold, as far as is known.
        leader: Option<Owner>,
    },
    /// It leads.
    Leads {
        /// Its token.
        token: u64,
        /// Until when it may claim.
        claim_until: Instant,
        /// What the fenced read found.
        records: Records,
    },
    /// Its term lasts longer, or shorter, than was said before.
    Lasts {
        /// Until when it may claim.
        claim_until: Instant,
    },
    /// Records of its term have changed.
    Recorded(Vec<Arc<Record>>),
    /// Records of its term are gone.
    Forgotten(Arc<[String]>),
    /// The memory of a majority was lost and begins anew with what was left of it: runs around this moment are
    /// at-least-once.
    StateLost {
        /// Tokens are higher than this from now on.
        floor: u64,
    },
}

/// What is known of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Node {
    /// Commands can be sent.
    up: bool,
    /// It loses nothing when it is started again.
    durable: bool,
    /// The memory that answered last.
    incarnation: Option<Incarnation>,
    /// Since when it is known to have no memory, by our clock.
    amnesiac: Option<Instant>,
    clock: Clock,
    /// The newest call that it answered: what an older one says about the node is out of date.
    newest: CallId,
    /// Its promise, as of the newest answer.
    promised: u64,
    /// Another one's lock.
    seen: Option<Lease>,
    /// The lock of an earlier process in my pod.
    former: Option<Owner>,
    /// The last owner that gave its lock back here: an answer that overlaps with the message may still name it.
    freed: Option<Owner>,
    /// The mark of a newer revision, as of the newest answer or message.
    stand: Option<(u64, Instant)>,
    /// Until when my own lock counts here.
    lease: Option<Instant>,
    /// A grant for the present term is under way, so that the leader asks once.
    joining: bool,
}

/// Another one's lock on a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Lease {
    owner: Owner,
    until: Instant,
}

/// A command under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Call {
    node: NodeId,
    sent: Instant,
    purpose: Purpose,
}

/// What a command is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Purpose {
    /// A grant of this token, for a try or for a term.
    Grant(u64),
    /// A read of this round of the present try.
    Read(u64),
    /// A write-back of this round of the present try.
    WriteBack(u64),
    /// A renewal of this token.
    Renew(u64),
    /// A release; [`Core::is_quiet`] waits for it.
    Release,
    /// Its answer matters only for what it says about the node.
    Tell,
    /// A part of a ledger operation: which items of a put, or which round of a finish.
    Operation(OpId, ledger::Part),
    /// This step of giving the node its memory, by the leader.
    Seed(u64),
    /// The read of this step.
    SeedRead(u64),
    /// This step of a bootstrap.
    Bootstrap(u64),
}

/// What the agent was told about its part.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Told {
    /// Nothing yet, or that it leads.
    Nothing,
    /// That it follows this leader.
    Follows(Option<Owner>),
}

/// The protocol, as one agent follows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Core {
    agent: AgentId,
    timing: Timing,
    candidacy: Candidacy,
    nodes: Vec<Node>,
    phase: Phase,
    rules: Rules,
    /// The highest token that was seen anywhere, or proposed.
    promised: u64,
    /// Somebody has led before, as far as is known: there is a memory to lose.
    led_before: bool,
    /// The longest ttl there has been: so long may somebody believe in a lease.
    longest_ttl: Duration,
    /// Tries that failed since the last success.
    failures: u32,
    /// No try before [`Timer::Look`].
    backs_off: bool,
    /// The mark of my revision need not be renewed before this.
    marked_until: Instant,
    /// What the agent was told last.
    told: Told,
    operations: BTreeMap<OpId, Operation>,
    /// Which put writes a record now.
    writing: BTreeMap<String, OpId>,
    calls: BTreeMap<CallId, Call>,
    last_call: CallId,
    /// Releases under way.
    releasing: usize,
    last_round: u64,
    /// Marks used so far.
    marks: u64,
    /// When [`Timer::Seed`] runs out.
    seed_at: Option<Instant>,
    now: Instant,
    actions: Vec<Action>,
}

impl Core {
    /// A core that does not stand yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            agent: config.agent,
            timing: config.timing,
            candidacy: Candidacy::default(),
            nodes: (0..config.nodes).map(|_| Node::default()).collect(),
            phase: Phase::Waiting,
            rules: config.rules,
            promised: config.floor,
            led_before: config.floor > 0,
            longest_ttl: config.timing.ttl,
            failures: 0,
            backs_off: false,
            marked_until: Instant::default(),
            told: Told::Nothing,
            operations: BTreeMap::new(),
            writing: BTreeMap::new(),
            calls: BTreeMap::new(),
            last_call: 0,
            releasing: 0,
            last_round: 0,
            marks: 0,
            seed_at: None,
            now: Instant::default(),
            actions: Vec::new(),
        }
    }

    /// Takes in what happened at `now`, which must not go back, and says what to do.
    #[must_use]
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Action> {
        self.now = now;
        // Whatever happens, nothing is done in a term that the clock has ended.
        self.end_if_due();
        match event {
            Event::Stand(candidacy) => self.stand(candidacy),
            Event::Timing(timing) => self.retime(timing),
            Event::Raise(token) => self.raise(token),
            Event::Floor(token) => self.begin_above(token.min(election::TOKEN_LIMIT - 1)),
            Event::Paused => self.paused(),
            Event::Up { node, durable } => self.up(node, durable),
            Event::Down(node) => self.nodes[node].up = false,
            Event::Listening(node) => self.nodes[node].seen = None,
            Event::Reply { call, result } => self.reply(call, result),
            Event::Wake { node, wake } => self.wake(node, wake),
            Event::Timer(Timer::Renew) => self.renew(),
            Event::Timer(Timer::Repeat) => self.repeat(),
            Event::Timer(Timer::Look) => self.backs_off = false,
            Event::Timer(Timer::Seed) => self.seed_at = None,
            Event::Timer(Timer::End) => {}
            Event::Put { op, token, puts } => self.put(op, token, puts),
            Event::Finish { op, id, result } => self.finish(op, id, result),
            Event::Look { op, ids } => self.look(op, ids),
            Event::Forget { op, token, ids } => self.forget(op, token, ids),
        }
        self.end_if_due();
        self.consider();
        std::mem::take(&mut self.actions)
    }

    /// No release is waiting for its answer.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.releasing == 0
    }

    /// The highest token that was seen anywhere.
    #[must_use]
    pub fn promised(&self) -> u64 {
        self.promised
    }

    /// Since when each node is known to have no memory, by our clock.
    #[must_use]
    pub fn without_memory(&self) -> Vec<Option<Instant>> {
        self.nodes.iter().map(|node| node.amnesiac).collect()
    }

    /// How many nodes are a majority.
    fn majority(&self) -> usize {
        self.nodes.len() / 2 + 1
    }

    /// The moment until which a majority keeps something, when each node keeps it until one of `until`.
    fn majority_until(&self, until: impl Iterator<Item = Instant>) -> Option<Instant> {
        let mut until: Vec<_> = until.filter(|until| *until > self.now).collect();
        until.sort_unstable_by(|a, b| b.cmp(a));
        until.get(self.majority() - 1).copied()
    }

    fn send(&mut self, node: NodeId, request: Request, purpose: Purpose) {
        self.last_call += 1;
        let timeout = match request.lane() {
            Lane::Lock => self.timing.node_timeout(),
            Lane::Ledger => self.timing.ledger_timeout(),
        };
        self.releasing += usize::from(matches!(purpose, Purpose::Release));
        self.calls.insert(self.last_call, Call { node, sent: self.now, purpose });
        self.actions.push(Action::Send { call: self.last_call, node, request, timeout });
    }

    fn set_timer(&mut self, timer: Timer, at: Instant, jitter: Duration) {
        self.actions.push(Action::SetTimer { timer, at, jitter });
    }

    fn reply(&mut self, id: CallId, result: Result<Reply, ErrorKind>) {
        let Some(call) = self.calls.remove(&id) else { return };
        // An answer of a life that is gone counts for nothing, as if none had come (PROTOCOL 9).
        let reply = result.ok().filter(|reply| self.observe(id, &call, reply));
        match call.purpose {
            Purpose::Grant(token) => self.granted(call.node, call.sent, token, reply),
            Purpose::Read(round) => self.read(call.node, round, reply),
            Purpose::WriteBack(round) => self.written_back(call.node, round, reply),
            Purpose::Renew(token) => self.renewed(call.node, call.sent, token, reply),
            Purpose::Release => self.releasing -= 1,
            Purpose::Tell => {}
            Purpose::Operation(op, part) => self.operation_reply(op, part, call.node, reply),
            Purpose::Seed(round) => self.seed_reply(call.node, round, reply),
            Purpose::SeedRead(round) => self.seed_read(call.node, round, reply),
            Purpose::Bootstrap(round) => self.bootstrap_reply(call.node, round, reply),
        }
    }

    /// Takes in what an answer says about its node; `false` if it comes from a life that is gone.
    ///
    /// Run ids have no order, but calls have: of two answers that differ, the one to the later call is the newer life. That
    /// is so on one connection; where the two of a node overtake each other, a life that is gone may pass for the newest
    /// until the next answer. A claim that it acknowledged is not lost all the same: the seed after it has what is in
    /// flight (PROTOCOL 7c), and who reads for a seed has the promise of whoever else acknowledged (7b).
    fn observe(&mut self, id: CallId, call: &Call, reply: &Reply) -> bool {
        self.promised = self.promised.max(reply.promised);
        self.led_before |= reply.led;
        let node = &mut self.nodes[call.node];
        let known = node.incarnation.as_ref() == Some(&reply.incarnation);
        let alive = known && node.amnesiac.is_none() == reply.intact;
        if id < node.newest {
            return alive || !self.rules.hold(Rule::DeadLives);
        }
        node.newest = id;
        node.promised = if reply.intact { reply.promised } else { 0 };
        let steady = node.read_clock(&self.timing, self.rules, Reading::new(call.sent, self.now, reply.time));
        if !alive {
            self.new_life(call.node, reply);
        } else if !steady {
            self.reckon();
        }
        let node = &mut self.nodes[call.node];
        let of_pod = |agent: &AgentId| agent.same_pod(&self.agent);
        node.former = match &reply.owner {
            Some((owner @ Owner::Agent { agent, .. }, _)) if of_pod(agent) && *agent != self.agent => {
                Some(owner.clone())
            }
            _ => None,
        };
        node.seen = match &reply.owner {
            Some((owner, _)) if node.freed.as_ref() == Some(owner) => None,
            Some((Owner::Agent { agent, .. }, _)) if of_pod(agent) => None,
            Some((owner, left)) => {
                let left = left.unwrap_or(self.timing.ttl);
                let left = if matches!(owner, Owner::Agent { .. }) {
                    self.longest_ttl = self.longest_ttl.max(left);
                    left
                } else {
                    // Another client gives it back without a word.
                    left.min(self.timing.ttl)
                };
                Some(Lease { owner: owner.clone(), until: self.now + left })
            }
            None => None,
        };
        node.stand = reply.stand.map(|(revision, left)| (revision, self.now + left));
        true
    }

    fn new_life(&mut self, id: NodeId, reply: &Reply) {
        let node = &mut self.nodes[id];
        let known = node.incarnation.replace(reply.incarnation.clone());
        // The rest goes on under another's mark; but a mark that is gone says that the memory was lost once more.
        let same = known.as_ref().is_some_and(|known| {
            known.run == reply.incarnation.run && (known.mark.is_empty() || !reply.incarnation.mark.is_empty())
        });
        node.amnesiac = (!reply.intact).then(|| node.amnesiac.filter(|_| same).unwrap_or(self.now));
        if known.is_some() && self.rules.hold(Rule::DeadLives) {
            self.forsake(id);
        }
    }

    fn wake(&mut self, id: NodeId, wake: Wake) {
        let blocker = self.blocker().map(|(owner, _)| owner);
        let node = &mut self.nodes[id];
        match wake {
            Wake::Held { owner: Owner::Agent { agent, .. }, .. } if agent.same_pod(&self.agent) => {}
            Wake::Held { owner, ttl } => {
                if let Owner::Agent { token, .. } = owner {
                    self.promised = self.promised.max(token);
                    // Only an intact node renews; which life it is in, the next answer tells.
                    node.amnesiac = None;
                    self.longest_ttl = self.longest_ttl.max(ttl);
                }
                // A renewal that overlaps with the release.
                let freed = node.freed.as_ref() == Some(&owner);
                node.seen = (!freed).then(|| Lease { owner, until: self.now + ttl });
            }
            Wake::Free { owner, listeners } => {
                if node.seen.as_ref().is_some_and(|seen| seen.owner == owner) {
                    node.seen = None;
                }
                node.freed = Some(owner.clone());
                // What I gave back myself, because a try failed, is no reason to try again at once.
                let mine = matches!(&owner, Owner::Agent { agent, .. } if *agent == self.agent);
                if !mine {
                    self.freed(&owner, listeners, blocker.is_some_and(|led| led == owner));
                }
            }
            Wake::Led => self.led_before = true,
            Wake::Stand { revision, ttl } => node.stand = Some((revision, self.now + ttl)),
        }
    }
}
