//! Asks the kernel about filesystems before the window, with a limit on the time that it may take.

use std::io;
use std::os::fd::BorrowedFd;

use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::frames::Frame;
use vmsnapshot_sys::channel::Received;
use vmsnapshot_sys::{clock, Errno};

use super::Role;
use crate::observer::{Observer, INTERRUPTION_TICK};

/// What the kernel answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Yes, with a value that is not 0.
    Yes(u32),
    /// No, or it is not known.
    No,
    /// It has not answered in time.
    Late,
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
    let mut answers = vec![Answer::Late; directories.len()];
    if directories.is_empty() {
        return Ok(answers);
    }
    let channel = super::start_for(role, directories).map_err(NotAsked::Start)?;
    while answers.contains(&Answer::Late) && clock::monotonic() < deadline {
        let tick = clock::monotonic().plus(INTERRUPTION_TICK).min(deadline);
        match channel.receive(tick) {
            Ok(Received::Frame(Frame::Answer { index, value }, _)) => {
                let place = usize::try_from(index).ok();
                if let Some(place) = place.and_then(|index| answers.get_mut(index)) {
                    *place = match value {
                        0 => Answer::No,
                        value => Answer::Yes(value),
                    };
                }
            }
            Err(Errno::TIMEDOUT) if observer.is_interrupted() => return Err(NotAsked::Interrupted),
            Err(Errno::TIMEDOUT) => {}
            // The process is gone, so none of its questions waits for the kernel.
            Ok(_) | Err(_) => {
                for answer in &mut answers {
                    if *answer == Answer::Late {
                        *answer = Answer::No;
                    }
                }
            }
        }
    }
    Ok(answers)
}
