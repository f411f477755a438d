//! The driver: watches, and for each resource the five steps, one after the other.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cabloy_crds::{CabloyCluster, CabloyClusterSpec, CabloyClusterStatus, names::REDLOCK_ROLE, resource::WorkloadKind};
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client, Resource, ResourceExt as _,
    runtime::{
        Predicate as _, WatchStreamExt as _,
        controller::{Action, Config, Controller},
        events::{Event, EventType, Recorder, Reporter},
        predicates,
        reflector::{ObjectRef, Store},
    },
};
use rand::RngExt as _;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use crate::{
    agents::{AgentPod, Agents},
    apply::{self, Sent},
    build::{self, Note, Settings},
    dereference::{self, Found},
    events::{self, Occurrence, Told},
    finalize::{self, Progress},
    metrics::Metrics,
    names::{CLAIMED_BY, CLUSTER, FIELD_MANAGER, FINALIZER, PAUSED},
    removals::Removals,
    server::Health,
    status::{self, News},
    validate::{self, Identity, Masters, ResolvedRole, by_hand, deletion_policy},
    watches::{Guarded, Stores, Watches, watch},
};

/// The first delay after a failure; each further one is twice as long.
const FIRST_DELAY: Duration = Duration::from_secs(1);

/// The longest delay after failures.
const LAST_DELAY: Duration = Duration::from_mins(2);

/// Everything is looked at so often even if nothing was heard of it.
const RESYNC: Duration = Duration::from_mins(10);

/// Between two looks while a schedule of the app's own is being taken over.
const TAKEOVER_PACE: Duration = Duration::from_secs(3);

/// How often a deletion looks whether the pods have gone; their own events tell it sooner.
const WITHDRAW_PACE: Duration = Duration::from_secs(10);

