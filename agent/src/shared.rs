//! What the parts of the agent know of each other; each part writes only its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cabloy_crds::agent_status::{
    AgentStatus, AppStatus, Awaited, ConfigStatus, ElectionStatus, GuardStatus, MasterStatus, Problem, RevisionStatus,
    ScheduleStatus, SigningStatus, StartupState, StartupStatus,
};
use cabloy_crds::names::AGENT_FILE;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::aside::Failures;
use crate::election::{Candidacy, Elector, NodeStatus, Obstacle, Owner, Role};
use crate::files::Loaded;
use crate::ledger::Ledger;
use crate::masters::node::reason;
use crate::metrics::{Metrics, Snapshot};
use crate::reload::Config;
use crate::roles::Roles;
use crate::runs::OutcomeKind;
use crate::schedule::Handover;
use crate::signing::Signing;
use crate::startup::{Place, Plan};
use crate::target::Ways;
use crate::traces::Traces;

/// A master may be without memory for so long before somebody should look: it rests for a lease, by design.
const MEMORY_GRACE: Duration = Duration::from_mins(2);

/// How long a loss of memory stays in the status.
const LOSS_SHOWN: Duration = Duration::from_hours(1);

/// Who the agent is, for as long as its process lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the pod, or a name of its own outside Kubernetes.
    pub pod: String,
    /// UID of the pod, or something else that no other agent has.
    pub uid: String,
    /// Where it runs.
    pub place: Place,
    /// Whether its workload may lead.
    pub elect: bool,
}

/// What the parts of the agent know of each other.
#[derive(Debug)]
pub struct Shared {
    /// Who the agent is.
    pub identity: Identity,
    /// Names the process: what all nonces of its claims begin with.
    pub process: String,
    /// The files; written by [`crate::reload`].
    pub config: watch::Receiver<Config>,
    /// What calls are signed with; written by [`crate::reload`].
    pub signing: watch::Receiver<Signing>,
    /// The app; written by [`crate::health`].
    pub app: watch::Receiver<AppStatus>,
    /// Whether the pod is about to end; never taken back.
    pub draining: watch::Sender<bool>,
    /// Whether the agent makes room for another to lead; taken back by [`crate::agent`] after a while.
    pub aside: watch::Sender<bool>,
    /// Whether the pod's gate is open; never shut again.
    pub gate: watch::Sender<bool>,
    /// Ids of the startup tasks of the pod's revision that are known to be done.
    pub done: watch::Sender<BTreeSet<String>>,
    /// How far the schedules are that take over one of the app's own; only the leader knows.
    pub takes: watch::Sender<BTreeMap<String, Takes>>,
    /// How they do it, as far as it is decided.
    pub handovers: watch::Sender<BTreeMap<Arc<str>, Handover>>,
    /// The election, once there are files with masters.
    pub elector: watch::Sender<Option<Elector>>,
    /// The connections to the app's own roles.
    pub roles: Roles,
    /// What is counted.
    pub metrics: Metrics,
    /// The traces of runs.
    pub traces: Traces,
    board: Mutex<Board>,
    /// The calls to the app that are being made or whose results are being recorded, by the attempt's nonce.
    calls: Mutex<BTreeMap<String, CancellationToken>>,
}

/// How far a schedule is that takes over one of the app's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// It waits.
    Waits,
    /// It has, and the ledger does not know yet.
    Begun,
    /// It has, and the ledger remembers.
    Kept,
    /// Nothing of it is left in Redis besides.
    Cleared,
}

/// What is only written down to be shown.
#[derive(Debug, Default)]
struct Board {
    since: Option<Timestamp>,
    schedules: BTreeMap<String, ScheduleStatus>,
    startups: BTreeMap<String, StartupStatus>,
    alarms: BTreeMap<String, Problem>,
    /// By what awaits them.
    awaits: BTreeMap<String, BTreeSet<Awaited>>,
    failures: Failures,
    guard: Option<GuardStatus>,
    /// Why the app's own schedules are not guarded.
    unguarded: Option<Problem>,
    /// What schedules wait for that take over one of the app's own, by name.
    waits: BTreeMap<String, String>,
    /// Why they cannot.
    not_taken: Option<Problem>,
    /// Why worker processes of the app may take no jobs.
    cold: Option<Problem>,
}

impl Board {
    /// A schedule, with what is known of what it waits for.
    fn with_waits(&self, schedule: &ScheduleStatus) -> ScheduleStatus {
        let said = schedule.waits_for.as_ref().and_then(|_| self.waits.get(&schedule.name));
        ScheduleStatus { waits_for: said.or(schedule.waits_for.as_ref()).cloned(), ..schedule.clone() }
    }
}

