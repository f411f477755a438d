//! What a run of a schedule is for, and the names of records.

use jiff::Timestamp;

/// What a run of a schedule is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Occasion {
    /// A tick fell due.
    Tick(Timestamp),
    /// Somebody asked for a run.
    Trigger(String),
    /// Somebody asked for the ticks of a time.
    Backfill {
        /// The tick.
        tick: Timestamp,
        /// The backfill.
        id: String,
    },
}

impl Occasion {
    /// The tick, if it is one that fell due by itself.
    #[must_use]
    pub fn tick(&self) -> Option<Timestamp> {
        match self {
            Self::Tick(tick) => Some(*tick),
            Self::Trigger(_) | Self::Backfill { .. } => None,
        }
    }

    /// The trigger.
    #[must_use]
    pub fn trigger(&self) -> Option<&str> {
        match self {
            Self::Trigger(id) => Some(id),
            Self::Tick(_) | Self::Backfill { .. } => None,
        }
    }

    /// The backfill.
    #[must_use]
    pub fn backfill(&self) -> Option<&str> {
        match self {
            Self::Backfill { id, .. } => Some(id),
            Self::Tick(_) | Self::Trigger(_) => None,
        }
    }

    /// What tells the run from others of its schedule, as the app sees it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Tick(tick) => tick.to_string(),
            Self::Trigger(id) => id.clone(),
            Self::Backfill { tick, id } => format!("{tick}~{id}"),
        }
    }
}

/// The id of the record of a run.
#[must_use]
pub fn run_id(schedule: &str, occasion: &Occasion) -> String {
    match occasion {
        Occasion::Tick(tick) => format!("s/{schedule}/{tick}"),
        Occasion::Trigger(id) => format!("s/{schedule}/t/{id}"),
        // In this order agents of the first version, which know ticks alone, take it for nothing of theirs.
        Occasion::Backfill { tick, id } => format!("s/{schedule}/b/{tick}/{id}"),
    }
}

/// The id of the record of a schedule's memory.
#[must_use]
pub fn memory_id(schedule: &str) -> String {
    format!("m/{schedule}")
}

/// The schedule that the record `id` belongs to, and what the run is for if it is the record of one.
#[must_use]
pub fn parse_id(id: &str) -> Option<(&str, Option<Occasion>)> {
    if let Some(name) = id.strip_prefix("m/") {
        return Some((name, None));
    }
    let (name, rest) = id.strip_prefix("s/")?.split_once('/')?;
    let parts: Vec<&str> = rest.split('/').collect();
    let occasion = match parts[..] {
        [tick] => Occasion::Tick(tick.parse().ok()?),
        ["t", id] => Occasion::Trigger(id.to_owned()),
        ["b", tick, id] => Occasion::Backfill { tick: tick.parse().ok()?, id: id.to_owned() },
        _ => return None,
    };
    Some((name, Some(occasion)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_records_are_read_as_they_are_written() {
        let tick: Timestamp = "2026-11-23T03:00:00.5Z".parse().unwrap();
        let occasions = [
            Occasion::Tick(tick),
            Occasion::Trigger("t".into()),
            Occasion::Trigger("2026.11_23-b".into()),
            Occasion::Backfill { tick, id: "b".into() },
        ];
        for occasion in occasions {
            let id = run_id("nightly", &occasion);
            assert_eq!(parse_id(&id), Some(("nightly", Some(occasion))), "{id}");
        }
        assert_eq!(run_id("a", &Occasion::Tick(tick)), "s/a/2026-11-23T03:00:00.5Z");
        assert_eq!(parse_id("m/a"), Some(("a", None)));
        for id in ["u/migrate/r1", "s/a", "s/a/x", "s/a/t/x/y", "s/a/b/x/2026-11-23T03:00:00Z", "s/a/t", "x"] {
            assert_eq!(parse_id(id), None, "{id}");
        }
    }
}
