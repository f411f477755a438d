//! What schedules and startup tasks call, with everything resolved: names as CabloyJS has them in Redis.

use cabloy_crds::{
    files,
    names::{BROADCAST_ROLE, DEFAULT_BEAN_PATH, DEFAULT_CONNECTION, QUEUE_ROLE},
    resource::{App, Backoff, BeanTarget, BroadcastTarget, Generation, HttpTarget, JobOptions, QueueTarget, Target},
};
use serde_json::Value;

use super::{Refusal, ResolvedRole, is_path, roles::has_one_connection};

/// The longest name; Redis would take longer ones.
const MAX_NAME: usize = 128;

/// The longest list of instances: the body that names them is to stay small.
const MAX_INSTANCES: usize = 256;

/// What targets are resolved by.
pub(super) struct Context<'a> {
    pub(super) app: &'a App,
    pub(super) roles: &'a [ResolvedRole],
}

/// A field of a schedule or a startup task, by its path from there.
pub(super) trait Field: Fn(&str) -> String {}

impl<F: Fn(&str) -> String> Field for F {}

/// Resolves the target of a schedule.
pub(super) fn of_schedule(
    context: &Context,
    target: &Target,
    instances: Option<&Value>,
    field: &impl Field,
    refusals: &mut Vec<Refusal>,
) -> Option<files::Target> {
    let Target { http, bean, queue, broadcast } = check_one(target, field, refusals);
    let instances = instances_of(instances, field, refusals);
    if instances != files::Instances::default() && bean.is_none() {
        let instead = if queue.is_some() || broadcast.is_some() {
            "remove it, and write the one instance as the target's subdomain"
        } else {
            "remove it, or write target.bean"
        };
        refusals.push(Refusal::invalid(field("instances"), format!("goes with target.bean alone: {instead}")));
    }
    http.as_ref()
        .map(|it| resolve_http(it, field, refusals))
        .or_else(|| bean.as_ref().and_then(|it| resolve_bean(context, it, instances, field, refusals)))
        .or_else(|| queue.as_ref().and_then(|it| resolve_queue(context, it, field, refusals)))
        .or_else(|| broadcast.as_ref().and_then(|it| resolve_broadcast(context, it, field, refusals)))
}

/// Resolves the target of a startup task.
pub(super) fn of_startup(
    context: &Context,
    target: &Target,
    field: &impl Field,
    refusals: &mut Vec<Refusal>,
) -> Option<files::Target> {
    let Target { http, bean, queue, broadcast } = check_one(target, field, refusals);
    for (name, written) in [("queue", queue.is_some()), ("broadcast", broadcast.is_some())] {
        if written {
            refusals.push(Refusal::invalid(
                field(&format!("target.{name}")),
                "a startup task is done when its work is, which a queue or a broadcast does not tell: write target.http or target.bean",
            ));
        }
    }
    http.as_ref().map(|it| resolve_http(it, field, refusals)).or_else(|| {
        bean.as_ref().and_then(|it| resolve_bean(context, it, files::Instances::default(), field, refusals))
    })
}

fn check_one<'a>(target: &'a Target, field: &impl Field, refusals: &mut Vec<Refusal>) -> &'a Target {
    let Target { http, bean, queue, broadcast } = target;
    let written = [http.is_some(), bean.is_some(), queue.is_some(), broadcast.is_some()];
    if written.iter().filter(|written| **written).count() != 1 {
        refusals
            .push(Refusal::invalid(field("target"), "exactly one of http, bean, queue and broadcast must be written"));
    }
    target
}

fn resolve_http(http: &HttpTarget, field: &impl Field, refusals: &mut Vec<Refusal>) -> files::Target {
    let HttpTarget { path, method, body, remembers_runs } = http;
    if !is_path(path) {
        refusals.push(Refusal::invalid(
            field("target.http.path"),
            "must be a path that begins with '/', such as /api/shop/report/nightly",
        ));
    }
    files::Target::Http(files::HttpTarget {
        path: path.clone(),
        method: method.unwrap_or_default(),
        body: body.clone(),
        remembers_runs: remembers_runs.unwrap_or_default(),
    })
}