impl Shared {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(
        identity: Identity,
        config: watch::Receiver<Config>,
        signing: watch::Receiver<Signing>,
        app: watch::Receiver<AppStatus>,
    ) -> Arc<Self> {
        let metrics = Metrics::default();
        let traces = Traces::new(config.clone(), identity.uid.clone(), metrics.spans.clone());
        Arc::new(Self {
            identity,
            process: uuid::Uuid::new_v4().simple().to_string(),
            config,
            signing,
            app,
            draining: watch::Sender::new(false),
            aside: watch::Sender::new(false),
            gate: watch::Sender::new(false),
            done: watch::Sender::default(),
            takes: watch::Sender::default(),
            handovers: watch::Sender::default(),
            elector: watch::Sender::default(),
            roles: Roles::default(),
            metrics,
            traces,
            board: Mutex::default(),
            calls: Mutex::default(),
        })
    }

    /// The files, once they have been good.
    #[must_use]
    pub fn loaded(&self) -> Option<Arc<Loaded>> {
        self.config.borrow().loaded.clone()
    }

    /// The elector, once there is one.
    #[must_use]
    pub fn elector(&self) -> Option<Elector> {
        self.elector.borrow().clone()
    }

    /// The records of runs, once there is an elector; what is asked of them is measured.
    #[must_use]
    pub fn ledger(&self) -> Option<Ledger> {
        self.elector().map(|elector| elector.ledger().measured(self.metrics.ledger.clone()))
    }

    /// What a call by the files as they were `loaded` goes out through.
    #[must_use]
    pub fn ways<'a>(&'a self, loaded: &'a Loaded) -> Ways<'a> {
        Ways { loaded, roles: &self.roles, signing: &self.signing }
    }

    /// Whether to stand, as everything is now.
    #[must_use]
    pub fn candidacy(&self) -> Candidacy {
        let plan = self.loaded().and_then(|loaded| Plan::new(&loaded.file, &self.identity.place).ok());
        let may = self.identity.elect && self.identity.place != Place::Loose;
        let out = *self.draining.borrow() || *self.aside.borrow();
        let stands = may && plan.is_some() && self.app.borrow().healthy && !out;
        Candidacy { stands, revision: plan.map_or(0, |plan| plan.number) }
    }

    /// Notes how a call for the run `id` ended, nothing if there was no answer; makes room for another agent to lead where
    /// the app fails run after run.
    pub fn note_call(&self, id: &str, ended: Option<OutcomeKind>, now: Timestamp) {
        if self.board().failures.note(id, ended, now) {
            tracing::warn!("the app fails run after run: another agent may lead");
            self.aside.send_replace(true);
        }
    }

    /// Notes that a call is being made; when the token fires, it is to be ended.
    #[must_use]
    pub fn open_call(&self, nonce: &str) -> CancellationToken {
        self.calls().entry(nonce.to_owned()).or_default().clone()
    }

    /// Notes that a call has ended and its result is recorded.
    pub fn close_call(&self, nonce: &str) {
        self.calls().remove(nonce);
    }

    /// Has a call of this agent end; whether there is one.
    #[must_use]
    pub fn hang_up(&self, nonce: &str) -> bool {
        self.calls().get(nonce).map(CancellationToken::cancel).is_some()
    }

    fn calls(&self) -> MutexGuard<'_, BTreeMap<String, CancellationToken>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that startup tasks are done.
    pub fn note_done(&self, ids: impl IntoIterator<Item = String>) {
        self.done.send_if_modified(|done| {
            let before = done.len();
            done.extend(ids);
            done.len() > before
        });
    }

    /// Notes since when this agent leads, or that it does not; forgets what only leaders know.
    pub fn show_term(&self, since: Option<Timestamp>) {
        let mut board = self.board();
        board.since = since;
        self.traces.end_term();
        board.schedules.clear();
        board.alarms.clear();
        board.awaits.clear();
        self.takes.send_replace(BTreeMap::new());
        self.handovers.send_replace(BTreeMap::new());
    }

    /// Shows a schedule, and what somebody should look at about it.
    pub fn show_schedule(&self, status: ScheduleStatus, alarm: Option<Problem>) {
        if status.waits_for.is_some() {
            self.show_take(&status.name, Takes::Waits);
        } else if self.takes.borrow().get(&status.name) == Some(&Takes::Waits) {
            self.show_take(&status.name, Takes::Begun);
        }
        let mut board = self.board();
        match alarm {
            Some(alarm) => _ = board.alarms.insert(status.name.clone(), alarm),
            None => _ = board.alarms.remove(&status.name),
        }
        board.schedules.insert(status.name.clone(), status);
    }

