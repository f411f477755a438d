//! Startups of the real `CabloyJS` v4 backend with `debounce` that fail, or whose process dies: skipped by the next try without the
//! guard, and run with it; and those that were come through are skipped either way.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use cabloy_tests::cabloy::{self, APP, BOOT, Builder, HEALTH, Pod, Project};
use cabloy_tests::mariadb::MariaDb;
use cabloy_tests::redis::Redis;
use cabloy_tests::require;
use cabloy_tests::wait::until;
use serde_json::json;
use tempfile::TempDir;

struct World {
    project: Project,
    redis: Redis,
    database: MariaDb,
    guarded: bool,
    dir: TempDir,
}

impl World {
    async fn new(guarded: bool) -> Self {
        let (project, redis, database) = (Project::new(), Redis::start(), cabloy::database().await);
        Self { project, redis, database, guarded, dir: TempDir::new().unwrap() }
    }

    /// From now on that startup fails, if there is one of this name.
    fn fail(&self, startup: &str) {
        fs::write(self.dir.path().join("fail"), startup).unwrap();
    }

    /// All pods start within the time of a flag. The lock of a process that died is free after three seconds.
    fn pod(&self, name: &str) -> Builder<'_> {
        let queue = json!({"startup": {"debounce": 600_000}, "redlock": {"options": {"lockTTL": 3_000}}});
        self.project
            .pod(name, &self.database, self.redis.addr())
            .config(&json!({"queue": queue}))
            .preload(&json!({"guardsStartups": self.guarded}))
            .env("FX_STARTUP_FAIL", self.dir.path().join("fail").to_str().unwrap())
    }

    /// The key of the flag or of the lock of an app's startup.
    fn is_there(&self, key: &str) -> bool {
        self.redis.run(&["EXISTS", key])
    }
}

fn runs(pod: &Pod, startup: &str) -> usize {
    pod.events().iter().filter(|event| event.kind == format!("startup.{startup}")).count()
}

async fn startups_that_fail_or_die(guarded: bool) {
    let world = World::new(guarded).await;
    let again = usize::from(guarded);
    let flag = |startup: &str| format!("cache_{APP}:0:a-base:startupDebounce:fx-probe:{startup}");

    // One of the app's fails: CabloyJS goes no further, and answers nobody.
    world.fail("once");
    let first = world.pod("first").spawn().unwrap();
    until("a startup to fail", BOOT, async || {
        let log = first.log_tail(100);
        let over = !world.is_there(&format!("redlock_{APP}:~:startup.fx-probe:once"));
        if runs(&first, "once") == 1 && over { Ok(()) } else { Err(log) }
    })
    .await;

    // The next pod runs it, and those alone that nobody has come through.
    world.fail("inst");
    let mut second = world.pod("second").spawn().unwrap();
    let answer = until("an answer", BOOT, async || second.post(HEALTH, &[], "").await).await;
    assert_eq!((runs(&second, "early"), runs(&second, "once")), (0, again));
    // One of an instance fails in it, with the request that was to start the instance.
    assert_eq!((answer.status, runs(&second, "inst")), (500, 1), "{answer:?}");
    world.fail("");
    second.until_ready().await;
    assert_eq!(runs(&second, "inst"), 1 + again, "the next request");

    // A process dies at one, while another pod waits for it to come through.
    let _: u64 = world.redis.run(&["DEL", &flag("once")]);
    let third = world.pod("third").env("FX_STARTUP_SLEEP", "600000").spawn().unwrap();
    until("a startup to begin", BOOT, async || runs(&third, "once") == 1).await;
    let mut fourth = world.pod("fourth").spawn().unwrap();
    until("another pod to wait for it", BOOT, async || {
        let log = fourth.log_tail(100);
        if log.contains("---- startup: fx-probe:once") { Ok(()) } else { Err(log) }
    })
    .await;
    drop(third);
    fourth.until_ready().await;
    assert_eq!((runs(&fourth, "early"), runs(&fourth, "once"), runs(&fourth, "inst")), (0, again, 0));
    assert!(["early", "once"].iter().all(|startup| world.is_there(&flag(startup))), "nothing was forgotten");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_startup_that_failed_or_died_is_run_again_and_no_other() {
    require!(cabloy::found());
    startups_that_fail_or_die(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_guard_a_startup_that_failed_or_died_is_skipped() {
    require!(cabloy::found());
    startups_that_fail_or_die(false).await;
}
