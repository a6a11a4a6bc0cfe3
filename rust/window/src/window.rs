//! The window: freeze, ask, thaw. Read it from top to bottom.
//!
//! Nothing is opened, resolved, written, logged or started here. What happens is in the ledger and
//! in the answers; the report makes sense of both afterwards.

use std::sync::Arc;

use vmsnapshot_core::deadlines::{Deadlines, Monotonic};
use vmsnapshot_sys::clock;
use vmsnapshot_sys::ledger_file::LedgerFile;

use crate::alarm::{Alarm, Over};
use crate::freezers::Freezers;
use crate::rcu::Rcu;
use crate::watchdog::ArmedWatchdog;

/// What the window works with. All of it is made, opened and armed before.
pub struct Prepared<'a> {
    /// The permission to freeze: a second process that thaws when this one does not.
    pub watchdog: &'a ArmedWatchdog,
    /// Ends the window when this thread does not.
    pub alarm: &'a Alarm,
    /// When to stop waiting, when to have thawed, and when the watchdog thaws.
    pub deadlines: Deadlines,
    /// What this run and its watchdog know of each filesystem.
    pub ledger: &'a Arc<LedgerFile>,
    /// One thread per filesystem.
    pub freezers: &'a Freezers,
    /// The machine's setting of RCU grace periods.
    pub rcu: &'a Rcu,
}

/// What happened in a window, beside what the ledger says.
#[derive(Debug)]
pub struct WindowRecord<Answers> {
    /// The result of `ask`. `None` if `ask` was not called, because not everything was frozen in
    /// time.
    pub answers: Option<Answers>,
    /// When everything was thawed that the run could thaw.
    pub ended_at: Monotonic,
}

/// Freezes everything, asks for the snapshots while it is frozen, and thaws.
///
/// `ask` is called once everything is frozen. It has to return by the instant that it is given. The
/// alarm thaws at that instant, and when the watchdog is gone, whatever `ask` does.
///
/// *Blocking*: until `thaw_by`, whatever hangs, if `ask` keeps to its instant.
pub fn open<Answers>(
    prepared: &Prepared<'_>,
    ask: impl FnOnce(Monotonic) -> Answers,
) -> WindowRecord<Answers> {
    let Prepared {
        watchdog: _,
        alarm,
        deadlines,
        ledger,
        freezers,
        rcu,
    } = prepared;
    let _expedited = rcu.expedite(ledger);
    let over = alarm.over();
    let thaw_on_return = ThawOnReturn {
        over,
        freezers,
        thaw_by: deadlines.thaw_by,
    };

    // If the run was stopped meanwhile, or the last freeze came too late, there is no time left for
    // an answer, and the watchdog may have thawed. The alarm thaws if the watchdog is gone. Then
    // nothing is asked.
    let froze_all = freezers.freeze(deadlines.freeze_by)
        && clock::monotonic() < deadlines.call_by
        && ledger.header.fired().is_none()
        && !over.is_over();
    let answers = froze_all.then(|| ask(deadlines.call_by));
    thaw_on_return.thaw(froze_all);

    WindowRecord {
        answers,
        ended_at: clock::monotonic(),
    }
}

/// Thaws when the window ends, also when a panic ends it.
struct ThawOnReturn<'a> {
    over: &'a Over,
    freezers: &'a Freezers,
    thaw_by: Monotonic,
}

impl ThawOnReturn<'_> {
    fn thaw(self, in_order: bool) {
        self.over.begin();
        self.freezers.thaw(in_order, self.thaw_by);
        std::mem::forget(self);
    }
}

impl Drop for ThawOnReturn<'_> {
    fn drop(&mut self) {
        self.over.begin();
        self.freezers.thaw(false, self.thaw_by);
    }
}
