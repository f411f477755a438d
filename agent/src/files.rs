//! The files that the agent works by: read as a whole, checked as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cabloy_crds::agent_status::Problem;
use cabloy_crds::files::{
    AgentFile, BeanTarget, BroadcastTarget, Guard, HttpTarget, QueueTarget, RedisClient, Retry, RoleFile, Schedule,
    Target, Tracing, WarmUpTarget, is_manual_id,
};
use cabloy_crds::names::{AGENT_FILE, REDLOCK_ROLE, role_file};
use cabloy_crds::vocabulary::{Generation, Scope};
use secrecy::{ExposeSecret, SecretString};

use crate::digest;
use crate::masters::{Master, Masters};
use crate::schedule::Timetable;

/// The folder of the roles' files.
const ROLES_DIR: &str = "redis";

/// The shortest lease: below this the margins of a lease are most of it.
const MIN_TTL_MS: u64 = 500;

/// The files, read and found good.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// `agent.json`.
    pub file: Arc<AgentFile>,
    /// The servers that vote, with their passwords; none where nothing needs a leader.
    pub masters: Masters,
    /// The servers of the roles that targets go through, with their passwords.
    pub servers: BTreeMap<String, Master>,
    /// The servers of every role, as `host:port/db`.
    pub roles: BTreeMap<String, Vec<String>>,
    /// Tells these files from others; see [`cabloy_crds::agent_status::ConfigStatus::hash`].
    pub hash: String,
    /// Tells these files, the secrets in them included, from others. Never shown.
    pub fingerprint: u128,
}

/// What is wrong with the files, and which folders to watch for it to be mended.
#[derive(Debug)]
pub struct Bad {
    /// At least one.
    pub problems: Vec<Problem>,
    /// The secret files that were looked for.
    pub secrets: Vec<PathBuf>,
}

impl Bad {
    fn one(reason: &str, message: String, path: impl Into<String>) -> Self {
        Self { problems: vec![problem(reason, message, path)], secrets: Vec::new() }
    }
}

fn problem(reason: &str, message: String, path: impl Into<String>) -> Problem {
    Problem { reason: reason.to_owned(), message, path: Some(path.into()) }
}

/// The secret files that `clients` name.
fn secret_files<'a>(clients: impl Iterator<Item = &'a RedisClient>) -> impl Iterator<Item = PathBuf> {
    clients.filter_map(|client| client.password.as_ref()).map(|secret| PathBuf::from(&secret.file))
}

/// The folders in which a change of the files would show: the link `..data` of a projected volume is renamed in its
/// root, and a plain file is changed in its own folder.
#[must_use]
pub fn folders<'a>(dir: &Path, secrets: impl IntoIterator<Item = &'a PathBuf>) -> BTreeSet<PathBuf> {
    let redis = dir.join(ROLES_DIR);
    let roles = std::fs::read_dir(&redis).into_iter().flatten().flatten().map(|entry| entry.path());
    let own = [dir.to_owned(), redis.clone()].into_iter().chain(roles);
    // Of a secret also the folder above: that is the root of the projected volume.
    let secret = secrets
        .into_iter()
        .flat_map(|file| file.ancestors().skip(1).take(2))
        .filter(|folder| folder.parent().is_some());
    own.chain(secret.map(Path::to_owned)).filter(|folder| folder.is_dir()).collect()
}

