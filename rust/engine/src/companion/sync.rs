//! Writes out dirty data before the window, with a limit on the time that it may take.

use std::io;
use std::os::fd::BorrowedFd;

use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::frames::Frame;
use vmsnapshot_sys::channel::Received;
use vmsnapshot_sys::{clock, Errno};

use super::Role;
use crate::error::PrepareError;
use crate::observer::{Observer, INTERRUPTION_TICK};

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
    Unknown,
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
    let mut synced = vec![Synced::Late; directories.len()];
    let failed = |cause: io::Error| PrepareError::Resources {
        step: "start the process that writes out dirty data",
        cause,
    };
    let channel = super::start_for(Role::Sync, directories).map_err(failed)?;
    let mut answers = 0;
    while answers < directories.len() && clock::monotonic() < deadline {
        let tick = clock::monotonic().plus(INTERRUPTION_TICK).min(deadline);
        match channel.receive(tick) {
            Ok(Received::Frame(Frame::Synced { index, errno }, _)) => {
                answers += 1;
                let place = usize::try_from(index).ok();
                if let Some(place) = place.and_then(|index| synced.get_mut(index)) {
                    *place = match errno {
                        0 => Synced::Done,
                        errno => Synced::Failed(errno),
                    };
                }
            }
            Err(Errno::TIMEDOUT) if observer.is_interrupted() => {
                return Err(PrepareError::Interrupted)
            }
            Err(Errno::TIMEDOUT) => {}
            // The last thread is gone, so no `syncfs` holds the lock of a superblock any more.
            Ok(Received::Closed) => {
                for late in synced.iter_mut().filter(|synced| **synced == Synced::Late) {
                    *late = Synced::Unknown;
                }
                break;
            }
            // Directories without an answer are not known to be synced.
            Ok(Received::Frame(..)) | Err(_) => break,
        }
    }
    Ok(synced)
}
