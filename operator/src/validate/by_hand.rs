//! Runs that somebody asks for in annotations of the resource.
//!
//! `cabloy.io/trigger: nightly/2026-11-23` runs schedule `nightly` once, and `cabloy.io/backfill:
//! nightly/again/2026-11-01T00:00:00Z/2026-11-08T00:00:00Z` its ticks of that week. `cabloy.io/rerun: migrate/2026-11-23` has
//! startup task `migrate` done once more. What cannot be done is said, and keeps nothing else from being done.

use std::collections::{BTreeMap, BTreeSet};

use cabloy_crds::{
    cron,
    files::{Backfill, Schedule, Trigger, is_manual_id},
    resource::Scope,
};
use jiff::Timestamp;

use super::{Refusal, Validated};
use crate::names::{BACKFILL, RERUN, TRIGGER};

/// So much can be asked for in one annotation.
const MOST: usize = 100;

/// So many ticks can be backfilled under one id.
const MOST_TICKS: usize = 1_000;

/// Adds what the annotations ask for to the schedules and startup tasks, and notes what cannot be done.
pub fn add(validated: &mut Validated, annotations: &BTreeMap<String, String>, now: Timestamp) {
    let mut refusals = Vec::new();
    for (annotation, take) in [(TRIGGER, trigger as Take), (BACKFILL, backfill), (RERUN, rerun)] {
        let parts = annotations.get(annotation).map(String::as_str).unwrap_or_default().split(',').map(str::trim);
        for (index, part) in parts.filter(|part| !part.is_empty()).enumerate() {
            if index == MOST {
                refusals.push(Refusal::invalid(
                    annotation,
                    format!("more than {MOST} parts: take out what has been run; from {part:?} on nothing is"),
                ));
                break;
            }
            if let Err(message) = take(part, validated, now) {
                refusals.push(Refusal::invalid(annotation, format!("{part:?}: {message}")));
            }
        }
    }
    validated.bad_triggers.extend(refusals);
}

/// Adds one part of an annotation to the schedule or task that it names, or says what is wrong with it.
type Take = fn(&str, &mut Validated, Timestamp) -> Result<(), String>;

fn trigger(part: &str, validated: &mut Validated, _: Timestamp) -> Result<(), String> {
    let (name, id) = part.split_once('/').ok_or("write <schedule>/<id>, such as nightly-report/2026-11-23")?;
    let schedule = find(name, &mut validated.schedules)?;
    check_id(id)?;
    if !schedule.triggers.iter().any(|known| known.id == id) {
        schedule.triggers.push(Trigger { id: id.to_owned() });
    }
    Ok(())
}

fn backfill(part: &str, validated: &mut Validated, now: Timestamp) -> Result<(), String> {
    let parts: Vec<&str> = part.split('/').collect();
    let [name, id, from, to] = parts[..] else {
        return Err("write <schedule>/<id>/<from>/<to>, such as \
                    nightly-report/again/2026-11-01T00:00:00Z/2026-11-08T00:00:00Z"
            .to_owned());
    };
    let schedule = find(name, &mut validated.schedules)?;
    check_id(id)?;
    let time = |text: &str| {
        text.parse::<Timestamp>()
            .map_err(|_| format!("{text:?} is no time: write one in RFC 3339, such as 2026-11-01T00:00:00Z"))
    };
    let backfill = Backfill { id: id.to_owned(), from: time(from)?, to: time(to)? };
    if backfill.from >= backfill.to {
        return Err(format!("{to} is not after {from}: write the earlier time first"));
    }
    if backfill.to > now {
        return Err(format!("{to} is still to come: write a time that has passed"));
    }
    match ticks(schedule, &backfill).take(MOST_TICKS + 1).count() {
        0 => return Err(format!("{name} has no tick in that time: write another one")),
        count if count > MOST_TICKS => {
            return Err(format!("{name} has more than {MOST_TICKS} ticks in that time: write a shorter one"));
        }
        _ => {}
    }
    match schedule.backfills.iter().find(|known| known.id == backfill.id) {
        None => schedule.backfills.push(backfill),
        Some(known) if *known == backfill => {}
        Some(_) => return Err(format!("id {id} is there with another time: write another id")),
    }
    Ok(())
}

