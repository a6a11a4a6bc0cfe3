//! What btrfs says about its long-running jobs, and how to end a scrub.
//!
//! A scrub, balance, replace or resize holds the superblock's write count for as long as it runs
//! (fs/btrfs/ioctl.c, `mnt_want_write_file`), and a FIFREEZE waits for it.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::ioctl::{ioctl, opcode, NoArg, Opcode, Updater};

/// The arguments of both calls: 1 KiB, all of it 64-bit fields or bytes (linux/btrfs.h).
type Arguments = [u64; 128];

// linux/btrfs.h: the magic number is 0x94.
const SCRUB_CANCEL: Opcode = opcode::none(0x94, 28);
const SCRUB_PROGRESS: Opcode = opcode::read_write::<Arguments>(0x94, 29);
const FS_INFO: Opcode = opcode::read::<Arguments>(0x94, 31);

/// A mounted btrfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Btrfs {
    /// Its UUID, which is the name of its directory in `/sys/fs/btrfs`.
    pub uuid: String,
    /// The largest id of its devices. The ids begin with 1 and may have gaps.
    pub max_device_id: u64,
}

/// Returns what the btrfs of `directory` is.
///
/// # Errors
/// ENOTTY for another filesystem.
pub fn describe(directory: BorrowedFd<'_>) -> Result<Btrfs, Errno> {
    let mut arguments: Arguments = [0; 128];
    // SAFETY: the kernel writes `struct btrfs_ioctl_fs_info_args`, which is 1 KiB, as `Arguments` is,
    // and for which every bit pattern of integers is valid.
    unsafe {
        ioctl(
            directory,
            Updater::<FS_INFO, Arguments>::new(&mut arguments),
        )?
    };
    let [max_device_id, _, uuid @ .., _, _] = &arguments[..6] else {
        return Err(Errno::INVAL);
    };
    let digits: String = uuid
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let parts = [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)];
    let uuid: Vec<&str> = parts
        .iter()
        .filter_map(|(from, to)| digits.get(*from..*to))
        .collect();
    Ok(Btrfs {
        uuid: uuid.join("-"),
        max_device_id: *max_device_id,
    })
}

/// Returns whether a scrub or a replace reads the device `device_id` of the btrfs of `directory`.
#[must_use]
pub fn is_scrubbing(directory: BorrowedFd<'_>, device_id: u64) -> bool {
    let mut arguments: Arguments = [0; 128];
    if let Some(first) = arguments.first_mut() {
        *first = device_id;
    }
    // SAFETY: the kernel reads and writes `struct btrfs_ioctl_scrub_args`, which is 1 KiB, as
    // `Arguments` is, and for which every bit pattern of integers is valid.
    let answer = unsafe {
        ioctl(
            directory,
            Updater::<SCRUB_PROGRESS, Arguments>::new(&mut arguments),
        )
    };
    // ENOTCONN: there is none. ENODEV: there is no such device.
    answer.is_ok()
}

/// Ends the scrub of the btrfs of `directory`. `btrfs scrub resume` continues it.
///
/// *Blocking*: until the scrub has stopped, some milliseconds.
///
/// # Errors
/// ENOTCONN if there is none, ENOTTY for another filesystem.
pub fn cancel_scrub(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: SCRUB_CANCEL has no argument.
    unsafe { ioctl(directory, NoArg::<SCRUB_CANCEL>::new()) }
}
