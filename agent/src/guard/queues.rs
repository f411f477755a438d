//! The queues of schedules of an app, each of which belongs to an instance: found by their keys.

use std::collections::BTreeSet;

use redis::RedisResult;
use redis::aio::MultiplexedConnection;

/// In one look so many times as many keys are gone through.
const SCANS: usize = 20;

/// Keys that are gone through at once.
const SCAN: usize = 1_000;

/// The queues that are known, and how far the look for further ones is.
#[derive(Debug)]
pub struct Queues {
    prefix: String,
    /// What the key that a queue is found by ends with.
    key: String,
    /// What of that is not the queue's name.
    part: &'static str,
    names: BTreeSet<String>,
    cursor: u64,
    whole: bool,
}

impl Queues {
    /// The one of the default instance, and more to be found. `prefix`: what the keys of all queues begin with; `queue`: how
    /// the queues of schedules are called after their instance.
    #[must_use]
    pub fn new(prefix: &str, queue: &str) -> Self {
        let names = BTreeSet::from([format!("-{queue}")]);
        Self { prefix: prefix.to_owned(), key: format!("{queue}:meta"), part: ":meta", names, cursor: 0, whole: false }
    }

    /// Has those be found too that are called otherwise, if there are schedules in them.
    #[must_use]
    pub fn of_any_name(self) -> Self {
        Self { key: ":repeat".to_owned(), part: ":repeat", ..self }
    }

    /// The names of those that are known.
    #[must_use]
    pub fn names(&self) -> &BTreeSet<String> {
        &self.names
    }

    /// Knows these too.
    pub fn extend(&mut self, names: impl IntoIterator<Item = String>) {
        self.names.extend(names);
    }

    /// Whether all keys have been gone through since it was asked for.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Begins to go through all keys once more.
    pub fn start_over(&mut self) {
        (self.cursor, self.whole) = (0, false);
    }

    /// Goes on looking.
    ///
    /// # Errors
    /// The server does not answer, or with an error.
    pub async fn look(&mut self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        let begin = format!("{}:", self.prefix);
        for _ in 0..SCANS {
            let mut scan = redis::cmd("SCAN");
            scan.arg(self.cursor).arg("MATCH").arg(format!("{begin}*{}", self.key)).arg("COUNT").arg(SCAN);
            let (next, found): (u64, Vec<String>) = scan.query_async(connection).await?;
            let names = found.iter().filter_map(|key| key.strip_prefix(&begin)?.strip_suffix(self.part));
            self.names.extend(names.map(str::to_owned));
            self.cursor = next;
            if next == 0 {
                self.whole = true;
                break;
            }
        }
        Ok(())
    }
}
