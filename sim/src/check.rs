//! Every state that the protocol can reach within bounds, with the same core that the agent runs.
//!
//! * `world` is a state and what may happen in it;
//! * `scenario` says where the checker begins, and how much may happen;
//! * `control` takes rules away, to see that the checker notices.

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

/// No scenario takes longer; one that does is not explored to its end, and says so.
const LIMIT: Duration = Duration::from_secs(60);

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
            Law::KnowsAttempts => Property::always(law.name(), |_: &Self, world: &World| world.keeps(Law::KnowsAttempts)),
            Law::KnowsResults => Property::always(law.name(), |_: &Self, world: &World| world.keeps(Law::KnowsResults)),
            Law::DoneIsDone => Property::always(law.name(), |_: &Self, world: &World| world.keeps(Law::DoneIsDone)),
            Law::AmnesiacsAreMute => Property::always(law.name(), |_: &Self, world: &World| world.keeps(Law::AmnesiacsAreMute)),
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
    /// How long it took.
    pub took: Duration,
    /// The first law that was seen broken, and the steps that led there.
    pub broken: Option<(Law, Vec<String>)>,
    /// What should have been reached and was not.
    pub missed: Vec<Goal>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scenario, states, steps, depth, took, .. } = self;
        write!(f, "{scenario}: {states} states, {steps} steps, depth {depth}, {:.1} s", took.as_secs_f32())
    }
}

/// Explores all of a scenario, or until `law` is broken if one is given.
#[must_use]
pub fn explore(scenario: &Scenario, rules: Rules, law: Option<Law>) -> Report {
    let began = Instant::now();
    let exploration = Exploration { scenario: scenario.clone(), rules };
    let until = match law {
        Some(law) => HasDiscoveries::AllOf([law.name()].into()),
        None => HasDiscoveries::AnyFailures,
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let checker = exploration.checker().threads(threads).finish_when(until).timeout(LIMIT).spawn_bfs().join();
    let found = checker.discoveries();
    let broken = Law::ALL.into_iter().filter(|broken| law.is_none_or(|law| law == *broken)).find_map(|law| {
        let path = found.get(law.name())?.clone().into_vec();
        Some((law, path.into_iter().filter_map(|(world, step)| Some(world.tell(step?))).collect()))
    });
    Report {
        scenario: scenario.name,
        steps: checker.state_count(),
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        took: began.elapsed(),
        broken,
        missed: scenario.goals.iter().copied().filter(|goal| !found.contains_key(goal.name())).collect(),
    }
}
