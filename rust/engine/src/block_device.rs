//! Whether a filesystem uses a block device.

use std::ffi::OsStr;
use std::os::fd::AsFd;
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
    // Such a descriptor is made without the device's help.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(node) = open(&path, flags, Mode::empty()) else {
        return false;
    };
    let is_named_so = fstat(&node).is_ok_and(|node| {
        let number = (major(node.st_rdev), minor(node.st_rdev));
        FileType::from_raw_mode(node.st_mode) == FileType::BlockDevice
            && number == (device.major, device.minor)
    });
    let deadline = clock::monotonic().plus(LIMIT);
    is_named_so
        && ask(Role::Free, &[node.as_fd()], deadline, &mut Silent)
            .is_ok_and(|answers| answers == [Answer::Yes])
}
