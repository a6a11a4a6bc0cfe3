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

/// The most device ids that are asked for a scrub.
const DEVICE_IDS_MAX: u64 = 4096;

/// Returns whether a scrub or a replace reads a device of the btrfs of `directory`.
///
/// *Blocking*: while a commit or a trim holds the list of the devices (fs/btrfs/volumes.c,
/// `device_list_mutex`), in state D. On a dead disk that has no end.
///
/// # Errors
/// The kernel's error: ENOTTY for another filesystem. It is then not known.
pub fn is_scrubbing(directory: BorrowedFd<'_>) -> Result<bool, Errno> {
    for id in 1..=max_device_id(directory)?.min(DEVICE_IDS_MAX) {
        if is_scrubbing_device(directory, id)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns the largest id of the devices. The ids begin with 1 and may have gaps.
fn max_device_id(directory: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut arguments: Arguments = [0; 128];
    // SAFETY: the kernel writes `struct btrfs_ioctl_fs_info_args`, which is 1 KiB, as `Arguments` is,
    // and for which every bit pattern of integers is valid.
    unsafe {
        ioctl(
            directory,
            Updater::<FS_INFO, Arguments>::new(&mut arguments),
        )?
    };
    arguments.first().copied().ok_or(Errno::INVAL)
}

fn is_scrubbing_device(directory: BorrowedFd<'_>, device_id: u64) -> Result<bool, Errno> {
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
    match answer {
        Ok(()) => Ok(true),
        // ENOTCONN: there is none. ENODEV: there is no such device.
        Err(Errno::NOTCONN | Errno::NODEV) => Ok(false),
        Err(errno) => Err(errno),
    }
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_no_btrfs_gives_an_error_and_not_no() {
        let proc = File::open("/proc").expect("every machine has /proc");
        assert_eq!(is_scrubbing(proc.as_fd()), Err(Errno::NOTTY));
    }
}
