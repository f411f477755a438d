//! What a node's clock shows beside ours: whether both go at the same pace, and whether it is near the other nodes'.
//!
//! A lock runs out by the node's wall clock and a lease by our clock, so a lease means something only while the two keep
//! pace. Every answer carries the node's time, so a jump, a clock that runs away, and a machine that stood still without its
//! clock noticing all show at the next answer.

use std::time::Duration;

use super::{Core, Node};
use crate::Timing;
use crate::clock::Instant;
use crate::rule::{Rule, Rules};

/// Fewer clocks than this do not tell which of them is wrong.
const ENOUGH: usize = 3;

/// A reading that is so many times sharper takes the place of one that is not old yet.
const SHARPER: i128 = 10;

/// A node's time less ours, in nanoseconds: it was read between the sending of a command and the coming of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Reading {
    at: Instant,
    low: i128,
    high: i128,
}

/// A node's clock beside ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Clock {
    /// As it was a renewal ago; nothing before the first answer.
    reading: Option<Reading>,
    /// When both were last seen not to have kept pace.
    doubted: Option<Instant>,
}

impl Reading {
    /// `time` in microseconds since 1970.
    pub(super) fn new(sent: Instant, came: Instant, time: u64) -> Self {
        let time = i128::from(time) * 1000;
        // Redis cuts to whole microseconds.
        Self { at: came, low: time - i128::from(came.as_nanos()), high: time + 999 - i128::from(sent.as_nanos()) }
    }

    fn middle(&self) -> i128 {
        i128::midpoint(self.low, self.high)
    }

    /// How little it says: after how long the answer came.
    fn width(&self) -> i128 {
        self.high - self.low
    }

    /// Whether the clocks kept pace between the two.
    fn agrees(&self, later: &Self) -> bool {
        let drift = nanos(Timing::drift_over(later.at.since(self.at)));
        later.low <= self.high + drift && later.high >= self.low - drift
    }
}

impl Clock {
    /// Whether what was sent then makes a lease. Before the clock was doubted it does not: its answer may be of the time
    /// before and yet come after.
    pub(super) fn trusted(&self, sent: Instant) -> bool {
        self.doubted.is_none_or(|doubted| sent > doubted)
    }
}

impl Node {
    /// Takes in the time of the newest answer; `false` if the clocks did not keep pace up to it.
    ///
    /// What it is compared with is as old as a renewal: were it always the last answer, many short steps would hide a
    /// long one. Who stood still while an answer waited learns little from it, and goes by a better one at once.
    pub(super) fn read_clock(&mut self, timing: &Timing, rules: Rules, reading: Reading) -> bool {
        let Clock { reading: known, doubted } = &mut self.clock;
        let steady = known.is_none_or(|earlier| earlier.agrees(&reading)) || !rules.hold(Rule::ClockCheck);
        if !steady {
            (self.lease, *doubted) = (None, Some(reading.at));
        }
        let is_old = |known: Reading| reading.at.since(known.at) >= timing.ttl / 4;
        let is_blunt = |known: Reading| reading.width() * SHARPER < known.width();
        if !steady || known.is_none_or(|known| is_old(known) || is_blunt(known)) {
            *known = Some(reading);
        }
        steady
    }
}

impl Core {
    /// The nodes' time less ours in the middle of the nodes that were heard, in nanoseconds.
    fn median(&self) -> Option<i128> {
        median(self.nodes.iter().filter_map(|node| Some(node.clock.reading?.middle())))
    }

    /// Which nodes have a clock so far from the others' that their locks do not count.
    #[must_use]
    pub fn far(&self) -> Vec<bool> {
        let limit = nanos(self.timing.skew_limit());
        let known = self.nodes.iter().filter(|node| node.clock.reading.is_some()).count();
        let median = self.median().filter(|_| known >= ENOUGH && self.rules.hold(Rule::Skew));
        let far = |at: Reading| median.is_some_and(|median| at.low > median + limit || at.high < median - limit);
        self.nodes.iter().map(|node| node.clock.reading.is_some_and(far)).collect()
    }

