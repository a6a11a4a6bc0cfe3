//! After the window: makes sense of the ledger and the answers, and says what they are worth.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use vmsnapshot_core::blob::{self, SasUri};
use vmsnapshot_core::deadlines::{Deadlines, Monotonic};
use vmsnapshot_core::ledger::{Entry, FreezeState};
use vmsnapshot_core::plan::{Plan, PlannedFilesystem};
use vmsnapshot_core::report::{
    utc_text, BlobOutcome, BlobResult, Consistency, FilesystemOutcome, FilesystemResult, Mode,
    Report, ThawedBy, TimelineEvent, WatchdogOutcome, SCHEMA_VERSION,
};
use vmsnapshot_core::text::path_text;
use vmsnapshot_sys::ledger_file::LedgerFile;
use vmsnapshot_sys::Errno;

use crate::connect::SendFailure;
use crate::error::cause_text;
use crate::rcu::Rcu;
use crate::sync::Synced;
use crate::window::{CallRecord, WindowRecord};

/// All that is known of a run that is over.
pub(crate) struct Facts<'a> {
    pub(crate) run_id: &'a str,
    pub(crate) plan: &'a Plan,
    pub(crate) uris: &'a [SasUri],
    pub(crate) thaw_timeout: Duration,
    pub(crate) deadlines: Deadlines,
    pub(crate) ledger: &'a Arc<LedgerFile>,
    pub(crate) synced: &'a [Synced],
    pub(crate) rcu: &'a Rcu,
    /// None when the window ended in a panic.
    pub(crate) record: Option<WindowRecord>,
    pub(crate) watchdog: WatchdogOutcome,
}

/// Makes the report.
pub(crate) fn report(facts: Facts<'_>) -> Report {
    let filesystems: Vec<FilesystemOutcome> = facts
        .plan
        .filesystems
        .iter()
        .zip(&facts.ledger.entries)
        .map(|(planned, entry)| filesystem_outcome(planned, entry, facts.ledger))
        .collect();
    // From what the report says of each, and not from the ledger again: the watchdog may still be
    // at work, and the report must not contradict itself.
    let all_thawed = !filesystems.iter().any(is_still_frozen);
    let blobs = blob_outcomes(&facts);
    let (consistency, why) = consistency(&facts, &filesystems, &blobs);
    Report {
        schema_version: SCHEMA_VERSION,
        run_id: facts.run_id.to_owned(),
        started_at: utc_text(facts.ledger.header.realtime_ns(facts.deadlines.start)),
        consistent: matches!(
            consistency,
            Consistency::Application | Consistency::Filesystem
        ),
        consistency,
        why,
        all_thawed,
        window_ms: window_ms(&facts).filter(|_| all_thawed),
        thaw_timeout_ms: milliseconds(facts.thaw_timeout),
        mode: mode(&facts),
        filesystems,
        timeline: timeline(&facts),
        blobs,
        watchdog: facts.watchdog,
    }
}

fn filesystem_outcome(
    planned: &PlannedFilesystem,
    entry: &Entry,
    ledger: &LedgerFile,
) -> FilesystemOutcome {
    let refused_with = |errno: Errno| entry.errno() == errno.raw_os_error().unsigned_abs();
    let outcome = match entry.state() {
        FreezeState::Planned | FreezeState::Revoked => FilesystemResult::NotFrozen,
        FreezeState::Announced => FilesystemResult::FreezeHung,
        FreezeState::Frozen => FilesystemResult::NotThawed,
        FreezeState::Refused if refused_with(Errno::BUSY) => FilesystemResult::FrozenByAnother,
        FreezeState::Refused if refused_with(Errno::OPNOTSUPP) => FilesystemResult::NotFreezable,
        FreezeState::Refused => FilesystemResult::FreezeFailed,
        FreezeState::ThawedByRun => FilesystemResult::Thawed,
        FreezeState::ThawedByWatchdog => FilesystemResult::ThawedByWatchdog,
        FreezeState::ThawedByAnother | FreezeState::ThawedByOperator => {
            FilesystemResult::ThawedByAnother
        }
    };
    let thawed_by = match outcome {
        FilesystemResult::Thawed => Some(ThawedBy::Run),
        FilesystemResult::ThawedByWatchdog => Some(ThawedBy::Watchdog),
        FilesystemResult::ThawedByAnother => Some(ThawedBy::Another),
        FilesystemResult::FrozenByAnother
        | FilesystemResult::NotFreezable
        | FilesystemResult::FreezeFailed
        | FilesystemResult::NotFrozen
        | FilesystemResult::FreezeHung
        | FilesystemResult::NotThawed => None,
    };
    let was_frozen = thawed_by.is_some() || outcome == FilesystemResult::NotThawed;
    let announced = entry.announced_at();
    let returned = entry.freeze_returned_at().filter(|_| was_frozen);
    let thawed = entry.thawed_at().filter(|_| thawed_by.is_some());
    let text = |instant: Monotonic| utc_text(ledger.header.realtime_ns(instant));
    let length =
        |from: Option<Monotonic>, to: Option<Monotonic>| Some(milliseconds(to?.since(from?)));
    FilesystemOutcome {
        mount_point: path_text(&planned.mount_point),
        device: planned.device.to_string(),
        filesystem_type: planned.filesystem_type.clone(),
        level: planned.level,
        outcome,
        frozen_at: returned.map(text),
        freeze_ms: length(announced, entry.freeze_returned_at()),
        thawed_at: thawed.map(text),
        frozen_ms: length(announced, thawed),
        thawed_by,
        error: error_text(outcome, entry),
    }
}

