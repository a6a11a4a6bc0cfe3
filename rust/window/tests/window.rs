//! How a window ends, with a kernel that answers what the test says. `tests/engine` has a real one.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod support;

use std::os::fd::BorrowedFd;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::{Last, Stage};
use vmsnapshot_core::ledger::{FireReason, FreezeState};
use vmsnapshot_sys::kernel::Kernel;
use vmsnapshot_sys::Errno;
use vmsnapshot_window::quiet::Quiet;
use vmsnapshot_window::window;

/// Answers FIFREEZE from a script, and thaws. The last answer is used for every further call.
struct Answers(Mutex<Vec<Result<(), Errno>>>);

impl Answers {
    fn of(script: &[Result<(), Errno>]) -> Arc<Answers> {
        Arc::new(Answers(Mutex::new(script.to_vec())))
    }
}

impl Kernel for Answers {
    fn freeze(&self, _: BorrowedFd<'_>) -> Result<(), Errno> {
        let mut script = self.0.lock().unwrap();
        if script.len() > 1 {
            script.remove(0)
        } else {
            script[0]
        }
    }

    fn thaw(&self, _: BorrowedFd<'_>) -> Result<(), Errno> {
        Ok(())
    }

    fn sync(&self, _: BorrowedFd<'_>) -> Result<(), Errno> {
        Ok(())
    }
}

/// These tests panic, or change what the process does in a panic.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn panic_while_frozen_thaws_and_leaves_rcu_as_it_was_with_a_trace_in_the_ledger() {
    let _alone = ONE_AT_A_TIME.lock().unwrap();
    let stage = Stage::new(Answers::of(&[Ok(())]), &[0, 1]);
    let prepared = stage.prepared();
    let quiet = Quiet::begin();
    let broken = catch_unwind(AssertUnwindSafe(|| {
        window::open(&prepared, |_| panic!("the fault was asked for"))
    }));
    quiet.end(&stage.ledger);
    assert!(broken.is_err());
    for entry in &stage.ledger.entries {
        assert_eq!(entry.state(), FreezeState::ThawedByRun);
    }
    // What the report says of the mode, although there is no record of the window.
    assert!(stage.ledger.header.was_rcu_expedited());
    assert_eq!(stage.rcu_setting(), b'0');
    assert!(stage.end());
}

#[test]
fn nothing_is_asked_when_a_freeze_fails_and_what_was_frozen_is_thawed() {
    let _alone = ONE_AT_A_TIME.lock().unwrap();
    let stage = Stage::new(Answers::of(&[Ok(()), Err(Errno::BUSY)]), &[0, 1]);
    let record = window::open(&stage.prepared(), |_| panic!("nothing is to be asked"));
    assert_eq!(record.answers, None::<()>);
    assert_eq!(stage.ledger.entries[0].state(), FreezeState::ThawedByRun);
    assert_eq!(stage.ledger.entries[1].state(), FreezeState::Refused);
    assert!(stage.end());
}

#[test]
fn nothing_is_asked_if_everything_is_frozen_too_late_or_the_watchdog_has_fired() {
    let _alone = ONE_AT_A_TIME.lock().unwrap();
    // A run that was stopped while FIFREEZE was under way goes on here: everything is frozen when it
    // looks, so it does not notice that `freeze_by` has passed.
    let stage = Stage::new(Answers::of(&[Ok(())]), &[0]);
    let mut late = stage.prepared();
    late.deadlines.call_by = late.deadlines.start;
    let record = window::open(&late, |_| panic!("nothing is to be asked"));
    assert_eq!(record.answers, None::<()>);
    assert_eq!(stage.ledger.entries[0].state(), FreezeState::ThawedByRun);
    assert!(stage.end());

    let stage = Stage::new(Answers::of(&[Ok(())]), &[0]);
    stage.ledger.header.fire(FireReason::Deadline);
    let record = window::open(&stage.prepared(), |_| panic!("nothing is to be asked"));
    assert_eq!(record.answers, None::<()>);
    assert_eq!(stage.ledger.entries[0].state(), FreezeState::ThawedByRun);
    assert!(stage.end());
}

/// Keeps the window's own thread busy until everything is thawed. Returns whether it was.
fn until_thawed(stage: &Stage) -> bool {
    let limit = Instant::now() + Duration::from_secs(5);
    while Instant::now() < limit {
        let mut entries = stage.ledger.entries.iter();
        if entries.all(|entry| entry.state() == FreezeState::ThawedByRun) {
            return true;
        }
    }
    false
}

