//! Agents, nodes and the network between them; what happens next is drawn from the seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use cabloy_crds::files::{AgentFile, Schedule};
use cabloy_redlock::core::{CallId, Event, NodeId, Timer};
use cabloy_redlock::message::{Reply, Request, Wake};
use cabloy_redlock::model::{Memory as Kept, ModelNode};
use cabloy_redlock::rule::{Rule, Rules};
use cabloy_redlock::{ErrorKind, Timing};

use crate::clock::{Clock, MS, Time};
use crate::dice::Dice;
use crate::engine::{self, Desk, EVENTS, Scene, Watch};
use crate::foreign::Foreign;
use crate::plan::{Clocks, FAULTS, Memory, Plan};
use crate::pod::Pod;
use crate::story::Story;
use crate::stream::Stream;
use crate::trace::{Answered, Asked};
use crate::truth::{Locks, Promise, Truth, Violation, broken};

/// An agent, by its place.
pub(crate) type PodId = usize;

/// Something that will happen.
#[derive(Debug)]
pub(crate) enum Due {
    Request {
        pod: PodId,
        process: u32,
        call: CallId,
        node: NodeId,
        request: Request,
    },
    Reply {
        pod: PodId,
        process: u32,
        call: CallId,
        node: NodeId,
        reply: Box<Reply>,
        written: Time,
    },
    Failure {
        pod: PodId,
        process: u32,
        call: CallId,
        error: ErrorKind,
    },
    Wake {
        pod: PodId,
        process: u32,
        node: NodeId,
        wake: Wake,
    },
    Timer {
        pod: PodId,
        process: u32,
        timer: Timer,
        set: u64,
    },
    Event {
        pod: PodId,
        process: u32,
        event: Event,
    },
    /// A link may be whole again.
    Heal {
        pod: PodId,
        node: NodeId,
    },
    NodeUp(NodeId),
    /// An agent's process or machine goes on.
    Resume(PodId),
    Start(PodId),
    Trouble,
    Work,
    Foreign(crate::foreign::Step),
    Engine(engine::Due),
    /// Somebody asks something, because a node is about to be seeded.
    Burst,
    /// The storm is over.
    Lull,
}

/// Something that will happen, and when; of two at the same time, the one that was planned first.
struct Planned(Time, u64, Due);

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl Eq for Planned {}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// A server in a node's place.
pub(crate) struct Server {
    pub(crate) model: ModelNode,
    pub(crate) clock: Clock,
    /// It was seeded in this life: the truth, whatever the server believes.
    pub(crate) intact: bool,
    /// It answers nothing before this, and then everything.
    pub(crate) stalled: Time,
    pub(crate) down: bool,
    /// When its clock jumped last.
    pub(crate) jumped: Time,
    pub(crate) restarts: u32,
    /// What it had at earlier times.
    pub(crate) snapshots: Vec<Kept>,
}

/// The way between an agent and a node.
#[derive(Clone, Copy, Default)]
pub(crate) struct Link {
    /// What the agent says is lost before this.
    pub(crate) mute: Time,
    /// What the node says is lost before this.
    pub(crate) deaf: Time,
    /// The agent's driver believes in it.
    pub(crate) up: bool,
    /// When the last message of each stream arrives.
    last: [Time; 4],
}

/// What happened in a world, or in many.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Steps of cores.
    pub steps: u64,
    /// Terms.
    pub elections: u64,
    /// Claims that started.
    pub claims: u64,
    /// Results that were recorded.
    pub results: u64,
    /// Times that no majority had a memory.
    pub losses: u64,
    /// By the order of [`FAULTS`].
    pub faults: [u64; FAULTS.len()],
    /// Steps of engines.
    pub engine_steps: u64,
    /// Calls to apps.
    pub calls: u64,
    /// Calls that an agent asked its app about, for the process before had made them.
    pub questions: u64,
    /// By the order of [`EVENTS`].
    pub events: [u64; EVENTS.len()],
    /// The longest that it took until somebody led once all was well, in ttls.
    pub settled: f64,
    /// How long the slowest hand-over took, in ttls.
    pub handed_over: f64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.elections += other.elections;
        self.claims += other.claims;
        self.results += other.results;
        self.questions += other.questions;
        self.losses += other.losses;
        self.engine_steps += other.engine_steps;
        self.calls += other.calls;
        for (all, one) in self.events.iter_mut().zip(other.events) {
            *all += one;
        }
        for (all, one) in self.faults.iter_mut().zip(other.faults) {
            *all += one;
        }
        self.settled = self.settled.max(other.settled);
        self.handed_over = self.handed_over.max(other.handed_over);
    }
}

