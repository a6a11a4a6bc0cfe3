//! Control groups of our own. A process in one survives when the group that it was started in is
//! ended as a whole.
//!
//! The groups are `vmsnapshot-ROLE-PID` at the root of the cgroup v2 hierarchy (`cgroup.kill`, and
//! systemd's `KillMode=control-group`). Where systemd still has a v1 hierarchy of its own
//! (`name=systemd`), there is one in that as well. If a move fails, the process goes on where it is.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use vmsnapshot_core::mountinfo;

/// What the names of all groups begin with.
const PREFIX: &str = "vmsnapshot-";

/// The groups that this process is in, and those that it came from.
#[derive(Debug)]
pub struct OwnGroups(Vec<OwnGroup>);

#[derive(Debug)]
struct OwnGroup {
    root: PathBuf,
    group: PathBuf,
    came_from: PathBuf,
}

/// Moves this process into groups of its own, one per hierarchy.
///
/// Returns `None` unless this succeeded in every hierarchy of the machine. Removes the groups whose
/// process is gone, whatever its role. Dropping the result leaves the process in its groups.
#[must_use]
pub fn enter(role: &str) -> Option<OwnGroups> {
    let mut moved = OwnGroups(Vec::new());
    for Hierarchy { root, own_path } in hierarchies()? {
        let Some(group) = move_below(&root, role, std::process::id()) else {
            // The report says one word about all of them, which would not be true of half of them.
            moved.leave();
            return None;
        };
        let came_from = root.join(own_path);
        moved.0.push(OwnGroup {
            root,
            group,
            came_from,
        });
    }
    (!moved.0.is_empty()).then_some(moved)
}

/// Moves another process into groups of its own, as [`enter`] does with this one.
///
/// Returns whether this succeeded in every hierarchy of the machine. The caller ensures that `pid`
/// is not reused meanwhile: it is a child of this process that has not been waited for.
#[must_use]
pub fn give(pid: u32, role: &str) -> bool {
    hierarchies().is_some_and(|hierarchies| {
        !hierarchies.is_empty()
            && hierarchies
                .iter()
                .all(|hierarchy| move_below(&hierarchy.root, role, pid).is_some())
    })
}

/// Takes this process out of groups of its own, if it is in any, and removes these groups and those
/// whose process is gone. For the end of a process, because it goes to the root of the hierarchy.
pub fn leave() {
    for Hierarchy { root, own_path } in hierarchies().unwrap_or_default() {
        let group = root.join(&own_path);
        if own_path.parent() == Some(Path::new("")) && pid_of(&own_path) == Some(std::process::id())
        {
            leave_for(&[&root], &group);
        }
        remove_abandoned(&root);
    }
}

impl OwnGroups {
    /// Moves the process back and removes the groups.
    pub fn leave(self) {
        for OwnGroup {
            root,
            group,
            came_from,
        } in self.0
        {
            // The group that the process came from is gone if its service has ended. The root is
            // not, but in a container it may not accept processes.
            leave_for(&[&came_from, &root], &group);
        }
    }
}

/// Moves this process into the first target that accepts it, and removes `group`. If there is none,
/// the group stays until the next process of ours removes it.
fn leave_for(targets: &[&Path], group: &Path) {
    let is_left = targets
        .iter()
        // "0" means the process that writes it.
        .any(|target| fs::write(target.join("cgroup.procs"), "0").is_ok());
    if is_left {
        let _ = fs::remove_dir(group);
    }
}

/// A hierarchy by which a service manager may end processes.
struct Hierarchy {
    root: PathBuf,
    /// The group of this process, relative to the root.
    own_path: PathBuf,
}

fn hierarchies() -> Option<Vec<Hierarchy>> {
    let mounts = mountinfo::parse(&fs::read("/proc/self/mountinfo").ok()?).mounts;
    let own = fs::read("/proc/self/cgroup").ok()?;
    let mut found = Vec::new();
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
        found.push(Hierarchy {
            root: mount.mount_point.clone(),
            own_path: path_after(&own, line)?.to_owned(),
        });
    }
    Some(found)
}

/// Makes the group of a process and moves the process there. Returns the group.
fn move_below(root: &Path, role: &str, pid: u32) -> Option<PathBuf> {
    remove_abandoned(root);
    let group = root.join(format!("{PREFIX}{role}-{pid}"));
    // Twice, because a process of another pid namespace does not see ours, and may remove the group
    // while it is still empty.
    let is_moved = (0..2).any(|_| {
        // A group that exists was left by an earlier process with that id, or we made it ourselves.
        let is_made = match fs::create_dir(&group) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::AlreadyExists,
        };
        is_made && fs::write(group.join("cgroup.procs"), pid.to_string()).is_ok()
    });
    if is_moved {
        return Some(group);
    }
    let _ = fs::remove_dir(&group);
    None
}

/// Removes the groups of processes that are gone. The kernel removes no group that has a process.
fn remove_abandoned(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else {
        return;
    };
    for entry in entries.flatten() {
        let pid = pid_of(Path::new(&entry.file_name()));
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Returns the process that a group was made for, or `None` if it is not a group of ours.
fn pid_of(group: &Path) -> Option<u32> {
    let (role, pid) = group.to_str()?.strip_prefix(PREFIX)?.rsplit_once('-')?;
    let is_role = !role.is_empty() && role.bytes().all(|byte| byte.is_ascii_lowercase());
    let is_number = pid.bytes().all(|byte| byte.is_ascii_digit());
    (is_role && is_number).then(|| pid.parse().ok()).flatten()
}

/// Returns the path after `prefix` in the lines of `/proc/self/cgroup`.
fn path_after<'a>(own: &'a [u8], prefix: &[u8]) -> Option<&'a Path> {
    own.split(|byte| *byte == b'\n').find_map(|line| {
        let start = line.windows(prefix.len()).position(|part| part == prefix)?;
        let path = line.get(start + prefix.len()..)?;
        Some(Path::new(std::ffi::OsStr::from_bytes(path)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_names_of_our_groups_have_a_process() {
        for (name, pid) in [
            ("vmsnapshot-worker-12", Some(12)),
            ("vmsnapshot-watchdog-4194304", Some(4_194_304)),
            ("vmsnapshot-worker-", None),
            ("vmsnapshot-worker-+12", None),
            ("vmsnapshot-worker-12.slice", None),
            ("vmsnapshot-12", None),
            ("vmsnapshot--12", None),
            ("vmsnapshot-of-another-12", None),
            ("vmsnapshot-worker-99999999999", None),
            ("system.slice", None),
        ] {
            assert_eq!(pid_of(Path::new(name)), pid, "{name}");
        }
    }
}
