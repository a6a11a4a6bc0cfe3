//! `HostCall`: one POST to a host that takes the snapshots by itself.

use pyo3::prelude::*;
use vmsnapshot_core::host_call;

use crate::errors;
use crate::text::PlainText;

#[pyclass(frozen, module = "vmsnapshot")]
pub(crate) struct HostCall {
    pub(crate) call: host_call::HostCall,
}

#[pymethods]
impl HostCall {
    #[new]
    #[pyo3(signature = (uri, *, headers, body, time_limit = 40.0))]
    fn new(
        py: Python<'_>,
        uri: PlainText,
        headers: Vec<(PlainText, PlainText)>,
        body: Vec<u8>,
        time_limit: f64,
    ) -> PyResult<Self> {
        let limit = crate::time_limit::time_limit("host call time limit", time_limit);
        let headers = headers
            .into_iter()
            .map(|(name, value)| (name.0, value.0))
            .collect();
        let call =
            limit.and_then(|limit| Ok(host_call::HostCall::new(&uri.0, headers, body, limit)?));
        match call {
            Ok(call) => Ok(Self { call }),
            Err(error) => Err(errors::prepare_error(py, &error)),
        }
    }

    #[getter]
    fn uri(&self) -> &str {
        self.call.uri().uri_without_query()
    }

    fn __repr__(&self) -> String {
        format!("<vmsnapshot.HostCall {}>", self.call.uri())
    }
}
