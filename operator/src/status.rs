//! Step 5: what is said of a resource: a pure computation, and one write where it says something new.
//!
//! Each condition answers one question, in words that say what to do; `Ready` sums them up. `Reconciling` and `Stalled`
//! are those that kstatus, and with it Argo CD and Flux, understand.

mod guard;
mod takeover;

pub use takeover::takes_over;

use std::{collections::BTreeMap, time::Duration};

use cabloy_crds::{
    CabloyCluster, CabloyClusterStatus,
    agent_status::{self, AgentStatus, Problem, StartupState, Verdict},
    names::REDLOCK_ROLE,
    resource::{LeaderStatus, RoleStatus, ScheduleStatus, StartupStatus, WorkloadStatus},
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{
    agents::{AgentPod, Report},
    apply::{Applied, Outcome},
    build::Note,
    dereference::Found,
    names::{FIELD_MANAGER, role_config_map},
    validate::{Identity, Refusal, Validated, endpoint},
    workload::{Live, WorkloadRef},
};

/// How long a status may be out of date where only ticks have passed.
pub const TICK_PACE: Duration = Duration::from_secs(30);

/// The longest message of a condition; the API server takes 32 KiB, people less.
const MAX_MESSAGE: usize = 1_000;

/// Conditions that somebody should look at, but that make no resource unready.
const ADVICE: &[&str] = &[
    "UpdateAvailable",
    "NativeSchedulesGuarded",
    "RedisConfigured",
    "StateKept",
    "SchedulesHealthy",
    "SchedulesTakenOver",
    "CallsSigned",
    "TracesExported",
];

/// Reasons that may go away by themselves; all others take somebody to act.
const PASSING: &[&str] = &[
    "RollingOut",
    "WaitingForPods",
    "WaitingForJobs",
    "NativeIsBack",
    "NoLeader",
    "NoAnswer",
    "StartupPending",
    "StartupRunning",
    "AppUnhealthy",
    "NotWarm",
    "UnknownRevision",
    "MissingFile",
    "Unreachable",
    "Timeout",
    "Loading",
];

pub use guard::put_back;

/// Why the status could not be written. The variant's name is the Event's reason.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server does not answer, or refuses.
    #[error("the status cannot be written: {0}")]
    WriteStatus(Box<kube::Error>),
}

impl Error {
    /// The Event's reason.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::WriteStatus(_) => "WriteStatus",
        }
    }
}

/// The answer to the question of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Yes.
    True,
    /// No.
    False,
    /// Nobody knows yet.
    Unknown,
}

impl Answer {
    fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// A condition before it is known when it came to be so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    type_: &'static str,
    answer: Answer,
    reason: String,
    message: String,
}

fn said(type_: &'static str, answer: Answer, reason: impl Into<String>, message: impl Into<String>) -> Said {
    let mut message = message.into();
    if let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE) {
        message.truncate(end);
        message.push('…');
    }
    Said { type_, answer, reason: reason.into(), message }
}

/// What a reconciliation came to.
#[derive(Clone, Debug)]
pub enum Result<'a> {
    /// It was applied.
    Applied(&'a Validated, &'a Applied),
    /// It was refused, and nothing was written.
    Refused(&'a [Refusal]),
}

