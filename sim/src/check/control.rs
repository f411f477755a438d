//! Rules that are taken away, and the law that is seen broken without them.

use cabloy_redlock::rule::{Rule, Rules};

use super::world::Law;

/// Rules about clocks: nothing may rest on them, so none of them holds while states are explored.
const CLOCKS: [Rule; 3] = [Rule::Rest, Rule::ClockCheck, Rule::Skew];

/// Rules that are taken away.
#[derive(Clone, Copy, Debug)]
pub struct Control {
    /// Which; more than one where, within the bounds of the scenario, each alone makes up for the others.
    pub rules: &'static [Rule],
    /// What is then seen broken.
    pub law: Law,
    /// In which scenario.
    pub scenario: &'static str,
}

impl Control {
    /// All rules but these and those about clocks.
    #[must_use]
    pub fn rules(&self) -> Rules {
        without(self.rules)
    }
}

/// All rules but those about clocks and these.
#[must_use]
pub fn without(rules: &[Rule]) -> Rules {
    Rules::without(&[&CLOCKS, rules].concat())
}

/// All controls.
pub const CONTROLS: &[Control] = &[
    control(&[Rule::Amnesia], Law::AmnesiacsAreMute, "loss"),
    control(&[Rule::Amnesia], Law::KnowsAttempts, "claim and loss"),
    control(&[Rule::StrictPromise], Law::TokenOnce, "contest"),
    control(&[Rule::FencedPut], Law::KnowsAttempts, "claim and election"),
    control(&[Rule::ClaimMajority], Law::KnowsAttempts, "claim and election"),
    control(&[Rule::ReadRound], Law::KnowsAttempts, "claim and election"),
    control(&[Rule::LateGrant], Law::KnowsAttempts, "claim and election"),
    control(&[Rule::WriteBack], Law::KnowsReadings, "half a claim, read"),
    control(&[Rule::FencedRead], Law::KnowsAttempts, "claim and loss"),
    control(&[Rule::SeedFence], Law::KnowsAttempts, "claim and loss"),
    control(&[Rule::PutOrder], Law::KnowsAttempts, "second attempt"),
    control(&[Rule::ClaimRefusal], Law::DoneIsDone, "result and claim"),
    control(&[Rule::StickyResults], Law::KnowsResults, "result between elections"),
    control(&[Rule::UnionOfResults], Law::KnowsResults, "result between elections"),
    control(&[Rule::FinishTwice], Law::KnowsResults, "result and loss"),
    control(&[Rule::SeedInFlight, Rule::DeadLives], Law::KnowsAttempts, "half a claim"),
    control(&[Rule::SeedOneLife], Law::KnowsAttempts, "seed twice"),
    control(&[Rule::SeedAmnesiacOnly, Rule::SeedOneLife], Law::KnowsAttempts, "seed twice"),
    control(&[Rule::BootstrapConfirm], Law::KnowsAttempts, "paused bootstrap"),
];

const fn control(rules: &'static [Rule], law: Law, scenario: &'static str) -> Control {
    Control { rules, law, scenario }
}
