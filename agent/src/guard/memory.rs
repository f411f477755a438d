//! What the guard remembers, and what it makes of what it sees. Pure.
//!
//! The question is which schedules the newest code wants. Only the app knows its configuration, but its pods show it: a pod
//! that starts adds the schedules of its code, and a pod that takes a tick of a schedule which its code does not have
//! deletes the schedule. So:
//!
//! * While pods of a newest revision are all there are, what is there is what the revision declares, and what is deleted is
//!   retired by its own code. Nothing is put back.
//! * From when the first pod of another revision starts until the last pod of an older one has ended, the newest revision
//!   rolls out. What is added then is declared by it, unless a revision declares it whose pods run as well: that is an old
//!   pod which started again. What a rolling revision declares and is not there was deleted by an old pod: it is put back.
//! * A schedule that was there before, and that the new code has no more, is declared by no rolling revision.
//! * A revision that comes back (`rollout undo`) declares what it did: its pods that never ended add nothing again.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::repeat::{Found, Template, name_of, split_id};

/// A pod counts as running for so long after it was last heard of, in milliseconds.
pub const LIVES: i64 = 10_000;

/// Where a revision stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Its first pod started then, in milliseconds since the Unix epoch by the clock of Redis, and pods of older ones run,
    /// or have until a moment ago.
    Rolling(i64),
    /// All pods are of it, or were when it became so.
    Settled,
    /// There is a newer one of its workload.
    Old,
}

/// What is remembered of a queue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Queue {
    /// What the jobs of each schedule are like, by its key.
    pub templates: BTreeMap<String, Template>,
    /// The schedules that each revision declares: by the revision's hash and the schedule's name, the key.
    pub declared: BTreeMap<String, BTreeMap<String, String>>,
    /// The last tick that was seen of each schedule. It says when the next one is, by the app's own reckoning.
    #[serde(skip)]
    pub last: BTreeMap<String, i64>,
}

/// All that is remembered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// The revisions that are known, by hash.
    pub revisions: BTreeMap<String, Phase>,
    /// The queues, by name.
    pub queues: BTreeMap<String, Queue>,
}

/// What the files say of revisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revisions {
    /// Those that are the newest of their workloads.
    pub newest: BTreeSet<String>,
    /// All that are known.
    pub all: BTreeSet<String>,
    /// Schedules, as [`Dialect::bean`](super::dialect::Dialect::bean) names them, that others are run in the place of: nobody
    /// wants them back.
    pub taken_over: BTreeSet<String>,
}

/// What there is to see at a time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// When, in milliseconds since the Unix epoch by the clock of Redis.
    pub now: i64,
    /// When a pod of each revision was last heard of.
    pub heard: BTreeMap<String, i64>,
    /// When the first pod of each revision was first heard of.
    pub since: BTreeMap<String, i64>,
    /// The queues, by name.
    pub queues: BTreeMap<String, Seen>,
    /// Whether these are all queues: to find them takes a while.
    pub whole: bool,
    /// Since when all jobs that were added have been looked at, now or before.
    pub read_since: Option<i64>,
}

impl Snapshot {
    /// Whether pods of a revision ran at a time, which is not before their first start.
    #[must_use]
    pub fn lives(&self, hash: &str, at: i64) -> bool {
        self.heard.get(hash).is_some_and(|heard| at.saturating_sub(*heard) < LIVES)
    }
}

/// What there is to see of a queue.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// The schedules, by key, and the next tick of each.
    pub schedules: BTreeMap<String, i64>,
    /// Jobs of schedules that were not known yet.
    pub found: Vec<Found>,
    /// Jobs that were added since the last time, in order.
    pub added: Vec<Added>,
}

/// A job that was added.
#[derive(Clone, Debug, PartialEq)]
pub struct Added {
    /// When, in milliseconds since the Unix epoch by the clock of Redis.
    pub at: i64,
    /// Its id.
    pub id: String,
    /// What it is; none if it has been removed since.
    pub found: Option<Found>,
}

