//! What a window needs for exactly the filesystems that it freezes: directories, ledger, watchdog
//! and freeze threads. If the filesystems change before the window, all of it is made again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use vmsnapshot_core::ledger::FILESYSTEMS_MAX;
use vmsnapshot_core::plan::PlannedFilesystem;
use vmsnapshot_sys::kernel::Kernel;
use vmsnapshot_sys::ledger_file::LedgerFile;
use vmsnapshot_window::freezers::Freezers;
use vmsnapshot_window::rcu::Rcu;
use vmsnapshot_window::watchdog::Watchdog;

use crate::companion::{self, Role};
use crate::directories::{DirectoryError, LeftOut, Opened};
use crate::error::PrepareError;
use crate::identity;
use crate::look::Change;
use crate::state::{Lock, Published};

/// Everything that depends on which filesystems are frozen. Nothing is frozen.
pub(crate) struct Staged {
    /// In freeze order. Directories and ledger have the same order.
    pub(crate) filesystems: Vec<PlannedFilesystem>,
    pub(crate) directories: Arc<[OwnedFd]>,
    pub(crate) ledger: Arc<LedgerFile>,
    pub(crate) rcu: Rcu,
    pub(crate) freezers: Freezers,
    pub(crate) watchdog: Watchdog,
    pub(crate) kernel: Arc<dyn Kernel>,
    // Dropped last, because it looks at what the other fields leave in the ledger.
    pub(crate) published: Published,
}

impl Staged {
    /// Makes the ledger, and starts the watchdog and the freeze threads.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub(crate) fn make(
        lock: Lock,
        run_id: &str,
        kernel: Arc<dyn Kernel>,
        rcu: Rcu,
        filesystems: Vec<PlannedFilesystem>,
        directories: Vec<OwnedFd>,
    ) -> Result<Staged, PrepareError> {
        // More may have been mounted since the plan was made.
        if filesystems.len() > FILESYSTEMS_MAX {
            return Err(PrepareError::TooManyFilesystems(filesystems.len()));
        }
        let directories: Arc<[OwnedFd]> = directories.into();
        let (published, ledger) = Published::create(lock, run_id, directories.len())?;
        let planned = filesystems.iter().zip(&*directories);
        for (entry, (planned, directory)) in ledger.entries.iter().zip(planned) {
            entry.name(planned.device, &planned.mount_point);
            entry.identify(identity::identity(planned, directory.as_fd()));
        }
        let write_counts = filesystems
            .iter()
            .map(|planned| identity::write_count(planned.device))
            .collect();
        let watchdog = companion::start(Role::Watch)
            .and_then(|channel| {
                let lock = published.lock_descriptor();
                let directories = borrow(&directories);
                Watchdog::introduce(channel, &ledger, lock, rcu.descriptor(), &directories)
            })
            .map_err(|cause| PrepareError::Watchdog {
                step: "start",
                cause,
            })?;
        let levels: Vec<u32> = filesystems.iter().map(|planned| planned.level).collect();
        let freezers = Freezers::start(
            Arc::clone(&ledger),
            Arc::clone(&kernel),
            Arc::clone(&directories),
            write_counts,
            &levels,
        )
        .map_err(|cause| PrepareError::Resources {
            step: "start a freeze thread",
            cause,
        })?;
        Ok(Staged {
            filesystems,
            directories,
            ledger,
            rcu,
            freezers,
            watchdog,
            kernel,
            published,
        })
    }

    /// Leaves out each filesystem that has an error in `errors`, which are in the same order.
    ///
    /// # Errors
    /// The error of a filesystem that the caller asked for by its name, and [`PrepareError`].
    pub(crate) fn leave_out(
        self,
        errors: Vec<Option<DirectoryError>>,
        left_out: &mut Vec<LeftOut>,
    ) -> Result<Staged, PrepareError> {
        if errors.iter().all(Option::is_none) {
            return Ok(self);
        }
        let mut filesystems = Vec::new();
        let mut directories = Vec::new();
        let staged = self.filesystems.iter().zip(&*self.directories);
        for ((planned, directory), error) in staged.zip(errors) {
            match error {
                Some(error) => left_out.push(LeftOut::because_of(error, planned)?),
                None => {
                    filesystems.push(planned.clone());
                    directories.push(duplicate(directory)?);
                }
            }
        }
        self.make_again(filesystems, directories)
    }

    /// Adds filesystems that were mounted meanwhile, and orders all by the levels that they have now.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub(crate) fn add(self, added: Opened, change: &Change) -> Result<Staged, PrepareError> {
        let mut all = Vec::new();
        for (planned, directory) in self.filesystems.iter().zip(&*self.directories) {
            all.push((planned.clone(), duplicate(directory)?));
        }
        all.extend(added.filesystems.into_iter().zip(added.directories));
        for (planned, _) in &mut all {
            planned.level = change.level_of(planned);
        }
        all.sort_by_key(|(planned, _)| planned.level);
        let (filesystems, directories) = all.into_iter().unzip();
        self.make_again(filesystems, directories)
    }

    /// Makes it again for other filesystems.
    ///
    /// *Blocking*: as long as the start of a watchdog; 2 s at most until the old one has ended.
    fn make_again(
        self,
        filesystems: Vec<PlannedFilesystem>,
        directories: Vec<OwnedFd>,
    ) -> Result<Staged, PrepareError> {
        let run_id = self.published.run_id().to_owned();
        drop(self.freezers);
        self.watchdog
            .dismiss()
            .map_err(|cause| PrepareError::Watchdog {
                step: "dismiss",
                cause,
            })?;
        let lock = self.published.withdraw();
        Staged::make(
            lock,
            &run_id,
            self.kernel,
            self.rcu,
            filesystems,
            directories,
        )
    }
}

pub(crate) fn borrow(directories: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    directories.iter().map(AsFd::as_fd).collect()
}

fn duplicate(directory: &OwnedFd) -> Result<OwnedFd, PrepareError> {
    directory
        .try_clone()
        .map_err(|cause: io::Error| PrepareError::Resources {
            step: "duplicate a descriptor",
            cause,
        })
}
