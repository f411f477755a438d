//! What the guard reads and writes in the Redis of the app's queues: the queues as `BullMQ` keeps them, and under the same
//! prefix what the guard remembers and which pods run.

use std::collections::{BTreeMap, BTreeSet};

use cabloy_crds::agent_status::PutBackStatus;
use cabloy_crds::files::Guard;
use cabloy_crds::vocabulary::Generation;
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, ParsingError, Pipeline, RedisResult, Script, Value};
use serde::{Deserialize, Serialize};

use super::dialect::Dialect;
use super::memory::{Added, Memory, Phase, Queue, Seen, Snapshot};
use super::queues::Queues;
use super::repeat::{Found, Job, Template, name_of, split_id};

/// So many events of a queue are read at once.
const PAGE: usize = 1_000;

/// The longest look at one queue's events: `BullMQ` keeps ten thousand.
const PAGES: usize = 20;

/// A pod that is not heard of is remembered for so long, in milliseconds.
const REMEMBERED: i64 = 3_600_000;

/// An app whose agent is not heard of is not at its startups after so long, in milliseconds.
const STARTING: i64 = 4_000;

/// So many jobs are removed at once.
const BATCH: usize = 500;

/// At one time so many batches of jobs are removed of each queue.
const BATCHES: usize = 20;

/// The fields of the memory besides those of queues.
const REVISIONS: &str = "revisions";
const JOURNAL: &str = "journal";
const QUEUE_FIELD: &str = "queue ";

/// Members of a sorted set, and their scores.
type Scores = Vec<(String, i64)>;

/// What has been put back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// How many schedules.
    pub put_back: u64,
    /// The last, newest first.
    pub last: Vec<PutBackStatus>,
}

/// Where everything is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// What the keys of all queues begin with.
    prefix: String,
    /// How the queues of schedules are called after their instance.
    queue: String,
    /// How schedules are kept in them.
    dialect: Dialect,
}

impl Keys {
    /// Of the queues that the files name.
    #[must_use]
    pub fn new(guard: &Guard, generation: Generation) -> Self {
        Self { prefix: guard.prefix.clone(), queue: guard.queue.clone(), dialect: Dialect::of(generation) }
    }

    /// How schedules are kept there.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    fn own(&self, name: &str) -> String {
        format!("{}:cabloy-agent:{name}", self.prefix)
    }

    fn of(&self, queue: &str, name: &str) -> String {
        format!("{}:{queue}:{name}", self.prefix)
    }
}

/// How a schedule was put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutBack {
    /// It is there now.
    Done,
    /// It was there.
    Present,
    /// The job of that tick is there or has been.
    Taken,
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

impl FromRedisValue for PutBack {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        let parts: Vec<Value> = redis::from_redis_value(value)?;
        let mut parts = parts.into_iter();
        let mut next = || parts.next().unwrap_or(Value::Nil);
        Ok(match redis::from_redis_value::<u8>(next())? {
            1 => Self::Done,
            0 => Self::Present,
            2 => Self::Taken,
            3 => Self::Fenced(redis::from_redis_value(next())?),
            _ => Self::NoQueue { key: redis::from_redis_value(next())?, found: redis::from_redis_value(next())? },
        })
    }
}

/// Notes that a pod of a revision runs, and whether its app is at its startups; gives how many others' are.
///
/// # Errors
/// The server does not answer, or with an error.
pub async fn announce(
    connection: &mut MultiplexedConnection,
    keys: &Keys,
    hash: &str,
    pod: &str,
    starting: bool,
) -> RedisResult<u64> {
    let script = Script::new(include_str!("announce.lua"));
    let mut call = script.prepare_invoke();
    call.key(keys.own("pods")).key(keys.own("since")).key(keys.own("starting"));
    call.arg(hash).arg(pod).arg(u8::from(starting)).arg(REMEMBERED).arg(STARTING);
    call.invoke_async(connection).await
}

/// Of which revision the pod was that was the first of a workload's to start, last time that changed.
///
/// # Errors
/// The server does not answer, or with an error.
pub async fn started(
    connection: &mut MultiplexedConnection,
    keys: &Keys,
    workload: &str,
) -> RedisResult<Option<String>> {
    redis::cmd("HGET").arg(keys.own("started")).arg(workload).query_async(connection).await
}

