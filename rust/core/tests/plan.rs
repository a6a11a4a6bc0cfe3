//! Tests the rules of the plan on mountinfo as a real machine writes it.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::devices::{BlockDevice, DeviceGraph};
use vmsnapshot_core::mountinfo::{self, MountNamespace};
use vmsnapshot_core::plan::{Plan, PlanError, Selection, UnreadableMounts};

/// A Debian 12 cloud machine: root, EFI partition, kernel filesystems, autofs for binfmt_misc.
const DEBIAN: &str = "\
21 27 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
22 27 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
23 27 0:5 / /dev rw,nosuid,relatime shared:2 - devtmpfs udev rw,size=4045872k,mode=755
24 23 0:22 / /dev/pts rw,nosuid,noexec,relatime shared:3 - devpts devpts rw,gid=5
25 27 0:23 / /run rw,nosuid,nodev,noexec,relatime shared:5 - tmpfs tmpfs rw,mode=755
27 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,discard,errors=remount-ro
29 21 0:7 / /sys/kernel/security rw,nosuid shared:8 - securityfs securityfs rw
33 22 0:29 / /proc/sys/fs/binfmt_misc rw,relatime shared:13 - autofs systemd-1 rw,fd=30
40 27 8:15 / /boot/efi rw,relatime shared:31 - vfat /dev/sda15 rw,fmask=0022
41 27 8:16 / /mnt rw,relatime shared:33 - ext4 /dev/sdb rw
";

fn number(text: &str) -> DeviceNumber {
    text.parse().unwrap()
}

fn device(
    number_text: &str,
    names: &[&str],
    parents: &[&str],
    backing_file: Option<&str>,
) -> BlockDevice {
    BlockDevice {
        directory: std::path::PathBuf::new(),
        number: number(number_text),
        names: names.iter().map(ToString::to_string).collect(),
        parents: parents.iter().map(|text| number(text)).collect(),
        backing_file: backing_file.map(PathBuf::from),
    }
}

fn loops(files: &[(&str, &str)]) -> DeviceGraph {
    let devices = files
        .iter()
        .map(|(number, file)| device(number, &[], &[], Some(file)))
        .collect();
    DeviceGraph::new(devices, Vec::new())
}

/// Like [`loops`], with the filesystem that each file really lies on.
fn loops_on(files: &[(&str, &str, &str)]) -> DeviceGraph {
    let paths: Vec<_> = files
        .iter()
        .map(|(loop_, path, _)| (*loop_, *path))
        .collect();
    let on = files
        .iter()
        .map(|(loop_, _, on)| (number(loop_), number(on)));
    loops(&paths).with_files_on(on.collect())
}

fn own(mountinfo: &str) -> MountNamespace {
    MountNamespace {
        pid: None,
        mounts: mountinfo::parse(mountinfo.as_bytes()).mounts,
    }
}

fn select(include: &[&str], exclude: &[&str]) -> Selection {
    let owned = |texts: &[&str]| -> Vec<String> { texts.iter().map(ToString::to_string).collect() };
    Selection::parse(&owned(include), &owned(exclude)).unwrap()
}

fn try_plan(mountinfo: &str, include: &[&str], exclude: &[&str]) -> Result<Plan, PlanError> {
    Plan::make(
        &[own(mountinfo)],
        &DeviceGraph::default(),
        &select(include, exclude),
    )
}

fn plan(mountinfo: &str, include: &[&str], exclude: &[&str]) -> Plan {
    try_plan(mountinfo, include, exclude).unwrap()
}

fn plan_on(mountinfo: &str, graph: &DeviceGraph) -> Plan {
    Plan::make(&[own(mountinfo)], graph, &Selection::default()).unwrap()
}

/// Returns `(mount point, level)` of every planned filesystem.
fn frozen(plan: &Plan) -> Vec<(&str, u32)> {
    plan.filesystems
        .iter()
        .map(|planned| (planned.mount_point.to_str().unwrap(), planned.level))
        .collect()
}

fn reason<'a>(plan: &'a Plan, mount_point: &str) -> &'a str {
    let mut skipped = plan.skipped.iter();
    skipped
        .find(|skipped| skipped.mount_point == Path::new(mount_point))
        .unwrap()
        .reason
        .code()
}

fn mount(id: u32, parent: u32, number: &str, root: &str, point: &str, rest: &str) -> String {
    format!("{id} {parent} {number} {root} {point} rw,relatime - {rest}\n")
}

/// Returns a mountinfo with `/` as ext4 on 8:1, and `mounts`.
fn on_root(mounts: &[String]) -> String {
    mount(1, 0, "8:1", "/", "/", "ext4 /dev/sda1 rw") + &mounts.concat()
}

#[test]
fn a_cloud_machine_freezes_its_local_disks_with_root_last() {
    let plan = plan(DEBIAN, &[], &[]);
    assert_eq!(frozen(&plan), [("/mnt", 0), ("/", 1)]);
    assert_eq!(reason(&plan, "/boot/efi"), "not-freezable");
    for kernels_own in ["/sys", "/proc", "/dev", "/run", "/proc/sys/fs/binfmt_misc"] {
        assert_eq!(reason(&plan, kernels_own), "not-on-local-block-device");
    }
    assert_eq!(plan.filesystems.len() + plan.skipped.len(), 10);
}

