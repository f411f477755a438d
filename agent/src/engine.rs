//! The leader's work: claims what is due, has the app called, and takes note of what comes of it.
//!
//! Its time of day is that of the masters ([`Term::time`]), so that all leaders agree on what is due and on deadlines.
//!
//! What is decided, [`crate::schedule`] and [`crate::runs`] decide; here is only what carries it out: one heap of times
//! to wake at, writes to the ledger, and calls. Nothing is called whose claim a majority has not taken.
//!
//! An engine lives for one term. Calls outlive it: a run that it began stays this agent's own until its deadline, and its
//! result is recorded by nonce, whoever leads by then.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use cabloy_crds::agent_status::{Problem, TickResult, Verdict};
use cabloy_crds::vocabulary::Scope;
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::{Call, Called};
use crate::digest;
use crate::election::Term;
use crate::files::Loaded;
use crate::ledger::{FinishError, Ledger, Put, PutError, ReadError, Record, RunResult};
use crate::metrics::TickLabel;
use crate::runs::{Attempt, Claimed, Next, Outcome, Run, between, plus, whole_ms};
use crate::schedule::{Action, Line, Memory, Occasion, memory_id, parse_id, run_id};
use crate::shared::{Identity, Shared};
use crate::startup::{Plan, Task, record_id};
use crate::target;

/// How often the ledger is asked for the results of runs that go on elsewhere.
const POLL: Duration = Duration::from_millis(250);

/// The longest sleep: so late at most a step of the wall clock is noticed.
const NAP: Duration = Duration::from_secs(5);

/// How often records are looked for that belong to nothing any more; one found twice in a row is removed.
const SWEEP: Duration = Duration::from_secs(30);

/// How long after the deadline the result of a run is still tried to be recorded.
const FINISH: Duration = Duration::from_mins(1);

/// How long an agent tries to say that an attempt it claimed has not begun, and how often.
const DISOWN: Duration = Duration::from_mins(1);
const DISOWN_PAUSE: Duration = Duration::from_millis(250);

/// How long an engine that stops waits for claims that are on their way.
const SETTLE: Duration = Duration::from_millis(500);

/// What a time to wake at is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Schedule(Arc<str>),
    Startup(Arc<str>),
    Poll,
    Sweep,
}

/// A claim that is on its way.
#[derive(Debug)]
struct Claim {
    key: Key,
    id: String,
    nonce: String,
}

/// What came back from the ledger.
#[derive(Debug)]
enum Reply {
    Claims(Vec<(Claim, Result<(), PutError>)>),
    Saved(Vec<(Arc<str>, bool)>),
    Read(Result<Vec<Record>, ReadError>),
    Forgotten,
}

/// A call that ended, its result recorded; none if there was no answer before the deadline.
#[derive(Debug)]
struct Ended {
    key: Key,
    id: String,
    nonce: String,
    outcome: Option<Outcome>,
}

/// A startup task on the leader.
#[derive(Debug)]
struct Startup {
    task: Task,
    run: Run,
}

/// The work of one term.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    ledger: Ledger,
    term: Term,
    calls: Caller,
    loaded: Arc<Loaded>,
    plan: Plan,
    lines: BTreeMap<Arc<str>, Line>,
    startups: BTreeMap<Arc<str>, Startup>,
    /// Whether the schedules have been begun: not before the gate is open.
    running: bool,
    heap: BinaryHeap<Reverse<(Timestamp, Key)>>,
    /// The one time of each key that counts; others in the heap are stale.
    wakes: BTreeMap<Key, Timestamp>,
    claims: Vec<(Claim, Put)>,
    /// Schedules whose memory is to be saved.
    unsaved: BTreeSet<Arc<str>>,
    saving: bool,
    /// Records that can go as soon as their schedule's memory is saved.
    over: BTreeMap<Arc<str>, Vec<String>>,
    /// Records that can go.
    rubbish: Vec<String>,
    stray: BTreeSet<String>,
    reading: bool,
    io: JoinSet<Reply>,
}

