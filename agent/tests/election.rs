//! The election and the ledger over real Redis servers.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod electors;

use std::time::Duration;

use cabloy_agent::election::{Candidacy, ErrorKind, NodeStatus, Owner, Role};
use cabloy_agent::ledger::{FinishError, Put, PutError, RunResult};
use cabloy_tests::redis::Redis;
use cabloy_tests::wait;
use electors::{
    Agent, LOCK, SOON, TIMING, TTL, Terms, commands_run, follows, leader, listen, masters, now, servers, start,
};
use serde_json::{Value, json};

const RECORDS: &str = "cabloy:{prod/shop}:records";

fn claim(id: &str, attempt: u32) -> Put {
    Put { id: id.into(), attempt, nonce: format!("{id}-{attempt}"), data: json!({"tick": [], "by": {}}) }
}

fn result(nonce: &str, done: bool) -> RunResult {
    RunResult { nonce: nonce.into(), done, data: json!({"code": 0}) }
}

#[tokio::test]
async fn three_agents_have_one_leader() {
    let servers = servers::<3>();
    let terms = Terms::default();
    let agents = start::<3>(&masters(&servers), &terms);
    let (first, term) = leader(&agents).await;
    for agent in agents.iter().filter(|agent| agent.name != agents[first].name) {
        follows(agent, &agents[first].name).await;
        assert!(!agent.leads());
    }
    // Over two lives of the lock it stays with the one that renews it.
    tokio::time::sleep(TTL * 2).await;
    assert!(agents[first].leads() && !term.lost().is_cancelled());
    assert_eq!(terms.lock().unwrap().len(), 1);
    let status = agents[first].status();
    assert!(status.leading && status.claims_for.unwrap() > TTL / 3);
    assert!(status.nodes.iter().all(|node| node.reachable && node.error.is_none() && node.warning.is_none()));
    let value: String = servers[0].run(&["GET", LOCK]);
    let (begin, end) = (format!("{0}/uid-{0}/", agents[first].name), format!("/1:{}", term.token()));
    assert!(value.starts_with(&begin) && value.ends_with(&end), "{value}");
}

#[tokio::test]
async fn a_killed_leader_is_followed_within_its_ttl() {
    let servers = servers::<3>();
    let terms = Terms::default();
    let mut agents = start::<3>(&masters(&servers), &terms);
    let (first, _) = leader(&agents).await;
    let name = agents[first].name.clone();
    for agent in agents.iter().filter(|agent| agent.name != name) {
        follows(agent, &name).await;
    }
    let killed = now();
    agents.remove(first).kill();
    let (_, next) = leader(&agents).await;
    let gap = next.since().since(killed);
    println!("after a kill: {gap:?}");
    assert!(gap > TTL / 2, "the lease was not waited for: {gap:?}");
    // Some 100 ms after the lease, and what a busy machine adds.
    assert!(gap < TTL + Duration::from_millis(250), "{gap:?}");
}

#[tokio::test]
async fn a_leader_that_resigns_is_followed_at_once() {
    let servers = servers::<3>();
    let terms = Terms::default();
    let agents = start::<3>(&masters(&servers), &terms);
    let mut gaps = Vec::new();
    let (mut at, mut term) = leader(&agents).await;
    for _ in 0..100 {
        for agent in agents.iter().filter(|agent| agent.name != agents[at].name) {
            follows(agent, &agents[at].name).await;
        }
        let before = now();
        agents[at].elector.resign().await;
        assert!(!term.may_claim());
        let others = agents.iter().enumerate().filter(|(index, _)| *index != at).collect::<Vec<_>>();
        let (next, next_term) = leader(others.iter().map(|(_, agent)| *agent)).await;
        gaps.push(next_term.since().since(before));
        agents[at].elector.stand(Candidacy { stands: true, revision: 1 });
        (at, term) = (others[next].0, next_term);
    }
    gaps.sort_unstable();
    println!("hand-over: p50 {:?}, p99 {:?}, max {:?}", gaps[50], gaps[98], gaps[99]);
    assert!(gaps[50] < Duration::from_millis(50), "{gaps:?}");
    assert!(gaps[98] < TTL / 2, "one was missed: {gaps:?}");
}

#[tokio::test]
async fn shutdown_resigns_and_ends_every_task() {
    let servers = servers::<3>();
    let terms = Terms::default();
    let mut agents = start::<2>(&masters(&servers), &terms);
    let (first, _) = leader(&agents).await;
    let before = now();
    agents.remove(first).stop().await;
    let (_, next) = leader(&agents).await;
    assert!(next.since().since(before) < TTL / 2);
}

