//! The scripts on a real Redis and the model of a node, which simulators use, answer alike.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::time::Duration;

use cabloy_agent::clock::{Clock as _, SystemClock};
use cabloy_agent::masters::script::{self, Keys};
use cabloy_redlock::message::{Body, Entry, Incarnation, Reply, Request, Verdict};
use cabloy_redlock::model::ModelNode;
use cabloy_redlock::record::{Record, RunResult};
use cabloy_redlock::rule::Rules;
use cabloy_redlock::{AgentId, Owner};
use cabloy_tests::redis::Redis;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;

/// Longer than any test: no lock runs out.
const TTL: Duration = Duration::from_mins(10);

/// How far a clock is set back: by more than anything lasts.
const BACK: Duration = Duration::from_hours(1);

fn agent() -> impl Strategy<Value = AgentId> {
    // One pod is how the other begins, and either may have had another process.
    (prop_oneof!["a", "ab"], prop_oneof!["1", "2"]).prop_map(|(pod, process)| AgentId { pod, uid: "u".into(), process })
}

fn owner() -> impl Strategy<Value = Owner> {
    (agent(), 1u64..3, token()).prop_map(|(agent, revision, token)| Owner::Agent { agent, revision, token })
}

fn token() -> impl Strategy<Value = u64> {
    prop_oneof![1u64..6, Just((1 << 53) - 1)]
}

fn result() -> impl Strategy<Value = RunResult> {
    (nonce(), any::<bool>(), 0..3).prop_map(|(nonce, done, data)| RunResult { nonce, done, data: json!([data, {}]) })
}

fn nonce() -> impl Strategy<Value = String> {
    prop_oneof!["1", "2", "n/\u{e9}\""]
}

fn id() -> impl Strategy<Value = String> {
    prop_oneof!["run", "other"]
}

fn record(token: u64) -> impl Strategy<Value = Record> {
    (id(), 1u32..4, 1u64..5, nonce(), vec(result(), 0..3)).prop_map(move |(id, attempt, seq, nonce, results)| {
        let data = json!({"list": [], "map": {}, "text": "a/b \u{1f600}", "large": u64::MAX, "none": null});
        let mut record = Record { id, attempt, token, seq, nonce, data, results: Vec::new() };
        for result in results {
            record.add_result(result);
        }
        record
    })
}

fn mark() -> impl Strategy<Value = std::sync::Arc<str>> {
    prop_oneof!["m", "o"].prop_map(Into::into)
}

fn life(run: &str) -> impl Strategy<Value = Incarnation> + use<> {
    (prop_oneof![9 => Just(run.to_owned()), 1 => Just("0".repeat(40))], mark())
        .prop_map(|(run, mark)| Incarnation { run: run.into(), mark })
}

/// What is done to a node.
#[derive(Clone, Debug)]
enum Step {
    Ask(Request),
    /// FLUSHALL.
    Flush,
    /// The clock is set back.
    Back,
}

fn step(run: &str) -> impl Strategy<Value = Step> + use<> {
    let seeds = prop_oneof![
        3 => mark().prop_map(|mark| Request::Mark { mark }),
        1 => life(run).prop_map(|life| Request::Recall { life }),
        3 => (life(run), token(), any::<bool>(), vec(record(1), 0..3)).prop_map(|(life, promised, led, records)| Request::Seed {
            life,
            promised,
            led,
            records: records.into_iter().map(Into::into).collect()
        }),
    ];
    prop_oneof![10 => request().prop_map(Step::Ask), 3 => seeds.prop_map(Step::Ask), 1 => Just(Step::Flush), 1 => Just(Step::Back)]
}

fn request() -> impl Strategy<Value = Request> {
    let put = token().prop_flat_map(|token| {
        let entry = (record(token), any::<bool>()).prop_map(|(record, claim)| Entry { record: record.into(), claim });
        vec(entry, 1..4).prop_map(move |entries| Request::Put { token, entries: entries.into() })
    });
    prop_oneof![
        2 => (token(), agent(), 1u64..3, proptest::option::of(owner())).prop_map(|(token, agent, revision, former)| {
            Request::Grant { token, agent, revision, ttl: TTL, former }
        }),
        1 => token().prop_map(|token| Request::Read { token }),
        3 => put,
        1 => (token(), owner()).prop_map(|(token, owner)| Request::Renew { token, owner, ttl: TTL }),
        1 => (owner(), any::<bool>()).prop_map(|(owner, publish)| Request::Release { owner, publish }),
        1 => (1u64..3).prop_map(|revision| Request::Stand { revision, ttl: TTL }),
        1 => (id(), result()).prop_map(|(id, result)| Request::Finish { id: id.into(), result: result.into() }),
        1 => proptest::option::of(vec(id(), 1..3)).prop_map(|ids| Request::Look { ids: ids.map(Into::into) }),
        1 => (token(), 1u64..5, vec(id(), 1..3)).prop_map(|(token, seq, ids)| Request::Forget {
            token,
            seq,
            ids: ids.into()
        }),
    ]
}

/// What must be alike: not times.
fn essence(reply: Reply) -> (bool, bool, Incarnation, u64, bool, Option<Owner>, Option<u64>, Body) {
    let Reply { accepted, intact, incarnation, promised, led, owner, stand, body, .. } = reply;
    let body = match body {
        Body::Records(mut records) => {
            records.sort_by(|a, b| a.id.cmp(&b.id));
            Body::Records(records)
        }
        body => body,
    };
    (accepted, intact, incarnation, promised, led, owner.map(|(owner, _)| owner), stand.map(|(it, _)| it), body)
}

