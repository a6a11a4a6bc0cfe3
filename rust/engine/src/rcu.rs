//! Expedited RCU grace periods for the length of a window.
//!
//! FIFREEZE closes three gates, and each waits for a grace period: 20 to 50 ms when the machine is
//! idle, some microseconds when they are expedited. The setting is the machine's, not ours: it is
//! put back to what was read, by us, or by the watchdog, which has the descriptor as well.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::io::{pread, pwrite};
use vmsnapshot_sys::ledger_file::LedgerFile;

const EXPEDITED: &str = "/sys/kernel/rcu_expedited";
const NORMAL: &str = "/sys/kernel/rcu_normal";

/// The setting, opened before the window; or why it cannot be had.
pub(crate) enum Rcu {
    /// It can be switched on.
    Available(File),
    /// It cannot, for this reason.
    Unavailable(String),
}

/// The setting for the length of a window; dropping it puts back what was read.
pub(crate) struct Expedited<'a> {
    /// The setting, if it was us who switched it on.
    setting: Option<&'a File>,
    is_on: bool,
    ledger: Arc<LedgerFile>,
}

impl Rcu {
    /// Opens the setting, unless it is not wanted.
    pub(crate) fn open(is_wanted: bool) -> Rcu {
        if !is_wanted {
            return Rcu::Unavailable("it was not asked for".to_owned());
        }
        // rcu_normal overrides rcu_expedited (kernel/rcu/update.c); PREEMPT_RT kernels start so.
        if std::fs::read(NORMAL).is_ok_and(|value| value.starts_with(b"1")) {
            return Rcu::Unavailable(format!("`{NORMAL}` is 1"));
        }
        match OpenOptions::new().read(true).write(true).open(EXPEDITED) {
            Ok(setting) => Rcu::Available(setting),
            Err(error) => Rcu::Unavailable(format!(
                "could not open `{EXPEDITED}`: {}",
                vmsnapshot_sys::errno::cause_text(&error)
            )),
        }
    }

    /// The descriptor, for the watchdog.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Rcu::Available(setting) => Some(setting.as_fd()),
            Rcu::Unavailable(_) => None,
        }
    }

    /// Why it cannot be switched on.
    pub(crate) fn why_not(&self) -> Option<&str> {
        match self {
            Rcu::Available(_) => None,
            Rcu::Unavailable(why) => Some(why),
        }
    }

    /// Switches expedited grace periods on, until the result is dropped.
    pub(crate) fn expedite(&self, ledger: &Arc<LedgerFile>) -> Expedited<'_> {
        let with = |setting, is_on| Expedited {
            setting,
            is_on,
            ledger: Arc::clone(ledger),
        };
        let Rcu::Available(setting) = self else {
            return with(None, false);
        };
        let mut text = [0; 1];
        // Anything but 0 is on already, and stays as it is. (The kernel counts users of its own
        // beside this file; what is read here is what was written here.)
        if !matches!(pread(setting, &mut text, 0), Ok(1)) || text != *b"0" {
            return with(None, text == *b"1");
        }
        // The ledger first: whatever happens after this line, it is known what to put back.
        ledger.header.rcu_switched_on(0);
        if pwrite(setting, b"1", 0).is_err() {
            ledger.header.rcu_put_back();
            return with(None, false);
        }
        with(Some(setting), true)
    }
}

impl Expedited<'_> {
    /// Whether grace periods are expedited.
    pub(crate) fn is_on(&self) -> bool {
        self.is_on
    }
}

impl Drop for Expedited<'_> {
    fn drop(&mut self) {
        // Also when the ledger says that the watchdog did it: it may have done so before we, stopped
        // in between, switched it on. We only switch on what was off. If the write fails, the ledger
        // goes on saying that it is owed, and the watchdog tries as well.
        if let Some(setting) = self.setting {
            if pwrite(setting, b"0", 0).is_ok() {
                self.ledger.header.rcu_put_back();
            }
        }
    }
}

/// Puts the setting back for a run that is gone with its watchdog. False if it could not.
pub(crate) fn put_back_for(ledger: &LedgerFile) -> bool {
    let Some(previous) = ledger.header.rcu_owed() else {
        return true;
    };
    let is_put_back = std::fs::write(EXPEDITED, previous.min(1).to_string()).is_ok();
    if is_put_back {
        ledger.header.rcu_put_back();
    }
    is_put_back
}

/// What the setting is now; none if it cannot be read.
pub(crate) fn current() -> Option<u32> {
    std::fs::read_to_string(EXPEDITED).ok()?.trim().parse().ok()
}
