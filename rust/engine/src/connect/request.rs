//! A request that is made before the window: Snapshot Blob to a blob's service, or a host call.

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{header, Request, Response, Uri};
use http_body_util::{Empty, Full};
use hyper::body::Incoming;
use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt::{self, Write as _};
use std::future::Future;
use std::io;
use std::pin::{pin, Pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use vmsnapshot_core::blob::{self, Metadata, SasUri};
use vmsnapshot_core::host_call::{self, HostCall};
use vmsnapshot_core::uri::Scheme;

use super::answer::{RawAnswer, SendFailure, BODY_LIMIT_BYTES, HOST_BODY_LIMIT_BYTES};
use super::destination::Destination;
use super::error::ConnectError;
use super::proxy::{Proxy, USER_AGENT};

/// A whole request, ready to be sent. The clone for a second attempt is made before the window too.
///
/// `Debug` shows no part of it.
#[derive(Clone)]
pub struct PreparedRequest {
    pub(super) request: Request<Full<Bytes>>,
    pub(super) purpose: Purpose,
}

/// What a request asks for. It decides how much of the answer is kept and when the request may be
/// sent again.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    /// A snapshot of one blob.
    Snapshot,
    /// All snapshots, taken by the host.
    HostCall,
}

impl PreparedRequest {
    /// Makes the request that takes a snapshot of `uri` with `metadata`. `proxy` is the proxy of
    /// the connection.
    ///
    /// On the wire it is `PUT path?query&comp=snapshot`, `Host`, `Content-Length: 0` and the
    /// metadata as `x-ms-meta-Name`, in which the name keeps its case. For an HTTP blob behind a
    /// proxy the target is in absolute form, `User-Agent` is added, and `Proxy-Authorization` if the
    /// proxy has a password. There is no other header: the SAS carries the version.
    ///
    /// *In the window*: no.
    ///
    /// # Errors
    ///
    /// [`ConnectError::BadRequest`].
    pub fn snapshot(
        uri: &SasUri,
        metadata: &Metadata,
        proxy: Option<&Proxy>,
    ) -> Result<Self, ConnectError> {
        let bad = |cause| ConnectError::BadRequest {
            destination: Destination::blob(uri, proxy).to_string(),
            cause,
        };
        let host = uri.as_http().host_header();
        let mut head = format!("PUT / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n");
        let is_forwarded = proxy.is_some() && uri.scheme() == Scheme::Http;
        if is_forwarded {
            // Writing into a String cannot fail, here and below.
            let _ = write!(head, "User-Agent: {USER_AGENT}\r\n");
        }
        if let Some(authorization) = proxy
            .filter(|_| is_forwarded)
            .and_then(Proxy::authorization)
        {
            let _ = write!(head, "Proxy-Authorization: {authorization}\r\n");
        }
        for (name, value) in metadata.pairs() {
            let _ = write!(head, "x-ms-meta-{name}: {value}\r\n");
        }
        head.push_str("\r\n");

        let header_count = metadata.pairs().count() + 4;
        let mut request = with_case_kept(head, header_count, Bytes::new())
            .ok_or_else(|| bad("its headers cannot be written"))?;
        let target: PathAndQuery = uri
            .snapshot_target()
            .expose()
            .parse()
            .map_err(|_| bad("its path or query cannot be written"))?;
        *request.uri_mut() = if is_forwarded {
            Uri::builder()
                .scheme(uri.scheme().as_str())
                .authority(host)
                .path_and_query(target)
                .build()
                .map_err(|_| bad("its host cannot be written"))?
        } else {
            Uri::from(target)
        };
        Ok(Self {
            request,
            purpose: Purpose::Snapshot,
        })
    }

    /// Changes a [`snapshot`](Self::snapshot) for a connection that uses no proxy after all. The
    /// server must not get the proxy's password.
    ///
    /// *In the window*: no.
    pub fn without_proxy(&mut self) {
        let headers = self.request.headers_mut();
        headers.remove(header::PROXY_AUTHORIZATION);
        headers.remove(header::USER_AGENT);
        if let Some(target) = self.request.uri().path_and_query() {
            *self.request.uri_mut() = Uri::from(target.clone());
        }
    }