/// What a run of a world came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What happened.
    pub tally: Tally,
    /// What was broken.
    pub violation: Option<Violation>,
    /// What happened, in words, if that was wanted.
    pub trace: Vec<String>,
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) dice: Dice,
    pub(crate) rules: Rules,
    pub(crate) now: Time,
    queue: BinaryHeap<Reverse<Planned>>,
    planned: u64,
    pub(crate) nodes: Vec<Server>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) links: Vec<Vec<Link>>,
    pub(crate) foreign: Vec<Foreign>,
    pub(crate) truth: Truth,
    pub(crate) locks: Locks,
    /// Which nodes stored a claim, one bit each.
    pub(crate) stored: BTreeMap<String, u64>,
    /// No trouble any more.
    pub(crate) calm: bool,
    /// Most messages are lost until then.
    pub(crate) storm: Time,
    /// The highest token that is known outside, a while ago: new processes begin above it.
    pub(crate) mirror: u64,
    pub(crate) longest_ttl: Duration,
    pub(crate) last_op: u64,
    pub(crate) first_run: u64,
    pub(crate) story: Option<Story>,
    /// Streams that stand still, and what waits there.
    pub(crate) held: BTreeMap<Stream, Vec<Due>>,
    /// What engines are to hear of the ledger, while that is held up.
    pub(crate) readings: Option<Vec<engine::Due>>,
    /// With engines; none of what follows is there else.
    pub(crate) with_engine: bool,
    pub(crate) scene: Scene,
    pub(crate) desks: Vec<Desk>,
    pub(crate) watch: Watch,
    /// The files as the operator wrote them last.
    pub(crate) file: Arc<AgentFile>,
    pub(crate) version: u64,
    /// The newest revision of the app.
    pub(crate) revision: u64,
    pub(crate) last_trigger: u64,
    /// How often schedules were edited.
    pub(crate) edits: u64,
    /// Schedules that were taken out of the files, and may be put in again.
    pub(crate) taken_out: Vec<Schedule>,
    pub(crate) outcome: Outcome,
    pub(crate) check: Check,
    tracing: bool,
}

/// Which promises are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// All.
    All,
    /// Those whose breaking does harm; not those that only say why it does not come to that.
    Harm,
}

/// By what rules a world goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Laws {
    /// Those of election and ledger.
    pub election: Rules,
    /// Those of engines, in a world with engines.
    pub engine: Option<cabloy_engine::rule::Rules>,
}

impl Laws {
    /// Of worlds with engines, with every rule.
    #[must_use]
    pub fn with_engine() -> Self {
        Self { engine: Some(cabloy_engine::rule::Rules::default()), ..Self::default() }
    }
}

impl From<Rules> for Laws {
    fn from(election: Rules) -> Self {
        Self { election, engine: None }
    }
}

/// Runs the world of a seed.
#[must_use]
pub fn run(seed: u64, laws: impl Into<Laws>, check: Check, tracing: bool) -> Outcome {
    let mut world = World::new(seed, laws.into(), check, tracing);
    if tracing {
        let plan = format!("{:?}", world.plan);
        world.say(|| plan);
        if world.with_engine {
            let scene = format!("{:?}", world.scene);
            world.say(|| scene);
        }
    }
    let result = world.play();
    let mut outcome = world.outcome;
    outcome.tally.elections = world.truth.elections();
    outcome.tally.losses = world.truth.losses;
    outcome.violation = result.err();
    if let (Some(violation), true) = (&outcome.violation, tracing) {
        outcome.trace.push(format!("BROKEN {violation}"));
    }
    outcome
}

