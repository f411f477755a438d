//! The running election: owns the tasks, sockets, timers and randomness around [`crate::redlock::core`].

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant as Wakeup, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, trace, warn};

use crate::clock::{Clock as _, Instant, SystemClock};
use crate::ledger::{FinishError, Ledger, Put, PutError, ReadError, Record, RunResult};
use crate::redlock::core::{Action, Config, Core, Event, News, OpId, Timer};
pub use crate::redlock::node::NodeError;
use crate::redlock::node::{Command, Node};
use crate::redlock::record::Records;
use crate::redlock::script::Keys;
pub use crate::redlock::{AgentId, ErrorKind, Master, Masters, Owner, Timing};

/// Whether the agent would lead, and what for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Candidacy {
    /// It would; `false` while it leads makes it resign.
    pub stands: bool,
    /// Of its pod's template; the newest goes first.
    pub revision: u64,
}

/// What the agent is at the moment.
#[derive(Clone, Debug)]
pub enum Role {
    /// Another one leads, or none does.
    Follower {
        /// Whose lock a majority of the nodes hold, as far as is known.
        leader: Option<Owner>,
    },
    /// It leads, until [`Term::lost`].
    Leader(Term),
}

/// The time for which one token leads; cheap to clone.
#[derive(Clone, Debug)]
pub struct Term(Arc<TermState>);

#[derive(Debug)]
struct TermState {
    token: u64,
    since: Instant,
    lost: CancellationToken,
    /// Nanoseconds after boot.
    claim_until: AtomicU64,
    records: RwLock<Records>,
}

impl Term {
    /// The fencing token: higher than that of every earlier term.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.0.token
    }

    /// When it began.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.0.since
    }

    /// Fires when nothing may be claimed any more: a margin before the lease ends, whatever renewals do, or at once when
    /// the agent resigns.
    #[must_use]
    pub fn lost(&self) -> &CancellationToken {
        &self.0.lost
    }

    /// Whether a claim may be made right now, by the clock and not only by the timer behind [`Term::lost`].
    #[must_use]
    pub fn may_claim(&self) -> bool {
        !self.0.lost.is_cancelled() && SystemClock.now() < self.claim_until()
    }

    /// Until when claims may be made, as the last renewal has it.
    #[must_use]
    pub fn claim_until(&self) -> Instant {
        Instant::from_nanos(self.0.claim_until.load(Ordering::Acquire))
    }

    /// What the fenced read found, and everything written since, by id.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        let records = self.0.records.read().unwrap_or_else(PoisonError::into_inner);
        records.values().map(|record| Record::clone(record)).collect()
    }

    fn change(&self, change: impl FnOnce(&mut Records)) {
        change(&mut self.0.records.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A node, as `/status` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeStatus {
    /// What people call it.
    pub name: String,
    /// `host:port/db`.
    pub address: String,
    /// It answers.
    pub reachable: bool,
    /// Why it does not.
    pub error: Option<NodeError>,
    /// Of the server process.
    pub run_id: Option<String>,
    /// How far its wall clock is ahead of ours, in milliseconds, give or take the way of the message.
    pub time_offset_ms: Option<i64>,
    /// What is wrong with its configuration, in words.
    pub warning: Option<String>,
}

/// The election, as `/status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ElectionStatus {
    /// In the order of the file.
    pub nodes: Vec<NodeStatus>,
    /// It leads.
    pub leading: bool,
    /// Whose lock a majority of the nodes hold, this agent included.
    pub leader: Option<Owner>,
    /// How long it may still claim, while it leads.
    pub claims_for: Option<Duration>,
    /// The highest token that was seen anywhere.
    pub promised: u64,
}

/// Handle to the one election task; cheap to clone.
#[derive(Clone, Debug)]
pub struct Elector {
    requests: mpsc::UnboundedSender<Ask>,
    role: watch::Receiver<Role>,
    view: Arc<Mutex<View>>,
}

/// What the handle shows without asking the task.
#[derive(Debug, Default)]
struct View {
    nodes: Arc<[Node]>,
    term: Option<Term>,
    leader: Option<Owner>,
    promised: u64,
}

impl Elector {
    /// Starts the election of `cluster` (`<namespace>/<name>`) as tasks of `tasks`; they resign and end when `shutdown`
    /// fires. It does not stand before [`Elector::stand`].
    #[must_use]
    pub fn spawn(
        tasks: &TaskTracker,
        shutdown: CancellationToken,
        id: AgentId,
        masters: Masters,
        timing: Timing,
        cluster: &str,
    ) -> Self {
        let (requests, asked) = mpsc::unbounded_channel();
        let (role, watched) = watch::channel(Role::Follower { leader: None });
        let view = Arc::<Mutex<View>>::default();
        let set = Set::open(tasks, cluster, &id, masters, timing, 0);
        locked(&view).nodes = set.nodes.clone();
        let driver = Driver {
            tasks: tasks.clone(),
            cluster: cluster.to_owned(),
            agent: id,
            timing,
            candidacy: Candidacy::default(),
            set,
            timers: BTreeMap::new(),
            term: None,
            role,
            view: view.clone(),
            last_op: 0,
            waiting: HashMap::new(),
            resigning: Vec::new(),
            next: None,
        };
        tasks.spawn(driver.run(asked, shutdown));
        Self { requests, role: watched, view }
    }

    /// Follows the role; the present value is there at once.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Role> {
        self.role.clone()
    }

    /// Says whether to stand, from now on.
    pub fn stand(&self, candidacy: Candidacy) {
        self.ask(Ask::Stand(candidacy));
    }

    /// Stops standing and gives the lease back; returns when every node that can be reached has answered, or after
    /// their timeout. [`Elector::stand`] stands again.
    pub async fn resign(&self) {
        let (done, resigned) = oneshot::channel();
        self.ask(Ask::Resign(done));
        // An elector that has ended has resigned.
        _ = resigned.await;
    }

    /// Goes over to other masters or timing. A change of the set (not of credentials alone) while leading resigns first.
    pub fn reconfigure(&self, masters: Masters, timing: Timing) {
        self.ask(Ask::Reconfigure(masters, timing));
    }

    /// A higher token was seen elsewhere (the app's 412, the operator's mirror): a leader below it resigns, and every
    /// later token is higher. One that is more than 2^32 ahead is not believed.
    pub fn raise(&self, token: u64) {
        self.ask(Ask::Raise(token));
    }

    /// As it is now.
    #[must_use]
    pub fn status(&self) -> ElectionStatus {
        let view = locked(&self.view);
        ElectionStatus {
            nodes: view.nodes.iter().map(node_status).collect(),
            leading: view.term.is_some(),
            leader: view.leader.clone(),
            claims_for: view.term.as_ref().map(|term| term.claim_until().since(SystemClock.now())),
            promised: view.promised,
        }
    }

    /// The records of runs.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        Ledger::new(self.requests.clone())
    }

    fn ask(&self, request: Ask) {
        // An elector that has ended stands for nothing any more.
        _ = self.requests.send(request);
    }
}

