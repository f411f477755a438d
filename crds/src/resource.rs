//! The `CabloyCluster` resource: what people write, with all its rules.
//!
//! What a rule can say in CEL stands here, so that the API server refuses it at once, with a message that names the
//! field and the remedy. Lists, maps and strings are bounded, or the API server would refuse the rules as too costly.
//! Optional fields have no default in the schema: the API server would store it, and a better default of a later
//! version would never reach objects that exist. The accessors here are the defaults.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::ResourceRequirements, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use crate::vocabulary::{BackoffKind, CatchUpPolicy, Gate, Generation, Method, OnUnknown, Overlap, Scope};
use crate::{
    duration::Duration,
    names::{DEFAULT_APP_PORT, DEFAULT_CONNECTION},
};

/// A CabloyJS app on Kubernetes: its Redis for each role, its schedules and its startup tasks.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "cabloy.io",
    version = "v1alpha1",
    kind = "CabloyCluster",
    namespaced,
    status = "CabloyClusterStatus",
    shortname = "cbc",
    category = "cabloy",
    doc = "A CabloyJS app on Kubernetes: its Redis for each role, its schedules and its startup tasks.",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Leader", type_ = "string", json_path = ".status.leader.pod"),
    printcolumn(name = "Token", type_ = "integer", json_path = ".status.leader.token", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 40")
        .message("metadata.name must be at most 40 characters: the names of ConfigMaps are made from it")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.agent) || !has(self.agent.enabled) || self.agent.enabled || ((!has(self.schedules) || size(self.schedules) == 0) && (!has(self.startups) || size(self.startups) == 0))")
        .message("schedules and startups are run by the agent: set agent.enabled to true, or remove them"),
    validation = Rule::new("((!has(self.schedules) || size(self.schedules) == 0) && (!has(self.startups) || size(self.startups) == 0)) || 'default' in self.redis.connections || (has(self.redis.roles) && 'redlock' in self.redis.roles)")
        .message("schedules and startups need a leader, and the leader is elected on role redlock: add redis.roles.redlock, or a connection named default"),
    validation = Rule::new("!has(self.nativeSchedules) || self.nativeSchedules != 'Guard' || self.app.generation != 'generic'")
        .message("nativeSchedules: Guard is for the schedules of CabloyJS, and generation generic has none: remove it, or write Off"),
    validation = Rule::new("!has(self.nativeSchedules) || self.nativeSchedules != 'Guard' || !has(self.agent) || !has(self.agent.enabled) || self.agent.enabled")
        .message("nativeSchedules: Guard is the agents' work: set agent.enabled to true, or write Off"),
    validation = Rule::new("!has(self.nativeSchedules) || self.nativeSchedules != 'Guard' || self.app.generation != 'v4' || 'default' in self.redis.connections || (has(self.redis.roles) && ['cache', 'queue', 'redlock'].all(r, r in self.redis.roles))")
        .message("nativeSchedules: Guard needs the roles cache, queue and redlock: add them to redis.roles, or a connection named default"),
    validation = Rule::new("!has(self.nativeScheduleHistory) || (has(self.nativeSchedules) && self.nativeSchedules == 'Guard')")
        .message("nativeScheduleHistory is the guard's work: set nativeSchedules to Guard, or remove it"),
    validation = Rule::new("self.app.generation != 'generic' || self.workloads.all(w, !has(w.nodeOptions))")
        .message("workloads[].nodeOptions is for the preload, which generation generic does without: remove it"),
    validation = Rule::new("self.app.generation != 'generic' || !has(self.schedules) || self.schedules.all(s, has(s.target.http))")
        .message("the targets bean, queue and broadcast are those of CabloyJS, and generation generic has none: write target.http, or another generation"),
    validation = Rule::new("self.app.generation != 'generic' || !has(self.startups) || self.startups.all(s, !has(s.target.bean))")
        .message("the target bean is one of CabloyJS, and generation generic has none: write target.http, or another generation"),
    validation = Rule::new("!has(self.startups) || self.app.generation != 'v4' || (has(self.app.warmUp) && !self.app.warmUp) || self.startups.all(s, s.name != 'warm-up')")
        .message("warm-up is the name of the startup task that warms up an app of generation v4: write another name, or set app.warmUp to false"),
    validation = Rule::new("!has(self.startups) || self.startups.all(s, !has(s.after) || s.after.all(a, self.startups.exists(t, t.name == a)))")
        .message("startups[].after must name other tasks of startups: correct the name, or add the task")
)]
pub struct CabloyClusterSpec {
    /// The app.
    pub app: App,
    /// Who runs the app; each gets the Redis configuration and the agent.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = Rule::new("self.all(a, self.exists_one(b, a.name == b.name && (has(a.kind) ? a.kind : 'Deployment') == (has(b.kind) ? b.kind : 'Deployment')))")
        .message("each workload must be listed once: remove the repeated one"))]
    pub workloads: Vec<Workload>,
    /// The Redis servers, and which role uses which.
    pub redis: Redis,
    /// Whether the app's own schedules are protected through rollouts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native_schedules: Option<NativeSchedules>,
    /// How many jobs of the app's own schedules the guard keeps, of which CabloyJS removes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native_schedule_history: Option<NativeScheduleHistory>,
    /// The agent beside the app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Agent>,
    /// What is run, and when.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 500))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub schedules: Vec<Schedule>,
    /// What is done when a new revision of the app, or a pod, starts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub startups: Vec<Startup>,
    /// How changes reach the app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// What becomes of our part of the workloads when this resource is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
}

