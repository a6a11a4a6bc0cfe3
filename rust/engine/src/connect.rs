//! Connections before the window: one warm HTTP/1.1 connection per request to a blob's service or
//! the host.
//!
//! Name resolution, trust roots, TCP, proxy, TLS and the making of requests happen here, on a tokio
//! current-thread runtime that the caller owns. The window only writes prepared bytes to open
//! sockets and reads the answers. Of the functions here that wait, the window may call
//! [`Connection::send`] and, for a second attempt, [`Dialer::dial`].
//!
//! No environment variable sets the proxy, and no redirect is followed. A request goes where the
//! caller says.

mod answer;
mod ca_file;
mod connection;
mod destination;
mod dial;
mod error;
mod explain;
mod metered;
mod proxy;
mod request;
mod tls;

pub use answer::{RawAnswer, SendFailure, BODY_LIMIT_BYTES, HOST_BODY_LIMIT_BYTES};
pub use connection::Connection;
pub use destination::Destination;
pub use dial::Dialer;
pub use error::ConnectError;
pub use proxy::Proxy;
pub use request::PreparedRequest;
pub use tls::{trust_roots, Tls};

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use vmsnapshot_core::blob::OnUnusable;
use vmsnapshot_core::uri::Scheme;

use dial::ResolveFailure;

/// How to connect.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// A PEM file with certificates to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// The proxy for all blobs.
    pub proxy: Option<Proxy>,
    /// The limit on all connecting together.
    pub time_limit: Duration,
}

/// An open connection, and what is needed to make another one.
#[derive(Debug)]
pub struct WarmConnection {
    /// How to connect again.
    pub dialer: Dialer,
    /// The connection.
    pub connection: Connection,
    /// Why it does not use the proxy, if an optional proxy refused or was down.
    pub without_proxy: Option<String>,
}

impl WarmConnection {
    /// Returns the server's refusal, if it came after the handshake.
    ///
    /// With TLS 1.3 a server that demands a client certificate says so only after the client has
    /// completed the handshake. Another connection would end in the same way.
    fn refusal(&self) -> Option<ConnectError> {
        let cause = self.connection.end().filter(|cause| cause.is_refusal)?;
        Some(self.dialer.tls_ended(cause.clone()))
    }
}

/// Connects to every destination in parallel. Returns a result for each, in their order.
///
/// `options.proxy` is ignored, because each destination has its own. No destination waits for
/// another: a name that is not resolved in time takes no time from the rest.
///
/// If the proxy of a destination is [optional](Proxy::or_direct) and refuses or is down, the
/// destination is tried directly. The proxy then has half of the time.
///
/// *Blocking*: `options.time_limit`, and the reading of the trust roots. *In the window*: no.
///
/// # Errors
///
/// An error that concerns all destinations, or the first error of one destination if `on_unusable`
/// says that it ends the preparation. Connections that were made are closed.
pub async fn connect_all(
    destinations: &[Destination],
    options: &ConnectOptions,
    on_unusable: OnUnusable,
) -> Result<Vec<Result<WarmConnection, ConnectError>>, ConnectError> {
    // Read the CA file even if no destination uses TLS, so that a bad one is reported.
    let needs_tls = options.ca_file.is_some()
        || destinations
            .iter()
            .any(|destination| destination.uri().scheme() == Scheme::Https);
    let tls = if needs_tls {
        Some(Tls::new(options.ca_file.as_deref())?)
    } else {
        None
    };
    let deadline = Instant::now() + options.time_limit;

    // The disks of one machine mostly share a server, so its name is resolved only once.
    let mut resolutions: HashMap<(String, u16), Arc<Resolution>> = HashMap::new();
    let mut way_to = |destination: Destination| {
        let (host, port) = destination.first_hop();
        let resolution = resolutions.entry((host.to_owned(), port)).or_default();
        Way {
            resolution: Arc::clone(resolution),
            tls: tls.clone(),
            destination,
        }
    };
    let mut dials = JoinSet::new();
    for (index, destination) in destinations.iter().enumerate() {
        let way = way_to(destination.clone());
        let optional = destination.proxy().filter(|proxy| proxy.is_optional());
        let direct = optional.map(|proxy| (proxy.clone(), way_to(destination.direct())));
        dials.spawn(async move {
            let warm = match direct {
                Some((proxy, direct)) => connect_or_direct(way, &proxy, direct, deadline).await,
                None => way.connect(deadline).await,
            };
            (index, warm)
        });
    }
    all(dials, on_unusable).await
}

/// The addresses of one server, resolved when they are first needed.
type Resolution = OnceCell<Result<Vec<SocketAddr>, ResolveFailure>>;

/// One way to a destination: directly, or through its proxy.
struct Way {
    destination: Destination,
    tls: Option<Tls>,
    resolution: Arc<Resolution>,
}

impl Way {
    async fn connect(self, deadline: Instant) -> Result<WarmConnection, ConnectError> {
        let (host, port) = self.destination.first_hop();
        let addresses = self
            .resolution
            .get_or_init(|| dial::resolve(host, port, deadline))
            .await
            .clone()
            .map_err(|failure| failure.of(&self.destination, host))?;
        let dialer = Dialer::with_addresses(self.destination, self.tls.as_ref(), addresses)?;
        let connection = dialer.dial(deadline).await?;
        Ok(WarmConnection {
            dialer,
            connection,
            without_proxy: None,
        })
    }
}

