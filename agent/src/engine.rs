//! The leader's work: carries out what [`cabloy_engine::core`] decides, over the ledger and the app.
//!
//! Its time of day is that of the masters ([`Term::time`]), so that all leaders agree on what is due and on deadlines.
//!
//! An engine lives for one term. Calls outlive it: a run that it began stays this agent's own until its deadline, and its
//! result is recorded by nonce, whoever leads by then.

use std::sync::Arc;
use std::time::Duration;

use cabloy_crds::agent_status::{TickResult, Verdict};
use cabloy_crds::files::AgentFile;
use cabloy_engine::core::{Action, Config, Core, Event, Kind, Moment, News, OpId, Start};
use cabloy_engine::recording::{After, Recording};
use cabloy_engine::rule::Rules;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::{Call, Called};
use crate::election::Term;
use crate::files::Loaded;
use crate::ledger::{FinishError, Ledger, Put, PutError, ReadError, Record};
use crate::metrics::TickLabel;
use crate::runs::{Attempt, Outcome, between};
use crate::shared::{Identity, Shared, Takes};
use crate::target;
use crate::traces::End;

/// The longest sleep: so late at most a step of the wall clock is noticed.
const NAP: Duration = Duration::from_secs(5);

/// How long an engine that stops waits for claims that are on their way.
const SETTLE: Duration = Duration::from_millis(500);

/// What came back from the ledger.
#[derive(Debug)]
enum Reply {
    Put(OpId, Vec<Result<(), PutError>>),
    Read(Result<Vec<Record>, ReadError>),
    Confirmed(String, Result<(), FinishError>),
    Forgotten,
}

/// A call that ended, its result recorded; none if there was no answer before the deadline.
#[derive(Debug)]
struct Ended {
    id: String,
    nonce: String,
    outcome: Option<Outcome>,
}

/// The work of one term.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    ledger: Ledger,
    term: Term,
    calls: Caller,
    loaded: Arc<Loaded>,
    io: JoinSet<Reply>,
}

/// Makes calls, and records their results; outlives engines.
#[derive(Clone, Debug)]
struct Caller {
    /// Who the calls belong to, from the start of one to the record of its result.
    tasks: TaskTracker,
    shared: Arc<Shared>,
    ledger: Ledger,
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
        let mut handovers = shared.handovers.subscribe();
        let lost = term.lost().clone();
        let calls = Caller { tasks, shared: Arc::clone(&shared), ledger: ledger.clone(), term: term.clone(), ended };
        let mut engine = Self { shared, ledger, term, calls, loaded, io: JoinSet::new() };
        engine.shared.show_term(Some(engine.term.time()));
        let known = done.borrow_and_update().clone();
        let (mut core, actions) = {
            let Identity { pod, uid, place, .. } = engine.shared.identity.clone();
            // A process leads under a token once.
            let nonces = format!("{}-{}", engine.shared.process, engine.term.token());
            let (config, file) = (Config { pod, uid, place, nonces, rules: Rules::default() }, engine.file());
            engine
                .term
                .look(|records, now, may_claim| Core::begin(config, file, known, Moment { now, may_claim, records }))
        };
        engine.carry_out(actions);
        gate.mark_changed();
        handovers.mark_changed();
        loop {
            let nap = core.wake().map_or(NAP, |at| between(engine.term.time(), at).min(NAP));
            let event = tokio::select! {
                biased;
                () = lost.cancelled() => break,
                () = hold.cancelled() => break,
                Some(Ok(reply)) = engine.io.join_next() => match reply {
                    Reply::Put(op, results) => Event::Put { op, results },
                    Reply::Read(result) => Event::Read(result),
                    Reply::Confirmed(id, answer) => Event::Confirmed { id, answer },
                    Reply::Forgotten => continue,
                },
                Some(Ended { id, nonce, outcome }) = ends.recv() => Event::Ended { id, nonce, outcome },
                Ok(()) = gate.changed() => if *gate.borrow_and_update() { Event::GateOpen } else { continue },
                Ok(()) = handovers.changed() => Event::Handovers(handovers.borrow_and_update().clone()),
                Ok(()) = done.changed() => Event::Done(done.borrow_and_update().clone()),
                Ok(()) = config.changed() => {
                    let Some(loaded) = config.borrow_and_update().loaded.clone() else { continue };
                    if Arc::ptr_eq(&loaded, &engine.loaded) {
                        continue;
                    }
                    engine.loaded = loaded;
                    Event::Files(engine.file())
                }
                () = tokio::time::sleep(nap) => Event::Wake,
            };
            engine.step(&mut core, event);
        }
        engine.stop(core).await;
    }

    /// Lets the claims that are on their way come through or fail.
    async fn stop(mut self, mut core: Core) {
        self.step(&mut core, Event::Hold);
        let settle = async {
            while !core.is_settled() {
                match self.io.join_next().await {
                    Some(Ok(Reply::Put(op, results))) => self.step(&mut core, Event::Put { op, results }),
                    Some(_) => {}
                    None => break,
                }
            }
        };
        if tokio::time::timeout(SETTLE, settle).await.is_err() {
            tracing::warn!("claims on their way are left in doubt");
        }
        self.step(&mut core, Event::GiveUp);
        self.shared.show_term(None);
    }

    fn file(&self) -> Arc<AgentFile> {
        Arc::clone(&self.loaded.file)
    }

    fn step(&mut self, core: &mut Core, event: Event) {
        let step = |records: &_, now, may_claim| core.step(Moment { now, may_claim, records }, event);
        let actions = self.term.look(step);
        self.carry_out(actions);
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            let (ledger, term) = (self.ledger.clone(), self.term.clone());
            match action {
                Action::Put { op, puts } => {
                    let shared = Arc::clone(&self.shared);
                    self.io.spawn(async move { Reply::Put(op, put(&shared, &ledger, &term, puts).await) });
                }
                Action::Read(ids) => {
                    self.io.spawn(async move { Reply::Read(ledger.read(ids).await) });
                }
                Action::Confirm { id, result } => {
                    self.io.spawn(async move {
                        let answer = ledger.finish(&id, result).await;
                        Reply::Confirmed(id, answer)
                    });
                }
                Action::Forget(ids) => {
                    self.io.spawn(async move {
                        let _ = ledger.forget(&term, ids).await;
                        Reply::Forgotten
                    });
                }
                Action::Call(start) => {
                    if let Some(lateness) = start.lateness {
                        self.shared.metrics.lateness.observe(lateness.as_secs_f64());
                    }
                    self.shared.traces.begin(&start.id, start.lateness, self.term.time());
                    self.calls.start(Arc::clone(&self.loaded), *start);
                }
                Action::Cancel { id, attempt } => {
                    tracing::info!(id, attempt = attempt.number, "a later tick takes its place");
                    if !self.shared.hang_up(&attempt.nonce) {
                        self.calls.record_cancelled(id, attempt);
                    }
                }
                Action::Disown { id, attempt } => {
                    tracing::warn!(id, "claim in doubt");
                    self.calls.disown(id, attempt);
                }
                Action::Tell(news) => self.shared.hear(news, self.term.token(), self.term.time()),
            }
        }
    }
}

