//! Prepare, freeze, snapshot, thaw: everything that touches the machine, for plain Rust callers.

#![forbid(unsafe_code)]

pub mod connect;