fn resolve_bean(
    context: &Context,
    bean: &BeanTarget,
    instances: files::Instances,
    field: &impl Field,
    refusals: &mut Vec<Refusal>,
) -> Option<files::Target> {
    let BeanTarget { module, name, data } = bean;
    let field = |part: &str| field(&format!("target.bean{part}"));
    check_name(field(".module"), module, refusals);
    check_name(field(".name"), name, refusals);
    if context.app.generation == Generation::Generic {
        refusals.push(generic(field("")));
        return None;
    }
    Some(files::Target::Bean(files::BeanTarget {
        path: context.app.bean_path.clone().unwrap_or_else(|| DEFAULT_BEAN_PATH.to_owned()),
        module: module.clone(),
        name: name.clone(),
        data: data.clone(),
        instances,
    }))
}

/// A word or a list, which the schema does not check.
fn instances_of(written: Option<&Value>, field: &impl Field, refusals: &mut Vec<Refusal>) -> files::Instances {
    let Some(written) = written else { return files::Instances::default() };
    let field = field("instances");
    let Ok(instances) = serde_json::from_value(written.clone()) else {
        refusals.push(Refusal::invalid(
            field,
            "must be Default, All, or a list of subdomains such as [north, south]: remove it for Default",
        ));
        return files::Instances::default();
    };
    if let files::Instances::Listed(list) = &instances {
        if list.is_empty() || list.len() > MAX_INSTANCES {
            refusals.push(Refusal::invalid(
                field.clone(),
                format!("must name 1 to {MAX_INSTANCES} subdomains: for more of them write All"),
            ));
        }
        for (index, subdomain) in list.iter().enumerate() {
            check_subdomain(format!("{field}[{index}]"), subdomain, refusals);
            if list[..index].contains(subdomain) {
                refusals.push(Refusal::invalid(
                    format!("{field}[{index}]"),
                    format!("{subdomain} is there twice: remove it"),
                ));
            }
        }
    }
    instances
}

fn resolve_queue(
    context: &Context,
    queue: &QueueTarget,
    field: &impl Field,
    refusals: &mut Vec<Refusal>,
) -> Option<files::Target> {
    let QueueTarget { module, queue_name, queue_name_sub, job_name, subdomain, data, job_options } = queue;
    let field = |part: &str| field(&format!("target.queue{part}"));
    let subdomain = subdomain.clone().unwrap_or_default();
    check_name(field(".module"), module, refusals);
    check_name(field(".queueName"), queue_name, refusals);
    check_subdomain(field(".subdomain"), &subdomain, refusals);
    check_text(field(".queueNameSub"), queue_name_sub.as_deref(), refusals);
    check_text(field(".jobName"), job_name.as_deref(), refusals);
    let options = job_options.as_ref().map(|options| options_of(options, &field, refusals)).unwrap_or_default();
    let role = role(context, QUEUE_ROLE, field(""), refusals)?;
    let instance = if subdomain.is_empty() { "-" } else { &subdomain };
    let queue = match context.app.generation {
        Generation::Vona => format!("{instance}||{module}.queue.{queue_name}"),
        Generation::V4 | Generation::Generic => format!("{instance}||{module}||{queue_name}"),
    };
    Some(files::Target::Queue(files::QueueTarget {
        role,
        prefix: format!("bull_{}:queue", context.app.name),
        queue,
        module: module.clone(),
        queue_name: queue_name.clone(),
        queue_name_sub: queue_name_sub.clone(),
        job_name: job_name.clone(),
        subdomain,
        data: data.clone(),
        options,
    }))
}