#[tokio::test]
async fn one_dead_node_of_three_does_not_matter() {
    let servers = servers::<3>();
    let terms = Terms::default();
    let agents = start::<2>(&masters(&servers), &terms);
    let (first, term) = leader(&agents).await;
    servers[0].kill();
    wait::until("the node to be missed", SOON, async || !agents[first].status().nodes[0].reachable).await;
    tokio::time::sleep(TTL * 2).await;
    assert!(term.may_claim(), "the leader stays");
    assert_eq!(agents[first].elector.ledger().put(&term, vec![claim("run", 1)]).await, [Ok(())]);

    // It comes back empty; the leader takes it in again, and then any other may die.
    servers[0].restart_empty();
    wait::until("the lock on the node that came back", SOON, async || {
        servers[0].run::<Option<String>>(&["GET", LOCK]).is_some()
    })
    .await;
    servers[1].kill();
    assert_eq!(agents[first].elector.ledger().put(&term, vec![claim("other", 1)]).await, [Ok(())]);
    tokio::time::sleep(TTL * 2).await;
    assert!(term.may_claim() && terms.lock().unwrap().len() == 1);
}

#[tokio::test]
async fn without_a_majority_nobody_leads() {
    let servers = servers::<3>();
    let terms = Terms::default();
    let agents = start::<2>(&masters(&servers), &terms);
    let (first, term) = leader(&agents).await;
    // Stopped, not killed: connections stay open and nothing answers.
    let paused = now();
    servers[0].pause();
    servers[1].pause();
    tokio::time::timeout(SOON, term.lost().cancelled()).await.expect("the term ends");
    let lost = now().since(paused);
    println!("lost after {lost:?}");
    assert!(lost < TTL && lost > TTL / 3, "{lost:?}");
    assert!(!term.may_claim());
    assert_eq!(agents[first].elector.ledger().put(&term, vec![claim("run", 1)]).await, [Err(PutError::TermLost)]);
    tokio::time::sleep(TTL * 2).await;
    assert!(agents.iter().all(|agent| agent.term().is_none()));
    assert!(agents.iter().all(|agent| agent.status().leader.is_none()));

    servers[0].resume();
    servers[1].resume();
    let (_, next) = leader(&agents).await;
    assert!(next.token() > term.token());
}

#[tokio::test]
async fn killed_servers_that_return_are_found_again() {
    let servers: [Redis; 3] = std::array::from_fn(|_| Redis::builder().durable().start());
    let terms = Terms::default();
    let agents = start::<2>(&masters(&servers), &terms);
    let (_, term) = leader(&agents).await;
    servers[0].kill();
    servers[1].kill();
    tokio::time::timeout(SOON, term.lost().cancelled()).await.expect("the term ends");
    wait::until("both to be missed", SOON, async || {
        agents.iter().all(|agent| agent.status().nodes.iter().filter(|node| node.reachable).count() == 1)
    })
    .await;
    assert!(agents.iter().all(|agent| agent.term().is_none()));
    servers[0].restart();
    servers[1].restart();
    let (_, next) = leader(&agents).await;
    assert!(next.token() > term.token());
}

#[tokio::test]
async fn one_server_will_do() {
    let server = Redis::start();
    let terms = Terms::default();
    let mut agents = start::<2>(&masters([&server]), &terms);
    let (first, term) = leader(&agents).await;
    assert_eq!(agents[first].elector.ledger().put(&term, vec![claim("run", 1)]).await, [Ok(())]);
    agents.remove(first).kill();
    let (_, next) = leader(&agents).await;
    assert_eq!(next.records()[0].nonce, "run-1");
}

