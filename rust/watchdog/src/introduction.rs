//! What a companion process receives from the run before it begins.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use vmsnapshot_core::frames::Frame;
use vmsnapshot_sys::channel::{Channel, Received};
use vmsnapshot_sys::clock;
use vmsnapshot_sys::ledger_file::{Holder, LedgerFile};

/// How long a companion waits for what it needs. The run gives up long before.
const INTRODUCTION_LIMIT: Duration = Duration::from_secs(30);

/// What a watchdog is given before it is armed.
pub(crate) struct Introduction {
    pub(crate) ledger: LedgerFile,
    /// The lock that prevents a second run. The watchdog holds it until it ends.
    pub(crate) lock: OwnedFd,
    pub(crate) run: Option<OwnedFd>,
    pub(crate) rcu: Option<OwnedFd>,
    pub(crate) directories: Vec<OwnedFd>,
}

impl Introduction {
    pub(crate) fn receive(channel: &Channel) -> io::Result<Introduction> {
        let (frame, descriptors) = receive(channel)?;
        let Frame::Hello {
            directories,
            has_pidfd,
            has_rcu,
        } = frame
        else {
            return Err(unexpected());
        };
        let mut descriptors = descriptors.into_iter();
        let ledger = LedgerFile::open_again(&descriptors.next().ok_or_else(unexpected)?)?;
        ledger.hold(Holder::Watchdog)?;
        let lock = descriptors.next().ok_or_else(unexpected)?;
        let run = has_pidfd.then(|| descriptors.next()).flatten();
        let rcu = has_rcu.then(|| descriptors.next()).flatten();
        let directories = receive_directories(channel, directories)?;
        if directories.len() != ledger.entries.len()
            || run.is_some() != has_pidfd
            || rcu.is_some() != has_rcu
        {
            return Err(unexpected());
        }
        Ok(Introduction {
            ledger,
            lock,
            run,
            rcu,
            directories,
        })
    }
}

/// Receives the next frame that an introduction is made of.
pub(crate) fn receive(channel: &Channel) -> io::Result<(Frame, Vec<OwnedFd>)> {
    match channel.receive(clock::monotonic().plus(INTRODUCTION_LIMIT))? {
        Received::Frame(frame, descriptors) => Ok((frame, descriptors)),
        Received::Closed => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Receives `count` descriptors of directories, in as many frames as they need.
pub(crate) fn receive_directories(channel: &Channel, count: u32) -> io::Result<Vec<OwnedFd>> {
    let count = usize::try_from(count).map_err(|_| unexpected())?;
    let mut directories = Vec::new();
    while directories.len() < count {
        match receive(channel)? {
            // If fewer arrive than were sent, this process has reached its limit on descriptors.
            (Frame::Directories { count }, descriptors)
                if count > 0 && u32::try_from(descriptors.len()) == Ok(count) =>
            {
                directories.extend(descriptors);
            }
            _ => return Err(unexpected()),
        }
    }
    Ok(directories)
}

/// The error of a frame that does not belong in an introduction.
pub(crate) fn unexpected() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the run sent something unexpected",
    )
}
