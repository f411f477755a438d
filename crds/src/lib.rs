//! What the parts of the product agree on: the `CabloyCluster` resource, the files that the operator writes and
//! agents, apps and people read, and the dialect of cron and of durations.
//!
//! Only the feature `crd` brings Kubernetes types in; the agent builds without it.

pub mod agent_status;
pub mod cron;
pub mod duration;
pub mod files;
pub mod names;
#[cfg(feature = "crd")]
pub mod resource;
pub mod vocabulary;

#[cfg(feature = "crd")]
pub use resource::{CabloyCluster, CabloyClusterSpec, CabloyClusterStatus};