impl World {
    fn new(seed: u64, laws: Laws, check: Check, tracing: bool) -> Self {
        let Laws { election: rules, engine } = laws;
        let mut dice = Dice::new(seed);
        let plan = if engine.is_some() { Plan::draw_for_engines(seed, &mut dice) } else { Plan::draw(seed, &mut dice) };
        let mut scene = Scene::draw(plan.ttl, &mut dice);
        if plan.story.is_some() {
            scene.quieten();
        }
        let file = Arc::new(scene.file.clone());
        let timing = Timing { ttl: plan.ttl };
        let rules = if plan.restless { rules.less(Rule::Rest) } else { rules };
        let mut world = Self {
            rules,
            now: 0,
            queue: BinaryHeap::new(),
            planned: 0,
            nodes: Vec::new(),
            pods: Vec::new(),
            links: vec![vec![Link { up: true, ..Link::default() }; plan.nodes]; plan.agents],
            foreign: Vec::new(),
            truth: Truth::default(),
            locks: Locks::default(),
            stored: BTreeMap::new(),
            calm: false,
            storm: 0,
            mirror: 0,
            longest_ttl: plan.ttl,
            last_op: 0,
            first_run: 0,
            story: None,
            held: BTreeMap::new(),
            readings: None,
            with_engine: engine.is_some(),
            scene,
            desks: Vec::new(),
            watch: Watch::new(&file),
            file,
            version: 0,
            revision: 1,
            last_trigger: 0,
            edits: 0,
            taken_out: Vec::new(),
            outcome: Outcome::default(),
            check,
            tracing,
            plan,
            dice,
        };
        for id in 0..world.plan.nodes {
            let far = if world.plan.far == Some(id) { 20 * nanos(world.plan.ttl) } else { 0 };
            let clock = Clock::new(100_000_000 * MS + far + world.dice.below(MS), world.rate());
            let mut model = ModelNode::new(&format!("n{id}"), rules);
            if world.plan.seeded {
                let now = clock.read(0);
                let life = model.apply(now, &Request::Mark { mark: "0".into() }).0.incarnation;
                model.apply(now, &Request::Seed { life, promised: 0, led: true, records: [].into() });
            }
            let intact = world.plan.seeded;
            world.nodes.push(Server {
                model,
                clock,
                intact,
                stalled: 0,
                down: false,
                jumped: 0,
                restarts: 0,
                snapshots: Vec::new(),
            });
        }
        for id in 0..world.plan.agents {
            let clock = Clock::new(world.dice.between(1, 1_000_000) * MS, world.rate());
            world.pods.push(Pod::new(id, clock, timing, world.plan.nodes, 0, rules));
            if let Some(rules) = engine {
                world.desks.push(Desk::new(id, Arc::clone(&world.file), rules));
            }
        }
        world
    }

    /// How fast a clock goes, in millionths.
    fn rate(&mut self) -> i64 {
        // In a story nothing rests on clocks either, but a leader whose lease ends takes no part in it.
        let loose = self.plan.clocks == Clocks::Loose && self.plan.story.is_none();
        let limit = if loose { 50_000 } else { 4500 };
        // Extremes are worth most.
        let rate = i64::try_from(self.dice.below(2 * limit + 1)).unwrap_or_default();
        let rate = rate - i64::try_from(limit).unwrap_or_default();
        let extreme = i64::try_from(limit).unwrap_or_default() * rate.signum();
        if self.dice.chance(500) { extreme } else { rate }
    }

    fn play(&mut self) -> Result<(), Violation> {
        for pod in 0..self.pods.len() {
            let soon = self.dice.below(nanos(self.plan.ttl) / 20);
            self.plan_in(soon, Due::Start(pod));
        }
        self.plan_in(nanos(self.plan.ttl) / 10, Due::Trouble);
        if self.with_engine {
            self.engine_in(nanos(self.plan.ttl) / 10, engine::Due::Trouble);
        } else {
            self.plan_in(nanos(self.plan.ttl) / 10, Due::Work);
        }
        while self.outcome.tally.steps < self.plan.steps {
            self.turn()?;
        }
        if self.with_engine { self.engine_settles() } else { self.settle() }
    }

