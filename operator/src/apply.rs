//! Step 4 (client): writes what differs, and nothing else.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, ReplicaSet},
    core::v1::{ConfigMap, Pod},
};
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
    core::response::StatusCause,
};
use serde_json::{Value, json};

use crate::{
    agents::AgentPod,
    build::{
        Blocked, Note, Plan, Prepared,
        workload::{is_our_field, without_leftovers},
    },
    dereference::{self, Found, workload_api},
    names::{CLUSTER, CONFIG_SYNCED, FIELD_MANAGER, boot_prefix, hash},
    signing::{self, Made},
    validate::Identity,
    workload::{Live, WorkloadRef},
};

/// How many objects of one resource are written at the same time.
const WRITE_CONCURRENCY: usize = 8;

/// Why something could not be written. The variant's name is the Event's reason.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A `ConfigMap` could not be written.
    #[error("ConfigMap {name} cannot be applied: {source}")]
    ApplyConfigMap {
        /// Which.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// A `ConfigMap` could not be deleted.
    #[error("ConfigMap {name} cannot be deleted: {source}")]
    DeleteConfigMap {
        /// Which.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// The Secret of the signing key could not be made.
    #[error("Secret {name} cannot be made: {source}")]
    MakeSigningKey {
        /// Which.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// The history of workloads could not be read.
    #[error("revisions cannot be listed: {0}")]
    ListRevisions(Box<kube::Error>),
    /// A workload could not be written.
    #[error("{workload} cannot be applied: {source}")]
    ApplyWorkload {
        /// Which.
        workload: WorkloadRef,
        /// Why.
        source: Box<kube::Error>,
    },
    /// Our part could not be taken out of a workload.
    #[error("{workload} cannot be given back: {source}")]
    WithdrawWorkload {
        /// Which.
        workload: WorkloadRef,
        /// Why.
        source: Box<kube::Error>,
    },
    /// A pod could not be annotated.
    #[error("pod {pod} cannot be annotated: {source}")]
    SyncPod {
        /// Which.
        pod: String,
        /// Why.
        source: Box<kube::Error>,
    },
}

impl Error {
    /// The Event's reason.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ApplyConfigMap { .. } => "ApplyConfigMap",
            Self::DeleteConfigMap { .. } => "DeleteConfigMap",
            Self::MakeSigningKey { .. } => "MakeSigningKey",
            Self::ListRevisions(_) => "ListRevisions",
            Self::ApplyWorkload { .. } => "ApplyWorkload",
            Self::WithdrawWorkload { .. } => "WithdrawWorkload",
            Self::SyncPod { .. } => "SyncPod",
        }
    }
}

/// A workload after the step.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It has our part.
    Applied {
        /// As it is now.
        live: Live,
        /// What somebody should know.
        notes: Vec<Note>,
    },
    /// It was left as it is.
    Left(Blocked),
}

/// What has been applied: only that can be reported.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The workloads that the resource names.
    pub workloads: Vec<(WorkloadRef, Outcome)>,
    /// The hash of the agents' files, if there are agents.
    pub agent_files: Option<String>,
    /// Why the API server lets the operator make no key to sign calls with, if it does not.
    pub signing_refused: Option<String>,
    /// How many objects were written.
    pub writes: usize,
}

/// The patches of workloads that are known to be in force: an equal one need not be sent.
#[derive(Debug, Default)]
pub struct Sent(Mutex<HashMap<String, (String, i64)>>);

impl Sent {
    fn is_in_force(&self, live: &Live, patch: &str) -> bool {
        let sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sent.get(live.uid()).is_some_and(|(hash, generation)| hash == patch && *generation == live.generation())
    }

    fn remember(&self, live: &Live, patch: String) {
        let mut sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sent.insert(live.uid().to_owned(), (patch, live.generation()));
    }

    fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

/// Writes what differs.
///
/// # Errors
/// The API server does not answer, or refuses; what was written before stays.
pub async fn apply(
    client: &Client,
    sent: &Sent,
    identity: &Identity,
    found: &Found,
    prepared: Prepared,
) -> Result<Applied, Error> {
    // Without `..`: a field that is added must be applied here.
    let Prepared { config_maps, unneeded, workloads, withdrawn, agent_files, signing_secret } = prepared;
    // First what pods mount, or they would wait for it; then the pods that follow it at once; then the workloads.
    let applied_maps = apply_config_maps(client, identity, found, config_maps).await?;
    let mut writes = applied_maps.len();
    let mut signing_refused = None;
    if let Some(name) = signing_secret {
        let maps = applied_maps.iter().chain(found.config_maps.values());
        match signing::make_key(client, identity, &name, maps).await {
            Ok(Made::New) => writes += 1,
            Ok(Made::Before) => {}
            Ok(Made::Refused(message)) => signing_refused = Some(message),
            Err(source) => return Err(Error::MakeSigningKey { name, source: Box::new(source) }),
        }
    }
    if let Some(hash) = &agent_files {
        writes += sync_pods(client, &found.pods, hash).await?;
    }
    let mut outcomes = Vec::new();
    for (reference, plan) in workloads {
        let outcome = match plan {
            Plan::Leave(blocked) => Outcome::Left(blocked),
            Plan::Apply { patch, notes } => {
                let live = found.live(&reference).cloned().unwrap_or(Live(Value::Null));
                let hash = hash([patch.to_string().as_bytes()], 64);
                let claimed = live.claimed_by() == Some(&identity.uid);
                if claimed && sent.is_in_force(&live, &hash) {
                    Outcome::Applied { live, notes }
                } else {
                    match apply_workload(client, identity, &reference, &live, &patch).await? {
                        Ok(now) => {
                            writes += usize::from(now.resource_version() != live.resource_version());
                            sent.remember(&now, hash);
                            Outcome::Applied { live: now, notes }
                        }
                        Err(blocked) => Outcome::Left(blocked),
                    }
                }
            }
        };
        outcomes.push((reference, outcome));
    }
    for reference in &withdrawn {
        if let Some(live) = found.live(reference) {
            withdraw(client, sent, identity, reference, live).await?;
            writes += 1;
        }
    }
    writes += collect(client, identity, &outcomes, found, &unneeded).await?;
    Ok(Applied { workloads: outcomes, agent_files, signing_refused, writes })
}

async fn apply_config_maps(
    client: &Client,
    identity: &Identity,
    found: &Found,
    maps: Vec<ConfigMap>,
) -> Result<Vec<ConfigMap>, Error> {
    let mut due = Vec::new();
    for map in maps {
        let name = map.metadata.name.clone().unwrap_or_default();
        if !found.config_maps.get(&name).is_some_and(|present| is_as_wanted(present, &map)) {
            due.push(apply_config_map(Api::namespaced(client.clone(), &identity.namespace), name, map));
        }
    }
    futures::stream::iter(due).buffer_unordered(WRITE_CONCURRENCY).try_collect().await
}

async fn apply_config_map(api: Api<ConfigMap>, name: String, map: ConfigMap) -> Result<ConfigMap, Error> {
    tracing::info!(config_map = name, "applies a ConfigMap");
    // Their names are ours, so nobody else's fields are overruled but those that were edited by hand.
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let applied = api.patch(&name, &parameters, &Patch::Apply(&map)).await;
    applied.map_err(|source| Error::ApplyConfigMap { name, source: Box::new(source) })
}

/// Whether a `ConfigMap`, as our store has it, is what it should be. Of immutable ones the store has no data; their
/// names say what they hold.
fn is_as_wanted(present: &ConfigMap, wanted: &ConfigMap) -> bool {
    let contains = |present: Option<&BTreeMap<String, String>>, wanted: Option<&BTreeMap<String, String>>| {
        wanted.into_iter().flatten().all(|(key, value)| present.and_then(|map| map.get(key)) == Some(value))
    };
    contains(present.metadata.labels.as_ref(), wanted.metadata.labels.as_ref())
        && contains(present.metadata.annotations.as_ref(), wanted.metadata.annotations.as_ref())
        && present.immutable == wanted.immutable
        && (wanted.immutable == Some(true) || present.data == wanted.data)
        && present.metadata.deletion_timestamp.is_none()
}

/// Touches the pods whose kubelet has not been asked for these files: it then brings them at once, and not after a
/// minute.
async fn sync_pods(client: &Client, pods: &[AgentPod], hash: &str) -> Result<usize, Error> {
    let mut due = Vec::new();
    for pod in pods {
        if pod.agent_image.is_some() && !pod.terminating && pod.synced.as_deref() != Some(hash) {
            due.push(sync_pod(Api::namespaced(client.clone(), &pod.namespace), pod.name.clone(), hash.to_owned()));
        }
    }
    let touched: Vec<bool> = futures::stream::iter(due).buffer_unordered(WRITE_CONCURRENCY).try_collect().await?;
    Ok(touched.into_iter().filter(|touched| *touched).count())
}

/// Touches a pod; whether it was there.
async fn sync_pod(api: Api<Pod>, name: String, hash: String) -> Result<bool, Error> {
    let patch = Patch::Merge(json!({ "metadata": { "annotations": { CONFIG_SYNCED: hash } } }));
    // Metadata alone comes back: the pod itself is of no use here.
    match api.patch_metadata(&name, &PatchParams::default(), &patch).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(false),
        Err(source) => Err(Error::SyncPod { pod: name, source: Box::new(source) }),
    }
}

