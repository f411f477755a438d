//! The engine on top of the election: every promise holds in every world, and whatever rule is taken away, that is noticed.

use std::time::Instant;

use cabloy_engine::rule::{Rule, Rules};
use cabloy_redlock::rule as election;
use cabloy_sim::Promise::{
    self, AttemptOnce, GateFirst, GateStays, GateWaits, InWindow, NoOverlap, NoneLost, NotAhead,
};
use cabloy_sim::Promise::{
    OneAttempt, OneCaller, OverIsOver, OwnRevision, StartupOnce, TaskOrder, TokenOnce, TrueVerdict,
};
use cabloy_sim::many::run_all;
use cabloy_sim::{Check, EVENTS, Laws, Tally};

const WORLDS: u64 = 2000;

/// What is promised of attempts: each begins once, none beside another, and none after the end.
const ATTEMPTS: &[Promise] = &[AttemptOnce, OneAttempt, OverIsOver, NoOverlap];

/// A rule, within how many worlds its absence is noticed, and by which broken promises.
const CONTROLS: &[(Rule, u64, &[Promise])] = &[
    (Rule::ClaimFirst, 200, ATTEMPTS),
    (Rule::Disown, 200, &[NoneLost]),
    (Rule::DisownUncalled, 100, ATTEMPTS),
    (Rule::Deadline, 100, ATTEMPTS),
    (Rule::LookFirst, 200, &[TrueVerdict]),
    (Rule::ByNonce, 1000, ATTEMPTS),
    (Rule::RecordAlways, 100, &[TrueVerdict]),
    (Rule::EndedSince, 200, ATTEMPTS),
    (Rule::Due, 100, &[NotAhead]),
    (Rule::LowWater, 200, &[NoneLost]),
    (Rule::MemoryFirst, 500, ATTEMPTS),
    (Rule::OverIsOver, 100, ATTEMPTS),
    (Rule::Turn, 100, &[NoOverlap]),
    (Rule::Window, 500, &[InWindow]),
    (Rule::OwnRevision, 500, &[OwnRevision]),
    (Rule::TaskOrder, 100, &[TaskOrder]),
    (Rule::Mirror, 2000, &[StartupOnce]),
    (Rule::Latch, 500, &[GateStays]),
    (Rule::GateWaits, 100, &[GateWaits]),
    (Rule::GateFirst, 100, &[GateFirst]),
];

/// Rules that no world needs, for something else does their work.
///
/// What is read is asked about runs that go on elsewhere, and none of them is claimed here before the answer. A unit test
/// keeps the rule (`engine/src/runs.rs`).
const REDUNDANT: &[Rule] = &[Rule::NewestKnown];

/// Rules that are needed, though only one world in thousands comes to the harm: an agent has to stand still just between
/// its claim and the call. A unit test keeps it (`engine/src/core/tests.rs`).
const RARE: &[Rule] = &[Rule::InTime];

/// Rules of what an agent that was started again asks its app. No app here is asked; unit tests keep them
/// (`engine/src/resume.rs`).
const NOT_PLAYED: &[Rule] = &[Rule::AskWhoRemembers, Rule::AskOnly];

/// Rules of the election, and the harm that comes to runs without them.
const ELECTION: &[(&[election::Rule], u64, &[Promise])] = &[
    (&[election::Rule::ReadRound], 500, ATTEMPTS),
    (&[election::Rule::ClaimMajority], 1000, ATTEMPTS),
    // Claims in the order of their texts.
    (&[election::Rule::BallotOrder], 1000, &[AttemptOnce, OneAttempt, OverIsOver, NoOverlap, NoneLost]),
    // A process that takes its pod's lease over goes on under the token of the one before.
    (&[election::Rule::FreshToken, election::Rule::StrictPromise], 1000, &[OneCaller, TokenOnce]),
];

#[test]
fn every_promise_holds() {
    let start = Instant::now();
    let (sum, found) = run_all(0..WORLDS, None, Laws::with_engine(), Check::All, |_| true, |_| {});
    if let Some((seed, violation)) = found {
        panic!("seed {seed}: {violation}; its trace: cargo run -p cabloy-sim -- --engine --seed {seed}");
    }
    let Tally { calls, results, events, engine_steps, .. } = &sum.tally;
    println!("{} worlds, {engine_steps} steps of engines, {calls} calls in {:?}", sum.seeds, start.elapsed());
    assert!(*calls > 10 * WORLDS && *results > 10 * WORLDS, "not much happened: {sum:?}");
    let rare = EVENTS.iter().zip(events).find(|(_, count)| **count < WORLDS / 10);
    assert!(rare.is_none(), "{rare:?} is rare");
}

#[test]
fn a_seed_repeats_itself() {
    let trace = |seed| cabloy_sim::run(seed, Laws::with_engine(), Check::All, true).trace;
    for seed in 0..5 {
        assert_eq!(trace(seed), trace(seed), "seed {seed}");
    }
}

fn missed(name: &str, laws: Laws, worlds: u64, promises: &[Promise]) -> bool {
    let wanted = |promise| promises.contains(&promise);
    let (_, found) = run_all(0..worlds, None, laws, Check::Harm, wanted, |_| {});
    if let Some((seed, violation)) = &found {
        println!("{name}: after {} of {worlds} worlds: {violation}", seed + 1);
    }
    found.is_some()
}

#[test]
fn every_rule_is_missed() {
    let mut unnoticed = Vec::new();
    for (rule, worlds, promises) in CONTROLS {
        let laws = Laws { engine: Some(Rules::without(&[*rule])), ..Laws::default() };
        if !missed(&format!("{rule:?}"), laws, *worlds, promises) {
            unnoticed.push(format!("{rule:?}"));
        }
    }
    for (rules, worlds, promises) in ELECTION {
        let laws = Laws { election: election::Rules::without(rules), ..Laws::with_engine() };
        if !missed(&format!("{rules:?}"), laws, *worlds, promises) {
            unnoticed.push(format!("{rules:?}"));
        }
    }
    assert!(unnoticed.is_empty(), "the simulator does not notice that these are missing: {unnoticed:?}");
}

#[test]
fn every_rule_has_its_control() {
    for rule in Rule::ALL {
        let elsewhere = [REDUNDANT, RARE, NOT_PLAYED].iter().any(|rules| rules.contains(rule));
        let known = CONTROLS.iter().any(|(of, ..)| of == rule) || elsewhere;
        assert!(known, "{rule:?} has no control");
    }
}
