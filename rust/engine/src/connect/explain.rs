//! Says in words why a connection failed, from the errors of the system, rustls, webpki and hyper.
//!
//! The libraries print most of their errors as Rust's `Debug` does. None of that text leaves this
//! file. Every match is exhaustive as far as the libraries allow. Their enums may grow, so each
//! match ends with words that hold for every error.

use std::error::Error as _;
use std::io;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, InvalidMessage, PeerIncompatible};
use time::format_description::well_known::Rfc3339;
use time::OffsetDateTime;
use vmsnapshot_sys::errno::cause_text;

use super::metered::Exceeded;

/// Why something failed: a part of a sentence, and what the reader can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cause {
    pub(super) text: String,
    pub(super) hint: Option<&'static str>,
    /// Whether the server refused this client with an alert. It will refuse it again.
    pub(super) is_refusal: bool,
}

const CLOCK: &str = "check this machine's clock, or renew the server's certificate";
const ISSUER: &str =
    "add the issuer's certificate to the system's trust store, and let the server send its \
    intermediate certificates";
const CERTIFICATE: &str = "replace the server's certificate";
const CIPHERS: &str =
    "allow TLS 1.3, or TLS 1.2 with ECDHE and AES-GCM or CHACHA20-POLY1305, on the \
    server or the device in between";
const VERSIONS: &str = "allow TLS 1.2 or 1.3 on the server or the device in between";
const CLIENT_CERTIFICATE: &str =
    "vmsnapshot has no client certificate: let the server or the device \
    in between not ask for one";
const NOT_TLS: &str = "check scheme and port: the server may speak plain HTTP there";
const IN_BETWEEN: &str =
    "look for a proxy or a firewall in between that changes or ends connections";

pub(super) fn because(text: impl Into<String>, hint: &'static str) -> Cause {
    Cause {
        text: text.into(),
        hint: Some(hint),
        is_refusal: false,
    }
}

pub(super) fn only(text: impl Into<String>) -> Cause {
    Cause {
        text: text.into(),
        hint: None,
        is_refusal: false,
    }
}

/// Explains a failed handshake.
pub(super) fn handshake(error: &io::Error) -> Cause {
    match of_tls(error) {
        Some(error) => tls(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => because(
            "the server closed the connection during the handshake",
            IN_BETWEEN,
        ),
        None if error.kind() == io::ErrorKind::ConnectionReset => because(
            "the server reset the connection during the handshake",
            IN_BETWEEN,
        ),
        None => of_system(error),
    }
}

/// Explains why a connection ended that no request was waiting on.
pub(super) fn idle(error: &hyper::Error) -> Cause {
    // hyper has no name for the last case. Its own text says that a message was unexpected.
    let is_named = error.source().is_some()
        || error.is_incomplete_message()
        || error.is_canceled()
        || error.is_closed()
        || error.is_timeout()
        || error.is_parse();
    if is_named {
        connection(error)
    } else {
        because("the server sent an answer before the request", IN_BETWEEN)
    }
}

/// Explains why a connection ended, or why its answer cannot be read.
pub(super) fn connection(error: &hyper::Error) -> Cause {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(error) = inner.downcast_ref::<io::Error>() {
            return match of_tls(error) {
                Some(error) => tls(error),
                // rustls reports an end without its closing message in a long text of its own.
                None if error.kind() == io::ErrorKind::UnexpectedEof => {
                    only("the server closed the connection")
                }
                None => of_system(error),
            };
        }
        source = inner.source();
    }
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        only("the server closed the connection")
    } else if error.is_timeout() {
        only("it took too long")
    } else if error.is_parse() {
        // hyper's own texts are words: "invalid HTTP version parsed".
        only(format!(
            "{error}; the server may speak TLS or another protocol on this port"
        ))
    } else {
        only(error.to_string())
    }
}

/// Explains an error that is not of TLS: the system's, or ours if the server sent too much.
fn of_system(error: &io::Error) -> Cause {
    match error.get_ref() {
        Some(inner) if inner.is::<Exceeded>() => because(inner.to_string(), IN_BETWEEN),
        _ => only(cause_text(error)),
    }
}

fn of_tls(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref::<rustls::Error>()
}

