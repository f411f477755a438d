//! What the operator watches, pruned to what it reads: each store holds the least that a reconciliation needs.
//!
//! Our label is on the pod templates, and so on `ReplicaSets`, `ControllerRevisions` and pods: of those only ours are watched.

use std::{fmt::Debug, hash::Hash, sync::Arc};

use cabloy_crds::{CabloyCluster, names::AGENT_CONTAINER};
use futures::{Stream, StreamExt as _};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet},
        core::v1::{ConfigMap, Container, ContainerState, ContainerStatus, Pod, PodSpec, PodStatus},
    },
    apimachinery::pkg::runtime::RawExtension,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    core::{DeserializeGuard, PartialObjectMeta},
    runtime::{
        WatchStreamExt as _,
        reflector::{self, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch::error::RecvError;

use crate::names::{BOOT, BOOT_CONFIG, CLUSTER, FIELD_MANAGER, MANAGED_BY, TAKES_OVER, boot_prefix, prefix};

/// The resource, or why it cannot be read.
pub type Guarded = DeserializeGuard<CabloyCluster>;

/// Annotation by which a Deployment numbers its `ReplicaSets`.
pub const DEPLOYMENT_REVISION: &str = "deployment.kubernetes.io/revision";

/// What has been seen of the cluster.
#[derive(Clone)]
pub struct Stores {
    /// The resources.
    pub clusters: Store<Guarded>,
    /// Deployments: annotations of ours alone.
    pub deployments: Store<PartialObjectMeta<Deployment>>,
    /// `StatefulSets`: annotations of ours alone.
    pub stateful_sets: Store<PartialObjectMeta<StatefulSet>>,
    /// `DaemonSets`: annotations of ours alone.
    pub daemon_sets: Store<PartialObjectMeta<DaemonSet>>,
    /// `ReplicaSets` with our part: containers and images, and the boot map's name.
    pub replica_sets: Store<ReplicaSet>,
    /// `ControllerRevisions` with our part: containers and images, and the boot map's name.
    pub controller_revisions: Store<ControllerRevision>,
    /// Our `ConfigMaps`; of boot maps the metadata alone, since their names say what they hold.
    pub config_maps: Store<ConfigMap>,
    /// Pods with our part: address, and whether the agent runs.
    pub pods: Store<Pod>,
    /// How many lists have not been read yet. The stores' own way to wait wakes only one of several that wait.
    unread: tokio::sync::watch::Receiver<usize>,
}

impl Stores {
    /// Waits until all lists have been read.
    ///
    /// # Errors
    /// The watches have ended.
    pub async fn ready(&self) -> Result<(), RecvError> {
        self.unread.clone().wait_for(|unread| *unread == 0).await.map(drop)
    }
}

/// An item of a watch.
pub type Seen<K> = Result<K, watcher::Error>;

type Events<K> = futures::stream::BoxStream<'static, Seen<K>>;

/// What changes, as it changes; polling these fills the [`Stores`].
pub struct Watches {
    /// The resources.
    pub clusters: Events<Guarded>,
    /// Deployments.
    pub deployments: Events<PartialObjectMeta<Deployment>>,
    /// `StatefulSets`.
    pub stateful_sets: Events<PartialObjectMeta<StatefulSet>>,
    /// `DaemonSets`.
    pub daemon_sets: Events<PartialObjectMeta<DaemonSet>>,
    /// `ReplicaSets` with our part.
    pub replica_sets: Events<ReplicaSet>,
    /// `ControllerRevisions` with our part.
    pub controller_revisions: Events<ControllerRevision>,
    /// Our `ConfigMaps`.
    pub config_maps: Events<ConfigMap>,
    /// Pods with our part.
    pub pods: Events<Pod>,
}

/// Watches one namespace, or all.
#[must_use]
pub fn watch(client: &Client, namespace: Option<&str>) -> (Stores, Watches) {
    let all = watcher::Config::default;
    let ours = || watcher::Config::default().labels(CLUSTER);
    let managed = watcher::Config::default().labels(&format!("{MANAGED_BY}={FIELD_MANAGER},{CLUSTER}"));
    let (reading, unread) = tokio::sync::watch::channel(0);
    let reading = Arc::new(reading);
    let (clusters, clusters_events) = reflect(api(client, namespace), all(), &reading, |_: &mut Guarded| {});
    let (deployments, deployments_events) = reflect(api(client, namespace), all(), &reading, prune_workload);
    let (stateful_sets, stateful_sets_events) = reflect(api(client, namespace), all(), &reading, prune_workload);
    let (daemon_sets, daemon_sets_events) = reflect(api(client, namespace), all(), &reading, prune_workload);
    let (replica_sets, replica_sets_events) = reflect(api(client, namespace), ours(), &reading, prune_replica_set);
    let (controller_revisions, controller_revisions_events) =
        reflect(api(client, namespace), ours(), &reading, prune_controller_revision);
    let (config_maps, config_maps_events) = reflect(api(client, namespace), managed, &reading, prune_config_map);
    let (pods, pods_events) = reflect(api(client, namespace), ours(), &reading, prune_pod);
    (
        Stores {
            clusters,
            deployments,
            stateful_sets,
            daemon_sets,
            replica_sets,
            controller_revisions,
            config_maps,
            pods,
            unread,
        },
        Watches {
            clusters: clusters_events,
            deployments: deployments_events,
            stateful_sets: stateful_sets_events,
            daemon_sets: daemon_sets_events,
            replica_sets: replica_sets_events,
            controller_revisions: controller_revisions_events,
            config_maps: config_maps_events,
            pods: pods_events,
        },
    )
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

fn reflect<K>(
    api: Api<K>,
    config: watcher::Config,
    reading: &Arc<tokio::sync::watch::Sender<usize>>,
    prune: impl Fn(&mut K) + Send + 'static,
) -> (Store<K>, Events<K>)
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Eq + Hash + Clone + Default + Send + Sync,
{
    let (reader, writer) = reflector::store();
    reading.send_modify(|unread| *unread += 1);
    let mut reading = Some(reading.clone());
    let events = watcher(api, config)
        .default_backoff()
        .modify(move |object| {
            object.meta_mut().managed_fields = None;
            prune(object);
        })
        .reflect(writer)
        .inspect(move |event| {
            // The first list has been read, and is in the store.
            if matches!(event, Ok(watcher::Event::InitDone))
                && let Some(reading) = reading.take()
            {
                reading.send_modify(|unread| *unread -= 1);
            }
        })
        .touched_objects();
    (reader, boxed(events))
}

fn boxed<K>(events: impl Stream<Item = Seen<K>> + Send + 'static) -> Events<K> {
    events.boxed()
}

fn prune_workload<K>(workload: &mut PartialObjectMeta<K>) {
    let prefix = prefix();
    workload.metadata.labels = None;
    if let Some(annotations) = &mut workload.metadata.annotations {
        annotations.retain(|name, _| name.starts_with(&prefix));
    }
}

fn prune_pod_spec(spec: &mut PodSpec) {
    let containers = std::mem::take(&mut spec.containers);
    *spec = PodSpec {
        containers: containers
            .into_iter()
            .map(|container| Container { name: container.name, image: container.image, ..Container::default() })
            .collect(),
        ..PodSpec::default()
    };
}

fn prune_replica_set(set: &mut ReplicaSet) {
    set.status = None;
    set.annotations_mut().retain(|name, _| name == DEPLOYMENT_REVISION);
    if let Some(template) = set.spec.as_mut().and_then(|spec| spec.template.as_mut()) {
        if let Some(annotations) = template.metadata.as_mut().and_then(|metadata| metadata.annotations.as_mut()) {
            annotations.retain(|name, _| name == BOOT);
        }
        if let Some(spec) = &mut template.spec {
            prune_pod_spec(spec);
        }
    }
}

/// The data of a `ControllerRevision` is a patch with the whole pod template.
fn prune_controller_revision(revision: &mut ControllerRevision) {
    revision.annotations_mut().clear();
    let Some(RawExtension(data)) = &revision.data else { return };
    let template = &data["spec"]["template"];
    let containers: Vec<_> = template["spec"]["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|container| json!({ "name": container["name"], "image": container["image"] }))
        .collect();
    revision.data = Some(RawExtension(json!({ "spec": { "template": {
        "metadata": { "annotations": { BOOT: template["metadata"]["annotations"][BOOT] } },
        "spec": { "containers": containers },
    } } })));
}

fn prune_config_map(map: &mut ConfigMap) {
    let cluster = map.labels().get(CLUSTER).cloned().unwrap_or_default();
    if map.name_any().starts_with(&boot_prefix(&cluster)) {
        map.data = None;
    }
    map.annotations_mut().retain(|name, _| [BOOT_CONFIG, TAKES_OVER].contains(&name.as_str()));
}

fn prune_pod(pod: &mut Pod) {
    let prefix = prefix();
    pod.annotations_mut().retain(|name, _| name.starts_with(&prefix));
    if let Some(spec) = &mut pod.spec {
        let agent = spec
            .init_containers
            .take()
            .into_iter()
            .flatten()
            .find(|container| container.name == AGENT_CONTAINER)
            .map(|container| Container { name: container.name, image: container.image, ..Container::default() });
        let node_name = spec.node_name.take();
        *spec = PodSpec { node_name, init_containers: agent.map(|agent| vec![agent]), ..PodSpec::default() };
    }
    if let Some(status) = pod.status.take() {
        pod.status = Some(PodStatus {
            phase: status.phase,
            pod_ip: status.pod_ip,
            init_container_statuses: status.init_container_statuses.map(|mut statuses| {
                statuses.retain(|container| container.name == AGENT_CONTAINER);
                statuses
            }),
            container_statuses: status.container_statuses.map(|statuses| {
                let running =
                    |state: ContainerState| ContainerState { running: state.running, ..ContainerState::default() };
                let pruned = statuses.into_iter().map(|container| ContainerStatus {
                    name: container.name,
                    state: container.state.map(running),
                    ..ContainerStatus::default()
                });
                pruned.collect()
            }),
            ..PodStatus::default()
        });
    }
}
