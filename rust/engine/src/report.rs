//! After the window: makes sense of the ledger and the answers, and says what they are worth.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use vmsnapshot_core::blob::{self, SasUri};
use vmsnapshot_core::deadlines::{Deadlines, Monotonic};
use vmsnapshot_core::host_call::{self, HostCall};
use vmsnapshot_core::ledger::{Entry, FreezeState};
use vmsnapshot_core::plan::{Plan, PlannedFilesystem};
use vmsnapshot_core::report::{
    utc_text, BlobOutcome, BlobResult, Consistency, FilesystemOutcome, FilesystemResult,
    FreezeDoubt, HostCallOutcome, HostCallResult, Mode, Report, ThawedBy, TimelineEvent,
    WatchdogOutcome, SCHEMA_VERSION,
};
use vmsnapshot_core::secret::SecretBytes;
use vmsnapshot_core::text::path_text;
use vmsnapshot_sys::ledger_file::LedgerFile;
use vmsnapshot_sys::Errno;

use crate::blobs::{Blobs, Unusable};
use crate::connect::SendFailure;
use crate::error::{cause_text, PrepareError};
use crate::rcu::Rcu;
use crate::sync::Synced;
use crate::window::{CallRecord, WindowRecord};

/// All that is known of a run that is over.
pub(crate) struct Facts<'a> {
    pub(crate) run_id: &'a str,
    pub(crate) plan: &'a Plan,
    /// The blobs, the usable ones with the numbers of their calls.
    pub(crate) blobs: &'a Blobs<usize>,
    /// The host call, with its number.
    pub(crate) host_call: Option<&'a (HostCall, usize)>,
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
    let host_call = host_outcome(&facts);
    let has_fired = facts.watchdog.fired.is_some();
    let doubt = freeze_doubt(facts.record.as_ref(), has_fired, &filesystems);
    let freeze_doubt_code = doubt.as_ref().map(|(code, _)| *code);
    let freeze_doubt = doubt.map(|(_, why)| why);
    let missing = missing_snapshot(&blobs, host_call.as_ref());
    let is_asked = !blobs.is_empty() || host_call.is_some();
    let froze_all = facts.record.as_ref().is_none_or(|record| record.froze_all);
    let (consistency, why) = if all_thawed {
        consistency(is_asked, froze_all, missing, freeze_doubt.clone())
    } else {
        // Nothing else that went wrong is as grave, whatever became of the snapshots.
        (Consistency::None, freeze_doubt.clone())
    };
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
        freeze_doubt,
        freeze_doubt_code,
        all_thawed,
        window_ms: window_ms(&facts).filter(|_| all_thawed),
        thaw_timeout_ms: milliseconds(facts.thaw_timeout),
        mode: mode(&facts),
        filesystems,
        timeline: timeline(&facts),
        blobs,
        host_call,
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

/// Why there is no record of a call.
struct NoRecord {
    may_be_sent: bool,
    message: &'static str,
}

impl NoRecord {
    /// The stable name, and how many attempts it stands for.
    fn code_and_attempts(&self) -> (&'static str, u32) {
        if self.may_be_sent {
            ("NoAnswer", 1)
        } else {
            ("NotSent", 0)
        }
    }
}

/// What is known of the call of that number.
fn record_of<'a>(facts: &'a Facts<'_>, number: usize) -> Result<&'a CallRecord, NoRecord> {
    let records = facts.record.as_ref().map(|record| record.calls.as_slice());
    let (may_be_sent, message) = match records {
        // No window, no word of what was sent in it.
        None => (true, "the window broke off"),
        Some([]) => (
            false,
            "the request was not sent: not everything could be frozen",
        ),
        Some(records) => match records.get(number).and_then(Option::as_ref) {
            Some(record) => return Ok(record),
            None => (true, "the window ended before there was an answer"),
        },
    };
    Err(NoRecord {
        may_be_sent,
        message,
    })
}

fn blob_outcomes(facts: &Facts<'_>) -> Vec<BlobOutcome> {
    let outcome = |blob: &Result<(SasUri, usize), Unusable>| match blob {
        Ok((uri, number)) => match record_of(facts, *number) {
            Ok(record) => blob_outcome(uri, record),
            Err(none) => {
                let outcome = if none.may_be_sent {
                    BlobResult::Unknown
                } else {
                    BlobResult::Refused
                };
                let (code, attempts) = none.code_and_attempts();
                unjudged(uri, outcome, code, none.message, attempts)
            }
        },
        Err(unusable) => unusable_outcome(unusable),
    };
    facts.blobs.each().iter().map(outcome).collect()
}

