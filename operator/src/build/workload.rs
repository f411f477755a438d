//! Our part of a workload: one server-side apply that says just that, in full.

use std::collections::BTreeSet;

use cabloy_crds::{
    names::{
        AGENT_CONTAINER, AGENT_FILE, AGENT_PORT, APP_CONFIG_DIR, BOOT_DIR, CLIENT_FILE, CONFIG_DIR, PRELOAD_FILE,
        REDLOCK_ROLE, SECRETS_DIR, SIGNING_DIR, SIGNING_KEY, STATE_DIR, role_file,
    },
    resource::{OnRedisChange, WorkloadKind},
};
use k8s_openapi::{api::core::v1::ResourceRequirements, apimachinery::pkg::api::resource::Quantity};
use serde_json::{Value, json};

use super::{Boot, Plan, Settings, boot::has_preload, pause, secrets};
use crate::{
    dereference::Found,
    names::{
        BOOT, BOOT_CONFIG, CLAIMED_BY, CLUSTER, PAUSE, SECRETS, agent_config_map, role_config_map, signing_secret,
    },
    validate::{AgentPlan, Secret, Validated, Workload},
    workload::{Live, find, named},
};

const BOOT_VOLUME: &str = "cabloy-boot";
const SECRETS_VOLUME: &str = "cabloy-secrets";
const APP_CONFIG_VOLUME: &str = "cabloy-app-config-";
const SIGNING_VOLUME: &str = "cabloy-signing";
const STATE_VOLUME: &str = "cabloy-state";
const CONFIG_VOLUME: &str = "cabloy-config";
const NO_TOKEN_VOLUME: &str = "cabloy-no-token";

/// Where pods find their service account's credentials.
const SERVICE_ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The user of the agent where that of the pod is root.
const AGENT_USER: i64 = 65532;

const NODE_OPTIONS: &str = "NODE_OPTIONS";

/// Why a workload is left as it is. The variant's name is its state, the condition's reason and the Event's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Blocked {
    /// There is no such workload.
    #[error("it does not exist: create it, or correct workloads[].name; it is taken up as soon as it is there")]
    WorkloadNotFound,
    /// It belongs to another resource.
    #[error("it belongs to CabloyCluster {0}: remove it from the workloads of one of the two")]
    AlreadyClaimed(String),
    /// It does not have the app's container.
    #[error("it has no container {wanted}; its containers are {present}: correct workloads[].container")]
    ContainerNotFound {
        /// The container that the resource names.
        wanted: String,
        /// Those there are.
        present: String,
    },
    /// The user's own manifest sets `NODE_OPTIONS`.
    #[error(
        "its container {container} sets NODE_OPTIONS itself, and the preload needs it: move its flags to \
         workloads[].nodeOptions, and remove it from the manifest"
    )]
    NodeOptionsConflict {
        /// The container.
        container: String,
    },
    /// Somebody takes our part out again and again.
    #[error(
        "our part was taken out three times in ten minutes, so it is not put back any more: let whatever replaces the \
         workload use kubectl apply, or leave the agent in; then edit this resource"
    )]
    RepeatedlyRemoved,
    /// Fields of ours are somebody else's.
    #[error("{manager} owns fields that the agent needs: {fields}; remove them from its manifest")]
    FieldConflict {
        /// The field manager.
        manager: String,
        /// The fields.
        fields: String,
    },
    /// The API server refuses the workload with our part.
    #[error("the API server refuses it with the agent in it: {0}")]
    WorkloadRefused(String),
}

impl Blocked {
    /// The state of the workload, and the reason of the condition.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::WorkloadNotFound => "WorkloadNotFound",
            Self::AlreadyClaimed(_) => "AlreadyClaimed",
            Self::ContainerNotFound { .. } => "ContainerNotFound",
            Self::NodeOptionsConflict { .. } => "NodeOptionsConflict",
            Self::RepeatedlyRemoved => "RepeatedlyRemoved",
            Self::FieldConflict { .. } => "FieldConflict",
            Self::WorkloadRefused(_) => "WorkloadRefused",
        }
    }
}

/// What somebody should know of a workload that has our part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Its pods boot on an older configuration, or run on older passwords, until they are rolled.
    RolloutPending,
    /// Its pods are rolled now, for passwords that have changed since they started.
    SecretsChanged,
    /// Its agents are of another version than the operator brings.
    UpdateAvailable {
        /// The image of its agents.
        present: String,
        /// The one that the operator brings.
        available: String,
    },
    /// `NODE_OPTIONS` may come from a source that we cannot see into.
    EnvFrom,
    /// The pause before SIGTERM is shorter than it should be, for its pods have little time to end.
    PauseShortened {
        /// How long it should be, in seconds.
        asked: i64,
        /// How long its pods have to end, in seconds.
        grace: i64,
    },
}

