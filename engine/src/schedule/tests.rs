//! A schedule on leaders that come and go.

use cabloy_crds::files::{Backfill, BeanTarget, CatchUp, Instances, Retry, Target, Trigger};
use cabloy_crds::vocabulary::InstanceSet;
use cabloy_crds::vocabulary::{CatchUpPolicy, OnUnknown, Overlap};
use cabloy_redlock::record::RunResult;
use serde_json::json;

use super::catch_up::COUNTED;
use super::*;

use crate::runs::{Attempt, Claimed, Outcome, OutcomeKind, plus};

const NOTHING: [i64; 0] = [];

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap()
}

pub(super) fn every(ms: u64) -> Schedule {
    serde_json::from_value(json!({
        "name": "a", "everyMs": ms, "timeZone": "UTC", "overlap": Overlap::Skip, "jitterMs": 0, "timeoutMs": 1000,
        "onUnknown": OnUnknown::Skip, "suspend": false, "target": {"http": {"path": "/a", "method": "POST"}},
        "retry": Retry { limit: 0, initial_delay_ms: 1, factor: 1.0, max_delay_ms: 1 },
    }))
    .unwrap()
}

fn line(schedule: Schedule, now: i64) -> Line {
    Line::new(schedule, None, BTreeMap::new(), at(now)).unwrap().0
}

/// Calls that are without an answer at their deadline end, and the ledger knows of no other result.
pub fn time_out(line: &mut Line, now: Timestamp) {
    for run in line.runs_mut() {
        if let Some(Attempt { nonce, .. }) = run.running().filter(|attempt| attempt.deadline <= now).cloned() {
            run.unanswered(&nonce);
        }
        run.looked(now);
    }
}

/// What the engine does: claims, and calls when the claim has come through. Gives the names of the runs that were claimed.
fn claims(line: &mut Line, now: i64) -> Vec<String> {
    let mut claimed = Vec::new();
    time_out(line, at(now));
    for action in line.step(at(now)) {
        if let Action::Claim { occasion, attempt } = action {
            let deadline = plus(at(now), line.timeout());
            let run = line.run_mut(&run_id("a", &occasion)).unwrap();
            run.claiming(Attempt { number: attempt, nonce: format!("{}#{attempt}", occasion.name()), deadline });
            run.begun_here();
            claimed.push(occasion.name());
        }
    }
    claimed
}

/// The ticks among them, in milliseconds.
fn drive(line: &mut Line, now: i64) -> Vec<i64> {
    let ticks = claims(line, now).into_iter().filter_map(|name| name.parse::<Timestamp>().ok());
    ticks.map(Timestamp::as_millisecond).collect()
}

/// The first of the runs that are open.
fn open(line: &Line) -> Option<&Run> {
    line.runs().next().map(|(_, run)| run)
}

fn outcome(now: i64, kind: OutcomeKind) -> Outcome {
    Outcome { kind, reason: "R".into(), message: "m".into(), retry_after_ms: None, at: at(now) }
}

/// The run ends that is for `occasion`.
fn end_of(line: &mut Line, occasion: &Occasion, now: i64, kind: OutcomeKind) {
    let run = line.run_mut(&run_id("a", occasion)).unwrap();
    let nonce = run.attempt().unwrap().nonce.clone();
    run.ended(&nonce, outcome(now, kind));
}

/// The first of the runs that are open ends.
fn end(line: &mut Line, now: i64, kind: OutcomeKind) {
    let occasion = line.runs().next().unwrap().0.clone();
    end_of(line, &occasion, now, kind);
}

fn tick(ms: i64) -> Occasion {
    Occasion::Tick(at(ms))
}

/// Another leader takes over, with what was saved and the records that there are.
fn take_over(schedule: Schedule, line: &mut Line, records: &[Record], now: i64) -> Line {
    line.not_saved();
    let memory = serde_json::from_value(json!(line.take_unsaved().unwrap())).unwrap();
    let records = records.iter().map(|record| (parse_id(&record.id).unwrap().1.unwrap(), record.clone())).collect();
    Line::new(schedule, Some(memory), records, at(now)).unwrap().0
}

#[test]
fn the_first_tick_is_the_first_after_the_schedule_was_first_seen() {
    let mut line = line(every(1_000), 1_500);
    assert_eq!(drive(&mut line, 1_500), NOTHING);
    assert!(line.take_unsaved().is_some(), "when it was created is remembered");
    assert_eq!(line.wake(), Some(at(2_000)));
    assert_eq!(drive(&mut line, 1_999), NOTHING);
    assert_eq!(drive(&mut line, 2_000), [2_000]);
    assert!(line.take_unsaved().is_none(), "the claim says enough");
    end(&mut line, 2_100, OutcomeKind::Done);
    assert_eq!(drive(&mut line, 2_100), NOTHING);
    assert_eq!(line.status().done, 1);
    assert!(line.take_unsaved().is_some());
}

