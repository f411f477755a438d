//! Which Redis each role uses.

use std::collections::BTreeMap;

use cabloy_crds::{
    files::{RedisClient, RoleFile, SecretFile},
    names::{BROADCAST_ROLE, CACHE_ROLE, DEFAULT_CONNECTION, QUEUE_ROLE, REDLOCK_ROLE, SECRETS_DIR, WORKER_ROLE},
    resource::{App, Connection, Generation, Redis, Role, SecretKeyRef},
};

use super::{Masters, Refusal};

/// TCP port of a Redis server where the resource does not say.
const DEFAULT_PORT: u16 = 6379;

/// The file of a password in its folder.
const PASSWORD_FILE: &str = "password";

/// Roles of `CabloyJS` 4 that are configured without being listed.
const V4_ROLES: &[&str] = &[BROADCAST_ROLE, CACHE_ROLE, "io", "limiter", QUEUE_ROLE, REDLOCK_ROLE];

/// Those of a Vona that is told of more than one connection.
const VONA_ROLES: &[&str] = &[
    BROADCAST_ROLE,
    CACHE_ROLE,
    DEFAULT_CONNECTION,
    "io",
    "limiter",
    "model",
    QUEUE_ROLE,
    REDLOCK_ROLE,
    "summer",
    WORKER_ROLE,
];

/// The databases that locks of Vona can be in.
const VONA_LOCK_DATABASES: u32 = 16;

/// Roles of all others.
const OTHER_ROLES: &[&str] = &[DEFAULT_CONNECTION, REDLOCK_ROLE];

/// Roles whose keys `CabloyJS` (or `BullMQ` in it) names itself.
const NO_KEY_PREFIX: &[&str] = &[QUEUE_ROLE, REDLOCK_ROLE, BROADCAST_ROLE, "limiter"];

/// A role, and where it leads.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedRole {
    /// Its name.
    pub name: String,
    /// What `client.json` says.
    pub file: RoleFile,
    /// The secrets that the file names.
    pub secrets: Vec<Secret>,
}

impl ResolvedRole {
    /// The servers.
    #[must_use]
    pub fn clients(&self) -> &[RedisClient] {
        match &self.file {
            RoleFile::Masters(masters) => masters,
            RoleFile::Client(client) => std::slice::from_ref(client),
        }
    }
}

/// A key of a Secret, and the folder under [`SECRETS_DIR`] where it is mounted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Secret {
    /// The folder: the connection's name, or `role.<role>`.
    pub folder: String,
    /// The file in it.
    pub file: &'static str,
    /// The Secret's key.
    pub key: SecretKeyRef,
}

/// `host:port` of a server.
#[must_use]
pub fn endpoint(client: &RedisClient) -> String {
    if client.host.contains(':') {
        format!("[{}]:{}", client.host, client.port)
    } else {
        format!("{}:{}", client.host, client.port)
    }
}

/// Whether all that the app can be told of Redis is the variables `REDIS_DEFAULT_*`.
pub(super) fn has_one_connection(app: &App) -> bool {
    app.generation == Generation::Vona && !app.merges_config()
}

/// Resolves all roles that the app knows or the resource lists, in the order of their names.
pub(super) fn resolve(
    app: &App,
    redis: &Redis,
    refusals: &mut Vec<Refusal>,
    warnings: &mut Vec<String>,
) -> Vec<ResolvedRole> {
    for (name, connection) in &redis.connections {
        check_connection(name, connection, refusals);
    }
    let known = match app.generation {
        Generation::V4 => V4_ROLES,
        Generation::Vona if app.merges_config() => VONA_ROLES,
        Generation::Vona | Generation::Generic => OTHER_ROLES,
    };
    // A role that is left out uses the connection named default; without one the image's configuration stays.
    let left_out = Role::default();
    let mut wanted: BTreeMap<&str, &Role> = BTreeMap::new();
    if redis.default_connection().is_some() {
        wanted.extend(known.iter().map(|name| (*name, &left_out)));
    }
    wanted.extend(redis.roles.iter().map(|(name, role)| (name.as_str(), role)));

    let mut roles = Vec::new();
    for (name, role) in wanted {
        check_role(app, name, role, refusals);
        check_queue(app, name, role, redis, refusals);
        let resolved = match &role.connections {
            Some(connections) => masters(redis, connections, refusals),
            None => client(redis, name, role, refusals).map(|(client, secret)| {
                let file =
                    if name == REDLOCK_ROLE { RoleFile::Masters(vec![client]) } else { RoleFile::Client(client) };
                (file, secret.into_iter().collect())
            }),
        };
        if let Some((file, secrets)) = resolved {
            roles.push(ResolvedRole { name: name.to_owned(), file, secrets });
        }
    }
    check_names(redis, refusals);
    if let Some(redlock) = roles.iter().find(|role| role.name == REDLOCK_ROLE) {
        check_redlock(redlock, refusals, warnings);
    }
    if has_one_connection(app) {
        check_one_connection(&roles, refusals);
    } else if app.generation == Generation::Vona {
        check_vona_locks(&roles, refusals, warnings);
    }
    roles
}

