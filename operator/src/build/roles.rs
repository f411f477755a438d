//! The files of a role's `ConfigMap`.

use std::collections::BTreeMap;

use cabloy_crds::{
    files::{RoleFile, to_text},
    names::CLIENT_FILE,
};

use crate::validate::{ResolvedRole, endpoint};

/// `client.json` for JavaScript, and flat keys for whoever is no JavaScript program.
pub(super) fn files(role: &ResolvedRole) -> serde_json::Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::from([(CLIENT_FILE.to_owned(), to_text(&role.file)?)]);
    match &role.file {
        RoleFile::Masters(masters) => {
            let masters: Vec<_> = masters.iter().map(endpoint).collect();
            files.insert("masters".into(), masters.join(","));
        }
        RoleFile::Client(client) => {
            files.insert("host".into(), client.host.clone());
            files.insert("port".into(), client.port.to_string());
            files.insert("db".into(), client.db.to_string());
            if let Some(prefix) = &client.key_prefix {
                files.insert("keyPrefix".into(), prefix.clone());
            }
        }
    }
    Ok(files)
}
