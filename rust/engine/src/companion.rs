//! Starts the companion processes. Their program is carried by the library and runs from memory.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::fs::{memfd_create, MemfdFlags};
use vmsnapshot_core::frames::Frame;
use vmsnapshot_sys::channel::Channel;
use vmsnapshot_sys::Errno;

pub(crate) mod ask;
mod replies;
pub(crate) mod sync;

/// The program of all companions, built by `build.rs`.
static PROGRAM: &[u8] = include_bytes!(env!("VMSNAPSHOT_WATCHDOG"));

/// What a companion process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It thaws when the run cannot.
    Watch,
    /// It writes out dirty data.
    Sync,
    /// It asks btrfs whether a scrub is under way.
    Scrub,
    /// It asks whether a block device is free. It is sent nodes in place of directories.
    Free,
    /// It asks loop devices where their files lie. It is sent nodes in place of directories.
    Loop,
}

/// Starts the program in a role and returns the run's end of its channel.
///
/// The process leaves our session and process group at once and becomes a child of init. Its
/// standard output and error go to `/dev/null`, and of our descriptors it has only the channel.
///
/// *Blocking*: two to three milliseconds, for an exec and a fork.
///
/// # Errors
/// The kernel's error: EACCES if `vm.memfd_noexec` forbids programs in memory.
pub(crate) fn start(role: Role) -> io::Result<Channel> {
    let program = program_in_memory()?;
    let (ours, theirs) = Channel::pair()?;
    let mut child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg0("vmsnapshot-watchdog")
        .arg(match role {
            Role::Watch => "watch",
            Role::Sync => "sync",
            Role::Scrub => "scrub",
            Role::Free => "free",
            Role::Loop => "loop",
        })
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    // This process forks and ends at once, and its child stays. A caller that ignores SIGCHLD, or
    // waits for every child, has reaped it already, so an error here means nothing: the companion
    // reports on the channel that it is there.
    let _ = child.wait();
    Ok(ours)
}

/// Starts the program in a role that makes one call for each directory, and sends it `directories`.
///
/// # Errors
/// The kernel's error.
fn start_for(role: Role, directories: &[BorrowedFd<'_>]) -> io::Result<Channel> {
    let count = u32::try_from(directories.len()).map_err(|_| Errno::TOOBIG)?;
    let channel = start(role)?;
    let hello = Frame::Hello {
        directories: count,
        has_pidfd: false,
        has_rcu: false,
    };
    let sent = channel
        .send(hello, &[])
        .and_then(|()| channel.send_directories(directories));
    match sent {
        // EPIPE: it has ended. Whoever receives its replies learns that.
        Ok(()) | Err(Errno::PIPE) => Ok(channel),
        Err(errno) => Err(errno.into()),
    }
}

fn program_in_memory() -> io::Result<OwnedFd> {
    // Kernels before 6.3 do not know EXEC. They let every memory file be executed.
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
