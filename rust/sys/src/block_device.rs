//! Opens a block device as a filesystem does, and counts what is written to one.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{open, Mode, OFlags};
use rustix::io::pread;

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

/// The count of what was written to a disk or a partition: its `stat` in sysfs, open.
#[derive(Debug)]
pub struct WriteCount(OwnedFd);

impl WriteCount {
    /// Takes the open file. Reads it once, so that the kernel has its buffer from now on.
    #[must_use]
    pub fn new(stat: OwnedFd) -> Option<WriteCount> {
        let count = WriteCount(stat);
        count.sectors().is_some().then_some(count)
    }

    /// Returns how many sectors have been written. It allocates nothing.
    ///
    /// *Blocking*: never.
    #[must_use]
    pub fn sectors(&self) -> Option<u64> {
        let mut text = [0; 512];
        let length = pread(&self.0, &mut text, 0).ok()?;
        // Documentation/block/stat.rst: the seventh number is "write sectors".
        std::str::from_utf8(text.get(..length)?)
            .ok()?
            .split_ascii_whitespace()
            .nth(6)?
            .parse()
            .ok()
    }
}
