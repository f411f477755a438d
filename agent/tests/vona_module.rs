//! `examples/vona-module` against the types that Vona has published. What it does is in `beans.rs`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use cabloy_tests::npm;
use cabloy_tests::process::bound;

#[test]
fn the_module_for_vona_fits_the_types_of_vona() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let modules = npm::modules("vona");
    let dir = tempfile::TempDir::with_prefix("cabloy-vona-module-").unwrap();
    let packages = dir.path().join("node_modules");
    npm::link(&modules, &packages).unwrap();
    npm::copy(&root.join("client"), &packages.join("cabloy-agent-client")).unwrap();
    npm::copy(&root.join("examples/vona-module"), &dir.path().join("module")).unwrap();
    for file in ["tsconfig.json", "wrong.ts"] {
        fs::copy(npm::fixture("vona/types").join(file), dir.path().join(file)).unwrap();
    }

    let mut command = bound("node");
    command.arg(modules.join("typescript/bin/tsc")).args(["-p", "."]).current_dir(dir.path());
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let of = |file: &str| said.lines().filter(|line| line.starts_with(file)).collect::<Vec<_>>();
    assert!(of("module/").is_empty(), "{said}");
    assert_eq!(of("wrong.ts").len(), 3, "what is wrong is seen: {said}");
}
