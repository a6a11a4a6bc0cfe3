//! The report of a run: plain data with the JSON form that `--json` and `--report` print.
//!
//! Instants are text in UTC with `Z`. Lengths of time are in milliseconds. Neither printed text nor
//! the JSON holds a secret: URIs have no query, and the bodies of answers are left out.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use strum::{EnumString, IntoStaticStr, VariantNames};

use crate::ledger::FireReason;
use crate::names::stable_names;
use crate::plan::UnreadableMounts;
use crate::secret::SecretBytes;

/// The version of the JSON document. It grows when a key changes its meaning or is removed.
pub const SCHEMA_VERSION: u32 = 1;

/// How consistent the snapshots are as a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum Consistency {
    /// Every planned filesystem was frozen during all snapshots, and every required application held
    /// still from before the freeze until after the thaw.
    Application,
    /// Every planned filesystem was frozen during all snapshots.
    Filesystem,
    /// All snapshots exist, but it is not known that everything was frozen: they are as after a
    /// power failure.
    Crash,
    /// There is no complete set of snapshots.
    None,
}

/// Why it is not known that everything was frozen during all calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum FreezeDoubt {
    /// Something is still frozen.
    NotThawed,
    /// A FIFREEZE has not returned.
    FreezeHung,
    /// The watchdog thawed something.
    ThawedByWatchdog,
    /// Another program thawed something during the calls.
    ThawedByAnother,
    /// Another program had frozen something.
    FrozenByAnother,
    /// FIFREEZE failed.
    FreezeFailed,
    /// The kernel cannot freeze a filesystem that is writable.
    NotFreezable,
    /// A filesystem that may be writable could not be opened.
    NotOpened,
    /// A FIFREEZE of a filesystem would have waited for a long-running job.
    FreezeWouldWait,
    /// Not everything was frozen in time, or the run was stopped.
    FreezeLate,
    /// A panic of this program ended the window.
    WindowBrokeOff,
    /// The watchdog ended the window.
    WatchdogFired,
    /// The watchdog was lost, so the run ended the window.
    WatchdogLost,
    /// A writable filesystem was mounted after the last look before the window.
    MountedSince,
    /// Nothing was planned.
    NothingFrozen,
    /// The answer that confirms a snapshot came after the window.
    AnsweredLate,
    /// A table of mounts could not be read, so something may be missing from the plan.
    MountsUnreadable,
}

/// The outcome of one filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum FilesystemResult {
    /// The run froze it and thawed it.
    Thawed,
    /// The run froze it, and the watchdog thawed it.
    ThawedByWatchdog,
    /// The run froze it, and another program thawed it during the snapshots.
    ThawedByAnother,
    /// Not frozen by the run: another program had frozen it (FIFREEZE answered EBUSY).
    /// The run leaves it alone.
    FrozenByAnother,
    /// Not frozen: FIFREEZE answered EOPNOTSUPP.
    NotFreezable,
    /// Not frozen: FIFREEZE failed. The run froze the others.
    FreezeFailed,
    /// Left out: it could not be opened. It may be writable. The run froze the others.
    NotOpened,
    /// Left out: its FIFREEZE would have waited for a long-running job. The run froze the others.
    FreezeWouldWait,
    /// Left out: it can no longer be written, so it needs no freeze.
    NotWritable,
    /// Left out: it was unmounted after the plan was made.
    Unmounted,
    /// Not frozen: it was mounted after the last look before the window.
    MountedSince,
    /// Not frozen: the run ended before its turn came.
    NotFrozen,
    /// FIFREEZE has not returned yet. A living watchdog thaws it as soon as FIFREEZE returns.
    FreezeHung,
    /// The run froze it, and it was **still frozen** when the report was made.
    NotThawed,
}

/// The program that thawed a filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum ThawedBy {
    /// The run itself.
    Run,
    /// The run's watchdog.
    Watchdog,
    /// Another program.
    Another,
}

