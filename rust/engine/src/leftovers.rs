//! The companion processes of earlier runs that still wait for the kernel.
//!
//! A syncfs that has not returned can hold the lock of a superblock, and a FIFREEZE would wait for it in
//! state D. The run that called it has left the filesystem out and is over, and its companion is all that
//! is left of it. A watchdog that still works is not looked for: it holds the lock of all runs.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{major, minor};
use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::mountinfo::MountEntry;
use vmsnapshot_core::text::bytes_text;

use crate::{scan, walk};

/// What `/proc/PID/exe` says of a companion. Its program runs from memory.
const PROGRAM: &str = "/memfd:vmsnapshot-watchdog (deleted)";

/// A call that has not returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leftover {
    /// The filesystem, or the block device, that it was called on.
    pub(crate) device: DeviceNumber,
    /// The call and its process, for people.
    pub(crate) call: String,
}

/// Returns the calls that companions on this machine have not come back from. `proc` is `/proc`, except
/// in tests.
///
/// A companion closes each filesystem as soon as its call has returned. So what it has open is what it
/// waits for.
///
/// *Blocking*: no. The filesystems are not asked.
pub(crate) fn leftovers(proc: &Path) -> Vec<Leftover> {
    let processes = fs::read_dir(proc).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for process in processes {
        let name = process.file_name();
        let pid = name.to_str().and_then(|name| name.parse::<u32>().ok());
        if let Some((pid, call)) = pid.zip(call_of(&process.path())) {
            let call = format!("{call} of an earlier run has not returned (process {pid})");
            let devices = devices_of(&process.path()).into_iter();
            found.extend(devices.map(|device| Leftover {
                device,
                call: call.clone(),
            }));
        }
    }
    found
}

/// Returns what a companion calls, or `None` if the process is none, or a watchdog.
fn call_of(process: &Path) -> Option<&'static str> {
    let call = match fs::read(process.join("comm")).ok()?.as_slice() {
        b"vmsnapshot-sync\n" => "a syncfs",
        b"vmsnapshot-scru\n" => "a question about a btrfs scrub",
        b"vmsnapshot-free\n" => "an open of its device",
        _ => return None,
    };
    // Any user can give a process this name and have a filesystem open.
    let is_ours = fs::read_link(process.join("exe")).ok()? == Path::new(PROGRAM);
    let status = bytes_text(&fs::read(process.join("status")).ok()?);
    let mut users = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))?
        .split_whitespace();
    (is_ours && users.all(|user| user == "0")).then_some(call)
}

/// Returns the filesystems and block devices that a process has open.
fn devices_of(process: &Path) -> Vec<DeviceNumber> {
    let mounts = scan::mounts_of(process).unwrap_or_default();
    let descriptors = fs::read_dir(process.join("fd"))
        .into_iter()
        .flatten()
        .flatten();
    descriptors
        .filter_map(|descriptor| {
            let mount_id = walk::mount_id_in(&process.join("fdinfo").join(descriptor.file_name()));
            let mount = mounts.iter().find(|mount| mount_id == Ok(mount.mount_id));
            device_of(&descriptor.path(), mount)
        })
        .collect()
}

fn device_of(descriptor: &Path, mount: Option<&MountEntry>) -> Option<DeviceNumber> {
    // The number of a mount is the one that a plan has. `st_dev` differs on btrfs.
    if let Some(mount) = mount.filter(|mount| mount.is_on_local_block_device()) {
        return Some(mount.device);
    }
    // A node of a device, or a directory below a cover or on a mount that was detached.
    let found = fs::metadata(descriptor).ok()?;
    let number = if found.file_type().is_block_device() {
        found.rdev()
    } else {
        found.dev()
    };
    Some(DeviceNumber {
        major: major(number),
        minor: minor(number),
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::scan::fake_machine::{FakeMachine, DATABASE};

    fn companion(machine: &FakeMachine, pid: u32, comm: &str, program: &str, user: u32) {
        let process = format!("proc/{pid}");
        machine.file(&format!("{process}/comm"), &format!("{comm}\n"));
        machine.link(&format!("{process}/exe"), program);
        let status =
            format!("Name:\t{comm}\nUid:\t{user}\t{user}\t{user}\t{user}\nGid:\t0\t0\t0\t0\n");
        machine.file(&format!("{process}/status"), &status);
        machine.file(&format!("{process}/mountinfo"), DATABASE);
        machine.file(
            &format!("{process}/fdinfo/5"),
            "pos:\t0\nflags:\t0\nmnt_id:\t10\n",
        );
        machine.link(&format!("{process}/fd/5"), "/db");
    }

    #[test]
    fn only_what_a_companion_of_root_has_open_is_waited_for() {
        let machine = FakeMachine::new();
        let proc = machine.roots().proc;
        companion(&machine, 20, "vmsnapshot-watc", PROGRAM, 0);
        companion(&machine, 21, "vmsnapshot-sync", "/usr/bin/sleep", 0);
        companion(&machine, 22, "vmsnapshot-sync", PROGRAM, 1000);
        companion(&machine, 23, "sleep", PROGRAM, 0);
        machine.file("proc/self", "");
        assert_eq!(leftovers(&proc), []);
        companion(&machine, 24, "vmsnapshot-sync", PROGRAM, 0);
        let found = leftovers(&proc);
        assert_eq!(found.len(), 1);
        let leftover = found.first().unwrap();
        assert_eq!(leftover.device, "8:17".parse().unwrap());
        assert!(leftover.call.contains("24"));
    }
}