/// Reads and checks the files in `dir`; also gives the secret files that they name.
///
/// # Errors
/// All that is wrong with them.
pub fn load(dir: &Path) -> Result<(Loaded, Vec<PathBuf>), Bad> {
    let Texts { agent, roles: role_texts } = read_texts(dir)?;
    let file: AgentFile = parse(&agent, AGENT_FILE)?;
    let mut roles = BTreeMap::new();
    for (role, text) in &role_texts {
        let clients = match parse(text, &role_file(role))? {
            RoleFile::Masters(clients) => clients,
            RoleFile::Client(client) => vec![client],
        };
        roles.insert(role.clone(), clients);
    }
    let role_name = role_file(REDLOCK_ROLE);
    let clients = roles.get(REDLOCK_ROLE).cloned().unwrap_or_default();
    let mut used: BTreeSet<&str> = file.schedules.iter().filter_map(|schedule| schedule.target.role()).collect();
    used.extend(file.guard.iter().flat_map(|guard| [guard.role.as_str(), guard.startups.role.as_str()]));
    used.extend(file.takeover.iter().map(|takeover| takeover.role.as_str()));
    let of_targets = used.iter().filter_map(|role| roles.get(*role)).flatten();
    let secrets: BTreeSet<_> = secret_files(clients.iter().chain(of_targets)).collect();
    let secrets: Vec<_> = secrets.into_iter().collect();
    let mut problems = check(&file);
    problems.extend(check_masters(&file, &clients, &role_name));
    let masters = clients.iter().enumerate().map(|(index, client)| master(client, &format!("{role_name}[{index}]")));
    let (masters, missing): (Vec<_>, Vec<_>) = masters.partition(Result::is_ok);
    problems.extend(missing.into_iter().filter_map(Result::err));
    let mut servers = BTreeMap::new();
    for role in used {
        // The keys of startup flags are named in full.
        let prefixed = file.guard.as_ref().is_some_and(|guard| guard.startups.role == role && guard.role != role);
        match server(role, roles.get(role), prefixed) {
            Ok(server) => _ = servers.insert(role.to_owned(), server),
            Err(problem) => problems.push(problem),
        }
    }
    if !problems.is_empty() {
        return Err(Bad { problems, secrets });
    }
    let masters: Masters = masters.into_iter().flatten().collect();
    let mut parts = vec![agent.as_bytes()];
    parts.extend(role_texts.iter().flat_map(|(role, text)| [role.as_bytes(), text.as_bytes()]));
    let hash = digest::name(&parts);
    let with_secrets = masters.iter().chain(servers.values());
    parts.extend(with_secrets.map(|it| it.password.as_ref().map_or(&[][..], |it| it.expose_secret().as_bytes())));
    let fingerprint = digest::number(&parts);
    let address = |client: &RedisClient| format!("{}:{}/{}", client.host, client.port, client.db);
    let roles = roles.into_iter().map(|(role, clients)| (role, clients.iter().map(address).collect())).collect();
    Ok((Loaded { file: Arc::new(file), masters, servers, roles, hash, fingerprint }, secrets))
}

/// The texts of the files.
#[derive(Debug)]
struct Texts {
    agent: String,
    /// By role.
    roles: BTreeMap<String, String>,
}

/// Reads the files, all of the same version: a projected volume changes all its files at once by another target of
/// `..data`, so all are read from one target.
fn read_texts(dir: &Path) -> Result<Texts, Bad> {
    let data = dir.join("..data");
    loop {
        let target = std::fs::read_link(&data).ok();
        let root = target.as_ref().map_or_else(|| dir.to_owned(), |target| dir.join(target));
        let texts = read_from(&root);
        if std::fs::read_link(&data).ok() == target {
            let shown = |name: &str| dir.join(name).display().to_string();
            return texts.map_err(|(name, error)| match error.kind() {
                io::ErrorKind::NotFound => Bad::one("MissingFile", "the file is not there".to_owned(), shown(&name)),
                _ => Bad::one("UnreadableFile", error.to_string(), shown(&name)),
            });
        }
    }
}

fn read_from(root: &Path) -> Result<Texts, (String, io::Error)> {
    let read = |name: &str| std::fs::read_to_string(root.join(name)).map_err(|error| (name.to_owned(), error));
    let agent = read(AGENT_FILE)?;
    let mut roles = BTreeMap::new();
    // Without the folder there are no roles.
    for entry in std::fs::read_dir(root.join(ROLES_DIR)).into_iter().flatten().flatten() {
        let Ok(role) = entry.file_name().into_string() else { continue };
        if !role.starts_with('.') && entry.path().is_dir() {
            roles.insert(role.clone(), read(&role_file(&role))?);
        }
    }
    Ok(Texts { agent, roles })
}

fn parse<T: serde::de::DeserializeOwned>(text: &str, name: &str) -> Result<T, Bad> {
    serde_json::from_str(text).map_err(|error| Bad::one("InvalidFile", error.to_string(), name))
}

