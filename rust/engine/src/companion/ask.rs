//! Asks the kernel about filesystems before the window, with a limit on the time that it may take.

use std::io;
use std::os::fd::BorrowedFd;

use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::frames::Frame;
use vmsnapshot_sys::Errno;

use super::replies::{receive, Interrupted, Reply};
use super::Role;
use crate::observer::Observer;

/// What is known after a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Yes, with a value that is not 0.
    Yes(u32),
    /// No.
    No,
    /// The kernel refused to answer, with this error number.
    Refused(u32),
    /// It has not answered in time.
    Late,
    /// The process that asked has ended without an answer. It does not wait for the kernel any more.
    Ended,
    /// What that process sent could not be received. It may still wait.
    Lost(Errno),
}

/// Why there are no answers.
#[derive(Debug)]
pub(crate) enum NotAsked {
    /// The caller has interrupted the run.
    Interrupted,
    /// The process could not be started.
    Start(io::Error),
}

/// Asks the question of `role` about every directory, in parallel, in a process of its own. Returns
/// the answers once all are there, at `deadline` at the latest.
///
/// A question that has no answer by the deadline stays behind in the process that asked it. If it
/// hung in our own process, that process could never end.
///
/// # Errors
/// [`NotAsked`].
pub(crate) fn ask(
    role: Role,
    directories: &[BorrowedFd<'_>],
    deadline: Monotonic,
    observer: &mut dyn Observer,
) -> Result<Vec<Answer>, NotAsked> {
    if directories.is_empty() {
        return Ok(Vec::new());
    }
    let channel = super::start_for(role, directories).map_err(NotAsked::Start)?;
    let answer = |frame| match frame {
        Frame::Answer { index, value: 0 } => Some((index, Answer::No)),
        Frame::Answer { index, value } => Some((index, Answer::Yes(value))),
        Frame::Refused { index, errno } => Some((index, Answer::Refused(errno))),
        _ => None,
    };
    let replies = receive(&channel, directories.len(), deadline, observer, answer)
        .map_err(|Interrupted| NotAsked::Interrupted)?;
    let answers = replies.into_iter().map(|reply| match reply {
        Reply::Returned(answer) => answer,
        Reply::Late => Answer::Late,
        Reply::Ended => Answer::Ended,
        Reply::Lost(errno) => Answer::Lost(errno),
    });
    Ok(answers.collect())
}
