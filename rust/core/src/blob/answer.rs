//! What the service's answer to Snapshot Blob means: a pure function of status, headers and body.

use crate::report::BlobResult;
use crate::signatures::Signatures;

const MESSAGE_LIMIT_CHARS: usize = 512;
/// The service's code for an operation that it could not finish in time.
const TIMED_OUT: &str = "OperationTimedOut";
const CODE_LIMIT_BYTES: usize = 64;
const REFUSAL_BODY_LIMIT_BYTES: usize = 4 * 1024;

/// What an answer to Snapshot Blob means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JudgedAnswer {
    /// Whether there is a snapshot.
    pub outcome: BlobResult,
    /// The snapshot's time as the service wrote it, if it was created.
    pub snapshot: Option<String>,
    /// The storage error code, or `BadAnswer`.
    pub error_code: Option<String>,
    /// The service's message (of limited length, without signatures), or ours.
    pub message: Option<String>,
    /// Whether another run may succeed without anything being changed.
    pub retryable: bool,
}

/// Returns whether `status` means that the snapshot exists.
///
/// Such an answer names the snapshot in `x-ms-snapshot`, and its body is not needed. The service
/// answers 201 (Snapshot Blob, "Status code"); Azure Backup accepts 200 as well.
///
/// *In the window*: allowed.
#[must_use]
pub fn is_success(status: u16) -> bool {
    matches!(status, 200 | 201)
}

/// Returns whether a request answered with `status` may be sent once more in the same window.
///
/// *In the window*: allowed.
#[must_use]
pub fn may_retry_in_window(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 503)
}

/// Returns whether an answer leaves open whether there is a snapshot.
///
/// A 5xx status says that the server failed, not that it did nothing. A 503 says that the server
/// did not begin, unless the error code says that it ran out of time.
///
/// *In the window*: allowed.
#[must_use]
pub fn leaves_open(status: u16, error_code_header: Option<&[u8]>, body: &[u8]) -> bool {
    status_leaves_open(status)
        || error_code(error_code_header, body).is_some_and(|code| code == TIMED_OUT)
}

fn status_leaves_open(status: u16) -> bool {
    matches!(status, 500..=502 | 504..=599)
}

/// Returns the storage error code of a refusal: that of the header, or else that of the body.
fn error_code(header: Option<&[u8]>, body: &[u8]) -> Option<String> {
    header.and_then(code_text).or_else(|| {
        element(body, b"Code")
            .filter(|code| code.is_closed)
            .and_then(|code| code_text(code.text))
    })
}

/// Judges an answer to Snapshot Blob by its status, its headers `x-ms-snapshot` and
/// `x-ms-error-code`, and its body. The body may be anything: truncated, empty, or not XML. The
/// server knows `signatures`, and the result has none of them.
#[must_use]
pub fn judge_answer(
    status: u16,
    snapshot_header: Option<&[u8]>,
    error_code_header: Option<&[u8]>,
    body: &[u8],
    signatures: &Signatures,
) -> JudgedAnswer {
    if is_success(status) {
        return match snapshot_header.and_then(snapshot_text) {
            Some(snapshot) if signatures.removed_from(&snapshot) == snapshot => JudgedAnswer {
                outcome: BlobResult::Created,
                snapshot: Some(snapshot),
                error_code: None,
                message: None,
                retryable: false,
            },
            Some(_) | None => bad_answer(format!(
                "the service answered {status} without a usable x-ms-snapshot"
            )),
        };
    }
    if !(300..600).contains(&status) {
        return bad_answer(format!(
            "the service answered {status}, which is not an answer to Snapshot Blob"
        ));
    }
    let error_code = error_code(error_code_header, body).map(|code| signatures.removed_from(&code));
    let message =
        element(body, b"Message").and_then(|message| message_text(message.text, signatures));
    let timed_out = error_code.as_deref() == Some(TIMED_OUT);
    let rate_exceeded = error_code.as_deref() == Some("SnapshotOperationRateExceeded");
    let is_gateway_failure = matches!(status, 502 | 504);
    JudgedAnswer {
        outcome: if status_leaves_open(status) || timed_out {
            BlobResult::Unknown
        } else {
            BlobResult::Refused
        },
        snapshot: None,
        retryable: may_retry_in_window(status) || is_gateway_failure || timed_out || rate_exceeded,
        error_code: error_code.or_else(|| (status < 400).then(|| "BadAnswer".to_owned())),
        message: message.or_else(|| Some(status_words(status))),
    }
}

