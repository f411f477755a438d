//! Whatever leaders come and go: no tick is doubled or lost, and none runs beside another that is not to.

use std::collections::BTreeSet;

use cabloy_crds::files::{Backfill, CatchUp, Retry, Trigger};
use cabloy_crds::vocabulary::{CatchUpPolicy, OnUnknown};
use cabloy_redlock::record::RunResult;
use proptest::prelude::*;
use serde_json::json;

use super::tests::every;
use super::tests::time_out;
use super::*;

use crate::runs::{Attempt, Outcome, OutcomeKind};

const OVERLAPS: &[Overlap] =
    &[Overlap::Skip, Overlap::BufferOne, Overlap::BufferAll, Overlap::CancelOther, Overlap::AllowAll];

const TIMEOUT: i64 = 1_500;

/// What happens.
#[derive(Clone, Debug)]
enum Step {
    Wait(i64),
    /// The oldest attempt that runs ends, or another one.
    End {
        last: bool,
        kind: OutcomeKind,
    },
    /// Somebody changes the schedule.
    Edit(Overlap),
    /// The leader is gone, and another one comes.
    Crash {
        /// After this time.
        after: i64,
        /// What was lost with it.
        lost: Lost,
        /// A node comes back that slept, with all records that it ever had, and no results.
        ghosts: bool,
    },
}

/// What is lost with a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    Nothing,
    /// It was just about to claim what is due: nobody takes that, though its memory is saved.
    Claims,
    /// What is due has been claimed and called, and its memory is not saved.
    Memory,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind =
        prop_oneof![4 => Just(OutcomeKind::Done), 2 => Just(OutcomeKind::Failed), 1 => Just(OutcomeKind::NotBegun)];
    let lost = prop_oneof![8 => Just(Lost::Nothing), 4 => Just(Lost::Claims), 1 => Just(Lost::Memory)];
    let overlap = prop::sample::select(OVERLAPS);
    let step = prop_oneof![
        8 => (1_i64..2_500).prop_map(Step::Wait),
        1 => (5_000_i64..40_000).prop_map(Step::Wait),
        8 => (any::<bool>(), kind).prop_map(|(last, kind)| Step::End { last, kind }),
        2 => (0_i64..2_500, lost, any::<bool>()).prop_map(|(after, lost, ghosts)| Step::Crash { after, lost, ghosts }),
    ];
    // Few worlds with edits: after one, ticks may run together that were not to.
    let edited = prop_oneof![12 => step.clone(), 1 => overlap.prop_map(Step::Edit)];
    prop_oneof![3 => prop::collection::vec(step, 1..120), 1 => prop::collection::vec(edited, 1..120)]
}

fn schedules() -> impl Strategy<Value = Schedule> {
    let policy = prop::sample::select(vec![CatchUpPolicy::None, CatchUpPolicy::Latest, CatchUpPolicy::All]);
    (prop::sample::select(OVERLAPS), policy, prop::sample::select(vec![15_000, 60_000]), any::<bool>(), any::<bool>())
        .prop_map(|(overlap, policy, window_ms, retried, asked)| Schedule {
            overlap,
            catch_up: CatchUp { window_ms, policy },
            timeout_ms: TIMEOUT.unsigned_abs(),
            on_unknown: if retried { OnUnknown::Retry } else { OnUnknown::Skip },
            retry: Retry { limit: u32::from(retried), initial_delay_ms: 700, factor: 1.0, max_delay_ms: 700 },
            triggers: if asked { vec![Trigger { id: "x".into() }] } else { vec![] },
            backfills: if asked { vec![Backfill { id: "b".into(), from: at(-3_000), to: at(0) }] } else { vec![] },
            ..every(1_000)
        })
}

/// A leader, the ledger, and the app.
struct World {
    schedule: Schedule,
    now: i64,
    line: Line,
    memory: Memory,
    records: BTreeMap<Occasion, Record>,
    ghosts: BTreeMap<Occasion, Record>,
    /// What the app works at, and until when it may.
    running: BTreeMap<Occasion, i64>,
    claimed: BTreeSet<(Occasion, u32)>,
    edited: bool,
    /// What a leader had counted and not saved is lost.
    counts_lost: bool,
}

impl World {
    fn new(schedule: Schedule) -> Self {
        let now = 500;
        let mut line = Line::new(schedule.clone(), None, BTreeMap::new(), at(now)).unwrap().0;
        let memory = line.take_unsaved().unwrap().clone();
        let (records, ghosts, running) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self {
            schedule,
            now,
            line,
            memory,
            records,
            ghosts,
            running,
            claimed: BTreeSet::new(),
            edited: false,
            counts_lost: false,
        }
    }

    /// What the engine does, until there is no more to do.
    fn drive(&mut self) {
        loop {
            time_out(&mut self.line, at(self.now));
            let actions = self.line.step(at(self.now));
            self.save();
            if actions.is_empty() {
                break;
            }
            self.carry_out(actions);
        }
        let wake = self.line.wake();
        assert!(wake.is_none_or(|wake| wake > at(self.now)), "it would not sleep: {wake:?}");
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        self.running.retain(|_, deadline| *deadline > self.now);
        for action in actions {
            match action {
                Action::Claim { occasion, attempt } => self.claim(occasion, attempt),
                Action::Stop(id) => {
                    let (_, occasion) = parse_id(&id).unwrap();
                    self.end(&occasion.unwrap(), OutcomeKind::Cancelled);
                }
                _ => {}
            }
        }
    }

