//! The control group under which all pods of a node run, in each hierarchy that the machine has.

use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::Context as _;

/// The name of the group, as kubelet takes it.
pub fn name(id: &str) -> String {
    format!("/cabloy-{id}")
}

/// Makes the group.
pub fn create(id: &str) -> anyhow::Result<()> {
    for root in hierarchies()? {
        // The newer kind beside the older one has no controllers; whoever uses it makes its own groups.
        let unified = root.join("cgroup.controllers");
        if unified.exists() {
            enable_all(&root, &fs::read_to_string(&unified)?);
        }
        let group = group(&root, id);
        fs::create_dir_all(&group).with_context(|| group.display().to_string())?;
        for inherited in ["cpuset.cpus", "cpuset.mems"] {
            if root.join("cpuset.cpu_exclusive").exists() {
                fs::write(group.join(inherited), fs::read(root.join(inherited))?)?;
            }
        }
    }
    Ok(())
}

/// Removes the group and all below it, which fails for as long as processes are in it.
pub fn remove(id: &str) -> io::Result<()> {
    for root in hierarchies().map_err(io::Error::other)? {
        remove_tree(&group(&root, id))?;
    }
    Ok(())
}

fn group(root: &Path, id: &str) -> PathBuf {
    root.join(name(id).trim_start_matches('/'))
}

/// Lets groups use the controllers of a unified hierarchy. Where the machine forbids it, kubelet names those it misses.
fn enable_all(root: &Path, controllers: &str) {
    for controller in controllers.split_whitespace() {
        let _ = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// Where hierarchies of either kind are mounted.
fn hierarchies() -> anyhow::Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/mounts").context("/proc/mounts")?;
    let roots = mounts.lines().filter_map(|mount| {
        let mut fields = mount.split(' ').skip(1);
        let (root, kind) = (fields.next()?, fields.next()?);
        kind.starts_with("cgroup").then(|| PathBuf::from(root))
    });
    Ok(roots.collect())
}

fn remove_tree(group: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}
