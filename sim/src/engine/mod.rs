//! The schedule engine on top of the election: each agent runs the core of `cabloy-engine` while it leads, and in each pod
//! there is an app that takes calls.
//!
//! * `scene`: what a seed's schedules, startup tasks and apps are like;
//! * `desk`: what the agent does around its engine and its gate, as the real driver does;
//! * `app`: an app that is called; `ask`: an agent that was started again asks it what became of that;
//! * `trouble`: apps and pods that crash, rolling updates, and the operator; `edit`: people who edit schedules;
//! * `watch`: what really ran, and what is promised of that;
//! * `calm`: what must be so once all is well.

mod app;
mod ask;
mod calm;
mod desk;
mod edit;
mod scene;
mod trouble;
mod watch;

pub(crate) use self::desk::{Asked, Desk};
pub(crate) use self::scene::Scene;
pub(crate) use self::trouble::Due;
pub use self::trouble::{EVENTS, Event};
pub(crate) use self::watch::{Watch, time};
