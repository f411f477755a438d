//! The jobs of schedules as `BullMQ` keeps them. Pure.
//!
//! A schedule of an instance is a member of the set `repeat` of the instance's queue, with its next tick as the score, and a
//! delayed job for that tick. Whoever takes the job adds the next. What differs between versions is in [`Dialect`]; for all
//! of them the key of a schedule here says how it is called and when it repeats, so that versions of it can be told apart.

use cabloy_crds::cron;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::dialect::Dialect;

/// What the jobs of a schedule have in common: enough to make its next one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Template {
    /// What the ids of its jobs begin with; the tick comes after it.
    pub ids: String,
    /// Name of the jobs.
    pub name: String,
    /// What the app is given, as it stands in the job.
    pub data: String,
    /// The options that the jobs have besides those that are each job's own.
    pub options: Map<String, Value>,
}

/// A job of a schedule, as it was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The schedule's key.
    pub key: String,
    /// What it has in common with the others.
    pub template: Template,
    /// Which it is of them, as `BullMQ` counts: 1 is one that was not added by taking the one before.
    pub count: u64,
}

/// A job to be added.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Its id.
    pub id: String,
    /// When it falls due, in milliseconds since the Unix epoch.
    pub tick: i64,
    /// Which it is of its schedule's, as `BullMQ` counts.
    pub count: u64,
    /// Its options.
    pub options: String,
    /// In so many milliseconds it falls due.
    pub delay: i64,
}

/// The id of a job taken apart: what all of its schedule begin with, and the tick.
#[must_use]
pub fn split_id(id: &str) -> Option<(&str, i64)> {
    let (ids, tick) = id.strip_prefix("repeat:").and_then(|_| id.rsplit_once(':'))?;
    let tick = tick.parse().ok()?;
    Some((&id[..=ids.len()], tick))
}

/// The name of the schedule with that key; its next version has the same.
#[must_use]
pub fn name_of(key: &str) -> &str {
    key.split_once(':').map_or(key, |(name, _)| name)
}

impl Found {
    /// A job by what is stored of it: none if it is not one of a schedule, or not whole.
    #[must_use]
    pub fn new(
        dialect: Dialect,
        id: &str,
        name: Option<String>,
        data: Option<String>,
        options: Option<&str>,
        key: Option<String>,
    ) -> Option<Self> {
        let (ids, _) = split_id(id)?;
        let name = name.filter(|name| dialect.is_schedule(name))?;
        let mut options: Map<String, Value> = serde_json::from_str(options?).ok()?;
        dialect.drop_own(&mut options);
        let repeat = options.get("repeat")?.as_object()?;
        let count = repeat.get("count").and_then(Value::as_u64)?;
        let key = dialect.key(key?, repeat);
        Some(Self { key, count, template: Template { ids: ids.to_owned(), name, data: data?, options } })
    }
}

impl Template {
    /// The first tick after `time`, both in milliseconds since the Unix epoch, where `known` is one; none if there is none, or
    /// none that can be told.
    #[must_use]
    pub fn next_after(&self, time: i64, known: Option<i64>) -> Option<i64> {
        let repeat = self.options.get("repeat")?.as_object()?;
        let text = |name: &str| repeat.get(name).and_then(Value::as_str);
        let from = Timestamp::from_millisecond(time).ok()?;
        let next = match (repeat.get("every").and_then(Value::as_i64), text("pattern").or_else(|| text("cron"))) {
            (Some(every), None) => {
                // `BullMQ` 2 counts from the epoch, and 5 from the first tick.
                let phase = known.and_then(|known| known.checked_rem_euclid(every)).unwrap_or_default();
                let next = cron::next_multiple(every, Timestamp::from_millisecond(time.checked_sub(phase)?).ok()?)?;
                Timestamp::from_millisecond(next.as_millisecond().checked_add(phase)?).ok()?
            }
            (None, Some(expression)) => {
                // Without a zone the app goes by its own, which is UTC in a container that says nothing else.
                let zone = cron::time_zone(text("tz").unwrap_or("UTC")).ok()?;
                let start = repeat.get("startDate").and_then(moment).filter(|start| *start > from);
                cron::parse(expression).ok()?.next_after(start.unwrap_or(from), &zone)?
            }
            _ => return None,
        };
        Some(next.as_millisecond())
    }

    /// Whether nothing says that the schedule is over by `tick`.
    fn goes_on(&self, tick: i64) -> bool {
        let repeat = self.options.get("repeat");
        let end = repeat.and_then(|it| it.get("endDate")).and_then(moment).map(Timestamp::as_millisecond);
        let count = repeat.and_then(|it| it.get("count")).and_then(Value::as_u64).unwrap_or_default();
        let limit = repeat.and_then(|it| it.get("limit")).and_then(Value::as_u64);
        end.is_none_or(|end| tick <= end) && limit.is_none_or(|limit| count < limit)
    }

    /// The job of `tick`, made at `now`; none if the schedule is over.
    #[must_use]
    pub fn job(&self, dialect: Dialect, tick: i64, now: i64) -> Option<Job> {
        if !self.goes_on(tick) {
            return None;
        }
        let id = format!("{}{tick}", self.ids);
        let delay = tick.saturating_sub(now).max(0);
        let mut options = self.options.clone();
        let repeat = options.get_mut("repeat").and_then(Value::as_object_mut)?;
        let count = repeat.get("count").and_then(Value::as_u64).unwrap_or_default().saturating_add(1);
        repeat.insert("count".into(), count.into());
        let tells_tick = dialect.tells_tick(repeat);
        options.insert("jobId".into(), id.clone().into());
        options.insert("delay".into(), delay.into());
        options.insert("timestamp".into(), now.into());
        if tells_tick {
            options.insert("prevMillis".into(), tick.into());
        }
        Some(Job { id, tick, count, options: Value::Object(options).to_string(), delay })
    }
}