#[test]
fn network_and_fuse_filesystems_are_never_frozen() {
    let mountinfo = on_root(&[
        mount(2, 1, "0:50", "/", "/net", "nfs4 server:/export rw,vers=4.2"),
        mount(3, 1, "0:51", "/", "/cifs", "cifs //server/share rw"),
        mount(4, 1, "0:52", "/", "/ssh", "fuse.sshfs user@host: rw"),
        mount(5, 1, "8:33", "/", "/ntfs", "fuseblk /dev/sdc1 rw"),
        mount(6, 1, "0:53", "/", "/9p", "9p share rw"),
        mount(7, 1, "0:54", "/", "/virtiofs", "virtiofs share rw"),
        mount(
            8,
            1,
            "0:55",
            "/",
            "/overlay",
            "overlay overlay rw,lowerdir=/a",
        ),
    ]);
    let plan = plan(&mountinfo, &[], &[]);
    assert_eq!(frozen(&plan), [("/", 0)]);
    assert!(plan
        .skipped
        .iter()
        .all(|skipped| skipped.reason.code() == "not-on-local-block-device"));
    assert_eq!(plan.skipped.len(), 7);
}

#[test]
fn an_unknown_type_on_a_block_device_is_tried() {
    let mountinfo = on_root(&[mount(2, 1, "8:17", "/", "/new", "newfs /dev/sdb1 rw")]);
    assert_eq!(frozen(&plan(&mountinfo, &[], &[])), [("/new", 0), ("/", 1)]);
}

#[test]
fn a_read_only_superblock_is_skipped_but_not_a_read_only_bind() {
    let mountinfo = on_root(&[
        mount(2, 1, "8:17", "/", "/ro", "ext4 /dev/sdb1 ro"),
        "3 1 8:18 / /bind ro,relatime - ext4 /dev/sdb2 rw\n".to_owned(),
        mount(4, 1, "7:0", "/", "/snap/core/1", "squashfs /dev/loop0 ro"),
    ]);
    let plan = plan_on(
        &mountinfo,
        &loops(&[("7:0", "/var/lib/snapd/snaps/core_1.snap")]),
    );
    assert_eq!(frozen(&plan), [("/bind", 0), ("/", 1)]);
    assert_eq!(
        (reason(&plan, "/ro"), reason(&plan, "/snap/core/1")),
        ("read-only", "read-only")
    );
}

#[test]
fn a_superblock_is_planned_once_at_its_shortest_mount_point_that_shows_all_of_it() {
    let mountinfo = on_root(&[
        mount(2, 1, "8:17", "/sub", "/a", "ext4 /dev/sdb1 rw"),
        mount(3, 4, "8:17", "/", "/data/long", "ext4 /dev/sdb1 rw"),
        mount(4, 1, "8:17", "/", "/data", "ext4 /dev/sdb1 rw"),
    ]);
    let plan = plan(&mountinfo, &[], &[]);
    assert_eq!(frozen(&plan), [("/data", 0), ("/", 1)]);
    let data = &plan.filesystems[0];
    assert_eq!(
        data.also_mounted_at,
        [PathBuf::from("/a"), PathBuf::from("/data/long")]
    );
    assert_eq!(data.open_path, data.mount_point);
}

#[test]
fn btrfs_subvolumes_are_one_superblock_at_the_subvolume_nearest_to_the_top() {
    let mountinfo = "\
25 26 0:22 /@home /home rw,relatime - btrfs /dev/vda2 rw,subvol=/@home
26 1 0:22 /@ / rw,relatime - btrfs /dev/vda2 rw,subvol=/@
";
    let plan = plan(mountinfo, &[], &[]);
    assert_eq!(frozen(&plan), [("/", 0)]);
    assert_eq!(
        plan.filesystems[0].also_mounted_at,
        [PathBuf::from("/home")]
    );
}

#[test]
fn docker_overlays_and_file_binds_neither_hide_nor_repeat_the_disk_below() {
    let mountinfo = on_root(&[
        mount(
            2,
            1,
            "0:44",
            "/",
            "/var/lib/docker/overlay2/ab/merged",
            "overlay overlay rw,upperdir=/var/x",
        ),
        mount(
            3,
            1,
            "0:4",
            "net:[4026532]",
            "/run/docker/netns/ab",
            "nsfs nsfs rw",
        ),
        mount(
            4,
            1,
            "8:1",
            "/var/lib/docker/containers/ab/hosts",
            "/x/hosts",
            "ext4 /dev/sda1 rw",
        ),
    ]);
    let plan = plan(&mountinfo, &[], &[]);
    assert_eq!(frozen(&plan), [("/", 0)]);
    assert_eq!(
        plan.filesystems[0].also_mounted_at,
        [PathBuf::from("/x/hosts")]
    );
}

