//! One term after another, over a ledger that takes what is put into it when the test says so.

use cabloy_redlock::record::RunResult;
use serde_json::json;

use super::*;
use crate::recording::Recording;
use crate::runs::OutcomeKind;

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap()
}

fn file(startups: &[&str]) -> Arc<AgentFile> {
    let retry = json!({"limit": 3, "initialDelayMs": 100, "factor": 1.0, "maxDelayMs": 100});
    let target = json!({"http": {"path": "/", "method": "POST"}});
    let task = |name: &&str| {
        json!({"name": name, "scope": "Cluster", "gate": "Ready", "timeoutMs": 10_000, "retry": retry, "target": target,
            "after": if *name == "migrate" { json!([]) } else { json!(["migrate"]) }})
    };
    let revision: BTreeMap<_, _> = startups.iter().map(|name| (*name, "r1")).collect();
    let file = json!({
        "cluster": "prod/shop",
        "app": {"name": "shop", "generation": "v4", "port": 7002, "health": {"tcp": {}}},
        "election": {"ttlMs": 10_000},
        "schedules": [{"name": "a", "everyMs": 1_000, "timeZone": "UTC", "overlap": "Skip", "jitterMs": 0,
            "timeoutMs": 5_000, "onUnknown": "Retry", "suspend": false, "retry": retry, "target": target}],
        "startups": startups.iter().map(task).collect::<Vec<_>>(),
        "revisions": {"h": {"number": 1, "startups": revision}},
    });
    Arc::new(serde_json::from_value(file).unwrap())
}

/// A leader, and a ledger that has every write that is acknowledged.
struct Term {
    core: Core,
    records: Records,
    now: i64,
    may_claim: bool,
    /// What is written and not acknowledged yet.
    puts: Vec<(OpId, Vec<Put>)>,
    calls: Vec<Start>,
    told: Vec<News>,
    others: Vec<Action>,
}

impl Term {
    fn begin(file: Arc<AgentFile>, records: Records, now: i64) -> Self {
        let (pod, uid) = ("p".to_owned(), "u".to_owned());
        let config =
            Config { pod, uid, place: Place::Pod("h".into()), nonces: format!("{now}"), rules: Rules::default() };
        let moment = Moment { now: at(now), may_claim: true, records: &records };
        let (core, actions) = Core::begin(config, file, BTreeSet::new(), moment);
        let (puts, calls, told, others) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut term = Self { core, records, now, may_claim: true, puts, calls, told, others };
        term.carry_out(actions);
        term
    }

