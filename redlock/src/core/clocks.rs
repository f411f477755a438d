//! What a node's clock shows beside ours: whether both go at the same pace, and whether it is near the other nodes'.
//!
//! A lock runs out by the node's wall clock and a lease by our clock, so a lease means something only while the two keep
//! pace. Every answer carries the node's time, so a jump, a clock that runs away, and a machine that stood still without its
//! clock noticing all show at the next answer.

use std::time::Duration;

use super::{Core, Node};
use crate::Timing;
use crate::clock::Instant;
use crate::rule::Rule;

/// Fewer clocks than this do not tell which of them is wrong.
const ENOUGH: usize = 3;

/// A node's time less ours, in nanoseconds: it was read between the sending of a command and the coming of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Reading {
    at: Instant,
    low: i128,
    high: i128,
}

impl Reading {
    /// `time` in microseconds since 1970.
    fn new(sent: Instant, came: Instant, time: u64) -> Self {
        let time = i128::from(time) * 1000;
        // Redis cuts to whole microseconds.
        Self { at: came, low: time - i128::from(came.as_nanos()), high: time + 999 - i128::from(sent.as_nanos()) }
    }

    fn middle(&self) -> i128 {
        i128::midpoint(self.low, self.high)
    }

    /// Whether the clocks kept pace between the two.
    fn agrees(&self, later: &Self) -> bool {
        let drift = nanos(Timing::drift_over(later.at.since(self.at)));
        later.low <= self.high + drift && later.high >= self.low - drift
    }
}

impl Node {
    /// Takes in the time of the newest answer; `false` if the clocks did not keep pace up to it.
    ///
    /// What it is compared with is as old as a renewal: were it always the last answer, many short steps would hide a
    /// long one.
    pub(super) fn read_clock(&mut self, timing: &Timing, rules: crate::rule::Rules, reading: Reading) -> bool {
        let steady = self.clock.is_none_or(|earlier| earlier.agrees(&reading)) || !rules.hold(Rule::ClockCheck);
        let replace = !steady || self.clock.is_none_or(|known| reading.at.since(known.at) >= timing.ttl / 4);
        if replace {
            self.clock = Some(reading);
        }
        if !steady {
            (self.lease, self.doubted) = (None, Some(reading.at));
        }
        steady
    }
}

impl Core {
    pub(super) fn reading(sent: Instant, came: Instant, time: u64) -> Reading {
        Reading::new(sent, came, time)
    }

    /// The nodes' time less ours in the middle of the nodes that were heard, in nanoseconds.
    pub(super) fn median(&self) -> Option<i128> {
        let mut middles: Vec<_> = self.nodes.iter().filter_map(|node| Some(node.clock?.middle())).collect();
        middles.sort_unstable();
        let half = middles.len().checked_sub(1)? / 2;
        Some(i128::midpoint(middles[half], middles[middles.len() / 2]))
    }

    /// Which nodes have a clock so far from the others' that their locks do not count.
    #[must_use]
    pub fn far(&self) -> Vec<bool> {
        let limit = nanos(self.timing.skew_limit());
        let known = self.nodes.iter().filter(|node| node.clock.is_some()).count();
        let median = self.median().filter(|_| known >= ENOUGH && self.rules.hold(Rule::Skew));
        let far =
            |clock: Reading| median.is_some_and(|median| clock.low > median + limit || clock.high < median - limit);
        self.nodes.iter().map(|node| node.clock.is_some_and(far)).collect()
    }

    /// The time of day by the median of the nodes at our `now`, in nanoseconds since 1970; `None` before one has answered.
    ///
    /// No tick is due before it is due by this: one clock that is ahead must not run what others hold to be the future.
    #[must_use]
    pub fn time_at(&self, now: Instant) -> Option<i128> {
        self.median().map(|median| i128::from(now.as_nanos()) + median)
    }
}

fn nanos(span: Duration) -> i128 {
    i128::try_from(span.as_nanos()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Answered after 1 ms, by a clock that is `ahead` ms before ours.
    fn at(seconds: u64, ahead: i64) -> Reading {
        let sent = Instant::from_nanos(seconds * SECOND);
        let time = (seconds * 1_000_000 + 500).saturating_add_signed(ahead * 1000);
        Reading::new(sent, sent + Duration::from_millis(1), time)
    }

    #[test]
    fn clocks_that_keep_pace_agree() {
        assert!(at(100, 0).agrees(&at(103, 0)));
        assert!(at(100, 5000).agrees(&at(103, 5031)), "one percent, and 2 ms for what is rounded");
        assert!(at(100, 5000).agrees(&at(103, 4969)));
    }

    #[test]
    fn a_jump_shows_either_way() {
        for jump in [-5000, -40, 40, 5000] {
            assert!(!at(100, 0).agrees(&at(103, jump)), "{jump}");
        }
    }

    #[test]
    fn a_slow_answer_says_less() {
        let sent = Instant::from_nanos(103 * SECOND);
        let late = Reading::new(sent, sent + Duration::from_secs(2), 104_900_000);
        assert!(at(100, 0).agrees(&late), "anything between the sending and the answer may be the node's time");
    }
}