#[test]
fn a_mount_that_another_one_covers_is_planned_all_the_same() {
    let mountinfo = on_root(&[
        mount(2, 1, "8:17", "/", "/data", "ext4 /dev/sdb1 rw"),
        mount(3, 2, "8:18", "/", "/data", "ext4 /dev/sdb2 rw"),
    ]);
    let devices = |plan: &Plan| -> Vec<String> {
        let filesystems = plan.filesystems.iter();
        filesystems
            .map(|planned| planned.device.to_string())
            .collect()
    };
    assert_eq!(
        devices(&plan(&mountinfo, &[], &[])),
        ["8:17", "8:18", "8:1"]
    );
    // A mount further up covers every mount below its mount point.
    let mountinfo = on_root(&[
        mount(2, 1, "8:17", "/", "/a/b", "ext4 /dev/sdb1 rw"),
        mount(3, 2, "8:18", "/", "/a/b/c", "ext4 /dev/sdb2 rw"),
        mount(4, 1, "0:60", "/", "/a", "tmpfs none rw"),
    ]);
    let all = plan(&mountinfo, &[], &[]);
    assert_eq!(frozen(&all), [("/a/b", 0), ("/a/b/c", 0), ("/", 1)]);
    assert_eq!(
        frozen(&plan(&mountinfo, &[], &["/a/b"])),
        [("/a/b/c", 0), ("/", 1)]
    );
}

#[test]
fn a_covered_mount_of_another_namespace_is_out_of_reach_unless_it_is_not_wanted() {
    let there = MountNamespace {
        pid: Some(7),
        mounts: mountinfo::parse(
            b"9 8 0:50 / / rw - overlay o rw\n10 9 8:17 / /d rw - ext4 b rw\n\
              11 10 0:60 / /d rw - tmpfs none rw\n",
        )
        .mounts,
    };
    let namespaces = [own(&on_root(&[])), there];
    let plan_of = |include: &[&str], exclude: &[&str]| {
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let selection = Selection::parse(&texts(include), &texts(exclude)).unwrap();
        Plan::make(&namespaces, &DeviceGraph::default(), &selection).unwrap()
    };
    let skipped = |plan: &Plan| {
        let mut skipped = plan.skipped.iter();
        let found = skipped.find(|skipped| skipped.device == number("8:17"));
        found.unwrap().reason.clone()
    };
    let all = plan_of(&[], &[]);
    assert_eq!(skipped(&all).code(), "covered");
    assert!(skipped(&all).is_out_of_reach());
    // What the caller does not want is no reason to doubt the set.
    for (plan, code) in [
        (plan_of(&[], &["/d"]), "excluded"),
        (plan_of(&["/"], &[]), "not-included"),
        (all.without_filesystems(), "freeze-not-wanted"),
    ] {
        assert_eq!(skipped(&plan).code(), code);
        assert!(!skipped(&plan).is_out_of_reach());
    }
}

#[test]
fn a_superblock_with_a_covered_mount_is_planned_at_another_mount() {
    let mountinfo = on_root(&[
        mount(2, 1, "8:17", "/", "/d", "ext4 /dev/sdb1 rw"),
        mount(3, 2, "0:60", "/", "/d", "tmpfs tmpfs rw"),
        mount(4, 1, "8:17", "/sub", "/longer", "ext4 /dev/sdb1 rw"),
    ]);
    assert_eq!(
        frozen(&plan(&mountinfo, &[], &[])),
        [("/longer", 0), ("/", 1)]
    );
}

#[test]
fn a_mount_behind_a_network_filesystem_is_skipped_but_one_on_autofs_is_frozen() {
    let mountinfo = on_root(&[
        mount(2, 1, "0:50", "/", "/home", "nfs4 server:/home rw"),
        mount(3, 2, "8:17", "/", "/home/me/disk", "ext4 /dev/sdb1 rw"),
        mount(4, 1, "0:51", "/", "/auto", "autofs systemd-1 rw"),
        mount(5, 4, "8:18", "/", "/auto", "ext4 /dev/sdb2 rw"),
    ]);
    let plan = plan(&mountinfo, &[], &[]);
    assert_eq!(frozen(&plan), [("/auto", 0), ("/", 1)]);
    assert_eq!(reason(&plan, "/home/me/disk"), "behind-another");
}

#[test]
fn a_superblock_of_another_namespace_is_opened_through_its_process() {
    let container = MountNamespace {
        pid: Some(4711),
        mounts: mountinfo::parse(
            b"90 80 0:70 / / rw - overlay overlay rw\n\
              91 90 8:1 /var/lib/volumes/v /v rw - ext4 /dev/sda1 rw\n\
              92 90 8:49 / /db rw - xfs /dev/sdd1 rw\n",
        )
        .mounts,
    };
    let plan = Plan::make(
        &[own(&on_root(&[])), container],
        &DeviceGraph::default(),
        &Selection::default(),
    )
    .unwrap();
    assert_eq!(frozen(&plan), [("/db", 0), ("/", 1)]);
    assert_eq!(
        plan.filesystems[0].open_path,
        Path::new("/proc/4711/root/db")
    );
    assert_eq!(plan.filesystems[1].open_path, Path::new("/"));
    assert!(plan.filesystems[1].also_mounted_at.is_empty());
}

#[test]
fn a_superblock_that_is_covered_here_is_opened_in_another_namespace() {
    let here = on_root(&[
        mount(2, 1, "8:17", "/", "/data", "ext4 /dev/sdb1 rw"),
        mount(3, 2, "0:60", "/", "/data", "tmpfs tmpfs rw"),
    ]);
    let there = MountNamespace {
        pid: Some(7),
        mounts: mountinfo::parse(b"9 8 8:1 / / rw - ext4 a rw\n10 9 8:17 / /d rw - ext4 b rw\n")
            .mounts,
    };
    let plan = Plan::make(
        &[own(&here), there],
        &DeviceGraph::default(),
        &Selection::default(),
    )
    .unwrap();
    assert_eq!(plan.filesystems[0].open_path, Path::new("/proc/7/root/d"));
}

