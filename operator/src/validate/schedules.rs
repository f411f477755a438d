//! Schedules and startup tasks, with all defaults filled in.

use std::collections::BTreeMap;

use cabloy_crds::{
    cron,
    duration::Duration,
    files,
    resource::{CatchUp, Retry, Schedule, Scope, Startup},
};

use super::{
    Refusal, is_label,
    targets::{self, Context},
};

/// What retries are where nothing is written.
const DEFAULT_RETRY: files::Retry =
    files::Retry { limit: 0, initial_delay_ms: 1_000, factor: 2.0, max_delay_ms: 60_000 };

/// How often a startup task is tried again where nothing is written: until it is done, no pod of the revision is ready.
const DEFAULT_STARTUP_RETRIES: u32 = 5;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);

const DEFAULT_STARTUP_TIMEOUT: Duration = Duration::from_secs(600);

/// The oldest tick that can be made up for.
const LONGEST_WINDOW: Duration = Duration::from_secs(8_760 * 3_600);

/// Resolves schedules and startup tasks.
pub(super) fn resolve(
    context: &Context,
    schedules: &[Schedule],
    startups: &[Startup],
    refusals: &mut Vec<Refusal>,
) -> (Vec<files::Schedule>, Vec<files::Startup>) {
    check_names("schedules", schedules.iter().map(|schedule| schedule.name.as_str()), refusals);
    check_names("startups", startups.iter().map(|task| task.name.as_str()), refusals);
    check_order(startups, refusals);
    let schedules = schedules.iter().filter_map(|one| schedule(context, one, refusals)).collect();
    let startups = startups.iter().filter_map(|one| startup(context, one, refusals)).collect();
    (schedules, startups)
}

fn check_names<'a>(list: &str, names: impl Iterator<Item = &'a str>, refusals: &mut Vec<Refusal>) {
    let mut seen = Vec::new();
    for (index, name) in names.enumerate() {
        if !is_label(name) || name.len() > 63 {
            refusals
                .push(Refusal::invalid(format!("{list}[{index}].name"), "must be lower-case letters, digits and '-'"));
        }
        if seen.contains(&name) {
            refusals.push(Refusal::invalid(
                format!("{list}[{index}].name"),
                format!("{name} is there twice: rename one of them"),
            ));
        }
        seen.push(name);
    }
}

fn schedule(context: &Context, schedule: &Schedule, refusals: &mut Vec<Refusal>) -> Option<files::Schedule> {
    let before = refusals.len();
    let Schedule {
        name,
        cron: expression,
        every,
        time_zone,
        overlap,
        catch_up,
        jitter,
        timeout,
        on_unknown,
        retry: retries,
        suspend,
        pause_on_failure,
        instances,
        takes_over,
        target: called,
    } = schedule;
    let field = |part: &str| format!("schedules[{name}].{part}");
    let mut refuse = |refusal: Refusal| refusals.push(refusal);

    if expression.is_some() == every.is_some() {
        refuse(Refusal::invalid(field("cron"), "exactly one of cron and every must be written"));
    }
    if let Some(expression) = expression
        && let Err(error) = cron::parse(expression)
    {
        refuse(Refusal::invalid(field("cron"), error.to_string()));
    }
    if time_zone.is_some() && expression.is_none() {
        refuse(Refusal::invalid(
            field("timeZone"),
            "goes with cron: remove it, for every is counted from the Unix epoch",
        ));
    }
    if let Some(zone) = time_zone
        && let Err(error) = cron::time_zone(zone)
    {
        refuse(Refusal::invalid(field("timeZone"), error.to_string()));
    }
    if let Some(every) = every
        && every.as_millis() < 1_000
    {
        refuse(Refusal::invalid(field("every"), "must be at least 1s"));
    }
    if let (Some(every), Some(jitter)) = (every, jitter)
        && jitter >= every
    {
        refuse(Refusal::invalid(
            field("jitter"),
            format!("must be shorter than every ({every}), or ticks would change places"),
        ));
    }
    let timeout = timeout.unwrap_or(DEFAULT_TIMEOUT);
    if timeout.as_millis() < 1_000 {
        refuse(Refusal::invalid(field("timeout"), "must be at least 1s"));
    }
    let window = catch_up.as_ref().and_then(|catch_up| catch_up.window);
    if window.is_some_and(|window| window > LONGEST_WINDOW) {
        refuse(Refusal::invalid(field("catchUp.window"), format!("must be at most {LONGEST_WINDOW}")));
    }
    let retry = retry(retries.as_ref(), DEFAULT_RETRY, &field, refusals);
    let target = targets::of_schedule(context, called, instances.as_ref(), &field, refusals);
    (refusals.len() == before).then_some(())?;
    Some(files::Schedule {
        name: name.clone(),
        cron: expression.clone(),
        every_ms: every.map(Duration::as_millis),
        time_zone: time_zone.clone().unwrap_or_else(|| "UTC".to_owned()),
        overlap: overlap.unwrap_or_default(),
        jitter_ms: jitter.map(Duration::as_millis).unwrap_or_default(),
        timeout_ms: timeout.as_millis(),
        on_unknown: on_unknown.unwrap_or_default(),
        retry,
        suspend: suspend.unwrap_or_default(),
        catch_up: resolved_catch_up(catch_up.as_ref()),
        pause_on_failure: pause_on_failure.unwrap_or_default(),
        // These stand in annotations.
        triggers: Vec::new(),
        backfills: Vec::new(),
        takes_over: takes_over.clone(),
        target: target?,
    })
}