/// A schedule that is to be put back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Missing {
    /// The queue.
    pub queue: String,
    /// The schedule's key.
    pub key: String,
}

impl Memory {
    /// Takes in what there is to see; gives the schedules that are missing.
    pub fn observe(&mut self, seen: &Snapshot, revisions: &Revisions) -> Vec<Missing> {
        self.follow_revisions(seen, revisions);
        for (name, of_queue) in &seen.queues {
            self.learn(name, of_queue, seen);
        }
        let missing = self.missing(seen, revisions);
        let only_newest = seen.heard.keys().all(|hash| revisions.newest.contains(hash) || !seen.lives(hash, seen.now));
        if only_newest && missing.is_empty() && seen.whole {
            for hash in &revisions.newest {
                let phase = self.revisions.get_mut(hash);
                if let Some(phase) = phase.filter(|phase| may_settle(**phase, seen)) {
                    *phase = Phase::Settled;
                }
            }
        }
        if only_newest && revisions.newest.iter().all(|hash| self.revisions.get(hash) == Some(&Phase::Settled)) {
            for (name, seen) in &seen.queues {
                let queue = self.queues.entry(name.clone()).or_default();
                for hash in &revisions.newest {
                    queue.declare_all(hash, &seen.schedules);
                }
            }
        }
        self.forget(seen, revisions);
        missing
    }

    /// A schedule cannot be put back: it is wanted no more.
    pub fn give_up(&mut self, missing: &Missing) {
        if let Some(queue) = self.queues.get_mut(&missing.queue) {
            queue.declared.values_mut().for_each(|declared| declared.retain(|_, key| *key != missing.key));
        }
    }

    /// Since when jobs that are added matter: none while they do not.
    #[must_use]
    pub fn rolling_since(&self, revisions: &Revisions) -> Option<i64> {
        self.rolling(revisions).map(|(since, _)| since).min()
    }

    /// Whether it is known what the jobs of a schedule are like.
    #[must_use]
    pub fn knows(&self, queue: &str, key: &str) -> bool {
        self.queues.get(queue).is_some_and(|queue| queue.templates.contains_key(key))
    }

