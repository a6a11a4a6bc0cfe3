//! The request of Snapshot Blob, made before the window.

use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt::{self, Write as _};
use std::future::Future;
use std::io;
use std::pin::{pin, Pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Request, Response, Uri};
use http_body_util::Empty;
use hyper::body::Incoming;
use vmsnapshot_core::blob::{Metadata, SasUri, Scheme};

use super::{ConnectError, Proxy};

/// A whole request, ready to be sent; cloning it, for a second attempt, is for before the window.
///
/// On the wire it is `PUT path?query&comp=snapshot`, `Host`, `Content-Length: 0` and the metadata
/// as `x-ms-meta-Name` with the case of its name kept; for an HTTP blob behind a proxy the target
/// is in absolute form and `Proxy-Authorization` may come along. Nothing else: the SAS carries the
/// version. `Debug` shows nothing.
#[derive(Clone)]
pub struct PreparedRequest(pub(super) Request<Empty<Bytes>>);

impl PreparedRequest {
    /// Makes the request that takes a snapshot of `uri` with `metadata`; `proxy` is the one that
    /// the connection goes through.
    ///
    /// *In the window*: no.
    ///
    /// # Errors
    ///
    /// [`ConnectError::BadRequest`].
    pub fn new(
        uri: &SasUri,
        metadata: &Metadata,
        proxy: Option<&Proxy>,
    ) -> Result<Self, ConnectError> {
        let bad = |cause| ConnectError::BadRequest {
            blob: uri.to_string(),
            cause,
        };
        let mut head = format!(
            "PUT / HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\n",
            uri.host_header()
        );
        let is_forwarded = proxy.is_some() && uri.scheme() == Scheme::Http;
        if let Some(authorization) = proxy
            .filter(|_| is_forwarded)
            .and_then(Proxy::authorization)
        {
            // Writing into a String cannot fail, here and below.
            let _ = write!(head, "Proxy-Authorization: {authorization}\r\n");
        }
        for (name, value) in metadata.pairs() {
            let _ = write!(head, "x-ms-meta-{name}: {value}\r\n");
        }
        head.push_str("\r\n");

        let header_count = metadata.pairs().count() + 3;
        let mut request = with_case_kept(head, header_count)
            .ok_or_else(|| bad("its headers cannot be written"))?;
        let target: PathAndQuery = uri
            .snapshot_target()
            .expose()
            .parse()
            .map_err(|_| bad("its path or query cannot be written"))?;
        *request.uri_mut() = if is_forwarded {
            Uri::builder()
                .scheme(uri.scheme().as_str())
                .authority(uri.host_header())
                .path_and_query(target)
                .build()
                .map_err(|_| bad("its host cannot be written"))?
        } else {
            Uri::from(target)
        };
        Ok(Self(request))
    }
}

impl fmt::Debug for PreparedRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PreparedRequest(...)")
    }
}

/// Makes a request from its head as text, with the case of every header name kept.
///
/// The service keeps the case of a metadata name, and `http::HeaderName` is lower case. hyper
/// writes names in another case only if the request carries its private map of them, and the one
/// way to get that map is to let hyper itself read a request with `preserve_header_case`: what a
/// proxy built on hyper does. So its server side reads the head here, from memory.
fn with_case_kept(head: String, header_count: usize) -> Option<Request<Empty<Bytes>>> {
    let read = Rc::new(RefCell::new(None));
    let keep = Rc::clone(&read);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        keep.replace(Some(request.into_parts().0));
        std::future::ready(Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())))
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    // No timer is there for the default limit on reading a head; this one is in memory whole.
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
    let waker = Waker::from(Arc::new(NobodyWaits));
    // The one poll reads the head and answers it; the answer goes nowhere.
    let _ = connection.as_mut().poll(&mut Context::from_waker(&waker));
    let parts = read.borrow_mut().take()?;
    Some(Request::from_parts(parts, Empty::new()))
}

struct NobodyWaits;

impl Wake for NobodyWaits {
    fn wake(self: Arc<Self>) {}
}

/// Reads from memory and writes to nowhere.
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
