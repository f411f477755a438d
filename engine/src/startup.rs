//! Startup tasks: which of them belong to a pod, in which order they go, and when the pod's gate opens.
//!
//! Pure. A task runs only on the code that it belongs to: a pod knows the tasks of its own revision and no others.

use std::collections::BTreeSet;
use std::time::Duration;

use cabloy_crds::agent_status::{StartupState, StartupStatus};
use cabloy_crds::files::{AgentFile, Revision, Startup};
use cabloy_crds::vocabulary::{Gate, OnUnknown, Scope};
use jiff::Timestamp;

use crate::rule::{Rule, Rules};
use crate::runs::{Next, Policy, Run};

/// The revision of tasks of an app outside Kubernetes, where the file has none for it.
const NO_REVISION: &str = "none";

/// Where an agent runs, as far as it decides which tasks are its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a pod of a workload, by the hash in its labels.
    Pod(String),
    /// In a pod without such a label, such as one of a Job: it has no revision, and takes no part in anything.
    Loose,
    /// Outside Kubernetes; the hash may be given.
    Outside(String),
}

impl Place {
    /// The hash, empty if there is none.
    #[must_use]
    pub fn hash(&self) -> &str {
        match self {
            Self::Pod(hash) | Self::Outside(hash) => hash,
            Self::Loose => "",
        }
    }
}

/// A task of the pod's own revision.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// As the file has it.
    pub startup: Startup,
    /// For which revision of the task it counts as done; empty for scope `Instance`.
    pub revision: String,
}

impl Task {
    /// The id of its record; of scope `Instance`, which has no record, a name like one.
    #[must_use]
    pub fn id(&self) -> String {
        match self.startup.scope {
            Scope::Cluster => record_id(&self.startup.name, &self.revision),
            Scope::Instance => format!("i/{}", self.startup.name),
        }
    }

    /// What the file says of attempts. An attempt without a result is tried again: the task has to be done.
    #[must_use]
    pub fn policy(&self) -> Policy {
        Policy {
            timeout: Duration::from_millis(self.startup.timeout_ms),
            retry: self.startup.retry.clone(),
            on_unknown: OnUnknown::Retry,
        }
    }

    /// The task as `/status` shows it: `run` is what is known of it.
    #[must_use]
    pub fn status(&self, run: &Run, done: bool, now: Timestamp) -> StartupStatus {
        let running = run.running();
        let (state, message) = match run.next(&self.policy(), now) {
            _ if done => (StartupState::Done, String::new()),
            Next::Over(ending) => (StartupState::Failed, format!("{}: {}", ending.reason, ending.message)),
            Next::Wait(until) if running.is_some() => {
                (StartupState::Running, format!("another agent's attempt has until {until}"))
            }
            Next::Wait(until) => {
                let outcome = run.outcome().map(|it| format!("{}: {}", it.reason, it.message)).unwrap_or_default();
                (StartupState::Pending, format!("the next attempt is at {until}; {outcome}"))
            }
            Next::Look => (StartupState::Running, "the deadline of another agent's attempt has passed".to_owned()),
            Next::Busy => {
                let until = running.map(|it| format!("the attempt has until {}", it.deadline));
                (StartupState::Running, until.unwrap_or_default())
            }
            Next::Claim(_) => {
                (StartupState::Pending, "it waits for the tasks before it, or for a leader of its revision".to_owned())
            }
        };
        StartupStatus {
            name: self.startup.name.clone(),
            revision: self.revision.clone(),
            state,
            attempt: run.attempt().map_or(0, |it| it.number),
            deadline: running.filter(|_| !done).map(|it| it.deadline),
            message,
        }
    }
}

/// The id of the record of a task of scope `Cluster`.
#[must_use]
pub fn record_id(task: &str, revision: &str) -> String {
    format!("u/{task}/{revision}")
}

/// What a pod has to do with startup tasks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The number of the pod's revision.
    pub number: u64,
    /// Its tasks, in the order of the file.
    pub tasks: Vec<Task>,
    rules: Rules,
}

/// The file does not know the revision of the pod, yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("revision {0:?} of this pod is not in the file; it takes part when it is")]
pub struct UnknownRevision(pub String);

impl Plan {
    /// The plan of a pod at `place`.
    ///
    /// # Errors
    /// The file does not know the pod's revision.
    pub fn new(file: &AgentFile, place: &Place) -> Result<Self, UnknownRevision> {
        Self::under(Rules::default(), file, place)
    }

    /// The same, by these rules.
    ///
    /// # Errors
    /// The file does not know the pod's revision.
    pub fn under(rules: Rules, file: &AgentFile, place: &Place) -> Result<Self, UnknownRevision> {
        let revision = match place {
            Place::Loose => return Ok(Self::default()),
            Place::Pod(_) if !rules.hold(Rule::OwnRevision) => file.revisions.values().max_by_key(|it| it.number),
            Place::Pod(hash) => Some(file.revisions.get(hash).ok_or_else(|| UnknownRevision(hash.clone()))?),
            Place::Outside(hash) => file.revisions.get(hash),
        };
        let tasks = file.startups.iter().filter_map(|startup| {
            let revision = match startup.scope {
                Scope::Instance => belongs(file, revision, &startup.name).then(String::new)?,
                Scope::Cluster => match revision {
                    Some(revision) => revision.startups.get(&startup.name)?.clone(),
                    None => NO_REVISION.to_owned(),
                },
            };
            Some(Task { startup: startup.clone(), revision })
        });
        Ok(Self { number: revision.map_or(0, |it| it.number), tasks: tasks.collect(), rules })
    }