#[test]
fn a_tick_is_skipped_while_the_one_before_runs() {
    let mut line = line(every(1_000), 500);
    assert_eq!(drive(&mut line, 1_000), [1_000]);
    line.take_unsaved();
    assert_eq!(drive(&mut line, 2_000), [2_000], "its deadline has passed: the run is over, and the next one is due");
    end(&mut line, 2_500, OutcomeKind::Failed);
    assert_eq!(drive(&mut line, 2_500), NOTHING);
    let status = line.status();
    assert_eq!((status.done, status.failed, status.skipped), (0, 2, 0));

    let mut line = super::tests::line(Schedule { timeout_ms: 5_000, ..every(1_000) }, 500);
    assert_eq!(drive(&mut line, 1_000), [1_000]);
    line.take_unsaved();
    assert_eq!(line.step(at(3_000)), [Action::Skipped(2)]);
    assert!(line.take_unsaved().is_some(), "a later leader must not run them");
    end(&mut line, 3_100, OutcomeKind::Done);
    assert_eq!(drive(&mut line, 3_100), NOTHING);
    assert_eq!(drive(&mut line, 4_000), [4_000]);
    assert_eq!(line.status().skipped, 2);
}

#[test]
fn ticks_of_a_time_without_a_leader_follow_one_another() {
    let mut first = line(every(1_000), 500);
    let memory = first.take_unsaved().unwrap().clone();
    let (mut line, _) = Line::new(every(1_000), Some(memory), BTreeMap::new(), at(3_500)).unwrap();
    assert_eq!(drive(&mut line, 3_500), [1_000]);
    for tick in [2_000, 3_000] {
        end(&mut line, 3_600, OutcomeKind::Done);
        assert_eq!(drive(&mut line, 3_600), [tick]);
    }
    assert_eq!(drive(&mut line, 4_000), NOTHING);
    end(&mut line, 4_050, OutcomeKind::Done);
    assert_eq!(drive(&mut line, 4_050), [4_000], "what is caught up with takes no tick away");
    assert_eq!(drive(&mut line, 5_000), NOTHING);
    end(&mut line, 5_010, OutcomeKind::Done);
    assert_eq!(drive(&mut line, 5_010), NOTHING, "but of a run that began in time one is skipped as ever");
    let status = line.status();
    assert_eq!((status.done, status.skipped, status.missed), (4, 1, 0));
}

#[test]
fn a_run_that_was_taken_up_late_has_its_time_and_no_more() {
    let slow = || Schedule { timeout_ms: 60_000, ..every(1_000) };
    let memory = line(slow(), 500).take_unsaved().unwrap().clone();
    let (mut line, _) = Line::new(slow(), Some(memory), BTreeMap::new(), at(1_700)).unwrap();
    assert_eq!(drive(&mut line, 1_700), [1_000]);
    assert_eq!(drive(&mut line, 2_000), NOTHING);
    assert_eq!(line.status().skipped, 0, "it waits");
    assert_eq!(drive(&mut line, 3_000), NOTHING);
    assert_eq!(line.status().skipped, 1, "the run has had a whole second by then");
    end(&mut line, 3_100, OutcomeKind::Done);
    assert_eq!(drive(&mut line, 3_100), [2_000]);
}

#[test]
fn an_app_that_is_not_there_takes_no_tick_away() {
    let mut line = line(every(1_000), 500);
    assert_eq!(drive(&mut line, 1_000), [1_000]);
    end(&mut line, 1_000, OutcomeKind::NotBegun);
    assert_eq!(drive(&mut line, 1_600), [1_000], "once more");
    end(&mut line, 2_100, OutcomeKind::NotBegun);
    assert_eq!(drive(&mut line, 2_100), [1_000]);
    end(&mut line, 2_200, OutcomeKind::Done);
    assert_eq!(drive(&mut line, 2_200), [2_000]);
    end(&mut line, 2_300, OutcomeKind::Done);
    let status = line.status();
    assert_eq!((status.done, status.failed, status.skipped), (1, 0, 0));
}

#[test]
fn ticks_too_old_are_missed() {
    let memory = line(every(1_000), 500).take_unsaved().unwrap().clone();
    let (mut line, _) = Line::new(every(1_000), Some(memory), BTreeMap::new(), at(100_500)).unwrap();
    assert_eq!(drive(&mut line, 100_500), [41_000]);
    assert_eq!(line.status().missed, 40);
    let year = 365 * 24 * 3_600_000;
    let memory = line.take_unsaved().unwrap().clone();
    let (mut line, _) = Line::new(every(1_000), Some(memory), BTreeMap::new(), at(year)).unwrap();
    drive(&mut line, year);
    assert!(line.status().missed >= COUNTED);
    assert_eq!(line.wake(), Some(at(year + 1_000)));
}