/// Returns the body of a refusal as text for the program that asked for the snapshots.
///
/// The text has no byte order mark and no signatures, and is 4 KiB long at most. `None` if there is
/// no text.
#[must_use]
pub fn refusal_body(body: &[u8], signatures: &Signatures) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let mut text = signatures.removed_from(text.strip_prefix('\u{feff}').unwrap_or(&text));
    let mut end = text.len().min(REFUSAL_BODY_LIMIT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    (!text.is_empty()).then_some(text)
}

fn bad_answer(message: String) -> JudgedAnswer {
    JudgedAnswer {
        outcome: BlobResult::Unknown,
        snapshot: None,
        error_code: Some("BadAnswer".to_owned()),
        message: Some(message),
        retryable: false,
    }
}

fn status_words(status: u16) -> String {
    match status {
        300..=399 => format!("the service answered {status}, a redirection, which is not followed"),
        407 => "the proxy asks for a user name and a password".to_owned(),
        _ => format!("the service answered {status}"),
    }
}

/// Returns the time of a snapshot, which the service writes as `2026-11-22T10:26:21.8190000Z`.
///
/// The text becomes part of a URI, so it may contain only the characters of a time.
fn snapshot_text(header: &[u8]) -> Option<String> {
    let is_time_byte =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b':' | b'.');
    (!header.is_empty() && header.len() <= CODE_LIMIT_BYTES && header.iter().all(is_time_byte))
        .then(|| String::from_utf8_lossy(header).into_owned())
}

fn code_text(bytes: &[u8]) -> Option<String> {
    let bytes = bytes.trim_ascii();
    let is_code_byte =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (!bytes.is_empty() && bytes.len() <= CODE_LIMIT_BYTES && bytes.iter().all(is_code_byte))
        .then(|| String::from_utf8_lossy(bytes).into_owned())
}

struct Element<'a> {
    text: &'a [u8],
    is_closed: bool,
}

/// Finds the first element `name`.
///
/// There is no XML parser here because the body may be truncated anywhere. The service writes its
/// errors without attributes or namespaces.
fn element<'a>(body: &'a [u8], name: &[u8]) -> Option<Element<'a>> {
    let open = [b"<", name, b">"].concat();
    let close = [b"</", name, b">"].concat();
    let text = body.get(position(body, &open)? + open.len()..)?;
    Some(match position(text, &close) {
        Some(end) => Element {
            text: text.get(..end)?,
            is_closed: true,
        },
        None => Element {
            text,
            is_closed: false,
        },
    })
}

fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

