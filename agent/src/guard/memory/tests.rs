use proptest::prelude::*;
use serde_json::json;

use super::*;

const QUEUE: &str = "-||a-base||schedule";

/// A queue as the app's pods make of it.
#[derive(Clone, Debug, Default)]
struct Queues {
    /// By the rules of Vona: a version of a schedule takes the place of another, and pods delete by name. By those of
    /// `CabloyJS` 4 otherwise.
    vona: bool,
    now: i64,
    schedules: BTreeMap<String, i64>,
    added: Vec<Added>,
}

fn key(name: &str, every: i64) -> String {
    format!(".shop.{name}::::{every}")
}

fn found(key: &str, count: u64, vona: bool) -> Found {
    let options = json!({"repeat": {"every": 1_000, "count": count}}).as_object().unwrap().clone();
    let template = Template {
        ids: if vona { format!("repeat:{}:", name_of(key)) } else { format!("repeat:{}:", key.replace(':', "_")) },
        name: name_of(key).into(),
        data: "{}".into(),
        options,
    };
    Found { key: key.into(), template, count }
}

impl Queues {
    fn add(&mut self, key: &str, count: u64) {
        self.now += 1;
        let tick = self.now + 1_000;
        if self.vona {
            self.schedules.retain(|other, _| name_of(other) != name_of(key));
        }
        let before = self.schedules.insert(key.to_owned(), tick);
        // A schedule that is there gets no second job.
        if before.is_none() || count > 1 {
            let found = found(key, count, self.vona);
            let id = format!("{}{tick}", found.template.ids);
            self.added.push(Added { at: self.now, id, found: Some(found) });
        }
    }

    /// A pod whose code has these schedules takes a tick of `key`.
    fn tick(&mut self, key: &str, code: &BTreeSet<String>) {
        if self.schedules.contains_key(key) {
            self.add(key, 2);
            let wanted = |other: &String| other == key || self.vona && name_of(other) == name_of(key);
            if !code.iter().any(wanted) {
                self.schedules.remove(key);
            }
        }
    }
}

/// Pods, the app's queue, and a leader that guards it.
#[derive(Debug, Default)]
struct World {
    queues: Queues,
    memory: Memory,
    revisions: Revisions,
    code: BTreeMap<String, BTreeSet<String>>,
    /// When the last pod of each revision ended.
    ended: BTreeMap<String, i64>,
    since: BTreeMap<String, i64>,
    /// Up to when the leader has read what was added.
    read: i64,
}

impl World {
    fn new(code: &[(&str, &[&str])]) -> Self {
        let code =
            code.iter().map(|(hash, keys)| ((*hash).to_owned(), keys.iter().map(|it| (*it).to_owned()).collect()));
        Self { code: code.collect(), ..Self::default() }
    }

    /// A pod of a revision starts, which is the newest.
    fn roll(&mut self, hash: &str) {
        self.revisions.newest = BTreeSet::from([hash.to_owned()]);
        self.revisions.all.insert(hash.to_owned());
        self.start(hash, true);
    }

    fn start(&mut self, hash: &str, loads: bool) {
        self.queues.now += 1;
        self.ended.insert(hash.to_owned(), i64::MAX);
        self.since.entry(hash.to_owned()).or_insert(self.queues.now);
        if loads {
            for key in self.code[hash].clone() {
                self.queues.add(&key, 1);
            }
        }
    }

    fn end(&mut self, hash: &str) {
        self.ended.insert(hash.to_owned(), self.queues.now);
    }

    fn tick(&mut self, key: &str, hash: &str) {
        let code = self.code[hash].clone();
        self.queues.tick(key, &code);
    }

    /// The leader looks twice, and does what there is to do; gives what that was.
    fn look(&mut self) -> Vec<String> {
        let first = self.glance();
        first.into_iter().chain(self.glance()).collect()
    }