/// Explains an error of rustls.
pub(super) fn tls(error: &rustls::Error) -> Cause {
    use rustls::Error;
    match error {
        Error::InvalidCertificate(error) => certificate(error),
        Error::AlertReceived(alert) => received_alert(*alert),
        Error::InvalidMessage(message) => invalid_message(message),
        Error::PeerIncompatible(why) => incompatible(why),
        Error::PeerMisbehaved(_)
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. } => {
            because("the server does not follow the TLS protocol", IN_BETWEEN)
        }
        Error::DecryptError => because(
            "a TLS message of the server cannot be decrypted",
            IN_BETWEEN,
        ),
        Error::PeerSentOversizedRecord => {
            because("a TLS message of the server is too long", IN_BETWEEN)
        }
        Error::NoCertificatesPresented => because("the server sent no certificate", CERTIFICATE),
        Error::NoApplicationProtocol => only("the server does not offer HTTP/1.1"),
        Error::UnsupportedNameType => only("no certificate can be for such a name"),
        Error::InvalidCertRevocationList(_) => {
            only("a list of revoked certificates cannot be read")
        }
        Error::FailedToGetCurrentTime => because("this machine's time cannot be read", CLOCK),
        Error::FailedToGetRandomBytes => only("the system gave no random bytes"),
        Error::HandshakeNotComplete => only("the handshake did not complete"),
        Error::EncryptError
        | Error::BadMaxFragmentSize
        | Error::InvalidEncryptedClientHello(_)
        | Error::InconsistentKeys(_)
        | Error::General(_)
        | Error::Other(_) => only("the TLS library reported an internal error"),
        _ => only("TLS failed for a reason that has no words here"),
    }
}

fn invalid_message(message: &InvalidMessage) -> Cause {
    match message {
        // The first bytes of another protocol, read as a TLS message.
        InvalidMessage::InvalidContentType
        | InvalidMessage::UnknownProtocolVersion
        | InvalidMessage::InvalidEmptyPayload
        | InvalidMessage::MessageTooLarge => because("the server's answer is not TLS", NOT_TLS),
        InvalidMessage::CertificatePayloadTooLarge | InvalidMessage::HandshakePayloadTooLarge => {
            because(
                "the server's certificates are longer than 64 KiB",
                CERTIFICATE,
            )
        }
        InvalidMessage::UnsupportedCurveType
        | InvalidMessage::UnsupportedKeyExchangeAlgorithm(_)
        | InvalidMessage::MissingKeyExchange
        | InvalidMessage::InvalidDhParams
        | InvalidMessage::NoSignatureSchemes
        | InvalidMessage::UnsupportedCompression => because(
            "the server chose a key exchange or a signature that is not supported",
            CIPHERS,
        ),
        InvalidMessage::InvalidCcs
        | InvalidMessage::InvalidCertificateStatusType
        | InvalidMessage::InvalidCertRequest
        | InvalidMessage::InvalidKeyUpdate
        | InvalidMessage::InvalidServerName
        | InvalidMessage::MessageTooShort
        | InvalidMessage::MissingData(_)
        | InvalidMessage::TrailingData(_)
        | InvalidMessage::UnexpectedMessage(_)
        | InvalidMessage::EmptyTicketValue
        | InvalidMessage::IllegalEmptyList(_)
        | InvalidMessage::IllegalEmptyValue
        | InvalidMessage::DuplicateExtension(_)
        | InvalidMessage::PreSharedKeyIsNotFinalExtension
        | InvalidMessage::UnknownHelloRetryRequestExtension
        | InvalidMessage::UnknownCertificateExtension
        | _ => because("the server sent a malformed TLS message", IN_BETWEEN),
    }
}

fn incompatible(why: &PeerIncompatible) -> Cause {
    match why {
        PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
        | PeerIncompatible::SupportedVersionsExtensionRequired
        | PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::Tls13RequiredForQuic => {
            because("the server offers neither TLS 1.2 nor TLS 1.3", VERSIONS)
        }
        PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon => {
            because("the server asks for a client certificate", CLIENT_CERTIFICATE)
        }
        PeerIncompatible::NoCipherSuitesInCommon
        | PeerIncompatible::EcPointsExtensionRequired
        | PeerIncompatible::KeyShareExtensionRequired
        | PeerIncompatible::NamedGroupsExtensionRequired
        | PeerIncompatible::NoEcPointFormatsInCommon
        | PeerIncompatible::NoKxGroupsInCommon
        | PeerIncompatible::NoSignatureSchemesInCommon
        | PeerIncompatible::NullCompressionRequired
        | PeerIncompatible::SignatureAlgorithmsExtensionRequired
        | PeerIncompatible::UncompressedEcPointsRequired => because(
            "the server supports no cipher suite, key exchange or signature that vmsnapshot supports",
            CIPHERS,
        ),
        PeerIncompatible::ExtendedMasterSecretExtensionRequired
        | PeerIncompatible::IncorrectCertificateTypeExtension
        | PeerIncompatible::ServerSentHelloRetryRequestWithUnknownExtension
        | PeerIncompatible::UnsolicitedCertificateTypeExtension
        | PeerIncompatible::ServerRejectedEncryptedClientHello(_)
        | _ => because("the server's TLS lacks something that is required", CIPHERS),
    }
}

