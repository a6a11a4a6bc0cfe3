//! `vmsnapshot._native`: the engine as a Python module. The only code that knows PyO3.
//!
//! Plain values come in and are checked here; frozen classes go out. The interpreter is released
//! for the whole of every call that can wait.

mod classes;
mod errors;

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;
use vmsnapshot_core::blob::{Metadata, OnUnusable};
use vmsnapshot_core::plan::Selection;
use vmsnapshot_core::secret::SecretText;
use vmsnapshot_engine::connect::{ConnectOptions, Proxy};
use vmsnapshot_engine::error::PrepareError;
use vmsnapshot_engine::observer::{Observer, Phase};
use vmsnapshot_engine::session::{self, Asked, Options};
use vmsnapshot_engine::{control_group, recovery, scan};

use classes::{
    BlobOutcome, FilesystemOutcome, HostCall, HostCallOutcome, Mode, Plan, PlannedFilesystem,
    Report, SkippedFilesystem, TimelineEvent, WatchdogOutcome,
};

/// A prepared run; see `_native.pyi`.
#[pyclass(frozen)]
struct Session {
    run_id: String,
    /// Who prepared it. A forked child has a copy of this object, and none of its threads: what it
    /// does to the copy would be done to the run.
    owner: u32,
    /// None once it has run or was closed.
    session: Mutex<Option<session::Session>>,
    progress: Option<Py<PyAny>>,
}

#[pymethods]
impl Session {
    #[getter]
    fn run_id(&self) -> &str {
        &self.run_id
    }

    fn run(&self, py: Python<'_>) -> PyResult<Report> {
        if self.is_copy() {
            return Err(pyo3::exceptions::PyRuntimeError::new_err(
                "this session belongs to the process that prepared it",
            ));
        }
        let Some(session) = self.take() else {
            return Err(pyo3::exceptions::PyRuntimeError::new_err(
                "this session has run, or was closed",
            ));
        };
        let mut observer =
            PythonObserver::new(self.progress.as_ref().map(|call| call.clone_ref(py)));
        let result = py.detach(|| session.run(&mut observer));
        observer.outcome(py, result).map(Report::from)
    }

    fn close(&self, py: Python<'_>) {
        if !self.is_copy() {
            let session = self.take();
            py.detach(|| drop(session));
        }
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exc_info))]
    fn __exit__(&self, py: Python<'_>, _exc_info: &Bound<'_, pyo3::types::PyTuple>) {
        self.close(py);
    }

    fn __repr__(&self) -> String {
        format!("<vmsnapshot.Session {}>", self.run_id)
    }
}

impl Session {
    fn is_copy(&self) -> bool {
        self.owner != std::process::id()
    }

    fn take(&self) -> Option<session::Session> {
        self.session
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.is_copy() {
            std::mem::forget(self.take());
        }
    }
}

/// Tells Python's `progress` where a run is, and asks Python whether Ctrl-C was pressed.
struct PythonObserver {
    progress: Option<Py<PyAny>>,
    /// What `progress` or a signal handler raised: it ends the preparation.
    raised: Option<PyErr>,
}

impl PythonObserver {
    fn new(progress: Option<Py<PyAny>>) -> PythonObserver {
        PythonObserver {
            progress,
            raised: None,
        }
    }

    /// What the caller gets: the result, the exception that ended it, or the error.
    fn outcome<Output>(
        self,
        py: Python<'_>,
        result: Result<Output, PrepareError>,
    ) -> PyResult<Output> {
        match (result, self.raised) {
            (Ok(output), _) => Ok(output),
            (Err(PrepareError::Interrupted), Some(raised)) => Err(raised),
            (Err(error), _) => Err(errors::prepare_error(py, &error)),
        }
    }
}

impl Observer for PythonObserver {
    fn phase(&mut self, phase: Phase) {
        let sentence = match phase {
            Phase::OpenFilesystems => "opening the filesystems",
            Phase::Connect => "connecting to the blobs",
            Phase::StartWatchdog => "starting the watchdog",
            Phase::Sync => "writing out dirty data",
            Phase::Freeze => "freezing",
        };
        if let Some(progress) = &self.progress {
            if let Err(raised) = Python::attach(|py| progress.call1(py, (sentence,))) {
                self.raised.get_or_insert(raised);
            }
        }
    }

    fn is_interrupted(&mut self) -> bool {
        if self.raised.is_none() {
            self.raised = Python::attach(|py| py.check_signals().err());
        }
        self.raised.is_some()
    }
}

/// Reads what is mounted and says what a run would freeze.
#[pyfunction]
#[pyo3(signature = (*, include = Vec::new(), exclude = Vec::new()))]
fn plan(py: Python<'_>, include: Vec<String>, exclude: Vec<String>) -> PyResult<Plan> {
    py.detach(|| {
        let selection = Selection::parse(&include, &exclude)?;
        scan::machine()?.plan(&selection)
    })
    .map(Plan::from)
    .map_err(|error| errors::plan_error(py, &error))
}

