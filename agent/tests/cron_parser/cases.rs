//! Cases: expressions, time zones, and times to start from, mostly near to where clocks change.

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};

const ZONES: [&str; 20] = [
    "UTC",
    "Europe/Berlin",
    "Europe/London",
    "America/New_York",
    "America/Sao_Paulo",
    "America/Havana",
    "America/St_Johns",
    "America/Scoresbysund",
    "America/Nuuk",
    "Australia/Lord_Howe",
    "Australia/Sydney",
    "Antarctica/Troll",
    "Asia/Shanghai",
    "Asia/Kathmandu",
    "Asia/Beirut",
    "Asia/Tehran",
    "Africa/Casablanca",
    "Africa/Cairo",
    "Pacific/Apia",
    "Pacific/Chatham",
];

/// The same numbers on every machine and for ever (`SplitMix64`).
pub struct Dice(pub u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both of them too.
    fn between(&mut self, low: i64, high: i64) -> i64 {
        let width = u64::try_from(high - low + 1).unwrap();
        low + i64::try_from(self.next() % width).unwrap()
    }

    fn of<'a, T: ?Sized>(&mut self, choices: &[&'a T]) -> &'a T {
        choices[usize::try_from(self.between(0, i64::try_from(choices.len()).unwrap() - 1)).unwrap()]
    }

    fn chance(&mut self, percent: i64) -> bool {
        self.between(1, 100) <= percent
    }
}

/// A list of values, ranges and steps in a field from `low` to `high`.
fn field(dice: &mut Dice, low: i64, high: i64, names: &[&str]) -> String {
    let number = |dice: &mut Dice, value: i64| match usize::try_from(value - low).ok().and_then(|at| names.get(at)) {
        Some(name) if dice.chance(30) => (*name).to_owned(),
        _ => value.to_string(),
    };
    let item = |dice: &mut Dice, low: i64| {
        let start = dice.between(low, high);
        let end = dice.between(start, high);
        let step = dice.between(1, 1 + (high - low) * 2 / 3);
        match dice.between(0, 9) {
            0 => (end, format!("{}-{}", number(dice, start), number(dice, end))),
            1 => (end, format!("{start}-{end}/{step}")),
            _ => (start, number(dice, start)),
        }
    };
    match dice.between(0, 9) {
        0 => "*".to_owned(),
        1 | 2 => format!("*/{}", dice.between(1, (high - low) * 2 / 3)),
        3 => format!("{}/{}", dice.between(low, high), dice.between(1, high - low)),
        4 => {
            // In order, so that most have no value twice.
            let (mut last, mut items) = (low - 1, Vec::new());
            for _ in 0..dice.between(2, 4) {
                if last < high {
                    let (end, text) = item(dice, last + 1);
                    last = end;
                    items.push(text);
                }
            }
            items.join(",")
        }
        5 => {
            let start = dice.between(low, high);
            let end = dice.between(start, high);
            format!("{start}-{end}")
        }
        _ => item(dice, low).1,
    }
}

const MONTHS: [&str; 12] = ["jan", "FEB", "Mar", "apr", "may", "jun", "jul", "aug", "SEP", "oct", "nov", "Dec"];
const DAYS: [&str; 7] = ["SUN", "mon", "Tue", "wed", "THU", "fri", "sat"];

fn expression(dice: &mut Dice) -> String {
    if dice.chance(1) {
        let all = ["@yearly", "@monthly", "@weekly", "@daily", "@hourly"];
        return dice.of(&all).to_owned();
    }
    let second = if dice.chance(15) { field(dice, 0, 59, &[]) + " " } else { String::new() };
    let minute = if dice.chance(60) {
        dice.of(&["0", "0", "5", "15", "30", "45", "*/15", "*"]).to_owned()
    } else {
        field(dice, 0, 59, &[])
    };
    // Hours in which clocks change, often.
    let hour = match dice.between(0, 9) {
        0..=2 => dice.between(0, 4).to_string(),
        3 => dice.of(&["23", "0-3", "1,2", "2,3", "22-23", "0,23", "1-3", "*/2"]).to_owned(),
        4 | 5 => "*".to_owned(),
        _ => field(dice, 0, 23, &[]),
    };
    let mut day = match dice.between(0, 19) {
        0..=10 => "*".to_owned(),
        11 => "L".to_owned(),
        12 => format!("{},L", dice.between(1, 28)),
        13 => dice.of(&["29", "30", "31", "1-31", "1-30", "?"]).to_owned(),
        _ => field(dice, 1, 31, &[]),
    };
    let month = if dice.chance(70) { "*".to_owned() } else { field(dice, 1, 12, &MONTHS) };
    let mut weekday = match dice.between(0, 19) {
        0..=9 => "*".to_owned(),
        10 => "7".to_owned(),
        11 => format!("{}#{}", dice.between(0, 7), dice.between(1, 5)),
        12 => format!("{}L", dice.between(0, 7)),
        13 => dice.of(&["MON-FRI", "0-6", "0-7", "1-7", "?", "sat,sun", "FRIL", "mon#1", "5-7", "1,5L"]).to_owned(),
        _ => field(dice, 0, 7, &DAYS),
    };
    if day != "*" && weekday != "*" && dice.chance(60) {
        "*".clone_into(if dice.chance(50) { &mut day } else { &mut weekday });
    }
    format!("{second}{minute} {hour} {day} {month} {weekday}")
}

#[derive(Clone, Debug)]
pub struct Case {
    pub expression: String,
    pub zone: &'static str,
    pub start: Timestamp,
}

impl Case {
    pub fn tz(&self) -> TimeZone {
        cabloy_crds::cron::time_zone(self.zone).unwrap()
    }
}

pub fn case(dice: &mut Dice) -> Case {
    let zone = dice.of(&ZONES);
    let tz = cabloy_crds::cron::time_zone(zone).unwrap();
    let year = i16::try_from(dice.between(2009, 2024)).unwrap();
    let month = i8::try_from(dice.between(1, 12)).unwrap();
    let date = jiff::civil::date(year, month, 1);
    let near = |dice: &mut Dice, time: Timestamp| {
        let minutes = if dice.chance(50) { dice.between(-180, 180) } else { dice.between(-2_000, 300) };
        time + minutes.minutes()
    };
    let some_time = date.at(0, 0, 0, 0).to_zoned(tz.clone()).unwrap().timestamp();
    let start = match dice.between(0, 9) {
        0..=6 => {
            let change = tz.following(some_time).next().map_or(some_time, |change| change.timestamp());
            near(dice, change)
        }
        7 => near(dice, some_time),
        _ => some_time + dice.between(0, 366 * 24 * 60).minutes(),
    };
    let millis = if dice.chance(20) { dice.between(0, 59_999) } else { 0 };
    Case { expression: expression(dice), zone, start: start + millis.milliseconds() }
}
