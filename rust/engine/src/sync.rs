//! Writing out dirty data before the window, for as long as we are willing to wait.

use std::os::fd::BorrowedFd;

use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::frames::Frame;
use vmsnapshot_sys::channel::Received;

use crate::companion;

/// Calls `syncfs` on every directory, in parallel, in a process of its own, and says of each
/// whether it was done by `deadline`.
///
/// A FIFREEZE of 64 MiB dirty data takes seconds on a slow disk, straight after a sync almost
/// nothing. What is not done in time is left behind with the process that does it: a syncfs that
/// hangs in our own process would keep this one from ever ending.
pub(crate) fn sync(directories: &[BorrowedFd<'_>], deadline: Monotonic) -> Vec<bool> {
    let mut synced = vec![false; directories.len()];
    let Ok(count) = u32::try_from(directories.len()) else {
        return synced;
    };
    let Ok(channel) = companion::start("sync") else {
        return synced;
    };
    let hello = Frame::Hello {
        directories: count,
        has_pidfd: false,
        has_rcu: false,
    };
    if channel.send(hello, &[]).is_err()
        || companion::send_directories(&channel, directories).is_err()
    {
        return synced;
    }
    for _ in 0..count {
        let Ok(Received::Frame(Frame::Synced { index, errno }, _)) = channel.receive(deadline)
        else {
            break;
        };
        let place = usize::try_from(index).ok();
        if let Some(place) = place.and_then(|index| synced.get_mut(index)) {
            *place = errno == 0;
        }
    }
    synced
}
