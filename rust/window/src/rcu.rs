//! Expedited RCU grace periods for the length of a window.
//!
//! FIFREEZE closes three gates, and each waits for a grace period: 20 to 50 ms on an idle machine,
//! some microseconds when they are expedited. The setting belongs to the machine. The run puts back
//! what it read, and so does the watchdog, which has the descriptor as well.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::{pread, pwrite};
use vmsnapshot_sys::ledger_file::LedgerFile;

/// The setting, opened before the window; or why the run does without it.
#[derive(Debug)]
pub enum Rcu {
    /// It can be switched on: `/sys/kernel/rcu_expedited`, open for reading and writing.
    Available(OwnedFd),
    /// It cannot, for this reason.
    Unavailable(String),
}

/// Expedited grace periods. Dropping it puts back what was read.
pub(crate) struct Expedited<'a> {
    /// The setting, if this run switched it on.
    setting: Option<&'a OwnedFd>,
    ledger: &'a Arc<LedgerFile>,
}

impl Rcu {
    /// Returns the descriptor, for the watchdog.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Rcu::Available(setting) => Some(setting.as_fd()),
            Rcu::Unavailable(_) => None,
        }
    }

    /// Returns why it cannot be switched on.
    #[must_use]
    pub fn why_not(&self) -> Option<&str> {
        match self {
            Rcu::Available(_) => None,
            Rcu::Unavailable(why) => Some(why),
        }
    }

    /// Switches expedited grace periods on, until the result is dropped.
    pub(crate) fn expedite<'a>(&'a self, ledger: &'a Arc<LedgerFile>) -> Expedited<'a> {
        let with = |setting| Expedited { setting, ledger };
        let Rcu::Available(setting) = self else {
            return with(None);
        };
        let mut text = [0; 1];
        // Anything but 0 is on already, and stays as it is. (The kernel counts users of its own
        // beside this file. What is read here is what was written here.)
        if !matches!(pread(setting, &mut text, 0), Ok(1)) || text != *b"0" {
            if text == *b"1" {
                ledger.header.set_rcu_expedited();
            }
            return with(None);
        }
        // The ledger first: whatever happens after this line, it says what to put back.
        ledger.header.rcu_switched_on(0);
        if pwrite(setting, b"1", 0).is_err() {
            ledger.header.rcu_put_back();
            return with(None);
        }
        ledger.header.set_rcu_expedited();
        with(Some(setting))
    }
}

impl Drop for Expedited<'_> {
    fn drop(&mut self) {
        // Also when the ledger says that the watchdog did it. If this run was stopped in between, the
        // watchdog may have done so before the run switched it on. Only what was off is switched on.
        // If the write fails, the ledger goes on saying that it is owed, and the watchdog tries too.
        if let Some(setting) = self.setting {
            if pwrite(setting, b"0", 0).is_ok() {
                self.ledger.header.rcu_put_back();
            }
        }
    }
}
