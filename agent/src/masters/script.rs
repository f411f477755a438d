//! Commands to a node as Lua calls, and their answers.

use std::sync::LazyLock;
use std::time::Duration;

use cabloy_redlock::message::{Body, Entry, Incarnation, Reply, Request, Verdict};
use cabloy_redlock::record::Record;
use cabloy_redlock::{AgentId, Owner};
use futures::future::try_join_all;
use redis::aio::ConnectionLike;
use redis::{FromRedisValue, RedisError, RedisResult, Script, ScriptInvocation, Value};

/// So many records go in one call: a script that runs for long holds up everybody.
const CHUNK: usize = 500;

/// A script, behind the prelude that all share.
macro_rules! script {
    ($name:ident, $file:literal) => {
        static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(concat!(include_str!("lua/prelude.lua"), include_str!($file))));
    };
}

script!(GRANT, "lua/grant.lua");
script!(RENEW, "lua/renew.lua");
script!(RELEASE, "lua/release.lua");
script!(STAND, "lua/stand.lua");
script!(READ, "lua/read.lua");
script!(PUT, "lua/put.lua");
script!(FINISH, "lua/finish.lua");
script!(MARK, "lua/mark.lua");
script!(RECALL, "lua/recall.lua");
script!(SEED, "lua/seed.lua");
script!(LOOK, "lua/look.lua");
script!(FORGET, "lua/forget.lua");

/// Where an election lives on every node; all under one hash tag.
#[derive(Clone, Debug)]
pub struct Keys {
    lock: String,
    node: String,
    records: String,
    stand: String,
    /// Channel of [`Wake`](cabloy_redlock::message::Wake) messages.
    pub wake: String,
}

impl Keys {
    /// Of the cluster `<namespace>/<name>`.
    #[must_use]
    pub fn new(cluster: &str) -> Self {
        let key = |name: &str| format!("cabloy:{{{cluster}}}:{name}");
        Self { lock: key("lock"), node: key("node"), records: key("records"), stand: key("stand"), wake: key("wake") }
    }

    fn call<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let mut call = script.prepare_invoke();
        call.key(&self.lock).key(&self.node).key(&self.records).key(&self.stand).arg(&self.wake);
        call
    }
}

/// Loads all scripts, so that the first election does not wait for it.
///
/// # Errors
/// What Redis says.
pub async fn load(connection: &mut impl ConnectionLike) -> RedisResult<()> {
    for script in [&GRANT, &RENEW, &RELEASE, &STAND, &READ, &PUT, &FINISH, &MARK, &RECALL, &SEED, &LOOK, &FORGET] {
        script.load_async(connection).await?;
    }
    Ok(())
}

/// Carries out `request`.
///
/// # Errors
/// What Redis says, or that the answer is not one of these scripts.
pub async fn run<C: ConnectionLike + Clone>(connection: &C, keys: &Keys, request: &Request) -> RedisResult<Reply> {
    if let Request::Put { token, entries } = request
        && entries.len() > CHUNK
    {
        let parts = entries.chunks(CHUNK).map(|part| put(connection, keys, *token, part));
        return join(try_join_all(parts).await?);
    }
    let (script, mut call);
    match request {
        Request::Grant { token, agent, revision, ttl, former } => {
            script = &GRANT;
            call = keys.call(script);
            let owner = Owner::Agent { agent: AgentId::clone(agent), revision: *revision, token: *token };
            call.arg(*token).arg(owner.to_string()).arg(format!("{agent}/")).arg(*revision).arg(millis(*ttl));
            call.arg(former.as_ref().map(Owner::to_string).unwrap_or_default());
        }
        Request::Renew { token, owner, ttl } => {
            script = &RENEW;
            call = keys.call(script);
            call.arg(*token).arg(owner.to_string()).arg(millis(*ttl));
        }
        Request::Release { owner, publish } => {
            script = &RELEASE;
            call = keys.call(script);
            call.arg(owner.to_string()).arg(u8::from(*publish));
        }
        Request::Stand { revision, ttl } => {
            script = &STAND;
            call = keys.call(script);
            call.arg(*revision).arg(millis(*ttl));
        }
        Request::Read { token } => {
            script = &READ;
            call = keys.call(script);
            call.arg(*token);
        }
        Request::Put { token, entries } => return put(connection, keys, *token, entries).await,
        Request::Finish { id, result } => {
            script = &FINISH;
            call = keys.call(script);
            call.arg(&**id).arg(&result.nonce).arg(result.encode());
        }
        Request::Mark { mark } => {
            script = &MARK;
            call = keys.call(script);
            call.arg(&**mark);
        }
        Request::Recall { life } => {
            script = &RECALL;
            call = keys.call(script);
            call.arg(&*life.run).arg(&*life.mark);
        }
        Request::Seed { life, promised, led, records } => {
            script = &SEED;
            call = keys.call(script);
            call.arg(&*life.run).arg(&*life.mark).arg(*promised).arg(u8::from(*led));
            for record in &**records {
                call.arg(&record.id).arg(record.encode());
            }
        }
        Request::Look { ids } => {
            script = &LOOK;
            call = keys.call(script);
            call.arg(u8::from(ids.is_none())).arg(ids.as_deref().unwrap_or_default());
        }
        Request::Forget { token, seq, ids } => {
            script = &FORGET;
            call = keys.call(script);
            call.arg(*token).arg(*seq).arg(&ids[..]);
        }
    }
    let answer: Value = call.invoke_async(&mut connection.clone()).await?;
    let (mut reply, body) = parse(answer)?;
    let tells = matches!(request, Request::Read { .. } | Request::Look { .. } | Request::Recall { .. });
    if tells && reply.accepted {
        reply.body = Body::Records(records(body)?);
    }
    Ok(reply)
}