/// The app.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.mergesConfig) || !self.mergesConfig || self.generation == 'vona'")
        .message("mergesConfig is for generation vona: remove it"),
    validation = Rule::new("!has(self.configFrom) || size(self.configFrom) == 0 || self.generation == 'v4' || (has(self.mergesConfig) && self.mergesConfig)")
        .message("configFrom is merged into the configuration of generation v4, and of vona with mergesConfig: remove it, or set one of these"),
    validation = Rule::new("!has(self.beanPath) || self.generation != 'generic'")
        .message("beanPath is the route of CabloyJS' integration module, and generation generic has none: remove it, or set another generation"),
    validation = Rule::new("(!has(self.warmUp) && !has(self.instances)) || self.generation == 'v4'")
        .message("warmUp and instances are for generation v4, whose processes wait for a first request: remove them"),
    validation = Rule::new("!has(self.instances) || !has(self.warmUp) || self.warmUp")
        .message("instances are those to be warmed up: remove them, or set warmUp to true")
)]
pub struct App {
    /// The app's name as in its package.json; the prefix of its Redis keys. Immutable.
    #[schemars(length(max = 63))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z0-9][A-Za-z0-9._-]*$')")
            .message("must be the name in the app's package.json: letters, digits, '.', '_' and '-', beginning with a letter or digit"),
        validation = Rule::new("self == oldSelf")
            .message("is immutable, for it is the prefix of the app's Redis keys: make another CabloyCluster for another app")
    )]
    pub name: String,
    /// In which form the app takes its Redis configuration.
    pub generation: Generation,
    /// The port that the app listens on inside its pod; 7002 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// A path that answers 2xx to a GET when the app is alive. If left out: for v4 the echo of CabloyJS, else a
    /// connection to the port is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    #[x_kube(validation = Rule::new("self.matches('^/[^\\\\s#]*$')").message("must be a path that begins with '/', such as /healthz"))]
    pub health_path: Option<String>,
    /// The route of the integration module, which runs beans; /api/cabloy/agent/run if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    #[x_kube(validation = Rule::new("self.matches('^/[^\\\\s#]*$')").message("must be a path that begins with '/', such as /api/cabloy/agent/run"))]
    pub bean_path: Option<String>,
    /// Secrets with further configuration of the app (MySQL, keys): each key is a JSON file, merged below the roles.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub config_from: Vec<ConfigSource>,
    /// Whether the image, of generation vona, merges what the preload gives it into its configuration; false if left
    /// out. Then each role can have a Redis of its own, and configFrom works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merges_config: Option<bool>,
    /// Whether each worker process gets a first request at its start, before its pod is ready: one of CabloyJS 4 takes no
    /// jobs before that. True for v4 if left out; other generations need none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<bool>,
    /// Subdomains of the instances (tenants) that are warmed up beside the default one and those that targets name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 128)))]
    #[x_kube(validation = Rule::new("self.all(i, i.matches('^[A-Za-z0-9][A-Za-z0-9._-]*$'))")
        .message("must be the names of CabloyJS instances: letters, digits, '.', '_' and '-'; the default one needs no name here"))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub instances: Vec<String>,
    /// How the app's pods are taken out of service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
}

impl App {
    /// Whether an app of Vona merges what it is given into its configuration.
    #[must_use]
    pub fn merges_config(&self) -> bool {
        self.generation == Generation::Vona && self.merges_config.unwrap_or(false)
    }