/// Plans what becomes of a workload.
pub(super) fn plan(validated: &Validated, wanted: &Workload, boot: &Boot, found: &Found, settings: &Settings) -> Plan {
    match part(validated, wanted, boot, found, settings) {
        Ok((patch, notes)) => Plan::Apply { patch, notes },
        Err(blocked) => Plan::Leave(blocked),
    }
}

/// The boot map that a workload, or a patch of one, names.
#[must_use]
pub fn boot_of(workload: &Value) -> Option<&str> {
    workload.pointer("/spec/template/metadata/annotations")?.get(BOOT)?.as_str()
}

fn part(
    validated: &Validated,
    wanted: &Workload,
    boot: &Boot,
    found: &Found,
    settings: &Settings,
) -> Result<(Value, Vec<Note>), Blocked> {
    let identity = &validated.identity;
    let live = found.live(&wanted.reference).filter(|live| !live.deleted()).ok_or(Blocked::WorkloadNotFound)?;
    let claim = live.claimed_by();
    if let Some(other) = claim.and_then(|uid| found.others.get(uid)) {
        return Err(Blocked::AlreadyClaimed(other.clone()));
    }
    if found.given_up.contains(&wanted.reference) {
        return Err(Blocked::RepeatedlyRemoved);
    }
    let container = live.container(wanted.container.as_deref()).ok_or_else(|| Blocked::ContainerNotFound {
        wanted: wanted.container.clone().unwrap_or_default(),
        present: names(live.containers()),
    })?;
    let container_name = container.get("name").and_then(Value::as_str).unwrap_or_default();
    let node_options = has_preload(validated.app.generation).then(|| node_options(&wanted.node_options));
    if node_options.is_some() && sets_node_options_itself(container) {
        return Err(Blocked::NodeOptionsConflict { container: container_name.to_owned() });
    }

    let mut notes = Vec::new();
    let image = validated.agent.as_ref().map(|agent| agent_image(agent, live, settings, &mut notes));
    let boot = choose_boot(validated, live, boot, found, image.as_ref(), &mut notes);
    let mut annotations = json!({ BOOT: boot.name });
    if let Some(since) = rolled_for(validated, live, container_name, found, &mut notes) {
        annotations[SECRETS] = json!(since);
    }
    // A new operator rolls no pods: what it brings that is new comes with what rolls them anyway, or if it is asked for.
    let rolls = image.as_ref().is_some_and(|image| image.changes) || live.boot() != Some(&boot.name);
    let has_pause = rolls || validated.pause.is_some() || pause::given(&live.0).is_some();
    let pause = has_pause.then(|| pause::pause(validated.pause, live, container, &mut notes)).flatten();
    if node_options.is_some() && container.get("envFrom").and_then(Value::as_array).is_some_and(|list| !list.is_empty())
    {
        notes.push(Note::EnvFrom);
    }

    let mut env = vec![json!({ "name": "CABLOY_BOOT_DIR", "value": BOOT_DIR })];
    env.extend(node_options.map(|value| json!({ "name": NODE_OPTIONS, "value": value })));
    let (mut volumes, mut mounts) = (boot.volumes, boot.mounts);
    let mut spec = json!({});
    if let (Some(agent), Some(image)) = (&validated.agent, image) {
        let secrets = volumes.iter().any(|volume| named(volume, SECRETS_VOLUME));
        // An agent that is left as it is stays without a key or a way to tell the app of its end, if it has none.
        let has = |name: &str| image.changes || live.volumes().iter().any(|volume| named(volume, name));
        let extras = Extras { secrets, signs: has(SIGNING_VOLUME), tells: has(STATE_VOLUME) };
        if extras.signs {
            volumes.push(signing_volume(&identity.name));
            mounts.push(mount(SIGNING_VOLUME, SIGNING_DIR));
        }
        if extras.tells {
            volumes.push(json!({ "name": STATE_VOLUME, "emptyDir": {} }));
            mounts.push(mount(STATE_VOLUME, STATE_DIR));
        }
        spec["initContainers"] = json!([agent_container(agent, wanted, &image, live, &extras)]);
        volumes.push(boot.config.unwrap_or_else(|| config_volume(validated)));
        volumes.push(json!({ "name": NO_TOKEN_VOLUME, "emptyDir": {} }));
    }
    let mut app = json!({ "name": container_name, "env": env, "volumeMounts": mounts });
    if let Some(pause) = pause {
        app["lifecycle"] = json!({ "preStop": pause::hook(pause) });
        annotations[PAUSE] = json!(pause.to_string());
    }
    spec["containers"] = json!([app]);
    spec["volumes"] = Value::Array(volumes);

    let mut metadata = json!({
        "name": wanted.reference.name,
        "namespace": identity.namespace,
        // A workload that was deleted meanwhile must not be made anew by our patch.
        "uid": live.uid(),
        "annotations": { CLAIMED_BY: identity.uid, CLUSTER: identity.name },
    });
    if claim != Some(&identity.uid) {
        // Of two resources that claim a workload at the same time, one loses.
        metadata["resourceVersion"] = json!(live.resource_version());
    }
    let patch = json!({
        "apiVersion": "apps/v1",
        "kind": wanted.reference.kind.as_str(),
        "metadata": metadata,
        "spec": { "template": {
            "metadata": { "labels": { CLUSTER: identity.name }, "annotations": annotations },
            "spec": spec,
        } },
    });
    Ok((patch, notes))
}

