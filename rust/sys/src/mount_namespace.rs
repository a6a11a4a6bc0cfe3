//! A mount namespace for one thread.

use rustix::thread::{unshare_unsafe, UnshareFlags};

use crate::Errno;

/// Gives the calling thread a mount namespace of its own, a copy of the one that it had. It ends with
/// the thread. Other threads keep theirs, and the descriptors of all.
///
/// Mounts of the copy still propagate to the original until they are made private.
///
/// # Errors
///
/// `EPERM` without CAP_SYS_ADMIN, `ENOSPC` at a limit on namespaces or mounts.
pub fn unshare() -> Result<(), Errno> {
    // SAFETY: the flag leaves the table of descriptors shared between the threads. The kernel also
    // unshares root and working directory, which no memory depends on.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
}