    /// Whether worker processes are warmed up.
    #[must_use]
    pub fn warm_up(&self) -> bool {
        self.generation == Generation::V4 && self.warm_up.unwrap_or(true)
    }

    /// The port that the app listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.and_then(|port| u16::try_from(port).ok()).unwrap_or(DEFAULT_APP_PORT)
    }
}

/// How pods are taken out of service.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    /// How long a pod that is to end still serves before the app hears of it by SIGTERM, for others learn only by and by
    /// that they should not call it; 5s if left out, 0s for not at all. It is a preStop hook of the app's container, which
    /// one of your own takes the place of, and half of terminationGracePeriodSeconds at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("!self.matches('ms')").message("must be whole seconds, such as 5s"))]
    pub pause: Option<Duration>,
}

impl Drain {
    /// The pause where the resource does not say, in seconds.
    pub const DEFAULT_PAUSE_SECS: i64 = 5;
}

/// Where further configuration of the app comes from.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigSource {
    /// A Secret of this namespace.
    pub secret_ref: SecretRef,
}

/// A Secret of this namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Its name.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$')")
        .message("must be the name of a Secret: lower-case letters, digits, '-' and '.'"))]
    pub name: String,
}

/// A key of a Secret of this namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// The Secret's name.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$')")
        .message("must be the name of a Secret: lower-case letters, digits, '-' and '.'"))]
    pub name: String,
    /// The key in it.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._a-zA-Z0-9]+$')")
        .message("must be a key of the Secret: letters, digits, '-', '_' and '.'"))]
    pub key: String,
}

/// A workload of the user's that runs the app.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Its kind; Deployment if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<WorkloadKind>,
    /// Its name, in this namespace.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$')")
        .message("must be the name of a workload of this namespace: lower-case letters, digits, '-' and '.'"))]
    pub name: String,
    /// The container that runs the app; the first if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
            .message("must be the name of a container: lower-case letters, digits and '-'"),
        validation = Rule::new("self != 'cabloy-agent'").message("must be the app's container: cabloy-agent is the agent's own")
    )]
    pub container: Option<String>,
    /// Whether its pods may lead; true if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elect: Option<bool>,
    /// What the app needs in NODE_OPTIONS; it is set beside the preload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    #[x_kube(validation = Rule::new("self.matches('^[ -~]*$')").message("must be one line of printable ASCII, such as --max-old-space-size=512"))]
    pub node_options: Option<String>,
}

impl Workload {
    /// The workload's kind.
    #[must_use]
    pub fn kind(&self) -> WorkloadKind {
        self.kind.unwrap_or_default()
    }

    /// Whether its pods may lead.
    #[must_use]
    pub fn elect(&self) -> bool {
        self.elect.unwrap_or(true)
    }
}

/// The kind of a workload.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum WorkloadKind {
    /// `apps/v1` Deployment
    #[default]
    Deployment,
    /// `apps/v1` StatefulSet
    StatefulSet,
    /// `apps/v1` DaemonSet
    DaemonSet,
}

impl WorkloadKind {
    /// The kind's name in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
        }
    }
}

/// The Redis servers, and which role uses which.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.roles) || self.roles.all(r, !has(self.roles[r].connection) || self.roles[r].connection in self.connections)")
        .message("roles.<role>.connection must be a name of connections: correct it, or add the connection"),
    validation = Rule::new("!has(self.roles) || self.roles.all(r, !has(self.roles[r].connections) || self.roles[r].connections.all(c, c in self.connections))")
        .message("roles.redlock.connections must be names of connections: correct them, or add the connections"),
    validation = Rule::new("!has(self.roles) || self.roles.all(r, r == 'redlock' || !has(self.roles[r].connections))")
        .message("only roles.redlock takes connections, the list of its independent masters: write connection for any other role"),
    validation = Rule::new("!has(self.roles) || self.roles.all(r, has(self.roles[r].connection) || has(self.roles[r].connections) || has(self.roles[r].host) || 'default' in self.connections)")
        .message("a role without connection, connections or host uses connections.default, and there is none: add it, or write roles.<role>.connection"),
    validation = Rule::new("!has(self.roles) || self.roles.all(r, !has(self.roles[r].keyPrefix) || !(r in ['queue', 'redlock', 'broadcast', 'limiter']))")
        .message("keyPrefix cannot be used on the roles queue, redlock, broadcast and limiter, whose keys CabloyJS names itself: remove it")
)]
pub struct Redis {
    /// Redis servers by name. The one named default is used wherever a role names none.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 32))]
    #[x_kube(validation = Rule::new("self.all(c, c.size() <= 40 && c.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$'))")
        .message("names of connections must be at most 40 lower-case letters, digits and '-'"))]
    pub connections: BTreeMap<String, Connection>,
    /// Which role uses which connection. A role of the generation that is left out uses the connection named default,
    /// if there is one; else the image's own configuration stays.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 24))]
    #[x_kube(
        validation = Rule::new("self.all(r, r.size() <= 30 && r.matches('^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$'))")
            .message("names of roles must be at most 30 letters, digits and '-', beginning with a letter, such as queue"),
        validation = Rule::new("self.all(a, self.exists_one(b, a.lowerAscii() == b.lowerAscii()))")
            .message("names of roles must differ in more than upper and lower case, for ConfigMaps are named after them")
    )]
    pub roles: BTreeMap<String, Role>,
}

