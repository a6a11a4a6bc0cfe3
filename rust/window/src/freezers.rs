//! One thread per filesystem. It calls FIFREEZE when its level's turn comes, and FITHAW when its
//! level may thaw.
//!
//! Either call can hang, so each filesystem has a thread that no other one waits for. The threads
//! exist before the window. Inside it they allocate nothing, and they write what happened into the
//! ledger and nowhere else.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::ledger::{FreezeState, Thawer};
use vmsnapshot_sys::block_device::WriteCount;
use vmsnapshot_sys::kernel::Kernel;
use vmsnapshot_sys::ledger_file::LedgerFile;
use vmsnapshot_sys::signal::Signal;
use vmsnapshot_sys::{clock, process, Errno};

/// The threads call two ioctls each.
const STACK_BYTES: usize = 128 * 1024;
/// From this order on, levels thaw; below it, levels freeze.
const THAW: u32 = 1 << 30;
/// The last order: the threads end.
const OVER: u32 = u32::MAX;
/// How long a level may take to thaw before the next one thaws too. The order of thawing is only a
/// convenience (an upper FITHAW writes through the lower filesystem, and the kernel makes it wait),
/// so one slow disk does not keep the others frozen.
const LEVEL_THAW_LIMIT: Duration = Duration::from_millis(50);
/// The first pause between two FITHAW calls that failed for another reason than "not frozen".
const TRY_AGAIN: Duration = Duration::from_millis(5);
/// The longest such pause.
const TRY_AGAIN_MAX: Duration = Duration::from_millis(200);
/// How long a run whose filesystems are all thawed waits for its threads to end. When it returns,
/// none of them holds a filesystem open; an unmount would find it busy.
const END_LIMIT: Duration = Duration::from_millis(200);

/// The freeze threads of a run, and the order in which their levels freeze and thaw.
///
/// Dropping it thaws whatever it may have frozen, and lets the threads end.
pub struct Freezers {
    shared: Arc<Shared>,
    /// How many filesystems each level has.
    level_sizes: Vec<u32>,
    threads: Vec<JoinHandle<()>>,
}

/// The order to thaw, for a thread that is not the window's.
pub(crate) struct ThawOrder {
    shared: Arc<Shared>,
    all_levels: u32,
}

impl ThawOrder {
    /// Has the freeze threads thaw all levels, and freeze no other one. Waits for nothing.
    ///
    /// *In the window*: allowed. It allocates nothing.
    pub(crate) fn give(&self) {
        self.shared.ledger.revoke_planned();
        self.shared.order.raise(THAW + self.all_levels);
    }
}

struct Shared {
    ledger: Arc<LedgerFile>,
    kernel: Arc<dyn Kernel>,
    directories: Arc<[OwnedFd]>,
    /// How much is written to the device of each filesystem, where that says something.
    write_counts: Box<[Option<WriteCount>]>,
    /// `n` below [`THAW`]: levels 0 to n-1 freeze. `THAW + n`: the last n levels thaw. It only rises,
    /// so that no freeze follows a thaw, whoever gave the order.
    order: Signal,
    /// How many threads are done with FIFREEZE.
    freezes_done: Signal,
    /// The count at which the window wants to be woken.
    freezes_awaited: AtomicU32,
    /// Whether something happened to a FIFREEZE that ends the window.
    has_failed: AtomicBool,
    /// How many threads are done with FITHAW.
    thaws_done: Signal,
    /// The count at which the window wants to be woken.
    thaws_awaited: AtomicU32,
}

