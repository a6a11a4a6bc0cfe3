//! `trust_roots`: the certificates that the engine trusts, for other clients in the same program.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use vmsnapshot_engine::connect;
use vmsnapshot_engine::error::PrepareError;

use crate::errors;

/// Returns the certificates that the engine trusts, in DER.
#[pyfunction]
#[pyo3(name = "trust_roots", signature = (*, ca_file = None))]
pub(crate) fn read(py: Python<'_>, ca_file: Option<PathBuf>) -> PyResult<Vec<Bound<'_, PyBytes>>> {
    let roots = py
        .detach(|| connect::trust_roots(ca_file.as_deref()))
        .map_err(|error| errors::prepare_error(py, &PrepareError::from(error)))?;
    Ok(roots.iter().map(|root| PyBytes::new(py, root)).collect())
}