fn names(items: &[Value]) -> String {
    items.iter().filter_map(|item| item.get("name").and_then(Value::as_str)).collect::<Vec<_>>().join(", ")
}

/// What the preload takes, and then the app's own flags.
fn node_options(own: &str) -> String {
    format!("{} {own}", preload_flag()).trim_end().to_owned()
}

fn preload_flag() -> String {
    format!("--require {BOOT_DIR}/{PRELOAD_FILE}")
}

/// Whether `NODE_OPTIONS` of a container is the user's own. Measured: each of their applies would undo ours.
fn sets_node_options_itself(container: &Value) -> bool {
    find(container.get("env"), NODE_OPTIONS).is_some_and(|env| !is_our_node_options(env))
}

/// Whether a variable `NODE_OPTIONS` has a value of ours.
#[must_use]
pub fn is_our_node_options(env: &Value) -> bool {
    env.get("value").and_then(Value::as_str).is_some_and(|value| value.starts_with(&preload_flag()))
}

/// The image and pull policy of the agent. An agent that is there keeps its version until the resource asks for
/// another one: a new version of the operator changes no running workload.
struct AgentImage {
    image: String,
    pull_policy: String,
    /// Whether it is another one than is there.
    changes: bool,
}

fn agent_image(agent: &AgentPlan, live: &Live, settings: &Settings, notes: &mut Vec<Note>) -> AgentImage {
    let version = agent.version.as_ref().unwrap_or(&settings.agent_version);
    let wanted = format!("{}:{version}", settings.agent_image);
    let present = live.agent_image();
    match present {
        Some(present) if agent.version.is_none() => {
            if present != wanted {
                notes.push(Note::UpdateAvailable { present: present.to_owned(), available: wanted });
            }
            let policy = live.agent().and_then(|agent| agent.get("imagePullPolicy")).and_then(Value::as_str);
            AgentImage {
                image: present.to_owned(),
                pull_policy: policy.unwrap_or(&settings.agent_pull_policy).to_owned(),
                changes: false,
            }
        }
        _ => AgentImage {
            changes: present != Some(&wanted),
            image: wanted,
            pull_policy: settings.agent_pull_policy.clone(),
        },
    }
}

/// What the app's container reads at boot.
struct BootPart {
    name: String,
    volumes: Vec<Value>,
    mounts: Vec<Value>,
    /// The volume of the agent's files where it must stay as it is.
    config: Option<Value>,
}

fn choose_boot(
    validated: &Validated,
    live: &Live,
    boot: &Boot,
    found: &Found,
    image: Option<&AgentImage>,
    notes: &mut Vec<Note>,
) -> BootPart {
    let config_of = |name: &str| found.config_maps.get(name)?.metadata.annotations.as_ref()?.get(BOOT_CONFIG);
    let present = live.boot();
    // A boot map that differs in the preload script alone stays, unless the pods are rolled for their agent anyway.
    let kept = present
        .filter(|_| !image.is_some_and(|image| image.changes))
        .filter(|name| config_of(name) == Some(&boot.config));
    let name = kept.unwrap_or(&boot.name);
    let wanted = boot_part(validated, name);
    let Some(present) = present.filter(|_| validated.on_redis_change == OnRedisChange::Manual) else { return wanted };
    let as_it_is = present_part(live, present);
    if same_sources(&wanted, &as_it_is) {
        return wanted;
    }
    notes.push(Note::RolloutPending);
    as_it_is
}

