//! The companion processes of earlier runs that still wait for the kernel.
//!
//! A syncfs that has not returned can hold the lock of a superblock, and a FIFREEZE would wait for it in
//! state D. The run that called it has left the filesystem out and is over, and its companion is all that
//! is left of it. A watchdog that still works is not looked for: it holds the lock of all runs.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{major, minor, stat, statx, AtFlags, FileType, StatxFlags, CWD};
use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::mountinfo::MountEntry;
use vmsnapshot_core::text::bytes_text;
use vmsnapshot_sys::Errno;

use crate::{scan, walk};

/// What `/proc/PID/exe` says of a companion. Its program runs from memory.
const PROGRAM: &str = "/memfd:vmsnapshot-watchdog (deleted)";

/// The file of a process whose text names its user namespace.
const USER_NAMESPACE: &str = "ns/user";
/// The bit of CAP_SYS_ADMIN in the capabilities of a process.
const SYS_ADMIN: u64 = 1 << 21;

/// What a companion has open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Open {
    /// A filesystem, by the number that a plan has.
    Filesystem(DeviceNumber),
    /// The node of a block device.
    BlockDevice(DeviceNumber),
    /// A filesystem that spans devices, in another mount namespace or on a mount that was detached. The
    /// number of its files is not the one that a plan has, so it may be any.
    SpansDevices,
}

/// A call that has not returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leftover {
    /// What it was called on.
    pub(crate) open: Open,
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
    // A kernel without user namespaces has no such link.
    let own = fs::read_link(proc.join("self").join(USER_NAMESPACE)).ok();
    for process in processes {
        let name = process.file_name();
        let pid = name.to_str().and_then(|name| name.parse::<u32>().ok());
        if let Some((pid, call)) = pid.zip(call_of(&process.path(), own.as_deref())) {
            let call = format!("{call} of an earlier run has not returned (process {pid})");
            let opens = opens_of(&process.path()).into_iter();
            found.extend(opens.map(|open| Leftover {
                open,
                call: call.clone(),
            }));
        }
    }
    found
}

/// Returns what a companion calls, or `None` if the process is none, or a watchdog. `own` is our user
/// namespace, if the kernel has such.
fn call_of(process: &Path, own: Option<&Path>) -> Option<&'static str> {
    let call = match fs::read(process.join("comm")).ok()?.as_slice() {
        b"vmsnapshot-sync\n" => "a syncfs",
        b"vmsnapshot-scru\n" => "a question about a btrfs scrub",
        b"vmsnapshot-free\n" => "an open of its device",
        _ => return None,
    };
    // Any user can give a process this name and this program, and have a filesystem open. So can root
    // of a container, which is root of the machine only by its number.
    let is_ours = fs::read_link(process.join("exe")).ok()? == Path::new(PROGRAM)
        && fs::read_link(process.join(USER_NAMESPACE)).ok().as_deref() == own;
    let status = bytes_text(&fs::read(process.join("status")).ok()?);
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let mut users = field("Uid:")?.split_whitespace();
    let capabilities = u64::from_str_radix(field("CapEff:")?.trim(), 16).ok()?;
    let is_root = users.all(|user| user == "0") && capabilities & SYS_ADMIN != 0;
    (is_ours && is_root).then_some(call)
}

/// Returns the filesystems and block devices that a process has open.
fn opens_of(process: &Path) -> Vec<Open> {
    let mounts = scan::mounts_of(process, scan::Limits::PLAN.ours).unwrap_or_default();
    let descriptors = fs::read_dir(process.join("fd"))
        .into_iter()
        .flatten()
        .flatten();
    descriptors
        .filter_map(|descriptor| {
            let mount_id = walk::mount_id_in(&process.join("fdinfo").join(descriptor.file_name()));
            let mount = mounts.iter().find(|mount| mount_id == Ok(mount.mount_id));
            open_of(&descriptor.path(), mount)
        })
        .collect()
}

fn open_of(descriptor: &Path, mount: Option<&MountEntry>) -> Option<Open> {
    match mount {
        // The number of a mount is the one that a plan has. `st_dev` differs on btrfs.
        Some(mount) if mount.is_on_local_block_device() => {
            return Some(Open::Filesystem(mount.device));
        }
        // Its server may never answer, and no companion has it open.
        Some(mount) if !mount.is_answered_by_the_kernel() => return None,
        Some(_) | None => {}
    }
    let found = look_at(descriptor)?;
    if found.file_type == FileType::BlockDevice {
        return Some(Open::BlockDevice(found.node_of));
    }
    // A directory or file on a mount that the process does not see. Its pipes are neither, and its
    // program has no place in any directory.
    let is_program = || {
        let link = fs::read_link(descriptor);
        link.is_ok_and(|link| link.as_os_str().as_bytes().starts_with(b"/memfd:"))
    };
    let is_on_filesystem = match found.file_type {
        FileType::Directory => true,
        FileType::RegularFile => !is_program(),
        _ => false,
    };
    (mount.is_none() && is_on_filesystem).then_some(match found.on.major {
        0 => Open::SpansDevices,
        _ => Open::Filesystem(found.on),
    })
}

/// What a descriptor leads to.
struct Found {
    file_type: FileType,
    on: DeviceNumber,
    /// Which device it is, if it is the node of one.
    node_of: DeviceNumber,
}

