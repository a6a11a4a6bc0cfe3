//! `vmsnapshot._native`: the engine as a Python module. No other code uses PyO3.
//!
//! Each verb has its own file. The functions take plain values, check them and return frozen
//! classes. Every call that can wait releases the interpreter for its whole length.

#![forbid(unsafe_code)]

mod applications;
mod control_group;
mod errors;
mod host_call;
mod machine;
mod names;
mod observer;
mod plan;
mod prepare;
mod report;
mod session;
mod signatures;
mod status;
mod text;
mod thaw;
mod time_limit;
mod trust_roots;

use pyo3::prelude::*;

/// Returns the version of the compiled engine.
#[pyfunction]
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(machine::read, module)?)?;
    module.add_class::<machine::Machine>()?;
    module.add_class::<machine::Mount>()?;
    module.add_class::<machine::BlockDevice>()?;

    module.add_function(wrap_pyfunction!(plan::make, module)?)?;
    module.add_class::<plan::Plan>()?;
    module.add_class::<plan::PlannedFilesystem>()?;
    module.add_class::<plan::SkippedFilesystem>()?;
    module.add_class::<plan::UnreadableMounts>()?;

    module.add_function(wrap_pyfunction!(prepare::prepare, module)?)?;
    module.add_function(wrap_pyfunction!(trust_roots::read, module)?)?;
    module.add_class::<host_call::HostCall>()?;
    module.add_class::<session::Session>()?;

    module.add_function(wrap_pyfunction!(signatures::uri_without_query, module)?)?;
    module.add_class::<signatures::Signatures>()?;

    module.add_class::<report::Report>()?;
    module.add_class::<report::FilesystemOutcome>()?;
    module.add_class::<report::ApplicationOutcome>()?;
    module.add_class::<report::BlobOutcome>()?;
    module.add_class::<report::CommandOutcome>()?;
    module.add_class::<report::HostCallOutcome>()?;
    module.add_class::<report::TimelineEvent>()?;
    module.add_class::<report::Mode>()?;
    module.add_class::<report::WatchdogOutcome>()?;

    module.add_function(wrap_pyfunction!(status::read, module)?)?;
    module.add_class::<status::Status>()?;
    module.add_class::<status::FrozenFilesystem>()?;
    module.add_class::<status::RunStatus>()?;
    module.add_class::<status::RunFilesystem>()?;
    module.add_class::<status::RcuStatus>()?;
    module.add_class::<status::UnreadableLedger>()?;

    module.add_function(wrap_pyfunction!(thaw::thaw, module)?)?;
    module.add_class::<thaw::ThawResult>()?;
    module.add_class::<thaw::Thawed>()?;
    module.add_class::<thaw::ThawFailed>()?;
    module.add_class::<thaw::ThawLeftAlone>()?;

    module.add_function(wrap_pyfunction!(control_group::give_control_group, module)?)?;
    module.add_function(wrap_pyfunction!(
        control_group::leave_control_group,
        module
    )?)?;
    module.add_function(wrap_pyfunction!(names::error_codes, module)?)?;
    module.add_function(wrap_pyfunction!(names::names, module)?)?;
    module.add_function(wrap_pyfunction!(version, module)?)?;
    Ok(())
}
