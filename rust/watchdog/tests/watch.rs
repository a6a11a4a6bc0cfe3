//! The watchdog's rules, with a kernel that answers what the test says. What a real one does is in
//! `tests/engine`.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{memfd_create, MemfdFlags};
use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::frames::Frame;
use vmsnapshot_core::ledger::{Entry, FireReason, FreezeState};
use vmsnapshot_sys::channel::{Channel, Received};
use vmsnapshot_sys::kernel::Kernel;
use vmsnapshot_sys::ledger_file::LedgerFile;
use vmsnapshot_sys::{clock, process, Errno};

const LIMIT: Duration = Duration::from_secs(10);

/// Answers FITHAW from a script, whose last answer is for every further call.
struct Scripted {
    script: Mutex<Vec<Result<(), Errno>>>,
    thaws: Mutex<u32>,
    /// A FITHAW does not return while a test holds this.
    hold: Mutex<()>,
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
        let memory = memfd_create("ledger", MemfdFlags::CLOEXEC).unwrap();
        let ledger = LedgerFile::create(memory, 1).unwrap();
        ledger.header.name("test", process::own_name());
        let device = DeviceNumber { major: 7, minor: 1 };
        ledger.entries[0].name(device, std::path::Path::new("/test"));
        let kernel = Arc::new(Scripted {
            script: Mutex::new(script.to_vec()),
            thaws: Mutex::new(0),
            hold: Mutex::new(()),
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
            has_rcu: false,
        };
        channel
            .send(hello, &[ledger.descriptor(), anything.as_fd()])
            .unwrap();
        channel
            .send(Frame::Directories { count: 1 }, &[anything.as_fd()])
            .unwrap();
        let run = Run {
            channel,
            ledger,
            kernel,
            watchdog,
        };
        assert!(matches!(run.hear(), Frame::Ready { .. }));
        run
    }

    /// Arms it with a deadline `after` now.
    fn arm(&self, after: Duration) {
        let now = clock::monotonic();
        self.ledger
            .header
            .start(now, clock::realtime_ns(), now.plus(after));
        self.channel.send(Frame::Arm, &[]).unwrap();
        assert_eq!(self.hear(), Frame::Armed);
    }

