//! The watchdog: a process of its own that thaws what a run froze when the run cannot.
//!
//! The run starts it before anything is frozen and hands it all it needs: the ledger, a descriptor
//! of each filesystem, one of the run's process, one of `rcu_expedited`. Once it has answered that it
//! is armed, and until everything is thawed, it opens nothing and starts no thread, and the only file
//! that it writes is `rcu_expedited`. It thaws only what the ledger calls announced or frozen by this
//! run, and only when the run is gone, is late, or asks for it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{poll, PollFd, PollFlags};
use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::frames::Frame;
use vmsnapshot_core::ledger::{FireReason, FreezeState, Thawer};
use vmsnapshot_sys::channel::{Channel, Received};
use vmsnapshot_sys::kernel::Kernel;
use vmsnapshot_sys::ledger_file::{LedgerCopy, LedgerFile};
use vmsnapshot_sys::signal::Signal;
use vmsnapshot_sys::{clock, control_group, ledger_guard, process, Errno};

use crate::introduction::{unexpected, Introduction};

/// The part of the name of its control group between `vmsnapshot-` and the process id.
const CONTROL_GROUP_ROLE: &str = "watchdog";
/// How often a watchdog that has fired looks whether the run's process is gone.
const FIRED_TICK: Duration = Duration::from_millis(2);
/// The longest pause between two FITHAW calls that were answered EINVAL.
const ASK_AGAIN_MAX: Duration = Duration::from_millis(8);
/// The longest pause between two FITHAW calls that failed.
const TRY_AGAIN_MAX: Duration = Duration::from_millis(200);
/// How long it looks and asks that often. A FIFREEZE can hang for hours, and a process of real-time
/// priority must not take the processor for so long.
const HURRY: Duration = Duration::from_secs(60);
/// The longest pause after that.
const PATIENT_PAUSE_MAX: Duration = Duration::from_secs(1);
/// A thaw worker calls one ioctl; 64 of these are 4 MiB of addresses and a few pages of memory.
const WORKER_STACK_BYTES: usize = 64 * 1024;

/// Returns how long to pause, if it has already gone on for `elapsed` and `pause` is right at first.
fn decayed(pause: Duration, elapsed: Duration) -> Duration {
    if elapsed < HURRY {
        pause
    } else {
        (elapsed / 1000).clamp(pause, PATIENT_PAUSE_MAX)
    }
}

/// What the workers share.
struct Watch {
    ledger: LedgerFile,
    kernel: Arc<dyn Kernel>,
    /// Whether no thread of the run can be inside FIFREEZE any more.
    freezer_is_gone: AtomicBool,
    /// 0 while there is nothing to do. 1 once each worker has to settle its filesystem.
    fired: Signal,
    /// How many workers have settled. Such a worker knows that the run does not keep its filesystem
    /// frozen, has written what it did into the ledger, and has closed the filesystem.
    settled: Signal,
}

