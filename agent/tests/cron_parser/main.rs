//! Schedules tick as they did under cron-parser, the library that the apps used, but for differences that are listed.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cases;
mod meaning;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::process::Stdio;

use cabloy_agent::schedule::Timetable;
use cabloy_crds::files::Schedule;
use cabloy_tests::process::bound;
use cabloy_tests::{npm, require};
use cases::{Case, Dice, case};
use jiff::Timestamp;
use meaning::Meaning;
use rules::Rule;
use serde_json::json;

/// How many cases there are.
const CASES: usize = 10_000;

/// How many ticks of each are compared, by version; the older one is by far the slower one.
const TICKS: [(u32, usize); 2] = [(4, 2), (5, 3)];

/// What the cases are made of.
const SEED: u64 = 20_260_308;

/// Ticks from here on are not compared: time zones of the machine's Node.js may be older than ours.
const UNTIL: &str = "2026-01-01T00:00:00Z";

/// What a library makes of a case: ticks, or why there are none (any more).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ticks {
    ticks: Vec<Timestamp>,
    end: Option<String>,
}

impl Ticks {
    /// Without those that are not compared.
    fn cut(&mut self) {
        let until = UNTIL.parse().unwrap();
        if let Some(at) = self.ticks.iter().position(|tick| *tick >= until) {
            self.ticks.truncate(at);
            self.end = None;
        }
    }

    fn parse(text: &str) -> Self {
        let (ticks, end) = match text.find(['e', 'r']) {
            Some(at) => (&text[..at], Some(text[at..].to_owned())),
            None => (text, None),
        };
        let ticks =
            ticks.split_whitespace().map(|ms| Timestamp::from_millisecond(ms.parse().unwrap()).unwrap()).collect();
        let mut ticks = Self { ticks, end };
        ticks.cut();
        ticks
    }
}

fn count(version: u32) -> usize {
    TICKS.into_iter().find(|(one, _)| *one == version).unwrap().1
}

fn theirs(version: u32, cases: &[Case]) -> Vec<[Ticks; 2]> {
    let (package, count) = (format!("cron-parser-{version}"), count(version));
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("cases");
    let mut text = String::new();
    for Case { expression, zone, start } in cases {
        writeln!(text, "{expression}\t{zone}\t{}", start.as_millisecond()).unwrap();
    }
    fs::write(&input, text).unwrap();
    let mut node = bound("node");
    node.arg(npm::fixture("cron-parser").join("ticks.js")).args([&package, &count.to_string()]);
    node.env("NODE_PATH", npm::modules("cron-parser")).stdin(fs::File::open(&input).unwrap()).stderr(Stdio::inherit());
    let output = node.output().unwrap();
    assert!(output.status.success(), "{package} has ended early");
    let lines = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<_> = lines
        .lines()
        .map(|line| {
            let (first, second) = line.split_once('\t').unwrap_or((line, line));
            [Ticks::parse(first), Ticks::parse(second)]
        })
        .collect();
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
    let ticks = std::iter::successors(table.next_after(case.start), |last| table.next_after(*last));
    let mut ticks = Ticks { ticks: ticks.take(count(5)).collect(), end: None };
    ticks.cut();
    ticks
}

fn show(case: &Case, ticks: &Ticks) -> String {
    let times = ticks.ticks.iter().map(|tick| tick.to_zoned(case.tz()).strftime("%F %T%z").to_string());
    times.chain(ticks.end.clone()).collect::<Vec<_>>().join("  ")
}

#[test]
fn schedules_tick_as_under_cron_parser() {
    require!(npm::found());
    let began = std::time::Instant::now();
    let mut dice = Dice(SEED);
    let cases: Vec<_> = (0..CASES).map(|_| case(&mut dice)).collect();
    let (half, rest) = cases.split_at(CASES / 2);
    let (four, five, ours) = std::thread::scope(|scope| {
        let four = [half, rest].map(|cases| scope.spawn(|| theirs(4, cases)));
        let five = scope.spawn(|| theirs(5, &cases));
        let ours: Vec<_> = cases.iter().map(ours).collect();
        (four.map(|half| half.join().unwrap()).concat(), five.join().unwrap(), ours)
    });
    let mut figures: BTreeMap<(Rule, u32), usize> = BTreeMap::new();
    let (mut same, mut never, mut different, mut wrong) = (0, 0, BTreeSet::new(), Vec::new());
    for (index, (case, all)) in cases.iter().zip(&ours).enumerate() {
        for (version, answers) in [(4, &four[index]), (5, &five[index])] {
            let mut rules = BTreeSet::new();
            let ours = &Ticks { ticks: all.ticks.iter().take(count(version)).copied().collect(), end: all.end.clone() };
            for theirs in answers {
                if ours.end.is_some() && theirs.ticks.is_empty() && theirs.end.is_some() {
                    never += 1;
                } else if ours == theirs {
                    same += 1;
                } else {
                    let meaning = Meaning::parse(&case.expression);
                    match rules::of_expression(&meaning, version)
                        .map_or_else(|| rules::of_ticks(case, &meaning, ours, theirs), |rule| Ok([rule].into()))
                    {
                        Ok(found) => rules.extend(found),
                        Err(reason) => wrong.push(format!(
                            "{case:?}, version {version}: {reason}\n  ours   {}\n  theirs {}",
                            show(case, ours),
                            show(case, theirs)
                        )),
                    }
                    different.insert(index);
                }
            }
            for rule in rules {
                *figures.entry((rule, version)).or_default() += 1;
            }
        }
    }
    // What we do where we differ is what the documentation says.
    for index in &different {
        let (case, ours) = (&cases[*index], &ours[*index]);
        let mut meant =
            Ticks { ticks: Meaning::parse(&case.expression).ticks(case.start, &case.tz(), count(5)), end: None };
        meant.cut();
        if meant != *ours {
            wrong.push(format!("{case:?}\n  ours  {}\n  meant {}", show(case, ours), show(case, &meant)));
        }
    }
    println!(
        "{CASES} cases, {TICKS:?} ticks by version, in two ways, {:?}: {same} the same, {never} that never come to pass",
        began.elapsed()
    );
    println!("{} cases differ in at least one: {figures:?}", different.len());
    assert!(wrong.is_empty(), "{} cases, such as\n{}", wrong.len(), wrong[..wrong.len().min(12)].join("\n"));
    // The differences are few, and there is none in the list that is not one any more.
    assert!(different.len() * 20 < CASES, "{} cases differ", different.len());
    let seen: BTreeSet<_> = figures.keys().map(|(rule, _)| *rule).collect();
    assert_eq!(seen, Rule::ALL.into(), "{figures:?}");
}

