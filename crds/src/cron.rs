//! The dialect of cron: one parser and one search, so that what the operator admits is what the agent runs.
//!
//! `croner` reads the fields and searches the wall clock. Here is the rest, such that schedules tick as they did under
//! cron-parser, the library that `CabloyJS` used: what may be written, and what becomes of ticks when clocks change.

use croner::parser::{CronParser, Seconds, Year};
use jiff::{Timestamp, ToSpan as _, civil::DateTime, tz::Offset, tz::TimeZone};

/// A cron expression or time zone that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidCron {
    /// The expression does not parse.
    #[error(
        "{expression:?} is no cron expression: {reason}; write 5 or 6 fields (seconds first) or a macro such as @daily"
    )]
    Expression {
        /// What was written.
        expression: String,
        /// What the parser says of it.
        reason: String,
    },
    /// The expression parses, but no date ever matches it.
    #[error("{0:?} never comes to pass, such as 30 February; write a date that exists")]
    Never(String),
    /// The time zone is not known.
    #[error("{0:?} is no time zone; write a name of the IANA database, such as Asia/Shanghai or UTC")]
    TimeZone(String),
}

/// What macros stand for.
const MACROS: [(&str, &str); 10] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@weekdays", "0 0 * * 1-5"),
    ("@weekends", "0 0 * * 0,6"),
    ("@hourly", "0 * * * *"),
    ("@minutely", "* * * * *"),
    ("@secondly", "* * * * * *"),
];

const MONTHS: [&str; 12] = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];

const DAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

/// A cron expression that can be used.
#[derive(Clone, Debug)]
pub struct Cron {
    wall: croner::Cron,
    /// It names hours: of an hour that comes twice, it means the first.
    names_hours: bool,
}

/// Parses a cron expression of 5 fields, or of 6 with seconds first, with names, `L`, `W`, `#` and macros.
///
/// # Errors
/// The expression does not parse, or never comes to pass.
pub fn parse(expression: &str) -> Result<Cron, InvalidCron> {
    let invalid = |reason: String| InvalidCron::Expression { expression: expression.to_owned(), reason };
    let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).sloppy_ranges(true).build();
    let wall = parser.parse(&plain(expression).map_err(invalid)?).map_err(|error| invalid(error.to_string()))?;
    let names_hours = wall.pattern.hours.values().len() < 24;
    let cron = Cron { wall, names_hours };
    // A fixed date: whether an expression is valid must not depend on the day it is written.
    cron.from(jiff::civil::date(2024, 1, 1).at(0, 0, 0, 0)).ok_or_else(|| InvalidCron::Never(expression.to_owned()))?;
    Ok(cron)
}

/// The expression in numbers, without macros and names, and without what `croner` would take though it says nothing.
fn plain(expression: &str) -> Result<String, String> {
    let expression = expression.trim();
    let expression = MACROS.iter().find(|(name, _)| *name == expression).map_or(expression, |(_, fields)| fields);
    let fields: Vec<_> = expression.split_whitespace().map(str::to_uppercase).collect();
    if !(5..=6).contains(&fields.len()) {
        return Err(format!("it has {} fields", fields.len()));
    }
    let mut plain = Vec::new();
    for (kind, mut field) in (6 - fields.len()..6).zip(fields) {
        if kind == 5 {
            // A week may end with Sunday; a range of Sunday alone is no week.
            field = field.replace("SUN-SUN", "0").replace("0-SUN", "0").replace("-SUN", "-7");
        }
        let names: &[&str] = match kind {
            4 => &MONTHS,
            5 => &DAYS,
            _ => &[],
        };
        for (number, name) in (i32::from(kind == 4)..).zip(names) {
            field = field.replace(name, &number.to_string());
        }
        if let Some(item) = field.split(',').find(|item| !is_sound(item, kind)) {
            return Err(format!("{item:?} cannot be read in {field:?}"));
        }
        plain.push(field);
    }
    Ok(plain.join(" "))
}

/// Whether an item of the list in a field may be given to `croner`, which takes some that are garbled.
fn is_sound(item: &str, kind: usize) -> bool {
    let letters = item.bytes().filter(u8::is_ascii_alphabetic).count();
    let (start, end) = (item.as_bytes().first(), item.as_bytes().last());
    let has = |sign: char| item.contains(sign);
    !matches!(start, None | Some(b'/' | b'+'))
        && match kind {
            3 => letters == 0 || item == "L" || item == "LW" || (letters == 1 && end == Some(&b'W')),
            5 if has('L') => letters == 1 && item.len() == 2 && end == Some(&b'L'),
            5 => letters == 0 && !(has('#') && has('/')),
            _ => letters == 0,
        }
}

/// Finds a time zone of the IANA database; the database is built in, so that all agents agree.
///
/// # Errors
/// There is no such zone.
pub fn time_zone(name: &str) -> Result<TimeZone, InvalidCron> {
    jiff::tz::TimeZoneDatabase::bundled().get(name).map_err(|_| InvalidCron::TimeZone(name.to_owned()))
}