fn record(tick: i64, deadline: i64, results: Vec<RunResult>) -> Record {
    let data = json!(Claimed { at: at(tick), deadline: at(deadline), pod: "p".into(), uid: "u".into() });
    Record { id: run_id("a", &self::tick(tick)), attempt: 1, token: 1, seq: 1, nonce: "n".into(), data, results }
}

#[test]
fn a_new_leader_awaits_the_run_of_another() {
    let memory = line(every(1_000), 500).take_unsaved().unwrap().clone();
    let records = [(tick(1_000), record(1_000, 2_600, vec![]))].into();
    let (mut line, _) = Line::new(every(1_000), Some(memory), records, at(2_500)).unwrap();
    assert_eq!(drive(&mut line, 2_500), NOTHING, "it may still run");
    assert!(open(&line).unwrap().is_elsewhere());
    assert_eq!(line.wake(), Some(at(2_600)));
    assert_eq!(drive(&mut line, 2_600), [2_000], "past its deadline it is over, and the overdue tick goes");
    assert_eq!(line.status().results[0].verdict, Verdict::Unknown);
}

#[test]
fn what_is_settled_stays_so_whatever_a_node_brings_back() {
    let mut first = line(every(1_000), 500);
    drive(&mut first, 1_000);
    end(&mut first, 1_100, OutcomeKind::Done);
    drive(&mut first, 1_100);
    let memory = first.take_unsaved().unwrap().clone();
    let records = [(tick(1_000), record(1_000, 9_000, vec![]))].into();
    let (mut line, actions) = Line::new(every(1_000), Some(memory), records, at(1_200)).unwrap();
    assert_eq!(actions, [Action::Forget("s/a/1970-01-01T00:00:01Z".into())]);
    assert_eq!(drive(&mut line, 1_200), NOTHING);
    assert!(open(&line).is_none());
}

#[test]
fn an_edit_neither_doubles_nor_drops_the_tick_in_flight() {
    let mut line = line(every(1_000), 500);
    assert_eq!(drive(&mut line, 1_000), [1_000]);
    line.update(every(400), at(1_300)).unwrap();
    assert_eq!(drive(&mut line, 1_300), NOTHING, "1200 was no tick when it was due");
    end(&mut line, 1_350, OutcomeKind::Done);
    assert_eq!(drive(&mut line, 1_350), NOTHING);
    assert_eq!(line.status().done, 1);
    assert_eq!(drive(&mut line, 1_600), [1_600]);
}

#[test]
fn a_suspended_schedule_is_not_caught_up() {
    let mut line = line(every(1_000), 500);
    line.update(Schedule { suspend: true, ..every(1_000) }, at(600)).unwrap();
    assert_eq!(drive(&mut line, 5_000), NOTHING);
    assert_eq!(line.wake(), None);
    let memory = line.take_unsaved().unwrap().clone();
    let (mut line, _) = Line::new(every(1_000), Some(memory), BTreeMap::new(), at(5_500)).unwrap();
    assert_eq!(drive(&mut line, 5_500), NOTHING, "nor by a leader that never saw it suspended");
    assert_eq!(drive(&mut line, 6_000), [6_000]);
}

#[test]
fn a_410_disables_until_an_edit() {
    let mut line = line(every(1_000), 500);
    drive(&mut line, 1_000);
    end(&mut line, 1_100, OutcomeKind::Disabled);
    assert_eq!(drive(&mut line, 1_100), NOTHING);
    assert!(line.is_disabled() && line.wake().is_none());
    line.update(every(1_000), at(5_500)).unwrap();
    assert!(line.is_disabled(), "the same text is no edit");
    line.update(Schedule { timeout_ms: 2_000, ..every(1_000) }, at(5_500)).unwrap();
    assert_eq!(drive(&mut line, 6_000), [6_000]);
}

fn with(overlap: Overlap) -> Schedule {
    Schedule { overlap, timeout_ms: 20_000, ..every(1_000) }
}

