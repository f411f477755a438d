//! The work of one term as a pure state machine: `step(moment, event) -> actions`, without ledger, calls, clock or
//! randomness.
//!
//! The driver hands in what happens and carries out what comes back; a simulator does the same with a world of its own,
//! so nothing that decides what is run may live anywhere else than here and in what this calls.
//!
//! * this file: events, actions, and what is due when;
//! * `claims`: what is to be written, what was written, and the calls that follow;
//! * `schedules` and `startups`: from the files and the ledger to lines and runs;
//! * `readings`: runs that go on elsewhere, and records that belong to nothing.
//!
//! Nothing is called whose claim a majority has not taken. Calls outlive the term: a run that it began stays the agent's
//! own until its deadline, and its result is recorded by nonce, whoever leads by then ([`crate::recording`]).

mod claims;
mod readings;
mod schedules;
mod startups;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use cabloy_crds::agent_status::{Awaited, Problem, ScheduleStatus, StartupStatus, TickResult};
use cabloy_crds::files::{AgentFile, Target};
use cabloy_redlock::ledger::{FinishError, Put, PutError, ReadError};
use cabloy_redlock::record::{Record, Records, RunResult};
use jiff::Timestamp;

use self::claims::{Claims, Keeping};
use self::startups::Startup;
use crate::rule::{Rule, Rules};
use crate::runs::{Attempt, Ending, Outcome, Run, plus};
use crate::schedule::{Handover, Line, parse_id};
use crate::startup::{Place, Plan};

/// A write to the ledger; named by the core.
pub type OpId = u64;

/// What a core is made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of the pod; claims say it.
    pub pod: String,
    /// UID of the pod; claims say it.
    pub uid: String,
    /// Where it runs.
    pub place: Place,
    /// What its nonces begin with: no other core has ever had or will have the same.
    pub nonces: String,
    /// All, but for a simulator's negative controls.
    pub rules: Rules,
}

/// The term, as it is at a step.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    /// The time of day by the median of the masters, so that all leaders agree on what is due and on deadlines.
    pub now: Timestamp,
    /// Whether claims may be made: by the clock, and not only by what the election has said so far.
    pub may_claim: bool,
    /// What the fenced read found, and everything written since.
    pub records: &'a Records,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It may be the time of [`Core::wake`].
    Wake,
    /// Other files are there.
    Files(Arc<AgentFile>),
    /// The pod's gate is open: schedules are run from now on.
    GateOpen,
    /// The ids of the startup tasks that are known to be done; never fewer than before.
    Done(BTreeSet<String>),
    /// Of schedules that take over one of the app's own, how that is done; all that are known.
    Handovers(BTreeMap<Arc<str>, Handover>),
    /// A write is decided; results in the order of its puts.
    Put {
        /// Which.
        op: OpId,
        /// How it went.
        results: Vec<Result<(), PutError>>,
    },
    /// What a majority holds of the runs that were asked for.
    Read(Result<Vec<Record>, ReadError>),
    /// A majority has what was read of a run, or has not.
    Confirmed {
        /// The run.
        id: String,
        /// How it went.
        answer: Result<(), FinishError>,
    },
    /// A call has ended, and that is recorded.
    Ended {
        /// The run.
        id: String,
        /// The attempt.
        nonce: String,
        /// How; none if there was no answer before the deadline.
        outcome: Option<Outcome>,
    },
    /// The term has ended or is about to be given back: nothing is claimed any more. What has come through by now is
    /// called still, for nobody else will.
    Hold,
    /// Claims that are on their way are not waited for any longer.
    GiveUp,
}

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Write, all in one round; answered by [`Event::Put`].
    Put {
        /// Names the write.
        op: OpId,
        /// What.
        puts: Vec<Put>,
    },
    /// Remove records. Whether it worked makes no difference: something else says that they are over.
    Forget(Vec<String>),
    /// Ask a majority for the records of these runs; answered by [`Event::Read`]. One such question at a time.
    Read(Vec<String>),
    /// Record this result of a run once more: it was read, and only a minority may have it. Answered by
    /// [`Event::Confirmed`].
    Confirm {
        /// The run.
        id: String,
        /// The result.
        result: RunResult,
    },
    /// Make a call, record what comes of it, and then say so by [`Event::Ended`]. Done even when the term has ended.
    Call(Box<Start>),
    /// End an attempt: hang up where the call is this agent's, whichever term began it; else record that it was
    /// cancelled. It may have ended before in another way, so that the ledger tells how.
    Cancel {
        /// The run.
        id: String,
        /// The attempt.
        attempt: Attempt,
    },
    /// Record of an attempt whose claim is in doubt that it has not begun.
    Disown {
        /// The run.
        id: String,
        /// The attempt.
        attempt: Attempt,
    },
    /// Tell the agent.
    Tell(News),
}

