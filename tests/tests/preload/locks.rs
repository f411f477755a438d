//! The locks of an app with several masters, one of which is away.

use super::*;

/// How long a lock may take here. With one master frozen each of its two steps takes what `commandTimeout` says, half a
/// second; what is more is for a busy machine.
const BOUND: Duration = Duration::from_secs(10);

/// What a lock client says by itself: it waits, and waits.
fn patient() -> Value {
    json!({
        "maxRetriesPerRequest": null, "enableOfflineQueue": true, "commandTimeout": null, "connectTimeout": 10_000,
        "weakDependent": false,
    })
}

/// A pod whose locks have these masters, with more options for each.
fn pod_with(masters: &[Redis], options: &Value) -> Pod {
    let pod = Pod::new("v4");
    let client = |master: &Redis| {
        let mut client = json!({"host": "127.0.0.1", "port": master.addr().port()});
        client.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        client
    };
    pod.role("redlock", &masters.iter().map(client).collect());
    // the other clients of the image, which would be looked for in vain
    for role in ["limiter", "queue", "broadcast", "cache", "io"] {
        pod.role(role, &json!({"host": "127.0.0.1", "port": masters[0].addr().port()}));
    }
    pod
}

fn locks(app: &App) -> usize {
    app.said().lines().filter(|line| line.starts_with("LOCKED ")).count()
}

/// Has a process of the app take a lock, and says whether it came in time.
fn takes_lock(app: &App, process: &Value, within: Duration) -> bool {
    let before = locks(app);
    process::signal(pid_of(process), Signal::HUP);
    try_until_blocking("a lock", within, || locks(app) > before).is_ok()
}

pub(super) fn assert_takes_lock(app: &App, process: &Value, when: &str) {
    assert!(takes_lock(app, process, BOUND), "{when}: {}", tail(&app.log, 20));
}

/// Whether anybody asked it for a lock since it was started.
fn was_asked(master: &Redis) -> bool {
    let statistics: String = master.run(&["INFO", "commandstats"]);
    statistics.contains("cmdstat_eval")
}

#[test]
fn one_dead_master_of_three_stops_no_lock() {
    let masters: Vec<_> = (0..3).map(|_| Redis::start()).collect();
    let pod = pod_with(&masters, &json!({}));
    let app = App::egg(&pod, "node20");
    let first = &app.seen(2)[1];
    app.wait_started();
    assert_takes_lock(&app, first, "all are there");
    for master in &masters {
        assert!(was_asked(master), "each of them has a vote");
    }
    let lost = &masters[1];
    lost.pause();
    assert_takes_lock(&app, first, "one is frozen");
    lost.resume();
    lost.kill();
    assert_takes_lock(&app, first, "one is down");
    App::kill(first);
    let second = &app.seen(3)[2];
    assert_takes_lock(&app, second, "the app was started while one is down");
    lost.restart();
    app.wait("the master that came back to be asked", || {
        assert_takes_lock(&app, second, "all are there again");
        was_asked(lost)
    });
}

/// What the options are for. They can be taken back in `redlock.json`.
#[test]
fn without_the_options_one_frozen_master_stops_all_locks() {
    let masters: Vec<_> = (0..3).map(|_| Redis::start()).collect();
    let pod = pod_with(&masters, &patient());
    let app = App::egg(&pod, "node20");
    let worker = &app.seen(2)[1];
    assert_takes_lock(&app, worker, "all are there");
    masters[1].pause();
    assert!(!takes_lock(&app, worker, Duration::from_secs(5)), "it had the lock while a master was frozen");
    masters[1].resume();
    app.wait("the lock that was waited for", || locks(&app) == 2);
}
