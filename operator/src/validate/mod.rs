//! Step 2 (no client): what the resource asks for, resolved and sound, or why it cannot be done.
//!
//! The rules that the API server checks run again here: it may hold objects from before a rule was there. Whoever has
//! a [`Validated`] need not look at the resource itself any more: all defaults are filled in.

pub mod by_hand;
mod guard;
mod roles;
mod schedules;
mod takeover;
mod targets;
mod warm_up;

use std::collections::BTreeMap;

use cabloy_crds::{
    files,
    names::DEFAULT_BEAN_PATH,
    resource::{Agent, App, CabloyClusterSpec, DeletionPolicy, Election, Generation, OnRedisChange, Scope},
};
use k8s_openapi::api::core::v1::ResourceRequirements;

pub use roles::{ResolvedRole, Secret, endpoint, server};

use crate::{
    names::{MAX_NAME, role_config_map},
    workload::WorkloadRef,
};

/// Which resource it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The generation of its spec.
    pub generation: i64,
}

/// Why the resource cannot be followed. The variant's name is the reason of the condition and of the Event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is wrong.
    #[error("{field}: {message}")]
    Invalid {
        /// The field.
        field: String,
        /// What is wrong, and what to write instead.
        message: String,
    },
    /// It would be right, but this version cannot do it.
    #[error("{field}: {message}")]
    NotSupportedYet {
        /// The field.
        field: String,
        /// What is not supported, and what to write instead.
        message: String,
    },
}

impl Refusal {
    /// The reason of the condition.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "Invalid",
            Self::NotSupportedYet { .. } => "NotSupportedYet",
        }
    }

    pub(crate) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), message: message.into() }
    }

    pub(crate) fn unsupported(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::NotSupportedYet { field: field.into(), message: message.into() }
    }
}

/// What is known of the election by the masters that are in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Masters {
    /// No masters have been applied yet, or there are no agents that could use them.
    #[default]
    Free,
    /// These have been applied; nobody leads by them, and nobody reaches a majority of them.
    Idle(Vec<String>),
    /// These have been applied, and are in use: by whom.
    InUse(Vec<String>, String),
}

/// A workload as the resource names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Which one.
    pub reference: WorkloadRef,
    /// The container that runs the app; the first if `None`.
    pub container: Option<String>,
    /// Whether its pods may lead.
    pub elect: bool,
    /// What the app needs in `NODE_OPTIONS`.
    pub node_options: String,
}

/// The agent beside the app.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentPlan {
    /// Version that the resource asks for.
    pub version: Option<String>,
    /// CPU and memory that the resource asks for.
    pub resources: ResourceRequirements,
    /// How the leader is elected.
    pub election: files::Election,
    /// Where traces of runs go.
    pub tracing: Option<files::Tracing>,
}

/// What the resource asks for: sound, and with all defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Validated {
    /// Which resource it is.
    pub identity: Identity,
    /// The app.
    pub app: files::App,
    /// Secrets with further configuration of the app.
    pub config_from: Vec<String>,
    /// Whether an app of Vona merges what it is given into its configuration.
    pub merges_config: bool,
    /// How many seconds a pod that is to end still serves before the app gets SIGTERM, if the resource says it.
    pub pause: Option<i64>,
    /// The workloads.
    pub workloads: Vec<Workload>,
    /// The roles, in the order of their names.
    pub roles: Vec<ResolvedRole>,
    /// The agent, if there is to be one.
    pub agent: Option<AgentPlan>,
    /// What the leader runs, and when.
    pub schedules: Vec<files::Schedule>,
    /// What is done when a revision or a pod starts.
    pub startups: Vec<files::Startup>,
    /// The startup tasks as they are written, by name: what is left out may get another default with another version
    /// of the operator, and that makes it no other task.
    pub tasks: BTreeMap<String, cabloy_crds::resource::Startup>,
    /// Whether workloads are rolled when what the app reads at boot has changed.
    pub on_redis_change: OnRedisChange,
    /// The guard of the app's own schedules, if there is to be one; which revisions are the newest is to be added.
    pub guard: Option<files::Guard>,
    /// Where the app's own schedules are that are taken over, if any are.
    pub takeover: Option<files::Takeover>,
    /// Whether there is something to do that takes a leader.
    pub needs_leader: bool,
    /// What is allowed, but somebody should look at.
    pub warnings: Vec<String>,
    /// What was asked for by annotation and cannot be done; see [`by_hand`].
    pub bad_triggers: Vec<Refusal>,
    /// Startup tasks to be done once more, and under which id; see [`by_hand`].
    pub reruns: BTreeMap<String, String>,
}

impl Validated {
    /// The role called `name`.
    #[must_use]
    pub fn role(&self, name: &str) -> Option<&ResolvedRole> {
        self.roles.iter().find(|role| role.name == name)
    }
}

