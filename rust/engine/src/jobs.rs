//! What the kernel does with a filesystem that makes a FIFREEZE or a syncfs wait, maybe for hours.
//!
//! Writers stall from the call of FIFREEZE on, and no FITHAW ends that wait. So such a filesystem
//! must not be frozen.

use std::os::fd::BorrowedFd;

use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::plan::PlannedFilesystem;
use vmsnapshot_core::text::bytes_text;
use vmsnapshot_sys::btrfs;

use crate::scan::{devices_in, Roots};

/// The most device ids of a btrfs that are asked for a scrub.
const DEVICE_IDS_MAX: u64 = 4096;

/// Returns what a FIFREEZE of the filesystem would wait for, if there is such a job.
///
/// *Blocking*: no. It reads sysfs, and asks btrfs with calls that do not wait.
pub(crate) fn job_on(
    planned: &PlannedFilesystem,
    directory: BorrowedFd<'_>,
    roots: &Roots,
) -> Option<String> {
    let btrfs = btrfs_of(planned, directory);
    suspended_device(planned, btrfs.as_ref(), roots)
        .map(|device| format!("its device {device} is suspended by device-mapper"))
        .or_else(|| {
            let btrfs = btrfs?;
            // Not every kernel shows a scrub as an exclusive operation.
            exclusive_operation(&btrfs.uuid, roots).or_else(|| {
                let mut ids = 1..=btrfs.max_device_id.min(DEVICE_IDS_MAX);
                ids.any(|id| btrfs::is_scrubbing(directory, id))
                    .then(|| "a btrfs scrub is under way".to_owned())
            })
        })
}

fn btrfs_of(planned: &PlannedFilesystem, directory: BorrowedFd<'_>) -> Option<btrfs::Btrfs> {
    (planned.filesystem_type == "btrfs")
        .then(|| btrfs::describe(directory).ok())
        .flatten()
}

/// Returns the balance, replace, resize, or adding or removing of a device that is under way.
fn exclusive_operation(uuid: &str, roots: &Roots) -> Option<String> {
    // Since Linux 5.10.
    let file = roots
        .sys
        .join("fs/btrfs")
        .join(uuid)
        .join("exclusive_operation");
    let operation = bytes_text(&std::fs::read(file).ok()?);
    match operation.trim() {
        // A balance that is paused holds nothing.
        "none" | "balance paused" => None,
        other => Some(format!("a btrfs {other} is under way")),
    }
}

/// Returns a device below the filesystem that device-mapper has suspended. A syncfs would wait for
/// its resume with the superblock's lock, and every FIFREEZE and FITHAW for the syncfs.
fn suspended_device(
    planned: &PlannedFilesystem,
    btrfs: Option<&btrfs::Btrfs>,
    roots: &Roots,
) -> Option<DeviceNumber> {
    let mut below = match btrfs {
        Some(btrfs) => devices_in(&roots.sys.join("fs/btrfs").join(&btrfs.uuid).join("devices")),
        None => [planned.device].into(),
    };
    let mut seen = Vec::new();
    while let Some(device) = below.pop_first() {
        let directory = roots.sys.join("dev/block").join(device.to_string());
        let suspended = std::fs::read(directory.join("dm/suspended")).unwrap_or_default();
        if suspended.starts_with(b"1") {
            return Some(device);
        }
        seen.push(device);
        let slaves = devices_in(&directory.join("slaves"));
        below.extend(slaves.into_iter().filter(|slave| !seen.contains(slave)));
    }
    None
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;
    use crate::scan::fake_machine::FakeMachine;

    fn planned(device: &str) -> PlannedFilesystem {
        PlannedFilesystem {
            mount_point: "/data".into(),
            open_path: "/data".into(),
            also_mounted_at: Vec::new(),
            device: device.parse().unwrap(),
            source: String::new(),
            filesystem_type: "ext4".to_owned(),
            level: 0,
            is_explicit: false,
        }
    }

    /// This kernel has no device-mapper, so a fake tree stands for it.
    #[test]
    fn suspended_device_is_found_at_any_depth() {
        let machine = FakeMachine::new();
        machine.device("253:0", "virtual/block/dm-0");
        machine.device("253:1", "virtual/block/dm-1");
        machine.file("sys/devices/virtual/block/dm-0/dm/suspended", "0\n");
        machine.file("sys/devices/virtual/block/dm-1/dm/suspended", "0\n");
        machine.link("sys/devices/virtual/block/dm-1/slaves/dm-0", "../../dm-0");
        let directory = File::open("/").unwrap();
        let job = |device| job_on(&planned(device), directory.as_fd(), &machine.roots());
        assert_eq!(job("253:1"), None);
        machine.file("sys/devices/virtual/block/dm-0/dm/suspended", "1\n");
        let expected = "its device 253:0 is suspended by device-mapper";
        assert_eq!(job("253:0").as_deref(), Some(expected));
        assert_eq!(job("253:1").as_deref(), Some(expected));
        assert_eq!(job("8:1"), None);
    }

    #[test]
    fn exclusive_operation_is_a_job_unless_it_is_paused() {
        let machine = FakeMachine::new();
        for (operation, expected) in [
            ("none", None),
            ("balance paused", None),
            ("balance", Some("a btrfs balance is under way")),
            ("device add", Some("a btrfs device add is under way")),
        ] {
            machine.file(
                "sys/fs/btrfs/12-34/exclusive_operation",
                &format!("{operation}\n"),
            );
            let found = exclusive_operation("12-34", &machine.roots());
            assert_eq!(found.as_deref(), expected);
        }
        assert_eq!(exclusive_operation("56-78", &machine.roots()), None);
    }
}
