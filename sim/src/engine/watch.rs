//! What really ran, as somebody sees it who stands beside every app, and what is promised of that.

use std::collections::{BTreeMap, BTreeSet};

use cabloy_crds::agent_status::{ScheduleStatus, TickResult, Verdict};
use cabloy_crds::files::{AgentFile, Schedule};
use cabloy_crds::vocabulary::{CatchUpPolicy, Gate, Overlap, Scope};
use cabloy_engine::core::{Kind, Start};
use cabloy_engine::runs::{Outcome, OutcomeKind};
use cabloy_engine::schedule::{Occasion, parse_id, run_id};
use cabloy_engine::startup::record_id;
use cabloy_redlock::ledger::Put;
use cabloy_redlock::record::RunResult;
use jiff::Timestamp;

use super::scene::{hash, task_revision};
use crate::clock::{MS, Time};
use crate::plan::Clocks;
use crate::truth::{Promise, Violation, broken};
use crate::world::{PodId, World, nanos};

/// A tick that is no later than this is run whatever was asked for (`schedule/catch_up.rs`).
const GRACE: Time = 10_000 * MS;

/// Everything that ran.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    runs: BTreeMap<String, Run>,
    /// The latest time of day that the median of the nodes' clocks has ever shown.
    high: i128,
    /// Which process of which pod has called under a token.
    callers: BTreeMap<u64, (PodId, u32)>,
    /// The nonces of claims, and how often a majority's memory had been lost when they were sent.
    sent: BTreeMap<String, u64>,
    losses: u64,
    /// The gates that are open, by pod.
    open: BTreeMap<PodId, bool>,
    /// When the schedules were seen first, as the last leader has it.
    created: BTreeMap<String, Timestamp>,
    /// The startup tasks whose result is recorded.
    done: BTreeSet<String>,
    /// Everything has been well from then on.
    calm_since: Option<Timestamp>,
    /// The startup tasks that are each pod's own, by pod and run, as its present process has called them.
    own: BTreeMap<(PodId, String), Own>,
    /// The timetables that each schedule has had.
    timetables: BTreeMap<String, Vec<Timetable>>,
}

/// A startup task that is a pod's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Own {
    /// The agent waits for an answer.
    Runs,
    Failed,
    Done,
}

/// By what a schedule goes for some time.
#[derive(Debug)]
struct Timetable {
    /// When it was published, by the masters.
    since: i128,
    /// How far ticks are apart, in milliseconds; none while there are to be none.
    every: Option<u64>,
    /// All was well by then, and so it reached everybody at once.
    calm: bool,
}

/// A run, as it really went.
#[derive(Debug, Default)]
struct Run {
    attempts: Vec<Attempt>,
    /// A result after which nothing may follow is recorded.
    is_final: bool,
    /// What was said that it came to.
    over: Option<Verdict>,
    edited: Edits,
}

/// What befell the schedule of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Edits {
    /// Nothing that is of interest.
    #[default]
    None,
    /// An attempt was claimed when all was well, and nothing yet.
    Claimed,
    /// It was edited after that.
    Kept,
    /// It was taken out of the files.
    TakenOut,
}

#[derive(Debug)]
struct Attempt {
    number: u32,
    nonce: String,
    deadline: Timestamp,
    /// The app works at it.
    runs: bool,
    ended: Option<OutcomeKind>,
    /// It began when all was well.
    calm: bool,
}

/// A time of day, from nanoseconds since 1970.
pub(crate) fn time(nanos: i128) -> Timestamp {
    Timestamp::from_nanosecond(nanos).unwrap_or(Timestamp::UNIX_EPOCH)
}

impl Watch {
    pub(crate) fn new(file: &AgentFile) -> Self {
        let first = |it: &Schedule| (it.name.clone(), vec![Timetable { since: 0, every: it.every_ms, calm: false }]);
        Self { timetables: file.schedules.iter().map(first).collect(), ..Self::default() }
    }

    fn high(&self) -> Timestamp {
        time(self.high)
    }

    /// No majority has a memory: nothing is promised any more about what ran before.
    pub(crate) fn lose(&mut self) {
        self.losses += 1;
        self.runs.clear();
    }

