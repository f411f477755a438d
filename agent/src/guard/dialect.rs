//! How `BullMQ` keeps schedules, in which its major versions differ, and with them the generations of `CabloyJS`.

use cabloy_crds::vocabulary::Generation;
use serde_json::{Map, Value};

use super::repeat::{Job, Template, name_of};

/// How the schedules of an app are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// As repeatable jobs of `BullMQ` 2, by `CabloyJS` 4. The key of a schedule in the set `repeat` says when it repeats:
    /// versions of it are side by side.
    Repeatable,
    /// As job schedulers of `BullMQ` 5, by Vona. A schedule is in the set `repeat` by its name, and what it is like in a hash
    /// of its own: a version takes the place of the one before. Its key here is that of `Repeatable` all the same.
    Scheduler,
}

impl Dialect {
    /// That of a generation. The guard is for no other than `CabloyJS`'.
    #[must_use]
    pub fn of(generation: Generation) -> Self {
        match generation {
            Generation::V4 | Generation::Generic => Self::Repeatable,
            Generation::Vona => Self::Scheduler,
        }
    }

    /// Whether that may be the name of a schedule of a module. A module of Vona may have its schedules in a queue of its own,
    /// where other job schedulers are its own affair.
    #[must_use]
    pub fn is_schedule(self, name: &str) -> bool {
        match self {
            Self::Repeatable => true,
            Self::Scheduler => name.contains(".schedule."),
        }
    }

    /// The key of the schedule that a job belongs to, by what the job says of it and by when that repeats.
    #[must_use]
    pub(super) fn key(self, of_job: String, repeat: &Map<String, Value>) -> String {
        match self {
            Self::Repeatable => of_job,
            Self::Scheduler => {
                let text = |field: &str| repeat.get(field).map(text_of).unwrap_or_default();
                let times = if repeat.contains_key("pattern") { text("pattern") } else { text("every") };
                format!("{of_job}:{}:{}:{times}", text("endDate"), text("tz"))
            }
        }
    }

    /// How the names of the jobs of a schedule, `<module>.<schedule>`, go on after the instance's and a dot.
    #[must_use]
    pub fn bean(self, schedule: &str) -> String {
        match (self, schedule.split_once('.')) {
            (Self::Scheduler, Some((module, name))) => format!("{module}.schedule.{name}"),
            (Self::Scheduler, None) | (Self::Repeatable, _) => schedule.to_owned(),
        }
    }

    /// What stands in the set `repeat` for a schedule.
    #[must_use]
    pub fn member(self, key: &str) -> &str {
        match self {
            Self::Repeatable => key,
            Self::Scheduler => name_of(key),
        }
    }

    /// Options of a job that are its own alone, and what a worker adds of itself.
    pub(super) fn drop_own(self, options: &mut Map<String, Value>) {
        for own in ["jobId", "delay", "timestamp", "prevMillis"] {
            options.remove(own);
        }
        if self == Self::Scheduler && options.get("attempts") == Some(&0.into()) {
            options.remove("attempts");
        }
    }

    /// Whether a job says which tick its next one comes after.
    #[must_use]
    pub(super) fn tells_tick(self, repeat: &Map<String, Value>) -> bool {
        self == Self::Repeatable || repeat.contains_key("pattern")
    }

    /// What is kept of a schedule besides its next job, by field.
    #[must_use]
    pub(super) fn fields(self, template: &Template, job: &Job) -> Vec<(&'static str, String)> {
        let repeat = template.options.get("repeat").and_then(Value::as_object);
        let (Self::Scheduler, Some(repeat)) = (self, repeat) else { return Vec::new() };
        let mut fields = vec![("name", template.name.clone()), ("ic", job.count.to_string())];
        for field in ["tz", "limit", "pattern", "startDate", "endDate", "every"] {
            fields.extend(repeat.get(field).map(|value| (field, text_of(value))));
        }
        let every = repeat.get("every").and_then(Value::as_i64).filter(|every| *every > 0);
        fields.push(("offset", every.map_or(0, |every| job.tick.rem_euclid(every)).to_string()));
        let mut options = template.options.clone();
        options.retain(|option, _| !matches!(option.as_str(), "repeat" | "repeatJobKey"));
        if !options.is_empty() {
            fields.push(("opts", Value::Object(options).to_string()));
        }
        if template.data != "{}" {
            fields.push(("data", template.data.clone()));
        }
        fields
    }

