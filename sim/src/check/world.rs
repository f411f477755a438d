//! A state of the world, and the steps that lead to others.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use cabloy_redlock::clock::Instant;
use cabloy_redlock::core::{Action, CallId, Config, Core, Event, News, NodeId, OpId, Timer};
use cabloy_redlock::ledger::{Put, PutError};
use cabloy_redlock::message::{Reply, Request};
use cabloy_redlock::model::{Memory, ModelNode};
use cabloy_redlock::record::RunResult;
use cabloy_redlock::rule::Rules;
use cabloy_redlock::{AgentId, Candidacy, ErrorKind, Timing};
use serde_json::json;

use super::cached::Cached;

/// How many masters there are.
pub const NODES: usize = 3;

/// The one run that all attempts are of.
const RUN: &str = "run";

/// So long that no lease ends within the bounds: from their own view, leaders lead for ever, and only ballots are in their
/// way.
const TTL: Duration = Duration::from_secs(1 << 20);

/// A state of the world.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// The agents.
    pub agents: Vec<Cached<Agent>>,
    /// The nodes.
    pub nodes: Vec<Cached<Node>>,
    /// What is on its way, in no order: any of it may arrive next, or never.
    pub flights: Vec<Cached<Flight>>,
    /// What anybody could have seen.
    pub seen: Cached<Seen>,
    /// What may still happen.
    pub left: Bounds,
    /// Whose turn it is, while turns are bounded.
    turn: Option<usize>,
    /// Laws that were broken.
    pub broken: BTreeSet<Law>,
}

/// How often something may happen; 255 is without a bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Turns that may pass from one agent to another: meanwhile it takes no step and what it has on its way stays there.
    pub turns: u8,
    /// Elections and bootstraps that each agent may begin.
    pub tries: [u8; 3],
    /// Attempts that may be claimed.
    pub claims: u8,
    /// Results that may be recorded.
    pub finishes: u8,
    /// Leaders that may resign.
    pub resigns: u8,
    /// Answers that may arrive later than at once, or never.
    pub late: u8,
    /// Calls that may time out; their requests may arrive all the same.
    pub timeouts: u8,
    /// Requests that may arrive twice.
    pub duplicates: u8,
    /// Timers of seeds and repetitions that may run out.
    pub timers: u8,
    /// Restarts and flushes of servers, with a loss of memory.
    pub losses: u8,
    /// What a server may lose.
    pub kinds: &'static [Loss],
}

/// What becomes of the memory of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Loss {
    /// Started again, empty.
    Empty,
    /// Started again, with the memory that it had in the beginning.
    Snapshot,
    /// Started again, with all that it had: who shall know?
    Nothing,
    /// FLUSHALL.
    Flush,
}

/// What must hold in every state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Law {
    /// No token leads twice.
    TokenOnce,
    /// A leader knows every attempt that was started under a lower token.
    KnowsAttempts,
    /// A leader knows every result that was recorded before it began to read.
    KnowsResults,
    /// A leader knows every attempt that one with a lower token has read.
    KnowsReadings,
    /// No attempt is started if another was recorded as done before it was asked for.
    DoneIsDone,
    /// A node that lost its memory has no say.
    AmnesiacsAreMute,
}

impl Law {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::TokenOnce,
        Self::KnowsAttempts,
        Self::KnowsResults,
        Self::KnowsReadings,
        Self::DoneIsDone,
        Self::AmnesiacsAreMute,
    ];
}

/// An agent and what its driver would hold for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Agent {
    /// The protocol.
    pub core: Core,
    /// Its own clock: stands still but for the timer of seeds, which waits for it.
    now: Instant,
    timers: BTreeMap<Timer, Instant>,
    /// The latest attempt that it knows.
    known: u32,
    /// Results that were recorded when it last began to read.
    recorded: BTreeSet<OpId>,
    asks: BTreeMap<OpId, Ask>,
}

/// What an agent waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Ask {
    Claim {
        attempt: u32,
        token: u64,
        /// Another attempt was recorded as done before.
        too_late: bool,
    },
    /// The attempt that has ended.
    Finish(OpId),
}

