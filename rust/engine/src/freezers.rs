//! One thread a filesystem: it calls FIFREEZE when its level may freeze, and FITHAW when it may thaw.
//!
//! A thread each, because either call can hang, and one that hangs must not hold up another. The
//! threads exist, and wait, before the window; inside it nothing is allocated, and what happened is
//! written into the ledger and nowhere else.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::ledger::{FreezeState, Thawer};
use vmsnapshot_sys::kernel::Kernel;
use vmsnapshot_sys::ledger_file::LedgerFile;
use vmsnapshot_sys::signal::Signal;
use vmsnapshot_sys::{clock, process, Errno};

/// The threads call two ioctls each.
const STACK_BYTES: usize = 128 * 1024;
/// The order from which on levels thaw; below it, levels freeze.
const THAW: u32 = 1 << 30;
/// The last order: the threads end.
const OVER: u32 = u32::MAX;
/// How long a level may thaw before the next one is told to as well. The order of thawing is a
/// courtesy (an upper FITHAW writes through the lower filesystem, and waits for it by itself), so
/// one slow disk does not keep the others frozen.
const LEVEL_THAW_LIMIT: Duration = Duration::from_millis(50);
/// The first pause between two FITHAW calls that failed for another reason than "not frozen".
const TRY_AGAIN: Duration = Duration::from_millis(5);
/// The longest such pause.
const TRY_AGAIN_MAX: Duration = Duration::from_millis(200);
/// How long a run whose filesystems are all thawed waits for its threads to end, so that nothing of
/// it is open any more when it returns (an unmount would find it busy).
const END_LIMIT: Duration = Duration::from_millis(200);

/// The freeze threads of a run, in their orders.
///
/// Dropping it thaws whatever it may have frozen, and lets the threads end.
pub(crate) struct Freezers {
    shared: Arc<Shared>,
    level_count: u32,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    ledger: Arc<LedgerFile>,
    kernel: Arc<dyn Kernel>,
    directories: Arc<[OwnedFd]>,
    /// `n` below [`THAW`]: levels 0 to n-1 freeze. `THAW + n`: the last n levels thaw.
    order: Signal,
    /// How many threads are done with FIFREEZE, and at which count somebody waits.
    freezes_done: Signal,
    freezes_awaited: AtomicU32,
    /// Whether a FIFREEZE failed in a way that ends the window.
    has_failed: AtomicBool,
    /// How many threads are done with FITHAW, and at which count somebody waits.
    thaws_done: Signal,
    thaws_awaited: AtomicU32,
}

impl Freezers {
    /// Starts the threads; `levels` gives each directory's level, and has no gaps.
    ///
    /// # Errors
    /// What the kernel answers when a thread cannot be started.
    pub(crate) fn start(
        ledger: Arc<LedgerFile>,
        kernel: Arc<dyn Kernel>,
        directories: Arc<[OwnedFd]>,
        levels: &[u32],
    ) -> io::Result<Freezers> {
        let level_count = levels.iter().max().map_or(0, |highest| highest + 1);
        let mut freezers = Freezers {
            shared: Arc::new(Shared {
                ledger,
                kernel,
                directories,
                order: Signal::new(0),
                freezes_done: Signal::new(0),
                freezes_awaited: AtomicU32::new(0),
                has_failed: AtomicBool::new(false),
                thaws_done: Signal::new(0),
                thaws_awaited: AtomicU32::new(0),
            }),
            level_count,
            threads: Vec::with_capacity(levels.len()),
        };
        for (index, level) in levels.iter().copied().enumerate() {
            let shared = Arc::clone(&freezers.shared);
            let thread = std::thread::Builder::new()
                .name("vmsnapshot-freeze".to_owned())
                .stack_size(STACK_BYTES)
                .spawn(move || shared.serve(index, level, level_count))?;
            freezers.threads.push(thread);
        }
        Ok(freezers)
    }

    /// How many levels there are.
    pub(crate) fn level_count(&self) -> u32 {
        self.level_count
    }

    /// Lets the levels up to and with `level` freeze, and waits until FIFREEZE has succeeded on all
    /// `expected` filesystems of these levels, or the kernel cannot freeze their type: a skip, no
    /// failure. False as soon as one has failed, and when `deadline` passed first.
    pub(crate) fn freeze_level(&self, level: u32, expected: u32, deadline: Monotonic) -> bool {
        let shared = &self.shared;
        shared.freezes_awaited.store(expected, Ordering::SeqCst);
        shared.order.set(level + 1);
        let has_failed = || shared.has_failed.load(Ordering::SeqCst);
        shared
            .freezes_done
            .wait_until(Some(deadline), |done| done >= expected || has_failed())
            && !has_failed()
    }

