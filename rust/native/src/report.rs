//! The report of a run as frozen Python classes; `_native.pyi` says what each field is.

use std::collections::BTreeMap;

use pyo3::prelude::*;
use vmsnapshot_core::report;

use crate::names::{json, name};
use crate::plan::UnreadableMounts;

#[pyclass(frozen, get_all, module = "vmsnapshot")]
#[derive(Clone)]
pub(crate) struct FilesystemOutcome {
    mount_point: String,
    device: String,
    filesystem_type: String,
    level: u32,
    outcome: String,
    frozen_at: Option<String>,
    freeze_ms: Option<f64>,
    thawed_at: Option<String>,
    frozen_ms: Option<f64>,
    thawed_by: Option<String>,
    error: Option<String>,
}

impl From<report::FilesystemOutcome> for FilesystemOutcome {
    fn from(outcome: report::FilesystemOutcome) -> Self {
        Self {
            mount_point: outcome.mount_point,
            device: outcome.device,
            filesystem_type: outcome.filesystem_type,
            level: outcome.level,
            outcome: name(outcome.outcome),
            frozen_at: outcome.frozen_at,
            freeze_ms: outcome.freeze_ms,
            thawed_at: outcome.thawed_at,
            frozen_ms: outcome.frozen_ms,
            thawed_by: outcome.thawed_by.map(name),
            error: outcome.error,
        }
    }
}

#[pyclass(frozen, get_all, module = "vmsnapshot")]
#[derive(Clone)]
pub(crate) struct BlobOutcome {
    uri: String,
    outcome: String,
    snapshot: Option<String>,
    snapshot_uri: Option<String>,
    http_status: Option<u16>,
    error_code: Option<String>,
    message: Option<String>,
    retryable: bool,
    attempts: u32,
    answer_ms: Option<f64>,
    answered_late: bool,
    body: Option<String>,
}

impl From<report::BlobOutcome> for BlobOutcome {
    fn from(outcome: report::BlobOutcome) -> Self {
        Self {
            uri: outcome.uri,
            outcome: name(outcome.outcome),
            snapshot: outcome.snapshot,
            snapshot_uri: outcome.snapshot_uri,
            http_status: outcome.http_status,
            error_code: outcome.error_code,
            message: outcome.message,
            retryable: outcome.retryable,
            attempts: outcome.attempts,
            answer_ms: outcome.answer_ms,
            answered_late: outcome.answered_late,
            body: outcome.body,
        }
    }
}

#[pyclass(frozen, get_all, module = "vmsnapshot")]
#[derive(Clone)]
pub(crate) struct ApplicationOutcome {
    name: String,
    kind: String,
    required: bool,
    outcome: String,
    method: Option<String>,
    proof: Option<String>,
    ready_ms: Option<f64>,
    lock_wait_ms: Option<f64>,
    held_ms: Option<f64>,
    position: BTreeMap<String, String>,
    position_is: Option<String>,
    files: BTreeMap<String, String>,
    error_code: Option<String>,
    error: Option<String>,
}

impl From<report::ApplicationOutcome> for ApplicationOutcome {
    fn from(outcome: report::ApplicationOutcome) -> Self {
        Self {
            name: outcome.name,
            kind: outcome.kind,
            required: outcome.required,
            outcome: name(outcome.outcome),
            method: outcome.method,
            proof: outcome.proof.map(name),
            ready_ms: outcome.ready_ms,
            lock_wait_ms: outcome.lock_wait_ms,
            held_ms: outcome.held_ms,
            position: outcome.position,
            position_is: outcome.position_is.map(name),
            files: outcome.files,
            error_code: outcome.error_code,
            error: outcome.error,
        }
    }
}

#[pyclass(frozen, module = "vmsnapshot")]
pub(crate) struct CommandOutcome {
    outcome: report::CommandOutcome,
}

#[pymethods]
impl CommandOutcome {
    #[getter]
    fn program(&self) -> &str {
        &self.outcome.program
    }

    #[getter]
    fn outcome(&self) -> String {
        name(self.outcome.outcome)
    }

    #[getter]
    fn exit_status(&self) -> Option<i32> {
        self.outcome.exit_status
    }

    #[getter]
    fn signal(&self) -> Option<i32> {
        self.outcome.signal
    }

    #[getter]
    fn took_ms(&self) -> Option<f64> {
        self.outcome.took_ms
    }

    #[getter]
    fn output(&self) -> &[u8] {
        &self.outcome.output.0
    }

    #[getter]
    fn output_is_truncated(&self) -> bool {
        self.outcome.output_is_truncated
    }
}

#[pyclass(frozen, module = "vmsnapshot")]
pub(crate) struct HostCallOutcome {
    outcome: report::HostCallOutcome,
}

#[pymethods]
impl HostCallOutcome {
    #[getter]
    fn uri(&self) -> &str {
        &self.outcome.uri
    }

    #[getter]
    fn outcome(&self) -> String {
        name(self.outcome.outcome)
    }

    #[getter]
    fn http_status(&self) -> Option<u16> {
        self.outcome.http_status
    }

    #[getter]
    fn body(&self) -> &[u8] {
        &self.outcome.body.0
    }

    #[getter]
    fn body_is_complete(&self) -> bool {
        self.outcome.body_is_complete
    }

    #[getter]
    fn error_code(&self) -> Option<&str> {
        self.outcome.error_code.as_deref()
    }

