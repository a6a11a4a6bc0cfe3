//! In which order the levels freeze and thaw, and what the ledger says of each filesystem, with a
//! kernel that takes its time. `tests/engine` has a real one.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod support;

use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{memfd_create, MemfdFlags};
use support::Stage;
use vmsnapshot_core::ledger::{Entry, FreezeState};
use vmsnapshot_sys::kernel::Kernel;
use vmsnapshot_sys::ledger_file::LedgerFile;
use vmsnapshot_sys::{clock, Errno};
use vmsnapshot_window::freezers::Freezers;
use vmsnapshot_window::quiet::Quiet;
use vmsnapshot_window::window;

/// How often a test tries something that a busy machine can spoil.
const ATTEMPTS: u32 = 10;

/// What a call does: it takes this long, and returns this.
type Call = (Duration, Result<(), Errno>);

const AT_ONCE: Call = (Duration::ZERO, Ok(()));

/// Makes the calls of a script in turn. The last one is repeated.
#[derive(Default)]
struct Slow {
    freezes: Vec<Call>,
    thaws: Vec<Call>,
    freeze_panics: bool,
    freeze_count: AtomicU32,
    thaw_count: AtomicU32,
}

fn call(script: &[Call], count: &AtomicU32) -> Result<(), Errno> {
    let number = count.fetch_add(1, Ordering::SeqCst) as usize;
    let (length, result) = *script.get(number).or(script.last()).unwrap_or(&AT_ONCE);
    std::thread::sleep(length);
    result
}

impl Kernel for Slow {
    fn freeze(&self, _: BorrowedFd<'_>) -> Result<(), Errno> {
        assert!(!self.freeze_panics, "the fault was asked for");
        call(&self.freezes, &self.freeze_count)
    }

    fn thaw(&self, _: BorrowedFd<'_>) -> Result<(), Errno> {
        call(&self.thaws, &self.thaw_count)
    }

    fn sync(&self, _: BorrowedFd<'_>) -> Result<(), Errno> {
        Ok(())
    }
}

fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}

fn states(stage: &Stage) -> Vec<FreezeState> {
    stage.ledger.entries.iter().map(Entry::state).collect()
}

#[test]
fn everything_is_frozen_while_the_window_asks_and_the_window_ends_without_waiting() {
    let stage = Stage::new(Arc::new(Slow::default()), &[0, 0, 1]);
    let record = window::open(&stage.prepared(), |_| states(&stage));
    assert_eq!(record.answers, Some(vec![FreezeState::Frozen; 3]));
    assert_eq!(states(&stage), [FreezeState::ThawedByRun; 3]);
    assert!(record.ended_at.since(stage.deadlines.start) < Duration::from_secs(5));
    assert!(stage.end());
}

#[test]
fn a_level_freezes_only_after_all_of_the_level_before_it() {
    let kernel = Slow {
        freezes: vec![(ms(50), Ok(())), AT_ONCE],
        ..Slow::default()
    };
    let stage = Stage::new(Arc::new(kernel), &[0, 0, 1]);
    window::open(&stage.prepared(), |_| ());
    let [first, second, last] = &stage.ledger.entries[..] else {
        panic!("there are three filesystems");
    };
    for upper in [first, second] {
        assert!(last.announced_at().unwrap() >= upper.freeze_returned_at().unwrap());
    }
    assert!(stage.end());
}

#[test]
fn the_last_level_thaws_first() {
    // A level waits for 50 ms at most, which a busy machine can use up.
    let is_in_order = (0..ATTEMPTS).any(|_| {
        let kernel = Slow {
            thaws: vec![(ms(5), Ok(()))],
            ..Slow::default()
        };
        let stage = Stage::new(Arc::new(kernel), &[0, 1]);
        window::open(&stage.prepared(), |_| ());
        let [upper, lower] = &stage.ledger.entries[..] else {
            panic!("there are two filesystems");
        };
        let is_in_order = upper.thaw_called_at() >= lower.thawed_at();
        assert!(stage.end());
        is_in_order
    });
    assert!(is_in_order);
}

