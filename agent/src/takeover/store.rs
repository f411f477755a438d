//! What is read and written in the Redis of the app's queues to take over a schedule of the app's own.
//!
//! Under the prefix of the app's queues: `cabloy-agent:left`, the ticks that apps have taken and not run, as the preload
//! notes them; and `cabloy-agent:takeovers`, the next tick of each schedule that was taken out of a queue, and what was made
//! of all that.

use std::collections::{BTreeMap, BTreeSet};

use cabloy_crds::files::Takeover;
use jiff::Timestamp;
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, ParsingError, RedisResult, Script, Value};
use serde::{Deserialize, Serialize};

use crate::guard::queues::Queues;
use crate::guard::repeat::{name_of, split_id};
use crate::guard::store::save;
use crate::schedule::{Handover, Rest};

/// What the job of a tick returns that an app has left to the agents, as `BullMQ` stores it. The preload has the same words.
const LEFT: &str = r#""left to the agents of cabloy-operator""#;

/// How a schedule was taken out of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Release {
    /// Nothing of it is there.
    Done,
    /// An app is at work at this job.
    AtWork(String),
    /// A leader with a higher token has been here.
    Fenced(u64),
    /// A key is something else.
    NoQueue {
        /// The key.
        key: String,
        /// What it is.
        found: String,
    },
}

impl FromRedisValue for Release {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let parts: Vec<Value> = redis::from_redis_value(value)?;
        let mut parts = parts.into_iter();
        let mut next = || parts.next().unwrap_or(Value::Nil);
        Ok(match redis::from_redis_value::<u8>(next())? {
            1 => Self::Done,
            0 => Self::AtWork(redis::from_redis_value(next())?),
            3 => Self::Fenced(redis::from_redis_value(next())?),
            _ => Self::NoQueue { key: redis::from_redis_value(next())?, found: redis::from_redis_value(next())? },
        })
    }
}

/// What was decided, for which schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// The schedule that takes over.
    pub schedule: String,
    /// How.
    pub handover: Handover,
}

/// The queues of one app, for as long as an agent leads.
#[derive(Debug)]
pub struct Store {
    prefix: String,
    queue: String,
    token: u64,
    /// All that are known.
    pub queues: Queues,
}

impl Store {
    /// Of the queues that the files name.
    #[must_use]
    pub fn new(file: &Takeover, token: u64) -> Self {
        let Takeover { prefix, queue, .. } = file;
        let queues = Queues::new(prefix, queue);
        Self { prefix: prefix.clone(), queue: queue.clone(), token, queues }
    }

    /// Whether it is about these queues.
    #[must_use]
    pub fn is_of(&self, file: &Takeover) -> bool {
        self.prefix == file.prefix && self.queue == file.queue
    }

    fn own(&self, name: &str) -> String {
        format!("{}:cabloy-agent:{name}", self.prefix)
    }

