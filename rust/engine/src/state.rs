//! `/run/vmsnapshot/`: one lock, and one ledger per run, on tmpfs.
//!
//! The kernel cannot be asked whether a filesystem is frozen, so each run records it here. The
//! records must not be on a disk that may be frozen. If `/run` is not a tmpfs (in a container, or
//! on a machine without systemd), a small tmpfs is mounted on the directory itself.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{flock, statfs, FlockOperation};
use rustix::mount::{mount, MountFlags};
use vmsnapshot_core::error_kind::{ErrorCode, ErrorKind};
use vmsnapshot_core::ledger::{Entry, Layout, Place};
use vmsnapshot_core::text::bytes_text;
use vmsnapshot_sys::errno::{cause_text, open_files_hint};
use vmsnapshot_sys::ledger_file::{self, Holder, LedgerCopy, LedgerFile, TMPFS_MAGIC};
use vmsnapshot_sys::{clock, place, process, Errno};

use crate::rcu;

/// Where runs are published.
pub const DIRECTORY: &str = "/run/vmsnapshot";
/// The size is enough for the ledgers of many runs with the maximal number of filesystems.
const TMPFS_OPTIONS: &std::ffi::CStr = c"size=64m,mode=0700";

/// Why the state of runs cannot be used, or does not allow a run.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another run holds the lock.
    #[error("another run of vmsnapshot is under way on this machine")]
    AnotherRun,
    /// A run left something frozen, and neither it nor its watchdog is alive.
    #[error(
        "run {run_id} left `{mount_point}` frozen, and neither the run nor its watchdog is alive to \
         thaw it"
    )]
    LeftFrozen {
        /// The run.
        run_id: String,
        /// The first filesystem that it left frozen.
        mount_point: String,
    },
    /// A file or directory could not be used.
    #[error("could not use `{DIRECTORY}`: {}", cause_text(.0))]
    Unusable(#[from] io::Error),
}

impl StateError {
    /// Returns the stable name of the error, for programs.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::AnotherRun => ErrorCode::AnotherRun,
            Self::LeftFrozen { .. } => ErrorCode::LeftFrozen,
            Self::Unusable(_) => ErrorCode::StateUnusable,
        }
    }

    /// Returns what has to change for the next try to succeed.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::AnotherRun => ErrorKind::AnotherRun,
            Self::LeftFrozen { .. } => ErrorKind::LeftFrozen,
            Self::Unusable(_) => ErrorKind::System,
        }
    }

    /// Returns what the reader can do, if anything.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::AnotherRun => Some("wait for it to end; `vmsnapshot status` shows it"),
            Self::LeftFrozen { .. } => Some("run `vmsnapshot thaw`"),
            Self::Unusable(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
                Some("runs are kept on tmpfs: mount one there, or let this process do it")
            }
            Self::Unusable(cause) => open_files_hint(cause),
        }
    }
}

/// The right to freeze. A machine has one.
///
/// The watchdog holds the lock as well, so that it stays taken if the run is killed. Dropping it
/// releases it for both.
pub(crate) struct Lock {
    file: File,
    is_left: bool,
}

impl Lock {
    /// Takes the lock. Returns `None` if another process holds it.
    ///
    /// # Errors
    /// The kernel's error.
    pub(crate) fn try_take() -> io::Result<Option<Lock>> {
        make_directory()?;
        let path = Path::new(DIRECTORY).join("lock");
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
            // Another run may have mounted its tmpfs over the directory in between. Then this file
            // is hidden, and no other run would ever see its lock.
            let (held, named) = (file.metadata()?, fs::metadata(&path)?);
            if (held.dev(), held.ino()) == (named.dev(), named.ino()) {
                return Ok(Some(Lock {
                    file,
                    is_left: false,
                }));
            }
        }
    }

    /// Returns the descriptor, for the watchdog.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Closes the descriptor without unlocking. From then on only the watchdog holds the lock.
    fn leave_to_watchdog(mut self) {
        self.is_left = true;
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if !self.is_left {
            process::unlock(self.file.as_fd());
        }
    }
}

/// Takes the lock for a run, and removes the ledgers that finished runs left to be read.
///
/// # Errors
/// [`StateError`]. It is [`StateError::LeftFrozen`] if a run left something frozen, and neither the
/// run nor its watchdog is alive.
pub(crate) fn lock() -> Result<Lock, StateError> {
    let lock = Lock::try_take()?.ok_or(StateError::AnotherRun)?;
    // No other run can be under way while this process holds the lock, so all these runs are over.
    let kept = kept_runs()?;
    kept.remove_empty();
    for run in kept.runs {
        if let Some(entry) = run
            .ledger
            .entries
            .iter()
            .find(|entry| entry.state().may_be_frozen())
        {
            return Err(StateError::LeftFrozen {
                run_id: run.run_id(),
                mount_point: run.name_of(entry),
            });
        }
        if run.put_rcu_back() {
            run.remove();
        }
    }
    Ok(lock)
}

