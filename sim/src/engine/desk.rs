//! What the agent does around its engine and its gate, as the real driver does (`agent/src/engine.rs`, `agent/src/gate.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

use cabloy_crds::files::AgentFile;
use cabloy_engine::core::{Action, Config, Core, Event, Moment, News, OpId, Start};
use cabloy_engine::gate::Gate;
use cabloy_engine::recording::{After, Recording};
use cabloy_engine::rule::{Rule, Rules};
use cabloy_engine::runs::{Attempt, Outcome, OutcomeKind, decisive};
use cabloy_engine::startup::Place;
use cabloy_redlock::clock::Instant;
use cabloy_redlock::core::Event as Step;
use cabloy_redlock::ledger::{FinishError, PutError, ReadError};
use cabloy_redlock::record::{Record, RunResult};
use jiff::Timestamp;

use super::app::{self, App};
use super::{Due, scene, watch};
use crate::clock::MS;
use crate::truth::Violation;
use crate::work;
use crate::world::{PodId, World};

/// How long an engine that stops waits for claims that are on their way.
const SETTLE: u64 = 500 * MS;

/// How often a gate asks.
const POLL: u64 = 1000 * MS;

/// The longest sleep of an engine.
const NAP: u64 = 5000 * MS;

/// What was asked of the ledger.
#[derive(Debug)]
pub(crate) enum Asked {
    Put {
        token: u64,
        op: OpId,
    },
    Read {
        token: u64,
    },
    Finish {
        recording: Box<Recording>,
        outcome: Option<Outcome>,
    },
    Gate,
    /// Whether a majority has the result of what the engine has read.
    Confirm {
        token: u64,
        id: String,
        result: RunResult,
    },
    /// Whether it has that of what the gate has read.
    ConfirmForGate(Box<Record>),
    /// What the process before may have called.
    Back,
    Forget,
}

/// A pod, but for its part in the election.
#[derive(Debug)]
pub(crate) struct Desk {
    term: Option<Term>,
    pub(super) gate: Gate,
    pub(super) file: Arc<AgentFile>,
    pub(super) version: u64,
    /// The agent has not taken up the file yet, for it stands still.
    pub(super) unread: bool,
    pub(super) uid: String,
    life: u32,
    pub(super) revision: u64,
    /// How far the time of day is ahead of the clock since boot, in nanoseconds, as of the last term.
    offset: i128,
    /// Calls that are made or whose results are being recorded, and the token of their term; the pod's own have none.
    calls: BTreeMap<String, (Start, Option<u64>)>,
    /// What the app is asked about, by the attempt's nonce.
    pub(super) questions: BTreeMap<String, Start>,
    set: u64,
    gate_set: u64,
    asking: bool,
    /// The agent has been started, and is not only to be.
    pub(crate) started: bool,
    pub(crate) app: App,
    pub(super) rules: Rules,
}

/// What all nonces of a process begin with.
pub(super) fn nonces(pod: PodId, process: u32) -> String {
    format!("a{pod}.{process}.")
}

/// The engine of a term.
#[derive(Debug)]
struct Term {
    core: Core,
    token: u64,
    held: bool,
}

impl Desk {
    pub(crate) fn new(pod: PodId, file: Arc<AgentFile>, rules: Rules) -> Self {
        let uid = format!("u{pod}.0");
        Self {
            term: None,
            gate: Gate::under(uid.clone(), Place::Pod(scene::hash(1)), rules),
            file,
            version: 0,
            unread: false,
            uid,
            life: 0,
            revision: 1,
            offset: 0,
            calls: BTreeMap::new(),
            questions: BTreeMap::new(),
            set: 0,
            gate_set: 0,
            asking: false,
            started: false,
            app: App::default(),
            rules,
        }
    }

    pub(super) fn place(&self) -> Place {
        Place::Pod(scene::hash(self.revision))
    }

    /// Another pod takes the place of this one; the app's life goes on being counted.
    pub(super) fn replace(&mut self, pod: PodId, revision: u64) {
        self.life += 1;
        (self.uid, self.revision) = (format!("u{pod}.{}", self.life), revision);
    }

    /// Another process of the agent takes the place of this one, with nothing but the files.
    fn forget(&mut self) {
        self.gate = Gate::under(self.uid.clone(), self.place(), self.rules);
        (self.term, self.offset, self.asking, self.started, self.unread) = (None, 0, false, false, false);
        self.calls.clear();
        self.questions.clear();
    }