/// A call to be made: its claim has come through.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    /// The id of the run.
    pub id: String,
    /// What is run.
    pub kind: Kind,
    /// Name of the schedule or task.
    pub name: Arc<str>,
    /// What tells runs of the same name apart: the tick in RFC 3339, or the revision.
    pub run: String,
    /// The tick, or when the attempt began.
    pub time: Timestamp,
    /// Which attempt, and until when.
    pub attempt: Attempt,
    /// How late a tick's first attempt is.
    pub lateness: Option<Duration>,
    /// It was made before, by a process of the agent that has ended: the app is asked what became of it, and begins
    /// nothing.
    pub asks: bool,
    /// What is called.
    pub target: Target,
}

/// What a run is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of a schedule.
    Schedule,
    /// Of a startup task.
    Startup,
}

/// What the agent is told, to be shown, counted or logged.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// A schedule, and what somebody should look at about it.
    Schedule(Box<ScheduleStatus>, Option<Problem>),
    /// A schedule is in the files no more.
    ScheduleGone(Arc<str>),
    /// A schedule cannot be used, or what is remembered of it cannot be read.
    Unusable {
        /// Which.
        schedule: Arc<str>,
        /// Why.
        error: String,
    },
    /// A startup task.
    Startup(Box<StartupStatus>),
    /// A startup task is done: its id.
    Done(String),
    /// An attempt at a startup task is claimed.
    StartupBegins {
        /// Which task.
        task: Arc<str>,
        /// Which attempt.
        attempt: u32,
    },
    /// A startup task came to its end, which a term tells once.
    StartupOver {
        /// Which task.
        task: Arc<str>,
        /// The id of the run.
        id: String,
        /// When its last attempt was claimed.
        since: Timestamp,
        /// How.
        ending: Ending,
    },
    /// A schedule has taken over one of the app's own, and the ledger remembers that.
    TakenOver(Arc<str>),
    /// A run of a schedule came to its end.
    Over {
        /// Of which schedule.
        schedule: Arc<str>,
        /// The id of the run.
        id: String,
        /// When it was due; of what was asked for by hand, when it was taken up, or else over.
        since: Timestamp,
        /// How.
        result: Box<TickResult>,
    },
    /// Ticks were dropped because of a run that is open.
    Skipped {
        /// Of which schedule.
        schedule: Arc<str>,
        /// How many.
        ticks: u64,
    },
    /// Ticks were missed.
    Missed {
        /// Of which schedule.
        schedule: Arc<str>,
        /// How many.
        ticks: u64,
    },
    /// Whose attempts a schedule or task waits for.
    Awaits {
        /// The id of the schedule's memory, or of the task.
        id: String,
        /// Whose.
        awaits: BTreeSet<Awaited>,
    },
    /// What was claimed is gone from the files, and is not called: the id of the run.
    Dropped(String),
}

/// What a time to wake at is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Schedule(Arc<str>),
    Startup(Arc<str>),
    Poll,
    Sweep,
}

/// The work of one term.
#[derive(Debug)]
pub struct Core {
    config: Config,
    file: Arc<AgentFile>,
    plan: Plan,
    lines: BTreeMap<Arc<str>, Line>,
    startups: BTreeMap<Arc<str>, Startup>,
    done: BTreeSet<String>,
    handovers: BTreeMap<Arc<str>, Handover>,
    /// Whether the schedules have been begun: not before the gate is open.
    running: bool,
    held: bool,
    heap: BinaryHeap<Reverse<(Timestamp, Key)>>,
    /// The one time of each key that counts; others in the heap are stale.
    wakes: BTreeMap<Key, Timestamp>,
    claims: Claims,
    keeping: Keeping,
    stray: BTreeSet<String>,
    /// The runs that the ledger is being asked about, and since when.
    reading: Option<(Timestamp, Vec<String>)>,
    /// What was read of runs, and since when it was asked, until a majority has their results.
    confirming: BTreeMap<String, (Timestamp, Record)>,
    last_op: OpId,
    last_nonce: u64,
    actions: Vec<Action>,
}

impl Core {
    /// Begins a term, with the files as they are and the ids of the startup tasks that are known to be done.
    #[must_use]
    pub fn begin(
        config: Config,
        file: Arc<AgentFile>,
        done: BTreeSet<String>,
        moment: Moment<'_>,
    ) -> (Self, Vec<Action>) {
        let mut core = Self {
            config,
            file,
            plan: Plan::default(),
            lines: BTreeMap::new(),
            startups: BTreeMap::new(),
            done,
            handovers: BTreeMap::new(),
            running: false,
            held: false,
            heap: BinaryHeap::new(),
            wakes: BTreeMap::new(),
            claims: Claims::default(),
            keeping: Keeping::default(),
            stray: BTreeSet::new(),
            reading: None,
            confirming: BTreeMap::new(),
            last_op: 0,
            last_nonce: 0,
            actions: Vec::new(),
        };
        core.take_plan(moment);
        if !core.config.rules.hold(Rule::GateFirst) {
            core.running = true;
            core.take_schedules(moment);
        }
        core.wake_at(Key::Sweep, Some(plus(moment.now, readings::SWEEP)));
        core.work(moment);
        let actions = mem::take(&mut core.actions);
        (core, actions)
    }

