//! Step 3 (no client): what is to be written, in full.

mod agent_file;
mod boot;
mod pause;
mod roles;
mod secrets;
pub mod workload;

use std::collections::{BTreeMap, BTreeSet};

use cabloy_crds::{
    files::to_text,
    names::{AGENT_FILE, CLIENT_FILE},
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ObjectMeta;
use serde_json::Value;

pub use boot::Boot;
pub use workload::{Blocked, Note};

use crate::{
    dereference::Found,
    names::{CLUSTER, FIELD_MANAGER, MANAGED_BY, agent_config_map, boot_prefix, hash, role_config_map, signing_secret},
    validate::{Identity, Validated},
    workload::WorkloadRef,
};

/// What the installation of the operator says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Repository of the agent's image.
    pub agent_image: String,
    /// Version, and so tag, of the agent that this operator brings.
    pub agent_version: String,
    /// When nodes pull the agent's image.
    pub agent_pull_policy: String,
}

/// Why the files could not be made. The variant's name is the Event's reason.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be written as JSON.
    #[error("a file cannot be written as JSON: {0}")]
    Render(#[from] serde_json::Error),
}

impl Error {
    /// The Event's reason.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Render(_) => "Render",
        }
    }
}

/// What is to become of a workload.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// Our part is to be as this server-side apply says.
    Apply {
        /// The patch.
        patch: Value,
        /// What somebody should know.
        notes: Vec<Note>,
    },
    /// It is left as it is.
    Leave(Blocked),
}

/// All that is to be written.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// `ConfigMaps` that are to be as they stand here.
    pub config_maps: Vec<ConfigMap>,
    /// Names of `ConfigMaps` of ours that nobody needs. Boot maps among them may yet be named by a revision that has
    /// not been seen: they are looked for again before they are deleted.
    pub unneeded: Vec<String>,
    /// The workloads that the resource names.
    pub workloads: Vec<(WorkloadRef, Plan)>,
    /// Workloads that the resource no longer names.
    pub withdrawn: Vec<WorkloadRef>,
    /// The hash of the agents' files, if there are agents.
    pub agent_files: Option<String>,
    /// Name of the Secret that must be there, with a key to sign calls with, if there are agents.
    pub signing_secret: Option<String>,
}

/// Makes everything that is to be written.
///
/// # Errors
/// A file cannot be written as JSON.
pub fn build(validated: &Validated, found: &Found, settings: &Settings) -> Result<Prepared, Error> {
    let identity = &validated.identity;
    let mut config_maps = Vec::new();
    let mut role_files = Vec::new();
    for role in &validated.roles {
        let data = roles::files(role)?;
        role_files.push((role.name.as_str(), data[CLIENT_FILE].clone()));
        config_maps.push(config_map(identity, role_config_map(&identity.name, &role.name), data));
    }
    let mut agent_files = None;
    if let Some(agent) = &validated.agent {
        let file = to_text(&agent_file::agent_file(validated, agent, found)?)?;
        // As an agent hashes what it has taken up.
        let role_parts = role_files.iter().flat_map(|(role, text)| [role.as_bytes(), text.as_bytes()]);
        agent_files = Some(hash([file.as_bytes()].into_iter().chain(role_parts), 16));
        let data = BTreeMap::from([(AGENT_FILE.to_owned(), file)]);
        config_maps.push(config_map(identity, agent_config_map(&identity.name), data));
    }

    let boot = boot::boot(validated)?;
    let mut used: BTreeSet<String> = found.revisions.iter().filter_map(|revision| revision.boot.clone()).collect();
    used.extend(found.workloads.values().flatten().filter_map(|live| live.boot().map(str::to_owned)));
    let workloads: Vec<_> = validated
        .workloads
        .iter()
        .map(|wanted| {
            let plan = workload::plan(validated, wanted, &boot, found, settings);
            (wanted.reference.clone(), plan)
        })
        .collect();
    // Without the boot map a pod could not start, so it is there even before its first workload is.
    let named = |plan: &Plan| matches!(plan, Plan::Apply { patch, .. } if workload::boot_of(patch) != Some(&boot.name));
    if workloads.is_empty() || !workloads.iter().all(|(_, plan)| named(plan)) {
        used.insert(boot.name.clone());
        config_maps.push(boot.config_map(identity));
    }

    let wanted: BTreeSet<_> = config_maps.iter().filter_map(|map| map.metadata.name.clone()).collect();
    let boot_prefix = boot_prefix(&identity.name);
    let unneeded = found
        .config_maps
        .keys()
        .filter(|name| !wanted.contains(*name))
        .filter(|name| !used.contains(*name) || !name.starts_with(&boot_prefix))
        .cloned()
        .collect();
    let withdrawn = found
        .claimed
        .iter()
        .filter(|reference| !validated.workloads.iter().any(|workload| workload.reference == **reference))
        .cloned()
        .collect();
    let signing_secret = validated.agent.as_ref().map(|_| signing_secret(&identity.name));
    Ok(Prepared { config_maps, unneeded, workloads, withdrawn, agent_files, signing_secret })
}

fn config_map(identity: &Identity, name: String, data: BTreeMap<String, String>) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(identity.namespace.clone()),
            labels: Some(labels(identity)),
            ..ObjectMeta::default()
        },
        data: Some(data),
        ..ConfigMap::default()
    }
}

/// The labels of everything that is ours.
pub(crate) fn labels(identity: &Identity) -> BTreeMap<String, String> {
    BTreeMap::from([(MANAGED_BY.to_owned(), FIELD_MANAGER.to_owned()), (CLUSTER.to_owned(), identity.name.clone())])
}

#[cfg(test)]
mod tests;
