//! Negative controls: whatever rule is taken away, the simulator notices. A simulator that finds nothing proves nothing
//! unless it would find something.

use cabloy_redlock::rule::{Rule, Rules};
use cabloy_sim::Promise::{self, *};
use cabloy_sim::many::run_all;

/// A rule, within how many seeds its absence is noticed, and by which broken promises. A promise that says no more than the
/// rule itself, such as that amnesiac nodes are silent, is not among them where the harm that follows can be seen.
const CONTROLS: &[(Rule, u64, &[Promise])] = &[
    (Rule::Amnesia, 5000, &[TokenOnce, TokenOrder, OneLeader, ClaimsKnown, ResultsKnown]),
    (Rule::StrictPromise, 10_000, &[TokenOnce, TokenOrder, OneLeader]),
    (Rule::FormerSeen, 30_000, &[OneLeader]),
    (Rule::FencedRead, 50_000, &[TokenOrder]),
    (Rule::FencedPut, 5000, &[ClaimsKnown, ResultsKnown]),
    (Rule::PutOrder, 2000, &[ClaimsKnown, ResultsKnown]),
    (Rule::StickyResults, 2000, &[ResultsKnown, DoneIsDone]),
    (Rule::ClaimRefusal, 2000, &[DoneIsDone]),
    (Rule::SeedAmnesiacOnly, 30_000, &[TokenOnce, TokenOrder, ClaimsKnown, ResultsKnown]),
    (Rule::SeedOneLife, 100_000, &[TokenOnce, TokenOrder, ClaimsKnown, ResultsKnown]),
    (Rule::ReadRound, 1000, &[ClaimsKnown]),
    (Rule::LateGrant, 2000, &[ClaimsKnown, ResultsKnown]),
    (Rule::UnionOfResults, 2000, &[ResultsKnown]),
    (Rule::ClaimMajority, 2000, &[ClaimsKnown]),
    (Rule::FinishTwice, 5000, &[ResultsKnown]),
    (Rule::SeedFence, 100_000, &[TokenOnce, TokenOrder, ClaimsKnown, ResultsKnown]),
    (Rule::BootstrapConfirm, 2000, &[ClaimsKnown, ResultsKnown, TokenOnce, TokenOrder]),
    (Rule::BootstrapAll, 10_000, &[ClaimsKnown, ResultsKnown]),
    (Rule::DeadLives, 20_000, &[ClaimsKnown, ResultsKnown, TokenOnce, TokenOrder]),
    (Rule::FreshToken, 5000, &[OneLeader, TokenOnce]),
    (Rule::OneWrite, 5000, &[ClaimsKnown, ResultsKnown]),
    (Rule::LeaseFromSending, 10_000, &[OneLeader]),
    (Rule::LeaseMajority, 10_000, &[OneLeader]),
    (Rule::Drift, 1000, &[LeaseWithinLocks]),
    (Rule::Rest, 2000, &[OneLeader]),
    (Rule::ClockCheck, 10_000, &[OneLeader]),
    (Rule::Skew, 2000, &[FarClocks]),
    (Rule::WaitForMajority, 500, &[HandOver]),
    (Rule::ReleasePartial, 500, &[HandOver, Liveness]),
];

/// Rules that no schedule needs, for another one does their work.
///
/// A seed need not have what is in flight as long as acknowledgements of dead lives do not count: the new life counts only
/// when it has taken the claim itself. Both are kept, for what is in flight costs nothing.
const REDUNDANT: &[Rule] = &[Rule::SeedInFlight];

#[test]
fn every_rule_is_missed() {
    let mut unnoticed = Vec::new();
    for (rule, seeds, promises) in CONTROLS {
        let (_, found) = run_all(0..*seeds, Rules::without(&[*rule]), |promise| promises.contains(&promise), |_| {});
        match found {
            Some((seed, violation)) => println!("{rule:?}: {} of {seeds} seeds; {violation}", seed + 1),
            None => unnoticed.push(rule),
        }
    }
    assert!(unnoticed.is_empty(), "the simulator does not notice that these are missing: {unnoticed:?}");
}

#[test]
fn every_rule_has_its_control() {
    for rule in Rule::ALL {
        let known = CONTROLS.iter().any(|(of, ..)| of == rule) || REDUNDANT.contains(rule);
        assert!(known, "{rule:?} has no control");
    }
}