impl Redis {
    /// The connection that a role uses where it names none.
    #[must_use]
    pub fn default_connection(&self) -> Option<&Connection> {
        self.connections.get(DEFAULT_CONNECTION)
    }
}

/// A Redis server, or a topology of them. Exactly one of `host`, `sentinel` and `cluster`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.host) ? 1 : 0) + (has(self.sentinel) ? 1 : 0) + (has(self.cluster) ? 1 : 0) == 1")
        .message("exactly one of host, sentinel and cluster must be written"),
    validation = Rule::new("!has(self.port) || has(self.host)").message("port goes with host: write the ports of sentinel and cluster at their nodes"),
    validation = Rule::new("!has(self.db) || !has(self.cluster)").message("db cannot be chosen on a Redis Cluster, which has only 0: remove it"),
    validation = Rule::new("!has(self.username) || has(self.passwordSecretRef)").message("username needs passwordSecretRef: add it, or remove username")
)]
pub struct Connection {
    /// Host name or address of a single server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), schema_with = "host_schema")]
    pub host: Option<String>,
    /// TCP port; 6379 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// Number of the database; 0 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1023))]
    pub db: Option<i32>,
    /// ACL user; the server's default user if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "username_schema")]
    pub username: Option<String>,
    /// Where the password lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret_ref: Option<SecretKeyRef>,
    /// TLS; plain text if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// A master behind Sentinel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sentinel: Option<Sentinel>,
    /// A Redis Cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Cluster>,
}

/// TLS to a Redis server.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// Certificates of the authority that signed the server's; the system's authorities if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
    /// The name in the server's certificate; the host if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), schema_with = "host_schema")]
    pub server_name: Option<String>,
}

/// A master behind Sentinel.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sentinel {
    /// The name under which the sentinels know the master.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9._-]+$')").message("must be the master's name in the sentinels' configuration: letters, digits, '.', '_' and '-'"))]
    pub master_name: String,
    /// The sentinels.
    #[schemars(length(min = 1, max = 9))]
    pub nodes: Vec<Node>,
}

/// A Redis Cluster.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// Some of its nodes, to begin with.
    #[schemars(length(min = 1, max = 16))]
    pub nodes: Vec<Node>,
}

/// Address of a Sentinel, or of a node of a Redis Cluster.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Host name or address.
    #[schemars(length(max = 253), schema_with = "host_schema")]
    pub host: String,
    /// TCP port; 26379 for a Sentinel and 6379 for a node of a Redis Cluster if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
}

/// What a role uses: a connection, with fields of its own laid over it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.connections) || !(has(self.connection) || has(self.host) || has(self.port) || has(self.db) || has(self.username) || has(self.passwordSecretRef) || has(self.tls) || has(self.keyPrefix))")
        .message("connections stands alone: write host, port, db and credentials at each connection it names"),
    validation = Rule::new("!has(self.username) || has(self.passwordSecretRef)").message("username needs passwordSecretRef: add it, or remove username")
)]
pub struct Role {
    /// Name of a connection; the one named default if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 40))]
    pub connection: Option<String>,
    /// Names of connections: the independent masters of role redlock. A lock is held by a majority of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 9), inner(length(max = 40)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub connections: Option<Vec<String>>,
    /// Host name or address, in place of the connection's; its credentials are not used then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), schema_with = "host_schema")]
    pub host: Option<String>,
    /// TCP port, in place of the connection's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
    /// Number of the database, in place of the connection's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1023))]
    pub db: Option<i32>,
    /// ACL user, in place of the connection's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "username_schema")]
    pub username: Option<String>,
    /// Where the password lies, in place of the connection's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret_ref: Option<SecretKeyRef>,
    /// TLS, in place of the connection's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Prefix of all keys; the app's own if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 100))]
    #[x_kube(validation = Rule::new("self.matches('^[ -~]*$')").message("must be printable ASCII, such as io_shop:"))]
    pub key_prefix: Option<String>,
}