#[test]
fn one_tick_waits_for_the_run_that_is_open_or_all_do() {
    for (overlap, waiting, skipped, then) in
        [(Overlap::BufferOne, 1, 2, vec![2_000]), (Overlap::BufferAll, 3, 0, vec![2_000, 3_000, 4_000])]
    {
        let mut line = line(with(overlap), 500);
        assert_eq!(drive(&mut line, 1_000), [1_000]);
        line.take_unsaved();
        for now in [2_000, 3_000, 4_000] {
            assert_eq!(drive(&mut line, now), NOTHING);
            assert!(line.take_unsaved().is_some(), "the next leader must know");
        }
        let status = line.status();
        assert_eq!((status.waiting, status.skipped), (waiting, skipped), "{overlap:?}");
        let mut line = take_over(with(overlap), &mut line, &[record(1_000, 21_000, vec![])], 4_200);
        assert_eq!(drive(&mut line, 4_500), NOTHING, "another leader has them wait too");
        for tick in then {
            end(&mut line, 4_600, OutcomeKind::Done);
            assert_eq!(drive(&mut line, 4_600), [tick], "{overlap:?}");
        }
    }
}

#[test]
fn what_waits_is_run_however_long_it_took_and_has_bounds() {
    let buffer = || Schedule { timeout_ms: 10_000_000, ..with(Overlap::BufferAll) };
    let mut line = line(buffer(), 500);
    for now in 1..=1_100 {
        drive(&mut line, now * 1_000);
    }
    let status = line.status();
    assert_eq!((status.waiting, status.skipped, status.missed), (1_000, 99, 0));
    end(&mut line, 1_100_000, OutcomeKind::Done);
    assert_eq!(drive(&mut line, 1_100_000), [2_000]);
}

#[test]
fn a_newer_tick_takes_the_place_of_the_run_that_is_open() {
    let mut line = line(with(Overlap::CancelOther), 500);
    assert_eq!(drive(&mut line, 1_000), [1_000]);
    let id = run_id("a", &tick(1_000));
    assert_eq!(line.step(at(2_000)), [Action::Stop(id.clone())]);
    assert!(line.is_given_up(&id));
    assert_eq!(line.step(at(3_000)), [Action::Skipped(1)], "asked once; the newest alone waits");
    assert_eq!(drive(&mut line, 3_500), NOTHING, "not before it is recorded");
    end(&mut line, 3_600, OutcomeKind::Cancelled);
    assert_eq!(drive(&mut line, 3_600), [3_000]);
    let result = &line.status().results[0];
    assert_eq!((result.verdict, result.attempts), (Verdict::Failed, 1));
    assert_eq!(line.status().skipped, 1);

    // The record of it cannot be written: its deadline counts.
    assert_eq!(line.step(at(4_000)), [Action::Stop(run_id("a", &tick(3_000)))]);
    assert_eq!(line.wake(), Some(at(5_000)));
    assert_eq!(drive(&mut line, 23_599), NOTHING);
    assert_eq!(drive(&mut line, 23_600), [23_000]);
    assert_eq!(line.status().results[0].reason, "Cancelled");
}

#[test]
fn a_run_that_is_given_up_is_not_tried_again() {
    let retried = || Schedule {
        on_unknown: OnUnknown::Retry,
        retry: Retry { limit: 5, initial_delay_ms: 5_000, factor: 1.0, max_delay_ms: 5_000 },
        ..with(Overlap::CancelOther)
    };
    let mut first = line(retried(), 500);
    assert_eq!(drive(&mut first, 1_000), [1_000]);
    end(&mut first, 1_500, OutcomeKind::Failed);
    assert_eq!(drive(&mut first, 1_500), NOTHING, "it waits for its retry");
    assert_eq!(drive(&mut first, 2_000), [2_000], "nothing runs, so there is nothing to wait for");
    assert_eq!(first.status().results[0].reason, "Cancelled");

    // A leader that finds both gives the older one up again.
    let records = [record(1_000, 21_000, vec![]), record(2_000, 22_000, vec![])];
    let mut line = take_over(retried(), &mut line(retried(), 500), &records, 2_500);
    assert_eq!(line.step(at(2_500)), [Action::Stop(run_id("a", &tick(1_000)))]);
    end(&mut line, 2_600, OutcomeKind::Done);
    assert_eq!(line.step(at(2_600)).len(), 2, "done after all");
    assert_eq!(line.status().done, 1);
    assert!(open(&line).unwrap().is_elsewhere(), "the newer one goes on");
}

#[test]
fn a_claim_on_its_way_is_decided_before_its_run_is_stopped() {
    let mut line = line(with(Overlap::CancelOther), 500);
    line.step(at(1_000));
    let id = run_id("a", &tick(1_000));
    let attempt = Attempt { number: 1, nonce: "n".into(), deadline: at(21_000) };
    line.run_mut(&id).unwrap().claiming(attempt);
    assert_eq!(line.step(at(2_000)), []);
    assert!(line.is_given_up(&id), "the engine does not call");
    line.run_mut(&id).unwrap().in_doubt();
    assert_eq!(line.step(at(2_100)), [Action::Stop(id)]);
}