fn master(client: &RedisClient, field: &str) -> Result<Master, Problem> {
    let RedisClient { host, port, db, username, password, key_prefix: _ } = client;
    let password = password.as_ref().map(|secret| {
        let missing =
            |message: String| problem("MissingSecret", format!("{field}.password: {message}"), secret.file.clone());
        let text = std::fs::read_to_string(&secret.file).map_err(|error| missing(error.kind().to_string()))?;
        let text = text.trim();
        if text.is_empty() { Err(missing("the file is empty".to_owned())) } else { Ok(SecretString::from(text)) }
    });
    Ok(Master {
        name: format!("{host}:{port}"),
        host: host.clone(),
        port: *port,
        db: *db,
        username: username.clone(),
        password: password.transpose()?,
    })
}

/// The one server of a role that targets or the guard go through. A key prefix may be there only where it is known of.
fn server(role: &str, clients: Option<&Vec<RedisClient>>, prefixed: bool) -> Result<Master, Problem> {
    let name = role_file(role);
    match clients.map(Vec::as_slice) {
        None => Err(problem("MissingFile", format!("a schedule or the guard needs the Redis of role {role}"), name)),
        Some([client]) if prefixed || client.key_prefix.as_deref().is_none_or(str::is_empty) => master(client, &name),
        Some([_]) => {
            let message = "keyPrefix: CabloyJS names the keys of this role itself, so there can be none";
            Err(problem("InvalidFile", message.to_owned(), name))
        }
        Some(_) => Err(problem("InvalidFile", "a schedule goes through it, so it must be one server".to_owned(), name)),
    }
}

fn check_masters(file: &AgentFile, clients: &[RedisClient], name: &str) -> Option<Problem> {
    let tasks = file.startups.iter().any(|task| task.scope == Scope::Cluster);
    let needed = !file.schedules.is_empty() || tasks || file.guard.is_some();
    if needed && clients.is_empty() {
        let message =
            "schedules, startup tasks of scope Cluster and the guard need a leader, and no Redis is named to elect it";
        return Some(problem("MissingFile", message.to_owned(), name));
    }
    let places: BTreeSet<_> = clients.iter().map(|it| (&it.host, it.port, it.db)).collect();
    (places.len() < clients.len()).then(|| problem("InvalidFile", "two of the servers are the same".to_owned(), name))
}

/// What the types of `agent.json` do not say.
fn check(file: &AgentFile) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut wrong = |field: String, message: &str| {
        problems.push(problem("InvalidFile", format!("{field}: {message}"), AGENT_FILE));
    };
    if file.cluster.split_once('/').is_none_or(|(namespace, name)| namespace.is_empty() || name.is_empty()) {
        wrong("cluster".into(), "write <namespace>/<name>");
    }
    if file.cluster.chars().any(|char| char.is_control() || "{}\"\\".contains(char)) {
        wrong("cluster".into(), "braces, quotes and control characters cannot be part of it");
    }
    if file.election.ttl_ms < MIN_TTL_MS {
        wrong("election.ttlMs".into(), "write at least 500");
    }
    for (part, message) in file.tracing.iter().flat_map(Tracing::wrong) {
        wrong(format!("tracing.{part}"), message);
    }
    let mut names = BTreeSet::new();
    for schedule in &file.schedules {
        let field = |part: &str| format!("schedules.{}{part}", schedule.name);
        if let Err(error) = Timetable::new(schedule) {
            wrong(field(""), &error.to_string());
        }
        if !names.insert(&schedule.name) {
            wrong(field(""), "the name is there twice");
        }
        for (part, message) in check_by_hand(schedule) {
            wrong(field(part), message);
        }
        for (part, message) in check_call(&schedule.name, schedule.timeout_ms, &schedule.retry) {
            wrong(field(part), message);
        }
        for (part, message) in check_target(file.app.generation, &schedule.target) {
            wrong(field(part), message);
        }
    }
    let mut names = BTreeSet::new();
    for task in &file.startups {
        let field = |part: &str| format!("startups.{}{part}", task.name);
        if !names.insert(&task.name) {
            wrong(field(""), "the name is there twice");
        }
        for (part, message) in check_call(&task.name, task.timeout_ms, &task.retry) {
            wrong(field(part), message);
        }
        for (part, message) in check_target(file.app.generation, &task.target) {
            wrong(field(part), message);
        }
        if task.target.role().is_some() {
            wrong(field(".target"), "only a call to the app tells when a task is done: write http or bean");
        }
    }
    for (field, message) in file.guard.iter().flat_map(check_guard) {
        wrong(format!("guard{field}"), message);
    }
    for (field, message) in file.takeover.iter().flat_map(|it| check_queues(&it.prefix, &it.queue)) {
        wrong(format!("takeover{field}"), message);
    }
    let mut natives = BTreeSet::new();
    for schedule in &file.schedules {
        let Some(native) = &schedule.takes_over else { continue };
        if file.takeover.is_none() {
            wrong(
                format!("schedules.{}.takesOver", schedule.name),
                "write in takeover where the app's own schedules are",
            );
        }
        if !natives.insert(native) {
            wrong(format!("schedules.{}.takesOver", schedule.name), "another schedule takes over the same");
        }
    }
    for name in endless(file) {
        wrong(format!("startups.{name}.after"), "it names a task that is not there, or leads back to itself");
    }
    problems
}