/// What becomes of our part of the workloads when the resource is deleted.
#[must_use]
pub fn deletion_policy(spec: &CabloyClusterSpec) -> DeletionPolicy {
    spec.deletion_policy.unwrap_or_default()
}

/// Checks `spec`, and fills in what it leaves out.
///
/// # Errors
/// All that is wrong with it, in the order of the fields.
pub fn validate(identity: &Identity, spec: &CabloyClusterSpec, masters: &Masters) -> Result<Validated, Vec<Refusal>> {
    let mut refusals = Vec::new();
    let mut warnings = Vec::new();
    let CabloyClusterSpec {
        app,
        workloads,
        redis,
        native_schedules,
        native_schedule_history,
        agent,
        schedules,
        startups,
        rollout,
        deletion_policy: _,
    } = spec;
    check_name(identity, &mut refusals);
    check_app(app, &mut refusals);
    let workloads = workloads_of(workloads, app.generation, &mut refusals);

    let default_agent = Agent::default();
    let agent = agent.as_ref().unwrap_or(&default_agent);
    let roles = roles::resolve(app, redis, &mut refusals, &mut warnings);
    for role in &roles {
        let name = role_config_map(&identity.name, &role.name);
        if name.len() > MAX_NAME {
            refusals.push(Refusal::invalid(
                format!("redis.roles.{}", role.name),
                format!("its ConfigMap {name} would have more than {MAX_NAME} characters: write a shorter name"),
            ));
        }
    }
    roles::check_masters(&roles, masters, &mut refusals);

    let guard = guard::resolve(app, *native_schedules, native_schedule_history.as_ref(), &roles, &mut refusals);
    let guards = guard.is_some();
    let takeover = takeover::resolve(app, schedules, &roles, &mut refusals);
    let tasks = startups.iter().map(|task| (task.name.clone(), task.clone())).collect();
    let context = targets::Context { app, roles: &roles };
    let (schedules, mut startups) = schedules::resolve(&context, schedules, startups, &mut refusals);
    let cluster_tasks = startups.iter().any(|task| task.scope == Scope::Cluster);
    let needs_leader = !schedules.is_empty() || cluster_tasks || guards;
    warm_up::check(app, &startups, &mut refusals);
    let has_work = !schedules.is_empty() || !startups.is_empty() || guards;
    if has_work && !agent.enabled() {
        refusals.push(Refusal::invalid(
            "agent.enabled",
            "schedules, startups and the guard of nativeSchedules are the agent's work: set it to true, or remove them",
        ));
    }
    if needs_leader && !roles.iter().any(|role| role.name == cabloy_crds::names::REDLOCK_ROLE) {
        refusals.push(Refusal::invalid(
            "redis.roles.redlock",
            "schedules, startups and the guard of nativeSchedules need a leader, and the leader is elected on role redlock: add it, or a connection named default",
        ));
    }

    let plan = agent.enabled().then(|| agent_plan(agent));
    let wrong = plan.iter().filter_map(|plan| plan.tracing.as_ref()).flat_map(files::Tracing::wrong);
    refusals.extend(wrong.map(|(field, message)| Refusal::invalid(format!("agent.tracing.{field}"), message)));

    if !refusals.is_empty() {
        return Err(refusals);
    }
    startups.extend(warm_up::task(app, &schedules, &startups));
    Ok(Validated {
        identity: identity.clone(),
        app: files::App {
            name: app.name.clone(),
            generation: app.generation,
            port: app.port(),
            health: health(app.generation, app.health_path.as_deref()),
        },
        config_from: app.config_from.iter().map(|source| source.secret_ref.name.clone()).collect(),
        merges_config: app.merges_config(),
        pause: pause(app),
        workloads,
        roles,
        agent: plan,
        schedules,
        startups,
        tasks,
        on_redis_change: rollout.as_ref().and_then(|rollout| rollout.on_redis_change).unwrap_or_default(),
        guard,
        takeover,
        needs_leader,
        warnings,
        bad_triggers: Vec::new(),
        reruns: BTreeMap::new(),
    })
}

fn agent_plan(agent: &Agent) -> AgentPlan {
    let ttl = agent.election.as_ref().and_then(|election| election.ttl).unwrap_or(Election::DEFAULT_TTL);
    AgentPlan {
        version: agent.version.clone(),
        resources: agent.resources.clone().unwrap_or_default(),
        election: files::Election { ttl_ms: ttl.as_millis() },
        tracing: agent.tracing.as_ref().map(|tracing| files::Tracing {
            endpoint: tracing.endpoint.clone(),
            sample_ratio: tracing.sample_ratio.unwrap_or(1.0),
        }),
    }
}

fn check_name(identity: &Identity, refusals: &mut Vec<Refusal>) {
    if identity.name.len() > 40 || !is_label(&identity.name) {
        refusals.push(Refusal::invalid(
            "metadata.name",
            "must be at most 40 lower-case letters, digits and '-': the names of ConfigMaps are made from it",
        ));
    }
}