/// Explains an alert of the server. The name in parentheses is that of the IANA registry, which
/// people search for.
fn received_alert(alert: AlertDescription) -> Cause {
    use AlertDescription as Alert;
    let (name, meaning, hint) = match alert {
        Alert::HandshakeFailure => (
            "handshake_failure",
            "it supports no cipher suite, key exchange or signature that vmsnapshot supports, or \
             demands a client certificate",
            Some(CIPHERS),
        ),
        Alert::InsufficientSecurity => (
            "insufficient_security",
            "it demands stronger cipher suites than vmsnapshot supports",
            Some(CIPHERS),
        ),
        Alert::ProtocolVersion => (
            "protocol_version",
            "it offers neither TLS 1.2 nor TLS 1.3",
            Some(VERSIONS),
        ),
        Alert::InappropriateFallback => (
            "inappropriate_fallback",
            "it takes this for a forced older version of TLS",
            Some(VERSIONS),
        ),
        Alert::CertificateRequired => (
            "certificate_required",
            "it demands a client certificate",
            Some(CLIENT_CERTIFICATE),
        ),
        Alert::NoCertificate => (
            "no_certificate",
            "it demands a client certificate",
            Some(CLIENT_CERTIFICATE),
        ),
        Alert::BadCertificate => (
            "bad_certificate",
            "it does not accept the missing client certificate",
            Some(CLIENT_CERTIFICATE),
        ),
        Alert::UnsupportedCertificate => (
            "unsupported_certificate",
            "it does not accept the client certificate",
            Some(CLIENT_CERTIFICATE),
        ),
        Alert::CertificateRevoked => (
            "certificate_revoked",
            "it says that a certificate is revoked",
            Some(CERTIFICATE),
        ),
        Alert::CertificateExpired => (
            "certificate_expired",
            "it says that a certificate has expired",
            Some(CLOCK),
        ),
        Alert::CertificateUnknown => (
            "certificate_unknown",
            "it does not accept the client certificate",
            Some(CLIENT_CERTIFICATE),
        ),
        Alert::UnknownCA => (
            "unknown_ca",
            "it does not know the issuer of a certificate",
            Some(ISSUER),
        ),
        Alert::CertificateUnobtainable => (
            "certificate_unobtainable",
            "it cannot fetch a certificate",
            Some(CERTIFICATE),
        ),
        Alert::BadCertificateStatusResponse => (
            "bad_certificate_status_response",
            "the status of a certificate is not valid",
            Some(CERTIFICATE),
        ),
        Alert::BadCertificateHashValue => (
            "bad_certificate_hash_value",
            "the hash of a certificate is not valid",
            Some(CERTIFICATE),
        ),
        Alert::AccessDenied => (
            "access_denied",
            "it refuses this client",
            Some(
                "ask who operates the server or the device in between why it refuses this machine",
            ),
        ),
        Alert::UnrecognisedName => (
            "unrecognized_name",
            "it has no certificate for this name",
            Some("check the host name, and that it leads to the right server"),
        ),
        Alert::NoApplicationProtocol => (
            "no_application_protocol",
            "it does not offer HTTP/1.1",
            None,
        ),
        Alert::InternalError => (
            "internal_error",
            "it has an internal error",
            Some("try again; if it stays, look at the server's log"),
        ),
        Alert::UserCanceled => ("user_canceled", "it gave up", Some(IN_BETWEEN)),
        Alert::CloseNotify => ("close_notify", "it closed the connection", Some(IN_BETWEEN)),
        Alert::UnexpectedMessage => ("unexpected_message", NOT_UNDERSTOOD, Some(IN_BETWEEN)),
        Alert::BadRecordMac => ("bad_record_mac", DAMAGED, Some(IN_BETWEEN)),
        Alert::DecryptionFailed => ("decryption_failed", DAMAGED, Some(IN_BETWEEN)),
        Alert::DecryptError => ("decrypt_error", DAMAGED, Some(IN_BETWEEN)),
        Alert::RecordOverflow => ("record_overflow", DAMAGED, Some(IN_BETWEEN)),
        Alert::DecompressionFailure => ("decompression_failure", DAMAGED, Some(IN_BETWEEN)),
        Alert::DecodeError => ("decode_error", NOT_UNDERSTOOD, Some(IN_BETWEEN)),
        Alert::IllegalParameter => ("illegal_parameter", NOT_UNDERSTOOD, Some(IN_BETWEEN)),
        Alert::MissingExtension => ("missing_extension", NOT_UNDERSTOOD, Some(IN_BETWEEN)),
        Alert::UnsupportedExtension => ("unsupported_extension", NOT_UNDERSTOOD, Some(IN_BETWEEN)),
        Alert::NoRenegotiation => ("no_renegotiation", NOT_UNDERSTOOD, Some(IN_BETWEEN)),
        Alert::ExportRestriction => ("export_restriction", NOT_UNDERSTOOD, Some(CIPHERS)),
        Alert::UnknownPSKIdentity => ("unknown_psk_identity", NOT_UNDERSTOOD, Some(IN_BETWEEN)),
        Alert::EncryptedClientHelloRequired => ("ech_required", NOT_UNDERSTOOD, None),
        Alert::Unknown(_) | _ => {
            return Cause {
                text: format!("the server refused TLS with alert {}", u8::from(alert)),
                hint: Some(IN_BETWEEN),
                is_refusal: false,
            }
        }
    };
    Cause {
        text: format!("the server refused TLS: {meaning} (alert {name})"),
        hint,
        is_refusal: hint == Some(CLIENT_CERTIFICATE) || alert == Alert::AccessDenied,
    }
}