/// Since when there have been the passwords that pods are to be rolled for, in their template: as it says now, unless they
/// have changed again.
fn rolled_for(
    validated: &Validated,
    live: &Live,
    container: &str,
    found: &Found,
    notes: &mut Vec<Note>,
) -> Option<String> {
    let changed = secrets::changed_under(live, container, found);
    match validated.on_redis_change {
        OnRedisChange::Restart if changed.is_some() => {
            notes.push(Note::SecretsChanged);
            return changed.map(|since| since.to_string());
        }
        OnRedisChange::Manual if changed.is_some() && !notes.contains(&Note::RolloutPending) => {
            notes.push(Note::RolloutPending);
        }
        OnRedisChange::Restart | OnRedisChange::Manual => {}
    }
    live.secrets().map(str::to_owned)
}

fn boot_part(validated: &Validated, name: &str) -> BootPart {
    let mut volumes = vec![json!({ "name": BOOT_VOLUME, "configMap": { "name": name } })];
    let mut mounts = vec![mount(BOOT_VOLUME, BOOT_DIR)];
    let secrets: BTreeSet<_> = validated.roles.iter().flat_map(|role| &role.secrets).collect();
    if !secrets.is_empty() {
        // What is missing is told by the agent and by the preload, which can say more than a pod that does not start.
        let sources: Vec<_> = secrets.into_iter().map(secret_source).collect();
        volumes.push(json!({ "name": SECRETS_VOLUME, "projected": { "sources": sources } }));
        mounts.push(mount(SECRETS_VOLUME, SECRETS_DIR));
    }
    for (index, secret) in validated.config_from.iter().enumerate() {
        let volume = format!("{APP_CONFIG_VOLUME}{index}");
        mounts.push(mount(&volume, &format!("{APP_CONFIG_DIR}/{index}")));
        volumes.push(json!({ "name": volume, "secret": { "secretName": secret, "optional": true } }));
    }
    BootPart { name: name.to_owned(), volumes, mounts, config: None }
}

fn secret_source(secret: &Secret) -> Value {
    let path = format!("{}/{}", secret.folder, secret.file);
    json!({ "secret": {
        "name": secret.key.name,
        "items": [{ "key": secret.key.key, "path": path }],
        "optional": true,
    } })
}

/// The key that calls are signed with, for the agent and for an app that verifies them. Without the Secret they are not
/// signed, and no pod waits for it.
fn signing_volume(cluster: &str) -> Value {
    json!({ "name": SIGNING_VOLUME, "secret": {
        "secretName": signing_secret(cluster),
        "items": [{ "key": SIGNING_KEY, "path": SIGNING_KEY }],
        "optional": true,
    } })
}

fn mount(volume: &str, path: &str) -> Value {
    json!({ "name": volume, "mountPath": path, "readOnly": true })
}

/// What the workload has now, so that a resource with `Manual` rolls nothing.
fn present_part(live: &Live, boot: &str) -> BootPart {
    let mut volumes = Vec::new();
    let mut mounts = Vec::new();
    let mut config = None;
    for volume in live.volumes() {
        let Some(name) = volume.get("name").and_then(Value::as_str) else { continue };
        // Less what the API server filled in.
        let (source, path) = if name == BOOT_VOLUME {
            (json!({ "name": name, "configMap": { "name": volume["configMap"]["name"] } }), BOOT_DIR.to_owned())
        } else if name == SECRETS_VOLUME {
            (
                json!({ "name": name, "projected": { "sources": volume["projected"]["sources"] } }),
                SECRETS_DIR.to_owned(),
            )
        } else if let Some(index) = name.strip_prefix(APP_CONFIG_VOLUME) {
            let secret = json!({ "secretName": volume["secret"]["secretName"], "optional": true });
            (json!({ "name": name, "secret": secret }), format!("{APP_CONFIG_DIR}/{index}"))
        } else if name == CONFIG_VOLUME {
            config = Some(json!({ "name": name, "projected": { "sources": volume["projected"]["sources"] } }));
            continue;
        } else {
            continue;
        };
        volumes.push(source);
        mounts.push(mount(name, &path));
    }
    BootPart { name: boot.to_owned(), volumes, mounts, config }
}

