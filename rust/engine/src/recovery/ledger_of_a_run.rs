//! A ledger as a run has it, for the tests of what is read and done from outside.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{memfd_create, MemfdFlags};
use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::ledger::Place;
use vmsnapshot_sys::ledger_file::{Holder, LedgerCopy, LedgerFile};
use vmsnapshot_sys::{clock, process};

use crate::state::KeptRun;

pub(crate) const BOTH: [Holder; 2] = [Holder::Run, Holder::Watchdog];

/// A run of this process with one filesystem.
pub(crate) struct LedgerOfARun {
    pub(crate) ledger: LedgerFile,
    pub(crate) memory: OwnedFd,
}

impl LedgerOfARun {
    /// Makes its ledger, in which the run and, if it is told so, the watchdog are alive.
    pub(crate) fn start(holders: &[Holder], place: Place) -> LedgerOfARun {
        let memory = memfd_create("ledger", MemfdFlags::CLOEXEC).unwrap();
        let ledger = LedgerFile::create(memory.try_clone().unwrap(), 1).unwrap();
        ledger.header.name(process::own_name(), place);
        let device = DeviceNumber { major: 7, minor: 1 };
        ledger.entries[0].name(device, Path::new("/test"));
        for holder in holders {
            ledger.hold(*holder).unwrap();
        }
        LedgerOfARun { ledger, memory }
    }

    /// Starts the run's window and freezes. The deadline is `ahead` of now, or in the past.
    pub(crate) fn freeze(&self, ahead: Option<Duration>) {
        let now = clock::monotonic();
        let deadline = ahead.map_or(Monotonic(now.0 - 1), |ahead| now.plus(ahead));
        self.ledger.header.start(Monotonic(now.0 - 2), 0, deadline);
        assert!(self.ledger.entries[0].announce(now));
        assert!(self.ledger.entries[0].frozen(now));
    }

    /// What a process sees that opens the ledger.
    pub(crate) fn seen(&self) -> KeptRun {
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fd/{}", self.memory.as_raw_fd());
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        KeptRun::of_test(LedgerCopy::read(file.into()).unwrap())
    }
}
