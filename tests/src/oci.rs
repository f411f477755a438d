//! Container images of a few files of this machine, written as tar files that `ctr images import` takes.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tar::{EntryType, Header};

use crate::tools::sha256;

/// An image in the making, of one layer.
pub struct Image {
    name: String,
    layer: tar::Builder<Vec<u8>>,
    entrypoint: Vec<String>,
}

impl Image {
    /// An empty image with a full name, as `registry.example/shop:1`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), layer: tar::Builder::new(Vec::new()), entrypoint: Vec::new() }
    }

    /// Adds an executable file of this machine.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn file(mut self, path: &str, from: &Path) -> anyhow::Result<Self> {
        let content = fs::read(from).with_context(|| from.display().to_string())?;
        append(&mut self.layer, path.trim_start_matches('/'), 0o755, &content)?;
        Ok(self)
    }

    /// Adds a program of this machine at its own path, with the libraries that it is linked with.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn program(mut self, path: &Path) -> anyhow::Result<Self> {
        let output = std::process::Command::new("ldd").arg(path).output().context("ldd")?;
        ensure!(output.status.success(), "ldd {}: no dynamic program", path.display());
        // "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)" and "/lib64/ld-linux-x86-64.so.2 (0x…)"
        let listing = String::from_utf8_lossy(&output.stdout).into_owned();
        let libraries = listing.split_whitespace().filter(|word| word.starts_with('/'));
        for file in libraries.chain([path.to_str().context("a path in UTF-8")?]) {
            self = self.file(file, Path::new(file))?;
        }
        Ok(self)
    }

    /// What it runs.
    #[must_use]
    pub fn entrypoint(mut self, command: &[&str]) -> Self {
        self.entrypoint = command.iter().map(ToString::to_string).collect();
        self
    }

    /// Writes the image as a tar file of the OCI layout.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(self, to: &Path) -> anyhow::Result<()> {
        let layer = self.layer.into_inner()?;
        let mut archive = tar::Builder::new(File::create(to).with_context(|| to.display().to_string())?);
        let config = serde_json::to_vec(&json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        }))?;
        let kind = |name: &str| format!("application/vnd.oci.image.{name}");
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": kind("manifest.v1+json"),
            "config": blob(&mut archive, &kind("config.v1+json"), &config)?,
            "layers": [blob(&mut archive, &kind("layer.v1.tar"), &layer)?],
        }))?;
        let mut manifest = blob(&mut archive, &kind("manifest.v1+json"), &manifest)?;
        manifest["annotations"] = json!({"io.containerd.image.name": self.name});
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        append(&mut archive, "index.json", 0o644, &serde_json::to_vec(&index)?)?;
        append(&mut archive, "oci-layout", 0o644, br#"{"imageLayoutVersion": "1.0.0"}"#)?;
        archive.into_inner()?;
        Ok(())
    }
}

/// The architecture by the name that images use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn digest(content: &[u8]) -> String {
    format!("sha256:{}", sha256(content))
}

/// Adds a blob and returns what refers to it.
fn blob(archive: &mut tar::Builder<File>, media_type: &str, content: &[u8]) -> anyhow::Result<Value> {
    let digest = digest(content);
    append(archive, &format!("blobs/{}", digest.replace(':', "/")), 0o644, content)?;
    Ok(json!({"mediaType": media_type, "digest": digest, "size": content.len()}))
}

fn append<W: std::io::Write>(
    archive: &mut tar::Builder<W>,
    path: &str,
    mode: u32,
    content: &[u8],
) -> anyhow::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, path, content)?;
    Ok(())
}