/// Writes records, and traces those that are claims.
async fn put(shared: &Shared, ledger: &Ledger, term: &Term, puts: Vec<Put>) -> Vec<Result<(), PutError>> {
    let is_claim = |put: &&Put| put.attempt > 0;
    let claims: Vec<_> = puts.iter().filter(is_claim).map(|it| (it.id.clone(), it.nonce.clone(), it.attempt)).collect();
    let sent = term.time();
    let results = ledger.put(term, puts).await;
    let took = sent..term.time();
    // Claims and memories never go together.
    for ((id, nonce, attempt), result) in claims.iter().zip(&results) {
        let error = result.as_ref().err().map(ToString::to_string);
        shared.traces.claimed(id, nonce, *attempt, term.token(), took.clone(), error.as_deref());
    }
    results
}

impl Shared {
    /// Shows, counts, traces and logs what the engine tells of the term with this token.
    fn hear(&self, news: News, token: u64, now: Timestamp) {
        match news {
            News::Schedule(status, alarm) => self.show_schedule(*status, alarm),
            News::ScheduleGone(name) => self.hide_schedule(&name),
            News::Unusable { schedule, error } => tracing::error!(%schedule, error, "cannot be used"),
            News::Startup(status) => self.show_startup(*status),
            News::Done(id) => self.note_done([id]),
            News::StartupBegins { task, attempt } => tracing::info!(%task, attempt, "startup task begins"),
            News::StartupOver { task, id, since, ending } => {
                self.traces.over(&id, Some(token), &End::of(&ending, since, now));
                let (verdict, reason): (Verdict, _) = (ending.verdict, ending.reason);
                tracing::info!(%task, ?verdict, reason, "startup task over");
            }
            News::TakenOver(name) => self.show_take(&name, Takes::Kept),
            News::Over { schedule, id, since, result } => {
                let TickResult { tick, trigger, backfill, verdict, reason, message, attempts, at } = &*result;
                let end = End { verdict: *verdict, reason, message, attempts: *attempts, since, at: *at };
                self.traces.over(&id, Some(token), &end);
                tracing::info!(%schedule, %tick, trigger, backfill, ?verdict, attempts, reason, "run over");
                self.metrics.count(&schedule, (*verdict).into(), 1);
            }
            News::Skipped { schedule, ticks } => {
                tracing::info!(%schedule, ticks, "ticks skipped: one before still runs");
                self.metrics.count(&schedule, TickLabel::Skipped, ticks);
            }
            News::Missed { schedule, ticks } => {
                tracing::warn!(%schedule, ticks, "ticks missed");
                self.metrics.count(&schedule, TickLabel::Missed, ticks);
            }
            News::Awaits { id, awaits } => self.show_awaits(id, awaits),
            News::Dropped(id) => tracing::warn!(id, "what was claimed is gone from the files, and is not called"),
        }
    }
}

