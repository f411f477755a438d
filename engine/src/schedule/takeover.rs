//! In the place of a schedule of the app's own: what is left of it, and where its ticks end and this one's begin.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cabloy_crds::files::{Instances, Schedule, Target};
use cabloy_crds::vocabulary::InstanceSet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::occasion::Occasion;
use super::overlap::WAITING;
use super::{Action, InvalidTimetable, Line, Timetable};
use crate::runs::plus;

/// Times are in whole milliseconds, as the app has them.
const MOMENT: Duration = Duration::from_millis(1);

/// So many times a tick for an instance can be owed; where there are more, the oldest ticks go.
const OWED: usize = 20_000;

/// Ticks that were left for longer than this are of a takeover that was not gone through with.
const LEFT: Duration = Duration::from_hours(24);

/// What is left of a schedule of the app's own that nobody runs any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rest {
    /// Ticks that the app took and did not run, and for which instances (their subdomains).
    pub left: BTreeMap<Timestamp, BTreeSet<String>>,
    /// The next tick of each instance, which nobody has taken or ever will.
    pub pending: BTreeMap<String, Timestamp>,
}

/// Where a schedule takes the place of one of the app's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Handover {
    /// Ticks that the app has not run and that are to be run, whatever is asked for of ticks that come late; and for which
    /// instances, where that is not said by the schedule.
    pub owed: BTreeMap<Timestamp, Vec<String>>,
    /// Owed ticks that are too many.
    pub missed: u64,
    /// The first tick from then on is the first of the schedule's own timetable.
    pub from: Timestamp,
}

impl Handover {
    /// What follows at `now` from what is left: what the app took and did not run is run, and each instance goes on with
    /// the tick that would have been its next.
    ///
    /// # Errors
    /// The schedule has no timetable.
    pub fn new(schedule: &Schedule, rest: &Rest, now: Timestamp) -> Result<Self, InvalidTimetable> {
        let timetable = Timetable::new(schedule)?;
        let before = |span: Duration| now.checked_sub(span).unwrap_or(Timestamp::MIN);
        let mut owed: BTreeMap<Timestamp, BTreeSet<&str>> = BTreeMap::new();
        let mut owe = |tick: Timestamp, instance| _ = owed.entry(tick).or_default().insert(instance);
        for (tick, instances) in rest.left.range(before(LEFT)..) {
            instances.iter().filter(|it| is_for(schedule, it)).for_each(|instance| owe(*tick, instance));
        }
        let pending = || rest.pending.iter().filter(|(instance, _)| is_for(schedule, instance));
        let from = pending().map(|(_, next)| *next).max().unwrap_or(now).max(plus(now, MOMENT));
        let window = Duration::from_millis(schedule.catch_up.window_ms);
        let oldest = before(window).max(timetable.before_last(WAITING, from));
        for (instance, next) in pending() {
            if *next <= now {
                owe(*next, instance);
            }
            let first = timetable.next_after(just_before(*next).max(oldest));
            let ticks = std::iter::successors(first, |tick| timetable.next_after(*tick));
            ticks.take_while(|tick| *tick < from).for_each(|tick| owe(tick, instance));
        }
        let mut missed = rest.left.range(..before(LEFT)).count() as u64;
        let mut total: usize = owed.values().map(BTreeSet::len).sum();
        while owed.len() > WAITING || total > OWED {
            let Some((_, instances)) = owed.pop_first() else { break };
            missed += 1;
            total -= instances.len();
        }
        let named = has_instances(schedule);
        let list = |instances: BTreeSet<&str>| instances.into_iter().filter(|_| named).map(str::to_owned).collect();
        let owed = owed.into_iter().map(|(tick, instances)| (tick, list(instances))).collect();
        Ok(Self { owed, missed, from })
    }
}

/// Whether a run of the schedule may be for one instance or another.
fn has_instances(schedule: &Schedule) -> bool {
    matches!(&schedule.target, Target::Bean(bean) if bean.instances != Instances::Set(InstanceSet::Default))
}