/// Notes that a pod of a revision has started.
///
/// # Errors
/// The server does not answer, or with an error.
pub async fn note_started(
    connection: &mut MultiplexedConnection,
    keys: &Keys,
    workload: &str,
    hash: &str,
) -> RedisResult<()> {
    redis::cmd("HSET").arg(keys.own("started")).arg(workload).arg(hash).query_async(connection).await
}

/// Writes fields of a hash and removes others, unless a leader with a higher token has been here, whose token it gives then.
///
/// # Errors
/// The server does not answer, or with an error.
pub async fn save(
    connection: &mut MultiplexedConnection,
    key: &str,
    token: u64,
    fields: &[(&String, &String)],
    gone: &[&String],
) -> RedisResult<Option<u64>> {
    let script = Script::new(include_str!("save.lua"));
    let mut call = script.prepare_invoke();
    call.key(key).arg(token).arg(fields.len());
    for (field, text) in fields {
        call.arg(field).arg(text);
    }
    call.arg(gone);
    let higher: u64 = call.invoke_async(connection).await?;
    Ok((higher > 0).then_some(higher))
}

/// The queues of one app, for as long as an agent leads.
#[derive(Debug)]
pub struct Store {
    keys: Keys,
    token: u64,
    queues: Queues,
    /// Up to where the events of each queue have been read.
    read: BTreeMap<String, String>,
    /// What is kept as it is here.
    kept: BTreeMap<String, String>,
}

impl Store {
    /// Nothing has been read yet.
    #[must_use]
    pub fn new(keys: Keys, token: u64) -> Self {
        let queues = Queues::new(&keys.prefix, &keys.queue);
        let queues = match keys.dialect {
            Dialect::Repeatable => queues,
            Dialect::Scheduler => queues.of_any_name(),
        };
        Self { keys, token, queues, read: BTreeMap::new(), kept: BTreeMap::new() }
    }

    /// What leaders before remembered. What cannot be read is forgotten.
    ///
    /// # Errors
    /// The server does not answer, or with an error.
    pub async fn load(&mut self, connection: &mut MultiplexedConnection) -> RedisResult<(Memory, Journal)> {
        let fields: BTreeMap<String, String> =
            redis::cmd("HGETALL").arg(self.keys.own("guard")).query_async(connection).await?;
        let parse = |name: &str| fields.get(name).map(String::as_str);
        let revisions: BTreeMap<String, Phase> = parse(REVISIONS).and_then(read).unwrap_or_default();
        let journal = parse(JOURNAL).and_then(read).unwrap_or_default();
        let queues = fields.iter().filter_map(|(field, text)| {
            let name = field.strip_prefix(QUEUE_FIELD)?;
            Some((name.to_owned(), read::<Queue>(text)?))
        });
        let memory = Memory { revisions, queues: queues.collect() };
        self.queues.extend(memory.queues.keys().cloned());
        self.kept = fields.into_iter().filter(|(field, _)| field != "token").collect();
        Ok((memory, journal))
    }

    /// Keeps what has changed; gives the token of another leader if that is higher.
    ///
    /// # Errors
    /// The server does not answer, or with an error.
    pub async fn save(
        &mut self,
        connection: &mut MultiplexedConnection,
        memory: &Memory,
        journal: &Journal,
    ) -> RedisResult<Option<u64>> {
        let mut fields =
            BTreeMap::from([(REVISIONS.to_owned(), write(&memory.revisions)), (JOURNAL.to_owned(), write(journal))]);
        fields.extend(memory.queues.iter().map(|(name, queue)| (format!("{QUEUE_FIELD}{name}"), write(queue))));
        let changed: Vec<_> = fields.iter().filter(|(field, text)| self.kept.get(*field) != Some(*text)).collect();
        let gone: Vec<_> = self.kept.keys().filter(|field| !fields.contains_key(*field)).collect();
        if changed.is_empty() && gone.is_empty() {
            return Ok(None);
        }
        let higher = save(connection, &self.keys.own("guard"), self.token, &changed, &gone).await?;
        if higher.is_none() {
            self.kept = fields;
        }
        Ok(higher)
    }

