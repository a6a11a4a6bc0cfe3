//! Writing out dirty data before the window, for as long as we are willing to wait.

use std::io;
use std::os::fd::BorrowedFd;

use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::frames::Frame;
use vmsnapshot_sys::channel::Received;
use vmsnapshot_sys::{clock, Errno};

use super::Role;
use crate::error::PrepareError;
use crate::observer::{Observer, INTERRUPTION_TICK};

/// What became of a `syncfs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Synced {
    /// Everything that was dirty is on the disk.
    Done,
    /// It had not returned in time.
    Late,
    /// It failed, with this error number.
    Failed(u32),
}

/// Calls `syncfs` on every directory, in parallel, in a process of its own, and says of each
/// what had become of it by `deadline`.
///
/// A FIFREEZE of 64 MiB dirty data takes seconds on a slow disk, straight after a sync almost
/// nothing. What is not done in time is left behind with the process that does it: a syncfs that
/// hangs in our own process would keep this one from ever ending.
///
/// # Errors
/// [`PrepareError::Interrupted`], and what keeps the process from being started.
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
    let count = u32::try_from(directories.len()).map_err(|_| failed(Errno::TOOBIG.into()))?;
    let channel = super::start(Role::Sync).map_err(failed)?;
    let hello = Frame::Hello {
        directories: count,
        has_pidfd: false,
        has_rcu: false,
    };
    channel
        .send(hello, &[])
        .and_then(|()| channel.send_directories(directories))
        .map_err(|errno| failed(errno.into()))?;
    let mut answers = 0;
    while answers < count && clock::monotonic() < deadline {
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
            // The process is gone: what it has not said is not known to be synced.
            Ok(_) | Err(_) => break,
        }
    }
    Ok(synced)
}
