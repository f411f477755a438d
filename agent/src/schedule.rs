//! One schedule: when its ticks fall due, and what becomes of each.
//!
//! Pure: time comes in as an argument, and the engine does what [`Line::step`] says.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use cabloy_crds::agent_status::{ScheduleStatus, TickResult, Verdict};
use cabloy_crds::cron::{self, Cron, InvalidCron};
use cabloy_crds::files::Schedule;
use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};

use crate::digest;
use crate::ledger::Record;
use crate::runs::{Ending, Next, Policy, Run, between, plus, whole_ms};

/// A tick that could not be started within this time after it fell due is missed: it is counted, and never run.
pub const MISFIRE: Duration = Duration::from_mins(1);

/// A run is taken up late when more than this part of the time between two ticks has passed.
const LATE: u32 = 10;

/// How many results a schedule remembers.
const RESULTS: usize = 10;

/// How many missed ticks are counted one by one at a time; after that the rest is passed over uncounted.
const COUNTED: u64 = 10_000;

/// When the ticks of a schedule fall due.
#[derive(Clone, Debug)]
pub struct Timetable {
    name: String,
    rule: Rule,
    jitter_ms: u64,
}

#[derive(Clone, Debug)]
enum Rule {
    Cron(Box<Cron>, TimeZone),
    /// Milliseconds, counted from the Unix epoch.
    Every(i64),
}

/// A timetable that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidTimetable {
    /// The cron expression or its time zone.
    #[error(transparent)]
    Cron(#[from] InvalidCron),
    /// Neither or both of `cron` and `everyMs`, or a period of zero.
    #[error("write exactly one of cron and everyMs, and a period of at least 1 ms")]
    Rule,
}

impl Timetable {
    /// The timetable of a schedule.
    ///
    /// # Errors
    /// The schedule has no single rule, or one that cannot be read.
    pub fn new(schedule: &Schedule) -> Result<Self, InvalidTimetable> {
        let rule = match (&schedule.cron, schedule.every_ms.map(i64::try_from)) {
            (Some(expression), None) => {
                Rule::Cron(Box::new(cron::parse(expression)?), cron::time_zone(&schedule.time_zone)?)
            }
            (None, Some(Ok(every))) if every > 0 => Rule::Every(every),
            _ => return Err(InvalidTimetable::Rule),
        };
        Ok(Self { name: schedule.name.clone(), rule, jitter_ms: schedule.jitter_ms })
    }

    /// The first tick after `time`; none if there never is one.
    #[must_use]
    pub fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        match &self.rule {
            Rule::Every(every) => {
                let ticks = time.as_millisecond().div_euclid(*every).checked_add(1)?;
                Timestamp::from_millisecond(ticks.checked_mul(*every)?).ok()
            }
            Rule::Cron(cron, zone) => cron.next_after(time, zone),
        }
    }

    /// When `tick` is to be run: by the schedule's jitter later than the tick, and always the same for the same tick, so
    /// that a new leader comes to the same time.
    #[must_use]
    pub fn due(&self, tick: Timestamp) -> Timestamp {
        if self.jitter_ms == 0 {
            return tick;
        }
        let number = digest::number(&[self.name.as_bytes(), tick.to_string().as_bytes()]);
        let delay = number % (u128::from(self.jitter_ms) + 1);
        plus(tick, Duration::from_millis(u64::try_from(delay).unwrap_or_default()))
    }
}

/// What is remembered of a schedule, whoever leads: the data of its record `m/<schedule>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// When a leader first saw it; no tick before is run.
    pub created: Timestamp,
    /// All ticks up to this one have been dealt with, or wait.
    pub low_water: Timestamp,
    /// All ticks up to this one are over: a record that says otherwise was brought back by a node that slept.
    pub settled: Timestamp,
    /// Ticks up to the low-water mark that are still to be run, in order.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    pub waiting: VecDeque<Timestamp>,
    /// By what rule; ticks of another one are not caught up.
    pub rule: String,
    /// It was suspended; ticks from that time are not caught up.
    #[serde(default)]
    pub suspended: bool,
    /// The app wants no further ticks of the schedule as this digest has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<String>,
    /// What the last ticks came to, newest first.
    #[serde(default)]
    pub results: VecDeque<TickResult>,
    /// Ticks that were done.
    #[serde(default)]
    pub done: u64,
    /// Ticks that failed or whose result is not known.
    #[serde(default)]
    pub failed: u64,
    /// Ticks that were dropped because the one before still ran.
    #[serde(default)]
    pub skipped: u64,
    /// Ticks that nobody could run in time.
    #[serde(default)]
    pub missed: u64,
}

