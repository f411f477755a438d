//! What agents ask of the ledger: they claim, record results, look and forget, as the schedule engine would, and worse.

use cabloy_redlock::core::{Event, OpId};
use cabloy_redlock::ledger::{FinishError, Put, PutError, ReadError};
use cabloy_redlock::record::{Record, RunResult};
use serde_json::json;

use crate::engine;
use crate::truth::{Ballot, Promise, Violation, broken};
use crate::world::{Check, Due, PodId, World};

/// What was asked, and what was so before.
#[derive(Debug)]
pub(crate) enum Asked {
    Put(Vec<Claim>, Before),
    Finish {
        run: String,
        nonce: String,
        done: bool,
        losses: u64,
    },
    Look {
        ids: Vec<String>,
        claims: Vec<Option<Ballot>>,
        before: Before,
    },
    Forget,
    /// By the engine.
    Engine(engine::Asked),
}

#[derive(Debug)]
pub(crate) struct Claim {
    run: String,
    nonce: String,
    ballot: Ballot,
    /// It writes what is there once more, and starts nothing.
    again: bool,
}

/// What was so when something was asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Before {
    /// So many results were recorded.
    recorded: usize,
    /// So often a majority's memory was lost.
    losses: u64,
}

impl World {
    /// Somebody asks something.
    pub(crate) fn work(&mut self) -> Result<(), Violation> {
        if self.calm {
            return Ok(());
        }
        let next = self.around(self.plan.work);
        self.plan_in(next, Due::Work);
        self.ask()
    }

    pub(crate) fn ask(&mut self) -> Result<(), Violation> {
        if self.calm {
            return Ok(());
        }
        let leader = (0..self.pods.len()).find(|pod| self.pods[*pod].believes(self.now));
        let any = self.dice.place(self.pods.len());
        // A former leader asks as well as the present one.
        let id = if self.dice.chance(700) { leader.unwrap_or(any) } else { any };
        if self.pods[id].stopped || !self.pods[id].alive {
            return Ok(());
        }
        match self.dice.below(10) {
            0..4 => self.claim(id),
            4..7 => self.finish(id),
            7..9 => self.look(id),
            _ if self.dice.chance(200) => self.forget(id),
            _ => Ok(()),
        }
    }

    fn some_run(&mut self) -> String {
        format!("r{}", self.first_run + self.dice.below(self.plan.runs as u64))
    }

    pub(crate) fn next_op(&mut self) -> OpId {
        self.last_op += 1;
        self.last_op
    }

    fn before(&self) -> Before {
        Before { recorded: self.truth.recorded(), losses: self.truth.losses }
    }

    /// The next attempt at one or some runs, or what is known of them once more.
    fn claim(&mut self, id: PodId) -> Result<(), Violation> {
        let Some(token) = self.pods[id].token.filter(|_| self.pods[id].believes(self.now)) else { return Ok(()) };
        let op = self.next_op();
        let mut attempts = Vec::new();
        for _ in 0..self.dice.one_of(&[1, 1, 1, 3]) {
            let run = self.some_run();
            let again = self.pods[id].records.contains_key(&run) && self.dice.chance(200);
            attempts.push(self.attempt(id, (token, op), run, again));
        }
        self.put(id, (token, op), attempts)
    }

    /// A leader claims the next attempt at this run: by which operation.
    pub(crate) fn claim_run(&mut self, id: PodId, run: &str) -> Result<OpId, Violation> {
        let op = self.next_op();
        if let Some(token) = self.pods[id].token {
            let attempt = self.attempt(id, (token, op), run.to_owned(), false);
            self.put(id, (token, op), vec![attempt])?;
        }
        Ok(op)
    }

    /// The next attempt at a run, or what is known of it once `again`.
    fn attempt(&mut self, id: PodId, (token, op): Ballot, run: String, again: bool) -> (Claim, Put) {
        let (attempt, nonce, data) = match self.pods[id].records.get(&run) {
            Some(known) if again => (known.attempt, known.nonce.clone(), known.data.clone()),
            known => {
                let attempt = known.map_or(0, |known| known.attempt) + 1;
                (attempt, format!("{run}.{attempt}.{token}.{op}"), json!([token, op]))
            }
        };
        self.say(|| format!("a{id} {} {nonce} (op {op})", if again { "writes again" } else { "claims" }));
        let claim = Claim { run: run.clone(), nonce: nonce.clone(), ballot: (token, op), again };
        (claim, Put { id: run, attempt, nonce, data })
    }

    fn put(&mut self, id: PodId, (token, op): Ballot, attempts: Vec<(Claim, Put)>) -> Result<(), Violation> {
        let (claims, puts) = attempts.into_iter().unzip();
        let before = self.before();
        self.pods[id].asked.insert(op, Asked::Put(claims, before));
        self.step(id, Event::Put { op, token, puts })
    }

