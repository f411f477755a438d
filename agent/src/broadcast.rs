//! Broadcasts to all processes of a `CabloyJS` app, as the app itself sends them.

use cabloy_crds::files::BroadcastTarget;
use cabloy_crds::vocabulary::Generation;
use redis::RedisResult;
use redis::aio::MultiplexedConnection;
use serde::Serialize;
use serde_json::Value;

use crate::queue::DbInfo;

/// The message of `CabloyJS` 4.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MessageOfV4<'a> {
    subdomain: &'a str,
    module: &'a str,
    broadcast_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a Value>,
    #[serde(rename = "__callerId")]
    caller_id: &'a str,
}

/// The message of Vona.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MessageOfVona<'a> {
    broadcast_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a Value>,
    options: EmitOptions<'a>,
    caller_id: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EmitOptions<'a> {
    db_info: DbInfo,
    instance_name: &'a str,
}

/// The message of the run called `run`, which stands where the app's own processes put their id.
///
/// # Errors
/// It cannot be JSON, which these types always can.
pub fn message(target: &BroadcastTarget, generation: Generation, run: &str) -> serde_json::Result<String> {
    let BroadcastTarget { module, broadcast_name, subdomain, data, .. } = target;
    let (data, caller_id) = (data.as_ref(), run);
    match generation {
        Generation::V4 | Generation::Generic => {
            serde_json::to_string(&MessageOfV4 { subdomain, module, broadcast_name, data, caller_id })
        }
        Generation::Vona => serde_json::to_string(&MessageOfVona {
            broadcast_name: format!("{module}:{broadcast_name}"),
            data,
            options: EmitOptions { db_info: DbInfo::NONE, instance_name: subdomain },
            caller_id,
        }),
    }
}

/// Publishes a message; gives how many listen.
///
/// # Errors
/// The server does not answer, or with an error.
pub async fn publish(connection: &mut MultiplexedConnection, channel: &str, message: &str) -> RedisResult<u64> {
    redis::cmd("PUBLISH").arg(channel).arg(message).query_async(connection).await
}
