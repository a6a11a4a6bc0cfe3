//! The watchdog: a process of its own that thaws what a run froze when the run cannot.
//!
//! It is started before anything is frozen and is given all it needs: the ledger, a descriptor of
//! each filesystem, one of the run's process, one of `rcu_expedited`. From the moment it has said
//! that it is armed it opens nothing, writes no file, starts no thread. It thaws only what the
//! ledger says the run has announced, and only when the run is gone, late, or says so.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{poll, PollFd, PollFlags};
use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::frames::Frame;
use vmsnapshot_core::ledger::{FireReason, FreezeState, Thawer};
use vmsnapshot_sys::channel::{Channel, Received};
use vmsnapshot_sys::kernel::Kernel;
use vmsnapshot_sys::ledger_file::LedgerFile;
use vmsnapshot_sys::signal::Signal;
use vmsnapshot_sys::{clock, control_group, process, Errno};

use crate::introduction::{unexpected, Introduction};

/// What the name of its control group begins with; the process id makes it one watchdog's alone.
const CONTROL_GROUP_PREFIX: &str = "vmsnapshot-watchdog-";
/// How often a fired watchdog looks whether the run's process is gone.
const FIRED_TICK: Duration = Duration::from_millis(2);
/// The longest pause between two FITHAW calls that were answered EINVAL.
const ASK_AGAIN_MAX: Duration = Duration::from_millis(8);
/// The longest pause between two FITHAW calls that failed.
const TRY_AGAIN_MAX: Duration = Duration::from_millis(200);
/// How long workers may take to see that there is nothing left to do.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);
/// A thaw worker calls one ioctl; 64 of these are 4 MiB of addresses and a few pages of memory.
const WORKER_STACK_BYTES: usize = 64 * 1024;

/// What the workers share.
struct Watch {
    ledger: LedgerFile,
    kernel: Arc<dyn Kernel>,
    /// Whether no thread of the run can be inside FIFREEZE any more.
    freezer_is_gone: AtomicBool,
    /// 0 while there is nothing to do, 1 from the moment on when each worker settles its own.
    fired: Signal,
    /// How many workers have settled: they know that their filesystem is not frozen by us, have
    /// written what they did, and have closed it.
    settled: Signal,
}

/// Watches one run, to its end. Returns when nothing that it announced is frozen.
///
/// # Errors
/// What is missing at the start; the run then never freezes. Nothing ends it once it is armed.
pub fn watch(channel: &Channel, kernel: Arc<dyn Kernel>) -> io::Result<()> {
    let introduction = Introduction::receive(channel)?;
    let count = u32::try_from(introduction.directories.len()).map_err(|_| unexpected())?;
    let watch = Arc::new(Watch {
        ledger: introduction.ledger,
        kernel,
        freezer_is_gone: AtomicBool::new(false),
        fired: Signal::new(0),
        settled: Signal::new(0),
    });
    let own_control_group = control_group::enter(CONTROL_GROUP_PREFIX);
    // None of these three is a condition of thawing; each makes it surer on a machine in trouble.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let _ = process::run_before_others(process::Urgency::Watchdog);
    let _ = process::lock_memory();
    for (index, directory) in introduction.directories.into_iter().enumerate() {
        let watch = Arc::clone(&watch);
        std::thread::Builder::new()
            .stack_size(WORKER_STACK_BYTES)
            .spawn(move || {
                watch.fired.wait_until(None, |fired| fired == 1);
                watch.settle(index, directory.as_fd());
                drop(directory);
                watch.settled.add_one();
                watch.settled.wake_all();
                // The end of a thread unmaps its stack, on every processor, and so holds up those
                // that have yet to thaw. It ends with the process.
                loop {
                    std::thread::park();
                }
            })?;
    }
    watch.ledger.header.set_watchdog(process::own_name());
    channel.send(
        Frame::Ready {
            own_control_group: own_control_group.is_some(),
        },
        &[],
    )?;
    let listener = Vigil {
        watch: &watch,
        channel: Some(channel),
        run: introduction.run,
        rcu: introduction.rcu,
        is_armed: false,
    }
    .keep();

    // Nothing of ours is frozen any more. The workers see that and end; what one of them has just
    // done is in the ledger before the run hears that it may read it.
    watch.fired.set(1);
    let limit = clock::monotonic().plus(SETTLE_LIMIT);
    watch
        .settled
        .wait_until(Some(limit), |settled| settled >= count);
    if let Some(channel) = listener {
        let peak_memory_kib = process::peak_memory_kib()
            .and_then(|kib| u32::try_from(kib).ok())
            .unwrap_or(0);
        // The run may have stopped waiting.
        let _ = channel.send(Frame::Released { peak_memory_kib }, &[]);
    }
    // A child that the run forked may hold the lock as well; it is not the child's.
    process::unlock(introduction.lock.as_fd());
    if let Some(group) = own_control_group {
        group.leave();
    }
    Ok(())
}

