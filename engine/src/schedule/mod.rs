//! One schedule: when its ticks fall due, and what becomes of each.
//!
//! Pure: time comes in as an argument, and the engine does what [`Line::step`] says.
//!
//! * `timetable`: when ticks fall due; `occasion`: what else a run may be for, and the names of records.
//! * `memory`: what is remembered whoever leads.
//! * `catch_up`, `overlap`, `by_hand`: what becomes of ticks that were not run in time, of ticks that fall due while a run
//!   is open, and of what somebody asked for.
//! * `takeover`: how it takes the place of a schedule of the app's own.
//! * `status`: what is shown of it.

mod by_hand;
mod catch_up;
mod memory;
mod occasion;
mod overlap;
mod status;
mod takeover;
mod timetable;

use std::collections::BTreeMap;
use std::time::Duration;

use cabloy_crds::agent_status::{TickResult, Verdict};
use cabloy_crds::files::Schedule;
use cabloy_crds::vocabulary::Overlap;
use cabloy_redlock::record::Record;
use jiff::Timestamp;

use crate::digest;
use crate::rule::{Rule, Rules};
use crate::runs::{Claimed, Ending, Next, Policy, Run, whole_ms};

pub use memory::Memory;
pub use occasion::{Occasion, memory_id, parse_id, run_id};
pub use takeover::{Handover, Rest};
pub use timetable::{InvalidTimetable, Timetable};

/// What the engine is to do for a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Claim the attempt of that number at an open run, and call the app when the claim has come through.
    Claim {
        /// What the run is for.
        occasion: Occasion,
        /// From 1.
        attempt: u32,
    },
    /// Hang up on the attempt that runs at the run of this id, and record that it was cancelled.
    Stop(String),
    /// The run is over and part of the memory: its record can go once the memory is saved.
    Forget(String),
    /// A run came to its end; for metrics and log.
    Over(Box<TickResult>),
    /// Ticks were dropped because of a run that is open.
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
    open: BTreeMap<Occasion, Open>,
    next: Option<Timestamp>,
    /// Ticks that fell due before this were due while nobody led here: none of them is skipped for another.
    began: Timestamp,
    /// It has just taken over a schedule of the app's own, and the ledger does not know yet: nothing is claimed.
    unkept: bool,
    rules: Rules,
}

/// A run that is open.
#[derive(Debug)]
struct Open {
    run: Run,
    /// When it was taken up, by whichever leader.
    taken_up: Timestamp,
    /// When its first attempt that the app may have heard of was claimed here; none if another leader's was.
    since: Option<Timestamp>,
    /// A newer tick takes its place: no further attempt is made.
    is_given_up: bool,
    /// The attempt that was last asked to stop.
    stopped: Option<String>,
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

/// The text of a schedule; what is asked for by hand is no edit.
fn digest(schedule: &Schedule) -> String {
    let text = Schedule { triggers: Vec::new(), backfills: Vec::new(), ..schedule.clone() };
    digest::name(&[serde_json::json!(text).to_string().as_bytes()])
}

impl Line {
    /// The schedule as the ledger has it; new if the ledger knows nothing of it. `records` are those of its runs.
    ///
    /// # Errors
    /// The schedule has no timetable.
    pub fn new(
        schedule: Schedule,
        memory: Option<Memory>,
        records: BTreeMap<Occasion, Record>,
        now: Timestamp,
    ) -> Result<(Self, Vec<Action>), InvalidTimetable> {
        Self::under(Rules::default(), schedule, memory, records, now)
    }