    /// The subdomain of the instance that a queue belongs to.
    fn instance<'a>(&self, queue: &'a str) -> &'a str {
        let instance = queue.strip_suffix(&self.queue).unwrap_or(queue);
        if instance == "-" { "" } else { instance }
    }

    /// Takes a schedule of the app's own out of a queue.
    ///
    /// # Errors
    /// The server does not answer, or with an error.
    pub async fn release(
        &self,
        connection: &mut MultiplexedConnection,
        native: &str,
        queue: &str,
    ) -> RedisResult<Release> {
        let script = Script::new(include_str!("release.lua"));
        let of = |name: &str| format!("{}:{queue}:{name}", self.prefix);
        let mut call = script.prepare_invoke();
        for name in ["repeat", "delayed", "wait", "paused", "active", "stalled", "events"] {
            call.key(of(name));
        }
        call.key(self.own("left")).key(self.own("takeovers"));
        call.arg(self.token).arg(of("")).arg(format!("{}.{native}", self.instance(queue)));
        call.arg(format!("{native} {queue}"));
        call.invoke_async(connection).await
    }

    /// Where one of these schedules of the app's own is: which, and in which queue.
    ///
    /// # Errors
    /// The server does not answer, or with an error.
    pub async fn present(
        &mut self,
        connection: &mut MultiplexedConnection,
        natives: &BTreeSet<&str>,
    ) -> RedisResult<BTreeSet<(String, String)>> {
        self.queues.look(connection).await?;
        let mut pipe = redis::pipe();
        for queue in self.queues.names() {
            pipe.cmd("ZRANGE").arg(format!("{}:{queue}:repeat", self.prefix)).arg(0).arg(-1);
        }
        let keys: Vec<Vec<String>> = pipe.query_async(connection).await?;
        let of = |key: &str| name_of(key).split_once('.').map(|(_, native)| native.to_owned());
        let found = self.queues.names().iter().zip(&keys).flat_map(|(queue, keys)| {
            let natives = keys.iter().filter_map(|key| of(key)).filter(|native| natives.contains(native.as_str()));
            natives.map(|native| (native, queue.clone()))
        });
        Ok(found.collect())
    }

    /// What there is left of a schedule that is in no queue any more.
    ///
    /// # Errors
    /// The server does not answer, or with an error.
    pub async fn rest(&self, connection: &mut MultiplexedConnection, native: &str) -> RedisResult<Rest> {
        let mut rest = Rest::default();
        let fields: BTreeMap<String, String> =
            redis::cmd("HGETALL").arg(self.own("takeovers")).query_async(connection).await?;
        for (field, tick) in &fields {
            let of = field.strip_prefix("next ").and_then(|it| it.split_once(' ')).filter(|(name, _)| *name == native);
            if let (Some((_, queue)), Some(tick)) = (of, tick.parse().ok().and_then(moment)) {
                rest.pending.insert(self.instance(queue).to_owned(), tick);
            }
        }
        let marks = self.marks(connection, native).await?;
        if marks.is_empty() {
            return Ok(rest);
        }
        let mut pipe = redis::pipe();
        for (queue, id) in &marks {
            pipe.cmd("HMGET").arg(format!("{}:{queue}:{id}", self.prefix)).arg(&["name", "returnvalue"]);
        }
        let jobs: Vec<[Option<String>; 2]> = pipe.query_async(connection).await?;
        for ((queue, id), [name, returned]) in marks.iter().zip(jobs) {
            // Where the app died before the job was over, another has taken it, and may have run it.
            let is_left = name.is_none() || returned.as_deref() == Some(LEFT);
            if let Some(tick) = split_id(id).and_then(|(_, tick)| moment(tick)).filter(|_| is_left) {
                rest.left.entry(tick).or_default().insert(self.instance(queue).to_owned());
            }
        }
        Ok(rest)
    }

    /// The jobs of ticks that apps say they leave to us: the queue and the id of each.
    async fn marks(&self, connection: &mut MultiplexedConnection, native: &str) -> RedisResult<Vec<(String, String)>> {
        let marks: Vec<String> =
            redis::cmd("ZRANGE").arg(self.own("left")).arg(0).arg(-1).query_async(connection).await?;
        let of = |mark: &String| {
            let (name, rest) = mark.split_once(' ')?;
            let (queue, id) = rest.split_once(' ').filter(|_| name == native)?;
            Some((queue.to_owned(), id.to_owned()))
        };
        Ok(marks.iter().filter_map(of).collect())
    }

    /// What was decided of a schedule of the app's own.
    ///
    /// # Errors
    /// The server does not answer, or with an error.
    pub async fn decided(&self, connection: &mut MultiplexedConnection, native: &str) -> RedisResult<Option<Decided>> {
        let text: Option<String> =
            redis::cmd("HGET").arg(self.own("takeovers")).arg(format!("plan {native}")).query_async(connection).await?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// Keeps what was decided; gives the token of another leader if that is higher.
    ///
    /// # Errors
    /// The server does not answer, or with an error.
    pub async fn decide(
        &self,
        connection: &mut MultiplexedConnection,
        native: &str,
        decided: &Decided,
    ) -> RedisResult<Option<u64>> {
        // None of these types cannot be JSON; if one could not, it would be decided once more.
        let text = serde_json::to_string(decided).unwrap_or_default();
        save(connection, &self.own("takeovers"), self.token, &[(&format!("plan {native}"), &text)], &[]).await
    }

    /// Forgets all about a schedule of the app's own that is taken over; gives the token of another leader if that is
    /// higher.
    ///
    /// # Errors
    /// The server does not answer, or with an error.
    pub async fn forget(&self, connection: &mut MultiplexedConnection, native: &str) -> RedisResult<Option<u64>> {
        let fields: Vec<String> = redis::cmd("HKEYS").arg(self.own("takeovers")).query_async(connection).await?;
        let next = format!("next {native} ");
        let plan = format!("plan {native}");
        let gone: Vec<_> = fields.iter().filter(|field| field.starts_with(&next) || **field == plan).collect();
        let marks = self.marks(connection, native).await?;
        // First the ticks, which are not to be run once more.
        if !marks.is_empty() {
            let members: Vec<_> = marks.iter().map(|(queue, id)| format!("{native} {queue} {id}")).collect();
            redis::cmd("ZREM").arg(self.own("left")).arg(members).query_async::<()>(connection).await?;
        }
        if gone.is_empty() {
            return Ok(None);
        }
        save(connection, &self.own("takeovers"), self.token, &[], &gone).await
    }
}

/// A tick, which `BullMQ` has in milliseconds since the epoch.
fn moment(tick: i64) -> Option<Timestamp> {
    Timestamp::from_millisecond(tick).ok()
}
