//! A window of a test's own: a ledger in memory, a scripted kernel, and a watchdog's end that answers.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::{memfd_create, MemfdFlags};
use vmsnapshot_core::deadlines::Deadlines;
use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::frames::Frame;
use vmsnapshot_sys::channel::{Channel, Received};
use vmsnapshot_sys::kernel::Kernel;
use vmsnapshot_sys::ledger_file::LedgerFile;
use vmsnapshot_sys::{clock, process};
use vmsnapshot_window::freezers::Freezers;
use vmsnapshot_window::rcu::Rcu;
use vmsnapshot_window::watchdog::{ArmedWatchdog, Watchdog};
use vmsnapshot_window::window::Prepared;

/// Everything that a window needs, made and armed.
pub(crate) struct Stage {
    pub(crate) ledger: Arc<LedgerFile>,
    pub(crate) deadlines: Deadlines,
    watchdog: ArmedWatchdog,
    freezers: Freezers,
    rcu: Rcu,
    peer: JoinHandle<()>,
}

impl Stage {
    /// Sets it up for one filesystem per level that is given.
    pub(crate) fn new(kernel: Arc<dyn Kernel>, levels: &[u32]) -> Stage {
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
        let peer =
            std::thread::spawn(move || answer_as_watchdog(&Channel::from_descriptor(theirs)));
        let anything = File::open("/dev/null").unwrap();
        let lock = Some(anything.as_fd());
        let watchdog = Watchdog::introduce(ours, &ledger, lock, None, &borrowed).unwrap();
        // A file stands for the machine's setting: it is off, and gets switched on and off again.
        let setting = memfd_create("rcu_expedited", MemfdFlags::CLOEXEC).unwrap();
        rustix::io::pwrite(&setting, b"0", 0).unwrap();
        let freezers = Freezers::start(Arc::clone(&ledger), kernel, directories, levels).unwrap();
        let start = clock::monotonic();
        let deadlines = Deadlines::new(start, Duration::from_secs(10));
        ledger
            .header
            .start(start, clock::realtime_ns(), deadlines.guard_by);
        Stage {
            ledger,
            deadlines,
            watchdog: watchdog.arm().unwrap(),
            freezers,
            rcu: Rcu::Available(setting),
            peer,
        }
    }

    /// What the window takes.
    pub(crate) fn prepared(&self) -> Prepared<'_> {
        Prepared {
            watchdog: &self.watchdog,
            deadlines: self.deadlines,
            ledger: &self.ledger,
            freezers: &self.freezers,
            rcu: &self.rcu,
        }
    }

    /// What the file that stands for the machine's setting of RCU holds.
    pub(crate) fn rcu_setting(&self) -> u8 {
        let mut text = [0; 1];
        rustix::io::pread(self.rcu.descriptor().unwrap(), &mut text, 0).unwrap();
        text[0]
    }

    /// Releases the watchdog, and returns whether it answered.
    pub(crate) fn end(self) -> bool {
        let outcome = self.watchdog.release(self.deadlines.guard_by, &self.ledger);
        drop(self.freezers);
        self.peer.join().unwrap();
        outcome.released
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
