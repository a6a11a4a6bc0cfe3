//! The forms in which Python gets values: JSON documents and stable names.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde::Serialize;
use vmsnapshot_core::error_kind::{ErrorCode, ErrorKind, ErrorSubject};
use vmsnapshot_core::ledger::{FireReason, FreezeState};
use vmsnapshot_core::phase::Phase;
use vmsnapshot_core::report::{
    ApplicationResult, BlobResult, CommandResult, Consistency, FilesystemResult, FreezeDoubt,
    HostCallResult, PositionIs, Proof, ThawedBy, TimelineEventKind,
};
use vmsnapshot_core::status::RunState;

/// Returns `value` as JSON. Our own documents hold only values that JSON has.
pub(crate) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
}

/// Returns the stable name of a value of one of our enums.
pub(crate) fn name(value: impl Into<&'static str>) -> String {
    let name: &'static str = value.into();
    name.to_owned()
}

/// Returns the code of every error, with what could not be prepared.
#[pyfunction]
pub(crate) fn error_codes(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let codes = PyDict::new(py);
    for code in ErrorCode::ALL {
        codes.set_item(code.name(), code.subject().name())?;
    }
    Ok(codes)
}

/// Returns the names of all values of every enum that the module shows to Python.
#[pyfunction]
pub(crate) fn names(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let names = PyDict::new(py);
    for (of, all) in [
        ("ErrorCode", ErrorCode::NAMES),
        ("ErrorKind", ErrorKind::NAMES),
        ("ErrorSubject", ErrorSubject::NAMES),
        ("Phase", Phase::NAMES),
        ("TimelineEventKind", TimelineEventKind::NAMES),
        ("FilesystemResult", FilesystemResult::NAMES),
        ("ThawedBy", ThawedBy::NAMES),
        ("ApplicationResult", ApplicationResult::NAMES),
        ("Proof", Proof::NAMES),
        ("PositionIs", PositionIs::NAMES),
        ("BlobResult", BlobResult::NAMES),
        ("HostCallResult", HostCallResult::NAMES),
        ("CommandResult", CommandResult::NAMES),
        ("Consistency", Consistency::NAMES),
        ("FreezeDoubt", FreezeDoubt::NAMES),
        ("FireReason", FireReason::NAMES),
        ("FreezeState", FreezeState::NAMES),
        ("RunState", RunState::NAMES),
    ] {
        names.set_item(of, all)?;
    }
    Ok(names)
}