#[test]
fn a_superblock_behind_the_fuse_root_of_a_container_is_not_opened_but_one_behind_an_overlay_is() {
    let container = |pid, root: &str| MountNamespace {
        pid: Some(pid),
        mounts: mountinfo::parse(
            format!("90 80 0:70 / / rw - {root} rw\n91 90 8:49 / /db rw - ext4 /dev/sdd1 rw\n")
                .as_bytes(),
        )
        .mounts,
    };
    let fuse = container(4711, "fuse.fuse-overlayfs fuse-overlayfs");
    let graph = DeviceGraph::default();
    let plan_of = |namespaces: &[MountNamespace]| {
        Plan::make(namespaces, &graph, &Selection::default()).unwrap()
    };
    let plan = plan_of(&[own(&on_root(&[])), fuse.clone()]);
    assert_eq!(frozen(&plan), [("/", 0)]);
    assert_eq!(reason(&plan, "/db"), "behind-another");
    // The same filesystem is reached another way if there is one.
    let plan = plan_of(&[own(&on_root(&[])), fuse, container(4712, "overlay overlay")]);
    assert_eq!(
        plan.filesystems[0].open_path,
        Path::new("/proc/4712/root/db")
    );
}

#[test]
fn a_machine_whose_own_root_is_a_network_filesystem_is_planned() {
    let mountinfo = "\
1 1 0:30 / / rw - nfs4 server:/root rw
2 1 8:17 / /data rw - ext4 /dev/sdb1 rw
";
    assert_eq!(frozen(&plan(mountinfo, &[], &[])), [("/data", 0)]);
}

#[test]
fn loop_on_loop_on_disk_freezes_from_the_top() {
    let mountinfo = on_root(&[
        mount(2, 1, "8:17", "/", "/disk", "xfs /dev/sdb1 rw"),
        mount(3, 1, "7:0", "/", "/middle", "ext4 /dev/loop0 rw"),
        mount(4, 1, "7:1", "/", "/top", "ext4 /dev/loop1 rw"),
    ]);
    let graph = loops(&[
        ("7:0", "/disk/middle.img"),
        ("7:1", "/middle/top.img (deleted)"),
    ]);
    assert_eq!(
        frozen(&plan_on(&mountinfo, &graph)),
        [("/top", 0), ("/middle", 1), ("/disk", 2), ("/", 3)]
    );
}

#[test]
fn lvm_on_md_on_loop_partitions_freezes_before_the_filesystem_of_the_loop_file() {
    let mountinfo = on_root(&[
        mount(2, 1, "8:17", "/", "/images", "ext4 /dev/sdb1 rw"),
        mount(3, 1, "253:0", "/", "/srv", "xfs /dev/mapper/vg-srv rw"),
    ]);
    let graph = DeviceGraph::new(
        vec![
            device(
                "253:0",
                &["/dev/dm-0", "/dev/mapper/vg-srv", "/dev/vg/srv"],
                &["9:0"],
                None,
            ),
            device("9:0", &["/dev/md0"], &["259:0", "259:1"], None),
            device("259:0", &["/dev/loop0p1"], &["7:0"], None),
            device("259:1", &["/dev/loop0p2"], &["7:0"], None),
            device("7:0", &["/dev/loop0"], &[], Some("/images/a.img")),
        ],
        Vec::new(),
    );
    assert_eq!(
        frozen(&plan_on(&mountinfo, &graph)),
        [("/srv", 0), ("/images", 1), ("/", 2)]
    );
    let excluded = Plan::make(&[own(&mountinfo)], &graph, &select(&[], &["/dev/vg/srv"])).unwrap();
    assert_eq!(reason(&excluded, "/srv"), "excluded");
    let included = Plan::make(&[own(&mountinfo)], &graph, &select(&["/dev/dm-0"], &[])).unwrap();
    assert_eq!(frozen(&included), [("/srv", 0)]);
}

#[test]
fn btrfs_lies_on_all_its_member_devices() {
    let mountinfo = on_root(&[
        mount(2, 1, "8:17", "/", "/images", "ext4 /dev/sdb1 rw"),
        mount(3, 1, "0:40", "/", "/pool", "btrfs /dev/sdc rw"),
    ]);
    let graph = DeviceGraph::new(
        vec![
            device("8:32", &["/dev/sdc"], &[], None),
            device("7:0", &["/dev/loop0"], &[], Some("/images/second.img")),
        ],
        vec![BTreeSet::from([number("8:32"), number("7:0")])],
    );
    assert_eq!(
        frozen(&plan_on(&mountinfo, &graph)),
        [("/pool", 0), ("/images", 1), ("/", 2)]
    );
    // A source that names no known device may be any btrfs.
    let unnamed = mountinfo.replace("btrfs /dev/sdc", "btrfs /dev/disk/by-uuid/1234");
    assert_eq!(
        frozen(&plan_on(&unnamed, &graph)),
        [("/pool", 0), ("/images", 1), ("/", 2)]
    );
}