    /// The first term of all, at 500, with the gate open; the first tick is due at 1,000.
    fn scheduled() -> Self {
        let mut term = Self::begin(file(&[]), Records::new(), 500);
        term.step(Event::GateOpen);
        term.take();
        term
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Put { op, puts } => self.puts.push((op, puts)),
                Action::Call(start) => self.calls.push(*start),
                Action::Tell(news) => self.told.push(news),
                other => self.others.push(other),
            }
        }
    }

    fn step(&mut self, event: Event) {
        let moment = Moment { now: at(self.now), may_claim: self.may_claim, records: &self.records };
        let actions = self.core.step(moment, event);
        self.carry_out(actions);
    }

    fn wake(&mut self, now: i64) {
        self.now = now;
        self.step(Event::Wake);
    }

    /// The ids of what is on its way.
    fn written(&self) -> Vec<&str> {
        self.puts.iter().flat_map(|(_, puts)| puts).map(|put| &*put.id).collect()
    }

    /// The ledger takes all that is on its way.
    fn take(&mut self) {
        while let Some((op, puts)) = self.puts.pop() {
            for Put { id, attempt, nonce, data } in &puts {
                let results = self.records.get(id).map(|it| it.results.clone()).unwrap_or_default();
                let (id, nonce, data) = (id.clone(), nonce.clone(), data.clone());
                let record = Record { id: id.clone(), attempt: *attempt, token: 1, seq: op, nonce, data, results };
                self.records.insert(id, Arc::new(record));
            }
            self.step(Event::Put { op, results: vec![Ok(()); puts.len()] });
        }
    }

    /// All that is on its way is in doubt: the term has ended.
    fn lose(&mut self) {
        while let Some((op, puts)) = self.puts.pop() {
            self.step(Event::Put { op, results: vec![Err(PutError::TermLost); puts.len()] });
        }
    }

    /// The call ends, and that is recorded.
    fn end(&mut self, start: &Start, kind: OutcomeKind) {
        let outcome =
            Outcome { kind, reason: "R".into(), message: String::new(), retry_after_ms: None, at: at(self.now) };
        let Recording { id, result, .. } = Recording::of_call(start.id.clone(), &start.attempt, &outcome);
        self.record(&id, result);
        self.step(Event::Ended { id, nonce: start.attempt.nonce.clone(), outcome: Some(outcome) });
    }

    /// What was asked of the ledger is read, and its results are recorded anew, with this answer.
    fn read(&mut self, id: &str, answer: Result<(), FinishError>) {
        self.others.clear();
        self.step(Event::Read(Ok(vec![Record::clone(&self.records[id])])));
        assert!(matches!(&self.others[..], [Action::Confirm { id: of, .. }] if of == id), "{:?}", self.others);
        self.step(Event::Confirmed { id: id.to_owned(), answer });
    }

    fn says_done(&self, id: &str) -> bool {
        self.told.contains(&News::Done(id.to_owned()))
    }

    fn record(&mut self, id: &str, result: RunResult) {
        Arc::make_mut(self.records.get_mut(id).unwrap()).add_result(result);
    }
}

#[test]
fn nothing_is_called_before_its_claim_has_come_through() {
    let mut term = Term::begin(file(&[]), Records::new(), 500);
    term.wake(1_000);
    assert!(term.written().is_empty(), "the gate is shut");
    term.step(Event::GateOpen);
    assert_eq!(term.written(), ["m/a"], "it is seen for the first time, and no tick before that is run");
    term.take();
    term.wake(2_000);
    assert_eq!((term.written(), term.calls.len()), (vec!["s/a/1970-01-01T00:00:02Z"], 0));
    term.take();
    assert_eq!(term.calls.len(), 1);
    assert_eq!((&*term.calls[0].run, term.calls[0].attempt.number), ("1970-01-01T00:00:02Z", 1));
    assert_eq!((term.calls[0].attempt.deadline, term.calls[0].lateness), (at(7_000), Some(Duration::ZERO)));
    term.end(&term.calls[0].clone(), OutcomeKind::Done);
    assert_eq!(term.written(), ["m/a"]);
    assert!(
        !term.others.iter().any(|it| matches!(it, Action::Forget(_))),
        "the record stays until the memory is saved"
    );
    term.take();
    assert_eq!(term.others, [Action::Forget(vec!["s/a/1970-01-01T00:00:02Z".to_owned()])]);
}

#[test]
fn a_claim_in_doubt_is_disowned_and_never_called() {
    let mut term = Term::scheduled();
    term.wake(1_000);
    term.lose();
    assert!(term.calls.is_empty());
    assert!(matches!(&*term.others, [Action::Disown { attempt, .. }] if attempt.number == 1));
    term.wake(1_250);
    assert!(matches!(term.others.last(), Some(Action::Read(ids)) if ids.len() == 1), "what became of it is asked");
}

#[test]
fn what_comes_through_after_its_deadline_or_just_before_is_not_called() {
    // The deadline is at 6,000, by this clock; by another one it may have passed a little earlier.
    for (late, is_called) in [(5_949, true), (5_950, false), (6_000, false)] {
        let mut term = Term::scheduled();
        term.wake(1_000);
        // The process stands still, and another leader may have gone on without it.
        term.now = late;
        term.take();
        assert_eq!(!term.calls.is_empty(), is_called, "{late}");
        let disowned = matches!(term.others.first(), Some(Action::Disown { .. }));
        assert_eq!(disowned, !is_called, "{late}: {:?}", term.others);
    }
}