fn node_status(node: &Node) -> NodeStatus {
    let (master, health) = (node.master(), node.health());
    NodeStatus {
        name: master.name,
        address: format!("{}:{}/{}", master.host, master.port, master.db),
        reachable: health.reachable(),
        error: health.error,
        run_id: health.run_id.map(|run| run.to_string()),
        time_offset_ms: health.time_offset_ms,
        warning: health.warning,
    }
}

fn locked(view: &Mutex<View>) -> MutexGuard<'_, View> {
    view.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the handles ask of the task.
#[derive(Debug)]
pub(crate) enum Ask {
    Stand(Candidacy),
    Resign(oneshot::Sender<()>),
    Reconfigure(Masters, Timing),
    Put { token: u64, puts: Vec<Put>, done: oneshot::Sender<Vec<Result<(), PutError>>> },
    Finish { id: String, result: RunResult, done: oneshot::Sender<Result<(), FinishError>> },
    Raise(u64),
    Look { ids: Vec<String>, done: oneshot::Sender<Result<Vec<Record>, ReadError>> },
    Forget { token: u64, ids: Vec<String>, done: oneshot::Sender<Result<(), PutError>> },
}

/// Who waits for a ledger operation.
enum Waiter {
    Put(oneshot::Sender<Vec<Result<(), PutError>>>),
    Finish(oneshot::Sender<Result<(), FinishError>>),
    Look(oneshot::Sender<Result<Vec<Record>, ReadError>>),
    Forget(oneshot::Sender<Result<(), PutError>>),
}

