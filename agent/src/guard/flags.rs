//! The flags by which `CabloyJS` remembers that a startup has just been run (`debounce`). It sets one before the startup
//! runs, and leaves it there if the startup fails or its process dies: whoever starts next skips the startup all the same.
//!
//! A flag that is as the app sets it says no more than that somebody has begun. Another value, which means the same to the
//! app, vouches for it: that the startup was come through. In an app of v4 the preload script sees to both, for each startup
//! by itself (`operator/preload/preload.cjs`). For others their agents do: when an app has come through all its startups, and no
//! other app is at its own, the agent beside it vouches for the flags that there are. So while no app is at its startups, a
//! flag that nobody has vouched for is of an attempt that failed or died.

use std::time::Duration;

use cabloy_crds::agent_status::{AppFailure, AppStatus};
use cabloy_crds::vocabulary::Generation;
use redis::aio::MultiplexedConnection;
use redis::{RedisResult, Script};

/// Keys that are gone through at once.
const SCAN: usize = 1_000;

/// So long flags are vouched for once an app serves: Vona begins with that, and then comes to the startups of its instances.
pub const VOUCHES: Duration = Duration::from_secs(10);

/// Where the app is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It has not been asked yet.
    Unknown,
    /// Nothing listens on its port: its startups have not begun, or it has died; or, in Vona, it is at its startups.
    Down,
    /// It is at its startups, or hangs.
    Starting,
    /// It answers, and not well: startups of its default instance have failed, and are tried again with the next request.
    Failing,
    /// It serves.
    Healthy,
}

impl Phase {
    /// By the last health check.
    #[must_use]
    pub fn of(app: &AppStatus) -> Self {
        match &app.failure {
            // One check that fails says little of an app that serves.
            _ if app.healthy => Self::Healthy,
            None => Self::Unknown,
            Some(AppFailure::Down) => Self::Down,
            Some(AppFailure::NoAnswer) => Self::Starting,
            Some(AppFailure::BadAnswer) => Self::Failing,
        }
    }

    /// Whether it may be at its startups.
    #[must_use]
    pub fn may_start(self) -> bool {
        matches!(self, Self::Down | Self::Starting | Self::Failing)
    }
}

/// What becomes of the flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// All are removed: they are another revision's.
    RemoveAll,
    /// Those that nobody has vouched for are removed.
    RemoveUnproven,
    /// All are vouched for.
    Vouch,
}

/// What is to be done, where `others` apps are at their startups. `first`: no pod of this revision has started before.
/// `vouched`: that has been done since the app serves, and for long enough.
#[must_use]
pub fn action(generation: Generation, phase: Phase, first: bool, others: u64, vouched: bool) -> Option<Action> {
    match phase {
        Phase::Down if first => Some(Action::RemoveAll),
        _ if generation == Generation::V4 => None,
        // They may be those of the app itself, which has come through them: who misses them starts just after it.
        Phase::Down | Phase::Failing if others == 0 => Some(Action::RemoveUnproven),
        Phase::Healthy if others == 0 && !vouched => Some(Action::Vouch),
        Phase::Unknown | Phase::Down | Phase::Starting | Phase::Failing | Phase::Healthy => None,
    }
}

/// Does it; gives how many flags it was done to.
///
/// # Errors
/// The server does not answer, or with an error.
pub async fn see_to(connection: &mut MultiplexedConnection, pattern: &str, action: Action) -> RedisResult<u64> {
    let script = Script::new(include_str!("flags.lua"));
    let (mut cursor, mut count) = (0_u64, 0);
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(SCAN);
        let (next, flags): (u64, Vec<String>) = scan.query_async(connection).await?;
        if !flags.is_empty() {
            count += match action {
                Action::RemoveAll => redis::cmd("DEL").arg(flags).query_async::<u64>(connection).await?,
                Action::RemoveUnproven => script.key(flags).arg("remove").invoke_async(connection).await?,
                Action::Vouch => script.key(flags).arg("vouch").invoke_async(connection).await?,
            };
        }
        cursor = next;
        if cursor == 0 {
            return Ok(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_removed_only_while_no_app_is_at_its_startups() {
        for (phase, first, others, vouched, expected) in [
            (Phase::Down, true, 3, false, Some(Action::RemoveAll)),
            (Phase::Down, false, 0, false, Some(Action::RemoveUnproven)),
            (Phase::Down, false, 1, false, None),
            (Phase::Failing, true, 0, false, Some(Action::RemoveUnproven)),
            (Phase::Failing, false, 1, false, None),
            (Phase::Starting, false, 0, false, None),
            (Phase::Unknown, true, 0, false, None),
            (Phase::Healthy, false, 0, false, Some(Action::Vouch)),
            (Phase::Healthy, false, 1, false, None),
            (Phase::Healthy, false, 0, true, None),
        ] {
            let action = |generation| action(generation, phase, first, others, vouched);
            assert_eq!(action(Generation::Vona), expected, "{phase:?} {first} {others} {vouched}");
            let all = expected.filter(|action| *action == Action::RemoveAll);
            assert_eq!(action(Generation::V4), all, "{phase:?} {first} {others} {vouched}");
        }
    }
}
