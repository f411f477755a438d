//! The files between operator, agent and app, as they stand in `ConfigMaps`.
//!
//! Everything is resolved here: defaults are filled in, durations are whole milliseconds, and secrets are named by
//! file. So whoever reads them has nothing to decide.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::vocabulary::{BackoffKind, CatchUpPolicy, Gate, Generation, InstanceSet, Method, OnUnknown, Overlap, Scope};

/// `agent.json`: all that an agent does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentFile {
    /// `<namespace>/<cluster>`: the name of the election, and of its keys in Redis.
    pub cluster: String,
    /// The app beside the agent.
    pub app: App,
    /// How the leader is elected.
    pub election: Election,
    /// Where traces of runs go; nowhere if left out, as agents of an earlier version know nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracing: Option<Tracing>,
    /// What must not be forgotten even if all of Redis is.
    #[serde(default)]
    pub floor: Floor,
    /// What the leader runs, and when.
    #[serde(default)]
    pub schedules: Vec<Schedule>,
    /// What is done when a revision or a pod starts.
    #[serde(default)]
    pub startups: Vec<Startup>,
    /// The operator's word on pods that leaders wait for: the app of a pod, by the pod's UID, has ended since it began what
    /// was claimed until then.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ended: BTreeMap<String, Timestamp>,
    /// How the app's own schedules are guarded through rollouts; absent: they are left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<Guard>,
    /// Where the app's own schedules are that schedules take over; absent: none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takeover: Option<Takeover>,
    /// The revisions of the app that live, by the hash in the labels of their pods (`pod-template-hash`, or
    /// `controller-revision-hash` for `StatefulSets` and `DaemonSets`).
    #[serde(default)]
    pub revisions: BTreeMap<String, Revision>,
}

/// The app as the agent calls it, on 127.0.0.1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct App {
    /// Its name, the prefix of its Redis keys.
    pub name: String,
    /// How it speaks; an answer 200 of a v4 app can be a failure.
    pub generation: Generation,
    /// The port that it listens on.
    pub port: u16,
    /// How the agent asks whether it is alive.
    pub health: Health,
}

/// How the agent asks whether the app is alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Health {
    /// A connection to its port is enough.
    Tcp {},
    /// A request that must be answered by a 2xx.
    Http {
        /// The request's method.
        method: Method,
        /// The request's path.
        path: String,
    },
}

/// How the leader is elected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Election {
    /// How long a lease lasts, in milliseconds; it is renewed every third of that.
    pub ttl_ms: u64,
}

/// Where traces of runs go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tracing {
    /// `http://<host>:<port>` of a collector that takes OTLP over HTTP, to which `/v1/traces` is added, as to
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub endpoint: String,
    /// Which share of the runs is traced, from 0 to 1.
    pub sample_ratio: f64,
}

impl Tracing {
    /// The rules for both, and what to write instead: what of them is not kept.
    #[must_use]
    pub fn wrong(&self) -> Vec<(&'static str, &'static str)> {
        let mut wrong = Vec::new();
        if self.endpoint.starts_with("https://") {
            wrong.push((
                "endpoint",
                "agents speak no TLS: write http://<host>:<port> of a collector in the cluster, which passes traces on by https",
            ));
        } else if !is_collector(&self.endpoint) {
            wrong.push((
                "endpoint",
                "must be http://<host>:<port> of a collector that takes OTLP over HTTP, such as http://otel-collector.observability:4318",
            ));
        }
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            wrong.push(("sampleRatio", "must be between 0 and 1"));
        }
        wrong
    }
}

fn is_collector(endpoint: &str) -> bool {
    let Some(rest) = endpoint.strip_prefix("http://") else { return false };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let Some((host, port)) = authority.rsplit_once(':') else { return false };
    let is_address = |host: &str| {
        let inner = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
        inner.is_some_and(|it| it.parse::<std::net::Ipv6Addr>().is_ok())
    };
    let is_name = |host: &str| {
        !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
    };
    (is_name(host) || is_address(host))
        && port.parse::<u16>().is_ok_and(|port| port > 0)
        && path.chars().all(|c| c.is_ascii_alphanumeric() || "-._~/%".contains(c))
}

