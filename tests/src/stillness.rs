//! How long the machine itself stood still: what a bound in milliseconds leaves out on a machine that others use too.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

/// What the thread waits for again and again.
const WAIT: Duration = Duration::from_millis(1);

/// What a wait may take longer on a machine that has nothing else to do.
const USUAL: Duration = Duration::from_millis(1);

/// Looks for how long the machine as a whole, or a process of it, stood still. For the machine a thread waits a
/// millisecond again and again, and notes when that took longer; for a process the kernel tells how long it wanted to run
/// and others did.
#[derive(Debug)]
pub struct Stillness {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Late>>,
    /// The processes, and for how long each had waited before.
    processes: Vec<(u32, Duration)>,
}

/// A wait that ended late.
#[derive(Clone, Copy, Debug)]
struct Late {
    /// When it should have ended.
    due: SystemTime,
    /// When it did.
    end: SystemTime,
}

impl Stillness {
    /// Begins to look.
    #[must_use]
    pub fn watch(processes: impl IntoIterator<Item = u32>) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let ended = Arc::clone(&ended);
            move || look(&ended)
        });
        let processes = processes.into_iter().map(|process| (process, queued(process))).collect();
        Self { ended, thread, processes }
    }

    /// Ends looking; for how long of the time between `from` and `to` the machine stood still, and for how long the
    /// processes have since waited for it.
    ///
    /// # Panics
    /// The thread did.
    #[must_use]
    pub fn between(self, from: SystemTime, to: SystemTime) -> Duration {
        let waited = self.processes.iter().map(|(process, before)| queued(*process).saturating_sub(*before));
        let waited: Duration = waited.sum();
        self.ended.store(true, Ordering::Relaxed);
        let late = self.thread.join().unwrap_or_else(|error| std::panic::resume_unwind(error));
        let still = late.iter().map(|late| late.end.min(to).duration_since(late.due.max(from)).unwrap_or_default());
        waited + still.sum::<Duration>()
    }
}

/// For how long the threads of a process have waited for a processor so far; nothing of one that is gone.
#[must_use]
pub fn queued(process: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let nanoseconds = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

fn look(ended: &AtomicBool) -> Vec<Late> {
    let mut all = Vec::new();
    while !ended.load(Ordering::Relaxed) {
        let due = SystemTime::now() + WAIT;
        thread::sleep(WAIT);
        let end = SystemTime::now();
        if end > due + USUAL {
            all.push(Late { due, end });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn late_waits_count_as_far_as_they_are_in_between() {
        let at = |ms: u64| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        let late = vec![Late { due: at(10), end: at(20) }, Late { due: at(30), end: at(35) }];
        let between = |from: u64, to: u64| {
            let (ended, late) = (Arc::default(), late.clone());
            Stillness { ended, thread: thread::spawn(move || late), processes: vec![] }
                .between(at(from), at(to))
                .as_millis()
        };
        assert_eq!(between(0, 100), 15);
        assert_eq!(between(15, 32), 7);
        assert_eq!(between(21, 29), 0);
    }

    #[test]
    fn a_process_waits_while_others_run() {
        let process = std::process::id();
        let before = queued(process);
        let (enough, deadline) = (before + Duration::from_millis(50), Instant::now() + Duration::from_secs(20));
        let threads = 4 * thread::available_parallelism().unwrap().get();
        // As many as that take turns, and whoever has no turn waits. Looked at from within: what a thread that has ended
        // waited is counted no more.
        let seen = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while !seen.load(Ordering::Relaxed) && Instant::now() < deadline {
                        seen.fetch_or(queued(process) >= enough, Ordering::Relaxed);
                    }
                });
            }
        });
        assert!(seen.into_inner());
        assert_eq!(queued(u32::MAX), Duration::ZERO);
    }
}