#[test]
fn all_run_at_once_up_to_a_bound() {
    let all = || Schedule { timeout_ms: 10_000_000, ..with(Overlap::AllowAll) };
    let mut line = line(all(), 500);
    for now in 1..=102 {
        assert_eq!(drive(&mut line, now * 1_000).len(), usize::from(now <= 100));
    }
    let status = line.status();
    assert_eq!((status.runs.len(), status.skipped, status.running), (100, 2, Some(at(1_000))));
    end_of(&mut line, &tick(50_000), 102_500, OutcomeKind::Done);
    assert_eq!(drive(&mut line, 103_000), [103_000]);
    assert_eq!(line.status().done, 1);
}

#[test]
fn of_runs_side_by_side_none_is_run_again_that_a_node_brings_back() {
    let all = || with(Overlap::AllowAll);
    let mut first = line(all(), 500);
    for now in [1_000, 2_000, 3_000, 4_000] {
        drive(&mut first, now);
    }
    for ms in [2_000, 4_000] {
        end_of(&mut first, &tick(ms), 4_100, OutcomeKind::Done);
    }
    drive(&mut first, 4_100);
    let records = [1_000, 2_000, 3_000, 4_000].map(|ms| record(ms, 5_000, vec![]));
    let mut line = take_over(all(), &mut first, &records, 4_200);
    let ticks: Vec<_> = line.status().runs.iter().map(|run| run.tick).collect();
    assert_eq!(ticks, [at(1_000), at(3_000)]);
    assert_eq!(drive(&mut line, 5_000), [5_000], "past their deadline they are over");
    assert_eq!((line.status().done, line.status().failed), (2, 2));
}

#[test]
fn a_claim_that_nobody_took_is_made_again_though_the_memory_was_saved() {
    let mut first = line(with(Overlap::AllowAll), 500);
    drive(&mut first, 1_000);
    let mut line = take_over(with(Overlap::AllowAll), &mut first, &[], 1_300);
    assert_eq!(drive(&mut line, 1_300), [1_000]);
    assert_eq!(drive(&mut line, 2_000), [2_000]);
}

#[test]
fn two_runs_that_another_leader_left_open_go_one_after_the_other() {
    let retried = || Schedule {
        on_unknown: OnUnknown::Retry,
        retry: Retry { limit: 5, initial_delay_ms: 1, factor: 1.0, max_delay_ms: 1 },
        ..with(Overlap::Skip)
    };
    let records = [record(1_000, 21_000, vec![]), record(2_000, 2_500, vec![])];
    let mut line = take_over(retried(), &mut line(retried(), 500), &records, 2_600);
    assert_eq!(drive(&mut line, 2_600), NOTHING, "the second waits for the first");
    assert_eq!(line.wake(), Some(at(3_000)), "and not for a time");
    end(&mut line, 2_700, OutcomeKind::Done);
    assert_eq!(drive(&mut line, 2_700), [2_000]);
}

#[test]
fn what_a_leader_of_the_first_version_left_goes_on() {
    let memory = serde_json::from_value(json!({
        "created": at(500), "lowWater": at(4_000), "settled": at(1_000), "waiting": [at(3_000)], "rule": "every 1000 ms",
        "suspended": false, "results": [], "done": 1, "failed": 0, "skipped": 1, "missed": 0,
    }))
    .unwrap();
    let records = [1_000, 2_000].map(|ms| (tick(ms), record(ms, 5_000, vec![])));
    let (mut line, actions) = Line::new(with(Overlap::Skip), Some(memory), records.into(), at(4_500)).unwrap();
    assert_eq!(actions, [Action::Forget(run_id("a", &tick(1_000)))]);
    assert_eq!(drive(&mut line, 4_500), NOTHING);
    assert!(open(&line).unwrap().is_elsewhere());
    assert_eq!(drive(&mut line, 5_000), [3_000], "past its deadline it is over, and the one that waited goes");
    let status = line.status();
    assert_eq!((status.done, status.failed, status.skipped), (1, 1, 1));
}

fn catching_up(window_ms: u64, policy: CatchUpPolicy) -> Schedule {
    Schedule { catch_up: CatchUp { window_ms, policy }, timeout_ms: 20_000, ..every(5_000) }
}

