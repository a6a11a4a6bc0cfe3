//! Moves a process into a control group of its own. The process then survives when the group that
//! it was started in is ended as a whole.
//!
//! The process moves in the cgroup v2 hierarchy (`cgroup.kill`, and systemd's
//! `KillMode=control-group`). Where systemd still has a v1 hierarchy of its own (`name=systemd`),
//! the process moves there as well. If a move fails, [`enter`] returns `None` and the process goes
//! on.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use vmsnapshot_core::mountinfo;

/// The groups that this process is in, and those that it came from.
#[derive(Debug)]
pub struct OwnGroups(Vec<OwnGroup>);

#[derive(Debug)]
struct OwnGroup {
    group: PathBuf,
    came_from: PathBuf,
}

/// Moves this process into groups of its own, each named `prefix` followed by the process id.
///
/// Returns `None` unless this succeeded in every hierarchy of the machine. Removes the groups with
/// that prefix whose process is gone. Dropping the result leaves the process in its groups, which
/// then outlast the process.
#[must_use]
pub fn enter(prefix: &str) -> Option<OwnGroups> {
    let mounts = mountinfo::parse(&fs::read("/proc/self/mountinfo").ok()?).mounts;
    let own = fs::read("/proc/self/cgroup").ok()?;
    let mut groups = Vec::new();
    for mount in &mounts {
        let line = match mount.filesystem_type.as_str() {
            "cgroup2" => b"0::/".as_slice(),
            "cgroup"
                if mount
                    .super_options
                    .split(',')
                    .any(|name| name == "name=systemd") =>
            {
                b":name=systemd:/".as_slice()
            }
            _ => continue,
        };
        let own_path = path_after(&own, line)?;
        groups.push(enter_below(&mount.mount_point, own_path, prefix)?);
    }
    (!groups.is_empty()).then_some(OwnGroups(groups))
}

impl OwnGroups {
    /// Moves the process back and removes the groups.
    pub fn leave(self) {
        for OwnGroup { group, came_from } in self.0 {
            // The group that the process came from may be gone. Then this one stays, and the next
            // process that enters groups with the same prefix removes it.
            if fs::write(came_from.join("cgroup.procs"), "0").is_ok() {
                let _ = fs::remove_dir(group);
            }
        }
    }
}

fn enter_below(root: &Path, own: &Path, prefix: &str) -> Option<OwnGroup> {
    remove_abandoned(root, prefix);
    let group = root.join(format!("{prefix}{}", std::process::id()));
    // A group that exists was left by an earlier process with our id, or we made it ourselves.
    match fs::create_dir(&group) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return None,
        Ok(()) | Err(_) => {}
    }
    // "0" means the process that writes it.
    if fs::write(group.join("cgroup.procs"), "0").is_err() {
        let _ = fs::remove_dir(&group);
        return None;
    }
    Some(OwnGroup {
        group,
        came_from: root.join(own),
    })
}

/// Removes the groups of processes that are gone.
fn remove_abandoned(root: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(root) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(prefix));
        // One prefix may be the beginning of another, so only a process id may follow.
        let pid = pid.and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Returns the path after `prefix` in the lines of `/proc/self/cgroup`.
fn path_after<'a>(own: &'a [u8], prefix: &[u8]) -> Option<&'a Path> {
    own.split(|byte| *byte == b'\n').find_map(|line| {
        let start = line.windows(prefix.len()).position(|part| part == prefix)?;
        let path = line.get(start + prefix.len()..)?;
        Some(Path::new(std::ffi::OsStr::from_bytes(path)))
    })
}
