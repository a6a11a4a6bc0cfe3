//! Connects to one server. Its name is resolved once, and it is dialled as often as needed.

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
use vmsnapshot_core::uri::Scheme;
use vmsnapshot_sys::errno::{cause_text, open_files_hint};

use super::connection::Connection;
use super::destination::Destination;
use super::error::ConnectError;
use super::explain;
use super::metered::Metered;
use super::tls::Tls;

/// Everything needed to connect to one server: addresses, TLS, proxy. Clones share it.
#[derive(Clone)]
pub struct Dialer(Arc<Route>);

struct Route {
    destination: Destination,
    addresses: Vec<SocketAddr>,
    /// The index of the address that worked last. It is tried first.
    preferred: AtomicUsize,
    tls: Option<(Tls, ServerName<'static>)>,
}

impl Dialer {
    pub(super) fn with_addresses(
        destination: Destination,
        tls: Option<&Tls>,
        addresses: Vec<SocketAddr>,
    ) -> Result<Self, ConnectError> {
        let tls = match destination.uri().scheme() {
            Scheme::Http => None,
            Scheme::Https => {
                let host = destination.uri().host();
                let failed = |cause: &str| ConnectError::TlsFailed {
                    destination: destination.to_string(),
                    server: format!("`{host}`"),
                    cause: cause.to_owned(),
                    hint: None,
                };
                let name = ServerName::try_from(host.to_owned())
                    .map_err(|_| failed("no certificate can be for such a name"))?;
                Some((
                    tls.ok_or_else(|| failed("TLS was not set up"))?.clone(),
                    name,
                ))
            }
        };
        Ok(Self(Arc::new(Route {
            destination,
            addresses,
            preferred: AtomicUsize::new(0),
            tls,
        })))
    }

    /// Returns the destination that it connects to.
    #[must_use]
    pub fn destination(&self) -> &Destination {
        &self.0.destination
    }

    pub(super) fn tls(&self) -> Option<&Tls> {
        self.0.tls.as_ref().map(|(tls, _)| tls)
    }

    /// Connects on the current runtime, through the proxy and with TLS if the destination has them.
    ///
    /// *Blocking*: until `deadline`. *In the window*: allowed. It resolves no name and opens no
    /// file, and TLS resumes the earlier session if the server allows it.
    ///
    /// # Errors
    ///
    /// [`ConnectError::ConnectFailed`], [`ConnectError::ProxyFailed`], [`ConnectError::TlsFailed`]
    /// or [`ConnectError::ConnectTimeout`].
    pub async fn dial(&self, deadline: Instant) -> Result<Connection, ConnectError> {
        let route = &*self.0;
        let mut stream = Metered::new(route.connect(deadline).await?);
        let meter = stream.meter();
        let destination = &route.destination;
        let host_and_port = destination.uri().host_and_port();
        if let (Some(proxy), Some(_)) = (destination.proxy(), &route.tls) {
            route
                .in_time(
                    deadline,
                    &format!("the answer of the proxy {proxy} to CONNECT"),
                    proxy.open_tunnel(&mut stream, &host_and_port),
                )
                .await?
                .map_err(|cause| ConnectError::ProxyFailed {
                    destination: destination.to_string(),
                    proxy: proxy.to_string(),
                    cause: cause.text,
                    hint: cause.hint,
                })?;
        }
        let begun = match &route.tls {
            Some((tls, name)) => {
                let handshake = tls.connector.connect(name.clone(), stream);
                let stream = route
                    .in_time(deadline, "the TLS handshake", handshake)
                    .await?
                    .map_err(|error| {
                        let cause = explain::handshake(&error);
                        route.tls_failed(cause.text, cause.hint)
                    })?;
                Connection::begin(TokioIo::new(stream), meter).await
            }
            None => Connection::begin(TokioIo::new(stream), meter).await,
        };
        begun.map_err(|error| {
            let cause = explain::connection(&error);
            route.connect_failed(&host_and_port, cause.text, cause.hint)
        })
    }

    /// Returns the error of a server that ended TLS after the handshake, because of `cause`.
    pub(super) fn tls_ended(&self, cause: explain::Cause) -> ConnectError {
        self.0.tls_failed(cause.text, cause.hint)
    }
}

impl Route {
    /// Tries every address in turn and begins with the one that worked last.
    ///
    /// Each address gets its share of the time that is left, because one that swallows packets must
    /// not use up all of it.
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
                let mut text = match self.destination.proxy() {
                    Some(proxy) => format!("the proxy {proxy} at {address}"),
                    None => address.to_string(),
                };
                if count > 1 {
                    text.push_str(&format!(" (the last of {count} addresses to fail)"));
                }
                Err(self.connect_failed(&text, cause_text(&error), open_files_hint(&error)))
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
            destination: self.destination.to_string(),
            step: step.to_owned(),
        }
    }

    fn connect_failed(
        &self,
        address: &str,
        cause: String,
        hint: Option<&'static str>,
    ) -> ConnectError {
        ConnectError::ConnectFailed {
            destination: self.destination.to_string(),
            address: address.to_owned(),
            cause,
            hint,
        }
    }

    fn tls_failed(&self, cause: String, hint: Option<&'static str>) -> ConnectError {
        let host = self.destination.uri().host();
        ConnectError::TlsFailed {
            destination: self.destination.to_string(),
            server: match self.destination.proxy() {
                Some(proxy) => format!("`{host}` through the proxy {proxy}"),
                None => format!("`{host}`"),
            },
            cause,
            hint,
        }
    }

    fn first_hop_text(&self) -> String {
        match self.destination.proxy() {
            Some(proxy) => format!("the proxy {proxy}"),
            None => self.destination.uri().host_and_port(),
        }
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Dialer")
            .field("destination", &self.0.destination)
            .field("addresses", &self.0.addresses)
            .finish_non_exhaustive()
    }
}

