//! What the kernel does with a filesystem that makes a FIFREEZE or a syncfs wait, maybe for hours.
//!
//! Writers stall from the call of FIFREEZE on, and no FITHAW ends that wait. So such a filesystem
//! must not be frozen.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::plan::PlannedFilesystem;
use vmsnapshot_core::text::bytes_text;
use vmsnapshot_sys::clock;
use vmsnapshot_sys::errno::{errno_text, number_text};

use crate::block_device;
use crate::companion::ask::{ask, Answer, NotAsked};
use crate::companion::Role;
use crate::error::PrepareError;
use crate::leftovers::{leftovers, Open};
use crate::observer::Observer;
use crate::scan::{devices_in, Roots};

/// Returns, for each filesystem, what a FIFREEZE of it would wait for, if there is such a job. A
/// btrfs that does not answer within `limit` has one. `directories` has the same order.
///
/// *Blocking*: `limit`, if there is a btrfs. Then it also takes some milliseconds to start the
/// process that asks.
///
/// # Errors
/// [`PrepareError::Interrupted`], or [`PrepareError::Resources`] if that process cannot be started.
pub(crate) fn jobs_on(
    filesystems: &[PlannedFilesystem],
    directories: &[OwnedFd],
    limit: Duration,
    observer: &mut dyn Observer,
) -> Result<Vec<Option<String>>, PrepareError> {
    let roots = Roots::default();
    let leftovers = leftovers(&roots.proc);
    let mut jobs: Vec<Option<String>> = filesystems
        .iter()
        .map(|planned| {
            let mut calls = leftovers.iter();
            calls
                .find(|leftover| is_on(leftover.open, planned, &roots))
                .map(|leftover| leftover.call.clone())
                .or_else(|| job_in_sysfs(planned, &roots))
        })
        .collect();
    // Not every kernel shows a scrub as an exclusive operation.
    let (asked, places): (Vec<_>, Vec<_>) = filesystems
        .iter()
        .zip(directories)
        .zip(&mut jobs)
        .filter(|((planned, _), job)| planned.filesystem_type == "btrfs" && job.is_none())
        .map(|((_, directory), job)| (directory.as_fd(), job))
        .unzip();
    let deadline = clock::monotonic().plus(limit);
    let answers = ask(Role::Scrub, &asked, deadline, observer).map_err(|error| match error {
        NotAsked::Interrupted => PrepareError::Interrupted,
        NotAsked::Start(cause) => PrepareError::Resources {
            step: "start the process that asks btrfs for a scrub",
            cause,
        },
    })?;
    for (job, answer) in places.into_iter().zip(answers) {
        *job = match answer {
            Answer::Yes(_) => Some("a btrfs scrub is under way".to_owned()),
            Answer::No => None,
            // Whatever holds the devices now would hold a commit too, and FIFREEZE commits.
            Answer::Late => Some(format!(
                "the kernel has not answered within {:.2} s whether a btrfs scrub is under way",
                limit.as_secs_f64()
            )),
            // A scrub holds FIFREEZE for hours, so it must be known that there is none.
            Answer::Refused(errno) => Some(unknown_scrub(&number_text(errno))),
            Answer::Ended => Some(unknown_scrub("the process that asks has ended")),
            Answer::Lost(errno) => Some(unknown_scrub(&format!(
                "the process that asks cannot be reached: {}",
                errno_text(errno)
            ))),
        };
    }
    Ok(jobs)
}

fn unknown_scrub(why: &str) -> String {
    format!("it is not known whether a btrfs scrub is under way: {why}")
}

/// Returns whether what a companion has open is the filesystem, or may be.
fn is_on(open: Open, planned: &PlannedFilesystem, roots: &Roots) -> bool {
    match open {
        Open::Filesystem(device) => device == planned.device,
        Open::SpansDevices => planned.device.major == 0,
        Open::BlockDevice(device) if planned.filesystem_type == "btrfs" => btrfs_of(planned, roots)
            .iter()
            .any(|btrfs| devices_in(&btrfs.join("devices")).contains(&device)),
        Open::BlockDevice(device) => device == planned.device,
    }
}