    /// How far the time of day, in nanoseconds since 1970, is ahead of our clock by the median of the nodes; at least so
    /// much. `None` before one has answered.
    ///
    /// No tick is due before it is due by this: clocks of a minority that are ahead must not run what the others hold to be
    /// the future. A node that was not heard may be behind all others, and so may one that was heard a lease before them:
    /// its clock and ours have parted since.
    #[must_use]
    pub fn time_offset(&self) -> Option<i128> {
        let readings = || self.nodes.iter().filter_map(|node| node.clock.reading);
        let newest = readings().map(|it| it.at).max()?;
        let recent = readings().filter(|it| newest.since(it.at) <= self.timing.ttl);
        let mut known: Vec<_> = recent.map(|it| it.low).collect();
        known.sort_unstable();
        let from_above = if self.rules.hold(Rule::MedianTime) { self.majority() } else { 1 };
        known.get(known.len().saturating_sub(from_above)).copied()
    }
}

/// Of an even number, between the two in the middle.
fn median(values: impl Iterator<Item = i128>) -> Option<i128> {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable();
    let half = values.len().checked_sub(1)? / 2;
    Some(i128::midpoint(values[half], values[values.len() / 2]))
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

    fn core(nodes: usize) -> Core {
        let agent = crate::AgentId { pod: "a".into(), uid: "u".into(), process: "1".into() };
        let timing = crate::Timing { ttl: Duration::from_secs(10) };
        Core::new(crate::core::Config { agent, nodes, timing, floor: 0, rules: Rules::default() })
    }

    #[test]
    fn the_time_of_day_is_never_ahead_of_the_median_whoever_was_heard() {
        let mut core = core(5);
        let mut hear = |node: usize, ahead: i64| {
            core.nodes[node].clock.reading = Some(at(100, ahead));
            core.time_offset().map(|offset| offset / 1_000_000)
        };
        assert_eq!(hear(0, 9_000), Some(8_999), "it is all that is known");
        assert_eq!(hear(1, 8_000), Some(7_999));
        assert_eq!(hear(2, 0), Some(0), "two that were not heard may be behind, and that is the median then");
        assert_eq!(hear(3, 10), Some(9));
        assert_eq!(hear(4, 20), Some(19), "all are heard: it is the one in the middle");
    }

    #[test]
    fn who_was_heard_long_ago_tells_no_time() {
        let mut core = core(3);
        let mut hear = |node: usize, reading| {
            core.nodes[node].clock.reading = Some(reading);
            core.time_offset().map(|offset| offset / 1_000_000)
        };
        hear(0, at(100, 500));
        hear(1, at(110, 300));
        assert_eq!(hear(2, at(110, 100)), Some(299));
        assert_eq!(hear(1, at(111, 300)), Some(99), "the first may have fallen behind both");
    }

    #[test]
    fn the_time_is_right_again_with_the_first_quick_answer_after_a_slow_one() {
        let mut core = core(1);
        let sent = Instant::from_nanos(103 * SECOND);
        let mut hear = |reading| {
            let (timing, rules) = (core.timing, core.rules);
            assert!(core.nodes[0].read_clock(&timing, rules, reading));
            core.time_offset().map(|offset| offset / 1_000_000_000)
        };
        assert_eq!(hear(at(100, 0)), Some(0));
        assert_eq!(hear(Reading::new(sent, sent + Duration::from_secs(20), 103_000_100)), Some(-19), "it stood still");
        assert_eq!(hear(at(124, 0)), Some(0));
    }

    #[test]
    fn a_slow_answer_says_less() {
        let sent = Instant::from_nanos(103 * SECOND);
        let late = Reading::new(sent, sent + Duration::from_secs(2), 104_900_000);
        assert!(at(100, 0).agrees(&late), "anything between the sending and the answer may be the node's time");
    }
}
