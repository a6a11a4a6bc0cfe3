//! The file of `--ca-file`: which certificates it has, or why it cannot be used.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::CertificateDer;
use vmsnapshot_sys::errno::cause_text;

use super::error::ConnectError;

/// The longest file that is read. The certificates of all public authorities have some 200 KiB.
const LIMIT_BYTES: u64 = 4 << 20;

/// Returns the certificates in the file at `path`.
///
/// *Blocking*: reads a regular file. *In the window*: no.
///
/// # Errors
///
/// [`ConnectError::BadCaFile`].
pub(super) fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    certificates(path).map_err(|cause| ConnectError::BadCaFile {
        path: path.to_owned(),
        cause,
    })
}

/// Whether TLS can use `certificate` as a trust root.
pub(super) fn is_readable(certificate: &CertificateDer<'_>) -> bool {
    webpki::anchor_from_trusted_cert(certificate).is_ok()
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let content = content(path)?;
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&content) {
        // The library's text repeats the file, which may be a private key given by mistake.
        let certificate = certificate.map_err(|_| "it is not well-formed PEM".to_owned())?;
        if !is_readable(&certificate) {
            let number = certificates.len() + 1;
            return Err(format!("certificate {number} is malformed"));
        }
        certificates.push(certificate);
    }
    if certificates.is_empty() {
        return Err("it holds no certificate".to_owned());
    }
    Ok(certificates)
}

/// Reads a regular file. A named pipe or a terminal would make the run wait, and `/dev/zero` has no end.
fn content(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: io::Error| cause_text(&error);
    // Looked at before it is opened, because opening a device can have an effect.
    expect_regular(&path.metadata().map_err(failed)?)?;
    // Not blocking, because a named pipe may have taken its place.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file =
        rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
    let file = File::from(file);
    expect_regular(&file.metadata().map_err(failed)?)?;
    let mut content = Vec::new();
    file.take(LIMIT_BYTES + 1)
        .read_to_end(&mut content)
        .map_err(failed)?;
    if content.len() as u64 > LIMIT_BYTES {
        return Err(format!("it is longer than {LIMIT_BYTES} bytes"));
    }
    Ok(content)
}

fn expect_regular(metadata: &Metadata) -> Result<(), String> {
    match (metadata.is_file(), metadata.is_dir()) {
        (true, _) => Ok(()),
        (_, true) => Err("it is a directory".to_owned()),
        _ => Err("it is not a regular file".to_owned()),
    }
}
