//! Reaches a mount that other mounts cover.
//!
//! A path leads to the topmost mount, so it does not lead to this one. A thread gets a private copy of
//! the mount namespace and detaches the covers there. The machine's own mounts stay as they are, and
//! the copy ends with the thread. A descriptor that the thread opens stays good.

use std::path::{Path, PathBuf};

use rustix::mount::{mount_change, unmount, MountPropagationFlags, UnmountFlags};
use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::mountinfo::{MountEntry, MountNamespace};
use vmsnapshot_sys::errno::{cause_text, errno_text};
use vmsnapshot_sys::{mount_namespace, Errno};

use crate::scan;
use crate::walk::{by_descriptor, find};

/// How many covers are detached at most. Each takes a look at the whole table of mounts.
const COVERS_MAX: usize = 64;

/// Runs `then` in a thread to which nothing covers the mount of `device` at `mount_point`.
///
/// Only names on filesystems that the kernel itself serves are looked up. A cover can be of any type,
/// because it is not looked at.
///
/// *Blocking*: some milliseconds, more if there are very many mounts.
///
/// # Errors
/// What could not be done, and why.
pub(crate) fn without_covers<T: Send>(
    device: DeviceNumber,
    mount_point: &Path,
    then: impl FnOnce() -> T + Send,
) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || {
            detach_covers(device, mount_point)?;
            Ok(then())
        });
        let thread =
            thread.map_err(|error| format!("could not start a thread: {}", cause_text(&error)))?;
        thread
            .join()
            .unwrap_or_else(|_| Err("an internal error of vmsnapshot".to_owned()))
    })
}

fn detach_covers(device: DeviceNumber, mount_point: &Path) -> Result<(), String> {
    let failed = |step: &str| {
        let step = step.to_owned();
        move |errno: Errno| format!("{step}: {}", errno_text(errno))
    };
    mount_namespace::unshare().map_err(failed("could not copy the mount namespace"))?;
    // Otherwise the covers would be detached from the original, too.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(failed("could not make the copied mounts private"))?;
    for _ in 0..COVERS_MAX {
        let namespace = MountNamespace {
            pid: None,
            mounts: scan::mounts_of(Path::new("/proc/thread-self"), scan::Limit::NONE)
                .map_err(|error| error.to_string())?,
        };
        let Some(cover) = namespace.cover_at(device, mount_point) else {
            return Ok(());
        };
        detach(&namespace, cover)
            .map_err(|why| format!("could not detach a copy of what covers it: {why}"))?;
    }
    Err(format!("more than {COVERS_MAX} mounts cover it"))
}

/// Detaches the topmost mount at the mount point of `cover`.
fn detach(namespace: &MountNamespace, cover: &MountEntry) -> Result<(), String> {
    let (Some(parent), Some(name)) = (cover.mount_point.parent(), cover.mount_point.file_name())
    else {
        return Err("it covers the root directory".to_owned());
    };
    let may_pass = |id: u32, is_start: bool| namespace.may_look_up_in(id, is_start);
    let parent = find(parent, may_pass).map_err(|refusal| refusal.to_string())?;
    // Unlike an open of the cover, this does not ask its filesystem.
    let mut path: PathBuf = by_descriptor(std::os::fd::AsFd::as_fd(&parent));
    path.push(name);
    unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        .map_err(|errno| errno_text(errno).to_string())
}
