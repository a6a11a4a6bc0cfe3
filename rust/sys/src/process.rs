//! What a process does to itself and knows of others.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::mm::{mlockall, MlockAllFlags};
use rustix::process::{pidfd_open, Pid, PidfdFlags};
use rustix::thread::CapabilitySet;
use vmsnapshot_core::ledger::ProcessName;

/// A descriptor that becomes readable when this process is gone with all its threads; none on
/// kernels before 5.3, where only the closing of a socket tells.
#[must_use]
pub fn own_pidfd() -> Option<OwnedFd> {
    pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).ok()
}

/// Leaves the caller's process group, session and parent: the calling process ends here, and its
/// child, adopted by init, goes on. Nobody has to wait for it, and no signal to the group finds it.
///
/// # Errors
/// What the kernel answers to fork or setsid.
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

/// Keeps every signal that can be kept from this thread, and from the threads it starts.
///
/// Returns what was kept before, for [`restore_signals`].
#[must_use]
pub fn block_signals() -> SignalMask {
    // SAFETY: sigset_t is plain data; the two functions fill it in.
    let (mut all, mut before): (libc::sigset_t, libc::sigset_t) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    // SAFETY: both point to live sigset_t values. The call fails only for a wrong first argument.
    unsafe {
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
    }
    SignalMask(before)
}

/// Puts a thread's signal mask back; what was kept meanwhile is delivered now.
pub fn restore_signals(mask: &SignalMask) {
    // SAFETY: the mask is one that pthread_sigmask gave.
    unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask.0, std::ptr::null_mut());
    }
}

/// A thread's signal mask.
pub struct SignalMask(libc::sigset_t);

/// Keeps all memory, present and future, from being paged out, each page once it was touched
/// (`MCL_ONFAULT`: 0.6 instead of 3 ms, and less memory).
///
/// # Errors
/// What the kernel answers: EPERM or ENOMEM without CAP_IPC_LOCK.
pub fn lock_memory() -> Result<(), Errno> {
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
}

/// How urgent a thread is: each before the one above it here, and both before every ordinary one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// A freeze thread of a run.
    Freezer,
    /// A watchdog: no fault of the run's can keep it waiting.
    Watchdog,
}

/// Runs this thread, and those that it starts, before every ordinary one, so that a busy machine
/// does not delay a freeze or a thaw.
///
/// # Errors
/// What the kernel answers: EPERM where real-time scheduling is not given out.
pub fn run_before_others(urgency: Urgency) -> io::Result<()> {
    let sched_priority = match urgency {
        Urgency::Freezer => 1,
        Urgency::Watchdog => 2,
    };
    let parameters = libc::sched_param { sched_priority };
    // SAFETY: the pointer is to a live sched_param; 0 names this thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Closes every descriptor but the standard three: what the caller of the run has open without
/// close-on-exec (a lock, a pipe) is not to be held by a process that may hang on a dead disk.
pub fn close_inherited_descriptors() {
    // SAFETY: a companion's `main` calls this first, when nothing in this process owns a
    // descriptor above 2. Linux 5.9 has the call.
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
        // SAFETY: as above; the directory's own, which is closed by now, is only EBADF.
        unsafe { libc::close(descriptor) };
    }
}

/// Lets this process have as many descriptors as it may ask for: a run may have a thousand
/// filesystems, and the usual limit is 1024.
pub fn allow_all_descriptors() {
    use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    // If it cannot be raised, what does not fit is an error when it comes.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    );
}

/// Gives a lock back for everybody who holds a copy of its descriptor.
pub fn unlock(lock: BorrowedFd<'_>) {
    // It fails for no descriptor that is a lock's.
    let _ = rustix::fs::flock(lock, rustix::fs::FlockOperation::Unlock);
}

/// Shows `name` (15 bytes at most) in `ps` and `top`.
pub fn set_process_name(name: &std::ffi::CStr) {
    // Only what people see; a failure changes nothing.
    let _ = rustix::thread::set_name(name);
}

/// This process's name in a ledger.
#[must_use]
pub fn own_name() -> ProcessName {
    let pid = rustix::process::getpid();
    ProcessName {
        pid: pid.as_raw_nonzero().get().unsigned_abs(),
        start_ticks: start_ticks(pid).unwrap_or(0),
    }
}

/// Whether the process that `name` names still exists (a dead one that still has a thread inside
/// the kernel does; a zombie does not).
#[must_use]
pub fn is_alive(name: ProcessName) -> bool {
    let Some(pid) = i32::try_from(name.pid).ok().and_then(Pid::from_raw) else {
        return false;
    };
    start_ticks(pid) == Some(name.start_ticks)
}

/// Field 22 of `/proc/PID/stat`; none when the process is gone, or is a zombie without threads.
fn start_ticks(pid: Pid) -> Option<u64> {
    let directory = format!("/proc/{}", pid.as_raw_nonzero());
    let stat = std::fs::read(format!("{directory}/stat")).ok()?;
    // The command name, in parentheses, may hold anything; the fields after the last `)` do not.
    let after_name = stat.iter().rposition(|byte| *byte == b')')?;
    let fields = String::from_utf8_lossy(stat.get(after_name + 1..)?).into_owned();
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    // A zombie leader whose other threads are stuck in the kernel is still a freezer.
    if state == "Z" && std::fs::read_dir(format!("{directory}/task")).ok()?.count() <= 1 {
        return None;
    }
    // `state` was field 3.
    fields.nth(18)?.parse().ok()
}

/// Whether this process has CAP_SYS_ADMIN, which FIFREEZE and FITHAW ask for.
#[must_use]
pub fn may_freeze() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// The most memory this process ever had, in KiB, from `/proc/self/status` (not `getrusage`, whose
/// figure survives exec and so would be the parent's).
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
    fn this_process_is_alive_and_a_reused_process_id_is_not_it() {
        let name = own_name();
        assert!(is_alive(name));
        assert!(!is_alive(ProcessName {
            start_ticks: name.start_ticks + 1,
            ..name
        }));
    }
}
