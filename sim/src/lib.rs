//! A world for the election and ledger protocol, and for the schedule engine on top of it: agents, nodes and the network
//! between them, with every fault that they must bear, drawn from a seed and so repeated by it.
//!
//! The agents run the very core that the agent runs; nodes are [`cabloy_redlock::model`], held together with the scripts
//! by a test. Each agent and each node has a clock of its own. After each step the promises of [`Promise`] are checked.
//!
//! * `plan`: what a seed's world is like; `world`: what happens; `pod`, `work`, `foreign`: who acts in it; `trouble`:
//!   faults; `settle`: what must be so once all is well;
//! * `story`: chains of events that chance does not find; `stream`: what they hold up;
//! * `truth`: what is promised;
//! * `engine`: engines, apps and people, in worlds that have them, and what is promised of runs;
//! * [`many`]: many seeds on all cores.
//!
//! [`check`] looks at every state that can be reached within bounds, with clocks left out.

pub mod check;
mod clock;
mod dice;
mod engine;
mod foreign;
pub mod many;
mod plan;
mod pod;
mod settle;
mod story;
mod stream;
mod trace;
mod trouble;
mod truth;
mod work;
mod world;

pub use engine::{EVENTS, Event};
pub use plan::{Clocks, DRILLS, FAULTS, Fault, Memory};
pub use settle::{HANDS_OVER_WITHIN, SETTLES_WITHIN};
pub use truth::{Promise, Violation};
pub use world::{Check, Laws, Outcome, Tally, run};
