//! `Session`: a prepared run, and `Session.run`.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use vmsnapshot_engine::session;

use crate::applications::PythonApplications;
use crate::observer::PythonObserver;
use crate::report::Report;

/// A prepared run; see `_native.pyi`.
#[pyclass(frozen, module = "vmsnapshot")]
pub(crate) struct Session {
    run_id: String,
    warnings: Mutex<Vec<String>>,
    /// The process that prepared it. A forked child has a copy of this object, but none of its
    /// threads. If the child ran or closed the copy, it would change the run of its parent.
    owner: u32,
    /// `None` once it has run or was closed.
    session: Mutex<Option<session::Session>>,
    progress: Option<Py<PyAny>>,
    /// The keeper of its applications.
    keeper: Option<Py<PyAny>>,
}

#[pymethods]
impl Session {
    #[getter]
    fn run_id(&self) -> &str {
        &self.run_id
    }

    #[getter]
    fn warnings(&self) -> Vec<String> {
        lock(&self.warnings).clone()
    }

    fn run(&self, py: Python<'_>) -> PyResult<Report> {
        if self.is_copy() {
            return Err(PyRuntimeError::new_err(
                "this session belongs to the process that prepared it",
            ));
        }
        let Some(session) = self.take() else {
            return Err(PyRuntimeError::new_err(
                "this session has run, or was closed",
            ));
        };
        let mut observer =
            PythonObserver::new(self.progress.as_ref().map(|call| call.clone_ref(py)));
        let mut applications = PythonApplications::new(py, self.keeper.as_ref())?;
        let result = py.detach(|| session.run(&mut applications, &mut observer));
        lock(&self.warnings).append(&mut observer.warnings);
        applications
            .outcome(result, |result| observer.outcome(py, result))
            .map(Report::from)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        if !self.is_copy() {
            let session = self.take();
            py.detach(|| drop(session));
            if let Some(keeper) = &self.keeper {
                keeper.call_method0(py, "close")?;
            }
        }
        Ok(())
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exc_info))]
    fn __exit__(
        &self,
        py: Python<'_>,
        _exc_info: &Bound<'_, pyo3::types::PyTuple>,
    ) -> PyResult<()> {
        self.close(py)
    }

    fn __repr__(&self) -> String {
        format!("<vmsnapshot.Session {}>", self.run_id)
    }
}

impl Session {
    /// Wraps a session that this process has just prepared.
    pub(crate) fn new(
        session: session::Session,
        progress: Option<Py<PyAny>>,
        keeper: Option<Py<PyAny>>,
    ) -> Self {
        Self {
            run_id: session.run_id().to_owned(),
            warnings: Mutex::new(session.warnings().to_vec()),
            owner: std::process::id(),
            session: Mutex::new(Some(session)),
            progress,
            keeper,
        }
    }

    fn is_copy(&self) -> bool {
        self.owner != std::process::id()
    }

    fn take(&self) -> Option<session::Session> {
        lock(&self.session).take()
    }
}

fn lock<Content>(mutex: &Mutex<Content>) -> MutexGuard<'_, Content> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.is_copy() {
            std::mem::forget(self.take());
        }
    }
}
