//! What the election costs, each figure beside the round trip to Redis that it is made of, in the same run.
//!
//! `cargo bench -p cabloy-agent --bench election`
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark fails by panicking")]

#[path = "../tests/electors/mod.rs"]
mod electors;
#[path = "../tests/stage/mod.rs"]
mod stage;

use std::time::Duration;

use cabloy_agent::election::{Candidacy, Masters, Timing};
use cabloy_agent::ledger::Put;
use cabloy_tests::redis::Redis;
use electors::{Agent, Terms, commands_run, follows, leader, listen, masters, now, servers};
use futures::future::try_join_all;
use redis::aio::MultiplexedConnection;
use serde_json::json;
use stage::Stage;

const ROUNDS: usize = 500;

/// As it is where nothing is written: no lease ends meanwhile.
const TIMING: Timing = Timing { ttl: Duration::from_secs(10) };

#[tokio::main]
async fn main() {
    let servers = servers::<3>();
    let masters = masters(&servers);
    let raw = round_trips(&servers).await;
    election_alone(&masters, raw).await;
    for count in [2, 3, 10] {
        hand_over(&masters, count, raw).await;
    }
    waiting(&servers, &masters).await;
    whole_agents().await;
}

/// The least that a decision of three masters can cost: one script that does nothing, on each at once. The median.
async fn round_trips(servers: &[Redis]) -> Duration {
    let script = redis::Script::new("return 1");
    let connect = servers
        .iter()
        .map(|server| async { redis::Client::open(server.url())?.get_multiplexed_async_connection().await });
    let connections: Vec<MultiplexedConnection> = try_join_all(connect).await.unwrap();
    let mut spans = Vec::new();
    for _ in 0..ROUNDS {
        let before = now();
        let calls = connections.iter().cloned().map(|mut connection| {
            let script = &script;
            async move { script.prepare_invoke().invoke_async::<u32>(&mut connection).await }
        });
        try_join_all(calls).await.unwrap();
        spans.push(now().since(before));
    }
    report("EVALSHA on three servers at once", &mut spans, None)
}

/// One agent: from standing to leading, giving the lease back, and claims.
async fn election_alone(masters: &Masters, raw: Duration) {
    let agents = crew(masters, 1).await;
    let elector = &agents[0].elector;
    let (mut acquired, mut released) = (Vec::new(), Vec::new());
    let (_, mut term) = leader(&agents).await;
    for _ in 0..ROUNDS {
        let before = now();
        elector.resign().await;
        released.push(now().since(before));
        let before = now();
        elector.stand(Candidacy { stands: true, revision: 1 });
        term = leader(&agents).await.1;
        acquired.push(term.since().since(before));
    }
    report("acquire: granted, ledger read and written back", &mut acquired, Some(raw));
    report("release", &mut released, Some(raw));
    for size in [1, 100, 1000] {
        let mut spans = Vec::new();
        for round in 0..ROUNDS / 10 {
            let put = |index| Put {
                id: format!("{size}/{round}/{index}"),
                attempt: 1,
                nonce: "n".to_owned(),
                data: json!({"deadline": "2026-11-23T10:00:00Z", "pod": "shop-web-0"}),
            };
            let before = now();
            assert!(elector.ledger().put(&term, (0..size).map(put).collect()).await.iter().all(Result::is_ok));
            spans.push(now().since(before));
            let ids = term.records().into_iter().map(|record| record.id).collect();
            elector.ledger().forget(&term, ids).await.unwrap();
        }
        report(&format!("{size} claims in one round"), &mut spans, Some(raw));
    }
    end(agents).await;
}

