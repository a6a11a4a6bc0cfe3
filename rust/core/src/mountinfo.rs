//! The content of `/proc/PID/mountinfo`: one entry per mount.
//!
//! This file works only on the bytes that the kernel wrote. It never accesses a mount point,
//! because a stat of a dead network mount can hang forever.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::device_number::DeviceNumber;
use crate::text::bytes_text;

/// One line of mountinfo, with the octal escapes decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// The id of the mount while it exists. It is unique in all mount namespaces.
    pub mount_id: u32,
    /// The id of the mount that this one is mounted on. The process may not be able to see that
    /// mount.
    pub parent_id: u32,
    /// The device number of the superblock. Bind mounts, second mounts and btrfs subvolumes share
    /// it.
    pub device: DeviceNumber,
    /// The directory or file of the filesystem that the mount point shows. `/` means all of it.
    pub root: PathBuf,
    /// Where it is mounted, relative to the root directory of the process whose mountinfo this is.
    pub mount_point: PathBuf,
    /// The options of this mount, comma separated.
    pub mount_options: String,
    /// The filesystem type, with its subtype: `ext4`, `fuse.sshfs`.
    pub filesystem_type: String,
    /// What was mounted: `/dev/sda1`, or any other text.
    pub source: String,
    /// The options of the superblock, comma separated. The first one is `rw` or `ro`.
    pub super_options: String,
}

impl MountEntry {
    /// Returns whether the superblock is read-only. The mount itself may differ.
    #[must_use]
    pub fn superblock_is_read_only(&self) -> bool {
        // The kernel (fs/proc_namespace.c, show_mountinfo) always writes this word first. The
        // filesystem writes the later words, and they may be anything.
        self.super_options.split(',').next() == Some("ro")
    }

    /// Returns whether the superblock lies on a local block device. Only this line decides.
    #[must_use]
    pub fn is_on_local_block_device(&self) -> bool {
        // fuseblk has the device number of its disk, but a user-space process serves it.
        let is_fuse = self.filesystem_type.starts_with("fuse");
        // btrfs and bcachefs can span devices, so the kernel gives them a number without a device
        // (major 0). The type decides, not the source: both mount only from block devices, and the
        // source may be a name that does not resolve (`/dev/root`).
        let spans_devices = matches!(self.filesystem_type.as_str(), "btrfs" | "bcachefs");
        !is_fuse && (self.device.major != 0 || spans_devices)
    }

    /// Returns whether the kernel itself answers for its files, so that neither a server nor a
    /// program can make an open wait.
    #[must_use]
    pub fn is_answered_by_the_kernel(&self) -> bool {
        self.is_on_local_block_device()
            || ANSWERED_BY_THE_KERNEL.contains(&self.filesystem_type.as_str())
    }
}

/// The mounts of one mount namespace, as one of its processes sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountNamespace {
    /// A process in the namespace. `None` for the namespace of our own process.
    pub pid: Option<u32>,
    /// Its mounts, in the order of mountinfo.
    pub mounts: Vec<MountEntry>,
}

impl MountNamespace {
    /// Returns whether a name may be looked up in the mount with this id, without a risk of waiting
    /// for a server or a program. `is_root` says that the root directory lies on it.
    ///
    /// Our own root filesystem does not count, because every path of ours leads through it. The root
    /// of another process may be a plain directory, whose mount the process does not see.
    #[must_use]
    pub fn may_look_up_in(&self, mount_id: u32, is_root: bool) -> bool {
        match self.mounts.iter().find(|mount| mount.mount_id == mount_id) {
            Some(mount) => (is_root && self.pid.is_none()) || mount.is_answered_by_the_kernel(),
            None => is_root,
        }
    }
}

/// The content of a mountinfo file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mountinfo {
    /// The mounts, in the order of the file.
    pub mounts: Vec<MountEntry>,
    /// The lines that could not be parsed. Each is a mount about which nothing is known.
    pub bad_lines: Vec<BadLine>,
}

/// A line of mountinfo does not have the format that the kernel writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} could not be parsed: {cause}")]
pub struct BadLine {
    /// The number of the line. The first is 1.
    pub line: usize,
    /// What is wrong with it.
    pub cause: &'static str,
}

/// Parses the content of a mountinfo file.
///
/// A line that does not have the format of proc(5) does not keep the others from being read.
#[must_use]
pub fn parse(mountinfo: &[u8]) -> Mountinfo {
    let mut parsed = Mountinfo::default();
    for (line, number) in mountinfo.split(|byte| *byte == b'\n').zip(1..) {
        if !line.is_empty() {
            parsed.add_line(number, line);
        }
    }
    parsed
}