/// What the engine is to do for a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Claim the attempt of that number at the open run of `tick`, and call the app when the claim has come through.
    Claim {
        /// The tick.
        tick: Timestamp,
        /// From 1.
        attempt: u32,
    },
    /// The run is over and part of the memory: its record can go once the memory is saved.
    Forget(String),
    /// A tick came to its end; for metrics and log.
    Over(Box<TickResult>),
    /// Ticks were dropped because the one before still runs.
    Skipped(u64),
    /// Ticks were missed.
    Missed(u64),
}

/// A schedule on the leader.
#[derive(Debug)]
pub struct Line {
    schedule: Schedule,
    timetable: Timetable,
    policy: Policy,
    digest: String,
    memory: Memory,
    /// The memory differs from what was last given out to be saved.
    unsaved: bool,
    /// Runs that the ledger knew when the line began, by tick; each is among the waiting ticks.
    known: BTreeMap<Timestamp, Run>,
    open: Option<Open>,
    next: Option<Timestamp>,
    /// Ticks that fell due before this were due while nobody led here: none of them is skipped for another.
    began: Timestamp,
}

/// The run that is open.
#[derive(Debug)]
struct Open {
    tick: Timestamp,
    run: Run,
    /// When its first attempt that the app may have heard of was claimed here; none if another leader's was.
    since: Option<Timestamp>,
}

/// The id of the record of a run.
#[must_use]
pub fn run_id(schedule: &str, tick: Timestamp) -> String {
    format!("s/{schedule}/{tick}")
}

/// The id of the record of a schedule's memory.
#[must_use]
pub fn memory_id(schedule: &str) -> String {
    format!("m/{schedule}")
}

/// The schedule that the record `id` belongs to, and the tick if it is the record of a run.
#[must_use]
pub fn parse_id(id: &str) -> Option<(&str, Option<Timestamp>)> {
    if let Some(name) = id.strip_prefix("m/") {
        return Some((name, None));
    }
    let (name, tick) = id.strip_prefix("s/")?.rsplit_once('/')?;
    Some((name, Some(tick.parse().ok()?)))
}

/// The rule of a schedule, as text.
fn rule(schedule: &Schedule) -> String {
    match (&schedule.cron, schedule.every_ms) {
        (Some(cron), _) => format!("{cron} {}", schedule.time_zone),
        (None, every) => format!("every {} ms", every.unwrap_or_default()),
    }
}

fn policy(schedule: &Schedule) -> Policy {
    Policy {
        timeout: Duration::from_millis(schedule.timeout_ms),
        retry: schedule.retry.clone(),
        on_unknown: schedule.on_unknown,
    }
}

fn digest(schedule: &Schedule) -> String {
    digest::name(&[serde_json::json!(schedule).to_string().as_bytes()])
}

impl Line {
    /// The schedule as the ledger has it; new if the ledger knows nothing of it. `records` are those of its runs, by tick.
    ///
    /// # Errors
    /// The schedule has no timetable.
    pub fn new(
        schedule: Schedule,
        memory: Option<Memory>,
        records: BTreeMap<Timestamp, Record>,
        now: Timestamp,
    ) -> Result<(Self, Vec<Action>), InvalidTimetable> {
        let timetable = Timetable::new(&schedule)?;
        let unsaved = memory.is_none();
        let mut memory = memory.unwrap_or_else(|| Memory {
            created: whole_ms(now),
            low_water: now,
            settled: now,
            waiting: VecDeque::new(),
            rule: rule(&schedule),
            suspended: schedule.suspend,
            disabled: None,
            results: VecDeque::new(),
            done: 0,
            failed: 0,
            skipped: 0,
            missed: 0,
        });
        let mut actions = Vec::new();
        let mut known = BTreeMap::new();
        for (tick, record) in records {
            if tick <= memory.settled {
                actions.push(Action::Forget(record.id));
            } else {
                known.insert(tick, Run::from_record(&record));
                memory.low_water = memory.low_water.max(tick);
                memory.waiting.retain(|waiting| *waiting != tick);
                memory.waiting.push_back(tick);
            }
        }
        memory.waiting.make_contiguous().sort_unstable();
        let mut line = Self {
            policy: policy(&schedule),
            digest: digest(&schedule),
            next: None,
            began: now,
            schedule,
            timetable,
            memory,
            unsaved,
            known,
            open: None,
        };
        line.settle_in(now);
        Ok((line, actions))
    }

