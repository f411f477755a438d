//! The connections to the Redis servers of the app's own roles: one for each role, made when it is first needed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cabloy_redlock::ErrorKind;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ProtocolVersion, RedisResult};
use tokio::time::timeout;

use crate::masters::Master;
use crate::masters::node::{NodeError, classify, client};

/// How long a connection may take to come about, with its handshake, and how long one that was idle may take to show that
/// it still is one.
const CONNECT: Duration = Duration::from_secs(1);

/// The connections.
#[derive(Debug, Default)]
pub struct Roles {
    lines: Mutex<BTreeMap<String, Arc<Line>>>,
}

/// The connection of one role. Who connects has the lock; the others wait, and have what comes of it.
type Line = tokio::sync::Mutex<Option<Known>>;

/// What is known of a server.
#[derive(Debug)]
struct Known {
    server: Master,
    /// Since when.
    at: Instant,
    connection: Result<MultiplexedConnection, NodeError>,
}

impl Roles {
    /// A connection to the server of a role which has just shown that it is one.
    ///
    /// # Errors
    /// There is none to be had: nothing has been sent to the server but how to log in.
    pub async fn connection(&self, role: &str, server: &Master) -> Result<MultiplexedConnection, NodeError> {
        let asked = Instant::now();
        let line =
            Arc::clone(self.lines.lock().unwrap_or_else(PoisonError::into_inner).entry(role.to_owned()).or_default());
        let mut line = line.lock().await;
        let before = line.take().filter(|known| known.server.same_place(server) && known.server.same_access(server));
        let connection = match before {
            Some(known) if known.at >= asked => known.connection,
            Some(Known { connection: Ok(connection), .. }) if answers(connection.clone()).await => Ok(connection),
            _ => connect(server).await,
        };
        *line = Some(Known { server: server.clone(), at: Instant::now(), connection: connection.clone() });
        connection
    }
}

async fn answers(mut connection: MultiplexedConnection) -> bool {
    timeout(CONNECT, ping(&mut connection)).await.is_ok_and(|answer| answer.is_ok())
}

async fn ping(connection: &mut MultiplexedConnection) -> RedisResult<()> {
    redis::cmd("PING").query_async(connection).await
}

async fn connect(server: &Master) -> Result<MultiplexedConnection, NodeError> {
    let connected = async {
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        // Older servers than those of role redlock may do here.
        let client = client(server, ProtocolVersion::RESP2)?;
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        // Without user and database nothing has been said yet, and a server that stands still is connected to all the same.
        ping(&mut connection).await?;
        RedisResult::Ok(connection)
    };
    match timeout(CONNECT, connected).await {
        Ok(connection) => connection.map_err(|error| classify(&error)),
        Err(_) => Err(NodeError { kind: ErrorKind::Timeout, message: "no connection".into() }),
    }
}
