//! What can go wrong before the window while connecting to a blob's server or the host.
//!
//! An error names the destination (a blob or the host call) by its URI without the query, and a
//! proxy without its password.

use std::io;
use std::path::PathBuf;

use rustls::CertificateError;
use vmsnapshot_core::error_kind::ErrorKind;

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
    #[error("could not configure TLS")]
    TlsConfiguration(#[source] rustls::Error),
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
    },
    /// The TLS handshake failed.
    #[error("could not set up TLS with `{host}` for {destination}: {cause}")]
    TlsFailed {
        /// The name of the `Destination`.
        destination: String,
        /// The server's name.
        host: String,
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
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadCaFile { .. } => "bad-ca-file",
            Self::NoTrustRoots { .. } => "no-trust-roots",
            Self::TlsConfiguration(_) => "tls-configuration",
            Self::BadProxy { .. } => "bad-proxy",
            Self::BadRequest { .. } => "bad-request",
            Self::ResolveFailed { .. } => "resolve-failed",
            Self::ConnectFailed { .. } => "connect-failed",
            Self::TlsFailed { .. } => "tls-failed",
            Self::ProxyFailed { .. } => "proxy-failed",
            Self::ConnectTimeout { .. } => "connect-timeout",
        }
    }

    /// Returns what has to change for the next try to succeed.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::BadCaFile { .. } | Self::BadProxy { .. } | Self::BadRequest { .. } => {
                ErrorKind::Arguments
            }
            Self::NoTrustRoots { .. } | Self::TlsConfiguration(_) => ErrorKind::System,
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
            | Self::TlsConfiguration(_)
            | Self::BadProxy { .. }
            | Self::BadRequest { .. }
            | Self::TlsFailed { .. } => false,
        }
    }

    /// Returns what the reader can do about it, if anything.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::BadCaFile { .. } => Some("give a PEM file with at least one CERTIFICATE section"),
            Self::NoTrustRoots { .. } => {
                Some("install the system's CA certificates, or name a file with --ca-file")
            }
            Self::BadProxy { .. } => {
                Some("give http://HOST:PORT or http://USER:PASSWORD@HOST:PORT")
            }
            Self::TlsFailed { hint, .. } => *hint,
            Self::TlsConfiguration(_)
            | Self::BadRequest { .. }
            | Self::ResolveFailed { .. }
            | Self::ConnectFailed { .. }
            | Self::ProxyFailed { .. }
            | Self::ConnectTimeout { .. } => None,
        }
    }
}

/// Explains a failed handshake to the operator. Returns the cause and a hint.
pub(super) fn explain_handshake(error: &io::Error) -> (String, Option<&'static str>) {
    let tls_error = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls_error {
        Some(rustls::Error::InvalidCertificate(certificate)) => explain_certificate(certificate),
        Some(rustls::Error::InvalidMessage(_)) => (
            "the server's answer is not TLS".to_owned(),
            Some("check scheme and port: the server may speak plain HTTP there"),
        ),
        Some(other) => (other.to_string(), None),
        None if error.kind() == io::ErrorKind::UnexpectedEof => (
            "the server closed the connection during the handshake".to_owned(),
            None,
        ),
        None => (error.to_string(), None),
    }
}

fn explain_certificate(error: &CertificateError) -> (String, Option<&'static str>) {
    const CLOCK: Option<&str> =
        Some("check this machine's clock, or renew the server's certificate");
    match error {
        CertificateError::UnknownIssuer => (
            "the issuer of its certificate is unknown".to_owned(),
            Some("name the file with the issuer's certificate with --ca-file"),
        ),
        CertificateError::BadSignature => (
            "its certificate was not signed by the trusted issuer of that name".to_owned(),
            Some("name the file with the issuer's current certificate with --ca-file"),
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            ("its certificate has expired".to_owned(), CLOCK)
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            ("its certificate is not valid yet".to_owned(), CLOCK)
        }
        CertificateError::NotValidForName => {
            ("its certificate is for another name".to_owned(), None)
        }
        CertificateError::NotValidForNameContext { presented, .. } => (
            format!(
                "its certificate is for another name ({})",
                presented.join(", ")
            ),
            Some("use the name that the certificate is for"),
        ),
        other => (format!("its certificate cannot be used: {other}"), None),
    }
}