fn same_sources(one: &BootPart, other: &BootPart) -> bool {
    let contains = |part: &BootPart, volume: &Value| part.volumes.contains(volume);
    one.name == other.name
        && one.volumes.len() == other.volumes.len()
        && one.volumes.iter().all(|volume| contains(other, volume))
}

/// The agent's files: one volume, so that one swap of its link brings all of them. Agents follow every role, and role
/// redlock may come and go without another pod template.
fn config_volume(validated: &Validated) -> Value {
    let cluster = &validated.identity.name;
    let roles: BTreeSet<&str> = validated.roles.iter().map(|role| role.name.as_str()).chain([REDLOCK_ROLE]).collect();
    let mut sources = vec![json!({ "configMap": {
        "name": agent_config_map(cluster),
        "items": [{ "key": AGENT_FILE, "path": AGENT_FILE }],
    } })];
    sources.extend(roles.into_iter().map(|role| {
        json!({ "configMap": {
            "name": role_config_map(cluster, role),
            "items": [{ "key": CLIENT_FILE, "path": role_file(role) }],
            "optional": true,
        } })
    }));
    json!({ "name": CONFIG_VOLUME, "projected": { "sources": sources } })
}

/// What an agent has beside its configuration.
struct Extras {
    /// Passwords and certificates.
    secrets: bool,
    /// The key that calls are signed with.
    signs: bool,
    /// The folder where it tells the app that the pod is about to end.
    tells: bool,
}

fn agent_container(agent: &AgentPlan, wanted: &Workload, image: &AgentImage, live: &Live, extras: &Extras) -> Value {
    let hash_label = match wanted.reference.kind {
        WorkloadKind::Deployment => "pod-template-hash",
        WorkloadKind::StatefulSet | WorkloadKind::DaemonSet => "controller-revision-hash",
    };
    let value = |name: &str, value: &str| json!({ "name": name, "value": value });
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let probe = |path: &str| json!({ "path": path, "port": AGENT_CONTAINER });
    let mut mounts = vec![mount(CONFIG_VOLUME, CONFIG_DIR), mount(NO_TOKEN_VOLUME, SERVICE_ACCOUNT_DIR)];
    if extras.secrets {
        mounts.push(mount(SECRETS_VOLUME, SECRETS_DIR));
    }
    let mut env = vec![
        value("CABLOY_CONFIG_DIR", CONFIG_DIR),
        field("CABLOY_POD_NAME", "metadata.name"),
        field("CABLOY_POD_NAMESPACE", "metadata.namespace"),
        field("CABLOY_POD_UID", "metadata.uid"),
        field("CABLOY_POD_IP", "status.podIP"),
        field("CABLOY_POD_HASH", &format!("metadata.labels['{hash_label}']")),
        value("CABLOY_ELECT", if wanted.elect { "true" } else { "false" }),
    ];
    if extras.tells {
        mounts.push(json!({ "name": STATE_VOLUME, "mountPath": STATE_DIR }));
        env.push(value("CABLOY_STATE_DIR", STATE_DIR));
    }
    if extras.signs {
        mounts.push(mount(SIGNING_VOLUME, SIGNING_DIR));
        env.push(value("CABLOY_SIGNING_KEY_FILE", &format!("{SIGNING_DIR}/{SIGNING_KEY}")));
    }
    let mut security = json!({
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] },
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    if live.run_as_user() == Some(0) {
        security["runAsUser"] = json!(AGENT_USER);
    }
    json!({
        "name": AGENT_CONTAINER,
        "image": image.image,
        "imagePullPolicy": image.pull_policy,
        "restartPolicy": "Always",
        "args": ["run"],
        "env": env,
        "ports": [{ "name": AGENT_CONTAINER, "containerPort": AGENT_PORT, "protocol": "TCP" }],
        "startupProbe": { "httpGet": probe("/healthz"), "periodSeconds": 1, "failureThreshold": 60 },
        "livenessProbe": { "httpGet": probe("/healthz"), "periodSeconds": 10, "timeoutSeconds": 3 },
        "readinessProbe": { "httpGet": probe("/readyz"), "periodSeconds": 2, "timeoutSeconds": 3 },
        // Called as soon as the pod is to end, long before the app has ended.
        "lifecycle": { "preStop": { "exec": { "command": ["/cabloy-agent", "drain"] } } },
        "resources": resources(&agent.resources),
        "securityContext": security,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    })
}

