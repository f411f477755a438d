//! What is to be written, what was written, and the calls that follow.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use cabloy_redlock::ledger::{Put, PutError};
use jiff::Timestamp;
use serde_json::json;

use super::startups::Startup;
use super::{Action, Core, Key, Kind, News, OpId, Start};
use crate::rule::Rule;
use crate::runs::{Attempt, Claimed, Run, between, plus, whole_ms};
use crate::schedule::{Line, Occasion, memory_id, parse_id};

/// By this part of a time the clocks of two agents part in it at most, as a lease has it.
const CLOCKS_PART: u32 = 100;

/// A claim that is to be sent, or on its way.
#[derive(Debug)]
struct Claim {
    key: Key,
    id: String,
    attempt: Attempt,
    /// From then on it is not called any more: by another agent's clock its deadline may have passed.
    call_until: Timestamp,
}

/// Claims before a majority has taken them.
#[derive(Debug, Default)]
pub(super) struct Claims {
    next: Vec<(Claim, Put)>,
    sent: BTreeMap<OpId, Vec<Claim>>,
}

impl Claims {
    pub(super) fn is_settled(&self) -> bool {
        self.sent.is_empty()
    }
}

/// A schedule whose memory is on its way.
#[derive(Debug)]
struct Saving {
    schedule: Arc<str>,
    /// Records that can go then.
    over: Vec<String>,
    /// The memory says that a schedule of the app's own is taken over.
    taken_over: bool,
}

/// What is remembered of schedules, and records that can go.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    /// Schedules whose memory is to be saved.
    unsaved: BTreeSet<Arc<str>>,
    /// Those whose memory is on its way.
    saving: Option<(OpId, Vec<Saving>)>,
    /// Records that can go as soon as their schedule's memory is saved.
    over: BTreeMap<Arc<str>, Vec<String>>,
    /// Records that can go.
    rubbish: Vec<String>,
}

impl Keeping {
    /// The run of the record is part of the memory of its schedule, which is to be saved.
    pub(super) fn over(&mut self, schedule: &Arc<str>, ids: impl IntoIterator<Item = String>) {
        self.over.entry(Arc::clone(schedule)).or_default().extend(ids);
    }

    /// Whether the memory of a schedule is to be saved; what is over can go at once if it is saved already.
    pub(super) fn note(&mut self, schedule: &Arc<str>, unsaved: bool) {
        if unsaved {
            self.unsaved.insert(Arc::clone(schedule));
        } else if let Some(over) = self.over.remove(schedule) {
            self.rubbish.extend(over);
        }
    }

    /// The schedule is in the files no more.
    pub(super) fn drop(&mut self, schedule: &Arc<str>) {
        self.unsaved.remove(schedule);
        self.over.remove(schedule);
    }

    pub(super) fn remove(&mut self, ids: impl IntoIterator<Item = String>) {
        self.rubbish.extend(ids);
    }
}

impl Core {
    /// Has an attempt claimed in the next round.
    pub(super) fn claim(&mut self, key: Key, id: String, number: u32, timeout: Duration, now: Timestamp) {
        self.last_nonce += 1;
        let nonce = format!("{}-{}", self.config.nonces, self.last_nonce);
        let deadline = whole_ms(plus(now, timeout));
        let (pod, uid) = (self.config.pod.clone(), self.config.uid.clone());
        let claimed = Claimed { at: whole_ms(now), deadline, pod, uid };
        if let Some(run) = self.run_mut(&key, &id) {
            let attempt = Attempt { number, nonce: nonce.clone(), deadline };
            run.claiming(attempt.clone());
            let put = Put { id: id.clone(), attempt: number, nonce, data: json!(claimed) };
            let call_until = plus(now, timeout.saturating_sub(timeout / CLOCKS_PART));
            self.claims.next.push((Claim { key, id, attempt, call_until }, put));
        }
    }

    /// Sends what has come together: claims in one round, memories in another, and what can go.
    pub(super) fn send(&mut self) {
        if !self.claims.next.is_empty() {
            let (claims, puts): (Vec<_>, Vec<_>) = mem::take(&mut self.claims.next).into_iter().unzip();
            let op = self.next_op();
            self.claims.sent.insert(op, claims);
            self.actions.push(Action::Put { op, puts });
        }
        if self.keeping.saving.is_none() && !self.keeping.unsaved.is_empty() {
            self.save();
        }
        if !self.keeping.rubbish.is_empty() {
            self.actions.push(Action::Forget(mem::take(&mut self.keeping.rubbish)));
        }
    }

    fn save(&mut self) {
        let (mut saving, mut puts) = (Vec::new(), Vec::new());
        for name in mem::take(&mut self.keeping.unsaved) {
            let Some(memory) = self.lines.get_mut(&name).and_then(Line::take_unsaved) else { continue };
            puts.push(Put { id: memory_id(&name), attempt: 0, nonce: "m".to_owned(), data: json!(memory) });
            let taken_over = self.lines.get(&name).is_some_and(Line::has_taken_over);
            let over = self.keeping.over.remove(&name).unwrap_or_default();
            saving.push(Saving { schedule: name, over, taken_over });
        }
        if !puts.is_empty() {
            let op = self.next_op();
            self.keeping.saving = Some((op, saving));
            self.actions.push(Action::Put { op, puts });
        }
    }

