//! The applications of a run, which Python holds.

use std::time::Duration;

use pyo3::prelude::*;
use vmsnapshot_core::application::ApplicationRecord;
use vmsnapshot_engine::applications::{Applications, NotQuiesced, Release};
use vmsnapshot_engine::error::PrepareError;
use vmsnapshot_engine::packet_socket::PacketSocket;

/// Starts the keeper of `applications`, unless there are none. It makes them ready meanwhile.
pub(crate) fn start_keeper(
    py: Python<'_>,
    applications: Vec<Py<PyAny>>,
) -> PyResult<Option<Py<PyAny>>> {
    if applications.is_empty() {
        return Ok(None);
    }
    let class = py.import("vmsnapshot.quiesce.keeper")?.getattr("Keeper")?;
    Ok(Some(class.call1((applications,))?.unbind()))
}

/// Asks and tells a `vmsnapshot.quiesce.keeper.Keeper`.
///
/// The release does not ask Python: another thread may have the interpreter for milliseconds, and
/// everybody waits for the applications. It writes to the keeper's socket.
pub(crate) struct PythonApplications {
    keeper: Option<(Py<PyAny>, PacketSocket)>,
    /// The exception that ended the run before it froze.
    raised: Option<PyErr>,
}

impl PythonApplications {
    pub(crate) fn new(py: Python<'_>, keeper: Option<&Py<PyAny>>) -> PyResult<Self> {
        let keeper = match keeper {
            Some(keeper) => {
                let descriptor = keeper.call_method0(py, "fileno")?.extract(py)?;
                let socket =
                    PacketSocket::duplicate_of(descriptor).map_err(std::io::Error::from)?;
                Some((keeper.clone_ref(py), socket))
            }
            None => None,
        };
        Ok(Self {
            keeper,
            raised: None,
        })
    }

    /// Raises the exception that ended the run, or returns what `otherwise` makes of its result.
    pub(crate) fn outcome<Output>(
        self,
        result: Result<Output, PrepareError>,
        otherwise: impl FnOnce(Result<Output, PrepareError>) -> PyResult<Output>,
    ) -> PyResult<Output> {
        match (result, self.raised) {
            (Err(_), Some(raised)) => Err(raised),
            (result, _) => otherwise(result),
        }
    }
}

impl Applications for PythonApplications {
    fn quiesce(&mut self, limit: Duration, hold: Duration) -> Result<(), NotQuiesced> {
        let Some((keeper, _)) = &self.keeper else {
            return Ok(());
        };
        let limits = (limit.as_secs_f64(), hold.as_secs_f64());
        let result = Python::attach(|py| keeper.call_method1(py, "quiesce", limits).map(|_| ()));
        result.map_err(|raised| {
            let why = raised.to_string();
            self.raised = Some(raised);
            NotQuiesced(why)
        })
    }

    fn release(&mut self, release: Release) {
        if let Some((_, socket)) = &self.keeper {
            // The names that `vmsnapshot.quiesce.link` knows.
            let packet: &[u8] = match release {
                Release::Asked => b"{\"release\": \"asked\"}",
                Release::NotAsked => b"{\"release\": \"not-asked\"}",
            };
            // If the keeper is gone, so are the sessions that it held.
            let _ = socket.send(packet);
        }
    }

    fn records(&mut self) -> Vec<ApplicationRecord> {
        let Some((keeper, _)) = &self.keeper else {
            return Vec::new();
        };
        let document: PyResult<String> =
            Python::attach(|py| keeper.call_method0(py, "records")?.extract(py));
        let records = document.map(|document| serde_json::from_str(&document));
        match records {
            Ok(Ok(records)) => records,
            // The keeper's own end makes records as well, so this is a defect. It must not make the set
            // look like one that no application was asked for.
            Ok(Err(_)) | Err(_) => vec![ApplicationRecord::unknown("no record could be read")],
        }
    }
}
