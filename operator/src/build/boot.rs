//! The boot `ConfigMap`: what the app's processes read, under a name that says what it holds.

use std::collections::{BTreeMap, BTreeSet};

use cabloy_crds::{
    files::{BootFile, to_text},
    names::{APP_CONFIG_DIR, BOOT_FILE, PRELOAD_FILE},
    resource::Generation,
};
use k8s_openapi::api::core::v1::ConfigMap;

use crate::{
    names::{BOOT_CONFIG, TAKES_OVER, boot_prefix, hash},
    validate::{Identity, Validated},
};

/// The preload script, for apps that are Node.js programs of `CabloyJS`.
const PRELOAD: &str = include_str!("../../preload/preload.cjs");

/// What the app's processes read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// Name of the `ConfigMap`.
    pub name: String,
    /// The hash of what it holds, less the preload script. Maps that differ in the script alone configure alike, so
    /// that a new version of the operator rolls nothing.
    pub config: String,
    takes_over: BTreeSet<String>,
    files: BTreeMap<String, String>,
}

impl Boot {
    /// The `ConfigMap`.
    #[must_use]
    pub fn config_map(&self, identity: &Identity) -> ConfigMap {
        let mut map = super::config_map(identity, self.name.clone(), self.files.clone());
        let mut annotations = BTreeMap::from([(BOOT_CONFIG.to_owned(), self.config.clone())]);
        if !self.takes_over.is_empty() {
            annotations.insert(TAKES_OVER.to_owned(), Vec::from_iter(self.takes_over.clone()).join(","));
        }
        map.metadata.annotations = Some(annotations);
        map.immutable = Some(true);
        map
    }
}

/// The boot map that the resource asks for.
pub(super) fn boot(validated: &Validated) -> serde_json::Result<Boot> {
    let file = BootFile {
        app: validated.app.name.clone(),
        generation: validated.app.generation,
        roles: validated.roles.iter().map(|role| role.name.clone()).collect(),
        config_from: (0..validated.config_from.len()).map(|index| format!("{APP_CONFIG_DIR}/{index}")).collect(),
        merges_config: validated.merges_config,
        guards_startups: validated.app.generation == Generation::V4 && validated.guard.is_some(),
        takes_over: validated.schedules.iter().filter_map(|schedule| schedule.takes_over.clone()).collect(),
    };
    let mut files = BTreeMap::from([(BOOT_FILE.to_owned(), to_text(&file)?)]);
    for role in &validated.roles {
        files.insert(format!("{}.json", role.name), to_text(&role.file)?);
    }
    let digest = |files: &BTreeMap<String, String>| {
        hash(files.iter().flat_map(|(name, text)| [name.as_bytes(), text.as_bytes()]), 10)
    };
    let config = digest(&files);
    if has_preload(validated.app.generation) {
        files.insert(PRELOAD_FILE.to_owned(), PRELOAD.to_owned());
    }
    let name = format!("{}{}", boot_prefix(&validated.identity.name), digest(&files));
    Ok(Boot { name, config, takes_over: file.takes_over, files })
}

/// Whether apps of this generation take their configuration through the preload script.
pub(super) fn has_preload(generation: Generation) -> bool {
    match generation {
        Generation::V4 | Generation::Vona => true,
        Generation::Generic => false,
    }
}
