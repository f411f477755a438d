//! What schedules and startup tasks failed at, as Events: not one a tick, and none twice.
//!
//! A pure computation: what the status counts now, less what has been told.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cabloy_crds::CabloyClusterStatus;
use cabloy_crds::resource::{ScheduleStatus, StartupStatus};

/// How long what happens gathers after something was told.
pub const PACE: Duration = Duration::from_secs(30);

/// Where so many schedules or more have failed in the same way, one Event tells of them all.
const MANY: usize = 10;

/// The longest note that the API server takes, in bytes.
const MAX_NOTE: usize = 1_024;

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occurrence {
    /// The Event's reason: the kind of failure.
    pub reason: &'static str,
    /// What was done. Events of the same reason and action are one series.
    pub action: String,
    /// What happened.
    pub note: String,
}

/// What has been told of a schedule.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    failed: i64,
    missed: i64,
    paused: bool,
}

impl Counts {
    fn of(schedule: &ScheduleStatus) -> Self {
        Self {
            failed: schedule.failed.unwrap_or_default(),
            missed: schedule.missed.unwrap_or_default(),
            paused: schedule.paused.unwrap_or_default(),
        }
    }
}

/// What has been told of a resource.
#[derive(Debug)]
pub struct Told {
    schedules: BTreeMap<String, Counts>,
    /// Tasks that have failed, by revision.
    startups: BTreeMap<String, Option<String>>,
    /// Whether what is counted of a schedule that was not seen before has happened since.
    from_zero: bool,
    last: Option<Instant>,
}

impl Told {
    /// All that the status says, as another process of the operator has left it, has been told.
    #[must_use]
    pub fn new(before: Option<&CabloyClusterStatus>) -> Self {
        let schedules = before.into_iter().flat_map(|status| &status.schedules);
        let startups = before.into_iter().flat_map(|status| &status.startups);
        Self {
            schedules: schedules.map(|it| (it.name.clone(), Counts::of(it))).collect(),
            startups: startups.filter(|it| has_failed(it)).map(|it| (it.name.clone(), it.revision.clone())).collect(),
            from_zero: before.is_none(),
            last: None,
        }
    }

    /// What there is to tell at `now`; then it has been told. Nothing so soon after the last time.
    pub fn tell(&mut self, status: &CabloyClusterStatus, now: Instant) -> Vec<Occurrence> {
        let CabloyClusterStatus { schedules, startups, .. } = status;
        if self.last.is_some_and(|last| now.duration_since(last) < PACE) {
            return Vec::new();
        }
        let mut all = self.of_schedules(schedules);
        all.extend(self.of_startups(startups));
        if !all.is_empty() {
            self.last = Some(now);
        }
        all
    }

    fn of_schedules(&mut self, schedules: &[ScheduleStatus]) -> Vec<Occurrence> {
        // While nobody leads nothing is known of them.
        if schedules.is_empty() {
            return Vec::new();
        }
        let mut found: BTreeMap<&'static str, Vec<(&str, String)>> = BTreeMap::new();
        for schedule in schedules {
            let (name, counts) = (schedule.name.as_str(), Counts::of(schedule));
            let told = self.schedules.get(name).copied();
            let told = told.unwrap_or(if self.from_zero { Counts::default() } else { counts });
            let last = schedule.last_result.as_deref().unwrap_or_default();
            if counts.failed > told.failed {
                let reason = if last == "Unknown" { "TickUnknown" } else { "TickFailed" };
                let runs = number(counts.failed - told.failed, "run");
                let tick = schedule.last_tick.as_deref().unwrap_or_default();
                let note = format!("{runs} failed or came to no result; the last is of {tick}: {last}");
                found.entry(reason).or_default().push((name, note));
            }
            if counts.missed > told.missed {
                let ticks = number(counts.missed - told.missed, "tick");
                found.entry("TicksMissed").or_default().push((name, format!("nobody could run {ticks} in time")));
            }
            if counts.paused && !told.paused {
                let note = "paused after a failure, as pauseOnFailure asks; edit or trigger it to begin again";
                found.entry("SchedulePaused").or_default().push((name, note.to_owned()));
            }
        }
        // Those that are gone may come again under the same name, and count from zero then.
        self.schedules = schedules.iter().map(|it| (it.name.clone(), Counts::of(it))).collect();
        self.from_zero = true;
        found.into_iter().flat_map(|(reason, of)| occurrences(reason, "RunSchedule", &of)).collect()
    }

    fn of_startups(&mut self, startups: &[StartupStatus]) -> Vec<Occurrence> {
        // While no agent is asked nothing is known of them.
        if startups.is_empty() {
            return Vec::new();
        }
        let failed: BTreeMap<_, _> =
            startups.iter().filter(|it| has_failed(it)).map(|it| (it.name.clone(), it)).collect();
        let new: Vec<(&str, String)> = failed
            .values()
            .filter(|it| self.startups.get(&it.name) != Some(&it.revision))
            .map(|it| {
                let message = it.message.as_deref().unwrap_or_default();
                (it.name.as_str(), format!("all attempts failed; the last with {message}"))
            })
            .collect();
        let new = occurrences("StartupFailed", "RunStartup", &new);
        self.startups = failed.into_iter().map(|(name, it)| (name, it.revision.clone())).collect();
        new
    }
}

fn has_failed(startup: &StartupStatus) -> bool {
    startup.state == "Failed"
}

fn number(count: i64, of: &str) -> String {
    format!("{count} {of}{}", if count == 1 { "" } else { "s" })
}