    pub(super) fn take_results(&mut self, op: OpId, results: Vec<Result<(), PutError>>, now: Timestamp) {
        if let Some(claims) = self.claims.sent.remove(&op) {
            for (claim, result) in claims.into_iter().zip(results) {
                let key = claim.key.clone();
                self.take_claim(claim, result, now);
                self.step_key(&key, now);
            }
        } else if let Some((_, saving)) = self.keeping.saving.take_if(|(saving, _)| *saving == op) {
            self.take_saved(saving, &results, now);
        }
    }

    /// Has the app called if the claim has come through.
    fn take_claim(
        &mut self,
        Claim { key, id, attempt, call_until }: Claim,
        result: Result<(), PutError>,
        now: Timestamp,
    ) {
        let (is_given_up, rules) = (self.is_given_up(&key, &id), self.config.rules);
        let Some(run) = self.run_mut(&key, &id).filter(|run| run.attempt() == Some(&attempt)) else {
            self.tell(News::Dropped(id.clone()));
            return self.disown(id, attempt);
        };
        match result {
            // It is not called, and stopped as any other attempt.
            Ok(()) if is_given_up => run.in_doubt(),
            // Whoever claimed it stood still meanwhile: another attempt may have begun.
            Ok(()) if call_until <= now && rules.hold(Rule::InTime) => {
                run.in_doubt();
                self.disown(id, attempt);
            }
            Ok(()) => self.call(&key, &id, now),
            Err(PutError::AlreadyDone(result)) => run.refused(&result),
            Err(_) if !rules.hold(Rule::ClaimFirst) => self.call(&key, &id, now),
            Err(_) => {
                run.in_doubt();
                self.disown(id, attempt);
            }
        }
    }

    /// Whether a newer tick takes the place of the run `id`.
    fn is_given_up(&self, key: &Key, id: &str) -> bool {
        matches!(key, Key::Schedule(name) if self.lines.get(name).is_some_and(|line| line.is_given_up(id)))
    }

    /// Has the app called for the run `id`, whose claim has come through.
    fn call(&mut self, key: &Key, id: &str, now: Timestamp) {
        let Some(attempt) = self.run_mut(key, id).and_then(Run::begun_here).cloned() else { return };
        let start = match key {
            Key::Schedule(name) => {
                let Some(line) = self.lines.get(name) else { return };
                let Some((_, Some(occasion))) = parse_id(id) else { return };
                let time = match occasion {
                    Occasion::Tick(tick) | Occasion::Backfill { tick, .. } => tick,
                    Occasion::Trigger(_) => whole_ms(now),
                };
                let first = occasion.tick().filter(|_| attempt.number == 1);
                Start {
                    id: id.to_owned(),
                    kind: Kind::Schedule,
                    name: Arc::clone(name),
                    run: occasion.name(),
                    time,
                    attempt,
                    lateness: first.map(|tick| between(line.due(tick), now)),
                    asks: false,
                    target: line.target(&occasion),
                }
            }
            Key::Startup(name) => {
                let Some(Startup { task, .. }) = self.startups.get(name) else { return };
                Start {
                    id: id.to_owned(),
                    kind: Kind::Startup,
                    name: Arc::clone(name),
                    run: task.revision.clone(),
                    time: now,
                    attempt,
                    lateness: None,
                    asks: false,
                    target: task.startup.target.clone(),
                }
            }
            Key::Poll | Key::Sweep => return,
        };
        self.actions.push(Action::Call(Box::new(start)));
    }

    /// Memories are saved, and what they say is over can go. Left behind it would be harmless: the next leader removes it.
    fn take_saved(&mut self, saving: Vec<Saving>, results: &[Result<(), PutError>], now: Timestamp) {
        for (Saving { schedule: name, over, taken_over }, result) in saving.into_iter().zip(results) {
            if result.is_ok() {
                self.keeping.rubbish.extend(over);
                if taken_over
                    && self.handovers.remove(&name).is_some()
                    && let Some(line) = self.lines.get_mut(&name)
                {
                    line.begin();
                    self.tell(News::TakenOver(Arc::clone(&name)));
                    self.step_key(&Key::Schedule(name), now);
                }
            } else if let Some(line) = self.lines.get_mut(&name) {
                line.not_saved();
                self.keeping.over(&name, over);
                self.keeping.unsaved.insert(name);
            }
        }
    }

    /// Says of the claims on their way that they have not begun: nothing is called for them any more.
    pub(super) fn give_up(&mut self) {
        for Claim { key, id, attempt, .. } in mem::take(&mut self.claims.sent).into_values().flatten() {
            let Some(run) = self.run_mut(&key, &id).filter(|run| run.attempt() == Some(&attempt)) else { continue };
            run.in_doubt();
            self.disown(id, attempt);
        }
    }

    /// Claims nothing any more.
    pub(super) fn hold(&mut self) {
        self.held = true;
        if self.config.rules.hold(Rule::DisownUncalled) {
            return;
        }
        let runs = self.lines.values().flat_map(Line::runs).map(|(_, run)| run);
        let running = runs.filter(|run| !run.is_elsewhere() && run.claim_on_its_way().is_none());
        let running: Vec<_> = running.filter_map(|run| Some((run.id.clone(), run.running()?.clone()))).collect();
        for (id, attempt) in running {
            self.disown(id, attempt);
        }
    }

    /// Says of an attempt that is not called, and will not be, that it has not begun.
    fn disown(&mut self, id: String, attempt: Attempt) {
        if self.config.rules.hold(Rule::Disown) {
            self.actions.push(Action::Disown { id, attempt });
        }
    }
}