    /// The next thing happens.
    pub(crate) fn turn(&mut self) -> Result<(), Violation> {
        let Some(Reverse(Planned(at, _, due))) = self.queue.pop() else { return Ok(()) };
        self.now = self.now.max(at);
        self.happen(due)?;
        self.tell()
    }

    pub(crate) fn plan_in(&mut self, after: Time, due: Due) {
        self.plan_at(self.now + after, due);
    }

    pub(crate) fn plan_at(&mut self, at: Time, due: Due) {
        self.planned += 1;
        self.queue.push(Reverse(Planned(at, self.planned, due)));
    }

    pub(crate) fn say(&mut self, what: impl FnOnce() -> String) {
        if self.tracing {
            let at = Duration::from_nanos(self.now);
            self.outcome.trace.push(format!("{:>12.6} {}", at.as_secs_f64(), what()));
        }
    }

    pub(crate) fn seeds_under_way(&self) -> bool {
        let seed = |due: &Due| matches!(due, Due::Request { request: Request::Seed { .. }, .. });
        self.queue.iter().any(|Reverse(Planned(_, _, due))| seed(due))
    }

    /// A random time around `mean` thousandths of the ttl.
    pub(crate) fn around(&mut self, mean: u64) -> Time {
        let mean = nanos(self.plan.ttl) / 1000 * mean;
        self.dice.below(2 * mean + 1)
    }

    fn happen(&mut self, due: Due) -> Result<(), Violation> {
        match due {
            Due::Request { pod, process, call, node, request } => self.arrive(pod, process, call, node, &request),
            Due::Engine(due) => match due.process() {
                Some((pod, _)) if self.pods[pod].stopped => {
                    self.pods[pod].backlog.push(Due::Engine(due));
                    Ok(())
                }
                _ => self.engine_happens(due),
            },
            Due::Reply { pod, .. }
            | Due::Failure { pod, .. }
            | Due::Wake { pod, .. }
            | Due::Timer { pod, .. }
            | Due::Event { pod, .. } => {
                if self.pods[pod].stopped {
                    self.pods[pod].backlog.push(due);
                    return Ok(());
                }
                self.reach(due)
            }
            Due::Heal { pod, node } => {
                self.heal(pod, node);
                Ok(())
            }
            Due::NodeUp(node) => {
                self.node_up(node);
                Ok(())
            }
            Due::Resume(pod) => self.resume(pod),
            Due::Start(pod) => self.start(pod),
            Due::Trouble => self.trouble(),
            Due::Work => self.work(),
            Due::Foreign(step) => self.foreign_step(step),
            Due::Burst => self.ask(),
            Due::Lull => Ok(()),
        }
    }

    /// How long a message takes; `None` if it is lost.
    fn way(&mut self) -> Option<Time> {
        if self.calm {
            return Some(self.dice.between(100, 1000) * 1000);
        }
        let loss = if self.now < self.storm { 700 } else { self.plan.loss };
        if self.dice.chance(loss) {
            return None;
        }
        let limit = if self.dice.chance(self.plan.slow) { self.plan.slow_delay } else { self.plan.delay };
        Some(self.dice.between(20, limit) * 1000)
    }

    /// When a message arrives that is sent now.
    fn arrival(&mut self, Stream { pod, node, lane }: Stream) -> Option<Time> {
        let mut at = self.now + self.way()?;
        let last = &mut self.links[pod][node].last[lane];
        if self.plan.in_order || self.calm {
            at = at.max(*last + 1);
            *last = at;
        }
        Some(at)
    }

    /// An agent's driver sends a command.
    pub(crate) fn send(&mut self, pod: PodId, call: CallId, node: NodeId, request: Request) {
        let process = self.pods[pod].process;
        let link = self.links[pod][node];
        if !link.up {
            self.plan_in(1000, Due::Failure { pod, process, call, error: ErrorKind::Unreachable });
            return;
        }
        let stream = Stream::of(pod, node, &request);
        let at = if link.mute > self.now { None } else { self.arrival(stream) };
        let (now, mark) = (self.now, if at.is_none() { "  LOST" } else { "" });
        self.say(|| {
            let after = Duration::from_nanos(at.unwrap_or(now) - now);
            format!("a{pod} -> n{node}  {call}: {}  (takes {after:?}){mark}", Asked(&request))
        });
        let Some(at) = at else { return };
        if !self.calm && self.dice.chance(self.plan.twice) && twice_is_possible(&request) {
            let again = self.around(500);
            self.plan_at(at + again, Due::Request { pod, process, call, node, request: request.clone() });
        }
        self.carry(stream, at, Due::Request { pod, process, call, node, request });
    }