    /// Whether no claim is on its way.
    pub(crate) fn is_settled(&self) -> bool {
        self.term.as_ref().is_none_or(|term| term.core.is_settled())
    }

    /// The calls that are made, or whose results are being recorded.
    pub(super) fn calls(&self) -> impl Iterator<Item = &Start> {
        self.calls.values().map(|(start, _)| start)
    }

    /// Whether a call of the agent's is being made.
    pub(super) fn is_calling(&self) -> bool {
        !self.calls.is_empty()
    }
}

impl World {
    pub(crate) fn engine_happens(&mut self, due: Due) -> Result<(), Violation> {
        if let Some((pod, process)) = due.process()
            && !(self.pods[pod].alive && self.pods[pod].process == process)
        {
            return Ok(());
        }
        match due {
            Due::Begin { pod, process, token } => self.begin_term(pod, process, token),
            Due::Tell { pod, token, event, .. } => {
                if self.desks[pod].term.as_ref().is_some_and(|term| term.token == token) {
                    self.engine_step(pod, event)
                } else {
                    Ok(())
                }
            }
            Due::Wake { pod, set, .. } if self.desks[pod].set == set => self.engine_step(pod, Event::Wake),
            Due::Answer { pod, nonce, kind, .. } => self.answered(pod, &nonce, kind),
            Due::Late { pod, nonce, .. } => self.unanswered(pod, &nonce),
            Due::Record { pod, recording, outcome, .. } => self.record(pod, *recording, outcome),
            Due::Ask { pod, .. } => self.gate_asks(pod),
            Due::Gate { pod, set, .. } if self.desks[pod].gate_set == set => self.gate_step(pod),
            Due::Wake { .. } | Due::Gate { .. } => Ok(()),
            Due::LookBack { pod, .. } => self.look_back(pod),
            Due::AskApp { pod, nonce, .. } => self.ask_app(pod, nonce),
            Due::Told { pod, nonce, told, .. } => self.told(pod, &nonce, told),
            Due::Worked { pod, life, nonce } => {
                self.worked(pod, life, nonce);
                Ok(())
            }
            Due::Files { pod, version, file } => self.files_arrive(pod, version, file),
            Due::AppUp { pod, life } => self.app_is_up(pod, life),
            Due::Trouble => self.engine_trouble(),
            Due::Word { uid, until } => {
                self.word(uid, until);
                Ok(())
            }
            Due::Mirror => {
                self.mirror_done();
                Ok(())
            }
        }
    }

    /// The process of the agent is another one.
    pub(crate) fn agent_begins_anew(&mut self, pod: PodId) {
        self.desks[pod].forget();
        self.watch.process_ends(pod);
    }

    /// The time of day as the agent has it.
    pub(super) fn time_of(&self, pod: PodId) -> Timestamp {
        let clock = self.pods[pod].clock.read(self.now);
        watch::time(i128::from(clock.as_nanos()) + self.desks[pod].offset)
    }

    /// The time of day by what has been heard of the masters, leading or not.
    pub(super) fn time_by_masters(&self, pod: PodId) -> Timestamp {
        let clock = self.pods[pod].clock.read(self.now);
        let offset = self.pods[pod].core.time_offset().unwrap_or(self.desks[pod].offset);
        watch::time(i128::from(clock.as_nanos()) + offset)
    }

    /// The time of day goes by the masters while the agent leads.
    pub(crate) fn set_time(&mut self, pod: PodId) {
        if self.pods[pod].token.is_some()
            && let Some(offset) = self.pods[pod].core.time_offset()
        {
            self.desks[pod].offset = offset;
        }
    }

    /// How long it takes until one task of an agent hears of another.
    pub(super) fn moment(&mut self) -> u64 {
        if !self.calm && self.dice.chance(20) { self.dice.between(MS, 50 * MS) } else { self.dice.between(1, MS / 10) }
    }

    fn tell_engine(&mut self, pod: PodId, token: u64, event: Event) {
        let (process, after) = (self.pods[pod].process, self.moment());
        let is_reading = matches!(event, Event::Read(_));
        let due = Due::Tell { pod, process, token, event };
        match &mut self.readings {
            Some(held) if is_reading => held.push(due),
            _ => self.engine_in(after, due),
        }
    }