/// Watches one run to its end. Returns when nothing that the run announced is frozen.
///
/// # Errors
/// What is missing at the start; the run then never freezes. Nothing ends it once it is armed.
pub fn watch(channel: &Channel, kernel: Arc<dyn Kernel>) -> io::Result<()> {
    let introduction = Introduction::receive(channel)?;
    let count = u32::try_from(introduction.directories.len()).map_err(|_| unexpected())?;
    let spare = spare_ledger(&introduction)?;
    ledger_guard::let_bus_errors_through();
    let watch = Arc::new(Watch {
        ledger: introduction.ledger,
        kernel,
        freezer_is_gone: AtomicBool::new(false),
        fired: Signal::new(0),
        settled: Signal::new(0),
    });
    let own_control_group = control_group::enter(CONTROL_GROUP_ROLE);
    // None of these three is a condition of thawing. Each makes it surer on a machine in trouble.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let _ = process::run_before_others(process::Urgency::Watchdog);
    let _ = process::lock_memory();
    for (index, directory) in introduction.directories.into_iter().enumerate() {
        let watch = Arc::clone(&watch);
        std::thread::Builder::new()
            .stack_size(WORKER_STACK_BYTES)
            .spawn(move || {
                watch.fired.wait_until(None, |fired| fired == 1);
                let settle = || watch.settle(index, directory.as_fd());
                while catch_unwind(AssertUnwindSafe(settle)).is_err() {
                    std::thread::sleep(TRY_AGAIN_MAX);
                }
                drop(directory);
                watch.settled.add_one();
                watch.settled.wake_all();
                // The end of a thread unmaps its stack on every processor, and delays those that
                // have yet to thaw. So it ends with the process.
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
    let mut vigil = Vigil {
        watch: &watch,
        channel: Some(channel),
        run: introduction.run,
        rcu: introduction.rcu,
        spare: Some(spare),
        is_armed: false,
        is_released: false,
        fired_at: None,
    };
    while catch_unwind(AssertUnwindSafe(|| vigil.keep())).is_err() {
        // Whatever it was about to decide, this is the safe side. Then it goes on.
        vigil.fire(FireReason::Deadline);
        std::thread::sleep(TRY_AGAIN_MAX);
    }
    let is_dismissed = vigil.is_released && !vigil.is_armed;
    let listener = vigil.channel;

    // Nothing that the run announced is frozen now. A worker whose FITHAW has not returned is waited
    // for without a limit: it could undo the freeze of the next run. The lock stays taken until then.
    watch.fired.set(1);
    watch.settled.wait_until(None, |settled| settled >= count);
    if let Some(channel) = listener {
        let peak_memory_kib = process::peak_memory_kib()
            .and_then(|kib| u32::try_from(kib).ok())
            .unwrap_or(0);
        // The run may have stopped waiting.
        let _ = channel.send(Frame::Released { peak_memory_kib }, &[]);
    }
    // A child that the run forked may hold the lock as well. It does not belong to the child. A run
    // that has dismissed this watchdog keeps the lock, and starts another one.
    if !is_dismissed {
        process::unlock(introduction.lock.as_fd());
    }
    if let Some(group) = own_control_group {
        group.leave();
    }
    Ok(())
}

/// Makes the ledger that takes the place of one that was truncated. The watchdog then knows nothing of
/// the filesystems that it holds, so this one says that the run may have frozen each of them, that the
/// deadline has passed, and that expedited RCU has to be put back if it is off now.
fn spare_ledger(introduction: &Introduction) -> io::Result<LedgerCopy> {
    let spare = introduction.ledger.copy()?;
    for entry in &spare.entries {
        let _ = entry.announce(clock::monotonic());
    }
    let passed = Monotonic(1);
    spare.header.start(passed, clock::realtime_ns(), passed);
    let mut text = [0; 1];
    let setting = introduction.rcu.as_ref();
    if setting.is_some_and(|rcu| rustix::io::pread(rcu, &mut text, 0) == Ok(1) && text == *b"0") {
        spare.header.rcu_switched_on(0);
    }
    Ok(spare)
}

/// The main thread of a watchdog. It waits and decides when to thaw; the workers thaw.
struct Vigil<'a> {
    watch: &'a Watch,
    /// `None` once the run's end is closed.
    channel: Option<&'a Channel>,
    /// The run's pidfd; `None` on a kernel without pidfds, and once the run is gone.
    run: Option<OwnedFd>,
    rcu: Option<OwnedFd>,
    /// What takes the place of the ledger if that is truncated. `None` once the watchdog is armed.
    spare: Option<LedgerCopy>,
    is_armed: bool,
    is_released: bool,
    fired_at: Option<Monotonic>,
}

impl Vigil<'_> {
    /// Waits until the run has released the watchdog or is gone, and nothing is left to thaw.
    fn keep(&mut self) {
        loop {
            let is_over = self.is_released || self.channel.is_none();
            if is_over && !self.watch.ledger.may_be_frozen() {
                break;
            }
            self.wait(is_over);
            if self.run_is_gone() {
                self.watch.freezer_is_gone.store(true, Ordering::SeqCst);
                self.fire(FireReason::ParentGone);
            }
            self.is_released |= self.receive();
            if self.is_released && self.watch.ledger.may_be_frozen() {
                self.fire(FireReason::Told);
            }
            if self.is_late() {
                self.fire(FireReason::Deadline);
            }
        }
        // Only now is it certain that no run that was stopped in between switches it on again.
        if self.put_rcu_back() {
            self.watch.ledger.header.rcu_put_back();
        }
    }

    /// Waits for a frame from the run, for its end, for the deadline, or for the next look. `is_over`
    /// says that the run has sent its last frame or is gone.
    fn wait(&self, is_over: bool) {
        let limit = if let Some(fired_at) = self.fired_at {
            let tick = decayed(FIRED_TICK, clock::monotonic().since(fired_at));
            // Once everything is thawed, only the run's last frame is missing. After that frame there
            // is nothing to wait for: a worker may have finished since the caller looked.
            (is_over || self.watch.ledger.may_be_frozen()).then_some(tick)
        } else {
            self.guard_by()
                .map(|deadline| deadline.since(clock::monotonic()))
        };
        let limit = limit.map(clock::timespec);
        let frame = self
            .channel
            .map(|channel| PollFd::from_borrowed_fd(channel.descriptor(), PollFlags::IN));
        let end = self.run.as_ref().map(|run| PollFd::new(run, PollFlags::IN));
        // Whatever it answers, the caller looks at everything again.
        let _ = match (frame, end) {
            (Some(frame), Some(end)) => poll(&mut [frame, end], limit.as_ref()),
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
            && self.fired_at.is_none()
    }

    /// Returns whether the run's process was just found gone, with every thread it had.
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

    /// Takes the run's frame, if there is one. Returns whether it releases the watchdog.
    fn receive(&mut self) -> bool {
        let Some(channel) = self.channel else {
            return false;
        };
        match channel.receive_now() {
            Ok(Received::Frame(Frame::Arm, _)) => {
                if let Some(spare) = self.spare.take() {
                    // Without it, everything but a truncated ledger still goes well.
                    let _ = ledger_guard::replace_when_truncated(&self.watch.ledger, spare);
                }
                self.is_armed = true;
                let _ = channel.send(Frame::Armed, &[]);
                false
            }
            Ok(Received::Frame(Frame::Release, _)) => true,
            // The run sends nothing else to an introduced watchdog.
            Ok(Received::Frame(..)) | Err(Errno::AGAIN | Errno::INTR) => false,
            Ok(Received::Closed) | Err(_) => {
                // The run keeps its end open until the watchdog has answered the release. So it
                // closes when the last thread of the process ends. Without a pidfd, this is how the
                // watchdog knows that no FIFREEZE can be running.
                if self.run.is_none() {
                    self.watch.freezer_is_gone.store(true, Ordering::SeqCst);
                }
                self.channel = None;
                self.fire(FireReason::ParentGone);
                false
            }
        }
    }

    /// Ends the window: nothing more may be frozen, and every worker thaws its filesystem.
    fn fire(&mut self, reason: FireReason) {
        if self.fired_at.is_some() {
            return;
        }
        self.fired_at = Some(clock::monotonic());
        // A run that never began is simply over. Then there is no reason to record.
        if self.is_armed || self.watch.ledger.may_be_frozen() {
            self.watch.ledger.header.fire(reason);
        }
        self.watch.ledger.revoke_planned();
        self.watch.fired.set(1);
        // It stays owed: a run that is stopped just before it switches it on does so when it continues.
        self.put_rcu_back();
    }

    /// Writes back what was read, if it is owed. Returns whether nothing is owed now.
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use rustix::fs::{memfd_create, MemfdFlags};
    use vmsnapshot_sys::kernel::Linux;

    use super::*;

    /// Otherwise it sleeps with the lock, for ever or as long as the run's process lives, if the last
    /// worker settles between the look at the ledger and the wait.
    #[test]
    fn watchdog_whose_run_is_over_looks_again_although_nothing_is_frozen() {
        for has_channel in [false, true] {
            let memory = memfd_create("ledger", MemfdFlags::CLOEXEC).unwrap();
            let (ours, theirs) = Channel::pair().unwrap();
            let (sender, receiver) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let channel = Channel::from_descriptor(theirs);
                let watch = Watch {
                    ledger: LedgerFile::create(memory, 1).unwrap(),
                    kernel: Arc::new(Linux),
                    freezer_is_gone: AtomicBool::new(true),
                    fired: Signal::new(1),
                    settled: Signal::new(0),
                };
                let vigil = Vigil {
                    watch: &watch,
                    channel: has_channel.then_some(&channel),
                    run: None,
                    rcu: None,
                    spare: None,
                    is_armed: true,
                    is_released: false,
                    fired_at: Some(clock::monotonic()),
                };
                assert!(!watch.ledger.may_be_frozen());
                vigil.wait(true);
                sender.send(()).unwrap();
            });
            assert!(receiver.recv_timeout(Duration::from_secs(10)).is_ok());
            drop(ours);
        }
    }

    #[test]
    fn pauses_stay_short_for_a_minute_and_grow_to_a_second_after_it() {
        let pause_ms = |elapsed_s| decayed(FIRED_TICK, Duration::from_secs(elapsed_s)).as_millis();
        assert_eq!(pause_ms(0), 2);
        assert_eq!(pause_ms(59), 2);
        assert_eq!(pause_ms(60), 60);
        assert_eq!(pause_ms(600), 600);
        assert_eq!(pause_ms(3600), 1000);
    }
}
