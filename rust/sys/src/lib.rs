//! The system calls of vmsnapshot, shared by the run and its watchdog: the only unsafe code.
//!
//! Each module covers one service of the kernel. There is no policy here.

pub mod block_device;
pub mod btrfs;
pub mod channel;
pub mod clock;
pub mod control_group;
pub mod errno;
pub mod faults;
pub mod kernel;
pub mod ledger_file;
pub mod ledger_guard;
mod ledger_memory;
pub mod loop_device;
pub mod mount_namespace;
pub mod packet_socket;
pub mod place;
pub mod process;
pub mod signal;
pub mod user_namespace;

pub use rustix::io::Errno;
