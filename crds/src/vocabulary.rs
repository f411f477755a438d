//! Words that the resource and the agent's file share.

use serde::{Deserialize, Serialize};

/// In which form an app gets its Redis configuration, and how it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Generation {
    /// `CabloyJS` 3 and 4: per-role Redis clients, configured through `EGG_APP_CONFIG`.
    V4,
    /// `CabloyJS` 5 (Vona): one connection, configured through `REDIS_DEFAULT_*`; per-role clients where the app merges its
    /// configuration.
    Vona,
    /// Any other program: it reads the files itself.
    Generic,
}

/// What becomes of a tick that falls due while the run of an earlier one is still open. Named as in Temporal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Overlap {
    /// The tick is dropped, and counted.
    #[default]
    Skip,
    /// One tick waits; later ones are dropped.
    BufferOne,
    /// All ticks wait.
    BufferAll,
    /// The open run is cancelled.
    CancelOther,
    /// Both run.
    AllowAll,
}

/// Which ticks are made up for that fell due while nobody could run them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum CatchUpPolicy {
    /// None of them.
    None,
    /// The latest.
    Latest,
    /// All, in order.
    #[default]
    All,
}

/// What becomes of a run that passed its deadline without a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum OnUnknown {
    /// It counts as failed and is not tried again.
    #[default]
    Skip,
    /// It is tried again, as often as `retry` allows.
    Retry,
}

/// How often a startup task is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Scope {
    /// Once for each revision of the app, over all pods.
    #[default]
    Cluster,
    /// Once for each start of a pod, in that pod.
    Instance,
}

/// What waits for a startup task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Gate {
    /// Pods of the revision are not Ready, and run no schedules, until it is done.
    #[default]
    Ready,
    /// Nothing.
    None,
}

/// Which instances (tenants) of the app, in a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum InstanceSet {
    /// The default one.
    #[default]
    Default,
    /// All that the app knows and that are not disabled.
    All,
}

/// HTTP method of a call to the app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    /// `GET`
    Get,
    /// `POST`
    #[default]
    Post,
    /// `PUT`
    Put,
    /// `PATCH`
    Patch,
    /// `DELETE`
    Delete,
}

impl Method {
    /// The method as it stands in a request line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

/// How the waits between attempts at a job grow. Named as in `BullMQ`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum BackoffKind {
    /// They are all as long.
    #[default]
    Fixed,
    /// Each is twice as long as the one before.
    Exponential,
}
