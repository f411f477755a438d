//! The guard of the app's own schedules: where its agents find them.

use std::collections::BTreeSet;

use cabloy_crds::{
    files::{self, StartupFlags},
    names::{CACHE_ROLE, QUEUE_ROLE},
    resource::{App, Generation, NativeScheduleHistory, NativeSchedules},
};

use super::{Refusal, ResolvedRole};

/// The most jobs that may be kept of a state.
const MAX_HISTORY: i32 = 100_000;

/// Whether the app's own schedules are guarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The resource does not ask for it.
    Off,
    /// It does, and for apps of this generation it cannot be done.
    Unsupported,
    /// As this says; which revisions are the newest is to be added.
    On(files::Guard),
}

/// What the resource asks for.
pub(super) fn resolve(
    app: &App,
    native_schedules: Option<NativeSchedules>,
    history: Option<&NativeScheduleHistory>,
    roles: &[ResolvedRole],
    refusals: &mut Vec<Refusal>,
) -> Guard {
    let wanted = native_schedules == Some(NativeSchedules::Guard);
    let history = history.map(|history| history_of(history, wanted, refusals));
    match app.generation {
        _ if !wanted => return Guard::Off,
        Generation::Generic => {
            refusals.push(Refusal::invalid(
                "nativeSchedules",
                "Guard is for the schedules of CabloyJS, and generation generic has none: remove it, or write Off",
            ));
            return Guard::Off;
        }
        Generation::Vona => return Guard::Unsupported,
        Generation::V4 => {}
    }
    let mut role = |name: &str, what: &str| {
        let role = roles.iter().find(|role| role.name == name);
        if role.is_none() {
            refusals.push(Refusal::invalid(
                format!("redis.roles.{name}"),
                format!("nativeSchedules: Guard {what} on role {name}: add it, or a connection named default"),
            ));
        }
        role
    };
    let (queue, cache) =
        (role(QUEUE_ROLE, "watches the queues"), role(CACHE_ROLE, "looks after the flags of startups"));
    let (Some(_), Some(cache)) = (queue, cache) else { return Guard::Off };
    let name = &app.name;
    let own = || format!("cache_{name}:");
    let prefix = cache.clients().first().and_then(|client| client.key_prefix.clone()).unwrap_or_else(own);
    Guard::On(files::Guard {
        role: QUEUE_ROLE.to_owned(),
        prefix: format!("bull_{name}:queue"),
        queue: "||a-base||schedule".to_owned(),
        startups: StartupFlags {
            role: CACHE_ROLE.to_owned(),
            keys: format!("{}*:a-base:startupDebounce:*", escape(&prefix)),
        },
        newest: BTreeSet::new(),
        history,
    })
}

fn history_of(history: &NativeScheduleHistory, wanted: bool, refusals: &mut Vec<Refusal>) -> files::History {
    if !wanted {
        refusals.push(Refusal::invalid(
            "nativeScheduleHistory",
            "old jobs are removed by the guard: set nativeSchedules to Guard, or remove it",
        ));
    }
    let mut of = |field: &str, number: Option<i32>| {
        let number = number?;
        let count = u32::try_from(number).ok().filter(|_| number <= MAX_HISTORY);
        if count.is_none() {
            let message = format!("must be between 0 and {MAX_HISTORY}");
            refusals.push(Refusal::invalid(format!("nativeScheduleHistory.{field}"), message));
        }
        count
    };
    files::History { completed: of("completed", history.completed), failed: of("failed", history.failed) }
}

/// A text in a pattern of Redis that stands for itself.
fn escape(text: &str) -> String {
    text.chars().flat_map(|c| "*?[]\\^".contains(c).then_some('\\').into_iter().chain([c])).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::validate::tests::{refused, sound};

    fn on(over: &Value) -> files::Guard {
        match sound(over).guard {
            Guard::On(guard) => guard,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_guard_knows_where_the_app_keeps_its_schedules() {
        let guard = on(&json!({ "nativeSchedules": "Guard" }));
        assert_eq!((&*guard.role, &*guard.prefix, &*guard.queue), ("queue", "bull_shop:queue", "||a-base||schedule"));
        assert_eq!(guard.startups.keys, "cache_shop:*:a-base:startupDebounce:*");
        assert_eq!(guard.history, None);
        let redis = json!({
            "connections": { "default": { "host": "redis" } }, "roles": { "cache": { "keyPrefix": "c[1]*:" } },
        });
        let history = json!({ "completed": 100 });
        let guard = on(&json!({ "nativeSchedules": "Guard", "redis": redis, "nativeScheduleHistory": history }));
        assert_eq!(guard.startups.keys, r"c\[1\]\*:*:a-base:startupDebounce:*");
        assert_eq!(guard.history, Some(files::History { completed: Some(100), failed: None }));
        assert!(sound(&json!({ "nativeSchedules": "Guard" })).needs_leader);
        for off in [json!({}), json!({ "nativeSchedules": "Off" })] {
            assert_eq!(sound(&off).guard, Guard::Off);
        }
    }

    #[test]
    fn what_the_guard_needs_is_said() {
        let app = |generation: &str| json!({ "name": "shop", "generation": generation });
        let redis = json!({ "connections": { "main": { "host": "redis" } }, "roles": { "redlock": { "connections": ["main"] } } });
        for (over, field, words) in [
            (json!({ "app": app("generic") }), "nativeSchedules", "write Off"),
            (json!({ "redis": redis }), "redis.roles.queue", "add it"),
            (json!({ "redis": redis }), "redis.roles.cache", "add it"),
            (json!({ "agent": { "enabled": false } }), "agent.enabled", "set it to true"),
            (json!({ "nativeScheduleHistory": { "failed": -1 } }), "nativeScheduleHistory.failed", "between 0"),
            (json!({ "nativeSchedules": "Off", "nativeScheduleHistory": {} }), "nativeScheduleHistory", "to Guard"),
        ] {
            let mut wanted = json!({ "nativeSchedules": "Guard" });
            wanted.as_object_mut().unwrap().extend(over.as_object().unwrap().clone());
            let refusals: Vec<_> = refused(&wanted).iter().map(ToString::to_string).collect();
            let named = refusals.iter().find(|text| text.starts_with(&format!("{field}:")));
            assert!(named.is_some_and(|text| text.contains(words)), "{over}: {refusals:?}");
        }
        assert_eq!(sound(&json!({ "nativeSchedules": "Guard", "app": app("vona") })).guard, Guard::Unsupported);
    }
}
