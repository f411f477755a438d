//! What happens when a resource is deleted: our part is taken out of the workloads, and the `ConfigMaps` go once no pod
//! uses them. They have no owner reference, for a foreground deletion would take them from under running pods.

use cabloy_crds::resource::DeletionPolicy;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams},
};
use serde_json::json;

use crate::{
    apply::{self, Sent, delete_config_map, withdraw},
    dereference::{self, claimed, pods, read_workload, workload_api},
    names::{CLAIMED_BY, CLUSTER, FIELD_MANAGER, FINALIZER, MANAGED_BY},
    validate::Identity,
    watches::Stores,
    workload::WorkloadRef,
};

/// Why a resource could not be let go. The variant's name is the Event's reason.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The finalizer could not be set or taken away.
    #[error("the finalizer cannot be changed: {0}")]
    ChangeFinalizer(Box<kube::Error>),
    /// The namespace could not be read.
    #[error("the namespace cannot be read: {0}")]
    ReadNamespace(Box<kube::Error>),
    /// The `ConfigMaps` could not be listed.
    #[error("ConfigMaps cannot be listed: {0}")]
    ListConfigMaps(Box<kube::Error>),
    /// The claim of a workload could not be given up.
    #[error("the claim of {workload} cannot be given up: {source}")]
    ReleaseWorkload {
        /// Which.
        workload: WorkloadRef,
        /// Why.
        source: Box<kube::Error>,
    },
    /// Something could not be read.
    #[error(transparent)]
    Dereference(#[from] dereference::Error),
    /// Something could not be written.
    #[error(transparent)]
    Apply(#[from] apply::Error),
}

impl Error {
    /// The Event's reason.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ChangeFinalizer(_) => "ChangeFinalizer",
            Self::ReadNamespace(_) => "ReadNamespace",
            Self::ListConfigMaps(_) => "ListConfigMaps",
            Self::ReleaseWorkload { .. } => "ReleaseWorkload",
            Self::Dereference(error) => error.reason(),
            Self::Apply(error) => error.reason(),
        }
    }
}

/// How far a deletion is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The resource has been let go.
    Gone,
    /// These pods still have our part.
    Waits(Vec<String>),
}

/// Sets the finalizer.
///
/// # Errors
/// The API server does not answer, or refuses.
pub async fn hold(
    client: &Client,
    identity: &Identity,
    finalizers: &[String],
    resource_version: Option<&str>,
) -> Result<(), Error> {
    let all: Vec<_> = finalizers.iter().map(String::as_str).chain([FINALIZER]).collect();
    change(client, identity, &all, resource_version).await
}

/// Takes the finalizer away.
async fn release(
    client: &Client,
    identity: &Identity,
    finalizers: &[String],
    resource_version: Option<&str>,
) -> Result<(), Error> {
    let others: Vec<_> = finalizers.iter().map(String::as_str).filter(|name| *name != FINALIZER).collect();
    change(client, identity, &others, resource_version).await
}

async fn change(
    client: &Client,
    identity: &Identity,
    finalizers: &[&str],
    resource_version: Option<&str>,
) -> Result<(), Error> {
    let resource = ApiResource::erase::<cabloy_crds::CabloyCluster>(&());
    // A dynamic object: what cannot be read must not stay for ever.
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), &identity.namespace, &resource);
    // The list is replaced as a whole: nobody may have changed it since it was read.
    let patch = json!({ "metadata": { "resourceVersion": resource_version, "finalizers": finalizers } });
    match api.patch(&identity.name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(Error::ChangeFinalizer(Box::new(error))),
    }
}

/// Whether the namespace is going, and everything in it.
///
/// # Errors
/// The API server does not answer.
pub async fn namespace_is_going(client: &Client, namespace: &str) -> Result<bool, Error> {
    match Api::<Namespace>::all(client.clone()).get_metadata_opt(namespace).await {
        Ok(namespace) => Ok(namespace.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some())),
        // An installation without this right waits for the workloads to go by themselves, which they do.
        Err(kube::Error::Api(status)) if status.is_forbidden() => Ok(false),
        Err(error) => Err(Error::ReadNamespace(Box::new(error))),
    }
}

/// Lets a deleted resource go, once nothing of it is in use.
///
/// # Errors
/// The API server does not answer, or refuses.
pub async fn finalize(
    client: &Client,
    stores: &Stores,
    sent: &Sent,
    identity: &Identity,
    policy: DeletionPolicy,
    finalizers: &[String],
    resource_version: Option<&str>,
) -> Result<Progress, Error> {
    let going = namespace_is_going(client, &identity.namespace).await?;
    if !going {
        match policy {
            DeletionPolicy::Withdraw => {
                let waits = leave(client, stores, sent, identity).await?;
                if !waits.is_empty() {
                    return Ok(Progress::Waits(waits));
                }
            }
            DeletionPolicy::Orphan => give_up_claims(client, stores, identity).await?,
        }
    }
    release(client, identity, finalizers, resource_version).await?;
    Ok(Progress::Gone)
}

/// Takes our part out of all workloads, and deletes the `ConfigMaps` once no pod uses them. Returns the pods that do.
async fn leave(client: &Client, stores: &Stores, sent: &Sent, identity: &Identity) -> Result<Vec<String>, Error> {
    for reference in claimed(stores, identity) {
        let live = read_workload(client, identity, &reference).await?;
        if let Some(live) = live.filter(|live| live.claimed_by() == Some(&identity.uid)) {
            withdraw(client, sent, identity, &reference, &live).await?;
        }
    }
    // A pod that no node has taken yet has mounted nothing, and is replaced before it could.
    let left: Vec<_> = pods(stores, identity).into_iter().filter(|pod| pod.scheduled).map(|pod| pod.name).collect();
    if !left.is_empty() {
        return Ok(left);
    }
    // As the API server has it now: what was made a moment ago must not stay behind.
    let ours = ListParams::default().labels(&format!("{MANAGED_BY}={FIELD_MANAGER},{CLUSTER}={}", identity.name));
    let maps = Api::<ConfigMap>::namespaced(client.clone(), &identity.namespace)
        .list_metadata(&ours)
        .await
        .map_err(|error| Error::ListConfigMaps(Box::new(error)))?;
    for map in maps {
        delete_config_map(client, identity, &map.name_any()).await?;
    }
    Ok(Vec::new())
}

/// Leaves everything as it is, but for the claim: another resource may take the workloads over.
async fn give_up_claims(client: &Client, stores: &Stores, identity: &Identity) -> Result<(), Error> {
    let patch = json!({ "metadata": { "annotations": { CLAIMED_BY: null } } });
    for reference in claimed(stores, identity) {
        let api = workload_api(client, &identity.namespace, reference.kind);
        match api.patch_metadata(&reference.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(source) => return Err(Error::ReleaseWorkload { workload: reference, source: Box::new(source) }),
        }
    }
    Ok(())
}