/// A server, and what it went through.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// What it does.
    pub model: ModelNode,
    /// Its memory was lost, and nobody gave it another.
    pub lost: bool,
    /// How often its memory was lost.
    losses: u8,
    snapshot: Memory,
}

impl Node {
    /// It had lost its memory and has one again.
    #[must_use]
    pub fn was_given_back(&self) -> bool {
        self.losses > 0 && !self.lost
    }
}

/// A command or its answer, on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Flight {
    agent: usize,
    node: NodeId,
    call: CallId,
    /// It reads, and changes nothing.
    read: bool,
    leg: Leg,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Leg {
    /// To the node; somebody waits for the answer or does not any more.
    Request(Request, bool),
    /// To the agent.
    Reply(Reply),
}

/// What anybody could have seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Seen {
    /// Who led with which token, and the latest attempt that it knew.
    pub terms: BTreeMap<u64, (usize, u32)>,
    /// Attempts that were started.
    pub started: BTreeMap<OpId, Attempt>,
    /// Attempts that are recorded as done.
    pub done: BTreeSet<OpId>,
    /// A claim was refused, for another attempt was done.
    pub refused: bool,
    last_op: OpId,
}

/// An attempt that was started.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attempt {
    number: u32,
    /// Of its claim.
    token: u64,
    /// Who claimed it.
    agent: usize,
    /// It has ended.
    ended: bool,
}

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A request arrives, and its answer at once.
    Serve(usize),
    /// A request arrives; its answer is on its way.
    Deliver(usize),
    /// A request arrives, and will once more.
    Duplicate(usize),
    /// An answer arrives.
    Answer(usize),
    /// A call is given up; the request may still arrive.
    TimeOut(usize),
    /// A timer runs out.
    Fire(usize, Timer),
    /// An agent stands from now on.
    Stand(usize),
    /// A leader resigns.
    Resign(usize),
    /// A leader claims the attempt after the latest that it knows.
    Claim(usize),
    /// Who started an attempt records that it is done.
    Finish(usize, OpId),
    /// A server loses its memory.
    Lose(NodeId, Loss),
}

/// Takes one from `left`; `false` if there is none.
fn take(left: &mut u8) -> bool {
    let some = *left > 0;
    if *left != u8::MAX {
        *left = left.saturating_sub(1);
    }
    some
}

impl World {
    /// Empty servers, and agents that do not stand yet; agent `i` has heard of token `floors[i]`.
    #[must_use]
    pub fn new(floors: &[u64], rules: Rules) -> Self {
        let agent = |(index, floor): (usize, &u64)| {
            let agent = AgentId { pod: format!("p{index}"), uid: String::new(), process: format!("x{index}") };
            let config = Config { agent, nodes: NODES, timing: Timing { ttl: TTL }, floor: *floor, rules };
            let mut core = Core::new(config);
            for node in 0..NODES {
                _ = core.step(Instant::default(), Event::Up { node, durable: false });
            }
            Cached::new(Agent {
                core,
                now: Instant::default(),
                timers: BTreeMap::new(),
                known: 0,
                recorded: BTreeSet::new(),
                asks: BTreeMap::new(),
            })
        };
        let node = |index: usize| {
            let model = ModelNode::new(&format!("{index}.0"), rules);
            Cached::new(Node { model, lost: true, losses: 0, snapshot: Memory::default() })
        };
        Self {
            agents: floors.iter().enumerate().map(agent).collect(),
            nodes: (0..NODES).map(node).collect(),
            flights: Vec::new(),
            seen: Cached::new(Seen::default()),
            left: Bounds::default(),
            turn: None,
            broken: BTreeSet::new(),
        }
    }

    /// Whether a law holds so far.
    #[must_use]
    pub fn keeps(&self, law: Law) -> bool {
        !self.broken.contains(&law)
    }

    /// Who makes a step, or has sent what arrives by it.
    fn whose(&self, step: Step) -> Option<usize> {
        match step {
            Step::Serve(index)
            | Step::Deliver(index)
            | Step::Duplicate(index)
            | Step::Answer(index)
            | Step::TimeOut(index) => Some(self.flights[index].agent),
            Step::Fire(agent, _)
            | Step::Stand(agent)
            | Step::Resign(agent)
            | Step::Claim(agent)
            | Step::Finish(agent, _) => Some(agent),
            Step::Lose(..) => None,
        }
    }

