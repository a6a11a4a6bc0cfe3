//! Which user namespace a mount namespace belongs to.

use std::ffi::c_void;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{fstat, open, stat, Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{ioctl, opcode, Ioctl, IoctlOutput, Opcode};

/// A user namespace: the device and the inode of its file. They are unique while it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserNamespace {
    device: u64,
    inode: u64,
}

/// Returns the user namespace of this process.
///
/// # Errors
/// The kernel's error: ENOENT without user namespaces or `/proc`.
pub fn own() -> Result<UserNamespace, Errno> {
    let stat = stat("/proc/self/ns/user")?;
    Ok(UserNamespace {
        device: stat.st_dev,
        inode: stat.st_ino,
    })
}

/// Returns the user namespace that owns a mount namespace: root in it may mount and unmount there.
/// `file` is the mount namespace: `/proc/PID/ns/mnt`.
///
/// # Errors
/// The kernel's error: EPERM if the owner is neither our own user namespace nor one below it, ENOTTY
/// before Linux 4.9.
pub fn owner_of(file: &Path) -> Result<UserNamespace, Errno> {
    let namespace = open(file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: the kernel reads and writes no memory of ours, and returns a new descriptor, which
    // `GetOwner` takes (linux/nsfs.h; ioctl_ns(2)).
    let owner = unsafe { ioctl(namespace.as_fd(), GetOwner) }?;
    let stat = fstat(&owner)?;
    Ok(UserNamespace {
        device: stat.st_dev,
        inode: stat.st_ino,
    })
}

/// `NS_GET_USERNS` of linux/nsfs.h.
struct GetOwner;

// SAFETY: the request takes no argument. What it returns is a new descriptor that nothing else owns.
unsafe impl Ioctl for GetOwner {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::none(0xB7, 1)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> Result<Self::Output, Errno> {
        // SAFETY: as above. The kernel opens it with O_CLOEXEC.
        Ok(unsafe { OwnedFd::from_raw_fd(output) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_of_our_mount_namespace_is_asked_for_and_other_files_are_refused() {
        // In a container, the owner may be out of sight.
        let owner = owner_of(Path::new("/proc/self/ns/mnt"));
        assert!(matches!(owner, Ok(_) | Err(Errno::PERM)), "{owner:?}");
        assert!(own().is_ok());
        assert_eq!(owner_of(Path::new("/dev/null")), Err(Errno::NOTTY));
    }
}