/// Whether the schedule runs for the instance of that subdomain. A request to the app is for its default instance.
fn is_for(schedule: &Schedule, instance: &str) -> bool {
    match &schedule.target {
        Target::Bean(bean) => match &bean.instances {
            Instances::Set(InstanceSet::Default) => instance.is_empty(),
            Instances::Set(InstanceSet::All) => true,
            Instances::Listed(list) => list.iter().any(|listed| listed == instance),
        },
        Target::Queue(queue) => queue.subdomain == instance,
        Target::Broadcast(broadcast) => broadcast.subdomain == instance,
        Target::Http(_) | Target::WarmUp(_) => instance.is_empty(),
    }
}

fn just_before(time: Timestamp) -> Timestamp {
    time.checked_sub(MOMENT).unwrap_or(Timestamp::MIN)
}

impl Line {
    /// Whether it waits for a schedule of the app's own to be taken over.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.schedule.takes_over.is_some() && self.memory.taken_over != self.schedule.takes_over
    }

    /// Whether it has taken over one.
    #[must_use]
    pub fn has_taken_over(&self) -> bool {
        self.memory.taken_over.is_some() && !self.waits()
    }

    /// Takes the place of the schedule of the app's own that it waits for, as soon as that is saved.
    pub fn take_over(&mut self, handover: &Handover) -> Vec<Action> {
        if !self.waits() {
            return Vec::new();
        }
        let Handover { owed, missed, from } = handover;
        let memory = &mut self.memory;
        memory.taken_over.clone_from(&self.schedule.takes_over);
        memory.low_water = memory.low_water.max(just_before(*from));
        memory.missed += missed;
        if let Some((first, _)) = owed.first_key_value() {
            memory.settled = memory.settled.min(just_before(*first));
        }
        for (tick, instances) in owed {
            memory.owed.insert(*tick, instances.clone());
            if !self.open.contains_key(&Occasion::Tick(*tick)) && !memory.waiting.contains(tick) {
                memory.waiting.push_back(*tick);
            }
        }
        memory.waiting.make_contiguous().sort_unstable();
        (self.unsaved, self.unkept) = (true, true);
        self.resume();
        if *missed > 0 { vec![Action::Missed(*missed)] } else { Vec::new() }
    }

    /// The ledger knows that it has taken over: it begins. A leader that did not know would take runs that have begun for
    /// over, or wait for what is over.
    pub fn begin(&mut self) {
        self.unkept = false;
        self.resume();
    }

    /// What is called for a run. What the app has left for some instances is run for them alone.
    #[must_use]
    pub fn target(&self, occasion: &Occasion) -> Target {
        let mut target = self.schedule.target.clone();
        let owed = occasion.tick().and_then(|tick| self.memory.owed.get(&tick)).filter(|owed| !owed.is_empty());
        if let (Target::Bean(bean), Some(owed)) = (&mut target, owed) {
            bean.instances = Instances::Listed(owed.clone());
        }
        target
    }

    /// Whether the tick is one that the app has not run, and so is run whenever it can be.
    pub(super) fn is_owed(&self, tick: Timestamp) -> bool {
        self.memory.owed.contains_key(&tick)
    }
}

#[cfg(test)]
mod tests {
    use cabloy_crds::files::BeanTarget;
    use serde_json::json;

