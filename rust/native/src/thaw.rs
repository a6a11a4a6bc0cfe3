//! `thaw`: thaws what earlier runs left frozen and can no longer thaw themselves.

use pyo3::prelude::*;
use vmsnapshot_core::status;
use vmsnapshot_engine::recovery;

use crate::errors;
use crate::names::json;

/// Thaws what earlier runs left frozen and can no longer thaw themselves.
#[pyfunction]
pub(crate) fn thaw(py: Python<'_>) -> PyResult<ThawResult> {
    py.detach(recovery::thaw::thaw)
        .map(|result| ThawResult { result })
        .map_err(|error| errors::thaw_error(py, &error))
}

#[pyclass(frozen, module = "vmsnapshot")]
pub(crate) struct ThawResult {
    result: status::ThawResult,
}

#[pymethods]
impl ThawResult {
    #[getter]
    fn thawed(&self) -> Vec<Thawed> {
        self.result.thawed.iter().map(Into::into).collect()
    }

    #[getter]
    fn failed(&self) -> Vec<ThawFailed> {
        self.result.failed.iter().map(Into::into).collect()
    }

    #[getter]
    fn left_alone(&self) -> Vec<ThawLeftAlone> {
        self.result.left_alone.iter().map(Into::into).collect()
    }

    #[getter]
    fn rcu_restored(&self) -> bool {
        self.result.rcu_restored
    }

    fn to_json(&self) -> String {
        json(&self.result)
    }

    fn __repr__(&self) -> String {
        format!(
            "<vmsnapshot.ThawResult: {} thawed, {} failed, {} left alone>",
            self.result.thawed.len(),
            self.result.failed.len(),
            self.result.left_alone.len()
        )
    }
}

#[pyclass(frozen, get_all, module = "vmsnapshot")]
pub(crate) struct Thawed {
    mount_point: String,
    device: String,
    run_id: String,
}

impl From<&status::Thawed> for Thawed {
    fn from(thawed: &status::Thawed) -> Self {
        Self {
            mount_point: thawed.mount_point.clone(),
            device: thawed.device.clone(),
            run_id: thawed.run_id.clone(),
        }
    }
}

#[pyclass(frozen, get_all, module = "vmsnapshot")]
pub(crate) struct ThawFailed {
    mount_point: String,
    device: String,
    run_id: String,
    error: String,
}

impl From<&status::ThawFailed> for ThawFailed {
    fn from(failed: &status::ThawFailed) -> Self {
        Self {
            mount_point: failed.mount_point.clone(),
            device: failed.device.clone(),
            run_id: failed.run_id.clone(),
            error: failed.error.clone(),
        }
    }
}

#[pyclass(frozen, get_all, module = "vmsnapshot")]
pub(crate) struct ThawLeftAlone {
    mount_point: String,
    run_id: String,
    why: String,
}

impl From<&status::ThawLeftAlone> for ThawLeftAlone {
    fn from(left_alone: &status::ThawLeftAlone) -> Self {
        Self {
            mount_point: left_alone.mount_point.clone(),
            run_id: left_alone.run_id.clone(),
            why: left_alone.why.clone(),
        }
    }
}
