//! An absolute HTTP or HTTPS URI. It is parsed once and stored byte for byte.
//!
//! The query may be a password: no `Debug` or `Display` in this file shows it.

use std::fmt;
use std::ops::Range;

use crate::signatures::names_signature;

/// The longest URI that is accepted. Services refuse longer ones too, and the HTTP library has a
/// limit of 64 KiB.
pub const URI_LIMIT_BYTES: usize = 16 * 1024;

/// The scheme of a URI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `http`
    Http,
    /// `https`
    Https,
}

impl Scheme {
    /// Returns the scheme as it is written in a URI.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// Returns the port that applies when a URI names no port.
    #[must_use]
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// An absolute HTTP or HTTPS URI. It has no user name and no fragment, and only URI characters. What
/// is in front of its query has no `sig=`, in whatever encoding, and may be printed.
///
/// Path and query are stored byte for byte. Neither `Display` nor `Debug` shows the query.
#[derive(Clone)]
pub struct HttpUri {
    text: String,
    scheme: Scheme,
    /// The host in lower case. An IPv6 address has its brackets.
    host: String,
    port: u16,
    path: Range<usize>,
}

impl HttpUri {
    /// Parses a URI. White space around it is ignored, because some senders put a space in front.
    ///
    /// # Errors
    ///
    /// What is wrong with it. The error repeats no part of the text, because any part may be a
    /// secret.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let text = text.trim();
        if text.is_empty() {
            return Err("it is empty");
        }
        if text.len() > URI_LIMIT_BYTES {
            return Err("it is longer than 16 KiB");
        }
        if text
            .bytes()
            .any(|byte| byte.is_ascii_control() || byte == b' ')
        {
            return Err("it contains white space or a control character");
        }
        if text.contains('#') {
            return Err("it has a fragment");
        }
        if !text.bytes().all(is_uri_byte) {
            return Err("it contains a character that must be percent-encoded");
        }
        let Some((scheme_text, rest)) = text.split_once("://") else {
            return Err("it is not absolute: it has no scheme and host");
        };
        let scheme = if scheme_text.eq_ignore_ascii_case("https") {
            Scheme::Https
        } else if scheme_text.eq_ignore_ascii_case("http") {
            Scheme::Http
        } else {
            return Err("its scheme is neither http nor https");
        };
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let (host, port) = split_authority(authority)?;
        let path_start = scheme_text.len() + "://".len() + authority.len();
        let path_end = text.find('?').unwrap_or(text.len());
        if text.get(..path_end).is_some_and(names_signature) {
            return Err(
                "its path has a signature (`sig=`): the `?` in front of the SAS is lost or \
                 percent-encoded",
            );
        }
        Ok(Self {
            text: text.to_owned(),
            scheme,
            host: host.to_ascii_lowercase(),
            port: port.unwrap_or_else(|| scheme.default_port()),
            path: path_start..path_end,
        })
    }

    /// Returns the scheme.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Returns the host in lower case. An IPv6 address has no brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        let host = self.host.as_str();
        host.strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host)
    }

    /// Returns the port, or the default port of the scheme if the URI names no port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns `host:port`, as a CONNECT to a proxy needs it. An IPv6 address is in brackets.
    #[must_use]
    pub fn host_and_port(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Returns the value of the `Host` header. It leaves out the default port of the scheme.
    #[must_use]
    pub fn host_header(&self) -> String {
        if self.port == self.scheme.default_port() {
            self.host.clone()
        } else {
            self.host_and_port()
        }
    }

    /// Returns the path as it was given. It may be empty.
    #[must_use]
    pub fn path(&self) -> &str {
        self.text.get(self.path.clone()).unwrap_or_default()
    }

    /// Returns everything after the first `?`. It may be empty.
    #[must_use]
    pub(crate) fn query(&self) -> &str {
        self.text.get(self.path.end + 1..).unwrap_or_default()
    }

    /// Returns the URI without its query. This part may be printed.
    #[must_use]
    pub fn uri_without_query(&self) -> &str {
        self.text.get(..self.path.end).unwrap_or_default()
    }
}

/// Returns what may be printed of a URI, which may be malformed: all but its query, or else its
/// [`plain_start`].
#[must_use]
pub fn printable(text: &str) -> String {
    match HttpUri::parse(text) {
        Ok(uri) => uri.uri_without_query().to_owned(),
        Err(_) => plain_start(text),
    }
}

/// Returns the start of a URI that is refused: up to the first character that can begin a SAS, or
/// hide one. `...` stands for the rest.
///
/// If there is an `@`, a password may be anywhere in front of it, and only the scheme is returned.
#[must_use]
pub fn plain_start(text: &str) -> String {
    let Some((scheme, rest)) = text.trim().split_once("://") else {
        return String::new();
    };
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        "http" => "http",
        "https" => "https",
        _ => return String::new(),
    };
    if rest.contains('@') {
        return format!("{scheme}://...@");
    }
    let is_plain = |char: char| char.is_ascii_alphanumeric() || "-._~/:[]".contains(char);
    match rest.find(|char| !is_plain(char)) {
        None => format!("{scheme}://{rest}"),
        Some(end) if rest.get(end..).is_some_and(|rest| rest.starts_with('?')) => {
            format!("{scheme}://{}", rest.get(..end).unwrap_or_default())
        }
        Some(end) => format!("{scheme}://{}...", rest.get(..end).unwrap_or_default()),
    }
}