/// Does all that can be done before the window.
#[pyfunction]
#[pyo3(signature = (
    plan, blobs = Vec::new(), *, metadata = None, blob_metadata = Vec::new(), host_call = None,
    unusable_blobs = "refuse", thaw_timeout = 10.0, sync_timeout = Some(30.0), connect_timeout = 10.0,
    ca_file = None, proxy = None, expedite_rcu = true, progress = None
))]
#[expect(
    clippy::too_many_arguments,
    reason = "they are the keywords of the Python function"
)]
fn prepare(
    py: Python<'_>,
    plan: &Plan,
    blobs: Vec<String>,
    metadata: Option<Pairs>,
    blob_metadata: Vec<Pairs>,
    host_call: Option<Bound<'_, HostCall>>,
    unusable_blobs: &str,
    thaw_timeout: f64,
    sync_timeout: Option<f64>,
    connect_timeout: f64,
    ca_file: Option<PathBuf>,
    proxy: Option<String>,
    expedite_rcu: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<Session> {
    let on_unusable = match unusable_blobs {
        "refuse" => OnUnusable::Refuse,
        "report" => OnUnusable::Report,
        _ => {
            return Err(pyo3::exceptions::PyValueError::new_err(
                "unusable_blobs is neither 'refuse' nor 'report'",
            ))
        }
    };
    let asked = (|| {
        Ok(Asked {
            blobs: with_metadata(blobs, &metadata.unwrap_or_default(), blob_metadata)?,
            host_call: host_call.map(|host_call| host_call.get().call.clone()),
            on_unusable,
        })
    })()
    .map_err(|error| errors::prepare_error(py, &error))?;
    let options = (|| {
        Ok(Options {
            thaw_timeout: Duration::try_from_secs_f64(thaw_timeout)
                .map_err(|_| PrepareError::ThawTimeout(thaw_timeout))?,
            sync_timeout: sync_timeout
                .map(|seconds| time_limit("sync timeout", seconds))
                .transpose()?,
            connect: ConnectOptions {
                ca_file,
                proxy: proxy.as_deref().map(Proxy::parse).transpose()?,
                time_limit: time_limit("connect timeout", connect_timeout)?,
            },
            expedite_rcu,
        })
    })()
    .map_err(|error| errors::prepare_error(py, &error))?;
    let mut observer = PythonObserver::new(progress.as_ref().map(|call| call.clone_ref(py)));
    let result = py.detach(|| session::prepare(&plan.plan, asked, options, &mut observer));
    let session = observer.outcome(py, result)?;
    Ok(Session {
        run_id: session.run_id().to_owned(),
        owner: std::process::id(),
        session: Mutex::new(Some(session)),
        progress,
    })
}

/// Names and values, in the order of the names.
type Pairs = std::collections::BTreeMap<String, String>;

/// Gives each blob the metadata of all and its own, which is for none or for each.
fn with_metadata(
    blobs: Vec<String>,
    of_all: &Pairs,
    of_each: Vec<Pairs>,
) -> Result<Vec<(SecretText, Metadata)>, PrepareError> {
    let blobs = blobs.into_iter().map(SecretText::new);
    // Looked at even if there is no blob: a wrong one is a mistake to be told.
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

/// A limit of more than zero seconds, and at most an hour: longer is no limit to anybody.
pub(crate) fn time_limit(name: &'static str, seconds: f64) -> Result<Duration, PrepareError> {
    match Duration::try_from_secs_f64(seconds) {
        Ok(limit) if !limit.is_zero() && seconds <= 3600.0 => Ok(limit),
        _ => Err(PrepareError::TimeLimit { name, seconds }),
    }
}

/// What is frozen and by which run, as JSON.
#[pyfunction]
fn status(py: Python<'_>) -> PyResult<String> {
    py.detach(recovery::status)
        .map(|status| classes::json(&status))
        .map_err(|error| errors::state_error(py, error))
}

/// Thaws what runs that are gone left frozen, and says what it did, as JSON.
#[pyfunction]
fn thaw(py: Python<'_>) -> PyResult<String> {
    py.detach(recovery::thaw)
        .map(|result| classes::json(&result))
        .map_err(|error| errors::thaw_error(py, &error))
}

/// Moves this process into a control group of its own.
#[pyfunction]
fn leave_control_group(py: Python<'_>, name: &str) -> PyResult<bool> {
    let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if name.is_empty() || !name.bytes().all(is_name_byte) {
        return Err(pyo3::exceptions::PyValueError::new_err(
            "the name of a control group is made of ASCII letters, digits, hyphens and underscores",
        ));
    }
    Ok(py.detach(|| control_group::enter(&format!("{name}-")).is_some()))
}

/// The version of the compiled engine.
#[pyfunction]
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PlannedFilesystem>()?;
    module.add_class::<SkippedFilesystem>()?;
    module.add_class::<Plan>()?;
    module.add_class::<HostCall>()?;
    module.add_class::<FilesystemOutcome>()?;
    module.add_class::<BlobOutcome>()?;
    module.add_class::<HostCallOutcome>()?;
    module.add_class::<TimelineEvent>()?;
    module.add_class::<Mode>()?;
    module.add_class::<WatchdogOutcome>()?;
    module.add_class::<Report>()?;
    module.add_class::<Session>()?;
    module.add_function(wrap_pyfunction!(plan, module)?)?;
    module.add_function(wrap_pyfunction!(prepare, module)?)?;
    module.add_function(wrap_pyfunction!(status, module)?)?;
    module.add_function(wrap_pyfunction!(thaw, module)?)?;
    module.add_function(wrap_pyfunction!(leave_control_group, module)?)?;
    module.add_function(wrap_pyfunction!(version, module)?)?;
    Ok(())
}