/// Returns the first line with its XML entities decoded, without control characters and signatures.
fn message_text(bytes: &[u8], signatures: &Signatures) -> Option<String> {
    let bytes = bytes.trim_ascii_start();
    let line = bytes
        .split(|byte| matches!(byte, b'\n' | b'\r'))
        .next()
        .unwrap_or_default();
    // `&amp;` last: `&amp;lt;` stands for the text `&lt;`.
    let text = String::from_utf8_lossy(line)
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&amp;", "&");
    let text: String = signatures
        .removed_from(&text)
        .chars()
        .filter(|char| !char.is_control())
        .take(MESSAGE_LIMIT_CHARS)
        .collect();
    let text = text.trim_end();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    const SIGNATURE: &str = "k3b8+Zt0/1xQv9LmN2pR7sWcY5dFgHjKaEoUiTyB4z8=";

    fn known() -> Signatures {
        Signatures::of([format!("https://h/c/b?sig={SIGNATURE}").as_str()])
    }

    fn judge_answer(
        status: u16,
        snapshot_header: Option<&[u8]>,
        error_code_header: Option<&[u8]>,
        body: &[u8],
    ) -> JudgedAnswer {
        super::judge_answer(status, snapshot_header, error_code_header, body, &known())
    }

    fn refusal_body(body: &[u8]) -> Option<String> {
        super::refusal_body(body, &known())
    }

    #[test]
    fn no_part_of_an_answer_repeats_a_known_signature() {
        let letters = SIGNATURE.replace(['+', '/', '='], "");
        let body = format!("<Code>{letters}</Code><Message>Signature {SIGNATURE} did not match");
        let refused = judge_answer(403, None, None, body.as_bytes());
        assert_eq!(refused.error_code.as_deref(), Some("..."));
        assert_eq!(
            refused.message.as_deref(),
            Some("Signature ...= did not match")
        );
        assert_eq!(
            refusal_body(body.as_bytes()).unwrap(),
            "<Code>...</Code><Message>Signature ...= did not match"
        );
        let refused = judge_answer(403, None, Some(letters.as_bytes()), b"");
        assert_eq!(refused.error_code.as_deref(), Some("..."));
        let created = judge_answer(201, Some(letters.as_bytes()), None, b"");
        assert_eq!(
            (created.outcome, created.snapshot),
            (BlobResult::Unknown, None)
        );
    }

    #[test]
    fn answer_is_created_only_with_200_or_201_and_the_name_of_the_snapshot() {
        for status in [200, 201] {
            let created = judge_answer(status, Some(b"2026-11-22T10:26:21.8190000Z"), None, b"");
            assert_eq!(created.outcome, BlobResult::Created);
            assert_eq!(
                created.snapshot.as_deref(),
                Some("2026-11-22T10:26:21.8190000Z")
            );
            for header in [
                None,
                Some(&b""[..]),
                Some(b"2026&sig=x"),
                Some(b"\xff"),
                Some(&[b'1'; 65]),
            ] {
                let answer = judge_answer(status, header, None, b"");
                assert_eq!(
                    (answer.outcome, answer.error_code.as_deref()),
                    (BlobResult::Unknown, Some("BadAnswer"))
                );
            }
        }
    }

    #[test]
    fn status_and_code_decide_the_result_and_whether_a_retry_makes_sense() {
        use BlobResult::{Refused, Unknown};
        for (status, header, outcome, retryable, retry_in_window) in [
            (409, "SnapshotOperationRateExceeded", Refused, true, false),
            (409, "SnapshotCountExceeded", Refused, false, false),
            (403, "AuthorizationFailure", Refused, false, false),
            (404, "BlobNotFound", Refused, false, false),
            (412, "LeaseIdMissing", Refused, false, false),
            (400, "InvalidMetadata", Refused, false, false),
            (431, "RequestHeaderFieldsTooLarge", Refused, false, false),
            (408, "RequestTimeout", Refused, true, true),
            (429, "TooManyRequests", Refused, true, true),
            (500, "InternalError", Unknown, true, true),
            (501, "NotImplemented", Unknown, false, false),
            (505, "HttpVersionNotSupported", Unknown, false, false),
            (599, "Anything", Unknown, false, false),
            (503, "OperationTimedOut", Unknown, true, true),
            (500, "OperationTimedOut", Unknown, true, true),
            (503, "ServerBusy", Refused, true, true),
            (502, "BadGateway", Unknown, true, false),
            (504, "GatewayTimeout", Unknown, true, false),
            (307, "TemporaryRedirect", Refused, false, false),
        ] {
            let answer = judge_answer(status, None, Some(header.as_bytes()), b"");
            assert_eq!(
                (answer.outcome, answer.retryable),
                (outcome, retryable),
                "{status} {header}"
            );
            assert_eq!(answer.error_code.as_deref(), Some(header));
            assert_eq!(may_retry_in_window(status), retry_in_window);
        }
        for status in [0, 100, 101, 202, 204, 600, 999] {
            let answer = judge_answer(status, Some(b"2026"), None, b"");
            assert_eq!(
                (answer.outcome, answer.error_code.as_deref()),
                (Unknown, Some("BadAnswer")),
                "{status}"
            );
        }
    }

    #[test]
    fn error_code_and_message_come_from_the_body_without_a_header() {
        let body = b"\xef\xbb\xbf<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>BlobNotFound</Code><Message>The &quot;blob&quot; does not exist.\nRequestId:1\nTime:2</Message></Error>";
        let answer = judge_answer(404, None, None, body);
        assert_eq!(answer.error_code.as_deref(), Some("BlobNotFound"));
        assert_eq!(
            answer.message.as_deref(),
            Some("The \"blob\" does not exist.")
        );
        assert_eq!(
            judge_answer(404, None, Some(b"Other"), body)
                .error_code
                .as_deref(),
            Some("Other")
        );
        assert_eq!(
            judge_answer(404, None, None, b"<Code>BlobNotF").error_code,
            None
        );
        assert_eq!(
            judge_answer(404, None, None, b"<Message>cut o")
                .message
                .as_deref(),
            Some("cut o")
        );
        assert_eq!(
            judge_answer(404, None, None, b"\0\xff{}")
                .message
                .as_deref(),
            Some("the service answered 404")
        );
    }

    #[test]
    fn refusal_body_has_no_byte_order_mark_no_signature_and_a_limited_length() {
        assert_eq!(refusal_body(b""), None);
        assert_eq!(refusal_body("\u{feff}".as_bytes()), None);
        assert_eq!(
            refusal_body("\u{feff}<Error>\n\u{e4} x?SIG=secret&se=1</Error>".as_bytes()).unwrap(),
            "<Error>\n\u{e4} x?SIG=...&se=1</Error>"
        );
        assert_eq!(refusal_body(b"\xff!").unwrap(), "\u{fffd}!");
        // A two-byte character crosses the limit.
        let long = format!("x{}", "\u{e4}".repeat(REFUSAL_BODY_LIMIT_BYTES));
        assert_eq!(
            refusal_body(long.as_bytes()).unwrap().len(),
            REFUSAL_BODY_LIMIT_BYTES - 1
        );
    }

    #[test]
    fn message_has_a_limited_length_and_never_repeats_a_signature() {
        for echoed in [
            "see https://h/b?sv=1&amp;sig=secret%2Bx&amp;se=2 now",
            "SIG=secret",
            "q=%26sig%3Dsecret%26se%3D2",
            "sig%253Dsecret",
            "a sig=secret, sig=secret",
            "\u{130}\u{130}sig=secret",
        ] {
            let body = format!("<Message>{echoed}</Message>");
            let message = judge_answer(403, None, None, body.as_bytes())
                .message
                .unwrap();
            assert!(!message.contains("secret"), "{message}");
        }
        let long = format!("<Message>{}</Message>", "\u{e4}".repeat(5000));
        assert_eq!(
            judge_answer(403, None, None, long.as_bytes())
                .message
                .unwrap()
                .chars()
                .count(),
            MESSAGE_LIMIT_CHARS
        );
    }

    proptest! {
        #[test]
        fn refusal_body_never_panics_on_any_text(text in "\\PC*") {
            let _ = refusal_body(text.as_bytes());
        }

        #[test]
        fn judging_never_panics_and_creates_only_with_200_or_201(
            status: u16,
            snapshot: Option<Vec<u8>>,
            code: Option<Vec<u8>>,
            body: Vec<u8>,
            sas in "[a-z=&;<>%/CodeMsag]*",
        ) {
            let tagged = [b"<Code>", body.as_slice(), b"</Code><Message>", sas.as_bytes()].concat();
            for body in [&body, &tagged] {
                let answer = judge_answer(status, snapshot.as_deref(), code.as_deref(), body);
                prop_assert_eq!(answer.outcome == BlobResult::Created, answer.snapshot.is_some());
                prop_assert!(is_success(status) || answer.outcome != BlobResult::Created);
            }
        }
    }
}
