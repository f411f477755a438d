//! The dialect of cron: one parser, so that what the operator admits is what the agent runs.

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{Timestamp, tz::TimeZone};

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

/// Parses a cron expression of 5 fields, or of 6 with seconds first, with names, `L`, `W`, `#` and macros.
///
/// # Errors
/// The expression does not parse, or never comes to pass.
pub fn parse(expression: &str) -> Result<Cron, InvalidCron> {
    let cron =
        CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build().parse(expression).map_err(
            |error| InvalidCron::Expression { expression: expression.to_owned(), reason: error.to_string() },
        )?;
    // A fixed date: whether an expression is valid must not depend on the day it is written.
    let start = jiff::civil::date(2024, 1, 1)
        .at(0, 0, 0, 0)
        .in_tz("UTC")
        .map_err(|_| InvalidCron::Never(expression.to_owned()))?;
    cron.find_next_occurrence(&start, true).map_err(|_| InvalidCron::Never(expression.to_owned()))?;
    Ok(cron)
}

/// Finds a time zone of the IANA database; the database is built in, so that all agents agree.
///
/// # Errors
/// There is no such zone.
pub fn time_zone(name: &str) -> Result<TimeZone, InvalidCron> {
    jiff::tz::TimeZoneDatabase::bundled().get(name).map_err(|_| InvalidCron::TimeZone(name.to_owned()))
}

/// The first tick of `cron` in `zone` after `time`; none if there never is one.
#[must_use]
pub fn next_after(cron: &Cron, zone: &TimeZone, time: Timestamp) -> Option<Timestamp> {
    Some(cron.find_next_occurrence(&time.to_zoned(zone.clone()), false).ok()?.timestamp())
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
        for expression in
            ["0 3 * * *", "*/10 * * * * *", "0 0 L * *", "0 0 15W * *", "0 9 * * MON#1", "@daily", "0 0 29 2 *"]
        {
            assert!(parse(expression).is_ok(), "{expression}");
        }
    }

    #[test]
    fn refuses_with_the_reason() {
        for expression in ["", "x", "* * *", "61 * * * *", "0 0 30 2 *", "0 0 1 1 * 2030 1"] {
            let error = parse(expression).expect_err(expression).to_string();
            assert!(error.contains("write"), "{error}");
        }
    }

    #[test]
    fn knows_time_zones() {
        assert!(time_zone("Asia/Shanghai").is_ok());
        assert!(time_zone("Mars/Olympus").expect_err("no such zone").to_string().contains("IANA"));
    }
}
