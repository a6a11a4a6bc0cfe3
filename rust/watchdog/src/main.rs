//! The program that a run starts beside itself: `watch` or `sync`, talking on standard input.

#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;

use vmsnapshot_core::frames::Frame;
use vmsnapshot_sys::channel::Channel;
use vmsnapshot_sys::kernel::{Kernel, Linux};
use vmsnapshot_sys::process;

fn main() -> ExitCode {
    process::close_inherited_descriptors();
    // A message of a panic has nowhere to go but a file that may be on a frozen filesystem.
    std::panic::set_hook(Box::new(|_| {}));
    let Ok(channel) = open_channel() else {
        return ExitCode::FAILURE;
    };
    match run(&channel) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(0).unsigned_abs();
            // If the run cannot hear it, it hears the channel close.
            let _ = channel.send(Frame::Failed { errno }, &[]);
            ExitCode::FAILURE
        }
    }
}

fn run(channel: &Arc<Channel>) -> std::io::Result<()> {
    process::become_orphan()?;
    // Nobody asks this process to end: it ends when the run has, and nothing is frozen. The
    // mask goes with the process, so there is nothing to put back.
    let _ = process::block_signals();
    process::allow_all_descriptors();
    let kernel: Arc<dyn Kernel> = Arc::new(Linux);
    match std::env::args().nth(1).as_deref() {
        Some("watch") => {
            process::set_process_name(c"vmsnapshot-watc");
            vmsnapshot_watchdog::watch(channel, kernel)
        }
        Some("sync") => {
            process::set_process_name(c"vmsnapshot-sync");
            vmsnapshot_watchdog::sync(channel, &kernel)
        }
        _ => Err(std::io::ErrorKind::InvalidInput.into()),
    }
}

/// The channel that standard input is, with one descriptor, so that dropping it closes it.
fn open_channel() -> std::io::Result<Arc<Channel>> {
    let channel = Channel::from_descriptor(std::io::stdin().as_fd().try_clone_to_owned()?);
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(Arc::new(channel))
}