/// One filesystem of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FilesystemOutcome {
    /// Where it is mounted. Bytes that are not UTF-8 appear as `\xNN`.
    pub mount_point: String,
    /// mountinfo's major:minor.
    pub device: String,
    /// The filesystem type.
    pub filesystem_type: String,
    /// The freeze level: 0 freezes first and thaws last.
    pub level: u32,
    /// The outcome.
    pub outcome: FilesystemResult,
    /// When FIFREEZE returned, UTC. `None` if it never returned or failed.
    pub frozen_at: Option<String>,
    /// How long FIFREEZE took.
    pub freeze_ms: Option<f64>,
    /// When it was thawed, UTC.
    pub thawed_at: Option<String>,
    /// The time from the call of FIFREEZE (when writers begin to stall) to the return of FITHAW.
    pub frozen_ms: Option<f64>,
    /// The program that thawed it.
    pub thawed_by: Option<ThawedBy>,
    /// What the system answered, when something failed.
    pub error: Option<String>,
}

/// The outcome of one snapshot request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum BlobResult {
    /// The service answered 201 or 200 and named the snapshot.
    Created,
    /// There is no snapshot: the service refused the request, or the run never sent it.
    Refused,
    /// The run sent the request, and no usable answer came in time. There may be a snapshot.
    Unknown,
}

/// One blob of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BlobOutcome {
    /// The blob's URI without its query (the query is secret). Empty if the URI could not be
    /// parsed.
    pub uri: String,
    /// The outcome of the request.
    pub outcome: BlobResult,
    /// The snapshot's time as the service wrote it, with all seven digits. It names the snapshot.
    pub snapshot: Option<String>,
    /// The URI of the snapshot, without the SAS.
    pub snapshot_uri: Option<String>,
    /// The HTTP status, when there was an answer.
    pub http_status: Option<u16>,
    /// The storage error code (`SnapshotCountExceeded`) or ours: `NotSent`, `NoAnswer`,
    /// `ConnectionLost`, `BadAnswer`, `AnswerTooLong`, or the code of the error that made the blob unusable.
    pub error_code: Option<String>,
    /// The service's message, or ours.
    pub message: Option<String>,
    /// Whether another run may succeed without anything being changed.
    pub retryable: bool,
    /// How many times the request was sent: 0, 1 or 2.
    pub attempts: u32,
    /// The time from when the request was handed to its connection to the end of the answer.
    pub answer_ms: Option<f64>,
    /// Whether the answer came after the window. A snapshot that it names may have been taken after
    /// the thaw.
    pub answered_late: bool,
    /// The body of the service's refusal (of limited length, without signatures).
    #[serde(skip)]
    pub body: Option<String>,
}

/// The outcome of one application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum ApplicationResult {
    /// It held still from before the first FIFREEZE until after the last FITHAW, and that is proven.
    Held,
    /// It held still, but some of its data lie on a filesystem that the run did not freeze.
    NotCovered,
    /// It held still before the first FIFREEZE. It is not proven that it did so to the end.
    Lost,
    /// It did not hold still when it was asked to.
    NotQuiesced,
    /// It was not ready to be asked.
    NotReady,
}

/// What shows that an application held still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantNames, EnumString)]
#[strum(serialize_all = "kebab-case")]
pub enum Proof {
    /// The same open session answered before the freeze and after the thaw, and only its end releases
    /// the application.
    Session,
    /// A program said so. Nothing but its word shows it.
    Script,
}

/// What a position in an application's log says about the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantNames, EnumString)]
#[strum(serialize_all = "kebab-case")]
pub enum PositionIs {
    /// The snapshot contains everything up to it and nothing after it.
    Exact,
    /// The snapshot contains everything up to it, and perhaps more.
    LowerBound,
}

/// One application of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ApplicationOutcome {
    /// What the operator calls it.
    pub name: String,
    /// What it is: `mariadb`, `postgresql`, `hook`.
    pub kind: String,
    /// Whether the set of snapshots is worth less without it.
    pub required: bool,
    /// The outcome.
    pub outcome: ApplicationResult,
    /// The statement that held it still, or the program that did.
    pub method: Option<String>,
    /// What shows that it was held. `None` if nothing does.
    pub proof: Option<Proof>,
    /// How long it took to be ready.
    pub ready_ms: Option<f64>,
    /// How long it took to hold still, from when it was asked.
    pub lock_wait_ms: Option<f64>,
    /// How long it was held, up to its release.
    pub held_ms: Option<f64>,
    /// The position in its log, by name.
    pub position: BTreeMap<String, String>,
    /// What that position says about the snapshot.
    pub position_is: Option<PositionIs>,
    /// Files that a restore needs beside the snapshots, by name.
    pub files: BTreeMap<String, String>,
    /// The stable name of what went wrong.
    pub error_code: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
}