    pub(crate) fn engine_leads(&mut self, pod: PodId, token: u64) {
        let (process, after) = (self.pods[pod].process, self.moment());
        self.engine_in(after, Due::Begin { pod, process, token });
    }

    pub(crate) fn engine_follows(&mut self, pod: PodId) {
        if let Some(token) = self.desks[pod].term.as_ref().map(|term| term.token) {
            self.tell_engine(pod, token, Event::Hold);
        }
    }

    fn begin_term(&mut self, pod: PodId, process: u32, token: u64) -> Result<(), Violation> {
        if self.pods[pod].token != Some(token) || !self.pods[pod].candidacy.stands {
            return Ok(());
        }
        if self.desks[pod].term.is_some() {
            self.engine_in(10 * MS, Due::Begin { pod, process, token });
            return Ok(());
        }
        self.set_time(pod);
        let (now, may_claim) = (self.time_of(pod), self.pods[pod].believes(self.now));
        let desk = &mut self.desks[pod];
        let config = Config {
            pod: format!("a{pod}"),
            uid: desk.uid.clone(),
            place: desk.place(),
            nonces: nonces(pod, process) + &token.to_string(),
            rules: desk.rules,
        };
        let moment = Moment { now, may_claim, records: &self.pods[pod].records };
        let (core, actions) = Core::begin(config, Arc::clone(&desk.file), desk.gate.done().clone(), moment);
        desk.term = Some(Term { core, token, held: false });
        let is_open = desk.gate.is_open();
        self.say(|| format!("a{pod} begins to work under {token}"));
        self.carry_out_engine(pod, actions)?;
        if is_open { self.engine_step(pod, Event::GateOpen) } else { Ok(()) }
    }

    pub(super) fn engine_step(&mut self, pod: PodId, event: Event) -> Result<(), Violation> {
        let (now, may_claim) = (self.time_of(pod), self.pods[pod].believes(self.now));
        let Some(term) = &mut self.desks[pod].term else { return Ok(()) };
        self.outcome.tally.engine_steps += 1;
        let gives_up = event == Event::GiveUp;
        term.held |= event == Event::Hold;
        let held = event == Event::Hold;
        let token = term.token;
        let actions = term.core.step(Moment { now, may_claim, records: &self.pods[pod].records }, event);
        let is_over = gives_up || (term.held && term.core.is_settled());
        self.carry_out_engine(pod, actions)?;
        if is_over {
            self.desks[pod].term = None;
        } else if held {
            let process = self.pods[pod].process;
            self.engine_in(SETTLE, Due::Tell { pod, process, token, event: Event::GiveUp });
        }
        Ok(())
    }

    fn carry_out_engine(&mut self, pod: PodId, actions: Vec<Action>) -> Result<(), Violation> {
        let Some(token) = self.desks[pod].term.as_ref().map(|term| term.token) else { return Ok(()) };
        for action in actions {
            match action {
                Action::Put { op, puts } => {
                    self.claims(pod, &puts)?;
                    let id = self.ask_of(pod, Asked::Put { token, op });
                    self.step(pod, Step::Put { op: id, token, puts })?;
                }
                Action::Forget(ids) => {
                    let op = self.ask_of(pod, Asked::Forget);
                    self.step(pod, Step::Forget { op, token, ids })?;
                }
                Action::Read(ids) => {
                    let op = self.ask_of(pod, Asked::Read { token });
                    self.step(pod, Step::Look { op, ids: Some(ids) })?;
                }
                Action::Confirm { id, result } => {
                    let op = self.ask_of(pod, Asked::Confirm { token, id: id.clone(), result: result.clone() });
                    self.step(pod, Step::Finish { op, id, result })?;
                }
                Action::Call(start) => self.call(pod, &start, Some(token))?,
                Action::Cancel { id, attempt } => self.cancel(pod, id, &attempt)?,
                Action::Disown { id, attempt } => {
                    self.say(|| format!("a{pod} says that {} #{} has not begun", id, attempt.number));
                    let recording = Recording::of_disowned(id, &attempt, self.time_of(pod));
                    self.record(pod, recording, None)?;
                }
                Action::Tell(news) => self.hear_engine(pod, news)?,
            }
        }
        self.set_wake(pod);
        Ok(())
    }

