//! Agents on every version of Redis, while pods, servers, links and clocks fail around them. Longer: `make chaos`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use cabloy_tests::chaos::fault::Kind;
use cabloy_tests::chaos::{self, Config, World, nemesis};
use cabloy_tests::redis::Version;
use cabloy_tests::require;

const AGENT: &str = env!("CARGO_BIN_EXE_cabloy-agent");

/// One at a time: each has a dozen processes, and faults enough of its own.
static TURN: Mutex<()> = Mutex::new(());

/// Faults of all kinds on one version.
macro_rules! usual_faults {
    ($name:ident, $version:expr, $seed:expr) => {
        #[test]
        fn $name() {
            let program = require!($version.program());
            let config =
                Config { seed: $seed, faults_for: Duration::from_secs(15), ..Config::new(AGENT, program, $version) };
            run(&config);
        }
    };
}

usual_faults!(nothing_is_lost_on_redis_6_2, Version::V6_2, 62);
usual_faults!(nothing_is_lost_on_redis_7_0, Version::V7_0, 70);
usual_faults!(nothing_is_lost_on_redis_8_2, Version::V8_2, 82);

#[test]
fn after_the_loss_of_all_memory_somebody_leads_again() {
    let program = require!(Version::V7_0.program());
    let kinds = vec![Kind::AllFlush, Kind::AllEmpty, Kind::AllKill];
    let config = Config { faults_for: Duration::from_secs(10), kinds, ..Config::new(AGENT, program, Version::V7_0) };
    run(&config);
}

fn run(config: &Config) {
    let _turn = TURN.lock();
    let report = chaos::run(config).unwrap();
    println!("{report}");
    for (kind, reason) in &report.unavailable {
        cabloy_tests::skip::not_run(&format!("{kind} on Redis {}", config.version), reason);
    }
    assert!(report.is_clean(), "{report}");
    assert!(report.terms > 1 && report.injected() > 1, "nothing has happened: {report}");
}

/// A leader that is stopped between reading and writing, until others have written.
fn overtaken(guarded: bool) -> (World, usize) {
    const ROUNDS: usize = 3;
    let config = Config { guarded, ..Config::new(AGENT, Path::new("redis-server"), "any") };
    let world = World::start(&config, None, None).unwrap();
    world.served(Duration::from_secs(30)).unwrap();
    let rounds = (0..ROUNDS).filter(|_| nemesis::overtake(&world)).count();
    (world, rounds)
}

#[test]
fn a_leader_that_was_overtaken_overwrites_nothing() {
    let _turn = TURN.lock();
    let (world, rounds) = overtaken(true);
    assert!(rounds > 0, "nobody was overtaken");
    world.service().look(|register| {
        assert_eq!((register.lost(), register.violations()), (vec![], &[][..]));
        assert!(register.counts().stale > 0);
    });
}

#[test]
fn without_the_check_of_the_token_it_does() {
    let _turn = TURN.lock();
    let (world, rounds) = overtaken(false);
    assert!(rounds > 0, "nobody was overtaken");
    world.service().look(|register| assert!(!register.lost().is_empty(), "{register:?}"));
}
