//! What a run calls for snapshots: the service of each blob, a host that takes all of them, or
//! both.
//!
//! The window treats a host call like a blob's request. Nothing here is called inside the window.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::Runtime;
use vmsnapshot_core::blob::Metadata;
use vmsnapshot_core::host_call::HostCall;
use vmsnapshot_core::signatures::Signatures;

use crate::calls::Call;
use crate::connect::{self, ConnectError, ConnectOptions, Destination, PreparedRequest};
use crate::error::PrepareError;
use crate::observer::{Observer, INTERRUPTION_TICK};

pub(crate) mod blobs;

use blobs::Blobs;

/// The blobs and the host, each with its call.
pub(crate) struct Callees {
    pub(crate) blobs: Blobs<Call>,
    pub(crate) host: Option<(HostCall, Call)>,
    /// What went otherwise than configured while connecting, each once.
    pub(crate) warnings: Vec<String>,
}

impl Callees {
    /// Makes every request and a connection for each. The answer of a blob's service may take
    /// `call_timeout`. The host's has a limit of its own.
    ///
    /// *Blocking*: the limit on connecting.
    ///
    /// # Errors
    /// [`PrepareError`] if a callee cannot be reached and that ends the preparation.
    pub(crate) fn connect(
        mut blobs: Blobs<Metadata>,
        host_call: Option<HostCall>,
        call_timeout: Duration,
        runtime: &Runtime,
        options: &ConnectOptions,
        observer: &mut dyn Observer,
    ) -> Result<Callees, PrepareError> {
        let proxy = options.proxy.as_ref();
        if let Some(proxy) = proxy {
            proxy.add_secrets_to(blobs.signatures_mut());
        }
        let host = match host_call {
            Some(call) => Some((PreparedRequest::host_call(&call)?, call)),
            None => None,
        };
        let usable = blobs.each().iter().flatten();
        let destinations: Vec<Destination> = usable
            .map(|(uri, _)| Destination::blob(uri, proxy))
            .chain(host.iter().map(|(_, call)| Destination::host(call)))
            .collect();
        let work = connect::connect_all(&destinations, options, blobs.on_unusable());
        let signatures = blobs.signatures().clone();
        let mut connections = wait_for(runtime, observer, &signatures, work)?.into_iter();
        let mut next = || {
            let result = connections.next().expect("each destination has a result");
            result.map_err(|error| error.without(&signatures))
        };
        let mut warnings = Vec::new();
        let blobs = blobs.then(|uri, metadata| {
            let connection = next()?;
            let warning = connection.without_proxy.as_deref();
            warn_of(&mut warnings, warning, &signatures);
            // The request depends on the way that was taken: a proxy gets another form of it.
            let proxy = connection.dialer.destination().proxy();
            let request = PreparedRequest::snapshot(uri, &metadata, proxy)?;
            Ok(Call::new(connection, request, call_timeout))
        })?;
        let host = match host {
            Some((request, host_call)) => {
                let call = Call::new(next()?, request, host_call.time_limit());
                Some((host_call, call))
            }
            None => None,
        };
        Callees {
            blobs,
            host,
            warnings,
        }
        .with_one_to_ask()
    }

    /// Replaces the connections that have been closed since they were made.
    ///
    /// *Blocking*: the limit on connecting.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub(crate) fn refresh(
        mut self,
        runtime: &Runtime,
        options: &ConnectOptions,
        observer: &mut dyn Observer,
    ) -> Result<Callees, PrepareError> {
        let signatures = self.blobs.signatures().clone();
        let on_unusable = self.blobs.on_unusable();
        let mut connections: Vec<_> = self
            .calls_mut()
            .into_iter()
            .filter_map(Call::connection_mut)
            .collect();
        let work = connect::refresh(&mut connections, options.time_limit, on_unusable);
        let mut results = wait_for(runtime, observer, &signatures, work)?.into_iter();
        let mut next = || {
            let result = results.next().expect("each connection has a result");
            result.map_err(|error| error.without(&signatures))
        };
        let mut warnings = self.warnings;
        let known = warnings.len();
        let blobs = self.blobs.then(|_, mut call| {
            if next()? {
                warn_of(&mut warnings, call.without_proxy(), &signatures);
            }
            Ok(call)
        })?;
        if self.host.is_some() {
            next()?;
        }
        for warning in warnings.iter().skip(known) {
            observer.warning(warning);
        }
        Callees {
            blobs,
            host: self.host,
            warnings,
        }
        .with_one_to_ask()
    }

    /// Returns every call: those of the usable blobs in their order, then the host's.
    pub(crate) fn calls_mut(&mut self) -> Vec<&mut Call> {
        self.blobs
            .usable_mut()
            .chain(self.host.as_mut().map(|(_, call)| call))
            .collect()
    }

    /// Returns an error if blobs were given, no blob is usable, and there is no host. Such a run
    /// would freeze for nothing.
    fn with_one_to_ask(self) -> Result<Callees, PrepareError> {
        let blobs = match &self.host {
            Some(_) => self.blobs,
            None => self.blobs.or_first_error()?,
        };
        Ok(Callees {
            blobs,
            host: self.host,
            warnings: self.warnings,
        })
    }
}

/// Adds `warning`, if there is one, and it is a new one. It can have words of a proxy.
fn warn_of(warnings: &mut Vec<String>, warning: Option<&str>, signatures: &Signatures) {
    let warning = warning.map(|warning| signatures.removed_from(warning));
    if let Some(warning) = warning.filter(|warning| !warnings.contains(warning)) {
        warnings.push(warning);
    }
}

/// Runs `work` to its end, or to the caller's interruption. Its error has none of `signatures`.
fn wait_for<Output>(
    runtime: &Runtime,
    observer: &mut dyn Observer,
    signatures: &Signatures,
    work: impl Future<Output = Result<Output, ConnectError>>,
) -> Result<Output, PrepareError> {
    runtime.block_on(async {
        let mut work = std::pin::pin!(work);
        loop {
            match tokio::time::timeout(INTERRUPTION_TICK, &mut work).await {
                Ok(result) => return Ok(result.map_err(|error| error.without(signatures))?),
                Err(_) if observer.is_interrupted() => return Err(PrepareError::Interrupted),
                Err(_) => {}
            }
        }
    })
}
