//! FIFREEZE, FITHAW and syncfs.
//!
//! The trait exists for faults that the real kernel will not produce on request (EIO on the third
//! thaw, a panic in the middle). What is tested with such a kernel is tested on real filesystems
//! too.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::ioctl::{ioctl, opcode, Setter};

/// The calls on a filesystem. Each takes a descriptor of any file or directory on it.
pub trait Kernel: Send + Sync {
    /// Freezes the filesystem of `directory`.
    ///
    /// *Blocking*: until running writers have finished and dirty data is written. The thread is in
    /// state D, so no signal ends the call. *Errors*: EBUSY if another program has frozen the
    /// filesystem, EOPNOTSUPP if its type cannot be frozen, EPERM without CAP_SYS_ADMIN.
    fn freeze(&self, directory: BorrowedFd<'_>) -> Result<(), Errno>;

    /// Thaws the filesystem of `directory`, no matter which program froze it.
    ///
    /// *Blocking*: while the superblock is written. If a FIFREEZE is flushing, the thread waits for
    /// it in state D. *Errors*: EINVAL if the filesystem is not frozen, or if a FIFREEZE is still
    /// waiting for a running writer.
    fn thaw(&self, directory: BorrowedFd<'_>) -> Result<(), Errno>;

    /// Writes out the dirty data of the filesystem of `directory`.
    ///
    /// *Blocking*: as long as the disk takes. On a dead disk the thread stays in state D.
    fn sync(&self, directory: BorrowedFd<'_>) -> Result<(), Errno>;

    /// Ends a scrub of the filesystem of `directory`, for which a FIFREEZE may be waiting.
    ///
    /// *Blocking*: until the scrub has stopped, some milliseconds. *Errors*: ENOTCONN if there is
    /// none, ENOTTY if the filesystem is not btrfs.
    fn cancel_scrub(&self, directory: BorrowedFd<'_>) -> Result<(), Errno> {
        crate::btrfs::cancel_scrub(directory)
    }
}

/// The kernel that this process runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linux;

// linux/fs.h: _IOWR('X', 119, int) and _IOWR('X', 120, int). The kernel ignores the argument
// (fs/ioctl.c, ioctl_fsfreeze and ioctl_fsthaw).
const FIFREEZE: rustix::ioctl::Opcode = opcode::read_write::<libc::c_int>(b'X', 119);
const FITHAW: rustix::ioctl::Opcode = opcode::read_write::<libc::c_int>(b'X', 120);

impl Kernel for Linux {
    fn freeze(&self, directory: BorrowedFd<'_>) -> Result<(), Errno> {
        // SAFETY: the kernel follows no pointer of FIFREEZE. The argument points to a live integer
        // of the size that the opcode states.
        unsafe { ioctl(directory, Setter::<FIFREEZE, libc::c_int>::new(0)) }
    }

    fn thaw(&self, directory: BorrowedFd<'_>) -> Result<(), Errno> {
        // SAFETY: as for FIFREEZE.
        unsafe { ioctl(directory, Setter::<FITHAW, libc::c_int>::new(0)) }
    }

    fn sync(&self, directory: BorrowedFd<'_>) -> Result<(), Errno> {
        rustix::fs::syncfs(directory)
    }
}