impl fmt::Display for HttpUri {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.uri_without_query())
    }
}

impl fmt::Debug for HttpUri {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "HttpUri({self})")
    }
}

/// Decodes percent-encoding. `None` if a `%` is not followed by two hexadecimal digits.
#[must_use]
pub fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let high = char::from(rest.next()?).to_digit(16)?;
            let low = char::from(rest.next()?).to_digit(16)?;
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    Some(bytes)
}

/// Returns whether RFC 3986 allows `byte` in a URI: unreserved, reserved, or the percent sign.
fn is_uri_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:/?[]@!$&'()*+,;=%".contains(&byte)
}

fn split_authority(authority: &str) -> Result<(&str, Option<u16>), &'static str> {
    if authority.contains('@') {
        return Err("it has a user name or password before its host");
    }
    let (host, port) = match authority.find(']') {
        Some(end) => authority.split_at(end + 1),
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let host_is_good = match host.strip_prefix('[') {
        Some(rest) => rest
            .strip_suffix(']')
            .is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok()),
        None => {
            !host.is_empty()
                && host.len() <= 253
                && host
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        }
    };
    if !host_is_good {
        return Err("its host is neither a name nor an address");
    }
    if port.is_empty() {
        return Ok((host, None));
    }
    let digits = port.strip_prefix(':').unwrap_or_default();
    match digits.parse::<u16>() {
        Ok(port) if port != 0 && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Ok((host, Some(port)))
        }
        Ok(_) | Err(_) => Err("its port is not a number from 1 to 65535"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percent_encoding_is_decoded_or_refused() {
        assert_eq!(percent_decoded("a%2Bb"), Some(b"a+b".to_vec()));
        for text in ["%", "%2", "%zz"] {
            assert_eq!(percent_decoded(text), None, "{text}");
        }
    }

    #[test]
    fn uri_that_lost_its_question_mark_is_refused_and_printed_up_to_its_sas() {
        for (text, printed) in [
            ("http://h/c/b&sp=rw&sig=SECRET", "http://h/c/b..."),
            ("http://h/c/b%3Fsp=rw&sig%3DSECRET", "http://h/c/b..."),
            ("http://h/c/b;sig=SECRET?sig=x", "http://h/c/b..."),
            ("http://h/c/bsig=SECRET?sig=x", "http://h/c/bsig..."),
            (
                "http://h/c/b%253Fsp%253Drw%2526sig%253DSECRET",
                "http://h/c/b...",
            ),
            (
                "http://h/c/b%25253F%252573%252549g%25253DSECRET?sig=x",
                "http://h/c/b...",
            ),
            ("http://h/c/b&SIG=SECRET", "http://h/c/b..."),
            ("http://h/c/b&sig%20%0A=SECRET", "http://h/c/b..."),
            ("http://h/c/b#sig=SECRET", "http://h/c/b..."),
            ("http://h/c/b\\sig=SECRET", "http://h/c/b..."),
            ("http://h/c/b\nsig=SECRET", "http://h/c/b..."),
            ("http://sig=SECRET@h/c/b", "http://...@"),
            ("http://user:SECRET@h/c/b?sig=SECRET", "http://...@"),
            ("http://sig=SECRET/c/b", "http://sig..."),
            ("sig=SECRET://h/c/b", ""),
            ("h/c/b?sig=SECRET", ""),
            ("  HTTPS://h:0/c/b?sig=SECRET", "https://h:0/c/b"),
        ] {
            assert!(HttpUri::parse(text).is_err(), "{text}");
            assert_eq!(printable(text), printed, "{text}");
        }
        assert_eq!(printable("http://h/c/b%201?sig=x"), "http://h/c/b%201");
    }

    proptest! {
        #[test]
        fn parsing_never_panics_on_any_text(text in "\\PC*") {
            let _ = HttpUri::parse(&text);
            let _ = printable(&text);
            let _ = percent_decoded(&text);
        }

        #[test]
        fn no_printed_form_has_a_signature(
            before in "[a-z0-9/?&;#%:@\\\\ .=]{0,12}",
            mark in "([sS%573][iI%649][gG%67]|%(25){0,3}73ig)(=|%(25){0,4}3[dD])",
            after in "[a-z0-9/?&;#%:@\\\\ .=]{0,12}",
            is_upper: bool,
        ) {
            let text = format!("https://h/c/b{before}{mark}SeCrEtSeCrEt{after}");
            let text = if is_upper { text.replace("sig", "SIG") } else { text };
            // `[sS%573]` and its like also make marks that are none.
            prop_assume!(names_signature(&text));
            prop_assert!(!printable(&text).contains("SeCrEtSeCrEt"), "{}", printable(&text));
        }
    }
}