/// What the operator mirrors, so that it survives the loss of all Redis memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Floor {
    /// The highest fencing token seen; new ones are higher.
    #[serde(default)]
    pub token: u64,
    /// Startup tasks that are done: by task, the revisions.
    #[serde(default)]
    pub startups: BTreeMap<String, Vec<String>>,
}

/// How the app's own schedules, which `BullMQ` repeats, are guarded through rollouts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Guard {
    /// The role whose Redis has the app's queues.
    pub role: String,
    /// What all keys of the app's queues begin with.
    pub prefix: String,
    /// How the queues of schedules are called after the instance that each belongs to.
    pub queue: String,
    /// Where the app notes which startups have just been run.
    pub startups: StartupFlags,
    /// Hashes of the revisions that are the newest of their workloads.
    #[serde(default)]
    pub newest: BTreeSet<String>,
    /// How many jobs of schedules are kept in each queue; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<History>,
}

/// Where the app's own schedules are, as `BullMQ` repeats them for its generation, and which of them can be taken over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Takeover {
    /// The role whose Redis has the app's queues.
    pub role: String,
    /// What all keys of the app's queues begin with.
    pub prefix: String,
    /// How the queues of schedules are called after the instance that each belongs to.
    pub queue: String,
    /// The schedules, `<module>.<schedule>`, that the app of no pod runs any more: each leaves the ticks that it takes to
    /// the agents.
    #[serde(default)]
    pub released: BTreeSet<String>,
}

/// Where `CabloyJS` notes which startups have just been run, and are not to be run again for a while (`debounce`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartupFlags {
    /// The role whose Redis has the flags.
    pub role: String,
    /// Which keys they are, as `SCAN` takes it.
    pub keys: String,
}

/// How many jobs of schedules are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct History {
    /// Of those that were completed; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed: Option<u32>,
    /// Of those that failed; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<u32>,
}

/// A revision of the app: the pods of one `ReplicaSet` or `ControllerRevision`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Revision {
    /// Its number; the newest, which is the highest, leads if it can.
    pub number: u64,
    /// The startup tasks that belong to it, and for which revision of the task each counts as done.
    #[serde(default)]
    pub startups: BTreeMap<String, String>,
}

/// A schedule. Exactly one of `cron` and `every_ms` is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Schedule {
    /// Its name, unique in the cluster.
    pub name: String,
    /// When: a cron expression, as [`crate::cron::parse`] takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// When: every so many milliseconds, counted from the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_ms: Option<u64>,
    /// The time zone of the cron expression.
    pub time_zone: String,
    /// What becomes of a tick whose forerunner still runs.
    pub overlap: Overlap,
    /// A tick is delayed by up to so many milliseconds, always the same for the same tick.
    pub jitter_ms: u64,
    /// The deadline of a run, in milliseconds from its start; no other attempt starts before it.
    pub timeout_ms: u64,
    /// What becomes of a run that passed its deadline without a result.
    pub on_unknown: OnUnknown,
    /// How a failed run is tried again.
    pub retry: Retry,
    /// No tick is run while this is set.
    pub suspend: bool,
    /// Which ticks are made up for that fell due while nobody could run them. Left out where it is the default, as is what
    /// follows: agents of an earlier version know none of it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub catch_up: CatchUp,
    /// A run that failed for good stops the schedule until it is edited or triggered by hand.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pause_on_failure: bool,
    /// Runs that somebody asked for, each once.
    #[serde(default, skip_serializing_if = "is_default")]
    pub triggers: Vec<Trigger>,
    /// Times whose ticks somebody wants run again, each once.
    #[serde(default, skip_serializing_if = "is_default")]
    pub backfills: Vec<Backfill>,
    /// The schedule of the app's own, `<module>.<schedule>`, in whose place this one is run from when it is taken over.
    #[serde(default, skip_serializing_if = "is_default")]
    pub takes_over: Option<String>,
    /// What is called.
    pub target: Target,
}

