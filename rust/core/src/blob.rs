//! Blobs: the SAS URI that names one, the metadata of a snapshot, and what the service's answer to
//! Snapshot Blob means.
//!
//! The query of a SAS URI is a password, and so may metadata be: no `Debug`, `Display` or error of
//! this file shows either. Everything here is a pure function of its arguments.

use std::collections::HashSet;
use std::fmt;

use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime, UtcOffset};

use crate::report::BlobResult;
use crate::secret::{without_signatures, SecretText};
use crate::uri::{percent_decoded, HttpUri, Scheme};

/// How much metadata a blob may have, names and values together (Set Blob Metadata, "8 KiB").
pub const METADATA_LIMIT_BYTES: usize = 8 * 1024;

/// How far a SAS's start may lie ahead of our clock: the service allows for such a difference too.
pub const START_SKEW: Duration = Duration::minutes(5);

const MESSAGE_LIMIT_CHARS: usize = 512;
const CODE_LIMIT_BYTES: usize = 64;
const REFUSAL_BODY_LIMIT_BYTES: usize = 4 * 1024;

/// Why a blob, its SAS or the metadata cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// The text is not an absolute HTTP or HTTPS URI of a blob.
    #[error("could not read a blob URI: {cause}")]
    BadUri {
        /// What is wrong with it; nothing of the text is repeated, since any part may be a secret.
        cause: &'static str,
    },
    /// The URI has no signature.
    #[error("blob `{blob}` has no signature: its query has no `sig=`")]
    UnsignedUri {
        /// The URI without its query.
        blob: String,
    },
    /// The SAS cannot be understood.
    #[error("the SAS of blob `{blob}` has a `{field}=` that is not a date and time in UTC")]
    BadSas {
        /// The URI without its query.
        blob: String,
        /// The field: `se` or `st`.
        field: &'static str,
    },
    /// The SAS is over.
    #[error("the SAS of blob `{blob}` expired at {at}")]
    ExpiredSas {
        /// The URI without its query.
        blob: String,
        /// When it expired, UTC.
        at: String,
    },
    /// The SAS has not begun.
    #[error("the SAS of blob `{blob}` is not valid before {at}")]
    SasNotYetValid {
        /// The URI without its query.
        blob: String,
        /// When it begins, UTC.
        at: String,
    },
    /// The SAS does not permit a snapshot.
    #[error("the SAS of blob `{blob}` permits neither write nor create")]
    SasPermission {
        /// The URI without its query.
        blob: String,
    },
    /// The same blob was given twice.
    #[error("blob `{blob}` was given twice")]
    DuplicateBlob {
        /// The URI without its query.
        blob: String,
    },
    /// The metadata cannot be sent.
    #[error("could not use the metadata: {cause}")]
    BadMetadata {
        /// What is wrong with it, without any value.
        cause: String,
    },
}

impl BlobError {
    /// Returns the stable code of this error.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadUri { .. } => "bad-uri",
            Self::UnsignedUri { .. } => "unsigned-uri",
            Self::BadSas { .. } => "bad-sas",
            Self::ExpiredSas { .. } => "expired-sas",
            Self::SasNotYetValid { .. } => "sas-not-yet-valid",
            Self::SasPermission { .. } => "sas-permission",
            Self::DuplicateBlob { .. } => "duplicate-blob",
            Self::BadMetadata { .. } => "bad-metadata",
        }
    }

    /// Returns what the reader can do about it, if anything.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::BadUri { .. } => Some("give https://ACCOUNT.HOST/CONTAINER/BLOB?SAS"),
            Self::UnsignedUri { .. } => {
                Some("give the whole SAS URI; in a shell, put it between single quotes")
            }
            Self::BadSas { .. } | Self::ExpiredSas { .. } => Some("make a new SAS"),
            Self::SasNotYetValid { .. } => {
                Some("check this machine's clock, or make a SAS without a start time")
            }
            Self::SasPermission { .. } => {
                Some("make a SAS with the permission write (w) or create (c)")
            }
            Self::DuplicateBlob { .. } => Some("give each blob once"),
            Self::BadMetadata { .. } => Some(
                "names are ASCII letters, digits and underscores, values printable ASCII, 8 KiB in all",
            ),
        }
    }
}