#[tokio::test]
async fn what_one_leader_records_the_next_one_knows() {
    let servers = servers::<3>();
    let terms = Terms::default();
    let agents = start::<2>(&masters(&servers), &terms);
    let (first, term) = leader(&agents).await;
    let (old, new) = (&agents[first], &agents[1 - first]);
    let ledger = old.elector.ledger();
    let ids: Vec<_> = (0..1200).map(|index| format!("run/{index:04}")).collect();
    let puts: Vec<_> = ids.iter().map(|id| claim(id, 1)).collect();
    assert!(ledger.put(&term, puts).await.iter().all(Result::is_ok));
    assert_eq!(term.records().len(), 1200);
    ledger.finish("run/0000", result("run/0000-1", true)).await.unwrap();
    assert_eq!(ledger.finish("run/0000", result("other", true)).await, Err(FinishError::NotCurrent));
    assert_eq!(ledger.finish("none", result("none-1", true)).await, Err(FinishError::NotCurrent));

    old.elector.resign().await;
    let (_, next) = leader([new]).await;
    let records = next.records();
    assert_eq!(records.len(), 1200);
    assert_eq!(records[0].results, [result("run/0000-1", true)]);
    assert_eq!(records[1].results, []);
    assert_eq!((records[1].attempt, &*records[1].nonce), (1, "run/0001-1"));
    assert_eq!(records[1].data, json!({"tick": [], "by": {}}));
    assert!(records.iter().all(|record| record.token == next.token()));

    // The old one no longer leads, and yet says how its run ended; the new one cannot start it again.
    assert_eq!(ledger.put(&term, vec![claim("run/0001", 2)]).await, [Err(PutError::TermLost)]);
    ledger.finish("run/0001", result("run/0001-1", true)).await.unwrap();
    let ledger = new.elector.ledger();
    let answers = ledger.put(&next, vec![claim("run/0000", 2), claim("run/0001", 2), claim("run/0002", 2)]).await;
    let done = |id: &str| Err(PutError::AlreadyDone(result(&format!("{id}-1"), true)));
    assert_eq!(answers, [done("run/0000"), done("run/0001"), Ok(())]);
    let record = next.records().into_iter().find(|record| record.id == "run/0001").unwrap();
    assert_eq!((record.attempt, record.results), (1, vec![result("run/0001-1", true)]));

    // A failed attempt is no obstacle to the next, and stays on record.
    ledger.finish("run/0002", result("run/0002-2", false)).await.unwrap();
    assert_eq!(ledger.put(&next, vec![claim("run/0002", 3)]).await, [Ok(())]);

    ledger.forget(&next, ids[3..].to_vec()).await.unwrap();
    assert_eq!(next.records().len(), 3);
    new.elector.resign().await;
    old.elector.stand(Candidacy { stands: true, revision: 1 });
    let (_, last) = leader([old]).await;
    let records = last.records();
    assert_eq!(records.len(), 3);
    assert_eq!((records[2].attempt, &*records[2].results), (3, &[result("run/0002-2", false)][..]));
}

#[tokio::test]
async fn a_result_that_one_master_holds_counts_once_most_of_them_do() {
    let servers = servers::<3>();
    let terms = Terms::default();
    let agents = start::<1>(&masters(&servers), &terms);
    let (_, term) = leader(&agents).await;
    let ledger = agents[0].elector.ledger();
    assert_eq!(ledger.put(&term, vec![claim("run", 1), claim("other", 1)]).await, [Ok(()), Ok(())]);
    let kept = |server: &Redis, id: &str| -> Value {
        let text: Option<String> = server.run(&["HGET", RECORDS, id]);
        text.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap())
    };
    wait::until("all masters to have the claims", SOON, async || {
        servers.iter().all(|server| !kept(server, "run").is_null() && !kept(server, "other").is_null())
    })
    .await;
    // One of them has taken a result that no other has heard of; of one of the runs it has another attempt, too.
    let mut run = kept(&servers[0], "run");
    run["r"] = json!({"run-1": "1{\"code\":0}"});
    let mut other = kept(&servers[0], "other");
    (other["n"], other["r"]) = (json!("other-2"), json!({"other-2": "1{\"code\":0}"}));
    let () = servers[0].run(&["HSET", RECORDS, "run", &run.to_string(), "other", &other.to_string()]);
    // Whoever reads hears of it.
    servers[2].kill();
    let read = ledger.read(vec!["run".into()]).await.unwrap();
    assert_eq!(read[0].results, [result("run-1", true)]);
    assert_eq!(kept(&servers[1], "run")["r"].get("run-1"), None, "a minority has it");

    let confirmed = ledger.read_confirmed(vec!["run".into(), "other".into()]).await.unwrap();
    assert_eq!(confirmed.iter().map(|it| &*it.id).collect::<Vec<_>>(), ["run"], "no majority can have the other");
    assert_eq!(confirmed[0].results, [result("run-1", true)]);
    assert_eq!(kept(&servers[1], "run")["r"]["run-1"], run["r"]["run-1"], "now most of them have it");
}

#[tokio::test]
async fn another_redlock_client_is_respected() {
    let servers = servers::<3>();
    let terms = Terms::default();
    let agents = start::<1>(&masters(&servers), &terms);
    // The masters have a memory from now on.
    leader(&agents).await;
    agents[0].elector.resign().await;
    for server in &servers[..2] {
        let () = server.run(&["SET", LOCK, "some other client", "NX", "PX", "1200"]);
    }
    let taken = now();
    agents[0].elector.stand(Candidacy { stands: true, revision: 1 });
    let mut role = agents[0].elector.watch();
    let other = Owner::Other("some other client".into());
    let seen = |role: &Role| matches!(role, Role::Follower { leader: Some(leader) } if *leader == other);
    tokio::time::timeout(SOON, role.wait_for(seen)).await.expect("it is seen").unwrap();
    let (_, term) = leader(&agents).await;
    let waited = term.since().since(taken);
    assert!(waited > Duration::from_millis(1100) && waited < Duration::from_millis(1500), "{waited:?}");
    // And it respects ours.
    let nil: Option<Value> = servers[0].run::<Option<String>>(&["SET", LOCK, "x", "NX"]).map(Value::from);
    assert_eq!(nil, None);
}

