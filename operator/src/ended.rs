//! The operator's word on pods whose attempts a leader waits for: whether the app that had begun them has ended, so that
//! there will be no result. Without it the next attempt waits for the deadline.

use std::collections::{BTreeMap, BTreeSet};

use cabloy_crds::agent_status::Awaited;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerState, Pod, VolumeMount};
use kube::{Api, Client, ResourceExt as _};

/// So much later than the claim a container has to have ended: the claim is by the clocks of the masters, the end by
/// kubelet's, in whole seconds.
const APART: SignedDuration = SignedDuration::from_secs(5);

/// So many pods are looked at in one reconciliation.
const LIMIT: usize = 50;

/// Of those whose attempts are waited for, the ones that have ended, by UID, and until when what they had claimed has ended
/// with them. Of what cannot be read nothing is said.
pub async fn ended(client: &Client, namespace: &str, awaited: BTreeSet<Awaited>) -> BTreeMap<String, Timestamp> {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let mut ended = BTreeMap::new();
    for Awaited { pod, uid, since } in awaited.into_iter().take(LIMIT) {
        // From the API server itself: a pod that our store has not seen yet may be the one that works.
        match pods.get_opt(&pod).await {
            Ok(found) if has_ended(found.as_ref(), &uid, since) => {
                let until = ended.entry(uid).or_insert(since);
                *until = since.max(*until);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(pod, %error, "whether it has ended cannot be read"),
        }
    }
    ended
}

/// Whether the app that had begun something at `since` in the pod `uid` has ended; `pod` is the one of its name, if any.
fn has_ended(pod: Option<&Pod>, uid: &str, since: Timestamp) -> bool {
    let Some(pod) = pod.filter(|pod| pod.uid().as_deref() == Some(uid)) else { return true };
    let status = pod.status.as_ref();
    if status.and_then(|status| status.phase.as_deref()).is_some_and(|it| matches!(it, "Succeeded" | "Failed")) {
        return true;
    }
    let app = app_container(pod);
    let containers = status.and_then(|status| status.container_statuses.as_ref()).into_iter().flatten();
    let both = containers.filter(|it| Some(&*it.name) == app).flat_map(|it| [&it.state, &it.last_state]);
    both.flatten().filter_map(finished).any(|finished| finished >= since + APART)
}

/// The container that our volumes are mounted in.
fn app_container(pod: &Pod) -> Option<&str> {
    let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let ours = |mounts: &Vec<VolumeMount>| mounts.iter().any(|mount| mount.name.starts_with("cabloy-"));
    let app = containers.iter().find(|container| container.volume_mounts.as_ref().is_some_and(ours));
    app.map(|container| container.name.as_str())
}

fn finished(state: &ContainerState) -> Option<Timestamp> {
    Some(state.terminated.as_ref()?.finished_at.as_ref()?.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(phase: &str, app: &serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web-0", "uid": "u"},
            "spec": {"containers": [
                {"name": "log"}, {"name": "app", "volumeMounts": [{"name": "cabloy-boot", "mountPath": "/etc/cabloy/boot"}]},
            ]},
            "status": {"phase": phase, "containerStatuses": [
                {"name": "log", "image": "", "imageID": "", "ready": true, "restartCount": 1,
                    "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2026-11-23T10:09:00Z"}}},
                app,
            ]},
        }))
        .unwrap()
    }

    fn app(state: &str, finished: &str) -> serde_json::Value {
        let terminated = json!({"terminated": {"exitCode": 137, "finishedAt": finished}});
        json!({"name": "app", "image": "", "imageID": "", "ready": true, "restartCount": 1, state: terminated})
    }

    #[test]
    fn an_app_has_ended_with_its_pod_or_its_container() {
        let since: Timestamp = "2026-11-23T10:00:00.5Z".parse().unwrap();
        let late = "2026-11-23T10:00:30Z";
        let fresh = json!({"name": "app", "image": "", "imageID": "", "ready": true, "restartCount": 0});
        for (what, ended, phase, app) in [
            ("it runs, though another container has ended", false, "Running", fresh),
            ("a Job's, which is done", true, "Succeeded", app("state", "2026-11-23T09:00:00Z")),
            ("evicted", true, "Failed", app("state", "2026-11-23T09:00:00Z")),
            ("its container has ended", true, "Running", app("state", late)),
            ("its container was started again", true, "Running", app("lastState", late)),
            ("it had been before", false, "Running", app("lastState", "2026-11-23T09:59:00Z")),
            ("who knows by these clocks", false, "Running", app("lastState", "2026-11-23T10:00:05Z")),
        ] {
            assert_eq!(has_ended(Some(&pod(phase, &app)), "u", since), ended, "{what}");
        }
        assert!(has_ended(None, "u", since), "no pod of that name");
        let namesake = pod("Running", &app("lastState", "2026-11-23T09:59:00Z"));
        assert!(has_ended(Some(&namesake), "v", since), "another pod of the same name");
    }
}
