//! Whether the app beside the agent answers.

use std::time::Duration;

use cabloy_crds::agent_status::{AppFailure, AppStatus};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::app::{App, Worker};

/// How long between two checks while the app is not known to be well.
const EAGER: Duration = Duration::from_secs(1);

/// How long between two checks while the app is well.
const CALM: Duration = Duration::from_secs(5);

/// After so many failed checks in a row the app counts as unhealthy; at once if nothing listens on its port.
const FAILURES: u32 = 3;

/// What a check says about an app of which `status` was known, and how many checks have failed in a row.
fn judge(status: &AppStatus, failures: u32, check: Result<(), (AppFailure, String)>) -> (AppStatus, u32) {
    match check {
        Ok(()) => (AppStatus { healthy: true, ..AppStatus::default() }, 0),
        Err((failure, message)) => {
            let failures = failures.saturating_add(1);
            // Where nothing listens, asking again would say no more.
            let healthy = status.healthy && failure != AppFailure::Down && failures < FAILURES;
            (AppStatus { healthy, message: Some(message), failure: Some(failure) }, failures)
        }
    }
}

/// Checks the app that `app` holds until `stop`, and tells of changes, also of which process answered.
pub async fn watch_app(
    mut app: watch::Receiver<Option<App>>,
    status: watch::Sender<AppStatus>,
    worker: watch::Sender<Option<Worker>>,
    stop: CancellationToken,
) {
    let mut failures = 0;
    loop {
        let present = app.borrow_and_update().clone();
        let pause = match present {
            None => Duration::MAX,
            Some(app) => {
                let check = match app.check().await {
                    Ok(answered) => {
                        worker.send_replace(answered);
                        Ok(())
                    }
                    Err(error) => Err((error.kind(), error.to_string())),
                };
                let before = status.borrow().clone();
                let (now, failed) = judge(&before, failures, check);
                failures = failed;
                if now.healthy != before.healthy {
                    let message = now.message.as_deref().unwrap_or_default();
                    tracing::info!(healthy = now.healthy, message, "app");
                }
                status.send_if_modified(|status| {
                    *status != now && {
                        *status = now;
                        true
                    }
                });
                if failures == 0 { CALM } else { EAGER }
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = app.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_is_down_at_once_and_slow_only_after_some_checks() {
        let mut status = AppStatus::default();
        let mut failures = 0;
        let (down, slow) = (AppFailure::Down, AppFailure::NoAnswer);
        let mut check = |result: Result<(), AppFailure>| {
            (status, failures) = judge(&status, failures, result.map_err(|failure| (failure, String::new())));
            status.healthy
        };
        assert!(!check(Err(slow)), "not healthy before the first good check");
        assert!(check(Ok(())));
        assert!(check(Err(slow)) && check(Err(slow)));
        assert!(!check(Err(slow)));
        assert!(!check(Err(slow)));
        assert!(check(Ok(())));
        assert!(!check(Err(down)));
    }
}