fn check_connection(name: &str, connection: &Connection, refusals: &mut Vec<Refusal>) {
    let field = |part: &str| format!("redis.connections.{name}.{part}");
    let Connection { host, port, db: _, username, password_secret_ref, tls, sentinel, cluster } = connection;
    if usize::from(host.is_some()) + usize::from(sentinel.is_some()) + usize::from(cluster.is_some()) != 1 {
        refusals.push(Refusal::invalid(
            format!("redis.connections.{name}"),
            "exactly one of host, sentinel and cluster must be written",
        ));
    }
    if port.is_some() && host.is_none() {
        refusals.push(Refusal::invalid(
            field("port"),
            "goes with host: write the ports of sentinel and cluster at their nodes",
        ));
    }
    check_address(host.as_deref(), *port, &field, refusals);
    if username.is_some() && password_secret_ref.is_none() {
        refusals.push(Refusal::invalid(field("username"), "needs passwordSecretRef: add it, or remove username"));
    }
    if sentinel.is_some() {
        refusals.push(Refusal::unsupported(
            field("sentinel"),
            "Sentinel is not supported yet: write the master's own host and port",
        ));
    }
    if cluster.is_some() {
        refusals.push(Refusal::unsupported(
            field("cluster"),
            "Redis Cluster is not supported yet: write host and port of a single server",
        ));
    }
    if tls.is_some() {
        refusals.push(Refusal::unsupported(
            field("tls"),
            "TLS is not supported yet: remove it, and use a server that takes plain connections",
        ));
    }
}

fn check_address(host: Option<&str>, port: Option<i32>, field: &impl Fn(&str) -> String, refusals: &mut Vec<Refusal>) {
    let character = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if let Some(host) = host
        && host.parse::<std::net::Ipv6Addr>().is_err()
        && (host.is_empty() || !host.chars().all(character))
    {
        refusals.push(Refusal::invalid(
            field("host"),
            "must be a host name or an IP address alone: write the port in port, and no redis:// before it",
        ));
    }
    if port.is_some_and(|port| u16::try_from(port).is_err() || port == 0) {
        refusals.push(Refusal::invalid(field("port"), "must be between 1 and 65535"));
    }
}

fn check_role(app: &App, name: &str, role: &Role, refusals: &mut Vec<Refusal>) {
    let field = |part: &str| format!("redis.roles.{name}.{part}");
    let Role { connection, connections, host, port, db, username, password_secret_ref, tls, key_prefix } = role;
    let inline = host.is_some()
        || port.is_some()
        || db.is_some()
        || username.is_some()
        || password_secret_ref.is_some()
        || tls.is_some()
        || key_prefix.is_some();
    if connections.is_some() && name != REDLOCK_ROLE {
        refusals.push(Refusal::invalid(
            field("connections"),
            "only role redlock takes it, the list of its independent masters: write connection",
        ));
    }
    if connections.is_some() && (connection.is_some() || inline) {
        refusals.push(Refusal::invalid(
            field("connections"),
            "stands alone: write host, port, db and credentials at each connection it names",
        ));
    }
    check_address(host.as_deref(), *port, &field, refusals);
    if username.is_some() && password_secret_ref.is_none() {
        refusals.push(Refusal::invalid(field("username"), "needs passwordSecretRef: add it, or remove username"));
    }
    if tls.is_some() {
        refusals.push(Refusal::unsupported(
            field("tls"),
            "TLS is not supported yet: remove it, and use a server that takes plain connections",
        ));
    }
    if key_prefix.is_some() && NO_KEY_PREFIX.contains(&name) {
        refusals.push(Refusal::invalid(
            field("keyPrefix"),
            "cannot be used on this role, whose keys CabloyJS names itself: remove it",
        ));
    }
    if has_one_connection(app) && !OTHER_ROLES.contains(&name) {
        refusals.push(Refusal::invalid(
            format!("redis.roles.{name}"),
            "Vona takes one connection for all it does: remove the role, and write its server at redis.connections.default, or have the app merge its configuration and set app.mergesConfig",
        ));
    }
}

