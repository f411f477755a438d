//! A workload of the user's as it stands in the API: raw JSON, so that nothing we do not know is lost on the way.

use std::fmt;

use cabloy_crds::{names::AGENT_CONTAINER, resource::WorkloadKind};
use serde_json::Value;

use crate::names::{BOOT, CLAIMED_BY, SECRETS};

/// `terminationGracePeriodSeconds` where a pod template does not say.
const DEFAULT_GRACE_PERIOD: i64 = 30;

/// Which workload of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadRef {
    /// Its kind.
    pub kind: WorkloadKind,
    /// Its name.
    pub name: String,
}

impl fmt::Display for WorkloadRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.name)
    }
}

/// A workload as the API server has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Live(pub Value);

impl Live {
    fn text(&self, pointer: &str) -> Option<&str> {
        self.0.pointer(pointer).and_then(Value::as_str)
    }

    fn number(&self, pointer: &str) -> Option<i64> {
        self.0.pointer(pointer).and_then(Value::as_i64)
    }

    fn list(&self, pointer: &str) -> &[Value] {
        self.0.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// Its UID.
    #[must_use]
    pub fn uid(&self) -> &str {
        self.text("/metadata/uid").unwrap_or_default()
    }

    /// Its resource version.
    #[must_use]
    pub fn resource_version(&self) -> &str {
        self.text("/metadata/resourceVersion").unwrap_or_default()
    }

    /// The generation of its spec.
    #[must_use]
    pub fn generation(&self) -> i64 {
        self.number("/metadata/generation").unwrap_or_default()
    }

    /// The generation that its controller has seen.
    #[must_use]
    pub fn observed_generation(&self) -> i64 {
        self.number("/status/observedGeneration").unwrap_or_default()
    }

    /// Whether it is being deleted.
    #[must_use]
    pub fn deleted(&self) -> bool {
        self.text("/metadata/deletionTimestamp").is_some()
    }

    /// UID of the resource that claimed it.
    #[must_use]
    pub fn claimed_by(&self) -> Option<&str> {
        self.0.get("metadata")?.get("annotations")?.get(CLAIMED_BY)?.as_str()
    }

    /// The boot `ConfigMap` that its pod template names.
    #[must_use]
    pub fn boot(&self) -> Option<&str> {
        self.template_annotation(BOOT)
    }

    /// Since when there have been the passwords that its pods were last rolled for.
    #[must_use]
    pub fn secrets(&self) -> Option<&str> {
        self.template_annotation(SECRETS)
    }

    fn template_annotation(&self, name: &str) -> Option<&str> {
        self.0.pointer("/spec/template/metadata/annotations")?.get(name)?.as_str()
    }

    /// The containers of its pods, less the init containers.
    #[must_use]
    pub fn containers(&self) -> &[Value] {
        self.list("/spec/template/spec/containers")
    }

    /// The volumes of its pods.
    #[must_use]
    pub fn volumes(&self) -> &[Value] {
        self.list("/spec/template/spec/volumes")
    }

    /// The container called `name`, or the first.
    #[must_use]
    pub fn container(&self, name: Option<&str>) -> Option<&Value> {
        let mut containers = self.containers().iter();
        match name {
            Some(name) => containers.find(|container| named(container, name)),
            None => containers.next(),
        }
    }

    /// The agent's container.
    #[must_use]
    pub fn agent(&self) -> Option<&Value> {
        self.list("/spec/template/spec/initContainers").iter().find(|container| named(container, AGENT_CONTAINER))
    }

    /// The image of the agent's container.
    #[must_use]
    pub fn agent_image(&self) -> Option<&str> {
        self.agent()?.get("image")?.as_str()
    }

    /// Whether its pod template has our part.
    #[must_use]
    pub fn has_ours(&self) -> bool {
        self.boot().is_some() || self.agent().is_some()
    }

    /// The user that its pods run as.
    #[must_use]
    pub fn run_as_user(&self) -> Option<i64> {
        self.number("/spec/template/spec/securityContext/runAsUser")
    }

    /// How many seconds its pods have to end, their preStop hooks included.
    #[must_use]
    pub fn grace_period(&self) -> i64 {
        self.number("/spec/template/spec/terminationGracePeriodSeconds").unwrap_or(DEFAULT_GRACE_PERIOD)
    }

    /// How many pods it should have.
    #[must_use]
    pub fn replicas(&self, kind: WorkloadKind) -> i64 {
        match kind {
            WorkloadKind::Deployment | WorkloadKind::StatefulSet => self.number("/spec/replicas").unwrap_or(1),
            WorkloadKind::DaemonSet => self.number("/status/desiredNumberScheduled").unwrap_or_default(),
        }
    }

    /// How many pods of the newest revision it has, and how many of all are ready.
    #[must_use]
    pub fn progress(&self, kind: WorkloadKind) -> Progress {
        let count = |field: &str| self.number(&format!("/status/{field}")).unwrap_or_default();
        match kind {
            WorkloadKind::Deployment => Progress {
                updated: count("updatedReplicas"),
                available: count("availableReplicas"),
                total: count("replicas"),
            },
            WorkloadKind::StatefulSet => Progress {
                updated: count("updatedReplicas"),
                available: count("readyReplicas"),
                total: count("replicas"),
            },
            WorkloadKind::DaemonSet => Progress {
                updated: count("updatedNumberScheduled"),
                available: count("numberAvailable"),
                total: count("currentNumberScheduled"),
            },
        }
    }

    /// What a Deployment says of a rollout that does not come on.
    #[must_use]
    pub fn rollout_failure(&self) -> Option<&str> {
        let is =
            |condition: &&Value, field: &str, value: &str| condition.get(field).and_then(Value::as_str) == Some(value);
        self.list("/status/conditions")
            .iter()
            .find(|condition| is(condition, "type", "Progressing") && is(condition, "status", "False"))?
            .get("message")?
            .as_str()
    }
}

/// How far a rollout is, in pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Of the newest revision.
    pub updated: i64,
    /// Of any revision, and ready.
    pub available: i64,
    /// Of any revision.
    pub total: i64,
}

/// Whether an item of a list is called `name`.
#[must_use]
pub fn named(item: &Value, name: &str) -> bool {
    item.get("name").and_then(Value::as_str) == Some(name)
}

/// The item of a list that is called `name`.
#[must_use]
pub fn find<'a>(items: Option<&'a Value>, name: &str) -> Option<&'a Value> {
    items?.as_array()?.iter().find(|item| named(item, name))
}
