//! Step 1 (client): everything that a resource is about, as it is now.

use std::collections::{BTreeMap, BTreeSet};

use cabloy_crds::{
    files::{AgentFile, RoleFile},
    names::{AGENT_FILE, CLIENT_FILE, REDLOCK_ROLE},
    resource::{CabloyClusterSpec, WorkloadKind},
};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet},
    core::v1::ConfigMap,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{ApiResource, DynamicObject},
    core::PartialObjectMeta,
    runtime::reflector::Store,
};

use crate::{
    agents::{AgentPod, Agents, Report},
    ended::ended,
    names::{BOOT, CLAIMED_BY, CLUSTER, agent_config_map, role_config_map},
    takeover,
    validate::{Identity, Masters, server},
    watches::{DEPLOYMENT_REVISION, Stores},
    workload::{Live, WorkloadRef},
};

/// Why the state of a resource could not be read. The variant's name is the Event's reason.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A workload could not be read.
    #[error("{workload} cannot be read: {source}")]
    ReadWorkload {
        /// Which.
        workload: WorkloadRef,
        /// Why.
        source: Box<kube::Error>,
    },
    /// The pods of a workload could not be listed.
    #[error("the pods of {workload} cannot be listed: {source}")]
    ListPods {
        /// Which.
        workload: WorkloadRef,
        /// Why.
        source: Box<kube::Error>,
    },
    /// A `ConfigMap` could not be read.
    #[error("ConfigMap {name} cannot be read: {source}")]
    ReadConfigMap {
        /// Which.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
}

impl Error {
    /// The Event's reason.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ReadWorkload { .. } => "ReadWorkload",
            Self::ListPods { .. } => "ListPods",
            Self::ReadConfigMap { .. } => "ReadConfigMap",
        }
    }
}

/// A `ReplicaSet` or `ControllerRevision` with our part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RevisionFound {
    /// UID of its workload.
    pub owner: String,
    /// The hash in the labels of its pods.
    pub hash: String,
    /// Its number.
    pub number: u64,
    /// The boot map that its pods use.
    pub boot: Option<String>,
    /// Names and images of its containers.
    pub containers: Vec<(String, String)>,
}

/// All that was found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The workloads that the resource names, and those it has claimed.
    pub workloads: BTreeMap<WorkloadRef, Option<Live>>,
    /// Those that it has claimed.
    pub claimed: BTreeSet<WorkloadRef>,
    /// Names of the other resources of the namespace, by UID.
    pub others: BTreeMap<String, String>,
    /// The revisions of its workloads.
    pub revisions: Vec<RevisionFound>,
    /// Its `ConfigMaps`, as last seen.
    pub config_maps: BTreeMap<String, ConfigMap>,
    /// The agents' file that is in force.
    pub agent_file: Option<AgentFile>,
    /// The masters that are in force.
    pub masters: Option<Vec<String>>,
    /// Its pods.
    pub pods: Vec<AgentPod>,
    /// The pods of its workloads, with our labels or without; only while one of the app's own schedules is to be taken over.
    pub workload_pods: Vec<AgentPod>,
    /// What their agents last said, by the pod's UID.
    pub reports: BTreeMap<String, Report>,
    /// Pods that leaders wait for and that have ended, by UID, and until when what they claimed ended with them.
    pub ended: BTreeMap<String, Timestamp>,
    /// Workloads that our part was taken out of too often.
    pub given_up: BTreeSet<WorkloadRef>,
}

impl Found {
    /// The workload, if it exists.
    #[must_use]
    pub fn live(&self, reference: &WorkloadRef) -> Option<&Live> {
        self.workloads.get(reference)?.as_ref()
    }
}

/// The API of a kind of workloads, as raw JSON.
#[must_use]
pub fn workload_api(client: &Client, namespace: &str, kind: WorkloadKind) -> Api<DynamicObject> {
    let resource = match kind {
        WorkloadKind::Deployment => ApiResource::erase::<Deployment>(&()),
        WorkloadKind::StatefulSet => ApiResource::erase::<StatefulSet>(&()),
        WorkloadKind::DaemonSet => ApiResource::erase::<DaemonSet>(&()),
    };
    Api::namespaced_with(client.clone(), namespace, &resource)
}

