//! Every state that the protocol can reach within bounds, with the same core that the agent runs.
//!
//! * `world` is a state and what may happen in it;
//! * `scenario` says where the checker begins, and how much may happen;
//! * `control` takes rules away, to see that the checker notices.
//!
//! Nothing rests on clocks: time stands still, so that no lease ends from its holder's own view; locks at nodes are gone as
//! soon as they are taken; and the rules about clocks are taken away. Wake messages, releases and renewals by timer belong
//! to clocks and are left out. Messages arrive in any order, late or never; how often an answer is late, a call times out, a
//! request comes twice, a memory is lost and agents take turns is bounded by the scenario (`world::Bounds`). To keep the
//! number of states small, what remains of a round of reads is lost when its reader goes on.

mod cached;
pub mod control;
pub mod scenario;
pub mod world;

use std::fmt;
use std::time::{Duration, Instant};

use cabloy_redlock::rule::Rules;
use stateright::{Checker, HasDiscoveries, Model, Property};

use self::scenario::{Goal, Scenario};
use self::world::{Law, Step, World};

/// What stateright explores.
struct Exploration {
    scenario: Scenario,
    rules: Rules,
}

impl Model for Exploration {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![self.scenario.begin(self.rules)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        world.steps(steps);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        next.make(step).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let laws = Law::ALL.iter().map(|law| match law {
            Law::TokenOnce => Property::always(law.name(), |_: &Self, world: &World| world.keeps(Law::TokenOnce)),
            Law::KnowsAttempts => {
                Property::always(law.name(), |_: &Self, world: &World| world.keeps(Law::KnowsAttempts))
            }
            Law::KnowsResults => Property::always(law.name(), |_: &Self, world: &World| world.keeps(Law::KnowsResults)),
            Law::KnowsReadings => {
                Property::always(law.name(), |_: &Self, world: &World| world.keeps(Law::KnowsReadings))
            }
            Law::DoneIsDone => Property::always(law.name(), |_: &Self, world: &World| world.keeps(Law::DoneIsDone)),
            Law::AmnesiacsAreMute => {
                Property::always(law.name(), |_: &Self, world: &World| world.keeps(Law::AmnesiacsAreMute))
            }
        });
        let goals = self.scenario.goals.iter().map(|goal| Property::sometimes(goal.name(), goal.reached()));
        laws.chain(goals).collect()
    }
}

/// What came of exploring a scenario.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which.
    pub scenario: &'static str,
    /// Different states.
    pub states: usize,
    /// Steps that were made.
    pub steps: usize,
    /// Steps from the beginning to the farthest state.
    pub depth: usize,
    /// It was explored to its end: there was time for it.
    pub ended: bool,
    /// How long it took.
    pub took: Duration,
    /// The first law that was seen broken, and the steps that led there.
    pub broken: Option<(Law, Vec<String>)>,
    /// What should have been reached and was not, though all was explored.
    pub missed: Vec<Goal>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scenario, states, steps, depth, took, .. } = self;
        write!(f, "{scenario}: {states} states, {steps} steps, depth {depth}, {:.1} s", took.as_secs_f32())?;
        if !self.ended {
            f.write_str(", not explored to its end")?;
        }
        for goal in &self.missed {
            write!(f, "\n  never: {}", goal.name())?;
        }
        if let Some((law, path)) = &self.broken {
            write!(f, "\n  broken: {}", law.name())?;
            for (number, step) in (1..).zip(path) {
                write!(f, "\n  {number:3}. {step}")?;
            }
        }
        Ok(())
    }
}

/// Which states are looked at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// The nearest: what is found is told in the fewest steps, and a whole level of states is held in memory.
    Nearest,
    /// The farthest: of a state no more is held in memory than that it was seen.
    Farthest,
}

/// Explores all of a scenario, or until `law` is broken if one is given; no longer than `limit`.
#[must_use]
pub fn explore(scenario: &Scenario, rules: Rules, law: Option<Law>, first: First, limit: Duration) -> Report {
    let began = Instant::now();
    let exploration = Exploration { scenario: scenario.clone(), rules };
    let until = match law {
        Some(law) => HasDiscoveries::AllOf([law.name()].into()),
        None => HasDiscoveries::AnyFailures,
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let checker = exploration.checker().threads(threads).finish_when(until).timeout(limit);
    match first {
        First::Nearest => report(scenario, law, began, limit, &checker.spawn_bfs().join()),
        First::Farthest => report(scenario, law, began, limit, &checker.spawn_dfs().join()),
    }
}

fn report(
    scenario: &Scenario,
    law: Option<Law>,
    began: Instant,
    limit: Duration,
    checker: &impl Checker<Exploration>,
) -> Report {
    let found = checker.discoveries();
    let broken = Law::ALL.into_iter().filter(|broken| law.is_none_or(|law| law == *broken)).find_map(|law| {
        let path = found.get(law.name())?.clone().into_vec();
        Some((law, path.into_iter().filter_map(|(world, step)| Some(world.tell(step?))).collect()))
    });
    let ended = broken.is_some() || began.elapsed() < limit;
    let missed = |goal: &Goal| ended && !found.contains_key(goal.name());
    Report {
        scenario: scenario.name,
        steps: checker.state_count(),
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        ended,
        took: began.elapsed(),
        broken,
        missed: scenario.goals.iter().copied().filter(missed).collect(),
    }
}
