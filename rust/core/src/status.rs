//! What `vmsnapshot status` and `vmsnapshot thaw` say, with its JSON form.

use serde::Serialize;

/// What is frozen, and by which run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// What may be frozen now.
    pub frozen: Vec<FrozenFilesystem>,
    /// Every run that can still be read of: those under way, and those that did not end well
    /// since the last one.
    pub runs: Vec<RunStatus>,
    /// The machine's setting of expedited RCU.
    pub rcu_expedited: RcuStatus,
}

/// One filesystem that may be frozen now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FrozenFilesystem {
    /// Where it was mounted.
    pub mount_point: String,
    /// mountinfo's major:minor.
    pub device: String,
    /// Which run froze it.
    pub run_id: String,
    /// When FIFREEZE was called, UTC.
    pub since: Option<String>,
    /// `announced` (FIFREEZE was called and may have succeeded) or `frozen`.
    pub state: String,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunStatus {
    /// Its name.
    pub run_id: String,
    /// When its window began, UTC; none if it has not.
    pub started_at: Option<String>,
    /// Its process.
    pub pid: u32,
    /// Whether that process exists.
    pub alive: bool,
    /// Its watchdog's process.
    pub watchdog_pid: u32,
    /// Whether that process exists.
    pub watchdog_alive: bool,
    /// Why the watchdog thawed, if it did: `parent-gone`, `deadline` or `told`.
    pub fired: Option<String>,
    /// Whether it is over: its watchdog is gone, and nothing of it can be frozen any more.
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
    /// The state's name in the ledger.
    pub state: String,
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
    /// `/sys/kernel/rcu_expedited`; none if it cannot be read.
    pub value: Option<u32>,
    /// The run that has to put it back.
    pub held_by: Option<String>,
}

/// What `vmsnapshot thaw` did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ThawResult {
    /// What it thawed, or found thawed.
    pub thawed: Vec<Thawed>,
    /// What it could not thaw.
    pub failed: Vec<ThawFailed>,
    /// What it left to others.
    pub left_alone: Vec<ThawLeftAlone>,
    /// Whether it put `rcu_expedited` back.
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

/// Filesystems that somebody else thaws.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ThawLeftAlone {
    /// Where they were mounted.
    pub mount_point: String,
    /// Which run froze them.
    pub run_id: String,
    /// Why they were left alone.
    pub why: String,
}