    /// What starts with another process of an agent: its gate is shut.
    pub(super) fn process_ends(&mut self, pod: PodId) {
        self.open.remove(&pod);
        self.own.retain(|(of, _), _| *of != pod);
    }

    /// Nobody needs to hear any more what these attempts come to.
    pub(super) fn are_untold(&mut self, nonces: &BTreeSet<String>) {
        let attempts = self.runs.values_mut().flat_map(|run| &mut run.attempts);
        attempts.filter(|it| nonces.contains(&it.nonce)).for_each(|it| it.calm = false);
    }

    /// The agent has its answer about a task of the pod's own, or waits no more for it.
    pub(super) fn own_ends(&mut self, pod: PodId, run: String, done: bool) {
        self.own.insert((pod, run), if done { Own::Done } else { Own::Failed });
    }

    /// The runs of a schedule's ticks.
    fn ticks_of(&mut self, name: &str) -> impl Iterator<Item = &mut Run> {
        let of = move |id: &str| matches!(parse_id(id), Some((of, Some(Occasion::Tick(_)))) if of == name);
        self.runs.iter_mut().filter(move |(id, _)| of(id)).map(|(_, run)| run)
    }

    /// A schedule is in the files no more: of what runs nobody says what it comes to.
    pub(super) fn taken_out(&mut self, name: &str) {
        self.ticks_of(name).for_each(|run| run.edited = Edits::TakenOut);
    }

    /// A schedule has other ticks from now on, or none.
    pub(super) fn edited(&mut self, name: &str, since: i128, every: Option<u64>) {
        let calm = self.calm_since.is_some();
        self.timetables.entry(name.to_owned()).or_default().push(Timetable { since, every, calm });
        if calm {
            let goes_on = |run: &&mut Run| run.edited == Edits::Claimed && run.over.is_none();
            self.ticks_of(name).filter(goes_on).for_each(|run| run.edited = Edits::Kept);
        }
    }

    pub(super) fn ends(&mut self, run: &str, nonce: &str, kind: OutcomeKind) {
        let attempts = self.runs.get_mut(run).into_iter().flat_map(|run| &mut run.attempts);
        for attempt in attempts.filter(|it| it.nonce == nonce) {
            (attempt.runs, attempt.ended) = (false, Some(kind));
        }
    }

    pub(super) fn shows(&mut self, status: &ScheduleStatus) {
        self.created.insert(status.name.clone(), status.created);
    }

    /// Tasks and revisions that are recorded to be done.
    pub(super) fn startups_done(&self) -> Vec<(String, String)> {
        let parts = self.done.iter().filter_map(|id| id.strip_prefix("u/")?.split_once('/'));
        parts.map(|(task, revision)| (task.to_owned(), revision.to_owned())).collect()
    }

    /// A leader says that a startup task is done. Who led when a majority's memory was lost may say so of what is lost.
    pub(super) fn says_done(&mut self, id: String) {
        if self.losses == 0 {
            self.runs.entry(id).or_default().over = Some(Verdict::Done);
        }
    }

    /// Whether somebody has said what a run came to.
    pub(crate) fn is_told(&self, id: &str) -> bool {
        self.runs.get(id).is_some_and(|run| run.over.is_some())
    }

    pub(super) fn all_is_well(&mut self) {
        self.calm_since = Some(self.high());
    }

    /// From when on no tick of a schedule's timetable may be missing, if it was seen by then.
    fn settled_since(&self, name: &str, slack: i128) -> Timestamp {
        match self.timetables.get(name).map(Vec::as_slice) {
            Some([.., _, last]) if last.calm => time(last.since + slack),
            // Nobody may have led when it was edited, and for some time after.
            Some([.., _, _]) => self.calm_since.unwrap_or(Timestamp::MAX),
            // When it was seen first is known.
            _ => Timestamp::MIN,
        }
    }

    /// Whether the app of any pod has ever done the task.
    fn was_done(&self, id: &str) -> bool {
        let done = |attempt: &Attempt| attempt.ended == Some(OutcomeKind::Done);
        self.done.contains(id) || self.runs.get(id).is_some_and(|run| run.attempts.iter().any(done))
    }
}