#[test]
fn a_result_that_was_recorded_just_before_the_deadline_counts() {
    let mut first = Term::scheduled();
    first.wake(1_000);
    first.take();
    let start = first.calls[0].clone();
    let mut next = Term::begin(file(&[]), first.records.clone(), 5_900);
    next.step(Event::GateOpen);
    let done = Outcome { kind: OutcomeKind::Done, ..Outcome::not_begun(at(5_950)) };
    next.record(&start.id, Recording::of_call(start.id.clone(), &start.attempt, &done).result);
    next.puts.clear();
    next.wake(6_000);
    assert_eq!(next.others, [Action::Read(vec![start.id.clone()])], "nothing is said before the ledger is asked");
    assert!(!next.written().contains(&&*start.id));
    next.read(&start.id, Ok(()));
    assert!(next.calls.is_empty() && !next.written().contains(&&*start.id), "it is done");
}

#[test]
fn what_comes_through_after_the_term_has_ended_is_called_and_nothing_else_is_claimed() {
    let mut term = Term::scheduled();
    term.wake(1_000);
    term.step(Event::Hold);
    assert!(!term.core.is_settled());
    term.take();
    assert!(term.core.is_settled() && term.calls.len() == 1);
    term.wake(9_000);
    assert!(term.written().is_empty());
    term.step(Event::GiveUp);
    assert!(term.others.is_empty(), "what is called is not disowned");
}

#[test]
fn claims_that_are_still_on_their_way_are_given_up_once() {
    let mut term = Term::begin(file(&["migrate"]), Records::new(), 500);
    assert_eq!(term.written(), ["u/migrate/r1"]);
    term.step(Event::Hold);
    term.step(Event::GiveUp);
    assert!(matches!(&*term.others, [Action::Disown { id, .. }] if id == "u/migrate/r1"));
    term.take();
    assert!(term.calls.is_empty(), "too late");
    term.step(Event::GiveUp);
    assert_eq!(term.others.len(), 1);
}

#[test]
fn without_a_valid_lease_nothing_is_sent() {
    let mut term = Term::scheduled();
    term.may_claim = false;
    term.wake(1_000);
    assert!(term.written().is_empty() && term.core.is_settled());
    term.may_claim = true;
    term.wake(1_001);
    assert_eq!(term.written(), ["s/a/1970-01-01T00:00:01Z"]);
}

