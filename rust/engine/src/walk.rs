//! Finds and opens paths whose directories a local user may own and exchange at any moment.
//!
//! Every step is an `O_PATH` descriptor of one name: the kernel then follows no symbolic link, and
//! neither opens a device nor asks a filesystem to open a file. Before a name is looked up, the caller
//! decides whether the mount may be asked for it. `openat2` has flags for the links, but earlier kernels
//! and some containers do not have `openat2`, and it cannot ask the caller.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{fstat, open, openat, FileType, Mode, OFlags};
use vmsnapshot_core::text::bytes_text;
use vmsnapshot_sys::errno::errno_text;
use vmsnapshot_sys::Errno;

/// Why a path was not found or not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The system's answer.
    #[error("{}", errno_text(*.0))]
    Errno(Errno),
    /// The mount of a directory on the way may not be asked.
    #[error("the way to it leads through a network or FUSE filesystem, which could hang")]
    OnTheWay,
    /// Something whose open can have an effect of its own.
    #[error("it is neither a directory nor a regular file")]
    Special,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// Finds an absolute path, which may begin with `/proc/PID/root`, and opens nothing.
///
/// `may_pass` decides by the id of a mount whether names may be looked up in it. It also learns whether
/// it is the mount where the way starts.
///
/// *Blocking*: not on a mount whose files the kernel itself serves.
///
/// # Errors
/// [`Refusal`]. A symbolic link on the way answers ENOTDIR. One at the end is found itself.
pub(crate) fn find(path: &Path, may_pass: impl Fn(u32, bool) -> bool) -> Result<OwnedFd, Refusal> {
    let (start, below) = match other_root(path) {
        Some((root, below)) => (root, below),
        None => (PathBuf::from("/"), path),
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    // `/proc/PID/root` is a link that only the kernel makes.
    let mut place = open(&start, flags | OFlags::DIRECTORY, Mode::empty())?;
    let start = mount_id(Path::new("/proc"), place.as_fd())?;
    for component in below.components() {
        let name = match component {
            Component::RootDir => continue,
            Component::Normal(name) => name,
            // The kernel writes none of these into a table of mounts.
            Component::ParentDir | Component::CurDir | Component::Prefix(_) => {
                return Err(Errno::INVAL.into())
            }
        };
        let mount = mount_id(Path::new("/proc"), place.as_fd())?;
        if !may_pass(mount, mount == start) {
            return Err(Refusal::OnTheWay);
        }
        place = openat(&place, name, flags | OFlags::NOFOLLOW, Mode::empty())?;
    }
    Ok(place)
}

/// Opens what [`find`] found for reading, once it is known to be what the caller expects.
///
/// *Blocking*: not on a local filesystem.
///
/// # Errors
/// [`Refusal`]. Only a directory or a regular file is opened, because opening anything else can have
/// an effect of its own.
pub(crate) fn open_found(place: BorrowedFd<'_>) -> Result<OwnedFd, Refusal> {
    // NOATIME: opening must not make a filesystem dirty. Root may use it.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOATIME;
    let flags = match FileType::from_raw_mode(fstat(place)?.st_mode) {
        FileType::Directory => flags | OFlags::DIRECTORY,
        // A container may see only one file of a filesystem, mounted on a file of its own. NONBLOCK:
        // the open must not wait for a user who holds a lease on it.
        FileType::RegularFile => flags | OFlags::NONBLOCK,
        FileType::Symlink
        | FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown => return Err(Refusal::Special),
    };
    Ok(open(by_descriptor(place), flags, Mode::empty())?)
}

/// Returns a path that leads to exactly what a descriptor of this process refers to.
pub(crate) fn by_descriptor(place: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", place.as_raw_fd()))
}

/// Returns the id of the mount that a descriptor lies on. The filesystem is not asked. `proc` is
/// `/proc`, except in tests.
///
/// `statx` has it only since Linux 5.8.
pub(crate) fn mount_id(proc: &Path, place: BorrowedFd<'_>) -> Result<u32, Errno> {
    mount_id_in(&proc.join(format!("self/fdinfo/{}", place.as_raw_fd())))
}

/// Returns the id of the mount in a file `/proc/PID/fdinfo/DESCRIPTOR`.
pub(crate) fn mount_id_in(file: &Path) -> Result<u32, Errno> {
    let fdinfo =
        std::fs::read(file).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    bytes_text(&fdinfo)
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
        .ok_or(Errno::NOSYS)
}

/// Splits `/proc/PID/root/...` into the root directory of the process and the rest.
fn other_root(path: &Path) -> Option<(PathBuf, &Path)> {
    let pid = process_of(path)?;
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let below = path.strip_prefix(&root).ok()?;
    Some((root, below))
}

/// Returns the process of a path `/proc/PID/root/...`.
pub(crate) fn process_of(path: &Path) -> Option<u32> {
    let mut below_proc = path.strip_prefix("/proc").ok()?.iter();
    let pid = below_proc.next()?.to_str()?.parse().ok()?;
    (below_proc.next()? == "root").then_some(pid)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::scan::fake_machine::FakeMachine;

    fn passes_all(_: u32, _: bool) -> bool {
        true
    }

    fn opened(path: &Path) -> Result<OwnedFd, Refusal> {
        open_found(find(path, passes_all)?.as_fd())
    }

    #[test]
    fn path_without_links_is_opened_and_one_with_a_link_anywhere_is_not() {
        let tree = FakeMachine::new();
        tree.file("real/file", "content");
        tree.link("linked", "real");
        tree.link("real/link", "file");
        let real = fs::canonicalize(&tree.0).unwrap();
        let own_root = PathBuf::from(format!("/proc/{}/root", std::process::id()));
        for root in [real.clone(), own_root.join(real.strip_prefix("/").unwrap())] {
            assert!(opened(&root.join("real")).is_ok());
            assert!(opened(&root.join("real/file")).is_ok());
            assert_eq!(
                opened(&root.join("linked/file")).unwrap_err(),
                Refusal::Errno(Errno::NOTDIR)
            );
            for link in ["linked", "real/link"] {
                assert_eq!(opened(&root.join(link)).unwrap_err(), Refusal::Special);
            }
            assert_eq!(
                opened(&root.join("real/../real")).unwrap_err(),
                Refusal::Errno(Errno::INVAL)
            );
        }
    }

    #[test]
    fn pipe_and_device_are_found_but_not_opened() {
        let tree = FakeMachine::new();
        let pipe = fs::canonicalize(&tree.0).unwrap().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert_eq!(opened(&pipe).unwrap_err(), Refusal::Special);
        assert_eq!(
            opened(Path::new("/dev/null")).unwrap_err(),
            Refusal::Special
        );
    }

    #[test]
    fn link_in_the_root_of_another_process_does_not_lead_out_of_it() {
        let tree = FakeMachine::new();
        symlink("/", tree.0.join("out")).unwrap();
        let root = fs::canonicalize(&tree.0).unwrap();
        let path = format!(
            "/proc/{}/root{}/out/etc",
            std::process::id(),
            root.display()
        );
        assert_eq!(
            opened(Path::new(&path)).unwrap_err(),
            Refusal::Errno(Errno::NOTDIR)
        );
    }

    #[test]
    fn no_name_is_looked_up_in_a_mount_that_may_not_be_asked() {
        let only_the_start = |_: u32, is_start: bool| is_start;
        assert!(find(Path::new("/proc"), only_the_start).is_ok());
        assert_eq!(
            find(Path::new("/proc/version"), only_the_start).unwrap_err(),
            Refusal::OnTheWay
        );
    }
}