    /// Shows a schedule no more.
    pub fn hide_schedule(&self, name: &str) {
        self.takes.send_if_modified(|takes| takes.remove(name).is_some());
        let mut board = self.board();
        board.schedules.remove(name);
        board.alarms.remove(name);
    }

    /// Shows how far a schedule is that takes over one of the app's own.
    pub fn show_take(&self, name: &str, stage: Takes) {
        self.takes.send_if_modified(|takes| takes.insert(name.to_owned(), stage) != Some(stage));
    }

    /// Whether a schedule is still to take over one of the app's own, or has done so and not cleared what told it how.
    #[must_use]
    pub fn takes_over(&self) -> bool {
        let takes = self.takes.borrow();
        let loaded = self.loaded();
        let mut wanted = loaded.iter().flat_map(|it| &it.file.schedules).filter(|it| it.takes_over.is_some());
        wanted.any(|schedule| takes.get(&schedule.name) != Some(&Takes::Cleared))
    }

    /// Decides how a schedule takes over one of the app's own.
    pub fn hand_over(&self, name: &str, handover: &Handover) {
        self.handovers.send_if_modified(|handovers| {
            let before = handovers.insert(name.into(), handover.clone());
            before.as_ref() != Some(handover)
        });
    }

    /// Shows what schedules wait for that take over one of the app's own, and why they cannot.
    pub fn show_takeovers(&self, waits: BTreeMap<String, String>, problem: Option<Problem>) {
        let mut board = self.board();
        board.waits = waits;
        board.not_taken = problem;
    }

    /// Shows what the guard of the app's own schedules sees and does, or why there is none.
    pub fn show_guard(&self, status: Option<GuardStatus>, problem: Option<Problem>) {
        let mut board = self.board();
        board.guard = status;
        board.unguarded = problem;
    }

    /// Shows whose attempts the schedule or task `id` waits for.
    pub fn show_awaits(&self, id: String, awaits: BTreeSet<Awaited>) {
        let mut board = self.board();
        if awaits.is_empty() {
            board.awaits.remove(&id);
        } else {
            board.awaits.insert(id, awaits);
        }
    }

    /// Shows a startup task.
    pub fn show_startup(&self, status: StartupStatus) {
        self.board().startups.insert(status.name.clone(), status);
    }

    /// Whether a startup task of that name is shown.
    #[must_use]
    pub fn is_shown(&self, startup: &str) -> bool {
        self.board().startups.contains_key(startup)
    }

    /// Shows why worker processes of the app may take no jobs, or that they do.
    pub fn show_cold(&self, cold: Option<Problem>) {
        self.board().cold = cold;
    }

    /// Shows no other startup tasks than these.
    pub fn keep_startups(&self, names: &BTreeSet<&str>) {
        self.board().startups.retain(|name, _| names.contains(name.as_str()));
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        // Only plain writes happen under the lock: a panic in one leaves nothing half done.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `/readyz` says yes: the files are there, and the gate is open. Never Redis, never who leads.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.gate.borrow()
    }

    /// What `/metrics` shows.
    ///
    /// # Errors
    /// The text cannot be written, which a string never refuses.
    pub fn encode_metrics(&self) -> Result<String, std::fmt::Error> {
        let status = self.elector().map(|it| it.status()).unwrap_or_default();
        let (taken, refused) = (self.config.borrow().taken, self.config.borrow().refused);
        self.metrics.encode(&Snapshot {
            leading: status.leading,
            token: status.promised,
            lease: status.claims_for.unwrap_or_default().as_secs_f64(),
            healthy: self.app.borrow().healthy,
            ready: self.is_ready(),
            masters: status.nodes.iter().map(|node| (node.name.clone(), node.reachable)).collect(),
            taken,
            refused,
        })
    }

