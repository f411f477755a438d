//! How soon the next agent leads: of whole agents over real Redis servers, each time. A file of its own: Cargo
//! runs no other beside it.
//!
//! The bounds are those of an idle machine; the time for which this one stood still meanwhile is added.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod stage;

use std::time::{Duration, SystemTime};

use cabloy_tests::redis::Redis;
use cabloy_tests::stillness::{Stillness, queued};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use serde_json::json;
use stage::{Agent, Stage};
use tokio::sync::Mutex;

/// How long a lease lasts.
const TTL: Duration = Duration::from_millis(1_500);

/// Held by the test that runs: two would disturb each other.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Agents of which one leads, and the others know it.
struct Crew<'a> {
    stage: &'a Stage,
    agents: Vec<Agent>,
    started: usize,
}

impl<'a> Crew<'a> {
    async fn of_three(stage: &'a Stage) -> Self {
        let mut crew = Self { stage, agents: Vec::new(), started: 0 };
        crew.fill().await;
        crew
    }

    /// Starts agents in the place of those that are gone, and waits until all stand under one leader.
    async fn fill(&mut self) {
        while self.agents.len() < 3 {
            self.agents.push(self.stage.agent(&format!("agent-{}", self.started)).start());
            self.started += 1;
        }
        let leader = stage::leader(&self.agents).await.name().to_owned();
        for agent in &self.agents {
            let what = format!("it stands, and {leader} leads");
            agent
                .until(&what, |status| {
                    let election = status.election.as_ref();
                    election.is_some_and(|it| it.standing && it.leader.as_ref() == Some(&leader))
                })
                .await;
        }
    }

    /// Takes the leader out.
    async fn leader(&mut self) -> Agent {
        let name = stage::leader(&self.agents).await.name().to_owned();
        let index = self.agents.iter().position(|agent| agent.name() == name).unwrap();
        self.agents.remove(index)
    }

    /// Since when one of the agents leads.
    async fn next(&self) -> SystemTime {
        stage::leader(&self.agents).await.status().await.election.unwrap().since.unwrap().into()
    }

    /// Ends the leader by `end`; how long after that the next one led.
    async fn succession(&mut self, end: End) -> Succession {
        self.fill().await;
        let leader = self.leader().await;
        let involved = self.agents.iter().chain([&leader]).map(Agent::pid);
        let involved = involved.chain(self.stage.redis.iter().map(Redis::pid));
        let stillness = Stillness::watch(involved);
        let from = SystemTime::now();
        let (still_there, queued) = match end {
            End::Drained => {
                let queued = drain(&leader);
                (Some(leader), queued)
            }
            End::Killed => {
                leader.kill();
                (None, Duration::ZERO)
            }
        };
        let to = self.next().await;
        drop(still_there);
        Succession { took: to.duration_since(from).unwrap(), still: stillness.between(from, to) + queued }
    }
}

/// How a leader ends.
#[derive(Clone, Copy)]
enum End {
    /// As preStop has it: what it leads by is given back, and its process goes on.
    Drained,
    /// As by SIGKILL.
    Killed,
}

/// What it took until the next one led.
#[derive(Debug)]
struct Succession {
    took: Duration,
    /// For how long of it what is involved could not run, since something else of this machine did.
    still: Duration,
}

/// Drains an agent by the command; how long that had to wait for a processor.
fn drain(agent: &Agent) -> Duration {
    let mut command = agent.drain_command().spawn().unwrap();
    // It has ended, but stays until it is waited for: so long the kernel tells how it fared.
    waitid(WaitId::Pid(Pid::from_child(&command)), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
    let queued = queued(command.id());
    assert!(command.wait().unwrap().success());
    queued
}

async fn assert_each_within(bound: Duration, crew: &mut Crew<'_>, end: End, times: usize) {
    let mut all = Vec::new();
    for _ in 0..times {
        all.push(crew.succession(end).await);
    }
    println!("{all:?}");
    let late: Vec<_> = all.iter().filter(|it| it.took > bound + it.still).collect();
    assert!(late.is_empty(), "took more than {bound:?} and the time that the machine stood still: {late:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_drained_is_followed_within_50_ms() {
    let _alone = ALONE.lock().await;
    let stage = Stage::new(3);
    let mut crew = Crew::of_three(&stage).await;
    assert_each_within(Duration::from_millis(50), &mut crew, End::Drained, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_killed_is_followed_within_its_ttl_and_100_ms() {
    let _alone = ALONE.lock().await;
    let stage = Stage::new(3);
    stage.files.edit(|file| file["election"]["ttlMs"] = json!(TTL.as_millis()));
    let mut crew = Crew::of_three(&stage).await;
    assert_each_within(TTL + Duration::from_millis(100), &mut crew, End::Killed, 5).await;
}
