//! The trust roots and protocol versions of TLS. They are loaded once, before the window, because
//! loading the system's roots takes tens of milliseconds.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use super::error::ConnectError;

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
        if let Some(path) = ca_file {
            add_file(&mut roots, path)?;
        }
        let system = rustls_native_certs::load_native_certs();
        // Systems have some roots that no library can read. Only the lack of any root is an error.
        let _ = roots.add_parsable_certificates(system.certs);
        if roots.is_empty() {
            let cause = system
                .errors
                .first()
                .map_or_else(|| "it has none".to_owned(), ToString::to_string);
            return Err(ConnectError::NoTrustRoots { cause });
        }
        // The provider is named here and not taken from the process, because another library in the
        // same process may have installed its own.
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
                .map_err(ConnectError::TlsConfiguration)?
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

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), ConnectError> {
    let bad = |cause: String| ConnectError::BadCaFile {
        path: path.to_owned(),
        cause,
    };
    let explain = |error: pem::Error| {
        bad(match error {
            pem::Error::Io(error) => error.to_string(),
            // The library's text repeats the file, which may be a private key given by mistake.
            _ => "it is not well-formed PEM".to_owned(),
        })
    };
    let mut count = 0;
    for certificate in CertificateDer::pem_file_iter(path).map_err(explain)? {
        let certificate = certificate.map_err(explain)?;
        count += 1;
        roots
            .add(certificate)
            .map_err(|error| bad(format!("certificate {count} cannot be read: {error}")))?;
    }
    if count == 0 {
        return Err(bad("it holds no certificate".to_owned()));
    }
    Ok(())
}
