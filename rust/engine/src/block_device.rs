//! Whether a filesystem uses a block device.

use std::ffi::OsStr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::{fs, io};

use rustix::fs::{major, minor, open, Mode, OFlags};
use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_sys::Errno;

/// Returns whether it is certain that no filesystem uses a block device, because the device does
/// not exist or can be opened exclusively. A filesystem that was unmounted while frozen keeps its
/// device (EBUSY).
///
/// It is never certain if the number is not that of a block device (btrfs).
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
    let is_named_so = fs::symlink_metadata(&path).is_ok_and(|node| {
        let number = (major(node.rdev()), minor(node.rdev()));
        node.file_type().is_block_device() && number == (device.major, device.minor)
    });
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK;
    // ENXIO is a loop device without a file, ENOMEDIUM a drive without a disk.
    is_named_so
        && matches!(
            open(&path, flags, Mode::empty()),
            Ok(_) | Err(Errno::NXIO | Errno::NOMEDIUM)
        )
}