/// Reads what the resource is about. What another could have changed unseen is read from the API server.
///
/// # Errors
/// The API server does not answer, or refuses.
pub async fn dereference(
    client: &Client,
    stores: &Stores,
    agents: &Agents,
    identity: &Identity,
    spec: &CabloyClusterSpec,
) -> Result<Found, Error> {
    let claimed = claimed(stores, identity);
    let named =
        spec.workloads.iter().map(|workload| WorkloadRef { kind: workload.kind(), name: workload.name.clone() });
    let wanted: BTreeSet<_> = named.chain(claimed.iter().cloned()).collect();
    let mut workloads = BTreeMap::new();
    for reference in wanted {
        let live = read_workload(client, identity, &reference).await?;
        workloads.insert(reference, live);
    }
    let owners: BTreeSet<_> = workloads.values().flatten().map(|live| live.uid().to_owned()).collect();
    let agent_map = read_config_map(client, identity, &agent_config_map(&identity.name)).await?;
    let redlock_map = read_config_map(client, identity, &role_config_map(&identity.name, REDLOCK_ROLE)).await?;
    let agent_file = parse(agent_map.as_ref(), AGENT_FILE);
    let mut workload_pods = Vec::new();
    if takeover::is_pending(spec, agent_file.as_ref()) {
        for (reference, live) in workloads.iter().filter_map(|(reference, live)| Some((reference, live.as_ref()?))) {
            let error = |source| Error::ListPods { workload: reference.clone(), source: Box::new(source) };
            workload_pods.extend(takeover::pods(client, &identity.namespace, live).await.map_err(error)?);
        }
    }
    let pods = pods(stores, identity);
    let reports = agents.reports(&pods);
    let awaited = reports.values().filter_map(Report::status).flat_map(|status| status.awaits.iter().cloned());
    let ended = ended(client, &identity.namespace, awaited.collect()).await;
    Ok(Found {
        claimed,
        others: others(stores, identity),
        revisions: revisions(stores, identity, &owners),
        config_maps: config_maps(stores, identity),
        agent_file,
        masters: parse::<RoleFile>(redlock_map.as_ref(), CLIENT_FILE).map(|file| match file {
            RoleFile::Masters(masters) => masters.iter().map(server).collect(),
            RoleFile::Client(client) => vec![server(&client)],
        }),
        workload_pods,
        reports,
        ended,
        pods,
        workloads,
        given_up: BTreeSet::new(),
    })
}

/// Reads a workload; `None` if there is none.
///
/// # Errors
/// The API server does not answer, or refuses.
pub async fn read_workload(
    client: &Client,
    identity: &Identity,
    reference: &WorkloadRef,
) -> Result<Option<Live>, Error> {
    let error = |source: kube::Error| Error::ReadWorkload { workload: reference.clone(), source: Box::new(source) };
    let api = workload_api(client, &identity.namespace, reference.kind);
    let object = api.get_opt(&reference.name).await.map_err(error)?;
    object
        .map(|object| serde_json::to_value(object).map(Live))
        .transpose()
        .map_err(|source| error(kube::Error::SerdeError(source)))
}

async fn read_config_map(client: &Client, identity: &Identity, name: &str) -> Result<Option<ConfigMap>, Error> {
    Api::<ConfigMap>::namespaced(client.clone(), &identity.namespace)
        .get_opt(name)
        .await
        .map_err(|source| Error::ReadConfigMap { name: name.to_owned(), source: Box::new(source) })
}

/// A file of a `ConfigMap`. One that somebody has spoilt counts as absent: it is written anew.
fn parse<T: serde::de::DeserializeOwned>(map: Option<&ConfigMap>, file: &str) -> Option<T> {
    serde_json::from_str(map?.data.as_ref()?.get(file)?).ok()
}

/// The workloads that carry the claim of the resource.
#[must_use]
pub fn claimed(stores: &Stores, identity: &Identity) -> BTreeSet<WorkloadRef> {
    let mut claimed = BTreeSet::new();
    claimed_in(&stores.deployments, WorkloadKind::Deployment, identity, &mut claimed);
    claimed_in(&stores.stateful_sets, WorkloadKind::StatefulSet, identity, &mut claimed);
    claimed_in(&stores.daemon_sets, WorkloadKind::DaemonSet, identity, &mut claimed);
    claimed
}

fn claimed_in<K>(
    store: &Store<PartialObjectMeta<K>>,
    kind: WorkloadKind,
    identity: &Identity,
    claimed: &mut BTreeSet<WorkloadRef>,
) where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let ours = store.state_filter(|workload| {
        workload.metadata.namespace.as_deref() == Some(&identity.namespace)
            && workload.annotations().get(CLAIMED_BY) == Some(&identity.uid)
    });
    claimed.extend(ours.iter().map(|workload| WorkloadRef { kind, name: workload.name_any() }));
}

fn others(stores: &Stores, identity: &Identity) -> BTreeMap<String, String> {
    stores
        .clusters
        .state()
        .iter()
        .filter(|other| other.meta().namespace.as_deref() == Some(&identity.namespace))
        .filter_map(|other| Some((other.meta().uid.clone()?, other.meta().name.clone()?)))
        .filter(|(uid, _)| *uid != identity.uid)
        .collect()
}