fn error_text(outcome: FilesystemResult, entry: &Entry) -> Option<String> {
    let errno = entry.errno();
    let answer = || cause_text(&io::Error::from_raw_os_error(errno.cast_signed()));
    match outcome {
        FilesystemResult::Thawed | FilesystemResult::ThawedByWatchdog => None,
        FilesystemResult::ThawedByAnother => {
            Some("FITHAW: it was not frozen any more: somebody else thawed it".to_owned())
        }
        FilesystemResult::FrozenByAnother if entry.undid_another() => Some(
            "FIFREEZE: device or resource busy: frozen by somebody else; a FITHAW of ours, called \
             at the deadline while FIFREEZE waited behind that freeze, undid it"
                .to_owned(),
        ),
        FilesystemResult::FrozenByAnother => Some(
            "FIFREEZE: device or resource busy: frozen or suspended by somebody else".to_owned(),
        ),
        FilesystemResult::NotFreezable | FilesystemResult::FreezeFailed => {
            Some(format!("FIFREEZE: {}", answer()))
        }
        FilesystemResult::NotFrozen => Some("the run ended before its turn".to_owned()),
        FilesystemResult::FreezeHung => {
            Some("FIFREEZE has not returned; the watchdog thaws it when it does".to_owned())
        }
        FilesystemResult::NotThawed if errno == 0 => Some("FITHAW has not returned".to_owned()),
        FilesystemResult::NotThawed => Some(format!("FITHAW: {}", answer())),
    }
}

fn blob_outcomes(facts: &Facts<'_>) -> Vec<BlobOutcome> {
    let records = facts.record.as_ref().map(|record| record.calls.as_slice());
    facts
        .uris
        .iter()
        .enumerate()
        .map(|(index, uri)| match records {
            // No window, no word of what was sent in it.
            None => unjudged(
                uri,
                BlobResult::Unknown,
                "NoAnswer",
                "the window broke off",
                1,
            ),
            Some([]) => unjudged(
                uri,
                BlobResult::Refused,
                "NotSent",
                "the request was not sent: not everything could be frozen",
                0,
            ),
            Some(records) => match records.get(index).and_then(Option::as_ref) {
                Some(record) => blob_outcome(uri, record),
                None => unjudged(
                    uri,
                    BlobResult::Unknown,
                    "NoAnswer",
                    "the window ended before there was an answer",
                    1,
                ),
            },
        })
        .collect()
}

fn blob_outcome(uri: &SasUri, record: &CallRecord) -> BlobOutcome {
    let mut outcome = match &record.result {
        Ok(answer) => {
            let verdict = blob::verdict(
                answer.status,
                answer.snapshot.as_ref().map(http::HeaderValue::as_bytes),
                answer.error_code.as_ref().map(http::HeaderValue::as_bytes),
                &answer.body,
            );
            BlobOutcome {
                uri: uri.uri_without_query().to_owned(),
                outcome: verdict.outcome,
                snapshot_uri: verdict
                    .snapshot
                    .as_deref()
                    .map(|snapshot| uri.snapshot_uri(snapshot)),
                snapshot: verdict.snapshot,
                http_status: Some(answer.status),
                error_code: verdict.error_code,
                message: verdict.message,
                retryable: verdict.retryable,
                attempts: record.attempts,
                answer_ms: None,
            }
        }
        Err(failure) => {
            let (outcome, code) = match failure {
                SendFailure::NotSent { .. } => (BlobResult::Refused, "NotSent"),
                SendFailure::Lost { .. } => (BlobResult::Unknown, "ConnectionLost"),
                SendFailure::BadAnswer { .. } => (BlobResult::Unknown, "BadAnswer"),
                SendFailure::NoAnswer => (BlobResult::Unknown, "NoAnswer"),
            };
            unjudged(uri, outcome, code, &failure.to_string(), record.attempts)
        }
    };
    if record.first_was_lost && outcome.outcome == BlobResult::Refused {
        outcome.outcome = BlobResult::Unknown;
        outcome.message = Some(format!(
            "a first attempt was lost after it was sent; the second was refused: {}",
            outcome.message.as_deref().unwrap_or("no reason was given")
        ));
    }
    outcome.answer_ms = Some(milliseconds(record.ended_at.since(record.sent_at)));
    outcome
}

