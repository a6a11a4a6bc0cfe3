//! The way to one blob's server: resolved once, dialled as often as needed.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout_at;
use vmsnapshot_core::blob::{SasUri, Scheme};

use super::error::explain_handshake;
use super::{ConnectError, Connection, Proxy, Tls};

/// Everything needed to connect to one blob's server: addresses, TLS, proxy. Cloning shares it.
#[derive(Clone)]
pub struct Dialer(Arc<Route>);

struct Route {
    blob: String,
    host: String,
    host_and_port: String,
    addresses: Vec<SocketAddr>,
    /// The index of the address that worked last; tried first.
    preferred: AtomicUsize,
    proxy: Option<Proxy>,
    tls: Option<(Tls, ServerName<'static>)>,
}

impl Dialer {
    /// Resolves the server of `uri`, or `proxy`, until `deadline`.
    ///
    /// *Blocking*: until `deadline`. *In the window*: no.
    ///
    /// # Errors
    ///
    /// [`ConnectError::ResolveFailed`], [`ConnectError::ConnectTimeout`]; for an HTTPS blob
    /// [`ConnectError::TlsFailed`] if `tls` is missing or the host's name cannot be in a certificate.
    pub async fn new(
        uri: &SasUri,
        proxy: Option<&Proxy>,
        tls: Option<&Tls>,
        deadline: Instant,
    ) -> Result<Self, ConnectError> {
        let (host, port) = first_hop(uri, proxy);
        let addresses = resolve(host, port, deadline)
            .await
            .map_err(|failure| failure.for_blob(uri, host))?;
        Self::with_addresses(uri, proxy, tls, addresses)
    }

    pub(super) fn with_addresses(
        uri: &SasUri,
        proxy: Option<&Proxy>,
        tls: Option<&Tls>,
        addresses: Vec<SocketAddr>,
    ) -> Result<Self, ConnectError> {
        let tls = match uri.scheme() {
            Scheme::Http => None,
            Scheme::Https => {
                let failed = |cause: &str| ConnectError::TlsFailed {
                    blob: uri.to_string(),
                    host: uri.host().to_owned(),
                    cause: cause.to_owned(),
                    hint: None,
                };
                let name = ServerName::try_from(uri.host().to_owned())
                    .map_err(|_| failed("no certificate can be for such a name"))?;
                Some((
                    tls.ok_or_else(|| failed("TLS was not set up"))?.clone(),
                    name,
                ))
            }
        };
        Ok(Self(Arc::new(Route {
            blob: uri.to_string(),
            host: uri.host().to_owned(),
            host_and_port: uri.host_and_port(),
            addresses,
            preferred: AtomicUsize::new(0),
            proxy: proxy.cloned(),
            tls,
        })))
    }

    /// Returns the blob's URI without its query.
    #[must_use]
    pub fn blob(&self) -> &str {
        &self.0.blob
    }

    /// Connects, with TLS and through the proxy where there are such, on the current runtime.
    ///
    /// *Blocking*: until `deadline`. *In the window*: allowed; it resolves nothing and opens no
    /// file, and TLS takes up the earlier session where the server allows.
    ///
    /// # Errors
    ///
    /// [`ConnectError::ConnectFailed`], [`ConnectError::ProxyFailed`], [`ConnectError::TlsFailed`]
    /// or [`ConnectError::ConnectTimeout`].
    pub async fn dial(&self, deadline: Instant) -> Result<Connection, ConnectError> {
        let route = &*self.0;
        let mut stream = route.connect(deadline).await?;
        if let (Some(proxy), Some(_)) = (&route.proxy, &route.tls) {
            route
                .in_time(
                    deadline,
                    "the proxy",
                    proxy.open_tunnel(&mut stream, &route.host_and_port),
                )
                .await?
                .map_err(|cause| ConnectError::ProxyFailed {
                    blob: route.blob.clone(),
                    proxy: proxy.to_string(),
                    cause,
                })?;
        }
        let begun = match &route.tls {
            Some((tls, name)) => {
                let handshake = tls.connector.connect(name.clone(), stream);
                let stream = route
                    .in_time(deadline, "the TLS handshake", handshake)
                    .await?
                    .map_err(|error| {
                        let (cause, hint) = explain_handshake(&error);
                        ConnectError::TlsFailed {
                            blob: route.blob.clone(),
                            host: route.host.clone(),
                            cause,
                            hint,
                        }
                    })?;
                Connection::begin(TokioIo::new(stream)).await
            }
            None => Connection::begin(TokioIo::new(stream)).await,
        };
        begun.map_err(|error| route.connect_failed(&route.host_and_port, error.to_string()))
    }
}

impl Route {
    /// Tries every address in turn, the one that worked last first, each with its share of the
    /// time that is left: one that swallows packets must not use up all of it.
    async fn connect(&self, deadline: Instant) -> Result<TcpStream, ConnectError> {
        let count = self.addresses.len();
        let preferred = self.preferred.load(Ordering::Relaxed);
        let mut last_failure = None;
        for turn in 0..count {
            let index = (preferred + turn) % count;
            let Some(address) = self.addresses.get(index) else {
                continue;
            };
            let now = Instant::now();
            let turns_left = u32::try_from(count - turn).unwrap_or(u32::MAX);
            let share: Duration = deadline.saturating_duration_since(now) / turns_left;
            match timeout_at((now + share).into(), connect_to(*address)).await {
                Ok(Ok(stream)) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(stream);
                }
                Ok(Err(error)) => last_failure = Some((address, error)),
                Err(_) => {}
            }
        }
        match last_failure {
            Some((address, error)) => {
                let address = match count {
                    1 => address.to_string(),
                    _ => format!("{address} (the last of {count} addresses to fail)"),
                };
                Err(self.connect_failed(&address, error.to_string()))
            }
            None => Err(self.late(&format!("the connection to {}", self.first_hop_text()))),
        }
    }

