//! What is read and written in the Redis of the app's queues to take over a schedule of the app's own.
//!
//! Under the prefix of the app's queues: `cabloy-agent:left`, the ticks that apps have taken and not run, as the preload
//! notes them, and those that none will take; and `cabloy-agent:takeovers`, the next tick of each schedule that was taken out
//! of a queue, and what was made of all that. Nothing can be noted by a Vona app, which has its code in one file: there the
//! job of a tick says by whom it was taken, and that says what it leaves.

use std::collections::{BTreeMap, BTreeSet};

use cabloy_crds::files::Takeover;
use cabloy_crds::vocabulary::Generation;
use jiff::Timestamp;
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, ParsingError, RedisResult, Script, Value};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::guard::dialect::Dialect;
use crate::guard::queues::Queues;
use crate::guard::repeat::{name_of, split_id};
use crate::guard::store::save;
use crate::schedule::{Handover, Rest};

/// What the job of a tick returns that an app has left to the agents, as `BullMQ` stores it. The preload has the same words.
const LEFT: &str = r#""left to the agents of cabloy-operator""#;

/// What the name of a worker of Vona begins with; the schedules that its app leaves to the agents come after it. The preload
/// has the same words.
const LEAVES: &str = "cabloy-agent/leaves/";

/// Jobs of schedules that are over for longer than this are not looked at, in milliseconds.
const RECENT: i64 = 24 * 3_600_000;

/// So many jobs are looked at at once.
const PAGE: usize = 1_000;

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
    dialect: Dialect,
    token: u64,
    /// All that are known.
    pub queues: Queues,
}

impl Store {
    /// Of the queues that the files name.
    #[must_use]
    pub fn new(file: &Takeover, generation: Generation, token: u64) -> Self {
        let Takeover { prefix, queue, .. } = file;
        let queues = Queues::new(prefix, queue);
        Self { prefix: prefix.clone(), queue: queue.clone(), dialect: Dialect::of(generation), token, queues }
    }

    /// Whether it is about these queues.
    #[must_use]
    pub fn is_of(&self, file: &Takeover, generation: Generation) -> bool {
        self.prefix == file.prefix && self.queue == file.queue && self.dialect == Dialect::of(generation)
    }

    fn own(&self, name: &str) -> String {
        format!("{}:cabloy-agent:{name}", self.prefix)
    }

    fn of(&self, queue: &str, name: &str) -> String {
        format!("{}:{queue}:{name}", self.prefix)
    }

