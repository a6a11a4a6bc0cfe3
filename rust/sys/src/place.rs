//! Where this process runs: which boot, and which namespaces of process ids and of clocks.

use std::os::unix::fs::MetadataExt;

use vmsnapshot_core::ledger::Place;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Returns where this process runs. What cannot be read is zero.
#[must_use]
pub fn here() -> Place {
    Place {
        boot_id: boot_id().unwrap_or([0; 2]),
        pid_namespace: namespace("pid"),
        // Kernels before 5.6 have no time namespaces.
        time_namespace: namespace("time"),
    }
}

fn boot_id() -> Option<[u64; 2]> {
    let text = std::fs::read_to_string(BOOT_ID).ok()?;
    let number = u128::from_str_radix(&text.trim().replace('-', ""), 16).ok()?;
    let [high, low] = [number >> 64, number & u128::from(u64::MAX)].map(u64::try_from);
    Some([high.ok()?, low.ok()?])
}

/// Returns the number of this process's namespace, which no other one has that exists.
fn namespace(kind: &str) -> u64 {
    std::fs::metadata(format!("/proc/self/ns/{kind}")).map_or(0, |namespace| namespace.ino())
}