/// The main thread of a watchdog: it waits, and decides when to thaw; the workers thaw.
struct Vigil<'a> {
    watch: &'a Watch,
    /// None from the moment the run's end is closed.
    channel: Option<&'a Channel>,
    /// The run's pidfd; none on a kernel without, and from the moment the run is gone.
    run: Option<OwnedFd>,
    rcu: Option<OwnedFd>,
    is_armed: bool,
}

impl<'a> Vigil<'a> {
    /// Waits until the run has released the watchdog, or is gone, and nothing is left to thaw.
    /// Returns the channel, if the run still listens.
    fn keep(mut self) -> Option<&'a Channel> {
        let mut is_released = false;
        loop {
            let is_over = is_released || self.channel.is_none();
            if is_over && !self.watch.ledger.may_be_frozen() {
                break;
            }
            self.wait();
            if self.run_is_gone() {
                self.watch.freezer_is_gone.store(true, Ordering::SeqCst);
                self.fire(FireReason::ParentGone);
            }
            is_released |= self.hear();
            if is_released && self.watch.ledger.may_be_frozen() {
                self.fire(FireReason::Told);
            }
            if self.is_late() {
                self.fire(FireReason::Deadline);
            }
        }
        // Only now is it certain that a run which was stopped in between does not switch it on again.
        if self.put_rcu_back() {
            self.watch.ledger.header.rcu_put_back();
        }
        self.channel
    }

    /// Waits for a word of the run, for its end, for the deadline, or for the next look.
    fn wait(&self) {
        let limit = if self.watch.fired.value() == 1 {
            // Once all is thawed only the run's last word is missing.
            self.watch.ledger.may_be_frozen().then_some(FIRED_TICK)
        } else {
            self.guard_by()
                .map(|deadline| deadline.since(clock::monotonic()))
        };
        let limit = limit.map(clock::timespec);
        let word = self
            .channel
            .map(|channel| PollFd::from_borrowed_fd(channel.descriptor(), PollFlags::IN));
        let end = self.run.as_ref().map(|run| PollFd::new(run, PollFlags::IN));
        // Whatever it answers, the caller looks at everything again.
        let _ = match (word, end) {
            (Some(word), Some(end)) => poll(&mut [word, end], limit.as_ref()),
            (Some(only), None) | (None, Some(only)) => poll(&mut [only], limit.as_ref()),
            (None, None) => poll(&mut [], limit.as_ref()),
        };
    }

    fn guard_by(&self) -> Option<Monotonic> {
        self.watch
            .ledger
            .header
            .guard_by()
            .filter(|_| self.is_armed)
    }

    fn is_late(&self) -> bool {
        self.guard_by()
            .is_some_and(|deadline| clock::monotonic() >= deadline)
            && self.watch.fired.value() == 0
    }

    /// Whether the run's process has just been found gone, with every thread it had.
    fn run_is_gone(&mut self) -> bool {
        let Some(run) = &self.run else {
            return false;
        };
        let mut waiting = [PollFd::new(run, PollFlags::IN)];
        let is_gone = matches!(
            poll(&mut waiting, Some(&clock::timespec(Duration::ZERO))),
            Ok(1)
        );
        if is_gone {
            self.run = None;
            self.channel = None;
        }
        is_gone
    }

    /// Takes what the run says. True if it released us.
    fn hear(&mut self) -> bool {
        let Some(channel) = self.channel else {
            return false;
        };
        match channel.receive_now() {
            Ok(Received::Frame(Frame::Arm, _)) => {
                self.is_armed = true;
                let _ = channel.send(Frame::Armed, &[]);
                false
            }
            Ok(Received::Frame(Frame::Release, _)) => true,
            // Anything else is not a word that the run has for an introduced watchdog.
            Ok(Received::Frame(..)) | Err(Errno::AGAIN | Errno::INTR) => false,
            Ok(Received::Closed) | Err(_) => {
                // A descriptor is closed when the last thread of its process ends, so without a
                // pidfd this is what says that no FIFREEZE can be running.
                if self.run.is_none() {
                    self.watch.freezer_is_gone.store(true, Ordering::SeqCst);
                }
                self.channel = None;
                self.fire(FireReason::ParentGone);
                false
            }
        }
    }

    /// Ends the window: nothing more may be frozen, and every worker thaws its own.
    fn fire(&self, reason: FireReason) {
        if self.watch.fired.value() == 1 {
            return;
        }
        // A run that never began is only over; there is no reason why it was ended.
        if self.is_armed || self.watch.ledger.may_be_frozen() {
            self.watch.ledger.header.fire(reason);
        }
        self.watch.ledger.revoke_planned();
        self.watch.fired.set(1);
        // It stays owed: a run that is stopped just before it switches it on does so when continued.
        self.put_rcu_back();
    }

    /// Writes back what was read, if it is owed. False if that failed.
    fn put_rcu_back(&self) -> bool {
        match (&self.rcu, self.watch.ledger.header.rcu_owed()) {
            (Some(rcu), Some(previous)) => {
                let text: &[u8] = if previous == 0 { b"0" } else { b"1" };
                rustix::io::pwrite(rcu, text, 0).is_ok()
            }
            (_, owed) => owed.is_none(),
        }
    }
}