    pub(crate) fn put_decided(
        &mut self,
        id: PodId,
        op: OpId,
        results: Vec<Result<(), PutError>>,
    ) -> Result<(), Violation> {
        let (claims, before) = match self.pods[id].asked.remove(&op) {
            Some(Asked::Put(claims, before)) => (claims, before),
            Some(Asked::Engine(engine::Asked::Put { token, op })) => {
                self.engine_put(id, token, op, results);
                return Ok(());
            }
            _ => return broken(Promise::Answered, format!("put {op} was not asked")),
        };
        for (Claim { run, nonce, ballot, again }, result) in claims.into_iter().zip(results) {
            self.say(|| format!("a{id} {nonce}: {result:?}"));
            // What was asked before a loss is of the time around it.
            if result.is_err() || again || before.losses != self.truth.losses {
                continue;
            }
            self.outcome.tally.claims += 1;
            self.truth.started(&run, ballot, &nonce, before.recorded)?;
            let stored = self.stored.get(&nonce).copied().unwrap_or_default();
            if self.check == Check::All && (stored.count_ones() as usize) < self.plan.majority() {
                return broken(Promise::ClaimMajority, format!("{nonce} started below a majority"));
            }
        }
        Ok(())
    }

    /// A result for an attempt that somebody knows of.
    fn finish(&mut self, id: PodId) -> Result<(), Violation> {
        let run = self.some_run();
        let other = self.dice.place(self.pods.len());
        let known = self.pods[id].records.get(&run).or_else(|| self.pods[other].records.get(&run));
        let Some(nonce) = known.map(|known| known.nonce.clone()) else { return Ok(()) };
        let done = self.dice.chance(400);
        self.finish_run(id, run, nonce, done).map(|_| ())
    }

    /// Somebody records how an attempt ended: by which operation.
    pub(crate) fn finish_run(&mut self, id: PodId, run: String, nonce: String, done: bool) -> Result<OpId, Violation> {
        let op = self.next_op();
        self.say(|| format!("a{id} finishes {nonce}{} (op {op})", if done { ", done" } else { "" }));
        let losses = self.truth.losses;
        self.pods[id].asked.insert(op, Asked::Finish { run: run.clone(), nonce: nonce.clone(), done, losses });
        self.step(id, Event::Finish { op, id: run, result: RunResult { nonce, done, data: json!(id) } })?;
        Ok(op)
    }

    pub(crate) fn finish_decided(
        &mut self,
        id: PodId,
        op: OpId,
        result: Result<(), FinishError>,
    ) -> Result<(), Violation> {
        let (run, nonce, done, losses) = match self.pods[id].asked.remove(&op) {
            Some(Asked::Finish { run, nonce, done, losses }) => (run, nonce, done, losses),
            Some(Asked::Engine(asked)) => return self.engine_recorded(id, asked, result),
            _ => return broken(Promise::Answered, format!("finish {op} was not asked")),
        };
        let recorded = result.is_ok();
        self.say(|| format!("a{id} {} the result of {nonce}", if recorded { "has recorded" } else { "gives up" }));
        if recorded && losses == self.truth.losses {
            self.outcome.tally.results += 1;
            self.truth.finished(&run, &nonce, done);
            // Done runs stay for a while: nobody may claim them.
            if self.truth.is_done(&run) && self.dice.chance(300) {
                self.first_run += 1;
            }
        }
        Ok(())
    }

    fn look(&mut self, id: PodId) -> Result<(), Violation> {
        let ids = vec![self.some_run()];
        let claims = ids.iter().map(|id| self.truth.newest(id)).collect();
        let op = self.next_op();
        let before = self.before();
        self.pods[id].asked.insert(op, Asked::Look { ids: ids.clone(), claims, before });
        self.say(|| format!("a{id} looks (op {op})"));
        self.step(id, Event::Look { op, ids: Some(ids) })
    }

    pub(crate) fn look_decided(
        &mut self,
        id: PodId,
        op: OpId,
        found: Result<Vec<Record>, ReadError>,
    ) -> Result<(), Violation> {
        let (ids, claims, before) = match self.pods[id].asked.remove(&op) {
            Some(Asked::Look { ids, claims, before }) => (ids, claims, before),
            Some(Asked::Engine(asked)) => return self.engine_read(id, &asked, found),
            _ => return broken(Promise::Answered, format!("look {op} was not asked")),
        };
        match found {
            Ok(records) if before.losses == self.truth.losses => {
                self.truth.looked(&ids, &records, before.recorded, &claims)
            }
            _ => Ok(()),
        }
    }

    fn forget(&mut self, id: PodId) -> Result<(), Violation> {
        let Some(token) = self.pods[id].token.filter(|_| self.pods[id].believes(self.now)) else { return Ok(()) };
        let run = format!("r{}", self.first_run);
        self.first_run += 1;
        let op = self.next_op();
        self.truth.forget(&run);
        self.say(|| format!("a{id} forgets {run} (op {op})"));
        self.pods[id].asked.insert(op, Asked::Forget);
        self.step(id, Event::Forget { op, token, ids: vec![run] })
    }
}
