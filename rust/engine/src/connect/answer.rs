//! A server's answer, or the reason why there is none.

use std::fmt;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::time::timeout_at;

/// How much of the body of a refusal is kept. The service's bodies are smaller than 1 KiB.
pub const BODY_LIMIT_BYTES: usize = 64 * 1024;
/// How much of the host's answer is kept. It describes every snapshot in less than 1 KiB.
pub const HOST_BODY_LIMIT_BYTES: usize = 1024 * 1024;

/// How many bytes may arrive from the request to the end of the answer's head, TLS and interim
/// answers included. The service's heads are smaller than 1 KiB.
pub(super) const HEAD_LIMIT_BYTES: usize = 64 * 1024;
/// By how much the bytes of a body on the wire may exceed what is kept of it: TLS, chunks.
pub(super) const BODY_SLACK_BYTES: usize = 64 * 1024;

const SNAPSHOT: HeaderName = HeaderName::from_static("x-ms-snapshot");
const ERROR_CODE: HeaderName = HeaderName::from_static("x-ms-error-code");

/// A server's answer as it came. Its body is read, and the whole answer is judged, after the thaw.
pub struct RawAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The header `x-ms-snapshot`. `None` also if there are several that differ.
    pub snapshot: Option<HeaderValue>,
    /// The header `x-ms-error-code`.
    pub error_code: Option<HeaderValue>,
    /// The body, as far as [`read_body`](Self::read_body) has read it.
    pub body: Bytes,
    /// Whether `body` is the whole body.
    pub complete: bool,
    rest: Option<Incoming>,
    limit_bytes: usize,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendFailure {
    /// No part of the request was written.
    #[error("the request was not sent: {cause}")]
    NotSent {
        /// What happened to the connection.
        cause: String,
    },
    /// The request was written, in whole or in part, and the connection ended without an answer.
    #[error("the connection was lost after the request was sent: {cause}")]
    Lost {
        /// What happened to the connection.
        cause: String,
    },
    /// The request was written, and what came back is not HTTP.
    #[error("the answer is not HTTP: {cause}")]
    BadAnswer {
        /// What is wrong with it.
        cause: String,
    },
    /// The request was written, and the head of the answer has no end within the limit.
    #[error("the head of the answer, with interim answers, is longer than {} KiB", HEAD_LIMIT_BYTES / 1024)]
    TooLong,
    /// The request was written, and there was no answer in time.
    #[error("there was no answer within {:.2} s", .waited.as_secs_f64())]
    NoAnswer {
        /// How long the run waited for it.
        waited: Duration,
    },
}

impl RawAnswer {
    /// Takes the head of an answer. At most `limit_bytes` of its body will be kept.
    pub(super) fn new(response: Response<Incoming>, limit_bytes: usize) -> Self {
        let (mut head, body) = response.into_parts();
        let complete = body.is_end_stream();
        Self {
            status: head.status.as_u16(),
            snapshot: only_value(&head.headers, &SNAPSHOT),
            error_code: head.headers.remove(&ERROR_CODE),
            body: Bytes::new(),
            complete,
            rest: (limit_bytes > 0 && !complete).then_some(body),
            limit_bytes,
        }
    }

    /// Reads the body. The caller must hold the connection until this returns.
    ///
    /// At most [`BODY_LIMIT_BYTES`] are kept, of a host's answer [`HOST_BODY_LIMIT_BYTES`]. If
    /// `deadline` passes or the connection ends first, the part that has arrived is kept.
    ///
    /// *Blocking*: until `deadline`. *In the window*: only if the same connection is needed again.
    pub async fn read_body(&mut self, deadline: Instant) {
        let Some(rest) = self.rest.take() else {
            return;
        };
        let deadline = tokio::time::Instant::from_std(deadline);
        let mut kept = BytesMut::new();
        self.complete = timeout_at(deadline, read_into(rest, &mut kept, self.limit_bytes))
            .await
            .unwrap_or(false);
        self.body = kept.freeze();
    }
}

impl fmt::Debug for RawAnswer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers and body may repeat our SAS. Only `vmsnapshot_core::blob` prints parts of them,
        // without signatures.
        formatter
            .debug_struct("RawAnswer")
            .field("status", &self.status)
            .field("has_snapshot", &self.snapshot.is_some())
            .field("has_error_code", &self.error_code.is_some())
            .field("body_bytes", &self.body.len())
            .field("complete", &self.complete)
            .finish()
    }
}

/// Returns the value of a header, unless it comes with different values.
fn only_value(headers: &HeaderMap, name: &HeaderName) -> Option<HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    values.all(|value| value == first).then(|| first.clone())
}

/// Reads `body` into `kept`. Returns whether the whole body was read.
async fn read_into(mut body: Incoming, kept: &mut BytesMut, limit_bytes: usize) -> bool {
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let room = limit_bytes - kept.len();
        kept.extend_from_slice(data.get(..room).unwrap_or(&data));
        if data.len() > room {
            return false;
        }
    }
    true
}
