//! A TCP connection that takes a limited number of bytes from its server.
//!
//! The limit is below TLS and HTTP, so it holds for all that a server can send: handshake messages,
//! session tickets, interim answers, headers, chunks. None of them costs memory or time without end.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::task::{ready, Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::net::TcpStream;

/// How many bytes a server, with its proxy, may send until the first request: the answer to CONNECT,
/// the TLS handshake, session tickets. A chain of certificates has some KiB, and 64 KiB at most.
pub(super) const CONNECT_LIMIT_BYTES: usize = 256 * 1024;

/// How many bytes a connection may still take.
#[derive(Debug)]
pub(super) struct Meter {
    left: AtomicUsize,
    is_exceeded: AtomicBool,
}

/// More arrived than the connection may take.
#[derive(Debug, thiserror::Error)]
#[error("the server sent more than is read of it")]
pub(super) struct Exceeded;

impl Meter {
    /// Lets the connection take `bytes` from now on, whatever was left.
    pub(super) fn allow(&self, bytes: usize) {
        self.left.store(bytes, Ordering::Relaxed);
    }

    /// Returns whether the server has ever sent more.
    pub(super) fn is_exceeded(&self) -> bool {
        self.is_exceeded.load(Ordering::Relaxed)
    }
}

/// The connection.
pub(super) struct Metered {
    stream: Take<TcpStream>,
    meter: Arc<Meter>,
}

impl Metered {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream: stream.take(0),
            meter: Arc::new(Meter {
                left: AtomicUsize::new(CONNECT_LIMIT_BYTES),
                is_exceeded: AtomicBool::new(false),
            }),
        }
    }

    pub(super) fn meter(&self) -> Arc<Meter> {
        Arc::clone(&self.meter)
    }

    fn writer(&mut self) -> Pin<&mut TcpStream> {
        Pin::new(self.stream.get_mut())
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = self.meter.left.load(Ordering::Relaxed);
        if left == 0 {
            self.meter.is_exceeded.store(true, Ordering::Relaxed);
            return Poll::Ready(Err(io::Error::other(Exceeded)));
        }
        let before = buffer.filled().len();
        self.stream.set_limit(left as u64);
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.meter.allow(left - (buffer.filled().len() - before));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writer().poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.writer().poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.get_ref().is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer().poll_shutdown(context)
    }
}
