//! What an expression means, said a second time and plainly: by trying each time of each day.

use std::collections::BTreeSet;

use jiff::civil::{Date, DateTime};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Timestamp, ToSpan as _};

/// A field: the values as they are written, one after the other.
#[derive(Debug)]
pub struct Field {
    pub text: String,
    pub values: Vec<i8>,
}

impl Field {
    fn parse(text: &str, low: i8, high: i8, names: &[&str]) -> Self {
        let number = |text: &str| {
            let name = names.iter().position(|name| name.eq_ignore_ascii_case(text));
            name.map_or_else(|| text.parse().unwrap(), |at| low + i8::try_from(at).unwrap())
        };
        let mut values = Vec::new();
        for item in text.split(',').filter(|item| !item.contains('L')) {
            let item = item.split_once('#').map_or(item, |(day, _)| day);
            let (range, step) = item.split_once('/').unwrap_or((item, "1"));
            let (start, end) = match range.split_once('-') {
                Some((start, end)) if end.eq_ignore_ascii_case("sun") && number(start) > 0 => (number(start), 7),
                Some((start, end)) => (number(start), number(end)),
                None if matches!(range, "*" | "?") => (low, high),
                None if item.contains('/') => (number(range), high),
                None => (number(range), number(range)),
            };
            values.extend((start..=end).step_by(step.parse().unwrap()));
        }
        Self { text: text.to_owned(), values }
    }

    /// Days of the week.
    pub fn weekdays(text: &str) -> Self {
        Self::parse(text, 0, 7, &WEEKDAYS)
    }

    pub fn is_star(&self) -> bool {
        matches!(self.text.as_str(), "*" | "?")
    }

    fn has(&self, value: i8) -> bool {
        self.values.contains(&value)
    }
}

#[derive(Debug)]
pub struct Meaning {
    pub seconds: Field,
    pub minutes: Field,
    pub hours: Field,
    pub days: Field,
    pub months: Field,
    pub weekdays: Field,
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

impl Meaning {
    pub fn parse(expression: &str) -> Self {
        let expression = match expression {
            "@yearly" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            fields => fields,
        };
        let mut fields: Vec<_> = expression.split(' ').collect();
        if fields.len() == 5 {
            fields.insert(0, "0");
        }
        Self {
            seconds: Field::parse(fields[0], 0, 59, &[]),
            minutes: Field::parse(fields[1], 0, 59, &[]),
            hours: Field::parse(fields[2], 0, 23, &[]),
            days: Field::parse(fields[3], 1, 31, &[]),
            months: Field::parse(fields[4], 1, 12, &MONTHS),
            weekdays: Field::weekdays(fields[5]),
        }
    }

    pub fn names_hours(&self) -> bool {
        self.hours.values.iter().collect::<BTreeSet<_>>().len() < 24
    }

    pub fn fields(&self) -> [&Field; 6] {
        [&self.seconds, &self.minutes, &self.hours, &self.days, &self.months, &self.weekdays]
    }

    fn has_day(&self, date: Date) -> bool {
        let last = date.days_in_month();
        let day = self.days.has(date.day()) || (self.days.text.contains('L') && date.day() == last);
        let weekday = date.weekday().to_sunday_zero_offset();
        let nth = self.weekdays.text.split_once('#').is_none_or(|(_, nth)| nth.parse() == Ok((date.day() + 6) / 7));
        let is = |number: i8| number % 7 == weekday;
        let in_week = nth && self.weekdays.values.iter().any(|number| is(*number))
            || self.weekdays.text.split(',').any(|item| {
                let Some(number) = item.strip_suffix('L') else { return false };
                is(Field::weekdays(number).values[0]) && date.day() + 7 > last
            });
        self.months.has(date.month())
            && match (self.days.is_star(), self.weekdays.is_star()) {
                (false, false) => day || in_week,
                (true, false) => in_week,
                (false, true) => day,
                (true, true) => true,
            }
    }

    /// The first ticks after `start`: of a time that does not exist, in the first later hour that has its minute; of one
    /// that comes twice, the first time, or each time if no hour is named.
    pub fn ticks(&self, start: Timestamp, tz: &TimeZone, count: usize) -> Vec<Timestamp> {
        let sets = [&self.hours, &self.minutes, &self.seconds]
            .map(|field| field.values.iter().copied().collect::<BTreeSet<_>>());
        let mut date = tz.to_datetime(start).date().yesterday().unwrap();
        let mut ticks = BTreeSet::new();
        let mut days_more = 2;
        while days_more > 0 {
            if self.has_day(date) {
                for hour in &sets[0] {
                    for minute in &sets[1] {
                        let at = |second: &i8| self.instants(date.at(*hour, *minute, *second, 0), tz);
                        ticks.extend(sets[2].iter().flat_map(at).filter(|tick| *tick > start));
                    }
                }
            }
            date = date.tomorrow().unwrap();
            days_more -= i32::from(ticks.len() >= count);
        }
        ticks.into_iter().take(count).collect()
    }

    fn instants(&self, wall: DateTime, tz: &TimeZone) -> Vec<Timestamp> {
        let resolve = |wall: DateTime| tz.to_ambiguous_timestamp(wall);
        let ambiguous = resolve(wall);
        match ambiguous.offset() {
            AmbiguousOffset::Unambiguous { .. } => vec![ambiguous.unambiguous().unwrap()],
            AmbiguousOffset::Fold { .. } if self.names_hours() => vec![ambiguous.earlier().unwrap()],
            AmbiguousOffset::Fold { .. } => vec![ambiguous.earlier().unwrap(), ambiguous.later().unwrap()],
            AmbiguousOffset::Gap { .. } => {
                let later = (1..23).map(|hours: i64| resolve(wall.checked_add(hours.hours()).unwrap()));
                later
                    .map(|later| later.earlier().unwrap())
                    .zip(1..23)
                    .find_map(|(instant, hours)| {
                        let shown = tz.to_datetime(instant);
                        (shown == wall.checked_add(i64::from(hours).hours()).unwrap()).then_some(instant)
                    })
                    .into_iter()
                    .collect()
            }
        }
    }
}