/// Returns the job that sysfs shows. These files wait for no disk.
fn job_in_sysfs(planned: &PlannedFilesystem, roots: &Roots) -> Option<String> {
    let btrfs = match planned.filesystem_type.as_str() {
        "btrfs" => btrfs_of(planned, roots),
        _ => Vec::new(),
    };
    suspended_device(planned, &btrfs, roots)
        .map(|device| format!("its device {device} is suspended by device-mapper"))
        .or_else(|| btrfs.iter().find_map(|btrfs| exclusive_operation(btrfs)))
}

/// Returns the directory in sysfs of the btrfs, or of each that it may be.
///
/// BTRFS_IOC_FS_INFO has the UUID, which is the name of the directory, but earlier kernels answer it
/// only when no commit holds the devices.
fn btrfs_of(planned: &PlannedFilesystem, roots: &Roots) -> Vec<PathBuf> {
    let named = block_device::of_source(&planned.source);
    let all: Vec<PathBuf> = std::fs::read_dir(roots.sys.join("fs/btrfs"))
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    let has_device = |btrfs: &&PathBuf| {
        named.is_some_and(|device| devices_in(&btrfs.join("devices")).contains(&device))
    };
    let found: Vec<PathBuf> = all.iter().filter(has_device).cloned().collect();
    // A source that names no device (`/dev/root`) may be any btrfs.
    if found.is_empty() {
        all
    } else {
        found
    }
}

/// Returns the balance, replace, resize, or adding or removing of a device that is under way.
fn exclusive_operation(btrfs: &Path) -> Option<String> {
    // Since Linux 5.10.
    let operation = bytes_text(&std::fs::read(btrfs.join("exclusive_operation")).ok()?);
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
    btrfs: &[PathBuf],
    roots: &Roots,
) -> Option<DeviceNumber> {
    let mut below: BTreeSet<_> = btrfs
        .iter()
        .flat_map(|btrfs| devices_in(&btrfs.join("devices")))
        .collect();
    below.insert(planned.device);
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
        let job = |device| job_in_sysfs(&planned(device), &machine.roots());
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
            let found = exclusive_operation(&machine.0.join("sys/fs/btrfs/12-34"));
            assert_eq!(found.as_deref(), expected);
        }
        let found = exclusive_operation(&machine.0.join("sys/fs/btrfs/56-78"));
        assert_eq!(found, None);
    }

    #[test]
    fn btrfs_is_found_by_its_source_or_may_be_any() {
        let machine = FakeMachine::new();
        let directory = |name: &str| machine.0.join("sys/fs/btrfs").join(name);
        // The number of `/dev/null`. The test needs a node that every machine has.
        machine.device("1:3", "virtual/block/sda");
        machine.device("8:17", "virtual/block/sdb");
        for (name, device) in [("12-34", "sda"), ("56-78", "sdb")] {
            let target = format!("../../../../devices/virtual/block/{device}");
            machine.link(&format!("sys/fs/btrfs/{name}/devices/{device}"), &target);
        }
        let mut data = planned("0:50");
        data.filesystem_type = "btrfs".to_owned();
        data.source = "/dev/null".to_owned();
        assert_eq!(btrfs_of(&data, &machine.roots()), [directory("12-34")]);
        // A user may have made the second and the third.
        machine.link("source", "/dev/null");
        let link = machine.0.join("source").to_str().unwrap().to_owned();
        for source in ["/dev/root/of/no/machine", &link, "/dev/../dev/null"] {
            data.source = source.to_owned();
            let mut any = btrfs_of(&data, &machine.roots());
            any.sort();
            assert_eq!(any, [directory("12-34"), directory("56-78")]);
        }
        let is_on = |open, planned: &PlannedFilesystem| is_on(open, planned, &machine.roots());
        let device = |number: &str| Open::BlockDevice(number.parse().unwrap());
        assert!(is_on(device("8:17"), &data) && !is_on(device("8:33"), &data));
        assert!(is_on(Open::SpansDevices, &data) && !is_on(Open::SpansDevices, &planned("8:17")));
        assert!(is_on(device("8:17"), &planned("8:17")));
        data.source = "/dev/null".to_owned();
        assert!(is_on(device("1:3"), &data) && !is_on(device("8:17"), &data));
        data.source = "/dev/root/of/no/machine".to_owned();
        machine.file("sys/devices/virtual/block/sdb/dm/suspended", "1\n");
        assert!(job_in_sysfs(&data, &machine.roots()).is_some());
        data.source = "/dev/null".to_owned();
        assert_eq!(job_in_sysfs(&data, &machine.roots()), None);
    }
}
