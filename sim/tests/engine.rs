//! The engine on top of the election: every promise holds in every world, and whatever rule is taken away, that is noticed.

use std::time::Instant;

use cabloy_engine::rule::{Rule, Rules};
use cabloy_redlock::rule as election;
use cabloy_sim::Promise::{
    self, AttemptOnce, EditKeeps, Edited, GateFirst, GateStays, GateWaits, InWindow, NoOverlap, NoneLost, NotAhead,
};
use cabloy_sim::Promise::{
    OneAttempt, OneCaller, OverIsOver, OwnRevision, OwnTasks, StartupOnce, TaskOrder, TokenOnce, TrueVerdict,
};
use cabloy_sim::many::run_all;
use cabloy_sim::{Check, DRILLS, EVENTS, Laws, Tally};

const WORLDS: u64 = 2000;

/// Where what follows from a rule's absence is looked for: in all worlds, or in those that tell a story.
const ALL: Option<u64> = None;
const STORY: Option<u64> = Some(5);

/// What is promised of attempts: each begins once, none beside another, and none after the end.
const ATTEMPTS: &[Promise] = &[AttemptOnce, OneAttempt, OverIsOver, NoOverlap];

/// A rule, or some, within how many worlds of which kind its absence is noticed, and by which broken promises.
type Control<R> = (R, u64, Option<u64>, &'static [Promise]);

/// Rules of the engine.
const CONTROLS: &[Control<Rule>] = &[
    (Rule::ClaimFirst, 200, ALL, ATTEMPTS),
    (Rule::InTime, 20, STORY, &[OneAttempt]),
    (Rule::Disown, 200, ALL, &[NoneLost]),
    (Rule::DisownUncalled, 100, ALL, ATTEMPTS),
    (Rule::Deadline, 100, ALL, ATTEMPTS),
    (Rule::LookFirst, 200, ALL, &[TrueVerdict]),
    (Rule::ByNonce, 1000, ALL, ATTEMPTS),
    (Rule::RecordAlways, 100, ALL, &[TrueVerdict]),
    (Rule::Confirm, 20, STORY, &[OverIsOver]),
    (Rule::NewestKnown, 20, STORY, ATTEMPTS),
    (Rule::EndedSince, 200, ALL, ATTEMPTS),
    (Rule::AskAgain, 200, ALL, &[TrueVerdict]),
    (Rule::AskWhoRemembers, 200, ALL, ATTEMPTS),
    (Rule::AskOnly, 2000, ALL, ATTEMPTS),
    (Rule::Due, 100, ALL, &[NotAhead]),
    (Rule::LowWater, 200, ALL, &[NoneLost]),
    (Rule::MemoryFirst, 500, ALL, ATTEMPTS),
    (Rule::OverIsOver, 100, ALL, ATTEMPTS),
    (Rule::Turn, 100, ALL, &[NoOverlap]),
    (Rule::Window, 500, ALL, &[InWindow]),
    (Rule::OwnRevision, 500, ALL, &[OwnRevision]),
    (Rule::TaskOrder, 100, ALL, &[TaskOrder]),
    (Rule::Mirror, 2000, ALL, &[StartupOnce]),
    (Rule::Latch, 500, ALL, &[GateStays]),
    (Rule::GateWaits, 100, ALL, &[GateWaits]),
    (Rule::GateFirst, 100, ALL, &[GateFirst]),
    // The same of tasks that are each pod's own.
    (Rule::TaskOrder, 200, ALL, &[OwnTasks]),
    (Rule::GateWaits, 200, ALL, &[OwnTasks]),
    (Rule::EditAtOnce, 200, ALL, &[Edited]),
    (Rule::EditInPlace, 500, ALL, &[EditKeeps]),
    (Rule::InForce, 200, ALL, &[Edited]),
];

/// Rules of the election, and the harm that comes to runs without them.
const ELECTION: &[Control<&[election::Rule]>] = &[
    (&[election::Rule::ReadRound], 500, ALL, ATTEMPTS),
    (&[election::Rule::ClaimMajority], 1000, ALL, ATTEMPTS),
    // Claims in the order of their texts.
    (&[election::Rule::BallotOrder], 5000, ALL, &[AttemptOnce, OneAttempt, OverIsOver, NoOverlap, NoneLost]),
    // A process that takes its pod's lease over goes on under the token of the one before.
    (&[election::Rule::FreshToken, election::Rule::StrictPromise], 5000, ALL, &[OneCaller, TokenOnce]),
    // Read, and not written back: what one leader says is done the next one does not know.
    (&[election::Rule::WriteBack], 20, STORY, &[OverIsOver]),
    (&[election::Rule::MedianTime], 200, ALL, &[NotAhead]),
];

#[test]
fn every_promise_holds() {
    let start = Instant::now();
    let (sum, found) = run_all(0..WORLDS, None, Laws::with_engine(), Check::All, |_| true, |_| {});
    if let Some((seed, violation)) = found {
        panic!("seed {seed}: {violation}; its trace: cargo run -p cabloy-sim -- --engine --seed {seed}");
    }
    let Tally { calls, results, questions, events, engine_steps, .. } = &sum.tally;
    println!(
        "{} worlds, {engine_steps} steps of engines, {calls} calls, {questions} asked about in {:?}",
        sum.seeds,
        start.elapsed()
    );
    assert!(*calls > 10 * WORLDS && *results > 10 * WORLDS, "not much happened: {sum:?}");
    assert!(*questions > WORLDS, "not much was asked about: {sum:?}");
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

fn missed(name: &str, laws: Laws, worlds: u64, drill: Option<u64>, promises: &[Promise]) -> bool {
    let step = if drill.is_some() { DRILLS } else { 1 };
    let wanted = |promise| promises.contains(&promise);
    let (_, found) = run_all(0..worlds * step, drill, laws, Check::Harm, wanted, |_| {});
    if let Some((seed, violation)) = &found {
        println!("{name}: after {} of {worlds} worlds, by seed {seed}: {violation}", seed / step + 1);
    }
    found.is_some()
}

#[test]
fn every_rule_is_missed() {
    let mut unnoticed = Vec::new();
    for (rule, worlds, drill, promises) in CONTROLS {
        let laws = Laws { engine: Some(Rules::without(&[*rule])), ..Laws::default() };
        if !missed(&format!("{rule:?}"), laws, *worlds, *drill, promises) {
            unnoticed.push(format!("{rule:?}"));
        }
    }
    for (rules, worlds, drill, promises) in ELECTION {
        let laws = Laws { election: election::Rules::without(rules), ..Laws::with_engine() };
        if !missed(&format!("{rules:?}"), laws, *worlds, *drill, promises) {
            unnoticed.push(format!("{rules:?}"));
        }
    }
    assert!(unnoticed.is_empty(), "the simulator does not notice that these are missing: {unnoticed:?}");
}

#[test]
fn every_rule_has_its_control() {
    for rule in Rule::ALL {
        let known = CONTROLS.iter().any(|(of, ..)| of == rule);
        assert!(known, "{rule:?} has no control");
    }
}
