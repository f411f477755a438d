//! Schedules and startup tasks, as their leader runs them.
//!
//! Pure: no sockets, no clock, no randomness. The agent drives it over the replicated ledger and the app beside it; a
//! simulator drives the same code over a ledger and apps of its own.
//!
//! * [`core`]: the work of one term, `step(now, event) -> actions`; [`gate`]: what each pod does for itself, leading or
//!   not; [`recording`]: how results get into the ledger, which outlives the term; [`resume`]: what an earlier process has
//!   called, and the app is asked about.
//! * [`schedule`], [`startup`] and [`runs`]: what is due and what comes next, of one schedule, task or run.
//! * [`rule`] names the rules that a simulator may take away, to see that it notices.
//! * [`digest`]: names for texts.

pub mod core;
pub mod digest;
pub mod gate;
pub mod recording;
pub mod resume;
pub mod rule;
pub mod runs;
pub mod schedule;
pub mod startup;
