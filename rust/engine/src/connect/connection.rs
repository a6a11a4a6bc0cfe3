//! One open connection, and the one thing the window does with it.

use std::fmt;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::rt::{Read, Write};
use tokio::task::AbortHandle;
use tokio::time::timeout_at;

use super::PreparedRequest;

const SNAPSHOT: HeaderName = HeaderName::from_static("x-ms-snapshot");
const ERROR_CODE: HeaderName = HeaderName::from_static("x-ms-error-code");

/// An open HTTP/1.1 connection. A task of the runtime that dialled it reads and writes it; the
/// task ends with this value.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    task: AbortHandle,
}

/// What the server answered, as it came: its body is read, and all of it judged, after the thaw.
pub struct RawAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The header `x-ms-snapshot`.
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
    /// Nothing of the request was written.
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
    /// The request was written, and there was no answer in time.
    #[error("there was no answer in time")]
    NoAnswer,
}

impl Connection {
    /// Begins HTTP/1.1 on `stream`, on the current tokio runtime. Nothing is sent.
    pub(super) async fn begin<Stream>(stream: Stream) -> hyper::Result<Self>
    where
        Stream: Read + Write + Unpin + Send + 'static,
    {
        let (sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        let task = tokio::spawn(async move {
            // How it ends is told to whoever waits for an answer; if nobody does, nobody asks.
            let _ = connection.await;
        });
        Ok(Self {
            sender,
            task: task.abort_handle(),
        })
    }

    /// Says whether the server still held the connection open when the runtime last looked at its
    /// sockets; [`notice_closes`](super::notice_closes) makes it look.
    ///
    /// *In the window*: allowed.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends `request` and waits for the head of the answer until `call_by`, to the millisecond
    /// above it.
    ///
    /// *Blocking*: until `call_by`. *In the window*: allowed; it resolves and opens nothing.
    ///
    /// # Errors
    ///
    /// [`SendFailure`], which says whether the server can have seen the request.
    pub async fn send(
        &mut self,
        request: PreparedRequest,
        call_by: Instant,
    ) -> Result<RawAnswer, SendFailure> {
        let call_by = tokio::time::Instant::from_std(call_by);
        if !self.sender.is_ready() {
            let cause = match timeout_at(call_by, self.sender.ready()).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(chain_text(&error)),
                Err(_) => Some("the connection was busy".to_owned()),
            };
            if let Some(cause) = cause {
                return Err(SendFailure::NotSent { cause });
            }
        }
        let PreparedRequest { request, purpose } = request;
        let response = match timeout_at(call_by, self.sender.try_send_request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(mut failure)) => {
                let cause = chain_text(failure.error());
                // hyper gives the request back if and only if it has not begun to write it.
                return Err(match failure.take_message() {
                    Some(_) => SendFailure::NotSent { cause },
                    None if failure.error().is_parse() => SendFailure::BadAnswer { cause },
                    None => SendFailure::Lost { cause },
                });
            }
            Err(_) => return Err(SendFailure::NoAnswer),
        };
        let (mut head, body) = response.into_parts();
        let complete = body.is_end_stream();
        let status = head.status.as_u16();
        let limit_bytes = purpose.body_limit_bytes(status);
        Ok(RawAnswer {
            status,
            snapshot: head.headers.remove(&SNAPSHOT),
            error_code: head.headers.remove(&ERROR_CODE),
            body: Bytes::new(),
            complete,
            rest: (limit_bytes > 0 && !complete).then_some(body),
            limit_bytes,
        })
    }
}

impl RawAnswer {
    /// Reads the body, of which at most [`BODY_LIMIT_BYTES`](super::BODY_LIMIT_BYTES) are kept, of
    /// the host's [`HOST_BODY_LIMIT_BYTES`](super::HOST_BODY_LIMIT_BYTES); when `deadline` passes or
    /// the connection ends inside it, what is there is the body. The connection must be held until
    /// then.
    ///
    /// *Blocking*: until `deadline`. *In the window*: only where the same connection is needed.
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

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Connection")
            .field("is_open", &self.is_open())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RawAnswer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The body may repeat our URI; only `blob::judge_answer` prints parts of it, cleaned.
        formatter
            .debug_struct("RawAnswer")
            .field("status", &self.status)
            .field("snapshot", &self.snapshot)
            .field("error_code", &self.error_code)
            .field("body_bytes", &self.body.len())
            .field("complete", &self.complete)
            .finish()
    }
}

/// Reads `body` into `kept`; says whether all of it is there.
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

/// hyper's own text is of the kind "connection error"; what happened is in its sources.
fn chain_text(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
