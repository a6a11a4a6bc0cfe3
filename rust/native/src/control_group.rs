//! `give_control_group` and `leave_control_group`: let a worker outlive the service that started it.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use vmsnapshot_engine::control_group;

/// Moves a child of this process into a control group of its own. Returns whether it succeeded.
#[pyfunction]
pub(crate) fn give_control_group(py: Python<'_>, pid: u32, role: &str) -> PyResult<bool> {
    if role.is_empty() || !role.bytes().all(|byte| byte.is_ascii_lowercase()) {
        return Err(PyValueError::new_err(
            "the role of a control group must consist of lower-case ASCII letters",
        ));
    }
    Ok(py.detach(|| control_group::give(pid, role)))
}

/// Takes this process out of its own control group, and removes this group and those of dead processes.
#[pyfunction]
pub(crate) fn leave_control_group(py: Python<'_>) {
    py.detach(control_group::leave);
}