    /// What may happen next.
    pub fn steps(&self, steps: &mut Vec<Step>) {
        self.all_steps(steps);
        if self.left.turns == 0 {
            steps.retain(|step| self.whose(*step).is_none_or(|agent| self.turn.is_none_or(|turn| turn == agent)));
        }
    }

    fn all_steps(&self, steps: &mut Vec<Step>) {
        let left = &self.left;
        for (index, flight) in self.flights.iter().enumerate() {
            match flight.leg {
                Leg::Reply(_) => steps.push(Step::Answer(index)),
                Leg::Request(_, waited) => {
                    if left.late < u8::MAX || !waited {
                        steps.push(Step::Serve(index));
                    }
                    if waited && left.late > 0 {
                        steps.push(Step::Deliver(index));
                    }
                    if waited && left.timeouts > 0 {
                        steps.push(Step::TimeOut(index));
                    }
                    if left.duplicates > 0 {
                        steps.push(Step::Duplicate(index));
                    }
                }
            }
        }
        for (index, agent) in self.agents.iter().enumerate() {
            let may = |timer: &&Timer| if **timer == Timer::Look { left.tries[index] > 0 } else { left.timers > 0 };
            steps.extend(agent.timers.keys().filter(may).map(|timer| Step::Fire(index, *timer)));
            if agent.core.leads().is_none() && left.tries[index] > 0 {
                steps.push(Step::Stand(index));
            }
            if agent.core.leads().is_some() {
                if left.resigns > 0 {
                    steps.push(Step::Resign(index));
                }
                if left.claims > 0 {
                    steps.push(Step::Claim(index));
                }
            }
        }
        if left.finishes > 0 {
            let open = self.seen.started.iter().filter(|(_, attempt)| !attempt.ended);
            steps.extend(open.map(|(op, attempt)| Step::Finish(attempt.agent, *op)));
        }
        if left.losses > 0 {
            for node in 0..NODES {
                // One memory lost at a time.
                if (0..NODES).all(|other| other == node || !self.nodes[other].lost) {
                    steps.extend(left.kinds.iter().map(|loss| Step::Lose(node, *loss)));
                }
            }
        }
    }

