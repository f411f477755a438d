//! What the modules of real apps have done, as they tell it: a line of JSON each.

use std::fs;
use std::path::Path;

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