    fn glance(&mut self) -> Vec<String> {
        self.queues.now += 1;
        let now = self.queues.now;
        let heard = self.ended.iter().map(|(hash, at)| (hash.clone(), now.min(*at))).collect();
        let (schedules, vona) = (self.queues.schedules.clone(), self.queues.vona);
        let unknown =
            schedules.keys().filter(|key| !self.memory.knows(QUEUE, key)).map(|key| found(key, 7, vona)).collect();
        let read_since = self.memory.rolling_since(&self.revisions);
        let added = if let Some(since) = read_since {
            let from = since.max(self.read);
            self.read = now;
            self.queues.added.iter().filter(|added| added.at >= from).cloned().collect()
        } else {
            self.read = 0;
            Vec::new()
        };
        let seen = Seen { schedules, found: unknown, added };
        let queues = BTreeMap::from([(QUEUE.to_owned(), seen)]);
        let seen = Snapshot { now, heard, since: self.since.clone(), queues, whole: true, read_since };
        let missing: Vec<_> = self.memory.observe(&seen, &self.revisions).into_iter().map(|it| it.key).collect();
        for key in &missing {
            self.queues.add(key, 2);
        }
        missing
    }

    fn settle(&mut self) {
        self.queues.now += 2 * LIVES;
        self.look();
        self.look();
    }

    fn there(&self) -> Vec<&str> {
        self.queues.schedules.keys().map(String::as_str).collect()
    }
}

/// Revision `a` runs with a schedule `s` every 2 s, `b` has it every 3 s.
fn changed() -> (World, String, String) {
    let (old, new) = (key("s", 2_000), key("s", 3_000));
    let mut world = World::new(&[("a", &[&old]), ("b", &[&new])]);
    world.roll("a");
    world.look();
    world.settle();
    (world, old, new)
}

#[test]
fn what_an_old_pod_deletes_is_put_back() {
    let (mut world, old, new) = changed();
    world.roll("b");
    // Between two looks: the old pod takes the first tick of the new schedule.
    world.tick(&new, "a");
    world.tick(&old, "b");
    assert!(world.there().is_empty());
    assert_eq!(world.look(), std::slice::from_ref(&new));
    assert_eq!(world.look(), [""; 0]);
    world.tick(&new, "a");
    assert_eq!(world.look(), std::slice::from_ref(&new), "as often as it takes");
    world.end("a");
    world.tick(&new, "a");
    world.settle();
    assert_eq!(world.there(), [new]);
    assert_eq!(world.memory.revisions["b"], Phase::Settled);
}

#[test]
fn what_the_new_code_retires_is_not_put_back() {
    let (kept, gone) = (key("kept", 1), key("gone", 1));
    let mut world = World::new(&[("a", &[&kept, &gone]), ("b", &[&kept])]);
    world.roll("a");
    world.settle();
    world.roll("b");
    world.look();
    world.tick(&gone, "b");
    assert_eq!(world.look(), [""; 0]);
    world.tick(&kept, "a");
    world.end("a");
    world.settle();
    assert_eq!(world.there(), [kept]);
}

#[test]
fn an_old_pod_that_starts_again_brings_nothing_back() {
    let (mut world, old, new) = changed();
    world.roll("b");
    world.tick(&old, "b");
    world.look();
    world.start("a", true);
    assert!(world.there().contains(&&*old));
    world.look();
    world.tick(&old, "b");
    world.tick(&new, "a");
    assert_eq!(world.look(), std::slice::from_ref(&new));
    world.end("a");
    world.settle();
    assert_eq!(world.there(), [new]);
}

#[test]
fn what_takes_the_place_of_the_new_version_is_replaced() {
    let (mut world, old, new) = changed();
    world.queues.vona = true;
    world.roll("b");
    assert_eq!(world.there(), std::slice::from_ref(&new));
    world.look();
    world.start("a", true);
    assert_eq!(world.there(), std::slice::from_ref(&old));
    assert_eq!(world.look(), std::slice::from_ref(&new));
    world.tick(&new, "a");
    world.end("a");
    world.settle();
    assert_eq!(world.there(), [new]);
}

#[test]
fn what_the_code_before_declared_comes_back_with_it() {
    let (mut world, old, new) = changed();
    world.roll("b");
    world.look();
    world.tick(&old, "b");
    world.look();
    // Undone: the pods of the first revision never ended, and add nothing.
    world.revisions.newest = BTreeSet::from(["a".to_owned()]);
    world.end("b");
    assert_eq!(world.look(), std::slice::from_ref(&old));
    world.tick(&new, "a");
    world.tick(&old, "b");
    assert_eq!(world.look(), std::slice::from_ref(&old));
    world.settle();
    assert_eq!(world.there(), [old]);
}

#[test]
fn when_all_pods_are_of_one_revision_nothing_is_put_back() {
    let (mut world, old, _) = changed();
    world.queues.schedules.clear();
    assert_eq!(world.look(), [""; 0]);
    // Somebody has deleted it by hand, and then the next revision comes.
    world.roll("b");
    world.look();
    assert!(!world.there().contains(&&*old));
}