const NOT_UNDERSTOOD: &str = "it did not understand a message";
const DAMAGED: &str = "a message reached it damaged";

fn certificate(error: &CertificateError) -> Cause {
    match error {
        CertificateError::UnknownIssuer => {
            because("the issuer of its certificate is unknown", ISSUER)
        }
        CertificateError::BadSignature => because(
            "the signature of its certificate does not match the trusted issuer of that name, or a \
             key is weaker than RSA with 2048 bits",
            "add the issuer's current certificate to the system's trust store, or replace the \
             server's certificate",
        ),
        CertificateError::Expired => because("its certificate has expired", CLOCK),
        CertificateError::ExpiredContext { not_after, .. } => because(
            format!(
                "its certificate, or one of its issuers, expired at {}",
                utc(*not_after)
            ),
            CLOCK,
        ),
        CertificateError::NotValidYet => because("its certificate is not valid yet", CLOCK),
        CertificateError::NotValidYetContext { not_before, .. } => because(
            format!(
                "its certificate, or one of its issuers, is not valid before {}",
                utc(*not_before)
            ),
            CLOCK,
        ),
        CertificateError::NotValidForName => because("its certificate is for another name", NAME),
        CertificateError::NotValidForNameContext { presented, .. } => because(
            match presented.as_slice() {
                [] => "its certificate is for no name (it has no subject alternative name)".to_owned(),
                names => format!("its certificate is for another name ({})", listed(names)),
            },
            NAME,
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => because(
            "its certificate does not allow to authenticate a server (extended key usage)",
            CERTIFICATE,
        ),
        CertificateError::BadEncoding => because("its certificate cannot be read", CERTIFICATE),
        CertificateError::Revoked => because("its certificate is revoked", CERTIFICATE),
        CertificateError::UnhandledCriticalExtension => because(
            "its certificate has a critical extension that is not supported",
            CERTIFICATE,
        ),
        CertificateError::UnknownRevocationStatus
        | CertificateError::ExpiredRevocationList
        | CertificateError::ExpiredRevocationListContext { .. } => {
            only("it is not known whether its certificate is revoked")
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. } => because(
            "its certificate is signed with an algorithm that is not supported, such as SHA-1",
            CERTIFICATE,
        ),
        CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => because(
            "a key of its certificates is not supported with their signatures",
            CERTIFICATE,
        ),
        CertificateError::InvalidOcspResponse => {
            because("the status of its certificate is not valid", CERTIFICATE)
        }
        CertificateError::ApplicationVerificationFailure => only("its certificate is refused"),
        CertificateError::Other(error) => match error.0.downcast_ref::<webpki::Error>() {
            Some(error) => chain(error),
            None => because(CANNOT_BE_USED, CERTIFICATE),
        },
        // This includes deprecated names of the errors above.
        _ => because(CANNOT_BE_USED, CERTIFICATE),
    }
}

const NAME: &str = "use the name that the certificate is for";
const CANNOT_BE_USED: &str = "its certificate cannot be used";

/// Explains the errors of webpki that rustls passes on without a name of its own.
fn chain(error: &webpki::Error) -> Cause {
    use webpki::Error;
    match error {
        Error::CaUsedAsEndEntity => because(
            "its certificate is that of an authority (CA:TRUE) and not of a server",
            "issue a server certificate with CA:FALSE; `openssl req -x509` needs `-addext \
             basicConstraints=critical,CA:FALSE`",
        ),
        Error::EndEntityUsedAsCa => because(
            "its certificate was issued by a certificate that is not an authority's (CA:FALSE)",
            CERTIFICATE,
        ),
        Error::NameConstraintViolation => because(
            "its issuer may not issue certificates for this name (name constraints)",
            CERTIFICATE,
        ),
        Error::MalformedNameConstraint
        | Error::InvalidNetworkMaskConstraint
        | Error::MaximumNameConstraintComparisonsExceeded => because(
            "the name constraints of its issuer cannot be read",
            CERTIFICATE,
        ),
        Error::PathLenConstraintViolated => because(
            "its chain is longer than an issuer allows (path length)",
            CERTIFICATE,
        ),
        Error::MaximumPathBuildCallsExceeded
        | Error::MaximumPathDepthExceeded
        | Error::MaximumSignatureChecksExceeded => {
            because("its certificates form too long a chain", CERTIFICATE)
        }
        Error::UnsupportedCertVersion => because(
            "its certificate, or one of its issuers, is not of X.509 version 3",
            CERTIFICATE,
        ),
        Error::SignatureAlgorithmMismatch => because(
            "its certificate names two different signature algorithms",
            CERTIFICATE,
        ),
        Error::EmptyEkuExtension => because(
            "its certificate allows no use at all (empty extended key usage)",
            CERTIFICATE,
        ),
        Error::MalformedExtensions
        | Error::ExtensionValueInvalid
        | Error::MalformedDnsIdentifier
        | Error::InvalidSerialNumber => because(
            "an extension, a name or the serial number of its certificate is malformed",
            CERTIFICATE,
        ),
        Error::UnsupportedCriticalExtension => because(
            "its certificate has a critical extension that is not supported",
            CERTIFICATE,
        ),
        Error::CertDistrusted => because("its certificate is distrusted", CERTIFICATE),
        // rustls has names for the other errors, except some of revocation lists, which are not
        // used.
        _ => because(CANNOT_BE_USED, CERTIFICATE),
    }
}

fn utc(time: UnixTime) -> String {
    i64::try_from(time.as_secs())
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|instant| instant.format(&Rfc3339).ok())
        .unwrap_or_else(|| "a time out of range".to_owned())
}