/// The status of a resource.
#[must_use]
pub fn compute(
    identity: &Identity,
    found: &Found,
    result: &Result<'_>,
    before: Option<&CabloyClusterStatus>,
    now: Timestamp,
) -> CabloyClusterStatus {
    let mut conditions = Vec::new();
    let mut status =
        CabloyClusterStatus { observed_generation: Some(identity.generation), ..CabloyClusterStatus::default() };
    match result {
        Result::Refused(refusals) => {
            let reason = refusals.first().map_or("Invalid", Refusal::reason);
            let messages: Vec<_> = refusals.iter().map(ToString::to_string).collect();
            conditions.push(said("Accepted", Answer::False, reason, messages.join("; ")));
            // What was applied before stays, and so does what was said of it.
            if let Some(before) = before {
                status.roles.clone_from(&before.roles);
                status.workloads.clone_from(&before.workloads);
            }
            if before.is_some_and(|before| !before.workloads.is_empty()) {
                conditions.extend(about_agents(found, false));
            }
        }
        Result::Applied(validated, applied) => {
            let message = match validated.warnings.as_slice() {
                [] => "the resource is sound".to_owned(),
                warnings => warnings.join("; "),
            };
            let reason = if validated.warnings.is_empty() { "Accepted" } else { "AcceptedWithWarnings" };
            conditions.push(said("Accepted", Answer::True, reason, message));
            conditions.push(workloads_applied(applied));
            conditions.push(rolled_out(applied));
            if validated.agent.is_some() {
                conditions
                    .extend(about_agents(found, validated.needs_leader || validated.role(REDLOCK_ROLE).is_some()));
                conditions.push(calls_signed(found, applied.signing_refused.as_deref()));
                conditions.extend(traces_exported(validated, found));
                conditions.extend(startups_done(validated, found));
                conditions.push(update_available(applied));
            }
            if !validated.bad_triggers.is_empty() {
                bad_triggers(&validated.bad_triggers, &mut conditions);
            }
            conditions.extend(guard::guarded(validated.guard.as_ref(), &said_by_agents(found)));
            conditions.extend(takeover::taken_over(validated, found));
            status.roles = roles(validated);
            status.workloads =
                applied.workloads.iter().map(|(reference, outcome)| workload(reference, outcome)).collect();
        }
    }
    let ready = sum_up(&conditions);
    conditions.splice(0..0, ready);
    status.conditions = dated(conditions, before, identity.generation, now);
    about_work(found, &mut status);
    status
}

/// A status of a resource that is not reconciled, and why.
#[must_use]
pub fn held(
    identity: &Identity,
    reason: &str,
    message: &str,
    before: Option<&CabloyClusterStatus>,
    now: Timestamp,
) -> CabloyClusterStatus {
    let (ready, reconciling, stalled) = match reason {
        "Paused" => (Answer::Unknown, Answer::False, Answer::False),
        "Withdrawing" => (Answer::False, Answer::True, Answer::False),
        _ => (Answer::False, Answer::False, Answer::True),
    };
    let mut all = vec![
        said("Ready", ready, reason, message),
        said("Reconciling", reconciling, reason, message),
        said("Stalled", stalled, reason, message),
    ];
    if reason == "Malformed" {
        all.push(said("Accepted", Answer::False, reason, message));
    }
    let mut conditions = dated(all, before, identity.generation, now);
    let mut status = before.cloned().unwrap_or_default();
    let others = status.conditions.into_iter().filter(|old| !conditions.iter().any(|new| new.type_ == old.type_));
    let others: Vec<_> = others.collect();
    conditions.extend(others);
    status.conditions = conditions;
    status
}

/// Says with the schedules' condition what was asked for by annotation and cannot be done.
fn bad_triggers(refusals: &[Refusal], conditions: &mut Vec<Said>) {
    const TYPE: &str = "SchedulesHealthy";
    let mut messages: Vec<_> = refusals.iter().map(ToString::to_string).collect();
    if let Some(at) = conditions.iter().position(|condition| condition.type_ == TYPE) {
        let known = conditions.remove(at);
        messages.extend((known.answer == Answer::False).then_some(known.message));
    }
    conditions.push(said(TYPE, Answer::False, "BadTrigger", messages.join("; ")));
}

