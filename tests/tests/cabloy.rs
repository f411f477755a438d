//! The real `CabloyJS` backend that other tests build on.

use cabloy_tests::cabloy::{self, APP, BOOT, Project};
use cabloy_tests::redis::Redis;
use cabloy_tests::require;
use cabloy_tests::wait::until;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_real_backend_serves_its_routes_with_two_workers_and_ends_as_a_whole() {
    require!(cabloy::found());
    let (project, redis) = (Project::new(), Redis::start());
    let database = cabloy::database().await;
    let pod = project.pod("a", &database, redis.addr()).workers(2).env("FX_EVERY", "1000");
    let mut pod = pod.config(&json!({"queue": {"redlock": {"options": {"lockTTL": 7000}}}})).start().await;

    let json = [("content-type", "application/json")];
    let answer = pod.post("/api/fx/probe/probe/ping", &json, r#"{"x":1}"#).await.expect("an answer");
    assert_eq!((answer.status, &answer.body["data"]["body"]["x"]), (200, &json!(1)), "{answer:?}");
    let info = pod.post("/api/fx/probe/probe/info", &json, "{}").await.expect("an answer").body;
    assert_eq!(info["data"]["name"], APP);
    assert_eq!(info["data"]["queue"]["redlock"]["options"]["lockTTL"], 7000, "EGG_APP_CONFIG reaches the workers");
    assert_eq!(database.query(&format!("select count(*) from {APP}.aInstance where name = ''")), "1");

    let events = until("startups in both workers, and a tick of the schedule", BOOT, async || {
        let events = pod.events();
        let ticks = events.iter().any(|event| event.kind == "schedule");
        let workers = events.iter().filter(|event| event.kind == "startup.each").count();
        if ticks && workers == 2 { Ok(events) } else { Err(format!("{events:?}")) }
    })
    .await;
    let pids: Vec<_> = events.iter().filter(|event| event.kind == "startup.each").map(|event| event.pid).collect();
    pod.terminate();
    pod.exit().await;
    assert_ne!(pids[0], pids[1]);
    until("the workers to end", BOOT, async || {
        pids.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
    })
    .await;
}