impl Mountinfo {
    /// Adds the line with this number.
    pub fn add_line(&mut self, number: usize, line: &[u8]) {
        match parse_line(line) {
            Ok(mount) => self.mounts.push(mount),
            Err(cause) => self.bad_lines.push(BadLine {
                line: number,
                cause,
            }),
        }
    }
}

/// Parses one line of a mountinfo file.
///
/// # Errors
///
/// What is wrong with it, if a field is wrong that decides what is frozen.
pub fn parse_line(line: &[u8]) -> Result<MountEntry, &'static str> {
    // Exactly one space separates two fields, because the source of a mount may be empty.
    let mut fields = line.split(|byte| *byte == b' ');
    let mut next = |missing: &'static str| fields.next().ok_or(missing);
    let mount_id = number(next("no mount id")?).ok_or("the mount id is not a number")?;
    let parent_id = number(next("no parent id")?).ok_or("the parent id is not a number")?;
    let device =
        device_number(next("no device number")?).ok_or("the device number is not major:minor")?;
    let root = path(next("no root")?);
    let mount_point = path(next("no mount point")?);
    if !mount_point.is_absolute() {
        return Err("the mount point is not an absolute path");
    }
    let mount_options = text(next("no mount options")?);
    while next("no `-` after the optional fields")? != b"-" {}
    Ok(MountEntry {
        mount_id,
        parent_id,
        device,
        root,
        mount_point,
        mount_options,
        filesystem_type: text(next("no filesystem type")?),
        source: text(next("no mount source")?),
        super_options: {
            // The rest of the line: a filesystem may write spaces into its own options without
            // escapes (9p: `path=C:\Program Files`).
            let first = next("no superblock options")?;
            let words: Vec<&[u8]> = std::iter::once(first).chain(fields).collect();
            text(&words.join(&b' '))
        },
    })
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn device_number(field: &[u8]) -> Option<DeviceNumber> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

fn text(field: &[u8]) -> String {
    bytes_text(&unescape(field))
}

/// Decodes octal escapes such as `\040`.
///
/// The kernel escapes a backslash in a path (`\134`). A filesystem may write its own options without
/// escapes (9p: `path=C:\Program Files`), so a backslash without three octal digits after it stays.
fn unescape(field: &[u8]) -> Vec<u8> {
    if !field.contains(&b'\\') {
        return field.to_vec();
    }
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        match after {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] => {
                bytes.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = after;
            }
            _ => bytes.push(b'\\'),
        }
    }
    bytes
}

