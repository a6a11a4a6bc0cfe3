//! One open connection, and the one call that the window makes on it.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::rt::{Read, Write};
use tokio::task::AbortHandle;
use tokio::time::timeout_at;

use super::answer::{RawAnswer, SendFailure, BODY_SLACK_BYTES, HEAD_LIMIT_BYTES};
use super::explain::{self, Cause};
use super::metered::Meter;
use super::request::PreparedRequest;

/// `a:` and the end of its line.
const SHORTEST_HEADER_BYTES: usize = 4;

/// An open HTTP/1.1 connection. A task on the runtime that dialled it reads and writes it. Dropping
/// this value ends the task.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    task: AbortHandle,
    /// Why it ended, if that was an error. hyper tells only a request that waits for its answer.
    end: Arc<OnceLock<Cause>>,
    meter: Arc<Meter>,
}

impl Connection {
    /// Begins HTTP/1.1 on `stream`, on the current tokio runtime. Sends nothing. `meter` is that of
    /// the TCP connection below.
    pub(super) async fn begin<Stream>(stream: Stream, meter: Arc<Meter>) -> hyper::Result<Self>
    where
        Stream: Read + Write + Unpin + Send + 'static,
    {
        let (sender, connection) = lenient_http1().handshake(stream).await?;
        let end = Arc::new(OnceLock::new());
        let kept = Arc::clone(&end);
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                let _ = kept.set(explain::idle(&error));
            }
        });
        Ok(Self {
            sender,
            task: task.abort_handle(),
            end,
            meter,
        })
    }

    /// Returns whether the server still held the connection open when the runtime last looked at
    /// its sockets. [`notice_closes`](super::notice_closes) makes it look.
    ///
    /// *In the window*: allowed.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Returns why the connection ended without a request, if that was an error.
    pub(super) fn end(&self) -> Option<&Cause> {
        self.end.get()
    }

    /// Waits until the connection takes a request, until `deadline` at the latest.
    ///
    /// *Blocking*: until `deadline`; almost no time on a connection that has carried none. *In the
    /// window*: allowed.
    ///
    /// # Errors
    ///
    /// [`SendFailure::NotSent`].
    pub async fn ready(&mut self, deadline: Instant) -> Result<(), SendFailure> {
        if self.sender.is_ready() {
            return Ok(());
        }
        let cause = match timeout_at(deadline.into(), self.sender.ready()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => self.cause_of(&error),
            Err(_) => "the connection was busy".to_owned(),
        };
        Err(SendFailure::NotSent { cause })
    }

    /// Sends `request` and waits for the head of the answer until `call_by`, rounded up to the
    /// millisecond.
    ///
    /// *Blocking*: until `call_by`. *In the window*: allowed. It resolves no name and opens
    /// nothing.
    ///
    /// # Errors
    ///
    /// [`SendFailure`]. Its variants say whether the server can have seen the request.
    pub async fn send(
        &mut self,
        request: PreparedRequest,
        call_by: Instant,
    ) -> Result<RawAnswer, SendFailure> {
        let sent_at = Instant::now();
        self.ready(call_by).await?;
        let call_by = tokio::time::Instant::from_std(call_by);
        let PreparedRequest { request, purpose } = request;
        self.meter.allow(HEAD_LIMIT_BYTES);
        let response = match timeout_at(call_by, self.sender.try_send_request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(mut failure)) => {
                let cause = self.cause_of(failure.error());
                // hyper gives the request back if and only if it has not begun to write it.
                return Err(match failure.take_message() {
                    Some(_) => SendFailure::NotSent { cause },
                    None if self.meter.is_exceeded() => SendFailure::TooLong,
                    None if failure.error().is_parse() => SendFailure::BadAnswer { cause },
                    None => SendFailure::Lost { cause },
                });
            }
            Err(_) => {
                let waited = sent_at.elapsed();
                return Err(SendFailure::NoAnswer { waited });
            }
        };
        let limit_bytes = purpose.body_limit_bytes(response.status().as_u16());
        self.meter.allow(limit_bytes + BODY_SLACK_BYTES);
        Ok(RawAnswer::new(response, limit_bytes))
    }

    /// Says in words why a request failed. A connection that had ended before knows more than hyper
    /// tells the request.
    fn cause_of(&self, error: &hyper::Error) -> String {
        match self.end() {
            Some(cause) if error.is_canceled() || error.is_closed() => cause.text.clone(),
            _ => explain::connection(error).text,
        }
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

/// HTTP/1.1 that passes over what is odd in the head of an answer.
///
/// Appliances between a machine and the service add headers, and not all of them are well formed.
/// An answer that is refused for one of those leaves a snapshot behind that the report cannot name.
/// The status and the headers that the report needs are judged as strictly as ever.
fn lenient_http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        // `X-Appliance : a`. RFC 9112, 5.1: a proxy removes such blanks from a response.
        .allow_spaces_after_header_name_in_responses(true)
        // RFC 9112, 5.2: a user agent reads a folded line as one with blanks. Without this, the
        // next option would drop the second half of a value and keep the first.
        .allow_obsolete_multiline_headers_in_responses(true)
        // Drops a line that has no colon, or a control character in it.
        .ignore_invalid_headers_in_responses(true)
        // The limit is one of bytes (`HEAD_LIMIT_BYTES`), which no more headers than this fit into.
        .max_headers(HEAD_LIMIT_BYTES / SHORTEST_HEADER_BYTES);
    builder
}