/// Whether a field says no more than its absence.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Which ticks are made up for that fell due while nobody could run them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CatchUp {
    /// How old they may be, in milliseconds.
    pub window_ms: u64,
    /// Which of them.
    pub policy: CatchUpPolicy,
}

impl Default for CatchUp {
    fn default() -> Self {
        Self { window_ms: 60_000, policy: CatchUpPolicy::default() }
    }
}

/// A run that somebody asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Trigger {
    /// Tells it from others of the schedule: one of the same id is not run again.
    pub id: String,
}

/// A time whose ticks somebody wants run again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backfill {
    /// Tells it from others of the schedule: one of the same id is not run again.
    pub id: String,
    /// The first moment of that time.
    pub from: Timestamp,
    /// The first moment after it.
    pub to: Timestamp,
}

/// A startup task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Startup {
    /// Its name, unique in the cluster.
    pub name: String,
    /// How often it is done.
    pub scope: Scope,
    /// Tasks to be done first.
    #[serde(default)]
    pub after: Vec<String>,
    /// What waits for it.
    pub gate: Gate,
    /// The deadline of an attempt, in milliseconds from its start.
    pub timeout_ms: u64,
    /// How a failed attempt is tried again.
    pub retry: Retry,
    /// What is called.
    pub target: Target,
}

/// How a failed run is tried again: after `initial_delay_ms`, then `factor` times as long each time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retry {
    /// How many times at most, after the first attempt.
    pub limit: u32,
    /// Delay before the second attempt, in milliseconds.
    pub initial_delay_ms: u64,
    /// By what each further delay is longer.
    pub factor: f64,
    /// The longest delay, in milliseconds.
    pub max_delay_ms: u64,
}

impl Retry {
    /// The delay before `attempt` (the first retry is attempt 2), in milliseconds.
    #[must_use]
    pub fn delay_ms(&self, attempt: u32) -> u64 {
        let retries = i32::try_from(attempt.saturating_sub(2)).unwrap_or(i32::MAX);
        // The float saturates at infinity, and the cast at u64::MAX: both are cut down to the longest delay.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "delays are cut down to max_delay_ms"
        )]
        let delay = (self.initial_delay_ms as f64 * self.factor.powi(retries)) as u64;
        delay.min(self.max_delay_ms)
    }
}

/// What a schedule or a startup task calls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Target {
    /// A request to the app on 127.0.0.1.
    Http(HttpTarget),
    /// A bean of the app, through the integration module.
    Bean(BeanTarget),
    /// A job for a queue of the app.
    Queue(QueueTarget),
    /// A broadcast to all processes of the app.
    Broadcast(BroadcastTarget),
    /// A first request to each worker process of the app, so that it begins to work.
    WarmUp(WarmUpTarget),
}

impl Target {
    /// Whether what is called remembers runs by their key, so that it can be asked again for one without beginning it again:
    /// an app says so, the integration module does, a job can be in its queue only once, and a process that is warm is
    /// warm. A broadcast would be heard twice.
    #[must_use]
    pub fn remembers_runs(&self) -> bool {
        match self {
            Self::Http(http) => http.remembers_runs,
            Self::Bean(_) | Self::Queue(_) | Self::WarmUp(_) => true,
            Self::Broadcast(_) => false,
        }
    }

    /// The role whose Redis it goes through; none if it goes to the app itself.
    #[must_use]
    pub fn role(&self) -> Option<&str> {
        match self {
            Self::Http(_) | Self::Bean(_) | Self::WarmUp(_) => None,
            Self::Queue(queue) => Some(&queue.role),
            Self::Broadcast(broadcast) => Some(&broadcast.role),
        }
    }
}

