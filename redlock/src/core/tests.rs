//! The core among nodes and a network that delays, reorders and loses; time passes at random, and locks may be gone at
//! any moment.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::{ProptestConfig, proptest};
use serde_json::json;

use super::*;
use crate::model::ModelNode;

const TTL: Duration = Duration::from_secs(10);

/// A small generator of choices: a run is repeated by its seed.
struct Dice(u64);

impl Dice {
    /// Below `sides`.
    fn roll(&mut self, sides: usize) -> usize {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % sides as u64).unwrap()
    }
}

/// Something on its way.
enum Flight {
    Request { agent: usize, call: CallId, node: NodeId, request: Request },
    Reply { agent: usize, call: CallId, reply: Reply },
    Wake { agent: usize, node: NodeId, wake: Wake },
}

struct Player {
    core: Core,
    timers: BTreeMap<Timer, Instant>,
    /// Calls that time out, and when.
    open: BTreeMap<CallId, Instant>,
    claim_until: Option<Instant>,
    records: Records,
    /// What was recorded when it last began to read.
    recorded: BTreeMap<String, bool>,
    asks: BTreeMap<OpId, Asked>,
    revision: u64,
}

enum Asked {
    /// Its nonce, attempt and token, and whether an attempt was done already when it was asked.
    Claim(String, u32, u64, bool),
    Finish(String, bool),
}

struct World {
    dice: Dice,
    now: Instant,
    nodes: Vec<ModelNode>,
    players: Vec<Player>,
    flights: Vec<Flight>,
    /// In percent.
    loss: usize,
    /// Locks are gone at any moment, so that nothing may rest on clocks.
    loose: bool,
    /// What each leader read, by token.
    terms: BTreeMap<u64, Records>,
    last_op: OpId,
    restarts: u32,
    /// Attempts that were started, by nonce, and the token of their claim.
    started: BTreeMap<String, (u32, u64)>,
    /// Attempts whose result is recorded; `true` for done.
    finished: BTreeMap<String, bool>,
}

impl World {
    fn new(seed: u64, nodes: usize, agents: usize, loss: usize, loose: bool) -> Self {
        let player = |index: usize| {
            let agent = AgentId { pod: format!("p{index}"), uid: "u".into(), process: format!("x{index}") };
            let timing = Timing { ttl: TTL };
            Player {
                core: Core::new(Config { agent, nodes, timing, floor: 0, rules: Rules::default() }),
                timers: BTreeMap::new(),
                open: BTreeMap::new(),
                claim_until: None,
                records: Records::new(),
                recorded: BTreeMap::new(),
                asks: BTreeMap::new(),
                revision: 1,
            }
        };
        let mut world = Self {
            dice: Dice(seed),
            now: Instant::from_nanos(1_000_000_000),
            nodes: (0..nodes).map(|index| ModelNode::new(&format!("run-{index}"), Rules::default())).collect(),
            players: (0..agents).map(player).collect(),
            flights: Vec::new(),
            loss,
            loose,
            terms: BTreeMap::new(),
            last_op: 0,
            restarts: 0,
            started: BTreeMap::new(),
            finished: BTreeMap::new(),
        };
        for agent in 0..agents {
            for node in 0..nodes {
                world.step(agent, Event::Up { node, durable: false });
            }
            world.step(agent, Event::Stand(Candidacy { stands: true, revision: 1 }));
        }
        world
    }

    fn step(&mut self, agent: usize, event: Event) {
        let actions = self.players[agent].core.step(self.now, event);
        for action in actions {
            self.carry_out(agent, action);
        }
    }

