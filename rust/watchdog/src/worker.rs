//! The workers of a watchdog: a thread per filesystem, which thaws it once the alarm is raised.
//!
//! A fault (SIGSEGV, abort, a panic) in one thread must leave nothing frozen either. So what follows the
//! alarm needs only what all threads share, allocates nothing and takes no lock: a thread can do it in
//! its signal handler, see [`faults`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use vmsnapshot_core::ledger::{FireReason, FreezeState, Thawer};
use vmsnapshot_sys::kernel::Kernel;
use vmsnapshot_sys::ledger_file::{is_held, Holder, LedgerFile};
use vmsnapshot_sys::signal::Signal;
use vmsnapshot_sys::{clock, faults, Errno};

/// How often a watchdog that has fired looks whether the run's process is gone.
pub(crate) const FIRED_TICK: Duration = Duration::from_millis(2);
/// The longest pause between two FITHAW calls that were answered EINVAL.
const ASK_AGAIN_MAX: Duration = Duration::from_millis(8);
/// The longest pause between two FITHAW calls that failed.
pub(crate) const TRY_AGAIN_MAX: Duration = Duration::from_millis(200);
/// How long it looks and asks that often. A FIFREEZE can hang for hours, and a process of real-time
/// priority must not take the processor for so long.
const HURRY: Duration = Duration::from_secs(60);
/// The longest pause after that.
const PATIENT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Returns how long to pause, if it has already gone on for `elapsed` and `pause` is right at first.
pub(crate) fn decayed(pause: Duration, elapsed: Duration) -> Duration {
    if elapsed < HURRY {
        pause
    } else {
        (elapsed / 1000).clamp(pause, PATIENT_PAUSE_MAX)
    }
}

/// What the threads share.
pub(crate) struct Watch {
    pub(crate) ledger: LedgerFile,
    pub(crate) kernel: Arc<dyn Kernel>,
    /// `rcu_expedited`, if the run could open it.
    pub(crate) rcu: Option<OwnedFd>,
    /// Whether no thread of the run can be inside FIFREEZE any more.
    pub(crate) freezer_is_gone: AtomicBool,
    /// 0 while there is nothing to do. 1 once each worker has to settle its filesystem.
    pub(crate) fired: Signal,
    /// One per worker: 1 once it has settled. It then knows that the run does not keep its filesystem
    /// frozen, has written what it did into the ledger, and has closed the filesystem. A worker that had
    /// a fault leaves it open, until the process ends.
    pub(crate) settled: Vec<Signal>,
}

impl Watch {
    /// Ends the window: nothing more may be frozen, every worker thaws its filesystem, and expedited RCU
    /// is put back.
    pub(crate) fn raise_alarm(&self) {
        self.ledger.revoke_planned();
        self.fired.set(1);
        // It stays owed: a run that is stopped just before it switches it on does so when it continues.
        self.put_rcu_back();
    }

    /// Writes back what was read, if it is owed. Returns whether nothing is owed now.
    pub(crate) fn put_rcu_back(&self) -> bool {
        match (&self.rcu, self.ledger.header.rcu_owed()) {
            (Some(rcu), Some(previous)) => {
                let text: &[u8] = if previous == 0 { b"0" } else { b"1" };
                rustix::io::pwrite(rcu, text, 0).is_ok()
            }
            (_, owed) => owed.is_none(),
        }
    }

    /// The main thread after a fault in it. The process ends when this returns, and the run notices.
    pub(crate) fn finish_after_fault(&self) {
        self.ledger.header.fire(FireReason::Fault);
        self.raise_alarm();
        let begun_at = clock::monotonic();
        loop {
            // The pidfd is out of reach here. This lock is held as long as the run can be inside FIFREEZE.
            let freezer_is_gone = !is_held(self.ledger.descriptor(), Holder::Run);
            self.freezer_is_gone
                .fetch_or(freezer_is_gone, Ordering::SeqCst);
            if self.settled.iter().all(|settled| settled.value() == 1) {
                if self.put_rcu_back() && freezer_is_gone {
                    self.ledger.header.rcu_put_back();
                }
                return;
            }
            std::thread::sleep(decayed(FIRED_TICK, clock::monotonic().since(begun_at)));
        }
    }

