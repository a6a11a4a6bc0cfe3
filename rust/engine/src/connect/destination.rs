//! Where a request goes: a blob's server, perhaps by way of a proxy, or the backup host.

use std::fmt;

use vmsnapshot_core::blob::SasUri;
use vmsnapshot_core::host_call::HostCall;
use vmsnapshot_core::uri::HttpUri;

use super::proxy::Proxy;

/// A server, the way to it, and what an error calls it. `Display` is that name: it says what is to
/// be reached, and by which URI, without the query.
#[derive(Clone, Debug)]
pub struct Destination {
    name: String,
    uri: HttpUri,
    proxy: Option<Proxy>,
}

impl Destination {
    /// The server of a blob.
    #[must_use]
    pub fn blob(uri: &SasUri, proxy: Option<&Proxy>) -> Self {
        Self {
            name: format!("blob `{uri}`"),
            uri: uri.as_http().clone(),
            proxy: proxy.cloned(),
        }
    }

    /// The host that takes snapshots. Never through a proxy: it answers this machine only.
    #[must_use]
    pub fn host(call: &HostCall) -> Self {
        Self {
            name: format!("the host call to `{}`", call.uri()),
            uri: call.uri().clone(),
            proxy: None,
        }
    }

    pub(super) fn uri(&self) -> &HttpUri {
        &self.uri
    }

    pub(super) fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    /// Returns host and port of what we connect to ourselves.
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