/// From the word to resign to the next leader that has read the ledger.
async fn hand_over(masters: &Masters, count: usize, raw: Duration) {
    let agents = crew(masters, count).await;
    let (mut at, _) = leader(&agents).await;
    let mut spans = Vec::new();
    for _ in 0..ROUNDS / 2 {
        let name = &agents[at].name;
        for agent in agents.iter().filter(|agent| agent.name != *name) {
            follows(agent, name).await;
        }
        let before = now();
        agents[at].elector.resign().await;
        let others: Vec<_> = (0..count).filter(|index| *index != at).collect();
        let (next, term) = leader(others.iter().map(|index| &agents[*index])).await;
        spans.push(term.since().since(before));
        agents[at].elector.stand(Candidacy { stands: true, revision: 1 });
        at = others[next];
    }
    report(&format!("hand-over among {count}"), &mut spans, Some(raw));
    end(agents).await;
}

/// What 51 agents ask of three servers while one of them leads.
async fn waiting(servers: &[Redis], masters: &Masters) {
    let agents = crew(masters, 51).await;
    let (first, _) = leader(&agents).await;
    for agent in agents.iter().filter(|agent| agent.name != agents[first].name) {
        follows(agent, &agents[first].name).await;
    }
    listen(servers, agents.len()).await;
    let asked = || servers.iter().map(commands_run).sum::<u32>();
    let (before, since) = (asked(), now());
    tokio::time::sleep(TIMING.ttl * 2).await;
    let calls = f64::from(asked() - before) / now().since(since).as_secs_f64();
    println!("{:<48} {calls:.2} commands a second in all, the leader's renewals", "50 wait while one leads");
    end(agents).await;
}

/// The program itself: one that leads without schedules, and one that follows it.
async fn whole_agents() {
    const SPAN: Duration = Duration::from_secs(30);
    let stage = Stage::new(3);
    let agents = [stage.agent("a").start(), stage.agent("b").start()];
    let first = stage::leader(&agents).await.name().to_owned();
    for agent in &agents {
        agent
            .until("it knows the leader", |status| status.election.as_ref().is_some_and(|it| it.leader.is_some()))
            .await;
    }
    let used = || agents.each_ref().map(|agent| cpu(agent.pid()));
    let before = used();
    tokio::time::sleep(SPAN).await;
    for ((agent, after), before) in agents.iter().zip(used()).zip(before) {
        let part = f64::from(after - before) / SPAN.as_secs_f64();
        let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().trim();
        let what = if agent.name() == first { "an agent that leads, idle" } else { "an agent that follows" };
        println!("{what:<48} {part:.2} % of a core, {resident} resident");
    }
}

/// The time that a process has had of the processors, in hundredths of a second: the kernel's clock tick.
fn cpu(process: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u32>().unwrap() + fields[12].parse::<u32>().unwrap()
}

async fn crew(masters: &Masters, count: usize) -> Vec<Agent> {
    let terms = Terms::default();
    let start = |index| Agent::start(&format!("shop-{count}-{index}"), masters.clone(), 1, &terms);
    let agents: Vec<_> = (0..count).map(start).collect();
    // The first leader of all comes after a rest of one lease, which is a short one; a longer one begins a new term.
    let (_, term) = leader(&agents).await;
    for agent in &agents {
        agent.elector.reconfigure(masters.clone(), TIMING);
    }
    term.lost().cancelled().await;
    agents
}

async fn end(agents: Vec<Agent>) {
    for agent in agents {
        agent.stop().await;
    }
}

/// Prints median, 99th percentile and worst, and how many round trips the median is; returns it.
fn report(what: &str, spans: &mut [Duration], raw: Option<Duration>) -> Duration {
    spans.sort_unstable();
    let at = |percent: usize| spans[(spans.len() * percent / 100).min(spans.len() - 1)];
    let ms = |percent| at(percent).as_secs_f64() * 1e3;
    let ratio = raw.map(|raw| format!(", {:.1} round trips", at(50).as_secs_f64() / raw.as_secs_f64()));
    println!("{what:<48} p50 {:.2} ms, p99 {:.2}, max {:.2}{}", ms(50), ms(99), ms(100), ratio.unwrap_or_default());
    at(50)
}