/// Requests of CPU and memory and a limit of memory are always there: an autoscaler on CPU fails where one container
/// has no request.
fn resources(asked: &ResourceRequirements) -> ResourceRequirements {
    let mut resources = asked.clone();
    let mut default = |map: fn(&mut ResourceRequirements) -> &mut Option<_>, name: &str, quantity: &str| {
        map(&mut resources)
            .get_or_insert_with(std::collections::BTreeMap::new)
            .entry(name.to_owned())
            .or_insert_with(|| Quantity(quantity.to_owned()));
    };
    default(|resources| &mut resources.requests, "cpu", "10m");
    default(|resources| &mut resources.requests, "memory", "16Mi");
    default(|resources| &mut resources.limits, "memory", "64Mi");
    resources
}

/// Whether a field, as a conflict names it, is ours by name: nobody else has a reason to set it.
#[must_use]
pub fn is_our_field(field: &str, live: &Live) -> bool {
    let marks = ["name=\"cabloy-", "cabloy.io/", "name=\"CABLOY_", "mountPath=\"/etc/cabloy/"];
    if marks.iter().any(|mark| field.contains(mark)) {
        return true;
    }
    // A rollout that was undone brings our own value back under another manager's name.
    let mut containers = live.containers().iter();
    if field.contains("name=\"NODE_OPTIONS\"") {
        return containers.filter_map(|it| find(it.get("env"), NODE_OPTIONS)).all(is_our_node_options);
    }
    field.ends_with(".lifecycle.preStop.sleep.seconds")
        && containers.any(|it| field.contains(&format!("[{}]", key_of(it))) && pause::is_ours(it, &live.0))
}

/// The key of a container, as a field that is in it names it.
fn key_of(container: &Value) -> String {
    format!("name={}", container["name"])
}

/// A merge patch that takes out what is left of our part in a workload after it has been withdrawn: fields that another
/// manager owns as well, for it has written back what it had read. `None` where nothing is left.
#[must_use]
pub fn without_leftovers(workload: &Value) -> Option<Value> {
    let mut pod = workload.pointer("/spec/template/spec").cloned().unwrap_or_default();
    let starts = |item: &Value, field: &str, prefix: &str| {
        item.get(field).and_then(Value::as_str).is_some_and(|text| text.starts_with(prefix))
    };
    let mut removed = retain(&mut pod, "initContainers", |item| !named(item, AGENT_CONTAINER));
    removed |= retain(&mut pod, "volumes", |item| !starts(item, "name", "cabloy-"));
    let mut containers = pod.get("containers").and_then(Value::as_array).cloned().unwrap_or_default();
    for container in &mut containers {
        removed |= retain(container, "env", |item| {
            let ours = starts(item, "name", "CABLOY_") || (named(item, NODE_OPTIONS) && is_our_node_options(item));
            !ours
        });
        removed |= retain(container, "volumeMounts", |item| !starts(item, "name", "cabloy-"));
        removed |= pause::remove(container, workload);
    }
    let mut nulls = |map: &str| {
        let keys = workload.pointer(map).and_then(Value::as_object).into_iter().flatten();
        let ours: serde_json::Map<_, _> =
            keys.filter(|(key, _)| key.starts_with("cabloy.io/")).map(|(key, _)| (key.clone(), Value::Null)).collect();
        removed |= !ours.is_empty();
        Value::Object(ours)
    };
    let annotations = nulls("/metadata/annotations");
    let template_annotations = nulls("/spec/template/metadata/annotations");
    let template_labels = nulls("/spec/template/metadata/labels");
    removed.then(|| {
        json!({
            "metadata": {
                "resourceVersion": workload["metadata"]["resourceVersion"],
                "annotations": annotations,
            },
            "spec": { "template": {
                "metadata": { "annotations": template_annotations, "labels": template_labels },
                "spec": {
                    "initContainers": pod["initContainers"],
                    "containers": containers,
                    "volumes": pod["volumes"],
                },
            } },
        })
    })
}

/// Keeps the items of a list that `keep` says; a list that becomes empty goes. Whether any item went.
fn retain(object: &mut Value, list: &str, keep: impl Fn(&Value) -> bool) -> bool {
    let Some(items) = object.get_mut(list).and_then(Value::as_array_mut) else { return false };
    let before = items.len();
    items.retain(keep);
    let (removed, empty) = (items.len() < before, items.is_empty());
    if removed
        && empty
        && let Some(object) = object.as_object_mut()
    {
        object.remove(list);
    }
    removed
}

#[cfg(test)]
mod tests;
