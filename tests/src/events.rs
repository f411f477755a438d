//! What the modules of real apps have done, as they tell it: a line of JSON each.

use std::fs;
use std::path::Path;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};

/// Something that a module of the app has done.
#[derive(Clone, Debug, Deserialize)]
pub struct Event {
    /// When, in milliseconds since the Unix epoch.
    pub t: i64,
    /// Which bean, such as `schedule` or `startup.once`.
    pub kind: String,
    /// The process.
    pub pid: u32,
    /// What the bean has to tell besides.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// What has been told so far in a file, in order.
///
/// # Panics
/// It is something else.
#[must_use]
pub fn read(path: &Path) -> Vec<Event> {
    let text = fs::read_to_string(path).unwrap_or_default();
    // The last line may still be written.
    let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

/// A tick: when it was due, in milliseconds since the Unix epoch, and for which instance.
pub type Tick = (i64, String);

/// The ticks that an app has run by itself, and those that agents have had it run, by what the bean `report` tells.
///
/// # Panics
/// It tells something else.
#[must_use]
pub fn ticks(events: &[Event]) -> (Vec<Tick>, Vec<Tick>) {
    let (mut own, mut called) = (Vec::new(), Vec::new());
    for event in events.iter().filter(|event| event.kind == "report") {
        let instance = event.more["subdomain"].as_str().unwrap_or_default().to_owned();
        match event.more.get("run").and_then(|run| run["key"].as_str()) {
            Some(key) => {
                let tick = key.rsplit_once('@').and_then(|(_, tick)| tick.parse::<Timestamp>().ok());
                called.push((tick.unwrap_or_else(|| panic!("{key}")).as_millisecond(), instance));
            }
            None => own.push((tick_of(event.more["job"]["id"].as_str().unwrap_or_default()), instance)),
        }
    }
    (own, called)
}

/// The tick of a job of a schedule, by its id.
///
/// # Panics
/// It is that of another job.
#[must_use]
pub fn tick_of(job: &str) -> i64 {
    let tick = job.rsplit_once(':').and_then(|(_, tick)| tick.parse().ok());
    tick.unwrap_or_else(|| panic!("{job:?} is no job of a schedule"))
}
