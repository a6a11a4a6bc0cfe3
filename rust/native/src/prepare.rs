//! `prepare`: does everything that can be done before the window.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use vmsnapshot_core::blob::{Metadata, OnUnusable};
use vmsnapshot_core::secret::SecretText;
use vmsnapshot_engine::connect::{ConnectOptions, Proxy};
use vmsnapshot_engine::error::PrepareError;
use vmsnapshot_engine::session::{self, Asked, Options};

use crate::applications::start_keeper;
use crate::errors;
use crate::host_call::HostCall;
use crate::observer::PythonObserver;
use crate::plan::Plan;
use crate::session::Session;
use crate::text::PlainText;
use crate::time_limit::time_limit;

/// Does all that can be done before the window.
#[pyfunction]
#[pyo3(signature = (
    plan, blobs = Vec::new(), *, metadata = None, blob_metadata = Vec::new(), host_call = None,
    unusable_blobs = "refuse", thaw_timeout = 10.0, freeze_timeout = 5.0, call_timeout = 10.0,
    sync_timeout = Some(30.0), connect_timeout = 10.0, ca_file = None, proxy = None, unusable_proxy = "refuse", expedite_rcu = true,
    progress = None, quiescers = Vec::new(), command = Vec::new()
))]
#[expect(
    clippy::too_many_arguments,
    reason = "they are the keywords of the Python function"
)]
pub(crate) fn prepare(
    py: Python<'_>,
    plan: &Plan,
    blobs: Vec<PlainText>,
    metadata: Option<PlainPairs>,
    blob_metadata: Vec<PlainPairs>,
    host_call: Option<Bound<'_, HostCall>>,
    unusable_blobs: &str,
    thaw_timeout: f64,
    freeze_timeout: f64,
    call_timeout: f64,
    sync_timeout: Option<f64>,
    connect_timeout: f64,
    ca_file: Option<PathBuf>,
    proxy: Option<PlainText>,
    unusable_proxy: &str,
    expedite_rcu: bool,
    progress: Option<Py<PyAny>>,
    quiescers: Vec<Py<PyAny>>,
    command: Vec<OsString>,
) -> PyResult<Session> {
    let on_unusable = match unusable_blobs {
        "refuse" => OnUnusable::Refuse,
        "report" => OnUnusable::Report,
        _ => {
            return Err(PyValueError::new_err(
                "unusable_blobs is neither 'refuse' nor 'report'",
            ))
        }
    };
    let is_proxy_optional = match unusable_proxy {
        "refuse" => false,
        "direct" => true,
        _ => {
            return Err(PyValueError::new_err(
                "unusable_proxy is neither 'refuse' nor 'direct'",
            ))
        }
    };
    let asked = (|| {
        Ok(Asked {
            blobs: with_metadata(
                blobs,
                &pairs(metadata.unwrap_or_default()),
                blob_metadata.into_iter().map(pairs).collect(),
            )?,
            host_call: host_call.map(|host_call| host_call.get().call.clone()),
            command,
            on_unusable,
        })
    })()
    .map_err(|error| errors::prepare_error(py, &error))?;
    let options = (|| {
        Ok(Options {
            thaw_timeout: Duration::try_from_secs_f64(thaw_timeout)
                .map_err(|_| PrepareError::ThawTimeout(thaw_timeout))?,
            freeze_timeout: Duration::try_from_secs_f64(freeze_timeout)
                .map_err(|_| PrepareError::FreezeTimeout(freeze_timeout))?,
            sync_timeout: sync_timeout
                .map(|seconds| time_limit("sync timeout", seconds))
                .transpose()?,
            call_timeout: time_limit("call timeout", call_timeout)?,
            connect: ConnectOptions {
                ca_file,
                proxy: proxy
                    .map(|proxy| Proxy::parse(&proxy.0))
                    .transpose()?
                    .map(|proxy| {
                        if is_proxy_optional {
                            proxy.or_direct()
                        } else {
                            proxy
                        }
                    }),
                time_limit: time_limit("connect timeout", connect_timeout)?,
            },
            expedite_rcu,
        })
    })()
    .map_err(|error| errors::prepare_error(py, &error))?;
    let keeper = start_keeper(py, quiescers)?;
    let mut observer = PythonObserver::new(progress.as_ref().map(|call| call.clone_ref(py)));
    let result = py.detach(|| session::prepare(&plan.plan, asked, options, &mut observer));
    let session = observer.outcome(py, result).and_then(|session| {
        if let Some(keeper) = &keeper {
            keeper.call_method0(py, "wait_until_ready")?;
        }
        Ok(session)
    });
    match (session, keeper) {
        (Ok(session), keeper) => Ok(Session::new(session, progress, keeper)),
        (Err(raised), Some(keeper)) => {
            keeper.call_method0(py, "close")?;
            Err(raised)
        }
        (Err(raised), None) => Err(raised),
    }
}

/// Names with their values, in the order of the names.
type Pairs = BTreeMap<String, String>;
/// The same as Python passes them.
type PlainPairs = BTreeMap<PlainText, PlainText>;

fn pairs(plain: PlainPairs) -> Pairs {
    plain
        .into_iter()
        .map(|(name, value)| (name.0, value.0))
        .collect()
}

/// Gives each blob the common metadata and its own. Either no blob has its own, or every blob has.
fn with_metadata(
    blobs: Vec<PlainText>,
    of_all: &Pairs,
    of_each: Vec<Pairs>,
) -> Result<Vec<(SecretText, Metadata)>, PrepareError> {
    let blobs = blobs.into_iter().map(|blob| SecretText::new(blob.0));
    // Checked even if there is no blob, so that a bad one is reported.
    let common = Metadata::parse(of_all.clone())?;
    if of_each.is_empty() {
        return Ok(blobs.map(|blob| (blob, common.clone())).collect());
    }
    if of_each.len() != blobs.len() {
        return Err(PrepareError::BlobMetadataCount {
            blobs: blobs.len(),
            metadata: of_each.len(),
        });
    }
    blobs
        .zip(of_each)
        .map(|(blob, own)| {
            let metadata = Metadata::parse(of_all.clone().into_iter().chain(own))?;
            Ok((blob, metadata))
        })
        .collect()
}