/// One set of masters, and the core that elects over it.
struct Set {
    core: Core,
    nodes: Arc<[Node]>,
    events: mpsc::UnboundedReceiver<Event>,
    stop: CancellationToken,
}

/// The task.
struct Driver {
    tasks: TaskTracker,
    cluster: String,
    agent: AgentId,
    timing: Timing,
    candidacy: Candidacy,
    set: Set,
    timers: BTreeMap<Timer, Wakeup>,
    term: Option<Term>,
    role: watch::Sender<Role>,
    view: Arc<Mutex<View>>,
    last_op: OpId,
    waiting: HashMap<OpId, Waiter>,
    /// Who waits for releases to be answered.
    resigning: Vec<oneshot::Sender<()>>,
    /// Masters to go over to once releases are answered.
    next: Option<Masters>,
}

impl Set {
    fn open(tasks: &TaskTracker, cluster: &str, agent: &AgentId, masters: Masters, timing: Timing, floor: u64) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let keys = Keys::new(cluster, floor);
        let core = Core::new(Config { agent: agent.clone(), nodes: masters.len(), timing, floor });
        let spawn = |(id, master)| Node::spawn(tasks, &stop, id, master, &keys, &sender);
        let nodes = masters.into_iter().enumerate().map(spawn).collect();
        Self { core, nodes, events, stop }
    }

    /// Whether `masters` are the same places, so that the lease on them stays.
    fn is_at(&self, masters: &Masters) -> bool {
        self.nodes.len() == masters.len()
            && self.nodes.iter().zip(masters).all(|(node, master)| node.master().same_place(master))
    }
}

impl Driver {
    async fn run(mut self, mut asked: mpsc::UnboundedReceiver<Ask>, shutdown: CancellationToken) {
        let mut ending = false;
        loop {
            let due = self.timers.iter().min_by_key(|(_, at)| **at).map(|(timer, at)| (*timer, *at));
            tokio::select! {
                () = shutdown.cancelled(), if !ending => {
                    ending = true;
                    self.step(Event::Stand(Candidacy { stands: false, ..self.candidacy }));
                }
                Some(event) = self.set.events.recv() => self.step(event),
                Some(ask) = asked.recv() => self.take(ask, ending),
                timer = run_out(due) => {
                    self.timers.remove(&timer);
                    self.step(Event::Timer(timer));
                }
            }
            // The releases of a resignation are answered, or timed out.
            if self.set.core.is_quiet() {
                for done in self.resigning.drain(..) {
                    // Who does not wait any more need not be told.
                    _ = done.send(());
                }
                if ending {
                    break;
                }
                if let Some(masters) = self.next.take() {
                    self.go_over(masters);
                }
            }
        }
        let rest = self.set.core.abandon();
        self.carry_out(rest);
        self.set.stop.cancel();
    }

    fn take(&mut self, ask: Ask, ending: bool) {
        match ask {
            Ask::Stand(candidacy) => {
                self.candidacy = candidacy;
                // On the way to other masters, those hear of it.
                if !ending && self.next.is_none() {
                    self.step(Event::Stand(candidacy));
                }
            }
            Ask::Resign(done) => {
                self.candidacy.stands = false;
                self.resigning.push(done);
                self.step(Event::Stand(self.candidacy));
            }
            Ask::Reconfigure(masters, timing) => {
                self.timing = timing;
                self.step(Event::Timing(timing));
                if self.next.is_none() && self.set.is_at(&masters) {
                    for (node, master) in self.set.nodes.iter().zip(masters) {
                        node.update(master);
                    }
                } else {
                    self.next = Some(masters);
                    self.step(Event::Stand(Candidacy { stands: false, ..self.candidacy }));
                }
            }
            Ask::Put { token, puts, done } => {
                let op = self.wait(Waiter::Put(done));
                self.step(Event::Put { op, token, puts });
            }
            Ask::Finish { id, result, done } => {
                let op = self.wait(Waiter::Finish(done));
                self.step(Event::Finish { op, id, result });
            }
            Ask::Raise(token) => {
                self.step(Event::Raise(token));
                if self.set.core.promised() < token {
                    warn!(token, "a token seen elsewhere is too far ahead of ours to be believed");
                }
            }
            Ask::Look { ids, done } => {
                let op = self.wait(Waiter::Look(done));
                self.step(Event::Look { op, ids });
            }
            Ask::Forget { token, ids, done } => {
                let op = self.wait(Waiter::Forget(done));
                self.step(Event::Forget { op, token, ids });
            }
        }
    }