    /// Looks at everything; at jobs that were added `since` then, if that matters. Says too whether all queues are known.
    ///
    /// # Errors
    /// The server does not answer, or with an error.
    pub async fn look(
        &mut self,
        connection: &mut MultiplexedConnection,
        memory: &Memory,
        since: Option<i64>,
    ) -> RedisResult<Snapshot> {
        self.queues.look(connection).await?;
        let mut pipe = redis::pipe();
        pipe.cmd("TIME").cmd("ZRANGE").arg(self.keys.own("pods")).arg(0).arg(-1).arg("WITHSCORES");
        pipe.cmd("HGETALL").arg(self.keys.own("since"));
        let (time, pods, since_when): ([i64; 2], Scores, BTreeMap<String, i64>) = pipe.query_async(connection).await?;
        let now = time[0] * 1_000 + time[1] / 1_000;
        let mut heard = BTreeMap::new();
        // The last of a revision is the latest.
        for (pod, at) in &pods {
            if let Some((hash, _)) = pod.split_once(' ') {
                heard.insert(hash.to_owned(), *at);
            }
        }
        let names: Vec<_> = self.queues.names().iter().cloned().collect();
        let mut added = Vec::new();
        for name in &names {
            added.push(match since {
                Some(since) => self.events(connection, name, since).await?,
                None => Vec::new(),
            });
        }
        if since.is_none() {
            self.read.clear();
        }
        let mut pipe = redis::pipe();
        for name in &names {
            pipe.add_command(self.keys.dialect.list(&self.keys.of(name, "repeat")));
        }
        let schedules: Vec<Vec<(String, f64)>> = pipe.query_async(connection).await?;
        let mut queues = BTreeMap::new();
        for ((name, added), schedules) in names.into_iter().zip(added).zip(schedules) {
            let schedules = schedules.into_iter().filter(|(key, _)| self.keys.dialect.is_schedule(name_of(key)));
            let schedules: BTreeMap<_, _> = schedules.map(|(key, tick)| (key, whole(tick))).collect();
            let unknown: BTreeSet<_> = schedules.iter().filter(|(key, _)| !memory.knows(&name, key)).collect();
            let found =
                if unknown.is_empty() { Vec::new() } else { self.next_jobs(connection, &name, &unknown).await? };
            queues.insert(name, Seen { schedules, found, added });
        }
        Ok(Snapshot { now, heard, since: since_when, queues, whole: self.queues.is_whole(), read_since: since })
    }

    /// The jobs of schedules that were added to a queue since they were last read.
    async fn events(
        &mut self,
        connection: &mut MultiplexedConnection,
        queue: &str,
        since: i64,
    ) -> RedisResult<Vec<Added>> {
        let mut added = Vec::new();
        for _ in 0..PAGES {
            let from = self.read.get(queue).map_or_else(|| since.to_string(), |last| format!("({last}"));
            let mut range = redis::cmd("XRANGE");
            range.arg(self.keys.of(queue, "events")).arg(from).arg("+").arg("COUNT").arg(PAGE);
            let events: Vec<(String, BTreeMap<String, String>)> = range.query_async(connection).await?;
            let full = events.len() == PAGE;
            for (at, event) in events {
                let job = event
                    .get("jobId")
                    .filter(|id| event.get("event").is_some_and(|it| it == "added") && split_id(id).is_some());
                if let (Some(id), Some(at)) = (job, at.split('-').next().and_then(|at| at.parse().ok())) {
                    added.push(Added { at, id: id.clone(), found: None });
                }
                self.read.insert(queue.to_owned(), at);
            }
            if !full {
                break;
            }
        }
        let ids: Vec<_> = added.iter().map(|added| added.id.clone()).collect();
        for (added, found) in added.iter_mut().zip(self.jobs(connection, queue, &ids).await?) {
            added.found = found;
        }
        Ok(added)
    }