impl World {
    /// The time of day by the median of the nodes' clocks, as they really are.
    pub(crate) fn now_by_median(&mut self) -> i128 {
        let mut clocks: Vec<_> = (0..self.nodes.len()).map(|node| i128::from(self.shows(node).as_nanos())).collect();
        clocks.sort_unstable();
        let now = clocks[clocks.len() / 2];
        self.watch.high = self.watch.high.max(now);
        now
    }

    /// How far an agent's time of day may be ahead of that: by what clocks part between two answers.
    pub(super) fn slack(&self) -> i128 {
        let ttl = i128::from(nanos(self.longest_ttl));
        let part = match self.plan.clocks {
            Clocks::Kept => ttl / 50,
            Clocks::Loose => ttl / 5,
            // A jump shows at the next answer.
            Clocks::Jump => ttl * 3 / 2,
        };
        part + i128::from(5 * MS)
    }

    /// The clock of a node is about to go back. Who leads goes by what it showed before until the next answer, for a lease
    /// at most.
    pub(crate) fn clocks_go_back(&mut self) {
        let lease = i128::from(nanos(self.longest_ttl));
        self.watch.high = self.watch.high.max(self.now_by_median() + lease * 3 / 2);
    }

    fn is_past(&mut self, time: Timestamp) -> bool {
        self.now_by_median();
        self.watch.high + self.slack() >= time.as_nanosecond()
    }

    /// Claims are sent: no tick is claimed that has not come by the median of the masters.
    pub(super) fn claims(&mut self, pod: PodId, puts: &[Put]) -> Result<(), Violation> {
        for put in puts {
            let Some((_, Some(occasion))) = parse_id(&put.id) else {
                if put.attempt > 0 {
                    self.note_sent(pod, put);
                }
                continue;
            };
            if let Some(tick) = occasion.tick()
                && !self.is_past(tick)
            {
                let now = self.watch.high();
                return broken(Promise::NotAhead, format!("a{pod} claims {tick} when it is {now} by the masters"));
            }
            if self.watch.calm_since.is_some() {
                let run = self.watch.runs.entry(put.id.clone()).or_default();
                if run.edited == Edits::None {
                    run.edited = Edits::Claimed;
                }
            }
            self.note_sent(pod, put);
        }
        Ok(())
    }

    fn note_sent(&mut self, pod: PodId, put: &Put) {
        self.say(|| format!("a{pod} claims {} #{} as {}", put.id, put.attempt, put.nonce));
        let losses = self.watch.losses;
        self.watch.sent.insert(put.nonce.clone(), losses);
    }

    /// An app begins an attempt.
    pub(super) fn begins(&mut self, pod: PodId, start: &Start, token: u64) -> Result<(), Violation> {
        let Start { kind, name, .. } = start;
        let caller = (pod, self.pods[pod].process);
        if *self.watch.callers.entry(token).or_insert(caller) != caller {
            return broken(Promise::OneCaller, format!("a{pod} calls under {token}, as another process has before"));
        }
        match kind {
            Kind::Schedule => self.schedule_begins(pod, start)?,
            Kind::Startup => self.startup_begins(pod, name, &start.run)?,
        }
        self.attempt_begins(start)
    }

