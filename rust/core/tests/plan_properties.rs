//! Properties of every plan, for any input.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::PathBuf;

use proptest::prelude::*;
use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::devices::{BlockDevice, DeviceGraph};
use vmsnapshot_core::mountinfo::{self, MountEntry, MountNamespace};
use vmsnapshot_core::pattern::{Pattern, Subject};
use vmsnapshot_core::plan::{Plan, Selection};

/// Every field has few values, so that mounts share superblocks, mount points and parents. Loops
/// lie on one another, and sometimes form a cycle.
fn device_number() -> impl Strategy<Value = DeviceNumber> {
    (prop_oneof![Just(0), Just(7), Just(8)], 0..6_u32)
        .prop_map(|(major, minor)| DeviceNumber { major, minor })
}

fn mount_point() -> impl Strategy<Value = PathBuf> {
    "(/[abc]){0,3}".prop_map(|path| {
        PathBuf::from(if path.is_empty() {
            "/".to_owned()
        } else {
            path
        })
    })
}

/// All mounts of a superblock have one type. Most of these types can be frozen.
fn filesystem_type(device: DeviceNumber) -> &'static str {
    match (device.major, device.minor) {
        (0, 0 | 1) => "btrfs",
        (0, 2) => "tmpfs",
        (0, 3) => "overlay",
        (0, _) => "nfs4",
        (_, 5) => "vfat",
        (_, _) => "ext4",
    }
}

/// Escapes what the kernel escapes in a path (`seq_path` in fs/proc_namespace.c: space, tab, newline,
/// backslash and number sign).
fn escaped(text: &str) -> String {
    let escape = |character: char| match character {
        ' ' | '\t' | '\n' | '\\' | '#' => format!("\\{:03o}", u32::from(character)),
        other => other.to_string(),
    };
    text.chars().map(escape).collect()
}

fn mount() -> impl Strategy<Value = MountEntry> {
    let ids = 0..20_u32;
    (
        ids.clone(),
        ids,
        device_number(),
        mount_point(),
        mount_point(),
    )
        .prop_map(
            |(mount_id, parent_id, device, root, mount_point)| MountEntry {
                mount_id,
                parent_id,
                device,
                root,
                mount_point,
                mount_options: "rw".to_owned(),
                filesystem_type: filesystem_type(device).to_owned(),
                source: format!("/dev/{}", device.minor),
                super_options: if device.minor == 4 { "ro" } else { "rw" }.to_owned(),
            },
        )
}

fn namespaces() -> impl Strategy<Value = Vec<MountNamespace>> {
    let mounts = || prop::collection::vec(mount(), 0..15);
    (mounts(), mounts()).prop_map(|(own, other)| {
        vec![
            MountNamespace {
                pid: None,
                mounts: own,
            },
            MountNamespace {
                pid: Some(42),
                mounts: other,
            },
        ]
    })
}

fn device_graph() -> impl Strategy<Value = DeviceGraph> {
    let file = prop::option::of(mount_point().prop_map(|path| path.join("file")));
    let device = (
        device_number(),
        prop::collection::vec(device_number(), 0..2),
        file,
    )
        .prop_map(|(number, parents, file)| BlockDevice {
            directory: std::path::PathBuf::new(),
            number,
            names: vec![format!("/dev/{}", number.minor)],
            parents,
            backing_file: file.filter(|_| number.major == 7),
        });
    let members = prop::collection::vec(prop::collection::btree_set(device_number(), 1..3), 0..2);
    let files_on = prop::collection::btree_map(device_number(), device_number(), 0..6);
    (prop::collection::vec(device, 0..10), members, files_on).prop_map(
        |(devices, members, files_on)| DeviceGraph::new(devices, members).with_files_on(files_on),
    )
}

