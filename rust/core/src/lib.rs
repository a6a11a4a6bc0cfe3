//! The data and the rules of filesystem-consistent snapshots.
//!
//! The crate decides what to freeze and in which order, once per superblock. It defines the blob
//! requests, the meaning of their answers, the ledger that the run and its watchdog share, and the
//! verdict on the snapshots.
//!
//! Nothing in this crate does input or output, reads a clock, or is unsafe.

#![forbid(unsafe_code)]

pub mod application;
pub mod blob;
pub mod deadlines;
mod decoded;
pub mod device_number;
pub mod devices;
pub mod error_kind;
pub mod frames;
pub mod host_call;
pub mod ledger;
mod ledger_header;
pub mod machine;
mod mount_tree;
pub mod mountinfo;
mod names;
pub mod pattern;
pub mod phase;
pub mod plan;
pub mod report;
pub mod secret;
pub mod signatures;
pub mod status;
pub mod text;
pub mod uri;
pub mod verdict;
