//! A window of a test's own: a ledger in memory, a scripted kernel, and a watchdog's end that answers.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::{memfd_create, MemfdFlags};
use vmsnapshot_core::deadlines::{Deadlines, Monotonic};
use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::frames::Frame;
use vmsnapshot_sys::block_device::WriteCount;
use vmsnapshot_sys::channel::{Channel, Received};
use vmsnapshot_sys::kernel::Kernel;
use vmsnapshot_sys::ledger_file::LedgerFile;
use vmsnapshot_sys::{clock, place, process};
use vmsnapshot_window::alarm::{Alarm, Over};
use vmsnapshot_window::freezers::Freezers;
use vmsnapshot_window::rcu::Rcu;
use vmsnapshot_window::watchdog::{ArmedWatchdog, Watchdog};
use vmsnapshot_window::window::Prepared;

/// How long everything may take to be frozen.
pub(crate) const FREEZE_TIMEOUT: Duration = Duration::from_secs(1);

/// What the watchdog's end does at last.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Last {
    /// It answers the release.
    Releases,
    /// It does not answer the release.
    IsSilent,
    /// It is gone this long after it was armed.
    Dies(Duration),
}

/// Everything that a window needs, made and armed.
pub(crate) struct Stage {
    pub(crate) ledger: Arc<LedgerFile>,
    pub(crate) deadlines: Deadlines,
    watchdog: ArmedWatchdog,
    alarm: Alarm,
    /// How often the alarm has rung.
    pub(crate) rings: Arc<AtomicU32>,
    freezers: Freezers,
    pub(crate) rcu: Rcu,
    peer: JoinHandle<bool>,
}

impl Stage {
    /// Sets it up for one filesystem per level that is given.
    pub(crate) fn new(kernel: Arc<dyn Kernel>, levels: &[u32]) -> Stage {
        Stage::with_peer(kernel, levels, true)
    }

    /// The same with a watchdog's end that answers the release, or does not.
    pub(crate) fn with_peer(
        kernel: Arc<dyn Kernel>,
        levels: &[u32],
        answers_release: bool,
    ) -> Stage {
        let last = if answers_release {
            Last::Releases
        } else {
            Last::IsSilent
        };
        Stage::with(kernel, levels, last, Duration::from_secs(10))
    }

    /// The same with a watchdog's end that does something else at last, and this thaw timeout.
    pub(crate) fn with(
        kernel: Arc<dyn Kernel>,
        levels: &[u32],
        last: Last,
        thaw_timeout: Duration,
    ) -> Stage {
        let memory = memfd_create("ledger", MemfdFlags::CLOEXEC).unwrap();
        let ledger = Arc::new(LedgerFile::create(memory, levels.len()).unwrap());
        ledger.header.name(process::own_name(), place::here());
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
            std::thread::spawn(move || answer_as_watchdog(&Channel::from_descriptor(theirs), last));
        let anything = File::open("/dev/null").unwrap();
        let lock = Some(anything.as_fd());
        let watchdog = Watchdog::introduce(ours, &ledger, lock, None, &borrowed).unwrap();
        // A file stands for the machine's setting: it is off, and gets switched on and off again.
        let setting = memfd_create("rcu_expedited", MemfdFlags::CLOEXEC).unwrap();
        rustix::io::pwrite(&setting, b"0", 0).unwrap();
        // A file stands for the device's count as well.
        let write_counts = levels.iter().map(|_| {
            let stat = memfd_create("stat", MemfdFlags::CLOEXEC).unwrap();
            rustix::io::pwrite(&stat, b"1 2 3 4 5 6 77 8\n", 0).unwrap();
            WriteCount::new(stat)
        });
        let freezers = Freezers::start(
            Arc::clone(&ledger),
            kernel,
            directories,
            write_counts.collect(),
            levels,
        )
        .unwrap();
        let start = clock::monotonic();
        let deadlines = Deadlines::new(start, thaw_timeout, FREEZE_TIMEOUT);
        ledger
            .header
            .start(start, clock::realtime_ns(), deadlines.guard_by);
        let rings = Arc::new(AtomicU32::new(0));
        let ringing = Arc::clone(&rings);
        let alarm = Alarm::set(
            &freezers,
            &watchdog,
            deadlines.call_by,
            Arc::new(Over::default()),
            move || {
                ringing.fetch_add(1, Ordering::SeqCst);
            },
        );
        Stage {
            ledger,
            deadlines,
            watchdog: watchdog.arm().unwrap(),
            alarm: alarm.unwrap(),
            rings,
            freezers,
            rcu: Rcu::Available(setting),
            peer,
        }
    }

    /// What the window takes.
    pub(crate) fn prepared(&self) -> Prepared<'_> {
        Prepared {
            watchdog: &self.watchdog,
            alarm: &self.alarm,
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
        let deadline = self.deadlines.guard_by;
        self.end_by(deadline).0
    }

    /// Waits for the answer to the release until `deadline`. Returns whether it came, and whether the
    /// watchdog found the channel closed a second after that.
    pub(crate) fn end_by(self, deadline: Monotonic) -> (bool, bool) {
        drop(self.alarm);
        let outcome = self.watchdog.release(deadline, &self.ledger);
        drop(self.freezers);
        (outcome.released, self.peer.join().unwrap())
    }
}

/// The other end of the channel: a watchdog that has nothing to do. Returns whether the channel was
/// closed.
fn answer_as_watchdog(channel: &Channel, last: Last) -> bool {
    let mut patience = Duration::from_secs(10);
    loop {
        let answer = match channel.receive(clock::monotonic().plus(patience)) {
            Ok(Received::Frame(Frame::Directories { .. }, _)) => Frame::Ready {
                own_control_group: false,
            },
            Ok(Received::Frame(Frame::Arm, _)) => {
                if let Last::Dies(after) = last {
                    channel.send(Frame::Armed, &[]).unwrap();
                    std::thread::sleep(after);
                    return false;
                }
                Frame::Armed
            }
            Ok(Received::Frame(Frame::Release, _)) if last == Last::Releases => {
                Frame::Released { peak_memory_kib: 1 }
            }
            Ok(Received::Frame(Frame::Release, _)) => {
                patience = Duration::from_secs(1);
                continue;
            }
            Ok(Received::Frame(..)) => continue,
            Ok(Received::Closed) => return true,
            Err(_) => return false,
        };
        channel.send(answer, &[]).unwrap();
    }
}