    async fn in_time<Output>(
        &self,
        deadline: Instant,
        step: &str,
        future: impl Future<Output = Output>,
    ) -> Result<Output, ConnectError> {
        timeout_at(deadline.into(), future)
            .await
            .map_err(|_| self.late(step))
    }

    fn late(&self, step: &str) -> ConnectError {
        ConnectError::ConnectTimeout {
            blob: self.blob.clone(),
            step: step.to_owned(),
        }
    }

    fn connect_failed(&self, address: &str, cause: String) -> ConnectError {
        ConnectError::ConnectFailed {
            blob: self.blob.clone(),
            address: address.to_owned(),
            cause,
        }
    }

    fn first_hop_text(&self) -> String {
        match &self.proxy {
            Some(proxy) => format!("the proxy {proxy}"),
            None => self.host_and_port.clone(),
        }
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Dialer")
            .field("blob", &self.0.blob)
            .field("addresses", &self.0.addresses)
            .field("proxy", &self.0.proxy)
            .finish_non_exhaustive()
    }
}

async fn connect_to(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // A request is one small write: it must not wait for the acknowledgement of anything.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Returns host and port of what we connect to ourselves.
pub(super) fn first_hop<'a>(uri: &'a SasUri, proxy: Option<&'a Proxy>) -> (&'a str, u16) {
    match proxy {
        Some(proxy) => (proxy.host(), proxy.port()),
        None => (uri.host(), uri.port()),
    }
}

#[derive(Clone, Debug)]
pub(super) enum ResolveFailure {
    Failed(String),
    Late,
}

impl ResolveFailure {
    pub(super) fn for_blob(self, uri: &SasUri, host: &str) -> ConnectError {
        match self {
            Self::Failed(cause) => ConnectError::ResolveFailed {
                blob: uri.to_string(),
                host: host.to_owned(),
                cause,
            },
            Self::Late => ConnectError::ConnectTimeout {
                blob: uri.to_string(),
                step: format!("the resolution of `{host}`"),
            },
        }
    }
}

/// Resolves `host` on a thread of its own.
///
/// Not on the runtime's pool: dropping a runtime waits for the pool's threads, and `getaddrinfo`
/// can hang for longer than anybody wants to wait. An abandoned thread of our own harms nobody.
pub(super) async fn resolve(
    host: &str,
    port: u16,
    deadline: Instant,
) -> Result<Vec<SocketAddr>, ResolveFailure> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (answer, answered) = tokio::sync::oneshot::channel();
    let name = host.to_owned();
    std::thread::Builder::new()
        .name("resolve".to_owned())
        .spawn(move || {
            // The receiver may have given up.
            let _ = answer.send(
                (name.as_str(), port)
                    .to_socket_addrs()
                    .map(Iterator::collect::<Vec<_>>),
            );
        })
        .map_err(|error| ResolveFailure::Failed(error.to_string()))?;
    match timeout_at(deadline.into(), answered).await {
        Ok(Ok(Ok(addresses))) if addresses.is_empty() => {
            Err(ResolveFailure::Failed("it has no address".to_owned()))
        }
        Ok(Ok(Ok(addresses))) => Ok(addresses),
        Ok(Ok(Err(error))) => Err(ResolveFailure::Failed(error.to_string())),
        Ok(Err(_)) => Err(ResolveFailure::Failed(
            "the resolver's thread died".to_owned(),
        )),
        Err(_) => Err(ResolveFailure::Late),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn dial_tries_every_address_and_remembers_the_one_that_worked() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            // Bound and not listening: connections to it are refused, and nobody else can take it.
            let refusing = tokio::net::TcpSocket::new_v4().unwrap();
            refusing.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let addresses = vec![
                refusing.local_addr().unwrap(),
                listener.local_addr().unwrap(),
            ];
            let uri = SasUri::parse("http://server.example/c/b?sig=secret").unwrap();
            let dialer = Dialer::with_addresses(&uri, None, None, addresses.clone()).unwrap();
            let deadline = Instant::now() + Duration::from_secs(10);
            dialer.dial(deadline).await.unwrap();
            assert_eq!(dialer.0.preferred.load(Ordering::Relaxed), 1);
            drop(listener);
            let error = dialer.dial(deadline).await.unwrap_err();
            assert_eq!(error.code(), "connect-failed");
            assert!(error.to_string().contains("2 addresses"), "{error}");
        });
    }

    #[test]
    fn an_address_that_swallows_packets_does_not_use_up_the_time_of_the_next() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            // A listener whose queue is full drops what comes.
            let full = tokio::net::TcpSocket::new_v4().unwrap();
            full.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let full = full.listen(0).unwrap();
            let full_address = full.local_addr().unwrap();
            let _queued = TcpStream::connect(full_address).await.unwrap();
            let uri = SasUri::parse("http://server.example/c/b?sig=secret").unwrap();
            let both = vec![full_address, listener.local_addr().unwrap()];
            let dialer = Dialer::with_addresses(&uri, None, None, both).unwrap();
            dialer
                .dial(Instant::now() + Duration::from_secs(2))
                .await
                .unwrap();

            let dialer = Dialer::with_addresses(&uri, None, None, vec![full_address]).unwrap();
            let error = dialer
                .dial(Instant::now() + Duration::from_millis(100))
                .await
                .unwrap_err();
            assert_eq!(error.code(), "connect-timeout");
        });
    }
}