impl Cron {
    /// The first tick after `time`, as the clocks of `zone` show it; none if there never is one.
    ///
    /// Where clocks go forward, a tick in the time that does not exist comes in the first later hour which has its
    /// minute: 02:30 comes at 03:30. Where they go back, a tick in the time that comes twice comes the first time; each
    /// time if the expression is for every hour. A whole day that a zone leaves out has no ticks.
    #[must_use]
    pub fn next_after(&self, time: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let second = time.as_nanosecond().div_euclid(1_000_000_000) + 1;
        let mut from = Timestamp::from_second(i64::try_from(second).ok()?).ok()?;
        loop {
            let span = Span::of(zone, from)?;
            let tick = self.first_in(&span, span.offset.to_datetime(from)).and_then(|wall| span.instant(wall));
            match (tick, span.end) {
                (Some(tick), end) if end.is_none_or(|end| tick < end) => return Some(tick),
                (_, end) => from = end?,
            }
        }
    }

    /// The first tick of the wall clock, from `from` on.
    fn from(&self, from: DateTime) -> Option<DateTime> {
        self.wall.find_next_occurrence(&from, true).ok()
    }

    /// The first tick on the wall clock of `span`, from `from` on; it may be past the end of the span.
    fn first_in(&self, span: &Span, from: DateTime) -> Option<DateTime> {
        match span.change {
            Some((before, after)) if before > after && self.names_hours => self.from(from.max(before)),
            Some((before, after)) if before < after && from < after.saturating_add(1.hour()) => {
                let here = self.from(from)?;
                let moved = (1..24).filter_map(|hours: i64| {
                    // The time left out that comes so many hours later, in the first hour that has its minute.
                    let start = before.max(from.max(after).checked_sub(hours.hours()).ok()?);
                    let end = after.min(after.checked_add((1 - hours).hours()).ok()?);
                    let tick = if start < end { self.from(start)? } else { return None };
                    if tick < end { tick.checked_add(hours.hours()).ok() } else { None }
                });
                moved.chain([here]).min()
            }
            _ => self.from(from),
        }
    }
}

/// A time through which the clocks of a zone go evenly.
struct Span {
    offset: Offset,
    /// When it began, on the clock before and on its own.
    change: Option<(DateTime, DateTime)>,
    /// When the next one begins.
    end: Option<Timestamp>,
}

impl Span {
    fn of(zone: &TimeZone, time: Timestamp) -> Option<Self> {
        let next = time.checked_add(1.nanosecond()).ok()?;
        let offset = zone.to_offset(time);
        let change = zone.preceding(next).next().and_then(|start| {
            let start = start.timestamp();
            let before = zone.to_offset(start.checked_sub(1.nanosecond()).ok()?);
            Some((before.to_datetime(start), offset.to_datetime(start)))
        });
        // A day that is left out, as where the date line was moved, has no ticks.
        let change = change.filter(|(before, after)| before.checked_add(23.hours()).is_ok_and(|day| *after < day));
        let end = zone.following(time).next().map(|end| end.timestamp());
        Some(Self { offset, change, end })
    }

    fn instant(&self, wall: DateTime) -> Option<Timestamp> {
        self.offset.to_timestamp(wall).ok()
    }
}