async fn apply_workload(
    client: &Client,
    identity: &Identity,
    reference: &WorkloadRef,
    live: &Live,
    patch: &Value,
) -> Result<Result<Live, Blocked>, Error> {
    let api = workload_api(client, &identity.namespace, reference.kind);
    let unforced = PatchParams::apply(FIELD_MANAGER);
    let conflicts = match send(&api, reference, &unforced, patch).await? {
        Sending::Done(now) => return Ok(Ok(now)),
        Sending::Refused(message) => return Ok(Err(Blocked::WorkloadRefused(message))),
        Sending::Conflicts(conflicts) => conflicts,
    };
    if let Some((manager, fields)) = foreign(&conflicts, live) {
        return Ok(Err(Blocked::FieldConflict { manager, fields }));
    }
    tracing::info!(workload = %reference, "takes fields of its own back from another manager");
    match send(&api, reference, &unforced.force(), patch).await? {
        Sending::Done(now) => Ok(Ok(now)),
        Sending::Refused(message) => Ok(Err(Blocked::WorkloadRefused(message))),
        Sending::Conflicts(_) => {
            Ok(Err(Blocked::FieldConflict { manager: "somebody".into(), fields: "unknown".into() }))
        }
    }
}

enum Sending {
    Done(Live),
    Refused(String),
    Conflicts(Vec<StatusCause>),
}

async fn send(
    api: &Api<DynamicObject>,
    reference: &WorkloadRef,
    parameters: &PatchParams,
    patch: &Value,
) -> Result<Sending, Error> {
    let failed = |source: kube::Error| Error::ApplyWorkload { workload: reference.clone(), source: Box::new(source) };
    match api.patch(&reference.name, parameters, &Patch::Apply(patch)).await {
        Ok(object) => {
            let live = serde_json::to_value(object).map_err(|source| failed(kube::Error::SerdeError(source)))?;
            Ok(Sending::Done(Live(live)))
        }
        Err(kube::Error::Api(status)) if status.is_invalid() => Ok(Sending::Refused(status.message.clone())),
        Err(kube::Error::Api(status)) if status.is_conflict() => {
            let causes = status.details.as_ref().map(|details| details.causes.clone()).unwrap_or_default();
            let of_fields: Vec<_> = causes.into_iter().filter(|cause| cause.reason == "FieldManagerConflict").collect();
            if of_fields.is_empty() {
                // The workload has changed since it was read: the next try reads it again.
                Err(failed(kube::Error::Api(status)))
            } else {
                Ok(Sending::Conflicts(of_fields))
            }
        }
        Err(error) => Err(failed(error)),
    }
}

/// The manager of the first field that is not ours by name, and all such fields.
fn foreign(conflicts: &[StatusCause], live: &Live) -> Option<(String, String)> {
    let foreign: Vec<_> = conflicts.iter().filter(|cause| !is_our_field(&cause.field, live)).collect();
    let manager = foreign.first()?.message.split('"').nth(1).unwrap_or("another manager").to_owned();
    let fields = foreign.iter().map(|cause| cause.field.as_str()).collect::<Vec<_>>().join(", ");
    Some((manager, fields))
}