fn config_maps(stores: &Stores, identity: &Identity) -> BTreeMap<String, ConfigMap> {
    stores
        .config_maps
        .state_filter(|map| belongs(map, identity))
        .iter()
        .map(|map| (map.name_any(), (**map).clone()))
        .collect()
}

fn belongs<K: Resource>(object: &K, identity: &Identity) -> bool {
    object.meta().namespace.as_deref() == Some(&identity.namespace)
        && object.labels().get(CLUSTER) == Some(&identity.name)
}

/// The pods of a resource that have not ended.
#[must_use]
pub fn pods(stores: &Stores, identity: &Identity) -> Vec<AgentPod> {
    let mut pods: Vec<_> =
        stores.pods.state_filter(|pod| belongs(pod, identity)).iter().filter_map(|pod| AgentPod::of(pod)).collect();
    pods.sort_by(|one, other| one.name.cmp(&other.name));
    pods
}

fn revisions(stores: &Stores, identity: &Identity, owners: &BTreeSet<String>) -> Vec<RevisionFound> {
    let sets = stores.replica_sets.state_filter(|set| belongs(set, identity));
    let controller_revisions = stores.controller_revisions.state_filter(|revision| belongs(revision, identity));
    let mut revisions: Vec<_> = sets
        .iter()
        .filter_map(|set| replica_set(set))
        .chain(controller_revisions.iter().filter_map(|revision| controller_revision(revision)))
        .filter(|revision| owners.contains(&revision.owner))
        .collect();
    revisions.sort_by(|one, other| (&one.owner, one.number).cmp(&(&other.owner, other.number)));
    revisions
}

fn owner<K: Resource>(object: &K) -> Option<(String, String)> {
    let owner = object.owner_references().iter().find(|owner| owner.controller == Some(true))?;
    Some((owner.kind.clone(), owner.uid.clone()))
}

/// The boot map that the pods of a `ReplicaSet` use.
#[must_use]
pub fn replica_set_boot(set: &ReplicaSet) -> Option<String> {
    set.spec.as_ref()?.template.as_ref()?.metadata.as_ref()?.annotations.as_ref()?.get(BOOT).cloned()
}

/// The boot map that the pods of a `ControllerRevision` use.
#[must_use]
pub fn controller_revision_boot(revision: &ControllerRevision) -> Option<String> {
    revision.data.as_ref()?.0["spec"]["template"]["metadata"]["annotations"][BOOT].as_str().map(str::to_owned)
}

/// A revision of a Deployment, as seen in its `ReplicaSet`.
#[must_use]
pub fn replica_set(set: &ReplicaSet) -> Option<RevisionFound> {
    let template = set.spec.as_ref()?.template.as_ref()?;
    let containers = template.spec.iter().flat_map(|spec| &spec.containers);
    Some(RevisionFound {
        owner: owner(set)?.1,
        hash: set.labels().get("pod-template-hash")?.clone(),
        // Absent for a moment after it was made; the next event has it.
        number: set.annotations().get(DEPLOYMENT_REVISION)?.parse().ok()?,
        boot: replica_set_boot(set),
        containers: containers
            .map(|container| (container.name.clone(), container.image.clone().unwrap_or_default()))
            .collect(),
    })
}

/// A revision of a `StatefulSet` or `DaemonSet`, as seen in its `ControllerRevision`.
#[must_use]
pub fn controller_revision(revision: &ControllerRevision) -> Option<RevisionFound> {
    let (kind, owner) = owner(revision)?;
    let template = &revision.data.as_ref()?.0["spec"]["template"];
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Some(RevisionFound {
        owner,
        // Pods of a StatefulSet carry the revision's name, those of a DaemonSet its hash.
        hash: match kind.as_str() {
            "StatefulSet" => revision.name_any(),
            _ => revision.labels().get("controller-revision-hash")?.clone(),
        },
        number: u64::try_from(revision.revision).ok()?,
        boot: controller_revision_boot(revision),
        containers: template["spec"]["containers"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|container| (text(&container["name"]), text(&container["image"])))
            .collect(),
    })
}

/// Who uses the masters that are in force, where the resource asks for other ones. The agents are asked anew, for an
/// answer of some seconds ago says nothing about who leads now.
pub async fn masters(agents: &Agents, found: &mut Found, wanted: &[String]) -> Masters {
    let Some(present) = found.masters.clone() else { return Masters::Free };
    if present.len() == wanted.len() && wanted.iter().all(|one| present.contains(one)) {
        return Masters::Idle(present);
    }
    agents.ask_now(&found.pods).await;
    found.reports = agents.reports(&found.pods);
    users(present, &found.pods, &found.reports)
}

