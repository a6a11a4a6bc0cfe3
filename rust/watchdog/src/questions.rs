//! Asks the kernel what it may never answer, in a process of its own.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::frames::Frame;
use vmsnapshot_sys::channel::Channel;
use vmsnapshot_sys::{block_device, btrfs, loop_device, Errno};

use crate::sync::call_for_each;

/// Asks each directory's btrfs for a scrub in a thread of its own, and sends the run each answer.
///
/// This does not happen in the run's process. A commit holds the lock that the question needs while
/// it writes the superblocks, so on a dead disk the question does not return.
///
/// # Errors
/// If the run does not send the directories.
pub fn look_for_scrubs(channel: &Arc<Channel>) -> io::Result<()> {
    call_for_each(channel, |index, directory| {
        answer(index, btrfs::is_scrubbing(directory.as_fd()).map(u32::from))
    })
}

/// Asks whether each block device is free, in a thread of its own, and sends the run each answer. The
/// run sends descriptors of nodes in place of directories.
///
/// This does not happen in the run's process, because an open of a dead disk may not return.
///
/// # Errors
/// If the run does not send the nodes.
pub fn look_for_free_devices(channel: &Arc<Channel>) -> io::Result<()> {
    call_for_each(channel, |index, node| Frame::Answer {
        index,
        value: block_device::is_free(node.as_fd()).into(),
    })
}

/// Asks which filesystem the file of each loop device lies on, in a thread of its own, and sends the
/// run each answer. The run sends descriptors of nodes in place of directories.
///
/// This does not happen in the run's process, because the kernel stats the file. If that lies on a
/// dead filesystem, it may not return.
///
/// # Errors
/// If the run does not send the nodes.
pub fn look_for_backing_files(channel: &Arc<Channel>) -> io::Result<()> {
    call_for_each(channel, |index, node| {
        answer(
            index,
            loop_device::file_lies_on(node.as_fd()).map(DeviceNumber::to_word),
        )
    })
}

fn answer(index: u32, answer: Result<u32, Errno>) -> Frame {
    match answer {
        Ok(value) => Frame::Answer { index, value },
        Err(errno) => Frame::Refused {
            index,
            errno: errno.raw_os_error().unsigned_abs(),
        },
    }
}
