//! The nodes of block devices, and whether a filesystem uses a device.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use rustix::fs::{fstat, major, minor, open, stat, FileType, Mode, OFlags};
use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_sys::clock;

use crate::companion::ask::{ask, Answer};
use crate::companion::Role;
use crate::observer::Silent;

/// How long the open of a device may take.
const LIMIT: Duration = Duration::from_secs(1);

/// Whether a filesystem uses a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// It is certain that none does: the device does not exist or could be opened exclusively. A
    /// filesystem that was unmounted while frozen keeps its device (EBUSY).
    Free,
    /// One may use it.
    MayBeUsed,
    /// The device has not answered in time. The process that opens it may wait on.
    Silent,
}

/// Returns whether a filesystem uses a block device. A process of its own opens it.
///
/// *Blocking*: some milliseconds, a second if the device does not answer.
pub(crate) fn use_of(device: DeviceNumber) -> Use {
    // The number of a btrfs is not that of a block device.
    if device.major == 0 {
        return Use::MayBeUsed;
    }
    let name = match fs::read_link(format!("/sys/dev/block/{device}")) {
        Ok(link) => link.file_name().map(OsStr::to_owned),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Use::Free,
        Err(_) => return Use::MayBeUsed,
    };
    let Some(node) = name.and_then(|name| node(&Path::new("/dev").join(name), device)) else {
        return Use::MayBeUsed;
    };
    let deadline = clock::monotonic().plus(LIMIT);
    let answers = ask(Role::Free, &[node.as_fd()], deadline, &mut Silent).unwrap_or_default();
    match answers.first() {
        Some(Answer::Yes(_)) => Use::Free,
        Some(Answer::Late | Answer::Lost(_)) => Use::Silent,
        Some(Answer::No | Answer::Refused(_) | Answer::Ended) | None => Use::MayBeUsed,
    }
}

/// Returns the block device that the source of a mount names, if it names one in `/dev`.
///
/// Only root can make links there. Any other path may lead to whatever a local user wants.
pub(crate) fn of_source(source: &str) -> Option<DeviceNumber> {
    if !source.starts_with("/dev/") || source.contains("/../") {
        return None;
    }
    let found = stat(source).ok()?;
    Some(DeviceNumber {
        major: major(found.st_rdev),
        minor: minor(found.st_rdev),
    })
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