/// A run's lock and ledger.
///
/// Dropping it removes the ledger and releases the lock, unless something may still be frozen or
/// RCU is not put back. Then both stay: the lock for the watchdog, and the ledger for
/// `vmsnapshot status` and `vmsnapshot thaw`.
pub(crate) struct Published {
    /// `None` once it is left to the watchdog, or withdrawn.
    lock: Option<Lock>,
    run_id: String,
    ledger: Option<Arc<LedgerFile>>,
    is_kept: bool,
}

impl Published {
    /// Makes the ledger of a run.
    ///
    /// # Errors
    /// [`StateError::Unusable`]: ENOSPC if the tmpfs is full.
    pub(crate) fn create(
        lock: Lock,
        run_id: &str,
        count: usize,
    ) -> Result<(Published, Arc<LedgerFile>), StateError> {
        let mut published = Published {
            lock: Some(lock),
            run_id: run_id.to_owned(),
            ledger: None,
            is_kept: false,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(published.path())?;
        let ledger = Arc::new(LedgerFile::create(OwnedFd::from(file), count)?);
        ledger.hold(Holder::Run)?;
        ledger.header.name(process::own_name(), place::here());
        published.ledger = Some(Arc::clone(&ledger));
        Ok((published, ledger))
    }

    /// Returns the name of the run.
    pub(crate) fn run_id(&self) -> &str {
        &self.run_id
    }

    fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(format!("{}.ledger", self.run_id))
    }

    /// Returns the lock's descriptor, for the watchdog.
    pub(crate) fn lock_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.lock.as_ref().map(Lock::descriptor)
    }

    /// Removes the ledger of a run that has frozen nothing, and gives the lock back.
    pub(crate) fn withdraw(mut self) -> Lock {
        self.lock
            .take()
            .expect("the lock is left to a watchdog only at the end of a run")
    }

    /// Leaves the ledger to be read after the run, because the run did not go as planned.
    pub(crate) fn keep(&mut self) {
        self.is_kept = true;
    }

    /// Leaves the lock to a watchdog that is still at work, whatever the ledger says.
    pub(crate) fn leave_lock_to_watchdog(&mut self) {
        if let Some(lock) = self.lock.take() {
            lock.leave_to_watchdog();
        }
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        let is_settled = self
            .ledger
            .as_ref()
            .is_none_or(|ledger| !ledger.may_be_frozen() && ledger.header.rcu_owed().is_none());
        if !is_settled {
            // The watchdog goes on holding the lock alone.
            if let Some(lock) = self.lock.take() {
                lock.leave_to_watchdog();
            }
        } else if !self.is_kept {
            remove(&self.path());
        }
    }
}

/// A run whose ledger still exists, and the path of that file.
pub(crate) struct KeptRun {
    path: PathBuf,
    pub(crate) ledger: LedgerCopy,
    /// Where this process runs, which may be elsewhere than the run.
    here: Place,
}

/// All runs that `/run/vmsnapshot` has ledgers of.
#[derive(Default)]
pub(crate) struct KeptRuns {
    /// The runs, oldest first (the names of their files begin with the time).
    pub(crate) runs: Vec<KeptRun>,
    /// The files that should be ledgers and cannot be read as such, each with the reason.
    pub(crate) unreadable: Vec<(PathBuf, io::Error)>,
    /// The ledgers that say nothing: of a run that was killed while it made its ledger, or of another
    /// boot. Nothing that was frozen then is frozen now. A run that is making its ledger at this moment
    /// has one too, so they are removed only under the lock.
    empty: Vec<PathBuf>,
}

impl KeptRuns {
    /// Returns whether there are ledgers that say nothing.
    pub(crate) fn has_empty(&self) -> bool {
        !self.empty.is_empty()
    }

    /// Removes the ledgers that say nothing. The caller holds the lock.
    pub(crate) fn remove_empty(&self) {
        for path in &self.empty {
            remove(path);
        }
    }
}

impl KeptRun {
    /// Returns whether this version of the program wrote the ledger. In a ledger of another version
    /// only states and device numbers can be read.
    pub(crate) fn is_of_this_version(&self) -> bool {
        self.ledger.header.layout() == Layout::Own
    }