#[test]
fn a_filesystem_that_is_left_out_still_orders_the_ones_above_and_below_it() {
    let mountinfo = on_root(&[
        mount(2, 1, "8:17", "/", "/disk", "xfs /dev/sdb1 rw"),
        mount(3, 1, "7:0", "/", "/middle", "ext4 /dev/loop0 rw"),
        mount(4, 1, "7:1", "/", "/top", "ext4 /dev/loop1 rw"),
    ]);
    let graph = loops(&[("7:0", "/disk/middle.img"), ("7:1", "/middle/top.img")]);
    let plan = Plan::make(&[own(&mountinfo)], &graph, &select(&[], &["/middle", "/"])).unwrap();
    assert_eq!(frozen(&plan), [("/top", 0), ("/disk", 1)]);
}

#[test]
fn a_loop_on_an_unknown_file_freezes_before_every_filesystem_that_could_hold_it() {
    let mountinfo = on_root(&[
        mount(2, 1, "8:17", "/", "/disk", "xfs /dev/sdb1 rw"),
        mount(3, 1, "0:60", "/", "/merged", "overlay overlay rw"),
        mount(4, 1, "7:0", "/", "/upper", "ext4 /dev/loop0 rw"),
        mount(5, 1, "7:1", "/", "/other", "ext4 /dev/loop1 rw"),
    ]);
    // 7:0 lies on an overlay, and 7:1 lies on a path of another namespace. The second graph does
    // not even have 7:0.
    for graph in [
        loops(&[("7:0", "/merged/a.img"), ("7:1", "somewhere/b.img")]),
        loops(&[("7:1", "/merged/b.img")]),
    ] {
        let plan = plan_on(&mountinfo, &graph);
        assert_eq!(
            frozen(&plan),
            [("/upper", 0), ("/other", 0), ("/disk", 1), ("/", 2)]
        );
    }
}

#[test]
fn a_loop_on_memory_freezes_before_root_only() {
    let mountinfo = on_root(&[
        mount(2, 1, "8:17", "/", "/disk", "xfs /dev/sdb1 rw"),
        mount(3, 1, "0:60", "/", "/run", "tmpfs tmpfs rw"),
        mount(4, 1, "7:0", "/", "/upper", "ext4 /dev/loop0 rw"),
    ]);
    let plan = plan_on(&mountinfo, &loops_on(&[("7:0", "/run/a.img", "0:60")]));
    assert_eq!(frozen(&plan), [("/disk", 0), ("/upper", 0), ("/", 1)]);
}

#[test]
fn a_loop_freezes_before_the_filesystem_of_its_file_and_not_of_its_path() {
    let mountinfo = on_root(&[
        mount(2, 1, "8:17", "/", "/disk", "xfs /dev/sdb1 rw"),
        mount(3, 1, "8:18", "/", "/other", "xfs /dev/sdb2 rw"),
        mount(4, 1, "7:0", "/", "/upper", "ext4 /dev/loop0 rw"),
    ]);
    for path in ["/a.img", "/other/a.img", "/disk/a.img"] {
        let plan = plan_on(&mountinfo, &loops_on(&[("7:0", path, "8:17")]));
        assert_eq!(
            frozen(&plan),
            [("/other", 0), ("/upper", 0), ("/disk", 1), ("/", 2)],
            "{path}"
        );
    }
}

#[test]
fn a_loop_whose_file_is_mounted_nowhere_waits_for_nothing() {
    let mountinfo = on_root(&[
        mount(2, 1, "8:17", "/", "/disk", "xfs /dev/sdb1 rw"),
        mount(3, 1, "7:0", "/", "/upper", "ext4 /dev/loop0 rw"),
    ]);
    let plan = plan_on(&mountinfo, &loops_on(&[("7:0", "/a.img", "8:99")]));
    assert_eq!(frozen(&plan), [("/disk", 0), ("/upper", 0), ("/", 1)]);
}

#[test]
fn a_loop_on_an_unknown_file_freezes_before_other_loops_and_after_what_lies_on_it() {
    let mountinfo = on_root(&[
        mount(2, 1, "8:17", "/", "/disk", "xfs /dev/sdb1 rw"),
        mount(3, 1, "7:0", "/", "/known", "ext4 /dev/loop0 rw"),
        mount(4, 1, "7:1", "/", "/unknown", "ext4 /dev/loop1 rw"),
        mount(5, 1, "7:2", "/", "/above", "ext4 /dev/loop2 rw"),
    ]);
    let graph = loops(&[
        ("7:0", "/disk/a.img"),
        ("7:1", "/b.img"),
        ("7:2", "/unknown/c.img"),
    ]);
    let files_on = [("7:0", "8:17"), ("7:2", "7:1")].map(|(loop_, on)| (number(loop_), number(on)));
    let plan = plan_on(&mountinfo, &graph.with_files_on(files_on.into()));
    assert_eq!(
        frozen(&plan),
        [
            ("/above", 0),
            ("/unknown", 1),
            ("/known", 2),
            ("/disk", 3),
            ("/", 4)
        ]
    );
}

