//! What must not come into a program by way of another.

use std::{env, process::Command};

#[test]
fn the_agent_does_without_kubernetes() {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let tree = Command::new(cargo)
        .args(["tree", "--locked", "--package", "cabloy-agent", "--edges", "normal", "--prefix", "none"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8_lossy(&tree.stdout);
    assert!(tree.contains("redis v"), "{tree}");
    let unwanted: Vec<_> = tree.lines().filter(|line| line.starts_with("kube") || line.starts_with("k8s-")).collect();
    assert!(unwanted.is_empty(), "{unwanted:?}");
}