    pub(super) fn ask_of(&mut self, pod: PodId, asked: Asked) -> u64 {
        let op = self.next_op();
        self.pods[pod].asked.insert(op, work::Asked::Engine(asked));
        op
    }

    /// The driver sleeps until the engine has something to do.
    fn set_wake(&mut self, pod: PodId) {
        let now = self.pods[pod].clock.read(self.now);
        let Some(term) = &self.desks[pod].term else { return };
        let (time, process) = (self.time_of(pod), self.pods[pod].process);
        let nap = term.core.wake().map_or(NAP, |at| {
            let span = at.as_nanosecond() - time.as_nanosecond();
            u64::try_from(span).unwrap_or_default().clamp(MS, NAP)
        });
        let when = self.pods[pod].clock.when(Instant::from_nanos(now.as_nanos() + nap));
        self.desks[pod].set += 1;
        let set = self.desks[pod].set;
        self.plan_at(when, crate::world::Due::Engine(Due::Wake { pod, process, set }));
    }

    fn hear_engine(&mut self, pod: PodId, news: News) -> Result<(), Violation> {
        match news {
            News::Done(id) => {
                self.watch.says_done(id.clone());
                self.desks[pod].gate.note_done([id]);
                self.gate_step(pod)
            }
            News::Over { schedule, result, .. } => {
                self.say(|| {
                    format!("a{pod}: {schedule} at {} is over: {:?} {}", result.tick, result.verdict, result.reason)
                });
                self.over(&schedule, &result)
            }
            News::Skipped { schedule, ticks } => {
                self.say(|| format!("a{pod}: {ticks} ticks of {schedule} are skipped"));
                Ok(())
            }
            News::Missed { schedule, ticks } => {
                self.say(|| format!("a{pod}: {ticks} ticks of {schedule} are missed"));
                Ok(())
            }
            News::Schedule(status, _) => {
                self.watch.shows(&status);
                Ok(())
            }
            News::StartupOver { task, ending, .. } => {
                self.say(|| format!("a{pod}: {task} is over: {:?} {}", ending.verdict, ending.reason));
                Ok(())
            }
            News::Dropped(id) => {
                self.say(|| format!("a{pod} drops {id}"));
                Ok(())
            }
            News::Unusable { .. }
            | News::Startup(_)
            | News::StartupBegins { .. }
            | News::Awaits { .. }
            | News::TakenOver(_)
            | News::ScheduleGone(_) => Ok(()),
        }
    }

    // --- what comes back from the ledger

    pub(crate) fn engine_put(&mut self, pod: PodId, token: u64, op: OpId, results: Vec<Result<(), PutError>>) {
        self.tell_engine(pod, token, Event::Put { op, results });
    }

    pub(crate) fn engine_read(
        &mut self,
        pod: PodId,
        asked: &Asked,
        found: Result<Vec<Record>, ReadError>,
    ) -> Result<(), Violation> {
        match asked {
            Asked::Read { token } => {
                self.tell_engine(pod, *token, Event::Read(found));
                return Ok(());
            }
            Asked::Back => return self.ask_about(pod, found),
            _ => {}
        }
        self.desks[pod].asking = false;
        let confirms = self.desks[pod].rules.hold(Rule::Confirm);
        let is_known = |record: &Record| decisive(record).is_none() || !confirms;
        let (known, others): (Vec<_>, Vec<_>) = found.unwrap_or_default().into_iter().partition(is_known);
        self.desks[pod].gate.read(&known);
        self.gate_step(pod)?;
        for record in others {
            let (id, Some(result)) = (record.id.clone(), decisive(&record).cloned()) else { continue };
            let op = self.ask_of(pod, Asked::ConfirmForGate(Box::new(record)));
            self.step(pod, Step::Finish { op, id, result })?;
        }
        Ok(())
    }

    /// A majority has, or has not, taken a result.
    pub(crate) fn engine_recorded(
        &mut self,
        pod: PodId,
        asked: Asked,
        answer: Result<(), FinishError>,
    ) -> Result<(), Violation> {
        match asked {
            Asked::Finish { recording, outcome } => return self.engine_finished(pod, recording, outcome, answer),
            Asked::Confirm { token, id, result } => {
                if answer.is_ok() {
                    self.recorded(&id, &result);
                }
                self.tell_engine(pod, token, Event::Confirmed { id, answer });
            }
            Asked::ConfirmForGate(record) if answer.is_ok() => {
                if let Some(result) = decisive(&record) {
                    self.recorded(&record.id, result);
                }
                self.desks[pod].gate.read(&[*record]);
                return self.gate_step(pod);
            }
            _ => {}
        }
        Ok(())
    }