/// The outcome of the host call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum HostCallResult {
    /// The head of an answer arrived.
    Answered,
    /// No byte of the request was written.
    NotSent,
    /// At least part of the request was written, and no answer came in time. There may be
    /// snapshots.
    Unknown,
}

/// The host call of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HostCallOutcome {
    /// The URI of the call, without the query.
    pub uri: String,
    /// The outcome.
    pub outcome: HostCallResult,
    /// The HTTP status, when there was an answer.
    pub http_status: Option<u16>,
    /// The body of the answer, up to the size limit.
    #[serde(skip)]
    pub body: SecretBytes,
    /// Whether `body` is the whole body.
    pub body_is_complete: bool,
    /// Why there is no answer: `NotSent`, `NoAnswer`, `ConnectionLost`, `BadAnswer`,
    /// `AnswerTooLong`.
    pub error_code: Option<String>,
    /// The same reason as a sentence.
    pub message: Option<String>,
    /// How many times it was sent: 0, 1 or 2.
    pub attempts: u32,
    /// The time from when the request was handed to its connection to the head of the answer.
    pub answer_ms: Option<f64>,
    /// Whether the answer came after the window. Its snapshots may have been taken after the thaw.
    pub answered_late: bool,
}

/// How the command of a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum CommandResult {
    /// It ended by itself while everything was frozen.
    Ended,
    /// It had not ended when everything had to thaw. The run killed it after the thaw.
    TooLate,
    /// It was not run: not everything was frozen in time.
    NotRun,
}

/// The command of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CommandOutcome {
    /// The program, without its arguments: these may be secret.
    pub program: String,
    /// The outcome.
    pub outcome: CommandResult,
    /// Its exit status, if it ended with one.
    pub exit_status: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// How long it ran, up to its end or to the thaw.
    pub took_ms: Option<f64>,
    /// Whether it wrote more than is kept.
    pub output_is_truncated: bool,
    /// What it wrote to standard output and standard error, in this order of time, up to the limit.
    #[serde(skip)]
    pub output: SecretBytes,
}

/// How the window was run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mode {
    /// Whether RCU grace periods were expedited during the window.
    pub rcu_expedited: bool,
    /// Why they were not, if they were not.
    pub rcu_why_not: Option<String>,
    /// Whether filesystems of one level were frozen in parallel.
    pub parallel: bool,
}

/// What the watchdog did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WatchdogOutcome {
    /// Its process id.
    pub pid: u32,
    /// Why it thawed, if it did.
    pub fired: Option<FireReason>,
    /// Whether it was alive at the end of the window and confirmed the release.
    pub released: bool,
    /// Whether it runs in a control group of its own.
    pub own_control_group: bool,
    /// Its peak resident memory.
    pub peak_memory_kib: Option<u64>,
}

/// What happened at a moment of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum TimelineEventKind {
    /// An application holds still.
    ApplicationQuiesced,
    /// An application was released.
    ApplicationReleased,
    /// The sync before the window did not return in time.
    SyncLate,
    /// The sync before the window failed.
    SyncFailed,
    /// FIFREEZE was called.
    FreezeCalled,
    /// FIFREEZE returned, successfully or not.
    FreezeReturned,
    /// FITHAW was called.
    ThawCalled,
    /// FITHAW succeeded or found the filesystem thawed.
    Thawed,
    /// A request was handed to its connection.
    RequestSent,
    /// A request was answered, failed, or was abandoned.
    RequestEnded,
    /// The run has thawed everything that it could thaw.
    WindowClosed,
}

/// One moment of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TimelineEvent {
    /// The time since the first FIFREEZE. Negative before it.
    pub at_ms: f64,
    /// What happened.
    pub event: TimelineEventKind,
    /// The mount point, blob, host or application that the event concerns.
    pub subject: Option<String>,
    /// What the system answered, for a sync that failed.
    pub detail: Option<String>,
}

