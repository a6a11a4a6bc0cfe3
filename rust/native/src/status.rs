//! `status`: what is frozen, and by which run.

use pyo3::prelude::*;
use vmsnapshot_core::status;
use vmsnapshot_engine::recovery;

use crate::errors;
use crate::names::{json, name};

/// Reads what is frozen, by which run, and since when.
#[pyfunction]
#[pyo3(name = "status")]
pub(crate) fn read(py: Python<'_>) -> PyResult<Status> {
    py.detach(recovery::status::status)
        .map(|status| Status { status })
        .map_err(|error| errors::state_error(py, error))
}

#[pyclass(frozen, module = "vmsnapshot")]
pub(crate) struct Status {
    status: status::Status,
}

#[pymethods]
impl Status {
    #[getter]
    fn frozen(&self) -> Vec<FrozenFilesystem> {
        self.status.frozen.iter().map(Into::into).collect()
    }

    #[getter]
    fn runs(&self) -> Vec<RunStatus> {
        self.status.runs.iter().map(Into::into).collect()
    }

    #[getter]
    fn unreadable(&self) -> Vec<UnreadableLedger> {
        self.status.unreadable.iter().map(Into::into).collect()
    }

    #[getter]
    fn rcu_expedited(&self) -> RcuStatus {
        RcuStatus {
            value: self.status.rcu_expedited.value,
            held_by: self.status.rcu_expedited.held_by.clone(),
        }
    }

    fn to_json(&self) -> String {
        json(&self.status)
    }

    fn __repr__(&self) -> String {
        format!("<vmsnapshot.Status: {} frozen>", self.status.frozen.len())
    }
}

#[pyclass(frozen, get_all, module = "vmsnapshot")]
pub(crate) struct FrozenFilesystem {
    mount_point: String,
    device: String,
    run_id: String,
    since: Option<String>,
    state: String,
}

impl From<&status::FrozenFilesystem> for FrozenFilesystem {
    fn from(frozen: &status::FrozenFilesystem) -> Self {
        Self {
            mount_point: frozen.mount_point.clone(),
            device: frozen.device.clone(),
            run_id: frozen.run_id.clone(),
            since: frozen.since.clone(),
            state: name(frozen.state),
        }
    }
}

#[pyclass(frozen, get_all, module = "vmsnapshot")]
pub(crate) struct UnreadableLedger {
    path: String,
    why: String,
}

impl From<&status::UnreadableLedger> for UnreadableLedger {
    fn from(unreadable: &status::UnreadableLedger) -> Self {
        Self {
            path: unreadable.path.clone(),
            why: unreadable.why.clone(),
        }
    }
}

#[pyclass(frozen, get_all, module = "vmsnapshot")]
#[derive(Clone)]
pub(crate) struct RunFilesystem {
    mount_point: String,
    device: String,
    state: String,
    thawed_by: Option<String>,
    frozen_at: Option<String>,
    thawed_at: Option<String>,
}

impl From<&status::RunFilesystem> for RunFilesystem {
    fn from(filesystem: &status::RunFilesystem) -> Self {
        Self {
            mount_point: filesystem.mount_point.clone(),
            device: filesystem.device.clone(),
            state: name(filesystem.state),
            thawed_by: filesystem.thawed_by.clone(),
            frozen_at: filesystem.frozen_at.clone(),
            thawed_at: filesystem.thawed_at.clone(),
        }
    }
}

#[pyclass(frozen, get_all, module = "vmsnapshot")]
pub(crate) struct RunStatus {
    run_id: String,
    state: String,
    started_at: Option<String>,
    thaws_by: Option<String>,
    pid: Option<u32>,
    alive: Option<bool>,
    watchdog_pid: Option<u32>,
    watchdog_alive: Option<bool>,
    fired: Option<String>,
    finished: bool,
    filesystems: Vec<RunFilesystem>,
}

impl From<&status::RunStatus> for RunStatus {
    fn from(run: &status::RunStatus) -> Self {
        Self {
            run_id: run.run_id.clone(),
            state: name(run.state),
            started_at: run.started_at.clone(),
            thaws_by: run.thaws_by.clone(),
            pid: run.pid,
            alive: run.alive,
            watchdog_pid: run.watchdog_pid,
            watchdog_alive: run.watchdog_alive,
            fired: run.fired.map(name),
            finished: run.finished,
            filesystems: run.filesystems.iter().map(Into::into).collect(),
        }
    }
}

#[pyclass(frozen, get_all, module = "vmsnapshot")]
pub(crate) struct RcuStatus {
    value: Option<u32>,
    held_by: Option<String>,
}