    /// The name of the jobs of a schedule in a queue.
    fn job_name(&self, native: &str, queue: &str) -> String {
        format!("{}.{}", self.instance(queue), self.dialect.bean(native))
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
        let mut call = script.prepare_invoke();
        for name in ["repeat", "delayed", "wait", "paused", "prioritized", "active", "stalled", "events"] {
            call.key(self.of(queue, name));
        }
        call.key(self.own("left")).key(self.own("takeovers"));
        call.arg(self.token).arg(self.of(queue, "")).arg(self.job_name(native, queue));
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
            pipe.cmd("ZRANGE").arg(self.of(queue, "repeat")).arg(0).arg(-1);
        }
        let keys: Vec<Vec<String>> = pipe.query_async(connection).await?;
        let mut found = BTreeSet::new();
        for (queue, keys) in self.queues.names().iter().zip(&keys) {
            let names: BTreeSet<_> = keys.iter().map(|key| name_of(key)).collect();
            let here = natives.iter().filter(|native| names.contains(&*self.job_name(native, queue)));
            found.extend(here.map(|native| ((*native).to_owned(), queue.clone())));
        }
        Ok(found)
    }

    /// Has the jobs of schedules stay when they are over, whatever the app says, if they are what says who took them: from
    /// the next one of each on, for each takes the options of the one before.
    ///
    /// # Errors
    /// The server does not answer, or with an error.
    pub async fn keep_jobs(
        &mut self,
        connection: &mut MultiplexedConnection,
        natives: &BTreeSet<&str>,
    ) -> RedisResult<()> {
        if self.dialect != Dialect::Scheduler || natives.is_empty() {
            return Ok(());
        }
        self.queues.look(connection).await?;
        let queues = self.queues.names().iter();
        let of = |queue: &String| {
            natives.iter().map(|native| (queue.clone(), self.job_name(native, queue))).collect::<Vec<_>>()
        };
        let schedules: Vec<_> = queues.flat_map(of).collect();
        let mut pipe = redis::pipe();
        for (queue, name) in &schedules {
            pipe.cmd("ZSCORE").arg(self.of(queue, "repeat")).arg(name);
        }
        let ticks: Vec<Option<i64>> = pipe.query_async(connection).await?;
        for ((queue, name), tick) in schedules.iter().zip(ticks) {
            let Some(tick) = tick else { continue };
            let job = self.of(queue, &format!("repeat:{name}:{tick}"));
            let options: Option<String> = redis::cmd("HGET").arg(&job).arg("opts").query_async(connection).await?;
            let Some((after, before)) = options.and_then(|before| Some((kept(&before)?, before))) else { continue };
            let script = Script::new(include_str!("options.lua"));
            script.key(job).arg(before).arg(after).invoke_async::<()>(connection).await?;
        }
        Ok(())
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
        let mut left = Vec::new();
        if !marks.is_empty() {
            let mut pipe = redis::pipe();
            for (queue, id) in &marks {
                pipe.cmd("HMGET").arg(self.of(queue, id)).arg(&["name", "returnvalue"]);
            }
            let jobs: Vec<[Option<String>; 2]> = pipe.query_async(connection).await?;
            let found = marks.into_iter().zip(jobs);
            // Where the app died before the job was over, another has taken it, and may have run it.
            let of = found.filter(|(_, [name, returned])| name.is_none() || returned.as_deref() == Some(LEFT));
            left.extend(of.map(|(mark, _)| mark));
        }
        left.extend(self.taken(connection, native).await?.into_iter().map(|job| (job.queue, job.id)));
        for (queue, id) in left {
            if let Some(tick) = split_id(&id).and_then(|(_, tick)| moment(tick)) {
                rest.left.entry(tick).or_default().insert(self.instance(&queue).to_owned());
            }
        }
        Ok(rest)
    }

    /// The jobs that are over of ticks that were taken by an app which leaves them to us, where the job says who took it. It is
    /// the last one who did that counts, and a job that failed there was not run either.
    async fn taken(&self, connection: &mut MultiplexedConnection, native: &str) -> RedisResult<Vec<Taken>> {
        let mut taken = Vec::new();
        if self.dialect != Dialect::Scheduler {
            return Ok(taken);
        }
        let [seconds, _]: [i64; 2] = redis::cmd("TIME").query_async(connection).await?;
        let since = (seconds * 1_000 - RECENT).to_string();
        for queue in self.queues.names() {
            let ids = format!("repeat:{}:", self.job_name(native, queue));
            for state in ["completed", "failed"] {
                let over = self.over(connection, &self.of(queue, state), since.clone()).await?;
                let ours: Vec<_> = over.into_iter().filter(|id| id.starts_with(&ids)).collect();
                for page in ours.chunks(PAGE) {
                    let mut pipe = redis::pipe();
                    for id in page {
                        pipe.cmd("HGET").arg(self.of(queue, id)).arg("pb");
                    }
                    let workers: Vec<Option<String>> = pipe.query_async(connection).await?;
                    let left = page.iter().zip(workers).filter(|(_, worker)| leaves(worker.as_deref(), native));
                    taken.extend(left.map(|(id, _)| Taken { queue: queue.clone(), state, id: id.clone() }));
                }
            }
        }
        Ok(taken)
    }

    /// The jobs of a set that are over since then.
    async fn over(
        &self,
        connection: &mut MultiplexedConnection,
        set: &str,
        mut since: String,
    ) -> RedisResult<BTreeSet<String>> {
        let mut ids = BTreeSet::new();
        loop {
            let mut range = redis::cmd("ZRANGEBYSCORE");
            range.arg(set).arg(&since).arg("+inf").arg("WITHSCORES").arg("LIMIT").arg(0).arg(PAGE);
            let page: Vec<(String, String)> = range.query_async(connection).await?;
            // The next page begins with the last time of this one, unless all of it is of that.
            let next = match (page.first(), page.last()) {
                (Some((_, first)), Some((_, last))) if page.len() == PAGE && first == last => Some(format!("({last}")),
                (_, Some((_, last))) if page.len() == PAGE => Some(last.clone()),
                _ => None,
            };
            ids.extend(page.into_iter().map(|(id, _)| id));
            match next {
                Some(next) => since = next,
                None => return Ok(ids),
            }
        }
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
        let taken = self.taken(connection, native).await?;
        for page in taken.chunks(PAGE) {
            let mut pipe = redis::pipe();
            pipe.atomic();
            for Taken { queue, state, id } in page {
                let job = self.of(queue, id);
                pipe.cmd("ZREM").arg(self.of(queue, state)).arg(id).ignore();
                pipe.cmd("DEL").arg(&job).arg(format!("{job}:logs")).ignore();
            }
            pipe.query_async::<()>(connection).await?;
        }
        if gone.is_empty() {
            return Ok(None);
        }
        save(connection, &self.own("takeovers"), self.token, &[], &gone).await
    }
}

