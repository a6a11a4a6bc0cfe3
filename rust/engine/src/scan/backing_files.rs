//! Asks loop devices which filesystems their files lie on.
//!
//! sysfs has only a path. It is the path that the file's opener knew, and the kernel shortens it when
//! a mount on the way is detached.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::{fstat, major, minor, open, Mode, OFlags};
use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::machine::Machine;
use vmsnapshot_sys::loop_device;

use crate::walk::{find, mount_id};

/// How long all answers may take together. One takes about 10 µs. A device whose file lies on a dead
/// filesystem that was detached may never answer.
const LIMIT: Duration = Duration::from_secs(1);

/// Returns, for each loop device that answers, the number of the filesystem that its file lies on:
/// mountinfo's if it is known, otherwise the file's `st_dev`.
///
/// *Blocking*: a second at most. The thread that asks may wait on for a dead filesystem.
pub(super) fn filesystems(machine: &Machine) -> BTreeMap<DeviceNumber, DeviceNumber> {
    let mut found = ask(machine);
    // The kernel's number for a file on btrfs is that of its subvolume, which mountinfo does not
    // have. Nothing is looked at unless there is such a number.
    if found
        .values()
        .any(|number| number.major == 0 && !machine.is_mounted(*number))
    {
        let subvolumes = subvolumes(machine);
        for number in found.values_mut() {
            if let Some(superblock) = subvolumes.get(number) {
                *number = *superblock;
            }
        }
    }
    found
}

fn ask(machine: &Machine) -> BTreeMap<DeviceNumber, DeviceNumber> {
    let devices: Vec<(DeviceNumber, String)> = machine
        .loops_to_ask()
        .into_iter()
        .filter_map(|device| Some((device.number, device.names.first()?.clone())))
        .collect();
    if devices.is_empty() {
        return BTreeMap::new();
    }
    let (sender, receiver) = mpsc::channel();
    let asking = std::thread::Builder::new().spawn(move || {
        for (number, node) in devices {
            if let Some(on) = file_lies_on(number, &node) {
                // The receiver may have stopped waiting.
                let _ = sender.send((number, on));
            }
        }
    });
    let mut found = BTreeMap::new();
    let deadline = Instant::now() + LIMIT;
    if asking.is_ok() {
        while let Ok((number, on)) =
            receiver.recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            found.insert(number, on);
        }
    }
    found
}

/// Asks one loop device. Returns `None` if `node` is not its node, or if it does not answer.
///
/// The device is in use by a filesystem. So this open is not the first, which would read the
/// partition table, and this close is not the last, which would detach the file.
fn file_lies_on(number: DeviceNumber, node: &str) -> Option<DeviceNumber> {
    let metadata = fs::symlink_metadata(node).ok()?;
    let is_the_device =
        metadata.file_type().is_block_device() && device_number(metadata.rdev()) == number;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let device = is_the_device
        .then(|| open(node, flags, Mode::empty()).ok())
        .flatten()?;
    loop_device::file_lies_on(device.as_fd()).ok()
}

/// Returns mountinfo's number for the number of each mounted subvolume.
fn subvolumes(machine: &Machine) -> BTreeMap<DeviceNumber, DeviceNumber> {
    let Some(own) = machine.namespaces.first() else {
        return BTreeMap::new();
    };
    machine
        .subvolumes()
        .into_iter()
        .filter_map(|mount| {
            let may_pass = |id, is_root| own.may_look_up_in(id, is_root);
            let place = find(&mount.mount_point, may_pass).ok()?;
            // The path may lead elsewhere by now, where a stat could wait.
            let is_it = mount_id(Path::new("/proc"), place.as_fd()) == Ok(mount.mount_id);
            let stat = is_it.then(|| fstat(&place).ok()).flatten()?;
            Some((device_number(stat.st_dev), mount.device))
        })
        .collect()
}

fn device_number(number: u64) -> DeviceNumber {
    DeviceNumber {
        major: major(number),
        minor: minor(number),
    }
}