/// A part of a schedule or a task, and what is wrong with it.
type Wrong = (&'static str, &'static str);

fn check_by_hand(schedule: &Schedule) -> Vec<Wrong> {
    let (triggers, backfills) = (&schedule.triggers, &schedule.backfills);
    let ids = triggers.iter().map(|it| &it.id).chain(backfills.iter().map(|it| &it.id));
    let reversed = backfills.iter().any(|it| it.from >= it.to);
    let id = "write an id of at most 63 letters, digits, -, . and _";
    let mut wrong: Vec<_> = ids.filter(|id| !is_manual_id(id)).map(|_| (".triggers, .backfills", id)).collect();
    wrong.extend(reversed.then_some((".backfills", "write a time in to that is after the one in from")));
    wrong
}

fn check_guard(guard: &Guard) -> Vec<Wrong> {
    let Guard { prefix, queue, startups, .. } = guard;
    let mut wrong = check_queues(prefix, queue);
    wrong.extend(only_bad([(
        !startups.keys.contains("startupDebounce:"),
        ".startups.keys",
        "write a pattern of the keys of startup flags, such as cache_shop:*:a-base:startupDebounce:*",
    )]));
    wrong
}

fn check_queues(prefix: &str, queue: &str) -> Vec<Wrong> {
    only_bad([
        (prefix.is_empty(), ".prefix", "write the prefix of the app's queues, such as bull_shop:queue"),
        (
            !queue.starts_with("||") || queue.contains(':'),
            ".queue",
            "write what comes after the instance in the name of a queue of schedules: ||a-base||schedule, or in Vona ||a-schedule.queue.schedule",
        ),
    ])
}

fn check_call(name: &str, timeout_ms: u64, retry: &Retry) -> Vec<Wrong> {
    let valid_name = !name.is_empty() && name.chars().all(|char| char.is_ascii_graphic() && !"/@#\"\\".contains(char));
    only_bad([
        (!valid_name, ".name", "write letters, digits, - and ."),
        (timeout_ms == 0, ".timeoutMs", "write at least 1"),
        (!retry.factor.is_finite() || retry.factor < 1.0, ".retry.factor", "write at least 1"),
    ])
}

fn check_target(generation: Generation, target: &Target) -> Vec<Wrong> {
    let foreign = generation == Generation::Generic;
    match target {
        Target::Http(HttpTarget { path, .. }) => {
            let bad = path.parse::<http::uri::PathAndQuery>().is_err() || !path.starts_with('/');
            only_bad([(bad, ".target.http.path", "write a path that begins with /")])
        }
        Target::Bean(BeanTarget { path, module, name, .. }) => {
            let bad = path.parse::<http::uri::PathAndQuery>().is_err() || !path.starts_with('/');
            only_bad([
                (
                    foreign,
                    ".target.bean",
                    "generation generic has no beans: write http, or v4 or vona as app.generation",
                ),
                (bad, ".target.bean.path", "write a path that begins with /, such as /api/cabloy/agent/run"),
                (module.is_empty(), ".target.bean.module", "write the module's name"),
                (
                    name.is_empty(),
                    ".target.bean.name",
                    "write the bean's name with its scene, such as schedule.nightly",
                ),
            ])
        }
        Target::Queue(QueueTarget { prefix, queue, module, queue_name, .. }) => only_bad([
            (foreign, ".target.queue", "generation generic has no queues: write http, or v4 or vona as app.generation"),
            (
                prefix.is_empty(),
                ".target.queue.prefix",
                "write the prefix of the app's queues, such as bull_shop:queue",
            ),
            (
                queue.is_empty() || queue.contains(':'),
                ".target.queue.queue",
                "write the queue's name in Redis, such as -||shop-report||render; it has no colons",
            ),
            (module.is_empty(), ".target.queue.module", "write the module's name"),
            (queue_name.is_empty(), ".target.queue.queueName", "write the queue's name"),
        ]),
        Target::Broadcast(BroadcastTarget { channel, module, broadcast_name, .. }) => only_bad([
            (
                foreign,
                ".target.broadcast",
                "generation generic has no broadcasts: write http, or v4 or vona as app.generation",
            ),
            (channel.is_empty(), ".target.broadcast.channel", "write the app's channel, such as broadcast_shop:"),
            (module.is_empty(), ".target.broadcast.module", "write the module's name"),
            (broadcast_name.is_empty(), ".target.broadcast.broadcastName", "write the broadcast's name"),
        ]),
        Target::WarmUp(WarmUpTarget { instances }) => {
            let subdomain = |it: &String| it.chars().all(|char| char.is_ascii_alphanumeric() || "-_.".contains(char));
            only_bad([
                (
                    generation != Generation::V4,
                    ".target.warmUp",
                    "only apps of generation v4 are warmed up: take it out",
                ),
                (
                    !instances.iter().all(subdomain),
                    ".target.warmUp.instances",
                    "write subdomains: letters, digits, -, _ and .; empty for the default instance",
                ),
            ])
        }
    }
}