    /// An app begins an attempt, called or only asked about it.
    pub(super) fn attempt_begins(&mut self, start: &Start) -> Result<(), Violation> {
        let Start { id, attempt, kind, .. } = start;
        let what = format!("{id} #{}", attempt.number);
        // What was asked before a loss is of the time around it.
        if self.watch.sent.get(&attempt.nonce) != Some(&self.watch.losses) {
            return Ok(());
        }
        // Where clocks stand still and jump, who stood still calls when its time has come for nobody else.
        let timely = self.plan.clocks != Clocks::Jump;
        let run = self.watch.runs.entry(id.clone()).or_default();
        if run.is_final && timely {
            return broken(Promise::OverIsOver, format!("{what} begins, and a result is recorded that is final"));
        }
        if let Some(verdict) = run.over.filter(|_| *kind == Kind::Startup && timely) {
            return broken(Promise::OverIsOver, format!("{what} begins, and it was said to be {verdict:?}"));
        }
        if run.attempts.iter().any(|it| it.number == attempt.number) {
            return broken(Promise::AttemptOnce, format!("{what} begins for the second time"));
        }
        let other = run.attempts.iter().find(|it| it.runs && timely).map(|it| (it.number, it.deadline));
        if let Some((other, deadline)) = other
            && !self.is_past(deadline)
        {
            return broken(
                Promise::OneAttempt,
                format!("{what} begins beside attempt {other}, which has until {deadline}"),
            );
        }
        let calm = self.watch.calm_since.is_some();
        if let Some(run) = self.watch.runs.get_mut(id) {
            let (number, nonce) = (attempt.number, attempt.nonce.clone());
            run.attempts.push(Attempt { number, nonce, deadline: attempt.deadline, runs: true, ended: None, calm });
        }
        Ok(())
    }

    fn schedule_begins(&mut self, pod: PodId, start: &Start) -> Result<(), Violation> {
        if !self.watch.open.get(&pod).is_some_and(|open| *open) {
            return broken(Promise::GateFirst, format!("app {pod} runs {} before its gate is open", start.id));
        }
        let Some((name, Some(Occasion::Tick(tick)))) = parse_id(&start.id) else { return Ok(()) };
        let Some(schedule) = self.schedule(name).cloned() else { return Ok(()) };
        self.begins_in_time(&schedule, tick, start)?;
        self.is_in_force(name, tick, start)?;
        if matches!(schedule.overlap, Overlap::AllowAll | Overlap::CancelOther) || self.plan.clocks == Clocks::Jump {
            return Ok(());
        }
        let runs = self.watch.runs.iter().filter(|(id, run)| **id != start.id && run.edited != Edits::TakenOut);
        let others = runs.filter(|(id, _)| matches!(parse_id(id), Some((of, Some(Occasion::Tick(_)))) if of == name));
        let busy = others.flat_map(|(id, run)| run.attempts.iter().map(move |it| (id, it))).filter(|(_, it)| it.runs);
        let busy: Vec<_> = busy.map(|(id, attempt)| (id.clone(), attempt.deadline)).collect();
        for (other, deadline) in busy {
            if !self.is_past(deadline) {
                return broken(
                    Promise::NoOverlap,
                    format!("{} begins beside {other}, which has until {deadline}", start.id),
                );
            }
        }
        Ok(())
    }

    /// I5: no tick is begun that is older than the window.
    fn begins_in_time(&mut self, schedule: &Schedule, tick: Timestamp, start: &Start) -> Result<(), Violation> {
        let waits = matches!(schedule.overlap, Overlap::BufferOne | Overlap::BufferAll);
        if waits || start.attempt.number > 1 || self.plan.clocks != Clocks::Kept {
            return Ok(());
        }
        let window = match schedule.catch_up.policy {
            CatchUpPolicy::None => 0,
            CatchUpPolicy::Latest | CatchUpPolicy::All => schedule.catch_up.window_ms * MS,
        };
        // A claim is under way until the lease ends at the latest; clocks part, and ticks have jitter.
        let late = window.max(GRACE) + 2 * nanos(self.longest_ttl) + schedule.jitter_ms * MS;
        let age = self.now_by_median() - tick.as_nanosecond();
        if age > i128::from(late) {
            return broken(Promise::InWindow, format!("{} begins {} ms late", start.id, age / i128::from(MS)));
        }
        Ok(())
    }

