//! A clock that goes at a rate of its own, jumps, and stands still; true time is the world's.

use cabloy_redlock::clock::Instant;

/// True time of the world, in nanoseconds.
pub(crate) type Time = u64;

pub(crate) const MS: Time = 1_000_000;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// When it showed `shows`.
    at: Time,
    shows: u64,
    /// How much faster than true time it goes, in millionths.
    ppm: i64,
    stopped: bool,
}

impl Clock {
    pub(crate) fn new(shows: u64, ppm: i64) -> Self {
        Self { at: 0, shows, ppm, stopped: false }
    }

    /// What it shows.
    pub(crate) fn read(&self, now: Time) -> Instant {
        if self.stopped {
            return Instant::from_nanos(self.shows);
        }
        Instant::from_nanos(self.shows + scale(now - self.at, 1_000_000 + self.ppm, 1_000_000))
    }

    /// When it will show `shows`, if it goes on as it does.
    pub(crate) fn when(&self, shows: Instant) -> Time {
        let left = shows.as_nanos().saturating_sub(self.shows);
        // Rounded up, for it must not be too early.
        self.at + scale(left, 1_000_000, 1_000_000 + self.ppm) + 1
    }

    pub(crate) fn set_rate(&mut self, now: Time, ppm: i64) {
        self.settle(now);
        self.ppm = ppm;
    }

    pub(crate) fn jump(&mut self, now: Time, by: i64) {
        self.settle(now);
        self.shows = self.shows.saturating_add_signed(by);
    }

    pub(crate) fn stop(&mut self, now: Time) {
        self.settle(now);
        self.stopped = true;
    }

    pub(crate) fn go_on(&mut self, now: Time) {
        self.at = now;
        self.stopped = false;
    }

    pub(crate) fn go_on_if_stopped(&mut self, now: Time) {
        if self.stopped {
            self.go_on(now);
        }
    }

    pub(crate) fn rate(&self) -> i64 {
        self.ppm
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    fn settle(&mut self, now: Time) {
        (self.shows, self.at) = (self.read(now).as_nanos(), now);
    }
}

fn scale(span: u64, by: i64, over: i64) -> u64 {
    u64::try_from(i128::from(span) * i128::from(by) / i128::from(over)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_at_its_rate() {
        let mut clock = Clock::new(5000 * MS, 10_000);
        assert_eq!(clock.read(100 * MS).as_nanos(), 5101 * MS);
        assert_eq!(clock.when(Instant::from_nanos(5101 * MS)), 100 * MS + 1);
        clock.stop(100 * MS);
        assert_eq!(clock.read(300 * MS).as_nanos(), 5101 * MS);
        clock.go_on(300 * MS);
        clock.jump(300 * MS, -1_000_000);
        assert_eq!(clock.read(400 * MS).as_nanos(), 5201 * MS);
    }
}
