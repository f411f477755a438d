//! Where the checker begins, and how much may happen from there.

use cabloy_redlock::core::Timer;
use cabloy_redlock::rule::Rules;

use super::world::{Bounds, Law, Loss, Step, World};

/// Where the checker begins, and how much may happen from there.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// In a few words.
    pub name: &'static str,
    /// One for each agent: the token that it has heard of.
    pub floors: &'static [u64],
    /// What has happened before.
    pub start: fn(&mut World),
    /// What may happen.
    pub bounds: Bounds,
    /// What must be reached, or the scenario says little.
    pub goals: &'static [Goal],
}

impl Scenario {
    /// The same with more turns, late answers, calls that time out, requests that arrive twice, and timers.
    #[must_use]
    pub fn larger(&self, by: u8) -> Self {
        let Bounds { turns, late, timeouts, duplicates, timers, .. } = self.bounds;
        let bounds = Bounds {
            turns: turns.saturating_add(by),
            late: late.saturating_add(by),
            timeouts: timeouts.saturating_add(by),
            duplicates: duplicates.saturating_add(by),
            timers: timers.saturating_add(by),
            ..self.bounds
        };
        Self { bounds, ..self.clone() }
    }

    /// The first state.
    #[must_use]
    pub fn begin(&self, rules: Rules) -> World {
        let mut world = World::new(self.floors, rules);
        world.left = Bounds { turns: u8::MAX, tries: [u8::MAX; 3], ..Bounds::default() };
        (self.start)(&mut world);
        world.save();
        world.left = self.bounds;
        world
    }
}

/// What the checker must be seen to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Somebody leads.
    Led,
    /// Two terms.
    TwoTerms,
    /// Two agents lead at once, by their own view.
    TwoLead,
    /// An attempt was started.
    Started,
    /// A second attempt was started.
    StartedAgain,
    /// An attempt was recorded as done.
    Done,
    /// A claim was refused, for an attempt was done.
    Refused,
    /// A node has its memory back that had lost it.
    Seeded,
}

impl Goal {
    /// In a few words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Led => "somebody leads",
            Self::TwoTerms => "two have led",
            Self::TwoLead => "two lead at once by their own view",
            Self::Started => "an attempt is started",
            Self::StartedAgain => "a second attempt is started",
            Self::Done => "an attempt is recorded as done",
            Self::Refused => "a claim is refused",
            Self::Seeded => "a node gets its memory back",
        }
    }

    /// Whether a state has it.
    pub(super) fn reached<M>(self) -> fn(&M, &World) -> bool {
        match self {
            Self::Led => |_, world| !world.seen.terms.is_empty(),
            Self::TwoTerms => |_, world| world.seen.terms.len() > 1,
            Self::TwoLead => |_, world| world.agents.iter().filter(|agent| agent.core.leads().is_some()).count() > 1,
            Self::Started => |_, world| !world.seen.started.is_empty(),
            Self::StartedAgain => |_, world| world.seen.started.len() > 1,
            Self::Done => |_, world| !world.seen.done.is_empty(),
            Self::Refused => |_, world| world.seen.refused,
            Self::Seeded => |_, world| world.nodes.iter().any(|node| node.was_given_back()),
        }
    }
}

impl Law {
    /// In a few words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TokenOnce => "no token leads twice",
            Self::KnowsAttempts => "a leader knows every attempt that started under a lower token",
            Self::KnowsResults => "a leader knows every result recorded before it began to read",
            Self::KnowsReadings => "a leader knows every attempt that one with a lower token has read",
            Self::DoneIsDone => "no attempt starts after another was done",
            Self::AmnesiacsAreMute => "a node without memory has no say",
        }
    }
}

const ALL: &[usize] = &[0, 1, 2];

/// Agent 0 leads.
fn led(world: &mut World) {
    world.remember();
    world.make(Step::Stand(0));
    world.settle(0, ALL);
}

/// Agent 0 leads, and its claim is on its way to all nodes.
fn claiming(world: &mut World) {
    led(world);
    world.make(Step::Claim(0));
}