fn rerun(part: &str, validated: &mut Validated, _: Timestamp) -> Result<(), String> {
    let (name, id) = part.split_once('/').ok_or("write <task>/<id>, such as migrate/2026-11-23")?;
    let task = validated.startups.iter().find(|task| task.name == name).ok_or_else(|| {
        let names: Vec<_> = validated.startups.iter().map(|task| task.name.as_str()).collect();
        format!("there is no startup task {name:?}: write one of {}", names.join(", "))
    })?;
    if task.scope != Scope::Cluster {
        return Err(format!("{name} is done at each start of a pod: restart the pods"));
    }
    check_id(id)?;
    match validated.reruns.insert(name.to_owned(), id.to_owned()) {
        Some(known) if known != id => Err(format!("{name} is there with id {known} too: leave one of them")),
        _ => Ok(()),
    }
}

fn find<'a>(name: &str, schedules: &'a mut [Schedule]) -> Result<&'a mut Schedule, String> {
    let names: BTreeSet<_> = schedules.iter().map(|schedule| schedule.name.clone()).collect();
    let found = schedules.iter_mut().find(|schedule| schedule.name == name);
    found.ok_or_else(|| {
        let names: Vec<_> = names.into_iter().collect();
        format!("there is no schedule {name:?}: write one of {}", names.join(", "))
    })
}

fn check_id(id: &str) -> Result<(), String> {
    if is_manual_id(id) {
        return Ok(());
    }
    Err(format!("{id:?} is no id: write at most 63 letters, digits, '-', '.' and '_', such as 2026-11-23"))
}