    /// The same, by these rules.
    ///
    /// # Errors
    /// The schedule has no timetable.
    pub fn under(
        rules: Rules,
        schedule: Schedule,
        memory: Option<Memory>,
        records: BTreeMap<Occasion, Record>,
        now: Timestamp,
    ) -> Result<(Self, Vec<Action>), InvalidTimetable> {
        let timetable = Timetable::new(&schedule)?;
        let unsaved = memory.is_none();
        let mut memory = memory.unwrap_or_else(|| Memory::new(whole_ms(now), now, rule(&schedule), schedule.suspend));
        let mut actions = Vec::new();
        let mut open = BTreeMap::new();
        for (occasion, record) in records {
            if memory.is_over(&occasion) && rules.hold(Rule::OverIsOver) {
                actions.push(Action::Forget(record.id));
                continue;
            }
            let claimed = serde_json::from_value::<Claimed>(record.data.clone());
            let run = Run::from_record(&record).under(rules);
            open.insert(occasion, Open::new(run, claimed.map_or(now, |claimed| claimed.at)));
        }
        // What was to be claimed, and is claimed nowhere, is still to be run.
        memory.waiting.extend(memory.open.take().into_iter().flatten());
        memory.waiting.retain(|tick| !open.contains_key(&Occasion::Tick(*tick)));
        if let Some(last) = open.keys().filter_map(Occasion::tick).max().filter(|last| *last > memory.low_water) {
            if schedule.overlap == Overlap::AllowAll && memory.rule == rule(&schedule) {
                // Claims that were on their way side by side: of some before the last one nobody may have taken any.
                let ticks =
                    std::iter::successors(timetable.next_after(memory.low_water), |it| timetable.next_after(*it));
                let before = ticks.take_while(|tick| *tick < last).take(overlap::WAITING);
                memory.waiting.extend(before.filter(|tick| !open.contains_key(&Occasion::Tick(*tick))));
            }
            // One after another, what came before the last one has been dealt with.
            memory.low_water = last;
        }
        memory.waiting.make_contiguous().sort_unstable();
        if !rules.hold(Rule::LowWater) {
            memory.low_water = memory.low_water.max(now);
        }
        let mut line = Self {
            policy: policy(&schedule),
            digest: digest(&schedule),
            next: None,
            began: now,
            unkept: false,
            schedule,
            timetable,
            memory,
            unsaved,
            open,
            rules,
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

    /// What follows from a new timetable, from a suspension or its end, and from an edit after the app said no or failed.
    fn settle_in(&mut self, now: Timestamp) {
        let rule = rule(&self.schedule);
        let suspended = self.schedule.suspend;
        let mut begins_anew = self.memory.rule != rule || self.memory.suspended != suspended;
        (self.memory.rule, self.memory.suspended) = (rule, suspended);
        // Who takes over the same again later waits for it again.
        self.unsaved |= self.memory.taken_over.take_if(|_| self.schedule.takes_over.is_none()).is_some();
        for stopped in [&mut self.memory.disabled, &mut self.memory.paused] {
            begins_anew |= stopped.take_if(|digest| *digest != self.digest).is_some();
        }
        if begins_anew && self.rules.hold(Rule::InForce) {
            self.memory.low_water = self.memory.low_water.max(now);
        }
        self.unsaved |= begins_anew;
        self.resume();
    }

    /// The next tick by the timetable, if there is to be one.
    fn resume(&mut self) {
        let idle = self.memory.suspended || self.memory.disabled.is_some() || self.memory.paused.is_some();
        if idle {
            // What has begun goes on; what has not is given up.
            self.unsaved |= !self.memory.waiting.is_empty();
            self.memory.waiting.clear();
            self.memory.owed.retain(|tick, _| self.open.contains_key(&Occasion::Tick(*tick)));
        }
        self.next =
            if idle || self.waits() || self.unkept { None } else { self.timetable.next_after(self.memory.low_water) };
    }

    /// Deals with all that is due at `now`.
    pub fn step(&mut self, now: Timestamp) -> Vec<Action> {
        let mut actions = Vec::new();
        let waited = self.memory.waiting.len();
        // A run that is over by now is no reason to skip a tick.
        self.close(now, &mut actions);
        self.take_due(now, &mut actions);
        loop {
            self.take_by_hand(now);
            self.cancel_others();
            self.take_waiting(now, &mut actions);
            if !self.close(now, &mut actions) {
                break;
            }
        }
        self.stop_attempts(&mut actions);
        self.claim(now, &mut actions);
        // Whoever leads next must not take a tick that waits for one that came late.
        self.unsaved |= self.memory.waiting.len() > waited;
        actions
    }

    /// Opens a run.
    fn take_up(&mut self, occasion: Occasion, now: Timestamp) {
        let run = Run::new(run_id(&self.schedule.name, &occasion)).under(self.rules);
        self.open.insert(occasion, Open::new(run, now));
    }

    /// Claims attempts at open runs that are due.
    fn claim(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        let due: Vec<_> = self
            .open
            .iter()
            .filter(|(occasion, open)| !open.is_given_up && self.has_turn(occasion))
            .filter_map(|(occasion, open)| match open.run.next(&self.policy, now) {
                Next::Claim(attempt) => Some((occasion.clone(), attempt)),
                _ => None,
            })
            .collect();
        for (occasion, attempt) in due {
            if let Some(open) = self.open.get_mut(&occasion).filter(|open| open.run.has_not_begun()) {
                open.since = Some(now);
            }
            actions.push(Action::Claim { occasion, attempt });
        }
    }

    /// Makes the open runs that are over part of the memory, and says whether there were any.
    fn close(&mut self, now: Timestamp, actions: &mut Vec<Action>) -> bool {
        let over: Vec<_> = self
            .open
            .iter()
            .filter_map(|(occasion, open)| Some((occasion.clone(), open.ending(&self.policy, now)?)))
            .collect();
        for (occasion, ending) in &over {
            let Some(open) = self.open.remove(occasion) else { continue };
            let result = self.fold(occasion, ending.clone(), open.taken_up, now);
            actions.push(Action::Over(Box::new(result)));
            actions.push(Action::Forget(open.run.id));
        }
        !over.is_empty()
    }

    /// Makes a run that is over part of the memory.
    fn fold(&mut self, occasion: &Occasion, ending: Ending, taken_up: Timestamp, now: Timestamp) -> TickResult {
        let Ending { verdict, reason, message, attempts, disabled, cancelled } = ending;
        let tick = match occasion {
            Occasion::Tick(tick) | Occasion::Backfill { tick, .. } => *tick,
            Occasion::Trigger(_) => whole_ms(taken_up),
        };
        let (trigger, backfill) = (occasion.trigger().map(str::to_owned), occasion.backfill().map(str::to_owned));
        let result = TickResult { tick, trigger, backfill, verdict, reason, message, attempts, at: whole_ms(now) };
        self.memory.add(result.clone());
        self.settle_by_hand(occasion);
        if occasion.tick().is_some() {
            self.memory.owed.remove(&tick);
            let open = self.ticks().next().map(|(tick, _)| tick);
            let left = open.into_iter().chain(self.memory.waiting.front().copied()).min();
            if left.is_none_or(|left| tick < left) {
                self.memory.settled = self.memory.settled.max(tick);
            }
        }
        self.unsaved = true;
        if disabled {
            self.memory.disabled = Some(self.digest.clone());
        }
        if self.schedule.pause_on_failure && verdict != Verdict::Done && !cancelled {
            self.memory.paused = Some(self.digest.clone());
        }
        if self.memory.disabled.is_some() || self.memory.paused.is_some() {
            self.resume();
        }
        result
    }

    /// When [`Line::step`] has something to do, if nothing happens before.
    #[must_use]
    pub fn wake(&self) -> Option<Timestamp> {
        let tick = self.next.map(|tick| self.timetable.due(tick));
        // A run whose turn it is not waits for another one, and not for a time.
        let moves = self.open.iter().filter(|(occasion, open)| open.is_given_up || self.has_turn(occasion));
        let runs = moves.filter_map(|(_, open)| match open.run.next(&self.policy, Timestamp::MIN) {
            Next::Wait(until) => Some(until),
            _ => None,
        });
        // What waits though there is room falls due later.
        let waits = self
            .memory
            .waiting
            .front()
            .filter(|_| self.has_room() && !self.unkept)
            .map(|tick| self.timetable.due(*tick));
        tick.into_iter().chain(runs).chain(waits).min()
    }

    /// Whether the memory is to be saved.
    #[must_use]
    pub fn is_unsaved(&self) -> bool {
        self.unsaved
    }

    /// The memory, if it is to be saved; it counts as saved then.
    pub fn take_unsaved(&mut self) -> Option<&Memory> {
        self.memory.open = Some(self.ticks().map(|(tick, _)| tick).collect());
        std::mem::take(&mut self.unsaved).then_some(&self.memory)
    }

    /// Notes that the memory could not be saved.
    pub fn not_saved(&mut self) {
        self.unsaved = true;
    }

    /// The runs of ticks that are open, in the order of the ticks.
    fn ticks(&self) -> impl DoubleEndedIterator<Item = (Timestamp, &Open)> {
        self.open.iter().filter_map(|(occasion, open)| Some((occasion.tick()?, open)))
    }

    /// The runs that are open.
    pub fn runs(&self) -> impl Iterator<Item = (&Occasion, &Run)> {
        self.open.iter().map(|(occasion, open)| (occasion, &open.run))
    }

    /// The runs that are open, to be told something.
    pub fn runs_mut(&mut self) -> impl Iterator<Item = &mut Run> {
        self.open.values_mut().map(|open| &mut open.run)
    }

    /// The open run of that id.
    pub fn run_mut(&mut self, id: &str) -> Option<&mut Run> {
        let (_, occasion) = parse_id(id)?;
        self.open.get_mut(&occasion?).map(|open| &mut open.run).filter(|run| run.id == id)
    }

    /// Whether the run of that id is to end, and no call to be made for it.
    #[must_use]
    pub fn is_given_up(&self, id: &str) -> bool {
        let occasion = parse_id(id).and_then(|(_, occasion)| occasion);
        occasion.and_then(|occasion| self.open.get(&occasion)).is_some_and(|open| open.is_given_up)
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

    /// Whether a failure has paused it.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.memory.paused.is_some()
    }
}

impl Open {
    fn new(run: Run, taken_up: Timestamp) -> Self {
        Self { run, taken_up, since: None, is_given_up: false, stopped: None }
    }

    /// How the run ended, if it is over at `now`. One that is given up is, as soon as no attempt runs.
    fn ending(&self, policy: &Policy, now: Timestamp) -> Option<Ending> {
        match self.run.next(policy, now) {
            Next::Over(ending) if self.is_given_up && ending.verdict == Verdict::Unknown => Some(self.run.cancelled()),
            Next::Over(ending) => Some(ending),
            Next::Claim(_) if self.is_given_up => Some(self.run.cancelled()),
            Next::Wait(_) if self.is_given_up && self.run.running().is_none() => Some(self.run.cancelled()),
            Next::Claim(_) | Next::Wait(_) | Next::Look | Next::Busy => None,
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod worlds;
