//! The operator: turns `CabloyCluster` resources into Redis configuration and agents.
//!
//! One reconciliation is five steps, a module each: [`dereference`] reads what the resource is about, [`validate`] and
//! [`build`] are pure functions, [`apply`] writes what differs, and [`status`] says how it went. [`controller`] drives
//! them.

pub mod agents;
pub mod apply;
pub mod build;
pub mod cli;
pub mod controller;
pub mod dereference;
pub mod ended;
pub mod events;
pub mod finalize;
pub mod metrics;
pub mod names;
pub mod removals;
pub mod server;
pub mod signing;
pub mod status;
pub mod takeover;
pub mod validate;
pub mod watches;
pub mod workload;