    /// Goes over to another text of the schedule. What runs goes on; ticks of the old timetable that have fallen due
    /// are kept.
    ///
    /// # Errors
    /// The schedule has no timetable; nothing has changed then.
    pub fn update(&mut self, schedule: Schedule, now: Timestamp) -> Result<(), InvalidTimetable> {
        let timetable = Timetable::new(&schedule)?;
        self.timetable = timetable;
        self.policy = policy(&schedule);
        self.digest = digest(&schedule);
        self.schedule = schedule;
        self.settle_in(now);
        Ok(())
    }

    /// What follows from a new timetable, from a suspension or its end, and from an edit after the app said no.
    fn settle_in(&mut self, now: Timestamp) {
        let rule = rule(&self.schedule);
        let suspended = self.schedule.suspend;
        if self.memory.rule != rule || self.memory.suspended != suspended {
            self.memory.low_water = self.memory.low_water.max(now);
            (self.memory.rule, self.memory.suspended) = (rule, suspended);
            self.unsaved = true;
        }
        if self.memory.disabled.as_ref().is_some_and(|digest| *digest != self.digest) {
            self.memory.disabled = None;
            self.memory.low_water = self.memory.low_water.max(now);
            self.unsaved = true;
        }
        self.resume();
    }

    /// The next tick by the timetable, if there is to be one.
    fn resume(&mut self) {
        let idle = self.memory.suspended || self.memory.disabled.is_some();
        if idle {
            // What has begun goes on; what has not is given up.
            let before = self.memory.waiting.len();
            self.memory.waiting.retain(|tick| self.known.contains_key(tick));
            self.unsaved |= self.memory.waiting.len() < before;
        }
        self.next = if idle { None } else { self.timetable.next_after(self.memory.low_water) };
    }

    /// Deals with all that is due at `now`.
    pub fn step(&mut self, now: Timestamp) -> Vec<Action> {
        let mut actions = Vec::new();
        // A run that is over by now is no reason to skip a tick.
        self.close(now, &mut actions);
        self.take_due(now, &mut actions);
        loop {
            if self.open.is_none() {
                let Some(tick) = self.memory.waiting.pop_front() else { break };
                let run = match self.known.remove(&tick) {
                    Some(run) => run,
                    None if self.is_missed(tick, now) => {
                        self.memory.missed += 1;
                        self.unsaved = true;
                        actions.push(Action::Missed(1));
                        continue;
                    }
                    None => Run::new(run_id(&self.schedule.name, tick)),
                };
                self.open = Some(Open { tick, run, since: None });
            }
            if !self.close(now, &mut actions) {
                break;
            }
        }
        if let Some(Open { tick, run, since }) = &mut self.open
            && let Next::Claim(attempt) = run.next(&self.policy, now)
        {
            if run.has_not_begun() {
                *since = Some(now);
            }
            actions.push(Action::Claim { tick: *tick, attempt });
        }
        actions
    }

    /// Makes the open run part of the memory if it is over, and says whether there was one that is.
    fn close(&mut self, now: Timestamp, actions: &mut Vec<Action>) -> bool {
        let Some(Open { tick, run, .. }) = &self.open else { return false };
        let Next::Over(ending) = run.next(&self.policy, now) else { return false };
        let (tick, id) = (*tick, run.id.clone());
        self.open = None;
        actions.push(Action::Over(Box::new(self.fold(tick, ending, now))));
        actions.push(Action::Forget(id));
        true
    }

    /// Moves ticks that have fallen due behind the low-water mark.
    fn take_due(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        let (mut missed, mut skipped) = (0, 0);
        while let Some(tick) = self.next.filter(|tick| self.timetable.due(*tick) <= now) {
            let before = std::mem::replace(&mut self.memory.low_water, tick);
            if self.is_missed(tick, now) {
                missed += 1;
                if missed == COUNTED {
                    self.memory.low_water = self.memory.low_water.max(now - MISFIRE);
                }
            } else if self.is_skipped(tick, before) {
                skipped += 1;
            } else {
                self.memory.waiting.push_back(tick);
            }
            self.next = self.timetable.next_after(self.memory.low_water);
        }
        for (count, action) in [(missed, Action::Missed as fn(u64) -> Action), (skipped, Action::Skipped)] {
            if count > 0 {
                self.unsaved = true;
                actions.push(action(count));
            }
        }
        self.memory.missed += missed;
        self.memory.skipped += skipped;
    }

