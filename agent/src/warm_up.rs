//! Warm-up of an app of `CabloyJS` 4.
//!
//! A worker process of such an app takes no jobs of an instance (tenant) before it has had a request for it. So each worker
//! process gets one for each instance: over new connections, which go to one process after the other, until each has said
//! that it answered. The gate has that done first, as a startup task; [`keep_warm`] does it again for processes that come
//! later: of a container that was started again, or in place of one that died.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use cabloy_crds::agent_status::Problem;
use cabloy_crds::files::{AgentFile, Target, WarmUpTarget};
use cabloy_crds::vocabulary::Scope;
use http::StatusCode;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::app::{App, Worker, ended};
use crate::runs::{Outcome, OutcomeKind};
use crate::shared::Shared;
use crate::startup::Task;

/// How many connections are made for an instance where the processes do not say who they are.
const BLIND: u32 = 16;

/// How many connections are made for an instance for each worker process, and that once more, before it is given up: others
/// connect meanwhile.
const CONNECTIONS: u32 = 4;

/// How long keeping warm may take; an instance that starts for the first time does its migrations.
const ROUND: Duration = Duration::from_mins(5);

/// How long after a round that failed the next one begins.
const AGAIN: Duration = Duration::from_secs(10);

/// Who is warm.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Warm {
    /// The processes that have answered for all instances; empty if they do not say who they are.
    workers: BTreeSet<String>,
    /// The instances that were asked for.
    instances: Vec<String>,
    /// Those among them that are locked: the app knows them not, or they are disabled.
    locked: Vec<String>,
}

impl Warm {
    /// Whether nothing is known that would still be cold.
    fn covers(&self, instances: &[String], seen: Option<&Worker>) -> bool {
        self.instances == instances && seen.is_none_or(|worker| self.workers.contains(&worker.id))
    }
}

/// Has each worker process answer for each instance.
///
/// # Errors
/// An instance does not answer as it should, or too few processes answer; nothing about processes that did.
pub async fn warm_up(app: &App, target: &WarmUpTarget) -> Result<Warm, Outcome> {
    let mut warm = Warm { instances: target.instances.clone(), ..Warm::default() };
    let mut all: Option<BTreeSet<String>> = None;
    for instance in &target.instances {
        match answered(app, instance).await? {
            None => warm.locked.push(instance.clone()),
            Some(workers) => {
                all = Some(all.map_or_else(|| workers.clone(), |all| all.intersection(&workers).cloned().collect()));
            }
        }
    }
    warm.workers = all.unwrap_or_default();
    Ok(warm)
}

/// The processes that have answered for an instance; none if it is locked. A tenant that somebody disables is no reason
/// to keep the pods of all others from being ready.
async fn answered(app: &App, instance: &str) -> Result<Option<BTreeSet<String>>, Outcome> {
    let host = host(instance);
    let mut workers = BTreeSet::new();
    let mut wanted = 0;
    let mut limit = BLIND;
    let mut made = 0;
    while made < limit {
        let echo = app.echo(&host, source(made)).await.map_err(|outcome| about(instance, &outcome))?;
        made += 1;
        if echo.status == StatusCode::LOCKED {
            return Ok(None);
        }
        if echo.outcome.kind != OutcomeKind::Done {
            return Err(about(instance, &echo.outcome));
        }
        if let Some(worker) = echo.worker {
            workers.insert(worker.id);
            wanted = worker.of;
            limit = CONNECTIONS.saturating_mul(wanted).saturating_add(CONNECTIONS);
            if workers.len() >= wanted as usize {
                return Ok(Some(workers));
            }
        }
    }
    if workers.is_empty() {
        return Ok(Some(workers));
    }
    let message = format!("{} of {wanted} worker processes have answered over {made} connections", workers.len());
    Err(about(instance, &ended(OutcomeKind::Failed, "WorkerMissing", &message)))
}

fn about(instance: &str, outcome: &Outcome) -> Outcome {
    let name = if instance.is_empty() { "the default instance" } else { instance };
    ended(outcome.kind, &outcome.reason, &format!("warm-up of {name}: {}", outcome.message))
}

/// The `Host` that means an instance, and that `CabloyJS` does not take for the app's public address: it writes any host that
/// lacks 127.0.0.1 into its database. The labels before the last two name the instance, in reverse; after the colon, where
/// it does not look for them, is a place for the address.
fn host(instance: &str) -> String {
    if instance.is_empty() {
        return "127.0.0.1".to_owned();
    }
    let labels: Vec<_> = instance.rsplit('.').collect();
    format!("{}.cabloy.local:127.0.0.1", labels.join("."))
}

/// The address of the `index`th connection, on this machine all the same: an app whose master is sticky gives a process the
/// connections of the addresses that fall to it.
fn source(index: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + index % 128)
}