    /// The ledger has or has not taken how an attempt ended.
    fn engine_finished(
        &mut self,
        pod: PodId,
        recording: Box<Recording>,
        outcome: Option<Outcome>,
        result: Result<(), FinishError>,
    ) -> Result<(), Violation> {
        let (id, nonce) = (recording.id.clone(), recording.result.nonce.clone());
        match recording.after(result, self.time_by_masters(pod)) {
            After::Again(pause) => {
                let pause = crate::world::nanos(pause).max(MS);
                let process = self.pods[pod].process;
                self.engine_in(pause, Due::Record { pod, process, recording, outcome });
                return Ok(());
            }
            After::Recorded => {
                self.say(|| format!("a{pod} has recorded how {id} ended, {nonce}"));
                self.recorded(&recording.id, &recording.result);
            }
            After::GivenUp(error) => self.say(|| format!("a{pod} does not record how {id} ended: {error}")),
        }
        // Of what was not called the ledger tells.
        let Some(outcome) = outcome else { return Ok(()) };
        self.desks[pod].calls.remove(&nonce);
        self.engine_ended(pod, id, nonce, Some(outcome))
    }

    fn engine_ended(
        &mut self,
        pod: PodId,
        id: String,
        nonce: String,
        outcome: Option<Outcome>,
    ) -> Result<(), Violation> {
        self.engine_step(pod, Event::Ended { id, nonce, outcome })
    }

    pub(super) fn record(
        &mut self,
        pod: PodId,
        recording: Recording,
        outcome: Option<Outcome>,
    ) -> Result<(), Violation> {
        let (id, result) = (recording.id.clone(), recording.result.clone());
        let op = self.ask_of(pod, Asked::Finish { recording: Box::new(recording), outcome });
        self.step(pod, Step::Finish { op, id, result })
    }

    // --- calls

    fn call(&mut self, pod: PodId, start: &Start, token: Option<u64>) -> Result<(), Violation> {
        let nonce = app::key(start, self.pods[pod].process);
        self.set_deadline(pod, start, nonce.clone(), self.time_of(pod));
        self.desks[pod].calls.insert(nonce, (start.clone(), token));
        self.outcome.tally.calls += 1;
        self.app_is_called(pod, start, token)
    }

    /// No answer counts that has not come by the deadline of the attempt.
    pub(super) fn set_deadline(&mut self, pod: PodId, start: &Start, nonce: String, now: Timestamp) {
        let (clock, process) = (self.pods[pod].clock.read(self.now), self.pods[pod].process);
        let left = u64::try_from(start.attempt.deadline.as_nanosecond() - now.as_nanosecond()).unwrap_or_default();
        let when = self.pods[pod].clock.when(Instant::from_nanos(clock.as_nanos() + left));
        self.plan_at(when, crate::world::Due::Engine(Due::Late { pod, process, nonce }));
    }

    /// A call has come to its end, and that is recorded, by whom it was made and whoever leads.
    fn answered(&mut self, pod: PodId, nonce: &str, kind: OutcomeKind) -> Result<(), Violation> {
        let Some((start, token)) = self.desks[pod].calls.get(nonce).cloned() else { return Ok(()) };
        let outcome = app::outcome(kind, self.time_of(pod));
        let Some(token) = token else { return self.own_ended(pod, nonce, &start, Some(outcome)) };
        let leads = self.desks[pod].term.as_ref().is_some_and(|term| term.token == token);
        if !leads && !self.desks[pod].rules.hold(Rule::RecordAlways) {
            self.desks[pod].calls.remove(nonce);
            return Ok(());
        }
        let recording = Recording::of_call(start.id.clone(), &start.attempt, &outcome);
        self.record(pod, recording, Some(outcome))
    }

