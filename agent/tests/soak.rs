//! A thousand schedules, while leaders are killed and masters come back empty. Longer: `make soak`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use cabloy_tests::soak::{Config, run};

#[test]
fn no_tick_of_a_thousand_schedules_is_lost_and_none_is_begun_twice() {
    let report = run(&Config {
        agent: env!("CARGO_BIN_EXE_cabloy-agent").into(),
        pods: 3,
        faults_for: Duration::from_secs(40),
        settle: Duration::from_mins(2),
    })
    .unwrap();
    println!("{report}");
    assert!(report.is_clean(), "{report}");
    assert!(report.leaders > 3 && report.emptied > 1 && report.kills.len() == 3, "little has happened: {report}");
    assert!(report.due > 2_000, "{report}");
}