/// Makes calls, and records their results; outlives engines.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who the calls belong to, from the start of one to the record of its result.
    pub tasks: TaskTracker,
    shared: Arc<Shared>,
    /// For its time of day, which goes on when the term has ended.
    term: Term,
    ended: mpsc::UnboundedSender<Ended>,
}

impl Engine {
    /// Works until the term is lost or `hold` fires. When it returns, no claim of its is on its way any more.
    pub async fn run(shared: Arc<Shared>, ledger: Ledger, term: Term, tasks: TaskTracker, hold: CancellationToken) {
        let mut config = shared.config.clone();
        let Some(loaded) = config.borrow_and_update().loaded.clone() else { return };
        let (ended, mut ends) = mpsc::unbounded_channel();
        let mut gate = shared.gate.subscribe();
        let mut done = shared.done.subscribe();
        let lost = term.lost().clone();
        let mut engine = Self {
            calls: Caller { tasks, shared: Arc::clone(&shared), term: term.clone(), ended },
            shared,
            ledger,
            term,
            plan: Plan::default(),
            loaded,
            lines: BTreeMap::new(),
            startups: BTreeMap::new(),
            running: false,
            heap: BinaryHeap::new(),
            wakes: BTreeMap::new(),
            claims: Vec::new(),
            unsaved: BTreeSet::new(),
            saving: false,
            over: BTreeMap::new(),
            rubbish: Vec::new(),
            stray: BTreeSet::new(),
            reading: false,
            io: JoinSet::new(),
        };
        let now = engine.term.time();
        engine.shared.show_term(Some(now));
        engine.take_plan(now);
        engine.wake_at(Key::Sweep, Some(plus(now, SWEEP)));
        loop {
            if *gate.borrow_and_update() && !engine.running {
                engine.running = true;
                engine.take_schedules(engine.term.time());
            }
            let now = engine.term.time();
            engine.work(now);
            let nap = engine.heap.peek().map_or(NAP, |Reverse((at, _))| between(now, *at).min(NAP));
            tokio::select! {
                biased;
                () = lost.cancelled() => break,
                () = hold.cancelled() => break,
                Some(Ok(reply)) = engine.io.join_next() => engine.take_reply(reply),
                Some(end) = ends.recv() => engine.take_end(end),
                Ok(()) = gate.changed() => {}
                Ok(()) = done.changed() => engine.wake_startups(engine.term.time()),
                Ok(()) = config.changed() => {
                    let loaded = config.borrow_and_update().loaded.clone();
                    engine.take_files(loaded);
                }
                () = tokio::time::sleep(nap) => {}
            }
        }
        engine.stop().await;
    }

    /// Lets the claims that are on their way come through or fail. What has come through is called: it is claimed, and
    /// nobody else will.
    async fn stop(mut self) {
        let settle = async {
            while let Some(reply) = self.io.join_next().await {
                if let Ok(Reply::Claims(claims)) = reply {
                    self.take_claims(claims);
                }
            }
        };
        if tokio::time::timeout(SETTLE, settle).await.is_err() {
            tracing::warn!("claims on their way are left in doubt");
            let runs = self.lines.values().flat_map(|line| line.runs().map(|(_, run)| run));
            for run in runs.chain(self.startups.values().map(|it| &it.run)) {
                if let Some(attempt) = run.claim_on_its_way().cloned() {
                    self.calls.disown(self.ledger.clone(), run.id.clone(), attempt);
                }
            }
        }
        self.shared.show_term(None);
    }