proptest! {
    #[test]
    fn mountinfo_parsing_never_panics_on_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = mountinfo::parse(&bytes);
    }

    #[test]
    fn mountinfo_parsing_never_panics_on_nearly_valid_lines(line in "[0-9]{1,11} [0-9] [0-9:]{1,9} [/a\\\\0-9]{1,9} /[\\\\0-7]{0,9} rw (x |- ){0,3}[a-z ]{0,9}") {
        let _ = mountinfo::parse(line.as_bytes());
    }

    #[test]
    fn mounts_are_read_back_as_the_kernel_writes_them(
        mount_point in r"(/[a-c \t\n\\#é]{1,6}){1,3}",
        source in r"[a-c \t\n\\#é]{0,9}",
    ) {
        let line = format!("1 0 8:1 / {} rw - ext4 {} rw\n", escaped(&mount_point), escaped(&source));
        let mount = mountinfo::parse(line.as_bytes()).mounts.pop().unwrap();
        prop_assert_eq!(mount.mount_point, PathBuf::from(mount_point));
        prop_assert_eq!(mount.source, source);
    }

    #[test]
    fn pattern_parsing_and_matching_never_panic_on_any_text(text in "\\PC{0,30}|[/*?\\[\\]!a-]{0,30}", path in "(/[a-]{0,4}){0,5}") {
        if let Ok(pattern) = Pattern::parse(&text) {
            let path = PathBuf::from(path);
            let _: bool = pattern.matches(&Subject { mount_points: vec![&path], filesystem_type: "ext4", ..Subject::default() });
        }
    }

    #[test]
    fn a_path_without_wildcards_matches_itself(path in "(/[a-z .:-]{1,4}){1,5}") {
        let mount_point = PathBuf::from(&path);
        let subject = Subject { mount_points: vec![&mount_point], ..Subject::default() };
        prop_assert!(Pattern::parse(&path).unwrap().matches(&subject));
        prop_assert!(Pattern::parse("/**").unwrap().matches(&subject));
    }

    #[test]
    fn every_superblock_is_either_planned_or_skipped_exactly_once(namespaces in namespaces(), graph in device_graph()) {
        let plan = Plan::make(&namespaces, &graph, &Selection::default()).unwrap();
        let mounted: BTreeSet<DeviceNumber> =
            namespaces.iter().flat_map(|namespace| &namespace.mounts).map(|mount| mount.device).collect();
        let listed: Vec<DeviceNumber> = plan.filesystems.iter().map(|planned| planned.device)
            .chain(plan.skipped.iter().map(|skipped| skipped.device)).collect();
        prop_assert_eq!(listed.len(), mounted.len());
        prop_assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), mounted);
    }

    #[test]
    fn levels_have_no_gaps_and_come_in_order(namespaces in namespaces(), graph in device_graph()) {
        let plan = Plan::make(&namespaces, &graph, &Selection::default()).unwrap();
        let levels: Vec<u32> = plan.filesystems.iter().map(|planned| planned.level).collect();
        prop_assert!(levels.is_sorted());
        let distinct: BTreeSet<u32> = levels.into_iter().collect();
        prop_assert!(distinct.iter().copied().eq(0..u32::try_from(distinct.len()).unwrap()));
    }

    #[test]
    fn what_is_stacked_above_freezes_at_a_smaller_level(namespaces in namespaces(), graph in device_graph()) {
        let plan = Plan::make(&namespaces, &graph, &Selection::default()).unwrap();
        let level = |device: DeviceNumber| {
            plan.filesystems.iter().find(|planned| planned.device == device).map(|planned| planned.level)
        };
        // One mount per superblock: the one in the plan, frozen or skipped.
        let frozen = plan.filesystems.iter().map(|planned| (planned.device, &planned.mount_point, &planned.source));
        let skipped = plan.skipped.iter().map(|skipped| (skipped.device, &skipped.mount_point, &skipped.source));
        let mounts: Vec<&MountEntry> = namespaces.iter().flat_map(|namespace| &namespace.mounts).collect();
        let superblocks: Vec<&MountEntry> = frozen.chain(skipped).filter_map(|shown| {
            mounts.iter().copied().find(|mount| (mount.device, &mount.mount_point, &mount.source) == shown)
        }).collect();
        let own = namespaces.first().map(|namespace| namespace.mounts.as_slice()).unwrap();
        let below = graph.superblocks_below(&superblocks, own);
        for (upper, lowers) in &below {
            for lower in lowers {
                prop_assert!(!below.get(lower).is_some_and(|back| back.contains(upper)), "{upper} and {lower} are below one another");
                if let (Some(upper_level), Some(lower_level)) = (level(*upper), level(*lower)) {
                    prop_assert!(upper_level < lower_level, "{upper} lies above {lower}");
                }
            }
        }
    }
}