    /// Thaws what may be frozen, the last level first, and waits for it until `deadline`.
    ///
    /// `in_order` says whether a level waits (a little) for the one below it.
    pub(crate) fn thaw(&self, levels: &[u32], in_order: bool, deadline: Monotonic) {
        let shared = &self.shared;
        shared.ledger.revoke_planned();
        let mut expected = 0;
        for (released, level) in (1..).zip((0..self.level_count).rev()) {
            let of_level = levels.iter().filter(|other| **other == level).count();
            expected += u32::try_from(of_level).unwrap_or(u32::MAX);
            let is_last = level == 0;
            if !in_order && !is_last {
                continue;
            }
            let limit = if is_last {
                deadline
            } else {
                deadline.min(clock::monotonic().plus(LEVEL_THAW_LIMIT))
            };
            shared.thaws_awaited.store(expected, Ordering::SeqCst);
            shared.order.set(THAW + released);
            shared
                .thaws_done
                .wait_until(Some(limit), |done| done >= expected);
        }
    }
}

impl Drop for Freezers {
    fn drop(&mut self) {
        self.shared.ledger.revoke_planned();
        self.shared.order.set(OVER);
        if self.shared.ledger.may_be_frozen() {
            return;
        }
        let deadline = clock::monotonic().plus(END_LIMIT);
        while !self.threads.iter().all(JoinHandle::is_finished) && clock::monotonic() < deadline {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

impl Shared {
    fn serve(&self, index: usize, level: u32, level_count: u32) {
        // A signal that ended the process here would leave the thaw to the watchdog alone.
        let _ = process::block_signals();
        // Both calls are short and wait more than they work; on a busy machine each would otherwise
        // queue behind whatever is running. Not the run's own thread: its answers may come from a
        // server on this machine, which it would keep from answering.
        let _ = process::run_before_others(process::Urgency::Freezer);
        self.order.wait_until(None, |order| order > level);
        let is_frozen = self.order.value() < THAW && self.freeze(index);
        if !is_frozen {
            self.has_failed.store(true, Ordering::SeqCst);
        }
        let done = self.freezes_done.add_one();
        if !is_frozen || done >= self.freezes_awaited.load(Ordering::SeqCst) {
            self.freezes_done.wake_all();
        }
        self.order
            .wait_until(None, |order| order >= THAW + level_count - level);
        self.thaw(index);
        if self.thaws_done.add_one() >= self.thaws_awaited.load(Ordering::SeqCst) {
            self.thaws_done.wake_all();
        }
        // The end of a thread unmaps its stack, on every processor, and so holds up those that have
        // yet to thaw: not inside the window.
        self.order.wait_until(None, |order| order == OVER);
    }

    /// Freezes one filesystem. False if that failed and the window has to end.
    fn freeze(&self, index: usize) -> bool {
        let (Some(entry), Some(directory)) =
            (self.ledger.entries.get(index), self.directories.get(index))
        else {
            return false;
        };
        if !entry.announce(clock::monotonic()) {
            return false;
        }
        match catch_unwind(AssertUnwindSafe(|| self.kernel.freeze(directory.as_fd()))) {
            Ok(Ok(())) => {
                let is_in_time = entry.frozen(clock::monotonic());
                if !is_in_time {
                    self.thaw(index);
                }
                is_in_time
            }
            Ok(Err(errno)) => {
                entry.refuse(clock::monotonic(), errno.raw_os_error().unsigned_abs());
                errno == Errno::OPNOTSUPP
            }
            // It may or may not be frozen: it stays announced, and FITHAW will tell.
            Err(_) => false,
        }
    }

    fn thaw(&self, index: usize) {
        let (Some(entry), Some(directory)) =
            (self.ledger.entries.get(index), self.directories.get(index))
        else {
            return;
        };
        let mut pause = TRY_AGAIN;
        loop {
            let state = entry.state();
            if !state.may_be_frozen() {
                return;
            }
            entry.thawing(clock::monotonic());
            match catch_unwind(AssertUnwindSafe(|| self.kernel.thaw(directory.as_fd()))) {
                Ok(Ok(())) => return entry.thawed(Thawer::Run, clock::monotonic()),
                Ok(Err(Errno::INVAL)) if state == FreezeState::Frozen => {
                    return entry.find_thawed(clock::monotonic());
                }
                // The only FIFREEZE there can be was this thread's, and it is over.
                Ok(Err(Errno::INVAL)) => return entry.never_frozen(),
                Ok(Err(errno)) => entry.thaw_failed(errno.raw_os_error().unsigned_abs()),
                Err(_) => {}
            }
            // There is no giving up: the watchdog may be gone. Nobody waits for this thread.
            std::thread::sleep(pause);
            pause = (pause * 2).min(TRY_AGAIN_MAX);
        }
    }
}
