//! `Signatures` and `uri_without_query`: what a program needs to print what others wrote.

use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use vmsnapshot_core::{signatures, uri};

use crate::text::PlainText;

/// The signatures of SAS URIs; see `_native.pyi`.
#[pyclass(frozen, module = "vmsnapshot")]
pub(crate) struct Signatures {
    known: Mutex<signatures::Signatures>,
}

#[pymethods]
impl Signatures {
    #[new]
    fn new() -> Self {
        Self {
            known: Mutex::default(),
        }
    }

    fn add(&self, uri: PlainText) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.add(&uri.0);
    }

    fn add_secret(&self, secret: PlainText) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.add_secret(&secret.0);
    }

    fn removed_from<'py>(&self, text: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyAny>> {
        // A lone surrogate, which stands for a byte that is not UTF-8, must stay what it is.
        let how = ("utf-8", "surrogatepass");
        let bytes: Bound<'py, PyBytes> = text.call_method1("encode", how)?.cast_into()?;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let clean = known.removed_from_bytes(bytes.as_bytes());
        drop(known);
        PyBytes::new(text.py(), &clean).call_method1("decode", how)
    }

    fn __repr__(&self) -> &'static str {
        "<vmsnapshot.Signatures>"
    }
}

/// Returns what may be printed of a URI.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts a value")]
pub(crate) fn uri_without_query(uri: PlainText) -> String {
    uri::printable(&uri.0)
}