/// Whether the app's own schedules are protected through rollouts.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NativeSchedules {
    /// They are watched and put back.
    Guard,
    /// They are left alone.
    Off,
}

/// How many jobs of the app's own schedules are kept in the queue of each instance.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NativeScheduleHistory {
    /// Of those that were completed; all if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000))]
    pub completed: Option<i32>,
    /// Of those that failed; all if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000))]
    pub failed: Option<i32>,
}

/// The agent beside the app.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// Whether pods get an agent; true if left out. Without it there are only the roles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Version of the agent; if left out, the one that the operator brought when it first came to the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_][A-Za-z0-9._-]*$')").message("must be a version such as 0.1.0; the repository is chosen when the operator is installed"))]
    pub version: Option<String>,
    /// CPU and memory of the agent's container.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "quantities_as_text")]
    pub resources: Option<ResourceRequirements>,
    /// How the leader is elected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub election: Option<Election>,
    /// Where traces of runs of schedules and startup tasks go; nowhere if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracing: Option<Tracing>,
}

impl Agent {
    /// Whether pods get an agent.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.enabled.unwrap_or(true)
    }
}

/// How the leader is elected.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Election {
    /// How long a lease lasts; 10s if left out. It is renewed every third of that; a leader that is killed is
    /// followed by the next after this time at the latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('5m')").message("must be between 1s and 5m"))]
    pub ttl: Option<Duration>,
}

impl Election {
    /// How long a lease lasts where the resource does not say.
    pub const DEFAULT_TTL: Duration = Duration::from_secs(10);
}

/// Where traces of runs go.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tracing {
    /// The OpenTelemetry collector, as scheme http, host and port of where it takes OTLP over HTTP.
    #[schemars(length(max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^http://([A-Za-z0-9._-]+|[[][0-9A-Fa-f:.]+[]]):[0-9]{1,5}(/[A-Za-z0-9._~/%-]*)?$')").message("must be http://<host>:<port> of a collector that takes OTLP over HTTP, such as http://otel-collector.observability:4318; agents speak no TLS: for https, name a collector in the cluster that passes traces on"))]
    pub endpoint: String,
    /// Which share of the runs is traced, from 0 to 1; all of them if left out. A run is traced in all its attempts or in
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub sample_ratio: Option<f64>,
}

/// A schedule: a call to one pod of the app, again and again.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.cron) != has(self.every)").message("exactly one of cron and every must be written"),
    validation = Rule::new("!has(self.timeZone) || has(self.cron)").message("timeZone goes with cron: remove it, for every is counted from the Unix epoch")
)]
pub struct Schedule {
    /// Its name, unique in this resource.
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("must be lower-case letters, digits and '-', such as nightly-report"))]
    pub name: String,
    /// A cron expression: 5 fields, or 6 with seconds first; names, L, W, # and macros such as @daily.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^ *(@[a-z]+|[^ ]+( +[^ ]+){4,5}) *$')").message("must be a cron expression of 5 or 6 fields, such as 0 3 * * *, or a macro such as @daily"))]
    pub cron: Option<String>,
    /// In place of cron: the time between ticks, which fall on its multiples since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('8760h')").message("must be between 1s and 8760h"))]
    pub every: Option<Duration>,
    /// Time zone of the cron expression, as in the IANA database; UTC if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub time_zone: Option<String>,
    /// What becomes of a tick that falls due while an earlier run is open; Skip if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap: Option<Overlap>,
    /// Which ticks are made up for that fell due while nobody could run them; all of the last minute if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catch_up: Option<CatchUp>,
    /// Each tick is delayed by up to this much, the same tick always by the same; 0 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('24h')").message("must be at most 24h"))]
    pub jitter: Option<Duration>,
    /// The deadline of a run; 5m if left out. No other attempt starts before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('24h')").message("must be between 1s and 24h"))]
    pub timeout: Option<Duration>,
    /// What becomes of a run that passed its deadline without a result; Skip if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_unknown: Option<OnUnknown>,
    /// How a failed run is tried again; not at all if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// No tick is run while this is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
    /// Whether a run that failed for good, or passed its deadline without a result, stops the schedule until it is edited
    /// or triggered by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_on_failure: Option<bool>,
    /// For which CabloyJS instances (tenants) a bean is run: Default, All, or a list of subdomains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "instances_schema")]
    pub instances: Option<Value>,
    /// A schedule of the app's own, <module>.<schedule>, that this one replaces once no pod runs it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_-]+[.][A-Za-z0-9_-]+$')").message("must be a schedule of the app's own as <module>.<schedule>, such as shop-report.nightly"))]
    pub takes_over: Option<String>,
    /// What is called.
    pub target: Target,
}

