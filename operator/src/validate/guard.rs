//! The guard of the app's own schedules: where its agents find them.

use std::collections::BTreeSet;

use cabloy_crds::{
    files::{self, StartupFlags},
    names::{CACHE_ROLE, DEFAULT_CONNECTION, QUEUE_ROLE, WORKER_ROLE},
    resource::{App, Generation, NativeScheduleHistory, NativeSchedules},
};

use super::{Refusal, ResolvedRole, roles::has_one_connection};

/// The most jobs that may be kept of a state.
const MAX_HISTORY: i32 = 100_000;

/// Where an app keeps what the guard looks after.
struct Places {
    /// The role with the queues.
    queue: &'static str,
    /// The role with the flags of startups.
    flags: &'static str,
    /// What the app calls the client that it keeps the flags by, and the prefix of its keys begins with.
    client: &'static str,
    /// The keys of flags, after that prefix.
    keys: &'static str,
}

/// What the resource asks for; none if the app's own schedules are left alone.
pub(super) fn resolve(
    app: &App,
    native_schedules: Option<NativeSchedules>,
    history: Option<&NativeScheduleHistory>,
    roles: &[ResolvedRole],
    refusals: &mut Vec<Refusal>,
) -> Option<files::Guard> {
    let wanted = native_schedules == Some(NativeSchedules::Guard);
    let history = history.map(|history| history_of(history, wanted, refusals));
    if !wanted {
        return None;
    }
    let (Some(places), Some(schedules)) = (places(app), queue_of_schedules(app.generation)) else {
        refusals.push(Refusal::invalid(
            "nativeSchedules",
            "Guard is for the schedules of CabloyJS, and generation generic has none: remove it, or write Off",
        ));
        return None;
    };
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
    let queue = role(places.queue, "watches the queues");
    let flags = role(places.flags, "looks after the flags of startups");
    let (Some(_), Some(flags)) = (queue, flags) else { return None };
    let own = || format!("{}_{}:", places.client, app.name);
    let prefix = flags.clients().first().and_then(|client| client.key_prefix.clone()).unwrap_or_else(own);
    Some(files::Guard {
        role: places.queue.to_owned(),
        prefix: format!("bull_{}:queue", app.name),
        queue: schedules.to_owned(),
        startups: StartupFlags { role: places.flags.to_owned(), keys: format!("{}{}", escape(&prefix), places.keys) },
        newest: BTreeSet::new(),
        history,
    })
}

/// How the queues of the app's own schedules are called after their instance.
pub(super) fn queue_of_schedules(generation: Generation) -> Option<&'static str> {
    match generation {
        Generation::V4 => Some("||a-base||schedule"),
        Generation::Vona => Some("||a-schedule.queue.schedule"),
        Generation::Generic => None,
    }
}

fn places(app: &App) -> Option<Places> {
    match app.generation {
        Generation::V4 => Some(Places {
            queue: QUEUE_ROLE,
            flags: CACHE_ROLE,
            client: CACHE_ROLE,
            keys: "*:a-base:startupDebounce:*",
        }),
        Generation::Vona => {
            let of = |role| if has_one_connection(app) { DEFAULT_CONNECTION } else { role };
            Some(Places {
                queue: of(QUEUE_ROLE),
                flags: of(WORKER_ROLE),
                client: WORKER_ROLE,
                keys: "0!a-startup.cacheRedis.startupDebounce!startupDebounce:*",
            })
        }
        Generation::Generic => None,
    }
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
        sound(over).guard.unwrap()
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
            assert_eq!(sound(&off).guard, None);
        }
    }

    #[test]
    fn vona_keeps_them_where_its_configuration_has_them() {
        let app = |merges| json!({ "name": "shop", "generation": "vona", "mergesConfig": merges });
        let one = on(&json!({ "nativeSchedules": "Guard", "app": app(false) }));
        assert_eq!((&*one.role, &*one.startups.role), ("default", "default"));
        assert_eq!((&*one.prefix, &*one.queue), ("bull_shop:queue", "||a-schedule.queue.schedule"));
        let keys = "worker_shop:0!a-startup.cacheRedis.startupDebounce!startupDebounce:*";
        assert_eq!(one.startups.keys, keys);
        let merged = on(&json!({ "nativeSchedules": "Guard", "app": app(true) }));
        assert_eq!((&*merged.role, &*merged.startups.role, &*merged.startups.keys), ("queue", "worker", keys));
        let redis = json!({
            "connections": { "default": { "host": "redis" } }, "roles": { "worker": { "keyPrefix": "w:" } },
        });
        let prefixed = on(&json!({ "nativeSchedules": "Guard", "app": app(true), "redis": redis }));
        assert_eq!(prefixed.startups.keys, "w:0!a-startup.cacheRedis.startupDebounce!startupDebounce:*");

        let redis = json!({ "connections": { "main": { "host": "redis" } }, "roles": { "redlock": { "connections": ["main"] } } });
        let refusals = refused(&json!({ "nativeSchedules": "Guard", "app": app(true), "redis": redis }));
        let refusals: Vec<_> = refusals.iter().map(ToString::to_string).collect();
        assert!(refusals.iter().any(|text| text.starts_with("redis.roles.worker:")), "{refusals:?}");
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
    }
}