/// Agent 0 leads, and has started an attempt on A and B.
fn started(world: &mut World) {
    claiming(world);
    world.settle(0, &[0, 1]);
}

/// Agent 0 leads, and C has lost its memory.
fn forgotten(world: &mut World) {
    led(world);
    world.lose(2, Loss::Empty);
}

/// A and B have lost their memory.
fn one_remembers(world: &mut World) {
    world.remember();
    world.lose(0, Loss::Nothing);
    world.lose(1, Loss::Empty);
}

/// As [`started`], and agent 1 leads since, with the attempt known.
fn superseded(world: &mut World) {
    started(world);
    world.make(Step::Stand(1));
    world.settle(1, ALL);
}

/// As [`superseded`], and agent 1's write-back has not reached C.
fn succeeded_on_two(world: &mut World) {
    started(world);
    world.make(Step::Stand(1));
    world.settle(1, &[1, 2]);
}

/// As [`superseded`]; the result of the attempt was taken by A alone, which has lost it, and agent 1 is about to seed A.
fn half_recorded(world: &mut World) {
    superseded(world);
    world.make(Step::Finish(0, 1));
    world.arrive(0, 0);
    world.lose(0, Loss::Empty);
    world.make(Step::Fire(1, Timer::Renew));
    world.settle(1, &[1, 2]);
    world.arrive(1, 0);
}

/// Agent 0's claim was taken by A alone, which has lost it, and agent 0 is about to seed A.
fn half_claimed(world: &mut World) {
    claiming(world);
    world.arrive(0, 0);
    world.lose(0, Loss::Empty);
    world.make(Step::Fire(0, Timer::Renew));
    world.arrive(0, 0);
}

/// Agent 0's claim was taken by A alone, and agent 1 is being elected by A and B.
fn half_read(world: &mut World) {
    claiming(world);
    world.arrive(0, 0);
    world.make(Step::Stand(1));
    world.arrive(1, 0);
    world.arrive(1, 1);
}

/// C had lost its memory, agent 0's seed has arrived there, and will once more.
fn seeding(world: &mut World) {
    forgotten(world);
    world.make(Step::Fire(0, Timer::Renew));
    world.settle(0, &[2]);
    world.settle(0, &[0, 1]);
    world.left.duplicates = 1;
    world.make(Step::Duplicate(0));
    // The answer to the first.
    world.make(Step::Answer(1));
}

/// Both agents have found the servers empty; agent 0 has marked A and B and paused; agent 1 has led since.
fn paused_bootstrap(world: &mut World) {
    for agent in 0..2 {
        world.make(Step::Stand(agent));
        world.settle(agent, ALL);
        world.make(Step::Fire(agent, Timer::Look));
    }
    world.settle(0, &[0, 1]);
    world.settle(1, ALL);
    world.make(Step::Claim(1));
    world.settle(1, &[0, 2]);
}

/// Both agents have found the servers empty, and wait.
fn both_found_nothing(world: &mut World) {
    for agent in 0..2 {
        world.make(Step::Stand(agent));
        world.settle(agent, ALL);
    }
}