async fn connect_to(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // A request is one small write. It must not wait for the acknowledgement of an earlier one.
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[derive(Clone, Debug)]
pub(super) enum ResolveFailure {
    Failed(String),
    Late,
}

impl ResolveFailure {
    pub(super) fn of(self, destination: &Destination, host: &str) -> ConnectError {
        match self {
            Self::Failed(cause) => ConnectError::ResolveFailed {
                destination: match destination.proxy() {
                    Some(_) => format!("the proxy of {destination}"),
                    None => destination.to_string(),
                },
                host: host.to_owned(),
                cause,
            },
            Self::Late => ConnectError::ConnectTimeout {
                destination: destination.to_string(),
                step: match destination.proxy() {
                    Some(_) => format!("the resolution of the proxy's name `{host}`"),
                    None => format!("the resolution of `{host}`"),
                },
            },
        }
    }
}

/// Resolves `host` on a thread of its own.
///
/// The runtime's pool does not fit: dropping a runtime waits for the pool's threads, and
/// `getaddrinfo` can hang for very long. A thread of our own can be abandoned without harm.
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
            // The receiver may have stopped waiting.
            let _ = answer.send(
                (name.as_str(), port)
                    .to_socket_addrs()
                    .map(Iterator::collect::<Vec<_>>),
            );
        })
        .map_err(|error| ResolveFailure::Failed(cause_text(&error)))?;
    match timeout_at(deadline.into(), answered).await {
        Ok(Ok(Ok(addresses))) if addresses.is_empty() => {
            Err(ResolveFailure::Failed("it has no address".to_owned()))
        }
        Ok(Ok(Ok(addresses))) => Ok(addresses),
        Ok(Ok(Err(error))) => Err(ResolveFailure::Failed(resolver_text(&error))),
        Ok(Err(_)) => Err(ResolveFailure::Failed(
            "the resolver's thread died".to_owned(),
        )),
        Err(_) => Err(ResolveFailure::Late),
    }
}

/// Returns the resolver's own words, without those that `std` puts in front.
fn resolver_text(error: &io::Error) -> String {
    let text = cause_text(error);
    match text.split_once("failed to lookup address information: ") {
        Some((_, words)) => words.to_lowercase(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use vmsnapshot_core::blob::SasUri;
    use vmsnapshot_core::error_kind::ErrorCode;

    use super::*;

    fn server() -> Destination {
        let uri = SasUri::parse("http://server.example/c/b?sig=secret").unwrap();
        Destination::blob(&uri, None)
    }

    #[test]
    fn dial_tries_every_address_and_remembers_the_one_that_worked() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            // The socket is bound and does not listen. Connections to its port are refused, and no
            // other program can take the port.
            let refusing = tokio::net::TcpSocket::new_v4().unwrap();
            refusing.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let addresses = vec![
                refusing.local_addr().unwrap(),
                listener.local_addr().unwrap(),
            ];
            let dialer = Dialer::with_addresses(server(), None, addresses.clone()).unwrap();
            let deadline = Instant::now() + Duration::from_secs(10);
            dialer.dial(deadline).await.unwrap();
            assert_eq!(dialer.0.preferred.load(Ordering::Relaxed), 1);
            drop(listener);
            let error = dialer.dial(deadline).await.unwrap_err();
            assert_eq!(error.code(), ErrorCode::ConnectFailed);
            assert!(error.to_string().contains("2 addresses"), "{error}");
        });
    }

    #[test]
    fn dial_leaves_time_for_the_next_address_when_one_swallows_packets() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            // A listener whose queue is full drops further connection attempts.
            let full = tokio::net::TcpSocket::new_v4().unwrap();
            full.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let full = full.listen(0).unwrap();
            let full_address = full.local_addr().unwrap();
            let _queued = TcpStream::connect(full_address).await.unwrap();
            let both = vec![full_address, listener.local_addr().unwrap()];
            let dialer = Dialer::with_addresses(server(), None, both).unwrap();
            dialer
                .dial(Instant::now() + Duration::from_secs(2))
                .await
                .unwrap();

            let dialer = Dialer::with_addresses(server(), None, vec![full_address]).unwrap();
            let error = dialer
                .dial(Instant::now() + Duration::from_millis(100))
                .await
                .unwrap_err();
            assert_eq!(error.code(), ErrorCode::ConnectTimeout);
        });
    }
}
