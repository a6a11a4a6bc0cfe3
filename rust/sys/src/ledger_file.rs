//! The ledger as a file on tmpfs: mapped by the run and its watchdog, copied by everyone else.
//!
//! Run and watchdog each hold a lock on a byte of the file for as long as they have it mapped. A lock
//! knows no namespace, unlike a process id, so every reader of the file sees which of the two is
//! alive.

use std::ffi::c_void;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{fallocate, fstat, fstatfs, FallocateFlags, Mode, OFlags};
use vmsnapshot_core::ledger::{Layout, Ledger};

use crate::ledger_memory::LedgerMemory;

/// `TMPFS_MAGIC` of linux/magic.h.
pub const TMPFS_MAGIC: u32 = 0x0102_1994;

/// A process that has a ledger mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The run.
    Run,
    /// Its watchdog.
    Watchdog,
}

impl Holder {
    /// The lock on this holder's byte. The bytes are the same in every version of the layout.
    fn lock(self, kind: libc::c_int) -> libc::flock {
        // SAFETY: flock is plain data. The kernel wants 0 in `l_pid`.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        // The constants are small, and their type differs from the field's.
        lock.l_type = libc::c_short::try_from(kind).unwrap_or_default();
        lock.l_whence = libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default();
        lock.l_start = match self {
            Holder::Run => 0,
            Holder::Watchdog => 1,
        };
        lock.l_len = 1;
        lock
    }
}

/// Returns whether a process with an open file of its own holds this lock on the ledger of `file`.
///
/// The lock belongs to the open file and not to the process. So it also stays held while a thread of
/// a killed process is still inside FIFREEZE, and while a process lives that a run has forked.
#[must_use]
pub fn is_held(file: BorrowedFd<'_>, holder: Holder) -> bool {
    let mut lock = holder.lock(libc::F_WRLCK);
    // SAFETY: the pointer is to a live flock, which the kernel fills in.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    answer == 0 && libc::c_int::from(lock.l_type) != libc::F_UNLCK
}

/// A mapped ledger and the descriptor of its file.
pub struct LedgerFile {
    file: OwnedFd,
    memory: LedgerMemory,
}

impl LedgerFile {
    /// Turns the empty `file` into a ledger of `count` filesystems and maps it.
    ///
    /// # Errors
    /// The kernel's error, or `Unsupported` if the file is not on tmpfs: a store into a mapping of
    /// a file on a frozen disk never returns.
    pub fn create(file: OwnedFd, count: usize) -> io::Result<LedgerFile> {
        if u32::try_from(fstatfs(&file)?.f_type) != Ok(TMPFS_MAGIC) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the file is not on tmpfs",
            ));
        }
        // ftruncate would reserve no pages. A store into a page that tmpfs has no room for raises
        // SIGBUS.
        let size_bytes = Ledger::size_bytes(count) as u64;
        fallocate(&file, FallocateFlags::empty(), 0, size_bytes)?;
        let memory = LedgerMemory::shared(file.as_fd(), count)?;
        Ok(LedgerFile { file, memory })
    }

    /// Maps a ledger that another process made, through an open file of its own. The locks of the
    /// two processes are then independent.
    ///
    /// # Errors
    /// The kernel's error, or `InvalidData` if the file is not a ledger of this version.
    pub fn open_again(file: &OwnedFd) -> io::Result<LedgerFile> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let file = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let memory = LedgerMemory::shared(file.as_fd(), count_in(&file)?)?;
        match memory.header.layout() {
            Layout::Own => Ok(LedgerFile { file, memory }),
            Layout::OfAnotherVersion | Layout::Unfinished | Layout::Unknown => Err(not_a_ledger()),
        }
    }

    /// Takes the lock that shows that `holder` is alive. It is held until the ledger is dropped.
    ///
    /// # Errors
    /// The kernel's error: EAGAIN if another process holds it.
    pub fn hold(&self, holder: Holder) -> io::Result<()> {
        let lock = holder.lock(libc::F_WRLCK);
        // SAFETY: the pointer is to a live flock, which the kernel only reads.
        match unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Copies what the ledger says now.
    ///
    /// # Errors
    /// As for [`LedgerCopy::read`].
    pub fn copy(&self) -> io::Result<LedgerCopy> {
        LedgerCopy::read(self.file.try_clone()?)
    }

    /// Returns the address and the size of the mapping.
    pub(crate) fn mapping(&self) -> (*mut c_void, usize) {
        self.memory.mapping()
    }

    /// Returns the descriptor, to be handed to the watchdog.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Deref for LedgerFile {
    type Target = Ledger;

    fn deref(&self) -> &Ledger {
        &self.memory
    }
}

/// A copy of a ledger, for a process that is neither the run nor its watchdog.
///
/// It is read and written with calls, never mapped: root may truncate the file at any time, and an
/// access to a mapping would then end the process.
pub struct LedgerCopy {
    file: OwnedFd,
    memory: LedgerMemory,
}

impl LedgerCopy {
    /// Reads the ledger in `file`, which may be of another version; see
    /// [`layout`](vmsnapshot_core::ledger::Header::layout).
    ///
    /// # Errors
    /// The kernel's error, or `InvalidData` if the file lacks the size or the mark of a ledger.
    pub fn read(file: OwnedFd) -> io::Result<LedgerCopy> {
        let memory = LedgerMemory::private(count_in(&file)?)?;
        let copy = LedgerCopy { file, memory };
        for page in 0..=copy.entries.len() {
            copy.memory
                .read_page(copy.file.as_fd(), page)
                .map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof => not_a_ledger(),
                    _ => error,
                })?;
        }
        match copy.header.layout() {
            Layout::Own | Layout::OfAnotherVersion | Layout::Unfinished => Ok(copy),
            Layout::Unknown => Err(not_a_ledger()),
        }
    }

    /// Returns the address and the size of its memory, which then stays for the rest of the process.
    pub(crate) fn into_mapping(self) -> (*mut c_void, usize) {
        let mapping = self.memory.mapping();
        std::mem::forget(self.memory);
        mapping
    }

    /// Reads the entry of one filesystem again.
    ///
    /// # Errors
    /// The kernel's error, or `UnexpectedEof` if the file was truncated. The entry is as before.
    pub fn read_again(&self, index: usize) -> io::Result<()> {
        self.memory.read_page(self.file.as_fd(), index + 1)
    }

    /// Writes the entry of one filesystem back.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn write_entry(&self, index: usize) -> io::Result<()> {
        self.memory.write_page(self.file.as_fd(), index + 1)
    }

    /// Writes the header back.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn write_header(&self) -> io::Result<()> {
        self.memory.write_page(self.file.as_fd(), 0)
    }

    /// Returns whether this process of the run holds the ledger; see [`is_held`].
    #[must_use]
    pub fn is_held(&self, holder: Holder) -> bool {
        is_held(self.file.as_fd(), holder)
    }
}

impl Deref for LedgerCopy {
    type Target = Ledger;

    fn deref(&self) -> &Ledger {
        &self.memory
    }
}

fn count_in(file: &OwnedFd) -> io::Result<usize> {
    usize::try_from(fstat(file)?.st_size)
        .ok()
        .and_then(Ledger::count_in)
        .ok_or_else(not_a_ledger)
}

fn not_a_ledger() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the file is not a ledger")
}