    /// The next jobs of schedules, as far as they wait for their tick.
    async fn next_jobs(
        &self,
        connection: &mut MultiplexedConnection,
        queue: &str,
        schedules: &BTreeSet<(&String, &i64)>,
    ) -> RedisResult<Vec<Found>> {
        let mut delayed: Vec<String> =
            redis::cmd("ZRANGE").arg(self.keys.of(queue, "delayed")).arg(0).arg(-1).query_async(connection).await?;
        delayed.retain(|id| split_id(id).is_some_and(|(_, tick)| schedules.iter().any(|(_, next)| **next == tick)));
        Ok(self.jobs(connection, queue, &delayed).await?.into_iter().flatten().collect())
    }

    async fn jobs(
        &self,
        connection: &mut MultiplexedConnection,
        queue: &str,
        ids: &[String],
    ) -> RedisResult<Vec<Option<Found>>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = Pipeline::new();
        for id in ids {
            pipe.cmd("HMGET").arg(self.keys.of(queue, id)).arg(&["name", "data", "opts", "rjk"]);
        }
        let jobs: Vec<[Option<String>; 4]> = pipe.query_async(connection).await?;
        let found = jobs.into_iter().zip(ids);
        Ok(found
            .map(|([name, data, options, key], id)| {
                Found::new(self.keys.dialect, id, name, data, options.as_deref(), key)
            })
            .collect())
    }

    /// Adds a schedule that is not there, with that job as its next.
    ///
    /// # Errors
    /// The server does not answer, or with an error.
    pub async fn put_back(
        &self,
        connection: &mut MultiplexedConnection,
        queue: &str,
        key: &str,
        template: &Template,
        job: &Job,
        now: i64,
    ) -> RedisResult<PutBack> {
        let dialect = self.keys.dialect;
        let (script, member) = (Script::new(dialect.put_back()), dialect.member(key));
        let mut call = script.prepare_invoke();
        let schedule = format!("repeat:{member}");
        for name in ["repeat", "delayed", "events", "meta", "id", "wait", "paused", "marker", &schedule, &job.id] {
            call.key(self.keys.of(queue, name));
        }
        call.key(self.keys.own("guard"));
        call.arg(self.token).arg(member).arg(job.tick).arg(&job.id).arg(&template.name).arg(&template.data);
        call.arg(&job.options).arg(now).arg(job.delay);
        for (field, value) in dialect.fields(template, job) {
            call.arg(field).arg(value);
        }
        call.invoke_async(connection).await
    }

    /// Removes all but the last `keep` jobs of a state, `completed` or `failed`, of all queues that are for schedules alone, or
    /// many of them; gives how many.
    ///
    /// # Errors
    /// The server does not answer, or with an error.
    pub async fn trim(&self, connection: &mut MultiplexedConnection, state: &str, keep: u32) -> RedisResult<u64> {
        let script = Script::new(include_str!("trim.lua"));
        let mut removed = 0;
        for queue in self.queues.names().iter().filter(|name| name.ends_with(&self.keys.queue)) {
            for _ in 0..BATCHES {
                let mut call = script.prepare_invoke();
                call.key(self.keys.of(queue, state)).arg(self.keys.of(queue, "")).arg(keep).arg(BATCH);
                let now: usize = call.invoke_async(connection).await?;
                removed += now as u64;
                if now < BATCH {
                    break;
                }
            }
        }
        Ok(removed)
    }

    /// Forgets since when revisions have had pods that are no more.
    ///
    /// # Errors
    /// The server does not answer, or with an error.
    pub async fn forget(&self, connection: &mut MultiplexedConnection, hashes: &[&String]) -> RedisResult<()> {
        redis::cmd("HDEL").arg(self.keys.own("since")).arg(hashes).query_async(connection).await
    }
}

/// Milliseconds since the epoch, which a double holds exactly.
#[expect(clippy::cast_possible_truncation, reason = "a score of BullMQ is a time in milliseconds")]
fn whole(score: f64) -> i64 {
    score as i64
}

fn read<T: for<'a> Deserialize<'a>>(text: &str) -> Option<T> {
    serde_json::from_str(text).ok()
}

/// None of these types cannot be JSON; if one could not, it would be forgotten.
fn write<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
