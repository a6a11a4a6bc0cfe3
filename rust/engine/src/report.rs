//! After the window: makes sense of the ledger and the answers, and says what they are worth.

use std::sync::Arc;
use std::time::Duration;

use vmsnapshot_core::blob::{self, SasUri};
use vmsnapshot_core::deadlines::{Deadlines, Monotonic};
use vmsnapshot_core::host_call::HostCall;
use vmsnapshot_core::ledger::{Entry, FreezeState};
use vmsnapshot_core::plan::{Plan, PlannedFilesystem};
use vmsnapshot_core::report::{
    utc_text, BlobOutcome, BlobResult, Consistency, FilesystemOutcome, FilesystemResult,
    HostCallOutcome, HostCallResult, Mode, Report, ThawedBy, TimelineEvent, WatchdogOutcome,
    SCHEMA_VERSION,
};
use vmsnapshot_core::secret::SecretBytes;
use vmsnapshot_core::text::path_text;
use vmsnapshot_core::verdict::{self, Verdict, WindowEnd};
use vmsnapshot_sys::errno::number_text;
use vmsnapshot_sys::ledger_file::LedgerFile;
use vmsnapshot_sys::Errno;
use vmsnapshot_window::rcu::Rcu;
use vmsnapshot_window::window::WindowRecord;

use crate::callees::blobs::Unusable;
use crate::callees::Callees;
use crate::calls::{Call, CallRecord, Waiting};
use crate::companion::sync::Synced;
use crate::connect::SendFailure;
use crate::error::PrepareError;

/// All that is known of a run that is over.
pub(crate) struct Facts<'a> {
    pub(crate) run_id: &'a str,
    pub(crate) plan: &'a Plan,
    /// The blobs and the host, with what became of their calls.
    pub(crate) callees: &'a Callees,
    pub(crate) thaw_timeout: Duration,
    pub(crate) deadlines: Deadlines,
    pub(crate) ledger: &'a Arc<LedgerFile>,
    pub(crate) synced: &'a [Synced],
    pub(crate) rcu: &'a Rcu,
    /// None when the window ended in a panic.
    pub(crate) record: Option<WindowRecord<Waiting>>,
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
    let blobs = blob_outcomes(&facts);
    let host_call = host_outcome(&facts);
    let window = facts.record.as_ref().map(|record| WindowEnd {
        froze_all: record.answers.is_some(),
        watchdog_lost: record.answers == Some(Waiting::WatchdogLost),
    });
    // From what the report says of each, and not from the ledger again: the watchdog may still be
    // at work, and the report must not contradict itself.
    let Verdict {
        all_thawed,
        consistency,
        why,
        freeze_doubt,
    } = verdict::judge(
        window,
        facts.watchdog.fired.is_some(),
        &filesystems,
        &blobs,
        host_call.as_ref(),
    );
    let (freeze_doubt_code, freeze_doubt) = freeze_doubt.unzip();
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
    let refused_with = |errno: Errno| entry.freeze_errno() == errno.raw_os_error().unsigned_abs();
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
    match outcome {
        FilesystemResult::ThawedByWatchdog if entry.undid_another() => Some(
            "a FITHAW of ours, called at the deadline while FIFREEZE waited behind the freeze of \
             another program, undid that one"
                .to_owned(),
        ),
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
            Some(format!("FIFREEZE: {}", number_text(entry.freeze_errno())))
        }
        FilesystemResult::NotFrozen => Some("the run ended before its turn".to_owned()),
        FilesystemResult::FreezeHung => {
            Some("FIFREEZE has not returned; the watchdog thaws it when it does".to_owned())
        }
        FilesystemResult::NotThawed if entry.thaw_errno() == 0 => {
            Some("FITHAW has not returned".to_owned())
        }
        FilesystemResult::NotThawed => Some(format!("FITHAW: {}", number_text(entry.thaw_errno()))),
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

/// What is known of a call.
fn record_of<'a>(facts: &Facts<'_>, call: &'a Call) -> Result<&'a CallRecord, NoRecord> {
    let (may_be_sent, message) = match (call, &facts.record) {
        (Call::Ended(record), _) => return Ok(record),
        (Call::Prepared(_), Some(_)) => (
            false,
            "the request was not sent: not everything could be frozen",
        ),
        (Call::Prepared(_), None) => (false, "the request was not sent: the window broke off"),
        (Call::Sent, None) => (true, "the window broke off"),
        (Call::Sent, Some(_)) => (true, "the window ended before there was an answer"),
    };
    Err(NoRecord {
        may_be_sent,
        message,
    })
}

fn blob_outcomes(facts: &Facts<'_>) -> Vec<BlobOutcome> {
    let outcome = |blob: &Result<(SasUri, Call), Unusable>| match blob {
        Ok((uri, call)) => match record_of(facts, call) {
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
    facts.callees.blobs.each().iter().map(outcome).collect()
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
    let (call, state) = facts.callees.host.as_ref()?;
    let record = match record_of(facts, state) {
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
                let cause = number_text(*errno);
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
    let usable = facts.callees.blobs.each().iter().flatten();
    let blobs = usable.map(|(uri, call)| (uri.as_http(), call));
    let host = facts.callees.host.iter();
    let host = host.map(|(host_call, call)| (host_call.uri(), call));
    for (uri, call) in blobs.chain(host) {
        if let Call::Ended(call) = call {
            let subject = Some(uri.to_string());
            events.push(event(call.sent_at, "request sent", subject.clone()));
            events.push(event(call.ended_at, "request ended", subject));
        }
    }
    if let Some(record) = &facts.record {
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
}
