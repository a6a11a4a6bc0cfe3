//! The program that a run starts beside itself, as `watch`, `sync`, `scrub`, `free` or `loop`. Its
//! standard input is the channel to the run.

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
    // A panic's message could only go to a file, and that file may be on a frozen filesystem.
    std::panic::set_hook(Box::new(|_| {}));
    let Ok(channel) = open_channel() else {
        return ExitCode::FAILURE;
    };
    match run(&channel) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(0).unsigned_abs();
            // If the run cannot receive this, it still notices that the channel closes.
            let _ = channel.send(Frame::Failed { errno }, &[]);
            ExitCode::FAILURE
        }
    }
}

fn run(channel: &Arc<Channel>) -> std::io::Result<()> {
    process::become_orphan()?;
    // No signal may end this process: it ends when the run has ended and nothing is frozen. The old
    // mask is not needed again.
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
        Some("scrub") => {
            process::set_process_name(c"vmsnapshot-scru");
            vmsnapshot_watchdog::look_for_scrubs(channel)
        }
        Some("free") => {
            process::set_process_name(c"vmsnapshot-free");
            vmsnapshot_watchdog::look_for_free_devices(channel)
        }
        Some("loop") => {
            process::set_process_name(c"vmsnapshot-loop");
            vmsnapshot_watchdog::look_for_backing_files(channel)
        }
        _ => Err(std::io::ErrorKind::InvalidInput.into()),
    }
}

/// Takes the channel from standard input. Its descriptor is then the only one, so dropping the
/// channel closes it.
fn open_channel() -> std::io::Result<Arc<Channel>> {
    let channel = Channel::from_descriptor(std::io::stdin().as_fd().try_clone_to_owned()?);
    rustix::stdio::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(Arc::new(channel))
}
