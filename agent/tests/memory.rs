//! Masters that forget, over real Redis servers: a majority that remembers goes on, and without one it begins anew. No
//! token comes twice.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod electors;

use cabloy_agent::election::{Candidacy, Obstacle, Role};
use cabloy_agent::ledger::{Put, RunResult};
use cabloy_tests::redis::Redis;
use cabloy_tests::wait;
use electors::{Agent, SOON, TTL, Terms, commands_run, leader, listen, masters, now, servers, start};
use serde_json::json;

fn claim(id: &str) -> Put {
    Put { id: id.into(), attempt: 1, nonce: format!("{id}-1"), data: json!({}) }
}

/// Waits until no master is without memory, as the agent sees it.
async fn all_remember(agent: &Agent) {
    let remember = || agent.status().nodes.iter().all(|node| node.reachable && node.without_memory.is_none());
    wait::until("all masters to have their memory", SOON, async || remember()).await;
}

/// Waits until the agent knows that a master has none.
async fn one_forgot(agent: &Agent) {
    let forgot = || agent.status().nodes.iter().any(|node| node.without_memory.is_some());
    wait::until("the master to be seen without memory", SOON, async || forgot()).await;
}

async fn ids(agent: &Agent, wanted: &[&str]) -> Vec<String> {
    let records = agent.elector.ledger().read(wanted.iter().map(|id| (*id).to_owned()).collect()).await.unwrap();
    records.into_iter().map(|record| record.id).collect()
}

#[tokio::test]
async fn the_first_leader_comes_after_one_lease_and_nothing_is_lost() {
    let servers = servers::<3>();
    let began = now();
    let terms = Terms::default();
    let agents = start::<3>(&masters(&servers), &terms);
    let (first, term) = leader(&agents).await;
    let waited = term.since().since(began);
    assert!(waited >= TTL, "new masters rest, for they may have forgotten a lease: {waited:?}");
    assert!(agents.iter().all(|agent| agent.status().state_lost.is_none()), "there was nothing to lose");
    all_remember(&agents[first]).await;
}