/// One for each name, or one for all where there are many.
fn occurrences(reason: &'static str, action: &str, of: &[(&str, String)]) -> Vec<Occurrence> {
    if of.len() >= MANY {
        let all: Vec<_> = of.iter().map(|(name, note)| format!("{name}: {note}")).collect();
        return vec![Occurrence { reason, action: format!("{action}s"), note: all.join("; ") }];
    }
    let one = |(name, note): &(&str, String)| Occurrence {
        reason,
        action: format!("{action}/{name}"),
        note: format!("{name}: {note}"),
    };
    of.iter().map(one).collect()
}

/// A note, cut to what the API server takes.
#[must_use]
pub fn cut(mut note: String) -> String {
    if note.len() > MAX_NOTE {
        let end = note.floor_char_boundary(MAX_NOTE - '…'.len_utf8());
        note.truncate(end);
        note.push('…');
    }
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(name: &str, failed: i64, missed: i64, last: &str) -> ScheduleStatus {
        ScheduleStatus {
            name: name.into(),
            failed: Some(failed),
            missed: Some(missed),
            last_tick: Some("2026-11-23T03:00:00Z".into()),
            last_result: Some(last.into()),
            ..ScheduleStatus::default()
        }
    }

    fn status(schedules: &[ScheduleStatus]) -> CabloyClusterStatus {
        CabloyClusterStatus { schedules: schedules.to_vec(), ..CabloyClusterStatus::default() }
    }

    fn reasons(all: &[Occurrence]) -> Vec<(&str, &str)> {
        all.iter().map(|it| (it.reason, it.action.as_str())).collect()
    }

    #[test]
    fn each_failure_is_told_once_and_not_too_often() {
        let mut told = Told::new(None);
        let begun = Instant::now();
        assert!(told.tell(&status(&[schedule("a", 0, 0, "Done"), schedule("b", 0, 0, "Done")]), begun).is_empty());
        let first = told.tell(&status(&[schedule("a", 1, 0, "Failed: Gone"), schedule("b", 0, 3, "Done")]), begun);
        assert_eq!(reasons(&first), [("TickFailed", "RunSchedule/a"), ("TicksMissed", "RunSchedule/b")]);
        assert!(first[0].note.contains("1 run ") && first[0].note.contains("Failed: Gone"), "{}", first[0].note);
        assert!(first[1].note.contains("3 ticks"), "{}", first[1].note);
        let next = status(&[schedule("a", 4, 0, "Unknown"), schedule("b", 0, 3, "Done")]);
        assert!(told.tell(&next, begun + PACE / 2).is_empty(), "it gathers");
        let second = told.tell(&next, begun + PACE);
        assert_eq!(reasons(&second), [("TickUnknown", "RunSchedule/a")]);
        assert!(second[0].note.contains("3 runs "), "{}", second[0].note);
        assert!(told.tell(&next, begun + 3 * PACE).is_empty());
    }

    #[test]
    fn nothing_is_told_again_when_nobody_leads_or_the_operator_is_another() {
        let known = status(&[schedule("a", 7, 2, "Failed: Gone")]);
        let mut told = Told::new(Some(&known));
        let now = Instant::now();
        assert!(told.tell(&known, now).is_empty());
        assert!(told.tell(&status(&[]), now).is_empty());
        assert!(told.tell(&known, now).is_empty(), "a leader is back");
        assert!(told.tell(&status(&[schedule("a", 1, 0, "Done")]), now).is_empty(), "the masters have forgotten");
        assert_eq!(told.tell(&status(&[schedule("a", 2, 0, "Failed: Gone")]), now).len(), 1);
        let mut leaderless = Told::new(Some(&status(&[])));
        assert!(leaderless.tell(&known, now).is_empty(), "it may have been told");
        assert_eq!(leaderless.tell(&status(&[schedule("a", 8, 2, "Failed: Gone")]), now).len(), 1);
    }

    #[test]
    fn many_are_told_at_once_within_what_a_note_may_hold() {
        let many: Vec<_> = (0..100).map(|it| schedule(&format!("ü{it}"), 1, 0, "Failed: Gone")).collect();
        let all = Told::new(None).tell(&status(&many), Instant::now());
        assert_eq!(reasons(&all), [("TickFailed", "RunSchedules")]);
        let note = cut(all[0].note.clone());
        assert!((1_000..=MAX_NOTE).contains(&note.len()) && note.ends_with('…'), "{}", note.len());
        assert_eq!(cut("short".into()), "short");
    }

    #[test]
    fn pauses_and_failed_startups_are_told_once() {
        let startup = |state: &str, revision: &str| StartupStatus {
            name: "migrate".into(),
            revision: Some(revision.into()),
            state: state.into(),
            message: Some("ServerError: 500".into()),
            ..StartupStatus::default()
        };
        let with = |paused: bool, task: StartupStatus| CabloyClusterStatus {
            schedules: vec![ScheduleStatus { paused: paused.then_some(true), ..schedule("a", 0, 0, "Done") }],
            startups: vec![task],
            ..CabloyClusterStatus::default()
        };
        let (mut told, now) = (Told::new(None), Instant::now());
        let first = told.tell(&with(true, startup("Failed", "r1")), now);
        assert_eq!(reasons(&first), [("SchedulePaused", "RunSchedule/a"), ("StartupFailed", "RunStartup/migrate")]);
        assert!(first[1].note.contains("ServerError: 500"), "{}", first[1].note);
        assert!(told.tell(&with(true, startup("Failed", "r1")), now + PACE).is_empty());
        assert!(told.tell(&with(false, startup("Running", "r2")), now + PACE).is_empty());
        assert_eq!(told.tell(&with(true, startup("Failed", "r2")), now + PACE).len(), 2);
    }
}
