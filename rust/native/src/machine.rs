//! `machine`: what is mounted, and on which block devices.

use std::ffi::OsString;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::plan::Selection;
use vmsnapshot_core::{devices, machine};
use vmsnapshot_engine::scan;

use crate::errors;
use crate::observer::PythonObserver;
use crate::plan::Plan;
use crate::text::{patterns, PatternText};

/// Reads what is mounted on this machine, and on what.
#[pyfunction]
#[pyo3(name = "machine")]
pub(crate) fn read(py: Python<'_>) -> PyResult<Machine> {
    let mut observer = PythonObserver::new(None);
    let machine = py.detach(|| scan::machine(&mut observer));
    observer
        .planned(py, machine)
        .map(|machine| Machine { machine })
}

#[pyclass(frozen, module = "vmsnapshot")]
pub(crate) struct Machine {
    machine: machine::Machine,
}

#[pymethods]
impl Machine {
    #[getter]
    fn mounts(&self) -> Vec<Mount> {
        let mounts = self.machine.mounts();
        mounts.into_iter().map(Into::into).collect()
    }

    #[getter]
    fn block_devices(&self) -> Vec<BlockDevice> {
        let devices = self.machine.devices.block_devices();
        devices.map(Into::into).collect()
    }

    #[pyo3(signature = (
        *, include = Vec::new(), exclude = Vec::new(), exclude_mounts = Vec::new(),
        unusable_excludes = "refuse"
    ))]
    fn plan(
        &self,
        py: Python<'_>,
        include: Vec<PatternText>,
        exclude: Vec<PatternText>,
        exclude_mounts: Vec<Bound<'_, Mount>>,
        unusable_excludes: &str,
    ) -> PyResult<Plan> {
        let (include, exclude) = (patterns(include), patterns(exclude));
        let selection = match unusable_excludes {
            "refuse" => Selection::parse(&include, &exclude),
            "report" => Selection::parse_leniently(&include, &exclude),
            _ => {
                return Err(PyValueError::new_err(
                    "unusable_excludes is neither 'refuse' nor 'report'",
                ))
            }
        };
        let excluded = exclude_mounts.iter().map(|mount| mount.get().number);
        selection
            .and_then(|selection| {
                let excluded_devices = excluded.collect();
                let selection = Selection {
                    excluded_devices,
                    ..selection
                };
                py.detach(|| self.machine.plan(&selection))
            })
            .map(Plan::from)
            .map_err(|error| errors::plan_error(py, &error))
    }

    fn __repr__(&self) -> String {
        format!(
            "<vmsnapshot.Machine of {} mounts, {} block devices>",
            self.machine.mounts().len(),
            self.machine.devices.block_devices().count()
        )
    }
}

#[pyclass(frozen, module = "vmsnapshot")]
#[derive(Clone)]
pub(crate) struct Mount {
    number: DeviceNumber,
    #[pyo3(get)]
    mount_id: u32,
    #[pyo3(get)]
    parent_id: u32,
    #[pyo3(get)]
    root: OsString,
    #[pyo3(get)]
    mount_point: OsString,
    #[pyo3(get)]
    mount_options: String,
    #[pyo3(get)]
    filesystem_type: String,
    #[pyo3(get)]
    source: String,
    #[pyo3(get)]
    super_options: String,
    #[pyo3(get)]
    is_visible: bool,
    #[pyo3(get)]
    is_on_local_block_device: bool,
    #[pyo3(get)]
    block_devices: Vec<String>,
}

#[pymethods]
impl Mount {
    #[getter]
    fn device(&self) -> String {
        self.number.to_string()
    }

    fn __repr__(&self) -> String {
        format!(
            "<vmsnapshot.Mount of {} ({}), {}>",
            self.number,
            self.filesystem_type,
            if self.is_visible {
                "visible"
            } else {
                "covered by another"
            }
        )
    }
}

impl From<machine::Mount<'_>> for Mount {
    fn from(mount: machine::Mount<'_>) -> Self {
        let entry = mount.entry;
        Self {
            number: entry.device,
            mount_id: entry.mount_id,
            parent_id: entry.parent_id,
            root: entry.root.clone().into_os_string(),
            mount_point: entry.mount_point.clone().into_os_string(),
            mount_options: entry.mount_options.clone(),
            filesystem_type: entry.filesystem_type.clone(),
            source: entry.source.clone(),
            super_options: entry.super_options.clone(),
            is_visible: mount.is_visible,
            is_on_local_block_device: entry.is_on_local_block_device(),
            block_devices: mount.block_devices.iter().map(texts).collect(),
        }
    }
}

#[pyclass(frozen, get_all, module = "vmsnapshot")]
#[derive(Clone)]
pub(crate) struct BlockDevice {
    number: String,
    names: Vec<String>,
    directory: OsString,
    parents: Vec<String>,
    backing_file: Option<OsString>,
}

impl From<&devices::BlockDevice> for BlockDevice {
    fn from(device: &devices::BlockDevice) -> Self {
        Self {
            number: device.number.to_string(),
            names: device.names.clone(),
            directory: device.directory.clone().into_os_string(),
            parents: device.parents.iter().map(texts).collect(),
            backing_file: device
                .backing_file
                .clone()
                .map(std::path::PathBuf::into_os_string),
        }
    }
}

fn texts(number: &DeviceNumber) -> String {
    number.to_string()
}