/// The keys of a queue are named by CabloyJS, without what would keep them on one node of a Redis Cluster.
fn check_queue(app: &App, name: &str, role: &Role, redis: &Redis, refusals: &mut Vec<Refusal>) {
    let has_queues = match app.generation {
        Generation::Vona if has_one_connection(app) => name == DEFAULT_CONNECTION,
        Generation::V4 | Generation::Vona => name == QUEUE_ROLE,
        Generation::Generic => false,
    };
    let connection = redis.connections.get(role.connection.as_deref().unwrap_or(DEFAULT_CONNECTION));
    if has_queues && role.host.is_none() && connection.is_some_and(|connection| connection.cluster.is_some()) {
        refusals.push(Refusal::invalid(
            format!("redis.roles.{name}.connection"),
            "queues of CabloyJS cannot be on a Redis Cluster, which would spread the keys of a queue over its nodes: name a connection with host or sentinel",
        ));
    }
}

fn check_names(redis: &Redis, refusals: &mut Vec<Refusal>) {
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    for name in redis.roles.keys() {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || name.ends_with('-') || !name.chars().all(word) {
            refusals.push(Refusal::invalid(
                format!("redis.roles.{name}"),
                "names of roles must be letters, digits and '-', beginning with a letter, such as queue",
            ));
        }
        if let Some(other) = seen.insert(name.to_ascii_lowercase(), name) {
            refusals.push(Refusal::invalid(
                format!("redis.roles.{name}"),
                format!("differs from {other} in upper and lower case only, and ConfigMaps are named after roles: rename one of them"),
            ));
        }
    }
}

type Resolved = (RoleFile, Vec<Secret>);

fn masters(redis: &Redis, connections: &[String], refusals: &mut Vec<Refusal>) -> Option<Resolved> {
    let mut clients = Vec::new();
    let mut secrets = Vec::new();
    for name in connections {
        let Some(connection) = redis.connections.get(name) else {
            refusals.push(Refusal::invalid(
                "redis.roles.redlock.connections",
                format!("there is no connection {name}: correct the name, or add the connection"),
            ));
            continue;
        };
        let password = connection.password_secret_ref.as_ref().map(|key| secret(name.clone(), key));
        clients.push(redis_client(
            connection.host.as_deref()?,
            connection.port,
            connection.db,
            connection.username.clone(),
            password.as_ref(),
            None,
        ));
        secrets.extend(password);
    }
    Some((RoleFile::Masters(clients), secrets))
}

fn client(
    redis: &Redis,
    name: &str,
    role: &Role,
    refusals: &mut Vec<Refusal>,
) -> Option<(RedisClient, Option<Secret>)> {
    let connection_name = role.connection.as_deref().unwrap_or(DEFAULT_CONNECTION);
    let connection = redis.connections.get(connection_name);
    if connection.is_none() && (role.connection.is_some() || role.host.is_none()) {
        refusals.push(Refusal::invalid(
            format!("redis.roles.{name}.connection"),
            format!("there is no connection {connection_name}: add it to redis.connections, or name another one"),
        ));
        return None;
    }
    let empty = Connection::default();
    let connection = connection.unwrap_or(&empty);
    let host = role.host.as_deref().or(connection.host.as_deref())?;
    // A password must not be sent to a server that it was not meant for.
    let inherited = role.host.is_none();
    let password = match &role.password_secret_ref {
        Some(key) => Some(secret(format!("role.{name}"), key)),
        None => connection
            .password_secret_ref
            .as_ref()
            .filter(|_| inherited)
            .map(|key| secret(connection_name.to_owned(), key)),
    };
    let username = role.username.clone().or_else(|| connection.username.clone().filter(|_| inherited));
    let client = redis_client(
        host,
        role.port.or(connection.port),
        role.db.or(connection.db),
        username,
        password.as_ref(),
        role.key_prefix.clone(),
    );
    Some((client, password))
}

fn secret(folder: String, key: &SecretKeyRef) -> Secret {
    Secret { folder, file: PASSWORD_FILE, key: key.clone() }
}