/// Sums the other conditions up, as kstatus has it.
fn sum_up(conditions: &[Said]) -> Vec<Said> {
    let counts = |condition: &&Said| !ADVICE.contains(&condition.type_);
    let failing = conditions.iter().filter(counts).find(|condition| condition.answer == Answer::False);
    let unknown = conditions.iter().filter(counts).find(|condition| condition.answer == Answer::Unknown);
    let Some(worst) = failing.or(unknown) else {
        return vec![
            said("Ready", Answer::True, "Ready", "everything is as the resource asks"),
            said("Reconciling", Answer::False, "Done", "nothing is left to do"),
            said("Stalled", Answer::False, "Done", "nothing is in the way"),
        ];
    };
    // What time alone will mend, and what takes somebody to act.
    let waits = worst.answer == Answer::Unknown || PASSING.contains(&worst.reason.as_str());
    let (reason, message) = (worst.reason.clone(), worst.message.clone());
    let (reconciling, stalled) = if waits { (Answer::True, Answer::False) } else { (Answer::False, Answer::True) };
    vec![
        said("Ready", Answer::False, reason.clone(), message.clone()),
        said("Reconciling", reconciling, if waits { reason.as_str() } else { "Blocked" }, message.clone()),
        said("Stalled", stalled, if waits { "InProgress" } else { reason.as_str() }, message),
    ]
}

fn workloads_applied(applied: &Applied) -> Said {
    let left: Vec<_> = applied
        .workloads
        .iter()
        .filter_map(|(reference, outcome)| match outcome {
            Outcome::Left(blocked) => Some((reference, blocked)),
            Outcome::Applied { .. } => None,
        })
        .collect();
    if let Some((_, first)) = left.first() {
        let messages: Vec<_> = left.iter().map(|(reference, blocked)| format!("{reference}: {blocked}")).collect();
        return said("WorkloadsApplied", Answer::False, first.reason(), messages.join("; "));
    }
    let notes = applied.workloads.iter().flat_map(|(reference, outcome)| match outcome {
        Outcome::Applied { notes, .. } => notes.iter().filter_map(|note| remark(reference, note)).collect(),
        Outcome::Left(_) => Vec::new(),
    });
    let notes: Vec<_> = notes.collect();
    match notes.first() {
        None => said("WorkloadsApplied", Answer::True, "Applied", "all workloads have their configuration"),
        Some((reason, _)) => {
            let messages: Vec<_> = notes.iter().map(|(_, message)| message.as_str()).collect();
            said("WorkloadsApplied", Answer::True, *reason, messages.join("; "))
        }
    }
}

/// What somebody should know of a workload that has our part.
fn remark(reference: &WorkloadRef, note: &Note) -> Option<(&'static str, String)> {
    match note {
        Note::EnvFrom => Some((
            "AppliedOverEnvFrom",
            format!(
                "{reference}: envFrom may hold NODE_OPTIONS too; ours goes before it: move its flags to workloads[].nodeOptions"
            ),
        )),
        Note::PauseShortened { asked, grace } => Some((
            "GracePeriodTooShort",
            format!(
                "{reference}: of the {grace} s that its pods have to end, the pause before SIGTERM takes {} s, and should take {asked} s: \
                 write terminationGracePeriodSeconds: {} or more in its manifest, or a shorter app.drain.pause here",
                grace / 2,
                2 * asked
            ),
        )),
        Note::RolloutPending | Note::SecretsChanged | Note::UpdateAvailable { .. } => None,
    }
}

fn with_note<'a>(applied: &'a Applied, note: &'a Note) -> impl Iterator<Item = &'a WorkloadRef> {
    applied.workloads.iter().filter_map(move |(reference, outcome)| match outcome {
        Outcome::Applied { notes, .. } => notes.contains(note).then_some(reference),
        Outcome::Left(_) => None,
    })
}

fn rolled_out(applied: &Applied) -> Said {
    let pending: Vec<_> = with_note(applied, &Note::RolloutPending).map(ToString::to_string).collect();
    if !pending.is_empty() {
        return said(
            "RolledOut",
            Answer::False,
            "RolloutPending",
            format!(
                "{} boots on an older Redis configuration or runs on older passwords, as rollout.onRedisChange is Manual: \
                 set it to Restart to roll it",
                pending.join(", ")
            ),
        );
    }
    let rolling: Vec<_> = applied
        .workloads
        .iter()
        .filter_map(|(reference, outcome)| match outcome {
            Outcome::Applied { live, .. } => rolling(reference, live),
            Outcome::Left(_) => None,
        })
        .collect();
    match rolling.first() {
        None => said("RolledOut", Answer::True, "RolledOut", "all pods are of the newest revision and ready"),
        Some((reason, _)) => {
            let messages: Vec<_> = rolling.iter().map(|(_, message)| message.clone()).collect();
            said("RolledOut", Answer::False, *reason, messages.join("; "))
        }
    }
}