    fn carry_out(&mut self, agent: usize, action: Action) {
        let player = &mut self.players[agent];
        match action {
            Action::Send { call, node, request, timeout } => {
                player.open.insert(call, self.now + timeout);
                if matches!(request, Request::Read { .. }) {
                    player.recorded = self.finished.clone();
                }
                if self.dice.roll(100) >= self.loss {
                    self.flights.push(Flight::Request { agent, call, node, request });
                }
            }
            Action::SetTimer { timer, at, jitter } => {
                let part = u32::try_from(self.dice.roll(1000)).unwrap();
                player.timers.insert(timer, at + jitter * part / 1000);
            }
            Action::Announce(News::Leads { token, claim_until, records }) => {
                let last = self.terms.last_key_value().map_or(0, |(token, _)| *token);
                assert!(token > last || self.loose, "token {token} after {last}");
                assert!(!self.terms.contains_key(&token), "token {token} twice");
                player.claim_until = Some(claim_until);
                player.records = records.clone();
                for (index, other) in self.players.iter().enumerate() {
                    let leads = other.claim_until.is_some_and(|until| until > self.now);
                    assert!(index == agent || !leads || self.loose, "two lead at once");
                }
                self.knows_results(agent, &records);
                self.terms.insert(token, records);
                self.knows_claims();
            }
            Action::Announce(News::Lasts { claim_until }) => player.claim_until = Some(claim_until),
            Action::Announce(News::Follows { .. }) => player.claim_until = None,
            Action::Announce(News::Recorded(records)) => {
                player.records.extend(records.into_iter().map(|record| (record.id.clone(), record)));
            }
            Action::Announce(News::Forgotten(_) | News::StateLost { .. })
            | Action::Forget { .. }
            | Action::Look { .. } => {}
            Action::Put { op, results } => {
                let Some(Asked::Claim(nonce, attempt, token, done)) = player.asks.remove(&op) else {
                    panic!("not asked")
                };
                if results == [Ok(())] {
                    assert!(!done, "{nonce} was started though an attempt was done before");
                    self.started.insert(nonce, (attempt, token));
                    self.knows_claims();
                }
            }
            Action::Finish { op, result } => {
                let Some(Asked::Finish(nonce, done)) = player.asks.remove(&op) else { panic!("not asked") };
                if result.is_ok() {
                    *self.finished.entry(nonce).or_default() |= done;
                }
            }
        }
    }

    /// A leader knows every attempt that was started with a lower token, or a later one, whatever clocks say.
    fn knows_claims(&self) {
        for (token, records) in &self.terms {
            let known = records.get("run").map_or(0, |run| run.attempt);
            for (nonce, (attempt, claimed)) in &self.started {
                assert!(claimed >= token || known >= *attempt, "leader {token} read {known} and not {nonce}");
            }
        }
    }

    /// And every result that was recorded before it read. One that was recorded since stops its claims at the nodes.
    fn knows_results(&self, agent: usize, records: &Records) {
        for (nonce, done) in &self.players[agent].recorded {
            let known = records.get("run").and_then(|run| run.result(nonce));
            assert!(known.is_some_and(|known| known.done || !done), "result of {nonce} is unknown: {records:?}");
        }
    }

    fn turn(&mut self) {
        match self.dice.roll(100) {
            0..70 if !self.flights.is_empty() => {
                let index = self.dice.roll(self.flights.len());
                let flight = self.flights.swap_remove(index);
                self.land(flight);
            }
            0..92 => self.wait(),
            92..96 => self.play(),
            _ => self.trouble(),
        }
    }

    fn land(&mut self, flight: Flight) {
        match flight {
            Flight::Request { agent, call, node, request } => {
                let (reply, wake) = self.nodes[node].apply(self.now, &request);
                if self.dice.roll(100) >= self.loss {
                    self.flights.push(Flight::Reply { agent, call, reply });
                }
                let Some(wake) = wake else { return };
                for agent in 0..self.players.len() {
                    if self.dice.roll(100) >= self.loss {
                        self.flights.push(Flight::Wake { agent, node, wake: wake.clone() });
                    }
                }
            }
            Flight::Reply { agent, call, reply } => {
                if self.players[agent].open.remove(&call).is_some() {
                    self.step(agent, Event::Reply { call, result: Ok(reply) });
                }
            }
            Flight::Wake { agent, node, wake } => self.step(agent, Event::Wake { node, wake }),
        }
    }

