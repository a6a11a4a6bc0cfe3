//! The nodes of block devices, and whether a filesystem uses a device.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use rustix::fs::{fstat, major, minor, open, FileType, Mode, OFlags};
use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_sys::clock;

use crate::companion::ask::{ask, Answer};
use crate::companion::Role;
use crate::observer::Silent;

/// How long the open of a device may take.
const LIMIT: Duration = Duration::from_secs(1);

/// Returns whether it is certain that no filesystem uses a block device, because the device does
/// not exist or can be opened exclusively. A filesystem that was unmounted while frozen keeps its
/// device (EBUSY).
///
/// It is never certain if the number is not that of a block device (btrfs), or if the device does not
/// answer. A process of its own opens it.
///
/// *Blocking*: some milliseconds, a second if the device does not answer.
pub(crate) fn is_free(device: DeviceNumber) -> bool {
    if device.major == 0 {
        return false;
    }
    let name = match fs::read_link(format!("/sys/dev/block/{device}")) {
        Ok(link) => link.file_name().map(OsStr::to_owned),
        Err(error) => return error.kind() == io::ErrorKind::NotFound,
    };
    let Some(path) = name.map(|name| Path::new("/dev").join(name)) else {
        return false;
    };
    let Some(node) = node(&path, device) else {
        return false;
    };
    let deadline = clock::monotonic().plus(LIMIT);
    ask(Role::Free, &[node.as_fd()], deadline, &mut Silent)
        .is_ok_and(|answers| matches!(answers[..], [Answer::Yes(_)]))
}

/// Opens the node of a block device with `O_PATH`, which the device does not notice. Returns `None`
/// if `path` is not its node.
pub(crate) fn node(path: &Path, device: DeviceNumber) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = open(path, flags, Mode::empty()).ok()?;
    let found = fstat(&node).ok()?;
    let number = (major(found.st_rdev), minor(found.st_rdev));
    (FileType::from_raw_mode(found.st_mode) == FileType::BlockDevice
        && number == (device.major, device.minor))
        .then_some(node)
}