#[test]
fn all_levels_thaw_at_once_after_a_panic() {
    let is_at_once = (0..ATTEMPTS).any(|_| {
        let kernel = Slow {
            thaws: vec![(ms(100), Ok(()))],
            ..Slow::default()
        };
        let stage = Stage::new(Arc::new(kernel), &[0, 1]);
        let quiet = Quiet::begin();
        let broken = catch_unwind(AssertUnwindSafe(|| {
            window::open(&stage.prepared(), |_| panic!("the fault was asked for"))
        }));
        quiet.end(&stage.ledger);
        assert!(broken.is_err());
        // The panic's thread has thawed both before anything else could.
        assert_eq!(states(&stage), [FreezeState::ThawedByRun; 2]);
        let [upper, lower] = &stage.ledger.entries[..] else {
            panic!("there are two filesystems");
        };
        // In order, the upper one would wait for 50 ms.
        let waited = upper.thaw_called_at().unwrap();
        let waited = waited.since(lower.thaw_called_at().unwrap());
        assert!(stage.end());
        waited < ms(30)
    });
    assert!(is_at_once);
}

#[test]
fn a_freeze_of_another_program_ends_the_window_at_once_although_a_freeze_hangs() {
    let is_at_once = (0..ATTEMPTS).any(|_| {
        let kernel = Slow {
            freezes: vec![AT_ONCE, (ms(20), Err(Errno::BUSY)), (ms(500), Ok(()))],
            ..Slow::default()
        };
        let stage = Stage::new(Arc::new(kernel), &[0, 0, 0]);
        let record = window::open(&stage.prepared(), |_| panic!("nothing is to be asked"));
        assert_eq!(record.answers, None::<()>);
        let returned = |state| {
            let mut entries = stage.ledger.entries.iter();
            entries.find(move |entry| entry.state() == state).unwrap()
        };
        let refused_at = returned(FreezeState::Refused).freeze_returned_at().unwrap();
        let thaws = stage
            .ledger
            .entries
            .iter()
            .filter_map(Entry::thaw_called_at);
        let first_thaw = thaws.min().unwrap();
        assert!(stage.end());
        first_thaw.since(refused_at) < ms(200)
    });
    assert!(is_at_once);
}

#[test]
fn ledger_says_who_thawed_if_fithaw_answers_that_nothing_is_frozen() {
    for (freeze_panics, state) in [
        (false, FreezeState::ThawedByAnother),
        // The FIFREEZE had not frozen it.
        (true, FreezeState::Revoked),
    ] {
        let kernel = Slow {
            thaws: vec![(Duration::ZERO, Err(Errno::INVAL))],
            freeze_panics,
            ..Slow::default()
        };
        let stage = Stage::new(Arc::new(kernel), &[0]);
        let quiet = Quiet::begin();
        window::open(&stage.prepared(), |_| ());
        quiet.end(&stage.ledger);
        assert_eq!(states(&stage), [state]);
        assert!(stage.end());
    }
}

#[test]
fn pauses_between_failing_thaws_grow() {
    let kernel = Arc::new(Slow {
        thaws: vec![(Duration::ZERO, Err(Errno::IO))],
        ..Slow::default()
    });
    let stage = Stage::new(Arc::clone(&kernel) as Arc<dyn Kernel>, &[0]);
    let mut prepared = stage.prepared();
    prepared.deadlines.thaw_by = stage.deadlines.start.plus(ms(500));
    window::open(&prepared, |_| ());
    // 5, 10, 20 ms and so on: a thread of real-time priority must not take the processor.
    assert!((2..20).contains(&kernel.thaw_count.load(Ordering::SeqCst)));
}

#[test]
fn threads_of_a_session_that_never_freezes_hold_nothing_open_after_its_end() {
    let memory = memfd_create("ledger", MemfdFlags::CLOEXEC).unwrap();
    let ledger = Arc::new(LedgerFile::create(memory, 2).unwrap());
    let open = || OwnedFd::from(File::open("/dev/null").unwrap());
    let directories: Arc<[OwnedFd]> = Arc::new([open(), open()]);
    let held = Arc::downgrade(&directories);
    let kernel = Arc::new(Slow::default());
    let freezers = Freezers::start(
        Arc::clone(&ledger),
        kernel,
        directories,
        // No count is wanted.
        [None, None].into(),
        &[0, 1],
    )
    .unwrap();
    drop(freezers);
    assert!(held.upgrade().is_none());
    assert!(!ledger.entries[0].announce(clock::monotonic()));
}

#[test]
fn expedited_rcu_that_was_on_already_stays_on() {
    let stage = Stage::new(Arc::new(Slow::default()), &[0]);
    rustix::io::pwrite(stage.rcu.descriptor().unwrap(), b"1", 0).unwrap();
    window::open(&stage.prepared(), |_| ());
    assert_eq!(stage.rcu_setting(), b'1');
    assert!(stage.ledger.header.was_rcu_expedited());
    assert_eq!(stage.ledger.header.rcu_owed(), None);
    assert!(stage.end());
}
