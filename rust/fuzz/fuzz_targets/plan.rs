//! Plans with any text as include pattern (the first line) and any bytes as mountinfo (the rest).
//! The result must be a plan or an error, never a panic.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmsnapshot_core::devices::DeviceGraph;
use vmsnapshot_core::mountinfo::{self, MountNamespace};
use vmsnapshot_core::plan::{Plan, Selection};
use vmsnapshot_core::text::bytes_text;

fuzz_target!(|input: &[u8]| {
    let (first_line, mountinfo) = match input.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&input[..end], &input[end..]),
        None => (input, &b""[..]),
    };
    let selection = Selection::parse(&[bytes_text(first_line)], &[]);
    let mounts = mountinfo::parse(mountinfo).mounts;
    if let Ok(selection) = selection {
        let _ = Plan::make(
            &[MountNamespace { pid: None, mounts }],
            &DeviceGraph::default(),
            &selection,
        );
    }
});
