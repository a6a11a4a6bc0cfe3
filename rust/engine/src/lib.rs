//! Everything that touches the machine: what is mounted, and in time the run itself.

#![forbid(unsafe_code)]

pub mod scan;
