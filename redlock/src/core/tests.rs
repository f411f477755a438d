//! The core and some nodes when nothing gets lost. What may happen otherwise is for the simulator.

use std::collections::{BTreeMap, VecDeque};

use serde_json::json;

use super::*;
use crate::model::{Memory, ModelNode};

const TTL: Duration = Duration::from_secs(10);

/// A node that has a memory.
fn seeded(run: &str, now: Instant) -> ModelNode {
    let mut node = ModelNode::new(run, Rules::default());
    let (marked, _) = node.apply(now, &Request::Mark { mark: "m".into() });
    let seed = Request::Seed { life: marked.incarnation, promised: 0, led: false, records: [].into() };
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

/// Agents that began at the same moment part, and a node that does not answer delays none of the others.
#[test]
fn renewals_are_spread_and_each_node_has_its_own_time_to_answer() {
    let mut quiet = Quiet::new();
    let stand = Event::Stand(Candidacy { stands: true, revision: 1 });
    let grants = Quiet::sent(quiet.core.step(quiet.now, stand));
    quiet.answer(&grants[0]);
    let reads = Quiet::sent(quiet.answer(&grants[1]));
    quiet.answer(&reads[0]);
    let mut actions = quiet.answer(&reads[1]);
    for _ in 0..2 {
        let (every, jitter) = (TTL / 3, TTL / 30);
        let timer = Action::SetTimer { timer: Timer::Renew, at: quiet.now + every * 9 / 10, jitter };
        assert!(actions.contains(&timer), "{actions:?}");
        quiet.now = quiet.now + every;
        actions = quiet.core.step(quiet.now, Event::Timer(Timer::Renew));
        let renewed = actions.iter().filter_map(|action| match action {
            Action::Send { node, request: Request::Renew { .. }, timeout, .. } => Some((*node, *timeout)),
            _ => None,
        });
        assert_eq!(renewed.collect::<Vec<_>>(), [0, 1, 2].map(|node| (node, TTL / 20)));
    }
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

#[test]
fn what_was_sent_before_a_clock_was_doubted_makes_no_lease() {
    let mut quiet = Quiet::new();
    let stand = Event::Stand(Candidacy { stands: true, revision: 1 });
    let grants = Quiet::sent(quiet.core.step(quiet.now, stand));
    let reads: Vec<_> = grants.iter().flat_map(|grant| Quiet::sent(quiet.answer(grant))).collect();
    for read in &reads {
        quiet.answer(read);
    }
    let token = quiet.core.leads().unwrap();

    // A takes the renewal and says so, B does not hear of it, and C takes it while its answer is slow.
    quiet.now = quiet.now + TTL * 3 / 10;
    let renewals = Quiet::sent(quiet.core.step(quiet.now, Event::Timer(Timer::Renew)));
    let to = |node: NodeId, sent: &[(CallId, NodeId, Request)]| sent.iter().find(|it| it.1 == node).unwrap().clone();
    quiet.answer(&to(0, &renewals));
    let (slow, _, renewal) = to(2, &renewals);
    let (reply, _) = quiet.nodes[2].apply(quiet.now, &renewal);

    // C's clock jumps ahead, and its lock ends that much earlier. Of two answers the first shows it.
    for (op, id) in [(1, "one"), (2, "two")] {
        quiet.now = quiet.now + TTL / 10;
        let put = Put { id: id.into(), attempt: 1, nonce: "n".into(), data: json!(null) };
        let puts = Quiet::sent(quiet.core.step(quiet.now, Event::Put { op, token, puts: vec![put] }));
        let (call, _, put) = to(2, &puts);
        let (reply, _) = quiet.nodes[2].apply(quiet.now + TTL / 2, &put);
        _ = quiet.core.step(quiet.now, Event::Reply { call, result: Ok(reply) });
    }
    let actions = quiet.core.step(quiet.now, Event::Reply { call: slow, result: Ok(reply) });
    assert_eq!(actions, [], "the term lasts no longer by an answer from before the jump");
}

/// One agent, three nodes, and the time that passes when nothing else happens.
struct Small {
    core: Core,
    nodes: Vec<ModelNode>,
    now: Instant,
    timers: BTreeMap<Timer, Instant>,
    news: Vec<News>,
    decided: Vec<Action>,
}

impl Small {
    fn new(nodes: Vec<ModelNode>, floor: u64, durable: bool) -> Self {
        Self::of("x", nodes, Instant::from_nanos(1_000_000_000), floor, durable)
    }

    /// That process of the pod.
    fn of(process: &str, nodes: Vec<ModelNode>, now: Instant, floor: u64, durable: bool) -> Self {
        let agent = AgentId { pod: "p".into(), uid: "u".into(), process: process.into() };
        let timing = Timing { ttl: TTL };
        let core = Core::new(Config { agent, nodes: nodes.len(), timing, floor, rules: Rules::default() });
        let (timers, news, decided) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut small = Self { core, nodes, now, timers, news, decided };
        for node in 0..small.nodes.len() {
            small.step(Event::Up { node, durable });
        }
        small.step(Event::Stand(Candidacy { stands: true, revision: 1 }));
        small
    }

    /// Nodes that were never used.
    fn fresh() -> Vec<ModelNode> {
        (0..3).map(|index| ModelNode::new(&index.to_string(), Rules::default())).collect()
    }

    /// An event, and all that follows from it at this moment.
    fn step(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.core.step(self.now, event) {
                match action {
                    Action::Send { call, node, request, .. } => {
                        let (reply, _) = self.nodes[node].apply(self.now, &request);
                        events.push_back(Event::Reply { call, result: Ok(reply) });
                    }
                    Action::SetTimer { timer, at, .. } => _ = self.timers.insert(timer, at),
                    Action::Announce(news) => self.news.push(news),
                    decided => self.decided.push(decided),
                }
            }
        }
    }

    /// Time passes.
    fn wait(&mut self, span: Duration) {
        let end = self.now + span;
        while let Some((timer, at)) = self.timers.iter().min_by_key(|(_, at)| **at).map(|(timer, at)| (*timer, *at)) {
            if at > end {
                break;
            }
            self.timers.remove(&timer);
            self.now = self.now.max(at);
            self.step(Event::Timer(timer));
        }
        self.now = end;
    }

    fn claim(&mut self) {
        let token = self.core.leads().expect("it leads");
        let put = Put { id: "run".into(), attempt: 1, nonce: "n".into(), data: json!(null) };
        self.step(Event::Put { op: 1, token, puts: vec![put] });
        assert!(self.decided.contains(&Action::Put { op: 1, results: vec![Ok(())] }), "{:?}", self.decided);
    }

    /// A leader that has claimed a run on all nodes.
    fn leading(durable: bool) -> Self {
        let mut small = Self::new(Self::fresh(), 0, durable);
        small.wait(TTL + TTL);
        small.claim();
        small
    }

    fn restart(&mut self, node: usize, memory: Memory) {
        let run = format!("{node} again at {}", self.now);
        self.nodes[node].restart(&run, memory);
    }

    fn restart_all_but(&mut self, intact: usize, memory: impl Fn(&ModelNode) -> Memory) {
        for node in (0..3).filter(|node| *node != intact) {
            let memory = memory(&self.nodes[node]);
            self.restart(node, memory);
        }
    }

    fn loss(&self) -> Option<u64> {
        self.news.iter().find_map(|news| if let News::StateLost { floor } = news { Some(*floor) } else { None })
    }

    fn knows_the_run(&self) -> bool {
        let last = self.news.iter().rev().find_map(|news| match news {
            News::Leads { records, .. } => Some(records),
            _ => None,
        });
        last.is_some_and(|records| records.contains_key("run"))
    }
}

#[test]
fn a_first_start_rests_and_loses_nothing() {
    let mut small = Small::new(Small::fresh(), 0, false);
    small.wait(TTL * 9 / 10);
    assert_eq!(small.core.leads(), None, "an earlier leader could believe in its lease");
    small.wait(Duration::from_secs(2));
    assert_eq!(small.loss(), None);
    assert!(small.core.leads().is_some());
}

#[test]
fn a_node_that_comes_back_empty_is_seeded_after_its_rest() {
    let mut small = Small::leading(false);
    small.restart(2, Memory::default());
    small.wait(TTL);
    assert!(!small.nodes[2].intact(), "it rests since it was heard of");
    small.wait(TTL);
    assert!(small.nodes[2].intact());
    assert!(small.nodes[2].memory().record("run").is_some());
    assert_eq!(small.loss(), None);
    assert!(small.core.leads().is_some());
}

#[test]
fn a_node_that_is_started_once_more_rests_once_more() {
    let mut small = Small::leading(false);
    small.restart(2, Memory::default());
    small.wait(TTL);
    // Not heard of until it is marked: renewals come every three seconds.
    let seed_at = small.timers[&Timer::Seed];
    small.now = small.now.max(seed_at);
    small.timers.remove(&Timer::Seed);
    small.restart(2, Memory::default());
    small.step(Event::Timer(Timer::Seed));
    assert!(!small.nodes[2].intact(), "whoever took its lock since would not be safe");
    small.wait(TTL + TTL);
    assert!(small.nodes[2].intact());
}

#[test]
fn when_all_is_lost_it_says_so_and_begins_anew_above_all_tokens() {
    let mut small = Small::leading(false);
    let before = small.core.leads().unwrap();
    small.restart_all_but(3, |_| Memory::default());
    small.wait(TTL + TTL + TTL);
    let floor = small.loss().expect("what was done is lost");
    assert!(floor > before);
    assert!(small.core.leads().unwrap() > floor);
    assert!(!small.knows_the_run());
}

#[test]
fn a_floor_from_outside_tells_a_loss_from_a_first_start() {
    let mut small = Small::new(Small::fresh(), 7, false);
    small.wait(TTL + TTL);
    assert!(small.loss().expect("somebody led before") > 7);
}

#[test]
fn servers_that_have_every_write_on_disk_lose_nothing() {
    let mut small = Small::leading(true);
    let before = small.core.leads().unwrap();
    small.restart_all_but(3, |node| node.memory().clone());
    small.wait(TTL + TTL + TTL);
    assert_eq!(small.loss(), None);
    assert!(small.core.leads().unwrap() > before);
    assert!(small.knows_the_run());
}

#[test]
fn what_most_of_them_have_on_disk_is_all_there_was() {
    for (remember, loss) in [(2, false), (1, true)] {
        let mut small = Small::leading(true);
        for node in 0..3 {
            // The others were never reached, or their disks are gone.
            let memory = if node < remember { small.nodes[node].memory().clone() } else { Memory::default() };
            small.restart(node, memory);
        }
        small.wait(TTL + TTL + TTL);
        assert_eq!(small.loss().is_some(), loss, "{remember} remember");
        assert!(small.knows_the_run());
    }
}

#[test]
fn what_an_intact_minority_has_is_kept() {
    let mut small = Small::leading(false);
    small.restart_all_but(1, |_| Memory::default());
    small.wait(TTL + TTL + TTL);
    assert!(small.loss().is_some(), "what a majority had taken without it is lost");
    assert!(small.knows_the_run());
    assert!(small.nodes.iter().all(|node| node.intact() && node.memory().record("run").is_some()));
}

#[test]
fn a_new_process_takes_over_the_lock_that_it_saw_of_its_pod_and_no_other() {
    let mut node = seeded("0", Instant::default());
    let now = Instant::default();
    let agent = |process: &str| AgentId { pod: "p".into(), uid: "u".into(), process: process.into() };
    let grant = |process: &str, token, former: Option<&str>| {
        let former = former.map(|former| Owner::Agent { agent: agent(former), revision: 1, token: token - 1 });
        Request::Grant { token, agent: agent(process), revision: 1, ttl: TTL, former }
    };
    assert!(node.apply(now, &grant("x", 1, None)).0.accepted);
    assert!(!node.apply(now, &grant("y", 2, None)).0.accepted, "not seen");
    assert!(node.apply(now, &grant("y", 2, Some("x"))).0.accepted);
    assert!(!node.apply(now, &grant("x", 3, Some("w"))).0.accepted, "what the earlier one still had on its way");
}

#[test]
fn a_lease_that_a_new_process_of_the_pod_takes_over_is_led_under_a_new_token() {
    let Small { core, nodes, now, .. } = Small::leading(false);
    let before = core.leads().unwrap();
    // The first process is gone, and has released nothing.
    let mut small = Small::of("y", nodes, now, 0, false);
    small.wait(TTL / 10);
    let token = small.core.leads().expect("the lease of its own pod is not waited for");
    assert!(token > before, "{token} after {before}");
    assert!(small.knows_the_run());
}

#[test]
fn no_term_outlasts_a_change_of_the_ttl() {
    let mut small = Small::leading(false);
    let before = small.core.leads().unwrap();
    small.step(Event::Timing(Timing { ttl: TTL / 10 }));
    assert!(small.core.leads().is_none_or(|token| token > before));
    small.step(Event::Stand(Candidacy { stands: true, revision: 2 }));
    assert!(small.core.leads().is_none_or(|token| token > before + 1));
}
