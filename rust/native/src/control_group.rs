//! `leave_control_group`: lets a worker outlive the service that started it.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use vmsnapshot_engine::control_group;

/// Moves this process into a control group of its own. Returns whether it succeeded.
#[pyfunction]
pub(crate) fn leave_control_group(py: Python<'_>, name: &str) -> PyResult<bool> {
    let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if name.is_empty() || !name.bytes().all(is_name_byte) {
        return Err(PyValueError::new_err(
            "the name of a control group must consist of ASCII letters, digits, hyphens and underscores",
        ));
    }
    Ok(py.detach(|| control_group::enter(&format!("{name}-")).is_some()))
}