/// Connects through `proxy`, and directly if the proxy refuses or is down. If both fail, the error
/// names both causes, the proxy's first.
async fn connect_or_direct(
    through_proxy: Way,
    proxy: &Proxy,
    direct: Way,
    deadline: Instant,
) -> Result<WarmConnection, ConnectError> {
    match through_proxy.connect(half_way_to(deadline)).await {
        Err(error) if error.is_transient() => {
            instead_of_proxy(&error.cause(), proxy, direct, deadline).await
        }
        // A certificate that is refused through the proxy is a matter of trust, not of the way.
        result => result,
    }
}

/// Connects once more with `dialer`. As [`connect_or_direct`] if its proxy is optional.
async fn connect_again(dialer: Dialer, deadline: Instant) -> Result<WarmConnection, ConnectError> {
    let destination = dialer.destination();
    let optional = destination.proxy().filter(|proxy| proxy.is_optional());
    let limit = optional.map_or(deadline, |_| half_way_to(deadline));
    match (dialer.dial(limit).await, optional) {
        (Err(error), Some(proxy)) if error.is_transient() => {
            let direct = Way {
                destination: destination.direct(),
                tls: dialer.tls().cloned(),
                resolution: Arc::default(),
            };
            instead_of_proxy(&error.cause(), proxy, direct, deadline).await
        }
        (connection, _) => Ok(WarmConnection {
            connection: connection?,
            without_proxy: None,
            dialer,
        }),
    }
}

/// Returns until when a proxy may take, if its destination is to be tried directly after it.
fn half_way_to(deadline: Instant) -> Instant {
    let now = Instant::now();
    now + deadline.saturating_duration_since(now) / 2
}

/// Connects directly after `proxy` failed because of `of_proxy`. The error names both causes.
async fn instead_of_proxy(
    of_proxy: &str,
    proxy: &Proxy,
    direct: Way,
    deadline: Instant,
) -> Result<WarmConnection, ConnectError> {
    let destination = direct.destination.to_string();
    match direct.connect(deadline).await {
        Ok(warm) => Ok(WarmConnection {
            without_proxy: Some(format!(
                "connected directly, because the proxy {proxy} failed: {of_proxy}"
            )),
            ..warm
        }),
        Err(error) => Err(ConnectError::ProxyFailed {
            destination,
            proxy: proxy.to_string(),
            cause: format!("{of_proxy}; directly: {}", error.cause()),
            hint: Some(
                "check the configured proxy, and whether the blob can be reached without it",
            ),
        }),
    }
}

/// Replaces the connections that their servers have closed, in parallel. Returns for each, in their
/// order, whether it was replaced. A connection that cannot be replaced stays closed.
///
/// The new connection may be a direct one, if the old one had an [optional](Proxy::or_direct) proxy.
/// Its request must then be made [direct](PreparedRequest::without_proxy) as well.
///
/// *Blocking*: `time_limit`; almost no time if all are open. *In the window*: no.
///
/// # Errors
///
/// The first [`ConnectError`] if `on_unusable` says that it ends the preparation. Connections that
/// were closed then stay closed, even if their replacement had succeeded.
pub async fn refresh(
    connections: &mut [&mut WarmConnection],
    time_limit: Duration,
    on_unusable: OnUnusable,
) -> Result<Vec<Result<bool, ConnectError>>, ConnectError> {
    let deadline = Instant::now() + time_limit;
    notice_closes().await;
    let mut dials = JoinSet::new();
    for (index, warm) in connections.iter().enumerate() {
        let dialer = (!warm.connection.is_open()).then(|| warm.dialer.clone());
        let refusal = warm.refusal();
        dials.spawn(async move {
            let replacement = match (refusal, dialer) {
                (Some(refusal), _) => Err(refusal),
                (None, Some(dialer)) => connect_again(dialer, deadline).await.map(Some),
                (None, None) => Ok(None),
            };
            (index, replacement)
        });
    }
    let replacements = all(dials, on_unusable).await?;
    let mut replaced = Vec::with_capacity(replacements.len());
    for (warm, replacement) in connections.iter_mut().zip(replacements) {
        replaced.push(match replacement {
            Ok(Some(replacement)) => {
                let earlier = warm.without_proxy.take();
                **warm = replacement;
                warm.without_proxy = warm.without_proxy.take().or(earlier);
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) => Err(error),
        });
    }
    Ok(replaced)
}

/// Makes the runtime look at its sockets, so that [`Connection::is_open`] returns the present
/// state. A connection on which something has arrived before its request is closed then: that can
/// be no answer.
///
/// *In the window*: allowed.
pub async fn notice_closes() {
    // The runtime polls the kernel when a task yields and nothing else is ready. The connection's
    // own task then runs after this one, once to read the end and, under TLS, once more to act on
    // it.
    for _ in 0..4 {
        tokio::task::yield_now().await;
    }
}

/// Waits for all of `tasks`, or for the first error that ends the preparation. The results are in
/// the order of the numbers that the tasks return.
async fn all<Output: 'static>(
    mut tasks: JoinSet<(usize, Result<Output, ConnectError>)>,
    on_unusable: OnUnusable,
) -> Result<Vec<Result<Output, ConnectError>>, ConnectError> {
    let mut results = Vec::with_capacity(tasks.len());
    while let Some((index, result)) = next(&mut tasks).await {
        results.push((index, on_unusable.keep(result)?));
    }
    results.sort_unstable_by_key(|(index, _)| *index);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

/// Returns the output of the next task that ends. A panic in a task goes on in the caller, as it
/// would without tasks. Tasks are cancelled only by dropping the set.
async fn next<Output: 'static>(tasks: &mut JoinSet<Output>) -> Option<Output> {
    match tasks.join_next().await? {
        Ok(output) => Some(output),
        Err(failure) => match failure.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => None,
        },
    }
}
