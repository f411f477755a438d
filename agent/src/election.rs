//! The running election: owns the tasks, sockets, timers and randomness around [`cabloy_redlock::core`].

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

pub use cabloy_redlock::core::Obstacle;
use cabloy_redlock::core::{Action, Config, Core, Event, News, OpId, Timer};
use cabloy_redlock::record::Records;
use cabloy_redlock::rule::Rules;
pub use cabloy_redlock::{AgentId, Candidacy, ErrorKind, Owner, Timing};
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant as Wakeup, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, trace, warn};

use crate::clock::{Clock as _, Instant, SystemClock};
use crate::ledger::{FinishError, Ledger, Put, PutError, ReadError, Record, RunResult};
pub use crate::masters::node::NodeError;
use crate::masters::node::{Command, Node};
use crate::masters::script::Keys;
pub use crate::masters::{Master, Masters};

/// Who stands: a pod, whichever process of the agent runs in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
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
    /// How far the time of day is ahead of the time since boot, in nanoseconds, by the median of the nodes.
    time_offset: AtomicI64,
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

    /// The time of day by the median of the masters' clocks: the same for every agent, whatever its own clock says.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        time_of_day(self.0.time_offset.load(Ordering::Acquire))
    }

    /// What the fenced read found, and everything written since, by id.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.look(|records, _, _| records.values().map(|record| Record::clone(record)).collect())
    }

    /// Has `look` see the records, [`Term::time`] and [`Term::may_claim`] as they are now.
    pub fn look<T>(&self, look: impl FnOnce(&Records, Timestamp, bool) -> T) -> T {
        let records = self.0.records.read().unwrap_or_else(PoisonError::into_inner);
        look(&records, self.time(), self.may_claim())
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
    /// For how long it has been known to have no memory: it was started again or emptied, and has no say.
    pub without_memory: Option<Duration>,
    /// Its clock is too far from the other masters' for its lock to count.
    pub far: bool,
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
    /// Why nobody can be elected, when it is for want of memory.
    pub obstacle: Option<Obstacle>,
    /// When this agent last had to begin the memory of the masters anew.
    pub state_lost: Option<Timestamp>,
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
    without_memory: Vec<Option<Instant>>,
    far: Vec<bool>,
    obstacle: Option<Obstacle>,
    state_lost: Option<Timestamp>,
    /// As [`Core::time_offset`], in nanoseconds.
    time_offset: Option<i64>,
}

