//! Waiting for a condition: polled, bounded, and named when it never comes.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

/// How long to rest between two looks.
const INTERVAL: Duration = Duration::from_millis(50);

/// What a look at a condition may answer: a `bool`, an `Option`, or a `Result` whose error says what is missing.
pub trait Look {
    /// What is there once the condition holds.
    type Value;

    /// The value, or what is still missing.
    ///
    /// # Errors
    /// The condition does not hold yet.
    fn seen(self) -> Result<Self::Value, String>;
}

impl Look for bool {
    type Value = ();

    fn seen(self) -> Result<(), String> {
        self.then_some(()).seen()
    }
}

impl<T> Look for Option<T> {
    type Value = T;

    fn seen(self) -> Result<T, String> {
        self.ok_or_else(String::new)
    }
}

impl<T, E: Display> Look for Result<T, E> {
    type Value = T;

    fn seen(self) -> Result<T, String> {
        self.map_err(|error| format!("{error:#}"))
    }
}

/// A condition did not come true in time.
#[derive(Debug)]
pub struct TimedOut {
    what: String,
    timeout: Duration,
    last: String,
}

impl Display for TimedOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "waited {:?} for {}", self.timeout, self.what)?;
        if self.last.is_empty() {
            return Ok(());
        }
        write!(f, ", and last saw: {}", self.last)
    }
}

impl std::error::Error for TimedOut {}

/// Waits until `look` sees what it looks for, and returns it.
///
/// # Errors
/// It did not within `timeout`; a look that hangs counts.
pub async fn try_until<F, R>(what: &str, timeout: Duration, mut look: F) -> Result<R::Value, TimedOut>
where
    F: AsyncFnMut() -> R,
    R: Look,
{
    let deadline = tokio::time::Instant::now() + timeout;
    let mut last = "nothing: the first look did not return".to_owned();
    loop {
        let looked = tokio::time::timeout_at(deadline, look()).await;
        match looked.map(Look::seen) {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(missing)) => last = missing,
            Err(_) => {}
        }
        if tokio::time::Instant::now() + INTERVAL >= deadline {
            return Err(TimedOut { what: what.to_owned(), timeout, last });
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// As [`try_until`], for tests.
///
/// # Panics
/// It did not within `timeout`; the message says for what was waited, and what was last seen.
pub async fn until<F, R>(what: &str, timeout: Duration, look: F) -> R::Value
where
    F: AsyncFnMut() -> R,
    R: Look,
{
    match try_until(what, timeout, look).await {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

/// As [`try_until`], outside of async code.
///
/// # Errors
/// `look` did not see it within `timeout`.
pub fn try_until_blocking<R: Look>(
    what: &str,
    timeout: Duration,
    mut look: impl FnMut() -> R,
) -> Result<R::Value, TimedOut> {
    let deadline = Instant::now() + timeout;
    loop {
        match look().seen() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() + INTERVAL >= deadline => {
                return Err(TimedOut { what: what.to_owned(), timeout, last });
            }
            Err(_) => thread::sleep(INTERVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIEF: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn it_returns_what_was_seen_at_last() {
        let mut looks = 0;
        let seen = until("the third look", BRIEF, async || {
            looks += 1;
            (looks == 3).then_some(looks)
        })
        .await;
        assert_eq!(seen, 3);
    }

    #[tokio::test]
    async fn it_says_for_what_it_waited_and_what_it_saw() {
        let missed = try_until("rain", BRIEF, async || Err::<(), _>("sun")).await;
        assert_eq!(missed.expect_err("no rain").to_string(), "waited 200ms for rain, and last saw: sun");
    }

    #[tokio::test]
    async fn a_look_that_hangs_is_bounded() {
        let missed = try_until("an end", BRIEF, async || std::future::pending::<bool>().await).await;
        assert!(missed.expect_err("no end").to_string().ends_with("the first look did not return"));
    }
}
