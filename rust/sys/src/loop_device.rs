//! `LOOP_GET_STATUS64`: the file behind a loop device.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{major, minor, open, Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{ioctl, Getter};
use vmsnapshot_core::device_number::DeviceNumber;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo {
    /// `st_dev` of the file.
    device: u64,
    inode: u64,
    rest: [u64; 27],
}

// linux/loop.h. The number has no room for the size of the argument, which is 232 bytes.
const LOOP_GET_STATUS64: rustix::ioctl::Opcode = 0x4C05;
const _: () = assert!(size_of::<LoopInfo>() == 232);

/// Returns the number of the filesystem that the backing file of a loop device lies on: the file's
/// `st_dev`. On btrfs that is the number of a subvolume. `node` is a descriptor made with `O_PATH`.
///
/// The device must be in use. Then this open is not the first, which would read the partition table,
/// and this close is not the last, which would detach the file.
///
/// *Blocking*: the kernel stats the file. On a dead network or FUSE filesystem that can hang.
///
/// # Errors
/// The kernel's error: ENXIO if the device has no file, ENOTTY if it is no loop device.
pub fn file_lies_on(node: BorrowedFd<'_>) -> Result<DeviceNumber, Errno> {
    let path = format!("/proc/self/fd/{}", node.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let device = open(path, flags, Mode::empty())?;
    // SAFETY: the kernel writes one `struct loop_info64`, which LoopInfo has the size of, and every
    // bit pattern of which is a valid LoopInfo.
    let info = unsafe { ioctl(device.as_fd(), Getter::<LOOP_GET_STATUS64, LoopInfo>::new()) }?;
    Ok(DeviceNumber {
        major: major(info.device),
        minor: minor(info.device),
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_no_loop_device_is_refused() {
        let file = File::open("/dev/null").expect("/dev/null is there");
        assert_eq!(file_lies_on(file.as_fd()), Err(Errno::NOTTY));
    }
}
