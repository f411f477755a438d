//! Every state within bounds; and what is seen there when a rule is taken away.

use std::time::Duration;

use cabloy_sim::check::control::{self, CONTROLS};
use cabloy_sim::check::scenario::SCENARIOS;
use cabloy_sim::check::{First, explore};

/// Far more than any of them takes.
const LIMIT: Duration = Duration::from_mins(2);

/// `CHECK_LARGER=1` (2, …) and `CHECK_SECONDS=3600`, for each scenario, explore more: as far as the time goes.
#[test]
fn laws_hold_in_every_state() {
    let parameter = |name| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let larger = u8::try_from(parameter("CHECK_LARGER").unwrap_or(0)).unwrap();
    let limit = parameter("CHECK_SECONDS").map_or(LIMIT, Duration::from_secs);
    // Larger ones may not come to their end, and do not fit into memory level by level.
    let first = if larger > 0 { First::Farthest } else { First::Nearest };
    let (mut states, mut failed) = (0, Vec::new());
    for scenario in SCENARIOS {
        let report = explore(&scenario.larger(larger), control::without(&[]), None, first, limit);
        println!("{report}");
        states += report.states;
        if report.broken.is_some() || !report.missed.is_empty() || !(report.ended || larger > 0) {
            failed.push(scenario.name);
        }
    }
    println!("{states} states in {} scenarios", SCENARIOS.len());
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn a_rule_that_is_taken_away_is_missed() {
    let mut unseen = Vec::new();
    for control in CONTROLS {
        let scenario = SCENARIOS.iter().find(|scenario| scenario.name == control.scenario).unwrap();
        let report = explore(scenario, control.rules(), Some(control.law), First::Nearest, LIMIT);
        let Some((_, path)) = &report.broken else {
            unseen.push(control.rules);
            continue;
        };
        println!(
            "without {:?}: seen after {} states, {} steps from the start",
            control.rules,
            report.states,
            path.len()
        );
    }
    assert!(unseen.is_empty(), "{unseen:?}");
}
