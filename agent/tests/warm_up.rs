//! Warm-up of a real `CabloyJS` v4 backend by an agent beside it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod stage;

use cabloy_tests::cabloy::{self, APP, BOOT, HEALTH, Project};
use cabloy_tests::process::signal;
use cabloy_tests::redis::Redis;
use cabloy_tests::{require, wait};
use rustix::process::Signal;
use serde_json::json;

use stage::Stage;

#[tokio::test(flavor = "multi_thread")]
async fn every_worker_takes_jobs_of_every_instance_before_the_pod_is_ready_and_after_one_died() {
    require!(cabloy::found());
    let (project, redis, stage) = (Project::new(), Redis::start(), Stage::new(1));
    let database = cabloy::database().await;
    let instances = json!([{"subdomain": ""}, {"subdomain": "acme"}, {"subdomain": "b.c"}]);
    let mut pod = project
        .pod("warm", &database, redis.addr())
        .workers(2)
        .config(&json!({"instances": instances}))
        .preload(&json!({}))
        .spawn()
        .unwrap();
    stage.files.edit(|file| {
        file["app"] = json!({"name": APP, "generation": "v4", "health": {"http": {"method": "POST", "path": HEALTH}}});
        file["startups"] = json!([{
            "name": "warm-up", "scope": "Instance", "after": [], "gate": "Ready", "timeoutMs": 120_000,
            "retry": {"limit": 1_000, "initialDelayMs": 100, "factor": 2.0, "maxDelayMs": 1_000},
            "target": {"warmUp": {"instances": ["", "acme", "b.c", "nobody"]}},
        }]);
    });
    let agent = stage.agent_beside("a", pod.port()).start();

    wait::until("the agent to be ready", BOOT, async || agent.is_ready().await).await;
    let consumers = || cabloy::consumers(&redis.run::<String>(&["CLIENT", "LIST"]));
    let warm = consumers();
    let of = |instance: &str| warm.keys().filter(|queue| queue.starts_with(&format!("{instance}||"))).count();
    assert!(of("-") > 5 && of("-") == of("acme") && of("-") == of("b.c"), "{warm:?}");
    assert!(warm.values().all(|count| *count == 2), "two workers: {warm:?}");
    let locked = |problem: &cabloy_crds::agent_status::Problem| {
        problem.reason == "InstanceLocked" && problem.message.contains("nobody") && !problem.message.contains("acme")
    };
    wait::until("the locked instance to be told", BOOT, async || {
        let problems = agent.status().await.problems;
        if problems.iter().any(locked) { Ok(()) } else { Err(format!("{problems:?}")) }
    })
    .await;

    // Another process takes the place of one that dies, and is as cold as that was.
    let born = |events: &[cabloy::Event]| -> Vec<u32> {
        events.iter().filter(|event| event.kind == "startup.each").map(|event| event.pid).collect()
    };
    signal(born(&pod.events())[0], Signal::KILL);
    wait::until("another worker process", BOOT, async || {
        let born = born(&pod.events());
        if born.len() == 3 { Ok(()) } else { Err(format!("{born:?}")) }
    })
    .await;
    wait::until("all queues to have two workers again", BOOT, async || {
        let now = consumers();
        if now == warm { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;

    let remembered = database.query(&format!("select name, config from {APP}.aInstance order by name"));
    assert!(!remembered.contains("\"host\""), "a warm-up changes nothing that the app remembers: {remembered}");
    pod.terminate();
    pod.exit().await;
}