    /// Makes a step; `false` if nothing has changed by it.
    pub fn make(&mut self, step: Step) -> bool {
        if let Some(agent) = self.whose(step)
            && self.turn != Some(agent)
            && self.left.turns < u8::MAX
        {
            // The first turn is anybody's.
            if self.turn.is_some() {
                take(&mut self.left.turns);
            }
            self.turn = Some(agent);
        }
        match step {
            Step::Serve(index) => {
                let flight = self.flights.remove(index);
                if let Some(reply) = self.serve(&flight) {
                    self.step(flight.agent, Event::Reply { call: flight.call, result: Ok(reply) });
                }
            }
            Step::Deliver(index) => {
                take(&mut self.left.late);
                let flight = self.flights.remove(index);
                if let Some(reply) = self.serve(&flight) {
                    self.fly(Flight { leg: Leg::Reply(reply), ..Flight::clone(&flight) });
                }
            }
            Step::Duplicate(index) => {
                take(&mut self.left.duplicates);
                let flight = self.flights[index].clone();
                if let Leg::Request(request, _) = &flight.leg {
                    let again = Flight { leg: Leg::Request(request.clone(), false), ..Flight::clone(&flight) };
                    self.flights.remove(index);
                    self.fly(again);
                }
                if let Some(reply) = self.serve(&flight) {
                    self.fly(Flight { leg: Leg::Reply(reply), ..Flight::clone(&flight) });
                }
            }
            Step::Answer(index) => {
                let flight = self.flights.remove(index);
                if let Leg::Reply(reply) = &flight.leg {
                    self.step(flight.agent, Event::Reply { call: flight.call, result: Ok(reply.clone()) });
                }
            }
            Step::TimeOut(index) => {
                take(&mut self.left.timeouts);
                let flight = self.flights.remove(index);
                if let Leg::Request(request, _) = &flight.leg {
                    self.fly(Flight { leg: Leg::Request(request.clone(), false), ..Flight::clone(&flight) });
                }
                self.step(flight.agent, Event::Reply { call: flight.call, result: Err(ErrorKind::Timeout) });
            }
            Step::Fire(agent, timer) => {
                let before = self.agents[agent].clone();
                let flights = self.flights.len();
                self.agents[agent].edit(|agent| {
                    if let Some(at) = agent.timers.remove(&timer)
                        && timer == Timer::Seed
                    {
                        agent.now = agent.now.max(at);
                    }
                });
                self.step(agent, Event::Timer(timer));
                if self.agents[agent].core == before.core && self.flights.len() == flights {
                    return false;
                }
                if timer != Timer::Look {
                    take(&mut self.left.timers);
                }
            }
            Step::Stand(agent) => {
                let before = self.agents[agent].clone();
                self.step(agent, Event::Stand(Candidacy { stands: true, revision: 0 }));
                return self.agents[agent] != before;
            }
            Step::Resign(agent) => {
                take(&mut self.left.resigns);
                self.step(agent, Event::Stand(Candidacy { stands: false, revision: 0 }));
            }
            Step::Claim(agent) => {
                take(&mut self.left.claims);
                self.claim(agent);
            }
            Step::Finish(agent, attempt) => {
                take(&mut self.left.finishes);
                let op = self.next_op();
                self.seen.edit(|seen| {
                    if let Some(attempt) = seen.started.get_mut(&attempt) {
                        attempt.ended = true;
                    }
                });
                self.agents[agent].edit(|agent| agent.asks.insert(op, Ask::Finish(attempt)));
                let result = RunResult { nonce: nonce(attempt), done: true, data: json!(null) };
                self.step(agent, Event::Finish { op, id: RUN.into(), result });
            }
            Step::Lose(node, loss) => {
                take(&mut self.left.losses);
                self.lose(node, loss);
            }
        }
        true
    }

    fn next_op(&mut self) -> OpId {
        self.seen.edit(|seen| {
            seen.last_op += 1;
            seen.last_op
        })
    }

    fn claim(&mut self, agent: usize) {
        let Some(token) = self.agents[agent].core.leads() else { return };
        let op = self.next_op();
        let too_late = !self.seen.done.is_empty();
        let attempt = self.agents[agent].known + 1;
        self.agents[agent].edit(|agent| agent.asks.insert(op, Ask::Claim { attempt, token, too_late }));
        let put = Put { id: RUN.into(), attempt, nonce: nonce(op), data: json!(null) };
        self.step(agent, Event::Put { op, token, puts: vec![put] });
    }

    /// A server loses its memory, or comes back as another one with the same memory.
    pub fn lose(&mut self, node: NodeId, loss: Loss) {
        self.nodes[node].edit(|Node { model, lost, losses, snapshot }| {
            *lost = true;
            *losses += 1;
            let run = format!("{node}.{losses}");
            match loss {
                Loss::Empty => model.restart(&run, Memory::default()),
                Loss::Snapshot => model.restart(&run, snapshot.clone()),
                Loss::Nothing => model.restart(&run, model.memory().clone()),
                Loss::Flush => model.flush(),
            }
        });
    }

    /// What each server holds now is what it may find on its disk later.
    pub fn save(&mut self) {
        for node in &mut self.nodes {
            node.edit(|node| node.snapshot = node.model.memory().clone());
        }
    }

    /// The node does what it is asked; its answer, if somebody waits for it.
    fn serve(&mut self, flight: &Flight) -> Option<Reply> {
        let Leg::Request(request, waited) = &flight.leg else { return None };
        let (reply, voted) = self.nodes[flight.node].edit(|node| {
            let (reply, _) = node.model.apply(Instant::default(), request);
            // Locks are gone as soon as they are taken.
            node.model.expire();
            let seeded = matches!(request, Request::Seed { .. });
            node.lost &= !(seeded && reply.accepted);
            let harmless = matches!(request, Request::Mark { .. } | Request::Recall { .. } | Request::Look { .. });
            let voted = node.lost && reply.accepted && !harmless;
            (reply, voted)
        });
        if voted {
            self.broken.insert(Law::AmnesiacsAreMute);
        }
        waited.then_some(reply)
    }