/// A request to the app on 127.0.0.1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpTarget {
    /// The request's path, with its query.
    pub path: String,
    /// The request's method.
    pub method: Method,
    /// The request's JSON body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Value>,
    /// The app remembers runs by their key, and answers the question what became of one without beginning it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub remembers_runs: bool,
}

/// A bean of the app, which the integration module in the app runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BeanTarget {
    /// The path of the module's route.
    pub path: String,
    /// The `CabloyJS` module that has the bean.
    pub module: String,
    /// The bean in it, with its scene: `schedule.nightly`.
    pub name: String,
    /// What the bean is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
    /// For which instances it is run.
    #[serde(default)]
    pub instances: Instances,
}

/// Instances (tenants) of the app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Instances {
    /// In a word.
    Set(InstanceSet),
    /// By subdomain; empty for the default one.
    Listed(Vec<String>),
}

impl Default for Instances {
    fn default() -> Self {
        Self::Set(InstanceSet::default())
    }
}

/// A first request to each worker process of the app beside the agent, for each instance: a process of `CabloyJS` 4 takes
/// no job of an instance before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WarmUpTarget {
    /// The subdomains of the instances (tenants); empty for the default one.
    pub instances: Vec<String>,
}

/// A job for a queue of the app, which a `BullMQ` worker of the app takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QueueTarget {
    /// The role whose Redis has the queue.
    pub role: String,
    /// What all keys of the app's queues begin with.
    pub prefix: String,
    /// The queue's name in Redis, which comes after the prefix.
    pub queue: String,
    /// The `CabloyJS` module.
    pub module: String,
    /// The queue in it.
    pub queue_name: String,
    /// The sub-queue: jobs of one are done one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_name_sub: Option<String>,
    /// The job's name; its id if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_name: Option<String>,
    /// The instance (tenant); empty for the default one.
    pub subdomain: String,
    /// What the job is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
    /// What `BullMQ` is to do with the job beside having it done.
    #[serde(default)]
    pub options: JobOptions,
}

/// What `BullMQ` is to do with a job beside having it done; its own defaults where nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JobOptions {
    /// How many times at most the worker begins it, until it does not fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// How long it waits after each of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// It is not kept once it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remove_on_complete: Option<bool>,
    /// It is not kept once it has failed for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remove_on_fail: Option<bool>,
}

/// How long a job that failed waits for its next attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backoff {
    /// Always as long, or twice as long each time.
    #[serde(rename = "type")]
    pub kind: BackoffKind,
    /// The first wait, in milliseconds.
    pub delay: u64,
}

/// A broadcast to all processes of the app, by Redis' publish and subscribe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BroadcastTarget {
    /// The role whose Redis it goes through.
    pub role: String,
    /// The app's channel.
    pub channel: String,
    /// The `CabloyJS` module.
    pub module: String,
    /// The broadcast in it.
    pub broadcast_name: String,
    /// The instance (tenant); empty for the default one.
    pub subdomain: String,
    /// What is broadcast.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

/// The Redis configuration of a role, in the order of its keys just what `ioredis` takes; of role `redlock` a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RoleFile {
    /// The independent masters of role `redlock`.
    Masters(Vec<RedisClient>),
    /// The one server of any other role.
    Client(RedisClient),
}

/// A Redis server as `ioredis` takes it, less the secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisClient {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Number of the database.
    pub db: u32,
    /// ACL user; left out for the server's default user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Where the password lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretFile>,
    /// Prefix of all keys; left out where the app's own stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_prefix: Option<String>,
}

/// Stands for the text of a file, less white space around it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretFile {
    /// Absolute path of the file.
    #[serde(rename = "$file")]
    pub file: String,
}