/// Takes our part out of a workload, so that it is as if we had never been there.
///
/// # Errors
/// The API server does not answer, or refuses.
pub async fn withdraw(
    client: &Client,
    sent: &Sent,
    identity: &Identity,
    reference: &WorkloadRef,
    live: &Live,
) -> Result<(), Error> {
    tracing::info!(workload = %reference, "gives a workload back");
    sent.forget(live.uid());
    let api = workload_api(client, &identity.namespace, reference.kind);
    // An intent without any of our fields takes exactly those out that nobody else has.
    let nothing = json!({
        "apiVersion": "apps/v1",
        "kind": reference.kind.as_str(),
        "metadata": { "name": reference.name, "namespace": identity.namespace, "uid": live.uid() },
    });
    let failed =
        |source: kube::Error| Error::WithdrawWorkload { workload: reference.clone(), source: Box::new(source) };
    let now =
        match api.patch(&reference.name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&nothing)).await {
            Ok(now) => serde_json::to_value(now).map_err(|source| failed(kube::Error::SerdeError(source)))?,
            Err(error) => return gone(&api, reference, live).await.then_some(()).ok_or_else(|| failed(error)),
        };
    let Some(patch) = without_leftovers(&now) else { return Ok(()) };
    let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    api.patch(&reference.name, &parameters, &Patch::Merge(patch)).await.map_err(failed)?;
    Ok(())
}

/// Whether the workload does not exist any more, so that there is nothing to give back.
async fn gone(api: &Api<DynamicObject>, reference: &WorkloadRef, live: &Live) -> bool {
    match api.get_opt(&reference.name).await {
        Ok(Some(object)) => object.metadata.uid.as_deref() != Some(live.uid()),
        Ok(None) => true,
        Err(_) => false,
    }
}

/// Deletes the `ConfigMaps` that nobody needs.
async fn collect(
    client: &Client,
    identity: &Identity,
    outcomes: &[(WorkloadRef, Outcome)],
    found: &Found,
    unneeded: &[String],
) -> Result<usize, Error> {
    let boot_prefix = boot_prefix(&identity.name);
    let (boots, others): (Vec<_>, Vec<_>) = unneeded.iter().partition(|name| name.starts_with(&boot_prefix));
    let mut deleted = 0;
    for name in others {
        delete_config_map(client, identity, name).await?;
        deleted += 1;
    }
    let now = |reference: &WorkloadRef| {
        outcomes.iter().find_map(|(other, outcome)| match outcome {
            Outcome::Applied { live, .. } if other == reference => Some(live),
            _ => None,
        })
    };
    let lives = found.workloads.iter().filter_map(|(reference, live)| now(reference).or(live.as_ref()));
    // A workload whose controller lags may yet make a revision of a template that it had.
    let settled = lives.clone().all(|live| live.observed_generation() >= live.generation());
    if boots.is_empty() || !settled {
        return Ok(deleted);
    }
    let named = named_boots(client, identity).await?;
    for name in boots {
        let in_use = named.contains(name) || lives.clone().any(|live| live.boot() == Some(name));
        if !in_use {
            delete_config_map(client, identity, name).await?;
            deleted += 1;
        }
    }
    Ok(deleted)
}

/// The boot maps that revisions name, as the API server has it now.
async fn named_boots(client: &Client, identity: &Identity) -> Result<Vec<String>, Error> {
    let ours = ListParams::default().labels(&format!("{CLUSTER}={}", identity.name));
    let failed = |source| Error::ListRevisions(Box::new(source));
    let sets = Api::<ReplicaSet>::namespaced(client.clone(), &identity.namespace).list(&ours).await.map_err(failed)?;
    let revisions =
        Api::<ControllerRevision>::namespaced(client.clone(), &identity.namespace).list(&ours).await.map_err(failed)?;
    let of_sets = sets.items.iter().filter_map(dereference::replica_set_boot);
    let of_revisions = revisions.items.iter().filter_map(dereference::controller_revision_boot);
    Ok(of_sets.chain(of_revisions).collect())
}

/// Deletes a `ConfigMap`; one that is gone already is fine.
///
/// # Errors
/// The API server does not answer, or refuses.
pub async fn delete_config_map(client: &Client, identity: &Identity, name: &str) -> Result<(), Error> {
    tracing::info!(config_map = name, "deletes a ConfigMap");
    let api = Api::<ConfigMap>::namespaced(client.clone(), &identity.namespace);
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(source) => Err(Error::DeleteConfigMap { name: name.to_owned(), source: Box::new(source) }),
    }
}
