//! What is called: the app beside the agent, or through Redis what all processes of the app listen to.

use std::time::Duration;

use cabloy_crds::files::{BroadcastTarget, QueueTarget, Target};
use cabloy_redlock::ErrorKind;
use jiff::Timestamp;
use redis::RedisError;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::app::{App, Call, Called, ended, not_begun};
use crate::bean;
use crate::broadcast;
use crate::files::Loaded;
use crate::masters::Master;
use crate::masters::node::{NodeError, classify, reason};
use crate::queue::{Added, Job};
use crate::roles::Roles;
use crate::runs::{Outcome, OutcomeKind};
use crate::signing::Signing;
use crate::warm_up::warm_up;

/// How long Redis may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// What calls go out through.
#[derive(Debug)]
pub struct Ways<'a> {
    /// The files.
    pub loaded: &'a Loaded,
    /// The connections to Redis.
    pub roles: &'a Roles,
    /// The keys that calls to the app are signed with.
    pub signing: &'a watch::Receiver<Signing>,
}

/// Makes a call and stays with it until it is done; none if that takes longer than what is `left` before the deadline, or
/// if it is a question that nobody can answer.
pub async fn call(ways: &Ways<'_>, call: &Call, left: Duration) -> Option<Called> {
    let called = async {
        Some(match &call.target {
            Target::Http(http) => App::new(&ways.loaded.file.app).call(call, http, ways.signing).await?,
            Target::Bean(bean) => {
                let app = App::new(&ways.loaded.file.app);
                bean::explained(app.call(call, &bean::request(bean), ways.signing).await?, bean)
            }
            Target::Queue(queue) => Called::by(add(ways, call, queue, left).await),
            Target::Broadcast(broadcast) => Called::by(publish(ways, call, broadcast).await),
            Target::WarmUp(target) => Called::by(match warm_up(&App::new(&ways.loaded.file.app), target).await {
                Ok(_) => ended(OutcomeKind::Done, "", ""),
                Err(outcome) => outcome,
            }),
        })
    };
    timeout(left, called).await.ok().flatten()
}

async fn add(ways: &Ways<'_>, call: &Call, target: &QueueTarget, left: Duration) -> Outcome {
    let QueueTarget { role, queue, .. } = target;
    let Some(server) = ways.loaded.servers.get(role) else { return no_server(role) };
    let job = match Job::new(target, ways.loaded.file.app.generation, &call.id()) {
        Ok(job) => job,
        Err(error) => return ended(OutcomeKind::Refused, "BadRequest", &error.to_string()),
    };
    let mut connection = match ways.roles.connection(role, server).await {
        Ok(connection) => connection,
        Err(error) => return not_connected(role, server, &error),
    };
    let now = Timestamp::now().as_millisecond();
    let added = timeout(ANSWER, job.add(&mut connection, now, left)).await;
    match added {
        Ok(Ok(added @ (Added::New | Added::Known))) => {
            tracing::debug!(queue, id = job.id, ?added, "job");
            ended(OutcomeKind::Done, "", "")
        }
        Ok(Ok(Added::NoQueue { key, found })) => {
            let message = format!("{key} of role {role} at {} is a {found}: that is no queue of BullMQ", server.name);
            ended(OutcomeKind::Refused, "NoQueue", &message)
        }
        // It may have been added and may not; to add it again does no harm, so that is no attempt.
        Err(_) => not_begun("Timeout", &format!("role {role} at {} does not answer", server.name)),
        Ok(Err(error)) if is_broken(&error) => {
            not_begun("ConnectionBroke", &format!("role {role} at {}: {}", server.name, classify(&error)))
        }
        Ok(Err(error)) => refused(role, server, &classify(&error)),
    }
}

async fn publish(ways: &Ways<'_>, call: &Call, target: &BroadcastTarget) -> Outcome {
    let BroadcastTarget { role, channel, .. } = target;
    let Some(server) = ways.loaded.servers.get(role) else { return no_server(role) };
    let message = match broadcast::message(target, ways.loaded.file.app.generation, &call.id()) {
        Ok(message) => message,
        Err(error) => return ended(OutcomeKind::Refused, "BadRequest", &error.to_string()),
    };
    let mut connection = match ways.roles.connection(role, server).await {
        Ok(connection) => connection,
        Err(error) => return not_connected(role, server, &error),
    };
    let at = &server.name;
    match timeout(ANSWER, broadcast::publish(&mut connection, channel, &message)).await {
        Ok(Ok(0)) => {
            let message = format!(
                "nobody listens to {channel} at {at}, role {role}: the app uses another Redis, or another name"
            );
            ended(OutcomeKind::Failed, "NobodyListens", &message)
        }
        Ok(Ok(listeners)) => {
            tracing::debug!(channel, listeners, "broadcast");
            ended(OutcomeKind::Done, "", "")
        }
        // It may have been heard.
        Err(_) => ended(OutcomeKind::Failed, "Timeout", &format!("role {role} at {at} does not answer")),
        Ok(Err(error)) if is_broken(&error) => {
            ended(OutcomeKind::Failed, "ConnectionBroke", &format!("role {role} at {at}: {}", classify(&error)))
        }
        Ok(Err(error)) => refused(role, server, &classify(&error)),
    }
}

fn is_broken(error: &RedisError) -> bool {
    error.is_unrecoverable_error() || error.is_io_error()
}

/// The files name no server for the role; they would not have been taken up.
fn no_server(role: &str) -> Outcome {
    ended(OutcomeKind::Failed, "MissingFile", &format!("there is no Redis for role {role}"))
}

fn not_connected(role: &str, server: &Master, error: &NodeError) -> Outcome {
    match error.kind {
        ErrorKind::Unreachable | ErrorKind::Timeout | ErrorKind::Loading => {
            not_begun("NoConnection", &format!("no connection to role {role} at {}: {error}", server.name))
        }
        _ => refused(role, server, error),
    }
}

/// The server answers with an error.
fn refused(role: &str, server: &Master, error: &NodeError) -> Outcome {
    ended(OutcomeKind::Failed, reason(error.kind), &format!("role {role} at {}: {error}", server.name))
}