    /// Kept in order, so that the same things on their way are the same state.
    fn fly(&mut self, flight: Flight) {
        let key = |flight: &Flight| (flight.agent, flight.call, matches!(flight.leg, Leg::Reply(_)));
        let at = self.flights.partition_point(|other| key(other) <= key(&flight));
        self.flights.insert(at, Cached::new(flight));
    }

    /// Hands an event to a core and carries out what it says.
    fn step(&mut self, index: usize, event: Event) {
        let actions = self.agents[index].edit(|agent| agent.core.step(agent.now, event));
        let leads = self.agents[index].core.leads().is_some();
        let begins = |action: &Action| {
            matches!(action, Action::Send { request: Request::Grant { .. } | Request::Mark { .. }, .. }) && !leads
        };
        let reads = |action: &Action| matches!(action, Action::Send { request: Request::Read { .. }, .. });
        let goes_on = |action: &Action| match action {
            Action::Announce(News::Leads { .. }) | Action::Send { request: Request::Seed { .. }, .. } => true,
            Action::Send { request: Request::Put { .. }, .. } => !leads,
            action => reads(action),
        };
        if actions.iter().any(goes_on) {
            self.forget_reads(index);
        }
        let tries = actions.iter().any(begins) && take(&mut self.left.tries[index]);
        for action in actions {
            if tries || !begins(&action) {
                self.carry_out(index, action);
            }
        }
    }

    /// The round is over: what else its reads would bring is lost.
    fn forget_reads(&mut self, agent: usize) {
        self.flights.retain(|flight| flight.agent != agent || !flight.read);
    }

    fn carry_out(&mut self, index: usize, action: Action) {
        match action {
            // There is no lock to give back, and nobody waits for one.
            Action::Send { request: Request::Release { .. } | Request::Stand { .. }, .. } => {}
            Action::Send { call, node, request, .. } => {
                if matches!(request, Request::Read { .. }) && self.agents[index].core.leads().is_none() {
                    let recorded = self.seen.done.clone();
                    self.agents[index].edit(|agent| agent.recorded = recorded);
                }
                let read = matches!(request, Request::Read { .. });
                self.fly(Flight { agent: index, node, call, read, leg: Leg::Request(request, true) });
            }
            Action::SetTimer { timer: timer @ (Timer::Look | Timer::Seed | Timer::Repeat), at, .. } => {
                self.agents[index].edit(|agent| agent.timers.insert(timer, at));
            }
            Action::Announce(News::Leads { token, records, .. }) => {
                let known = records.get(RUN);
                let attempt = known.map_or(0, |run| run.attempt);
                let unread = |op: &OpId| known.and_then(|run| run.result(&nonce(*op))).is_none();
                if self.agents[index].recorded.iter().any(unread) {
                    self.broken.insert(Law::KnowsResults);
                }
                self.agents[index].edit(|agent| agent.known = attempt);
                if self.seen.edit(|seen| seen.terms.insert(token, (index, attempt))).is_some() {
                    self.broken.insert(Law::TokenOnce);
                }
                self.knows_attempts();
            }
            Action::Announce(News::Recorded(records)) => {
                if let Some(run) = records.iter().find(|record| record.id == RUN) {
                    self.agents[index].edit(|agent| agent.known = run.attempt);
                }
            }
            Action::Put { op, results } => {
                let Some(Ask::Claim { attempt, token, too_late }) =
                    self.agents[index].edit(|agent| agent.asks.remove(&op))
                else {
                    return;
                };
                match results.as_slice() {
                    [Ok(())] => {
                        let started = Attempt { number: attempt, token, agent: index, ended: false };
                        self.seen.edit(|seen| seen.started.insert(op, started));
                        if too_late {
                            self.broken.insert(Law::DoneIsDone);
                        }
                        self.knows_attempts();
                    }
                    [Err(PutError::AlreadyDone(_))] => self.seen.edit(|seen| seen.refused = true),
                    _ => {}
                }
            }
            Action::Finish { op, result } => {
                let ask = self.agents[index].edit(|agent| agent.asks.remove(&op));
                if let (Some(Ask::Finish(attempt)), Ok(())) = (ask, result) {
                    self.seen.edit(|seen| seen.done.insert(attempt));
                }
            }
            Action::SetTimer { .. } | Action::Announce(_) | Action::Look { .. } | Action::Forget { .. } => {}
        }
    }