impl Watch {
    /// Thaws one filesystem, and returns when it is known not to be frozen by us.
    fn settle(&self, index: usize, directory: BorrowedFd<'_>) {
        let Some(entry) = self.ledger.entries.get(index) else {
            return;
        };
        let mut has_thawed = false;
        let mut pause = Duration::from_millis(1);
        loop {
            // Both are read *before* the FITHAW: its answer is final only when no FIFREEZE can
            // follow. A FIFREEZE that waits for a writer lets FITHAW answer EINVAL, and freezes
            // seconds later; one that waits for another's freeze lets it undo that one first.
            let freezer_is_gone = self.freezer_is_gone.load(Ordering::SeqCst);
            let state = entry.state();
            if !state.may_be_frozen() {
                if has_thawed {
                    // Our FIFREEZE was refused meanwhile; the ledger keeps what we undid.
                    entry.thawed(Thawer::Watchdog, clock::monotonic());
                }
                return;
            }
            let is_final = freezer_is_gone || state == FreezeState::Frozen;
            entry.thawing(clock::monotonic());
            match self.kernel.thaw(directory) {
                Ok(()) => {
                    has_thawed = true;
                    pause = Duration::from_millis(1);
                }
                Err(Errno::INVAL) => pause = (pause * 2).min(ASK_AGAIN_MAX),
                Err(errno) => {
                    entry.thaw_failed(errno.raw_os_error().unsigned_abs());
                    pause = (pause * 2).min(TRY_AGAIN_MAX);
                    std::thread::sleep(pause);
                    continue;
                }
            }
            if is_final {
                match state {
                    _ if has_thawed => entry.thawed(Thawer::Watchdog, clock::monotonic()),
                    FreezeState::Frozen => entry.find_thawed(clock::monotonic()),
                    _ => entry.never_frozen(),
                }
                return;
            }
            std::thread::sleep(pause);
        }
    }
}