    /// A command reaches its node.
    fn arrive(
        &mut self,
        pod: PodId,
        process: u32,
        call: CallId,
        node: NodeId,
        request: &Request,
    ) -> Result<(), Violation> {
        let server = &mut self.nodes[node];
        if server.stalled > self.now {
            let at = server.stalled;
            self.plan_at(at, Due::Request { pod, process, call, node, request: request.clone() });
            return Ok(());
        }
        if server.down || self.links[pod][node].mute > self.now {
            return Ok(());
        }
        let local = server.clock.read(self.now);
        let was_intact = server.intact;
        let (reply, wakes) = server.model.apply(local, request);
        self.say(|| format!("a{pod} .. n{node}  {call}: {}", Answered(&reply)));
        self.note(node, request, &reply, was_intact)?;
        let stream = Stream::of(pod, node, request).back();
        if self.links[pod][node].deaf <= self.now
            && let Some(at) = self.arrival(stream)
        {
            let written = self.now;
            self.carry(stream, at, Due::Reply { pod, process, call, node, reply: Box::new(reply), written });
        }
        for wake in wakes {
            for pod in 0..self.pods.len() {
                let link = self.links[pod][node];
                if link.up
                    && link.deaf <= self.now
                    && let Some(way) = self.way()
                {
                    let process = self.pods[pod].process;
                    self.plan_in(way, Due::Wake { pod, process, node, wake: wake.clone() });
                }
            }
        }
        Ok(())
    }

    /// What a node did, for the promises.
    fn note(&mut self, node: NodeId, request: &Request, reply: &Reply, was_intact: bool) -> Result<(), Violation> {
        let nodes = self.nodes.len();
        let server = &mut self.nodes[node];
        let says = !matches!(
            request,
            Request::Release { .. }
                | Request::Stand { .. }
                | Request::Mark { .. }
                | Request::Recall { .. }
                | Request::Seed { .. }
        );
        if reply.accepted && says && !was_intact && self.check == Check::All {
            return broken(
                Promise::AmnesiacsSilent,
                format!("n{node} has no memory and says yes to {}", Asked(request)),
            );
        }
        match request {
            Request::Seed { .. } if reply.accepted => server.intact = true,
            Request::Grant { token, ttl, .. } | Request::Renew { token, ttl, .. } if reply.accepted => {
                let until = server.clock.when(server.clock.read(self.now) + *ttl);
                self.locks.set(nodes, *token, node, until);
            }
            Request::Put { entries, .. } => {
                if let cabloy_redlock::message::Body::Verdicts(verdicts) = &reply.body {
                    for (entry, verdict) in entries.iter().zip(verdicts) {
                        if entry.claim && *verdict == cabloy_redlock::message::Verdict::Stored {
                            *self.stored.entry(entry.record.nonce.clone()).or_default() |= 1 << node;
                        }
                    }
                }
            }
            _ => {}
        }
        if self.plan.restless && !self.calm && reply.accepted && matches!(request, Request::Mark { .. }) {
            for _ in 0..4 {
                let soon = self.dice.below(self.plan.delay * 4000);
                self.plan_in(soon, Due::Burst);
            }
        }
        // What a server may come back with.
        if self.plan.memory != Memory::Kept && self.dice.chance(30) {
            let server = &mut self.nodes[node];
            if server.snapshots.len() >= 4 {
                server.snapshots.remove(0);
            }
            server.snapshots.push(server.model.memory().clone());
        }
        Ok(())
    }
}

/// A server that was flushed cannot tell a mark and its seed from their doubles, and no connection doubles a command.
fn twice_is_possible(request: &Request) -> bool {
    !matches!(request, Request::Mark { .. })
}

pub(crate) fn nanos(span: Duration) -> Time {
    Time::try_from(span.as_nanos()).unwrap_or(Time::MAX)
}