/// The outcome of a blob that was sent nothing, because of what the blob or its server is.
fn unusable_outcome(unusable: &Unusable) -> BlobOutcome {
    let error = &unusable.error;
    BlobOutcome {
        uri: unusable.uri.clone(),
        outcome: BlobResult::Refused,
        snapshot: None,
        snapshot_uri: None,
        http_status: None,
        error_code: Some(error.code().to_owned()),
        message: Some(error.to_string()),
        retryable: matches!(error, PrepareError::Connect(cause) if cause.is_transient()),
        attempts: 0,
        answer_ms: None,
        body: None,
    }
}

fn host_outcome(facts: &Facts<'_>) -> Option<HostCallOutcome> {
    let (call, number) = facts.host_call?;
    let record = match record_of(facts, *number) {
        Ok(record) => record,
        Err(none) => {
            let (code, attempts) = none.code_and_attempts();
            return Some(unanswered(
                call,
                none.may_be_sent,
                code,
                none.message,
                attempts,
            ));
        }
    };
    let outcome = match &record.result {
        Ok(answer) => HostCallOutcome {
            uri: call.uri().to_string(),
            outcome: HostCallResult::Answered,
            http_status: Some(answer.status),
            body: SecretBytes(answer.body.to_vec()),
            body_is_complete: answer.complete,
            error_code: None,
            message: None,
            attempts: record.attempts,
            answer_ms: None,
        },
        Err(failure) => {
            let (may_be_sent, code) = judge_failure(failure);
            let message = failure.to_string();
            unanswered(call, may_be_sent, code, &message, record.attempts)
        }
    };
    Some(HostCallOutcome {
        answer_ms: Some(milliseconds(record.ended_at.since(record.sent_at))),
        ..outcome
    })
}

fn unanswered(
    call: &HostCall,
    may_be_sent: bool,
    code: &str,
    message: &str,
    attempts: u32,
) -> HostCallOutcome {
    HostCallOutcome {
        uri: call.uri().to_string(),
        outcome: if may_be_sent {
            HostCallResult::Unknown
        } else {
            HostCallResult::NotSent
        },
        http_status: None,
        body: SecretBytes::default(),
        body_is_complete: false,
        error_code: Some(code.to_owned()),
        message: Some(message.to_owned()),
        attempts,
        answer_ms: None,
    }
}

/// Whether the server may have seen the request, and the failure's stable name.
fn judge_failure(failure: &SendFailure) -> (bool, &'static str) {
    match failure {
        SendFailure::NotSent { .. } => (false, "NotSent"),
        SendFailure::Lost { .. } => (true, "ConnectionLost"),
        SendFailure::BadAnswer { .. } => (true, "BadAnswer"),
        SendFailure::NoAnswer => (true, "NoAnswer"),
    }
}

