//! What a seed's world is like: swarm testing, so most worlds have some kinds of fault only, and those often.

use std::time::Duration;

use crate::dice::Dice;
use crate::story::Tale;

/// How far clocks can be trusted, and so what is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clocks {
    /// All go at rates within the drift bound: nobody ever leads beside another.
    Kept,
    /// Nodes' clocks jump and machines stand still without knowing: nobody leads beside another for longer than it takes
    /// an answer to show it.
    Jump,
    /// Rates beyond the bound, and locks that are gone at any moment: ballots alone keep what was done.
    Loose,
}

/// What nodes may lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Nothing: no node is restarted.
    Kept,
    /// Restarted nodes have every write that they acknowledged.
    Durable,
    /// At most a minority of the nodes are without memory at a time: everything is promised.
    Minority,
    /// Any number at a time: what was done may be lost, and is said to be.
    Any,
}

/// Kinds of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An agent and a node do not hear each other.
    Cut,
    /// What one of the two says does not arrive.
    CutOneWay,
    /// A node is cut from all agents.
    Isolate,
    /// A node is restarted and remembers.
    RestartKept,
    /// A node is restarted empty.
    RestartEmpty,
    /// A node is restarted with what it had a while ago.
    RestartOld,
    /// Another server with what it had got from the node takes its place at once.
    Promote,
    /// FLUSHALL.
    Flush,
    /// A node answers nothing for a while, and then everything.
    Stall,
    /// A node's clock jumps.
    Jump,
    /// A lock is gone too early.
    Expire,
    /// An agent's process stands still; its clock does not.
    PauseProcess,
    /// An agent's machine stands still with its clock.
    PauseMachine,
    /// An agent is started again in its pod.
    RestartAgent,
    /// An agent is gone for good.
    KillAgent,
    /// An agent stands, or stands no more.
    Stand,
    /// An agent stands for a newer revision.
    Revise,
    /// Another ttl.
    Retime,
    /// An agent hears of a higher token.
    Raise,
    /// An agent's connection to a node begins anew.
    Reconnect,
    /// Another Redlock client wants the lock.
    Foreign,
    /// Most messages are lost for a moment.
    Storm,
}

/// All kinds.
pub const FAULTS: [Fault; 22] = [
    Fault::Cut,
    Fault::CutOneWay,
    Fault::Isolate,
    Fault::RestartKept,
    Fault::RestartEmpty,
    Fault::RestartOld,
    Fault::Promote,
    Fault::Flush,
    Fault::Stall,
    Fault::Jump,
    Fault::Expire,
    Fault::PauseProcess,
    Fault::PauseMachine,
    Fault::RestartAgent,
    Fault::KillAgent,
    Fault::Stand,
    Fault::Revise,
    Fault::Retime,
    Fault::Raise,
    Fault::Reconnect,
    Fault::Foreign,
    Fault::Storm,
];

/// So many seeds in a row have all kinds of drill, and as many worlds without: 0 restarts agents, 1 to 4 take nodes'
/// memories, with 3 much of what is said comes twice, 4 more than a minority's, 5 tells a story, 6 takes locks, 7 lets
/// agents stand still, 8 cuts leaders off and moves clocks, 9 takes all memory while clocks keep pace.
pub const DRILLS: u64 = 20;

/// The drill that tells a story; in worlds with engines, where there are no others, as well.
const STORIES: u64 = 5;

/// A seed's world.
#[expect(clippy::struct_excessive_bools, reason = "each is a choice of its own")]
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) nodes: usize,
    pub(crate) agents: usize,
    pub(crate) ttl: Duration,
    pub(crate) clocks: Clocks,
    pub(crate) memory: Memory,
    /// By the order of [`FAULTS`].
    pub(crate) weights: [u64; FAULTS.len()],
    /// How many steps of cores the trouble lasts.
    pub(crate) steps: u64,
    /// Of a thousand messages.
    pub(crate) loss: u64,
    /// Of a thousand messages.
    pub(crate) twice: u64,
    /// Of a thousand messages.
    pub(crate) slow: u64,
    /// How long a message takes at most, in microseconds.
    pub(crate) delay: u64,
    /// How long a slow one takes at most, in microseconds.
    pub(crate) slow_delay: u64,
    /// One connection's messages keep their order.
    pub(crate) in_order: bool,
    /// The nodes have a memory from the beginning.
    pub(crate) seeded: bool,
    /// One node's wall clock is far from the others'.
    pub(crate) far: Option<usize>,
    /// Mean time between two faults, in thousandths of the ttl.
    pub(crate) trouble: u64,
    /// Mean time between two things asked of the ledger, in thousandths of the ttl.
    pub(crate) work: u64,
    /// Drivers notice when their machine stood still.
    pub(crate) notices: bool,
    /// Names of runs at a time.
    pub(crate) runs: usize,
    /// Nodes without memory do not rest: where nothing rests on clocks that is worth nothing, and seeds come sooner.
    pub(crate) restless: bool,
    /// This `story` is told.
    pub(crate) story: Option<Tale>,
}

