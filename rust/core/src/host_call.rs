//! The call to a host that takes the snapshots of a run by itself: one POST, checked before it is sent.
//!
//! Its body holds a token, and its answer may: no `Debug`, `Display` or error of this file shows
//! more of it than the URI without its query.

use std::fmt;
use std::time::Duration;

use crate::uri::{HttpUri, Scheme};

/// The headers that say where a message ends and how it travels: the HTTP side writes them itself.
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
    /// The text is not an absolute HTTP URI; nothing of it is repeated.
    #[error("could not read the URI of the host call: {0}")]
    BadUri(&'static str),
    /// A header cannot be sent.
    #[error("could not use header {position} of the host call: {cause}")]
    BadHeader {
        /// Its place among the headers; the first is 1. Its name is not repeated: name and value
        /// may have been swapped.
        position: usize,
        /// What is wrong with it.
        cause: &'static str,
    },
}

impl HostCallError {
    /// Returns the stable code of this error.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadUri(_) | Self::BadHeader { .. } => "bad-host-call",
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
    /// Checks URI and headers. Names are sent with their case kept.
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

    /// Returns where it goes.
    #[must_use]
    pub fn uri(&self) -> &HttpUri {
        &self.uri
    }

    /// Returns the request target: the path, at least `/`, and the query.
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

    /// Returns the caller's headers, names and values.
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

    /// Returns how long an answer is waited for, if the window lasts so long.
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

/// Says whether the call may be made once more in the same window after an answer of `status`: only
/// these two say that nothing was begun. A second call makes a second set of snapshots.
///
/// *In the window*: allowed.
#[must_use]
pub fn may_retry_in_window(status: u16) -> bool {
    matches!(status, 429 | 503)
}

/// Says whether an answer of `status` means that there is no snapshot: the host understood, and said
/// no. Another failure (500, a gateway's 502) leaves open how far it came.
#[must_use]
pub fn is_refusal(status: u16) -> bool {
    matches!(status, 300..=499 | 503)
}

/// RFC 9110, 5.1 and 5.5: a token, and visible ASCII with spaces between.
fn why_bad(name: &str, value: &str) -> Option<&'static str> {
    let is_token_byte =
        |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token_byte) {
        Some("its name is not one of a header")
    } else if OWN_HEADERS.contains(&name.to_ascii_lowercase().as_str()) {
        Some("it is one that is written for every call")
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
    fn host_call_keeps_its_target_byte_for_byte() {
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
    fn host_call_that_cannot_be_made_is_refused_without_repeating_it() {
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
            assert_eq!(error.code(), "bad-host-call", "{uri} {headers:?}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        }
    }

    #[test]
    fn host_call_is_made_again_only_when_nothing_can_have_been_begun() {
        for status in 100..600 {
            let may_retry = may_retry_in_window(status);
            assert_eq!(may_retry, [429, 503].contains(&status), "{status}");
            assert!(!may_retry || is_refusal(status), "{status}");
        }
        assert!(!is_refusal(200) && !is_refusal(500) && !is_refusal(504));
    }
}
