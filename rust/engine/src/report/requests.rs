//! The outcomes of the requests to the blobs and to the host.

use vmsnapshot_core::blob::{self, SasUri};
use vmsnapshot_core::host_call::HostCall;
use vmsnapshot_core::report::{
    milliseconds, BlobOutcome, BlobResult, HostCallOutcome, HostCallResult,
};
use vmsnapshot_core::secret::SecretBytes;
use vmsnapshot_core::signatures::Signatures;

use super::facts::Facts;
use crate::callees::blobs::Unusable;
use crate::calls::{Call, CallRecord};
use crate::connect::SendFailure;
use crate::error::PrepareError;

/// Why there is no record of a call.
struct NoRecord {
    may_be_sent: bool,
    message: &'static str,
}

impl NoRecord {
    /// Returns the stable code, and how many attempts it stands for.
    fn code_and_attempts(&self) -> (&'static str, u32) {
        if self.may_be_sent {
            ("NoAnswer", 1)
        } else {
            ("NotSent", 0)
        }
    }
}

/// Returns the record of a call, or why there is none.
fn record_of<'a>(facts: &Facts<'_>, call: &'a Call) -> Result<&'a CallRecord, NoRecord> {
    let (may_be_sent, message) = match (call, &facts.record) {
        (Call::Ended(record), _) => return Ok(record),
        (Call::Prepared(_), Some(_)) => (
            false,
            "the request was not sent: not everything was frozen in time",
        ),
        (Call::Prepared(_), None) => (
            false,
            "the request was not sent: an internal error ended the window",
        ),
        (Call::Sent, None) => (true, "an internal error ended the window"),
        (Call::Sent, Some(_)) => (true, "there was no answer in time"),
    };
    Err(NoRecord {
        may_be_sent,
        message,
    })
}

/// Returns the outcome of every blob's request, in the order the blobs were given.
pub(super) fn blob_outcomes(facts: &Facts<'_>) -> Vec<BlobOutcome> {
    let outcome = |blob: &Result<(SasUri, Call), Unusable>| match blob {
        Ok((uri, call)) => match record_of(facts, call) {
            Ok(record) => blob_outcome(uri, record, facts.callees.blobs.signatures()),
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

/// Returns the outcome of a blob that got no request, because its URI, its SAS or its server is
/// unusable.
fn unusable_outcome(unusable: &Unusable) -> BlobOutcome {
    let error = &unusable.error;
    BlobOutcome {
        uri: unusable.uri.clone(),
        outcome: BlobResult::Refused,
        snapshot: None,
        snapshot_uri: None,
        http_status: None,
        error_code: Some(error.code().name().to_owned()),
        message: Some(match error.hint() {
            Some(hint) => format!("{error} (hint: {hint})"),
            None => error.to_string(),
        }),
        retryable: matches!(error, PrepareError::Connect(cause) if cause.is_transient()),
        attempts: 0,
        answer_ms: None,
        answered_late: false,
        body: None,
    }
}

/// Returns the outcome of the host call, if the run had one to make.
pub(super) fn host_outcome(facts: &Facts<'_>) -> Option<HostCallOutcome> {
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
            answered_late: record.outlasted_window,
        },
        Err(failure) => {
            let (may_be_sent, code) = judge_failure(failure);
            let signatures = facts.callees.blobs.signatures();
            let message = signatures.removed_from(&failure.to_string());
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
        answered_late: false,
    }
}

/// Returns whether the server may have received the request, and the stable code of the failure.
fn judge_failure(failure: &SendFailure) -> (bool, &'static str) {
    match failure {
        SendFailure::NotSent { .. } => (false, "NotSent"),
        SendFailure::Lost { .. } => (true, "ConnectionLost"),
        SendFailure::BadAnswer { .. } => (true, "BadAnswer"),
        SendFailure::TooLong => (true, "AnswerTooLong"),
        SendFailure::NoAnswer { .. } => (true, "NoAnswer"),
    }
}

fn blob_outcome(uri: &SasUri, record: &CallRecord, signatures: &Signatures) -> BlobOutcome {
    let mut outcome = match &record.result {
        Ok(answer) => {
            let verdict = blob::judge_answer(
                answer.status,
                answer.snapshot.as_ref().map(http::HeaderValue::as_bytes),
                answer.error_code.as_ref().map(http::HeaderValue::as_bytes),
                &answer.body,
                signatures,
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
                answered_late: record.outlasted_window,
                body: blob::refusal_body(&answer.body, signatures)
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
            let message = signatures.removed_from(&failure.to_string());
            unjudged(uri, outcome, code, &message, record.attempts)
        }
    };
    match outcome.outcome {
        BlobResult::Refused if record.first_left_open => {
            outcome.outcome = BlobResult::Unknown;
            outcome.message = Some(format!(
                "the first attempt may have created a snapshot; the second was refused: {}",
                outcome.message.as_deref().unwrap_or("no reason was given")
            ));
        }
        BlobResult::Created => outcome.message = remark(record),
        BlobResult::Refused | BlobResult::Unknown => {}
    }
    outcome.answer_ms = Some(milliseconds(record.ended_at.since(record.sent_at)));
    outcome
}

/// Returns what the reader should know about a snapshot that was created, if anything.
fn remark(record: &CallRecord) -> Option<String> {
    let second = "the first attempt may have created another snapshot, whose name is not known";
    let late = "the answer came after the thaw, and the snapshot may have been taken after it";
    match (record.first_left_open, record.outlasted_window) {
        (false, false) => None,
        (true, false) => Some(second.to_owned()),
        (false, true) => Some(late.to_owned()),
        (true, true) => Some(format!("{second}; {late}")),
    }
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
        answered_late: false,
        body: None,
    }
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
    fn blob_that_got_no_request_is_refused_with_the_code_and_the_text_of_its_error() {
        let unreachable = unusable(
            "http://host/c/b",
            ConnectError::ConnectFailed {
                destination: "blob `http://host/c/b`".to_owned(),
                address: "192.0.2.1:80".to_owned(),
                cause: "connection refused".to_owned(),
                hint: None,
            },
        );
        assert_eq!(unreachable.outcome, BlobResult::Refused);
        assert_eq!((unreachable.attempts, unreachable.http_status), (0, None));
        assert_eq!(unreachable.error_code.as_deref(), Some("connect-failed"));
        assert!(unreachable
            .message
            .unwrap()
            .contains(": connection refused (hint: "));
        assert!(unreachable.retryable);
        let twice = BlobError::DuplicateBlob {
            blob: "http://host/c/b".to_owned(),
        };
        assert!(!unusable("http://host/c/b", twice).retryable);
    }
}