fn rolling(reference: &WorkloadRef, live: &Live) -> Option<(&'static str, String)> {
    let wanted = live.replicas(reference.kind);
    let progress = live.progress(reference.kind);
    let seen = live.observed_generation() >= live.generation();
    if seen && progress.updated >= wanted && progress.available >= wanted && progress.total <= progress.updated {
        return None;
    }
    if let Some(failure) = live.rollout_failure().filter(|_| seen) {
        return Some(("RolloutFailed", format!("{reference}: {failure}: see its pods")));
    }
    let message = format!(
        "{reference}: {} of {wanted} pods are of the newest revision, {} are ready",
        progress.updated.min(wanted),
        progress.available
    );
    Some(("RollingOut", message))
}

/// The pods whose agents should answer.
fn running(found: &Found) -> impl Iterator<Item = &AgentPod> {
    found.pods.iter().filter(|pod| pod.agent_runs && !pod.terminating)
}

fn said_by_agents(found: &Found) -> Vec<&AgentStatus> {
    running(found).filter_map(|pod| found.reports.get(&pod.uid)?.status()).collect()
}

/// What the agents say: whether they can be asked, and what is in their way.
fn about_agents(found: &Found, needs_leader: bool) -> Vec<Said> {
    let failed: Vec<_> = running(found)
        .filter_map(|pod| match found.reports.get(&pod.uid) {
            Some(Report::Failed(error)) => Some(format!("{}: {error}", pod.name)),
            _ => None,
        })
        .collect();
    let statuses = said_by_agents(found);
    let reachable = if failed.is_empty() {
        if statuses.is_empty() {
            said("AgentsReachable", Answer::Unknown, "NoAgents", "no agent runs yet")
        } else {
            said("AgentsReachable", Answer::True, "Reachable", "all agents answer")
        }
    } else {
        said(
            "AgentsReachable",
            Answer::False,
            "NoAnswer",
            format!(
                "agents do not answer on port {}; let a network policy or mesh admit the operator: {}",
                cabloy_crds::names::AGENT_PORT,
                failed.join("; ")
            ),
        )
    };
    let mut all = vec![reachable];
    if statuses.is_empty() {
        for type_ in ["CredentialsAvailable", "RedisReachable"] {
            all.push(said(type_, Answer::Unknown, "NoAgents", "no agent has been asked yet"));
        }
        if needs_leader {
            all.push(said("LeaderElected", Answer::Unknown, "NoAgents", "no agent has been asked yet"));
        }
        return all;
    }
    let problems: Vec<_> = statuses.iter().flat_map(|status| of_agent(status)).collect();
    let of = |about: About| {
        let own = problems.iter().filter(|(_, _, is)| *is == about);
        own.map(|(pod, problem, _)| (*pod, *problem)).collect::<Vec<_>>()
    };
    all.extend([
        from_problems("CredentialsAvailable", &of(About::Credentials), "all agents have the secrets that they need"),
        from_problems("RedisReachable", &of(About::Reach), "all agents reach the masters of role redlock"),
        from_problems("RedisConfigured", &of(About::Configuration), "nothing is amiss with the masters' configuration"),
        from_problems("StateKept", &of(About::Memory), "the masters of role redlock remember what was acknowledged"),
        from_problems("AgentsHealthy", &of(About::Agent), "agents and the apps beside them are well"),
        from_problems("SchedulesHealthy", &of(About::Work), "no schedule has failed of late"),
    ]);
    if needs_leader {
        all.push(leader_elected(&statuses));
    }
    all
}