/// The first tick after `time` that falls due every so many milliseconds, counted from the Unix epoch; none if there
/// never is one.
#[must_use]
pub fn next_multiple(every_ms: i64, time: Timestamp) -> Option<Timestamp> {
    let every = i128::from(every_ms).checked_mul(1_000_000)?;
    let ticks = time.as_nanosecond().checked_div_euclid(every)?.checked_add(1)?;
    Timestamp::from_nanosecond(ticks.checked_mul(every)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admits_the_documented_forms() {
        for expression in [
            "0 3 * * *",
            "*/10 * * * * *",
            "0/15 * * * *",
            "0 0 L * *",
            "0 0 15W * *",
            "0 0 LW * *",
            "0 9 * * MON#1",
            "0 9 * * mon-fri#1",
            "0 9 * * friL",
            "0 9 * jan,Feb FRI-SUN",
            "0 9 * * SUN-SAT",
            "0 0 29 2 *",
            "@daily",
            "@weekdays",
        ] {
            assert!(parse(expression).is_ok(), "{expression}");
        }
    }

    #[test]
    fn refuses_with_the_reason() {
        for expression in [
            "",
            "x",
            "* * *",
            "61 * * * *",
            "0 0 30 2 *",
            "0 0 1 1 * 2030 1",
            "@never",
            "mon 0 * * *",
            "0 0 * * JAN",
            "0 0 * MON *",
            "0, * * * *",
            "/5 * * * *",
            "0 0 15W3 * *",
            "0 0 * * L",
            "0 0 * * 5#L",
            "0 0 * * +1",
            "0 0 * * 1-5/2#1",
        ] {
            let error = parse(expression).expect_err(expression).to_string();
            assert!(error.contains("write"), "{error}");
        }
    }

    #[test]
    fn knows_time_zones() {
        assert!(time_zone("Asia/Shanghai").is_ok());
        assert!(time_zone("Mars/Olympus").expect_err("no such zone").to_string().contains("IANA"));
    }

    /// Ticks from `start` on, as the clocks of the zone show them.
    fn ticks(expression: &str, zone: &str, start: &str, count: usize) -> Vec<String> {
        let (cron, zone) = (parse(expression).unwrap(), time_zone(zone).unwrap());
        let start = start.parse::<Timestamp>().unwrap() - 1.nanosecond();
        std::iter::successors(cron.next_after(start, &zone), |tick| cron.next_after(*tick, &zone))
            .take(count)
            .map(|tick| tick.to_zoned(zone.clone()).strftime("%m-%d %H:%M:%S %:z").to_string())
            .collect()
    }

    #[test]
    fn a_time_that_does_not_exist_comes_in_the_first_hour_that_has_its_minute() {
        assert_eq!(
            ticks("30 2 * * *", "America/New_York", "2026-03-07T12:00:00Z", 2),
            ["03-08 03:30:00 -04:00", "03-09 02:30:00 -04:00"]
        );
        assert_eq!(
            ticks("*/20 2,3 * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", 4),
            ["03-29 03:00:00 +02:00", "03-29 03:20:00 +02:00", "03-29 03:40:00 +02:00", "03-30 02:00:00 +02:00"],
            "at the same time as others they are one"
        );
        assert_eq!(
            ticks("0 0 * * *", "America/Sao_Paulo", "2018-11-03T12:00:00Z", 2),
            ["11-04 01:00:00 -02:00", "11-05 00:00:00 -02:00"]
        );
        assert_eq!(
            ticks("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00:00Z", 2),
            ["10-04 03:15:00 +11:00", "10-05 02:15:00 +11:00"],
            "half an hour"
        );
        assert_eq!(
            ticks("30 1,2 * * *", "Antarctica/Troll", "2026-03-29T00:00:00Z", 2),
            ["03-29 03:30:00 +02:00", "03-30 01:30:00 +02:00"],
            "two hours"
        );
        assert_eq!(
            ticks("30 23 * * 6", "America/Scoresbysund", "2025-03-29T12:00:00Z", 2),
            ["03-30 00:30:00 -01:00", "04-05 23:30:00 -01:00"],
            "over midnight"
        );
        assert_eq!(
            ticks("0 9 * * *", "Pacific/Apia", "2011-12-29T12:00:00Z", 2),
            ["12-29 09:00:00 -10:00", "12-31 09:00:00 +14:00"],
            "a day that was left out has no ticks"
        );
    }

    #[test]
    fn a_time_that_comes_twice_comes_the_first_time() {
        let once = ["11-01 01:30:00 -04:00", "11-02 01:30:00 -05:00"];
        assert_eq!(ticks("30 1 * * *", "America/New_York", "2026-11-01T04:00:00Z", 2), once);
        assert_eq!(
            ticks("30 1 * * *", "America/New_York", "2026-11-01T06:00:00Z", 1),
            once[1..],
            "nor again for who comes later"
        );
        assert_eq!(
            ticks("*/30 1 * * *", "America/New_York", "2026-11-01T04:00:00Z", 3),
            ["11-01 01:00:00 -04:00", "11-01 01:30:00 -04:00", "11-02 01:00:00 -05:00"]
        );
        assert_eq!(
            ticks("0 0 * * *", "America/Havana", "2025-11-02T00:00:00Z", 2),
            ["11-02 00:00:00 -04:00", "11-03 00:00:00 -05:00"]
        );
        assert_eq!(
            ticks("45 1 * * *", "Australia/Lord_Howe", "2026-04-04T00:00:00Z", 2),
            ["04-05 01:45:00 +11:00", "04-06 01:45:00 +10:30"]
        );
    }

    #[test]
    fn what_runs_each_hour_runs_in_each_of_two_equal_ones() {
        assert_eq!(
            ticks("30 * * * *", "America/New_York", "2026-11-01T05:00:00Z", 3),
            ["11-01 01:30:00 -04:00", "11-01 01:30:00 -05:00", "11-01 02:30:00 -05:00"]
        );
        assert_eq!(
            ticks("30 * * * *", "America/New_York", "2026-03-08T06:00:00Z", 3),
            ["03-08 01:30:00 -05:00", "03-08 03:30:00 -04:00", "03-08 04:30:00 -04:00"]
        );
    }

    #[test]
    fn a_month_without_the_day_is_passed_over() {
        assert_eq!(ticks("0 0 29 2 *", "UTC", "2024-03-01T00:00:00Z", 1), ["02-29 00:00:00 +00:00"], "four years on");
        assert_eq!(
            ticks("0 0 31 * *", "UTC", "2026-01-31T00:00:01Z", 2),
            ["03-31 00:00:00 +00:00", "05-31 00:00:00 +00:00"]
        );
    }
}
