//! What an earlier process of the agent had called when it ended: the app may have lived on, and is asked what became of it.
//!
//! An agent that begins reads the ledger, leading or not, for attempts that its own pod has made and of which there is no
//! result. It asks for the same attempt, by the same key, until the same deadline, and records how it ended by its nonce
//! ([`crate::recording`]), as of any call. Who does not ask, or is not told, waits for the deadline.
//!
//! An app that knows nothing of keys would begin the run again beside itself. So only what is known to remember runs is
//! asked ([`Target::remembers_runs`](cabloy_crds::files::Target::remembers_runs)), and told that it is a question: an app
//! that has forgotten the run, because it was itself started again, must not begin it again either, for by then the next
//! attempt may be under way elsewhere.
//!
//! Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use cabloy_crds::files::AgentFile;
use cabloy_crds::vocabulary::Scope;
use cabloy_redlock::record::Record;
use jiff::Timestamp;

use crate::core::{Kind, Start};
use crate::rule::{Rule, Rules};
use crate::runs::{Attempt, Claimed, Run};
use crate::schedule::{Occasion, parse_id};
use crate::startup::{Place, Plan, Task};

/// A process of an agent.
#[derive(Clone, Copy, Debug)]
pub struct Process<'a> {
    /// The UID of its pod.
    pub uid: &'a str,
    /// Where the pod runs.
    pub place: &'a Place,
    /// What all its nonces begin with.
    pub nonces: &'a str,
}

/// A call that an earlier process made, to be asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Resumed {
    /// The call, by the files as they are now.
    pub start: Start,
    /// The fencing token: no lower than the one that the call was made under.
    pub token: u64,
}

/// The calls that earlier processes in the pod of `process` have made, and that may go on `now`.
#[must_use]
pub fn resumed(
    records: &[Record],
    file: &AgentFile,
    process: Process<'_>,
    rules: Rules,
    now: Timestamp,
) -> Vec<Resumed> {
    if !rules.hold(Rule::AskAgain) {
        return Vec::new();
    }
    // Of a revision that the file does not know no task is asked for: it is not known which are its own.
    let plan = Plan::under(rules, file, process.place).unwrap_or_default();
    let tasks: BTreeMap<String, &Task> =
        plan.tasks.iter().filter(|it| it.startup.scope == Scope::Cluster).map(|task| (task.id(), task)).collect();
    let resume = |record: &Record| {
        let claimed: Claimed = serde_json::from_value(record.data.clone()).ok()?;
        let earlier = claimed.uid == process.uid && !record.nonce.starts_with(process.nonces);
        let ended = file.ended.get(&claimed.uid).is_some_and(|until| claimed.at <= *until);
        let open = Run::from_record(record).is_elsewhere() && now < claimed.deadline;
        if !earlier || ended || !open {
            return None;
        }
        let start = start(record, &claimed, file, &tasks)?;
        let asked = start.target.remembers_runs() || !rules.hold(Rule::AskWhoRemembers);
        asked.then(|| Resumed { start: Start { asks: rules.hold(Rule::AskOnly), ..start }, token: record.token })
    };
    records.iter().filter_map(resume).collect()
}

/// The call that the attempt of a record was made by; none if the files have nothing to call for it.
fn start(record: &Record, claimed: &Claimed, file: &AgentFile, tasks: &BTreeMap<String, &Task>) -> Option<Start> {
    let Claimed { at, deadline, .. } = *claimed;
    let (kind, name, run, time, target) = if let Some((name, occasion)) = parse_id(&record.id) {
        let occasion = occasion?;
        let schedule = file.schedules.iter().find(|it| it.name == name)?;
        let time = match occasion {
            Occasion::Tick(tick) | Occasion::Backfill { tick, .. } => tick,
            Occasion::Trigger(_) => at,
        };
        (Kind::Schedule, &schedule.name, occasion.name(), time, &schedule.target)
    } else {
        let Task { startup, revision } = tasks.get(&record.id)?;
        (Kind::Startup, &startup.name, revision.clone(), at, &startup.target)
    };
    Some(Start {
        id: record.id.clone(),
        kind,
        name: Arc::from(name.as_str()),
        run,
        time,
        attempt: Attempt { number: record.attempt, nonce: record.nonce.clone(), deadline },
        lateness: None,
        asks: true,
        target: target.clone(),
    })
}

#[cfg(test)]
mod tests {
    use cabloy_redlock::record::RunResult;
    use serde_json::json;

    use super::*;
    use crate::runs::Outcome;

