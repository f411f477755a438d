//! The agent.

pub mod clock;
pub mod election;
pub mod ledger;
pub mod redlock;