/// Each way in which one of three forgets: the leader stays, gives the memory back, and then any other may be lost.
#[tokio::test]
async fn one_master_after_the_other_forgets() {
    let servers = servers::<3>();
    servers[1].save();
    let terms = Terms::default();
    let agents = start::<2>(&masters(&servers), &terms);
    let (first, term) = leader(&agents).await;
    let ledger = agents[first].elector.ledger();
    assert_eq!(ledger.put(&term, vec![claim("one"), claim("two")]).await, [Ok(()), Ok(())]);
    let done = RunResult { nonce: "two-1".into(), done: true, data: json!(2) };
    ledger.finish("two", done.clone()).await.unwrap();

    let lose: [fn(&Redis); 3] = [Redis::restart_empty, Redis::restart, |redis| {
        let () = redis.run(&["FLUSHALL"]);
    }];
    for (server, lose) in servers.iter().zip(lose) {
        lose(server);
        one_forgot(&agents[first]).await;
        all_remember(&agents[first]).await;
        assert!(term.may_claim(), "the leader stays");
    }
    assert_eq!(terms.lock().unwrap().len(), 1);

    // Now each of them remembers only what it was given.
    agents[first].elector.resign().await;
    let (next, term) = leader(&agents[1 - first..2 - first]).await;
    assert_eq!(next, 0);
    let records = term.records();
    assert_eq!(records.iter().map(|record| &*record.id).collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(records[1].results, [done]);
    assert!(agents.iter().all(|agent| agent.status().state_lost.is_none()));
}

/// An old snapshot has an old promise in it: a token of back then must not be had again.
#[tokio::test]
async fn an_old_snapshot_has_no_say() {
    let servers = servers::<3>();
    let terms = Terms::default();
    let agents = start::<2>(&masters(&servers), &terms);
    let (mut at, first) = leader(&agents).await;
    let mut highest = first.token();
    servers[0].save();
    // Terms of which the snapshot knows nothing.
    for _ in 0..3 {
        agents[at].elector.resign().await;
        highest = leader([&agents[1 - at]]).await.1.token();
        agents[at].elector.stand(Candidacy { stands: true, revision: 1 });
        at = 1 - at;
    }
    servers[0].restart();
    servers[1].kill();
    // The one that came back and the one that is left are no majority that remembers, and not all can be reached.
    let missing = |agent: &Agent| agent.status().obstacle == Some(Obstacle::NeedsAllNodes);
    wait::until("the agents to see why nobody leads", SOON, async || {
        agents.iter().all(|agent| agent.term().is_none() && missing(agent))
    })
    .await;
    servers[1].restart();
    let (_, last) = leader(&agents).await;
    assert!(last.token() > highest && highest > first.token());
}

#[tokio::test]
async fn a_loss_of_everything_is_said_and_tokens_go_on() {
    let servers = servers::<3>();
    let terms = Terms::default();
    let agents = start::<3>(&masters(&servers), &terms);
    let (first, term) = leader(&agents).await;
    assert_eq!(agents[first].elector.ledger().put(&term, vec![claim("one")]).await, [Ok(())]);
    for server in &servers {
        server.restart_empty();
    }
    let mut role = agents[first].elector.watch();
    tokio::time::timeout(SOON, term.lost().cancelled()).await.expect("the term ends");
    drop(role.borrow_and_update());
    let (_, next) = leader(&agents).await;
    assert!(next.token() > term.token(), "{} after {}", next.token(), term.token());
    assert!(agents.iter().any(|agent| agent.status().state_lost.is_some()), "runs are at-least-once, and that is said");
    assert!(next.records().is_empty());

    // New agents, which know nothing of before, go on from there.
    for agent in agents {
        agent.stop().await;
    }
    let again = start::<1>(&masters(&servers), &terms);
    let (_, last) = leader(&again).await;
    assert!(last.token() > next.token());
}

/// With every write on disk nothing is lost when all are started again at once.
#[tokio::test]
async fn durable_masters_keep_everything() {
    for count in [1, 3] {
        let servers: Vec<_> = (0..count).map(|_| Redis::builder().durable().start()).collect();
        let terms = Terms::default();
        let agents = start::<2>(&masters(&servers), &terms);
        let (first, term) = leader(&agents).await;
        assert_eq!(agents[first].elector.ledger().put(&term, vec![claim("one")]).await, [Ok(())]);
        for server in &servers {
            server.restart();
        }
        tokio::time::timeout(SOON, term.lost().cancelled()).await.expect("the term ends");
        let (next, later) = leader(&agents).await;
        assert!(later.token() > term.token());
        assert_eq!(ids(&agents[next], &["one"]).await, ["one"]);
        assert!(agents.iter().all(|agent| agent.status().state_lost.is_none()), "{count}");
    }
}

/// Fifty wait, one leads and leaves: all of it, the election of the next one too, takes fewer than 200 commands in all.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_makes_no_stampede() {
    let servers = servers::<3>();
    let terms = Terms::default();
    let agents = start::<51>(&masters(&servers), &terms);
    let (first, _) = leader(&agents).await;
    let name = agents[first].name.clone();
    for agent in agents.iter().filter(|agent| agent.name != name) {
        electors::follows(agent, &name).await;
    }
    listen(&servers, agents.len()).await;
    let before: u32 = servers.iter().map(commands_run).sum();
    agents[first].elector.resign().await;
    let others: Vec<_> = agents.iter().filter(|agent| agent.name != name).collect();
    let (next, _) = leader(others.iter().copied()).await;
    for agent in others.iter().filter(|agent| agent.name != others[next].name) {
        let mut role = agent.elector.watch();
        let settled = |role: &Role| matches!(role, Role::Follower { leader: Some(_) });
        tokio::time::timeout(SOON, role.wait_for(settled)).await.expect("it follows").unwrap();
    }
    electors::follows(&agents[first], &others[next].name).await;
    let cost = servers.iter().map(commands_run).sum::<u32>() - before;
    println!("a release among 50 that wait: {cost} commands");
    assert!(cost < 200, "{cost} commands");
}