    /// Makes the request of a host call: `POST path?query`, `Host`, `Content-Length`, the caller's
    /// headers, whose names keep their case, and the body.
    ///
    /// *In the window*: no.
    ///
    /// # Errors
    ///
    /// [`ConnectError::BadRequest`].
    pub fn host_call(call: &HostCall) -> Result<Self, ConnectError> {
        let bad = |cause| ConnectError::BadRequest {
            destination: Destination::host(call).to_string(),
            cause,
        };
        let mut head = format!(
            "POST / HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n",
            call.uri().host_header(),
            call.body().len()
        );
        for (name, value) in call.headers() {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        head.push_str("\r\n");
        let header_count = call.headers().count() + 2;
        let mut request = with_case_kept(head, header_count, Bytes::copy_from_slice(call.body()))
            .ok_or_else(|| bad("its headers cannot be written"))?;
        let target: PathAndQuery = call
            .target()
            .parse()
            .map_err(|_| bad("its path or query cannot be written"))?;
        *request.uri_mut() = Uri::from(target);
        Ok(Self {
            request,
            purpose: Purpose::HostCall,
        })
    }

    /// Returns whether the request may be sent a second time in a window after the result `first`.
    ///
    /// A blob's request may follow one that was lost: a connection that died unnoticed must not cost
    /// the backup. If the first was executed all the same, the blob has a second snapshot, and the
    /// report says so. A second call to the host makes a second set of snapshots, so it is allowed
    /// only if the first certainly made none.
    ///
    /// *In the window*: allowed.
    #[must_use]
    pub fn may_follow(&self, first: &Result<RawAnswer, SendFailure>) -> bool {
        match (self.purpose, first) {
            (_, Err(SendFailure::NotSent { .. })) => true,
            (
                _,
                Err(
                    SendFailure::BadAnswer { .. }
                    | SendFailure::TooLong
                    | SendFailure::NoAnswer { .. },
                ),
            ) => false,
            (Purpose::Snapshot, Err(SendFailure::Lost { .. })) => true,
            (Purpose::Snapshot, Ok(answer)) => blob::may_retry_in_window(answer.status),
            (Purpose::HostCall, Err(SendFailure::Lost { .. })) => false,
            (Purpose::HostCall, Ok(answer)) => host_call::may_retry_in_window(answer.status),
        }
    }

    /// Returns whether the body of the answer says what the request came to, and may therefore take
    /// as long as the answer itself.
    ///
    /// *In the window*: allowed.
    #[must_use]
    pub fn asks_for_a_body(&self) -> bool {
        match self.purpose {
            Purpose::Snapshot => false,
            Purpose::HostCall => true,
        }
    }
}

impl Purpose {
    /// Returns how much of the body of an answer with `status` is kept. If the blob service took a
    /// snapshot, the headers say everything.
    pub(super) fn body_limit_bytes(self, status: u16) -> usize {
        match self {
            Self::Snapshot if blob::is_success(status) => 0,
            Self::Snapshot => BODY_LIMIT_BYTES,
            Self::HostCall => HOST_BODY_LIMIT_BYTES,
        }
    }
}

impl fmt::Debug for PreparedRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PreparedRequest(...)")
    }
}

/// Makes a request from its head as text and its body. Every header name keeps its case.
///
/// The blob service keeps the case of a metadata name, but `http::HeaderName` is lower case. hyper
/// writes names in another case only if the request carries hyper's private map of them. The only
/// way to get that map is to let hyper itself read a request with `preserve_header_case`, as a
/// proxy built on hyper does. So hyper's server side reads the head here, from memory.
fn with_case_kept(head: String, header_count: usize, body: Bytes) -> Option<Request<Full<Bytes>>> {
    let read = Rc::new(RefCell::new(None));
    let keep = Rc::clone(&read);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        keep.replace(Some(request.into_parts().0));
        std::future::ready(Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())))
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    // The default limit on reading a head needs a timer, and there is none. The whole head is in
    // memory, so no limit is needed.
    builder
        .preserve_header_case(true)
        .header_read_timeout(None)
        .max_headers(header_count);
    let mut connection = pin!(builder.serve_connection(
        Memory {
            unread: Bytes::from(head)
        },
        service
    ));
    let waker = Waker::from(Arc::new(NoWaker));
    // A single poll reads the head and calls the service. It stops at the body, if one is
    // announced, because no body arrives. The service's answer is discarded.
    let _ = connection.as_mut().poll(&mut Context::from_waker(&waker));
    let parts = read.borrow_mut().take()?;
    Some(Request::from_parts(parts, Full::new(body)))
}

struct NoWaker;

impl Wake for NoWaker {
    fn wake(self: Arc<Self>) {}
}

/// Reads from memory and discards what is written.
struct Memory {
    unread: Bytes,
}

impl hyper::rt::Read for Memory {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        mut buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let length = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Memory {
    fn poll_write(
        self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