fn blob_outcome(uri: &SasUri, record: &CallRecord) -> BlobOutcome {
    let mut outcome = match &record.result {
        Ok(answer) => {
            let verdict = blob::judge_answer(
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
                body: blob::refusal_body(&answer.body)
                    .filter(|_| verdict.outcome != BlobResult::Created),
            }
        }
        Err(failure) => {
            let (may_be_sent, code) = judge_failure(failure);
            let outcome = if may_be_sent {
                BlobResult::Unknown
            } else {
                BlobResult::Refused
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
        body: None,
    }
}

/// The first snapshot, or the host's whole set, that is not known to exist. What a host wrote in a
/// good answer is for the caller to read.
fn missing_snapshot(blobs: &[BlobOutcome], host: Option<&HostCallOutcome>) -> Option<String> {
    let blob = (1..)
        .zip(blobs)
        .find(|(_, blob)| blob.outcome != BlobResult::Created)
        .map(|(position, blob)| {
            // A blob whose URI could not be read has none.
            let name = match blob.uri.as_str() {
                "" => format!("blob {position} of {}", blobs.len()),
                uri => uri.to_owned(),
            };
            format!(
                "the snapshot of {name} {}: {}",
                match blob.outcome {
                    BlobResult::Unknown => "is unknown",
                    BlobResult::Refused | BlobResult::Created => "was refused",
                },
                blob.error_code
                    .as_deref()
                    .or(blob.message.as_deref())
                    .unwrap_or("no reason was given")
            )
        });
    let host = host.and_then(|host| {
        let words = host.message.as_deref().unwrap_or("no reason was given");
        match (host.http_status, host.outcome) {
            (Some(200..=299), _) => None,
            (Some(status), _) if host_call::is_refusal(status) => Some(format!(
                "the host's snapshots were refused: it answered {status}"
            )),
            (Some(status), _) => Some(format!(
                "the host's snapshots are unknown: it answered {status}"
            )),
            (None, HostCallResult::NotSent) => {
                Some(format!("the host's snapshots were not asked for: {words}"))
            }
            (None, HostCallResult::Unknown | HostCallResult::Answered) => {
                Some(format!("the host's snapshots are unknown: {words}"))
            }
        }
    });
    blob.or(host)
}

/// What the set of snapshots is worth once everything is thawed, and why not more: the gravest
/// reason first.
fn consistency(
    is_asked: bool,
    froze_all: bool,
    missing: Option<String>,
    doubt: Option<String>,
) -> (Consistency, Option<String>) {
    match (missing, doubt) {
        (None, None) => (Consistency::Filesystem, None),
        (None, Some(why)) if is_asked => (Consistency::Crash, Some(why)),
        (None, Some(why)) => (Consistency::None, Some(why)),
        // Nothing was sent, because of the freeze: that is the reason, not the missing answer.
        (Some(_), Some(why)) if !froze_all => (Consistency::None, Some(why)),
        (Some(missing), _) => (Consistency::None, Some(missing)),
    }
}

/// Whether it is, or will be when FIFREEZE returns, frozen by us.
fn is_still_frozen(filesystem: &FilesystemOutcome) -> bool {
    matches!(
        filesystem.outcome,
        FilesystemResult::NotThawed | FilesystemResult::FreezeHung
    )
}

/// Why it is not known that everything planned was frozen over all calls; none if it is.
fn freeze_doubt(
    record: Option<&WindowRecord>,
    has_fired: bool,
    filesystems: &[FilesystemOutcome],
) -> Option<(FreezeDoubt, String)> {
    let is_thawed = |outcome: &FilesystemOutcome| outcome.outcome == FilesystemResult::Thawed;
    filesystem_doubt(filesystems, record.is_some()).or_else(|| {
        let (doubt, why) = match record {
            None => (
                FreezeDoubt::WindowBrokeOff,
                "the window broke off by a fault of this program",
            ),
            Some(_) if has_fired => (FreezeDoubt::WatchdogFired, "the watchdog ended the window"),
            Some(record) if record.watchdog_lost => (
                FreezeDoubt::WatchdogLost,
                "the watchdog was lost, so the window was ended early",
            ),
            Some(record) if !record.froze_all => (
                FreezeDoubt::FreezeLate,
                "the freeze broke off before everything was frozen",
            ),
            Some(_) if !filesystems.iter().any(is_thawed) => {
                (FreezeDoubt::NothingFrozen, "nothing was frozen")
            }
            Some(_) => return None,
        };
        Some((doubt, why.to_owned()))
    })
}

/// The gravest doubt that a filesystem's own outcome gives, if any does.
fn filesystem_doubt(
    filesystems: &[FilesystemOutcome],
    has_record: bool,
) -> Option<(FreezeDoubt, String)> {
    let doubt = |outcome: FilesystemResult| match outcome {
        FilesystemResult::NotThawed => Some((0, FreezeDoubt::NotThawed)),
        FilesystemResult::FreezeHung => Some((1, FreezeDoubt::FreezeHung)),
        FilesystemResult::ThawedByWatchdog => Some((2, FreezeDoubt::ThawedByWatchdog)),
        FilesystemResult::ThawedByAnother => Some((3, FreezeDoubt::ThawedByAnother)),
        FilesystemResult::FrozenByAnother => Some((4, FreezeDoubt::FrozenByAnother)),
        FilesystemResult::FreezeFailed => Some((4, FreezeDoubt::FreezeFailed)),
        FilesystemResult::NotFrozen if has_record => Some((5, FreezeDoubt::FreezeLate)),
        FilesystemResult::NotFrozen => Some((5, FreezeDoubt::WindowBrokeOff)),
        FilesystemResult::Thawed | FilesystemResult::NotFreezable => None,
    };
    let (_, doubt, worst) = filesystems
        .iter()
        .filter_map(|filesystem| {
            let (gravity, doubt) = doubt(filesystem.outcome)?;
            Some((gravity, doubt, filesystem))
        })
        .min_by_key(|(gravity, ..)| *gravity)?;
    let mount_point = &worst.mount_point;
    let why = match worst.outcome {
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
        FilesystemResult::NotFrozen | FilesystemResult::Thawed | FilesystemResult::NotFreezable => {
            format!("the run ended before `{mount_point}` was frozen")
        }
    };
    Some((doubt, why))
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
        let usable = facts.blobs.each().iter().flatten();
        let blobs = usable.map(|(uri, number)| (uri.as_http(), *number));
        let host = facts.host_call.map(|(call, number)| (call.uri(), *number));
        for (uri, number) in blobs.chain(host) {
            if let Some(Some(call)) = record.calls.get(number) {
                let subject = Some(uri.to_string());
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use vmsnapshot_core::blob::BlobError;

    use super::*;
    use crate::connect::ConnectError;

    fn filesystem(outcome: FilesystemResult) -> FilesystemOutcome {
        FilesystemOutcome {
            mount_point: format!("/{outcome:?}"),
            device: "8:1".to_owned(),
            filesystem_type: "ext4".to_owned(),
            level: 0,
            outcome,
            frozen_at: None,
            freeze_ms: None,
            thawed_at: None,
            frozen_ms: None,
            thawed_by: None,
            error: None,
        }
    }

    fn record(froze_all: bool, watchdog_lost: bool) -> WindowRecord {
        WindowRecord {
            rcu_expedited: false,
            froze_all,
            watchdog_lost,
            calls: Vec::new(),
            ended_at: Monotonic(0),
        }
    }

    fn code(
        record: Option<&WindowRecord>,
        has_fired: bool,
        outcomes: &[FilesystemResult],
    ) -> Option<FreezeDoubt> {
        let filesystems: Vec<_> = outcomes.iter().copied().map(filesystem).collect();
        let doubt = freeze_doubt(record, has_fired, &filesystems);
        doubt.map(|(code, _)| code)
    }

    #[test]
    fn doubt_is_the_gravest_of_the_filesystems() {
        let gravest_first = [
            (FilesystemResult::NotThawed, FreezeDoubt::NotThawed),
            (FilesystemResult::FreezeHung, FreezeDoubt::FreezeHung),
            (
                FilesystemResult::ThawedByWatchdog,
                FreezeDoubt::ThawedByWatchdog,
            ),
            (
                FilesystemResult::ThawedByAnother,
                FreezeDoubt::ThawedByAnother,
            ),
            (FilesystemResult::FreezeFailed, FreezeDoubt::FreezeFailed),
            (FilesystemResult::NotFrozen, FreezeDoubt::FreezeLate),
        ];
        let late = record(false, false);
        for (first, (outcome, expected)) in gravest_first.into_iter().enumerate() {
            let mut outcomes = vec![FilesystemResult::Thawed];
            outcomes.extend(gravest_first.iter().skip(first).rev().map(|pair| pair.0));
            assert_eq!(code(Some(&late), true, &outcomes), Some(expected));
            let filesystems = [filesystem(outcome)];
            let (_, why) = freeze_doubt(Some(&late), false, &filesystems).unwrap();
            assert!(why.contains(&format!("`/{outcome:?}`")), "{why}");
        }
        let busy = [FilesystemResult::FrozenByAnother];
        let doubt = code(Some(&late), false, &busy);
        assert_eq!(doubt, Some(FreezeDoubt::FrozenByAnother));
    }

    #[test]
    fn doubt_without_a_filesystem_to_blame_is_the_windows() {
        let frozen = [FilesystemResult::Thawed, FilesystemResult::NotFreezable];
        let good = record(true, false);
        for (record, has_fired, outcomes, expected) in [
            (Some(&good), false, &frozen[..], None),
            (None, true, &frozen, Some(FreezeDoubt::WindowBrokeOff)),
            (
                None,
                false,
                &[FilesystemResult::NotFrozen],
                Some(FreezeDoubt::WindowBrokeOff),
            ),
            (Some(&good), true, &frozen, Some(FreezeDoubt::WatchdogFired)),
            (
                Some(&record(true, true)),
                false,
                &frozen,
                Some(FreezeDoubt::WatchdogLost),
            ),
            (
                Some(&record(false, false)),
                false,
                &frozen,
                Some(FreezeDoubt::FreezeLate),
            ),
            (
                Some(&good),
                false,
                &[FilesystemResult::NotFreezable],
                Some(FreezeDoubt::NothingFrozen),
            ),
            (Some(&good), false, &[], Some(FreezeDoubt::NothingFrozen)),
        ] {
            assert_eq!(code(record, has_fired, outcomes), expected);
        }
    }

    fn host(outcome: HostCallResult, http_status: Option<u16>) -> HostCallOutcome {
        HostCallOutcome {
            uri: "http://host/dosnapshot".to_owned(),
            outcome,
            http_status,
            body: SecretBytes(b"t0ken".to_vec()),
            body_is_complete: true,
            error_code: None,
            message: Some("the words".to_owned()),
            attempts: u32::from(outcome != HostCallResult::NotSent),
            answer_ms: None,
        }
    }

    #[test]
    fn snapshots_of_a_host_are_confirmed_by_a_good_answer_and_by_nothing_else() {
        use HostCallResult::{Answered, NotSent, Unknown};
        for (outcome, status, word) in [
            (Answered, Some(200), None),
            (Answered, Some(201), None),
            (Answered, Some(302), Some("were refused: it answered 302")),
            (Answered, Some(404), Some("were refused: it answered 404")),
            (Answered, Some(503), Some("were refused: it answered 503")),
            (Answered, Some(500), Some("are unknown: it answered 500")),
            (Answered, Some(504), Some("are unknown: it answered 504")),
            (Unknown, None, Some("are unknown: the words")),
            (NotSent, None, Some("were not asked for: the words")),
        ] {
            let host = host(outcome, status);
            let missing = missing_snapshot(&[], Some(&host));
            match (missing, word) {
                (None, None) => {}
                (Some(missing), Some(word)) => assert!(missing.ends_with(word), "{missing}"),
                (missing, _) => panic!("{outcome:?} {status:?}: {missing:?}"),
            }
            assert!(!format!("{host:?}").contains("t0ken"));
        }
    }

    fn unusable(uri: &str, error: impl Into<PrepareError>) -> BlobOutcome {
        unusable_outcome(&Unusable {
            uri: uri.to_owned(),
            error: error.into(),
        })
    }

    #[test]
    fn blob_that_was_sent_nothing_is_refused_with_the_code_and_the_words_of_its_error() {
        let unreachable = unusable(
            "http://host/c/b",
            ConnectError::ConnectFailed {
                destination: "blob `http://host/c/b`".to_owned(),
                address: "192.0.2.1:80".to_owned(),
                cause: "connection refused".to_owned(),
            },
        );
        assert_eq!(unreachable.outcome, BlobResult::Refused);
        assert_eq!((unreachable.attempts, unreachable.http_status), (0, None));
        assert_eq!(unreachable.error_code.as_deref(), Some("connect-failed"));
        assert!(unreachable.message.unwrap().ends_with("connection refused"));
        assert!(unreachable.retryable);
        let twice = BlobError::DuplicateBlob {
            blob: "http://host/c/b".to_owned(),
        };
        assert!(!unusable("http://host/c/b", twice).retryable);
    }

    #[test]
    fn missing_snapshot_is_named_by_the_blobs_uri_or_else_by_its_place() {
        let twice = || BlobError::DuplicateBlob {
            blob: "http://host/c/b".to_owned(),
        };
        let created = BlobOutcome {
            outcome: BlobResult::Created,
            ..unusable("http://host/c/b", twice())
        };
        for (uri, name) in [("http://host/c/b", "http://host/c/b"), ("", "blob 2 of 2")] {
            let blobs = [created.clone(), unusable(uri, twice())];
            assert_eq!(
                missing_snapshot(&blobs, None),
                Some(format!(
                    "the snapshot of {name} was refused: duplicate-blob"
                ))
            );
        }
    }

    #[test]
    fn what_the_snapshots_are_worth_is_said_with_the_gravest_reason() {
        let missing = || Some("missing".to_owned());
        let doubt = || Some("doubt".to_owned());
        for (is_asked, froze_all, missing, doubt, expected, why) in [
            (true, true, None, None, Consistency::Filesystem, None),
            (false, true, None, None, Consistency::Filesystem, None),
            (true, true, None, doubt(), Consistency::Crash, Some("doubt")),
            (false, true, None, doubt(), Consistency::None, Some("doubt")),
            (
                true,
                true,
                missing(),
                None,
                Consistency::None,
                Some("missing"),
            ),
            (
                true,
                true,
                missing(),
                doubt(),
                Consistency::None,
                Some("missing"),
            ),
            (
                true,
                false,
                missing(),
                doubt(),
                Consistency::None,
                Some("doubt"),
            ),
        ] {
            let (consistency, said) = consistency(is_asked, froze_all, missing, doubt);
            assert_eq!((consistency, said.as_deref()), (expected, why));
        }
    }
}
