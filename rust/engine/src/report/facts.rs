//! Everything that is known about a run that is over.

use std::sync::Arc;
use std::time::Duration;

use vmsnapshot_core::application::ApplicationRecord;
use vmsnapshot_core::deadlines::{Deadlines, Monotonic};
use vmsnapshot_core::ledger::Entry;
use vmsnapshot_core::plan::{PlannedFilesystem, UnreadableMounts};
use vmsnapshot_core::report::{CommandOutcome, WatchdogOutcome};
use vmsnapshot_sys::ledger_file::LedgerFile;
use vmsnapshot_window::rcu::Rcu;
use vmsnapshot_window::window::WindowRecord;

use crate::callees::Callees;
use crate::companion::sync::Synced;
use crate::directories::LeftOut;

/// Everything that is known about a run that is over.
pub(crate) struct Facts<'a> {
    pub(crate) run_id: &'a str,
    /// What the run was to freeze, in the order of the ledger.
    pub(crate) filesystems: &'a [PlannedFilesystem],
    pub(crate) left_out: &'a [LeftOut],
    /// What could not be read about the mounts just before the freeze.
    pub(crate) unreadable_mounts: &'a [UnreadableMounts],
    /// The blobs and the host, with the results of their calls.
    pub(crate) callees: &'a Callees,
    /// What became of the command.
    pub(crate) command: Option<CommandOutcome>,
    /// What is recorded of the applications.
    pub(crate) applications: Vec<ApplicationRecord>,
    pub(crate) thaw_timeout: Duration,
    pub(crate) deadlines: Deadlines,
    pub(crate) ledger: &'a Arc<LedgerFile>,
    /// The results of syncfs, also of filesystems that were then left out.
    pub(crate) synced: &'a [(PlannedFilesystem, Synced)],
    pub(crate) rcu: &'a Rcu,
    /// `None` if a panic ended the window.
    pub(crate) record: Option<WindowRecord<()>>,
    /// Whether the window ended because the watchdog was gone.
    pub(crate) watchdog_lost: bool,
    pub(crate) watchdog: WatchdogOutcome,
}

impl Facts<'_> {
    /// Returns the time from the call of the first FIFREEZE to the return of the last FITHAW,
    /// whether the run or the watchdog called it.
    pub(super) fn window(&self) -> Option<Duration> {
        let entries = self.ledger.entries.iter();
        let last_thaw = entries.filter_map(Entry::thawed_at).max()?;
        Some(last_thaw.since(self.first_freeze_at()?))
    }

    /// Returns when the first FIFREEZE was called.
    pub(super) fn first_freeze_at(&self) -> Option<Monotonic> {
        self.ledger
            .entries
            .iter()
            .filter_map(Entry::announced_at)
            .min()
    }
}
