//! Writes out dirty data before the window, in a process of its own.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use vmsnapshot_core::frames::Frame;
use vmsnapshot_sys::channel::Channel;
use vmsnapshot_sys::kernel::Kernel;

use crate::introduction::{receive, receive_directories, unexpected};

/// Calls `syncfs` on each directory in a thread of its own, and sends the run each result.
///
/// This does not happen in the run's process. A syncfs can hang as long as the disk does, and no
/// process ends before its threads do.
///
/// # Errors
/// If the run does not send the directories.
pub fn sync(channel: &Arc<Channel>, kernel: &Arc<dyn Kernel>) -> io::Result<()> {
    let directories = match receive(channel)? {
        (Frame::Hello { directories, .. }, _) => receive_directories(channel, directories)?,
        _ => return Err(unexpected()),
    };
    let mut workers = Vec::new();
    for (index, directory) in (0_u32..).zip(directories) {
        let (channel, kernel) = (Arc::clone(channel), Arc::clone(kernel));
        workers.push(std::thread::spawn(move || {
            let errno = match kernel.sync(directory.as_fd()) {
                Ok(()) => 0,
                Err(errno) => errno.raw_os_error().unsigned_abs(),
            };
            // The run may have stopped waiting; nothing depends on this answer.
            let _ = channel.send_patiently(Frame::Synced { index, errno });
        }));
    }
    for worker in workers {
        // A worker that panicked has not answered, and the run's time limit covers that.
        let _ = worker.join();
    }
    Ok(())
}
