//! A machine made of files, for tests: trees like `/proc` and `/sys`.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::scan::Roots;

/// The mountinfo of a machine with one filesystem.
pub(crate) const ROOT: &str = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n";
/// The mountinfo of a container with a volume of its own.
pub(crate) const DATABASE: &str =
    "9 8 0:50 / / rw - overlay overlay rw\n10 9 8:17 / /db rw - xfs /dev/sdb1 rw\n";

/// A tree of files like `/proc` and `/sys`. Dropping it removes the files.
pub(crate) struct FakeMachine(pub(crate) PathBuf);

impl FakeMachine {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "vmsnapshot-scan-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let machine = Self(std::env::temp_dir().join(name));
        fs::create_dir_all(machine.0.join("sys/dev/block")).unwrap();
        machine
    }

    pub(crate) fn roots(&self) -> Roots {
        Roots {
            proc: self.0.join("proc"),
            sys: self.0.join("sys"),
        }
    }

    pub(crate) fn file(&self, path: &str, content: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(crate) fn link(&self, path: &str, target: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    pub(crate) fn process(&self, pid: &str, namespace: &str, mountinfo: Option<&str>) {
        self.link(&format!("proc/{pid}/ns/mnt"), namespace);
        if let Some(mountinfo) = mountinfo {
            self.file(&format!("proc/{pid}/mountinfo"), mountinfo);
        }
    }

    /// Makes a device directory as the kernel lays it out, and the link to it by number.
    pub(crate) fn device(&self, number: &str, path: &str) {
        self.file(&format!("sys/devices/{path}/dev"), &format!("{number}\n"));
        self.link(
            &format!("sys/dev/block/{number}"),
            &format!("../../devices/{path}"),
        );
    }
}

impl Drop for FakeMachine {
    fn drop(&mut self) {
        // A leftover in the temporary directory is no reason for a test to fail.
        let _ = fs::remove_dir_all(&self.0);
    }
}
