//! The SAS URI of a blob. Its query is a password: no `Debug`, `Display` or error in this file
//! shows it.

use std::fmt;

use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime, UtcOffset};

use super::error::BlobError;
use crate::secret::SecretText;
use crate::uri::{percent_decoded, plain_start, HttpUri, Scheme};

/// How far the start of a SAS may lie ahead of our clock. The service tolerates clock skew too.
pub const START_SKEW: Duration = Duration::minutes(5);

/// The URI of a blob with a shared access signature.
///
/// It has a path and a non-empty `sig=`. Path and query are stored byte for byte, because the
/// signature covers them. Neither `Display` nor `Debug` shows the query.
#[derive(Clone)]
pub struct SasUri(HttpUri);

impl SasUri {
    /// Parses a SAS URI. White space around it is ignored, because some senders put a space in
    /// front.
    ///
    /// # Errors
    ///
    /// [`BlobError::BadUri`] or [`BlobError::UnsignedUri`].
    pub fn parse(text: &str) -> Result<Self, BlobError> {
        let bad = |cause| Err(BlobError::BadUri { cause });
        let uri = match HttpUri::parse(text) {
            Ok(uri) => Self(uri),
            Err(cause) => return bad(cause),
        };
        if uri.path().len() < 2 {
            return bad("it has no path, so it names no blob");
        }
        if uri.field("sig").is_none_or(str::is_empty) {
            return Err(BlobError::UnsignedUri {
                // What was meant as its SAS may be in its path.
                blob: plain_start(text),
            });
        }
        if uri.field("comp").is_some() || uri.field("snapshot").is_some() {
            return bad("its query already has a `comp=` or `snapshot=`");
        }
        Ok(uri)
    }

    /// Returns the URI to connect to.
    #[must_use]
    pub fn as_http(&self) -> &HttpUri {
        &self.0
    }

    /// Returns the scheme.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.0.scheme()
    }

    /// Returns the path as it was given.
    #[must_use]
    pub fn path(&self) -> &str {
        self.0.path()
    }

    /// Returns the URI without its query. This part may be printed.
    #[must_use]
    pub fn uri_without_query(&self) -> &str {
        self.0.uri_without_query()
    }

    /// Returns the request target of Snapshot Blob: path, `?`, query, `&comp=snapshot`.
    #[must_use]
    pub fn snapshot_target(&self) -> SecretText {
        SecretText::new(format!("{}?{}&comp=snapshot", self.path(), self.0.query()))
    }

    /// Returns the URI of a snapshot of this blob, without the SAS.
    #[must_use]
    pub fn snapshot_uri(&self, snapshot: &str) -> String {
        format!("{}?snapshot={snapshot}", self.uri_without_query())
    }

    /// Checks whether the SAS permits a snapshot at `now`, as far as its text shows.
    ///
    /// A stored access policy (`si=`) may set the same fields. Only the service knows those.
    ///
    /// # Errors
    ///
    /// [`BlobError::BadSas`], [`BlobError::ExpiredSas`], [`BlobError::SasNotYetValid`] or
    /// [`BlobError::SasPermission`].
    pub fn check(&self, now: OffsetDateTime) -> Result<(), BlobError> {
        if let Some(expiry) = self.instant("se")? {
            if expiry <= now {
                return Err(BlobError::ExpiredSas {
                    blob: self.to_string(),
                    at: utc_text(expiry),
                });
            }
        }
        if let Some(start) = self.instant("st")? {
            if start - now > START_SKEW {
                return Err(BlobError::SasNotYetValid {
                    blob: self.to_string(),
                    at: utc_text(start),
                });
            }
        }
        match self.field("sp") {
            // Measured: w, c and rw answer 201; r, a and rl answer 403.
            Some(permissions) if !permissions.contains(['w', 'c']) => {
                Err(BlobError::SasPermission {
                    blob: self.to_string(),
                })
            }
            Some(_) | None => Ok(()),
        }
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.0
            .query()
            .split('&')
            .filter_map(|field| field.split_once('='))
            .find_map(|(key, value)| (key == name).then_some(value))
    }

    fn instant(&self, name: &'static str) -> Result<Option<OffsetDateTime>, BlobError> {
        let Some(value) = self.field(name) else {
            return Ok(None);
        };
        percent_decoded(value)
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .and_then(|text| parse_instant(&text))
            .map(Some)
            .ok_or_else(|| BlobError::BadSas {
                blob: self.to_string(),
                field: name,
            })
    }
}