    fn knows_attempts(&mut self) {
        let Seen { terms, started, .. } = &*self.seen;
        let unknown = |(token, (_, known)): (&u64, &(usize, u32))| {
            started.values().any(|run| run.token < *token && run.number > *known)
        };
        let in_order = terms.values().is_sorted_by_key(|(_, known)| *known);
        if terms.iter().any(unknown) {
            self.broken.insert(Law::KnowsAttempts);
        }
        if !in_order {
            self.broken.insert(Law::KnowsReadings);
        }
    }

    /// A step in words.
    #[must_use]
    pub fn tell(&self, step: Step) -> String {
        let node = |node: NodeId| ["A", "B", "C"][node];
        let call = |index: usize| self.flights[index].to_string();
        match step {
            Step::Serve(index) => format!("{}, answered at once", call(index)),
            Step::Deliver(index) => format!("{}, not answered yet", call(index)),
            Step::Duplicate(index) => format!("{}, and once more later", call(index)),
            Step::Answer(index) => call(index),
            Step::TimeOut(index) => format!("times out: {}", call(index)),
            Step::Fire(agent, timer) => format!("agent {agent}: timer {timer:?}"),
            Step::Stand(agent) => format!("agent {agent} stands"),
            Step::Resign(agent) => format!("agent {agent} resigns"),
            Step::Claim(agent) => format!("agent {agent} claims"),
            Step::Finish(agent, attempt) => format!("agent {agent}: {} has ended", nonce(attempt)),
            Step::Lose(at, loss) => format!("{} loses its memory: {loss:?}", node(at)),
        }
    }
}

/// Names the attempt that a claim is for.
fn nonce(op: OpId) -> String {
    format!("n{op}")
}

impl fmt::Display for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = ["A", "B", "C"][self.node];
        match &self.leg {
            Leg::Request(request, waited) => {
                let late = if *waited { "" } else { " (nobody waits)" };
                write!(f, "agent {} -> {node}{late}: {request:?}", self.agent)
            }
            Leg::Reply(reply) => {
                let Reply { incarnation, intact, promised, accepted, body, .. } = reply;
                let life = format!("{}/{}", incarnation.run, incarnation.mark);
                let (says, intact) = (if *accepted { "yes" } else { "no" }, if *intact { "" } else { ", amnesiac" });
                write!(f, "agent {} <- {node}: {says}, {life}{intact}, promised {promised}, {body:?}", self.agent)
            }
        }
    }
}

/// Beginnings are played with these; nothing is bounded and nothing goes wrong in them.
impl World {
    /// Gives each server a memory, as somebody must have done before.
    pub fn remember(&mut self) {
        for node in &mut self.nodes {
            node.edit(|node| {
                let (marked, _) = node.model.apply(Instant::default(), &Request::Mark { mark: "m".into() });
                let seed = Request::Seed { life: marked.incarnation, promised: 0, led: true, records: [].into() };
                node.model.apply(Instant::default(), &seed);
                node.lost = false;
            });
        }
    }

    /// What `agent` has on its way to these nodes arrives and is answered, again and again until nothing is left.
    pub fn settle(&mut self, agent: usize, nodes: &[NodeId]) {
        let due = |flight: &Cached<Flight>| flight.agent == agent && nodes.contains(&flight.node);
        while let Some(index) = self.flights.iter().position(due) {
            let step = match self.flights[index].leg {
                Leg::Request(..) => Step::Serve(index),
                Leg::Reply(_) => Step::Answer(index),
            };
            self.make(step);
        }
    }

    /// The first thing that `agent` has on its way to this node arrives and is answered.
    pub fn arrive(&mut self, agent: usize, node: NodeId) {
        let due = |flight: &Cached<Flight>| flight.agent == agent && flight.node == node;
        if let Some(index) = self.flights.iter().position(due) {
            self.make(Step::Serve(index));
        }
    }
}