/// Types without a block device that a path may lead through without a risk of waiting, because the
/// kernel itself serves them. autofs is among them because it waits only where nothing is mounted.
const ANSWERED_BY_THE_KERNEL: [&str; 11] = [
    "tmpfs", "devtmpfs", "ramfs", "rootfs", "overlay", "autofs", "proc", "sysfs", "devpts",
    "cgroup2", "zfs",
];

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use super::*;

    fn entry(line: &[u8]) -> MountEntry {
        let mut parsed = parse(line);
        assert_eq!(parsed.bad_lines, []);
        parsed.mounts.remove(0)
    }

    fn ours(mountinfo: &[u8]) -> MountNamespace {
        MountNamespace {
            pid: None,
            mounts: parse(mountinfo).mounts,
        }
    }

    #[test]
    fn every_field_of_a_line_is_read() {
        let mount = entry(b"36 35 98:0 /mnt1 /mnt2 rw,noatime shared:1 master:2 - ext3 /dev/root rw,errors=continue\n");
        assert_eq!(
            mount,
            MountEntry {
                mount_id: 36,
                parent_id: 35,
                device: DeviceNumber {
                    major: 98,
                    minor: 0
                },
                root: "/mnt1".into(),
                mount_point: "/mnt2".into(),
                mount_options: "rw,noatime".into(),
                filesystem_type: "ext3".into(),
                source: "/dev/root".into(),
                super_options: "rw,errors=continue".into(),
            }
        );
    }

    #[test]
    fn a_line_without_optional_fields_is_read() {
        let mount = entry(b"1 0 8:1 / / rw - ext4 /dev/sda1 rw");
        assert_eq!(mount.filesystem_type, "ext4");
    }

    #[test]
    fn an_empty_mount_source_does_not_shift_the_next_field() {
        let mount = entry(b"1 0 0:9 / /run rw - tmpfs  ro,size=1k");
        assert_eq!(
            (mount.source.as_str(), mount.super_options.as_str()),
            ("", "ro,size=1k")
        );
    }

    #[test]
    fn octal_escapes_are_decoded_in_every_text() {
        let mount = entry(
            b"1 0 8:1 /a\\040b /c\\011d\\012e\\134f\\043g rw - fuse.x\\040y s\\040t rw,u\\054v",
        );
        assert_eq!(mount.root, Path::new("/a b"));
        assert_eq!(mount.mount_point, Path::new("/c\td\ne\\f#g"));
        assert_eq!(mount.filesystem_type, "fuse.x y");
        assert_eq!(mount.source, "s t");
    }

    #[test]
    fn a_mount_point_that_is_not_utf8_keeps_its_bytes() {
        let mount = entry(b"1 0 8:1 / /srv/\xff\xfe rw - ext4 /dev/sda1 rw");
        assert_eq!(mount.mount_point.as_os_str().as_bytes(), b"/srv/\xff\xfe");
    }

    #[test]
    fn a_backslash_that_is_no_octal_escape_stays() {
        let mount = entry(
            b"1146 77 0:149 / /Docker/host rw - 9p drvfs rw,path=C:\\Program,b=\\777,c=\\04\n",
        );
        assert_eq!(mount.super_options, "rw,path=C:\\Program,b=\\777,c=\\04");
    }

    #[test]
    fn superblock_options_are_the_rest_of_the_line() {
        let line = b"1146 77 0:149 / /Docker/host rw,noatime - 9p drvfs rw,dirsync,aname=drvfs;\
            path=C:\\Program Files\\Docker\\Docker\\resources;symlinkroot=/mnt/,trans=virtio\n";
        let mount = entry(line);
        assert_eq!(mount.mount_point, Path::new("/Docker/host"));
        assert_eq!(
            mount.super_options,
            "rw,dirsync,aname=drvfs;path=C:\\Program Files\\Docker\\Docker\\resources;\
             symlinkroot=/mnt/,trans=virtio"
        );
    }

    #[test]
    fn fields_that_decide_nothing_may_have_any_bytes() {
        let mount = entry(b"1 0 8:1 / / rw \xff\\9:x - ext4 \xfe\\ rw,\xfd\\8");
        assert_eq!(mount.filesystem_type, "ext4");
        assert_eq!(mount.source, "\\xfe\\");
        assert!(!mount.superblock_is_read_only());
    }

    #[test]
    fn a_malformed_line_is_reported_by_its_number_and_the_others_are_read() {
        let good = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n";
        for bad in [
            "x 0 8:1 / / rw - ext4 /dev/sda1 rw",
            "1 x 8:1 / / rw - ext4 /dev/sda1 rw",
            "1 0 8 / / rw - ext4 /dev/sda1 rw",
            "1 0 8:99999999999 / / rw - ext4 /dev/sda1 rw",
            "1 0 8:1 / relative rw - ext4 /dev/sda1 rw",
            "1 0 8:1 / / rw shared:1 ext4 /dev/sda1 rw",
            "1 0 8:1 / / rw - ext4 /dev/sda1",
            "1 0 8:1 /",
        ] {
            let parsed = parse(format!("{good}{good}{bad}\n{good}").as_bytes());
            let lines: Vec<_> = parsed.bad_lines.iter().map(|bad| bad.line).collect();
            assert_eq!(
                (lines.as_slice(), parsed.mounts.len()),
                (&[3][..], 3),
                "{bad}"
            );
        }
    }

    #[test]
    fn only_the_first_superblock_option_makes_it_read_only() {
        assert!(entry(b"1 0 8:1 / / rw - ext4 /dev/sda1 ro,x=rw").superblock_is_read_only());
        assert!(!entry(b"1 0 8:1 / / ro - ext4 /dev/sda1 rw,x,ro").superblock_is_read_only());
    }

    #[test]
    fn names_are_looked_up_only_where_the_kernel_answers_or_at_the_root() {
        let mut namespace =
            ours(b"1 1 0:5 / / rw - nfs4 a rw\n2 1 8:2 / /d rw - ext4 b rw\n3 1 0:6 / /f rw - fuse.x c rw\n");
        let asked = |namespace: &MountNamespace, id, is_root| namespace.may_look_up_in(id, is_root);
        assert!(asked(&namespace, 1, true) && asked(&namespace, 2, false));
        assert!(!asked(&namespace, 1, false) && !asked(&namespace, 3, false));
        assert!(!asked(&namespace, 9, false) && asked(&namespace, 9, true));
        namespace.pid = Some(7);
        assert!(!asked(&namespace, 1, true));
    }
}
