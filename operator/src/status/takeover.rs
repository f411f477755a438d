//! What is said of schedules that take over one of the app's own.

use cabloy_crds::{agent_status::AgentStatus, resource::CabloyClusterStatus};

use super::{About, Answer, Said, from_problems, leading, of_agent, said, said_by_agents};
use crate::{dereference::Found, takeover::holders, validate::Validated};

const TYPE: &str = "SchedulesTakenOver";

/// Whether a schedule has not yet taken over one of the app's own, as it is to.
#[must_use]
pub fn takes_over(status: &CabloyClusterStatus) -> bool {
    status.conditions.iter().any(|condition| condition.type_ == TYPE && condition.status != "True")
}

/// Whether the schedules that take over one of the app's own have done so, if there are any.
pub(super) fn taken_over(validated: &Validated, found: &Found) -> Option<Said> {
    validated.takeover.as_ref()?;
    let statuses = said_by_agents(found);
    let problems = statuses.iter().flat_map(|status| of_agent(status));
    let problems: Vec<_> =
        problems.filter(|(_, _, about)| *about == About::Takeover).map(|(pod, problem, _)| (pod, problem)).collect();
    if !problems.is_empty() {
        return Some(from_problems(TYPE, &problems, ""));
    }
    let Some((leader, _)) = leading(&statuses) else {
        let message = "the leader takes schedules of the app's own over, and no pod leads";
        return Some(said(TYPE, Answer::Unknown, "NoLeader", message));
    };
    let (mut for_pods, mut for_jobs, mut back) = (Vec::new(), Vec::new(), Vec::new());
    let mut holders = holders(validated, found);
    for schedule in &validated.schedules {
        let (name, Some(native)) = (&schedule.name, &schedule.takes_over) else { continue };
        let holders = holders.remove(native).unwrap_or_default().into_iter().collect::<Vec<_>>().join("; ");
        match waits_for(leader, name) {
            Some(waits_for) if holders.is_empty() => for_jobs.push(format!("{name} waits for {waits_for}")),
            Some(_) => for_pods.push(format!("{name} waits until nothing runs {native} any more: {holders}")),
            None if holders.is_empty() => {}
            None => back.push(format!("{native} may be run by the app and by {name}: {holders}")),
        }
    }
    let reasons = [("WaitingForPods", for_pods), ("NativeIsBack", back), ("WaitingForJobs", for_jobs)];
    let reason = reasons.iter().find(|(_, messages)| !messages.is_empty()).map(|(reason, _)| *reason);
    let messages = || reasons.iter().flat_map(|(_, messages)| messages.iter().map(String::as_str)).collect::<Vec<_>>();
    Some(match reason {
        Some(reason) => said(TYPE, Answer::False, reason, messages().join(". ")),
        None => said(TYPE, Answer::True, "TakenOver", "the app runs none of the schedules itself that are taken over"),
    })
}

/// What a schedule waits for, by what the leader says; a leader that has not come to it yet says nothing.
fn waits_for<'a>(leader: &'a AgentStatus, name: &str) -> Option<&'a str> {
    match leader.schedules.iter().find(|schedule| schedule.name == name) {
        Some(schedule) => schedule.waits_for.as_deref(),
        None => Some("the leader to take it up"),
    }
}