fn unjudged(
    uri: &SasUri,
    outcome: BlobResult,
    code: &str,
    message: &str,
    attempts: u32,
) -> BlobOutcome {
    BlobOutcome {
        uri: uri.uri_without_query().to_owned(),
        outcome,
        snapshot: None,
        snapshot_uri: None,
        http_status: None,
        error_code: Some(code.to_owned()),
        message: Some(message.to_owned()),
        retryable: true,
        attempts,
        answer_ms: None,
    }
}

/// What the set of snapshots is worth, and why not more: the gravest reason first.
fn consistency(
    facts: &Facts<'_>,
    filesystems: &[FilesystemOutcome],
    blobs: &[BlobOutcome],
) -> (Consistency, Option<String>) {
    let doubt = freeze_doubt(facts, filesystems);
    if filesystems.iter().any(is_still_frozen) {
        // Nothing else that went wrong is as grave, whatever became of the snapshots.
        return (Consistency::None, doubt);
    }
    let missing = blobs
        .iter()
        .find(|blob| blob.outcome != BlobResult::Created);
    match (missing, doubt) {
        (None, None) => (Consistency::Filesystem, None),
        (None, Some(why)) => {
            let consistency = if blobs.is_empty() {
                Consistency::None
            } else {
                Consistency::Crash
            };
            (consistency, Some(why))
        }
        // Nothing was sent, because of the freeze: that is the reason, not the missing answer.
        (Some(blob), Some(why)) if blob.attempts == 0 => (Consistency::None, Some(why)),
        (Some(blob), _) => {
            let why = format!(
                "the snapshot of {} {}: {}",
                blob.uri,
                match blob.outcome {
                    BlobResult::Unknown => "is unknown",
                    BlobResult::Refused | BlobResult::Created => "was refused",
                },
                blob.error_code
                    .as_deref()
                    .or(blob.message.as_deref())
                    .unwrap_or("no reason was given")
            );
            (Consistency::None, Some(why))
        }
    }
}

/// Whether it is, or will be when FIFREEZE returns, frozen by us.
fn is_still_frozen(filesystem: &FilesystemOutcome) -> bool {
    matches!(
        filesystem.outcome,
        FilesystemResult::NotThawed | FilesystemResult::FreezeHung
    )
}

/// Why it is not known that everything planned was frozen over all snapshots; none if it is.
fn freeze_doubt(facts: &Facts<'_>, filesystems: &[FilesystemOutcome]) -> Option<String> {
    let grave = |outcome: FilesystemResult| match outcome {
        FilesystemResult::NotThawed => 0,
        FilesystemResult::FreezeHung => 1,
        FilesystemResult::ThawedByWatchdog => 2,
        FilesystemResult::ThawedByAnother => 3,
        FilesystemResult::FrozenByAnother | FilesystemResult::FreezeFailed => 4,
        FilesystemResult::NotFrozen => 5,
        FilesystemResult::Thawed | FilesystemResult::NotFreezable => 6,
    };
    if let Some(worst) = filesystems
        .iter()
        .filter(|filesystem| grave(filesystem.outcome) < 6)
        .min_by_key(|filesystem| grave(filesystem.outcome))
    {
        let mount_point = &worst.mount_point;
        return Some(match worst.outcome {
            FilesystemResult::NotThawed => format!("`{mount_point}` is still frozen"),
            FilesystemResult::FreezeHung => {
                format!("the freeze of `{mount_point}` has not returned")
            }
            FilesystemResult::ThawedByWatchdog => {
                format!("the watchdog had to thaw `{mount_point}`")
            }
            FilesystemResult::ThawedByAnother => {
                format!("somebody else thawed `{mount_point}` during the snapshots")
            }
            FilesystemResult::FrozenByAnother => {
                format!("somebody else had frozen `{mount_point}`")
            }
            FilesystemResult::FreezeFailed => format!(
                "`{mount_point}` could not be frozen: {}",
                worst.error.as_deref().unwrap_or("no reason was given")
            ),
            FilesystemResult::NotFrozen
            | FilesystemResult::Thawed
            | FilesystemResult::NotFreezable => {
                format!("the run ended before `{mount_point}` was frozen")
            }
        });
    }
    match &facts.record {
        None => Some("the window broke off by a fault of this program".to_owned()),
        Some(_) if facts.watchdog.fired.is_some() => {
            Some("the watchdog ended the window".to_owned())
        }
        Some(record) if record.watchdog_lost => {
            Some("the watchdog was lost, so the window was ended early".to_owned())
        }
        Some(record) if !record.froze_all => {
            Some("the freeze broke off before everything was frozen".to_owned())
        }
        Some(_)
            if !filesystems
                .iter()
                .any(|filesystem| filesystem.outcome == FilesystemResult::Thawed) =>
        {
            Some("nothing was frozen".to_owned())
        }
        Some(_) => None,
    }
}