    fn unanswered(&mut self, pod: PodId, nonce: &str) -> Result<(), Violation> {
        self.desks[pod].questions.remove(nonce);
        // An answer that has come is being recorded.
        let is_recorded = self.pods[pod].asked.values().any(|asked| {
            matches!(asked, work::Asked::Engine(Asked::Finish { recording, .. }) if recording.result.nonce == *nonce)
        });
        if is_recorded || !self.desks[pod].app.running.contains_key(nonce) {
            return Ok(());
        }
        let Some((start, token)) = self.desks[pod].calls.remove(nonce) else { return Ok(()) };
        self.say(|| format!("a{pod} has no answer for {} before the deadline", start.id));
        if token.is_none() {
            return self.own_ended(pod, nonce, &start, None);
        }
        self.engine_ended(pod, start.id, nonce.to_owned(), None)
    }

    fn cancel(&mut self, pod: PodId, id: String, attempt: &Attempt) -> Result<(), Violation> {
        self.say(|| format!("a{pod} gives up {id} #{}", attempt.number));
        let outcome = Outcome::cancelled(self.time_of(pod));
        if self.desks[pod].questions.remove(&attempt.nonce).is_some() {
            // The app does not hear of it: who had called it is gone.
            return self.record(pod, Recording::of_call(id, attempt, &outcome), None);
        }
        if self.desks[pod].calls.contains_key(&attempt.nonce) {
            if !self.desks[pod].app.running.contains_key(&attempt.nonce) {
                return Ok(());
            }
            self.hung_up(pod, &attempt.nonce);
            return self.record(pod, Recording::of_call(id, attempt, &outcome), Some(outcome));
        }
        self.record(pod, Recording::of_cancelled(id, attempt, &outcome), None)
    }

    // --- the gate

    pub(crate) fn gate_step(&mut self, pod: PodId) -> Result<(), Violation> {
        let now = self.time_of(pod);
        let desk = &mut self.desks[pod];
        let (was_open, done) = (desk.gate.is_open(), desk.gate.done().len());
        let file = Arc::clone(&desk.file);
        let healthy = !desk.app.down;
        let calls = desk.gate.step(&file, healthy, now);
        let (is_open, more) = (desk.gate.is_open(), desk.gate.done().len() > done);
        let (known, questions) = (desk.gate.done().clone(), !desk.gate.questions().is_empty());
        let (asking, process) = (desk.asking, self.pods[pod].process);
        self.gate_shows(pod, was_open, is_open)?;
        let token = self.desks[pod].term.as_ref().map(|term| term.token);
        if let Some(token) = token.filter(|_| more) {
            self.tell_engine(pod, token, Event::Done(known));
        }
        if let Some(token) = token.filter(|_| is_open && !was_open) {
            self.tell_engine(pod, token, Event::GateOpen);
        }
        if questions && !asking {
            self.desks[pod].asking = true;
            self.engine_in(POLL, Due::Ask { pod, process });
        }
        calls.iter().try_for_each(|start| self.call(pod, start, None))?;
        if let Some(at) = self.desks[pod].gate.wake(now) {
            let span = u64::try_from(at.as_nanosecond() - now.as_nanosecond()).unwrap_or_default();
            self.gate_in(pod, span.clamp(MS, NAP));
        }
        Ok(())
    }

    /// The gate has something to do after this time.
    pub(super) fn gate_in(&mut self, pod: PodId, after: u64) {
        self.desks[pod].gate_set += 1;
        let (process, set) = (self.pods[pod].process, self.desks[pod].gate_set);
        self.engine_in(after, Due::Gate { pod, process, set });
    }

    /// A call for a task of the pod's own has come to its end.
    fn own_ended(&mut self, pod: PodId, key: &str, start: &Start, outcome: Option<Outcome>) -> Result<(), Violation> {
        let now = self.time_of(pod);
        self.desks[pod].calls.remove(key);
        let done = outcome.as_ref().is_some_and(|outcome| outcome.kind == OutcomeKind::Done);
        self.watch.own_ends(pod, start.id.clone(), done);
        _ = self.desks[pod].gate.ended(&start.id, &start.attempt.nonce, outcome, now);
        self.gate_step(pod)
    }

    fn gate_asks(&mut self, pod: PodId) -> Result<(), Violation> {
        let ids = self.desks[pod].gate.questions();
        if ids.is_empty() {
            self.desks[pod].asking = false;
            return Ok(());
        }
        let op = self.ask_of(pod, Asked::Gate);
        self.step(pod, Step::Look { op, ids: Some(ids) })
    }
}
