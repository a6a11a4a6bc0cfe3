//! From armed to thawed, the freeze and thaw paths allocate nothing.
//!
//! An allocation may have to ask the kernel for memory, and the kernel may have to write dirty pages
//! to a frozen filesystem to get it. This test has a program of its own, because it counts every
//! allocation of the process.

#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use support::{Last, Stage};
use vmsnapshot_core::ledger::{Entry, FreezeState};
use vmsnapshot_sys::kernel::Kernel;
use vmsnapshot_sys::Errno;
use vmsnapshot_window::window;

/// The system's allocator. It counts calls while it is told to.
struct Counting;

static IS_COUNTING: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicU32 = AtomicU32::new(0);

fn count() {
    if IS_COUNTING.load(Ordering::SeqCst) {
        COUNT.fetch_add(1, Ordering::SeqCst);
    }
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches two atomics only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A kernel that freezes and thaws at once. The first FITHAW on each filesystem fails, so that the
/// second try is counted, too.
struct Quick {
    thaws: [AtomicU32; 3],
}

impl Kernel for Quick {
    fn freeze(&self, _: BorrowedFd<'_>) -> Result<(), Errno> {
        Ok(())
    }

    fn thaw(&self, directory: BorrowedFd<'_>) -> Result<(), Errno> {
        use std::os::fd::AsRawFd;
        let index = usize::try_from(directory.as_raw_fd()).unwrap() % self.thaws.len();
        match self
            .thaws
            .get(index)
            .unwrap()
            .fetch_add(1, Ordering::SeqCst)
        {
            0 => Err(Errno::IO),
            _ => Ok(()),
        }
    }

    fn sync(&self, _: BorrowedFd<'_>) -> Result<(), Errno> {
        Ok(())
    }
}

#[test]
fn window_allocates_nothing_between_armed_and_thawed() {
    assert_nothing_is_allocated(|_| ());
    // The alarm thaws while the window's own thread is busy.
    assert_nothing_is_allocated(|stage| {
        let is_thawed = |entry: &Entry| entry.state() == FreezeState::ThawedByRun;
        while !stage.ledger.entries.iter().all(is_thawed) {
            std::hint::spin_loop();
        }
    });
}

fn assert_nothing_is_allocated(ask: fn(&Stage)) {
    let kernel = Arc::new(Quick {
        thaws: Default::default(),
    });
    let timeout = Duration::from_millis(500);
    let shared = Arc::clone(&kernel) as Arc<dyn Kernel>;
    let stage = Stage::with(shared, &[0, 0, 1], Last::Releases, timeout);
    let prepared = stage.prepared();
    wait_until_all_threads_sleep();

    COUNT.store(0, Ordering::SeqCst);
    IS_COUNTING.store(true, Ordering::SeqCst);
    let record = window::open(&prepared, |_| ask(&stage));
    IS_COUNTING.store(false, Ordering::SeqCst);

    assert_eq!(record.answers, Some(()));
    for entry in &stage.ledger.entries {
        assert_eq!(entry.state(), FreezeState::ThawedByRun);
        // The count of what was written to the device was read in the window.
        assert_eq!(entry.sectors_written(), Some(77));
    }
    assert_eq!(COUNT.load(Ordering::SeqCst), 0, "allocations in the window");
    for thaws in &kernel.thaws {
        assert_eq!(thaws.load(Ordering::SeqCst), 2, "calls of FITHAW");
    }
    assert_eq!(stage.rcu_setting(), b'0');
    assert!(stage.end());
}

/// Waits until every other thread of this process sleeps: the freeze threads wait for their turn.
fn wait_until_all_threads_sleep() {
    let own = std::fs::read_link("/proc/thread-self").unwrap();
    let is_asleep = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        let state = stat
            .rsplit(')')
            .next()
            .and_then(|rest| rest.split_ascii_whitespace().next());
        Some(task.file_name().as_os_str()) == own.file_name() || state == Some("S")
    };
    let start = Instant::now();
    while !std::fs::read_dir("/proc/self/task")
        .unwrap()
        .all(|task| is_asleep(task.unwrap()))
    {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "a thread does not sleep"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}