/// The URI of a blob with a shared access signature.
///
/// It has a path and a non-empty `sig=`. Path and query are kept byte for byte, since the signature
/// covers them. Neither `Display` nor `Debug` shows the query.
#[derive(Clone)]
pub struct SasUri(HttpUri);

impl SasUri {
    /// Reads a SAS URI, white space around it put aside (some senders put a space in front).
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
                blob: uri.to_string(),
            });
        }
        if uri.field("comp").is_some() || uri.field("snapshot").is_some() {
            return bad("its query has a `comp=` or `snapshot=` of its own");
        }
        Ok(uri)
    }

    /// Returns the URI as any other: where to connect to.
    #[must_use]
    pub fn as_http(&self) -> &HttpUri {
        &self.0
    }

    /// Returns the scheme.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.0.scheme()
    }

    /// Returns the path, as it was given.
    #[must_use]
    pub fn path(&self) -> &str {
        self.0.path()
    }

    /// Returns the URI without its query: the part that may be printed.
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

    /// Judges, as far as one can without asking the service, whether the SAS permits a snapshot at
    /// `now`. What the SAS leaves to a stored access policy (`si=`) is not judged.
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

/// The blobs that were given so far, none of them twice: same host, port and path, whatever the
/// scheme and the SAS.
///
/// The port is compared only as far as it was not left to the scheme, so that `http://h/b` and
/// `https://h/b` are one blob.
#[derive(Clone, Debug, Default)]
pub struct DistinctBlobs(HashSet<(String, Option<u16>, String)>);

impl DistinctBlobs {
    /// Adds a blob that was not given before.
    ///
    /// # Errors
    ///
    /// [`BlobError::DuplicateBlob`].
    pub fn add(&mut self, uri: &SasUri) -> Result<(), BlobError> {
        let http = uri.as_http();
        let own_port = (http.port() != http.scheme().default_port()).then_some(http.port());
        let name = (http.host().to_owned(), own_port, http.path().to_owned());
        if self.0.insert(name) {
            Ok(())
        } else {
            Err(BlobError::DuplicateBlob {
                blob: uri.to_string(),
            })
        }
    }
}

/// Checked metadata of a snapshot; `Debug` shows how many pairs there are, and nothing else.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Metadata(Vec<(String, String)>);

impl Metadata {
    /// Checks pairs of name and value: names are C# identifiers of ASCII and unique ignoring case
    /// (the service treats them so); values are printable ASCII without a space at either end, as a
    /// header carries no others unharmed.
    ///
    /// # Errors
    ///
    /// [`BlobError::BadMetadata`].
    pub fn parse<Name: Into<String>, Value: Into<String>>(
        pairs: impl IntoIterator<Item = (Name, Value)>,
    ) -> Result<Self, BlobError> {
        let bad = |cause: String| Err(BlobError::BadMetadata { cause });
        let mut checked: Vec<(String, String)> = Vec::new();
        let mut names = HashSet::new();
        let mut size_bytes = 0;
        for (index, (name, value)) in pairs.into_iter().enumerate() {
            let (name, value) = (name.into(), value.into());
            let starts_well =
                name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
            if !starts_well
                || !name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            {
                // The name is not repeated: name and value may have been swapped.
                return bad(format!(
                    "the name of pair {} is not an identifier",
                    index + 1
                ));
            }
            if !value.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
                return bad(format!("the value of `{name}` is not printable ASCII"));
            }
            if value.starts_with(' ') || value.ends_with(' ') {
                return bad(format!("the value of `{name}` begins or ends with a space"));
            }
            size_bytes += name.len() + value.len();
            if size_bytes > METADATA_LIMIT_BYTES {
                return bad("names and values are longer than 8 KiB together".to_owned());
            }
            if !names.insert(name.to_ascii_lowercase()) {
                return bad(format!(
                    "the name `{name}` is given twice (case is ignored)"
                ));
            }
            checked.push((name, value));
        }
        Ok(Self(checked))
    }

    /// Returns the pairs in the order they were given.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Says whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Metadata({} pairs)", self.0.len())
    }
}