/// The warm-up that the file asks for.
fn target(file: &AgentFile) -> Option<(String, &WarmUpTarget)> {
    file.startups.iter().find_map(|startup| match &startup.target {
        Target::WarmUp(target) if startup.scope == Scope::Instance => {
            Some((Task { startup: startup.clone(), revision: String::new() }.id(), target))
        }
        _ => None,
    })
}

/// Keeps warm what the gate had warmed up, until `stop`; `seen` is the process that answered the last health check.
pub async fn keep_warm(shared: Arc<Shared>, mut seen: watch::Receiver<Option<Worker>>, stop: CancellationToken) {
    let (mut config, mut app) = (shared.config.clone(), shared.app.clone());
    let mut done = shared.done.subscribe();
    let mut warm: Option<Warm> = None;
    let mut not_before = Instant::now();
    loop {
        let loaded = config.borrow_and_update().loaded.clone();
        let healthy = app.borrow_and_update().healthy;
        let worker = seen.borrow_and_update().clone();
        let done_first = done.borrow_and_update().clone();
        // Where processes do not say who they are, those of an app that was down may be others now.
        warm = warm.filter(|_| healthy);
        let wanted = loaded.as_ref().and_then(|loaded| Some((App::new(&loaded.file.app), target(&loaded.file)?)));
        let cold = wanted.filter(|(_, (id, target))| {
            let covered = warm.as_ref().is_some_and(|it| it.covers(&target.instances, worker.as_ref()));
            healthy && done_first.contains(id) && !covered
        });
        match cold {
            Some((app, (_, target))) if not_before <= Instant::now() => {
                let round = timeout(ROUND, warm_up(&app, target));
                tokio::select! {
                    () = stop.cancelled() => return,
                    round = round => {
                        let late = || ended(OutcomeKind::Failed, "Timeout", "the warm-up is not over in time");
                        let round = round.unwrap_or_else(|_| Err(late()));
                        shared.show_cold(look_at(&round));
                        warm = round.ok();
                    }
                }
                not_before = Instant::now() + AGAIN;
            }
            cold => tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = config.changed() => {}
                Ok(()) = app.changed() => {}
                Ok(()) = seen.changed() => {}
                Ok(()) = done.changed() => {}
                () = sleep_until(not_before), if cold.is_some() => {}
            },
        }
    }
}

/// What somebody should look at after a round.
fn look_at(round: &Result<Warm, Outcome>) -> Option<Problem> {
    let problem = |reason: &str, message: String| Problem { reason: reason.to_owned(), message, path: None };
    match round {
        Err(outcome) => Some(problem("NotWarm", format!("{}: {}", outcome.reason, outcome.message))),
        Ok(warm) if warm.locked.is_empty() => None,
        Ok(warm) => {
            let names: Vec<_> =
                warm.locked.iter().map(|it| if it.is_empty() { "the default one" } else { it }).collect();
            let message = format!(
                "the app answers 423 for instances {}: they are disabled, or not in its configuration; their jobs wait",
                names.join(", ")
            );
            Some(problem("InstanceLocked", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_names_its_instance_and_is_none_that_the_app_would_remember() {
        assert_eq!(host(""), "127.0.0.1");
        for (instance, labels) in [("acme", "acme"), ("b.c", "c.b")] {
            let host = host(instance);
            assert!(host.contains("127.0.0.1"), "{host}");
            // As koa has it: without the port, from the right, less two labels.
            let mut read: Vec<_> = host.split(':').next().unwrap().rsplit('.').skip(2).collect();
            assert_eq!(read.join("."), instance);
            read.reverse();
            assert_eq!(read.join("."), labels);
        }
    }

    #[test]
    fn connections_come_from_addresses_of_this_machine_that_fall_to_all_processes() {
        for of in 2..=8 {
            // As egg's master does it.
            let fall_to: BTreeSet<u64> = (0..of)
                .map(|it| source(it).to_string().replace('.', "").parse::<u64>().unwrap() % u64::from(of))
                .collect();
            assert_eq!(fall_to.len(), of as usize);
        }
        assert!((0..1000).all(|it| source(it).is_loopback()));
    }

    #[test]
    fn another_process_or_instance_is_cold() {
        let warm = Warm { workers: ["1.5".to_owned()].into(), instances: vec![String::new()], locked: Vec::new() };
        let worker = |id: &str| Worker { id: id.to_owned(), of: 1 };
        let one = [String::new()];
        assert!(warm.covers(&one, None) && warm.covers(&one, Some(&worker("1.5"))));
        assert!(!warm.covers(&one, Some(&worker("1.6"))));
        assert!(!warm.covers(&[String::new(), "acme".to_owned()], None));
    }
}
