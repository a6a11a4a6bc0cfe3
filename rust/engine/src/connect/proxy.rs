//! The HTTP proxy between us and the blob service.
//!
//! For an HTTPS blob the proxy opens a tunnel (CONNECT) and cannot read what passes through it. For
//! an HTTP blob it gets the request itself in absolute form (RFC 9112, 3.2.2), because many proxies
//! allow CONNECT to port 443 only. Such a proxy sees the SAS, as does every other machine that an
//! HTTP request passes.

use std::fmt;
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use vmsnapshot_core::signatures::Signatures;
use vmsnapshot_core::uri::{percent_decoded, HttpUri};
use vmsnapshot_sys::errno::cause_text;

use super::error::ConnectError;
use super::explain::{self, Cause};

/// What the proxy is told about this program. Some proxies refuse a client that does not say it.
pub(super) const USER_AGENT: &str = concat!("vmsnapshot/", env!("CARGO_PKG_VERSION"));

const ANSWER_LIMIT_BYTES: usize = 16 * 1024;

/// An HTTP proxy. Neither `Display` nor `Debug` shows its user name and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    host: String,
    port: u16,
    authorization: Option<String>,
    password: Option<String>,
    is_optional: bool,
}

impl Proxy {
    /// Reads `http://HOST:PORT` or `http://USER:PASSWORD@HOST:PORT`. User name and password are
    /// percent-encoded. The port is 80 if none is named.
    ///
    /// # Errors
    ///
    /// [`ConnectError::BadProxy`].
    pub fn parse(text: &str) -> Result<Self, ConnectError> {
        let bad = |cause| ConnectError::BadProxy { cause };
        let text = text.trim();
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| bad("it has no scheme"))?;
        if !scheme.eq_ignore_ascii_case("http") {
            return Err(bad("its scheme is not http"));
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err(bad("it has a path, query or fragment"));
        }
        let (user_info, address) = match rest.rsplit_once('@') {
            Some((user_info, address)) => (Some(user_info), address),
            None => (None, rest),
        };
        // The rules for the host of a blob hold here too: the host is printed, so it must be a name
        // or an address and nothing else.
        let uri = HttpUri::parse(&format!("http://{address}")).map_err(bad)?;
        let credentials = user_info
            .map(|user_info| {
                percent_decoded(user_info)
                    .ok_or_else(|| bad("its user name or password is not percent-encoded"))
            })
            .transpose()?;
        let authorization = credentials
            .as_deref()
            .map(|credentials| format!("Basic {}", base64(credentials)));
        let password = credentials.map(|credentials| {
            let text = String::from_utf8_lossy(&credentials);
            text.split_once(':')
                .map_or("", |(_, password)| password)
                .to_owned()
        });
        Ok(Self {
            host: uri.host().to_owned(),
            port: uri.port(),
            authorization,
            password,
            is_optional: false,
        })
    }

    /// Returns this proxy for destinations that are tried directly if it refuses or is down.
    #[must_use]
    pub fn or_direct(self) -> Self {
        Self {
            is_optional: true,
            ..self
        }
    }

    /// Returns whether a destination is tried directly if the proxy refuses or is down.
    pub(super) fn is_optional(&self) -> bool {
        self.is_optional
    }

    /// Returns the proxy's host. An IPv6 address has no brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the proxy's port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the value of `Proxy-Authorization`, which is a secret.
    pub(super) fn authorization(&self) -> Option<&str> {
        self.authorization.as_deref()
    }

    /// Adds what this proxy must not get into a message by repeating it.
    pub(crate) fn add_secrets_to(&self, secrets: &mut Signatures) {
        for secret in self.authorization.iter().chain(&self.password) {
            secrets.add_secret(secret.trim_start_matches("Basic "));
        }
    }

    /// Asks the proxy for a tunnel to `host_and_port`. On success the stream leads to the server.
    pub(super) async fn open_tunnel<Stream>(
        &self,
        stream: &mut Stream,
        host_and_port: &str,
    ) -> Result<(), Cause>
    where
        Stream: AsyncRead + AsyncWrite + Unpin,
    {
        let mut request = format!(
            "CONNECT {host_and_port} HTTP/1.1\r\nHost: {host_and_port}\r\nUser-Agent: {USER_AGENT}\r\n"
        );
        if let Some(authorization) = self.authorization() {
            request.push_str("Proxy-Authorization: ");
            request.push_str(authorization);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        let lost = |error: io::Error| explain::only(cause_text(&error));
        stream.write_all(request.as_bytes()).await.map_err(lost)?;
        let mut answer = Vec::new();
        loop {
            if stream.read_buf(&mut answer).await.map_err(lost)? == 0 {
                return Err(match answer.is_empty() {
                    true => explain::only("it closed the connection without an answer to CONNECT"),
                    false => not_http(&answer),
                });
            }
            if let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
                return judge_tunnel(&answer, end + 4);
            }
            if answer.len() > ANSWER_LIMIT_BYTES {
                return Err(explain::only("its answer to CONNECT has no end"));
            }
        }
    }
}

