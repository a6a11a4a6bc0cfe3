//! What can go wrong before the window while connecting to a blob's server or the host.
//!
//! An error names the destination (a blob or the host call) by its URI without the query, and a
//! proxy without its password.

use std::path::PathBuf;

use vmsnapshot_core::error_kind::{ErrorCode, ErrorKind};
use vmsnapshot_core::signatures::Signatures;

/// Why a connection could not be prepared or made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The extra CA file cannot be used.
    #[error("could not use the CA file `{}`: {cause}", path.display())]
    BadCaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// TLS is needed, but there are no trust roots.
    #[error("could not load any trusted certificate of the system: {cause}")]
    NoTrustRoots {
        /// What the system answered.
        cause: String,
    },
    /// The TLS library refused its configuration.
    #[error("could not configure TLS: {cause}")]
    TlsConfiguration {
        /// What the library answered.
        cause: String,
    },
    /// The proxy's URI cannot be used. The error repeats no part of it, because it may hold a
    /// password.
    #[error("could not read the proxy's URI: {cause}")]
    BadProxy {
        /// What is wrong with it.
        cause: &'static str,
    },
    /// The request cannot be written as HTTP.
    #[error("could not prepare the request of {destination}: {cause}")]
    BadRequest {
        /// The name of the `Destination`.
        destination: String,
        /// What the HTTP library answered.
        cause: &'static str,
    },
    /// The name of the server (or the proxy) has no address.
    #[error("could not resolve `{host}` for {destination}: {cause}")]
    ResolveFailed {
        /// The name of the `Destination`.
        destination: String,
        /// The name.
        host: String,
        /// What the resolver answered.
        cause: String,
    },
    /// No address of the server (or the proxy) accepted a connection.
    #[error("could not connect to {address} for {destination}: {cause}")]
    ConnectFailed {
        /// The name of the `Destination`.
        destination: String,
        /// The last address tried, with the number of addresses if there were several.
        address: String,
        /// What the system answered.
        cause: String,
        /// What the reader can do, if it is not the network's fault.
        hint: Option<&'static str>,
    },
    /// The TLS handshake failed.
    #[error("could not set up TLS with {server} for {destination}: {cause}")]
    TlsFailed {
        /// The name of the `Destination`.
        destination: String,
        /// The server's name, and the proxy if there is one.
        server: String,
        /// What went wrong.
        cause: String,
        /// What the reader can do.
        hint: Option<&'static str>,
    },
    /// The proxy did not open a tunnel.
    #[error("could not reach {destination} through the proxy {proxy}: {cause}")]
    ProxyFailed {
        /// The name of the `Destination`.
        destination: String,
        /// The proxy, without name and password.
        proxy: String,
        /// What the proxy answered.
        cause: String,
        /// What the reader can do.
        hint: Option<&'static str>,
    },
    /// The time limit passed.
    #[error("could not connect for {destination} in time: {step} took too long")]
    ConnectTimeout {
        /// The name of the `Destination`.
        destination: String,
        /// The step that took too long.
        step: String,
    },
}

impl ConnectError {
    /// Returns the stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::BadCaFile { .. } => ErrorCode::BadCaFile,
            Self::NoTrustRoots { .. } => ErrorCode::NoTrustRoots,
            Self::TlsConfiguration { .. } => ErrorCode::TlsConfiguration,
            Self::BadProxy { .. } => ErrorCode::BadProxy,
            Self::BadRequest { .. } => ErrorCode::BadRequest,
            Self::ResolveFailed { .. } => ErrorCode::ResolveFailed,
            Self::ConnectFailed { .. } => ErrorCode::ConnectFailed,
            Self::TlsFailed { .. } => ErrorCode::TlsFailed,
            Self::ProxyFailed { .. } => ErrorCode::ProxyFailed,
            Self::ConnectTimeout { .. } => ErrorCode::ConnectTimeout,
        }
    }

    /// Returns what has to change for the next try to succeed.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::BadCaFile { .. } | Self::BadProxy { .. } | Self::BadRequest { .. } => {
                ErrorKind::Arguments
            }
            Self::NoTrustRoots { .. } | Self::TlsConfiguration { .. } => ErrorKind::System,
            Self::ResolveFailed { .. }
            | Self::ConnectFailed { .. }
            | Self::TlsFailed { .. }
            | Self::ProxyFailed { .. }
            | Self::ConnectTimeout { .. } => ErrorKind::Network,
        }
    }

    /// Returns whether another try may succeed although nothing changes on this machine, because
    /// the network or the other end was at fault. A failed handshake does not count: a bad
    /// certificate stays bad.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::ResolveFailed { .. }
            | Self::ConnectFailed { .. }
            | Self::ProxyFailed { .. }
            | Self::ConnectTimeout { .. } => true,
            Self::BadCaFile { .. }
            | Self::NoTrustRoots { .. }
            | Self::TlsConfiguration { .. }
            | Self::BadProxy { .. }
            | Self::BadRequest { .. }
            | Self::TlsFailed { .. } => false,
        }
    }

    /// Returns the step that failed and why, without the name of the destination.
    pub(super) fn cause(&self) -> String {
        match self {
            Self::ResolveFailed { host, cause, .. } => {
                format!("could not resolve `{host}`: {cause}")
            }
            Self::ConnectFailed { address, cause, .. } => {
                format!("could not connect to {address}: {cause}")
            }
            Self::TlsFailed { server, cause, .. } => {
                format!("could not set up TLS with {server}: {cause}")
            }
            Self::ProxyFailed { cause, .. } => cause.clone(),
            Self::ConnectTimeout { step, .. } => format!("{step} took too long"),
            Self::BadCaFile { .. }
            | Self::NoTrustRoots { .. }
            | Self::TlsConfiguration { .. }
            | Self::BadProxy { .. }
            | Self::BadRequest { .. } => self.to_string(),
        }
    }

    /// Removes `signatures` from the words of the other end: a proxy's answer, the names in a
    /// certificate.
    #[must_use]
    pub(crate) fn without(mut self, signatures: &Signatures) -> Self {
        match &mut self {
            Self::ResolveFailed { cause, .. }
            | Self::ConnectFailed { cause, .. }
            | Self::TlsFailed { cause, .. }
            | Self::ProxyFailed { cause, .. } => *cause = signatures.removed_from(cause),
            Self::ConnectTimeout { .. }
            | Self::BadCaFile { .. }
            | Self::NoTrustRoots { .. }
            | Self::TlsConfiguration { .. }
            | Self::BadProxy { .. }
            | Self::BadRequest { .. } => {}
        }
        self
    }

    /// Returns what the reader can do about it, if anything.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::BadCaFile { .. } => Some("give a PEM file with at least one CERTIFICATE section"),
            Self::NoTrustRoots { .. } => {
                Some("install the system's trust store (mostly the package ca-certificates)")
            }
            Self::BadProxy { .. } => {
                Some("give http://HOST:PORT or http://USER:PASSWORD@HOST:PORT")
            }
            Self::TlsFailed { hint, .. } | Self::ProxyFailed { hint, .. } => *hint,
            Self::ResolveFailed { .. } => Some("check the name, and the name servers of this machine"),
            Self::ConnectFailed { hint, .. } => hint.or(Some(
                "check host and port, this machine's routes, and the firewalls in between",
            )),
            Self::ConnectTimeout { .. } => Some(
                "a firewall or a network security group in between may drop the packets; otherwise \
                 allow more time",
            ),
            Self::TlsConfiguration { .. } | Self::BadRequest { .. } => None,
        }
    }
}