    /// The newest revisions that roll out, and since when.
    fn rolling<'a>(&'a self, revisions: &'a Revisions) -> impl Iterator<Item = (i64, &'a str)> {
        revisions.newest.iter().filter_map(|hash| match self.revisions.get(hash)? {
            Phase::Rolling(since) => Some((*since, hash.as_str())),
            Phase::Settled | Phase::Old => None,
        })
    }

    fn follow_revisions(&mut self, seen: &Snapshot, revisions: &Revisions) {
        for hash in &revisions.all {
            let phase = self.revisions.get(hash).copied();
            let now = match (revisions.newest.contains(hash), phase) {
                (false, _) => Phase::Old,
                (true, Some(phase @ (Phase::Rolling(_) | Phase::Settled))) => phase,
                (true, None) => Phase::Rolling(seen.since.get(hash).copied().unwrap_or(seen.now)),
                (true, Some(Phase::Old)) => Phase::Rolling(seen.now),
            };
            self.revisions.insert(hash.clone(), now);
        }
    }

    fn learn(&mut self, name: &str, seen: &Seen, snapshot: &Snapshot) {
        let revisions = &self.revisions;
        let queue = self.queues.entry(name.to_owned()).or_default();
        for found in seen.found.iter().chain(seen.added.iter().filter_map(|added| added.found.as_ref())) {
            queue.templates.entry(found.key.clone()).or_insert_with(|| found.template.clone());
        }
        for (key, tick) in &seen.schedules {
            queue.saw(key, *tick);
        }
        for Added { at, id, found } in &seen.added {
            let Some((ids, tick)) = split_id(id) else { continue };
            let known = found.as_ref().map(|found| &found.key).or_else(|| queue.key_of(ids));
            let Some(key) = known.cloned() else { continue };
            queue.saw(&key, tick);
            // Only the first of its kind was added by a pod that started; the others by taking the one before.
            if found.as_ref().is_none_or(|found| found.count != 1) {
                continue;
            }
            let newest = revisions.iter().filter_map(|(hash, phase)| match phase {
                Phase::Rolling(since) if since <= at => Some((*since, hash)),
                _ => None,
            });
            let Some((_, newest)) = newest.max() else { continue };
            let of_others = queue.declared.iter().any(|(hash, declared)| {
                let rolls = matches!(revisions.get(hash), Some(Phase::Rolling(_)));
                snapshot.lives(hash, *at) && !rolls && declared.get(name_of(&key)) == Some(&key)
            });
            if !of_others {
                queue.declared.entry(newest.clone()).or_default().insert(name_of(&key).to_owned(), key);
            }
        }
    }

    /// What rolling revisions declare and is not there. Of two versions of a schedule the one that rolls later has it.
    fn missing(&self, seen: &Snapshot, revisions: &Revisions) -> Vec<Missing> {
        let mut rolling: Vec<_> = self.rolling(revisions).collect();
        rolling.sort_unstable();
        let mut missing = Vec::new();
        for (name, seen) in &seen.queues {
            let Some(queue) = self.queues.get(name) else { continue };
            let declared = rolling.iter().filter_map(|(_, hash)| queue.declared.get(*hash)).flatten();
            let wanted: BTreeMap<_, _> = declared.collect();
            let is_wanted =
                |name: &str| name.split_once('.').is_none_or(|(_, schedule)| !revisions.taken_over.contains(schedule));
            let wanted = wanted.into_iter().filter(|(name, _)| is_wanted(name)).map(|(_, key)| key);
            let gone = wanted.filter(|key| !seen.schedules.contains_key(*key));
            missing.extend(gone.map(|key| Missing { queue: name.clone(), key: key.clone() }));
        }
        missing
    }

    fn forget(&mut self, seen: &Snapshot, revisions: &Revisions) {
        self.revisions.retain(|hash, _| revisions.all.contains(hash));
        for (name, queue) in &mut self.queues {
            let here = seen.queues.get(name);
            queue.declared.retain(|hash, _| self.revisions.contains_key(hash));
            let declared: BTreeSet<_> = queue.declared.values().flat_map(BTreeMap::values).collect();
            let matters =
                |key: &String| declared.contains(key) || here.is_some_and(|it| it.schedules.contains_key(key));
            queue.templates.retain(|key, _| matters(key));
            queue.last.retain(|key, _| matters(key));
        }
        self.queues.retain(|name, queue| *queue != Queue::default() || seen.queues.contains_key(name));
    }
}

impl Queue {
    /// The key of the schedule whose jobs' ids begin so, unless there are several: versions of one.
    fn key_of(&self, ids: &str) -> Option<&String> {
        let mut keys = self.templates.iter().filter_map(|(key, template)| (template.ids == ids).then_some(key));
        keys.next().filter(|_| keys.next().is_none())
    }

    fn saw(&mut self, key: &str, tick: i64) {
        match self.last.get_mut(key) {
            Some(last) => *last = tick.max(*last),
            None => _ = self.last.insert(key.to_owned(), tick),
        }
    }

    /// A revision declares what there is. There may be a version that the code has no more: it is there until its next
    /// tick, and known only by then.
    fn declare_all(&mut self, hash: &str, schedules: &BTreeMap<String, i64>) {
        let before = self.declared.remove(hash).unwrap_or_default();
        let mut declared = BTreeMap::new();
        for key in schedules.keys() {
            let name = name_of(key);
            if before.get(name) == Some(key) || !declared.contains_key(name) {
                declared.insert(name.to_owned(), key.clone());
            }
        }
        self.declared.insert(hash.to_owned(), declared);
    }
}

/// Whether all that a rolling revision has added is known, and its first pod is not just starting.
fn may_settle(phase: Phase, seen: &Snapshot) -> bool {
    let Phase::Rolling(since) = phase else { return false };
    seen.read_since.is_some_and(|read| read <= since) && seen.now.saturating_sub(since) >= LIVES
}

#[cfg(test)]
mod tests;