/// For how long it says that the lock is taken, and that somebody stands.
fn left(reply: &Reply) -> [Duration; 2] {
    let lock = reply.owner.as_ref().and_then(|(_, left)| *left);
    [lock, reply.stand.map(|(_, left)| left)].map(Option::unwrap_or_default)
}

/// The requests that give a new node its memory.
fn memory(run: &str) -> [Request; 2] {
    let life = Incarnation { run: run.into(), mark: "m".into() };
    [Request::Mark { mark: "m".into() }, Request::Seed { life, promised: 0, led: false, records: [].into() }]
}

fn run_id(server: &Redis) -> String {
    let info: String = server.run(&["INFO", "server"]);
    info.lines().find_map(|line| line.strip_prefix("run_id:")).expect("a run id").trim().to_owned()
}

#[test]
fn the_model_does_what_the_scripts_do() {
    let server = Redis::start();
    let run = run_id(&server);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = redis::Client::open(server.url()).unwrap();
    let connection = runtime.block_on(client.get_multiplexed_async_connection()).unwrap();
    let keys = Keys::new("prod/shop");
    let config = ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(seeded: bool, steps in vec(step(&run), 1..40))| {
        let () = server.run(&["FLUSHALL"]);
        let mut model = ModelNode::new(&run, Rules::default());
        let first = memory(&run).map(Step::Ask).into_iter().filter(|_| seeded);
        // Nobody can set the clock of the server: what runs out by it is put off instead.
        let mut ahead = BACK * 100;
        for step in first.chain(steps) {
            let request = match step {
                Step::Ask(request) => request,
                Step::Flush => {
                    let () = server.run(&["FLUSHALL"]);
                    model.flush();
                    continue;
                }
                Step::Back => {
                    ahead -= BACK;
                    for key in ["lock", "stand"] {
                        let key = format!("cabloy:{{prod/shop}}:{key}");
                        let left: i64 = server.run(&["PTTL", &key]);
                        let longer = (left + i64::try_from(BACK.as_millis()).unwrap()).to_string();
                        let _: i64 = server.run(&["PEXPIRE", &key, &longer]);
                    }
                    continue;
                }
            };
            let real = runtime.block_on(script::run(&connection, &keys, &request)).unwrap();
            let (modelled, _) = model.apply(SystemClock.now() + ahead, &request);
            for (real, modelled) in left(&real).into_iter().zip(left(&modelled)) {
                prop_assert!(real.abs_diff(modelled) < BACK / 2, "{:?}, {:?} left after {:?}", real, modelled, request);
            }
            prop_assert_eq!(essence(real), essence(modelled), "{:?}", request);
        }
    });
}

/// A server that was started again with all it had has no say all the same: nobody knows whether it is all.
#[test]
fn a_memory_is_of_one_life_of_the_server() {
    let server = Redis::builder().durable().start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let keys = Keys::new("prod/shop");
    let run = |request: &Request| {
        let client = redis::Client::open(server.url()).unwrap();
        let connection = runtime.block_on(client.get_multiplexed_async_connection()).unwrap();
        runtime.block_on(script::run(&connection, &keys, request)).unwrap()
    };
    let first = run_id(&server);
    assert!(memory(&first).iter().all(|request| run(request).accepted));
    let agent = AgentId { pod: "a".into(), uid: "u".into(), process: "1".into() };
    let grant = |token| Request::Grant { token, agent: agent.clone(), revision: 1, ttl: TTL, former: None };
    let granted = run(&grant(7));
    assert!(granted.accepted && granted.intact);
    server.restart();
    let refused = run(&grant(8));
    assert_eq!((refused.accepted, refused.intact, refused.promised), (false, false, 7));
    assert!(!run(&Request::Read { token: 7 }).accepted);
    let again = run_id(&server);
    assert_ne!(first, again);
    assert!(memory(&again).iter().all(|request| run(request).accepted));
    assert!(run(&grant(8)).accepted);
}

#[test]
fn many_records_go_in_parts() {
    let server = Redis::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = redis::Client::open(server.url()).unwrap();
    let connection = runtime.block_on(client.get_multiplexed_async_connection()).unwrap();
    let keys = Keys::new("prod/shop");
    let run = |request: &Request| runtime.block_on(script::run(&connection, &keys, request)).unwrap();
    let agent = AgentId { pod: "a".into(), uid: "u".into(), process: "1".into() };
    assert!(memory(&run_id(&server)).iter().all(|request| run(request).accepted));
    assert!(run(&Request::Grant { token: 1, agent, revision: 1, ttl: TTL, former: None }).accepted);
    let entry = |index: u64| {
        let (id, nonce) = (format!("run/{index:04}"), "n".to_owned());
        let record = Record { id, attempt: 1, token: 1, seq: index, nonce, data: json!(null), results: Vec::new() };
        Entry { record: record.into(), claim: true }
    };
    let put = run(&Request::Put { token: 1, entries: (0..1234).map(entry).collect() });
    assert_eq!(put.body, Body::Verdicts(vec![Verdict::Stored; 1234]));
    let Body::Records(records) = run(&Request::Read { token: 1 }).body else { panic!("no records") };
    assert_eq!(records.len(), 1234);
}
