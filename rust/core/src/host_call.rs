//! The call to a host that takes the snapshots of a run: one POST, checked before it is sent.
//!
//! Its body holds a token, and its answer may hold one. No `Debug`, `Display` or error in this file
//! shows more of it than the URI without its query.

use std::fmt;
use std::time::Duration;

use crate::error_kind::ErrorCode;
use crate::uri::{HttpUri, Scheme};

/// The headers that frame or route a message. The HTTP client sets them itself.
const OWN_HEADERS: [&str; 6] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "expect",
    "upgrade",
];

/// Why a host call cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostCallError {
    /// The text is not an absolute HTTP URI. The error repeats no part of it.
    #[error("could not read the URI of the host call: {0}")]
    BadUri(&'static str),
    /// A header cannot be sent.
    #[error("could not use header {position} of the host call: {cause}")]
    BadHeader {
        /// Its position among the headers; the first is 1. The error does not repeat the name,
        /// because name and value may have been swapped.
        position: usize,
        /// What is wrong with it.
        cause: &'static str,
    },
}

impl HostCallError {
    /// Returns the stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::BadUri(_) | Self::BadHeader { .. } => ErrorCode::BadHostCall,
        }
    }
}

/// A POST to a host, over plain HTTP.
#[derive(Clone)]
pub struct HostCall {
    uri: HttpUri,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    time_limit: Duration,
}

impl HostCall {
    /// Checks the URI and the headers. Header names are sent in the case they were given in.
    ///
    /// # Errors
    ///
    /// [`HostCallError`].
    pub fn new(
        uri: &str,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
        time_limit: Duration,
    ) -> Result<Self, HostCallError> {
        let uri = HttpUri::parse(uri).map_err(HostCallError::BadUri)?;
        if uri.scheme() != Scheme::Http {
            return Err(HostCallError::BadUri("its scheme is not http"));
        }
        for (position, (name, value)) in (1..).zip(&headers) {
            if let Some(cause) = why_bad(name, value) {
                return Err(HostCallError::BadHeader { position, cause });
            }
        }
        Ok(Self {
            uri,
            headers,
            body,
            time_limit,
        })
    }

    /// Returns the URI that the call goes to.
    #[must_use]
    pub fn uri(&self) -> &HttpUri {
        &self.uri
    }

    /// Returns the request target: the path (`/` if it is empty) and the query.
    #[must_use]
    pub fn target(&self) -> String {
        let path = match self.uri.path() {
            "" => "/",
            path => path,
        };
        match self.uri.query() {
            "" => path.to_owned(),
            query => format!("{path}?{query}"),
        }
    }

    /// Returns the names and values of the caller's headers.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Returns the body.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Returns how long the run waits for an answer. The end of the window may cut this short.
    #[must_use]
    pub fn time_limit(&self) -> Duration {
        self.time_limit
    }
}

impl fmt::Debug for HostCall {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "HostCall({})", self.uri)
    }
}

/// Returns whether the call may be repeated in the same window after an answer of `status`.
///
/// Only 429 and 503 say that the host began nothing. A repeated call could otherwise make a second
/// set of snapshots.
///
/// *In the window*: allowed.
#[must_use]
pub fn may_retry_in_window(status: u16) -> bool {
    matches!(status, 429 | 503)
}

/// Returns whether an answer of `status` means that there is no snapshot: the host understood the
/// call and refused it. After any other failure (500, a gateway's 502) a snapshot may exist.
#[must_use]
pub fn is_refusal(status: u16) -> bool {
    matches!(status, 300..=499 | 503)
}

/// Returns what is wrong with a header. RFC 9110, 5.1 and 5.5: the name is a token, and the value
/// is visible ASCII with spaces between.
fn why_bad(name: &str, value: &str) -> Option<&'static str> {
    let is_token_byte =
        |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token_byte) {
        Some("its name is not a valid header name")
    } else if OWN_HEADERS.contains(&name.to_ascii_lowercase().as_str()) {
        Some("vmsnapshot sets this header itself")
    } else if !value.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        Some("its value is not printable ASCII")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn call(uri: &str, headers: &[(&str, &str)]) -> Result<HostCall, HostCallError> {
        let headers = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        HostCall::new(uri, headers, b"secret".to_vec(), Duration::from_secs(40))
    }

    #[test]
    fn host_call_target_is_the_path_and_query_byte_for_byte() {
        for (uri, target) in [
            ("http://168.63.129.16/a/b?c=d%20e", "/a/b?c=d%20e"),
            ("http://h:8080/a", "/a"),
            ("http://h?x=1", "/?x=1"),
            ("http://h", "/"),
        ] {
            assert_eq!(call(uri, &[]).unwrap().target(), target);
        }
    }

    #[test]
    fn host_call_prints_neither_query_nor_headers_nor_body() {
        let call = call("http://h/a?secret", &[("Token", "secret")]).unwrap();
        assert_eq!(format!("{call:?}"), "HostCall(http://h/a)");
    }

    #[test]
    fn host_call_that_is_invalid_is_refused_without_repeating_its_text() {
        for (uri, headers) in [
            ("", [("Backup", "true")]),
            ("https://h/secret", [("Backup", "true")]),
            ("http://user:secret@h/", [("Backup", "true")]),
            ("http://h/", [("", "secret")]),
            ("http://h/", [("se cret", "x")]),
            ("http://h/", [("secret:", "x")]),
            ("http://h/", [("Backup", "true\r\nX: secret")]),
            ("http://h/", [("Backup", "s\u{e4}cret")]),
            ("http://h/", [("Content-length", "1")]),
            ("http://h/", [("HOST", "secret")]),
            ("http://h/", [("Transfer-Encoding", "chunked")]),
        ] {
            let error = call(uri, &headers).unwrap_err();
            assert_eq!(error.code(), ErrorCode::BadHostCall, "{uri} {headers:?}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        }
    }

    #[test]
    fn host_call_is_repeated_only_when_the_host_began_nothing() {
        for status in 100..600 {
            let may_retry = may_retry_in_window(status);
            assert_eq!(may_retry, [429, 503].contains(&status), "{status}");
            assert!(!may_retry || is_refusal(status), "{status}");
        }
        assert!(!is_refusal(200) && !is_refusal(500) && !is_refusal(504));
    }
}