fn resolved_catch_up(catch_up: Option<&CatchUp>) -> files::CatchUp {
    let default = files::CatchUp::default();
    match catch_up {
        None => default,
        Some(CatchUp { window, policy }) => {
            files::CatchUp { window_ms: window.map_or(default.window_ms, Duration::as_millis), policy: *policy }
        }
    }
}

fn startup(context: &Context, task: &Startup, refusals: &mut Vec<Refusal>) -> Option<files::Startup> {
    let before = refusals.len();
    let Startup { name, scope, revision, after, gate, timeout, retry: retries, target: called } = task;
    let field = |part: &str| format!("startups[{name}].{part}");
    let scope = scope.unwrap_or_default();
    if revision.is_some() && scope != Scope::Cluster {
        refusals.push(Refusal::invalid(
            field("revision"),
            "goes with scope Cluster: remove it, for scope Instance is once for each start of a pod",
        ));
    }
    let timeout = timeout.unwrap_or(DEFAULT_STARTUP_TIMEOUT);
    if timeout.as_millis() < 1_000 {
        refusals.push(Refusal::invalid(field("timeout"), "must be at least 1s"));
    }
    let default_retry = files::Retry { limit: DEFAULT_STARTUP_RETRIES, ..DEFAULT_RETRY };
    let retry = retry(retries.as_ref(), default_retry, &field, refusals);
    let target = targets::of_startup(context, called, &field, refusals);
    (refusals.len() == before).then_some(())?;
    Some(files::Startup {
        name: name.clone(),
        scope,
        after: after.clone().unwrap_or_default(),
        gate: gate.unwrap_or_default(),
        timeout_ms: timeout.as_millis(),
        retry,
        target: target?,
    })
}

fn retry(
    retry: Option<&Retry>,
    defaults: files::Retry,
    field: &impl Fn(&str) -> String,
    refusals: &mut Vec<Refusal>,
) -> files::Retry {
    let Some(Retry { limit, initial_delay, factor, max_delay }) = retry else { return defaults };
    let resolved = files::Retry {
        limit: limit.and_then(|limit| u32::try_from(limit).ok()).unwrap_or(defaults.limit),
        initial_delay_ms: initial_delay.map_or(defaults.initial_delay_ms, Duration::as_millis),
        factor: factor.unwrap_or(defaults.factor),
        max_delay_ms: max_delay.map_or(defaults.max_delay_ms, Duration::as_millis),
    };
    // A longer first delay than the default's longest one is no contradiction where only the first is written.
    let resolved = match max_delay {
        None => files::Retry { max_delay_ms: resolved.max_delay_ms.max(resolved.initial_delay_ms), ..resolved },
        Some(_) => resolved,
    };
    if resolved.max_delay_ms < resolved.initial_delay_ms {
        refusals.push(Refusal::invalid(field("retry.maxDelay"), "must not be shorter than initialDelay"));
    }
    if !(1.0..=10.0).contains(&resolved.factor) {
        refusals.push(Refusal::invalid(field("retry.factor"), "must be between 1 and 10"));
    }
    resolved
}

/// `after` names other tasks, and none waits for itself over others.
fn check_order(startups: &[Startup], refusals: &mut Vec<Refusal>) {
    let after: BTreeMap<&str, Vec<&str>> = startups
        .iter()
        .map(|task| (task.name.as_str(), task.after.iter().flatten().map(String::as_str).collect()))
        .collect();
    for (name, before) in &after {
        for one in before {
            if !after.contains_key(one) {
                refusals.push(Refusal::invalid(
                    format!("startups[{name}].after"),
                    format!("there is no task {one}: correct the name, or add the task"),
                ));
            }
        }
    }
    // Tasks whose forerunners are all out are taken out, until none is left or those that wait for each other.
    let mut left = after.clone();
    while let Some(free) =
        left.iter().find(|(_, before)| !before.iter().any(|one| left.contains_key(one))).map(|(name, _)| *name)
    {
        left.remove(free);
    }
    if !left.is_empty() {
        let names: Vec<_> = left.keys().copied().collect();
        refusals.push(Refusal::invalid(
            format!("startups[{}].after", names[0]),
            format!(
                "these tasks wait for each other, so none could start: {}; remove one of the names",
                names.join(", ")
            ),
        ));
    }
}