/// All scenarios.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "first start, one agent",
        floors: &[0],
        start: |_| {},
        bounds: Bounds { tries: [3, 0, 0], claims: 1, ..NONE },
        goals: &[Goal::Led, Goal::Started],
    },
    Scenario {
        name: "first start, two agents",
        floors: &[0, 0],
        start: both_found_nothing,
        bounds: Bounds { turns: 1, tries: [1, 2, 0], ..NONE },
        goals: &[Goal::Led],
    },
    Scenario {
        name: "paused bootstrap",
        // Above the tokens of who begins anew.
        floors: &[0, 0, 1 << 21],
        start: paused_bootstrap,
        bounds: Bounds { turns: 1, tries: [0, 0, 1], losses: 1, kinds: EVERY_LOSS, ..NONE },
        goals: &[Goal::TwoLead],
    },
    Scenario {
        name: "contest",
        floors: &[0, 0],
        start: World::remember,
        bounds: Bounds { turns: 2, tries: [1, 2, 0], late: 1, ..NONE },
        goals: &[Goal::TwoLead],
    },
    Scenario {
        name: "claim and election",
        floors: &[0, 1],
        start: claiming,
        bounds: Bounds { turns: 1, tries: [0, 1, 0], claims: 1, late: 1, ..NONE },
        goals: &[Goal::TwoLead, Goal::StartedAgain],
    },
    Scenario {
        name: "second attempt",
        floors: &[0, 1],
        start: started,
        bounds: Bounds { turns: 1, tries: [0, 1, 0], claims: 1, duplicates: 1, ..NONE },
        goals: &[Goal::StartedAgain],
    },
    Scenario {
        name: "result and election",
        floors: &[0, 1],
        start: started,
        bounds: Bounds { turns: 1, tries: [0, 1, 0], finishes: 1, timeouts: 1, ..NONE },
        goals: &[Goal::TwoLead, Goal::Done],
    },
    Scenario {
        name: "result and claim",
        floors: &[0, 1],
        start: superseded,
        bounds: Bounds { turns: 1, claims: 1, finishes: 1, late: 1, ..NONE },
        goals: &[Goal::Done, Goal::Refused],
    },
    Scenario {
        name: "result between elections",
        floors: &[0, 1, 2],
        start: succeeded_on_two,
        bounds: Bounds { turns: 2, tries: [0, 0, 1], finishes: 1, ..NONE },
        goals: &[Goal::Done],
    },
    Scenario {
        name: "result and loss",
        floors: &[0, 1, 2],
        start: half_recorded,
        bounds: Bounds { turns: 2, tries: [0, 0, 1], ..NONE },
        goals: &[Goal::TwoLead, Goal::Seeded],
    },
    Scenario {
        name: "loss",
        floors: &[0, 1],
        start: forgotten,
        bounds: Bounds { turns: 2, tries: [0, 1, 0], claims: 1, timers: 1, ..NONE },
        goals: &[Goal::TwoLead, Goal::Seeded],
    },
    Scenario {
        name: "claim and loss",
        floors: &[0, 1],
        start: claiming,
        bounds: Bounds {
            turns: 1,
            tries: [0, 1, 0],
            losses: 1,
            timers: 1,
            kinds: &[Loss::Snapshot, Loss::Flush],
            ..NONE
        },
        goals: &[Goal::TwoLead, Goal::Seeded],
    },
    Scenario {
        name: "half a claim",
        floors: &[0, 1],
        start: half_claimed,
        bounds: Bounds { turns: 1, tries: [0, 1, 0], ..NONE },
        goals: &[Goal::TwoLead, Goal::Seeded, Goal::Started],
    },
    Scenario {
        name: "half a claim, read",
        floors: &[0, 1, 2],
        start: half_read,
        bounds: Bounds { turns: 1, tries: [0, 0, 1], losses: 1, kinds: &[Loss::Empty], ..NONE },
        goals: &[Goal::TwoLead],
    },
    Scenario {
        name: "seed twice",
        floors: &[0, 1],
        start: seeding,
        bounds: Bounds { turns: 1, tries: [0, 1, 0], claims: 1, losses: 1, kinds: &[Loss::Empty], ..NONE },
        goals: &[Goal::TwoLead, Goal::Seeded, Goal::Started],
    },
    Scenario {
        name: "one remembers",
        floors: &[0, 1],
        start: one_remembers,
        bounds: Bounds { tries: [4, 0, 0], claims: 1, ..NONE },
        goals: &[Goal::Led, Goal::Seeded],
    },
];

const EVERY_LOSS: &[Loss] = &[Loss::Empty, Loss::Snapshot, Loss::Nothing, Loss::Flush];

const NONE: Bounds = Bounds {
    turns: 0,
    tries: [0; 3],
    claims: 0,
    finishes: 0,
    resigns: 0,
    late: 0,
    timeouts: 0,
    duplicates: 0,
    timers: 0,
    losses: 0,
    kinds: &[],
};