/// Whether the app can tell calls of its agent from others.
fn calls_signed(found: &Found, refused: Option<&str>) -> Said {
    const TYPE: &str = "CallsSigned";
    let statuses = said_by_agents(found);
    let problems: Vec<_> = statuses
        .iter()
        .flat_map(|status| of_agent(status))
        .filter(|(_, _, about)| *about == About::Signing)
        .map(|(pod, problem, _)| (pod, problem))
        .collect();
    if !problems.is_empty() {
        let mut said = from_problems(TYPE, &problems, "");
        if let Some(refused) = refused {
            said.message = format!("{}; the operator may make no Secret for it: {refused}", said.message);
        }
        return said;
    }
    match statuses.iter().find(|status| status.signing.keys == 0) {
        Some(status) => said(
            TYPE,
            Answer::False,
            "NotSigned",
            format!("the agent of pod {} was put in without a key: write a newer agent.version to roll it", status.pod),
        ),
        None if statuses.is_empty() => said(TYPE, Answer::Unknown, "NoAgents", "no agent has been asked yet"),
        None => said(TYPE, Answer::True, "Signed", "agents sign their calls to the app"),
    }
}

/// Whether what is to be traced gets where it is to go.
fn traces_exported(validated: &Validated, found: &Found) -> Option<Said> {
    const TYPE: &str = "TracesExported";
    validated.agent.as_ref()?.tracing.as_ref()?;
    let statuses = said_by_agents(found);
    if statuses.is_empty() {
        return Some(said(TYPE, Answer::Unknown, "NoAgents", "no agent has been asked yet"));
    }
    let problems = statuses.iter().flat_map(|status| of_agent(status));
    let problems: Vec<_> =
        problems.filter(|(_, _, about)| *about == About::Traces).map(|(pod, it, _)| (pod, it)).collect();
    Some(from_problems(TYPE, &problems, "no agent has failed to export what it had"))
}

/// What a problem of an agent is about, and so which condition tells of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum About {
    Credentials,
    Signing,
    Reach,
    Configuration,
    Memory,
    Work,
    Guard,
    Takeover,
    Traces,
    Agent,
}

/// The problems of an agent, and what each is about: its pod, the problem, the condition.
fn of_agent(status: &AgentStatus) -> impl Iterator<Item = (&str, &Problem, About)> {
    let masters =
        status.election.iter().flat_map(|election| &election.masters).filter_map(|master| master.problem.as_ref());
    // Agents list the problems of masters among their own as well.
    let is_of_master = |problem: &&Problem| masters.clone().any(|of_master| of_master == *problem);
    let own = status.problems.iter().filter(|problem| !is_of_master(problem)).map(|problem| {
        let about = match problem.reason.as_str() {
            "MissingSecret" => About::Credentials,
            "MissingSigningKey" | "InvalidSigningKey" => About::Signing,
            "StateLost" | "MastersMissing" => About::Memory,
            "SpansNotExported" => About::Traces,
            "TickFailed" | "TickUnknown" | "ScheduleDisabled" | "SchedulePaused" | "UnreadableResult"
            | "InstanceLocked" => About::Work,
            "NotGuarded" => About::Guard,
            "NotTakenOver" => About::Takeover,
            _ => About::Agent,
        };
        (problem, about)
    });
    let own: Vec<_> = own.collect();
    let masters = masters.map(|problem| {
        let about = match problem.reason.as_str() {
            "RedisConfiguration" | "ClockSkew" => About::Configuration,
            "LostMemory" => About::Memory,
            _ => About::Reach,
        };
        (problem, about)
    });
    own.into_iter().chain(masters).map(|(problem, about)| (status.pod.as_str(), problem, about))
}

fn from_problems(type_: &'static str, problems: &[(&str, &Problem)], good: &str) -> Said {
    // Many pods see the same; each problem is said once.
    let mut seen: BTreeMap<&Problem, Vec<&str>> = BTreeMap::new();
    for (pod, problem) in problems {
        seen.entry(problem).or_default().push(pod);
    }
    let Some((first, _)) = seen.first_key_value() else { return said(type_, Answer::True, "Fine", good) };
    let messages: Vec<_> = seen
        .iter()
        .map(|(problem, pods)| {
            let place = problem.path.as_deref().map(|path| format!("{path}: ")).unwrap_or_default();
            let others = if pods.len() > 1 { format!(" and {} more", pods.len() - 1) } else { String::new() };
            format!("{place}{} (pod {}{others})", problem.message, pods[0])
        })
        .collect();
    said(type_, Answer::False, first.reason.clone(), messages.join("; "))
}

