//! What is said of the guard of the app's own schedules.

use cabloy_crds::{
    CabloyClusterStatus,
    agent_status::AgentStatus,
    files,
    resource::{NativeSchedulesStatus, PutBackStatus},
};

use super::{About, Answer, Said, from_problems, leading, of_agent, said};

const TYPE: &str = "NativeSchedulesGuarded";

/// Whether the app's own schedules are guarded, if that is asked for.
pub(super) fn guarded(guard: Option<&files::Guard>, statuses: &[&AgentStatus]) -> Option<Said> {
    guard?;
    let problems = statuses.iter().flat_map(|status| of_agent(status)).filter(|(_, _, about)| *about == About::Guard);
    let problems: Vec<_> = problems.map(|(pod, problem, _)| (pod, problem)).collect();
    if !problems.is_empty() {
        return Some(from_problems(TYPE, &problems, ""));
    }
    let Some((status, _)) = leading(statuses) else {
        return Some(said(
            TYPE,
            Answer::Unknown,
            "NoLeader",
            "the leader guards the app's own schedules, and no pod leads",
        ));
    };
    let Some(guard) = &status.guard else {
        return Some(said(
            TYPE,
            Answer::Unknown,
            "Starting",
            format!("pod {} leads, and has not looked yet", status.pod),
        ));
    };
    let found = format!("{} schedules in the queues of {} instances", guard.schedules, guard.queues);
    let message = if guard.rolling {
        format!("{found}: what pods of older revisions delete of the newest revision's is put back")
    } else {
        found
    };
    Some(said(TYPE, Answer::True, "Guarded", message))
}

/// What the leader says of it.
pub(super) fn summary(status: &AgentStatus) -> Option<NativeSchedulesStatus> {
    let guard = status.guard.as_ref()?;
    let last = guard.last.first().map(|last| PutBackStatus {
        queue: last.queue.clone(),
        key: last.key.clone(),
        at: last.at.to_string(),
        next: last.next.to_string(),
    });
    Some(NativeSchedulesStatus {
        rolling: guard.rolling,
        queues: i64::try_from(guard.queues).unwrap_or(i64::MAX),
        schedules: i64::try_from(guard.schedules).unwrap_or(i64::MAX),
        put_back: i64::try_from(guard.put_back).unwrap_or(i64::MAX),
        last_put_back: last,
    })
}

/// What there is to say of schedules that have been put back since a status was written: worth one Event.
#[must_use]
pub fn put_back(before: Option<&CabloyClusterStatus>, after: &CabloyClusterStatus) -> Option<String> {
    let after = after.native_schedules.as_ref()?;
    let before = before.and_then(|before| before.native_schedules.as_ref()).map(|before| before.put_back);
    // Where nothing is known of before, it may have been said.
    let count = after.put_back.saturating_sub(before?);
    let PutBackStatus { queue, key, next, .. } = after.last_put_back.as_ref().filter(|_| count > 0)?;
    Some(format!(
        "pods of an older revision deleted schedules of the app's own, and {count} times one was put back: last {key} of \
         queue {queue}, whose next tick is {next}"
    ))
}