    /// Time goes on, up to what is due next: at times a little only, so that much happens at the same moment.
    fn wait(&mut self) {
        let due = self.players.iter().flat_map(|player| player.timers.values().chain(player.open.values())).min();
        let Some(due) = due.copied() else { return };
        if self.dice.roll(2) == 0 && due > self.now + Duration::from_millis(1) {
            self.now = self.now + Duration::from_millis(1);
        } else {
            self.now = self.now.max(due);
        }
        for agent in 0..self.players.len() {
            let player = &mut self.players[agent];
            let late: Vec<_> = player.open.iter().filter(|(_, at)| **at <= self.now).map(|(call, _)| *call).collect();
            let ready: Vec<_> = player.timers.iter().filter(|(_, at)| **at <= self.now).map(|(it, _)| *it).collect();
            for call in late {
                self.players[agent].open.remove(&call);
                self.step(agent, Event::Reply { call, result: Err(ErrorKind::Timeout) });
            }
            for timer in ready {
                self.players[agent].timers.remove(&timer);
                self.step(agent, Event::Timer(timer));
            }
        }
    }

    /// Somebody claims the next attempt, or ends one that was started.
    fn play(&mut self) {
        let agent = self.dice.roll(self.players.len());
        self.last_op += 1;
        let op = self.last_op;
        let player = &mut self.players[agent];
        if self.dice.roll(2) == 0 {
            let Some(token) = player.core.leads() else { return };
            let attempt = player.records.get("run").map_or(0, |run| run.attempt) + 1;
            let nonce = format!("{attempt}-{token}-{op}");
            let done = self.finished.values().any(|done| *done);
            player.asks.insert(op, Asked::Claim(nonce.clone(), attempt, token, done));
            let put = Put { id: "run".into(), attempt, nonce, data: json!(null) };
            self.step(agent, Event::Put { op, token, puts: vec![put] });
        } else {
            let open: BTreeSet<_> = self.started.keys().filter(|nonce| !self.finished.contains_key(*nonce)).collect();
            let Some(nonce) = open.into_iter().next_back().cloned() else { return };
            let done = self.dice.roll(4) == 0;
            player.asks.insert(op, Asked::Finish(nonce.clone(), done));
            let result = RunResult { nonce, done, data: json!(agent) };
            self.step(agent, Event::Finish { op, id: "run".into(), result });
        }
    }

    fn trouble(&mut self) {
        let agent = self.dice.roll(self.players.len());
        match self.dice.roll(if self.loose { 12 } else { 4 }) {
            0 => {
                let node = self.dice.roll(self.nodes.len());
                self.restarts += 1;
                let kept = self.nodes[node].memory().clone();
                self.nodes[node].restart(&format!("run-{node}-{}", self.restarts), kept);
            }
            1 => {
                self.players[agent].revision += 1;
                let revision = self.players[agent].revision;
                self.step(agent, Event::Stand(Candidacy { stands: true, revision }));
            }
            2 => {
                let revision = self.players[agent].revision;
                self.step(agent, Event::Stand(Candidacy { stands: false, revision }));
                self.step(agent, Event::Stand(Candidacy { stands: true, revision }));
            }
            3.. if self.loose => {
                let node = self.dice.roll(self.nodes.len());
                self.nodes[node].expire();
            }
            _ => {
                let node = self.dice.roll(self.nodes.len());
                self.step(agent, Event::Down(node));
                self.step(agent, Event::Up { node, durable: false });
                self.step(agent, Event::Listening(node));
            }
        }
    }