/// `boot.json`: what the preload finds beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BootFile {
    /// The app's name; an app with another one does not boot on this configuration.
    pub app: String,
    /// In which form the app takes it.
    pub generation: Generation,
    /// The roles there are; each has a file `<role>.json`.
    pub roles: Vec<String>,
    /// Folders of further configuration, merged below the roles.
    #[serde(default)]
    pub config_from: Vec<String>,
    /// Whether an app of Vona merges what it is given into its configuration.
    #[serde(default, skip_serializing_if = "is_default")]
    pub merges_config: bool,
    /// Whether an app of `CabloyJS` v4 runs a startup with `debounce` again that has failed, or whose process has died.
    #[serde(default, skip_serializing_if = "is_default")]
    pub guards_startups: bool,
    /// The app's own schedules, `<module>.<schedule>`, that it is not to run: schedules of the resource do.
    #[serde(default, skip_serializing_if = "is_default")]
    pub takes_over: BTreeSet<String>,
}

/// Whether somebody may call a trigger or a backfill so.
#[must_use]
pub fn is_manual_id(id: &str) -> bool {
    (1..=63).contains(&id.len()) && id.chars().all(|char| char.is_ascii_alphanumeric() || "-._".contains(char))
}

/// The text of a file of ours: JSON that people can read, with a final newline.
///
/// # Errors
/// `value` cannot be JSON; none of the types of this module is so.
pub fn to_text<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<String> {
    serde_json::to_string_pretty(value).map(|text| text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_reached_over_http_at_a_port() {
        let wrong = |endpoint: &str, sample_ratio| {
            let tracing = Tracing { endpoint: endpoint.into(), sample_ratio };
            tracing.wrong().into_iter().map(|(field, _)| field).collect::<Vec<_>>()
        };
        for good in ["http://otel-collector.observability:4318", "http://[::1]:4318/", "http://10.0.0.1:80/tenant/a_b"]
        {
            assert!(wrong(good, 0.5).is_empty(), "{good}");
        }
        for bad in [
            "https://otel:4318",
            "otel:4318",
            "http://otel",
            "http://:4318",
            "http://otel:0",
            "http://otel:65536",
            "http://user:secret@otel:4318",
            "http://[::1",
            "http://[otel]:4318",
            "http://otel:4318?a=b",
            "http://otel:4318/a b",
        ] {
            assert_eq!(wrong(bad, 1.0), ["endpoint"], "{bad}");
        }
        for bad in [-0.1, 1.1, f64::NAN] {
            assert_eq!(wrong("http://otel:4318", bad), ["sampleRatio"], "{bad}");
        }
    }

    #[test]
    fn a_client_reads_as_documented() {
        let client = RedisClient {
            host: "redis-main".into(),
            port: 6379,
            db: 0,
            username: Some("shop".into()),
            password: Some(SecretFile { file: "/etc/cabloy/secrets/default/password".into() }),
            key_prefix: None,
        };
        let expected = r#"{
  "host": "redis-main",
  "port": 6379,
  "db": 0,
  "username": "shop",
  "password": {
    "$file": "/etc/cabloy/secrets/default/password"
  }
}
"#;
        assert_eq!(to_text(&client).unwrap(), expected);
        assert_eq!(serde_json::from_str::<RoleFile>(expected).unwrap(), RoleFile::Client(client.clone()));
        let masters = to_text(std::slice::from_ref(&client)).unwrap();
        assert_eq!(serde_json::from_str::<RoleFile>(&masters).unwrap(), RoleFile::Masters(vec![client]));
    }

    #[test]
    fn ids_are_words() {
        for id in ["a", "2026-11-23", "A.b_c", &"x".repeat(63)] {
            assert!(is_manual_id(id), "{id}");
        }
        for id in ["", "a/b", "a b", "a~b", "ü", &"x".repeat(64)] {
            assert!(!is_manual_id(id), "{id}");
        }
    }

    #[test]
    fn retries_wait_longer_each_time_up_to_the_longest() {
        let retry = Retry { limit: 9, initial_delay_ms: 1_000, factor: 2.0, max_delay_ms: 5_000 };
        assert_eq!(
            [2, 3, 4, 5, 4_000_000_000].map(|attempt| retry.delay_ms(attempt)),
            [1_000, 2_000, 4_000, 5_000, 5_000]
        );
    }
}
