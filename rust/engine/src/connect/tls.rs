//! The trust roots and protocol versions of TLS. They are loaded once, before the window, because
//! loading the system's roots takes tens of milliseconds.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use rustls_native_certs::ErrorKind;
use tokio_rustls::TlsConnector;
use vmsnapshot_sys::errno::cause_text;

use super::ca_file;
use super::error::ConnectError;
use super::explain;

/// The TLS side of a client: versions 1.2 and 1.3, the system's roots, and an extra CA file.
#[derive(Clone)]
pub struct Tls {
    pub(super) connector: TlsConnector,
}

impl Tls {
    /// Loads the system's trust roots and those of `ca_file`.
    ///
    /// *Blocking*: reads files. *In the window*: no.
    ///
    /// # Errors
    ///
    /// [`ConnectError::BadCaFile`], [`ConnectError::NoTrustRoots`] or
    /// [`ConnectError::TlsConfiguration`].
    pub fn new(ca_file: Option<&Path>) -> Result<Self, ConnectError> {
        let mut roots = RootCertStore::empty();
        let _ = roots.add_parsable_certificates(trust_roots(ca_file)?);
        // The provider is named here and not taken from the process, because another library in the
        // same process may have installed its own.
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
                .map_err(|error| ConnectError::TlsConfiguration {
                    cause: explain::tls(&error).text,
                })?
                .with_root_certificates(roots)
                .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // This is the library's default. It is stated because the window depends on it: a second
        // dial resumes a session in memory and exchanges no certificates.
        config.resumption = rustls::client::Resumption::in_memory_sessions(256);
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
        })
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Tls(...)")
    }
}

/// Returns the certificates that a client trusts: the system's, and those of `ca_file`.
///
/// `SSL_CERT_FILE` and `SSL_CERT_DIR` replace the system's.
///
/// *Blocking*: reads files. *In the window*: no.
///
/// # Errors
///
/// [`ConnectError::BadCaFile`] or [`ConnectError::NoTrustRoots`].
pub fn trust_roots(ca_file: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    let mut roots = match ca_file {
        Some(path) => ca_file::read(path)?,
        None => Vec::new(),
    };
    let system = rustls_native_certs::load_native_certs();
    // Systems have some roots that no library can read. Only the lack of any root is an error.
    roots.extend(system.certs.into_iter().filter(ca_file::is_readable));
    if roots.is_empty() {
        let cause = match system.errors.first().map(|error| &error.kind) {
            Some(ErrorKind::Io { inner, path }) => {
                format!("{} at `{}`", cause_text(inner), path.display())
            }
            Some(_) => "one of its files is not well-formed PEM".to_owned(),
            None => "it has none".to_owned(),
        };
        return Err(ConnectError::NoTrustRoots { cause });
    }
    Ok(roots)
}
