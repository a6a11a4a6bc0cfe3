//! Asks btrfs whether a scrub is under way, in a process of its own.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use vmsnapshot_core::frames::Frame;
use vmsnapshot_sys::btrfs;
use vmsnapshot_sys::channel::Channel;

use crate::sync::call_for_each;

/// Asks each directory's btrfs in a thread of its own, and sends the run each answer.
///
/// This does not happen in the run's process. A commit holds the lock that the question needs while
/// it writes the superblocks, so on a dead disk the question does not return.
///
/// # Errors
/// If the run does not send the directories.
pub fn look_for_scrubs(channel: &Arc<Channel>) -> io::Result<()> {
    call_for_each(channel, |index, directory| Frame::Answer {
        index,
        is_yes: btrfs::is_scrubbing(directory.as_fd()),
    })
}