    /// Does all that is due.
    fn work(&mut self, now: Timestamp) {
        while let Some(Reverse((at, _))) = self.heap.peek() {
            if *at > now {
                break;
            }
            let Some(Reverse((at, key))) = self.heap.pop() else { break };
            if self.wakes.get(&key) != Some(&at) {
                continue;
            }
            self.wakes.remove(&key);
            match key {
                Key::Schedule(name) => self.step_schedule(&name, now),
                Key::Startup(name) => self.step_startup(&name, now),
                Key::Poll => self.poll(),
                Key::Sweep => self.sweep(now),
            }
        }
        self.send();
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

    /// Sends what has come together: claims in one round, memories in another, and then what can go.
    fn send(&mut self) {
        if !self.term.may_claim() {
            return;
        }
        let (ledger, term) = (self.ledger.clone(), self.term.clone());
        if !self.claims.is_empty() {
            let (claims, puts): (Vec<_>, Vec<_>) = std::mem::take(&mut self.claims).into_iter().unzip();
            let (ledger, term) = (ledger.clone(), term.clone());
            self.io.spawn(async move {
                let results = ledger.put(&term, puts).await;
                Reply::Claims(claims.into_iter().zip(results).collect())
            });
        }
        if !self.saving && !self.unsaved.is_empty() {
            let mut names = Vec::new();
            let mut puts = Vec::new();
            for name in std::mem::take(&mut self.unsaved) {
                let Some(memory) = self.lines.get_mut(&name).and_then(Line::take_unsaved) else { continue };
                puts.push(Put { id: memory_id(&name), attempt: 0, nonce: "m".to_owned(), data: json!(memory) });
                names.push((name.clone(), self.over.remove(&name).unwrap_or_default()));
            }
            if !puts.is_empty() {
                self.saving = true;
                let (ledger, term) = (ledger.clone(), term.clone());
                self.io.spawn(async move {
                    let results = ledger.put(&term, puts).await;
                    let saved: Vec<_> = names
                        .into_iter()
                        .zip(results)
                        .map(|((name, over), result)| (name, over, result.is_ok()))
                        .collect();
                    let over: Vec<String> =
                        saved.iter().filter(|(_, _, saved)| *saved).flat_map(|(_, over, _)| over.clone()).collect();
                    if !over.is_empty() {
                        // Left behind they are harmless: the memory says that they are over, and the next leader removes them.
                        let _ = ledger.forget(&term, over).await;
                    }
                    Reply::Saved(saved.into_iter().map(|(name, _, saved)| (name, saved)).collect())
                });
            }
        }
        if !self.rubbish.is_empty() {
            let rubbish = std::mem::take(&mut self.rubbish);
            self.io.spawn(async move {
                let _ = ledger.forget(&term, rubbish).await;
                Reply::Forgotten
            });
        }
    }

    fn take_reply(&mut self, reply: Reply) {
        let now = self.term.time();
        match reply {
            Reply::Claims(claims) => {
                for key in self.take_claims(claims) {
                    self.step(&key, now);
                }
            }
            Reply::Saved(saved) => {
                self.saving = false;
                for (name, saved) in saved {
                    if let Some(line) = self.lines.get_mut(&name).filter(|_| !saved) {
                        line.not_saved();
                        self.unsaved.insert(name);
                    }
                }
            }
            Reply::Read(records) => {
                self.reading = false;
                if let Ok(records) = records {
                    self.take_records(&records, now);
                }
                if !self.elsewhere().is_empty() {
                    self.ask_soon(now);
                }
            }
            Reply::Forgotten => {}
        }
    }

    /// Starts the calls whose claims have come through; gives what is to be stepped.
    fn take_claims(&mut self, claims: Vec<(Claim, Result<(), PutError>)>) -> Vec<Key> {
        let mut keys = Vec::new();
        for (Claim { key, id, nonce }, result) in claims {
            let is_given_up = self.is_given_up(&key, &id);
            let Some(run) = self.run_mut(&key, &id).filter(|run| run.attempt().is_some_and(|it| it.nonce == nonce))
            else {
                tracing::warn!(id, "what was claimed is gone from the files, and is not called");
                continue;
            };
            match result {
                // It is not called, and stopped as any other attempt.
                Ok(()) if is_given_up => run.in_doubt(),
                Ok(()) => self.begin(&key, &id),
                Err(PutError::AlreadyDone(result)) => run.refused(&result),
                Err(error) => {
                    tracing::warn!(id, %error, "claim in doubt");
                    let attempt = run.attempt().cloned();
                    run.in_doubt();
                    if let Some(attempt) = attempt {
                        self.calls.disown(self.ledger.clone(), id, attempt);
                    }
                }
            }
            keys.push(key);
        }
        keys
    }

    fn take_end(&mut self, Ended { key, id, nonce, outcome }: Ended) {
        if let Some(run) = self.run_mut(&key, &id) {
            match outcome {
                Some(outcome) => run.ended(&nonce, outcome),
                None => run.unanswered(&nonce),
            }
            self.step(&key, self.term.time());
        }
    }

    fn take_records(&mut self, records: &[Record], now: Timestamp) {
        for record in records {
            let key = if let Some((name, Some(_))) = parse_id(&record.id) {
                Key::Schedule(name.into())
            } else {
                match self.startups.iter().find(|(_, it)| it.run.id == record.id) {
                    Some((name, _)) => Key::Startup(Arc::clone(name)),
                    None => continue,
                }
            };
            if let Some(run) = self.run_mut(&key, &record.id) {
                run.read(record);
                self.step(&key, now);
            }
        }
    }

    fn run_mut(&mut self, key: &Key, id: &str) -> Option<&mut Run> {
        match key {
            Key::Schedule(name) => self.lines.get_mut(name).and_then(|line| line.run_mut(id)),
            Key::Startup(name) => self.startups.get_mut(name).map(|it| &mut it.run).filter(|run| run.id == id),
            Key::Poll | Key::Sweep => None,
        }
    }

    /// Whether a newer tick takes the place of the run `id`.
    fn is_given_up(&self, key: &Key, id: &str) -> bool {
        matches!(key, Key::Schedule(name) if self.lines.get(name).is_some_and(|line| line.is_given_up(id)))
    }

    /// Has the attempt that runs at the run `id` end, and that recorded: by hanging up where the call is this agent's.
    fn stop_attempt(&mut self, key: Key, id: String) {
        let Some(attempt) = self.run_mut(&key, &id).and_then(|run| run.running().cloned()) else { return };
        tracing::info!(id, attempt = attempt.number, "a later tick takes its place");
        if !self.shared.hang_up(&attempt.nonce) {
            self.calls.record_cancelled(self.ledger.clone(), id, attempt, key);
        }
    }

    /// Calls the app for the run `id`, whose claim has come through.
    fn begin(&mut self, key: &Key, id: &str) {
        let now = self.term.time();
        let Some(attempt) = self.run_mut(key, id).and_then(Run::begun_here).cloned() else { return };
        let (kind, name, run, time, target) = match key {
            Key::Schedule(name) => {
                let Some(line) = self.lines.get(name) else { return };
                let Some((_, Some(occasion))) = parse_id(id) else { return };
                let time = match occasion {
                    Occasion::Tick(tick) | Occasion::Backfill { tick, .. } => tick,
                    Occasion::Trigger(_) => whole_ms(now),
                };
                if let (Some(tick), 1) = (occasion.tick(), attempt.number) {
                    self.shared.metrics.lateness.observe(between(line.due(tick), now).as_secs_f64());
                }
                ("schedule", name, occasion.name(), time, line.schedule().target.clone())
            }
            Key::Startup(name) => {
                let Some(Startup { task, .. }) = self.startups.get(name) else { return };
                ("startup", name, task.revision.clone(), now, task.startup.target.clone())
            }
            Key::Poll | Key::Sweep => return,
        };
        let cluster = &self.loaded.file.cluster;
        let call = Call {
            cluster: cluster.clone(),
            kind,
            name: name.to_string(),
            trace: trace(cluster, name, &run),
            run,
            time,
            token: Some(self.term.token()),
            attempt: attempt.number,
            deadline: attempt.deadline,
            target,
        };
        let loaded = Arc::clone(&self.loaded);
        self.calls.start(loaded, call, self.ledger.clone(), id.to_owned(), attempt, key.clone());
    }

    fn step(&mut self, key: &Key, now: Timestamp) {
        match key {
            Key::Schedule(name) => self.step_schedule(name, now),
            Key::Startup(name) => self.step_startup(name, now),
            Key::Poll | Key::Sweep => {}
        }
    }

    fn claim(&mut self, key: Key, id: String, number: u32, timeout: Duration, now: Timestamp) {
        let nonce = uuid::Uuid::new_v4().simple().to_string();
        let deadline = whole_ms(plus(now, timeout));
        let Identity { pod, uid, .. } = self.shared.identity.clone();
        let claimed = Claimed { at: whole_ms(now), deadline, pod, uid };
        if let Some(run) = self.run_mut(&key, &id) {
            run.claiming(Attempt { number, nonce: nonce.clone(), deadline });
            let put = Put { id: id.clone(), attempt: number, nonce: nonce.clone(), data: json!(claimed) };
            self.claims.push((Claim { key, id, nonce }, put));
        }
    }

    // --- schedules

    fn step_schedule(&mut self, name: &Arc<str>, now: Timestamp) {
        let Some(line) = self.lines.get_mut(name) else { return };
        line.runs_mut().for_each(|run| run.heed(&self.loaded.file.ended));
        let actions = line.step(now);
        let timeout = line.timeout();
        for action in actions {
            match action {
                Action::Claim { occasion, attempt } => {
                    let id = run_id(name, &occasion);
                    self.claim(Key::Schedule(Arc::clone(name)), id, attempt, timeout, now);
                }
                Action::Stop(id) => self.stop_attempt(Key::Schedule(Arc::clone(name)), id),
                Action::Forget(id) => self.over.entry(Arc::clone(name)).or_default().push(id),
                Action::Over(result) => {
                    let TickResult { tick, trigger, backfill, verdict, reason, attempts, .. } = &*result;
                    tracing::info!(schedule = %name, %tick, trigger, backfill, ?verdict, attempts, reason, "run over");
                    self.shared.metrics.count(name, (*verdict).into(), 1);
                }
                Action::Skipped(count) => {
                    tracing::info!(schedule = %name, count, "ticks skipped: one before still runs");
                    self.shared.metrics.count(name, TickLabel::Skipped, count);
                }
                Action::Missed(count) => {
                    tracing::warn!(schedule = %name, count, "ticks missed");
                    self.shared.metrics.count(name, TickLabel::Missed, count);
                }
            }
        }
        self.after_step(name, now);
    }

    fn after_step(&mut self, name: &Arc<str>, now: Timestamp) {
        let Some(line) = self.lines.get(name) else { return };
        let (status, alarm, wake) = (line.status(), alarm(line), line.wake());
        let elsewhere = line.runs().any(|(_, run)| run.is_elsewhere());
        let awaits = line.runs().filter_map(|(_, run)| run.awaits().cloned()).collect();
        self.shared.show_awaits(memory_id(name), awaits);
        if line.is_unsaved() {
            self.unsaved.insert(Arc::clone(name));
        } else if let Some(over) = self.over.remove(name) {
            self.rubbish.extend(over);
        }
        self.shared.show_schedule(status, alarm);
        self.wake_at(Key::Schedule(Arc::clone(name)), wake);
        if elsewhere {
            self.ask_soon(now);
        }
    }

    /// Takes up the schedules of the file, from what the ledger knows of them.
    fn take_schedules(&mut self, now: Timestamp) {
        let loaded = Arc::clone(&self.loaded);
        let mut memories: BTreeMap<String, Memory> = BTreeMap::new();
        let mut runs: BTreeMap<String, BTreeMap<Occasion, Record>> = BTreeMap::new();
        for record in self.term.records() {
            match parse_id(&record.id) {
                Some((name, Some(occasion))) => {
                    let name = name.to_owned();
                    runs.entry(name).or_default().insert(occasion, record);
                }
                Some((name, None)) => match serde_json::from_value(record.data) {
                    Ok(memory) => _ = memories.insert(name.to_owned(), memory),
                    Err(error) => tracing::warn!(schedule = name, %error, "its memory cannot be read; it begins anew"),
                },
                None => {}
            }
        }
        let wanted: BTreeSet<&str> = loaded.file.schedules.iter().map(|it| it.name.as_str()).collect();
        let gone: Vec<_> = self.lines.keys().filter(|name| !wanted.contains(&***name)).cloned().collect();
        for name in gone {
            self.lines.remove(&name);
            self.unsaved.remove(&name);
            self.over.remove(&name);
            self.wake_at(Key::Schedule(Arc::clone(&name)), None);
            self.shared.hide_schedule(&name);
            self.shared.show_awaits(memory_id(&name), BTreeSet::new());
        }
        for schedule in &loaded.file.schedules {
            let name: Arc<str> = schedule.name.as_str().into();
            if let Some(line) = self.lines.get_mut(&name) {
                if line.schedule() != schedule
                    && let Err(error) = line.update(schedule.clone(), now)
                {
                    tracing::error!(schedule = %name, %error, "cannot be used");
                }
            } else {
                let (memory, records) =
                    (memories.remove(&schedule.name), runs.remove(&schedule.name).unwrap_or_default());
                match Line::new(schedule.clone(), memory, records, now) {
                    Ok((line, actions)) => {
                        let over = actions.into_iter().filter_map(|it| match it {
                            Action::Forget(id) => Some(id),
                            _ => None,
                        });
                        self.over.entry(Arc::clone(&name)).or_default().extend(over);
                        self.lines.insert(Arc::clone(&name), line);
                    }
                    Err(error) => tracing::error!(schedule = %name, %error, "cannot be used"),
                }
            }
            self.step_schedule(&name, now);
        }
    }

    // --- startup tasks

    fn take_plan(&mut self, now: Timestamp) {
        // Of a revision that the file does not know the agent does not stand, and so resigns soon.
        let Ok(plan) = Plan::new(&self.loaded.file, &self.shared.identity.place) else { return };
        let records: BTreeMap<_, _> = self.term.records().into_iter().map(|it| (it.id.clone(), it)).collect();
        let mut before = std::mem::take(&mut self.startups);
        for task in plan.tasks.iter().filter(|it| it.startup.scope == Scope::Cluster) {
            let id = task.id();
            let name: Arc<str> = task.startup.name.as_str().into();
            let known = before.remove(&name).map(|it| it.run).filter(|run| run.id == id);
            let run = known.unwrap_or_else(|| records.get(&id).map_or_else(|| Run::new(id), Run::from_record));
            self.startups.insert(name, Startup { task: task.clone(), run });
        }
        self.plan = plan;
        self.wake_startups(now);
    }

    fn wake_startups(&mut self, now: Timestamp) {
        for name in self.startups.keys().cloned().collect::<Vec<_>>() {
            self.step_startup(&name, now);
        }
    }

    fn step_startup(&mut self, name: &Arc<str>, now: Timestamp) {
        let Some(Startup { task, run }) = self.startups.get_mut(name) else { return };
        run.heed(&self.loaded.file.ended);
        let (done, key) = (self.shared.done.borrow().clone(), Key::Startup(Arc::clone(name)));
        let id = task.id();
        let mut wake = None;
        match run.next(&task.policy(), now) {
            _ if done.contains(&id) => {}
            Next::Claim(number) if self.plan.may_start(task, &done) => {
                let timeout = task.policy().timeout;
                tracing::info!(task = %name, revision = task.revision, attempt = number, "startup task begins");
                self.claim(key.clone(), id, number, timeout, now);
            }
            Next::Claim(_) | Next::Busy => {}
            Next::Wait(until) => wake = Some(until),
            Next::Over(ending) => {
                tracing::info!(task = %name, verdict = ?ending.verdict, reason = ending.reason, "startup task over");
                if ending.verdict == Verdict::Done {
                    self.shared.note_done([id]);
                }
            }
        }
        self.wake_at(key, wake);
        if let Some(Startup { task, run }) = self.startups.get(name) {
            let done = self.shared.done.borrow().contains(&task.id());
            self.shared.show_startup(task.status(run, done, now));
            self.shared.show_awaits(task.id(), run.awaits().cloned().into_iter().collect());
            if run.is_elsewhere() {
                self.ask_soon(now);
            }
        }
    }

    // --- everything

    fn take_files(&mut self, loaded: Option<Arc<Loaded>>) {
        let Some(loaded) = loaded.filter(|it| !Arc::ptr_eq(it, &self.loaded)) else { return };
        // What fell due before the edit is dealt with by the files before the edit.
        let now = self.term.time();
        self.work(now);
        self.loaded = loaded;
        self.take_plan(now);
        if self.running {
            self.take_schedules(now);
        }
    }

    /// The runs whose result this engine does not wait for itself.
    fn elsewhere(&self) -> Vec<String> {
        let lines = self.lines.values().flat_map(|line| line.runs().map(|(_, run)| run));
        let startups = self.startups.values().map(|it| &it.run);
        lines.chain(startups).filter(|run| run.is_elsewhere()).map(|run| run.id.clone()).collect()
    }

    fn ask_soon(&mut self, now: Timestamp) {
        if !self.reading && !self.wakes.contains_key(&Key::Poll) {
            self.wake_at(Key::Poll, Some(plus(now, POLL)));
        }
    }

    fn poll(&mut self) {
        let ids = self.elsewhere();
        if !ids.is_empty() {
            self.reading = true;
            let ledger = self.ledger.clone();
            self.io.spawn(async move { Reply::Read(ledger.read(ids).await) });
        }
    }

    /// Removes the records of schedules and revisions that were in no file at the last sweep either: pods take up new
    /// files within seconds of each other, and a leader with older ones must not remove what another has just begun.
    fn sweep(&mut self, now: Timestamp) {
        let stray = strays(&self.loaded, self.term.records().iter().map(|it| it.id.as_str()));
        self.rubbish.extend(stray.intersection(&self.stray).cloned());
        self.stray = stray;
        self.wake_at(Key::Sweep, Some(plus(now, SWEEP)));
    }
}

/// The records that belong to nothing in the files.
fn strays<'a>(loaded: &Loaded, ids: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let file = &loaded.file;
    let schedules: BTreeSet<&str> = file.schedules.iter().map(|it| it.name.as_str()).collect();
    let tasks: BTreeSet<String> = file
        .revisions
        .values()
        .flat_map(|revision| &revision.startups)
        .map(|(task, revision)| record_id(task, revision))
        .collect();
    let is_stray = |id: &&str| match parse_id(id) {
        Some((name, _)) => !schedules.contains(name),
        // Outside Kubernetes there may be no revisions in the file; what is done stays done then.
        None => id.starts_with("u/") && !file.revisions.is_empty() && !tasks.contains(*id),
    };
    ids.filter(is_stray).map(str::to_owned).collect()
}