#[test]
fn a_loop_on_a_number_that_mountinfo_does_not_have_lies_on_any_btrfs_or_overlay() {
    let mut mounts = vec![
        mount(2, 1, "8:17", "/", "/disk", "xfs /dev/sdb1 rw"),
        mount(3, 1, "0:40", "/", "/pool", "btrfs /dev/sdc rw"),
        mount(4, 1, "7:0", "/", "/upper", "ext4 /dev/loop0 rw"),
    ];
    // 0:41 is the number of a subvolume of /pool that is not mounted itself.
    let graph = loops_on(&[("7:0", "/pool/sub/a.img", "0:41")]);
    assert_eq!(
        frozen(&plan_on(&on_root(&mounts), &graph)),
        [("/disk", 0), ("/upper", 0), ("/pool", 1), ("/", 2)]
    );
    mounts.push(mount(5, 1, "0:60", "/", "/merged", "overlay overlay rw"));
    assert_eq!(
        frozen(&plan_on(&on_root(&mounts), &graph)),
        [("/upper", 0), ("/disk", 1), ("/pool", 1), ("/", 2)]
    );
}

#[test]
fn root_on_a_device_of_a_network_freezes_last() {
    let mountinfo = on_root(&[mount(2, 1, "8:17", "/", "/data", "xfs /dev/sdb1 rw")]);
    let disk = |number, directory: &str| BlockDevice {
        directory: directory.into(),
        ..device(number, &[], &[], None)
    };
    let graph = DeviceGraph::new(
        vec![
            disk("8:1", "/sys/devices/platform/host3/session1/block/sda/sda1"),
            disk(
                "8:17",
                "/sys/devices/platform/host3/session2/block/sdb/sdb1",
            ),
        ],
        Vec::new(),
    );
    assert_eq!(
        frozen(&plan_on(&mountinfo, &graph)),
        [("/data", 0), ("/", 1)]
    );
}

/// There is no nbd here, nor any of the others, so the graph has only their names in sysfs.
#[test]
fn a_device_that_a_program_may_serve_freezes_before_everything_below_that_program() {
    let mountinfo = on_root(&[
        mount(2, 1, "8:17", "/", "/images", "ext4 /dev/sdb1 rw"),
        mount(3, 1, "7:0", "/", "/inner", "ext4 /dev/loop0 rw"),
        mount(4, 1, "253:0", "/", "/served", "ext4 /dev/mapper/served rw"),
    ]);
    for directory in [
        "/sys/devices/virtual/block/nbd0/nbd0p1",
        "/sys/devices/virtual/block/ublkb0",
        "/sys/devices/rbd/0/block/rbd0",
        "/sys/devices/tcm_loop_0/tcm_loop_adapter_0/host2/target2:0:1/2:0:1:0/block/sdc",
        "/sys/devices/platform/host3/session1/target3:0:0/3:0:0:1/block/sdc",
        "/sys/devices/virtual/nvme-fabrics/ctl/nvme1/nvme1n1",
        "/sys/devices/virtual/vduse/vduse0/disk/vdpa0/virtio3/block/vdc",
    ] {
        let served = BlockDevice {
            directory: directory.into(),
            ..device("43:0", &[], &[], None)
        };
        let graph = DeviceGraph::new(
            vec![
                served,
                device("253:0", &[], &["43:0"], None),
                device("7:0", &[], &[], Some("/images/a.img")),
            ],
            Vec::new(),
        )
        .with_files_on([(number("7:0"), number("8:17"))].into());
        assert_eq!(
            frozen(&plan_on(&mountinfo, &graph)),
            [("/served", 0), ("/inner", 1), ("/images", 2), ("/", 3)],
            "{directory}"
        );
    }
    // An ordinary disk that is attached over NVMe: the kernel calls it virtual too.
    let nvme = BlockDevice {
        directory: "/sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1".into(),
        ..device("253:0", &[], &[], None)
    };
    let plan = plan_on(&mountinfo, &DeviceGraph::new(vec![nvme], Vec::new()));
    assert_eq!(plan.filesystems[1].mount_point, Path::new("/images"));
}

#[test]
fn a_loop_over_a_block_device_freezes_before_what_that_device_lies_on() {
    let mountinfo = on_root(&[
        mount(2, 1, "8:17", "/", "/images", "ext4 /dev/sdb1 rw"),
        mount(3, 1, "7:1", "/", "/upper", "ext4 /dev/loop1 rw"),
    ]);
    let graph = DeviceGraph::new(
        vec![
            device("7:1", &["/dev/loop1"], &[], Some("/dev/loop0")),
            device("7:0", &["/dev/loop0"], &[], Some("/images/a.img")),
        ],
        Vec::new(),
    );
    assert_eq!(
        frozen(&plan_on(&mountinfo, &graph)),
        [("/upper", 0), ("/images", 1), ("/", 2)]
    );
}

#[test]
fn root_freezes_before_the_filesystem_below_it_and_after_all_others() {
    let mountinfo = "\
1 0 7:0 / / rw - ext4 /dev/loop0 rw
2 1 8:1 / /host rw - ntfs-like /dev/sda1 rw
3 1 8:17 / /data rw - ext4 /dev/sdb1 rw
";
    let plan = plan_on(mountinfo, &loops_on(&[("7:0", "/host/root.img", "8:1")]));
    assert_eq!(frozen(&plan), [("/data", 0), ("/", 1), ("/host", 2)]);
}

