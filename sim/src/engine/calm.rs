//! All is well again: leaders change, also while a claim is on its way or a call is made, and nothing is lost by that.

use super::{EVENTS, watch};
use crate::clock::{MS, Time};
use crate::settle::SETTLES_WITHIN;
use crate::truth::{Promise, Violation, broken};
use crate::world::{World, nanos};

/// For how many ttls whatever was begun or waits may go on at most.
const ENDS_WITHIN: Time = 60;

/// How long it takes at most until an agent has begun, has asked its app, and has recorded what it was told.
const ASKS_WITHIN: Time = 50 * MS;

impl World {
    pub(crate) fn engine_settles(&mut self) -> Result<(), Violation> {
        self.all_is_well()?;
        self.scene.weights = [0; EVENTS.len()];
        for pod in 0..self.pods.len() {
            if self.desks[pod].app.down {
                let life = self.desks[pod].app.life;
                self.app_is_up(pod, life)?;
            }
        }
        let file = cabloy_crds::files::AgentFile::clone(&self.file);
        self.publish(file);
        let ttl = nanos(self.longest_ttl);
        let bound = SETTLES_WITHIN * ttl + 100 * MS;
        self.until(bound, |world| world.leader().is_some())?;
        if self.leader().is_none() {
            return broken(Promise::Liveness, format!("nobody leads, {} ttls after all was well", bound / ttl));
        }
        // Stragglers from before arrive, nodes get their memory back, and gates open.
        self.until(5 * ttl, |_| false)?;
        self.until(ENDS_WITHIN * ttl, World::is_open)?;
        if !self.is_open() {
            return broken(Promise::GateOpens, format!("no leader's gate is open after {ENDS_WITHIN} ttls"));
        }
        self.now_by_median();
        self.watch.all_is_well();
        for _ in 0..3 {
            self.hands_over_when(ttl, |world, pod| !world.desks[pod].is_settled())?;
            self.hands_over_when(ttl, |world, pod| world.desks[pod].is_calling())?;
        }
        for _ in 0..3 {
            self.is_killed_at_work(ttl)?;
        }
        for _ in 0..4 {
            self.until(ttl, World::is_busy)?;
            self.edit();
            self.until(ttl / 2, |_| false)?;
        }
        let end = self.now_by_median();
        let end = watch::time(end - i128::from(ttl));
        let waited = self.now + ENDS_WITHIN * ttl;
        while self.none_is_lost(end).is_err() && self.now < waited {
            self.until(ttl, |_| false)?;
        }
        self.none_is_lost(end)
    }

    /// The gate of who leads is open.
    fn is_open(&self) -> bool {
        self.leader().is_some_and(|pod| self.desks[pod].gate.is_open())
    }

    /// A claim of the leader's is on its way, or a call is made.
    fn is_busy(&self) -> bool {
        self.leader().is_some_and(|pod| !self.desks[pod].is_settled() || self.desks[pod].is_calling())
    }

    /// The process of the leader ends while its app works for it, and another one begins at once: what the app remembers it
    /// is in time to ask about.
    fn is_killed_at_work(&mut self, ttl: Time) -> Result<(), Violation> {
        let is_at_work = |world: &Self, pod: usize| world.desks[pod].is_settled() && world.desks[pod].is_calling();
        self.until(2 * ttl, |world| world.leader().is_some_and(|pod| is_at_work(world, pod)))?;
        let Some(leader) = self.leader().filter(|pod| is_at_work(self, *pod)) else { return Ok(()) };
        let soon = watch::time(self.now_by_median() + self.slack() + i128::from(ASKS_WITHIN));
        let untold = self.desks[leader].calls().filter(|it| !it.target.remembers_runs() || it.attempt.deadline < soon);
        let untold = untold.map(|it| it.attempt.nonce.clone()).collect();
        self.watch.are_untold(&untold);
        self.restart_agent(leader, 5 * MS);
        self.until(2 * ttl, |world| world.leader().is_some())
    }

    /// The leader hands over at such a moment, if there is one soon.
    fn hands_over_when(&mut self, ttl: Time, when: impl Fn(&Self, usize) -> bool) -> Result<(), Violation> {
        self.until(2 * ttl, |world| world.leader().is_some_and(|pod| when(world, pod)))?;
        let Some(leader) = self.leader() else { return Ok(()) };
        let candidacy = self.pods[leader].candidacy;
        self.stand(leader, cabloy_redlock::Candidacy { stands: false, ..candidacy })?;
        self.until(ttl / 2, |_| false)?;
        self.stand(leader, candidacy)?;
        self.until(2 * ttl, |world| world.leader().is_some())
    }
}
