//! The one place where time is read.
//!
//! Leases are measured with `CLOCK_BOOTTIME`, which goes on while the machine sleeps and which nobody can set:
//! `std::time::Instant` stops during a suspend, and the wall clock jumps.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use jiff::Timestamp;

/// A moment of `CLOCK_BOOTTIME`, in nanoseconds since the machine was booted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The moment `nanos` nanoseconds after boot.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since boot.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero if it is not after it.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(nanos(span)))
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(span)))
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} after boot", Duration::from_nanos(self.0))
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

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
        Instant(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
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

    #[test]
    fn arithmetic_saturates() {
        let one = Instant::from_nanos(1);
        assert_eq!(one - Duration::from_secs(1), Instant::default());
        assert_eq!((one + Duration::MAX).as_nanos(), u64::MAX);
        assert_eq!(one.since(one + Duration::from_secs(1)), Duration::ZERO);
    }
}
