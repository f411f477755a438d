//! All is well again: somebody leads within a bound, who waits costs nothing, and a leader hands over soon.

use cabloy_redlock::core::Event;
use cabloy_redlock::{Candidacy, Timing};

use crate::clock::{MS, Time};
use crate::foreign::Step;
use crate::plan::{Clocks, Memory};
use crate::truth::{Promise, Violation, broken};
use crate::world::{Due, PodId, World, nanos};

/// Once all is well somebody leads within so many of the longest ttls: a lock runs out, nodes without memory rest, and a
/// mark of a newer revision runs out, one after the other, and a try or two.
pub const SETTLES_WITHIN: u64 = 5;
/// A hand-over takes at most this part of a ttl, in percent; the median is far below.
pub const HANDS_OVER_WITHIN: u64 = 80;

impl World {
    pub(crate) fn settle(&mut self) -> Result<(), Violation> {
        self.all_is_well()?;
        let (since, ttl) = (self.now, nanos(self.longest_ttl));
        let bound = SETTLES_WITHIN * ttl + 100 * MS;
        self.until(bound, |world| world.leader().is_some())?;
        if self.leader().is_none() {
            return broken(Promise::Liveness, format!("nobody leads, {} ttls after all was well", bound / ttl));
        }
        self.outcome.tally.settled = part(self.now - since, ttl);
        // Stragglers from before arrive; then the nodes get their memory back.
        let ttl = nanos(self.plan.ttl);
        self.until(5 * ttl, |_| false)?;
        self.idle(ttl)?;
        self.hand_over(ttl)
    }

    pub(crate) fn all_is_well(&mut self) -> Result<(), Violation> {
        self.say(|| "all is well from now on".into());
        self.calm = true;
        self.release_all();
        // Clocks are set right, back too: only a memory that begins anew must not meet a time that was before.
        let newest = (0..self.nodes.len()).map(|node| self.shows(node).as_nanos()).max().unwrap_or_default();
        let goes_back = self.truth.losses == 0 && self.plan.memory != Memory::Any && !self.with_engine;
        let right = if goes_back { self.now } else { newest };
        for node in 0..self.nodes.len() {
            self.nodes[node].stalled = 0;
            self.node_up(node);
            let by = i64::try_from(i128::from(right) - i128::from(self.shows(node).as_nanos())).unwrap_or_default();
            if self.plan.clocks != Clocks::Kept && by != 0 {
                self.jump(node, by);
                // Nobody knows how long another client wanted its lock for: whoever sets a clock back has to see to it.
                for client in 0..self.foreign.len() {
                    self.foreign_step(Step::Unlock(client, node))?;
                }
            }
            let rate = self.nodes[node].clock.rate().clamp(-4500, 4500);
            self.nodes[node].clock.set_rate(self.now, rate);
        }
        let revision = self.pods.iter().map(|pod| pod.candidacy.revision).max().unwrap_or_default();
        for id in 0..self.pods.len() {
            self.resume(id)?;
            let rate = self.pods[id].clock.rate().clamp(-4500, 4500);
            self.pods[id].clock.set_rate(self.now, rate);
            for node in 0..self.nodes.len() {
                (self.links[id][node].mute, self.links[id][node].deaf) = (0, 0);
                self.plan_in(0, Due::Heal { pod: id, node });
            }
            if self.pods[id].alive {
                if self.pods[id].timing.ttl != self.plan.ttl {
                    self.retime(id, Timing { ttl: self.plan.ttl })?;
                }
                // Pods are of their own revisions where there is an app in them.
                let revision = if self.with_engine { self.pods[id].candidacy.revision } else { revision };
                self.stand(id, Candidacy { stands: true, revision })?;
            }
        }
        Ok(())
    }

    pub(crate) fn leader(&self) -> Option<PodId> {
        self.pods.iter().position(|pod| pod.believes(self.now))
    }

    /// Goes on until `done`, at most for `span`.
    pub(crate) fn until(&mut self, span: Time, done: impl Fn(&Self) -> bool) -> Result<(), Violation> {
        let end = self.now + span;
        self.plan_at(end, Due::Lull);
        while self.now < end && !done(self) {
            self.turn()?;
        }
        Ok(())
    }

    /// I8: while somebody leads, who waits sends each node at most one command a ttl.
    fn idle(&mut self, ttl: Time) -> Result<(), Violation> {
        let Some(leader) = self.leader() else { return Ok(()) };
        for pod in &mut self.pods {
            pod.sent.fill(0);
        }
        let ttls = 2;
        self.until(ttls * ttl, |world| world.leader() != Some(leader))?;
        if self.leader() != Some(leader) {
            return broken(Promise::Liveness, format!("a{leader} lost its lease while all was well"));
        }
        for (id, pod) in self.pods.iter().enumerate().filter(|(id, _)| *id != leader) {
            if pod.sent.iter().any(|sent| *sent > ttls) {
                return broken(Promise::IdleCost, format!("a{id} sent {:?} commands in {ttls} ttls", pod.sent));
            }
        }
        Ok(())
    }

    fn hand_over(&mut self, ttl: Time) -> Result<(), Violation> {
        // With one node gone two candidates can split the others between them.
        if self.nodes.len() > 1 && self.plan.far.is_none() && self.dice.chance(500) {
            let node = self.dice.place(self.nodes.len());
            self.nodes[node].down = true;
            for pod in 0..self.pods.len() {
                self.links[pod][node].up = false;
                self.step_if_alive(pod, Event::Down(node))?;
            }
        }
        for _ in 0..3 {
            let Some(leader) = self.leader() else { return Ok(()) };
            if self.pods.iter().filter(|pod| pod.alive).count() < 2 {
                return Ok(());
            }
            let candidacy = self.pods[leader].candidacy;
            self.stand(leader, Candidacy { stands: false, ..candidacy })?;
            let since = self.now;
            self.until(ttl / 100 * HANDS_OVER_WITHIN, |world| world.leader().is_some())?;
            if self.leader().is_none() {
                return broken(Promise::HandOver, format!("nobody leads {HANDS_OVER_WITHIN} % of a ttl later"));
            }
            self.outcome.tally.handed_over = self.outcome.tally.handed_over.max(part(self.now - since, ttl));
            self.stand(leader, candidacy)?;
            self.until(ttl / 2, |_| false)?;
        }
        Ok(())
    }

    fn step_if_alive(&mut self, pod: PodId, event: Event) -> Result<(), Violation> {
        if self.pods[pod].alive { self.step(pod, event) } else { Ok(()) }
    }
}

/// How often `of` goes into `span`.
#[expect(clippy::cast_precision_loss, reason = "told to people")]
fn part(span: Time, of: Time) -> f64 {
    span as f64 / of as f64
}