/// What every one takes, and takes for the same.
const ACCEPTED: [&str; 24] = [
    "0 3 * * *",
    "05 03 * * *",
    "*/10 * * * * *",
    "0/15 * * * *",
    "5/20 8 * * *",
    "*/90 * * * *",
    "0 0 L * *",
    "0 0 1,L * *",
    "0 0 ? * ?",
    "0 0 1-31/3 * *",
    "0 0 29 2 *",
    "0 0 * jan,FEB Mon-Fri",
    "0 0 * * 5L",
    "0 0 * * FRIL",
    "0 0 * * MON#1",
    "0 0 * * 7",
    "0 0 * * 6-7",
    "0 0 * * 0-7",
    "0 0 * * 1/2",
    "@yearly",
    "@monthly",
    "@weekly",
    "@daily",
    "@hourly",
];

/// What nobody takes.
const REFUSED: [&str; 33] = [
    "0 0 0-31 * *",
    "@midnight",
    "@every 5m",
    "@DAILY",
    "22-6 0 * * *",
    "*/0 * * * *",
    "/10 * * * *",
    "0, * * * *",
    "1.5 * * * *",
    "60 * * * *",
    "0 24 * * *",
    "0 0 0 * *",
    "0 0 * 13 *",
    "0 0 * * 8",
    "0 0 30 2 *",
    "0 0 31 4,6 *",
    "0 0 L-3 * *",
    "0 0 15W3 * *",
    "0 0 15WL * *",
    "0 0 * * L",
    "0 0 * * 1,L",
    "0 0 * * 5#L",
    "0 0 * * 5#2L",
    "0 0 * * 1-5L",
    "0 0 * * 1#6",
    "0 0 * * 1-5/2#1",
    "0 0 * * +1",
    "0 0 * * MONDAY",
    "0 0 * * JAN",
    "0 0 * MON *",
    "mon 0 * * *",
    "0 0 1 1 * 2030",
    "0 0 0 1 1 * 2030",
];

/// What some take: the expression, and whether we do, version 4, and version 5.
const DISPUTED: [(&str, [bool; 3]); 26] = [
    // More than they have.
    ("0 0 15W * *", [true, false, false]),
    ("0 0 LW * *", [true, false, false]),
    ("0 0 l * *", [true, false, false]),
    ("0 0 * * FRI-SUN", [true, false, false]),
    ("0 0 * * MON-FRI#1", [true, false, false]),
    ("0 0 * * 1#2,3#1", [true, false, false]),
    // Between the versions.
    ("@annually", [true, false, true]),
    ("@minutely", [true, false, true]),
    ("@secondly", [true, false, true]),
    ("@weekdays", [true, false, true]),
    ("@weekends", [true, false, true]),
    ("0 0 31 4 1", [true, false, true]),
    ("0 0 * * 1,1", [true, true, false]),
    ("0 0 1-5,3 * *", [true, true, false]),
    ("0 0 * * 0,7", [true, true, false]),
    // What is more likely a mistake.
    ("* * *", [false, true, true]),
    ("5", [false, true, true]),
    ("0 0 * * *#2", [false, true, true]),
    ("0 ? * * *", [false, false, true]),
    ("H * * * *", [false, false, true]),
    ("*-5 0 * * *", [false, true, false]),
    ("0 0 *,5 * *", [false, true, false]),
    ("0 0 1-2-3 * *", [false, true, false]),
    ("0 0 * * 1-2-3", [false, true, false]),
    ("0 0 5L * *", [false, true, false]),
    ("0 0 * * 5LL", [false, true, false]),
];

#[test]
fn expressions_are_taken_and_refused_as_listed() {
    require!(npm::found());
    let all = |takes: bool| move |expression: &&'static str| (*expression, [takes; 3]);
    let listed: Vec<_> = ACCEPTED.iter().map(all(true)).chain(REFUSED.iter().map(all(false))).chain(DISPUTED).collect();
    let start = "2024-02-10T12:00:00Z".parse().unwrap();
    let case =
        |(expression, _): &(&str, _)| Case { expression: (*expression).to_owned(), zone: "Asia/Shanghai", start };
    let cases: Vec<_> = listed.iter().map(case).collect();
    let (four, five) = (theirs(4, &cases), theirs(5, &cases));
    for (((case, (expression, takes)), four), five) in cases.iter().zip(&listed).zip(&four).zip(&five) {
        let all = [ours(case), four[0].clone(), five[0].clone()];
        let taken = all.each_ref().map(|ticks| !ticks.ticks.is_empty());
        assert_eq!(taken, *takes, "{expression}: {all:?}");
        let first = all.each_ref().map(|ticks| ticks.ticks.iter().take(count(4)).collect::<Vec<_>>());
        assert!(*takes != [true; 3] || first.iter().all(|ticks| *ticks == first[0]), "{expression}: {all:?}");
    }
}