    fn claim(&mut self, occasion: Occasion, number: u32) {
        let deadline = self.now + TIMEOUT;
        assert!(self.claimed.insert((occasion.clone(), number)), "{occasion:?} #{number} is claimed twice");
        assert!(!self.running.contains_key(&occasion), "two attempts of {occasion:?} run together");
        let serial = !self.edited && self.schedule.overlap != Overlap::AllowAll && occasion.tick().is_some();
        let others: Vec<_> = self.running.keys().filter(|it| it.tick().is_some()).collect();
        assert!(!serial || others.is_empty(), "{occasion:?} runs beside {others:?}");
        let nonce = format!("{}#{number}", occasion.name());
        let run = self.line.run_mut(&run_id("a", &occasion)).unwrap();
        run.claiming(Attempt { number, nonce: nonce.clone(), deadline: at(deadline) });
        run.begun_here();
        let data = json!(Claimed { at: at(self.now), deadline: at(deadline), pod: "p".into(), uid: "u".into() });
        let before = self.records.get(&occasion).map(|record| record.results.clone()).unwrap_or_default();
        let id = run_id("a", &occasion);
        let record = Record { id, attempt: number, token: 1, seq: 1, nonce, data, results: before };
        self.ghosts.insert(occasion.clone(), Record { results: vec![], ..record.clone() });
        self.records.insert(occasion.clone(), record);
        self.running.insert(occasion, deadline);
    }

    fn end(&mut self, occasion: &Occasion, kind: OutcomeKind) {
        self.running.remove(occasion);
        let outcome =
            Outcome { kind, reason: "R".into(), message: String::new(), retry_after_ms: None, at: at(self.now) };
        let Some(record) = self.records.get_mut(occasion) else { return };
        let nonce = record.nonce.clone();
        record.results.push(RunResult { nonce: nonce.clone(), done: outcome.is_final(), data: json!(outcome) });
        if let Some(run) = self.line.run_mut(&record.id) {
            if run.is_elsewhere() { run.read(record) } else { run.ended(&nonce, outcome) }
        }
    }

    /// Saves what there is to save, and removes the records of what is over.
    fn save(&mut self) {
        if let Some(memory) = self.line.take_unsaved() {
            self.memory = serde_json::from_value(json!(memory)).unwrap();
            self.records.retain(|occasion, _| !self.memory.is_over(occasion));
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Wait(ms) => self.now += ms,
            Step::Edit(overlap) => {
                self.schedule.overlap = *overlap;
                self.edited = true;
                self.line.update(self.schedule.clone(), at(self.now)).unwrap();
            }
            Step::End { last, kind } => {
                self.running.retain(|_, deadline| *deadline > self.now);
                let mut running = self.running.keys();
                let occasion = if *last { running.next_back() } else { running.next() };
                if let Some(occasion) = occasion.cloned() {
                    self.end(&occasion, *kind);
                }
            }
            Step::Crash { after, lost, ghosts } => {
                self.now += after;
                match lost {
                    Lost::Nothing => {}
                    Lost::Claims => {
                        self.line.step(at(self.now));
                        self.save();
                    }
                    Lost::Memory => {
                        let actions = self.line.step(at(self.now));
                        self.carry_out(actions);
                        self.counts_lost = true;
                    }
                }
                if *ghosts {
                    for (occasion, ghost) in self.ghosts.clone() {
                        self.records.entry(occasion).or_insert(ghost);
                    }
                }
                let memory = Some(self.memory.clone());
                let (line, actions) =
                    Line::new(self.schedule.clone(), memory, self.records.clone(), at(self.now)).unwrap();
                self.line = line;
                for action in actions {
                    let Action::Forget(id) = action else { panic!("{action:?}") };
                    self.records.retain(|_, record| record.id != id);
                }
            }
        }
        self.drive();
    }
}

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap()
}

proptest! {
    /// Each tick is run, skipped or missed, once; no attempt is claimed twice or beside one that may still run; and only
    /// where all are allowed at once do two ticks run together. What somebody asked for is run once.
    #[test]
    fn no_tick_is_doubled_or_lost(schedule in schedules(), steps in steps()) {
        let mut world = World::new(schedule);
        for step in &steps {
            world.take(step);
        }
        // All runs end, and nothing waits any more.
        for _ in 0..10_000 {
            if world.line.runs().next().is_none() {
                break;
            }
            let running: Vec<_> = world.running.keys().cloned().collect();
            for occasion in &running {
                world.end(occasion, OutcomeKind::Done);
            }
            if running.is_empty() {
                let wake = world.line.wake().unwrap();
                world.now = world.now.max(wake.as_millisecond());
            }
            world.drive();
        }
        let status = world.line.status();
        prop_assert!(status.runs.is_empty() && status.waiting == 0);
        let ticks = u64::try_from(world.now / 1_000).unwrap();
        let asked = world.schedule.triggers.len() + 3 * world.schedule.backfills.len();
        let (counted, all) = (status.done + status.failed + status.skipped + status.missed, ticks + asked as u64);
        prop_assert!(counted == all || world.counts_lost && counted < all, "{counted} of {all}: {status:?}");
        let ran = |by_hand: fn(&Occasion) -> bool| world.claimed.iter().filter(|it| it.1 == 1 && by_hand(&it.0)).count();
        prop_assert_eq!(ran(|it| it.tick().is_none()), asked, "what was asked for is run");
    }
}
