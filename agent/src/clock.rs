//! The one place where time is read.
//!
//! Leases are measured with `CLOCK_BOOTTIME`, which goes on while the machine sleeps and which nobody can set:
//! `std::time::Instant` stops during a suspend, and the wall clock jumps.

use std::fmt;

pub use cabloy_redlock::clock::Instant;
use jiff::Timestamp;

/// Where a part of the agent takes its time from.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Now, for durations and leases.
    fn now(&self) -> Instant;

    /// Now, as the calendar has it; for ticks of schedules only.
    fn utc(&self) -> Timestamp;
}

/// The clocks of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        let nanos = u64::try_from(time.tv_nsec).unwrap_or_default();
        Instant::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    }

    fn utc(&self) -> Timestamp {
        Timestamp::now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_does_not_go_back() {
        let before = SystemClock.now();
        let after = SystemClock.now();
        assert!(after >= before && before > Instant::default());
    }
}
