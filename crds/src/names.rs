//! Names and paths that more than one part of the product relies on.

/// API group of the resource, and prefix of all our annotations and labels.
pub const GROUP: &str = "cabloy.io";

/// Name of the agent's container in the user's pods.
pub const AGENT_CONTAINER: &str = "cabloy-agent";

/// TCP port of the agent's read-only endpoints `/status`, `/metrics`, `/healthz`, `/readyz`.
pub const AGENT_PORT: u16 = 7070;

/// TCP port on 127.0.0.1 of the agent's endpoints that change state (`POST /drain`).
pub const AGENT_CONTROL_PORT: u16 = 7071;

/// TCP port an app listens on where the resource does not say: the one of CabloyJS' project template.
pub const DEFAULT_APP_PORT: u16 = 7002;

/// The route of the integration module, where the resource does not say.
pub const DEFAULT_BEAN_PATH: &str = "/api/cabloy/agent/run";

/// The role whose masters hold the lock and the ledger.
pub const REDLOCK_ROLE: &str = "redlock";

/// The role whose server has the app's `BullMQ` queues.
pub const QUEUE_ROLE: &str = "queue";

/// The role whose server carries the app's broadcasts.
pub const BROADCAST_ROLE: &str = "broadcast";

/// The role whose server has the app's caches, and the flags of startups that have just been run.
pub const CACHE_ROLE: &str = "cache";

/// The role whose server has the flags of startups that Vona has just run, and which of its processes are alive.
pub const WORKER_ROLE: &str = "worker";

/// The connection that a role uses where it names none.
pub const DEFAULT_CONNECTION: &str = "default";

/// The startup task that has each pod of a v4 app warmed up.
pub const WARM_UP: &str = "warm-up";

/// The route that every installation of `CabloyJS` 4 answers a POST on, without a user and without a trace.
pub const ECHO_PATH: &str = "/api/a/base/auth/echo";

/// File of a role's Redis configuration, in its ConfigMap and where it is mounted.
pub const CLIENT_FILE: &str = "client.json";

/// File of the agent's own configuration, in its ConfigMap and where it is mounted.
pub const AGENT_FILE: &str = "agent.json";

/// File that tells the preload what else is in the boot ConfigMap.
pub const BOOT_FILE: &str = "boot.json";

/// The preload script's file in the boot ConfigMap.
pub const PRELOAD_FILE: &str = "preload.cjs";

/// Folder of the agent's files in its container; an agent outside Kubernetes is told another by flag.
pub const CONFIG_DIR: &str = "/etc/cabloy/config";

/// Folder of the boot ConfigMap in the app's container.
pub const BOOT_DIR: &str = "/etc/cabloy/boot";

/// Folder of passwords and certificates, one folder a connection, in both containers.
pub const SECRETS_DIR: &str = "/etc/cabloy/secrets";

/// Folder of the key that calls to the app are signed with, in both containers.
pub const SIGNING_DIR: &str = "/etc/cabloy/signing";

/// The key in the Secret of a cluster that calls are signed with, and the file that it becomes.
pub const SIGNING_KEY: &str = "key";

/// Folder in both containers where the agent tells the app's processes what becomes of the pod.
pub const STATE_DIR: &str = "/etc/cabloy/state";

/// The file in it that is there while the pod drains: it is about to end.
pub const DRAINING_FILE: &str = "draining";

/// Folder of the Secrets of `app.configFrom`, one numbered folder each, in the app's container.
pub const APP_CONFIG_DIR: &str = "/etc/cabloy/app-config";

/// The file in the agent's configuration folder that holds the configuration of `role`.
#[must_use]
pub fn role_file(role: &str) -> String {
    format!("redis/{role}/{CLIENT_FILE}")
}