    /// The command that lists the schedules of a queue, by their keys and next ticks.
    #[must_use]
    pub fn list(self, repeat: &str) -> redis::Cmd {
        match self {
            Self::Repeatable => redis::Cmd::zrange_withscores(repeat, 0, -1),
            Self::Scheduler => {
                let mut eval = redis::cmd("EVAL");
                eval.arg(include_str!("schedulers.lua")).arg(1).arg(repeat);
                eval
            }
        }
    }

    /// The script that adds a schedule with its next job.
    #[must_use]
    pub fn put_back(self) -> &'static str {
        match self {
            Self::Repeatable => concat!(include_str!("put_back.lua"), include_str!("repeatable.lua")),
            Self::Scheduler => concat!(include_str!("put_back.lua"), include_str!("scheduler.lua")),
        }
    }
}

/// As it stands in a hash.
fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::guard::repeat::Found;

    fn found(options: &Value) -> Found {
        let some = |text: &str| Some(text.to_owned());
        let (id, options) = ("repeat:.shop.schedule.tick:1795818462919", options.to_string());
        Found::new(
            Dialect::Scheduler,
            id,
            some(".shop.schedule.tick"),
            some("{}"),
            Some(&options),
            some(".shop.schedule.tick"),
        )
        .unwrap()
    }

    /// The second job of a schedule as bullmq 5.74.1 stored it.
    #[test]
    fn the_next_job_of_a_scheduler_is_as_bullmq_makes_it() {
        let found = found(&json!({
            "repeat": {"every": 2000, "count": 2}, "repeatJobKey": ".shop.schedule.tick", "timestamp": 1_795_818_460_959_i64,
            "jobId": "repeat:.shop.schedule.tick:1795818462919", "delay": 1960, "attempts": 0, "removeOnFail": 100,
        }));
        assert_eq!((&*found.key, found.count), (".shop.schedule.tick:::2000", 2));
        assert_eq!(Dialect::Scheduler.member(&found.key), ".shop.schedule.tick");
        let job = found.template.job(Dialect::Scheduler, 1_795_818_464_919, 1_795_818_463_000).unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(&job.options).unwrap(),
            json!({
                "repeat": {"every": 2000, "count": 3}, "repeatJobKey": ".shop.schedule.tick", "jobId": job.id,
                "timestamp": 1_795_818_463_000_i64, "delay": 1919, "removeOnFail": 100,
            })
        );
        let fields = Dialect::Scheduler.fields(&found.template, &job);
        let fields: Vec<_> = fields.iter().map(|(field, value)| (*field, value.as_str())).collect();
        let name = ("name", ".shop.schedule.tick");
        let options = ("opts", r#"{"removeOnFail":100}"#);
        assert_eq!(fields, [name, ("ic", "3"), ("every", "2000"), ("offset", "919"), options]);
    }

    #[test]
    fn jobs_are_named_by_their_beans() {
        assert_eq!(Dialect::Repeatable.bean("shop-report.nightly"), "shop-report.nightly");
        assert_eq!(Dialect::Scheduler.bean("shop-report.nightly"), "shop-report.schedule.nightly");
    }

    #[test]
    fn versions_of_a_scheduler_differ_in_their_keys() {
        for (repeat, times) in [
            (json!({"every": 2000}), "::2000"),
            (json!({"pattern": "0 3 * * *"}), "::0 3 * * *"),
            (
                json!({"pattern": "0 3 * * *", "tz": "UTC", "endDate": 4_102_444_800_000_i64}),
                "4102444800000:UTC:0 3 * * *",
            ),
        ] {
            let mut counted = repeat.clone();
            counted["count"] = 1.into();
            let found = found(&json!({ "repeat": counted }));
            assert_eq!(found.key, format!(".shop.schedule.tick:{times}"), "{repeat}");
            let job = found.template.job(Dialect::Scheduler, 1_795_818_464_919, 1_795_818_463_000).unwrap();
            let options: Value = serde_json::from_str(&job.options).unwrap();
            assert_eq!(options.get("prevMillis").is_some(), repeat.get("pattern").is_some(), "{repeat}");
        }
        assert_eq!(Dialect::Repeatable.member(".shop.tick::::2000"), ".shop.tick::::2000");
    }

    #[test]
    fn job_schedulers_that_are_no_schedules_are_left_alone() {
        assert!(Dialect::Scheduler.is_schedule("south.shop.schedule.tick"));
        assert!(!Dialect::Scheduler.is_schedule("refresh"));
        assert!(Dialect::Repeatable.is_schedule(".shop.tick"), "in v4 schedules have a queue to themselves");
    }
}
