//! The watchdog's rules, with a kernel that answers what the test says. The tests in `tests/engine`
//! use the real one.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{flock, memfd_create, FlockOperation, MemfdFlags};
use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::frames::Frame;
use vmsnapshot_core::ledger::{Entry, FireReason, FreezeState};
use vmsnapshot_sys::channel::{Channel, Received};
use vmsnapshot_sys::kernel::Kernel;
use vmsnapshot_sys::ledger_file::LedgerFile;
use vmsnapshot_sys::{clock, place, process, Errno};

const LIMIT: Duration = Duration::from_secs(10);

/// Answers FITHAW from a script. The last answer is used for every further call.
struct Scripted {
    script: Mutex<Vec<Result<(), Errno>>>,
    thaws: Mutex<u32>,
    /// A FITHAW does not return while a test holds this.
    hold: Mutex<()>,
    /// How often a scrub was cancelled.
    cancels: Mutex<u32>,
    /// How many calls panic before the script begins.
    panics: AtomicU32,
    /// Whether the next call is a fault.
    aborts: AtomicBool,
}

impl Scripted {
    fn thaws(&self) -> u32 {
        *self.thaws.lock().unwrap()
    }
}

impl Kernel for Scripted {
    fn freeze(&self, _: BorrowedFd<'_>) -> Result<(), Errno> {
        panic!("a watchdog never freezes")
    }

    fn thaw(&self, _: BorrowedFd<'_>) -> Result<(), Errno> {
        *self.thaws.lock().unwrap() += 1;
        drop(self.hold.lock().unwrap());
        if self.aborts.swap(false, SeqCst) {
            std::process::abort();
        }
        let one_less = |left: u32| left.checked_sub(1);
        let panics = self.panics.fetch_update(SeqCst, SeqCst, one_less);
        assert!(panics.is_err(), "the test asked for it");
        let mut script = self.script.lock().unwrap();
        if script.len() > 1 {
            script.remove(0)
        } else {
            script[0]
        }
    }

    fn sync(&self, _: BorrowedFd<'_>) -> Result<(), Errno> {
        panic!("a watchdog never syncs")
    }

    fn cancel_scrub(&self, _: BorrowedFd<'_>) -> Result<(), Errno> {
        *self.cancels.lock().unwrap() += 1;
        Ok(())
    }
}

/// A run's side of a watchdog that watches one filesystem.
struct Run {
    channel: Channel,
    ledger: LedgerFile,
    kernel: Arc<Scripted>,
    watchdog: JoinHandle<io::Result<()>>,
}

impl Run {
    /// Starts a watchdog whose FITHAW calls are answered by `script`.
    fn start(script: &[Result<(), Errno>]) -> Run {
        let anything = File::open("/dev/null").unwrap();
        Run::start_with(script, anything.as_fd(), None)
    }

    /// The same with a lock and a setting of RCU.
    fn start_with(
        script: &[Result<(), Errno>],
        lock: BorrowedFd<'_>,
        rcu: Option<BorrowedFd<'_>>,
    ) -> Run {
        let memory = memfd_create("ledger", MemfdFlags::CLOEXEC).unwrap();
        let ledger = LedgerFile::create(memory, 1).unwrap();
        ledger.header.name(process::own_name(), place::here());
        let device = DeviceNumber { major: 7, minor: 1 };
        ledger.entries[0].name(device, std::path::Path::new("/test"));
        let kernel = Arc::new(Scripted {
            script: Mutex::new(script.to_vec()),
            thaws: Mutex::new(0),
            hold: Mutex::new(()),
            cancels: Mutex::new(0),
            panics: AtomicU32::new(0),
            aborts: AtomicBool::new(false),
        });
        let (channel, theirs) = Channel::pair().unwrap();
        let theirs_kernel = Arc::clone(&kernel);
        let watchdog = std::thread::spawn(move || {
            vmsnapshot_watchdog::watch(&Channel::from_descriptor(theirs), theirs_kernel)
        });
        let anything = File::open("/dev/null").unwrap();
        let hello = Frame::Hello {
            directories: 1,
            has_pidfd: false,
            has_rcu: rcu.is_some(),
        };
        let mut descriptors = vec![ledger.descriptor(), lock];
        descriptors.extend(rcu);
        channel.send(hello, &descriptors).unwrap();
        channel
            .send(Frame::Directories { count: 1 }, &[anything.as_fd()])
            .unwrap();
        let run = Run {
            channel,
            ledger,
            kernel,
            watchdog,
        };
        assert!(matches!(run.receive(), Frame::Ready { .. }));
        run
    }

    /// Arms it with a deadline `after` now.
    fn arm(&self, after: Duration) {
        let now = clock::monotonic();
        self.ledger
            .header
            .start(now, clock::realtime_ns(), now.plus(after));
        self.channel.send(Frame::Arm, &[]).unwrap();
        assert_eq!(self.receive(), Frame::Armed);
    }

