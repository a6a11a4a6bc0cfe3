//! The applications that a run holds still while it freezes: what is recorded of each, and what that
//! proves.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::deadlines::Monotonic;
use crate::report::{
    milliseconds, ApplicationOutcome, ApplicationResult, FilesystemOutcome, FilesystemResult,
};

/// A file or directory of an application.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct DataPath {
    /// With symbolic links resolved, if it could be found.
    pub path: String,
    /// mountinfo's major:minor of its filesystem. `None` if it could not be found.
    pub device: Option<String>,
}

/// Why an application was not ready, not quiesced or lost.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ApplicationError {
    /// Its stable name.
    pub code: String,
    /// What happened, in one sentence without a secret.
    pub message: String,
}

/// What the keeper of the applications recorded of one of them. Instants are of `CLOCK_MONOTONIC`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplicationRecord {
    /// What the operator calls it.
    pub name: String,
    /// What it is: `mariadb`, `postgresql`, `hook`.
    pub kind: String,
    /// Whether the set of snapshots is worth less without it.
    pub required: bool,
    /// The statement that holds it still, or the program that does.
    pub method: Option<String>,
    /// What its last answer proves.
    pub proof: Option<String>,
    /// Why it failed, if it did.
    pub error: Option<ApplicationError>,
    /// How long it took to be ready.
    pub ready_ns: Option<u64>,
    /// When it was asked to hold still.
    pub asked_at_ns: Option<u64>,
    /// When it said that it does.
    pub quiesced_at_ns: Option<u64>,
    /// When it was asked, after the thaw, for the proof that it then gave.
    pub proven_at_ns: Option<u64>,
    /// When it was released.
    pub released_at_ns: Option<u64>,
    /// The position in its log, by name.
    pub position: BTreeMap<String, String>,
    /// What that position says.
    pub position_is: Option<String>,
    /// Where its data lie.
    pub data: Vec<DataPath>,
    /// Files that a restore needs beside the snapshots, by name.
    pub files: BTreeMap<String, String>,
}

impl ApplicationRecord {
    /// Returns the record that stands for all applications of a run of which nothing is known.
    #[must_use]
    pub fn unknown(why: &str) -> Self {
        Self {
            name: "all".to_owned(),
            kind: "unknown".to_owned(),
            required: true,
            method: None,
            proof: None,
            error: Some(ApplicationError {
                code: "keeper-lost".to_owned(),
                message: why.to_owned(),
            }),
            ready_ns: None,
            asked_at_ns: None,
            quiesced_at_ns: None,
            proven_at_ns: None,
            released_at_ns: None,
            position: BTreeMap::new(),
            position_is: None,
            data: Vec::new(),
            files: BTreeMap::new(),
        }
    }
}

/// Judges `record`. The first FIFREEZE was called at `first_freeze`, and everything was thawed at
/// `thawed`; each is `None` if it did not happen. `filesystems` are those of the run.
#[must_use]
pub fn judge(
    record: ApplicationRecord,
    first_freeze: Option<Monotonic>,
    thawed: Option<Monotonic>,
    filesystems: &[FilesystemOutcome],
) -> ApplicationOutcome {
    let is_before_freeze = |at_ns: u64| first_freeze.is_none_or(|freeze| at_ns < freeze.0);
    let is_after_thaw = |at_ns: u64| thawed.is_some_and(|thawed| at_ns >= thawed.0);
    let was_held = record.quiesced_at_ns.is_some_and(is_before_freeze);
    let is_proven =
        was_held && record.error.is_none() && record.proven_at_ns.is_some_and(is_after_thaw);
    let (outcome, error) = if is_proven {
        match uncovered(&record.data, filesystems) {
            Some(error) => (ApplicationResult::NotCovered, Some(error)),
            None => (ApplicationResult::Held, None),
        }
    } else {
        let outcome = if was_held {
            ApplicationResult::Lost
        } else if record.asked_at_ns.is_some() {
            ApplicationResult::NotQuiesced
        } else {
            ApplicationResult::NotReady
        };
        let unproven = || ApplicationError {
            code: "not-proven".to_owned(),
            message: format!(
                "it is not proven that `{}` held still until the thaw",
                record.name
            ),
        };
        (outcome, Some(record.error.unwrap_or_else(unproven)))
    };
    let between = |from: Option<u64>, to: Option<u64>| {
        let ns = to?.checked_sub(from?)?;
        Some(milliseconds(Duration::from_nanos(ns)))
    };
    let (error_code, error) = error.map(|error| (error.code, error.message)).unzip();
    ApplicationOutcome {
        name: record.name,
        kind: record.kind,
        required: record.required,
        outcome,
        method: record.method,
        proof: record
            .proof
            .filter(|_| is_proven)
            .and_then(|proof| proof.parse().ok()),
        ready_ms: record.ready_ns.and_then(|ns| between(Some(0), Some(ns))),
        lock_wait_ms: between(record.asked_at_ns, record.quiesced_at_ns),
        held_ms: between(record.quiesced_at_ns, record.released_at_ns),
        position: record.position,
        position_is: record.position_is.and_then(|is| is.parse().ok()),
        files: record.files,
        error_code,
        error,
    }
}

