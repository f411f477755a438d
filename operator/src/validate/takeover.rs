//! Schedules of the app's own that schedules of the resource take over: where its agents find them.

use std::collections::BTreeSet;

use cabloy_crds::{
    files,
    names::QUEUE_ROLE,
    resource::{App, Generation, Schedule},
};

use super::{Refusal, ResolvedRole, guard::queue_of_schedules};

/// What the resource asks for; which of them no pod runs any more is to be added.
pub(super) fn resolve(
    app: &App,
    schedules: &[Schedule],
    roles: &[ResolvedRole],
    refusals: &mut Vec<Refusal>,
) -> Option<files::Takeover> {
    let before = refusals.len();
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for Schedule { name, takes_over, .. } in schedules {
        let Some(native) = takes_over else { continue };
        let field = format!("schedules[{name}].takesOver");
        if !is_schedule(native) {
            let message = "must be a schedule of the app's own as <module>.<schedule>, such as shop-report.nightly";
            refusals.push(Refusal::invalid(field.clone(), message));
        }
        if let Some((other, _)) = seen.iter().find(|(_, of_other)| of_other == native) {
            let message = format!("{native} is taken over by {other} already: remove it from one of the two");
            refusals.push(Refusal::invalid(field.clone(), message));
        }
        match app.generation {
            Generation::Generic => refusals.push(Refusal::invalid(
                field,
                "is for the schedules of CabloyJS, and generation generic has none: remove it",
            )),
            Generation::Vona if !app.merges_config() => refusals.push(Refusal::invalid(
                field,
                "is said to an app of Vona by its configuration: merge it in config.ts (docs/preload.md), and set app.mergesConfig to true",
            )),
            Generation::V4 | Generation::Vona if !roles.iter().any(|role| role.name == QUEUE_ROLE) => {
                refusals.push(Refusal::invalid(
                    field,
                    "the app's own schedules are in the Redis of role queue, and there is none: add redis.roles.queue, or a connection named default",
                ));
            }
            Generation::V4 | Generation::Vona => {}
        }
        seen.push((name, native));
    }
    let queue = queue_of_schedules(app.generation).filter(|_| !seen.is_empty() && refusals.len() == before)?;
    Some(files::Takeover {
        role: QUEUE_ROLE.to_owned(),
        prefix: format!("bull_{}:queue", app.name),
        queue: queue.to_owned(),
        released: BTreeSet::new(),
    })
}

fn is_schedule(text: &str) -> bool {
    let is_word =
        |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    text.split_once('.').is_some_and(|(module, name)| is_word(module) && is_word(name))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::validate::tests::{refused, sound};

    fn schedules(natives: &[&str]) -> Value {
        let of = |(index, native): (usize, &&str)| json!({ "name": format!("s{index}"), "every": "5s", "takesOver": native, "target": { "http": { "path": "/" } } });
        natives.iter().enumerate().map(of).collect()
    }

    #[test]
    fn the_agents_are_told_where_the_schedules_are() {
        let validated = sound(&json!({ "schedules": schedules(&["shop-report.nightly"]) }));
        let takeover = validated.takeover.unwrap();
        assert_eq!((&*takeover.role, &*takeover.prefix), ("queue", "bull_shop:queue"));
        assert_eq!(takeover.queue, "||a-base||schedule");
        assert!(takeover.released.is_empty());
        assert_eq!(validated.schedules[0].takes_over.as_deref(), Some("shop-report.nightly"));
        assert_eq!(sound(&json!({})).takeover, None);

        let app = json!({ "name": "shop", "generation": "vona", "mergesConfig": true });
        let vona = sound(&json!({ "schedules": schedules(&["shop-report.nightly"]), "app": app })).takeover.unwrap();
        assert_eq!((&*vona.role, &*vona.prefix), ("queue", "bull_shop:queue"));
        assert_eq!(vona.queue, "||a-schedule.queue.schedule");
    }

    #[test]
    fn what_cannot_be_taken_over_is_said() {
        let app = |generation: &str| json!({ "name": "shop", "generation": generation });
        let redis = json!({ "connections": { "main": { "host": "redis" } }, "roles": { "redlock": { "connections": ["main"] } } });
        let one = || schedules(&["shop-report.nightly"]);
        for (over, field, words) in [
            (json!({ "schedules": schedules(&["nightly"]) }), "schedules[s0].takesOver", "<module>.<schedule>"),
            (json!({ "schedules": schedules(&["a.b.c"]) }), "schedules[s0].takesOver", "<module>.<schedule>"),
            (json!({ "schedules": schedules(&["a.b", "a.c", "a.b"]) }), "schedules[s2].takesOver", "by s0 already"),
            (json!({ "schedules": one(), "app": app("generic") }), "schedules[s0].takesOver", "remove it"),
            (
                json!({ "schedules": one(), "app": app("vona") }),
                "schedules[s0].takesOver",
                "set app.mergesConfig to true",
            ),
            (json!({ "schedules": one(), "redis": redis }), "schedules[s0].takesOver", "add redis.roles.queue"),
            (
                json!({ "schedules": one(), "redis": redis, "app": { "name": "shop", "generation": "vona", "mergesConfig": true } }),
                "schedules[s0].takesOver",
                "add redis.roles.queue",
            ),
        ] {
            let refusals: Vec<_> = refused(&over).iter().map(ToString::to_string).collect();
            let named = refusals.iter().find(|text| text.starts_with(&format!("{field}:")));
            assert!(named.is_some_and(|text| text.contains(words)), "{over}: {refusals:?}");
        }
    }
}