fn leading<'a>(statuses: &[&'a AgentStatus]) -> Option<(&'a AgentStatus, &'a agent_status::ElectionStatus)> {
    statuses
        .iter()
        .filter_map(|status| Some((*status, status.election.as_ref()?)))
        .filter(|(_, election)| election.leading)
        .max_by_key(|(_, election)| election.token)
}

fn leader_elected(statuses: &[&AgentStatus]) -> Said {
    if let Some((status, _)) = leading(statuses) {
        return said("LeaderElected", Answer::True, "Elected", format!("pod {} leads", status.pod));
    }
    let standing =
        statuses.iter().filter(|status| status.election.as_ref().is_some_and(|election| election.standing)).count();
    let message = if standing == 0 {
        "no pod leads, and none stands: an agent stands when its app answers its health check".to_owned()
    } else {
        format!("no pod leads; {standing} stand")
    };
    said("LeaderElected", Answer::False, "NoLeader", message)
}

fn startups_done(validated: &Validated, found: &Found) -> Option<Said> {
    if validated.startups.is_empty() {
        return None;
    }
    let startups = merged_startups(found);
    let in_state = |state: StartupState| startups.values().find(|task| task.state == state);
    Some(if let Some(task) = in_state(StartupState::Failed) {
        said(
            "StartupsDone",
            Answer::False,
            "StartupFailed",
            format!(
                "task {} failed: {}; pods of its revision do not become ready: mend the app or the task",
                task.name, task.message
            ),
        )
    } else if let Some(task) = in_state(StartupState::Running) {
        said("StartupsDone", Answer::False, "StartupRunning", format!("task {} runs", task.name))
    } else if let Some(task) = in_state(StartupState::Pending) {
        said("StartupsDone", Answer::False, "StartupPending", format!("task {} waits {}", task.name, task.message))
    } else if startups.is_empty() {
        said("StartupsDone", Answer::Unknown, "NoAgents", "no agent has been asked yet")
    } else {
        said("StartupsDone", Answer::True, "Done", "all startup tasks are done")
    })
}

/// The tasks over all pods: of the same task and revision, what the pod says that knows most.
fn merged_startups(found: &Found) -> BTreeMap<(String, String), agent_status::StartupStatus> {
    let rank = |state: StartupState| match state {
        StartupState::Pending => 0,
        StartupState::Running => 1,
        StartupState::Failed => 2,
        StartupState::Done => 3,
    };
    let mut merged: BTreeMap<_, agent_status::StartupStatus> = BTreeMap::new();
    for pod in running(found) {
        let Some(status) = found.reports.get(&pod.uid).and_then(Report::status) else { continue };
        for task in &status.startups {
            // A task of scope Instance is each pod's own.
            let key = (
                task.name.clone(),
                if task.revision.is_empty() { format!("pod {}", pod.name) } else { task.revision.clone() },
            );
            let newer = merged.get(&key).is_none_or(|known| rank(task.state) > rank(known.state));
            if newer {
                merged.insert(key, task.clone());
            }
        }
    }
    merged
}

fn update_available(applied: &Applied) -> Said {
    let update = applied.workloads.iter().find_map(|(reference, outcome)| match outcome {
        Outcome::Applied { notes, .. } => notes.iter().find_map(|note| match note {
            Note::UpdateAvailable { present, available } => Some((reference, present, available)),
            Note::RolloutPending | Note::SecretsChanged | Note::EnvFrom | Note::PauseShortened { .. } => None,
        }),
        Outcome::Left(_) => None,
    });
    match update {
        None => {
            said("UpdateAvailable", Answer::False, "UpToDate", "agents are of the version that the operator brings")
        }
        Some((reference, present, available)) => said(
            "UpdateAvailable",
            Answer::True,
            "NewVersion",
            format!(
                "{reference} has {present}, and there is {available}: write its version to agent.version to roll it"
            ),
        ),
    }
}