    use super::super::tests::every;
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).unwrap()
    }

    fn bean(instances: Instances) -> Schedule {
        let (path, module, name) = ("/run".to_owned(), "m".to_owned(), "schedule.night".to_owned());
        let target = Target::Bean(BeanTarget { path, module, name, data: None, instances });
        Schedule { takes_over: Some("m.night".into()), target, ..every(2_000) }
    }

    fn rest(left: &[(i64, &[&str])], pending: &[(&str, i64)]) -> Rest {
        let names = |of: &[&str]| of.iter().map(|it| (*it).to_owned()).collect();
        Rest {
            left: left.iter().map(|(tick, of)| (at(*tick), names(of))).collect(),
            pending: pending.iter().map(|(of, next)| ((*of).to_owned(), at(*next))).collect(),
        }
    }

    fn owed(handover: &Handover) -> Vec<(i64, Vec<&str>)> {
        let owed = handover.owed.iter();
        owed.map(|(tick, names)| (tick.as_millisecond(), names.iter().map(String::as_str).collect())).collect()
    }

    #[test]
    fn each_instance_goes_on_where_it_was() {
        let rest = rest(&[(4_000, &[""]), (6_000, &["", "south"])], &[("", 8_000), ("south", 10_000), ("west", 8_000)]);
        let all = Handover::new(&bean(Instances::Set(InstanceSet::All)), &rest, at(7_500)).unwrap();
        assert_eq!(owed(&all), [(4_000, vec![""]), (6_000, vec!["", "south"]), (8_000, vec!["", "west"])]);
        assert_eq!((all.from, all.missed), (at(10_000), 0));
        let listed = Handover::new(&bean(Instances::Listed(vec!["south".into()])), &rest, at(7_500)).unwrap();
        assert_eq!(owed(&listed), [(6_000, vec!["south"])]);
        let default = Handover::new(&bean(Instances::default()), &rest, at(7_500)).unwrap();
        assert_eq!((owed(&default), default.from), (vec![(4_000, vec![]), (6_000, vec![])], at(8_000)));
        let http = Schedule { takes_over: Some("m.night".into()), ..every(2_000) };
        assert_eq!(Handover::new(&http, &rest, at(7_500)).unwrap(), default, "a request is for the default instance");
    }

    #[test]
    fn another_timetable_begins_after_the_last_tick_of_the_one_before() {
        let slower = Schedule { every_ms: Some(5_000), ..bean(Instances::default()) };
        let handover = Handover::new(&slower, &rest(&[(4_000, &[""])], &[("", 6_000)]), at(5_500)).unwrap();
        assert_eq!(
            (owed(&handover), handover.from),
            (vec![(4_000, vec![])], at(6_000)),
            "and what is not due is not run"
        );
    }

    #[test]
    fn what_was_due_while_nobody_took_it_is_run() {
        let schedule = bean(Instances::default());
        let late = Handover::new(&schedule, &rest(&[], &[("", 8_000)]), at(12_500)).unwrap();
        let ticks = |handover: &Handover| owed(handover).iter().map(|(tick, _)| *tick).collect::<Vec<_>>();
        assert_eq!((ticks(&late), late.from), (vec![8_000, 10_000, 12_000], at(12_501)));
        let later = ticks(&Handover::new(&schedule, &rest(&[], &[("", 8_000)]), at(1_000_000)).unwrap());
        assert_eq!((later[0], later[1], later.len()), (8_000, 942_000, 31), "the one, and those of the last minute");
    }

    #[test]
    fn of_nothing_nothing_is_owed_and_of_too_much_the_oldest_goes() {
        let schedule = bean(Instances::default());
        let nothing = Handover::new(&schedule, &Rest::default(), at(7_500)).unwrap();
        assert_eq!((owed(&nothing), nothing.from), (vec![], at(7_501)));
        let left = (1..=2_000).map(|it| (at(it * 2_000), BTreeSet::from([String::new()]))).collect();
        let much = Handover::new(&schedule, &Rest { left, ..Rest::default() }, at(4_000_000)).unwrap();
        assert_eq!((much.owed.len(), much.missed), (WAITING, 1_000));
        assert_eq!(much.owed.first_key_value().unwrap().0, &at(1_001 * 2_000));
        let old = rest(&[(0, &[""]), (90_000_000, &[""])], &[]);
        let withdrawn = Handover::new(&schedule, &old, at(100_000_000)).unwrap();
        assert_eq!((withdrawn.owed.len(), withdrawn.missed), (1, 1), "of a takeover that was given up");
        assert_eq!(serde_json::from_value::<Handover>(json!(withdrawn)).unwrap(), withdrawn);
    }
}
