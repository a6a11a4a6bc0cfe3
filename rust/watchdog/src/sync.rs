//! Writes out dirty data before the window, in a process of its own.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
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
    let kernel = Arc::clone(kernel);
    call_for_each(channel, move |index, directory| {
        let errno = match kernel.sync(directory.as_fd()) {
            Ok(()) => 0,
            Err(errno) => errno.raw_os_error().unsigned_abs(),
        };
        Frame::Synced { index, errno }
    })
}

/// Makes a call for each directory that the run sends, in a thread of its own, and sends the run the
/// frame of each call that has returned.
///
/// # Errors
/// If the run does not send the directories.
pub(crate) fn call_for_each(
    channel: &Arc<Channel>,
    call: impl Fn(u32, OwnedFd) -> Frame + Clone + Send + 'static,
) -> io::Result<()> {
    let directories = match receive(channel)? {
        (Frame::Hello { directories, .. }, _) => receive_directories(channel, directories)?,
        _ => return Err(unexpected()),
    };
    let mut workers = Vec::new();
    for (index, directory) in (0_u32..).zip(directories) {
        let (channel, call) = (Arc::clone(channel), call.clone());
        workers.push(std::thread::spawn(move || {
            // The run may have stopped waiting; nothing depends on this answer.
            let _ = channel.send_patiently(call(index, directory));
        }));
    }
    for worker in workers {
        // A worker that panicked has not answered, and the run's time limit covers that.
        let _ = worker.join();
    }
    Ok(())
}