#[tokio::test]
async fn a_wrong_password_is_told_by_category_and_heals() {
    let servers: [Redis; 3] = std::array::from_fn(|_| Redis::builder().password("right horse").start());
    let terms = Terms::default();
    let mut wrong = masters(&servers);
    for master in &mut wrong {
        master.password = Some("battery staple".into());
    }
    let agents = start::<1>(&wrong, &terms);
    let kind = async |kind: ErrorKind| {
        let is = |node: &NodeStatus| node.error.as_ref().is_some_and(|error| error.kind == kind);
        wait::until("the error", SOON, async || agents[0].status().nodes.iter().all(is)).await;
    };
    kind(ErrorKind::WrongPassword).await;
    assert!(!format!("{:?}", agents[0].status()).contains("staple"));
    assert!(agents[0].term().is_none());

    // A user who may not run scripts.
    for server in &servers {
        let () = server.run(&["ACL", "SETUSER", "poor", "on", ">pw", "~*", "&*", "+@all", "-@scripting"]);
    }
    let mut poor = wrong.clone();
    for master in &mut poor {
        (master.username, master.password) = (Some("poor".into()), Some("pw".into()));
    }
    agents[0].elector.reconfigure(poor, TIMING);
    kind(ErrorKind::NoPermission).await;

    let mut right = wrong.clone();
    for master in &mut right {
        master.password = Some("right horse".into());
    }
    agents[0].elector.reconfigure(right, TIMING);
    leader(&agents).await;
}

#[tokio::test]
async fn an_eviction_policy_is_warned_of() {
    let server = Redis::builder().setting("maxmemory-policy", "allkeys-lru").start();
    let terms = Terms::default();
    let agents = start::<1>(&masters([&server]), &terms);
    leader(&agents).await;
    let warning = agents[0].status().nodes[0].warning.clone().unwrap();
    assert!(warning.contains("allkeys-lru"), "{warning}");
}

#[tokio::test]
async fn a_follower_costs_nearly_nothing() {
    let servers = servers::<3>();
    let terms = Terms::default();
    let agents = start::<5>(&masters(&servers), &terms);
    let (first, term) = leader(&agents).await;
    let name = agents[first].name.clone();
    for agent in agents.iter().filter(|agent| agent.name != name) {
        follows(agent, &name).await;
    }
    listen(&servers, agents.len()).await;
    let before: Vec<_> = servers.iter().map(commands_run).collect();
    let lives = 4;
    tokio::time::sleep(TTL * lives).await;
    assert!(term.may_claim());
    for (server, before) in servers.iter().zip(before) {
        let calls = commands_run(server) - before;
        // The leader renews at most every 9/30 ttl; the budget of four followers is one call each a ttl.
        let leads = lives * 10 / 3 + 1;
        println!("calls in {lives} ttl: {calls}, of which the leader at most {leads}");
        assert!(calls <= leads, "the followers ask: {calls}");
    }
}

#[tokio::test]
async fn the_newest_revision_leads_at_once() {
    let servers = servers::<3>();
    let terms = Terms::default();
    let masters = masters(&servers);
    let old = start::<2>(&masters, &terms);
    let (_, term) = leader(&old).await;
    let new = Agent::idle("new-0", masters.clone(), &terms);
    wait::until("its connections", SOON, async || new.status().nodes.iter().all(|node| node.reachable)).await;
    let before = now();
    new.elector.stand(Candidacy { stands: true, revision: 2 });
    let (_, next) = leader([&new]).await;
    let gap = next.since().since(before);
    println!("newer revision after {gap:?}");
    assert!(gap < TTL / 3, "no renewal was waited for: {gap:?}");
    assert!(!term.may_claim());

    // When the newer one has gone, the older one leads again: after the mark has gone too.
    new.stop().await;
    let (_, last) = leader(&old).await;
    assert!(last.since().since(next.since()) < TTL * 2);
}

#[tokio::test]
async fn other_masters_are_gone_over_to() {
    let (here, there) = (servers::<3>(), servers::<1>());
    let terms = Terms::default();
    let agents = start::<1>(&masters(&here), &terms);
    let (_, term) = leader(&agents).await;
    agents[0].elector.reconfigure(masters(&there), TIMING);
    tokio::time::timeout(SOON, term.lost().cancelled()).await.expect("it resigns first");
    let mut role = agents[0].elector.watch();
    let led = |role: &Role| matches!(role, Role::Leader(next) if next.token() > term.token());
    tokio::time::timeout(SOON, role.wait_for(led)).await.expect("it leads there").unwrap();
    assert_eq!(here[0].run::<Option<String>>(&["GET", LOCK]), None);
    assert_eq!(agents[0].status().nodes.len(), 1);
}