    fn receive(&self) -> Frame {
        match self
            .channel
            .receive(clock::monotonic().plus(LIMIT))
            .unwrap()
        {
            Received::Frame(frame, _) => frame,
            Received::Closed => panic!("the watchdog is gone"),
        }
    }

    fn entry(&self) -> &Entry {
        &self.ledger.entries[0]
    }

    fn announce(&self) {
        assert!(self.entry().announce(clock::monotonic()));
    }

    fn freeze(&self) {
        self.announce();
        assert!(self.entry().frozen(clock::monotonic()));
    }

    fn wait_for(&self, state: FreezeState) {
        let start = Instant::now();
        while self.entry().state() != state {
            assert!(start.elapsed() < LIMIT, "it is {:?}", self.entry().state());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn wait_for_thaws(&self, count: u32) {
        let start = Instant::now();
        while self.kernel.thaws() < count {
            assert!(start.elapsed() < LIMIT, "{} thaws", self.kernel.thaws());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends the run as if it were killed: its end of the channel closes. Returns what it leaves.
    fn die(self) -> (LedgerFile, Arc<Scripted>) {
        drop(self.channel);
        self.watchdog.join().unwrap().unwrap();
        (self.ledger, self.kernel)
    }

    fn release(self) -> (LedgerFile, Arc<Scripted>) {
        self.channel.send(Frame::Release, &[]).unwrap();
        assert!(matches!(self.receive(), Frame::Released { .. }));
        self.watchdog.join().unwrap().unwrap();
        (self.ledger, self.kernel)
    }
}

#[test]
fn watchdog_thaws_nothing_for_a_run_that_thawed_by_itself() {
    let run = Run::start(&[Err(Errno::INVAL)]);
    run.arm(LIMIT);
    run.freeze();
    run.entry()
        .thawed(vmsnapshot_core::ledger::Thawer::Run, clock::monotonic());
    let (ledger, kernel) = run.release();
    assert_eq!(kernel.thaws(), 0);
    assert_eq!(ledger.header.fired(), None);
}

#[test]
fn watchdog_thaws_although_its_worker_panics() {
    let run = Run::start(&[Ok(())]);
    run.kernel.panics.store(2, SeqCst);
    run.freeze();
    run.arm(Duration::from_millis(10));
    run.wait_for(FreezeState::ThawedByWatchdog);
    assert_eq!(run.kernel.thaws(), 3);
    run.release();
}

#[test]
fn watchdog_thaws_and_answers_although_its_worker_aborts() {
    let run = Run::start(&[Ok(())]);
    run.kernel.aborts.store(true, SeqCst);
    run.freeze();
    run.arm(Duration::from_millis(10));
    run.wait_for(FreezeState::ThawedByWatchdog);
    assert_eq!(run.kernel.thaws(), 2);
    run.release();
}

#[test]
fn watchdog_thaws_at_the_deadline_and_not_before() {
    let run = Run::start(&[Ok(())]);
    run.freeze();
    run.arm(Duration::from_millis(100));
    let deadline = run.ledger.header.guard_by().unwrap();
    run.wait_for(FreezeState::ThawedByWatchdog);
    let called_at = run.entry().thaw_called_at().unwrap();
    assert!(called_at >= deadline);
    assert!(called_at.since(deadline) < Duration::from_millis(100));
    let (ledger, kernel) = run.release();
    assert_eq!(kernel.thaws(), 1);
    assert_eq!(ledger.header.fired(), Some(FireReason::Deadline));
}

#[test]
fn watchdog_ignores_the_deadline_until_it_is_armed() {
    let run = Run::start(&[Ok(())]);
    run.ledger.header.start(Monotonic(1), 0, Monotonic(2));
    // Any frame wakes the watchdog. It ignores this one, because a run never sends it.
    run.channel.send(Frame::Armed, &[]).unwrap();
    let (ledger, kernel) = run.release();
    assert_eq!(kernel.thaws(), 0);
    assert_eq!(ledger.entries[0].state(), FreezeState::Planned);
}

#[test]
fn watchdog_thaws_when_the_run_is_gone() {
    let run = Run::start(&[Ok(())]);
    run.arm(LIMIT);
    run.freeze();
    let (ledger, kernel) = run.die();
    assert_eq!(ledger.entries[0].state(), FreezeState::ThawedByWatchdog);
    assert_eq!(kernel.thaws(), 1);
    assert_eq!(ledger.header.fired(), Some(FireReason::ParentGone));
}

#[test]
fn watchdog_thaws_what_a_released_run_left_frozen() {
    let run = Run::start(&[Ok(())]);
    run.arm(LIMIT);
    run.freeze();
    let (ledger, _) = run.release();
    assert_eq!(ledger.entries[0].state(), FreezeState::ThawedByWatchdog);
    assert_eq!(ledger.header.fired(), Some(FireReason::Told));
}

#[test]
fn watchdog_repeats_fithaw_after_einval_while_fifreeze_may_be_running() {
    // FIFREEZE waits for a writer, and FITHAW answers EINVAL. Then FIFREEZE has frozen.
    let mut script = vec![Err(Errno::INVAL); 20];
    script.extend([Ok(()), Err(Errno::INVAL)]);
    let run = Run::start(&script);
    run.announce();
    let start = Instant::now();
    run.arm(Duration::from_millis(10));
    run.wait_for_thaws(21);
    // 2, 4 and then 8 ms: a thread of real-time priority must not take the processor.
    assert!(start.elapsed() > Duration::from_millis(100));
    assert!(run.entry().frozen(clock::monotonic()));
    run.wait_for(FreezeState::ThawedByWatchdog);
    run.release();
}

#[test]
fn watchdog_thaws_our_freeze_after_its_fithaw_undid_another_programs() {
    // Our FIFREEZE waits behind another program's freeze. The first FITHAW undoes that one.
    let script = [
        Ok(()),
        Err(Errno::INVAL),
        Err(Errno::INVAL),
        Ok(()),
        Err(Errno::INVAL),
    ];
    let run = Run::start(&script);
    run.announce();
    run.arm(Duration::from_millis(10));
    run.wait_for_thaws(4);
    assert!(run.entry().frozen(clock::monotonic()));
    run.wait_for(FreezeState::ThawedByWatchdog);
    // Exactly one FITHAW succeeds per freeze, so the other one undid a freeze that was not ours.
    let (ledger, _) = run.release();
    assert!(ledger.entries[0].undid_another());
}

#[test]
fn ledger_records_no_undone_freeze_when_one_fithaw_succeeds_for_one_freeze() {
    // FITHAW succeeds after FIFREEZE has frozen and before the run has recorded it.
    let run = Run::start(&[Ok(()), Err(Errno::INVAL)]);
    run.announce();
    run.arm(Duration::from_millis(10));
    run.wait_for_thaws(2);
    assert!(run.entry().frozen(clock::monotonic()));
    run.wait_for(FreezeState::ThawedByWatchdog);
    let (ledger, _) = run.release();
    assert!(!ledger.entries[0].undid_another());
}

#[test]
fn watchdog_cancels_a_scrub_only_as_long_as_fifreeze_may_wait_for_it() {
    for (first, may_wait) in [(Err(Errno::INVAL), true), (Ok(()), false)] {
        let run = Run::start(&[first, Err(Errno::INVAL)]);
        run.announce();
        run.arm(Duration::from_millis(10));
        // FIFREEZE has returned if a FITHAW succeeded. A stopped run records that later.
        run.wait_for_thaws(5);
        assert_eq!(*run.kernel.cancels.lock().unwrap() > 0, may_wait);
        assert!(run.entry().frozen(clock::monotonic()));
        run.wait_for(if may_wait {
            FreezeState::ThawedByAnother
        } else {
            FreezeState::ThawedByWatchdog
        });
        let (ledger, kernel) = run.release();
        assert_eq!(*kernel.cancels.lock().unwrap() > 0, may_wait);
        assert_eq!(ledger.entries[0].cancelled_scrub(), may_wait);
    }
}

#[test]
fn watchdog_sends_released_only_after_every_fithaw_has_returned() {
    let run = Run::start(&[Ok(())]);
    let kernel = Arc::clone(&run.kernel);
    let hold = kernel.hold.lock().unwrap();
    run.freeze();
    run.arm(Duration::from_millis(1));
    run.wait_for_thaws(1);
    // The run's own FITHAW returns first.
    run.entry()
        .thawed(vmsnapshot_core::ledger::Thawer::Run, clock::monotonic());
    run.channel.send(Frame::Release, &[]).unwrap();
    // The watchdog used to send `Released` after one second even then, so wait longer.
    let patience = clock::monotonic().plus(Duration::from_millis(1300));
    assert_eq!(run.channel.receive(patience).err(), Some(Errno::TIMEDOUT));
    drop(hold);
    assert!(matches!(run.receive(), Frame::Released { .. }));
    run.watchdog.join().unwrap().unwrap();
}

#[test]
fn ledger_records_that_fithaw_undid_the_freeze_of_another_program() {
    let run = Run::start(&[Ok(()), Err(Errno::INVAL)]);
    run.announce();
    run.arm(Duration::from_millis(10));
    run.wait_for_thaws(1);
    let busy = Errno::BUSY.raw_os_error().unsigned_abs();
    run.entry().refuse(clock::monotonic(), busy);
    let (ledger, _) = run.release();
    assert_eq!(ledger.entries[0].state(), FreezeState::Refused);
    assert!(ledger.entries[0].undid_another());
}

#[test]
fn watchdog_revokes_after_einval_when_the_run_is_gone() {
    let run = Run::start(&[Err(Errno::INVAL)]);
    run.arm(LIMIT);
    run.announce();
    let (ledger, kernel) = run.die();
    assert_eq!(ledger.entries[0].state(), FreezeState::Revoked);
    // The deadline is far away, so a scrub goes on.
    assert_eq!(*kernel.cancels.lock().unwrap(), 0);
}

#[test]
fn watchdog_records_thawed_by_another_when_fithaw_of_a_frozen_filesystem_is_einval() {
    let run = Run::start(&[Err(Errno::INVAL)]);
    run.arm(LIMIT);
    run.freeze();
    let (ledger, kernel) = run.die();
    assert_eq!(ledger.entries[0].state(), FreezeState::ThawedByAnother);
    assert_eq!(kernel.thaws(), 1);
}

#[test]
fn watchdog_retries_a_fithaw_that_fails() {
    let mut script = vec![Err(Errno::IO); 7];
    script.push(Ok(()));
    let run = Run::start(&script);
    run.arm(LIMIT);
    run.freeze();
    let start = Instant::now();
    let (ledger, kernel) = run.die();
    assert_eq!(ledger.entries[0].state(), FreezeState::ThawedByWatchdog);
    assert_eq!(kernel.thaws(), 8);
    // The pauses grow from 2 to 128 ms.
    assert!(start.elapsed() > Duration::from_millis(200));
}

#[test]
fn watchdog_never_thaws_what_another_program_froze() {
    let run = Run::start(&[Ok(())]);
    run.announce();
    run.entry().refuse(
        clock::monotonic(),
        Errno::BUSY.raw_os_error().unsigned_abs(),
    );
    run.arm(Duration::from_millis(10));
    std::thread::sleep(Duration::from_millis(50));
    let (ledger, kernel) = run.die();
    assert_eq!(kernel.thaws(), 0);
    assert_eq!(ledger.entries[0].state(), FreezeState::Refused);
    assert!(!ledger.entries[0].undid_another());
}

#[test]
fn watchdog_revokes_what_was_not_announced_and_does_not_thaw_it() {
    let run = Run::start(&[Ok(())]);
    run.arm(LIMIT);
    let (ledger, kernel) = run.die();
    assert_eq!(kernel.thaws(), 0);
    assert_eq!(ledger.header.fired(), Some(FireReason::ParentGone));
    assert!(!ledger.entries[0].announce(clock::monotonic()));
}

#[test]
fn watchdog_puts_back_the_setting_of_rcu_that_a_dead_run_left() {
    for previous in [0, 1] {
        let setting = memfd_create("rcu_expedited", MemfdFlags::CLOEXEC).unwrap();
        rustix::io::pwrite(&setting, b"x", 0).unwrap();
        let lock = File::open("/dev/null").unwrap();
        let run = Run::start_with(&[Ok(())], lock.as_fd(), Some(setting.as_fd()));
        run.arm(LIMIT);
        run.ledger.header.rcu_switched_on(previous);
        run.freeze();
        let (ledger, _) = run.die();
        let mut text = [0; 1];
        rustix::io::pread(&setting, &mut text, 0).unwrap();
        assert_eq!(u32::from(text[0]), u32::from(b'0') + previous);
        assert_eq!(ledger.header.rcu_owed(), None);
    }
}

#[test]
fn watchdog_leaves_the_lock_to_a_run_that_has_dismissed_it() {
    for is_armed in [false, true] {
        let lock = memfd_create("lock", MemfdFlags::CLOEXEC).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let run = Run::start_with(&[Ok(())], lock.as_fd(), None);
        if is_armed {
            run.arm(LIMIT);
        }
        run.release();
        let other = File::open(format!("/proc/self/fd/{}", lock.as_raw_fd())).unwrap();
        let is_free = flock(&other, FlockOperation::NonBlockingLockExclusive).is_ok();
        assert_eq!(is_free, is_armed);
    }
}

#[test]
fn watchdog_ends_when_it_is_not_introduced() {
    let (channel, theirs) = Channel::pair().unwrap();
    let kernel = Arc::new(Scripted {
        script: Mutex::new(vec![Ok(())]),
        thaws: Mutex::new(0),
        hold: Mutex::new(()),
        cancels: Mutex::new(0),
        panics: AtomicU32::new(0),
        aborts: AtomicBool::new(false),
    });
    channel.send(Frame::Arm, &[]).unwrap();
    let result = vmsnapshot_watchdog::watch(&Channel::from_descriptor(theirs), kernel);
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidData);
}
