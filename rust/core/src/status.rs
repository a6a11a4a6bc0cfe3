//! The output of `vmsnapshot status` and `vmsnapshot thaw`, with its JSON form.

use serde::Serialize;
use strum::{IntoStaticStr, VariantNames};

use crate::ledger::{FireReason, FreezeState};
use crate::names::stable_names;

/// What is frozen, and by which run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// What may be frozen now.
    pub frozen: Vec<FrozenFilesystem>,
    /// Every run whose ledger still exists: the runs in progress, and the runs that did not end
    /// well since the last one.
    pub runs: Vec<RunStatus>,
    /// The files in `/run/vmsnapshot` that should be ledgers but cannot be read as ledgers.
    pub unreadable: Vec<UnreadableLedger>,
    /// The machine's setting of expedited RCU.
    pub rcu_expedited: RcuStatus,
}

/// A file that should be the ledger of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnreadableLedger {
    /// The file.
    pub path: String,
    /// Why it cannot be read.
    pub why: String,
}

/// How far a run has come, according to its ledger and its processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum RunState {
    /// It is not over: its deadline has not passed, or nothing is frozen and its watchdog is alive.
    AtWork,
    /// Its deadline has passed and something may be frozen. Its watchdog is alive and tries to
    /// thaw.
    Late,
    /// Something may be frozen, and neither the run nor its watchdog will thaw it.
    Abandoned,
    /// No freeze of this run can still be in force.
    Over,
    /// Another version of vmsnapshot wrote the ledger, and something may be frozen.
    OfAnotherVersion,
}

stable_names!(RunState);

/// One filesystem that may be frozen now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FrozenFilesystem {
    /// Where it was mounted.
    pub mount_point: String,
    /// mountinfo's major:minor.
    pub device: String,
    /// The run that froze it.
    pub run_id: String,
    /// When FIFREEZE was called, UTC.
    pub since: Option<String>,
    /// `announced` (FIFREEZE was called and may have succeeded) or `frozen`.
    pub state: FreezeState,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunStatus {
    /// The name of the run.
    pub run_id: String,
    /// How far it has come.
    pub state: RunState,
    /// When its window began, UTC. `None` if it has not begun.
    pub started_at: Option<String>,
    /// When the watchdog thaws at the latest, UTC. `None` before the window.
    pub thaws_by: Option<String>,
    /// Its process id, in the pid namespace of the run. This field and the next three are `None` if another version wrote the
    /// ledger.
    pub pid: Option<u32>,
    /// Whether that process exists, and its run is not over.
    pub alive: Option<bool>,
    /// The process id of its watchdog.
    pub watchdog_pid: Option<u32>,
    /// Whether that process exists.
    pub watchdog_alive: Option<bool>,
    /// Why the watchdog thawed, if it did: `parent-gone`, `deadline`, `told` or `fault`.
    pub fired: Option<FireReason>,
    /// Whether it is over: its watchdog has ended, and no freeze of it can still be in force.
    pub finished: bool,
    /// Its filesystems.
    pub filesystems: Vec<RunFilesystem>,
}

/// One filesystem of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunFilesystem {
    /// Where it was mounted.
    pub mount_point: String,
    /// mountinfo's major:minor.
    pub device: String,
    /// Its state in the ledger.
    pub state: FreezeState,
    /// `run`, `watchdog`, `another` or `operator`.
    pub thawed_by: Option<String>,
    /// When FIFREEZE was called, UTC.
    pub frozen_at: Option<String>,
    /// When it was thawed, UTC.
    pub thawed_at: Option<String>,
}

/// The machine's setting of expedited RCU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RcuStatus {
    /// The value of `/sys/kernel/rcu_expedited`. `None` if it cannot be read.
    pub value: Option<u32>,
    /// The run that has to restore it.
    pub held_by: Option<String>,
}

/// What `vmsnapshot thaw` did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ThawResult {
    /// What it thawed, or found thawed.
    pub thawed: Vec<Thawed>,
    /// What it could not thaw.
    pub failed: Vec<ThawFailed>,
    /// What it left alone.
    pub left_alone: Vec<ThawLeftAlone>,
    /// Whether it restored `rcu_expedited`.
    pub rcu_restored: bool,
}

/// A filesystem that was thawed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Thawed {
    /// Where it was mounted.
    pub mount_point: String,
    /// mountinfo's major:minor.
    pub device: String,
    /// Which run had frozen it.
    pub run_id: String,
}

/// A filesystem that could not be thawed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ThawFailed {
    /// Where it was mounted.
    pub mount_point: String,
    /// mountinfo's major:minor.
    pub device: String,
    /// Which run had frozen it.
    pub run_id: String,
    /// What the system answered.
    pub error: String,
}

/// Filesystems that `vmsnapshot thaw` left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ThawLeftAlone {
    /// Where they were mounted.
    pub mount_point: String,
    /// Which run froze them.
    pub run_id: String,
    /// Why they were left alone.
    pub why: String,
}
