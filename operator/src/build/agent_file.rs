//! `agent.json`: all that the agents do.

use std::collections::{BTreeMap, BTreeSet};

use cabloy_crds::{
    agent_status::StartupState,
    files::{AgentFile, Floor, Guard, Revision, Takeover},
    resource::Scope,
};

use crate::{
    dereference::{Found, RevisionFound},
    names::hash,
    takeover::holders,
    validate::{AgentPlan, Validated},
};

/// The token is mirrored only when it has grown by so much, or something else is written: a write reaches every pod.
const TOKEN_STEP: u64 = 100;

/// Stands between the revision of a task and the id under which it is done once more; in neither of them.
const AGAIN: char = '~';

/// So many done revisions are remembered for each startup task.
const DONE_LIMIT: usize = 32;

/// The file that the resource asks for, with what the agents found out since.
pub(super) fn agent_file(validated: &Validated, agent: &AgentPlan, found: &Found) -> serde_json::Result<AgentFile> {
    let before = found.agent_file.as_ref();
    let floor_before = before.map(|file| file.floor.clone()).unwrap_or_default();
    let token = floor_before.token.max(highest_token(found));
    let file = AgentFile {
        cluster: format!("{}/{}", validated.identity.namespace, validated.identity.name),
        app: validated.app.clone(),
        election: agent.election.clone(),
        tracing: agent.tracing.clone(),
        floor: Floor { token: floor_before.token, startups: done(validated, &floor_before, found) },
        schedules: validated.schedules.clone(),
        startups: validated.startups.clone(),
        ended: found.ended.clone(),
        guard: guard(validated, found),
        takeover: takeover(validated, found),
        revisions: revisions(validated, found)?,
    };
    let unchanged = before == Some(&file);
    if unchanged && token < floor_before.token.saturating_add(TOKEN_STEP) {
        return Ok(file);
    }
    Ok(AgentFile { floor: Floor { token, ..file.floor }, ..file })
}

fn highest_token(found: &Found) -> u64 {
    let statuses = found.reports.values().filter_map(|report| report.status());
    statuses.filter_map(|status| status.election.as_ref()?.token).max().unwrap_or_default()
}

/// Startup tasks that are done: those known before, and those that agents say are done now.
fn done(validated: &Validated, before: &Floor, found: &Found) -> BTreeMap<String, Vec<String>> {
    let mut done = BTreeMap::new();
    for task in validated.startups.iter().filter(|task| task.scope == Scope::Cluster) {
        let mut revisions = before.startups.get(&task.name).cloned().unwrap_or_default();
        let reported: BTreeSet<_> = found
            .reports
            .values()
            .filter_map(|report| report.status())
            .flat_map(|status| &status.startups)
            .filter(|status| {
                status.name == task.name && status.state == StartupState::Done && !status.revision.is_empty()
            })
            // What was done once more was done, also when nobody asks for that any more.
            .flat_map(|status| {
                let plain = status.revision.split(AGAIN).next().unwrap_or_default();
                [status.revision.clone(), plain.to_owned()]
            })
            .collect();
        revisions.extend(
            reported
                .into_iter()
                .filter(|revision| !before.startups.get(&task.name).is_some_and(|list| list.contains(revision))),
        );
        let surplus = revisions.len().saturating_sub(DONE_LIMIT);
        revisions.drain(..surplus);
        if !revisions.is_empty() {
            done.insert(task.name.clone(), revisions);
        }
    }
    done
}

/// The guard of the app's own schedules, which tells pods of the newest code from others.
fn guard(validated: &Validated, found: &Found) -> Option<Guard> {
    let guard = validated.guard.as_ref()?;
    let newest = found.revisions.iter().filter(|revision| is_newest(found, revision));
    Some(Guard { newest: newest.map(|revision| revision.hash.clone()).collect(), ..guard.clone() })
}

/// Where the app's own schedules are that are taken over, and which of them no pod runs any more.
fn takeover(validated: &Validated, found: &Found) -> Option<Takeover> {
    let takeover = validated.takeover.clone()?;
    let holders = holders(validated, found).into_iter();
    let released = holders.filter(|(_, holders)| holders.is_empty()).map(|(native, _)| native).collect();
    Some(Takeover { released, ..takeover })
}

/// Whether there is no newer revision of the same workload.
pub(super) fn is_newest(found: &Found, revision: &RevisionFound) -> bool {
    !found.revisions.iter().any(|other| other.owner == revision.owner && other.number > revision.number)
}

/// The revisions that live, by the hash in the labels of their pods.
fn revisions(validated: &Validated, found: &Found) -> serde_json::Result<BTreeMap<String, Revision>> {
    let mut revisions = BTreeMap::new();
    for revision in &found.revisions {
        let newest = is_newest(found, revision);
        let before = found.agent_file.as_ref().and_then(|file| file.revisions.get(&revision.hash));
        let mut startups = BTreeMap::new();
        for task in validated.startups.iter().filter(|task| task.scope == Scope::Cluster) {
            // What is written in the resource now is about the newest code. Older revisions keep what they were told.
            let kept = before.and_then(|before| before.startups.get(&task.name)).filter(|_| !newest);
            let written = validated.tasks.get(&task.name);
            let said = written.and_then(|task| task.revision.as_ref()).filter(|_| newest);
            let text = match (kept, said) {
                (Some(kept), _) => kept.clone(),
                (None, Some(said)) => said.clone(),
                (None, None) => {
                    let text = serde_json::to_string(&written)?;
                    hash([image(validated, found, revision).as_bytes(), text.as_bytes()], 12)
                }
            };
            let again = validated.reruns.get(&task.name).filter(|_| newest);
            startups.insert(task.name.clone(), again.map_or(text.clone(), |id| format!("{text}{AGAIN}{id}")));
        }
        revisions.insert(revision.hash.clone(), Revision { number: revision.number, startups });
    }
    Ok(revisions)
}

/// The image of the app's container in a revision.
fn image<'a>(validated: &Validated, found: &Found, revision: &'a RevisionFound) -> &'a str {
    let workload = validated
        .workloads
        .iter()
        .find(|workload| found.live(&workload.reference).is_some_and(|live| live.uid() == revision.owner));
    let wanted = workload.and_then(|workload| workload.container.as_deref());
    let mut containers = revision.containers.iter();
    let container = match wanted {
        Some(wanted) => containers.find(|(name, _)| name == wanted),
        None => containers.next(),
    };
    container.map_or("", |(_, image)| image)
}