#[test]
fn a_filesystem_below_root_freezes_after_all_that_freeze_before_root() {
    // `/data` and `/more` wait for nothing, so `/` has more direct predecessors than `/host`. A
    // count of direct predecessors only would put `/host` first.
    let mountinfo = "\
1 0 7:0 / / rw - ext4 /dev/loop0 rw
2 1 8:1 / /host rw - xfs /dev/sda1 rw
3 1 8:17 / /data rw - ext4 /dev/sdb1 rw
4 1 8:18 / /more rw - ext4 /dev/sdb2 rw
";
    let plan = plan_on(mountinfo, &loops_on(&[("7:0", "/host/root.img", "8:1")]));
    assert_eq!(
        frozen(&plan),
        [("/data", 0), ("/more", 0), ("/", 1), ("/host", 2)]
    );
}

#[test]
fn planning_ends_when_devices_form_a_cycle() {
    let mountinfo = on_root(&[
        mount(2, 1, "7:0", "/", "/a", "ext4 /dev/loop0 rw"),
        mount(3, 1, "7:1", "/", "/b", "ext4 /dev/loop1 rw"),
    ]);
    let graph = loops(&[("7:0", "/b/x"), ("7:1", "/a/x")]);
    assert_eq!(
        frozen(&plan_on(&mountinfo, &graph)),
        [("/a", 0), ("/b", 0), ("/", 1)]
    );
    let parents = DeviceGraph::new(
        vec![
            device("8:1", &[], &["8:2"], None),
            device("8:2", &[], &["8:1"], None),
        ],
        Vec::new(),
    );
    assert_eq!(frozen(&plan_on(&on_root(&[]), &parents)), [("/", 0)]);
}

#[test]
fn exclude_overrides_include_and_the_reason_names_its_pattern() {
    let plan = plan(DEBIAN, &["ext4"], &["/mnt", "/nowhere", "xfs"]);
    assert_eq!(frozen(&plan), [("/", 0)]);
    let skipped = plan
        .skipped
        .iter()
        .find(|skipped| skipped.mount_point == Path::new("/mnt"))
        .unwrap();
    assert_eq!(skipped.reason.to_string(), "it is excluded by `/mnt`");
    assert_eq!(plan.unmatched_excludes, ["/nowhere", "xfs"]);
}

#[test]
fn exclude_of_a_bind_mount_of_a_directory_does_not_exclude_the_filesystem() {
    let mountinfo = on_root(&[
        mount(2, 1, "8:1", "/var/v", "/v", "ext4 /dev/sda1 rw"),
        mount(3, 1, "8:17", "/", "/data", "ext4 /dev/sdb1 rw"),
        mount(4, 3, "8:17", "/", "/data/again", "ext4 /dev/sdb1 rw"),
    ]);
    let plan = plan(&mountinfo, &[], &["/v", "/data/again"]);
    assert_eq!(frozen(&plan), [("/", 0)]);
    assert_eq!(plan.unmatched_excludes, ["/v"]);
}

#[test]
fn include_by_any_mount_point_leaves_the_rest_out() {
    let mountinfo = on_root(&[
        mount(2, 1, "8:17", "/", "/data", "ext4 /dev/sdb1 rw"),
        mount(3, 1, "8:17", "/sub", "/bind", "ext4 /dev/sdb1 rw"),
    ]);
    let plan = plan(&mountinfo, &["/bind"], &[]);
    assert_eq!(frozen(&plan), [("/data", 0)]);
    assert_eq!(reason(&plan, "/"), "not-included");
}

#[test]
fn include_that_matches_nothing_is_an_error() {
    for pattern in ["xfs", "/srv/*", "/dev/sdz1", "99:9"] {
        let error = try_plan(DEBIAN, &[pattern], &[]).unwrap_err();
        assert_eq!(
            error,
            PlanError::PatternMatchesNothing {
                pattern: pattern.to_owned()
            }
        );
        assert_eq!(error.code().name(), "pattern-matches-nothing");
    }
}

#[test]
fn include_of_a_path_that_is_not_a_mount_point_hints_at_the_one_it_lies_on() {
    let error = try_plan(DEBIAN, &["/mnt/data"], &[]).unwrap_err();
    assert_eq!(error.code().name(), "no-such-mount");
    assert_eq!(
        error.hint().unwrap(),
        "it lies on the filesystem mounted at `/mnt`"
    );
}

#[test]
fn include_of_an_unfreezable_mount_is_an_error_unless_the_pattern_is_a_glob() {
    for pattern in ["/boot/efi", "/run", "/dev/sda15", "8:15"] {
        assert_eq!(
            try_plan(DEBIAN, &[pattern], &[]).unwrap_err().code().name(),
            "not-freezable",
            "{pattern}"
        );
    }
    for pattern in ["/boot/*", "vfat", "/dev/sda1?"] {
        assert_eq!(
            reason(&plan(DEBIAN, &[pattern], &[]), "/boot/efi"),
            "not-freezable",
            "{pattern}"
        );
    }
    assert!(frozen(&plan(DEBIAN, &["/boot/efi"], &["vfat"])).is_empty());
}

#[test]
fn include_of_an_automounted_disk_is_accepted_despite_the_autofs_below_it() {
    let mountinfo = on_root(&[
        mount(4, 1, "0:51", "/", "/auto", "autofs systemd-1 rw"),
        mount(5, 4, "8:18", "/", "/auto", "ext4 /dev/sdb2 rw"),
    ]);
    assert_eq!(frozen(&plan(&mountinfo, &["/auto"], &[])), [("/auto", 0)]);
}