#[test]
fn of_what_fell_due_while_nobody_led_as_much_is_run_as_is_asked_for() {
    let cases = [
        (catching_up(1, CatchUpPolicy::None), vec![95_000, 100_000], 18),
        (catching_up(60_000, CatchUpPolicy::Latest), vec![90_000, 95_000, 100_000], 17),
        (catching_up(20_000, CatchUpPolicy::All), vec![85_000, 90_000, 95_000, 100_000], 16),
        (catching_up(1, CatchUpPolicy::Latest), vec![95_000, 100_000], 18),
        (catching_up(1, CatchUpPolicy::All), vec![95_000, 100_000], 18),
    ];
    for (schedule, expected, missed) in cases {
        for overlap in [Overlap::Skip, Overlap::BufferOne, Overlap::BufferAll] {
            let schedule = Schedule { overlap, ..schedule.clone() };
            let mut line = take_over(schedule.clone(), &mut line(schedule.clone(), 500), &[], 101_000);
            let mut ran = drive(&mut line, 101_000);
            while open(&line).is_some() {
                end(&mut line, 101_000, OutcomeKind::Done);
                ran.extend(drive(&mut line, 101_000));
            }
            assert_eq!((ran, line.status().missed), (expected.clone(), missed), "{schedule:?}");
        }
    }
}

#[test]
fn after_a_year_the_newest_are_found_at_once() {
    let year = 365 * 24 * 3_600_000;
    for (policy, first, waiting) in [(CatchUpPolicy::Latest, 11_000, 11), (CatchUpPolicy::All, 1_010_000, 1_010)] {
        let asked = || Schedule { catch_up: CatchUp { window_ms: 8_760 * 3_600_000, policy }, ..every(1_000) };
        let mut line = take_over(asked(), &mut line(asked(), 500), &[], year);
        let ran = drive(&mut line, year);
        assert_eq!(ran, [year - first], "{policy:?}");
        let status = line.status();
        assert_eq!((status.waiting, status.skipped), (waiting, 0), "with the last 11, which are in time");
        assert!(status.missed >= COUNTED);
    }
}

fn pausing() -> Schedule {
    Schedule { pause_on_failure: true, ..every(1_000) }
}

#[test]
fn a_failure_pauses_until_an_edit_or_a_trigger() {
    let mut line = line(pausing(), 500);
    assert_eq!(drive(&mut line, 1_000), [1_000]);
    end(&mut line, 1_100, OutcomeKind::Failed);
    assert_eq!(drive(&mut line, 1_100), NOTHING);
    assert!(line.is_paused() && line.status().paused && line.wake().is_none());
    let mut line = take_over(pausing(), &mut line, &[], 5_500);
    assert_eq!(drive(&mut line, 5_500), NOTHING, "for another leader too");
    assert!(line.is_paused());
    line.update(Schedule { timeout_ms: 900, ..pausing() }, at(5_600)).unwrap();
    assert!(!line.is_paused());
    assert_eq!(drive(&mut line, 6_000), [6_000], "and what fell due meanwhile is not caught up");
    assert_eq!(drive(&mut line, 6_900), NOTHING, "without a result it pauses too");
    assert!(line.is_paused());

    let triggered = Schedule { timeout_ms: 900, ..triggers(pausing(), &["x"]) };
    line.update(triggered, at(8_500)).unwrap();
    assert!(line.is_paused(), "a trigger is no edit");
    assert_eq!(claims(&mut line, 8_500), ["x"]);
    assert!(!line.is_paused());
    assert_eq!(drive(&mut line, 9_000), [9_000]);
}

#[test]
fn to_be_cancelled_is_no_failure_that_pauses() {
    let mut line = line(Schedule { pause_on_failure: true, ..with(Overlap::CancelOther) }, 500);
    drive(&mut line, 1_000);
    drive(&mut line, 2_000);
    end(&mut line, 2_100, OutcomeKind::Cancelled);
    assert_eq!(drive(&mut line, 2_100), [2_000]);
    assert!(!line.is_paused());
}

fn triggers(schedule: Schedule, ids: &[&str]) -> Schedule {
    Schedule { triggers: ids.iter().map(|id| Trigger { id: (*id).to_owned() }).collect(), ..schedule }
}