/// A job that is over, of a tick that was left to us.
struct Taken {
    queue: String,
    /// The set it is in.
    state: &'static str,
    id: String,
}

/// Whether the app of a worker, by its name, leaves a schedule to us.
fn leaves(worker: Option<&str>, native: &str) -> bool {
    worker.and_then(|name| name.strip_prefix(LEAVES)).is_some_and(|left| left.split(',').any(|it| it == native))
}

/// The options of a job that is to stay when it is over; none if it does.
fn kept(options: &str) -> Option<String> {
    let mut options: Map<String, Json> = serde_json::from_str(options).ok()?;
    let mut changed = false;
    for option in ["removeOnComplete", "removeOnFail"] {
        changed |= options.insert(option.to_owned(), false.into()) != Some(false.into());
    }
    changed.then(|| Json::Object(options).to_string())
}

/// A tick, which `BullMQ` has in milliseconds since the epoch.
fn moment(tick: i64) -> Option<Timestamp> {
    Timestamp::from_millisecond(tick).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_worker_says_what_its_app_leaves() {
        let name = Some("cabloy-agent/leaves/shop-report.nightly,shop.tick");
        assert!(leaves(name, "shop-report.nightly") && leaves(name, "shop.tick"));
        for (worker, native) in [
            (name, "shop-report.night"),
            (name, "report.nightly"),
            (Some("cabloy-agent/leaves/"), "shop.tick"),
            (Some("shop.tick"), "shop.tick"),
            (None, "shop.tick"),
        ] {
            assert!(!leaves(worker, native), "{worker:?} {native}");
        }
    }

    #[test]
    fn a_job_stays_by_its_options() {
        let after = |options: Json| kept(&options.to_string()).map(|text| serde_json::from_str::<Json>(&text).unwrap());
        let stays = json!({"attempts": 0, "removeOnComplete": false, "removeOnFail": false});
        assert_eq!(after(json!({"attempts": 0})), Some(stays.clone()));
        assert_eq!(
            after(json!({"attempts": 0, "removeOnComplete": true, "removeOnFail": {"count": 3}})),
            Some(stays.clone())
        );
        assert_eq!(after(stays), None);
        assert_eq!(kept("{"), None);
    }
}
