//! The watchdog: a process of its own that thaws what a run froze when the run cannot.
//!
//! The run starts it before anything is frozen and hands it all it needs: the ledger, a descriptor
//! of each filesystem, one of the run's process, one of `rcu_expedited`. Once it has answered that it
//! is armed, and until everything is thawed, it opens nothing and starts no thread, and the only file
//! that it writes is `rcu_expedited`. It thaws only what the ledger calls announced or frozen by this
//! run, and only when the run is gone, is late, or asks for it, or when the watchdog itself has a fault.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{poll, PollFd, PollFlags};
use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::frames::Frame;
use vmsnapshot_core::ledger::FireReason;
use vmsnapshot_sys::channel::{Channel, Received};
use vmsnapshot_sys::kernel::Kernel;
use vmsnapshot_sys::ledger_file::LedgerCopy;
use vmsnapshot_sys::signal::Signal;
use vmsnapshot_sys::{clock, control_group, faults, ledger_guard, process, Errno};

use crate::introduction::Introduction;
use crate::worker::{decayed, Watch, FIRED_TICK, TRY_AGAIN_MAX};

/// The part of the name of its control group between `vmsnapshot-` and the process id.
const CONTROL_GROUP_ROLE: &str = "watchdog";
/// A thaw worker calls one ioctl; 64 of these are 4 MiB of addresses and a few pages of memory.
const WORKER_STACK_BYTES: usize = 64 * 1024;

/// Watches one run to its end. Returns when nothing that the run announced is frozen.
///
/// # Errors
/// What is missing at the start; the run then never freezes. Nothing ends it once it is armed.
pub fn watch(channel: &Channel, kernel: Arc<dyn Kernel>) -> io::Result<()> {
    let introduction = Introduction::receive(channel)?;
    let spare = spare_ledger(&introduction)?;
    faults::catch()?;
    let watch = Arc::new(Watch {
        ledger: introduction.ledger,
        kernel,
        rcu: introduction.rcu,
        freezer_is_gone: AtomicBool::new(false),
        fired: Signal::new(0),
        settled: introduction
            .directories
            .iter()
            .map(|_| Signal::new(0))
            .collect(),
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
            .spawn(move || watch.work(index, directory))?;
    }
    let shared = Arc::clone(&watch);
    faults::on_fault(Box::leak(Box::new(move || shared.finish_after_fault())));
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
        spare: Some(spare),
        is_armed: false,
        is_released: false,
        fired_at: None,
    };
    while catch_unwind(AssertUnwindSafe(|| vigil.keep())).is_err() {
        // Whatever it was about to decide, this is the safe side. Then it goes on.
        vigil.fire(FireReason::Fault);
        std::thread::sleep(TRY_AGAIN_MAX);
    }
    let is_dismissed = vigil.is_released && !vigil.is_armed;
    let listener = vigil.channel;

    // Nothing that the run announced is frozen now. A worker whose FITHAW has not returned is waited
    // for without a limit: it could undo the freeze of the next run. The lock stays taken until then.
    watch.fired.set(1);
    for settled in &watch.settled {
        settled.wait_until(None, |settled| settled == 1);
    }
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
        if self.watch.put_rcu_back() {
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
        self.watch.raise_alarm();
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use rustix::fs::{memfd_create, MemfdFlags};
    use vmsnapshot_sys::kernel::Linux;
    use vmsnapshot_sys::ledger_file::LedgerFile;

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
                    rcu: None,
                    fired: Signal::new(1),
                    settled: Vec::new(),
                };
                let vigil = Vigil {
                    watch: &watch,
                    channel: has_channel.then_some(&channel),
                    run: None,
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
