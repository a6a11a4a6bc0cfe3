//! The run's end of the watchdog: introduced, armed, released, in this order and no other. One that is
//! not armed can be dismissed.
//!
//! [`Watchdog::arm`] consumes the idle watchdog and gives an [`ArmedWatchdog`], which the window
//! asks for. Freezing without an armed watchdog does not compile.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::frames::Frame;
use vmsnapshot_core::report::WatchdogOutcome;
use vmsnapshot_sys::channel::{Channel, Received};
use vmsnapshot_sys::ledger_file::LedgerFile;
use vmsnapshot_sys::{clock, process, Errno};

/// How long the watchdog may take to be ready: an exec, some threads, a lock on its memory.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to answer that it is armed. It does nothing else.
const ARMED_LIMIT: Duration = Duration::from_secs(2);

/// A watchdog that holds everything it needs, and has no deadline yet.
#[derive(Debug)]
pub struct Watchdog {
    channel: Channel,
    pid: u32,
    own_control_group: bool,
}

/// A watchdog that thaws when the ledger's deadline passes, or when this process is gone: the
/// permission to freeze.
#[derive(Debug)]
pub struct ArmedWatchdog(Watchdog);

impl Watchdog {
    /// Sends a new watchdog, at the other end of `channel`, the descriptors that it needs.
    ///
    /// *Blocking*: some milliseconds; 10 s at most.
    ///
    /// # Errors
    /// What the kernel answers, and `UnexpectedEof` when the watchdog ended by itself.
    pub fn introduce(
        channel: Channel,
        ledger: &LedgerFile,
        lock: Option<BorrowedFd<'_>>,
        rcu: Option<BorrowedFd<'_>>,
        directories: &[BorrowedFd<'_>],
    ) -> io::Result<Watchdog> {
        let run = process::own_pidfd();
        let mut descriptors = vec![ledger.descriptor()];
        descriptors.extend(lock);
        descriptors.extend(run.as_ref().map(AsFd::as_fd));
        descriptors.extend(rcu);
        let hello = Frame::Hello {
            directories: u32::try_from(directories.len()).map_err(|_| Errno::TOOBIG)?,
            has_pidfd: run.is_some(),
            has_rcu: rcu.is_some(),
        };
        let sent = channel
            .send(hello, &descriptors)
            .and_then(|()| channel.send_directories(directories));
        // EPIPE: it has ended, and may have said why.
        sent.or_else(|errno| match errno {
            Errno::PIPE => Ok(()),
            errno => Err(errno),
        })?;
        match channel.receive(clock::monotonic().plus(READY_LIMIT))? {
            Received::Frame(Frame::Ready { own_control_group }, _) => Ok(Watchdog {
                channel,
                pid: ledger.header.watchdog().pid,
                own_control_group,
            }),
            Received::Frame(Frame::Failed { errno }, _) if errno != 0 => {
                Err(io::Error::from_raw_os_error(errno.cast_signed()))
            }
            Received::Frame(..) => Err(io::ErrorKind::InvalidData.into()),
            Received::Closed => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Ends it, and leaves the lock to the run. Another watchdog follows, for other filesystems.
    ///
    /// *Blocking*: some milliseconds; 2 s at most.
    ///
    /// # Errors
    /// What the kernel answers, and `UnexpectedEof` when the watchdog is gone.
    pub fn dismiss(self) -> io::Result<()> {
        self.channel.send(Frame::Release, &[])?;
        match self.channel.receive(clock::monotonic().plus(ARMED_LIMIT))? {
            Received::Frame(Frame::Released { .. }, _) => Ok(()),
            Received::Frame(..) => Err(io::ErrorKind::InvalidData.into()),
            Received::Closed => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Returns a descriptor of the channel, which hangs up when the watchdog is gone. Only the
    /// hang-up is for the caller; it must read nothing.
    ///
    /// # Errors
    /// The kernel's error if the descriptor cannot be duplicated.
    pub(crate) fn end(&self) -> io::Result<OwnedFd> {
        self.channel.descriptor().try_clone_to_owned()
    }

    /// Arms it. The ledger must hold the deadline.
    ///
    /// *Blocking*: two process switches; 2 s at most.
    ///
    /// # Errors
    /// What the kernel answers, and `UnexpectedEof` when the watchdog is gone. Nothing is frozen.
    pub fn arm(self) -> io::Result<ArmedWatchdog> {
        self.channel.send(Frame::Arm, &[])?;
        match self.channel.receive(clock::monotonic().plus(ARMED_LIMIT))? {
            Received::Frame(Frame::Armed, _) => Ok(ArmedWatchdog(self)),
            Received::Frame(..) => Err(io::ErrorKind::InvalidData.into()),
            Received::Closed => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl ArmedWatchdog {
    /// Tells the watchdog that the window is over, and waits for its last word until `deadline`.
    ///
    /// Without that word, it is still at work on something that it does not know to be thawed.
    #[must_use]
    pub fn release(self, deadline: Monotonic, ledger: &LedgerFile) -> WatchdogOutcome {
        let Watchdog {
            channel,
            pid,
            own_control_group,
        } = self.0;
        let mut outcome = WatchdogOutcome {
            pid,
            fired: None,
            released: false,
            own_control_group,
            peak_memory_kib: None,
        };
        if channel.send(Frame::Release, &[]).is_ok() {
            if let Ok(Received::Frame(Frame::Released { peak_memory_kib }, _)) =
                channel.receive(deadline)
            {
                outcome.released = true;
                outcome.peak_memory_kib =
                    (peak_memory_kib > 0).then_some(u64::from(peak_memory_kib));
            }
        }
        if !outcome.released {
            // Without a pidfd, the watchdog takes the end of this channel for the end of the run's
            // process, and so for the end of every FIFREEZE. So it stays open as long as this
            // process lives: a FIFREEZE that still waits may freeze later.
            std::mem::forget(channel);
        }
        outcome.fired = ledger.header.fired();
        outcome
    }
}