#[test]
fn a_trigger_is_run_once_beside_the_ticks() {
    let schedule = || triggers(Schedule { timeout_ms: 20_000, ..every(1_000) }, &["x", "y"]);
    let mut first = line(every(1_000), 500);
    assert_eq!(drive(&mut first, 1_000), [1_000]);
    first.update(schedule(), at(1_200)).unwrap();
    assert_eq!(claims(&mut first, 1_200), ["x", "y"]);
    let status = first.status();
    assert_eq!(status.running, Some(at(1_000)));
    assert_eq!(status.runs.iter().filter_map(|run| run.trigger.as_deref()).collect::<Vec<_>>(), ["x", "y"]);
    end_of(&mut first, &Occasion::Trigger("x".into()), 1_300, OutcomeKind::Done);
    assert_eq!(claims(&mut first, 1_300), NO_NAMES);
    let result = first.status().results[0].clone();
    assert_eq!((result.trigger.as_deref(), result.tick, result.verdict), (Some("x"), at(1_200), Verdict::Done));

    // Another leader, to which a node brings back the record of what is over.
    let trigger = |id: &str| Record { id: run_id("a", &Occasion::Trigger(id.into())), ..record(1_200, 21_200, vec![]) };
    let records = [record(1_000, 1_500, vec![]), trigger("x"), trigger("y")];
    let mut line = take_over(schedule(), &mut first, &records, 1_400);
    assert_eq!(claims(&mut line, 1_400), NO_NAMES);
    let y = Occasion::Trigger("y".into());
    assert!(line.run_mut(&run_id("a", &y)).is_some() && line.run_mut(&trigger("x").id).is_none());
    end_of(&mut line, &y, 1_450, OutcomeKind::Done);
    assert_eq!(claims(&mut line, 1_450), NO_NAMES);

    // Taken out and put in again.
    line.update(every(1_000), at(1_460)).unwrap();
    claims(&mut line, 1_460);
    line.update(triggers(every(1_000), &["x", "y", "z"]), at(1_470)).unwrap();
    assert_eq!(claims(&mut line, 1_470), ["z"]);
}

const NO_NAMES: [&str; 0] = [];

#[test]
fn what_is_asked_for_is_run_while_the_schedule_is_suspended() {
    let mut line = line(triggers(Schedule { suspend: true, ..every(1_000) }, &["x"]), 500);
    assert_eq!(claims(&mut line, 600), ["x"]);
    end(&mut line, 700, OutcomeKind::Done);
    assert_eq!(claims(&mut line, 5_000), NO_NAMES);
}

#[test]
fn a_backfill_runs_the_ticks_of_its_time_one_after_another() {
    let asked = || Schedule {
        backfills: vec![Backfill { id: "b".into(), from: at(-2_000), to: at(1_000) }],
        timeout_ms: 20_000,
        ..every(1_000)
    };
    let name = |ms: i64| Occasion::Backfill { tick: at(ms), id: "b".into() }.name();
    let mut line = line(asked(), 500);
    assert_eq!(claims(&mut line, 600), [name(-2_000)]);
    assert_eq!(claims(&mut line, 1_000), [at(1_000).to_string()], "beside the ticks");
    let backfill = Occasion::Backfill { tick: at(-2_000), id: "b".into() };
    end_of(&mut line, &backfill, 1_100, OutcomeKind::Failed);
    assert_eq!(claims(&mut line, 1_100), [name(-1_000)]);
    let result = line.status().results[0].clone();
    assert_eq!((result.backfill.as_deref(), result.tick), (Some("b"), at(-2_000)));

    // Another leader goes on where this one was; a node brings back the record of the first.
    let records = [-2_000, -1_000].map(|ms| Record {
        id: run_id("a", &Occasion::Backfill { tick: at(ms), id: "b".into() }),
        ..record(ms, 21_000, vec![])
    });
    let records = [&records[..], &[record(1_000, 1_200, vec![])]].concat();
    let mut line = take_over(asked(), &mut line, &records, 1_300);
    assert_eq!(claims(&mut line, 1_300), NO_NAMES);
    end_of(&mut line, &Occasion::Backfill { tick: at(-1_000), id: "b".into() }, 1_400, OutcomeKind::Done);
    assert_eq!(claims(&mut line, 1_400), [name(0)]);
    end_of(&mut line, &Occasion::Backfill { tick: at(0), id: "b".into() }, 1_500, OutcomeKind::Done);
    assert_eq!(claims(&mut line, 1_500), NO_NAMES, "the end is not part of it");
    let mut line = take_over(asked(), &mut line, &[], 1_600);
    assert_eq!(claims(&mut line, 1_600), NO_NAMES, "once for its id");
}

/// A schedule for all instances in the place of one of the app's own.
fn taking_over(overlap: Overlap) -> Schedule {
    let (path, module, name) = ("/run".to_owned(), "m".to_owned(), "schedule.night".to_owned());
    let bean = BeanTarget { path, module, name, data: None, instances: Instances::Set(InstanceSet::All) };
    Schedule { takes_over: Some("m.night".into()), target: Target::Bean(bean), timeout_ms: 20_000, ..with(overlap) }
}

fn handover(owed: &[(i64, &str)], from: i64) -> Handover {
    let owed = owed.iter().map(|(tick, instance)| (at(*tick), vec![(*instance).to_owned()])).collect();
    Handover { owed, missed: 0, from: at(from) }
}