/// From the first FIFREEZE called to the last FITHAW returned, whoever called it.
fn window_ms(facts: &Facts<'_>) -> Option<f64> {
    let last = facts
        .ledger
        .entries
        .iter()
        .filter_map(Entry::thawed_at)
        .max()?;
    Some(milliseconds(last.since(first_freeze(facts)?)))
}

/// When the first FIFREEZE was called.
fn first_freeze(facts: &Facts<'_>) -> Option<Monotonic> {
    facts
        .ledger
        .entries
        .iter()
        .filter(|entry| entry.state() != FreezeState::Revoked)
        .filter_map(Entry::announced_at)
        .min()
}

fn mode(facts: &Facts<'_>) -> Mode {
    let rcu_expedited = facts
        .record
        .as_ref()
        .is_some_and(|record| record.rcu_expedited);
    Mode {
        rcu_expedited,
        rcu_why_not: (!rcu_expedited).then(|| {
            facts
                .rcu
                .why_not()
                .unwrap_or("it could not be switched on")
                .to_owned()
        }),
        parallel: facts
            .plan
            .filesystems
            .windows(2)
            .any(|pair| matches!(pair, [left, right] if left.level == right.level)),
    }
}

fn timeline(facts: &Facts<'_>) -> Vec<TimelineEvent> {
    let start = facts.deadlines.start;
    let first_freeze = first_freeze(facts).unwrap_or(start);
    let event = |at: Monotonic, event: &str, subject: Option<String>| TimelineEvent {
        at_ms: milliseconds(at.since(first_freeze)) - milliseconds(first_freeze.since(at)),
        event: event.to_owned(),
        subject,
    };
    let mut events = Vec::new();
    for (planned, synced) in facts.plan.filesystems.iter().zip(facts.synced) {
        let subject = Some(path_text(&planned.mount_point));
        match synced {
            Synced::Done => {}
            Synced::Late => events.push(event(start, "not synced in time", subject)),
            Synced::Failed(errno) => {
                let cause = cause_text(&io::Error::from_raw_os_error(errno.cast_signed()));
                events.push(event(start, &format!("sync failed: {cause}"), subject));
            }
        }
    }
    for (planned, entry) in facts.plan.filesystems.iter().zip(&facts.ledger.entries) {
        let subject = Some(path_text(&planned.mount_point));
        let moments = [
            (entry.announced_at(), "freeze called"),
            (entry.freeze_returned_at(), "freeze returned"),
            (entry.thaw_called_at(), "thaw called"),
            (entry.thawed_at(), "thawed"),
        ];
        for (moment, name) in moments {
            if let Some(at) = moment {
                events.push(event(at, name, subject.clone()));
            }
        }
    }
    if let Some(record) = &facts.record {
        for (uri, call) in facts.uris.iter().zip(&record.calls) {
            if let Some(call) = call {
                let subject = Some(uri.uri_without_query().to_owned());
                events.push(event(call.sent_at, "request sent", subject.clone()));
                events.push(event(call.ended_at, "request ended", subject));
            }
        }
        events.push(event(record.ended_at, "window closed", None));
    }
    events.sort_by(|left, right| left.at_ms.total_cmp(&right.at_ms));
    events
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