    /// A tick is of the timetable that was in force when it came, or that its leader had to take for that: files are on
    /// their way for a ttl at most, and nobody who reads them stands still for more than three. A leader whose machine stood
    /// still, clock and all, is behind in time until it hears of the masters' again, for a lease at most.
    fn is_in_force(&self, name: &str, tick: Timestamp, start: &Start) -> Result<(), Violation> {
        let Some(tables) = self.watch.timetables.get(name) else { return Ok(()) };
        if start.attempt.number > 1 || self.plan.clocks == Clocks::Jump {
            return Ok(());
        }
        let (slack, way) = (self.slack(), i128::from(nanos(self.plan.ttl)));
        let until = |next: &Timetable| next.since + slack + if next.calm { 0 } else { 4 * way };
        let is_of = |(at, table): (usize, &Timetable)| {
            let fits = |every: u64| tick.as_nanosecond() % i128::from(every * MS) == 0;
            table.every.is_some_and(fits)
                && tick.as_nanosecond() >= table.since - slack - way
                && tables.get(at + 1).is_none_or(|next| tick.as_nanosecond() <= until(next))
        };
        if tables.iter().enumerate().any(is_of) {
            return Ok(());
        }
        broken(Promise::Edited, format!("{} begins, of a timetable that is not in force: {tables:?}", start.id))
    }

    /// An app begins an attempt at a task of its pod's own.
    pub(super) fn own_begins(&mut self, pod: PodId, start: &Start) -> Result<(), Violation> {
        let (id, what) = (start.id.clone(), format!("{} #{} of pod {pod}", start.id, start.attempt.number));
        let revision = task_revision(self.desks[pod].revision);
        if let Some(before) = self.not_done_before(pod, &start.name, &revision) {
            return broken(Promise::OwnTasks, format!("{what} begins before {before} is done"));
        }
        match self.watch.own.insert((pod, id), Own::Runs) {
            Some(other @ (Own::Runs | Own::Done)) => {
                broken(Promise::OwnTasks, format!("{what} begins beside or after another attempt: {other:?}"))
            }
            _ => Ok(()),
        }
    }

    /// What `task` comes after and is not done, if there is such.
    fn not_done_before(&self, pod: PodId, task: &str, revision: &str) -> Option<String> {
        let task = self.desks[pod].file.startups.iter().find(|it| it.name == task)?;
        let mut before = task.after.iter().map(|before| record_id(before, revision));
        before.find(|id| self.watch.losses == 0 && !self.watch.was_done(id))
    }

    fn startup_begins(&mut self, pod: PodId, task: &str, revision: &str) -> Result<(), Violation> {
        let own = self.desks[pod].revision;
        if revision != task_revision(own) {
            return broken(Promise::OwnRevision, format!("app {pod} of {} runs {task} of {revision}", hash(own)));
        }
        let file = &self.desks[pod].file;
        if file.floor.startups.get(task).is_some_and(|done| done.iter().any(|it| it == revision)) {
            return broken(Promise::StartupOnce, format!("app {pod} runs {task}, which its files say is done"));
        }
        match self.not_done_before(pod, task, revision) {
            Some(id) => broken(Promise::TaskOrder, format!("app {pod} runs {task} before {id} is done")),
            None => Ok(()),
        }
    }

    /// A gate was shut or open, and is now.
    pub(super) fn gate_shows(&mut self, pod: PodId, was_open: bool, is_open: bool) -> Result<(), Violation> {
        let known = self.watch.open.insert(pod, is_open).unwrap_or_default();
        if (was_open || known) && !is_open {
            return broken(Promise::GateStays, format!("the gate of pod {pod} closes"));
        }
        if is_open && !known {
            self.say(|| format!("the gate of pod {pod} opens"));
            let revision = task_revision(self.desks[pod].revision);
            let tasks = || self.desks[pod].file.startups.iter().filter(|it| it.gate == Gate::Ready);
            let own = tasks().filter(|it| it.scope == Scope::Instance).map(|it| format!("i/{}", it.name));
            let is_done = |id: &String| self.watch.own.get(&(pod, id.clone())) == Some(&Own::Done);
            if let Some(id) = own.into_iter().find(|id| !is_done(id)) {
                return broken(Promise::OwnTasks, format!("the gate of pod {pod} opens before {id} is done there"));
            }
            let all = tasks().filter(|it| it.scope == Scope::Cluster).map(|it| record_id(&it.name, &revision));
            if let Some(id) = all.into_iter().find(|id| self.watch.losses == 0 && !self.watch.was_done(id)) {
                return broken(Promise::GateWaits, format!("the gate of pod {pod} opens before {id} is done"));
            }
        }
        Ok(())
    }