/// What somebody should look at about a schedule.
fn alarm(line: &Line) -> Option<Problem> {
    let name = &line.schedule().name;
    let path = Some(format!("schedules.{name}"));
    if line.is_disabled() {
        let message = format!("the app wants no further ticks of {name} (410); edit the schedule to begin again");
        return Some(Problem { reason: "ScheduleDisabled".to_owned(), message, path });
    }
    let status = line.status();
    let failed = |it: &&TickResult| it.verdict != Verdict::Done && !is_cancelled(it);
    if line.is_paused() {
        let last = status.results.iter().find(failed);
        let what = last.map(|it| format!(" ({} at {}: {})", it.reason, it.tick, it.message)).unwrap_or_default();
        let message = format!(
            "{name} is paused after a failure{what}, as pauseOnFailure asks; edit or trigger the schedule to begin again"
        );
        return Some(Problem { reason: "SchedulePaused".to_owned(), message, path });
    }
    let last = status.results.first().filter(failed)?;
    let reason = match last.verdict {
        Verdict::Unknown => "TickUnknown",
        Verdict::Done | Verdict::Failed => "TickFailed",
    };
    let message = format!("{name} at {}: {}: {}", last.tick, last.reason, last.message);
    Some(Problem { reason: reason.to_owned(), message, path })
}