/// Lists the first names of a certificate. It may have hundreds.
///
/// webpki gives each as `DnsName("a.example")` or `IpAddress(192.0.2.1)`.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let mut text = names
        .iter()
        .take(SHOWN)
        .map(|name| match name.split_once('(') {
            Some((_, name)) => name.trim_matches(['"', ')']),
            None => name,
        })
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > SHOWN {
        text.push_str(", ...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alert_number_has_words_and_not_the_name_of_a_rust_type() {
        for number in 0..=u8::MAX {
            let cause = received_alert(AlertDescription::from(number));
            assert!(
                cause.text.starts_with("the server refused TLS"),
                "{}",
                cause.text
            );
            let debug = format!("{:?}", AlertDescription::from(number));
            assert!(!cause.text.contains(&debug), "{}", cause.text);
        }
    }

    #[test]
    fn names_of_a_certificate_are_listed_without_their_types() {
        let names = ["DnsName(\"a.example\")", "IpAddress(192.0.2.1)"].map(str::to_owned);
        assert_eq!(listed(&names), "a.example, 192.0.2.1");
    }

    #[test]
    fn errors_without_words_of_their_own_do_not_show_the_name_of_a_rust_type() {
        use rustls::{Error, OtherError, PeerMisbehaved};
        for error in [
            Error::PeerMisbehaved(PeerMisbehaved::SelectedUnofferedCipherSuite),
            Error::InvalidMessage(InvalidMessage::InvalidCcs),
            Error::PeerIncompatible(PeerIncompatible::IncorrectCertificateTypeExtension),
            Error::General("Foreign".to_owned()),
            Error::InvalidCertificate(CertificateError::Other(OtherError(std::sync::Arc::new(
                webpki::Error::IssuerNotCrlSigner,
            )))),
        ] {
            let cause = tls(&error).text;
            assert!(
                !cause.split(' ').any(|word| {
                    word.len() > 1
                        && word.chars().any(char::is_lowercase)
                        && word.chars().skip(1).any(char::is_uppercase)
                }),
                "{cause}"
            );
        }
    }
}
