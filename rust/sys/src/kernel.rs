//! FIFREEZE, FITHAW and syncfs.
//!
//! The trait is there for faults that the real kernel will not produce on request (EIO on the third
//! thaw, a panic in the middle); what is tested with it is tested on real filesystems as well.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::ioctl::{ioctl, opcode, Setter};

/// What can be done to a filesystem, by any descriptor of a file or directory on it.
pub trait Kernel: Send + Sync {
    /// Freezes the filesystem of `directory`.
    ///
    /// *Blocking*: until running writers are done and dirty data is written; state D, no signal
    /// ends it. *Errors*: EBUSY: frozen already, by somebody else; EOPNOTSUPP: the type cannot be
    /// frozen; EPERM: no CAP_SYS_ADMIN.
    fn freeze(&self, directory: BorrowedFd<'_>) -> Result<(), Errno>;

    /// Thaws the filesystem of `directory`, whoever froze it.
    ///
    /// *Blocking*: writes the superblock, and waits in state D for a FIFREEZE that is flushing.
    /// *Errors*: EINVAL: not frozen, or a FIFREEZE is still waiting for a running writer.
    fn thaw(&self, directory: BorrowedFd<'_>) -> Result<(), Errno>;

    /// Writes out what is dirty on the filesystem of `directory`.
    ///
    /// *Blocking*: as long as the disk takes; state D on a dead one.
    fn sync(&self, directory: BorrowedFd<'_>) -> Result<(), Errno>;
}

/// The kernel that runs us.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linux;

// linux/fs.h: _IOWR('X', 119, int) and _IOWR('X', 120, int). The argument is not looked at
// (fs/ioctl.c, ioctl_fsfreeze and ioctl_fsthaw).
const FIFREEZE: rustix::ioctl::Opcode = opcode::read_write::<libc::c_int>(b'X', 119);
const FITHAW: rustix::ioctl::Opcode = opcode::read_write::<libc::c_int>(b'X', 120);

impl Kernel for Linux {
    fn freeze(&self, directory: BorrowedFd<'_>) -> Result<(), Errno> {
        // SAFETY: FIFREEZE takes no pointer that the kernel follows; the argument it is given
        // points to a live integer of the size that the opcode states.
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