/// Whether a run was given up for a later tick, which is what was asked for.
fn is_cancelled(result: &TickResult) -> bool {
    result.reason == "Cancelled"
}

impl Caller {
    /// Makes the call by the files as `loaded`, records what comes of it, and then says so.
    fn start(&self, loaded: Arc<Loaded>, call: Call, ledger: Ledger, id: String, attempt: Attempt, key: Key) {
        let Self { tasks, shared, term, ended } = self.clone();
        shared.metrics.calls.inc();
        let hung_up = shared.open_call(&attempt.nonce);
        tasks.spawn(async move {
            let Attempt { nonce, deadline, .. } = attempt;
            let left = between(term.time(), deadline);
            // What goes through Redis says nothing of this app: it is the same for all.
            let note = |ended, at| {
                if call.target.role().is_none() {
                    shared.note_call(&id, ended, at);
                }
            };
            let ways = shared.ways(&loaded);
            let called = tokio::select! {
                biased;
                () = hung_up.cancelled() => Some(Called { outcome: Outcome::cancelled(term.time()), stale: None }),
                called = target::call(&ways, &call, left) => called,
            };
            let Some(called) = called else {
                shared.close_call(&nonce);
                tracing::warn!(id, "no answer before the deadline");
                note(None, term.time());
                let _ = ended.send(Ended { key, id, nonce, outcome: None });
                return;
            };
            if let Some(highest) = called.stale {
                tracing::warn!(id, highest, "the app has seen a higher token");
                if let Some(elector) = shared.elector() {
                    elector.raise(highest);
                }
            }
            let outcome = Outcome { at: term.time(), ..called.outcome };
            if called.stale.is_none() {
                note(Some(outcome.kind), outcome.at);
            }
            let result = RunResult { nonce: nonce.clone(), done: outcome.is_final(), data: json!(outcome) };
            let until = plus(deadline, FINISH);
            while let Err(error) = ledger.finish(&id, result.clone()).await {
                if error != FinishError::Unreachable || term.time() > until {
                    tracing::warn!(id, %error, "the result is not recorded");
                    break;
                }
            }
            shared.close_call(&nonce);
            // The term may have ended: then nobody listens, and the ledger tells the next leader.
            let _ = ended.send(Ended { key, id, nonce, outcome: Some(outcome) });
        });
    }

