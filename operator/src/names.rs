//! Names that the operator gives to what it writes.

use cabloy_crds::names::GROUP;
use sha2::{Digest, Sha256};

/// The field manager of all that the operator applies.
pub const FIELD_MANAGER: &str = "cabloy-operator";

/// The finalizer that takes our part out of the workloads before the resource goes.
pub const FINALIZER: &str = "cabloy.io/withdraw";

/// Label of everything that is ours; its value is [`FIELD_MANAGER`].
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// Label, and on workloads annotation, with the name of the resource.
pub const CLUSTER: &str = "cabloy.io/cluster";

/// Annotation of the resource: it is left alone while this is `"true"`.
pub const PAUSED: &str = "cabloy.io/paused";

/// Annotation of the resource: runs of schedules that somebody asks for, `<schedule>/<id>`, with commas between them.
pub const TRIGGER: &str = "cabloy.io/trigger";

/// Annotation of the resource: times whose ticks somebody wants run, `<schedule>/<id>/<from>/<to>`, with commas between them.
pub const BACKFILL: &str = "cabloy.io/backfill";

/// Annotation of the resource: startup tasks that somebody wants done once more, `<task>/<id>`, with commas between them.
pub const RERUN: &str = "cabloy.io/rerun";

/// Annotation of a workload: UID of the resource that it belongs to.
pub const CLAIMED_BY: &str = "cabloy.io/claimed-by";

/// Annotation of a pod template: the boot `ConfigMap` of its pods.
pub const BOOT: &str = "cabloy.io/boot";

/// Annotation of a pod template: since when there have been the passwords that its pods are rolled for, as the agent of one
/// said that still ran on those before.
pub const SECRETS: &str = "cabloy.io/secrets";

/// Annotation of a pod template: how many seconds of pause before SIGTERM are ours. A preStop hook of others is not.
pub const PAUSE: &str = "cabloy.io/pause";

/// Annotation of a boot `ConfigMap`: the hash of what it holds, less the preload script.
pub const BOOT_CONFIG: &str = "cabloy.io/boot-config";

/// Annotation of a boot `ConfigMap`: the schedules of the app's own that its pods leave to the agents, with commas between.
pub const TAKES_OVER: &str = "cabloy.io/takes-over";

/// Annotation of a pod: the hash of the files that kubelet was last asked to bring.
pub const CONFIG_SYNCED: &str = "cabloy.io/config-synced";

/// The longest name of an object.
pub const MAX_NAME: usize = 253;

/// What all annotations and labels of ours begin with.
#[must_use]
pub fn prefix() -> String {
    format!("{GROUP}/")
}

/// Name of the `ConfigMap` of a role. Names of objects have no upper case, and names of roles may.
#[must_use]
pub fn role_config_map(cluster: &str, role: &str) -> String {
    format!("{cluster}-redis-{}", role.to_ascii_lowercase())
}

/// Name of the `ConfigMap` of the agents.
#[must_use]
pub fn agent_config_map(cluster: &str) -> String {
    format!("{cluster}-agent")
}

/// Name of the Secret with the key that agents sign their calls with.
#[must_use]
pub fn signing_secret(cluster: &str) -> String {
    format!("{cluster}-signing")
}

/// What the names of the boot `ConfigMap`s of a cluster begin with.
#[must_use]
pub fn boot_prefix(cluster: &str) -> String {
    format!("{cluster}-boot-")
}

/// The first `digits` hexadecimal digits of SHA-256 over `parts`, with a zero byte between them.
#[must_use]
pub fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>, digits: usize) -> String {
    use std::fmt::Write as _;

    let mut sha = Sha256::new();
    for (index, part) in parts.into_iter().enumerate() {
        if index > 0 {
            sha.update([0]);
        }
        sha.update(part);
    }
    let mut text = sha.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    });
    text.truncate(digits);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_parts_apart() {
        assert_eq!(hash([b"abc".as_slice()], 8), "ba7816bf");
        assert_ne!(hash([b"ab".as_slice(), b"c"], 64), hash([b"a".as_slice(), b"bc"], 64));
    }

    #[test]
    fn names_of_config_maps_are_lower_case() {
        assert_eq!(role_config_map("shop", "cacheA"), "shop-redis-cachea");
    }
}