#[test]
fn alarm_thaws_at_the_deadline_although_the_windows_own_thread_is_busy() {
    let _alone = ONE_AT_A_TIME.lock().unwrap();
    let timeout = Duration::from_millis(300);
    let stage = Stage::with(Answers::of(&[Ok(())]), &[0, 1], Last::Releases, timeout);
    let record = window::open(&stage.prepared(), |_| until_thawed(&stage));
    assert_eq!(record.answers, Some(true));
    for entry in &stage.ledger.entries {
        assert!(entry.thawed_at().unwrap() >= stage.deadlines.call_by);
    }
    let prepared = stage.prepared();
    assert!(!prepared.alarm.over().watchdog_lost());
    assert_eq!(stage.rings.load(Ordering::SeqCst), 1);
    assert!(stage.end());
}

#[test]
fn alarm_thaws_when_the_watchdog_is_gone_although_the_windows_own_thread_is_busy() {
    let _alone = ONE_AT_A_TIME.lock().unwrap();
    let (last, timeout) = (
        Last::Dies(Duration::from_millis(50)),
        Duration::from_secs(60),
    );
    let stage = Stage::with(Answers::of(&[Ok(())]), &[0, 1], last, timeout);
    let record = window::open(&stage.prepared(), |_| until_thawed(&stage));
    assert_eq!(record.answers, Some(true));
    assert!(stage.prepared().alarm.over().watchdog_lost());
    assert!(!stage.end());
}

#[test]
fn nothing_is_frozen_or_asked_after_the_alarm() {
    let _alone = ONE_AT_A_TIME.lock().unwrap();
    let (last, timeout) = (Last::Dies(Duration::ZERO), Duration::from_secs(60));
    let stage = Stage::with(Answers::of(&[Ok(())]), &[0, 1], last, timeout);
    while stage.rings.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    let record = window::open(&stage.prepared(), |_| panic!("nothing is to be asked"));
    assert_eq!(record.answers, None::<()>);
    for entry in &stage.ledger.entries {
        assert_eq!(entry.state(), FreezeState::Revoked);
    }
    assert!(!stage.end());
}

#[test]
fn alarm_does_not_ring_for_a_window_that_ends_by_itself() {
    let _alone = ONE_AT_A_TIME.lock().unwrap();
    let stage = Stage::new(Answers::of(&[Ok(())]), &[0]);
    window::open(&stage.prepared(), |_| {
        assert!(!stage.prepared().alarm.over().is_over());
    });
    assert!(stage.prepared().alarm.over().is_over());
    let rings = Arc::clone(&stage.rings);
    assert!(stage.end());
    assert_eq!(rings.load(Ordering::SeqCst), 0);
}

#[test]
fn failed_freeze_of_one_filesystem_does_not_end_the_window() {
    let _alone = ONE_AT_A_TIME.lock().unwrap();
    // ext4 after an error, f2fs with `checkpoint=disable`, a disk with a bad block.
    for errno in [Errno::ROFS, Errno::INVAL, Errno::IO] {
        let stage = Stage::new(Answers::of(&[Err(errno), Ok(())]), &[0, 1]);
        let record = window::open(&stage.prepared(), |_| ());
        assert_eq!(record.answers, Some(()));
        assert_eq!(stage.ledger.entries[0].state(), FreezeState::Refused);
        assert_eq!(stage.ledger.entries[1].state(), FreezeState::ThawedByRun);
        assert!(stage.end());
    }
}

#[test]
fn panics_stay_silent_after_the_run_while_something_may_be_frozen() {
    let _alone = ONE_AT_A_TIME.lock().unwrap();
    static HEARD: AtomicU32 = AtomicU32::new(0);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {
        HEARD.fetch_add(1, Ordering::SeqCst);
    }));
    let panic = || drop(catch_unwind(|| panic!("the fault was asked for")));
    let stage = Stage::new(Answers::of(&[Ok(())]), &[0]);
    let entry = &stage.ledger.entries[0];

    let quiet = Quiet::begin();
    panic();
    assert_eq!(HEARD.load(Ordering::SeqCst), 0);
    quiet.end(&stage.ledger);
    panic();
    assert_eq!(HEARD.load(Ordering::SeqCst), 1);

    let quiet = Quiet::begin();
    assert!(entry.announce(stage.deadlines.start));
    quiet.end(&stage.ledger);
    // A freeze thread goes on calling FITHAW. Its panic must not wait for the disk that it thaws.
    panic();
    assert_eq!(HEARD.load(Ordering::SeqCst), 1);

    entry.never_frozen();
    std::panic::set_hook(before);
    assert!(stage.end());
}

#[test]
fn channel_stays_open_if_the_watchdog_did_not_answer_the_release() {
    // Without a pidfd, the watchdog would take its end for the end of every FIFREEZE.
    let answered = Stage::new(Answers::of(&[Ok(())]), &[0]);
    let in_time = answered.deadlines.guard_by;
    assert_eq!(answered.end_by(in_time), (true, true));
    let silent = Stage::with_peer(Answers::of(&[Ok(())]), &[0], false);
    let at_once = silent.deadlines.start;
    assert_eq!(silent.end_by(at_once), (false, false));
}