    /// How an attempt ended is recorded.
    pub(super) fn recorded(&mut self, id: &str, result: &RunResult) {
        self.outcome.tally.results += 1;
        let outcome = serde_json::from_value::<Outcome>(result.data.clone());
        let done = outcome.is_ok_and(|outcome| outcome.kind == OutcomeKind::Done);
        if done && id.starts_with("u/") {
            self.watch.done.insert(id.to_owned());
            let after = self.around(2000);
            self.engine_in(after, super::Due::Mirror);
        }
        let losses = self.watch.sent.get(&result.nonce) == Some(&self.watch.losses);
        if result.done && losses {
            self.watch.runs.entry(id.to_owned()).or_default().is_final = true;
        }
    }

    /// A leader says what a run came to.
    pub(super) fn over(&mut self, schedule: &str, result: &TickResult) -> Result<(), Violation> {
        let occasion = match (&result.trigger, &result.backfill) {
            (Some(id), _) => Occasion::Trigger(id.clone()),
            (None, Some(id)) => Occasion::Backfill { tick: result.tick, id: id.clone() },
            (None, None) => Occasion::Tick(result.tick),
        };
        let run = self.watch.runs.entry(run_id(schedule, &occasion)).or_default();
        run.over = Some(result.verdict);
        let calm = !run.attempts.is_empty() && run.attempts.iter().all(|it| it.calm);
        let done = run.attempts.iter().any(|it| it.ended == Some(OutcomeKind::Done));
        // Another agent's call goes on when its run is given up for a later tick.
        if calm && done && result.verdict != Verdict::Done && result.reason != "Cancelled" {
            let what = format!("{schedule} at {} was done, and is said to be {:?}", result.tick, result.verdict);
            return broken(Promise::TrueVerdict, what);
        }
        if self.watch.calm_since.is_some_and(|since| result.tick > since)
            && run.attempts.is_empty()
            && result.reason != "Cancelled"
        {
            let what =
                format!("{schedule} at {} is {:?} ({}), and never began", result.tick, result.verdict, result.reason);
            return broken(Promise::NoneLost, what);
        }
        Ok(())
    }

    pub(super) fn schedule(&self, name: &str) -> Option<&Schedule> {
        self.file.schedules.iter().find(|it| it.name == name)
    }

    /// I5: of schedules that lose no tick whatever happens, each tick since the first has begun, or somebody said what it
    /// came to instead.
    pub(super) fn none_is_lost(&mut self, until: Timestamp) -> Result<(), Violation> {
        // Of what was lost with all memory nothing is known, and clocks that jump make ticks that never fell due.
        if self.watch.losses > 0 || self.plan.clocks == Clocks::Jump {
            return Ok(());
        }
        if let Some((id, _)) = self.watch.runs.iter().find(|(_, run)| run.edited == Edits::Kept && run.over.is_none()) {
            return broken(Promise::EditKeeps, format!("{id} ran when its schedule was edited, and does not end"));
        }
        for schedule in self.file.schedules.iter().filter(|it| !it.suspend) {
            let kept = matches!(schedule.overlap, Overlap::BufferAll | Overlap::AllowAll)
                && schedule.catch_up.policy == CatchUpPolicy::All
                && schedule.catch_up.window_ms > 1_000_000;
            let (Some(created), Some(every)) = (self.watch.created.get(&schedule.name), schedule.every_ms) else {
                continue;
            };
            if !kept {
                continue;
            }
            let every = i64::try_from(every).unwrap_or(i64::MAX);
            let since = self.watch.settled_since(&schedule.name, self.slack()).max(*created);
            let mut tick = (since.as_millisecond() / every + 1) * every;
            while tick <= until.as_millisecond() {
                let at = Timestamp::from_millisecond(tick).unwrap_or(Timestamp::MAX);
                let id = run_id(&schedule.name, &Occasion::Tick(at));
                let run = self.watch.runs.get(&id);
                if run.is_none_or(|run| run.attempts.is_empty() && run.over.is_none()) {
                    return broken(Promise::NoneLost, format!("{id} has not begun, and nobody said anything of it"));
                }
                tick += every;
            }
        }
        Ok(())
    }
}
