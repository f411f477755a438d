//! When to stop putting our part back into a workload that somebody keeps taking it out of.

use std::time::{Duration, Instant};

/// So many removals …
const LIMIT: usize = 3;

/// … within this time are enough.
const WINDOW: Duration = Duration::from_mins(10);

/// What is remembered of one workload.
#[derive(Clone, Debug, Default)]
pub struct Removals {
    /// Whether our part was there when we last looked.
    present: bool,
    /// When it had been taken out.
    times: Vec<Instant>,
    /// The generation of the resource at which we gave up: an edited resource is a new try.
    given_up: Option<i64>,
}

impl Removals {
    /// Takes in what a look at the workload shows, and says whether our part may be put back.
    ///
    /// `present` is whether our part is there, and `generation` the one of the resource.
    pub fn look(&mut self, present: bool, generation: i64, now: Instant) -> bool {
        if self.given_up.is_some_and(|at| at != generation) {
            *self = Self::default();
        }
        if self.present && !present {
            self.times.retain(|time| now.duration_since(*time) < WINDOW);
            self.times.push(now);
            if self.times.len() >= LIMIT {
                self.given_up = Some(generation);
            }
        }
        self.present = present;
        self.given_up.is_none()
    }

    /// Our part was put in.
    pub fn applied(&mut self) {
        self.present = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    /// Takes our part out `seconds` after `start`, and says whether it may be put back.
    fn take_out(removals: &mut Removals, start: Instant, seconds: u64) -> bool {
        let may = removals.look(false, 1, after(start, seconds));
        if may {
            removals.applied();
        }
        may
    }

    #[test]
    fn a_workload_that_never_had_our_part_is_no_removal() {
        let (mut removals, now) = (Removals::default(), Instant::now());
        assert!((0..9).all(|_| removals.look(false, 1, now)));
    }

    #[test]
    fn the_third_removal_within_ten_minutes_is_left() {
        let (mut removals, now) = (Removals::default(), Instant::now());
        removals.applied();
        assert!(take_out(&mut removals, now, 0));
        assert!(take_out(&mut removals, now, 10));
        assert!(!take_out(&mut removals, now, 599));
        assert!(!take_out(&mut removals, now, 99_999), "it stays so");
    }

    #[test]
    fn old_removals_are_forgotten() {
        let (mut removals, now) = (Removals::default(), Instant::now());
        removals.applied();
        assert!((0..9).all(|n| take_out(&mut removals, now, n * 301)));
    }

    #[test]
    fn an_edited_resource_is_a_new_try() {
        let (mut removals, now) = (Removals::default(), Instant::now());
        removals.applied();
        assert!([0, 1].into_iter().all(|seconds| take_out(&mut removals, now, seconds)));
        assert!(!take_out(&mut removals, now, 2));
        assert!(removals.look(false, 2, after(now, 3)));
    }
}