fn roles(validated: &Validated) -> Vec<RoleStatus> {
    validated
        .roles
        .iter()
        .map(|role| RoleStatus {
            name: role.name.clone(),
            config_map: role_config_map(&validated.identity.name, &role.name),
            endpoints: role.clients().iter().map(|client| format!("{}/{}", endpoint(client), client.db)).collect(),
        })
        .collect()
}

fn workload(reference: &WorkloadRef, outcome: &Outcome) -> WorkloadStatus {
    let status = WorkloadStatus {
        kind: reference.kind.as_str().to_owned(),
        name: reference.name.clone(),
        ..WorkloadStatus::default()
    };
    match outcome {
        Outcome::Left(blocked) => {
            WorkloadStatus { state: blocked.reason().to_owned(), message: Some(blocked.to_string()), ..status }
        }
        Outcome::Applied { live, notes } => {
            let count = |number: i64| i32::try_from(number).ok();
            let wanted = live.replicas(reference.kind);
            let progress = live.progress(reference.kind);
            WorkloadStatus {
                state: if notes.contains(&Note::RolloutPending) { "RolloutPending" } else { "Applied" }.to_owned(),
                replicas: count(wanted),
                updated: count(progress.updated.min(progress.available)),
                boot: live.boot().map(str::to_owned),
                agent_version: live
                    .agent_image()
                    .and_then(|image| image.rsplit_once(':'))
                    .map(|(_, version)| version.to_owned()),
                ..status
            }
        }
    }
}

/// Leader, schedules and startup tasks, as the agents say.
fn about_work(found: &Found, status: &mut CabloyClusterStatus) {
    let statuses: Vec<_> = found.pods.iter().filter_map(|pod| found.reports.get(&pod.uid)?.status()).collect();
    if let Some((agent, election)) = leading(&statuses) {
        status.leader = Some(LeaderStatus {
            pod: agent.pod.clone(),
            token: election.token.and_then(|token| i64::try_from(token).ok()).unwrap_or_default(),
            since: election.since.map(|since| since.to_string()),
        });
        status.schedules = agent.schedules.iter().map(schedule).collect();
        status.native_schedules = guard::summary(agent);
    }
    status.startups = merged_startups(found)
        .into_values()
        .map(|task| StartupStatus {
            name: task.name,
            revision: Some(task.revision).filter(|revision| !revision.is_empty()),
            state: format!("{:?}", task.state),
            attempt: i32::try_from(task.attempt).ok(),
            message: Some(task.message).filter(|message| !message.is_empty()),
        })
        .collect();
}

fn schedule(schedule: &agent_status::ScheduleStatus) -> ScheduleStatus {
    let last = schedule.results.first();
    let count = |number: u64| i64::try_from(number).ok();
    ScheduleStatus {
        name: schedule.name.clone(),
        last_tick: last.map(|result| result.tick.to_string()),
        last_result: last.map(|result| match result.verdict {
            Verdict::Done => "Done".to_owned(),
            Verdict::Failed => format!("Failed: {}", result.reason),
            Verdict::Unknown => "Unknown".to_owned(),
        }),
        next_tick: schedule.next.map(|next| next.to_string()),
        waits_for: schedule.waits_for.clone(),
        missed: count(schedule.missed),
        failed: count(schedule.failed),
        paused: schedule.paused.then_some(true),
    }
}

/// Dates the conditions: one whose answer is as before keeps the time it came to be so.
fn dated(all: Vec<Said>, before: Option<&CabloyClusterStatus>, generation: i64, now: Timestamp) -> Vec<Condition> {
    all.into_iter()
        .map(|Said { type_, answer, reason, message }| {
            let old = before
                .into_iter()
                .flat_map(|before| &before.conditions)
                .find(|old| old.type_ == type_ && old.status == answer.as_str());
            Condition {
                type_: type_.to_owned(),
                status: answer.as_str().to_owned(),
                reason,
                message,
                observed_generation: Some(generation),
                // Whole seconds, as the API has them.
                last_transition_time: old.map_or_else(
                    || Time(Timestamp::from_second(now.as_second()).unwrap_or(now)),
                    |old| old.last_transition_time.clone(),
                ),
            }
        })
        .collect()
}