    /// Whether `tick`, which follows `before`, is dropped for the run that is open. A run that was taken up late, for
    /// nobody led or the app was not there, has its time all the same: `tick` waits for it then.
    fn is_skipped(&self, tick: Timestamp, before: Timestamp) -> bool {
        let (due, period) = (self.timetable.due(tick), between(before, tick));
        let Some(open) = self.open.as_ref().filter(|open| due > self.began && !open.run.has_not_begun()) else {
            return false;
        };
        let late = |since| between(self.timetable.due(open.tick), since) > period / LATE;
        open.since.is_none_or(|since| !late(since) || between(since, due) >= period)
    }

    fn is_missed(&self, tick: Timestamp, now: Timestamp) -> bool {
        between(self.timetable.due(tick), now) > MISFIRE
    }

    /// Makes a run that is over part of the memory.
    fn fold(&mut self, tick: Timestamp, ending: Ending, now: Timestamp) -> TickResult {
        let Ending { verdict, reason, message, attempts, disabled } = ending;
        let result = TickResult { tick, verdict, reason, message, attempts, at: whole_ms(now) };
        match verdict {
            Verdict::Done => self.memory.done += 1,
            Verdict::Failed | Verdict::Unknown => self.memory.failed += 1,
        }
        self.memory.results.push_front(result.clone());
        self.memory.results.truncate(RESULTS);
        self.memory.settled = self.memory.settled.max(tick);
        self.unsaved = true;
        if disabled {
            self.memory.disabled = Some(self.digest.clone());
            self.resume();
        }
        result
    }

    /// When [`Line::step`] has something to do, if nothing happens before.
    #[must_use]
    pub fn wake(&self) -> Option<Timestamp> {
        let tick = self.next.map(|tick| self.timetable.due(tick));
        let run = self.open.as_ref().and_then(|open| match open.run.next(&self.policy, Timestamp::MIN) {
            Next::Wait(until) => Some(until),
            _ => None,
        });
        tick.into_iter().chain(run).min()
    }

    /// Whether the memory is to be saved.
    #[must_use]
    pub fn is_unsaved(&self) -> bool {
        self.unsaved
    }

    /// The memory, if it is to be saved; it counts as saved then.
    pub fn take_unsaved(&mut self) -> Option<&Memory> {
        std::mem::take(&mut self.unsaved).then_some(&self.memory)
    }

    /// Notes that the memory could not be saved.
    pub fn not_saved(&mut self) {
        self.unsaved = true;
    }

    /// The run that is open, with its tick.
    #[must_use]
    pub fn open(&self) -> Option<(Timestamp, &Run)> {
        self.open.as_ref().map(|open| (open.tick, &open.run))
    }

    /// The run that is open.
    pub fn run_mut(&mut self) -> Option<&mut Run> {
        self.open.as_mut().map(|open| &mut open.run)
    }

    /// The schedule as it stands in the file.
    #[must_use]
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// When `tick` was to be run.
    #[must_use]
    pub fn due(&self, tick: Timestamp) -> Timestamp {
        self.timetable.due(tick)
    }

