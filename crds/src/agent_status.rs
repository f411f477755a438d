//! What an agent says of itself at `/status`: the operator reads it from the pods.
//!
//! Fields that a reader does not know are to be left alone: agent and operator may be of different versions.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// `/status` of an agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// Version of the agent.
    pub version: String,
    /// `<namespace>/<cluster>`, once the files have been read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Name of the pod; outside Kubernetes the name that the agent was given.
    pub pod: String,
    /// Whether `/readyz` says yes.
    pub ready: bool,
    /// Whether the pod is about to end: the agent stands for no election.
    pub draining: bool,
    /// The revision of the app that the pod runs.
    pub revision: RevisionStatus,
    /// The files that the agent works by.
    pub config: ConfigStatus,
    /// The app beside the agent.
    pub app: AppStatus,
    /// How calls to the app are signed.
    #[serde(default)]
    pub signing: SigningStatus,
    /// All that somebody should look at.
    #[serde(default)]
    pub problems: Vec<Problem>,
    /// The election as this agent sees it; absent while there are no files or no masters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub election: Option<ElectionStatus>,
    /// The schedules; only the leader has any.
    #[serde(default)]
    pub schedules: Vec<ScheduleStatus>,
    /// The startup tasks of the pod's revision.
    #[serde(default)]
    pub startups: Vec<StartupStatus>,
    /// Whose attempts the leader waits for, as they may still run.
    #[serde(default)]
    pub awaits: BTreeSet<Awaited>,
    /// What the guard of the app's own schedules sees and does; only the leader has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<GuardStatus>,
}

/// The guard of the app's own schedules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardStatus {
    /// Whether pods of an older revision still run, or have until a moment ago: what they delete is put back.
    pub rolling: bool,
    /// How many queues of schedules there are; each instance of the app has one.
    pub queues: usize,
    /// How many schedules are in them.
    pub schedules: usize,
    /// How many were put back, as long as the guard remembers.
    pub put_back: u64,
    /// How many old jobs this leader has removed.
    #[serde(default)]
    pub trimmed: u64,
    /// What was put back last, newest first; 10 at most.
    #[serde(default)]
    pub last: Vec<PutBackStatus>,
}

/// A schedule of the app's own that was deleted, and put back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PutBackStatus {
    /// The queue.
    pub queue: String,
    /// The key of the repeatable job.
    pub key: String,
    /// When it was put back.
    pub at: Timestamp,
    /// Its next tick.
    pub next: Timestamp,
}

/// A pod that has begun an attempt, of which there is no result yet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Awaited {
    /// Name of the pod.
    pub pod: String,
    /// Its UID.
    pub uid: String,
    /// When it claimed the attempt, by the masters' clocks.
    pub since: Timestamp,
}

/// The revision of the app that a pod runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevisionStatus {
    /// The hash in the pod's labels; empty outside Kubernetes.
    pub hash: String,
    /// Its number in `agent.json`; absent while the hash is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
}

/// The files that an agent works by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigStatus {
    /// The first 16 hexadecimal digits of SHA-256 over `agent.json`, and for each role in the order of the names a zero
    /// byte, the name, a zero byte, and its `client.json`; absent while no files have been taken up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
    /// When they were taken up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loaded_at: Option<Timestamp>,
    /// Why the files as they now are have not been taken up; the agent works on by the ones before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The Redis servers of each role, as `host:port/db`.
    #[serde(default)]
    pub roles: BTreeMap<String, Vec<String>>,
    /// When kubelet brought the passwords that are mounted in the pod now; absent where none are. What a process of the pod
    /// read before may be others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets_at: Option<Timestamp>,
}

/// The app beside an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AppStatus {
    /// Whether it answers its health check.
    pub healthy: bool,
    /// What the last failed check met with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// How the last check failed; absent if it did not, or there has been none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<AppFailure>,
}