async fn put<C: ConnectionLike + Clone>(
    connection: &C,
    keys: &Keys,
    token: u64,
    entries: &[Entry],
) -> RedisResult<Reply> {
    let mut call = keys.call(&PUT);
    call.arg(token);
    for Entry { record, claim } in entries {
        call.arg(&record.id).arg(u8::from(*claim)).arg(record.seq).arg(&record.nonce).arg(record.encode());
    }
    let answer: Value = call.invoke_async(&mut connection.clone()).await?;
    let (mut reply, body) = parse(answer)?;
    if reply.accepted {
        reply.body = Body::Verdicts(verdicts(entries, body)?);
    }
    Ok(reply)
}

/// The answers to the parts of one request as one. They must come from one life of the node.
fn join(parts: Vec<Reply>) -> RedisResult<Reply> {
    let mut parts = parts.into_iter();
    let mut all = parts.next().ok_or_else(|| unexpected("no answer"))?;
    let mut verdicts = Vec::new();
    if let Body::Verdicts(first) = std::mem::replace(&mut all.body, Body::Empty) {
        verdicts.extend(first);
    }
    for part in parts {
        if part.incarnation != all.incarnation {
            return Err(unexpected("the node was started again meanwhile"));
        }
        all.accepted &= part.accepted;
        all.promised = all.promised.max(part.promised);
        if let Body::Verdicts(more) = part.body {
            verdicts.extend(more);
        }
    }
    if all.accepted {
        all.body = Body::Verdicts(verdicts);
    }
    Ok(all)
}

fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)
}

fn unexpected(what: &'static str) -> RedisError {
    (redis::ErrorKind::UnexpectedReturnType, what).into()
}

/// The part of an answer that all scripts share, and the rest.
fn parse(answer: Value) -> RedisResult<(Reply, Value)> {
    type Shared = (bool, String, String, u8, u64, Option<Vec<u8>>, i64, Option<u64>, i64, u64, u64, Value);
    let (accepted, run, mark, memory, promised, owner, left, stand, stands, seconds, micros, body) =
        Shared::from_redis_value(answer)?;
    let owner = owner.map(|value| {
        let left = u64::try_from(left).ok().map(Duration::from_millis);
        (Owner::parse(&String::from_utf8_lossy(&value)), left)
    });
    let stands = Duration::from_millis(u64::try_from(stands).unwrap_or_default());
    let reply = Reply {
        incarnation: Incarnation { run: run.into(), mark: mark.into() },
        intact: memory & 1 != 0,
        led: memory & 2 != 0,
        promised,
        owner,
        stand: stand.map(|revision| (revision, stands)),
        time: seconds * 1_000_000 + micros,
        accepted,
        body: Body::Empty,
    };
    Ok((reply, body))
}

fn records(body: Value) -> RedisResult<Vec<Record>> {
    let fields = Vec::<String>::from_redis_value(body)?;
    fields.chunks_exact(2).map(|field| decode(&field[0], &field[1])).collect()
}

fn verdicts(entries: &[Entry], body: Value) -> RedisResult<Vec<Verdict>> {
    let values = Vec::<Value>::from_redis_value(body)?;
    if values.len() != entries.len() {
        return Err(unexpected("not one verdict a record"));
    }
    entries
        .iter()
        .zip(values)
        .map(|(entry, value)| match value {
            Value::Int(1) => Ok(Verdict::Stored),
            Value::Int(_) => Ok(Verdict::Overtaken),
            stored => decode(&entry.record.id, &String::from_redis_value(stored)?).map(Verdict::Done),
        })
        .collect()
}

fn decode(id: &str, stored: &str) -> RedisResult<Record> {
    Record::decode(id, stored).map_err(|error| {
        (redis::ErrorKind::UnexpectedReturnType, "a record that cannot be read", error.to_string()).into()
    })
}