/// What an answer to Snapshot Blob means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether there is a snapshot.
    pub outcome: BlobResult,
    /// The snapshot's time as the service wrote it, if it was created.
    pub snapshot: Option<String>,
    /// The storage error code, or `BadAnswer`.
    pub error_code: Option<String>,
    /// The service's words (bounded, a signature in them blotted out), or ours.
    pub message: Option<String>,
    /// Whether another run may succeed without anything being changed.
    pub retryable: bool,
    /// Whether the request may be sent once more in the same window.
    pub retry_in_window: bool,
}

/// Says whether an answer of `status` names a snapshot that exists, in `x-ms-snapshot`: its body is
/// then nothing to anybody. The service answers 201 (Snapshot Blob, "Status code"); Azure Backup
/// takes 200 for the same.
///
/// *In the window*: allowed.
#[must_use]
pub fn is_success(status: u16) -> bool {
    matches!(status, 200 | 201)
}

/// Says whether a request answered with `status` may be sent once more in the same window.
///
/// *In the window*: allowed.
#[must_use]
pub fn may_retry_in_window(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 503)
}

/// Judges an answer to Snapshot Blob: its status, the headers `x-ms-snapshot` and
/// `x-ms-error-code`, and its body, which may be anything, cut off or empty.
#[must_use]
pub fn verdict(
    status: u16,
    snapshot_header: Option<&[u8]>,
    error_code_header: Option<&[u8]>,
    body: &[u8],
) -> Verdict {
    if is_success(status) {
        return match snapshot_header.and_then(snapshot_text) {
            Some(snapshot) => Verdict {
                outcome: BlobResult::Created,
                snapshot: Some(snapshot),
                error_code: None,
                message: None,
                retryable: false,
                retry_in_window: false,
            },
            None => bad_answer(format!(
                "the service answered {status} without a usable x-ms-snapshot"
            )),
        };
    }
    if !(300..600).contains(&status) {
        return bad_answer(format!(
            "the service answered {status}, which is no answer to Snapshot Blob"
        ));
    }
    let error_code = error_code_header.and_then(code_text).or_else(|| {
        element(body, b"Code")
            .filter(|code| code.is_closed)
            .and_then(|code| code_text(code.text))
    });
    let message = element(body, b"Message").and_then(|message| message_text(message.text));
    // A gateway that lost its upstream and a service that ran out of time both say, by their own
    // documents, that the operation may have been done. To call it refused would be untrue.
    let may_have_been_done =
        matches!(status, 502 | 504) || error_code.as_deref() == Some("OperationTimedOut");
    let rate_exceeded = error_code.as_deref() == Some("SnapshotOperationRateExceeded");
    Verdict {
        outcome: if may_have_been_done {
            BlobResult::Unknown
        } else {
            BlobResult::Refused
        },
        snapshot: None,
        retryable: may_retry_in_window(status) || may_have_been_done || rate_exceeded,
        retry_in_window: may_retry_in_window(status),
        error_code: error_code.or_else(|| (status < 400).then(|| "BadAnswer".to_owned())),
        message: message.or_else(|| Some(status_words(status))),
    }
}

/// Returns the body of a refusal as text for the one who asked for the snapshots: without a byte
/// order mark, signatures blotted out, 4 KiB at most; none if there is none.
#[must_use]
pub fn refusal_body(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let mut text = without_signatures(text.strip_prefix('\u{feff}').unwrap_or(&text));
    let mut end = text.len().min(REFUSAL_BODY_LIMIT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    (!text.is_empty()).then_some(text)
}

fn bad_answer(message: String) -> Verdict {
    Verdict {
        outcome: BlobResult::Unknown,
        snapshot: None,
        error_code: Some("BadAnswer".to_owned()),
        message: Some(message),
        retryable: false,
        retry_in_window: false,
    }
}

fn status_words(status: u16) -> String {
    match status {
        300..=399 => format!("the service answered {status}, a redirection, which is not followed"),
        407 => "the proxy asks for a name and a password".to_owned(),
        _ => format!("the service answered {status}"),
    }
}

/// The service writes `2026-11-22T10:26:21.8190000Z`. The text is put into a URI, so it may hold
/// nothing but what a time is written with.
fn snapshot_text(header: &[u8]) -> Option<String> {
    let is_time_byte =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b':' | b'.');
    (!header.is_empty() && header.len() <= CODE_LIMIT_BYTES && header.iter().all(is_time_byte))
        .then(|| String::from_utf8_lossy(header).into_owned())
}

