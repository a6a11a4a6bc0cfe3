//! Turns Rust errors into the exception classes that `vmsnapshot.errors` defines in Python.

use std::fmt::Display;
use std::io;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use vmsnapshot_core::error_kind::{ErrorCode, ErrorKind, ErrorSubject};
use vmsnapshot_core::plan::PlanError;
use vmsnapshot_engine::error::{PrepareError, ThawError};

/// Makes a `vmsnapshot.errors.PlanError`.
pub(crate) fn plan_error(py: Python<'_>, error: &PlanError) -> PyErr {
    raise(
        py,
        "PlanError",
        error,
        error.code(),
        error.kind(),
        error.hint(),
        None,
    )
}

/// Makes a `vmsnapshot.errors.PrepareError`.
pub(crate) fn prepare_error(py: Python<'_>, error: &PrepareError) -> PyErr {
    let subject = Some(error.subject());
    raise(
        py,
        "PrepareError",
        error,
        error.code(),
        error.kind(),
        error.hint(),
        subject,
    )
}

/// Makes a `vmsnapshot.errors.ThawError`.
pub(crate) fn thaw_error(py: Python<'_>, error: &ThawError) -> PyErr {
    raise(
        py,
        "ThawError",
        error,
        error.code(),
        error.kind(),
        error.hint(),
        None,
    )
}

/// Makes a `vmsnapshot.errors.ThawError` for ledgers that cannot be read.
pub(crate) fn state_error(py: Python<'_>, error: io::Error) -> PyErr {
    thaw_error(py, &ThawError::State(error))
}

fn raise(
    py: Python<'_>,
    class: &str,
    message: &dyn Display,
    code: ErrorCode,
    kind: ErrorKind,
    hint: Option<String>,
    subject: Option<ErrorSubject>,
) -> PyErr {
    let make = || {
        let keywords = PyDict::new(py);
        keywords.set_item("code", code.name())?;
        keywords.set_item("kind", kind.name())?;
        keywords.set_item("hint", hint)?;
        if let Some(subject) = subject {
            keywords.set_item("subject", subject.name())?;
        }
        py.import("vmsnapshot.errors")?
            .getattr(class)?
            .call((message.to_string(),), Some(&keywords))
    };
    match make() {
        Ok(exception) => PyErr::from_value(exception),
        Err(raised) => raised,
    }
}
