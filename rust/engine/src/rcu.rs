//! The machine's setting of expedited RCU grace periods, outside the window.
//!
//! [`vmsnapshot_window::rcu`] switches it on and off. Files are opened here, before the window, and
//! for runs that are gone.

use std::fs::OpenOptions;

use vmsnapshot_core::ledger::Header;
use vmsnapshot_sys::errno::cause_text;
use vmsnapshot_window::rcu::Rcu;

const EXPEDITED: &str = "/sys/kernel/rcu_expedited";
const NORMAL: &str = "/sys/kernel/rcu_normal";

/// Opens the setting, unless it is not wanted.
pub(crate) fn open(is_wanted: bool) -> Rcu {
    if !is_wanted {
        return Rcu::Unavailable("it was not asked for".to_owned());
    }
    // rcu_normal overrides rcu_expedited (kernel/rcu/update.c). PREEMPT_RT kernels start with it.
    if std::fs::read(NORMAL).is_ok_and(|value| value.starts_with(b"1")) {
        return Rcu::Unavailable(format!("`{NORMAL}` is 1"));
    }
    match OpenOptions::new().read(true).write(true).open(EXPEDITED) {
        Ok(setting) => Rcu::Available(setting.into()),
        Err(error) => Rcu::Unavailable(format!(
            "could not open `{EXPEDITED}`: {}",
            cause_text(&error)
        )),
    }
}

/// Puts the setting back for a run that is gone with its watchdog. Returns whether nothing is owed
/// any more.
pub(crate) fn put_back_for(header: &Header) -> bool {
    let Some(previous) = header.rcu_owed() else {
        return true;
    };
    let is_put_back = std::fs::write(EXPEDITED, previous.min(1).to_string()).is_ok();
    if is_put_back {
        header.rcu_put_back();
    }
    is_put_back
}

/// Returns what the setting is now; `None` if it cannot be read.
pub(crate) fn current() -> Option<u32> {
    std::fs::read_to_string(EXPEDITED).ok()?.trim().parse().ok()
}