#[test]
fn the_plan_in_json_has_mount_points_as_text_and_reasons_as_code_and_sentence() {
    let mountinfo = on_root(&[mount(
        2,
        1,
        "8:15",
        "/",
        "/boot\\040efi",
        "vfat /dev/sda15 rw",
    )]);
    let json = serde_json::to_value(plan(&mountinfo, &[], &["/none"])).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "filesystems": [{
                "mount_point": "/", "open_path": "/", "also_mounted_at": [], "device": "8:1",
                "source": "/dev/sda1", "filesystem_type": "ext4", "level": 0,
            }],
            "skipped": [{
                "mount_point": "/boot efi", "device": "8:15", "source": "/dev/sda15", "filesystem_type": "vfat",
                "reason": "not-freezable", "why": "the kernel cannot freeze this filesystem type",
            }],
            "unreadable_mounts": [],
            "unmatched_excludes": ["/none"],
        })
    );
}

#[test]
fn the_plan_without_filesystems_skips_each_planned_one_with_a_reason() {
    let mut planned = plan(DEBIAN, &[], &[]);
    assert_eq!(frozen(&planned), [("/mnt", 0), ("/", 1)]);
    planned.unreadable_mounts = vec![UnreadableMounts {
        path: "/proc/20/mountinfo".to_owned(),
        why: "permission denied".to_owned(),
    }];
    let emptied = planned.without_filesystems();
    assert_eq!(frozen(&emptied), []);
    assert_eq!(emptied.unreadable_mounts, []);
    let (before, added) = emptied.skipped.split_at(planned.skipped.len());
    assert_eq!(before, planned.skipped);
    let added: Vec<_> = added
        .iter()
        .map(|skipped| (skipped.mount_point.to_str().unwrap(), skipped.reason.code()))
        .collect();
    assert_eq!(
        added,
        [("/mnt", "freeze-not-wanted"), ("/", "freeze-not-wanted")]
    );
}

#[test]
fn excluded_device_is_skipped_and_excludes_that_cannot_be_parsed_are_listed_apart() {
    let excludes = ["/mnt/[".to_owned(), "vfat".to_owned()];
    let mut selection = Selection::parse_leniently(&[], &excludes).unwrap();
    selection.excluded_devices.insert(number("8:16"));
    let graph = DeviceGraph::default();
    let plan = Plan::make(&[own(DEBIAN)], &graph, &selection).unwrap();
    assert_eq!(frozen(&plan), [("/", 0)]);
    assert_eq!(reason(&plan, "/mnt"), "excluded");
    let unusable: Vec<_> = plan
        .unusable_excludes
        .iter()
        .map(|error| error.pattern.as_str())
        .collect();
    assert_eq!(unusable, ["/mnt/["]);
    assert_eq!(
        Selection::parse(&[], &excludes).unwrap_err().code().name(),
        "bad-pattern"
    );
}

#[test]
fn filesystem_is_explicit_if_a_pattern_names_one_mount_or_device() {
    let mountinfo = on_root(&[
        mount(2, 1, "8:17", "/", "/srv", "ext4 /dev/sdb1 rw"),
        mount(3, 1, "8:33", "/", "/data", "xfs /dev/sdc1 rw"),
    ]);
    let explicit = |include: &[&str]| -> Vec<String> {
        let planned = plan(&mountinfo, include, &[]).filesystems;
        let explicit = planned.iter().filter(|planned| planned.is_explicit);
        explicit
            .map(|planned| planned.mount_point.display().to_string())
            .collect()
    };
    assert!(explicit(&[]).is_empty());
    assert!(explicit(&["/*", "xfs", "/**"]).is_empty());
    for pattern in ["/srv", "mount=/srv", "/dev/sdb1", "8:17"] {
        assert_eq!(explicit(&[pattern, "/*"]), ["/srv"], "{pattern}");
    }
}

#[test]
fn plan_is_made_again_for_what_is_mounted_now() {
    let data = mount(2, 1, "8:17", "/", "/data", "ext4 /dev/sdb1 rw");
    let srv = mount(3, 1, "8:33", "/", "/srv", "xfs /dev/sdc1 rw");
    let before = plan(&on_root(&[data]), &["/data", "/*"], &["8:1"]);
    let again = |plan: &Plan, mountinfo: &str| {
        let now = plan.make_again(&[own(mountinfo)], &DeviceGraph::default());
        let now = now.unwrap().filesystems;
        now.iter()
            .map(|planned| planned.mount_point.display().to_string())
            .collect::<Vec<_>>()
    };
    // The pattern `/data` matches nothing any more, which is no error now.
    assert_eq!(
        again(&before, &on_root(std::slice::from_ref(&srv))),
        ["/srv"]
    );
    // What has nothing to freeze stays so: its caller did not take the locks for a freeze.
    assert!(again(
        &before.without_filesystems(),
        &on_root(std::slice::from_ref(&srv))
    )
    .is_empty());
    let empty = plan(&on_root(&[]), &[], &["/"]);
    assert!(again(&empty, &on_root(&[srv])).is_empty());
}
