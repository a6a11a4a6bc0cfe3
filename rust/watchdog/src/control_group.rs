//! A control group of the watchdog's own, so that ending the run's whole group leaves it alive.
//!
//! Only cgroup v2: there `cgroup.kill`, and systemd's `KillMode=control-group`, end all that is
//! inside at once. Where it cannot be had the watchdog says so and goes on.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use vmsnapshot_core::mountinfo;

/// What the group's name begins with; the process id makes it one watchdog's alone.
const NAME: &str = "vmsnapshot-watchdog";

/// The group this process is in, and the one it came from.
#[derive(Debug)]
pub struct OwnGroup {
    group: PathBuf,
    came_from: PathBuf,
}

/// Moves this process into a group of its own; none if the host does not let it.
#[must_use]
pub fn enter() -> Option<OwnGroup> {
    let root = hierarchy()?;
    let own = fs::read("/proc/self/cgroup").ok()?;
    let path = own
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"0::/"))?;
    let came_from = root.join(Path::new(std::ffi::OsStr::from_bytes(path)));
    let group = root.join(format!("{NAME}-{}", std::process::id()));
    fs::create_dir(&group).ok()?;
    // "0" is the process that writes.
    if fs::write(group.join("cgroup.procs"), "0").is_err() {
        let _ = fs::remove_dir(&group);
        return None;
    }
    Some(OwnGroup { group, came_from })
}

impl OwnGroup {
    /// Goes back and removes the group.
    pub fn leave(self) {
        // The group that it came from may be gone: then this one stays behind, empty.
        if fs::write(self.came_from.join("cgroup.procs"), "0").is_ok() {
            let _ = fs::remove_dir(self.group);
        }
    }
}

fn hierarchy() -> Option<PathBuf> {
    let mounts = mountinfo::parse(&fs::read("/proc/self/mountinfo").ok()?).ok()?;
    let mount = mounts
        .into_iter()
        .find(|mount| mount.filesystem_type == "cgroup2")?;
    Some(mount.mount_point)
}
