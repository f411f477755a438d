//! Schedules of the app's own that schedules of the resource take over: which of its pods may still run them.

use std::collections::{BTreeMap, BTreeSet};

use cabloy_crds::{files::AgentFile, resource::CabloyClusterSpec};
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::LabelSelector};
use kube::{Api, Client, api::ListParams, core::Selector};

use crate::{agents::AgentPod, dereference::Found, names::TAKES_OVER, validate::Validated, workload::Live};

/// Whether the resource asks for something to be taken over of which the agents have not been told that they can.
#[must_use]
pub fn is_pending(spec: &CabloyClusterSpec, in_force: Option<&AgentFile>) -> bool {
    let told = in_force.and_then(|file| file.takeover.as_ref()).map(|takeover| &takeover.released);
    let mut wanted = spec.schedules.iter().filter_map(|schedule| schedule.takes_over.as_ref());
    wanted.any(|native| !told.is_some_and(|released| released.contains(native)))
}

/// The pods of a workload that have not ended, from the API server itself: also those of before the resource was there,
/// which our store does not have.
///
/// # Errors
/// The API server does not answer, or refuses.
pub async fn pods(client: &Client, namespace: &str, live: &Live) -> kube::Result<Vec<AgentPod>> {
    let selector = live.0.pointer("/spec/selector").cloned().unwrap_or_default();
    let selector: LabelSelector = serde_json::from_value(selector).map_err(kube::Error::SerdeError)?;
    // An API server has no workload with a selector that cannot be read.
    let Ok(selector) = Selector::try_from(selector) else { return Ok(Vec::new()) };
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let list = pods.list(&ListParams::default().labels_from(&selector)).await?;
    Ok(list.items.iter().filter_map(AgentPod::of).collect())
}

/// By schedule of the app's own, who may still run it.
#[must_use]
pub fn holders(validated: &Validated, found: &Found) -> BTreeMap<String, BTreeSet<String>> {
    let natives = validated.schedules.iter().filter_map(|schedule| schedule.takes_over.as_ref());
    let told = found.agent_file.as_ref().and_then(|file| file.takeover.as_ref()).map(|takeover| &takeover.released);
    natives
        .map(|native| {
            let leaves = |boot: Option<&str>| boot.is_some_and(|boot| boot_leaves(found, boot, native));
            let mut holders = BTreeSet::new();
            for workload in &validated.workloads {
                let Some(live) = found.live(&workload.reference) else { continue };
                let progress = live.progress(workload.reference.kind);
                let is_rolled = live.observed_generation() >= live.generation() && progress.total <= progress.updated;
                if !leaves(live.boot()) {
                    holders.insert(format!("{}, whose pods boot as before", workload.reference));
                } else if !is_rolled && !told.is_some_and(|released| released.contains(native)) {
                    holders.insert(format!("{}, which rolls out", workload.reference));
                }
            }
            let pods = found.pods.iter().chain(&found.workload_pods).filter(|pod| !leaves(pod.boot.as_deref()));
            holders.extend(pods.map(|pod| format!("pod {}", pod.name)));
            (native.clone(), holders)
        })
        .collect()
}

/// Whether pods with that boot map leave the schedule to the agents.
fn boot_leaves(found: &Found, boot: &str, native: &str) -> bool {
    // What is in a boot map is not kept in memory.
    let said = found.config_maps.get(boot).and_then(|map| map.metadata.annotations.as_ref()?.get(TAKES_OVER));
    said.is_some_and(|natives| natives.split(',').any(|it| it == native))
}

#[cfg(test)]
mod tests {
    use cabloy_crds::resource::WorkloadKind;
    use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
    use serde_json::json;

    use super::*;
    use crate::{names::BOOT, validate::tests::sound, workload::WorkloadRef};

    fn boot(natives: &[&str]) -> ConfigMap {
        let annotations = [(TAKES_OVER.to_owned(), natives.join(","))];
        ConfigMap {
            metadata: ObjectMeta { annotations: Some(annotations.into()), ..Default::default() },
            ..ConfigMap::default()
        }
    }

    fn pod(name: &str, boot: Option<&str>) -> AgentPod {
        let annotations = boot.map_or(json!({}), |boot| json!({ BOOT: boot }));
        let pod = json!({ "metadata": { "name": name, "annotations": annotations }, "status": { "phase": "Running" } });
        AgentPod::of(&serde_json::from_value(pod).unwrap()).unwrap()
    }

    #[test]
    fn a_schedule_is_released_when_nothing_boots_as_before() {
        let validated = sound(&json!({ "schedules": [
            { "name": "s", "every": "5s", "takesOver": "m.night", "target": { "http": { "path": "/" } } },
            { "name": "t", "every": "5s", "target": { "http": { "path": "/" } } },
        ] }));
        let reference = WorkloadRef { kind: WorkloadKind::Deployment, name: "web".into() };
        let live = |boot: &str, updated: i64| {
            Some(Live(json!({
                "metadata": { "generation": 2 },
                "spec": { "template": { "metadata": { "annotations": { BOOT: boot } } } },
                "status": { "observedGeneration": 2, "replicas": 2, "updatedReplicas": updated },
            })))
        };
        let mut found = Found {
            workloads: [(reference.clone(), live("b1", 2))].into(),
            config_maps: [("b1".to_owned(), boot(&[])), ("b2".to_owned(), boot(&["m.other", "m.night"]))].into(),
            pods: vec![pod("web-a", Some("b1")), pod("web-b", Some("b2"))],
            workload_pods: vec![pod("web-c", None), pod("web-d", Some("gone"))],
            ..Found::default()
        };
        let said = |found: &Found| {
            let holders = holders(&validated, found);
            assert_eq!(holders.len(), 1, "the other schedule takes over nothing");
            holders["m.night"].iter().cloned().collect::<Vec<_>>()
        };
        let before = "Deployment web, whose pods boot as before";
        assert_eq!(said(&found), [before, "pod web-a", "pod web-c", "pod web-d"]);
        found.workloads.insert(reference.clone(), live("b2", 1));
        found.workload_pods.clear();
        assert_eq!(said(&found), ["Deployment web, which rolls out", "pod web-a"]);
        found.workloads.insert(reference.clone(), live("b2", 2));
        assert_eq!(said(&found), ["pod web-a"], "it ends");
        found.pods.remove(0);
        assert!(said(&found).is_empty());
        found.workloads.insert(reference, None);
        assert!(said(&found).is_empty(), "of nothing there are no pods");
    }
}