impl fmt::Display for SasUri {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.uri_without_query())
    }
}

impl fmt::Debug for SasUri {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SasUri({}?...)", self.uri_without_query())
    }
}

/// Parses a time of a SAS: a date, which means its first moment, or a date and a time to the
/// minute, second or fraction, with `Z` or an offset.
fn parse_instant(text: &str) -> Option<OffsetDateTime> {
    let text = text.trim();
    let whole = match text.len() {
        10 => format!("{text}T00:00:00Z"),
        // `YYYY-MM-DDThh:mm` has 16 characters. Seconds would follow after a colon.
        _ if !text.get(16..)?.starts_with(':') => {
            format!("{}:00{}", text.get(..16)?, text.get(16..)?)
        }
        _ => text.to_owned(),
    };
    OffsetDateTime::parse(&whole, &Rfc3339).ok()
}

fn utc_text(instant: OffsetDateTime) -> String {
    // At either end of the time range UTC may be out of range. The time then keeps its own offset.
    let instant = instant.checked_to_offset(UtcOffset::UTC).unwrap_or(instant);
    instant
        .format(&Rfc3339)
        .unwrap_or_else(|_| instant.to_string())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;
    use crate::blob::error::code;
    use crate::error_kind::ErrorCode;

    const URI: &str = "https://account.blob.example/disks/vm%201.vhd?sv=2024-11-04&sr=b&sp=rw&se=2026-11-23T00%3A00%3A00Z&sig=c2VjcmV0%2Bx%3D";

    fn with_sas(sas: &str) -> SasUri {
        SasUri::parse(&format!("https://host/c/b?{sas}&sig=secret")).unwrap()
    }

    #[test]
    fn uri_stores_path_and_query_byte_for_byte() {
        let uri = SasUri::parse(URI).unwrap();
        assert_eq!(
            uri.snapshot_target().expose(),
            "/disks/vm%201.vhd?sv=2024-11-04&sr=b&sp=rw&se=2026-11-23T00%3A00%3A00Z&sig=c2VjcmV0%2Bx%3D&comp=snapshot"
        );
        assert_eq!(
            uri.uri_without_query(),
            "https://account.blob.example/disks/vm%201.vhd"
        );
        assert_eq!(
            (uri.scheme(), uri.as_http().host(), uri.as_http().port()),
            (Scheme::Https, "account.blob.example", 443)
        );
        assert_eq!(
            uri.snapshot_uri("2026-11-22T10:26:21.8190000Z"),
            "https://account.blob.example/disks/vm%201.vhd?snapshot=2026-11-22T10:26:21.8190000Z"
        );
    }

    #[test]
    fn uri_never_prints_its_query() {
        let uri = SasUri::parse(URI).unwrap();
        assert_eq!(
            format!("{uri}"),
            "https://account.blob.example/disks/vm%201.vhd"
        );
        assert_eq!(
            format!("{uri:?}"),
            "SasUri(https://account.blob.example/disks/vm%201.vhd?...)"
        );
        assert_eq!(format!("{:?}", uri.snapshot_target()), "SecretText(...)");
    }

    #[test]
    fn uri_may_have_white_space_around_it() {
        assert_eq!(
            SasUri::parse(&format!("  {URI}\r\n"))
                .unwrap()
                .snapshot_target(),
            SasUri::parse(URI).unwrap().snapshot_target()
        );
    }

    #[test]
    fn uri_host_may_be_a_name_an_ipv4_or_an_ipv6_address_with_any_port() {
        for (text, host, port, header) in [
            (
                "HTTP://Host.Example/c/b?sig=x",
                "host.example",
                80,
                "host.example",
            ),
            (
                "http://127.0.0.1:10000/a/c/b?sig=x",
                "127.0.0.1",
                10000,
                "127.0.0.1:10000",
            ),
            (
                "https://[::1]:10001/a/c/b?sig=x",
                "::1",
                10001,
                "[::1]:10001",
            ),
            (
                "https://[2001:DB8::1]/a?sig=x",
                "2001:db8::1",
                443,
                "[2001:db8::1]",
            ),
            ("https://h:443/a?sig=x", "h", 443, "h"),
        ] {
            let uri = SasUri::parse(text).unwrap();
            assert_eq!((uri.as_http().host(), uri.as_http().port()), (host, port));
            assert_eq!(uri.as_http().host_header(), header);
        }
    }

    #[test]
    fn uri_that_is_not_an_absolute_http_uri_of_a_blob_is_refused() {
        for text in [
            "",
            "   ",
            "/c/b?sig=secret",
            "host/c/b?sig=secret",
            "ftp://host/c/b?sig=secret",
            "file:///c/b?sig=secret",
            "https:///c/b?sig=secret",
            "https://?sig=secret",
            "https://host?sig=secret",
            "https://host/?sig=secret",
            "https://user:secret@host/c/b?sig=secret",
            "https://host/c/b?sig=secret#fragment",
            "https://host/c/b&sp=rw&sig=secret",
            "https://host/c/b%3Fsp=rw&sig%3Dsecret",
            "https://host/c/b;sig=secret?sig=x",
            "https://host/c b?sig=secret",
            "https://host/c/b?sig=secret\r\nx: y",
            "https://host/c/b?sig=secret\0",
            "https://host/c/\u{e4}?sig=secret",
            "https://host/c/b?sig=<secret>",
            "https://host:0/c/b?sig=secret",
            "https://host:/c/b?sig=secret",
            "https://host:65536/c/b?sig=secret",
            "https://host:+80/c/b?sig=secret",
            "https://ho%20st/c/b?sig=secret",
            "https://[::1/c/b?sig=secret",
            "https://[::1%25eth0]/c/b?sig=secret",
            "https://[host]/c/b?sig=secret",
            "https://[::1]x/c/b?sig=secret",
            "https://::1/c/b?sig=secret",
            "https://host/c/b?sig=secret&comp=snapshot",
            "https://host/c/b?snapshot=2026-11-22T10:26:21.8190000Z&sig=secret",
        ] {
            assert_eq!(code(SasUri::parse(text)), "bad-uri", "{text}");
        }
        assert_eq!(
            code(SasUri::parse(&format!(
                "https://h/{}?sig=secret",
                "x".repeat(crate::uri::URI_LIMIT_BYTES)
            ))),
            "bad-uri"
        );
    }

    #[test]
    fn uri_without_a_signature_is_refused() {
        for text in [
            "https://h/c/b",
            "https://h/c/b?",
            "https://h/c/b?sig=",
            "https://h/c/b?sv=1&xsig=secret",
            "https://h/c/b&sp=rw&signature=secret",
        ] {
            let error = SasUri::parse(text).unwrap_err();
            assert_eq!(error.code(), ErrorCode::UnsignedUri, "{text}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        }
    }

    #[test]
    fn sas_that_expired_is_refused_in_every_form_of_time() {
        let now = datetime!(2026-11-22 12:00:00 UTC);
        for (sas, expected) in [
            ("se=2026-11-22", Some("expired-sas")),
            ("se=2026-11-23", None),
            ("se=2026-11-22T11:59Z", Some("expired-sas")),
            ("se=2026-11-22T12:01Z", None),
            ("se=2026-11-22T11%3A59%3A59Z", Some("expired-sas")),
            ("se=2026-11-22T12:00:01Z", None),
            ("se=2026-11-22T12:00:00Z", Some("expired-sas")),
            ("se=2026-11-22T11:59:59.9999999Z", Some("expired-sas")),
            ("se=2026-11-22T12:00:00.0000001Z", None),
            ("se=2026-11-22T13:30%2B02:00", Some("expired-sas")),
            ("se=9999-12-31T23:59:59Z", None),
            ("se=tomorrow", Some("bad-sas")),
            ("se=", Some("bad-sas")),
            ("se=2026-13-22", Some("bad-sas")),
            ("se=2026-11-22T12:00", Some("bad-sas")),
            ("se=%zz", Some("bad-sas")),
            ("se=%C3%A4%C3%A4%C3%A4%C3%A4%C3%A4", Some("bad-sas")),
            ("si=policy", None),
        ] {
            assert_eq!(
                with_sas(sas)
                    .check(now)
                    .err()
                    .map(|error| error.code().name()),
                expected,
                "{sas}"
            );
        }
        let error = with_sas("se=2026-11-22T11:59Z").check(now).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the SAS of blob `https://host/c/b` expired at 2026-11-22T11:59:00Z"
        );
    }

    #[test]
    fn sas_that_begins_more_than_five_minutes_ahead_is_refused() {
        let now = datetime!(2026-11-22 12:00:00 UTC);
        with_sas("st=2026-11-22T12:05:00Z").check(now).unwrap();
        assert_eq!(
            code(with_sas("st=2026-11-22T12:05:01Z").check(now)),
            "sas-not-yet-valid"
        );
        assert_eq!(code(with_sas("st=soon").check(now)), "bad-sas");
    }

    #[test]
    fn sas_may_begin_or_end_at_either_end_of_time() {
        let now = datetime!(2026-11-22 12:00:00 UTC);
        for (sas, expected) in [
            ("st=9999-12-31T23:59:59-10:00", Some("sas-not-yet-valid")),
            ("se=0000-01-01T00:00:00%2B10:00", Some("expired-sas")),
            ("se=9999-12-31T23:59:59-10:00", None),
            ("st=0000-01-01T00:00:00%2B10:00", None),
        ] {
            assert_eq!(
                with_sas(sas)
                    .check(now)
                    .err()
                    .map(|error| error.code().name()),
                expected,
                "{sas}"
            );
        }
    }

    #[test]
    fn sas_must_permit_write_or_create() {
        let now = datetime!(2026-11-22 12:00:00 UTC);
        for permitted in ["w", "c", "rw", "racwdl"] {
            with_sas(&format!("sp={permitted}")).check(now).unwrap();
        }
        for refused in ["r", "a", "rl", ""] {
            assert_eq!(
                code(with_sas(&format!("sp={refused}")).check(now)),
                "sas-permission",
                "{refused}"
            );
        }
    }

    proptest! {
        #[test]
        fn parsing_and_checking_never_panic_on_any_text(text in "\\PC*", seconds in 0i64..4_000_000_000) {
            let now = OffsetDateTime::from_unix_timestamp(seconds).unwrap();
            let _ = SasUri::parse(&text);
            let _ = parse_instant(&text);
            if let Ok(uri) = SasUri::parse(&format!("https://h/b?sig=x&se={text}")) {
                let _ = uri.check(now);
            }
        }

        #[test]
        fn a_uri_that_parses_prints_without_its_query(query in "[a-z0-9&=%]{0,40}", path in "/[a-z/%]{1,20}") {
            let text = format!("https://host{path}?{query}&sig=SECRET");
            if let Ok(uri) = SasUri::parse(&text) {
                prop_assert_eq!(uri.to_string(), format!("https://host{path}"));
                let debug = format!("{uri:?}");
                prop_assert!(!debug.contains("SECRET"));
                let target = uri.snapshot_target();
                prop_assert_eq!(target.expose(), format!("{path}?{query}&sig=SECRET&comp=snapshot"));
            }
        }
    }
}