    fn wait(&mut self, waiter: Waiter) -> OpId {
        self.last_op += 1;
        self.waiting.insert(self.last_op, waiter);
        self.last_op
    }

    /// Leaves the present masters, on which nothing is held any more, for others.
    fn go_over(&mut self, masters: Masters) {
        let rest = self.set.core.abandon();
        self.carry_out(rest);
        self.set.stop.cancel();
        self.timers.clear();
        let floor = self.set.core.promised();
        info!(masters = masters.len(), floor, "going over to other masters");
        self.set = Set::open(&self.tasks, &self.cluster, &self.agent, masters, self.timing, floor);
        locked(&self.view).nodes = self.set.nodes.clone();
        self.step(Event::Stand(self.candidacy));
    }

    fn step(&mut self, event: Event) {
        let traced = tracing::enabled!(tracing::Level::TRACE).then(|| format!("{event:?}"));
        let actions = self.set.core.step(SystemClock.now(), event);
        trace!(agent = %self.agent, event = traced, ?actions);
        self.carry_out(actions);
        let mut view = locked(&self.view);
        view.promised = self.set.core.promised();
        view.leader = self.set.core.leader();
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send { call, node, request, timeout } => {
                    self.set.nodes[node].send(Command { call, request, timeout });
                }
                Action::SetTimer { timer, at, jitter } => {
                    let wait = at.since(SystemClock.now()) + jitter.mul_f64(rand::random());
                    self.timers.insert(timer, Wakeup::now() + wait);
                }
                Action::Announce(news) => self.announce(news),
                Action::Put { op, results } => {
                    if let Some(Waiter::Put(done)) = self.waiting.remove(&op) {
                        _ = done.send(results);
                    }
                }
                Action::Finish { op, result } => {
                    if let Some(Waiter::Finish(done)) = self.waiting.remove(&op) {
                        _ = done.send(result);
                    }
                }
                Action::Look { op, result } => {
                    if let Some(Waiter::Look(done)) = self.waiting.remove(&op) {
                        _ = done.send(result);
                    }
                }
                Action::Forget { op, result } => {
                    if let Some(Waiter::Forget(done)) = self.waiting.remove(&op) {
                        _ = done.send(result);
                    }
                }
            }
        }
    }

    fn announce(&mut self, news: News) {
        match news {
            News::Follows { leader } => {
                debug!(leader = leader.as_ref().map(tracing::field::display), "follows");
                let ended = self.term.take();
                if let Some(term) = &ended {
                    info!(token = term.token(), "the term has ended");
                    term.0.claim_until.store(0, Ordering::Release);
                }
                locked(&self.view).term = None;
                // Before `lost` fires, so that who waits for it does not find the agent leading still.
                self.role.send_replace(Role::Follower { leader });
                if let Some(term) = ended {
                    term.0.lost.cancel();
                }
            }
            News::Leads { token, claim_until, records } => {
                info!(token, records = records.len(), "leads");
                let term = Term(Arc::new(TermState {
                    token,
                    since: SystemClock.now(),
                    lost: CancellationToken::new(),
                    claim_until: AtomicU64::new(claim_until.as_nanos()),
                    records: RwLock::new(records),
                }));
                self.term = Some(term.clone());
                locked(&self.view).term = Some(term.clone());
                self.role.send_replace(Role::Leader(term));
            }
            News::Lasts { claim_until } => {
                if let Some(term) = &self.term {
                    term.0.claim_until.store(claim_until.as_nanos(), Ordering::Release);
                }
            }
            News::Recorded(records) => {
                if let Some(term) = &self.term {
                    let records = records.into_iter().map(|record| (record.id.clone(), record));
                    term.change(|known| known.extend(records));
                }
            }
            News::Forgotten(ids) => {
                if let Some(term) = &self.term {
                    term.change(|known| ids.iter().for_each(|id| _ = known.remove(id)));
                }
            }
        }
    }
}

/// The timer that runs out first, when it does.
async fn run_out(due: Option<(Timer, Wakeup)>) -> Timer {
    match due {
        Some((timer, at)) => {
            sleep_until(at).await;
            timer
        }
        None => std::future::pending().await,
    }
}
