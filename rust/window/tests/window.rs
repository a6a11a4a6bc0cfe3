//! The window's ways out, with a kernel that answers what the test says. What a real one does is in
//! `tests/engine`.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod support;

use std::os::fd::BorrowedFd;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use support::Stage;
use vmsnapshot_core::ledger::FreezeState;
use vmsnapshot_sys::kernel::Kernel;
use vmsnapshot_sys::Errno;
use vmsnapshot_window::quiet::Quiet;
use vmsnapshot_window::window;

/// Answers FIFREEZE with what it holds, and thaws.
struct Answers(Result<(), Errno>);

impl Kernel for Answers {
    fn freeze(&self, _: BorrowedFd<'_>) -> Result<(), Errno> {
        self.0
    }

    fn thaw(&self, _: BorrowedFd<'_>) -> Result<(), Errno> {
        Ok(())
    }

    fn sync(&self, _: BorrowedFd<'_>) -> Result<(), Errno> {
        Ok(())
    }
}

/// Both tests change the hook of the process's panics, or panic.
static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[test]
fn panic_while_frozen_thaws_and_leaves_rcu_as_it_was_with_a_trace_in_the_ledger() {
    let _alone = ONE_AT_A_TIME.lock().unwrap();
    let stage = Stage::new(Arc::new(Answers(Ok(()))), &[0, 1]);
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
    let stage = Stage::new(Arc::new(Answers(Err(Errno::BUSY))), &[0]);
    let record = window::open(&stage.prepared(), |_| panic!("nothing is to be asked"));
    assert_eq!(record.answers, None::<()>);
    assert_eq!(stage.ledger.entries[0].state(), FreezeState::Refused);
    assert!(stage.end());
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
    let stage = Stage::new(Arc::new(Answers(Ok(()))), &[0]);
    let entry = &stage.ledger.entries[0];

    let quiet = Quiet::begin();
    assert!(entry.announce(stage.deadlines.start));
    panic();
    quiet.end(&stage.ledger);
    // A freeze thread goes on: its panic must not wait for the disk that it is to thaw.
    panic();
    assert_eq!(HEARD.load(Ordering::SeqCst), 0);

    let quiet = Quiet::begin();
    entry.never_frozen();
    quiet.end(&stage.ledger);
    std::panic::set_hook(before);
    assert!(stage.end());
}