/// Looks at a descriptor of a process, without asking a server.
fn look_at(descriptor: &Path) -> Option<Found> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let number = |major, minor| DeviceNumber { major, minor };
    match statx(CWD, descriptor, flags, StatxFlags::TYPE) {
        Ok(found) => Some(Found {
            file_type: FileType::from_raw_mode(found.stx_mode.into()),
            on: number(found.stx_dev_major, found.stx_dev_minor),
            node_of: number(found.stx_rdev_major, found.stx_rdev_minor),
        }),
        // Before Linux 4.11.
        Err(Errno::NOSYS) => {
            let found = stat(descriptor).ok()?;
            Some(Found {
                file_type: FileType::from_raw_mode(found.st_mode),
                on: number(major(found.st_dev), minor(found.st_dev)),
                node_of: number(major(found.st_rdev), minor(found.st_rdev)),
            })
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::scan::fake_machine::{FakeMachine, DATABASE};

    /// All capabilities, and those of root in a container of a container engine.
    const ALL: &str = "000001ffffffffff";
    const CONTAINER: &str = "00000000a80425fb";
    const OWN: &str = "user:[4026531837]";

    fn companion(machine: &FakeMachine, pid: u32, comm: &str, program: &str, user: u32) {
        companion_with(machine, pid, comm, program, user, OWN, Some(ALL));
    }

    fn companion_with(
        machine: &FakeMachine,
        pid: u32,
        comm: &str,
        program: &str,
        user: u32,
        namespace: &str,
        capabilities: Option<&str>,
    ) {
        let process = format!("proc/{pid}");
        machine.file(&format!("{process}/comm"), &format!("{comm}\n"));
        machine.link(&format!("{process}/exe"), program);
        machine.link(&format!("{process}/ns/user"), namespace);
        let mut status =
            format!("Name:\t{comm}\nUid:\t{user}\t{user}\t{user}\t{user}\nGid:\t0\t0\t0\t0\n");
        if let Some(capabilities) = capabilities {
            status += &format!("CapPrm:\t{ALL}\nCapEff:\t{capabilities}\nCapBnd:\t{ALL}\n");
        }
        machine.file(&format!("{process}/status"), &status);
        machine.file(&format!("{process}/mountinfo"), DATABASE);
        descriptor(machine, pid, 5, 10, "/db");
    }

    fn descriptor(machine: &FakeMachine, pid: u32, number: u32, mount_id: u32, path: &str) {
        machine.file(
            &format!("proc/{pid}/fdinfo/{number}"),
            &format!("pos:\t0\nflags:\t0\nmnt_id:\t{mount_id}\n"),
        );
        machine.link(&format!("proc/{pid}/fd/{number}"), path);
    }

    #[test]
    fn only_what_a_companion_of_root_has_open_is_waited_for() {
        let machine = FakeMachine::new();
        let proc = machine.roots().proc;
        companion(&machine, 20, "vmsnapshot-watc", PROGRAM, 0);
        companion(&machine, 21, "vmsnapshot-sync", "/usr/bin/sleep", 0);
        companion(&machine, 22, "vmsnapshot-sync", PROGRAM, 1000);
        companion(&machine, 23, "sleep", PROGRAM, 0);
        // Root of a container, with and without a user namespace of its own.
        let sync = |pid, namespace, capabilities| {
            companion_with(
                &machine,
                pid,
                "vmsnapshot-sync",
                PROGRAM,
                0,
                namespace,
                capabilities,
            );
        };
        sync(25, OWN, Some(CONTAINER));
        sync(26, OWN, None);
        sync(27, "user:[4026532000]", Some(ALL));
        companion(&machine, 24, "vmsnapshot-sync", PROGRAM, 0);
        // Our own user namespace is not known.
        assert_eq!(leftovers(&proc), []);
        machine.link("proc/self/ns/user", OWN);
        let found = leftovers(&proc);
        assert_eq!(found.len(), 1);
        let leftover = found.first().unwrap();
        assert_eq!(leftover.open, Open::Filesystem("8:17".parse().unwrap()));
        assert!(leftover.call.contains("24"));
    }

    #[test]
    fn descriptor_that_a_server_answers_for_is_none_and_a_number_of_no_mount_is_unknown() {
        let machine = FakeMachine::new();
        machine.link("proc/self/ns/user", OWN);
        companion(&machine, 20, "vmsnapshot-sync", PROGRAM, 0);
        let fuse = "11 9 0:70 / /f rw - fuse.sshfs f rw\n12 9 0:71 / /t rw - tmpfs t rw\n";
        machine.file("proc/20/mountinfo", &format!("{DATABASE}{fuse}"));
        // `/proc` has a number without a device. It stands for a btrfs.
        descriptor(&machine, 20, 6, 11, "/proc");
        descriptor(&machine, 20, 7, 12, "/proc");
        descriptor(&machine, 20, 8, 99, "/dev/null");
        let opens = || -> Vec<_> {
            let found = leftovers(&machine.roots().proc).into_iter();
            found.map(|leftover| leftover.open).collect()
        };
        let database = Open::Filesystem("8:17".parse().unwrap());
        assert_eq!(opens(), [database]);
        descriptor(&machine, 20, 9, 99, "/proc");
        let found = opens();
        assert_eq!(found.len(), 2);
        assert!(found.contains(&database) && found.contains(&Open::SpansDevices));
    }
}
