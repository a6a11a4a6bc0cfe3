//! Starts the companion processes: the program that the library carries, run from memory.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::fs::{memfd_create, MemfdFlags};
use vmsnapshot_core::frames::{Frame, DIRECTORIES_PER_FRAME};
use vmsnapshot_sys::channel::Channel;
use vmsnapshot_sys::Errno;

/// The program of both companions, built by `build.rs`.
static PROGRAM: &[u8] = include_bytes!(env!("VMSNAPSHOT_WATCHDOG"));

/// Starts the program in a role (`watch` or `sync`) and returns the run's end of its channel.
///
/// The process is nobody's child: it leaves our session and process group at once. Its standard
/// output and error are closed to it, and of our descriptors it has only the channel.
///
/// *Blocking*: two to three milliseconds, for an exec and a fork.
///
/// # Errors
/// What the kernel answers; EACCES where `vm.memfd_noexec` forbids programs in memory.
pub(crate) fn start(role: &str) -> io::Result<Channel> {
    let program = program_in_memory()?;
    let (ours, theirs) = Channel::pair()?;
    let mut child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg0("vmsnapshot-watchdog")
        .arg(role)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    // It forks at once and ends; the process that stays is its child. Who ignores SIGCHLD, or waits
    // for every child, has reaped it already: that the process is there is said on the channel.
    let _ = child.wait();
    Ok(ours)
}

/// Hands over the directories' descriptors, in their order.
///
/// # Errors
/// What the kernel answers: EPIPE when the companion is gone.
pub(crate) fn send_directories(
    channel: &Channel,
    directories: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    for batch in directories.chunks(DIRECTORIES_PER_FRAME) {
        let count = u32::try_from(batch.len()).map_err(|_| Errno::TOOBIG)?;
        channel.send(Frame::Directories { count }, batch)?;
    }
    Ok(())
}

fn program_in_memory() -> io::Result<OwnedFd> {
    // Kernels before 6.3 do not know EXEC, and need not be told.
    let memory = memfd_create(
        "vmsnapshot-watchdog",
        MemfdFlags::CLOEXEC | MemfdFlags::EXEC,
    )
    .or_else(|errno| match errno {
        Errno::INVAL => memfd_create("vmsnapshot-watchdog", MemfdFlags::CLOEXEC),
        other => Err(other),
    })?;
    let mut file = std::fs::File::from(memory);
    file.write_all(PROGRAM)?;
    Ok(file.into())
}