    /// Whether all tasks that `task` comes after are among the `done` ids; tasks of other revisions do not matter.
    #[must_use]
    pub fn may_start(&self, task: &Task, done: &BTreeSet<String>) -> bool {
        let before = self.tasks.iter().filter(|it| task.startup.after.contains(&it.startup.name));
        before.into_iter().all(|it| done.contains(&it.id())) || !self.rules.hold(Rule::TaskOrder)
    }

    /// Whether nothing keeps the gate shut, given the `done` ids.
    #[must_use]
    pub fn is_open(&self, done: &BTreeSet<String>) -> bool {
        let waits = self.tasks.iter().filter(|it| it.startup.gate == Gate::Ready && self.rules.hold(Rule::GateWaits));
        waits.into_iter().all(|it| done.contains(&it.id()))
    }

    /// The ids of tasks that the file already says are done.
    pub fn floor<'a>(&'a self, file: &'a AgentFile) -> impl Iterator<Item = String> + 'a {
        let done = |task: &&Task| {
            let revisions = file.floor.startups.get(&task.startup.name);
            task.startup.scope == Scope::Cluster
                && self.rules.hold(Rule::Mirror)
                && revisions.is_some_and(|it| it.contains(&task.revision))
        };
        self.tasks.iter().filter(done).map(Task::id)
    }
}

/// A task of scope `Instance` is every pod's, unless the file gives it to some revisions.
fn belongs(file: &AgentFile, revision: Option<&Revision>, task: &str) -> bool {
    revision.is_some_and(|it| it.startups.contains_key(task))
        || !file.revisions.values().any(|it| it.startups.contains_key(task))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn file() -> AgentFile {
        let task = |name: &str, scope: &str, gate: &str, after: &[&str]| {
            json!({"name": name, "scope": scope, "gate": gate, "after": after, "timeoutMs": 1000,
                "retry": {"limit": 1, "initialDelayMs": 1, "factor": 1.0, "maxDelayMs": 1},
                "target": {"http": {"path": "/", "method": "POST"}}})
        };
        serde_json::from_value(json!({
            "cluster": "prod/shop",
            "app": {"name": "shop", "generation": "v4", "port": 7002, "health": {"tcp": {}}},
            "election": {"ttlMs": 10_000},
            "floor": {"startups": {"migrate": ["r1"]}},
            "startups": [
                task("migrate", "Cluster", "Ready", &[]), task("seed", "Cluster", "Ready", &["migrate"]),
                task("warm", "Instance", "Ready", &["seed"]), task("mail", "Cluster", "None", &[]),
            ],
            "revisions": {
                "old": {"number": 1, "startups": {"migrate": "r1"}},
                "new": {"number": 2, "startups": {"migrate": "r2", "seed": "r2", "mail": "r2"}},
            },
        }))
        .unwrap()
    }

    fn plan(hash: &str) -> Plan {
        Plan::new(&file(), &Place::Pod(hash.into())).unwrap()
    }

    fn ids(plan: &Plan) -> Vec<String> {
        plan.tasks.iter().map(Task::id).collect()
    }

    #[test]
    fn a_pod_knows_the_tasks_of_its_own_revision() {
        assert_eq!(ids(&plan("old")), ["u/migrate/r1", "i/warm"]);
        assert_eq!(ids(&plan("new")), ["u/migrate/r2", "u/seed/r2", "i/warm", "u/mail/r2"]);
        assert_eq!((plan("old").number, plan("new").number), (1, 2));
        assert_eq!(Plan::new(&file(), &Place::Pod("x".into())), Err(UnknownRevision("x".into())));
        assert_eq!(Plan::new(&file(), &Place::Loose), Ok(Plan::default()));
        assert!(ids(&Plan::new(&file(), &Place::Outside(String::new())).unwrap()).contains(&"u/seed/none".to_owned()));
    }

    #[test]
    fn order_and_gate_follow_what_is_done() {
        let plan = plan("new");
        let mut done = BTreeSet::new();
        let may_start =
            |done: &BTreeSet<String>| -> Vec<bool> { plan.tasks.iter().map(|it| plan.may_start(it, done)).collect() };
        assert_eq!(may_start(&done), [true, false, false, true]);
        done.insert("u/migrate/r1".to_owned());
        assert_eq!(may_start(&done), [true, false, false, true], "done for another revision is not done");
        done.insert("u/migrate/r2".to_owned());
        assert_eq!(may_start(&done), [true, true, false, true]);
        done.insert("u/seed/r2".to_owned());
        assert_eq!(may_start(&done), [true; 4]);
        assert!(!plan.is_open(&done));
        done.insert("i/warm".to_owned());
        assert!(plan.is_open(&done), "a task without a gate keeps nothing shut");
    }

    #[test]
    fn a_task_of_another_revision_is_not_waited_for() {
        let plan = plan("old");
        assert!(plan.may_start(&plan.tasks[1], &BTreeSet::new()), "seed is not this revision's");
        assert_eq!(plan.floor(&file()).collect::<Vec<_>>(), ["u/migrate/r1"]);
        assert!(self::plan("new").floor(&file()).next().is_none());
    }
}