/// Events come in bursts; one reconciliation answers all within this time.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// Why a reconciliation failed. One variant a step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The watches have ended.
    #[error("the watches have ended")]
    Stopped,
    /// Step 1.
    #[error(transparent)]
    Dereference(#[from] dereference::Error),
    /// Step 3.
    #[error(transparent)]
    Build(#[from] build::Error),
    /// Step 4.
    #[error(transparent)]
    Apply(#[from] apply::Error),
    /// Step 5.
    #[error(transparent)]
    Status(#[from] status::Error),
    /// The end.
    #[error(transparent)]
    Finalize(#[from] finalize::Error),
}

impl Error {
    /// The Event's reason, and the label of the metric.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Stopped => "Stopped",
            Self::Dereference(error) => error.reason(),
            Self::Build(error) => error.reason(),
            Self::Apply(error) => error.reason(),
            Self::Status(error) => error.reason(),
            Self::Finalize(error) => error.reason(),
        }
    }
}

/// What is shared by all scopes.
pub struct Shared {
    /// The API server.
    pub client: Client,
    /// What the installation says.
    pub settings: Settings,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Readiness.
    pub health: Health,
    /// How many resources are reconciled at the same time, over all scopes.
    pub permits: Semaphore,
    /// How many resources are reconciled at the same time.
    pub concurrency: u16,
}

/// What is remembered of a resource between its reconciliations.
#[derive(Default)]
struct Memory {
    failures: u32,
    /// The status as it was last written, and when.
    written: Option<(CabloyClusterStatus, Instant)>,
    /// What Events have told of its work; none before it was looked at.
    told: Option<Told>,
    /// By UID of the workload.
    removals: HashMap<String, Removals>,
}

/// One namespace, or all of them.
struct Scope {
    shared: Arc<Shared>,
    stores: Stores,
    agents: Agents,
    sent: Sent,
    recorder: Recorder,
    memory: Mutex<HashMap<String, Memory>>,
}

impl Scope {
    fn memory(&self) -> MutexGuard<'_, HashMap<String, Memory>> {
        // Nothing under this lock can be left half done.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks after one namespace, or all, until `shutdown`; what runs then is finished first.
pub async fn run(shared: Arc<Shared>, namespace: Option<String>, tasks: TaskTracker, shutdown: CancellationToken) {
    let client = shared.client.clone();
    let (stores, watches) = watch(&client, namespace.as_deref());
    let reporter = Reporter { controller: FIELD_MANAGER.into(), instance: std::env::var("HOSTNAME").ok() };
    let agents = Agents::default();
    let (trigger, triggered) = mpsc::unbounded_channel();
    let on_change = move |pod: &AgentPod| {
        // Fails only when the controller has ended.
        let _ = trigger.send(ObjectRef::new(&pod.cluster).within(&pod.namespace));
    };
    tasks.spawn(
        agents.clone().run(stores.pods.clone(), on_change, shutdown.clone()).instrument(tracing::info_span!("agents")),
    );
    let scope = Arc::new(Scope {
        recorder: Recorder::new(client, reporter),
        memory: Mutex::default(),
        sent: Sent::default(),
        stores: stores.clone(),
        agents: agents.clone(),
        shared: shared.clone(),
    });
    tasks.spawn({
        let (stores, health, shutdown) = (stores.clone(), shared.health.clone(), shutdown.clone());
        async move {
            tokio::select! {
                ready = stores.ready() => if ready.is_ok() { health.synced() },
                () = shutdown.cancelled() => {}
            }
        }
        .instrument(tracing::info_span!("sync"))
    });
    controller(&shared, stores, watches, &agents, triggered)
        .graceful_shutdown_on(shutdown.cancelled_owned())
        .run(reconcile, error_policy, scope)
        .for_each(async |outcome| {
            if let Err(error) = outcome {
                // Failures of reconciliations are reported where they happen; here are those of the watches.
                tracing::debug!(%error, "the controller met with an error");
            }
        })
        .await;
}

fn controller(
    shared: &Shared,
    stores: Stores,
    watches: Watches,
    agents: &Agents,
    triggered: mpsc::UnboundedReceiver<ObjectRef<Guarded>>,
) -> Controller<Guarded> {
    let Watches {
        clusters,
        deployments,
        stateful_sets,
        daemon_sets,
        replica_sets,
        controller_revisions,
        config_maps,
        pods,
    } = watches;
    // Our own writes of the status are no news.
    let clusters = clusters.predicate_filter(
        predicates::generation.combine(predicates::annotations).combine(predicates::finalizers),
        kube::runtime::PredicateConfig::default(),
    );
    let of = |kind: WorkloadKind| {
        let clusters = stores.clusters.clone();
        move |namespace: Option<String>,
              name: Option<String>,
              annotations: &std::collections::BTreeMap<String, String>| {
            users(&clusters, kind, namespace.as_deref(), name.as_deref(), annotations)
        }
    };
    let (of_deployment, of_stateful_set, of_daemon_set) =
        (of(WorkloadKind::Deployment), of(WorkloadKind::StatefulSet), of(WorkloadKind::DaemonSet));
    let agents = agents.clone();
    let triggered =
        futures::stream::unfold(triggered, async |mut triggered| Some((triggered.recv().await?, triggered)));
    Controller::for_stream(clusters, stores.clusters)
        .with_config(Config::default().concurrency(shared.concurrency).debounce(DEBOUNCE))
        .watches_stream(deployments, move |object| {
            of_deployment(object.namespace(), object.metadata.name.clone(), object.annotations())
        })
        .watches_stream(stateful_sets, move |object| {
            of_stateful_set(object.namespace(), object.metadata.name.clone(), object.annotations())
        })
        .watches_stream(daemon_sets, move |object| {
            of_daemon_set(object.namespace(), object.metadata.name.clone(), object.annotations())
        })
        .watches_stream(replica_sets, |object| of_label(&object))
        .watches_stream(controller_revisions, |object| of_label(&object))
        .watches_stream(config_maps, |object| of_label(&object))
        .watches_stream(pods, move |object| {
            agents.wake();
            of_label(&object)
        })
        .reconcile_on(triggered)
}

/// The resource that an object is labelled with.
fn of_label<K: Resource>(object: &K) -> Option<ObjectRef<Guarded>> {
    Some(ObjectRef::new(object.labels().get(CLUSTER)?).within(object.meta().namespace.as_deref()?))
}

/// The resources that name a workload, or have claimed it.
fn users(
    clusters: &Store<Guarded>,
    kind: WorkloadKind,
    namespace: Option<&str>,
    name: Option<&str>,
    annotations: &std::collections::BTreeMap<String, String>,
) -> Vec<ObjectRef<Guarded>> {
    clusters
        .state_filter(|cluster| {
            cluster.meta().namespace.as_deref() == namespace
                && (annotations.get(CLAIMED_BY).is_some_and(|uid| cluster.meta().uid.as_ref() == Some(uid))
                    || cluster.0.as_ref().is_ok_and(|cluster| {
                        cluster
                            .spec
                            .workloads
                            .iter()
                            .any(|workload| workload.kind() == kind && Some(workload.name.as_str()) == name)
                    }))
        })
        .iter()
        .map(|cluster| ObjectRef::from_obj(&**cluster))
        .collect()
}

/// Measures and reports a reconciliation; its tracing span, with the resource and what caused it, is kube's.
async fn reconcile(resource: Arc<Guarded>, scope: Arc<Scope>) -> Result<Action, Error> {
    // The semaphore is never closed.
    let _permit = scope.shared.permits.acquire().await;
    let identity = identity(&resource);
    let begun = Instant::now();
    let result = steps(&resource, &identity, &scope).await;
    scope.shared.metrics.reconciled(begun.elapsed(), result.as_ref().err().map(Error::reason));
    let mut memory = scope.memory();
    let known = memory.entry(identity.uid.clone()).or_default();
    match &result {
        Ok(_) => {
            known.failures = 0;
            tracing::debug!(duration = ?begun.elapsed(), "reconciled");
        }
        Err(error) => {
            known.failures = known.failures.saturating_add(1);
            tracing::warn!(reason = error.reason(), %error, failures = known.failures, "could not be reconciled");
        }
    }
    result
}

/// Later and later, and not all at once.
#[expect(clippy::needless_pass_by_value, reason = "kube calls it so")]
fn error_policy(resource: Arc<Guarded>, _: &Error, scope: Arc<Scope>) -> Action {
    let failures = scope.memory().get(&identity(&resource).uid).map_or(1, |known| known.failures);
    Action::requeue(delay(failures).mul_f64(rand::rng().random_range(0.75..1.25)))
}

fn delay(failures: u32) -> Duration {
    FIRST_DELAY.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(LAST_DELAY)
}

fn identity(resource: &Guarded) -> Identity {
    let metadata = resource.meta().clone();
    Identity {
        namespace: metadata.namespace.unwrap_or_default(),
        name: metadata.name.unwrap_or_default(),
        uid: metadata.uid.unwrap_or_default(),
        generation: metadata.generation.unwrap_or_default(),
    }
}

async fn steps(resource: &Guarded, identity: &Identity, scope: &Scope) -> Result<Action, Error> {
    scope.stores.ready().await.map_err(|_| Error::Stopped)?;
    count(scope);
    let client = &scope.shared.client;
    let spec = resource.0.as_ref().ok().map(|cluster| &cluster.spec);
    if resource.meta().deletion_timestamp.is_some() {
        return end(resource, identity, spec, scope).await;
    }
    let cluster = match &resource.0 {
        Ok(cluster) => cluster,
        Err(invalid) => {
            let message = format!("it does not have the form of a CabloyCluster: {}; correct the field", invalid.error);
            return hold_back(resource, identity, None, "Malformed", &message, scope).await;
        }
    };
    if resource.annotations().get(PAUSED).is_some_and(|value| value == "true") {
        let message = format!("nothing is changed while annotation {PAUSED} is \"true\": remove it to go on");
        return hold_back(resource, identity, cluster.status.as_ref(), "Paused", &message, scope).await;
    }
    if !resource.finalizers().iter().any(|name| name == FINALIZER) {
        let version = resource.resource_version();
        finalize::hold(client, identity, resource.finalizers(), version.as_deref()).await?;
    }

    // dereference (client)
    let mut found = dereference::dereference(client, &scope.stores, &scope.agents, identity, &cluster.spec).await?;
    found.given_up = look_for_removals(scope, identity, &found);

    // validate (no client)
    let validated = match validate::validate(identity, &cluster.spec, &Masters::Free) {
        Err(refusals) => Err(refusals),
        Ok(sound) => {
            let wanted: Vec<_> =
                sound.role(REDLOCK_ROLE).into_iter().flat_map(ResolvedRole::clients).map(validate::server).collect();
            match dereference::masters(&scope.agents, &mut found, &wanted).await {
                Masters::Free | Masters::Idle(_) => Ok(sound),
                in_use @ Masters::InUse(..) => validate::validate(identity, &cluster.spec, &in_use),
            }
        }
    };
    let validated = match validated {
        Ok(mut validated) => {
            by_hand::add(&mut validated, resource.annotations(), Timestamp::now());
            validated
        }
        Err(refusals) => {
            let result = status::Result::Refused(&refusals);
            return report(cluster, identity, &found, &result, scope).await;
        }
    };

    // build (no client)
    let prepared = build::build(&validated, &found, &scope.shared.settings)?;

    // apply (client)
    let applied = apply::apply(client, &scope.sent, identity, &found, prepared).await?;
    scope.shared.metrics.wrote("objects", applied.writes);
    remember_applied(scope, identity, &applied);
    tell_rolled(identity, &applied, scope).await;

    // status (client)
    report(cluster, identity, &found, &status::Result::Applied(&validated, &applied), scope).await
}

/// Which workloads our part was taken out of too often.
fn look_for_removals(scope: &Scope, identity: &Identity, found: &Found) -> BTreeSet<crate::workload::WorkloadRef> {
    let mut memory = scope.memory();
    let removals = &mut memory.entry(identity.uid.clone()).or_default().removals;
    let now = Instant::now();
    found
        .workloads
        .iter()
        .filter_map(|(reference, live)| Some((reference, live.as_ref()?)))
        .filter(|(_, live)| {
            !removals.entry(live.uid().to_owned()).or_default().look(live.has_ours(), identity.generation, now)
        })
        .map(|(reference, _)| reference.clone())
        .collect()
}

fn remember_applied(scope: &Scope, identity: &Identity, applied: &apply::Applied) {
    let mut memory = scope.memory();
    let removals = &mut memory.entry(identity.uid.clone()).or_default().removals;
    for (_, outcome) in &applied.workloads {
        if let apply::Outcome::Applied { live, .. } = outcome {
            removals.entry(live.uid().to_owned()).or_default().applied();
        }
    }
}

/// Writes the status where it says something new, and Events about what has turned.
async fn report(
    cluster: &CabloyCluster,
    identity: &Identity,
    found: &Found,
    result: &status::Result<'_>,
    scope: &Scope,
) -> Result<Action, Error> {
    let before = status_before(scope, identity, cluster.status.as_ref());
    let status = status::compute(identity, found, result, before.as_ref(), Timestamp::now());
    tell(identity, before.as_ref(), &status, scope).await;
    write(identity, status, before, scope).await
}

/// The status as it is: as we last wrote it, for the watch may not have brought it yet.
fn status_before(
    scope: &Scope,
    identity: &Identity,
    seen: Option<&CabloyClusterStatus>,
) -> Option<CabloyClusterStatus> {
    let memory = scope.memory();
    let written = memory.get(&identity.uid).and_then(|known| known.written.as_ref());
    written.map(|(status, _)| status.clone()).or_else(|| seen.cloned())
}

async fn write(
    identity: &Identity,
    status: CabloyClusterStatus,
    before: Option<CabloyClusterStatus>,
    scope: &Scope,
) -> Result<Action, Error> {
    // Ticks alone ask for no reconciliation, so it looks for them itself.
    let counts = !status.schedules.is_empty() || status.native_schedules.is_some();
    let pace = if counts { status::TICK_PACE } else { RESYNC };
    // Pods that have no part of ours are not watched, and are waited for.
    let pace = if status::takes_over(&status) { TAKEOVER_PACE } else { pace };
    let last = scope.memory().get(&identity.uid).and_then(|known| known.written.as_ref().map(|(_, at)| *at));
    let rest = last.map_or(Duration::ZERO, |last| status::TICK_PACE.saturating_sub(last.elapsed()));
    match status::news(before.as_ref(), &status) {
        News::None => return Ok(Action::requeue(pace)),
        News::Ticks if !rest.is_zero() => return Ok(Action::requeue(rest.min(pace))),
        News::Ticks | News::Urgent => {}
    }
    tell_turned(identity, before.as_ref(), &status, scope).await;
    status::write(&scope.shared.client, identity, &status).await?;
    scope.shared.metrics.wrote("status", 1);
    scope.memory().entry(identity.uid.clone()).or_default().written = Some((status, Instant::now()));
    Ok(Action::requeue(pace))
}

/// Says in the status why a resource is not reconciled.
async fn hold_back(
    resource: &Guarded,
    identity: &Identity,
    seen: Option<&CabloyClusterStatus>,
    reason: &'static str,
    message: &str,
    scope: &Scope,
) -> Result<Action, Error> {
    let before = status_before(scope, identity, seen);
    let status = status::held(identity, reason, message, before.as_ref(), Timestamp::now());
    tracing::info!(reason, message, uid = ?resource.meta().uid, "is held back");
    write(identity, status, before, scope).await
}

/// Lets a deleted resource go.
async fn end(
    resource: &Guarded,
    identity: &Identity,
    spec: Option<&CabloyClusterSpec>,
    scope: &Scope,
) -> Result<Action, Error> {
    if !resource.finalizers().iter().any(|name| name == FINALIZER) {
        return Ok(Action::await_change());
    }
    let policy = spec.map(deletion_policy).unwrap_or_default();
    let version = resource.resource_version();
    let progress = finalize::finalize(
        &scope.shared.client,
        &scope.stores,
        &scope.sent,
        identity,
        policy,
        resource.finalizers(),
        version.as_deref(),
    )
    .await?;
    match progress {
        Progress::Gone => {
            scope.memory().remove(&identity.uid);
            Ok(Action::await_change())
        }
        Progress::Waits(pods) => {
            let message = format!("waits until these pods have been replaced: {}", pods.join(", "));
            let seen = resource.0.as_ref().ok().and_then(|cluster| cluster.status.as_ref());
            hold_back(resource, identity, seen, "Withdrawing", &message, scope).await?;
            Ok(Action::requeue(WITHDRAW_PACE))
        }
    }
}

/// Events about what schedules and startup tasks have failed at.
async fn tell(identity: &Identity, before: Option<&CabloyClusterStatus>, status: &CabloyClusterStatus, scope: &Scope) {
    let occurrences = {
        let mut memory = scope.memory();
        let told = &mut memory.entry(identity.uid.clone()).or_default().told;
        told.get_or_insert_with(|| Told::new(before)).tell(status, Instant::now())
    };
    for Occurrence { reason, action, note } in occurrences {
        let event =
            Event { type_: EventType::Warning, reason: reason.to_owned(), note: Some(note), action, secondary: None };
        publish(identity, event, scope).await;
    }
}

/// Events about workloads that are rolled for what only agents have seen.
async fn tell_rolled(identity: &Identity, applied: &apply::Applied, scope: &Scope) {
    for (reference, outcome) in &applied.workloads {
        let apply::Outcome::Applied { notes, .. } = outcome else { continue };
        if notes.contains(&Note::SecretsChanged) {
            let event = Event {
                type_: EventType::Normal,
                reason: "PasswordsChanged".to_owned(),
                note: Some(format!(
                    "{reference} is rolled: pods of it started before the passwords that are mounted in them now"
                )),
                action: "RollOut".to_owned(),
                secondary: None,
            };
            publish(identity, event, scope).await;
        }
    }
}

/// Events about conditions that have turned.
async fn tell_turned(
    identity: &Identity,
    before: Option<&CabloyClusterStatus>,
    after: &CabloyClusterStatus,
    scope: &Scope,
) {
    let turned = status::turned(before, after).into_iter().map(|condition| Event {
        type_: if status::is_alarming(condition) { EventType::Warning } else { EventType::Normal },
        reason: condition.reason.clone(),
        note: Some(condition.message.clone()),
        action: condition.type_.clone(),
        secondary: None,
    });
    let put_back = status::put_back(before, after).map(|note| Event {
        type_: EventType::Normal,
        reason: "SchedulePutBack".to_owned(),
        note: Some(note),
        action: "NativeSchedulesGuarded".to_owned(),
        secondary: None,
    });
    for event in turned.chain(put_back) {
        publish(identity, event, scope).await;
    }
}

/// Events are for people: that one is lost fails nothing.
async fn publish(identity: &Identity, event: Event, scope: &Scope) {
    let regarding = ObjectReference {
        api_version: Some(CabloyCluster::api_version(&()).into_owned()),
        kind: Some(CabloyCluster::kind(&()).into_owned()),
        name: Some(identity.name.clone()),
        namespace: Some(identity.namespace.clone()),
        uid: Some(identity.uid.clone()),
        ..ObjectReference::default()
    };
    let event = Event { note: event.note.map(events::cut), ..event };
    if let Err(error) = scope.recorder.publish(&event, &regarding).await {
        tracing::warn!(%error, reason = event.reason, "an Event could not be published");
    }
}

/// Counts the resources for the metrics, and forgets those that are gone.
fn count(scope: &Scope) {
    let clusters = scope.stores.clusters.state();
    let ready = clusters.iter().filter(|cluster| is_ready(cluster)).count();
    scope.shared.metrics.counted(clusters.len(), ready);
    let present: HashSet<_> = clusters.iter().filter_map(|cluster| cluster.meta().uid.as_deref()).collect();
    scope.memory().retain(|uid, _| present.contains(uid.as_str()));
}

fn is_ready(cluster: &Guarded) -> bool {
    let conditions =
        cluster.0.as_ref().ok().and_then(|cluster| cluster.status.as_ref()).map(|status| &status.conditions);
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_tried_again_later_and_later() {
        assert_eq!([1, 2, 3, 8, 9, 4_000].map(|failures| delay(failures).as_secs()), [1, 2, 4, 120, 120, 120]);
    }
}