/// The ticks of a backfill, its first moment included and its last one not.
fn ticks(schedule: &Schedule, backfill: &Backfill) -> impl Iterator<Item = Timestamp> {
    let rule =
        schedule.cron.as_deref().and_then(|text| cron::parse(text).ok()).zip(cron::time_zone(&schedule.time_zone).ok());
    let every = schedule.every_ms.and_then(|every| i64::try_from(every).ok());
    let next = move |time: Timestamp| match (&rule, every) {
        (Some((cron, zone)), _) => cron.next_after(time, zone),
        (None, Some(every)) => cron::next_multiple(every, time),
        (None, None) => None,
    };
    let to = backfill.to;
    let before = backfill.from.checked_sub(std::time::Duration::from_nanos(1)).unwrap_or(Timestamp::MIN);
    std::iter::successors(next(before), move |tick| next(*tick)).take_while(move |tick| *tick < to)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validate::tests::sound;

    /// The schedules and the refusals.
    fn asked(trigger: &str, backfill: &str) -> (Vec<Schedule>, Vec<String>) {
        let http = json!({ "http": { "path": "/x" } });
        let mut validated = sound(&json!({ "schedules": [
            { "name": "nightly", "cron": "0 3 * * *", "timeZone": "Asia/Shanghai", "target": http },
            { "name": "often", "every": "5s", "target": http },
        ] }));
        let annotations = [(TRIGGER, trigger), (BACKFILL, backfill)].map(|(name, text)| (name.into(), text.into()));
        add(&mut validated, &annotations.into(), "2026-11-23T12:00:00Z".parse().unwrap());
        (validated.schedules, validated.bad_triggers.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_is_asked_for_is_added_to_its_schedule() {
        let (schedules, refusals) = asked(
            " nightly/2026-11-23, often/a ,often/b.c_D,often/a,",
            "nightly/w/2026-11-01T00:00:00Z/2026-11-08T00:00:00+08:00",
        );
        assert!(refusals.is_empty(), "{refusals:?}");
        let ids = |schedule: &Schedule| schedule.triggers.iter().map(|it| it.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&schedules[0]), ["2026-11-23"]);
        assert_eq!(ids(&schedules[1]), ["a", "b.c_D"], "once each");
        assert_eq!(schedules[0].backfills[0].to.to_string(), "2026-11-07T16:00:00Z");
        let days: Vec<_> = ticks(&schedules[0], &schedules[0].backfills[0]).map(|tick| tick.to_string()).collect();
        assert_eq!((days.len(), days[0].as_str()), (6, "2026-11-01T19:00:00Z"));
    }

    #[test]
    fn a_task_that_is_to_be_done_once_more_is_named() {
        let asked = |text: &str| {
            let http = json!({ "http": { "path": "/x" } });
            let mut validated = sound(&json!({ "startups": [
                { "name": "migrate", "target": http }, { "name": "warm", "scope": "Instance", "target": http },
            ] }));
            add(&mut validated, &[(RERUN.into(), text.into())].into(), Timestamp::UNIX_EPOCH);
            let refusals: Vec<_> = validated.bad_triggers.iter().map(ToString::to_string).collect();
            (validated.reruns, refusals.join("; "))
        };
        assert_eq!(asked("migrate/2026-11-23"), ([("migrate".into(), "2026-11-23".into())].into(), String::new()));
        for (text, said) in [
            ("migrate", "write <task>/<id>"),
            ("other/a", "no startup task \"other\": write one of migrate, warm"),
            ("warm/a", "restart the pods"),
            ("migrate/a b", "\"a b\" is no id"),
            ("migrate/a,migrate/b", "leave one of them"),
        ] {
            assert!(asked(text).1.contains(said), "{text}: {:?}", asked(text));
        }
    }

    #[test]
    fn the_first_moment_is_part_of_a_backfill_and_the_last_is_not() {
        let (schedules, _) = asked("", "often/x/2026-11-23T10:00:00Z/2026-11-23T10:00:10Z");
        assert_eq!(ticks(&schedules[1], &schedules[1].backfills[0]).count(), 2);
    }

    #[test]
    fn what_cannot_be_done_is_said_and_keeps_nothing_else_from_being_done() {
        let day = "2026-11-01T00:00:00Z/2026-11-02T00:00:00Z";
        for (trigger, backfill, said) in [
            ("nightly", String::new(), "cabloy.io/trigger: \"nightly\": write <schedule>/<id>"),
            ("other/a", String::new(), "no schedule \"other\": write one of nightly, often"),
            ("often/a b", String::new(), "\"a b\" is no id"),
            ("often/", String::new(), "\"\" is no id"),
            ("", "nightly/a".into(), "cabloy.io/backfill: \"nightly/a\": write <schedule>/<id>/<from>/<to>"),
            ("", "nightly/a/yesterday/today".into(), "\"yesterday\" is no time"),
            ("", "nightly/a/2026-11-02T00:00:00Z/2026-11-01T00:00:00Z".into(), "write the earlier time first"),
            ("", "nightly/a/2026-11-02T00:00:00Z/2026-11-24T00:00:00Z".into(), "still to come"),
            ("", "nightly/a/2026-11-02T00:00:00Z/2026-11-02T01:00:00Z".into(), "no tick in that time"),
            ("", format!("often/a/{day}"), "more than 1000 ticks"),
            ("", format!("nightly/ok/{day},nightly/ok/2026-11-01T00:00:00Z/2026-11-03T00:00:00Z"), "another id"),
        ] {
            let backfill = format!("{backfill},nightly/good/{day}");
            let (schedules, refusals) = asked(&format!("{trigger},often/good"), &backfill);
            assert_eq!(refusals.len(), 1, "{trigger} {backfill}: {refusals:?}");
            assert!(refusals[0].contains(said), "{refusals:?}");
            assert_eq!(schedules[1].triggers.last().unwrap().id, "good");
            assert_eq!(schedules[0].backfills.last().unwrap().id, "good");
        }
        let many: Vec<_> = (0..200).map(|number| format!("often/{number}")).collect();
        let (schedules, refusals) = asked(&many.join(","), "");
        assert_eq!((schedules[1].triggers.len(), refusals.len()), (MOST, 1));
        assert!(refusals[0].contains("from \"often/100\" on"), "{refusals:?}");
    }
}
