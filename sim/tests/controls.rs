//! Negative controls: whatever rule is taken away, the simulator notices. A simulator that finds nothing proves nothing
//! unless it would find something.

use cabloy_redlock::rule::{Rule, Rules};
use cabloy_sim::Promise::{self, ClaimsKnown, DoneIsDone, FarClocks, HandOver, LeaseWithinLocks, Liveness};
use cabloy_sim::Promise::{OneLeader, ReadingsKnown, ResultsKnown, TokenOnce, TokenOrder};
use cabloy_sim::many::run_all;
use cabloy_sim::{Check, DRILLS};

/// Where what follows from a rule's absence is looked for: in all worlds, or in those of a drill.
const ALL: Option<u64> = None;
const AGENTS: Option<u64> = Some(0);
const MEMORY: Option<u64> = Some(1);
const TWICE: Option<u64> = Some(3);
const LOSS: Option<u64> = Some(4);
const STORY: Option<u64> = Some(5);
const LOCKS: Option<u64> = Some(6);
const PAUSES: Option<u64> = Some(7);
const CLOCKS: Option<u64> = Some(8);
const REST: Option<u64> = Some(9);

/// What ballots keep, whatever clocks do.
const BALLOTS: &[Promise] = &[TokenOnce, TokenOrder, ClaimsKnown, ResultsKnown];

/// A rule, within how many worlds of which kind its absence is noticed, and by which broken promises: by the harm that is
/// done, except where something else keeps it from being done.
const CONTROLS: &[(Rule, u64, Option<u64>, &[Promise])] = &[
    // Nodes.
    (Rule::Amnesia, 500, MEMORY, BALLOTS),
    (Rule::StrictPromise, 5000, ALL, &[TokenOnce, OneLeader]),
    (Rule::FormerSeen, 10_000, AGENTS, &[OneLeader]),
    (Rule::FencedRead, 5000, LOCKS, &[TokenOrder]),
    (Rule::FencedPut, 10_000, ALL, BALLOTS),
    (Rule::PutOrder, 1000, ALL, BALLOTS),
    // What a leader writes back loses to what it read, and so nobody leads.
    (Rule::BallotOrder, 1000, ALL, &[HandOver, Liveness]),
    (Rule::StickyResults, 1000, ALL, BALLOTS),
    (Rule::ClaimRefusal, 1000, ALL, &[DoneIsDone]),
    (Rule::SeedAmnesiacOnly, 5000, TWICE, BALLOTS),
    (Rule::SeedOneLife, 20_000, TWICE, BALLOTS),
    // Agents: ballots.
    (Rule::ReadRound, 100, ALL, BALLOTS),
    (Rule::LateGrant, 1000, ALL, BALLOTS),
    // The harm comes from whoever acts upon what was read (`engine.rs`).
    (Rule::WriteBack, 100, STORY, &[ReadingsKnown]),
    (Rule::UnionOfResults, 1000, ALL, BALLOTS),
    (Rule::ClaimMajority, 1000, ALL, BALLOTS),
    (Rule::FinishTwice, 100, STORY, BALLOTS),
    (Rule::SeedFence, 100, STORY, BALLOTS),
    (Rule::SeedInFlight, 100, STORY, BALLOTS),
    (Rule::BootstrapConfirm, 1000, ALL, BALLOTS),
    (Rule::BootstrapAll, 2000, LOSS, BALLOTS),
    (Rule::DeadLives, 10_000, MEMORY, BALLOTS),
    (Rule::FreshToken, 5000, ALL, &[OneLeader, TokenOnce]),
    (Rule::OneWrite, 2000, ALL, BALLOTS),
    // Agents: clocks.
    (Rule::LeaseFromSending, 5000, PAUSES, &[OneLeader]),
    (Rule::LeaseMajority, 5000, CLOCKS, &[OneLeader]),
    // The margin of the leader is wider than the drift.
    (Rule::Drift, 100, ALL, &[LeaseWithinLocks]),
    (Rule::Rest, 2000, REST, &[OneLeader]),
    (Rule::ClockCheck, 5000, CLOCKS, &[OneLeader]),
    // What is far is what may be wrong; no harm is certain.
    (Rule::Skew, 2000, ALL, &[FarClocks]),
    // Agents: liveness.
    (Rule::WaitForMajority, 100, ALL, &[HandOver]),
    (Rule::ReleasePartial, 100, ALL, &[HandOver, Liveness]),
    (Rule::Cut, 1000, ALL, &[HandOver, Liveness]),
];

/// What the time of day is matters to schedules alone: `engine.rs` has the control.
const OF_ENGINES: &[Rule] = &[Rule::MedianTime];

#[test]
fn every_rule_is_missed() {
    let mut unnoticed = Vec::new();
    for (rule, worlds, drill, promises) in CONTROLS {
        let step = if drill.is_some() { DRILLS } else { 1 };
        let check = if promises.contains(&LeaseWithinLocks) { Check::All } else { Check::Harm };
        let wanted = |promise| promises.contains(&promise);
        let (_, found) = run_all(0..worlds * step, *drill, Rules::without(&[*rule]), check, wanted, |_| {});
        match found {
            Some((seed, violation)) => {
                println!("{rule:?}: after {} of {worlds} worlds, by seed {seed}: {violation}", seed / step + 1);
            }
            None => unnoticed.push(rule),
        }
    }
    assert!(unnoticed.is_empty(), "the simulator does not notice that these are missing: {unnoticed:?}");
}

#[test]
fn every_rule_has_its_control() {
    for rule in Rule::ALL {
        let known = CONTROLS.iter().any(|(of, ..)| of == rule) || OF_ENGINES.contains(rule);
        assert!(known, "{rule:?} has no control");
    }
}
