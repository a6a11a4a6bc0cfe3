//! From armed to thawed, the freeze and thaw paths allocate nothing.
//!
//! An allocation may have to ask the kernel for memory, and the kernel may have to write dirty pages
//! to a frozen filesystem to get it. This test has a program of its own, because it counts every
//! allocation of the process.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{memfd_create, MemfdFlags};
use vmsnapshot_core::deadlines::Deadlines;
use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::frames::Frame;
use vmsnapshot_core::ledger::FreezeState;
use vmsnapshot_sys::channel::{Channel, Received};
use vmsnapshot_sys::kernel::Kernel;
use vmsnapshot_sys::ledger_file::LedgerFile;
use vmsnapshot_sys::{clock, process, Errno};
use vmsnapshot_window::freezers::Freezers;
use vmsnapshot_window::rcu::Rcu;
use vmsnapshot_window::watchdog::Watchdog;
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

/// The other end of the channel: a watchdog that has nothing to do.
fn answer_as_watchdog(channel: &Channel) {
    loop {
        let patience = clock::monotonic().plus(Duration::from_secs(10));
        let answer = match channel.receive(patience) {
            Ok(Received::Frame(Frame::Directories { .. }, _)) => Frame::Ready {
                own_control_group: false,
            },
            Ok(Received::Frame(Frame::Arm, _)) => Frame::Armed,
            Ok(Received::Frame(Frame::Release, _)) => Frame::Released { peak_memory_kib: 1 },
            Ok(Received::Frame(..)) => continue,
            Ok(Received::Closed) | Err(_) => return,
        };
        channel.send(answer, &[]).unwrap();
    }
}

#[test]
fn window_allocates_nothing_between_armed_and_thawed() {
    let levels = [0, 0, 1];
    let memory = memfd_create("ledger", MemfdFlags::CLOEXEC).unwrap();
    let ledger = Arc::new(LedgerFile::create(memory, levels.len()).unwrap());
    ledger.header.name("test", process::own_name());
    let device = DeviceNumber { major: 7, minor: 1 };
    for entry in &ledger.entries {
        entry.name(device, Path::new("/test"));
    }
    let directories: Arc<[OwnedFd]> = levels
        .iter()
        .map(|_| OwnedFd::from(File::open("/dev/null").unwrap()))
        .collect();
    let borrowed: Vec<_> = directories.iter().map(AsFd::as_fd).collect();
    let (ours, theirs) = Channel::pair().unwrap();
    let peer = std::thread::spawn(move || answer_as_watchdog(&Channel::from_descriptor(theirs)));
    let anything = File::open("/dev/null").unwrap();
    let lock = Some(anything.as_fd());
    let watchdog = Watchdog::introduce(ours, &ledger, lock, None, &borrowed).unwrap();
    // A file stands for the machine's setting: it is off, and gets switched on and off again.
    let setting = memfd_create("rcu_expedited", MemfdFlags::CLOEXEC).unwrap();
    rustix::io::pwrite(&setting, b"0", 0).unwrap();
    let rcu = Rcu::Available(setting);
    let kernel = Arc::new(Quick {
        thaws: Default::default(),
    });
    let freezers = Freezers::start(
        Arc::clone(&ledger),
        kernel,
        Arc::clone(&directories),
        &levels,
    )
    .unwrap();
    let start = clock::monotonic();
    let deadlines = Deadlines::new(start, Duration::from_secs(10));
    ledger
        .header
        .start(start, clock::realtime_ns(), deadlines.guard_by);
    let watchdog = watchdog.arm().unwrap();
    let prepared = window::Prepared {
        watchdog: &watchdog,
        deadlines,
        ledger: &ledger,
        freezers: &freezers,
        rcu: &rcu,
    };
    // The threads have begun to wait for their turn.
    std::thread::sleep(Duration::from_millis(50));

    IS_COUNTING.store(true, Ordering::SeqCst);
    let record = window::open(&prepared, |_| ());
    IS_COUNTING.store(false, Ordering::SeqCst);

    assert_eq!(record.answers, Some(()));
    for entry in &ledger.entries {
        assert_eq!(entry.state(), FreezeState::ThawedByRun);
    }
    assert_eq!(COUNT.load(Ordering::SeqCst), 0, "allocations in the window");
    assert!(watchdog.release(deadlines.guard_by, &ledger).released);
    drop(freezers);
    peer.join().unwrap();
}