#[test]
fn a_leader_that_comes_in_the_middle_knows_as_much() {
    let (mut world, old, new) = changed();
    world.roll("b");
    world.look();
    world.tick(&new, "a");
    world.tick(&old, "b");
    let queues = serde_json::to_string(&world.memory.queues[QUEUE]).unwrap();
    let queue: Queue = serde_json::from_str(&queues).unwrap();
    world.memory.queues.insert(QUEUE.into(), queue);
    world.read = 0;
    assert_eq!(world.look(), [new]);
}

#[test]
fn nothing_is_learnt_from_pods_that_the_files_do_not_know_yet() {
    let (mut world, old, new) = changed();
    // The pod is there before the files say of which revision it is.
    world.start("b", true);
    world.tick(&new, "a");
    world.tick(&old, "b");
    assert_eq!(world.look(), [""; 0]);
    world.revisions = Revisions {
        newest: BTreeSet::from(["b".into()]),
        all: BTreeSet::from(["a".into(), "b".into()]),
        taken_over: BTreeSet::new(),
    };
    // What was added since the pod started is read now.
    assert_eq!(world.look(), [new]);
}

#[test]
fn what_revisions_declared_is_forgotten_with_them() {
    let (mut world, _, new) = changed();
    world.roll("b");
    world.end("a");
    world.settle();
    world.tick(&key("s", 2_000), "b");
    world.revisions.all.remove("a");
    world.look();
    let queue = &world.memory.queues[QUEUE];
    assert_eq!(queue.declared.keys().collect::<Vec<_>>(), ["b"]);
    assert_eq!(queue.templates.keys().collect::<Vec<_>>(), [&new]);
}

/// What happens in a rollout from `a` to `b`.
#[derive(Clone, Copy, Debug)]
enum Step {
    Look,
    Glance,
    Start,
    RestartOld,
    Tick(usize, bool),
    NewLeader,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Look),
        2 => Just(Step::Glance),
        1 => Just(Step::Start),
        1 => Just(Step::RestartOld),
        8 => (0_usize..6, any::<bool>()).prop_map(|(which, old)| Step::Tick(which, old)),
        1 => Just(Step::NewLeader),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Whatever pods and leaders do: in the end there is what the new code has, and nothing else for long.
    #[test]
    fn in_the_end_there_is_what_the_new_code_has(
        old in proptest::collection::btree_set(0_i64..6, 0..5),
        new in proptest::collection::btree_set(0_i64..6, 0..5),
        steps in proptest::collection::vec(step(), 0..40),
        vona in any::<bool>(),
    ) {
        // Two versions of each of three schedules; a code has one of each at most.
        let code = |numbers: &BTreeSet<i64>| -> BTreeSet<String> {
            let by_name: BTreeMap<i64, i64> = numbers.iter().map(|it| (it / 2, *it)).collect();
            by_name.into_iter().map(|(name, version)| key(&format!("s{name}"), version)).collect()
        };
        let all: Vec<String> = (0..6).map(|it| key(&format!("s{}", it / 2), it)).collect();
        let (old, new) = (code(&old), code(&new));
        let mut world = World { code: BTreeMap::from([("a".into(), old), ("b".into(), new.clone())]), ..World::default() };
        world.queues.vona = vona;
        world.roll("a");
        world.look();
        world.settle();
        world.roll("b");
        for step in steps {
            match step {
                Step::Look => _ = world.look(),
                Step::Glance => _ = world.glance(),
                Step::Start => world.start("b", true),
                Step::RestartOld => {
                    // Before an old pod starts again, its leader has looked.
                    world.look();
                    world.start("a", true);
                }
                Step::Tick(which, old) => world.tick(&all[which], if old { "a" } else { "b" }),
                Step::NewLeader => {
                    let memory = serde_json::to_string(&world.memory.queues).unwrap();
                    world.memory.queues = serde_json::from_str(&memory).unwrap();
                    world.read = 0;
                }
            }
        }
        world.end("a");
        world.settle();
        // Each stale schedule goes at its next tick, and stays away.
        for key in &all {
            world.tick(key, "b");
        }
        prop_assert_eq!(world.look(), Vec::<String>::new());
        prop_assert_eq!(world.there().into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), new);
    }
}