    /// Returns the run's name, which is the name of its file.
    pub(crate) fn run_id(&self) -> String {
        let stem = self.path.file_stem().unwrap_or_default();
        bytes_text(stem.as_bytes())
    }

    /// Returns the name of a filesystem for people: its mount point if this version wrote the
    /// ledger, else its device number.
    pub(crate) fn name_of(&self, entry: &Entry) -> String {
        if self.is_of_this_version() {
            bytes_text(&entry.mount_point())
        } else {
            format!("device {}", entry.device())
        }
    }

    /// Returns whether the run is under way: its process may still freeze or thaw.
    ///
    /// The lock decides. A process that the run has forked holds it as well, but does not have the
    /// run's id. That can be told only where ids mean the same.
    pub(crate) fn run_is_alive(&self) -> bool {
        self.ledger.is_held(Holder::Run)
            && (!self.shares_ids_and_clock() || process::is_alive(self.ledger.header.parent()))
    }

    /// Returns whether the run's watchdog is alive.
    pub(crate) fn watchdog_is_alive(&self) -> bool {
        self.ledger.is_held(Holder::Watchdog)
    }

    /// Returns whether the instant at which the watchdog thaws has passed. In another time namespace
    /// that cannot be told, and counts as no.
    pub(crate) fn is_late(&self) -> bool {
        let guard_by = self.ledger.header.guard_by();
        self.shares_ids_and_clock()
            && guard_by.is_some_and(|deadline| clock::monotonic() >= deadline)
    }

    fn shares_ids_and_clock(&self) -> bool {
        let place = self.ledger.header.place();
        place.shares_ids_and_clock(self.here)
    }

    /// Returns whether expedited RCU has to be put back for this run.
    pub(crate) fn owes_rcu(&self) -> bool {
        self.ledger.header.rcu_owed().is_some()
    }

    /// Puts expedited RCU back for this run. Returns whether nothing is owed any more.
    pub(crate) fn put_rcu_back(&self) -> bool {
        if !self.owes_rcu() {
            return true;
        }
        let is_put_back = rcu::put_back_for(&self.ledger.header);
        if is_put_back {
            // If this fails, the next thaw puts it back once more.
            let _ = self.ledger.write_header();
        }
        is_put_back
    }

    #[cfg(test)]
    pub(crate) fn of_test(ledger: LedgerCopy) -> KeptRun {
        KeptRun {
            path: PathBuf::from("test.ledger"),
            ledger,
            here: place::here(),
        }
    }

    /// Removes the ledger.
    pub(crate) fn remove(&self) {
        remove(&self.path);
    }
}

/// Reads every ledger in `/run/vmsnapshot`.
pub(crate) fn kept_runs() -> io::Result<KeptRuns> {
    let directory = match fs::read_dir(DIRECTORY) {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(KeptRuns::default()),
        Err(error) => return Err(error),
    };
    let mut paths: Vec<PathBuf> = directory
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension() == Some(OsStr::new("ledger")))
        .collect();
    paths.sort_unstable();
    let mut kept = KeptRuns::default();
    let here = place::here();
    for path in paths {
        match read(&path) {
            Ok(Some(ledger)) => {
                let header = &ledger.header;
                let is_empty = match header.layout() {
                    Layout::Own | Layout::OfAnotherVersion => {
                        header.place().is_of_another_boot(here)
                    }
                    Layout::Unfinished | Layout::Unknown => true,
                };
                if is_empty {
                    kept.empty.push(path);
                } else {
                    kept.runs.push(KeptRun { path, ledger, here });
                }
            }
            Ok(None) => kept.empty.push(path),
            // Its run has removed it in the meantime.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                kept.unreadable.push((path, error));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(kept)
}

/// Reads a ledger. Returns `None` if its run has not begun to write it.
fn read(path: &Path) -> io::Result<Option<LedgerCopy>> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    if file.metadata()?.len() > 0 {
        return LedgerCopy::read(file.into()).map(Some);
    }
    let is_held = |holder| ledger_file::is_held(file.as_fd(), holder);
    if is_held(Holder::Run) || is_held(Holder::Watchdog) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it was truncated, and its run or watchdog is alive",
        ));
    }
    Ok(None)
}

fn make_directory() -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(DIRECTORY)?;
    if u32::try_from(statfs(DIRECTORY)?.f_type) == Ok(TMPFS_MAGIC) {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("vmsnapshot", DIRECTORY, "tmpfs", flags, Some(TMPFS_OPTIONS))?;
    Ok(())
}

fn remove(path: &Path) {
    // A failure does no damage: the ledger still says what happened, and the next run removes it.
    let _ = fs::remove_file(path);
}