    fn hear(&self) -> Frame {
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

    /// Ends the run as a death does: its end of the channel closes. Returns what is left of it.
    fn die(self) -> (LedgerFile, Arc<Scripted>) {
        drop(self.channel);
        self.watchdog.join().unwrap().unwrap();
        (self.ledger, self.kernel)
    }

    fn release(self) -> (LedgerFile, Arc<Scripted>) {
        self.channel.send(Frame::Release, &[]).unwrap();
        assert!(matches!(self.hear(), Frame::Released { .. }));
        self.watchdog.join().unwrap().unwrap();
        (self.ledger, self.kernel)
    }
}

#[test]
fn nothing_is_thawed_for_a_run_that_thawed_by_itself() {
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
fn what_is_frozen_is_thawed_at_the_deadline_and_not_before() {
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
fn a_deadline_holds_only_for_an_armed_watchdog() {
    let run = Run::start(&[Ok(())]);
    run.ledger.header.start(Monotonic(1), 0, Monotonic(2));
    // Any word wakes it; this one it does not know from a run.
    run.channel.send(Frame::Armed, &[]).unwrap();
    let (ledger, kernel) = run.release();
    assert_eq!(kernel.thaws(), 0);
    assert_eq!(ledger.entries[0].state(), FreezeState::Planned);
}

#[test]
fn what_is_frozen_is_thawed_when_the_run_is_gone() {
    let run = Run::start(&[Ok(())]);
    run.arm(LIMIT);
    run.freeze();
    let (ledger, kernel) = run.die();
    assert_eq!(ledger.entries[0].state(), FreezeState::ThawedByWatchdog);
    assert_eq!(kernel.thaws(), 1);
    assert_eq!(ledger.header.fired(), Some(FireReason::ParentGone));
}

#[test]
fn what_a_released_run_may_have_left_frozen_is_thawed() {
    let run = Run::start(&[Ok(())]);
    run.arm(LIMIT);
    run.freeze();
    let (ledger, _) = run.release();
    assert_eq!(ledger.entries[0].state(), FreezeState::ThawedByWatchdog);
    assert_eq!(ledger.header.fired(), Some(FireReason::Told));
}

#[test]
fn einval_is_asked_again_while_a_freezer_may_be_inside_fifreeze() {
    // A FIFREEZE that waits for a writer: EINVAL at first, then it has frozen.
    let mut script = vec![Err(Errno::INVAL); 20];
    script.extend([Ok(()), Err(Errno::INVAL)]);
    let run = Run::start(&script);
    run.announce();
    run.arm(Duration::from_millis(10));
    run.wait_for_thaws(21);
    assert!(run.entry().frozen(clock::monotonic()));
    run.wait_for(FreezeState::ThawedByWatchdog);
    run.release();
}

#[test]
fn our_freeze_is_thawed_that_followed_one_which_fithaw_undid() {
    // Our FIFREEZE waits behind somebody else's freeze: the first FITHAW undoes theirs.
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
    // Exactly one FITHAW succeeds for one freeze. The other one undid a freeze that was not ours.
    let (ledger, _) = run.release();
    assert!(ledger.entries[0].undid_another());
}

#[test]
fn one_thaw_of_one_freeze_is_not_called_the_undoing_of_another() {
    // FITHAW succeeds after FIFREEZE has frozen and before the run could say so.
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
fn last_word_is_not_sent_while_a_fithaw_has_not_returned() {
    let run = Run::start(&[Ok(())]);
    let kernel = Arc::clone(&run.kernel);
    let hold = kernel.hold.lock().unwrap();
    run.freeze();
    run.arm(Duration::from_millis(1));
    run.wait_for_thaws(1);
    // The run's own FITHAW comes back first.
    run.entry()
        .thawed(vmsnapshot_core::ledger::Thawer::Run, clock::monotonic());
    run.channel.send(Frame::Release, &[]).unwrap();
    // Longer than the second after which it used to be sent all the same.
    let patience = clock::monotonic().plus(Duration::from_millis(1300));
    assert_eq!(run.channel.receive(patience).err(), Some(Errno::TIMEDOUT));
    drop(hold);
    assert!(matches!(run.hear(), Frame::Released { .. }));
    run.watchdog.join().unwrap().unwrap();
}

#[test]
fn a_freeze_of_somebody_else_that_fithaw_undid_is_told() {
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
fn einval_ends_the_asking_when_the_freezer_is_gone() {
    let run = Run::start(&[Err(Errno::INVAL)]);
    run.arm(LIMIT);
    run.announce();
    let (ledger, _) = run.die();
    assert_eq!(ledger.entries[0].state(), FreezeState::Revoked);
}

#[test]
fn einval_of_what_was_frozen_means_that_somebody_else_thawed_it() {
    let run = Run::start(&[Err(Errno::INVAL)]);
    run.arm(LIMIT);
    run.freeze();
    let (ledger, kernel) = run.die();
    assert_eq!(ledger.entries[0].state(), FreezeState::ThawedByAnother);
    assert_eq!(kernel.thaws(), 1);
}

#[test]
fn a_thaw_that_fails_is_tried_again() {
    let run = Run::start(&[Err(Errno::IO), Err(Errno::IO), Ok(())]);
    run.arm(LIMIT);
    run.freeze();
    let (ledger, kernel) = run.die();
    assert_eq!(ledger.entries[0].state(), FreezeState::ThawedByWatchdog);
    assert_eq!(kernel.thaws(), 3);
}

#[test]
fn what_somebody_else_had_frozen_is_never_thawed() {
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
}

#[test]
fn what_was_not_announced_is_never_thawed_and_may_not_be_frozen_any_more() {
    let run = Run::start(&[Ok(())]);
    run.arm(LIMIT);
    let (ledger, kernel) = run.die();
    assert_eq!(kernel.thaws(), 0);
    assert!(!ledger.entries[0].announce(clock::monotonic()));
}

#[test]
fn a_watchdog_that_is_not_introduced_ends() {
    let (channel, theirs) = Channel::pair().unwrap();
    let kernel = Arc::new(Scripted {
        script: Mutex::new(vec![Ok(())]),
        thaws: Mutex::new(0),
        hold: Mutex::new(()),
    });
    channel.send(Frame::Arm, &[]).unwrap();
    let result = vmsnapshot_watchdog::watch(&Channel::from_descriptor(theirs), kernel);
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::InvalidData);
}