impl Elector {
    /// Starts the election of `cluster` (`<namespace>/<name>`) as tasks of `tasks`; they resign and end when `shutdown`
    /// fires. It does not stand before [`Elector::stand`].
    #[must_use]
    pub fn spawn(
        tasks: &TaskTracker,
        shutdown: CancellationToken,
        pod: Pod,
        masters: Masters,
        timing: Timing,
        cluster: &str,
    ) -> Self {
        let (requests, asked) = mpsc::unbounded_channel();
        let (role, watched) = watch::channel(Role::Follower { leader: None });
        let view = Arc::<Mutex<View>>::default();
        let set = Set::open(tasks, cluster, &pod, masters, timing, 0);
        locked(&view).nodes = set.nodes.clone();
        let driver = Driver {
            tasks: tasks.clone(),
            cluster: cluster.to_owned(),
            pod,
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
            pace: Pace::now(),
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

    /// Every token is higher than this from now on, which the operator has seen; a leader below it resigns.
    pub fn floor(&self, token: u64) {
        self.ask(Ask::Floor(token));
    }

    /// The app has seen a higher token (412): a leader below it resigns, and every later token is higher. One that is more
    /// than 2^32 ahead is not believed.
    pub fn raise(&self, token: u64) {
        self.ask(Ask::Raise(token));
    }

    /// As it is now.
    #[must_use]
    pub fn status(&self) -> ElectionStatus {
        let view = locked(&self.view);
        ElectionStatus {
            nodes: view.nodes.iter().enumerate().map(|(id, node)| view.node(id, node)).collect(),
            leading: view.term.is_some(),
            leader: view.leader.clone(),
            claims_for: view.term.as_ref().map(|term| term.claim_until().since(SystemClock.now())),
            promised: view.promised,
            obstacle: view.obstacle,
            state_lost: view.state_lost,
        }
    }

    /// The time of day as [`Term::time`] has it, leading or not; by the own clock where no master was heard yet.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        locked(&self.view).time_offset.map_or_else(|| SystemClock.utc(), time_of_day)
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

impl View {
    fn node(&self, id: usize, node: &Node) -> NodeStatus {
        let (master, health) = (node.master(), node.health());
        let since = self.without_memory.get(id).copied().flatten();
        NodeStatus {
            name: master.name,
            address: format!("{}:{}/{}", master.host, master.port, master.db),
            reachable: health.reachable(),
            error: health.error,
            run_id: health.run_id.map(|run| run.to_string()),
            time_offset_ms: health.time_offset_ms,
            warning: health.warning,
            without_memory: since.map(|since| SystemClock.now().since(since)),
            far: self.far.get(id).copied().unwrap_or_default(),
        }
    }
}

/// The time of day, which is so many nanoseconds ahead of the time since boot.
fn time_of_day(offset: i64) -> Timestamp {
    let nanos = i128::from(SystemClock.now().as_nanos()) + i128::from(offset);
    Timestamp::from_nanosecond(nanos).unwrap_or_else(|_| SystemClock.utc())
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
    Floor(u64),
    Look { ids: Option<Vec<String>>, done: oneshot::Sender<Result<Vec<Record>, ReadError>> },
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
    pod: Pod,
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
    pace: Pace,
}

/// Whether the clocks of the machine go on together: a pause of a virtual machine, and a step of its time, part them.
struct Pace {
    /// The wall clock was read between these two: others may have had the processor in between.
    boot: [Instant; 2],
    wall: Timestamp,
}

impl Pace {
    fn now() -> Self {
        let before = SystemClock.now();
        let wall = SystemClock.utc();
        Self { boot: [before, SystemClock.now()], wall }
    }

    /// Whether they parted since this was last asked.
    fn broke(&mut self) -> bool {
        let earlier = std::mem::replace(self, Self::now());
        earlier.parts(self)
    }

    fn parts(&self, later: &Self) -> bool {
        let (least, most) = (later.boot[0].since(self.boot[1]), later.boot[1].since(self.boot[0]));
        let drift = Timing::drift_over(most);
        let nanos = |span: Duration| i128::try_from(span.as_nanos()).unwrap_or(i128::MAX);
        let wall = later.wall.duration_since(self.wall).as_nanos();
        wall > nanos(most + drift) || wall < nanos(least) - nanos(drift)
    }
}

impl Set {
    fn open(tasks: &TaskTracker, cluster: &str, pod: &Pod, masters: Masters, timing: Timing, floor: u64) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let keys = Keys::new(cluster);
        // New for each core: it numbers tokens and marks by itself.
        let process = format!("{:016x}", rand::random::<u64>());
        let agent = AgentId { pod: pod.name.clone(), uid: pod.uid.clone(), process };
        let core = Core::new(Config { agent, nodes: masters.len(), timing, floor, rules: Rules::default() });
        let spawn = |(id, master)| Node::spawn(tasks, &stop, id, master, &keys, &sender);
        let nodes = masters.into_iter().enumerate().map(spawn).collect();
        Self { core, nodes, events, stop }
    }

    /// As [`Core::time_offset`], for an atomic.
    fn time_offset(&self) -> Option<i64> {
        self.core.time_offset().map(|offset| i64::try_from(offset).unwrap_or(i64::MAX))
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
            Ask::Floor(token) => self.step(Event::Floor(token)),
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
        self.set = Set::open(&self.tasks, &self.cluster, &self.pod, masters, self.timing, floor);
        locked(&self.view).nodes = self.set.nodes.clone();
        self.step(Event::Stand(self.candidacy));
    }

    fn step(&mut self, event: Event) {
        if self.pace.broke() {
            warn!("the clocks of this machine did not go on together: no lease counts");
            self.step_core(Event::Paused);
        }
        self.step_core(event);
    }

    fn step_core(&mut self, event: Event) {
        let traced = tracing::enabled!(tracing::Level::TRACE).then(|| format!("{event:?}"));
        let actions = self.set.core.step(SystemClock.now(), event);
        trace!(pod = self.pod.name, event = traced, ?actions);
        self.carry_out(actions);
        let offset = self.set.time_offset();
        if let (Some(term), Some(offset)) = (&self.term, offset) {
            term.0.time_offset.store(offset, Ordering::Release);
        }
        let core = &self.set.core;
        let mut view = locked(&self.view);
        view.time_offset = offset;
        view.promised = core.promised();
        view.leader = core.leader();
        view.without_memory = core.without_memory();
        view.far = core.far();
        view.obstacle = core.obstacle();
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
                    time_offset: AtomicI64::new(self.set.time_offset().unwrap_or_default()),
                    records: RwLock::new(records),
                }));
                self.term = Some(term.clone());
                locked(&self.view).term = Some(term.clone());
                self.role.send_replace(Role::Leader(term));
            }
            News::StateLost { floor } => {
                warn!(floor, "the masters have lost their memory: it begins anew with what was left of it");
                locked(&self.view).state_lost = Some(SystemClock.utc());
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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(boot: [u64; 2], wall: i64) -> Pace {
        let boot = boot.map(|millis| Instant::from_nanos(millis * 1_000_000));
        Pace { boot, wall: Timestamp::UNIX_EPOCH + Duration::from_millis(wall.unsigned_abs()) }
    }

    #[test]
    fn clocks_that_go_on_together_are_no_pause() {
        assert!(!at([0, 0], 1000).parts(&at([5000, 5000], 6000)));
        assert!(!at([0, 0], 1000).parts(&at([5000, 5000], 6050)), "a hundredth is drift");
        assert!(
            !at([0, 300], 1000).parts(&at([5000, 5900], 5950)),
            "somebody else had the processor between the readings"
        );
    }

    #[test]
    fn a_step_and_a_pause_show() {
        assert!(
            at([0, 0], 1000).parts(&at([5000, 5000], 9000)),
            "the time since boot stood still, or the wall clock jumped"
        );
        assert!(at([0, 0], 9000).parts(&at([5000, 5000], 9001)));
        assert!(at([0, 0], 9000).parts(&at([10, 10], 8000)), "set back");
    }
}
