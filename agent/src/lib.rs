//! The agent beside a `CabloyJS` app: elects one leader with Redlock, and on the leader runs schedules and startup tasks
//! by calling the app.
//!
//! * [`clock`], [`masters`], [`election`] and [`ledger`]: who leads, and what is remembered whoever does; the protocol
//!   itself is the crate `cabloy-redlock`.
//! * [`files`] and [`reload`]: what the agent works by.
//! * [`engine`] and [`gate`]: what is run, on the leader and on each pod; what is due and what comes next is decided by the
//!   crate `cabloy-engine`, whose [`schedule`], [`startup`] and [`runs`] are used all over.
//! * [`resume`]: what an agent before this one in the pod has called, and the app is asked about.
//! * [`target`]: what is called; [`app`], [`bean`], [`signing`] and [`health`]: calls to the app; [`aside`]: when its failures let
//!   another pod lead; [`queue`], [`broadcast`] and [`roles`]: what goes to the app through Redis.
//! * [`warm_up`]: first requests to the app's worker processes, for which apps of `CabloyJS` 4 wait.
//! * [`shared`], [`server`], [`metrics`] and [`drain`]: what is seen and asked from outside; [`traces`] and [`export`]: a
//!   trace for each run.
//! * [`mark`]: what the app's processes are told when their pod is about to end.
//! * [`guard`]: the app's own schedules are guarded through rollouts; [`takeover`]: schedules take their place; [`lead`]: when.
//! * [`agent`]: all of it together.

pub use cabloy_engine::{digest, runs, schedule, startup};

pub mod agent;
pub mod app;
pub mod aside;
pub mod bean;
pub mod broadcast;
pub mod clock;
pub mod drain;
pub mod election;
pub mod engine;
pub mod export;
pub mod files;
pub mod gate;
pub mod guard;
pub mod health;
pub mod lead;
pub mod ledger;
pub mod mark;
pub mod masters;
pub mod metrics;
pub mod queue;
pub mod reload;
pub mod resume;
pub mod roles;
pub mod server;
pub mod shared;
pub mod signing;
pub mod takeover;
pub mod target;
pub mod traces;
pub mod warm_up;
