//! The pause before the app gets SIGTERM: a `preStop` hook of its container, where the user has none.
//!
//! Kubernetes tells of a pod's end to the app and to those who call it at the same time, and the app is quicker. In the
//! pause the pod goes out of all lists of endpoints while it still serves.

use cabloy_crds::resource::Drain;
use serde_json::{Value, json};

use super::Note;
use crate::{names::PAUSE, workload::Live};

/// The pause of a container, in seconds; `None` where it is not ours to give, or where none is wanted.
pub(super) fn pause(asked: Option<i64>, live: &Live, container: &Value, notes: &mut Vec<Note>) -> Option<i64> {
    let asked = asked.unwrap_or(Drain::DEFAULT_PAUSE_SECS);
    if asked == 0 || (pre_stop(container).is_some() && !is_ours(container, &live.0)) {
        return None;
    }
    // The other half is for the app to end in. And the API server takes no pause that is longer than the whole.
    let grace = live.grace_period();
    let pause = asked.min(grace / 2);
    if pause < asked {
        notes.push(Note::PauseShortened { asked, grace });
    }
    (pause > 0).then_some(pause)
}

/// The hook that makes the pause.
pub(super) fn hook(pause: i64) -> Value {
    json!({ "sleep": { "seconds": pause } })
}

/// The pause of ours that the pod template of a workload has.
pub(super) fn given(workload: &Value) -> Option<i64> {
    workload.pointer("/spec/template/metadata/annotations")?.get(PAUSE)?.as_str()?.parse().ok()
}

/// Whether the `preStop` hook of a container is the one of ours: nobody has changed it since.
pub(super) fn is_ours(container: &Value, workload: &Value) -> bool {
    given(workload).is_some_and(|pause| pre_stop(container) == Some(&hook(pause)))
}

/// Takes a pause of ours out of a container; whether it was there.
pub(super) fn remove(container: &mut Value, workload: &Value) -> bool {
    let ours = is_ours(container, workload);
    if ours && let Some(container) = container.as_object_mut() {
        let lifecycle = container.get_mut("lifecycle").and_then(Value::as_object_mut);
        if lifecycle.is_some_and(|lifecycle| lifecycle.remove("preStop").is_some() && lifecycle.is_empty()) {
            container.remove("lifecycle");
        }
    }
    ours
}

fn pre_stop(container: &Value) -> Option<&Value> {
    container.pointer("/lifecycle/preStop").filter(|hook| !hook.is_null())
}
