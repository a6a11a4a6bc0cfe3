//! What a process changes about itself, and what it can find out about other processes.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::mm::{mlockall, MlockAllFlags};
use rustix::process::{pidfd_open, Pid, PidfdFlags};
use rustix::thread::CapabilitySet;
use vmsnapshot_core::ledger::ProcessName;

/// Returns a descriptor that becomes readable when this process is gone with all its threads.
///
/// Returns `None` on kernels before 5.3. There, only the closing of a socket shows that a process
/// is gone.
#[must_use]
pub fn own_pidfd() -> Option<OwnedFd> {
    pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).ok()
}

/// Waits until a child has ended, and leaves it to be waited for again: its number stays its own.
///
/// *Blocking*: until then.
pub fn wait_for_end(child: u32) {
    use rustix::process::{waitid, WaitId, WaitIdOptions};
    let Some(child) = Pid::from_raw(child.cast_signed()) else {
        return;
    };
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while matches!(waitid(WaitId::Pid(child), ended), Err(Errno::INTR)) {}
}

/// Sends SIGKILL to the process group of a child that leads it and has not been waited for.
pub fn kill_group(leader: u32) {
    if let Some(group) = Pid::from_raw(leader.cast_signed()) {
        // It may have no process any more.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
}

/// Leaves the caller's process group, session and parent.
///
/// The calling process ends here. Its child goes on and is adopted by init, so the run does not
/// have to wait for it. A signal to the group does not reach it.
///
/// # Errors
/// The kernel's error from fork or setsid.
pub fn become_orphan() -> io::Result<()> {
    // SAFETY: the caller (a companion's `main`, before it starts a thread) is single-threaded, so
    // the child may do all that the parent might.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            rustix::process::setsid()?;
            Ok(())
        }
        // SAFETY: _exit ends the process without running anything of ours.
        _ => unsafe { libc::_exit(0) },
    }
}

/// Blocks every signal that can be blocked, for this thread and the threads that it starts.
///
/// Returns the mask from before, for [`restore_signals`].
#[must_use]
pub fn block_signals() -> SignalMask {
    // SAFETY: sigset_t is plain data, and the two functions below fill it in.
    let (mut all, mut before): (libc::sigset_t, libc::sigset_t) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    // SAFETY: both point to live sigset_t values. The call fails only for a wrong first argument.
    unsafe {
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
    }
    SignalMask(before)
}

/// Puts a thread's signal mask back. Signals that were blocked meanwhile are delivered now.
pub fn restore_signals(mask: &SignalMask) {
    // SAFETY: pthread_sigmask wrote this mask.
    unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask.0, std::ptr::null_mut());
    }
}

/// A thread's signal mask.
pub struct SignalMask(libc::sigset_t);

/// Locks all present and future memory, so that it is not paged out.
///
/// A page is locked when it is first touched (`MCL_ONFAULT`). That takes 0.6 instead of 3 ms, and
/// less memory.
///
/// # Errors
/// The kernel's error: EPERM or ENOMEM without CAP_IPC_LOCK.
pub fn lock_memory() -> Result<(), Errno> {
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
}

/// How urgent a thread is. Later variants run before earlier ones, and both before ordinary
/// threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// A freeze thread of a run.
    Freezer,
    /// A watchdog. It is above the freeze threads, so no fault of the run can delay it.
    Watchdog,
}

/// Runs this thread, and the threads that it starts, before every ordinary thread. A busy machine
/// then does not delay a freeze or a thaw.
///
/// # Errors
/// The kernel's error: EPERM if this process may not use real-time scheduling.
pub fn run_before_others(urgency: Urgency) -> io::Result<()> {
    let sched_priority = match urgency {
        Urgency::Freezer => 1,
        Urgency::Watchdog => 2,
    };
    let parameters = libc::sched_param { sched_priority };
    // SAFETY: the pointer is to a live sched_param, and 0 names this thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Closes every descriptor except the standard three.
///
/// The caller of the run may have opened some (a lock, a pipe) without close-on-exec. A companion
/// can hang on a dead disk, and must not keep them open for so long.
pub fn close_inherited_descriptors() {
    // SAFETY: a companion's `main` calls this first, when nothing in this process owns a
    // descriptor above 2. Kernels before 5.9 lack the call.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) } == 0 {
        return;
    }
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let descriptors: Vec<libc::c_int> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|descriptor| *descriptor > 2)
        .collect();
    for descriptor in descriptors {
        // SAFETY: as above. The directory's own descriptor is closed by now and gives EBADF.
        unsafe { libc::close(descriptor) };
    }
}

/// Raises this process's limit on descriptors to its maximum. A run may have a thousand
/// filesystems, and the usual limit is 1024.
pub fn allow_all_descriptors() {
    use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    // If this fails, the first descriptor above the limit is an error.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    );
}

/// Releases a lock for every process that holds a copy of its descriptor.
pub fn unlock(lock: BorrowedFd<'_>) {
    // Unlocking cannot fail for the descriptor of a lock.
    let _ = rustix::fs::flock(lock, rustix::fs::FlockOperation::Unlock);
}

/// Sets the name (15 bytes at most) that `ps` and `top` show.
pub fn set_process_name(name: &std::ffi::CStr) {
    // The name is only for people, so a failure changes nothing.
    let _ = rustix::thread::set_name(name);
}

/// Returns the name of this process in a ledger.
#[must_use]
pub fn own_name() -> ProcessName {
    let pid = rustix::process::getpid();
    ProcessName {
        pid: pid.as_raw_nonzero().get().unsigned_abs(),
        start_ticks: start_ticks(pid).unwrap_or(0),
    }
}

/// Returns whether the process that `name` names still exists. A zombie does not, unless one of its
/// threads is still inside the kernel.
#[must_use]
pub fn is_alive(name: ProcessName) -> bool {
    let Some(pid) = i32::try_from(name.pid).ok().and_then(Pid::from_raw) else {
        return false;
    };
    start_ticks(pid) == Some(name.start_ticks)
}

/// Returns field 22 of `/proc/PID/stat`; `None` if the process is gone, or is a zombie without
/// threads.
fn start_ticks(pid: Pid) -> Option<u64> {
    let directory = format!("/proc/{}", pid.as_raw_nonzero());
    let stat = std::fs::read(format!("{directory}/stat")).ok()?;
    // The command name, in parentheses, may hold any character. The fields after it have no `)`.
    let after_name = stat.iter().rposition(|byte| *byte == b')')?;
    let fields = String::from_utf8_lossy(stat.get(after_name + 1..)?).into_owned();
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    // A zombie whose other threads are stuck in the kernel may still be inside FIFREEZE.
    if state == "Z" && std::fs::read_dir(format!("{directory}/task")).ok()?.count() <= 1 {
        return None;
    }
    // `state` was field 3.
    fields.nth(18)?.parse().ok()
}

/// Returns whether this process has CAP_SYS_ADMIN, which FIFREEZE and FITHAW require.
#[must_use]
pub fn may_freeze() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// Returns the peak memory of this process in KiB, from `/proc/self/status`.
///
/// The figure of `getrusage` survives exec, so it would be the parent's.
#[must_use]
pub fn peak_memory_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_is_alive_only_if_its_start_time_matches_too() {
        let name = own_name();
        assert!(is_alive(name));
        assert!(!is_alive(ProcessName {
            start_ticks: name.start_ticks + 1,
            ..name
        }));
    }
}