/// Returns the error for the first path that does not lie on a filesystem that the run froze and thawed.
fn uncovered(data: &[DataPath], filesystems: &[FilesystemOutcome]) -> Option<ApplicationError> {
    let is_frozen = |device: &String| {
        let mut same = filesystems.iter().filter(|item| item.device == *device);
        same.any(|item| item.outcome == FilesystemResult::Thawed)
    };
    let DataPath { path, device } = data
        .iter()
        .find(|data| !data.device.as_ref().is_some_and(is_frozen))?;
    let why = match device {
        Some(device) => format!("lies on {device}, which the run did not freeze"),
        None => "could not be found on this machine".to_owned(),
    };
    Some(ApplicationError {
        code: "data-not-covered".to_owned(),
        message: format!("`{path}` {why}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Proof;

    const FREEZE: Monotonic = Monotonic(1_000_000);
    const THAW: Monotonic = Monotonic(9_000_000);

    fn record() -> ApplicationRecord {
        ApplicationRecord {
            name: "orders".to_owned(),
            kind: "mariadb".to_owned(),
            required: true,
            method: Some("BACKUP STAGE BLOCK_COMMIT".to_owned()),
            proof: Some("session".to_owned()),
            error: None,
            ready_ns: Some(3_000_000),
            asked_at_ns: Some(500_000),
            quiesced_at_ns: Some(900_000),
            proven_at_ns: Some(9_100_000),
            released_at_ns: Some(9_900_000),
            position: BTreeMap::new(),
            position_is: Some("exact".to_owned()),
            data: vec![DataPath {
                path: "/db".to_owned(),
                device: Some("8:17".to_owned()),
            }],
            files: BTreeMap::new(),
        }
    }

    fn filesystems(outcome: FilesystemResult) -> Vec<FilesystemOutcome> {
        vec![FilesystemOutcome {
            mount_point: "/db".to_owned(),
            device: "8:17".to_owned(),
            filesystem_type: "ext4".to_owned(),
            level: 0,
            outcome,
            frozen_at: None,
            freeze_ms: None,
            thawed_at: None,
            frozen_ms: None,
            thawed_by: None,
            error: None,
        }]
    }

    fn judge(record: ApplicationRecord) -> ApplicationOutcome {
        let frozen = filesystems(FilesystemResult::Thawed);
        super::judge(record, Some(FREEZE), Some(THAW), &frozen)
    }

    #[test]
    fn application_is_held_only_from_before_the_freeze_until_after_the_thaw() {
        let held = judge(record());
        assert_eq!(held.outcome, ApplicationResult::Held);
        assert_eq!((held.proof, held.error_code), (Some(Proof::Session), None));
        assert_eq!(held.ready_ms, Some(3.0));
        assert_eq!(held.lock_wait_ms, Some(0.4));
        assert_eq!(held.held_ms, Some(9.0));
        for (quiesced, proven, expected) in [
            (
                Some(1_000_000),
                Some(9_100_000),
                ApplicationResult::NotQuiesced,
            ),
            (None, Some(9_100_000), ApplicationResult::NotQuiesced),
            (Some(900_000), Some(8_999_999), ApplicationResult::Lost),
            (Some(900_000), None, ApplicationResult::Lost),
        ] {
            let outcome = judge(ApplicationRecord {
                quiesced_at_ns: quiesced,
                proven_at_ns: proven,
                ..record()
            });
            assert_eq!(outcome.outcome, expected, "{quiesced:?} {proven:?}");
            assert_eq!(outcome.proof, None);
            assert_eq!(outcome.error_code.as_deref(), Some("not-proven"));
        }
    }

    #[test]
    fn application_with_an_error_is_never_held() {
        let error = ApplicationError {
            code: "session-lost".to_owned(),
            message: "the session ended".to_owned(),
        };
        let lost = judge(ApplicationRecord {
            error: Some(error.clone()),
            ..record()
        });
        assert_eq!(lost.outcome, ApplicationResult::Lost);
        assert_eq!(lost.error_code.as_deref(), Some("session-lost"));
        let not_ready = judge(ApplicationRecord {
            error: Some(error),
            asked_at_ns: None,
            quiesced_at_ns: None,
            ..record()
        });
        assert_eq!(not_ready.outcome, ApplicationResult::NotReady);
    }

    #[test]
    fn application_is_not_proven_if_the_end_of_the_window_is_not_known() {
        let frozen = filesystems(FilesystemResult::Thawed);
        let outcome = super::judge(record(), Some(FREEZE), None, &frozen);
        assert_eq!(outcome.outcome, ApplicationResult::Lost);
    }

    #[test]
    fn data_outside_what_was_frozen_are_named() {
        let mut elsewhere = record();
        elsewhere.data.push(DataPath {
            path: "/logs/binlog".to_owned(),
            device: Some("8:33".to_owned()),
        });
        let mut missing = record();
        missing.data.push(DataPath {
            path: "/logs/binlog".to_owned(),
            device: None,
        });
        for record in [elsewhere, missing] {
            let outcome = judge(record);
            assert_eq!(outcome.outcome, ApplicationResult::NotCovered);
            assert_eq!(outcome.error_code.as_deref(), Some("data-not-covered"));
            assert!(outcome
                .error
                .is_some_and(|error| error.contains("`/logs/binlog`")));
        }
        for result in [FilesystemResult::FreezeFailed, FilesystemResult::NotOpened] {
            let outcome = super::judge(record(), Some(FREEZE), Some(THAW), &filesystems(result));
            assert_eq!(outcome.outcome, ApplicationResult::NotCovered);
        }
    }
}