fn options_of(options: &JobOptions, field: &impl Field, refusals: &mut Vec<Refusal>) -> files::JobOptions {
    let JobOptions { attempts, backoff, remove_on_complete, remove_on_fail } = options;
    let field = |part: &str| field(&format!(".jobOptions{part}"));
    if attempts.is_some_and(|attempts| !(1..=100).contains(&attempts)) {
        refusals.push(Refusal::invalid(field(".attempts"), "must be between 1 and 100"));
    }
    if backoff.is_some() && attempts.is_none() {
        refusals.push(Refusal::invalid(field(".backoff"), "goes with attempts: add it, or remove backoff"));
    }
    if backoff.as_ref().is_some_and(|backoff| backoff.delay.as_millis() == 0) {
        refusals.push(Refusal::invalid(field(".backoff.delay"), "must be more than 0s"));
    }
    files::JobOptions {
        attempts: attempts.and_then(|attempts| u32::try_from(attempts).ok()),
        backoff: backoff
            .as_ref()
            .map(|Backoff { kind, delay }| files::Backoff { kind: kind.unwrap_or_default(), delay: delay.as_millis() }),
        remove_on_complete: *remove_on_complete,
        remove_on_fail: *remove_on_fail,
    }
}

fn resolve_broadcast(
    context: &Context,
    broadcast: &BroadcastTarget,
    field: &impl Field,
    refusals: &mut Vec<Refusal>,
) -> Option<files::Target> {
    let BroadcastTarget { module, broadcast_name, subdomain, data } = broadcast;
    let field = |part: &str| field(&format!("target.broadcast{part}"));
    let subdomain = subdomain.clone().unwrap_or_default();
    check_name(field(".module"), module, refusals);
    check_name(field(".broadcastName"), broadcast_name, refusals);
    check_subdomain(field(".subdomain"), &subdomain, refusals);
    let role = role(context, BROADCAST_ROLE, field(""), refusals)?;
    Some(files::Target::Broadcast(files::BroadcastTarget {
        role,
        channel: format!("broadcast_{}:", context.app.name),
        module: module.clone(),
        broadcast_name: broadcast_name.clone(),
        subdomain,
        data: data.clone(),
    }))
}

fn generic(field: String) -> Refusal {
    Refusal::invalid(
        field,
        "is one of CabloyJS, and generation generic has none: write target.http, or another app.generation",
    )
}

/// The role that the app itself uses for what it calls `name`.
fn role(context: &Context, name: &str, field: String, refusals: &mut Vec<Refusal>) -> Option<String> {
    let role = match context.app.generation {
        Generation::Vona if has_one_connection(context.app) => DEFAULT_CONNECTION,
        Generation::V4 | Generation::Vona => name,
        Generation::Generic => {
            refusals.push(generic(field));
            return None;
        }
    };
    if !context.roles.iter().any(|one| one.name == role) {
        let message = if role == DEFAULT_CONNECTION {
            "needs the app's Redis, and the resource does not say which one that is: add redis.connections.default"
                .to_owned()
        } else {
            format!(
                "needs role {role}, and there is no Redis for it: add redis.roles.{role}, or a connection named default"
            )
        };
        refusals.push(Refusal::invalid(field, message));
        return None;
    }
    Some(role.to_owned())
}

/// What becomes a part of keys: BullMQ refuses colons in them, and CabloyJS parts them by bars.
pub(super) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        && text.len() <= MAX_NAME
}

fn check_name(field: String, text: &str, refusals: &mut Vec<Refusal>) {
    if !is_name(text) {
        refusals.push(Refusal::invalid(
            field,
            "must be the name alone, as the app has it: letters, digits, '.', '_' and '-', such as shop-report",
        ));
    }
}

fn check_subdomain(field: String, text: &str, refusals: &mut Vec<Refusal>) {
    if !text.is_empty() && !is_name(text) {
        refusals.push(Refusal::invalid(
            field,
            "must be the name of a CabloyJS instance: letters, digits, '.', '_' and '-'; empty for the default one",
        ));
    }
}

fn check_text(field: String, text: Option<&str>, refusals: &mut Vec<Refusal>) {
    if text.is_some_and(|text| text.is_empty() || text.chars().any(char::is_control)) {
        refusals.push(Refusal::invalid(field, "must be one line of text: remove it if there is none"));
    }
}