impl Plan {
    /// The remainder of the seed by [`DRILLS`] says which drill it is, if any.
    pub(crate) fn draw(seed: u64, dice: &mut Dice) -> Self {
        let nodes = dice.one_of(&[1, 3, 3, 3, 3, 5]);
        let agents = dice.one_of(&[2, 2, 3, 3, 4, 5]);
        let ttl = Duration::from_millis(dice.one_of(&[1000, 3000, 10_000]));
        let clocks = dice.one_of(&[Clocks::Kept, Clocks::Kept, Clocks::Jump, Clocks::Loose]);
        let memory = match nodes {
            1 => dice.one_of(&[Memory::Kept, Memory::Durable, Memory::Any]),
            _ => dice.one_of(&[
                Memory::Kept,
                Memory::Durable,
                Memory::Minority,
                Memory::Minority,
                Memory::Minority,
                Memory::Any,
            ]),
        };
        let mut weights = [0; FAULTS.len()];
        for (fault, weight) in FAULTS.iter().zip(&mut weights) {
            if possible(*fault, clocks, memory) && dice.chance(500) {
                *weight = dice.between(1, 8);
            }
        }
        // With another node's memory gone as well nobody could lead.
        let far = (nodes > 1 && memory == Memory::Kept && dice.chance(200)).then(|| dice.place(nodes));
        let ttl_us = u64::try_from(ttl.as_micros()).unwrap_or(u64::MAX);
        let plan = Self {
            nodes,
            agents,
            ttl,
            clocks,
            memory,
            weights,
            steps: dice.between(200, 600),
            loss: dice.one_of(&[0, 0, 10, 50, 200]),
            twice: dice.one_of(&[0, 0, 20, 100]),
            slow: dice.one_of(&[0, 0, 10, 100, 300]),
            delay: dice.one_of(&[200, 2000, 2000, 20_000]),
            slow_delay: dice.one_of(&[ttl_us / 20, ttl_us / 5, ttl_us, 3 * ttl_us]),
            in_order: dice.chance(500),
            seeded: far.is_some() || dice.chance(600),
            far,
            trouble: dice.one_of(&[30, 100, 300, 1000]),
            work: dice.one_of(&[5, 20, 100, 300]),
            notices: dice.chance(300),
            runs: dice.one_of(&[1, 1, 2, 4]),
            restless: clocks == Clocks::Loose && dice.chance(500),
            story: None,
        };
        plan.drill(seed % DRILLS, dice)
    }

    /// A world with engines: no drill, and what is asked of the ledger is what they ask.
    pub(crate) fn draw_for_engines(seed: u64, dice: &mut Dice) -> Self {
        let mut plan = Self { steps: dice.between(600, 1500), restless: false, ..Self::draw(DRILLS - 1, dice) };
        // Candidates are of their pods' revisions, and pods come and go with theirs.
        for fault in [Fault::Revise, Fault::Foreign, Fault::KillAgent] {
            plan.weights[fault as usize] = 0;
        }
        plan.trouble = dice.one_of(&[100, 300, 1000, 3000]);
        if seed % DRILLS == STORIES {
            plan.tell(&Tale::OF_ENGINES, dice);
            plan.restless = false;
        }
        plan
    }

    /// One of these stories is told, and little else happens.
    fn tell(&mut self, tales: &[Tale], dice: &mut Dice) {
        (self.nodes, self.clocks, self.memory, self.far) = (3, Clocks::Loose, Memory::Minority, None);
        (self.agents, self.restless, self.seeded) = (self.agents.max(3), true, true);
        self.story = Some(dice.one_of(tales));
        self.expect(&[(Fault::Cut, 1)]);
        (self.loss, self.twice, self.slow, self.delay) = (0, 0, 0, self.delay.min(2000));
        (self.trouble, self.work) = (1000, 100);
    }

