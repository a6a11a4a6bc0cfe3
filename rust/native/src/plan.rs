//! `plan`: plans what a run would freeze.

use std::ffi::OsString;

use pyo3::prelude::*;
use vmsnapshot_core::plan;
use vmsnapshot_engine::scan;

use crate::names::json;
use crate::observer::PythonObserver;
use crate::text::{patterns, PatternText};

/// Reads what is mounted and plans what a run would freeze.
#[pyfunction]
#[pyo3(name = "plan", signature = (*, include = Vec::new(), exclude = Vec::new()))]
pub(crate) fn make(
    py: Python<'_>,
    include: Vec<PatternText>,
    exclude: Vec<PatternText>,
) -> PyResult<Plan> {
    let mut observer = PythonObserver::new(None);
    let plan = plan::Selection::parse(&patterns(include), &patterns(exclude))
        .and_then(|selection| py.detach(|| scan::machine(&mut observer)?.plan(&selection)));
    observer.planned(py, plan).map(Plan::from)
}

#[pyclass(frozen, get_all, module = "vmsnapshot")]
#[derive(Clone)]
pub(crate) struct PlannedFilesystem {
    mount_point: OsString,
    open_path: OsString,
    also_mounted_at: Vec<OsString>,
    device: String,
    source: String,
    filesystem_type: String,
    level: u32,
}

impl From<plan::PlannedFilesystem> for PlannedFilesystem {
    fn from(planned: plan::PlannedFilesystem) -> Self {
        Self {
            mount_point: planned.mount_point.into_os_string(),
            open_path: planned.open_path.into_os_string(),
            also_mounted_at: planned
                .also_mounted_at
                .into_iter()
                .map(std::path::PathBuf::into_os_string)
                .collect(),
            device: planned.device.to_string(),
            source: planned.source,
            filesystem_type: planned.filesystem_type,
            level: planned.level,
        }
    }
}

#[pyclass(frozen, get_all, module = "vmsnapshot")]
#[derive(Clone)]
pub(crate) struct SkippedFilesystem {
    mount_point: OsString,
    device: String,
    source: String,
    filesystem_type: String,
    reason: String,
    why: String,
}

impl From<plan::SkippedFilesystem> for SkippedFilesystem {
    fn from(skipped: plan::SkippedFilesystem) -> Self {
        Self {
            mount_point: skipped.mount_point.into_os_string(),
            device: skipped.device.to_string(),
            source: skipped.source,
            filesystem_type: skipped.filesystem_type,
            reason: skipped.reason.code().to_owned(),
            why: skipped.reason.to_string(),
        }
    }
}

#[pyclass(frozen, get_all, module = "vmsnapshot")]
#[derive(Clone)]
pub(crate) struct UnreadableMounts {
    path: String,
    why: String,
}

impl From<plan::UnreadableMounts> for UnreadableMounts {
    fn from(unreadable: plan::UnreadableMounts) -> Self {
        Self {
            path: unreadable.path,
            why: unreadable.why,
        }
    }
}

#[pyclass(frozen, module = "vmsnapshot")]
pub(crate) struct Plan {
    pub(crate) plan: plan::Plan,
}

#[pymethods]
impl Plan {
    #[getter]
    fn filesystems(&self) -> Vec<PlannedFilesystem> {
        self.plan
            .filesystems
            .iter()
            .cloned()
            .map(Into::into)
            .collect()
    }

    #[getter]
    fn skipped(&self) -> Vec<SkippedFilesystem> {
        self.plan.skipped.iter().cloned().map(Into::into).collect()
    }

    #[getter]
    fn unreadable_mounts(&self) -> Vec<UnreadableMounts> {
        let unreadable = self.plan.unreadable_mounts.iter();
        unreadable.cloned().map(Into::into).collect()
    }

    #[getter]
    fn unmatched_excludes(&self) -> Vec<String> {
        self.plan.unmatched_excludes.clone()
    }

    #[getter]
    fn unusable_excludes(&self) -> Vec<(String, String)> {
        self.plan
            .unusable_excludes
            .iter()
            .map(|error| (error.pattern.clone(), error.to_string()))
            .collect()
    }

    fn without_filesystems(&self) -> Plan {
        self.plan.without_filesystems().into()
    }

    fn to_json(&self) -> String {
        json(&self.plan)
    }

    fn __repr__(&self) -> String {
        format!(
            "<vmsnapshot.Plan of {} filesystems, {} skipped>",
            self.plan.filesystems.len(),
            self.plan.skipped.len()
        )
    }
}

impl From<plan::Plan> for Plan {
    fn from(plan: plan::Plan) -> Self {
        Self { plan }
    }
}
