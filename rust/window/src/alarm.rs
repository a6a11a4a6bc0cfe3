//! The thread that ends the window at its deadline, and when the watchdog is gone, whatever the
//! window's own thread does.
//!
//! The window's own thread waits for answers, and works on whatever the servers send. A server, or a
//! fault, that keeps it busy would also keep it from seeing the deadline. So it does not look for
//! the deadline itself: this thread does, and does nothing else.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{mpsc, Arc};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{eventfd, poll, EventfdFlags, PollFd, PollFlags};
use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_sys::{clock, process, Errno};

use crate::freezers::{Freezers, ThawOrder};
use crate::watchdog::Watchdog;

/// How long the thread may take until it runs. A machine that gives it no time is not one to freeze.
const READY_LIMIT: Duration = Duration::from_secs(2);
/// The thread polls and gives one order.
const STACK_BYTES: usize = 128 * 1024;

/// Whether the window is over: from just before its first FITHAW, whoever gives the order.
#[derive(Debug, Default)]
pub struct Over {
    /// 0 while it is not.
    at_ns: AtomicU64,
    watchdog_lost: AtomicBool,
}

impl Over {
    /// Returns when the window was over, if it is.
    #[must_use]
    pub fn at(&self) -> Option<Monotonic> {
        match self.at_ns.load(Ordering::SeqCst) {
            0 => None,
            at_ns => Some(Monotonic(at_ns)),
        }
    }

    /// Returns whether the window is over. Nothing may be sent from then on.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.at().is_some()
    }

    /// Returns whether it is over because the watchdog was gone.
    #[must_use]
    pub fn watchdog_lost(&self) -> bool {
        self.watchdog_lost.load(Ordering::SeqCst)
    }

    /// Declares the window over. Returns whether it was not before.
    pub fn begin(&self) -> bool {
        let now_ns = clock::monotonic().0.max(1);
        self.at_ns
            .compare_exchange(0, now_ns, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }
}

/// The thread, from before the watchdog is armed to the end of the window.
///
/// Dropping it ends the thread. It does not thaw then.
#[derive(Debug)]
pub struct Alarm {
    over: Arc<Over>,
    cancel: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Alarm {
    /// Starts the thread. It rings at `deadline`, or as soon as `watchdog` is gone: it declares the
    /// window `over`, has everything thawed, and then calls `tell`, so that the window's own thread
    /// stops waiting.
    ///
    /// # Errors
    /// What the kernel answers if a descriptor or the thread cannot be made, and `TimedOut` if the
    /// thread does not run within 2 s.
    ///
    /// *Blocking*: until the thread runs.
    #[expect(
        clippy::disallowed_methods,
        reason = "the thread is started before the window, so that none is inside it"
    )]
    pub fn set(
        freezers: &Freezers,
        watchdog: &Watchdog,
        deadline: Monotonic,
        over: Arc<Over>,
        tell: impl Fn() + Send + 'static,
    ) -> io::Result<Alarm> {
        let cancelled = eventfd(0, EventfdFlags::CLOEXEC)?;
        let mut alarm = Alarm {
            over: Arc::clone(&over),
            cancel: cancelled.try_clone()?,
            thread: None,
        };
        let waiting = Waiting {
            watchdog: watchdog.end()?,
            cancelled,
            deadline,
            over,
            thaw: freezers.thaw_order(),
        };
        let (ready, is_ready) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("vmsnapshot-alarm".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || waiting.serve(&tell, &ready))?;
        alarm.thread = Some(thread);
        // Not before it can see the deadline is there anything to arm.
        match is_ready.recv_timeout(READY_LIMIT) {
            Ok(()) => Ok(alarm),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Returns whether the window is over.
    #[must_use]
    pub fn over(&self) -> &Over {
        &self.over
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // The counter of an eventfd takes far more than one.
        let _ = rustix::io::write(&self.cancel, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // It holds the filesystems open. It waits for nothing but this.
            let _ = thread.join();
        }
    }
}

/// What the thread waits for, and what it needs then.
struct Waiting {
    watchdog: OwnedFd,
    cancelled: OwnedFd,
    deadline: Monotonic,
    over: Arc<Over>,
    thaw: ThawOrder,
}

/// Why the thread stops waiting.
#[derive(PartialEq, Eq)]
enum Reason {
    Deadline,
    WatchdogLost,
    Cancelled,
}

impl Waiting {
    fn serve(&self, tell: &impl Fn(), ready: &mpsc::Sender<()>) {
        // As in the freeze threads.
        let _ = process::block_signals();
        let _ = process::run_before_others(process::Urgency::Freezer);
        // If nobody waits for it any more, there is no window.
        let _ = ready.send(());
        let reason = self.wait();
        if reason == Reason::Cancelled {
            return;
        }
        if self.over.begin() && reason == Reason::WatchdogLost {
            self.over.watchdog_lost.store(true, Ordering::SeqCst);
        }
        self.thaw.give();
        tell();
        // The end of a thread delays those that have yet to thaw.
        let mut cancelled = [PollFd::new(&self.cancelled, PollFlags::IN)];
        while poll(&mut cancelled, None) == Err(Errno::INTR) {}
    }

    fn wait(&self) -> Reason {
        loop {
            let left = self.deadline.since(clock::monotonic());
            if left.is_zero() {
                return Reason::Deadline;
            }
            let mut events = [
                PollFd::new(&self.cancelled, PollFlags::IN),
                // The kernel reports a hang-up unasked. Frames are not for this thread.
                PollFd::new(&self.watchdog, PollFlags::empty()),
            ];
            match poll(&mut events, Some(&clock::timespec(left))) {
                Ok(0) | Err(Errno::INTR) => continue,
                Ok(_) => {}
                // A thread that cannot wait for the watchdog's end must not let anything stay frozen.
                Err(_) => return Reason::Deadline,
            }
            let [cancelled, _] = &events;
            return if cancelled.revents().is_empty() {
                Reason::WatchdogLost
            } else {
                Reason::Cancelled
            };
        }
    }
}