    /// What `/status` shows.
    #[must_use]
    pub fn status(&self) -> AgentStatus {
        let config = self.config.borrow().clone();
        let plan = config.loaded.as_ref().map(|loaded| Plan::new(&loaded.file, &self.identity.place));
        let app = self.app.borrow().clone();
        let signing = self.signing.borrow().clone();
        let election = self.elector().map(|elector| self.election(&elector));
        let board = self.board();
        let mut problems = config.problems.clone();
        problems.extend(signing.problems.iter().cloned());
        if let Some(Err(unknown)) = &plan {
            problems.push(problem("UnknownRevision", unknown.to_string(), Some(AGENT_FILE.to_owned())));
        }
        if config.loaded.is_some() && !app.healthy {
            problems.push(problem(
                "AppUnhealthy",
                app.message.clone().unwrap_or_else(|| "it has not answered yet".to_owned()),
                None,
            ));
        }
        problems.extend(election.iter().flat_map(|it| &it.masters).filter_map(|master| master.problem.clone()));
        problems.extend(self.elector().into_iter().flat_map(|elector| memory_problems(&elector.status())));
        problems.extend(board.alarms.values().cloned());
        problems.extend(board.unguarded.clone());
        problems.extend(board.not_taken.clone());
        problems.extend(self.traces.problem().filter(|_| self.traces.settings().is_some()));
        problems.extend(board.cold.clone());
        let failed = board.startups.values().filter(|it| it.state == StartupState::Failed);
        problems.extend(failed.map(|it| {
            problem("StartupFailed", format!("{}: {}", it.name, it.message), Some(format!("startups.{}", it.name)))
        }));
        AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: config.loaded.as_ref().map(|it| it.file.cluster.clone()),
            pod: self.identity.pod.clone(),
            ready: self.is_ready(),
            draining: *self.draining.borrow(),
            revision: RevisionStatus {
                hash: self.identity.place.hash().to_owned(),
                number: plan.as_ref().and_then(|plan| plan.as_ref().ok()).map(|plan| plan.number),
            },
            config: ConfigStatus {
                hash: config.loaded.as_ref().map(|it| it.hash.clone()),
                loaded_at: config.loaded_at,
                roles: config.loaded.as_ref().map(|it| it.roles.clone()).unwrap_or_default(),
                error: config.problems.first().map(|it| format!("{}: {}", it.reason, it.message)),
                secrets_at: config.secrets_at,
            },
            app,
            signing: SigningStatus { keys: signing.keys() },
            problems,
            election,
            schedules: board.schedules.values().map(|schedule| board.with_waits(schedule)).collect(),
            startups: board.startups.values().cloned().collect(),
            awaits: board.awaits.values().flatten().cloned().collect(),
            guard: board.guard.clone(),
        }
    }

    fn election(&self, elector: &Elector) -> ElectionStatus {
        let status = elector.status();
        let (own, since) = match &*elector.watch().borrow() {
            Role::Leader(term) => (Some(term.token()), self.board().since),
            Role::Follower { .. } => (None, None),
        };
        let (seen, leader) = match &status.leader {
            Some(Owner::Agent { agent, token, .. }) => (Some(*token), Some(agent.pod.clone())),
            Some(Owner::Other(_)) | None => (None, None),
        };
        ElectionStatus {
            standing: self.candidacy().stands,
            leading: own.is_some(),
            token: own.or(seen),
            since,
            leader: if own.is_some() { Some(self.identity.pod.clone()) } else { leader },
            masters: status.nodes.iter().map(master).collect(),
        }
    }
}

/// What there is to say about the memory of the masters together.
fn memory_problems(status: &crate::election::ElectionStatus) -> Vec<Problem> {
    let lost = status.state_lost.filter(|at| Timestamp::now().duration_since(*at).unsigned_abs() < LOSS_SHOWN).map(|at| {
        let message = format!(
            "at {at} too few masters of role redlock had kept their memory, and it began anew with what was left: runs \
             around then may have been run twice; masters that keep it over a restart need appendonly yes and \
             appendfsync always"
        );
        problem("StateLost", message, None)
    });
    let stuck = (status.obstacle == Some(Obstacle::NeedsAllNodes)).then(|| {
        let missing = status.nodes.iter().filter(|node| !node.reachable).map(|node| node.address.as_str());
        let missing: Vec<_> = missing.collect();
        let message = format!(
            "most masters of role redlock have no memory, and it can begin anew only when all can be reached; waiting \
             for {}",
            missing.join(", ")
        );
        problem("MastersMissing", message, None)
    });
    lost.into_iter().chain(stuck).collect()
}

fn problem(reason: &str, message: String, path: Option<String>) -> Problem {
    Problem { reason: reason.to_owned(), message, path }
}

fn master(node: &NodeStatus) -> MasterStatus {
    let error = node.error.as_ref();
    let error = error.map(|error| problem(reason(error.kind), error.to_string(), Some(node.address.clone())));
    let says = |reason, message: String| problem(reason, message, Some(node.address.clone()));
    let forgetful = node.without_memory.filter(|since| *since > MEMORY_GRACE).map(|since| {
        let seconds = since.as_secs();
        says(
            "LostMemory",
            format!("was started again or emptied {seconds} s ago, and has not been given its memory back"),
        )
    });
    let far =
        node.far.then(|| says("ClockSkew", "its clock is far from the other masters': its lock does not count".into()));
    let warning = node.warning.clone().map(|warning| says("RedisConfiguration", warning));
    let problem = error.or(forgetful).or(far).or(warning);
    MasterStatus { address: node.address.clone(), reachable: node.reachable, problem }
}
