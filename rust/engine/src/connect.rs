//! Connections before the window: one warm HTTP/1.1 connection a request, be it a blob's or the host's.
//!
//! Name resolution, trust roots, TCP, proxy, TLS and the making of requests happen here, on a
//! tokio current-thread runtime that the caller owns; what is left for the window is to write bytes
//! that exist on a socket that is open, and to read. Inside the window [`Connection::send`] and, for
//! a second attempt, [`Dialer::dial`] may be called, and nothing else of this module that waits.
//!
//! There is no environment variable for the proxy and no redirect: where a request goes is what the
//! caller said.

mod connection;
mod destination;
mod dial;
mod error;
mod proxy;
mod request;
mod tls;

pub use connection::{Connection, RawAnswer, SendFailure};
pub use destination::Destination;
pub use dial::Dialer;
pub use error::ConnectError;
pub use proxy::Proxy;
pub use request::PreparedRequest;
pub use tls::Tls;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use vmsnapshot_core::uri::Scheme;

/// How much of the body of a refusal is kept: the service's are below 1 KiB.
pub const BODY_LIMIT_BYTES: usize = 64 * 1024;
/// How much of the host's answer is kept: it describes every snapshot, in below 1 KiB each.
pub const HOST_BODY_LIMIT_BYTES: usize = 1024 * 1024;

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

/// An open connection, and the way to another one.
#[derive(Debug)]
pub struct WarmConnection {
    /// How to connect again.
    pub dialer: Dialer,
    /// The connection.
    pub connection: Connection,
}

/// Connects to every destination, all in parallel; the answer is in their order.
///
/// `options.proxy` is not looked at: a destination says by itself whether it has one.
///
/// *Blocking*: `options.time_limit`, and the reading of the trust roots. *In the window*: no.
///
/// # Errors
///
/// The first [`ConnectError`]; connections that were made are closed.
pub async fn connect_all(
    destinations: &[Destination],
    options: &ConnectOptions,
) -> Result<Vec<WarmConnection>, ConnectError> {
    // A CA file that nobody needs is still looked at: a wrong one is a mistake to be told.
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

    let mut resolutions = JoinSet::new();
    // Disks of one machine mostly share a server: each is asked for once.
    let mut asked = HashSet::new();
    for destination in destinations {
        let (host, port) = destination.first_hop();
        if asked.insert((host, port)) {
            let (destination, host) = (destination.clone(), host.to_owned());
            resolutions.spawn(async move {
                let resolved = dial::resolve(&host, port, deadline).await;
                (destination, host, port, resolved)
            });
        }
    }
    let mut addresses = HashMap::new();
    while let Some((destination, host, port, resolved)) = next(&mut resolutions).await {
        let resolved = resolved.map_err(|failure| failure.of(&destination, &host))?;
        addresses.insert((host, port), resolved);
    }

    let mut dialers = Vec::with_capacity(destinations.len());
    for destination in destinations {
        let (host, port) = destination.first_hop();
        let resolved = addresses
            .get(&(host.to_owned(), port))
            .cloned()
            .unwrap_or_default();
        dialers.push(Dialer::with_addresses(
            destination.clone(),
            tls.as_ref(),
            resolved,
        )?);
    }
    let mut connections = dial_each(dialers.iter().cloned().enumerate(), deadline).await?;
    connections.sort_unstable_by_key(|(index, _)| *index);
    Ok(dialers
        .into_iter()
        .zip(connections)
        .map(|(dialer, (_, connection))| WarmConnection { dialer, connection })
        .collect())
}

/// Replaces the connections that their servers have closed, all in parallel; says how many.
///
/// *Blocking*: `time_limit`; nothing to speak of when all are open. *In the window*: no.
///
/// # Errors
///
/// The first [`ConnectError`]; what was replaced before it is lost, and stays closed.
pub async fn refresh(
    connections: &mut [WarmConnection],
    time_limit: Duration,
) -> Result<usize, ConnectError> {
    let deadline = Instant::now() + time_limit;
    notice_closes().await;
    let closed = connections
        .iter()
        .enumerate()
        .filter(|(_, warm)| !warm.connection.is_open())
        .map(|(index, warm)| (index, warm.dialer.clone()));
    let replacements = dial_each(closed, deadline).await?;
    let count = replacements.len();
    for (index, connection) in replacements {
        if let Some(warm) = connections.get_mut(index) {
            warm.connection = connection;
        }
    }
    Ok(count)
}

/// Lets the runtime look at its sockets, so that [`Connection::is_open`] says how things are now.
///
/// *In the window*: allowed, of no use.
pub async fn notice_closes() {
    // The runtime asks the kernel when a task yields and nothing else is ready; the connection's
    // own task then runs after us, once to read the end and once more, under TLS, to act on it.
    for _ in 0..4 {
        tokio::task::yield_now().await;
    }
}

async fn dial_each(
    dialers: impl Iterator<Item = (usize, Dialer)>,
    deadline: Instant,
) -> Result<Vec<(usize, Connection)>, ConnectError> {
    let mut dials = JoinSet::new();
    for (index, dialer) in dialers {
        dials.spawn(async move { (index, dialer.dial(deadline).await) });
    }
    let mut connections = Vec::with_capacity(dials.len());
    while let Some((index, dialled)) = next(&mut dials).await {
        connections.push((index, dialled?));
    }
    Ok(connections)
}

/// Returns what the next task ended with. A panic in a task goes on in the caller, as it would
/// without tasks; none is ever cancelled but by dropping the set.
async fn next<Output: 'static>(tasks: &mut JoinSet<Output>) -> Option<Output> {
    match tasks.join_next().await? {
        Ok(output) => Some(output),
        Err(failure) => match failure.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => None,
        },
    }
}
