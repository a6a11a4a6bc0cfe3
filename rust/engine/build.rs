//! Builds the watchdog's program. The engine carries it inside itself.
//!
//! A program inside the library needs no file of its own. No file has to be installed or found, and
//! none can be missing or lie on a frozen disk. Cargo cannot yet depend on another package's binary
//! (artifact dependencies are unstable), so this script runs cargo a second time, in a target
//! directory of its own. The watchdog is also a build dependency, so that cargo runs this script
//! again when the watchdog changes.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let output = PathBuf::from(variable("OUT_DIR")).join("watchdog");
    let target = variable("TARGET");
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("../watchdog/Cargo.toml");
    let status = Command::new(variable("CARGO"))
        .args(["build", "--release", "--bin", "vmsnapshot-watchdog"])
        .args(["--target", &target])
        .arg("--manifest-path")
        .arg(&manifest)
        .arg("--target-dir")
        .arg(&output)
        // Clippy and maturin set these for the crate that they build, not for this program.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS")
        .status()
        .expect("cargo runs");
    assert!(
        status.success(),
        "the watchdog's program could not be built"
    );
    let program = output.join(target).join("release/vmsnapshot-watchdog");
    println!("cargo::rustc-env=VMSNAPSHOT_WATCHDOG={}", program.display());
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../watchdog");
    println!("cargo::rerun-if-changed=../sys");
    println!("cargo::rerun-if-changed=../core");
}
