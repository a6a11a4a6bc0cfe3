//! Follows a run on behalf of Python.

use pyo3::prelude::*;
use vmsnapshot_core::phase::Phase;
use vmsnapshot_core::plan::PlanError;
use vmsnapshot_engine::error::PrepareError;
use vmsnapshot_engine::observer::Observer;

use crate::errors;

/// Calls Python's `progress` at the start of each phase, and asks Python whether Ctrl-C was
/// pressed.
pub(crate) struct PythonObserver {
    progress: Option<Py<PyAny>>,
    /// The exception of `progress` or of a signal handler. It ends the preparation.
    raised: Option<PyErr>,
    /// What went otherwise than configured since the preparation.
    pub(crate) warnings: Vec<String>,
}

impl PythonObserver {
    pub(crate) fn new(progress: Option<Py<PyAny>>) -> PythonObserver {
        PythonObserver {
            progress,
            raised: None,
            warnings: Vec::new(),
        }
    }

    /// Returns the result, or raises the exception that ended it, or its error.
    pub(crate) fn outcome<Output>(
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

    /// The same for the result of a plan.
    pub(crate) fn planned<Output>(
        self,
        py: Python<'_>,
        result: Result<Output, PlanError>,
    ) -> PyResult<Output> {
        match (result, self.raised) {
            (Ok(output), _) => Ok(output),
            (Err(PlanError::Interrupted), Some(raised)) => Err(raised),
            (Err(error), _) => Err(errors::plan_error(py, &error)),
        }
    }
}

impl Observer for PythonObserver {
    fn phase(&mut self, phase: Phase) {
        if let Some(progress) = &self.progress {
            if let Err(raised) = Python::attach(|py| progress.call1(py, (phase.name(),))) {
                self.raised.get_or_insert(raised);
            }
        }
    }

    fn warning(&mut self, text: &str) {
        self.warnings.push(text.to_owned());
    }

    fn is_interrupted(&mut self) -> bool {
        if self.raised.is_none() {
            self.raised = Python::attach(|py| py.check_signals().err());
        }
        self.raised.is_some()
    }
}