    /// Takes up what happened, and does all that is due.
    #[must_use]
    pub fn step(&mut self, moment: Moment<'_>, event: Event) -> Vec<Action> {
        match event {
            Event::Files(file) => self.take_files(file, moment),
            Event::GateOpen if !self.running && !self.held => {
                self.running = true;
                self.take_schedules(moment);
            }
            Event::GateOpen | Event::Wake => {}
            Event::Done(done) => {
                self.done.extend(done);
                self.step_startups(moment.now);
            }
            Event::Handovers(handovers) => {
                self.handovers = handovers;
                self.take_over(moment.now);
            }
            Event::Put { op, results } => self.take_results(op, results, moment.now),
            Event::Read(result) => self.take_reading(result, moment.now),
            Event::Confirmed { id, answer } => self.take_confirmed(&id, &answer, moment.now),
            Event::Ended { id, nonce, outcome } => self.take_end(&id, &nonce, outcome, moment.now),
            Event::Hold => self.hold(),
            Event::GiveUp => self.give_up(),
        }
        self.work(moment);
        mem::take(&mut self.actions)
    }

    /// When there is something to do, if nothing happens before.
    #[must_use]
    pub fn wake(&self) -> Option<Timestamp> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Whether no claim is on its way.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.claims.is_settled()
    }

    /// Does all that is due.
    fn work(&mut self, moment: Moment<'_>) {
        if self.held {
            return;
        }
        while self.heap.peek().is_some_and(|Reverse((at, _))| *at <= moment.now) {
            let Some(Reverse((at, key))) = self.heap.pop() else { break };
            if self.wakes.get(&key) != Some(&at) {
                continue;
            }
            self.wakes.remove(&key);
            match key {
                Key::Schedule(_) | Key::Startup(_) => self.step_key(&key, moment.now),
                Key::Poll => self.poll(moment.now),
                Key::Sweep => self.sweep(moment),
            }
        }
        if moment.may_claim {
            self.send();
        }
    }

    fn wake_at(&mut self, key: Key, at: Option<Timestamp>) {
        match at {
            Some(at) if self.wakes.get(&key) == Some(&at) => {}
            Some(at) => {
                self.wakes.insert(key.clone(), at);
                self.heap.push(Reverse((at, key)));
            }
            None => _ = self.wakes.remove(&key),
        }
    }

    fn take_files(&mut self, file: Arc<AgentFile>, moment: Moment<'_>) {
        if self.held {
            return;
        }
        // What fell due before the edit is dealt with by the files before the edit.
        self.work(moment);
        self.file = file;
        self.take_plan(moment);
        if self.running {
            self.take_schedules(moment);
        }
    }

    fn take_end(&mut self, id: &str, nonce: &str, outcome: Option<Outcome>, now: Timestamp) {
        let Some(key) = self.key_of(id) else { return };
        if let Some(run) = self.run_mut(&key, id) {
            match outcome {
                Some(outcome) => run.ended(nonce, outcome),
                None => run.unanswered(nonce),
            }
            self.step_key(&key, now);
        }
    }

    /// What the run `id` belongs to, if it is in the files.
    fn key_of(&self, id: &str) -> Option<Key> {
        if let Some((name, Some(_))) = parse_id(id) {
            return Some(Key::Schedule(name.into()));
        }
        let (name, _) = self.startups.iter().find(|(_, it)| it.run.id == id)?;
        Some(Key::Startup(Arc::clone(name)))
    }

    fn run_mut(&mut self, key: &Key, id: &str) -> Option<&mut Run> {
        match key {
            Key::Schedule(name) => self.lines.get_mut(name).and_then(|line| line.run_mut(id)),
            Key::Startup(name) => self.startups.get_mut(name).map(|it| &mut it.run).filter(|run| run.id == id),
            Key::Poll | Key::Sweep => None,
        }
    }

    fn step_key(&mut self, key: &Key, now: Timestamp) {
        if self.held {
            return;
        }
        match key {
            Key::Schedule(name) => self.step_schedule(name, now),
            Key::Startup(name) => self.step_startup(name, now),
            Key::Poll | Key::Sweep => {}
        }
    }

    fn tell(&mut self, news: News) {
        self.actions.push(Action::Tell(news));
    }

    fn next_op(&mut self) -> OpId {
        self.last_op += 1;
        self.last_op
    }
}