    /// The worker of one filesystem. It waits for the alarm, settles, and then waits for the end.
    pub(crate) fn work(self: &Arc<Self>, index: usize, directory: OwnedFd) {
        let directory = Arc::new(directory);
        let watch = Arc::clone(self);
        let maybe_open = Arc::downgrade(&directory);
        // It is needed until the process ends.
        faults::on_fault(Box::leak(Box::new(move || {
            watch.work_after_fault(index, &maybe_open);
        })));
        self.fired.wait_until(None, |fired| fired == 1);
        self.settle_despite_panics(index, directory.as_fd());
        drop(directory);
        self.rest(index);
    }

    /// The same worker after a fault in it. It raises the alarm, as its thread may be all that is left.
    fn work_after_fault(&self, index: usize, directory: &Weak<OwnedFd>) {
        self.ledger.header.fire(FireReason::Fault);
        self.raise_alarm();
        // If it is closed, the fault came after the worker had settled.
        if let Some(directory) = directory.upgrade() {
            self.settle_despite_panics(index, directory.as_fd());
        }
        self.rest(index);
    }

    fn settle_despite_panics(&self, index: usize, directory: BorrowedFd<'_>) {
        let settle = || self.settle(index, directory);
        while catch_unwind(AssertUnwindSafe(settle)).is_err() {
            std::thread::sleep(TRY_AGAIN_MAX);
        }
    }

    /// Says that the worker has settled, and never returns.
    fn rest(&self, index: usize) {
        if let Some(settled) = self.settled.get(index) {
            settled.set(1);
        }
        // The end of a thread unmaps its stack on every processor, and delays those that have yet to
        // thaw. So it ends with the process.
        self.fired.wait_until(None, |_| false);
    }

    /// Returns whether everything should be thawed by now.
    fn is_past_deadline(&self) -> bool {
        let deadline = self.ledger.header.guard_by();
        deadline.is_some_and(|deadline| clock::monotonic() >= deadline)
    }

    /// Thaws one filesystem. Returns when it is known that the run does not keep it frozen.
    fn settle(&self, index: usize, directory: BorrowedFd<'_>) {
        let Some(entry) = self.ledger.entries.get(index) else {
            return;
        };
        let begun_at = clock::monotonic();
        let mut thaw_count = 0_u32;
        let mut pause = Duration::from_millis(1);
        loop {
            // Both are read *before* the FITHAW: its answer is final only when no FIFREEZE can
            // follow. A FIFREEZE that waits for a writer lets FITHAW answer EINVAL, and freezes
            // seconds later. One that waits for another program's freeze lets it undo that one first.
            let freezer_is_gone = self.freezer_is_gone.load(Ordering::SeqCst);
            let state = entry.state();
            if !state.may_be_frozen() {
                if thaw_count > 0 {
                    // The run's FIFREEZE was refused meanwhile. The ledger keeps what was undone.
                    entry.thawed(Thawer::Watchdog, clock::monotonic());
                }
                return;
            }
            let is_final = freezer_is_gone || state == FreezeState::Frozen;
            entry.thawing(clock::monotonic());
            match self.kernel.thaw(directory) {
                Ok(()) => {
                    thaw_count += 1;
                    pause = Duration::from_millis(1);
                }
                Err(Errno::INVAL) => {
                    // The last resort if FIFREEZE still waits: a scrub can be resumed, and writers
                    // would stall until it ends by itself.
                    if thaw_count == 0
                        && state == FreezeState::Announced
                        && self.is_past_deadline()
                        && self.kernel.cancel_scrub(directory).is_ok()
                    {
                        entry.cancel_scrub();
                    }
                    pause = (pause * 2).min(ASK_AGAIN_MAX);
                }
                Err(errno) => {
                    entry.thaw_failed(errno.raw_os_error().unsigned_abs());
                    pause = (pause * 2).min(TRY_AGAIN_MAX);
                    std::thread::sleep(pause);
                    continue;
                }
            }
            if thaw_count > 1 {
                // One FITHAW succeeds for one freeze, and the run froze once.
                entry.undo_another();
            }
            if is_final {
                match state {
                    _ if thaw_count > 0 => entry.thawed(Thawer::Watchdog, clock::monotonic()),
                    FreezeState::Frozen => entry.find_thawed(clock::monotonic()),
                    _ => entry.never_frozen(),
                }
                return;
            }
            std::thread::sleep(decayed(pause, clock::monotonic().since(begun_at)));
        }
    }
}