impl Caller {
    /// Makes the call by the files as `loaded`, records what comes of it, and then says so.
    fn start(&self, loaded: Arc<Loaded>, start: Start) {
        let this = self.clone();
        let shared = Arc::clone(&self.shared);
        shared.metrics.calls.inc();
        let hung_up = shared.open_call(&start.attempt.nonce);
        let (id, attempt) = (start.id.clone(), start.attempt.clone());
        let call = call(&shared, &loaded, start, Some(self.term.token()));
        self.tasks.spawn(async move {
            let begun = this.now();
            let left = between(begun, attempt.deadline);
            // What goes through Redis says nothing of this app: it is the same for all.
            let note = |ended, at| {
                if call.target.role().is_none() {
                    shared.note_call(&id, ended, at);
                }
            };
            let ways = shared.ways(&loaded);
            let called = tokio::select! {
                biased;
                () = hung_up.cancelled() => Some(Called { outcome: Outcome::cancelled(this.now()), stale: None }),
                called = target::call(&ways, &call, left) => called,
            };
            let nonce = attempt.nonce.clone();
            let Some(called) = called else {
                shared.close_call(&nonce);
                tracing::warn!(id, "no answer before the deadline");
                shared.traces.called(&call, begun..this.now(), None);
                note(None, this.now());
                return this.say(Ended { id, nonce, outcome: None });
            };
            if let Some(highest) = called.stale {
                tracing::warn!(id, highest, "the app has seen a higher token");
                if let Some(elector) = shared.elector() {
                    elector.raise(highest);
                }
            }
            let outcome = Outcome { at: this.now(), ..called.outcome };
            shared.traces.called(&call, begun..outcome.at, Some(&outcome));
            if called.stale.is_none() {
                note(Some(outcome.kind), outcome.at);
            }
            let recorded = this.record(&Recording::of_call(id.clone(), &attempt, &outcome)).await;
            shared.traces.recorded(&call, &nonce, outcome.at..this.now(), recorded);
            shared.close_call(&nonce);
            this.say(Ended { id, nonce, outcome: Some(outcome) });
        });
    }

    /// Records of an attempt that another agent makes, or nobody, that it was cancelled.
    fn record_cancelled(&self, id: String, attempt: Attempt) {
        let caller = self.clone();
        self.tasks.spawn(async move {
            let outcome = Outcome::cancelled(caller.now());
            caller.record(&Recording::of_cancelled(id, &attempt, &outcome)).await;
        });
    }

    /// Records of an attempt whose claim is in doubt that it has not begun.
    fn disown(&self, id: String, attempt: Attempt) {
        let caller = self.clone();
        self.tasks.spawn(async move {
            caller.record(&Recording::of_disowned(id, &attempt, caller.now())).await;
        });
    }

    /// Records how an attempt ended; whether it is recorded.
    async fn record(&self, recording: &Recording) -> bool {
        record(&self.ledger, recording, || self.now()).await
    }

    fn now(&self) -> Timestamp {
        self.term.time()
    }

    fn say(&self, ended: Ended) {
        // The term may have ended: then nobody listens, and the ledger tells the next leader.
        _ = self.ended.send(ended);
    }
}

/// Records how an attempt ended, leading or not; whether it is recorded.
pub(crate) async fn record(ledger: &Ledger, recording: &Recording, now: impl Fn() -> Timestamp) -> bool {
    loop {
        let answer = ledger.finish(&recording.id, recording.result.clone()).await;
        match recording.after(answer, now()) {
            After::Recorded => return true,
            After::Again(pause) => tokio::time::sleep(pause).await,
            After::GivenUp(error) => {
                tracing::warn!(id = recording.id, %error, "the result is not recorded");
                return false;
            }
        }
    }
}

/// A call as the app is told of it, under this token; none for a task that is each pod's own.
pub(crate) fn call(shared: &Shared, loaded: &Loaded, start: Start, token: Option<u64>) -> Call {
    let Start { kind, name, run, time, attempt, asks, target, .. } = start;
    let cluster = &loaded.file.cluster;
    Call {
        context: shared.traces.context(cluster, &name, &run, &attempt.nonce),
        cluster: cluster.clone(),
        kind: match kind {
            Kind::Schedule => "schedule",
            Kind::Startup => "startup",
        },
        name: name.to_string(),
        run,
        time,
        token,
        attempt: attempt.number,
        deadline: attempt.deadline,
        asks,
        target,
    }
}