/// How much a new status says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Nothing.
    None,
    /// That ticks have passed.
    Ticks,
    /// Something that people wait for.
    Urgent,
}

/// How much `after` says beyond `before`.
#[must_use]
pub fn news(before: Option<&CabloyClusterStatus>, after: &CabloyClusterStatus) -> News {
    let Some(before) = before else { return News::Urgent };
    if before == after {
        return News::None;
    }
    let essence = |status: &CabloyClusterStatus| {
        let mut status = status.clone();
        if let Some(native) = &mut status.native_schedules {
            (native.put_back, native.last_put_back) = (0, None);
        }
        for schedule in &mut status.schedules {
            let ScheduleStatus { name, failed, waits_for, .. } = std::mem::take(schedule);
            *schedule = ScheduleStatus { name, failed, waits_for, ..ScheduleStatus::default() };
        }
        status
    };
    if essence(before) == essence(after) { News::Ticks } else { News::Urgent }
}

/// Conditions that have come to have another reason, and so are worth an Event.
#[must_use]
pub fn turned<'a>(before: Option<&CabloyClusterStatus>, after: &'a CabloyClusterStatus) -> Vec<&'a Condition> {
    // Events of their own tell of these, whichever schedule or task it is; see `events`.
    let told = |condition: &Condition| {
        matches!(condition.reason.as_str(), "TickFailed" | "TickUnknown" | "SchedulePaused" | "StartupFailed")
    };
    let summary = |condition: &Condition| matches!(condition.type_.as_str(), "Ready" | "Reconciling" | "Stalled");
    after
        .conditions
        .iter()
        .filter(|new| {
            let old = before.into_iter().flat_map(|before| &before.conditions).find(|old| old.type_ == new.type_);
            let turned = old.is_none_or(|old| old.reason != new.reason || old.status != new.status);
            // That all is well is said once, by Ready; what is unknown is no event.
            turned
                && !told(new)
                && if summary(new) { new.type_ == "Ready" && new.status == "True" } else { is_bad(new) }
        })
        .collect()
}

/// Whether a condition says that something is wrong.
fn is_bad(condition: &Condition) -> bool {
    match condition.type_.as_str() {
        "UpdateAvailable" => condition.status == "True",
        _ => condition.status == "False",
    }
}

/// Whether a condition says that something is wrong that does not go away by itself.
#[must_use]
pub fn is_alarming(condition: &Condition) -> bool {
    is_bad(condition) && condition.type_ != "UpdateAvailable" && !PASSING.contains(&condition.reason.as_str())
}

/// Writes the status.
///
/// # Errors
/// The API server does not answer, or refuses.
pub async fn write(
    client: &Client,
    identity: &Identity,
    status: &CabloyClusterStatus,
) -> std::result::Result<(), Error> {
    use kube::Resource as _;
    let patch = json!({
        "apiVersion": CabloyCluster::api_version(&()),
        "kind": CabloyCluster::kind(&()),
        "metadata": { "name": identity.name, "namespace": identity.namespace, "uid": identity.uid },
        "status": status,
    });
    let api = Api::<kube::api::DynamicObject>::namespaced_with(
        client.clone(),
        &identity.namespace,
        &kube::api::ApiResource::erase::<CabloyCluster>(&()),
    );
    match api.patch_status(&identity.name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(patch)).await {
        Ok(_) => Ok(()),
        // Gone meanwhile: nobody is left to read it.
        Err(kube::Error::Api(error)) if error.is_not_found() || error.is_conflict() => Ok(()),
        Err(error) => Err(Error::WriteStatus(Box::new(error))),
    }
}

#[cfg(test)]
mod tests;
