//! The packages of `tests/preload`.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The folder of `package.json`, its lock file, and the scripts that tests run.
pub fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("preload")
}

/// `node_modules` of the fixture.
pub fn modules() -> &'static Path {
    static MODULES: OnceLock<PathBuf> = OnceLock::new();
    MODULES.get_or_init(|| {
        cabloy_tests::npm::modules(&fixture()).unwrap_or_else(|error| panic!("npm packages of the tests: {error:#}"))
    })
}