fn only_bad<const N: usize>(checks: [(bool, &'static str, &'static str); N]) -> Vec<Wrong> {
    checks.into_iter().filter_map(|(bad, part, message)| bad.then_some((part, message))).collect()
}

/// The startup tasks that can never be reached through `after`.
fn endless(file: &AgentFile) -> Vec<&str> {
    let mut left: BTreeMap<&str, &Vec<String>> =
        file.startups.iter().map(|task| (task.name.as_str(), &task.after)).collect();
    let mut reached = BTreeSet::new();
    loop {
        let next: Vec<&str> = left
            .iter()
            .filter(|(_, after)| after.iter().all(|name| reached.contains(name.as_str())))
            .map(|(name, _)| *name)
            .collect();
        if next.is_empty() {
            return left.into_keys().collect();
        }
        for name in next {
            left.remove(name);
            reached.insert(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;

    fn agent() -> Value {
        json!({
            "cluster": "prod/shop",
            "app": {"name": "shop", "generation": "v4", "port": 7002, "health": {"tcp": {}}},
            "election": {"ttlMs": 10_000},
            "tracing": {"endpoint": "http://otel:4318", "sampleRatio": 1.0},
            "schedules": [{
                "name": "a", "everyMs": 1000, "timeZone": "UTC", "overlap": "Skip", "jitterMs": 0, "timeoutMs": 1000,
                "onUnknown": "Skip", "retry": {"limit": 0, "initialDelayMs": 1, "factor": 2.0, "maxDelayMs": 1},
                "suspend": false, "target": {"http": {"path": "/a", "method": "POST"}}, "triggers": [], "backfills": []
            }],
            "startups": [{
                "name": "m", "scope": "Cluster", "gate": "Ready", "timeoutMs": 1000, "after": [],
                "retry": {"limit": 0, "initialDelayMs": 1, "factor": 2.0, "maxDelayMs": 1},
                "target": {"http": {"path": "/m", "method": "POST"}}
            }]
        })
    }

    fn write(dir: &Path, agent: &Value, masters: &Value) {
        std::fs::create_dir_all(dir.join("redis/redlock")).unwrap();
        std::fs::write(dir.join("agent.json"), agent.to_string()).unwrap();
        std::fs::write(dir.join("redis/redlock/client.json"), masters.to_string()).unwrap();
    }

    fn messages(dir: &Path) -> Vec<String> {
        let problems = load(dir).map(|_| ()).expect_err("bad files").problems;
        problems.into_iter().map(|it| format!("{} {} {}", it.reason, it.message, it.path.unwrap_or_default())).collect()
    }

    #[test]
    fn good_files_are_taken_and_told_apart() {
        let dir = TempDir::new().unwrap();
        let secret = dir.path().join("password");
        std::fs::write(&secret, "one\n").unwrap();
        write(dir.path(), &agent(), &json!([{"host": "a", "port": 1, "db": 0, "password": {"$file": secret}}]));
        let (first, secrets) = load(dir.path()).unwrap();
        assert_eq!((first.masters.len(), secrets), (1, vec![secret.clone()]));
        assert_eq!(load(dir.path()).unwrap().0.fingerprint, first.fingerprint);
        std::fs::write(&secret, "two").unwrap();
        let second = load(dir.path()).unwrap().0;
        assert_eq!(second.hash, first.hash, "a secret is no part of what is shown");
        assert_ne!(second.fingerprint, first.fingerprint);
    }

    #[test]
    fn a_projected_volume_is_read_through_its_link() {
        let dir = TempDir::new().unwrap();
        write(&dir.path().join("..1"), &agent(), &json!([{"host": "a", "port": 1, "db": 0}]));
        symlink("..1", dir.path().join("..data")).unwrap();
        symlink("..data/agent.json", dir.path().join("agent.json")).unwrap();
        symlink("..data/redis", dir.path().join("redis")).unwrap();
        assert!(load(dir.path()).is_ok());
        assert!(folders(dir.path(), &[]).contains(dir.path()));
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = TempDir::new().unwrap();
        assert!(messages(dir.path())[0].starts_with("MissingFile"));
        let secret = dir.path().join("none");
        write(
            dir.path(),
            &agent(),
            &json!([{"host": "a", "port": 1, "db": 0}, {"host": "b", "port": 1, "db": 0, "password": {"$file": secret}}]),
        );
        let found = messages(dir.path());
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("MissingSecret redis/redlock/client.json[1].password"), "{found:?}");
        assert!(found[0].ends_with("/none"), "{found:?}");
        write(dir.path(), &agent(), &json!([]));
        assert!(messages(dir.path())[0].contains("need a leader"));
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let masters = json!([{"host": "a", "port": 1, "db": 0}, {"host": "a", "port": 1, "db": 0}]);
        for (pointer, value, said) in [
            ("/cluster", json!("shop"), "cluster: write"),
            ("/election/ttlMs", json!(1), "election.ttlMs"),
            ("/tracing/endpoint", json!("https://otel:4318"), "tracing.endpoint: agents speak no TLS"),
            ("/tracing/endpoint", json!("http://otel"), "tracing.endpoint: must be http://<host>:<port>"),
            ("/tracing/sampleRatio", json!(-0.1), "tracing.sampleRatio: must be"),
            ("/schedules/0/everyMs", json!(0), "schedules.a: write exactly one"),
            ("/schedules/0/timeZone", json!(1), "invalid type"),
            ("/schedules/0/triggers", json!([{"id": "a/b"}]), "schedules.a.triggers"),
            (
                "/schedules/0/backfills",
                json!([{"id": "a", "from": "2026-11-23T00:00:00Z", "to": "2026-11-23T00:00:00Z"}]),
                "schedules.a.backfills",
            ),
            ("/schedules/0/name", json!("a b"), ".name"),
            ("/schedules/0/target/http/path", json!("a"), ".target.http.path"),
            ("/startups/0/after", json!(["m"]), "startups.m.after"),
            ("/startups/0/after", json!(["none"]), "startups.m.after"),
            ("/startups/0/retry/factor", json!(0.5), ".retry.factor"),
        ] {
            let dir = TempDir::new().unwrap();
            let mut agent = agent();
            *agent.pointer_mut(pointer).unwrap() = value;
            write(dir.path(), &agent, &masters);
            let found = messages(dir.path());
            assert!(found.iter().any(|it| it.contains(said)), "{pointer}: {found:?}");
            if !said.starts_with("invalid") {
                assert!(found.iter().any(|it| it.contains("two of the servers")), "{pointer}: {found:?}");
            }
        }
    }

    fn through_redis() -> Value {
        let mut agent = agent();
        let [mut jobs, mut news] = [0, 1].map(|_| agent["schedules"][0].clone());
        jobs["name"] = json!("jobs");
        jobs["target"] = json!({"queue": {
            "role": "queue", "prefix": "bull_shop:queue", "queue": "-||m||q", "module": "m", "queueName": "q", "subdomain": "",
        }});
        news["name"] = json!("news");
        news["target"] = json!({"broadcast": {
            "role": "broadcast", "channel": "broadcast_shop:", "module": "m", "broadcastName": "b", "subdomain": "",
        }});
        agent["schedules"] = json!([jobs, news]);
        agent
    }

    fn write_role(dir: &Path, role: &str, client: &Value) {
        std::fs::create_dir_all(dir.join("redis").join(role)).unwrap();
        std::fs::write(dir.join("redis").join(role).join("client.json"), client.to_string()).unwrap();
    }

    #[test]
    fn the_roles_that_targets_go_through_are_read_with_their_secrets() {
        let dir = TempDir::new().unwrap();
        let secret = dir.path().join("password");
        std::fs::write(&secret, "one\n").unwrap();
        write(dir.path(), &through_redis(), &json!([{"host": "a", "port": 1, "db": 0}]));
        let client = json!({"host": "q", "port": 1, "db": 2, "password": {"$file": secret}});
        for role in ["queue", "broadcast", "cache"] {
            write_role(dir.path(), role, &client);
        }
        let (first, secrets) = load(dir.path()).unwrap();
        assert_eq!(first.servers.keys().collect::<Vec<_>>(), ["broadcast", "queue"], "and no other");
        assert_eq!(secrets, std::slice::from_ref(&secret));
        std::fs::write(&secret, "two").unwrap();
        assert_ne!(load(dir.path()).unwrap().0.fingerprint, first.fingerprint);
        std::fs::remove_file(&secret).unwrap();
        let found = messages(dir.path());
        assert_eq!(found.len(), 2);
        assert!(found[1].starts_with("MissingSecret redis/queue/client.json.password"), "{found:?}");
    }

    #[test]
    fn what_is_wrong_with_targets_is_said() {
        let masters = json!([{"host": "a", "port": 1, "db": 0}]);
        let found = |edit: &dyn Fn(&mut Value), client: Option<Value>| {
            let dir = TempDir::new().unwrap();
            let mut agent = through_redis();
            edit(&mut agent);
            write(dir.path(), &agent, &masters);
            write_role(dir.path(), "broadcast", &json!({"host": "b", "port": 1, "db": 0}));
            if let Some(client) = client {
                write_role(dir.path(), "queue", &client);
            }
            messages(dir.path()).join("\n")
        };
        let good = json!({"host": "q", "port": 1, "db": 0});
        let set = |pointer: &'static str, value: Value| {
            move |agent: &mut Value| *agent.pointer_mut(pointer).unwrap() = value.clone()
        };
        for (pointer, value, said) in [
            ("/app/generation", json!("generic"), "schedules.jobs.target.queue: generation generic"),
            ("/app/generation", json!("generic"), "schedules.news.target.broadcast: generation generic"),
            ("/schedules/0/target/queue/queue", json!("a:b"), "schedules.jobs.target.queue.queue"),
            ("/schedules/0/target/queue/prefix", json!(""), "schedules.jobs.target.queue.prefix"),
            ("/schedules/1/target/broadcast/channel", json!(""), "schedules.news.target.broadcast.channel"),
            ("/startups/0/target", through_redis()["schedules"][0]["target"].clone(), "startups.m.target: only a call"),
        ] {
            let found = found(&set(pointer, value), Some(good.clone()));
            assert!(found.contains(said), "{pointer}: {found}");
        }
        let bean = json!({"bean": {"path": "/run", "module": "m", "name": "schedule.s", "instances": ["", "north"]}});
        for (pointer, value, said) in [
            ("/app/generation", json!("generic"), "startups.m.target.bean: generation generic"),
            ("/startups/0/target/bean/path", json!("run"), "startups.m.target.bean.path"),
            ("/startups/0/target/bean/module", json!(""), "startups.m.target.bean.module"),
            ("/startups/0/target/bean/name", json!(""), "startups.m.target.bean.name"),
            ("/startups/0/target/bean/instances", json!("Some"), "Instances"),
        ] {
            let edit = |agent: &mut Value| {
                agent["startups"][0]["target"] = bean.clone();
                set(pointer, value.clone())(agent);
            };
            let found = found(&edit, Some(good.clone()));
            assert!(found.contains(said), "{pointer}: {found}");
        }
        assert!(
            found(&|_| (), None)
                .contains("MissingFile a schedule or the guard needs the Redis of role queue redis/queue/client.json")
        );
        let prefixed = json!({"host": "q", "port": 1, "db": 0, "keyPrefix": "x:"});
        assert!(found(&|_| (), Some(prefixed)).contains("keyPrefix"));
        assert!(found(&|_| (), Some(json!([good, good]))).contains("one server"));
    }
}
