//! Opens a block device as a filesystem does.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{open, Mode, OFlags};

use crate::Errno;

/// Returns whether no filesystem uses the block device of `node`, a descriptor made with `O_PATH`.
///
/// *Blocking*: while the kernel reads a partition table of the device or writes out its pages, in
/// state D. On a dead disk that has no end.
#[must_use]
pub fn is_free(node: BorrowedFd<'_>) -> bool {
    let path = format!("/proc/self/fd/{}", node.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK;
    // ENXIO is a loop device without a file, ENOMEDIUM a drive without a disk.
    matches!(
        open(path, flags, Mode::empty()),
        Ok(_) | Err(Errno::NXIO | Errno::NOMEDIUM)
    )
}
