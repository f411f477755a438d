//! Schedules tick as they did under cron-parser, the library that the apps used.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::Stdio;

use cabloy_agent::schedule::Timetable;
use cabloy_crds::files::Schedule;
use cabloy_tests::npm;
use cabloy_tests::process::bound;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use serde_json::json;

/// How many cases there are.
const CASES: usize = 20_000;

/// How many ticks of each are compared.
const TICKS: usize = 6;

/// What the cases are made of.
const SEED: u64 = 20_260_308;

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
struct Dice(u64);

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
    let second = if dice.chance(25) { field(dice, 0, 59, &[]) + " " } else { String::new() };
    let minute = if dice.chance(40) { dice.of(&["0", "15", "30", "45", "*/15", "*"]).to_owned() } else { field(dice, 0, 59, &[]) };
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
        *if dice.chance(50) { &mut day } else { &mut weekday } = "*".to_owned();
    }
    format!("{second}{minute} {hour} {day} {month} {weekday}")
}

#[derive(Debug)]
struct Case {
    expression: String,
    zone: &'static str,
    start: Timestamp,
}

fn case(dice: &mut Dice) -> Case {
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

/// What a library makes of a case: ticks, or why there are none (any more).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ticks {
    ticks: Vec<Timestamp>,
    end: Option<String>,
}

impl Ticks {
    fn parse(text: &str) -> Self {
        let (ticks, end) = match text.find(['e', 'r']) {
            Some(at) => (&text[..at], Some(text[at..].to_owned())),
            None => (text, None),
        };
        let ticks = ticks.split_whitespace().map(|ms| Timestamp::from_millisecond(ms.parse().unwrap()).unwrap()).collect();
        Self { ticks, end }
    }
}

fn theirs(package: &str, cases: &[Case]) -> Vec<[Ticks; 2]> {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("cases");
    let mut text = String::new();
    for Case { expression, zone, start } in cases {
        writeln!(text, "{expression}\t{zone}\t{}", start.as_millisecond()).unwrap();
    }
    fs::write(&input, text).unwrap();
    let mut node = bound("node");
    node.arg(npm::fixture("cron-parser").join("ticks.js")).args([package, &TICKS.to_string()]);
    node.env("NODE_PATH", npm::modules("cron-parser")).stdin(fs::File::open(&input).unwrap()).stderr(Stdio::inherit());
    let output = node.output().unwrap();
    assert!(output.status.success(), "{package} has ended early");
    let lines = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<_> = lines.lines().map(|line| {
        let (first, second) = line.split_once('\t').unwrap_or((line, line));
        [Ticks::parse(first), Ticks::parse(second)]
    }).collect();
    assert_eq!(answers.len(), cases.len());
    answers
}

fn timetable(expression: &str, zone: &str) -> Result<Timetable, String> {
    let schedule: Schedule = serde_json::from_value(json!({
        "name": "s", "cron": expression, "timeZone": zone, "overlap": "Skip", "jitterMs": 0, "timeoutMs": 1000,
        "onUnknown": "Skip", "retry": {"limit": 0, "initialDelayMs": 1000, "factor": 2.0, "maxDelayMs": 1000}, "suspend": false,
        "target": {"http": {"method": "POST", "path": "/"}},
    })).unwrap();
    Timetable::new(&schedule).map_err(|error| error.to_string())
}

fn ours(case: &Case) -> Ticks {
    let table = match timetable(&case.expression, case.zone) {
        Ok(table) => table,
        Err(reason) => return Ticks { ticks: vec![], end: Some(reason) },
    };
    let ticks = std::iter::successors(table.next_after(case.start), |last| table.next_after(*last)).take(TICKS).collect();
    Ticks { ticks, end: None }
}

#[test]
fn probe() {
    let mut dice = Dice(SEED);
    let cases: Vec<_> = (0..CASES).map(|_| case(&mut dice)).collect();
    let began = std::time::Instant::now();
    let ours: Vec<_> = cases.iter().map(ours).collect();
    println!("ours {:?}", began.elapsed());
    let _ = TimeZone::UTC;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for package in ["cron-parser-4", "cron-parser-5"] {
        let began = std::time::Instant::now();
        let theirs = theirs(package, &cases);
        println!("{package} {:?}", began.elapsed());
        for ((case, ours), theirs) in cases.iter().zip(&ours).zip(theirs) {
            for (way, theirs) in ["iterator", "anew"].into_iter().zip(theirs) {
                let kind = match (&ours.end, &theirs.end) {
                    (None, None) if ours == &theirs => "same".to_owned(),
                    (None, None) => "ticks".into(),
                    (Some(_), None) => "only they accept".into(),
                    (None, Some(why)) => format!("only we accept: {}", why.split(|c: char| c.is_ascii_digit()).next().unwrap()),
                    (Some(_), Some(_)) => "both refuse".into(),
                };
                let key = format!("{package} {way} {kind}");
                let count = counts.entry(key.clone()).or_default();
                *count += 1;
                if kind != "same" && kind != "both refuse" && *count < 40 {
                    let tz = cabloy_crds::cron::time_zone(case.zone).unwrap();
                    let show = |ticks: &Ticks| ticks.ticks.iter().map(|t| t.to_zoned(tz.clone()).strftime("%m-%d %H:%M:%S%z").to_string()).collect::<Vec<_>>().join(" ") + ticks.end.as_deref().unwrap_or("");
                    println!("{key}: {:?} {} {}\n   ours   {}\n   theirs {}", case.expression, case.zone, case.start.to_zoned(tz.clone()), show(ours), show(&theirs));
                }
            }
        }
    }
    for (key, count) in counts {
        println!("COUNT {count} {key}");
    }
}