#[test]
fn the_next_leader_waits_for_what_another_has_begun_and_reads_its_result() {
    let mut first = Term::scheduled();
    first.wake(1_000);
    first.take();
    let start = first.calls[0].clone();
    let mut next = Term::begin(file(&[]), first.records.clone(), 1_500);
    next.step(Event::GateOpen);
    next.wake(1_750);
    assert_eq!(next.others, [Action::Read(vec![start.id.clone()])]);
    let failed = Outcome { kind: OutcomeKind::Failed, ..Outcome::not_begun(at(1_800)) };
    next.record(&start.id, Recording::of_call(start.id.clone(), &start.attempt, &failed).result);
    next.now = 1_850;
    next.read(&start.id, Ok(()));
    assert!(!next.written().contains(&&*start.id), "the pause before the next attempt");
    next.wake(1_900);
    next.take();
    assert_eq!(next.calls.iter().map(|it| it.attempt.number).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_result_counts_once_a_majority_has_it() {
    let mut first = Term::begin(file(&["migrate"]), Records::new(), 0);
    first.take();
    let start = first.calls[0].clone();
    let mut next = Term::begin(file(&["migrate"]), first.records.clone(), 500);
    let done = Outcome { kind: OutcomeKind::Done, ..Outcome::not_begun(at(600)) };
    next.record(&start.id, Recording::of_call(start.id.clone(), &start.attempt, &done).result);
    for answer in [FinishError::Unreachable, FinishError::NotCurrent] {
        next.now += 300;
        next.wake(next.now);
        next.read(&start.id, Err(answer));
        assert!(!next.says_done(&start.id), "a minority may lose it");
    }
    next.now += 300;
    next.wake(next.now);
    next.read(&start.id, Ok(()));
    assert!(next.says_done(&start.id));
}

#[test]
fn tasks_go_one_after_the_other_and_what_is_done_is_not_done_again() {
    let mut term = Term::begin(file(&["migrate", "seed"]), Records::new(), 0);
    assert_eq!(term.written(), ["u/migrate/r1"]);
    term.take();
    term.end(&term.calls[0].clone(), OutcomeKind::Done);
    assert_eq!(term.written(), ["u/seed/r1"]);
    term.take();
    assert_eq!(&*term.calls[1].name, "seed");
    let mut next = Term::begin(file(&["migrate", "seed"]), term.records.clone(), 1_000);
    assert!(next.written().is_empty(), "one is done, the other begun");
    next.step(Event::Done(["u/seed/r1".to_owned()].into()));
    next.wake(20_000);
    assert!(next.written().is_empty(), "somebody else knows that it is done");
}

#[test]
fn an_edit_goes_on_with_what_fell_due_before() {
    let mut term = Term::scheduled();
    term.now = 1_500;
    let mut without = AgentFile::clone(&file(&[]));
    without.schedules.clear();
    term.step(Event::Files(Arc::new(without)));
    assert_eq!(term.written(), ["s/a/1970-01-01T00:00:01Z"], "it was due before the edit");
    term.take();
    assert!(term.calls.is_empty(), "but there is nothing to call any more");
    assert!(matches!(&*term.others, [Action::Disown { .. }]), "and nobody need wait for it");
}

#[test]
fn records_that_belong_to_nothing_are_removed_when_seen_twice() {
    let mut term = Term::begin(file(&[]), Records::new(), 500);
    let mut stray = |id: &str| {
        let (id, nonce) = (id.to_owned(), "n".to_owned());
        let record = Record { id: id.clone(), attempt: 1, token: 1, seq: 1, nonce, data: json!(null), results: vec![] };
        term.records.insert(id, Arc::new(record));
    };
    ["m/gone", "m/a", "u/migrate/r0"].into_iter().for_each(&mut stray);
    term.wake(30_500);
    assert!(term.others.is_empty());
    term.wake(60_500);
    assert_eq!(term.others, [Action::Forget(vec!["m/gone".to_owned(), "u/migrate/r0".to_owned()])]);
}

#[test]
fn a_takeover_is_told_once_the_ledger_has_it_and_nothing_is_called_before() {
    let mut file = file(&[]);
    Arc::make_mut(&mut file).schedules[0].takes_over = Some("m.night".into());
    let mut term = Term::begin(Arc::clone(&file), Records::new(), 500);
    let handovers = || {
        let handover = Handover { owed: BTreeMap::from([(at(200), vec![])]), missed: 0, from: at(1_000) };
        Event::Handovers(BTreeMap::from([("a".into(), handover)]))
    };
    // It may be known before the gate is open.
    term.step(handovers());
    term.step(Event::GateOpen);
    term.wake(2_500);
    assert_eq!(term.written(), ["m/a"], "the memory, and no claim");
    let (op, puts) = term.puts.pop().unwrap();
    term.step(Event::Put { op, results: vec![Err(PutError::TermLost); puts.len()] });
    assert_eq!(term.written(), ["m/a"], "it is saved again");
    term.take();
    assert!(term.told.contains(&News::TakenOver("a".into())));
    term.take();
    assert_eq!(term.calls.len(), 1);
    assert_eq!(term.calls[0].time, at(200), "what is owed, and then its own");
    let mut next = Term::begin(file, term.records.clone(), 3_000);
    next.step(Event::GateOpen);
    assert!(next.told.contains(&News::TakenOver("a".into())), "another leader knows by the ledger");
}