impl Freezers {
    /// Starts one thread per directory. `levels` has the level of each, from 0 and without gaps;
    /// `write_counts` the count of its device, if there is one.
    ///
    /// # Errors
    /// What the kernel answers when a thread cannot be started.
    #[expect(
        clippy::disallowed_methods,
        reason = "the threads are started before the window, so that none is inside it"
    )]
    pub fn start(
        ledger: Arc<LedgerFile>,
        kernel: Arc<dyn Kernel>,
        directories: Arc<[OwnedFd]>,
        write_counts: Box<[Option<WriteCount>]>,
        levels: &[u32],
    ) -> io::Result<Freezers> {
        let level_count = levels.iter().max().map_or(0, |highest| highest + 1);
        let size_of = |level| {
            let of_level = levels.iter().filter(|other| **other == level).count();
            u32::try_from(of_level).unwrap_or(u32::MAX)
        };
        let mut freezers = Freezers {
            shared: Arc::new(Shared {
                ledger,
                kernel,
                directories,
                write_counts,
                order: Signal::new(0),
                freezes_done: Signal::new(0),
                freezes_awaited: AtomicU32::new(0),
                has_failed: AtomicBool::new(false),
                thaws_done: Signal::new(0),
                thaws_awaited: AtomicU32::new(0),
            }),
            level_sizes: (0..level_count).map(size_of).collect(),
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

    /// Returns what another thread needs to thaw at once.
    pub(crate) fn thaw_order(&self) -> ThawOrder {
        ThawOrder {
            shared: Arc::clone(&self.shared),
            all_levels: u32::try_from(self.level_sizes.len()).unwrap_or(OVER - THAW),
        }
    }

    /// Freezes level by level, in parallel within a level, until `deadline`.
    ///
    /// Returns whether everything is frozen that FIFREEZE can freeze. A filesystem on which FIFREEZE
    /// fails is passed over: it costs what its own content is worth, and not the others' backup. One
    /// that another program has frozen ends the window, and this returns at once.
    ///
    /// *In the window*: allowed. It allocates nothing.
    pub fn freeze(&self, deadline: Monotonic) -> bool {
        let shared = &self.shared;
        let has_failed = || shared.has_failed.load(Ordering::SeqCst);
        let mut expected = 0;
        for (order, size) in (1..).zip(&self.level_sizes) {
            expected += size;
            shared.freezes_awaited.store(expected, Ordering::SeqCst);
            shared.order.raise(order);
            let is_done = |done| done >= expected || has_failed();
            if !shared.freezes_done.wait_until(Some(deadline), is_done) || has_failed() {
                return false;
            }
        }
        true
    }

    /// Thaws what may be frozen, the last level first, and waits for it until `deadline`.
    ///
    /// `in_order` says whether a level waits (a little) for the one below it.
    ///
    /// *In the window*: allowed. It allocates nothing.
    pub fn thaw(&self, in_order: bool, deadline: Monotonic) {
        let shared = &self.shared;
        shared.ledger.revoke_planned();
        let mut expected = 0;
        let level_count = self.level_sizes.len();
        for (turn, size) in (1..).zip(self.level_sizes.iter().rev()) {
            expected += size;
            let is_last = turn as usize == level_count;
            if !in_order && !is_last {
                continue;
            }
            let limit = if is_last {
                deadline
            } else {
                deadline.min(clock::monotonic().plus(LEVEL_THAW_LIMIT))
            };
            shared.thaws_awaited.store(expected, Ordering::SeqCst);
            shared.order.raise(THAW + turn);
            shared
                .thaws_done
                .wait_until(Some(limit), |done| done >= expected);
        }
    }
}

impl Drop for Freezers {
    fn drop(&mut self) {
        self.shared.ledger.revoke_planned();
        self.shared.order.raise(OVER);
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
    /// What the thread of one filesystem does, from its start to its end.
    fn serve(&self, index: usize, level: u32, level_count: u32) {
        // A signal that ended the process here would leave the thaw to the watchdog alone.
        let _ = process::block_signals();
        // Both calls are short and wait more than they work. On a busy machine each would otherwise
        // queue behind whatever is running. The run's own thread stays ordinary: its answers may
        // come from a server on this machine, which it would keep from answering.
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
        // No part of the window waits for this.
        self.note_writes(index);
        self.order
            .wait_until(None, |order| order >= THAW + level_count - level);
        self.thaw(index);
        if self.thaws_done.add_one() >= self.thaws_awaited.load(Ordering::SeqCst) {
            self.thaws_done.wake_all();
        }
        // The end of a thread unmaps its stack on every processor, and delays those that have yet
        // to thaw. So no thread ends inside the window.
        self.order.wait_until(None, |order| order == OVER);
    }

    /// Freezes one filesystem. Returns whether the window may go on.
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
                // EBUSY: another program has frozen it, for a backup of its own or for an LVM
                // snapshot. The run fails rather than disturb it; a later run succeeds.
                errno != Errno::BUSY
            }
            // It may be frozen or not. It stays announced, and the answer of FITHAW decides.
            Err(_) => false,
        }
    }

    /// Records how much was written to the device before it was frozen. A frozen filesystem writes
    /// nothing, so a higher count later means that it was thawed.
    fn note_writes(&self, index: usize) {
        let count = self.write_counts.get(index).and_then(Option::as_ref);
        if let (Some(entry), Some(count)) = (self.ledger.entries.get(index), count) {
            if entry.state() == FreezeState::Frozen {
                if let Some(sectors) = count.sectors() {
                    entry.set_sectors_written(sectors);
                }
            }
        }
    }

    /// Thaws one filesystem if the run may have frozen it, and tries again until that is known.
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
            // There is no giving up: the watchdog may be gone. The run does not wait for this.
            std::thread::sleep(pause);
            pause = (pause * 2).min(TRY_AGAIN_MAX);
        }
    }
}