    #[getter]
    fn message(&self) -> Option<&str> {
        self.outcome.message.as_deref()
    }

    #[getter]
    fn attempts(&self) -> u32 {
        self.outcome.attempts
    }

    #[getter]
    fn answer_ms(&self) -> Option<f64> {
        self.outcome.answer_ms
    }

    #[getter]
    fn answered_late(&self) -> bool {
        self.outcome.answered_late
    }
}

impl From<report::HostCallOutcome> for HostCallOutcome {
    fn from(outcome: report::HostCallOutcome) -> Self {
        Self { outcome }
    }
}

#[pyclass(frozen, get_all, module = "vmsnapshot")]
#[derive(Clone)]
pub(crate) struct TimelineEvent {
    at_ms: f64,
    event: String,
    subject: Option<String>,
    detail: Option<String>,
}

impl From<report::TimelineEvent> for TimelineEvent {
    fn from(event: report::TimelineEvent) -> Self {
        Self {
            at_ms: event.at_ms,
            event: name(event.event),
            subject: event.subject,
            detail: event.detail,
        }
    }
}

#[pyclass(frozen, get_all, module = "vmsnapshot")]
#[derive(Clone)]
pub(crate) struct Mode {
    rcu_expedited: bool,
    rcu_why_not: Option<String>,
    parallel: bool,
}

impl From<report::Mode> for Mode {
    fn from(mode: report::Mode) -> Self {
        Self {
            rcu_expedited: mode.rcu_expedited,
            rcu_why_not: mode.rcu_why_not,
            parallel: mode.parallel,
        }
    }
}

#[pyclass(frozen, get_all, module = "vmsnapshot")]
#[derive(Clone)]
pub(crate) struct WatchdogOutcome {
    pid: u32,
    fired: Option<String>,
    released: bool,
    own_control_group: bool,
    peak_memory_kib: Option<u64>,
}

impl From<report::WatchdogOutcome> for WatchdogOutcome {
    fn from(outcome: report::WatchdogOutcome) -> Self {
        Self {
            pid: outcome.pid,
            fired: outcome.fired.map(name),
            released: outcome.released,
            own_control_group: outcome.own_control_group,
            peak_memory_kib: outcome.peak_memory_kib,
        }
    }
}

#[pyclass(frozen, module = "vmsnapshot")]
pub(crate) struct Report {
    report: report::Report,
}

#[pymethods]
impl Report {
    #[getter]
    fn run_id(&self) -> &str {
        &self.report.run_id
    }

    #[getter]
    fn started_at(&self) -> &str {
        &self.report.started_at
    }

    #[getter]
    fn consistent(&self) -> bool {
        self.report.consistent
    }

    #[getter]
    fn consistency(&self) -> String {
        name(self.report.consistency)
    }

    #[getter]
    fn why(&self) -> Option<&str> {
        self.report.why.as_deref()
    }

    #[getter]
    fn freeze_doubt(&self) -> Option<&str> {
        self.report.freeze_doubt.as_deref()
    }

    #[getter]
    fn freeze_doubt_code(&self) -> Option<String> {
        self.report.freeze_doubt_code.map(name)
    }

    #[getter]
    fn all_thawed(&self) -> bool {
        self.report.all_thawed
    }

    #[getter]
    fn window_ms(&self) -> Option<f64> {
        self.report.window_ms
    }

    #[getter]
    fn thaw_timeout_ms(&self) -> f64 {
        self.report.thaw_timeout_ms
    }

    #[getter]
    fn mode(&self) -> Mode {
        self.report.mode.clone().into()
    }

    #[getter]
    fn filesystems(&self) -> Vec<FilesystemOutcome> {
        self.report
            .filesystems
            .iter()
            .cloned()
            .map(Into::into)
            .collect()
    }

    #[getter]
    fn unreadable_mounts(&self) -> Vec<UnreadableMounts> {
        let unreadable = self.report.unreadable_mounts.iter();
        unreadable.cloned().map(Into::into).collect()
    }

    #[getter]
    fn blobs(&self) -> Vec<BlobOutcome> {
        self.report.blobs.iter().cloned().map(Into::into).collect()
    }

    #[getter]
    fn applications(&self) -> Vec<ApplicationOutcome> {
        let applications = self.report.applications.iter();
        applications.cloned().map(Into::into).collect()
    }

    #[getter]
    fn command(&self) -> Option<CommandOutcome> {
        let command = self.report.command.clone();
        command.map(|outcome| CommandOutcome { outcome })
    }

    #[getter]
    fn host_call(&self) -> Option<HostCallOutcome> {
        self.report.host_call.clone().map(Into::into)
    }

    #[getter]
    fn watchdog(&self) -> WatchdogOutcome {
        self.report.watchdog.clone().into()
    }

    #[getter]
    fn timeline(&self) -> Vec<TimelineEvent> {
        self.report
            .timeline
            .iter()
            .cloned()
            .map(Into::into)
            .collect()
    }

    fn to_json(&self) -> String {
        json(&self.report)
    }

    fn __repr__(&self) -> String {
        format!(
            "<vmsnapshot.Report {}: {}>",
            self.report.run_id,
            self.consistency()
        )
    }
}

impl From<report::Report> for Report {
    fn from(report: report::Report) -> Self {
        Self { report }
    }
}