fn users(present: Vec<String>, pods: &[AgentPod], reports: &BTreeMap<String, Report>) -> Masters {
    let user = pods.iter().filter(|pod| pod.agent_runs).find_map(|pod| {
        let name = &pod.name;
        let status = match reports.get(&pod.uid) {
            Some(Report::Answered(status)) => status,
            Some(Report::Failed(error)) => return Some(format!("the agent of pod {name} cannot be asked: {error}")),
            None => return Some(format!("the agent of pod {name} has not been asked yet")),
        };
        let election = status.election.as_ref()?;
        let reached = election.masters.iter().filter(|master| master.reachable).count();
        if election.leading {
            Some(format!("pod {name} leads by them"))
        } else if reached > election.masters.len() / 2 {
            Some(format!("pod {name} reaches a majority of them"))
        } else {
            None
        }
    });
    match user {
        Some(user) => Masters::InUse(present, user),
        None => Masters::Idle(present),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cabloy_crds::agent_status::{AgentStatus, ElectionStatus, MasterStatus};
    use serde_json::json;

    use super::*;

    fn pod() -> AgentPod {
        AgentPod {
            name: "web-0".into(),
            uid: "u".into(),
            cluster: "shop".into(),
            namespace: "prod".into(),
            ip: None,
            scheduled: true,
            terminating: false,
            agent_image: None,
            agent_runs: true,
            synced: None,
            secrets: None,
            started: BTreeMap::new(),
            boot: None,
        }
    }

    fn answer(leading: bool, reachable: [bool; 3]) -> BTreeMap<String, Report> {
        let masters =
            reachable.map(|reachable| MasterStatus { address: "a:6379".into(), reachable, problem: None }).to_vec();
        let election = ElectionStatus { leading, masters, ..ElectionStatus::default() };
        let status = AgentStatus { election: Some(election), ..AgentStatus::default() };
        BTreeMap::from([("u".to_owned(), Report::Answered(Arc::new(status)))])
    }

    #[test]
    fn masters_are_in_use_by_a_leader_a_majority_or_somebody_unknown() {
        let present = vec!["a:6379/0".to_owned()];
        let used = |pods: &[AgentPod], reports| matches!(users(present.clone(), pods, &reports), Masters::InUse(..));
        assert!(used(&[pod()], answer(true, [false; 3])));
        assert!(used(&[pod()], answer(false, [true, true, false])));
        assert!(!used(&[pod()], answer(false, [true, false, false])));
        assert!(used(&[pod()], BTreeMap::new()));
        assert!(used(&[pod()], BTreeMap::from([("u".to_owned(), Report::Failed("refused".into()))])));
        assert!(!used(&[AgentPod { agent_runs: false, ..pod() }], BTreeMap::new()));
    }

    #[test]
    fn revisions_are_read_from_both_kinds_of_history() {
        let set: ReplicaSet = serde_json::from_value(json!({
            "metadata": {
                "name": "web-7d", "labels": {"pod-template-hash": "7d"},
                "annotations": {"deployment.kubernetes.io/revision": "3"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "w", "controller": true}],
            },
            "spec": {"selector": {}, "template": {
                "metadata": {"annotations": {"cabloy.io/boot": "shop-boot-1"}},
                "spec": {"containers": [{"name": "app", "image": "shop:1"}]},
            }},
        }))
        .unwrap();
        let expected = RevisionFound {
            owner: "w".into(),
            hash: "7d".into(),
            number: 3,
            boot: Some("shop-boot-1".into()),
            containers: vec![("app".into(), "shop:1".into())],
        };
        assert_eq!(replica_set(&set), Some(expected.clone()));
        let revision = |kind: &str| -> ControllerRevision {
            serde_json::from_value(json!({
                "metadata": {
                    "name": "web-7d", "labels": {"controller-revision-hash": "7d"},
                    "ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": "web", "uid": "w", "controller": true}],
                },
                "revision": 3,
                "data": {"spec": {"template": {
                    "metadata": {"annotations": {"cabloy.io/boot": "shop-boot-1"}},
                    "spec": {"containers": [{"name": "app", "image": "shop:1"}]},
                }}},
            }))
            .unwrap()
        };
        assert_eq!(controller_revision(&revision("DaemonSet")), Some(expected.clone()));
        assert_eq!(
            controller_revision(&revision("StatefulSet")),
            Some(RevisionFound { hash: "web-7d".into(), ..expected })
        );
    }
}