/// Which ticks are made up for.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CatchUp {
    /// How old a tick may be; 1m if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('8760h')").message("must be at most 8760h"))]
    pub window: Option<Duration>,
    /// Which of them.
    pub policy: CatchUpPolicy,
}

/// How a failed run is tried again.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// How many times at most, after the first attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub limit: Option<i32>,
    /// The delay before the first of them; 1s if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('24h')").message("must be at most 24h"))]
    pub initial_delay: Option<Duration>,
    /// By what each further delay is longer; 2 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1.0, max = 10.0))]
    pub factor: Option<f64>,
    /// The longest delay; 1m if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('24h')").message("must be at most 24h"))]
    pub max_delay: Option<Duration>,
}

/// What a schedule or a startup task calls. Exactly one of the fields.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.http) ? 1 : 0) + (has(self.bean) ? 1 : 0) + (has(self.queue) ? 1 : 0) + (has(self.broadcast) ? 1 : 0) == 1")
    .message("exactly one of http, bean, queue and broadcast must be written"))]
pub struct Target {
    /// A request to the app, from beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpTarget>,
    /// A bean of the app, through the integration module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bean: Option<BeanTarget>,
    /// A job for a queue of the app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueTarget>,
    /// A broadcast to all processes of the app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broadcast: Option<BroadcastTarget>,
}

/// A request to the app, from beside it.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpTarget {
    /// The path, with its query.
    #[schemars(length(max = 1024))]
    #[x_kube(validation = Rule::new("self.matches('^/[^\\\\s#]*$')").message("must be a path that begins with '/', such as /api/shop/report/nightly; host and port are those of the app beside the agent"))]
    pub path: String,
    /// The method; POST if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// The JSON body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_schema")]
    pub body: Option<Value>,
    /// The app remembers runs by Idempotency-Key, and answers a request with Only-If-Known without beginning anything, as
    /// routes do that client/ guards. Then an agent that was started again asks it what became of a run that goes on,
    /// instead of waiting for its deadline. false if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remembers_runs: Option<bool>,
}

/// A bean of the app: the integration module, which the app must have, runs it in the pod of the leader.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BeanTarget {
    /// The CabloyJS module that has the bean.
    #[schemars(schema_with = "name_schema")]
    pub module: String,
    /// The bean in it, with its scene: schedule.nightly, startup.migrate.
    #[schemars(schema_with = "name_schema")]
    pub name: String,
    /// What the bean is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_schema")]
    pub data: Option<Value>,
}

/// A job for a queue of the app: for each tick the leader adds one, and a worker of the app takes it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueTarget {
    /// The CabloyJS module that has the queue.
    #[schemars(schema_with = "name_schema")]
    pub module: String,
    /// The queue in it.
    #[schemars(schema_with = "name_schema")]
    pub queue_name: String,
    /// The sub-queue: jobs of one are done one after the other, as long as the queue itself has no concurrency.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub queue_name_sub: Option<String>,
    /// The job's name; its id if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub job_name: Option<String>,
    /// The instance (tenant); the default one if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "subdomain_schema")]
    pub subdomain: Option<String>,
    /// What the job is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_schema")]
    pub data: Option<Value>,
    /// What BullMQ is to do with the job beside having it done. What the app's own configuration says of jobs of this
    /// queue holds for those that the app adds itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_options: Option<JobOptions>,
}

/// What BullMQ is to do with a job beside having it done; its own defaults where nothing is written.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.backoff) || has(self.attempts)").message("backoff goes with attempts: add it, or remove backoff"))]
pub struct JobOptions {
    /// How many times at most the worker begins it, until it does not fail; once if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub attempts: Option<i32>,
    /// How long it waits after an attempt that failed; not at all if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// Whether it is removed once it is done; if left out it is kept, as CabloyJS keeps its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remove_on_complete: Option<bool>,
    /// Whether it is removed once it has failed for good; if left out it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remove_on_fail: Option<bool>,
}