    /// Without loss and trouble, within a few ttl somebody leads.
    fn settles(&mut self) {
        self.loss = 0;
        for _ in 0..20_000 {
            if self.players.iter().any(|player| player.claim_until.is_some_and(|until| until > self.now)) {
                return;
            }
            if self.flights.is_empty() {
                self.wait();
            } else {
                let flight = self.flights.remove(0);
                self.land(flight);
            }
        }
        panic!("nobody leads");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever gets lost, late or out of order: tokens grow, one leads at a time, and the records hold.
    #[test]
    fn safe_under_any_order(
        seed: u64,
        nodes in 1usize..=5,
        agents in 1usize..=3,
        loss in 0usize..40,
        loose: bool,
    ) {
        let mut world = World::new(seed, nodes, agents, loss, loose);
        for _ in 0..3000 {
            world.turn();
        }
        world.settles();
    }
}

/// A node that has a memory.
fn seeded(run: &str, now: Instant) -> ModelNode {
    let mut node = ModelNode::new(run, Rules::default());
    let (marked, _) = node.apply(now, &Request::Mark { mark: "m".into() });
    let seed = Request::Seed { life: marked.incarnation, promised: 0, records: [].into() };
    assert!(node.apply(now, &seed).0.accepted);
    node
}

/// What one agent and three nodes do when nothing is lost.
struct Quiet {
    core: Core,
    nodes: Vec<ModelNode>,
    now: Instant,
}

impl Quiet {
    fn new() -> Self {
        let agent = AgentId { pod: "p".into(), uid: "u".into(), process: "x".into() };
        let mut core =
            Core::new(Config { agent, nodes: 3, timing: Timing { ttl: TTL }, floor: 0, rules: Rules::default() });
        let now = Instant::from_nanos(1_000_000_000);
        for node in 0..3 {
            assert_eq!(
                core.step(now, Event::Up { node, durable: false }).len(),
                usize::from(node == 0),
                "the leader is told once"
            );
        }
        Self { core, nodes: (0..3).map(|index| seeded(&index.to_string(), now)).collect(), now }
    }

    fn sent(actions: Vec<Action>) -> Vec<(CallId, NodeId, Request)> {
        let sent = |action| match action {
            Action::Send { call, node, request, .. } => Some((call, node, request)),
            _ => None,
        };
        actions.into_iter().filter_map(sent).collect()
    }

    fn answer(&mut self, (call, node, request): &(CallId, NodeId, Request)) -> Vec<Action> {
        let (reply, _) = self.nodes[*node].apply(self.now, request);
        self.core.step(self.now, Event::Reply { call: *call, result: Ok(reply) })
    }
}

#[test]
fn one_round_of_grants_and_one_of_reads_elect() {
    let mut quiet = Quiet::new();
    let stand = Event::Stand(Candidacy { stands: true, revision: 1 });
    let grants = Quiet::sent(quiet.core.step(quiet.now, stand));
    assert_eq!(grants.len(), 3);
    assert!(quiet.answer(&grants[0]).is_empty(), "one grant is no majority");
    let reads = Quiet::sent(quiet.answer(&grants[1]));
    assert_eq!(reads.iter().map(|(_, node, _)| *node).collect::<Vec<_>>(), [0, 1], "exactly the nodes that granted");
    assert!(quiet.answer(&grants[2]).is_empty(), "a late grant has no part in the round");
    assert!(quiet.answer(&reads[0]).is_empty());
    let actions = quiet.answer(&reads[1]);
    let timing = Timing { ttl: TTL };
    let claim_until = quiet.now + timing.validity() - timing.margin();
    let leads = News::Leads { token: 1, claim_until, records: Records::new() };
    assert!(actions.contains(&Action::Announce(leads)), "{actions:?}");
}

#[test]
fn a_read_counts_only_in_the_life_that_granted() {
    let mut quiet = Quiet::new();
    let stand = Event::Stand(Candidacy { stands: true, revision: 1 });
    let grants = Quiet::sent(quiet.core.step(quiet.now, stand));
    quiet.answer(&grants[0]);
    let reads = Quiet::sent(quiet.answer(&grants[1]));
    let kept = quiet.nodes[0].memory().clone();
    quiet.nodes[0].restart("again", kept);
    assert_eq!(quiet.answer(&reads[0]), [], "two more are needed, and one is left: waits for the third");
    quiet.answer(&reads[1]);
    assert_eq!(quiet.core.leads(), None);
    let again = Quiet::sent(quiet.answer(&grants[2]));
    assert_eq!(again.iter().map(|(_, node, _)| *node).collect::<Vec<_>>(), [1, 2], "a new round with the late grant");
    quiet.answer(&again[0]);
    quiet.answer(&again[1]);
    assert_eq!(quiet.core.leads(), Some(1));
}
