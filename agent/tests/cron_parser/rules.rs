//! The differences that are wanted, each with the cases that it covers.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp, ToSpan as _};

use crate::cases::Case;
use crate::meaning::{Field, Meaning};
use crate::{Ticks, UNTIL};

/// The rules, as docs/resource.md lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Version 4 takes a field that matches so many values for a `*`.
    CountsValues,
    /// Version 4 lets `#` bind the day of the month as well.
    NthBindsDays,
    /// Version 4 adds Sunday to steps that end with 7 and do not come to it.
    StepsToSunday,
    /// Version 5 refuses a value that is there twice.
    ValueTwice,
    /// Version 4 refuses a day that its only month does not have, whatever weekday is written beside it.
    DayOfNoMonth,
    /// They do not tell which of two equal hours it is when they are asked in the second, or begin a day with it.
    HourTwice,
    /// They lose ticks of the hour that does not exist.
    HourLost,
    /// They lose, double or disorder ticks, or give up, where clocks change by or at other than full hours.
    Uneven,
}

impl Rule {
    pub const ALL: [Self; 8] = [
        Self::CountsValues,
        Self::NthBindsDays,
        Self::StepsToSunday,
        Self::ValueTwice,
        Self::DayOfNoMonth,
        Self::HourTwice,
        Self::HourLost,
        Self::Uneven,
    ];
}

/// A change of the clocks of a zone.
struct Change {
    at: Timestamp,
    /// How far they go forward; below zero, how far they go back.
    by: SignedDuration,
    /// From a full hour to a full hour.
    even: bool,
}

fn changes(case: &Case) -> Vec<Change> {
    let tz = case.tz();
    let before = case.start.checked_sub(48.hours()).unwrap();
    let all = tz.following(before).take_while(|change| change.timestamp() < UNTIL.parse().unwrap());
    all.map(|change| {
        let at = change.timestamp();
        let offset = tz.to_offset(at.checked_sub(1.nanosecond()).unwrap());
        let by = SignedDuration::from_secs((change.offset().seconds() - offset.seconds()).into());
        let full = |time: jiff::civil::DateTime| (time.minute(), time.second()) == (0, 0);
        Change { at, by, even: full(offset.to_datetime(at)) && full(change.offset().to_datetime(at)) }
    })
    .filter(|change| !change.by.is_zero())
    .collect()
}

/// The rule of the text of an expression, if it is of such a one.
pub fn of_expression(meaning: &Meaning, version: u32) -> Option<Rule> {
    let Meaning { days, months, weekdays, .. } = meaning;
    let both = !days.is_star() && !weekdays.is_star();
    let last = |month: i8| [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][usize::try_from(month - 1).unwrap()];
    let distinct = |values: &[i8]| values.iter().collect::<BTreeSet<_>>().len();
    let twice = |values: &[i8]| distinct(values) < values.len();
    let of_no_month = || {
        let only = months.values.iter().collect::<BTreeSet<_>>();
        only.len() == 1 && days.values.iter().min() > Some(&last(**only.first().unwrap())) && !days.text.contains('L')
    };
    let to_sunday = |item: &str| {
        let item = item.to_lowercase();
        let Some((range, step)) = item.split_once('/') else { return false };
        let (start, end) = range.split_once('-').unwrap_or((range, "7"));
        let start: i8 = if start == "*" || start == "?" { 0 } else { start.parse().unwrap() };
        end == "7" && start > 0 && (7 - start) % step.parse::<i8>().unwrap() > 0
    };
    match version {
        5 if meaning.fields().iter().any(|field| twice(&field.values)) || twice(&as_weekdays(&weekdays.text)) => {
            Some(Rule::ValueTwice)
        }
        4 if both && of_no_month() => Some(Rule::DayOfNoMonth),
        4 if both && weekdays.text.contains('#') => Some(Rule::NthBindsDays),
        4 if both && (days.values.len() + 3 > 31 || distinct(&weekdays.values) >= 7) => Some(Rule::CountsValues),
        4 if weekdays.text.split(',').any(to_sunday) => Some(Rule::StepsToSunday),
        _ => None,
    }
}

/// Days of the week as version 5 counts them: a range that comes to 7 has 0 as well, and 7 alone is 0.
fn as_weekdays(text: &str) -> Vec<i8> {
    let items = text.split(',').map(|item| (item, Field::weekdays(item).values));
    items
        .flat_map(|(item, mut values)| {
            if !item.contains(['-', '/', '*', '?']) {
                for value in &mut values {
                    *value %= 7;
                }
            } else if values.contains(&7) && !values.contains(&0) {
                values.push(0);
            }
            values
        })
        .collect()
}

/// The rules that explain each tick which only one side has; what no rule explains, in words.
pub fn of_ticks(case: &Case, meaning: &Meaning, ours: &Ticks, theirs: &Ticks) -> Result<BTreeSet<Rule>, String> {
    let changes = changes(case);
    let mut rules = BTreeSet::new();
    // As far as both have got.
    let end = |ticks: &Ticks| ticks.ticks.iter().max().copied().unwrap_or(case.start);
    let common = if theirs.end.is_some() { end(theirs) } else { end(ours).min(end(theirs)) };
    let next = ours.ticks.iter().find(|tick| **tick > common).copied().unwrap_or(common);
    let set = |ticks: &Ticks| ticks.ticks.iter().copied().filter(|tick| *tick <= common).collect::<BTreeSet<_>>();
    let (ours, theirs_too) = (set(ours), set(theirs));
    for tick in ours.symmetric_difference(&theirs_too) {
        let within = |from: Timestamp, length: SignedDuration| from <= *tick && tick.duration_since(from) < length;
        let is_ours = ours.contains(tick);
        let rule = changes.iter().find_map(|change| {
            let (at, length) = (change.at, change.by.abs());
            if !change.even && within(at.checked_sub(4.hours()).unwrap(), SignedDuration::from_hours(28)) {
                Some(Rule::Uneven)
            } else if !change.by.is_negative() && is_ours && within(at, SignedDuration::from_hours(1)) {
                Some(Rule::HourLost)
            } else if change.by.is_negative()
                && if is_ours {
                    within(at.checked_sub(length).unwrap(), length)
                } else {
                    within(at, length) && meaning.names_hours()
                }
            {
                Some(Rule::HourTwice)
            } else {
                None
            }
        });
        rules.insert(rule.ok_or_else(|| {
            format!("no rule explains {tick}, which only {} have", if is_ours { "we" } else { "they" })
        })?);
    }
    // The same ticks, in another order or number.
    let sorted = theirs.ticks.is_sorted_by(|a, b| a < b);
    if theirs.end.is_some() || !sorted {
        let near = |change: &Change| !change.even && (case.start..=next + 4.hours()).contains(&change.at);
        if !changes.iter().any(near) {
            return Err("they give up, or go back in time".to_owned());
        }
        rules.insert(Rule::Uneven);
    }
    Ok(rules)
}