/// How long a job that failed waits for its next attempt.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Backoff {
    /// Always as long, or twice as long each time; fixed if left out.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<BackoffKind>,
    /// The first wait.
    #[x_kube(validation = Rule::new("duration(self) > duration('0s') && duration(self) <= duration('24h')").message("must be more than 0s, and at most 24h"))]
    pub delay: Duration,
}

/// A broadcast to all processes of the app.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BroadcastTarget {
    /// The CabloyJS module that has the broadcast.
    #[schemars(schema_with = "name_schema")]
    pub module: String,
    /// The broadcast in it.
    #[schemars(schema_with = "name_schema")]
    pub broadcast_name: String,
    /// The instance (tenant); the default one if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "subdomain_schema")]
    pub subdomain: Option<String>,
    /// What is broadcast.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_schema")]
    pub data: Option<Value>,
}

/// A startup task: a call to the app when a new revision of it, or a pod, starts.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.after) || !(self.name in self.after)").message("after must not name the task itself: remove it"),
    validation = Rule::new("!has(self.target.queue) && !has(self.target.broadcast)").message("a startup task is done when its work is, which a queue or a broadcast does not tell: write target.http or target.bean"),
    validation = Rule::new("!has(self.revision) || !has(self.scope) || self.scope == 'Cluster'").message("revision goes with scope Cluster: remove it, for scope Instance is once for each start of a pod")
)]
pub struct Startup {
    /// Its name, unique in this resource.
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("must be lower-case letters, digits and '-', such as migrate"))]
    pub name: String,
    /// Once for each revision over all pods (Cluster, also if left out), or once for each start of a pod (Instance).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// For what the task counts as done; if left out, for the app container's image and this task's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9._-]+$')").message("must be letters, digits, '.', '_' and '-', such as v42"))]
    pub revision: Option<String>,
    /// Names of tasks to be done first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8), inner(length(max = 63)))]
    pub after: Option<Vec<String>>,
    /// What waits for it; Ready if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
    /// The deadline of an attempt; 10m if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('24h')").message("must be between 1s and 24h"))]
    pub timeout: Option<Duration>,
    /// How a failed attempt is tried again; 5 times if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// What is called.
    pub target: Target,
}

/// How changes reach the app.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// Whether workloads are rolled when what the app reads at boot has changed; Restart if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_redis_change: Option<OnRedisChange>,
}

/// Whether workloads are rolled when what the app reads at boot has changed.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnRedisChange {
    /// They are rolled at once.
    #[default]
    Restart,
    /// They boot on the old configuration until somebody sets this to Restart.
    Manual,
}

/// What becomes of our part of the workloads when the resource is deleted.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeletionPolicy {
    /// It is taken out, which rolls the pods.
    #[default]
    Withdraw,
    /// It stays, and the pods go on.
    Orphan,
}

/// What is.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CabloyClusterStatus {
    /// The generation of the resource that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions; `Ready` sums them up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The roles, and where each leads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<RoleStatus>,
    /// The workloads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub workloads: Vec<WorkloadStatus>,
    /// Who leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<LeaderStatus>,
    /// The schedules, in summary.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schedules: Vec<ScheduleStatus>,
    /// The startup tasks, in summary.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub startups: Vec<StartupStatus>,
    /// The guard of the app's own schedules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub native_schedules: Option<NativeSchedulesStatus>,
}

/// The guard of the app's own schedules.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NativeSchedulesStatus {
    /// Whether pods of an older revision run, or have until a moment ago.
    pub rolling: bool,
    /// How many queues of schedules there are; each instance of the app has one.
    pub queues: i64,
    /// How many schedules there are in them.
    pub schedules: i64,
    /// How many times a schedule was put back.
    pub put_back: i64,
    /// The last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_put_back: Option<PutBackStatus>,
}

/// A schedule of the app's own that was deleted, and put back.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PutBackStatus {
    /// The BullMQ queue.
    pub queue: String,
    /// The key of the repeatable job.
    pub key: String,
    /// When it was put back.
    pub at: String,
    /// Its next tick.
    pub next: String,
}

/// A role, and where it leads.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoleStatus {
    /// The role.
    pub name: String,
    /// Its ConfigMap.
    pub config_map: String,
    /// Its servers as host:port/db.
    pub endpoints: Vec<String>,
}

