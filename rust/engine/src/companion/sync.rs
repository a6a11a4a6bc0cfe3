//! Writes out dirty data before the window, with a limit on the time that it may take.

use std::io;
use std::os::fd::BorrowedFd;

use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::frames::Frame;
use vmsnapshot_sys::Errno;

use super::replies::{receive, Interrupted, Reply};
use super::Role;
use crate::error::PrepareError;
use crate::observer::Observer;

/// The result of a `syncfs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Synced {
    /// All data that was dirty is on the disk.
    Done,
    /// It has not returned in time.
    Late,
    /// It failed, with this error number.
    Failed(u32),
    /// The process that called it has ended, and with it every `syncfs` that was under way.
    Ended,
    /// What that process sent could not be received. The `syncfs` may still be under way.
    Lost(Errno),
}

/// Calls `syncfs` on every directory, in parallel, in a process of its own. Returns the results
/// once all calls have returned, at `deadline` at the latest.
///
/// On a slow disk, a FIFREEZE with 64 MiB of dirty data takes seconds. Right after a sync it takes
/// almost no time. A call that has not returned by the deadline stays behind in the process that
/// made it. If it hung in our own process, that process could never end.
///
/// # Errors
/// [`PrepareError::Interrupted`], or [`PrepareError::Resources`] if the process cannot be started.
pub(crate) fn sync(
    directories: &[BorrowedFd<'_>],
    deadline: Monotonic,
    observer: &mut dyn Observer,
) -> Result<Vec<Synced>, PrepareError> {
    let failed = |cause: io::Error| PrepareError::Resources {
        step: "start the process that writes out dirty data",
        cause,
    };
    let channel = super::start_for(Role::Sync, directories).map_err(failed)?;
    let result = |frame| match frame {
        Frame::Synced { index, errno: 0 } => Some((index, Synced::Done)),
        Frame::Synced { index, errno } => Some((index, Synced::Failed(errno))),
        _ => None,
    };
    let replies = receive(&channel, directories.len(), deadline, observer, result)
        .map_err(|Interrupted| PrepareError::Interrupted)?;
    let synced = replies.into_iter().map(|reply| match reply {
        Reply::Returned(synced) => synced,
        Reply::Late => Synced::Late,
        Reply::Ended => Synced::Ended,
        Reply::Lost(errno) => Synced::Lost(errno),
    });
    Ok(synced.collect())
}
