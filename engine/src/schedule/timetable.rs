//! When the ticks of a schedule fall due.

use std::time::Duration;

use cabloy_crds::cron::{self, Cron, InvalidCron};
use cabloy_crds::files::Schedule;
use jiff::{Timestamp, tz::TimeZone};

use crate::digest;
use crate::runs::plus;

/// The longest time that is searched for ticks.
const SEARCHED: Duration = Duration::from_hours(4 * 8_760);

/// When the ticks of a schedule fall due.
#[derive(Clone, Debug)]
pub struct Timetable {
    name: String,
    rule: Rule,
    jitter_ms: u64,
}

#[derive(Clone, Debug)]
enum Rule {
    Cron(Box<Cron>, TimeZone),
    /// Milliseconds, counted from the Unix epoch.
    Every(i64),
}

/// A timetable that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidTimetable {
    /// The cron expression or its time zone.
    #[error(transparent)]
    Cron(#[from] InvalidCron),
    /// Neither or both of `cron` and `everyMs`, or a period of zero.
    #[error("write exactly one of cron and everyMs, and a period of at least 1 ms")]
    Rule,
}

impl Timetable {
    /// The timetable of a schedule.
    ///
    /// # Errors
    /// The schedule has no single rule, or one that cannot be read.
    pub fn new(schedule: &Schedule) -> Result<Self, InvalidTimetable> {
        let rule = match (&schedule.cron, schedule.every_ms.map(i64::try_from)) {
            (Some(expression), None) => {
                Rule::Cron(Box::new(cron::parse(expression)?), cron::time_zone(&schedule.time_zone)?)
            }
            (None, Some(Ok(every))) if every > 0 => Rule::Every(every),
            _ => return Err(InvalidTimetable::Rule),
        };
        Ok(Self { name: schedule.name.clone(), rule, jitter_ms: schedule.jitter_ms })
    }

    /// The first tick after `time`; none if there never is one.
    #[must_use]
    pub fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        match &self.rule {
            Rule::Every(every) => cron::next_multiple(*every, time),
            Rule::Cron(cron, zone) => cron.next_after(time, zone),
        }
    }

    /// A time from which on at least `count` ticks fall due until `now`, and not many more where there are that many.
    #[must_use]
    pub fn before_last(&self, count: usize, now: Timestamp) -> Timestamp {
        let mut span = Duration::from_secs(1);
        loop {
            let from = now.checked_sub(span).unwrap_or(Timestamp::MIN);
            let ticks = std::iter::successors(self.next_after(from), |tick| self.next_after(*tick));
            let enough = ticks.take_while(|tick| self.due(*tick) <= now).take(count).count() == count;
            if enough || span > SEARCHED {
                return from;
            }
            span *= 2;
        }
    }

    /// When `tick` is to be run: by the schedule's jitter later than the tick, and always the same for the same tick, so
    /// that a new leader comes to the same time.
    #[must_use]
    pub fn due(&self, tick: Timestamp) -> Timestamp {
        if self.jitter_ms == 0 {
            return tick;
        }
        let number = digest::number(&[self.name.as_bytes(), tick.to_string().as_bytes()]);
        let delay = number % (u128::from(self.jitter_ms) + 1);
        plus(tick, Duration::from_millis(u64::try_from(delay).unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::tests::every;
    use super::*;
    use crate::runs::between;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).unwrap()
    }

    fn cron_table(expression: &str, zone: &str) -> Timetable {
        Timetable::new(&Schedule { cron: Some(expression.into()), every_ms: None, time_zone: zone.into(), ..every(1) })
            .unwrap()
    }

    #[test]
    fn ticks_are_counted_from_the_epoch() {
        let table = Timetable::new(&every(250)).unwrap();
        assert_eq!(table.next_after(at(0)), Some(at(250)));
        assert_eq!(table.next_after(at(249)), Some(at(250)));
        assert_eq!(table.next_after(at(-1)), Some(at(0)));
        assert!(Timetable::new(&Schedule { every_ms: None, ..every(1) }).is_err());
        assert!(Timetable::new(&Schedule { cron: Some("@daily".into()), ..every(1) }).is_err());
    }

    #[test]
    fn a_cron_expression_is_read_in_its_time_zone() {
        let table = cron_table("0 3 * * *", "Asia/Shanghai");
        let next = table.next_after("2026-11-23T10:00:00Z".parse().unwrap()).unwrap();
        assert_eq!(next.to_string(), "2026-11-23T19:00:00Z");
        let seconds = cron_table("*/10 * * * * *", "UTC");
        assert_eq!(seconds.next_after(at(10_000)), Some(at(20_000)), "the first after, not the same again");
    }

    #[test]
    fn an_hour_that_comes_twice_runs_a_daily_tick_once() {
        let table = cron_table("30 1 * * *", "America/New_York");
        let first = table.next_after("2026-11-01T04:00:00Z".parse().unwrap()).unwrap();
        assert_eq!(first.to_string(), "2026-11-01T05:30:00Z");
        assert_eq!(table.next_after(first).unwrap().to_string(), "2026-11-02T06:30:00Z");
    }

    #[test]
    fn jitter_is_the_same_wherever_it_is_computed() {
        let schedule = Schedule { jitter_ms: 5_000, ..every(60_000) };
        let (a, b) = (Timetable::new(&schedule).unwrap(), Timetable::new(&schedule).unwrap());
        let delays: BTreeSet<_> = (1..50)
            .map(|n| at(n * 60_000))
            .map(|tick| {
                assert_eq!(a.due(tick), b.due(tick));
                between(tick, a.due(tick))
            })
            .collect();
        assert!(delays.len() > 40 && *delays.last().unwrap() <= Duration::from_secs(5));
    }

    #[test]
    fn the_last_ticks_are_found_without_counting_all() {
        let now = at(365 * 24 * 3_600_000);
        for (table, count) in [
            (Timetable::new(&every(1_000)).unwrap(), 1_001),
            (cron_table("*/5 * * * *", "UTC"), 1_001),
            (cron_table("0 3 * * *", "UTC"), 5),
        ] {
            let from = table.before_last(count, now);
            let ticks = std::iter::successors(table.next_after(from), |tick| table.next_after(*tick));
            let found = ticks.take_while(|tick| *tick <= now).count();
            assert!((count..=2 * count + 1).contains(&found), "{found}");
        }
        assert!(cron_table("0 0 29 2 *", "UTC").before_last(3, now) < at(0), "no more are there");
    }
}