fn redis_client(
    host: &str,
    port: Option<i32>,
    db: Option<i32>,
    username: Option<String>,
    password: Option<&Secret>,
    key_prefix: Option<String>,
) -> RedisClient {
    RedisClient {
        host: host.to_owned(),
        // What does not fit has been refused already.
        port: port.and_then(|port| u16::try_from(port).ok()).unwrap_or(DEFAULT_PORT),
        db: db.and_then(|db| u32::try_from(db).ok()).unwrap_or_default(),
        username,
        password: password
            .map(|secret| SecretFile { file: format!("{SECRETS_DIR}/{}/{}", secret.folder, secret.file) }),
        key_prefix,
    }
}

fn check_redlock(redlock: &ResolvedRole, refusals: &mut Vec<Refusal>, warnings: &mut Vec<String>) {
    let endpoints: Vec<_> = redlock.clients().iter().map(endpoint).collect();
    for (index, one) in endpoints.iter().enumerate() {
        if endpoints[..index].contains(one) {
            refusals.push(Refusal::invalid(
                "redis.roles.redlock",
                format!(
                    "{one} is named twice, and a master that counts twice is no majority: name independent servers"
                ),
            ));
        }
    }
    let count = endpoints.len();
    if count > 1 && count.is_multiple_of(2) {
        warnings.push(format!(
            "redis.roles.redlock: {count} masters bear no more failures than {}: use an odd number",
            count - 1
        ));
    }
}

/// Locks of Vona are on one master, in a database that its redlock is told; see the preload.
fn check_vona_locks(roles: &[ResolvedRole], refusals: &mut Vec<Refusal>, warnings: &mut Vec<String>) {
    let Some(redlock) = roles.iter().find(|role| role.name == REDLOCK_ROLE) else { return };
    let [first, others @ ..] = redlock.clients() else { return };
    if first.db >= VONA_LOCK_DATABASES {
        refusals.push(Refusal::invalid(
            "redis.roles.redlock",
            format!("locks of Vona cannot be in database {}: write a db from 0 to 15 for its first master", first.db),
        ));
    }
    if !others.is_empty() {
        warnings.push(format!(
            "redis.roles.redlock: agents use all masters; the app's own locks are on the first alone, {}, for those of Vona do not bear the loss of one of several",
            endpoint(first)
        ));
    }
}

/// The environment of Vona names one server; see the preload.
fn check_one_connection(roles: &[ResolvedRole], refusals: &mut Vec<Refusal>) {
    let mut clients = roles.iter().flat_map(|role| role.clients().iter().map(move |client| (&role.name, client)));
    let Some((first_name, first)) = clients.next() else { return };
    for (name, client) in std::iter::once((first_name, first)).chain(clients) {
        let refused = if client.username.is_some() {
            Some("a user name cannot be told to Vona: use a server where the default user has the password, or set app.mergesConfig".to_owned())
        } else if client.key_prefix.is_some() {
            Some("a key prefix cannot be told to Vona: remove it, or set app.mergesConfig".to_owned())
        } else if client != first {
            Some(format!(
                "Vona takes one connection, and this is not the one of role {first_name}: let both use the same server, db and password, or have the app merge its configuration and set app.mergesConfig"
            ))
        } else {
            None
        };
        if let Some(message) = refused {
            refusals.push(Refusal::invalid(format!("redis.roles.{name}"), message));
        }
    }
}

/// Moving the lock from one set of masters to another takes more than a new file: two sets could each have a leader.
pub(super) fn check_masters(roles: &[ResolvedRole], masters: &Masters, refusals: &mut Vec<Refusal>) {
    let Masters::InUse(present, by) = masters else { return };
    let wanted = roles
        .iter()
        .find(|role| role.name == REDLOCK_ROLE)
        .map(|role| role.clients().iter().map(server).collect::<Vec<_>>())
        .unwrap_or_default();
    let same = wanted.len() == present.len() && wanted.iter().all(|one| present.contains(one));
    if !same {
        refusals.push(Refusal::unsupported(
            "redis.roles.redlock",
            format!(
                "moving the lock from {} to {} while agents use it is not supported yet ({by}): put the former masters back, or first scale the workloads to 0",
                list(present),
                list(&wanted)
            ),
        ));
    }
}

/// What makes a master another one: its address, and the database in it.
#[must_use]
pub fn server(client: &RedisClient) -> String {
    format!("{}/{}", endpoint(client), client.db)
}

fn list(servers: &[String]) -> String {
    if servers.is_empty() { "none".to_owned() } else { servers.join(", ") }
}