fn code_text(bytes: &[u8]) -> Option<String> {
    let bytes = bytes.trim_ascii();
    let is_code_byte =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (!bytes.is_empty() && bytes.len() <= CODE_LIMIT_BYTES && bytes.iter().all(is_code_byte))
        .then(|| String::from_utf8_lossy(bytes).into_owned())
}

struct Element<'a> {
    text: &'a [u8],
    is_closed: bool,
}

/// Finds the first element `name` without an XML parser: the body may be cut off anywhere, and the
/// service writes its errors without attributes or namespaces.
fn element<'a>(body: &'a [u8], name: &[u8]) -> Option<Element<'a>> {
    let open = [b"<", name, b">"].concat();
    let close = [b"</", name, b">"].concat();
    let text = body.get(position(body, &open)? + open.len()..)?;
    Some(match position(text, &close) {
        Some(end) => Element {
            text: text.get(..end)?,
            is_closed: true,
        },
        None => Element {
            text,
            is_closed: false,
        },
    })
}

fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

/// Returns the first line, without markup's entities, control characters and signatures.
fn message_text(bytes: &[u8]) -> Option<String> {
    let bytes = bytes.trim_ascii_start();
    let line = bytes
        .split(|byte| matches!(byte, b'\n' | b'\r'))
        .next()
        .unwrap_or_default();
    // `&amp;` last: `&amp;lt;` stands for the text `&lt;`.
    let text = String::from_utf8_lossy(line)
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&amp;", "&");
    let text: String = without_signatures(&text)
        .chars()
        .filter(|char| !char.is_control())
        .take(MESSAGE_LIMIT_CHARS)
        .collect();
    let text = text.trim_end();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Reads the forms a SAS may have: a date, which is its first moment, or a date and a time to the
/// minute, second or fraction, with `Z` or an offset.
fn parse_instant(text: &str) -> Option<OffsetDateTime> {
    let text = text.trim();
    let whole = match text.len() {
        10 => format!("{text}T00:00:00Z"),
        // `YYYY-MM-DDThh:mm` is 16 long; seconds would follow after a colon.
        _ if !text.get(16..)?.starts_with(':') => {
            format!("{}:00{}", text.get(..16)?, text.get(16..)?)
        }
        _ => text.to_owned(),
    };
    OffsetDateTime::parse(&whole, &Rfc3339).ok()
}

fn utc_text(instant: OffsetDateTime) -> String {
    // At either end of time another offset may be out of range; it is then shown as it was given.
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

    const URI: &str = "https://account.blob.example/disks/vm%201.vhd?sv=2024-11-04&sr=b&sp=rw&se=2026-11-23T00%3A00%3A00Z&sig=c2VjcmV0%2Bx%3D";

    fn with_sas(sas: &str) -> SasUri {
        SasUri::parse(&format!("https://host/c/b?{sas}&sig=secret")).unwrap()
    }

    fn code<T>(result: Result<T, BlobError>) -> &'static str {
        let error = result.map(|_| ()).unwrap_err();
        for text in [error.to_string(), format!("{error:?}")] {
            assert!(!text.contains("secret"), "{text}");
        }
        error.code()
    }

    #[test]
    fn uri_keeps_path_and_query_byte_for_byte() {
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
            "https://h/sig=secret",
        ] {
            let error = SasUri::parse(text).unwrap_err();
            assert_eq!(error.code(), "unsigned-uri", "{text}");
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
                with_sas(sas).check(now).err().map(|error| error.code()),
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
                with_sas(sas).check(now).err().map(|error| error.code()),
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

    #[test]
    fn blobs_given_twice_are_refused_whatever_their_sas() {
        let add_all = |texts: &[&str]| {
            let mut seen = DistinctBlobs::default();
            texts
                .iter()
                .try_for_each(|text| seen.add(&SasUri::parse(text).unwrap()))
        };
        for same in [
            "https://H/c/b?sig=secret2",
            "https://h:443/c/b?sig=secret",
            "http://h/c/b?sig=secret",
        ] {
            assert_eq!(
                code(add_all(&["https://h/c/b?sig=secret", same])),
                "duplicate-blob",
                "{same}"
            );
        }
        add_all(&[
            "https://h/c/b?sig=x",
            "https://h/c/B?sig=x",
            "https://h:444/c/b?sig=x",
            "https://g/c/b?sig=x",
        ])
        .unwrap();
    }

    #[test]
    fn metadata_names_are_identifiers_and_values_printable() {
        let metadata = Metadata::parse([("RunId", "a b"), ("_x9", "")]).unwrap();
        assert_eq!(
            metadata.pairs().collect::<Vec<_>>(),
            [("RunId", "a b"), ("_x9", "")]
        );
        assert_eq!(format!("{metadata:?}"), "Metadata(2 pairs)");
        for (name, value) in [
            ("", "secret"),
            ("a-b", "secret"),
            ("9a", "secret"),
            ("\u{e4}", "secret"),
            ("a:b", "secret"),
            ("a\r\nb", "secret"),
            ("a", " secret"),
            ("a", "secret "),
            ("a", "secret\r\nx: y"),
            ("a", "secret\u{e4}"),
            ("a", "secret\t"),
        ] {
            assert_eq!(
                code(Metadata::parse([(name, value)])),
                "bad-metadata",
                "{name:?}"
            );
        }
        assert_eq!(
            code(Metadata::parse([("Name", "secret"), ("name", "secret")])),
            "bad-metadata"
        );
    }

    #[test]
    fn metadata_is_at_most_8_kib() {
        Metadata::parse([("a", "x".repeat(METADATA_LIMIT_BYTES - 1))]).unwrap();
        assert_eq!(
            code(Metadata::parse([("a", "x".repeat(METADATA_LIMIT_BYTES))])),
            "bad-metadata"
        );
    }

    #[test]
    fn created_needs_200_or_201_and_the_name_of_the_snapshot() {
        for status in [200, 201] {
            let created = verdict(status, Some(b"2026-11-22T10:26:21.8190000Z"), None, b"");
            assert_eq!(created.outcome, BlobResult::Created);
            assert_eq!(
                created.snapshot.as_deref(),
                Some("2026-11-22T10:26:21.8190000Z")
            );
            for header in [
                None,
                Some(&b""[..]),
                Some(b"2026&sig=x"),
                Some(b"\xff"),
                Some(&[b'1'; 65]),
            ] {
                let verdict = verdict(status, header, None, b"");
                assert_eq!(
                    (verdict.outcome, verdict.error_code.as_deref()),
                    (BlobResult::Unknown, Some("BadAnswer"))
                );
            }
        }
    }

    #[test]
    fn answers_are_final_or_may_be_tried_again_as_the_service_says() {
        use BlobResult::{Refused, Unknown};
        for (status, header, outcome, retryable, retry_in_window) in [
            (409, "SnapshotOperationRateExceeded", Refused, true, false),
            (409, "SnapshotCountExceeded", Refused, false, false),
            (403, "AuthorizationFailure", Refused, false, false),
            (404, "BlobNotFound", Refused, false, false),
            (412, "LeaseIdMissing", Refused, false, false),
            (400, "InvalidMetadata", Refused, false, false),
            (431, "RequestHeaderFieldsTooLarge", Refused, false, false),
            (408, "RequestTimeout", Refused, true, true),
            (429, "TooManyRequests", Refused, true, true),
            (500, "InternalError", Refused, true, true),
            (500, "OperationTimedOut", Unknown, true, true),
            (503, "ServerBusy", Refused, true, true),
            (502, "BadGateway", Unknown, true, false),
            (504, "GatewayTimeout", Unknown, true, false),
            (307, "TemporaryRedirect", Refused, false, false),
        ] {
            let verdict = verdict(status, None, Some(header.as_bytes()), b"");
            assert_eq!(
                (verdict.outcome, verdict.retryable, verdict.retry_in_window),
                (outcome, retryable, retry_in_window),
                "{status} {header}"
            );
            assert_eq!(verdict.error_code.as_deref(), Some(header));
            assert_eq!(may_retry_in_window(status), retry_in_window);
        }
        for status in [0, 100, 101, 202, 204, 600, 999] {
            let verdict = verdict(status, Some(b"2026"), None, b"");
            assert_eq!(
                (verdict.outcome, verdict.error_code.as_deref()),
                (Unknown, Some("BadAnswer")),
                "{status}"
            );
        }
    }

    #[test]
    fn error_code_and_message_come_from_the_body_when_no_header_has_them() {
        let body = b"\xef\xbb\xbf<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>BlobNotFound</Code><Message>The &quot;blob&quot; does not exist.\nRequestId:1\nTime:2</Message></Error>";
        let answer = verdict(404, None, None, body);
        assert_eq!(answer.error_code.as_deref(), Some("BlobNotFound"));
        assert_eq!(
            answer.message.as_deref(),
            Some("The \"blob\" does not exist.")
        );
        assert_eq!(
            verdict(404, None, Some(b"Other"), body)
                .error_code
                .as_deref(),
            Some("Other")
        );
        assert_eq!(verdict(404, None, None, b"<Code>BlobNotF").error_code, None);
        assert_eq!(
            verdict(404, None, None, b"<Message>cut o")
                .message
                .as_deref(),
            Some("cut o")
        );
        assert_eq!(
            verdict(404, None, None, b"\0\xff{}").message.as_deref(),
            Some("the service answered 404")
        );
    }

    #[test]
    fn refusal_body_is_text_without_mark_and_signature_and_bounded() {
        assert_eq!(refusal_body(b""), None);
        assert_eq!(refusal_body("\u{feff}".as_bytes()), None);
        assert_eq!(
            refusal_body("\u{feff}<Error>\n\u{e4} x?SIG=secret&se=1</Error>".as_bytes()).unwrap(),
            "<Error>\n\u{e4} x?SIG=...&se=1</Error>"
        );
        assert_eq!(refusal_body(b"\xff!").unwrap(), "\u{fffd}!");
        // A character of two bytes lies across the limit.
        let long = format!("x{}", "\u{e4}".repeat(REFUSAL_BODY_LIMIT_BYTES));
        assert_eq!(
            refusal_body(long.as_bytes()).unwrap().len(),
            REFUSAL_BODY_LIMIT_BYTES - 1
        );
    }

    #[test]
    fn message_is_bounded_and_never_repeats_a_signature() {
        for echoed in [
            "see https://h/b?sv=1&amp;sig=secret%2Bx&amp;se=2 now",
            "SIG=secret",
            "q=%26sig%3Dsecret%26se%3D2",
            "sig%253Dsecret",
            "a sig=secret, sig=secret",
            "\u{130}\u{130}sig=secret",
        ] {
            let body = format!("<Message>{echoed}</Message>");
            let message = verdict(403, None, None, body.as_bytes()).message.unwrap();
            assert!(!message.contains("secret"), "{message}");
        }
        let long = format!("<Message>{}</Message>", "\u{e4}".repeat(5000));
        assert_eq!(
            verdict(403, None, None, long.as_bytes())
                .message
                .unwrap()
                .chars()
                .count(),
            MESSAGE_LIMIT_CHARS
        );
    }

    proptest! {
        #[test]
        fn nothing_here_panics_on_any_text(text in "\\PC*", seconds in 0i64..4_000_000_000) {
            let now = OffsetDateTime::from_unix_timestamp(seconds).unwrap();
            let _ = SasUri::parse(&text);
            let _ = Metadata::parse([(text.clone(), text.clone())]);
            let _ = parse_instant(&text);
            let _ = percent_decoded(&text);
            let _ = without_signatures(&text);
            let _ = refusal_body(text.as_bytes());
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

        #[test]
        fn verdict_never_panics_and_creates_only_with_200_or_201(
            status: u16,
            snapshot: Option<Vec<u8>>,
            code: Option<Vec<u8>>,
            body: Vec<u8>,
            sas in "[a-z=&;<>%/CodeMsag]*",
        ) {
            let tagged = [b"<Code>", body.as_slice(), b"</Code><Message>", sas.as_bytes()].concat();
            for body in [&body, &tagged] {
                let verdict = verdict(status, snapshot.as_deref(), code.as_deref(), body);
                prop_assert_eq!(verdict.outcome == BlobResult::Created, verdict.snapshot.is_some());
                prop_assert!(is_success(status) || verdict.outcome != BlobResult::Created);
            }
        }
    }
}