/// How a health check failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppFailure {
    /// Nothing listens on the app's port.
    Down,
    /// There was no answer in time, or none that could be read.
    NoAnswer,
    /// The answer was not a 2xx.
    BadAnswer,
}

/// How an agent signs its calls to the app.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SigningStatus {
    /// With how many keys; with none, calls are not signed.
    #[serde(default)]
    pub keys: usize,
}

/// Something that somebody should look at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Its kind in `CamelCase`, such as `MissingSecret`; see `docs/agent.md` for all of them.
    pub reason: String,
    /// What is wrong, and with what; never a secret.
    pub message: String,
    /// Where: a file, a field of a file, or the address of a server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// The election as one agent sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ElectionStatus {
    /// Whether this agent stands: its app answers, it is not draining, and it may.
    pub standing: bool,
    /// Whether this agent leads.
    pub leading: bool,
    /// The fencing token of its term, or of the leader it last saw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<u64>,
    /// Since when it leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// The pod that leads, as far as known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// The servers that vote.
    pub masters: Vec<MasterStatus>,
}

/// A server that votes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MasterStatus {
    /// `host:port`.
    pub address: String,
    /// Whether it can be used.
    pub reachable: bool,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// A schedule, as the leader drives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleStatus {
    /// Its name.
    pub name: String,
    /// When the first leader saw it.
    pub created: Timestamp,
    /// The next tick; absent while it is suspended, disabled or paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Timestamp>,
    /// The tick that runs now; the first, if several do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<Timestamp>,
    /// All that runs now, what was asked for by hand included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<RunStatus>,
    /// How many ticks wait for a run to end.
    #[serde(default)]
    pub waiting: u64,
    /// What is waited for before the schedule of the app's own that it takes over is taken over: until then it has no
    /// ticks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// It is paused after a failure, until it is edited or triggered by hand.
    #[serde(default)]
    pub paused: bool,
    /// What the last runs came to, newest first; 10 at most.
    pub results: Vec<TickResult>,
    /// How many runs were done, those asked for by hand included.
    pub done: u64,
    /// How many failed in the end, or passed their deadline without a result.
    pub failed: u64,
    /// How many ticks were dropped because one before still ran.
    pub skipped: u64,
    /// How many ticks nobody could run in time.
    pub missed: u64,
}

/// A run of a schedule that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunStatus {
    /// The tick; of a trigger, when it was taken up.
    pub tick: Timestamp,
    /// The trigger that asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<String>,
    /// The backfill that asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backfill: Option<String>,
    /// The attempt that runs.
    pub attempt: u32,
    /// No other attempt starts before this, unless there is a result.
    pub deadline: Timestamp,
}

/// What a run of a schedule came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TickResult {
    /// The tick; of a trigger, when it was taken up.
    pub tick: Timestamp,
    /// The trigger that asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<String>,
    /// The backfill that asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backfill: Option<String>,
    /// Done, failed or unknown.
    pub verdict: Verdict,
    /// The kind of failure in `CamelCase`; empty when done.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What the app said, shortened.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// How many attempts it took.
    pub attempts: u32,
    /// When it was over.
    pub at: Timestamp,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// The app did it.
    Done,
    /// The app, or the way to it, failed, and it is not tried again.
    Failed,
    /// The deadline passed without a result.
    Unknown,
}

/// A startup task of the pod's revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartupStatus {
    /// Its name.
    pub name: String,
    /// The revision of the task that this pod waits for; empty for tasks of scope `Instance`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub revision: String,
    /// How far it is.
    pub state: StartupState,
    /// The last attempt, as far as this agent knows.
    pub attempt: u32,
    /// The deadline of the attempt that runs; no other attempt starts before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// What is waited for, or how the last attempt failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// How far a startup task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StartupState {
    /// It waits: for a leader of the revision, for a task before it, or for its next attempt.
    Pending,
    /// An attempt runs.
    Running,
    /// It is done.
    Done,
    /// All attempts failed.
    Failed,
}