    /// Records of an attempt that another agent makes, or nobody, that it was cancelled. From its deadline on the run is
    /// over anyway.
    fn record_cancelled(&self, ledger: Ledger, id: String, attempt: Attempt, key: Key) {
        let (caller, ended) = (self.clone(), self.ended.clone());
        self.tasks.spawn(async move {
            let outcome = Outcome::cancelled(caller.term.time());
            if caller.insist(&ledger, &id, &attempt.nonce, &outcome, attempt.deadline).await {
                let _ = ended.send(Ended { key, id, nonce: attempt.nonce, outcome: Some(outcome) });
            }
        });
    }

    /// Records of an attempt whose claim is in doubt that it has not begun: any node may have the claim, and the next
    /// leader, which counts it as begun, need not wait for its deadline then.
    fn disown(&self, ledger: Ledger, id: String, attempt: Attempt) {
        let caller = self.clone();
        self.tasks.spawn(async move {
            let now = caller.term.time();
            let until = attempt.deadline.min(plus(now, DISOWN));
            caller.insist(&ledger, &id, &attempt.nonce, &Outcome::not_begun(now), until).await;
        });
    }

    /// Tries until then to record how the attempt `nonce` ended, though no call of this agent's was made for it; whether it
    /// is recorded. A claim that is the current one nowhere yet may become so, when the next leader writes back what it read.
    async fn insist(&self, ledger: &Ledger, id: &str, nonce: &str, outcome: &Outcome, until: Timestamp) -> bool {
        let result = RunResult { nonce: nonce.to_owned(), done: outcome.is_final(), data: json!(outcome) };
        while let Err(error) = ledger.finish(id, result.clone()).await {
            if error == FinishError::Ended || self.term.time() > until {
                return false;
            }
            tokio::time::sleep(DISOWN_PAUSE).await;
        }
        true
    }
}

/// The trace of a run: the same for all its attempts, on whatever pod.
fn trace(cluster: &str, name: &str, run: &str) -> u128 {
    // All zeros would be no trace.
    digest::number(&[cluster.as_bytes(), name.as_bytes(), run.as_bytes()]).max(1)
}