    const PLACE: &str = "new";

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).unwrap()
    }

    fn file() -> AgentFile {
        let retry = json!({"limit": 1, "initialDelayMs": 1, "factor": 1.0, "maxDelayMs": 1});
        let schedule = |name: &str, target: serde_json::Value| {
            json!({"name": name, "everyMs": 1_000, "timeZone": "UTC", "overlap": "Skip", "jitterMs": 0,
                "timeoutMs": 1_000, "onUnknown": "Skip", "retry": retry, "suspend": false, "target": target})
        };
        let http = |remembers: bool| json!({"http": {"path": "/", "method": "POST", "remembersRuns": remembers}});
        let bean = json!({"bean": {"path": "/agent", "module": "shop-report", "name": "schedule.nightly"}});
        let broadcast = json!({"broadcast": {
            "role": "broadcast", "channel": "c", "module": "shop-report", "broadcastName": "b", "subdomain": ""}});
        let task = |name: &str, scope: &str| {
            json!({"name": name, "scope": scope, "after": [], "gate": "Ready", "timeoutMs": 1_000, "retry": retry,
                "target": http(true)})
        };
        serde_json::from_value(json!({
            "cluster": "prod/shop",
            "app": {"name": "shop", "generation": "v4", "port": 7002, "health": {"tcp": {}}},
            "election": {"ttlMs": 10_000},
            "schedules": [
                schedule("knows", http(true)), schedule("plain", http(false)), schedule("bean", bean),
                schedule("broadcast", broadcast),
            ],
            "startups": [task("migrate", "Cluster"), task("warm", "Instance")],
            "revisions": {"old": {"number": 1, "startups": {"migrate": "r1"}},
                "new": {"number": 2, "startups": {"migrate": "r2", "warm": ""}}},
        }))
        .unwrap()
    }

    fn record(id: &str, uid: &str, results: Vec<RunResult>) -> Record {
        let data = json!(Claimed { at: at(100), deadline: at(1_100), pod: "p".into(), uid: uid.into() });
        Record { id: id.into(), attempt: 2, token: 7, seq: 3, nonce: "earlier-1".into(), data, results }
    }

    fn resumed_of(records: &[Record], file: &AgentFile, now: i64) -> Vec<Resumed> {
        let place = Place::Pod(PLACE.into());
        let process = Process { uid: "u", place: &place, nonces: "later" };
        resumed(records, file, process, Rules::default(), at(now))
    }

    fn ids(resumed: &[Resumed]) -> Vec<&str> {
        resumed.iter().map(|it| &*it.start.id).collect()
    }

    #[test]
    fn the_attempt_of_an_earlier_process_is_asked_for_as_it_was_made() {
        let tick = "1970-01-01T00:00:01Z";
        let records = [record("s/knows/1970-01-01T00:00:01Z", "u", vec![]), record("u/migrate/r2", "u", vec![])];
        let resumed = resumed_of(&records, &file(), 500);
        assert_eq!(ids(&resumed), ["s/knows/1970-01-01T00:00:01Z", "u/migrate/r2"], "{records:?}");
        let [Resumed { start: run, token }, Resumed { start: task, .. }] = &resumed[..] else { panic!("two") };
        assert_eq!((run.kind, &*run.name, &*run.run, *token), (Kind::Schedule, "knows", tick, 7));
        let attempt = Attempt { number: 2, nonce: "earlier-1".into(), deadline: at(1_100) };
        assert_eq!((&run.attempt, run.asks, run.time), (&attempt, true, at(1_000)));
        assert_eq!((task.kind, &*task.name, &*task.run, task.time), (Kind::Startup, "migrate", "r2", at(100)));
    }

    #[test]
    fn nobody_is_asked_who_would_begin_it_again() {
        let of = |name: &str| record(&format!("s/{name}/1970-01-01T00:00:01Z"), "u", vec![]);
        let records = ["knows", "plain", "bean", "broadcast", "gone"].map(of);
        assert_eq!(
            ids(&resumed_of(&records, &file(), 500)),
            ["s/knows/1970-01-01T00:00:01Z", "s/bean/1970-01-01T00:00:01Z"]
        );
    }

    #[test]
    fn what_is_not_open_or_not_its_own_is_left_alone() {
        let id = "s/knows/1970-01-01T00:00:01Z";
        let open = record(id, "u", vec![]);
        let left = |record: Record, now, file: &AgentFile| resumed_of(&[record], file, now).is_empty();
        assert!(!left(open.clone(), 1_099, &file()));
        assert!(left(open.clone(), 1_100, &file()), "past its deadline");
        assert!(left(record(id, "another", vec![]), 500, &file()), "of another pod");
        assert!(left(record(id, "", vec![]), 500, &file()), "of nobody knows which");
        assert!(left(Record { nonce: "later-1".into(), ..open.clone() }, 500, &file()), "of this very process");
        assert!(left(record("u/migrate/r1", "u", vec![]), 500, &file()), "of another revision");
        assert!(left(Record { data: json!("x"), ..open.clone() }, 500, &file()), "of another make");
        assert!(left(Record { id: "s/knows".into(), ..open.clone() }, 500, &file()), "the memory of a schedule");
        for done in [true, false] {
            let result = RunResult { nonce: "earlier-1".into(), done, data: json!(Outcome::cancelled(at(200))) };
            assert!(left(record(id, "u", vec![result]), 500, &file()), "it has ended");
        }
        let ended = |until| AgentFile { ended: BTreeMap::from([("u".to_owned(), at(until))]), ..file() };
        assert!(left(open.clone(), 500, &ended(100)), "the app's container has ended since");
        assert!(!left(open, 500, &ended(99)));
    }
}