/// What a run did, and what its snapshots are worth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The name of the run in `/run/vmsnapshot/`.
    pub run_id: String,
    /// When the window began, UTC.
    pub started_at: String,
    /// Whether the set of snapshots is complete, and as consistent as the run was asked to make it.
    pub consistent: bool,
    /// What the set of snapshots is worth.
    pub consistency: Consistency,
    /// Why the set is worth no more, in one sentence. `None` if it is all that was asked for.
    pub why: Option<String>,
    /// Why it is not known that everything was frozen during all calls. `None` if it is known.
    pub freeze_doubt: Option<String>,
    /// The stable name of that doubt.
    pub freeze_doubt_code: Option<FreezeDoubt>,
    /// Whether everything that the run froze is thawed.
    pub all_thawed: bool,
    /// The time from the call of the first FIFREEZE to the return of the last FITHAW. `None` if
    /// nothing was frozen, or if something is not thawed.
    pub window_ms: Option<f64>,
    /// The hard limit on the window.
    pub thaw_timeout_ms: f64,
    /// How the window was run.
    pub mode: Mode,
    /// The filesystems, in freeze order.
    pub filesystems: Vec<FilesystemOutcome>,
    /// What the plan could not read about the mounts.
    pub unreadable_mounts: Vec<UnreadableMounts>,
    /// The blobs, in the order they were given.
    pub blobs: Vec<BlobOutcome>,
    /// The applications, in the order they were given.
    pub applications: Vec<ApplicationOutcome>,
    /// The command, if the run had one.
    pub command: Option<CommandOutcome>,
    /// The host call, if the run had one to make.
    pub host_call: Option<HostCallOutcome>,
    /// What the watchdog did.
    pub watchdog: WatchdogOutcome,
    /// The events of the run, in order of time.
    pub timeline: Vec<TimelineEvent>,
}

stable_names!(
    ApplicationResult,
    Proof,
    PositionIs,
    Consistency,
    FreezeDoubt,
    FilesystemResult,
    ThawedBy,
    BlobResult,
    HostCallResult,
    CommandResult,
    TimelineEventKind,
);

/// Returns an instant as text: UTC with microseconds and `Z`.
#[must_use]
pub fn utc_text(unix_ns: i128) -> String {
    use time::macros::format_description;
    let format =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
    time::OffsetDateTime::from_unix_timestamp_nanos(unix_ns)
        .ok()
        .and_then(|instant| instant.format(&format).ok())
        // This is only for an instant outside the years -9999 to 9999.
        .unwrap_or_else(|| format!("{unix_ns} ns since 1970"))
}

/// Returns a length of time in milliseconds, rounded to a microsecond.
///
/// The clock is no more precise than that, and people read the report.
#[must_use]
#[expect(
    clippy::cast_precision_loss,
    reason = "2^53 microseconds are 285 years"
)]
pub fn milliseconds(duration: Duration) -> f64 {
    let microseconds = (duration.as_nanos() + 500) / 1000;
    microseconds as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn milliseconds_are_rounded_to_a_microsecond() {
        for (nanoseconds, expected) in [
            (881, "0.001"),
            (1_240_499, "1.24"),
            (1_240_500, "1.241"),
            (0, "0.0"),
        ] {
            let length = milliseconds(Duration::from_nanos(nanoseconds));
            assert_eq!(serde_json::to_string(&length).unwrap(), expected);
        }
    }

    #[test]
    fn name_is_the_same_in_json_and_in_names() {
        assert_eq!(
            FilesystemResult::NAMES,
            [
                "thawed",
                "thawed-by-watchdog",
                "thawed-by-another",
                "frozen-by-another",
                "not-freezable",
                "freeze-failed",
                "not-opened",
                "freeze-would-wait",
                "not-writable",
                "unmounted",
                "mounted-since",
                "not-frozen",
                "freeze-hung",
                "not-thawed",
            ]
        );
        let hung = FilesystemResult::FreezeHung;
        assert_eq!(hung.name(), "freeze-hung");
        assert_eq!(serde_json::to_string(&hung).unwrap(), "\"freeze-hung\"");
        assert_eq!(
            TimelineEventKind::NAMES,
            [
                "application-quiesced",
                "application-released",
                "sync-late",
                "sync-failed",
                "freeze-called",
                "freeze-returned",
                "thaw-called",
                "thawed",
                "request-sent",
                "request-ended",
                "window-closed",
            ]
        );
    }
}