/// Runs what is due at each of these times, each to its end; gives the ticks, and for which instances they were.
fn run_at(line: &mut Line, times: impl IntoIterator<Item = i64>) -> Vec<(i64, Instances)> {
    let mut ran = Vec::new();
    for now in times {
        loop {
            let ticks = drive(line, now);
            for at in &ticks {
                let Target::Bean(bean) = line.target(&tick(*at)) else { panic!() };
                ran.push((*at, bean.instances));
                end_of(line, &tick(*at), now, OutcomeKind::Done);
            }
            if ticks.is_empty() {
                break;
            }
        }
    }
    ran
}

#[test]
fn a_schedule_takes_over_with_what_is_owed_and_goes_on_with_its_own() {
    let for_one = |instance: &str| Instances::Listed(vec![instance.to_owned()]);
    for overlap in [Overlap::Skip, Overlap::BufferOne, Overlap::BufferAll, Overlap::CancelOther, Overlap::AllowAll] {
        let schedule = || taking_over(overlap);
        let mut line = line(schedule(), 5_500);
        assert_eq!(run_at(&mut line, [5_500, 6_000, 7_000]), [], "{overlap:?}: the app runs it");
        assert!(line.waits() && line.wake().is_none() && line.status().waits_for.is_some());
        let mut line = take_over(schedule(), &mut line, &[], 7_200);
        assert!(line.waits(), "and so a new leader thinks");
        line.take_over(&handover(&[(3_000, "south"), (4_000, "north"), (8_000, "south")], 9_000));
        assert!(!line.waits() && line.is_unsaved());
        assert_eq!(run_at(&mut line, [7_300]), [], "{overlap:?}: the ledger knows nothing of it yet");
        // A leader that finds it saved goes on with it, and one that has saved it itself.
        let mut another = take_over(schedule(), &mut line, &[], 7_300);
        line.begin();
        for line in [&mut line, &mut another] {
            assert!(line.has_taken_over());
            line.take_over(&handover(&[(5_000, "south")], 20_000));
            let before = run_at(line, [7_300]);
            assert_eq!(before, [(3_000, for_one("south")), (4_000, for_one("north"))], "{overlap:?}");
            assert_eq!(line.wake(), Some(at(8_000)));
            let ran = run_at(line, (7_400..=10_400).step_by(100));
            let all = || Instances::Set(InstanceSet::All);
            assert_eq!(ran, [(8_000, for_one("south")), (9_000, all()), (10_000, all())], "{overlap:?}");
            assert_eq!((line.status().missed, line.status().skipped), (0, 0));
        }
    }
}

#[test]
fn what_is_owed_is_run_however_late_and_on_a_new_leader_for_the_same_instances() {
    let schedule = || Schedule {
        catch_up: CatchUp { window_ms: 0, policy: CatchUpPolicy::None },
        ..taking_over(Overlap::CancelOther)
    };
    let mut line = line(schedule(), 900_000);
    line.take_over(&handover(&[(3_000, "south"), (4_000, "north")], 900_001));
    line.begin();
    assert_eq!(drive(&mut line, 900_500), [3_000]);
    assert_eq!(drive(&mut line, 901_000), NOTHING, "what runs is not given up for a tick of its own");
    let claimed = Claimed { at: at(900_500), deadline: at(920_500), pod: "p".into(), uid: "u".into() };
    let record = Record {
        id: run_id("a", &tick(3_000)),
        attempt: 1,
        token: 1,
        seq: 1,
        nonce: "n".into(),
        data: json!(claimed),
        results: vec![],
    };
    let mut line = take_over(schedule(), &mut line, &[record], 901_500);
    let Target::Bean(bean) = line.target(&tick(3_000)) else { panic!() };
    assert_eq!(bean.instances, Instances::Listed(vec!["south".into()]));
    assert_eq!(drive(&mut line, 901_600), NOTHING, "it may still run");
    end(&mut line, 902_100, OutcomeKind::Done);
    assert_eq!(drive(&mut line, 902_100), [4_000]);
}

#[test]
fn who_gives_a_schedule_back_and_takes_it_again_waits_again() {
    let mut line = line(taking_over(Overlap::Skip), 500);
    line.take_over(&handover(&[], 501));
    line.begin();
    assert_eq!(run_at(&mut line, [1_000]).len(), 1);
    let beside = Schedule { takes_over: None, ..taking_over(Overlap::Skip) };
    line.update(beside, at(1_100)).unwrap();
    assert_eq!(run_at(&mut line, [2_000]).len(), 1, "it goes on beside the app's own");
    line.update(taking_over(Overlap::Skip), at(2_100)).unwrap();
    assert!(line.waits());
    assert_eq!(run_at(&mut line, [3_000]), []);
}