/// A workload.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadStatus {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// What is with it: Applied, or why not.
    pub state: String,
    /// More about that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// How many pods it should have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// How many of them are of the newest revision and ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated: Option<i32>,
    /// The boot ConfigMap that its pod template names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
    /// The version of its agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
}

/// Who leads.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaderStatus {
    /// The pod.
    pub pod: String,
    /// Its fencing token.
    pub token: i64,
    /// Since when, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

/// A schedule, in summary.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleStatus {
    /// Its name.
    pub name: String,
    /// The tick that ran last, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_tick: Option<String>,
    /// How that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_result: Option<String>,
    /// The tick that comes next, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_tick: Option<String>,
    /// What it waits for before it takes over a schedule of the app's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// Ticks that were not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<i64>,
    /// Runs that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<i64>,
    /// True while it is paused after a failure (pauseOnFailure).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
}

/// A startup task, in summary.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartupStatus {
    /// Its name.
    pub name: String,
    /// The revision it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Pending, Running, Done or Failed.
    pub state: String,
    /// The attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i32>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

fn host_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "string",
        "maxLength": 253,
        "x-kubernetes-validations": [{
            "rule": "self.matches('^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9a-fA-F:]*:[0-9a-fA-F:.]*)$')",
            "message": "must be a host name or an IP address alone: write the port in port, and no redis:// before it"
        }]
    })
}

fn username_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "string",
        "maxLength": 128,
        "x-kubernetes-validations": [{
            "rule": "self.matches('^[!-~]+$')",
            "message": "must be the name of an ACL user: printable ASCII without spaces; remove it for the server's default user"
        }]
    })
}

/// A name of CabloyJS' that becomes a part of keys in Redis.
fn name_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "string",
        "maxLength": 128,
        "x-kubernetes-validations": [{
            "rule": "self.matches('^[A-Za-z0-9][A-Za-z0-9._-]*$')",
            "message": "must be the name alone, as the app has it: letters, digits, '.', '_' and '-', such as shop-report"
        }]
    })
}

fn subdomain_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "string",
        "maxLength": 128,
        "x-kubernetes-validations": [{
            "rule": "self.matches('^([A-Za-z0-9][A-Za-z0-9._-]*)?$')",
            "message": "must be the name of a CabloyJS instance: letters, digits, '.', '_' and '-'; empty for the default one"
        }]
    })
}

/// People write `cpu: 1`, and the schema of Kubernetes admits it; its Rust type takes quantities as text alone.
fn quantities_as_text<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<ResourceRequirements>, D::Error> {
    let mut resources = Option::<Value>::deserialize(deserializer)?;
    for list in ["limits", "requests"] {
        let quantities =
            resources.as_mut().and_then(|resources| resources.get_mut(list)).and_then(Value::as_object_mut);
        for quantity in quantities.into_iter().flat_map(serde_json::Map::values_mut).filter(|value| value.is_number()) {
            *quantity = Value::String(quantity.to_string());
        }
    }
    resources.map(serde_json::from_value).transpose().map_err(serde::de::Error::custom)
}

/// Any JSON value: the app decides what it takes.
fn any_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "x-kubernetes-preserve-unknown-fields": true })
}

/// A word or a list, which a structural schema cannot say: `validate` in the operator does.
fn instances_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "description": "For which CabloyJS instances (tenants) a bean is run: Default, All, or a list of subdomains.",
        "x-kubernetes-preserve-unknown-fields": true
    })
}

/// The `CustomResourceDefinition` as YAML.
///
/// # Errors
/// The definition cannot be YAML, which a test rules out.
pub fn crd_yaml() -> Result<String, serde_yaml::Error> {
    use kube::CustomResourceExt;
    // kubectl and Helm read YAML 1.1, in which a bare Off is false.
    serde_yaml::to_string(&CabloyCluster::crd()).map(|text| text.replace("- Off\n", "- \"Off\"\n"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn quantities_may_be_numbers() {
        let agent: super::Agent =
            serde_json::from_value(serde_json::json!({ "resources": { "requests": { "cpu": 1, "memory": "32Mi" } } }))
                .unwrap();
        let requests = agent.resources.unwrap().requests.unwrap();
        assert_eq!(requests["cpu"].0, "1");
        assert_eq!(requests["memory"].0, "32Mi");
    }

    #[test]
    fn the_yaml_in_the_repository_is_the_one_of_these_types() {
        let written = include_str!("../cabloyclusters.yaml");
        assert!(
            written == super::crd_yaml().unwrap(),
            "crds/cabloyclusters.yaml is not that of the types: run `make crds`"
        );
    }
}