/// Explains an answer that is not one to CONNECT.
fn not_http(answer: &[u8]) -> Cause {
    // A TLS server answers plain text with an alert: type 21, version 3.x.
    if answer.starts_with(&[21, 3]) {
        explain::because(
            "it speaks TLS",
            "name a port on which the proxy speaks plain HTTP; TLS to the proxy itself is not supported",
        )
    } else {
        explain::because(
            "its answer to CONNECT is not HTTP",
            "check the proxy's port: it must be an HTTP proxy",
        )
    }
}

/// Returns status and reason of an answer, for a message: `403 Forbidden`.
fn status_line(answer: &[u8], status: u16) -> String {
    let line = answer.split(|byte| *byte == b'\r').next().unwrap_or(answer);
    let reason: String = line
        .get("HTTP/1.1 200 ".len()..)
        .unwrap_or_default()
        .iter()
        .map(|byte| char::from(*byte))
        .filter(|letter| letter.is_ascii_graphic() || *letter == ' ')
        .take(64)
        .collect();
    format!("{status} {reason}").trim_end().to_owned()
}

fn judge_tunnel(answer: &[u8], head_length: usize) -> Result<(), Cause> {
    let status = answer
        .strip_prefix(b"HTTP/1.")
        .and_then(|rest| rest.get(2..5))
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .and_then(|digits| digits.parse::<u16>().ok());
    match status {
        // The server behind the tunnel sends nothing before it has our TLS hello.
        Some(200..=299) if answer.len() > head_length => {
            Err(explain::only("it sent more than an answer to CONNECT"))
        }
        Some(200..=299) => Ok(()),
        Some(status @ 407) => Err(explain::because(
            format!(
                "it asks for another name and password ({})",
                status_line(answer, status)
            ),
            "give the proxy as http://USER:PASSWORD@HOST:PORT; only the method Basic is supported",
        )),
        Some(status) => Err(explain::because(
            format!("it answered {} to CONNECT", status_line(answer, status)),
            "let the proxy connect to the blob's host and port, or connect directly",
        )),
        None => Err(not_http(answer)),
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(formatter, "http://[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "http://{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Proxy({self})")
    }
}

/// Encodes `bytes` as RFC 4648, section 4, says. One header does not justify a dependency.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = (0..3).fold(0_usize, |group, index| {
            group << 8 | usize::from(chunk.get(index).copied().unwrap_or(0))
        });
        for index in 0..4 {
            let letter = ALPHABET
                .get(group >> (18 - 6 * index) & 0x3f)
                .copied()
                .unwrap_or(b'=');
            text.push(if index <= chunk.len() {
                char::from(letter)
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use vmsnapshot_core::error_kind::ErrorCode;

    use super::*;

    #[test]
    fn base64_encodes_as_rfc_4648_says() {
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
            ("Aladdin:open sesame", "QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
        ] {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn proxy_hides_its_password() {
        let proxy = Proxy::parse("http://Aladdin:open%20sesame@proxy.example:3128/").unwrap();
        assert_eq!(
            proxy.authorization(),
            Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==")
        );
        assert_eq!(proxy.to_string(), "http://proxy.example:3128");
        assert_eq!(format!("{proxy:?}"), "Proxy(http://proxy.example:3128)");
    }

    #[test]
    fn proxy_may_be_an_ipv6_address_or_have_no_port() {
        let proxy = Proxy::parse("http://[::1]:8080").unwrap();
        assert_eq!(
            (proxy.host(), proxy.port(), proxy.to_string().as_str()),
            ("::1", 8080, "http://[::1]:8080")
        );
        assert_eq!(Proxy::parse("http://proxy").unwrap().port(), 80);
    }

    #[test]
    fn proxy_that_cannot_be_read_is_refused_without_repeating_it() {
        for text in [
            "",
            "proxy:8080",
            "https://user:secret@proxy",
            "socks5://user:secret@proxy",
            "http://",
            "http://user:secret@",
            "http://user:secret@:80",
            "http://user:secret@proxy:0",
            "http://user:secret@proxy:",
            "http://user:secret@proxy:99999",
            "http://user:secret@proxy:x",
            "http://user:secret@proxy/path",
            "http://user:secret%zz@proxy",
            "http://user:secret@pro xy",
            "http://h&sp=rw&sig=secret",
            "http://h;secret=x:80",
        ] {
            let error = Proxy::parse(text).unwrap_err();
            assert_eq!(error.code(), ErrorCode::BadProxy, "{text}");
            assert!(!format!("{error} {error:?}").contains("secret"));
        }
    }

    #[test]
    fn tunnel_needs_a_2xx_answer_and_no_bytes_after_it() {
        for (answer, is_good) in [
            ("HTTP/1.1 200 OK\r\n\r\n", true),
            (
                "HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\n",
                true,
            ),
            ("HTTP/1.1 200 OK\r\n\r\nmore", false),
            ("HTTP/1.1 407 x\r\n\r\n", false),
            ("HTTP/1.1 502 x\r\n\r\n", false),
            ("HTTP/2 200\r\n\r\n", false),
            ("220 smtp\r\n\r\n", false),
            ("\r\n\r\n", false),
        ] {
            let end = answer.find("\r\n\r\n").unwrap() + 4;
            assert_eq!(
                judge_tunnel(answer.as_bytes(), end).is_ok(),
                is_good,
                "{answer}"
            );
        }
    }
}
