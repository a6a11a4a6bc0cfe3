//! The program that a run starts beside itself: `watch` or `sync`, talking on standard input.

use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;

use vmsnapshot_sys::channel::Channel;
use vmsnapshot_sys::kernel::{Kernel, Linux};
use vmsnapshot_sys::process;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        // The run hears the channel close and says which step failed; there is nowhere to print.
        Err(_) => ExitCode::FAILURE,
    }
}

fn run() -> std::io::Result<()> {
    // A message of a panic has nowhere to go but a file that may be on a frozen filesystem.
    std::panic::set_hook(Box::new(|_| {}));
    process::become_orphan()?;
    // Nobody asks this process to end: it ends when the run has, and nothing is frozen. The
    // mask goes with the process, so there is nothing to put back.
    let _ = process::block_signals();
    process::allow_all_descriptors();
    let channel = Channel::from_descriptor(std::io::stdin().as_fd().try_clone_to_owned()?);
    close_standard_input()?;
    let kernel: Arc<dyn Kernel> = Arc::new(Linux);
    match std::env::args().nth(1).as_deref() {
        Some("watch") => {
            process::set_process_name(c"vmsnapshot-watc");
            vmsnapshot_watchdog::watch(&channel, kernel)
        }
        Some("sync") => {
            process::set_process_name(c"vmsnapshot-sync");
            vmsnapshot_watchdog::sync(&Arc::new(channel), &kernel)
        }
        _ => Err(std::io::ErrorKind::InvalidInput.into()),
    }
}

/// Leaves the channel with one descriptor, so that dropping it closes it.
fn close_standard_input() -> std::io::Result<()> {
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(())
}
