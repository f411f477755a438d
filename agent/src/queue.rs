//! Jobs for the queues of a `CabloyJS` app, as the app itself adds them: `BullMQ` 2 for `CabloyJS` 4, `BullMQ` 5 for Vona.
//!
//! A run has one job, whatever its attempts: the job's id is made from the run's, and one Lua call adds the job unless
//! it is there or has been.

use std::time::Duration;

use cabloy_crds::files::{JobOptions, QueueTarget};
use cabloy_crds::vocabulary::Generation;
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, ParsingError, RedisResult, Value as RedisValue};
use serde::Serialize;
use serde_json::Value;

/// What adds a job.
const ADD: &str = include_str!("queue/add.lua");

/// A job is known for so long after the deadline of its last attempt, even if the worker has removed it: the next attempt at
/// the run must not add it again.
const MEMORY: Duration = Duration::from_hours(24);

/// The database level that `CabloyJS` gives to what comes from outside of any transaction.
const DB_LEVEL: u32 = 1;

/// A job, ready to be added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its id in the queue.
    pub id: String,
    /// What all keys of the queue begin with.
    queue: String,
    layout: Layout,
    name: String,
    data: String,
    options: String,
}

/// How `BullMQ` keeps a queue in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Two,
    Five,
}

/// What became of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Added {
    /// It was added.
    New,
    /// It was there, or has been.
    Known,
    /// A key of the queue is something else, and nothing was done.
    NoQueue {
        /// The key.
        key: String,
        /// What it is.
        found: String,
    },
}

/// The options of a job as `BullMQ` takes them when a job is added.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Options<'a> {
    job_id: &'a str,
    #[serde(flatten)]
    others: &'a JobOptions,
}

/// The options of a job as `BullMQ` keeps them: with defaults.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct KeptOptions<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    delay: Option<u32>,
    attempts: u32,
    #[serde(flatten)]
    options: Options<'a>,
}

/// The data of a job of `CabloyJS` 4.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DataOfV4<'a> {
    subdomain: &'a str,
    module: &'a str,
    queue_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_name_sub: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job_name: Option<&'a str>,
    job_options: Options<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a Value>,
    db_level: u32,
}

/// The data of a job of Vona.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DataOfVona<'a> {
    queue_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a Value>,
    options: PushOptions<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PushOptions<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_name_sub: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job_name: Option<&'a str>,
    job_options: Options<'a>,
    db_info: DbInfo,
    instance_name: &'a str,
}

/// Of which transaction Vona is to be part: none.
#[derive(Serialize)]
pub(crate) struct DbInfo {
    level: u32,
}

impl DbInfo {
    pub(crate) const NONE: Self = Self { level: DB_LEVEL };
}

impl Job {
    /// The one job of the run called `run`.
    ///
    /// # Errors
    /// It cannot be JSON, which these types always can.
    pub fn new(target: &QueueTarget, generation: Generation, run: &str) -> serde_json::Result<Self> {
        let QueueTarget { prefix, queue, module, queue_name, subdomain, options, .. } = target;
        let (queue_name_sub, job_name) = (target.queue_name_sub.as_deref(), target.job_name.as_deref());
        let id = job_id(run);
        let kept = |delay| {
            let attempts = options.attempts.unwrap_or_default();
            let others = &JobOptions { attempts: None, ..options.clone() };
            serde_json::to_string(&KeptOptions { delay, attempts, options: Options { job_id: &id, others } })
        };
        let job_options = Options { job_id: &id, others: options };
        let data = target.data.as_ref();
        let (layout, data, options) = match generation {
            Generation::V4 | Generation::Generic => {
                let data = DataOfV4 {
                    subdomain,
                    module,
                    queue_name,
                    queue_name_sub,
                    job_name,
                    job_options,
                    data,
                    db_level: DB_LEVEL,
                };
                (Layout::Two, serde_json::to_string(&data)?, kept(Some(0))?)
            }
            Generation::Vona => {
                let options = PushOptions {
                    queue_name_sub,
                    job_name,
                    job_options,
                    db_info: DbInfo::NONE,
                    instance_name: subdomain,
                };
                let data = DataOfVona { queue_name: format!("{module}:{queue_name}"), data, options };
                (Layout::Five, serde_json::to_string(&data)?, kept(None)?)
            }
        };
        let name = job_name.unwrap_or(&id).to_owned();
        Ok(Self { queue: format!("{prefix}:{queue}:"), layout, name, data, options, id })
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.queue)
    }

    /// Adds it at `now`, in milliseconds since the Unix epoch, unless it is there or has been. The run's attempt has `left`
    /// before its deadline.
    ///
    /// # Errors
    /// The server does not answer, or with an error.
    pub async fn add(&self, connection: &mut MultiplexedConnection, now: i64, left: Duration) -> RedisResult<Added> {
        let script = redis::Script::new(ADD);
        let mut call = script.prepare_invoke();
        for key in ["wait", "paused", "active", "meta", "id", "events", "marker", &self.id] {
            call.key(self.key(key));
        }
        call.key(self.key(&format!("cabloy-agent:{}", self.id)));
        let memory = u64::try_from(left.saturating_add(MEMORY).as_millis()).unwrap_or(u64::MAX);
        let layout = match self.layout {
            Layout::Two => 2,
            Layout::Five => 5,
        };
        call.arg(&self.id).arg(&self.name).arg(&self.data).arg(&self.options).arg(now).arg(memory).arg(layout);
        call.invoke_async(connection).await
    }
}