/// A date as JavaScript's `Date` takes it.
fn moment(value: &Value) -> Option<Timestamp> {
    match value {
        Value::Number(number) => Timestamp::from_millisecond(number.as_i64()?).ok(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A job as bullmq 2.4.0 stored it.
    const ID: &str = "repeat:ffabe797361174802ae80b8d82ec58c5:1764086400000";
    const DATA: &str = r#"{"subdomain":"","module":"a-base","queueName":"schedule","jobName":".fx-probe.tick"}"#;

    fn found(repeat: &Value) -> Found {
        let options = json!({
            "attempts": 0, "delay": 1500, "jobId": ID, "prevMillis": 1_764_086_400_000_i64,
            "repeat": repeat, "timestamp": 1_764_086_398_500_i64,
        });
        let (name, key) = (Some(".fx-probe.tick".to_owned()), Some(".fx-probe.tick::::3000".to_owned()));
        Found::new(Dialect::Repeatable, ID, name, Some(DATA.to_owned()), Some(&options.to_string()), key).unwrap()
    }

    #[test]
    fn the_next_job_is_as_bullmq_makes_it() {
        let found = found(&json!({"every": 3000, "count": 1}));
        assert_eq!((found.count, name_of(&found.key)), (1, ".fx-probe.tick"));
        let (now, tick) = (1_764_086_401_234, 1_764_086_403_000);
        assert_eq!(found.template.next_after(now, None), Some(tick));
        assert_eq!(
            found.template.next_after(tick, None),
            Some(tick + 3_000),
            "what is due now is taken by somebody else"
        );
        let job = found.template.job(Dialect::Repeatable, tick, now).unwrap();
        assert_eq!((&*job.id, job.delay), ("repeat:ffabe797361174802ae80b8d82ec58c5:1764086403000", 1_766));
        assert_eq!(
            serde_json::from_str::<Value>(&job.options).unwrap(),
            json!({
                "attempts": 0, "delay": 1766, "jobId": job.id, "prevMillis": tick, "repeat": {"every": 3000, "count": 2},
                "timestamp": now,
            })
        );
    }

    #[test]
    fn ticks_are_in_step_with_one_that_is_known() {
        let template = found(&json!({"every": 3000, "count": 1})).template;
        let now = 1_764_086_401_234;
        for (known, next) in
            [(now - 1, now + 2_999), (now, now + 3_000), (now - 9_000, now + 3_000), (now + 1, now + 1)]
        {
            assert_eq!(template.next_after(now, Some(known)), Some(next), "{known}");
        }
    }

    #[test]
    fn cron_expressions_are_read_in_their_zone() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap().as_millisecond();
        let of = |repeat: Value| found(&repeat).template.next_after(at("2026-11-25T15:00:00Z"), None);
        assert_eq!(of(json!({"cron": "0 3 * * *", "count": 1})), Some(at("2026-11-26T03:00:00Z")));
        assert_eq!(
            of(json!({"pattern": "0 3 * * *", "tz": "Asia/Shanghai", "count": 1})),
            Some(at("2026-11-25T19:00:00Z"))
        );
        let later = json!({"cron": "0 3 * * *", "count": 1, "startDate": "2026-12-01T00:00:00Z"});
        assert_eq!(of(later), Some(at("2026-12-01T03:00:00Z")));
        for unknown in [
            json!({"cron": "what", "count": 1}),
            json!({"count": 1}),
            json!({"every": 1, "cron": "* * * * *", "count": 1}),
        ] {
            assert_eq!(of(unknown), None);
        }
    }

    #[test]
    fn what_is_over_is_not_put_back() {
        let at = 1_764_086_403_000;
        for (over, repeat) in [
            (false, json!({"every": 3000, "count": 1, "limit": 2})),
            (true, json!({"every": 3000, "count": 2, "limit": 2})),
            (false, json!({"every": 3000, "count": 2, "endDate": at})),
            (true, json!({"every": 3000, "count": 2, "endDate": "2025-11-25T15:00:00.000Z"})),
        ] {
            assert_eq!(found(&repeat).template.job(Dialect::Repeatable, at, at - 1).is_none(), over, "{repeat}");
        }
    }

    #[test]
    fn what_is_no_job_of_a_schedule_is_none() {
        let some = |text: &str| Some(text.to_owned());
        let options = Some(r#"{"repeat":{"every":1,"count":1}}"#);
        assert!(Found::new(Dialect::Repeatable, "repeat:x:1", some("n"), some("d"), options, some("k")).is_some());
        assert!(Found::new(Dialect::Repeatable, "17", some("n"), some("d"), options, some("k")).is_none());
        assert!(Found::new(Dialect::Repeatable, "repeat:x:1", some("n"), some("d"), Some("{}"), some("k")).is_none());
        assert!(Found::new(Dialect::Repeatable, "repeat:x:1", some("n"), some("d"), Some("["), some("k")).is_none());
        assert!(Found::new(Dialect::Repeatable, "repeat:x:1", None, some("d"), options, some("k")).is_none());
        assert_eq!(split_id("repeat:x:17"), Some(("repeat:x:", 17)));
        assert_eq!(split_id("repeat:x:y"), None);
    }
}