fn check_app(app: &App, refusals: &mut Vec<Refusal>) {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !app.name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !app.name.chars().all(word) || app.name.len() > 63
    {
        refusals.push(Refusal::invalid(
            "app.name",
            "must be the name in the app's package.json: letters, digits, '.', '_' and '-', beginning with a letter or digit",
        ));
    }
    if app.port.is_some_and(|port| u16::try_from(port).is_err() || port == 0) {
        refusals.push(Refusal::invalid("app.port", "must be between 1 and 65535"));
    }
    if app.health_path.as_deref().is_some_and(|path| !is_path(path)) {
        refusals.push(Refusal::invalid("app.healthPath", "must be a path that begins with '/', such as /healthz"));
    }
    if app.bean_path.as_deref().is_some_and(|path| !is_path(path)) {
        refusals.push(Refusal::invalid(
            "app.beanPath",
            format!("must be a path that begins with '/', such as {DEFAULT_BEAN_PATH}"),
        ));
    }
    if app.bean_path.is_some() && app.generation == Generation::Generic {
        refusals.push(Refusal::invalid(
            "app.beanPath",
            "is the route of CabloyJS' integration module, and generation generic has none: remove it, or set another app.generation",
        ));
    }
    if app.drain.as_ref().and_then(|drain| drain.pause).is_some_and(|pause| pause.as_millis() % 1_000 != 0) {
        refusals.push(Refusal::invalid("app.drain.pause", "must be whole seconds, such as 5s"));
    }
    if app.merges_config == Some(true) && app.generation != Generation::Vona {
        refusals.push(Refusal::invalid("app.mergesConfig", "is for generation vona: remove it"));
    }
    if !app.config_from.is_empty() && app.generation != Generation::V4 && !app.merges_config() {
        refusals.push(Refusal::invalid(
            "app.configFrom",
            "is merged into the configuration of generation v4, and of vona with mergesConfig: remove it, or set one of these",
        ));
    }
}

fn pause(app: &App) -> Option<i64> {
    let seconds = app.drain.as_ref()?.pause?.as_millis() / 1_000;
    Some(i64::try_from(seconds).unwrap_or(i64::MAX))
}

/// How the agent asks whether the app is alive. For v4 without a path the app's own echo is asked, which answers on
/// every installation of `CabloyJS`.
fn health(generation: Generation, path: Option<&str>) -> files::Health {
    use cabloy_crds::vocabulary::Method;
    match (path, generation) {
        (Some(path), _) => files::Health::Http { method: Method::Get, path: path.to_owned() },
        (None, Generation::V4) => {
            files::Health::Http { method: Method::Post, path: cabloy_crds::names::ECHO_PATH.to_owned() }
        }
        (None, Generation::Vona | Generation::Generic) => files::Health::Tcp {},
    }
}

fn workloads_of(
    workloads: &[cabloy_crds::resource::Workload],
    generation: Generation,
    refusals: &mut Vec<Refusal>,
) -> Vec<Workload> {
    if workloads.is_empty() {
        refusals.push(Refusal::invalid("workloads", "nobody runs the app: name at least one workload"));
    }
    let mut seen = Vec::new();
    for (index, workload) in workloads.iter().enumerate() {
        let field = |name: &str| format!("workloads[{index}].{name}");
        let reference = WorkloadRef { kind: workload.kind(), name: workload.name.clone() };
        if seen.contains(&reference) {
            refusals.push(Refusal::invalid(field("name"), format!("{reference} is listed twice: remove one of them")));
        }
        if workload.container.as_deref() == Some(cabloy_crds::names::AGENT_CONTAINER) {
            refusals.push(Refusal::invalid(
                field("container"),
                "must be the app's container: cabloy-agent is the agent's own",
            ));
        }
        match (&workload.node_options, generation) {
            (Some(_), Generation::Generic) => refusals.push(Refusal::invalid(
                field("nodeOptions"),
                "is for the preload, which generation generic does without: remove it",
            )),
            (Some(options), _) if !options.chars().all(|c| matches!(c, ' '..='~')) => refusals.push(Refusal::invalid(
                field("nodeOptions"),
                "must be one line of printable ASCII, such as --max-old-space-size=512",
            )),
            _ => {}
        }
        seen.push(reference);
    }
    workloads
        .iter()
        .zip(seen)
        .map(|(workload, reference)| Workload {
            reference,
            container: workload.container.clone(),
            elect: workload.elect(),
            node_options: workload.node_options.clone().unwrap_or_default().trim().to_owned(),
        })
        .collect()
}

/// Lower-case letters, digits and `-`, not at the ends.
fn is_label(text: &str) -> bool {
    !text.is_empty()
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// A path with its query, as it stands in a request line.
fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.chars().all(|c| !c.is_whitespace() && !c.is_control() && c != '#')
}

#[cfg(test)]
pub(crate) mod tests;
