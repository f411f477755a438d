//! Kubeconfig files, complete in themselves.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use k8s_openapi::ByteString;
use serde_json::json;

use crate::certs::Identity;

/// Writes the kubeconfig of a user who reaches the API server at an address.
pub fn write(path: &Path, server: SocketAddr, authority: &str, user: &Identity) -> anyhow::Result<()> {
    // The type of bytes in Kubernetes objects, which are base64 here as there.
    let data = |pem: &str| ByteString(pem.as_bytes().to_vec());
    let name = "cabloy-test";
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {
            "server": format!("https://{server}"),
            "certificate-authority-data": data(authority),
        }}],
        "users": [{"name": name, "user": {
            "client-certificate-data": data(&user.cert),
            "client-key-data": data(&user.key),
        }}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    });
    fs::write(path, serde_yaml::to_string(&config)?)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o600)))
        .with_context(|| path.display().to_string())
}
