//! The startup task that has each pod of an app of `CabloyJS` 4 warmed up.

use std::collections::BTreeSet;

use cabloy_crds::{
    files::{BeanTarget, Instances, Retry, Schedule, Startup, Target, WarmUpTarget},
    names::WARM_UP,
    resource::{App, Gate, Generation, Scope},
};

use super::{Refusal, targets::is_name};

/// The deadline of an attempt, in milliseconds: an instance that starts for the first time makes its tables.
const TIMEOUT_MS: u64 = 5 * 60 * 1000;

/// It has to be done, and what keeps it from that (a database that is away) passes or is mended.
const RETRY: Retry = Retry { limit: u32::MAX, initial_delay_ms: 1_000, factor: 2.0, max_delay_ms: 30_000 };

/// Checks what is written of it.
pub(super) fn check(app: &App, startups: &[Startup], refusals: &mut Vec<Refusal>) {
    if (app.warm_up.is_some() || !app.instances.is_empty()) && app.generation != Generation::V4 {
        refusals.push(Refusal::invalid(
            if app.warm_up.is_some() { "app.warmUp" } else { "app.instances" },
            "is for generation v4, whose processes wait for a first request: remove it",
        ));
    }
    if app.warm_up == Some(false) && !app.instances.is_empty() {
        refusals.push(Refusal::invalid(
            "app.instances",
            "are those to be warmed up: remove them, or set app.warmUp to true",
        ));
    }
    for (index, instance) in app.instances.iter().enumerate() {
        let field = format!("app.instances[{index}]");
        if !is_name(instance) {
            refusals.push(Refusal::invalid(
                field,
                "must be the name of a CabloyJS instance: letters, digits, '.', '_' and '-'; the default one needs no name here",
            ));
        } else if app.instances[..index].contains(instance) {
            refusals.push(Refusal::invalid(field, format!("{instance} is there twice: remove one of them")));
        }
    }
    if app.warm_up() && startups.iter().any(|task| task.name == WARM_UP) {
        refusals.push(Refusal::invalid(
            format!("startups[{WARM_UP}].name"),
            "is the name of the task that warms up an app of generation v4: write another name, or set app.warmUp to false",
        ));
    }
}

/// The task, if there is to be one: after those for which pods wait, for then the pod begins to take jobs.
pub(super) fn task(app: &App, schedules: &[Schedule], startups: &[Startup]) -> Option<Startup> {
    let before = startups.iter().filter(|task| task.scope == Scope::Cluster && task.gate == Gate::Ready);
    app.warm_up().then(|| Startup {
        name: WARM_UP.to_owned(),
        scope: Scope::Instance,
        after: before.map(|task| task.name.clone()).collect(),
        gate: Gate::Ready,
        timeout_ms: TIMEOUT_MS,
        retry: RETRY,
        target: Target::WarmUp(WarmUpTarget { instances: instances(app, schedules) }),
    })
}

/// The instances that the resource names: the default one, then in the order of their names.
fn instances(app: &App, schedules: &[Schedule]) -> Vec<String> {
    let called = schedules.iter().flat_map(|schedule| match &schedule.target {
        Target::Queue(queue) => vec![queue.subdomain.clone()],
        Target::Broadcast(broadcast) => vec![broadcast.subdomain.clone()],
        Target::Bean(BeanTarget { instances: Instances::Listed(listed), .. }) => listed.clone(),
        // Of all instances the app alone knows the names.
        Target::Bean(BeanTarget { instances: Instances::Set(_), .. }) | Target::Http(_) | Target::WarmUp(_) => vec![],
    });
    let all: BTreeSet<String> = app.instances.iter().cloned().chain(called).chain([String::new()]).collect();
    all.into_iter().collect()
}