impl FromRedisValue for Added {
    fn from_redis_value(value: RedisValue) -> Result<Self, ParsingError> {
        match value {
            RedisValue::Int(0) => Ok(Self::Known),
            RedisValue::Int(_) => Ok(Self::New),
            other => {
                let (key, found) = redis::from_redis_value(other)?;
                Ok(Self::NoQueue { key, found })
            }
        }
    }
}

/// The id of the job of a run. `BullMQ` refuses colons in it, which times have, and whole numbers, which no run is.
fn job_id(run: &str) -> String {
    run.replace('%', "%25").replace(':', "%3A")
}

#[cfg(test)]
mod tests {
    use cabloy_crds::files::Backoff;
    use cabloy_crds::vocabulary::BackoffKind;
    use serde_json::json;

    use super::*;

    fn target() -> QueueTarget {
        QueueTarget {
            role: "queue".into(),
            prefix: "bull_shop:queue".into(),
            queue: "t1||shop-report||render".into(),
            module: "shop-report".into(),
            queue_name: "render".into(),
            queue_name_sub: Some("pdf".into()),
            job_name: None,
            subdomain: "t1".into(),
            data: Some(json!({"pages": 2})),
            options: JobOptions {
                attempts: Some(3),
                backoff: Some(Backoff { kind: BackoffKind::Exponential, delay: 5_000 }),
                ..JobOptions::default()
            },
        }
    }

    #[test]
    fn jobs_are_as_each_generation_has_them() {
        let backoff = r#""backoff":{"type":"exponential","delay":5000}"#;
        let job = Job::new(&target(), Generation::V4, "prod/shop/a@1:2%").unwrap();
        let id = "prod/shop/a@1%3A2%25";
        assert_eq!((&*job.id, &*job.name, job.layout), (id, id, Layout::Two));
        assert_eq!(job.key("wait"), "bull_shop:queue:t1||shop-report||render:wait");
        assert_eq!(
            job.data,
            format!(
                r#"{{"subdomain":"t1","module":"shop-report","queueName":"render","queueNameSub":"pdf","jobOptions":{{"jobId":"{id}","attempts":3,{backoff}}},"data":{{"pages":2}},"dbLevel":1}}"#
            )
        );
        assert_eq!(job.options, format!(r#"{{"delay":0,"attempts":3,"jobId":"{id}",{backoff}}}"#));

        let plain = QueueTarget {
            queue_name_sub: None,
            job_name: Some("hourly".into()),
            subdomain: String::new(),
            data: None,
            options: JobOptions::default(),
            ..target()
        };
        let job = Job::new(&plain, Generation::Vona, "r").unwrap();
        assert_eq!((&*job.name, job.layout), ("hourly", Layout::Five));
        assert_eq!(
            job.data,
            r#"{"queueName":"shop-report:render","options":{"jobName":"hourly","jobOptions":{"jobId":"r"},"dbInfo":{"level":1},"instanceName":""}}"#
        );
        assert_eq!(job.options, r#"{"attempts":0,"jobId":"r"}"#);
    }

    #[test]
    fn no_two_runs_have_the_same_job() {
        let ids = ["a:b", "a%3Ab", "a%b", "a%25b", "a-b"].map(job_id);
        for (index, id) in ids.iter().enumerate() {
            assert!(!id.contains(':') && !ids[..index].contains(id), "{id}");
        }
    }
}
