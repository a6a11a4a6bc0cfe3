//! The run's end of the watchdog: started, armed, released, in this order and no other.
//!
//! [`Watchdog::arm`] consumes the idle watchdog and gives an [`ArmedWatchdog`], which the window
//! asks for: freezing without an armed watchdog does not compile.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::frames::Frame;
use vmsnapshot_core::report::WatchdogOutcome;
use vmsnapshot_sys::channel::{Channel, Received};
use vmsnapshot_sys::ledger_file::LedgerFile;
use vmsnapshot_sys::{clock, process, Errno};

use crate::companion;
use crate::state::Published;

/// How long the watchdog may take to be ready: an exec, some threads, a lock on its memory.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to say that it is armed; it does nothing else.
const ARMED_LIMIT: Duration = Duration::from_secs(2);

/// A watchdog that holds everything it needs, and has no deadline yet.
pub(crate) struct Watchdog {
    channel: Channel,
    pid: u32,
    own_control_group: bool,
}

/// A watchdog that thaws when the ledger's deadline passes, or when this process is gone: the
/// permission to freeze.
pub(crate) struct ArmedWatchdog {
    watchdog: Watchdog,
    end: UnixStream,
}

impl Watchdog {
    /// Starts it and hands it all it needs.
    ///
    /// *Blocking*: some milliseconds; 10 s at most.
    ///
    /// # Errors
    /// What the kernel answers, and `UnexpectedEof` when it ended by itself.
    pub(crate) fn start(
        ledger: &LedgerFile,
        published: &Published,
        rcu: Option<BorrowedFd<'_>>,
        directories: &[BorrowedFd<'_>],
    ) -> io::Result<Watchdog> {
        let channel = companion::start("watch")?;
        let run = process::own_pidfd();
        let mut descriptors = vec![ledger.descriptor()];
        descriptors.extend(published.lock_descriptor());
        descriptors.extend(run.as_ref().map(std::os::fd::AsFd::as_fd));
        descriptors.extend(rcu);
        let hello = Frame::Hello {
            directories: u32::try_from(directories.len()).map_err(|_| Errno::TOOBIG)?,
            has_pidfd: run.is_some(),
            has_rcu: rcu.is_some(),
        };
        channel.send(hello, &descriptors)?;
        companion::send_directories(&channel, directories)?;
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

    /// Arms it. The ledger must hold the deadline; its end will be heard on `runtime`.
    ///
    /// *Blocking*: two process switches; 2 s at most.
    ///
    /// # Errors
    /// What the kernel answers, and `UnexpectedEof` when the watchdog is gone; nothing is frozen.
    pub(crate) fn arm(self, runtime: &Runtime) -> io::Result<ArmedWatchdog> {
        let end =
            std::os::unix::net::UnixStream::from(self.channel.descriptor().try_clone_to_owned()?);
        end.set_nonblocking(true)?;
        self.channel.send(Frame::Arm, &[])?;
        match self.channel.receive(clock::monotonic().plus(ARMED_LIMIT))? {
            Received::Frame(Frame::Armed, _) => {
                let _entered = runtime.enter();
                Ok(ArmedWatchdog {
                    end: UnixStream::from_std(end)?,
                    watchdog: self,
                })
            }
            Received::Frame(..) => Err(io::ErrorKind::InvalidData.into()),
            Received::Closed => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl ArmedWatchdog {
    /// What becomes readable when the watchdog is gone.
    pub(crate) fn end(&self) -> &UnixStream {
        &self.end
    }

    /// Tells it that the window is over, and takes its word, until `deadline`.
    ///
    /// Without that word, it is still at work on something that it does not know to be thawed.
    pub(crate) fn release(self, deadline: Monotonic, ledger: &LedgerFile) -> WatchdogOutcome {
        let Watchdog {
            channel,
            pid,
            own_control_group,
        } = self.watchdog;
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
        outcome.fired = ledger.header.fired();
        outcome
    }
}
