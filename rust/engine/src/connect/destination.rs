//! The destination of a request: a blob's server, perhaps through a proxy, or the backup host.

use std::fmt;

use vmsnapshot_core::blob::SasUri;
use vmsnapshot_core::host_call::HostCall;
use vmsnapshot_core::uri::HttpUri;

use super::proxy::Proxy;

/// A server, the way to it, and its name in errors. `Display` prints that name: a blob or the host
/// call, with its URI without the query.
#[derive(Clone, Debug)]
pub struct Destination {
    name: String,
    uri: HttpUri,
    proxy: Option<Proxy>,
}

impl Destination {
    /// Makes the destination of a blob's requests.
    #[must_use]
    pub fn blob(uri: &SasUri, proxy: Option<&Proxy>) -> Self {
        Self {
            name: format!("blob `{uri}`"),
            uri: uri.as_http().clone(),
            proxy: proxy.cloned(),
        }
    }

    /// Makes the destination of a host call. It never has a proxy, because the host answers this
    /// machine only.
    #[must_use]
    pub fn host(call: &HostCall) -> Self {
        Self {
            name: format!("the host call to `{}`", call.uri()),
            uri: call.uri().clone(),
            proxy: None,
        }
    }

    /// Returns this destination without its proxy.
    pub(super) fn direct(&self) -> Self {
        Self {
            proxy: None,
            ..self.clone()
        }
    }

    pub(super) fn uri(&self) -> &HttpUri {
        &self.uri
    }

    /// Returns the proxy that the connection uses.
    #[must_use]
    pub fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    /// Returns host and port of the server that we connect to directly: the proxy, if there is one.
    pub(super) fn first_hop(&self) -> (&str, u16) {
        match &self.proxy {
            Some(proxy) => (proxy.host(), proxy.port()),
            None => (self.uri.host(), self.uri.port()),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)
    }
}