    /// A world where one kind of trouble meets with what it takes to do harm.
    fn drill(mut self, kind: u64, dice: &mut Dice) -> Self {
        match kind {
            // Agents start again while what they sent before is still on its way.
            0 => {
                (self.clocks, self.memory, self.restless, self.in_order) = (Clocks::Kept, Memory::Kept, false, false);
                self.expect(&[
                    (Fault::RestartAgent, 8),
                    (Fault::Stall, 4),
                    (Fault::CutOneWay, 2),
                    (Fault::PauseProcess, 2),
                ]);
                (self.slow, self.slow_delay, self.trouble) = (300, self.slow_delay.max(200_000), 100);
            }
            // Nodes lose their memory and get it back all the time, and leaders change.
            1..5 => {
                self.nodes = dice.one_of(&[3, 3, 3, 5]);
                self.memory = if kind == 4 { Memory::Any } else { Memory::Minority };
                (self.clocks, self.restless, self.far) = (Clocks::Loose, true, None);
                let restarts =
                    [Fault::RestartEmpty, Fault::RestartOld, Fault::Promote, Fault::Flush, Fault::RestartKept];
                self.expect(&restarts.map(|fault| (fault, 2)));
                let others = [Fault::Cut, Fault::CutOneWay, Fault::Isolate, Fault::Stand, Fault::Expire, Fault::Stall];
                for fault in others {
                    self.weights[fault as usize] = dice.below(6);
                }
                self.trouble = dice.one_of(&[10, 30, 60]);
                self.work = dice.one_of(&[5, 10, 30]);
                if kind == 3 {
                    // What was meant for a life arrives in the next one.
                    (self.loss, self.twice, self.slow, self.in_order, self.trouble) = (0, 300, 20, false, 30);
                    self.slow_delay = u64::try_from((self.ttl / 20).as_micros()).unwrap_or(u64::MAX);
                }
            }
            // A story, with little else.
            STORIES => self.tell(&Tale::OF_ELECTION, dice),
            // Locks are gone while candidates are at it, and there is nothing to write back.
            6 => {
                (self.nodes, self.clocks, self.memory, self.far) = (3, Clocks::Loose, Memory::Kept, None);
                self.expect(&[(Fault::Expire, 8), (Fault::Stand, 2)]);
                (self.seeded, self.restless, self.trouble, self.work) = (true, false, dice.between(1, 10), 10_000);
                (self.slow, self.slow_delay) = (200, self.delay + 20_000);
            }
            // Answers wait for agents that stand still, and are the last for a while.
            7 => {
                (self.nodes, self.clocks, self.memory, self.far) = (1, Clocks::Kept, Memory::Kept, None);
                self.expect(&[(Fault::PauseProcess, 8), (Fault::Cut, 8)]);
                (self.restless, self.trouble) = (false, 300);
                (self.slow, self.slow_delay) = (800, self.delay + 30_000);
            }
            // Leaders hear some nodes and not others, and clocks jump.
            8 => {
                (self.nodes, self.clocks, self.memory, self.far) = (3, Clocks::Jump, Memory::Kept, None);
                self.expect(&[(Fault::Cut, 8), (Fault::Jump, 2), (Fault::PauseMachine, 1)]);
                (self.seeded, self.restless, self.notices, self.work) = (true, false, false, 20);
                (self.loss, self.slow, self.trouble) = (0, 0, 100);
            }
            // All memory is lost while somebody leads who does not hear of it.
            9 => {
                (self.nodes, self.clocks, self.memory) = (dice.one_of(&[1, 3]), Clocks::Kept, Memory::Any);
                self.expect(&[(Fault::RestartEmpty, 4), (Fault::Promote, 4), (Fault::Cut, 8)]);
                (self.restless, self.far, self.trouble) = (false, None, dice.one_of(&[100, 300]));
            }
            _ => {}
        }
        self
    }

    /// These faults, by weight, and no others.
    fn expect(&mut self, faults: &[(Fault, u64)]) {
        self.weights = [0; FAULTS.len()];
        for (fault, weight) in faults {
            self.weights[*fault as usize] = *weight;
        }
    }

    pub(crate) fn majority(&self) -> usize {
        self.nodes / 2 + 1
    }
}

/// Whether a fault is within what such a world is to bear.
fn possible(fault: Fault, clocks: Clocks, memory: Memory) -> bool {
    match fault {
        // Who did not hear of an earlier loss goes on above it by the time, which must not have gone back since.
        Fault::Jump => clocks != Clocks::Kept && memory != Memory::Any,
        Fault::PauseMachine => clocks != Clocks::Kept,
        Fault::Expire => clocks == Clocks::Loose,
        Fault::RestartKept => memory != Memory::Kept,
        Fault::RestartEmpty | Fault::RestartOld | Fault::Promote | Fault::Flush => {
            matches!(memory, Memory::Minority | Memory::Any)
        }
        // Others do not let a restarted node rest, so that nothing is promised to them beside restarts.
        Fault::Foreign => memory == Memory::Kept,
        _ => true,
    }
}