    /// How long an attempt may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.policy.timeout
    }

    /// Whether the app wants no further ticks.
    #[must_use]
    pub fn is_disabled(&self) -> bool {
        self.memory.disabled.is_some()
    }

    /// As `/status` shows it.
    #[must_use]
    pub fn status(&self) -> ScheduleStatus {
        let Memory { created, results, done, failed, skipped, missed, .. } = &self.memory;
        ScheduleStatus {
            name: self.schedule.name.clone(),
            created: *created,
            next: self.next.map(|tick| self.timetable.due(tick)),
            running: self.open.as_ref().filter(|open| open.run.running().is_some()).map(|open| open.tick),
            results: results.iter().cloned().collect(),
            done: *done,
            failed: *failed,
            skipped: *skipped,
            missed: *missed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use cabloy_crds::files::Retry;
    use cabloy_crds::vocabulary::{OnUnknown, Overlap};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::ledger::RunResult;
    use crate::runs::{Attempt, Claimed, Outcome, OutcomeKind};

    const NOTHING: [i64; 0] = [];

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).unwrap()
    }

    fn every(ms: u64) -> Schedule {
        serde_json::from_value(json!({
            "name": "a", "everyMs": ms, "timeZone": "UTC", "overlap": Overlap::Skip, "jitterMs": 0, "timeoutMs": 1000,
            "onUnknown": OnUnknown::Skip, "suspend": false, "target": {"http": {"path": "/a", "method": "POST"}},
            "retry": Retry { limit: 0, initial_delay_ms: 1, factor: 1.0, max_delay_ms: 1 },
        }))
        .unwrap()
    }

    fn cron(expression: &str, zone: &str) -> Timetable {
        Timetable::new(&Schedule { cron: Some(expression.into()), every_ms: None, time_zone: zone.into(), ..every(1) })
            .unwrap()
    }

    fn line(schedule: Schedule, now: i64) -> Line {
        Line::new(schedule, None, BTreeMap::new(), at(now)).unwrap().0
    }

    /// What the engine does: claims, and calls when the claim has come through. Gives the ticks that were claimed.
    fn drive(line: &mut Line, now: i64) -> Vec<i64> {
        let mut claimed = Vec::new();
        for action in line.step(at(now)) {
            if let Action::Claim { tick, attempt } = action {
                let deadline = plus(at(now), line.timeout());
                let run = line.run_mut().unwrap();
                run.claiming(Attempt { number: attempt, nonce: format!("{tick}#{attempt}"), deadline });
                run.begun_here();
                claimed.push(tick.as_millisecond());
            }
        }
        claimed
    }

    fn end(line: &mut Line, now: i64, kind: OutcomeKind) {
        let nonce = line.open().unwrap().1.attempt().unwrap().nonce.clone();
        let outcome = Outcome { kind, reason: "R".into(), message: "m".into(), retry_after_ms: None, at: at(now) };
        line.run_mut().unwrap().ended(&nonce, outcome);
    }

    #[test]
    fn ticks_are_counted_from_the_epoch() {
        let table = Timetable::new(&every(250)).unwrap();
        assert_eq!(table.next_after(at(0)), Some(at(250)));
        assert_eq!(table.next_after(at(249)), Some(at(250)));
        assert_eq!(table.next_after(at(-1)), Some(at(0)));
        assert!(Timetable::new(&Schedule { every_ms: None, ..every(1) }).is_err());
        assert!(Timetable::new(&Schedule { cron: Some("@daily".into()), ..every(1) }).is_err());
    }

    #[test]
    fn a_cron_expression_is_read_in_its_time_zone() {
        let table = cron("0 3 * * *", "Asia/Shanghai");
        let next = table.next_after("2026-11-23T10:00:00Z".parse().unwrap()).unwrap();
        assert_eq!(next.to_string(), "2026-11-23T19:00:00Z");
        let seconds = cron("*/10 * * * * *", "UTC");
        assert_eq!(seconds.next_after(at(10_000)), Some(at(20_000)), "the first after, not the same again");
    }

    #[test]
    fn an_hour_that_comes_twice_runs_a_daily_tick_once() {
        let table = cron("30 1 * * *", "America/New_York");
        let first = table.next_after("2026-11-01T04:00:00Z".parse().unwrap()).unwrap();
        assert_eq!(first.to_string(), "2026-11-01T05:30:00Z");
        assert_eq!(table.next_after(first).unwrap().to_string(), "2026-11-02T06:30:00Z");
    }

    #[test]
    fn jitter_is_the_same_wherever_it_is_computed() {
        let schedule = Schedule { jitter_ms: 5_000, ..every(60_000) };
        let (a, b) = (Timetable::new(&schedule).unwrap(), Timetable::new(&schedule).unwrap());
        let delays: BTreeSet<_> = (1..50)
            .map(|n| at(n * 60_000))
            .map(|tick| {
                assert_eq!(a.due(tick), b.due(tick));
                between(tick, a.due(tick))
            })
            .collect();
        assert!(delays.len() > 40 && *delays.last().unwrap() <= Duration::from_secs(5));
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
        assert_eq!(
            drive(&mut line, 2_000),
            [2_000],
            "its deadline has passed: the run is over, and the next one is due"
        );
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
        let data = json!(Claimed { at: at(tick), deadline: at(deadline), pod: "p".into() });
        Record { id: run_id("a", at(tick)), attempt: 1, token: 1, seq: 1, nonce: "n".into(), data, results }
    }

    #[test]
    fn a_new_leader_awaits_the_run_of_another() {
        let memory = line(every(1_000), 500).take_unsaved().unwrap().clone();
        let records = [(at(1_000), record(1_000, 2_600, vec![]))].into();
        let (mut line, _) = Line::new(every(1_000), Some(memory), records, at(2_500)).unwrap();
        assert_eq!(drive(&mut line, 2_500), NOTHING, "it may still run");
        assert!(line.open().unwrap().1.is_elsewhere());
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
        let records = [(at(1_000), record(1_000, 9_000, vec![]))].into();
        let (mut line, actions) = Line::new(every(1_000), Some(memory), records, at(1_200)).unwrap();
        assert_eq!(actions, [Action::Forget("s/a/1970-01-01T00:00:01Z".into())]);
        assert_eq!(drive(&mut line, 1_200), NOTHING);
        assert!(line.open().is_none());
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

    /// What a leader does with its lease, and what a run comes to.
    #[derive(Clone, Debug)]
    enum Step {
        Wait(i64),
        End,
        /// The leader is gone, and what it has not saved with it.
        Crash {
            saved: bool,
        },
    }

    proptest! {
        /// Whatever leaders come and go, no tick is claimed twice, and none is lost: each is run, skipped or missed.
        #[test]
        fn no_tick_is_doubled_or_lost(steps in prop::collection::vec(prop_oneof![
            6 => (1_i64..2_500).prop_map(Step::Wait), 5 => Just(Step::End), 1 => any::<bool>().prop_map(|saved| Step::Crash { saved }),
        ], 1..120)) {
            let schedule = || Schedule { timeout_ms: 1_500, ..every(1_000) };
            let mut now = 500;
            let mut line = line(schedule(), now);
            let mut memory = line.take_unsaved().unwrap().clone();
            let mut records: BTreeMap<Timestamp, Record> = BTreeMap::new();
            let mut claimed = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Wait(ms) => now += ms,
                    Step::End => if line.open().is_some_and(|(_, run)| run.running().is_some_and(|it| it.deadline > at(now)) && !run.is_elsewhere()) {
                        end(&mut line, now, OutcomeKind::Done);
                        let tick = line.open().unwrap().0;
                        let nonce = line.open().unwrap().1.attempt().unwrap().nonce.clone();
                        let outcome = line.open().unwrap().1.outcome().unwrap();
                        records.get_mut(&tick).unwrap().results.push(RunResult { nonce, done: true, data: json!(outcome) });
                    },
                    Step::Crash { saved } => {
                        if saved && let Some(saved) = line.take_unsaved() {
                            memory = saved.clone();
                            records.retain(|tick, _| *tick > memory.settled);
                        }
                        line = Line::new(schedule(), Some(memory.clone()), records.clone(), at(now)).unwrap().0;
                    }
                }
                for tick in drive(&mut line, now) {
                    prop_assert!(claimed.insert(tick), "tick {tick} is claimed twice");
                    let nonce = line.open().unwrap().1.attempt().unwrap().nonce.clone();
                    records.insert(at(tick), Record { nonce, ..record(tick, now + 1_500, vec![]) });
                }
                // A skipped tick is saved at once.
                if line.is_unsaved() {
                    memory = line.take_unsaved().unwrap().clone();
                    records.retain(|tick, _| *tick > memory.settled);
                }
            }
            // All runs end, and nothing waits any more. Only the run of another leader takes until its deadline for that.
            while let Some((_, run)) = line.open() {
                match run.running().filter(|_| run.is_elsewhere()) {
                    Some(attempt) => now = now.max(attempt.deadline.as_millisecond()),
                    None => end(&mut line, now, OutcomeKind::Done),
                }
                for tick in drive(&mut line, now) {
                    prop_assert!(claimed.insert(tick), "tick {tick} is claimed twice");
                }
            }
            let status = line.status();
            let ticks = u64::try_from(now / 1_000).unwrap();
            prop_assert_eq!(status.done + status.failed + status.skipped + status.missed, ticks);
        }
    }
}
