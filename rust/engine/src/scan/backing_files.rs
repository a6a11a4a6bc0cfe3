//! Asks loop devices which filesystems their files lie on.
//!
//! sysfs has only a path. It is the path that the file's opener knew, and the kernel shortens it when
//! a mount on the way is detached.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{access, fstat, major, minor, Access};
use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::machine::Machine;
use vmsnapshot_sys::clock;

use crate::block_device;
use crate::companion::ask::{ask, Answer};
use crate::companion::Role;
use crate::observer::Observer;
use crate::walk::{find, mount_id};

/// How long the answers may take. One takes about 10 µs. A device whose file lies on a dead
/// filesystem that was detached may never answer.
const LIMIT: Duration = Duration::from_secs(1);

/// Returns, for each loop device that answers, the number of the filesystem that its file lies on:
/// mountinfo's if it is known, otherwise the file's `st_dev`.
///
/// *Blocking*: some milliseconds if there is a device to ask, and a second at most. The process that
/// asks may wait on for a dead filesystem. If the observer gives up, no device has answered.
pub(super) fn filesystems(
    machine: &Machine,
    observer: &mut dyn Observer,
) -> BTreeMap<DeviceNumber, DeviceNumber> {
    let mut found = ask_all(machine, observer);
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

/// Asks all devices at the same time in a process of its own, which is started only if there is one
/// to ask. If it cannot be started, no device answers.
fn ask_all(machine: &Machine, observer: &mut dyn Observer) -> BTreeMap<DeviceNumber, DeviceNumber> {
    let (numbers, nodes): (Vec<DeviceNumber>, Vec<OwnedFd>) = machine
        .loops_to_ask()
        .into_iter()
        .filter_map(|device| {
            let path = Path::new(device.names.first()?);
            // The process for the question is not needed if it may not open the device.
            access(path, Access::READ_OK).ok()?;
            Some((device.number, block_device::node(path, device.number)?))
        })
        .unzip();
    let nodes: Vec<_> = nodes.iter().map(AsFd::as_fd).collect();
    let deadline = clock::monotonic().plus(LIMIT);
    let answers = ask(Role::Loop, &nodes, deadline, observer).unwrap_or_default();
    numbers
        .into_iter()
        .zip(answers)
        .filter_map(|(number, answer)| match answer {
            Answer::Yes(word) => Some((number, DeviceNumber::from_word(word))),
            Answer::No | Answer::Refused(_) | Answer::Late | Answer::Ended | Answer::Lost(_) => {
                None
            }
        })
        .collect()
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
