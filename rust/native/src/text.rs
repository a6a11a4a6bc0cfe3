//! Text that Python passes in.
//!
//! A Python string can hold what UTF-8 cannot: a byte of an argument, a variable or a file name that is not
//! UTF-8 becomes a lone surrogate (PEP 383). For such a string, the conversion of PyO3 raises
//! `UnicodeEncodeError`, which names neither the subject nor a remedy, and whose `repr` holds the whole text,
//! also if that is a secret. These types accept every string.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use vmsnapshot_core::text::bytes_text;

/// A pattern that selects filesystems. A byte that is not UTF-8 is written `\xNN`, as plans print it.
pub(crate) struct PatternText(pub(crate) String);

impl<'py> FromPyObject<'_, 'py> for PatternText {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        Ok(Self(bytes_text(bytes_of(object)?.as_bytes())))
    }
}

/// A text that must be ASCII, such as a URI. What is not UTF-8 becomes U+FFFD, which its parser refuses.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PlainText(pub(crate) String);

impl<'py> FromPyObject<'_, 'py> for PlainText {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let bytes = bytes_of(object)?;
        Ok(Self(String::from_utf8_lossy(bytes.as_bytes()).into_owned()))
    }
}

/// Returns the patterns as the core expects them.
pub(crate) fn patterns(texts: Vec<PatternText>) -> Vec<String> {
    texts.into_iter().map(|text| text.0).collect()
}

fn bytes_of<'py>(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let text = object.cast::<PyString>()?;
    let encode = |errors: &str| text.call_method1("encode", ("utf-8", errors));
    // A surrogate that stands for no byte can only come from a caller in Python.
    let bytes = encode("surrogateescape").or_else(|_| encode("surrogatepass"))?;
    Ok(bytes.cast_into()?)
}
