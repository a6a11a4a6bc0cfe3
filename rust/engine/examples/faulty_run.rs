//! A run on the real kernel with one injected fault, for the tests: `faulty_run FAULT
//! MOUNT_POINT...`.
//!
//! `panic-in-freeze` and `panic-in-thaw` panic after the real call, once per filesystem.
//! `panic-in-every-thaw` always panics instead of the call. `eio-in-thaw` fails instead of the
//! first two calls per filesystem, `eio-in-every-thaw` instead of every call.
//! `eopnotsupp-in-freeze` fails instead of the first FIFREEZE. The program prints the report as one
//! line of JSON. It takes no snapshot.

use std::collections::HashMap;
use std::error::Error;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vmsnapshot_core::plan::Selection;
use vmsnapshot_engine::applications::NoApplications;
use vmsnapshot_engine::connect::ConnectOptions;
use vmsnapshot_engine::observer::Silent;
use vmsnapshot_engine::scan;
use vmsnapshot_engine::session::{prepare_on, Asked, Options};
use vmsnapshot_sys::kernel::{Kernel, Linux};
use vmsnapshot_sys::Errno;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    PanicInFreeze,
    PanicInThaw,
    PanicInEveryThaw,
    EioInThaw,
    EioInEveryThaw,
    EopnotsuppInFreeze,
}

/// The real kernel with one fault.
struct Faulty {
    fault: Fault,
    /// How often FIFREEZE was called.
    freezes: AtomicU32,
    /// How often FITHAW was called on each directory.
    thaws: Mutex<HashMap<i32, u32>>,
}

impl Kernel for Faulty {
    fn freeze(&self, directory: BorrowedFd<'_>) -> Result<(), Errno> {
        let is_first = self.freezes.fetch_add(1, Ordering::SeqCst) == 0;
        if self.fault == Fault::EopnotsuppInFreeze && is_first {
            return Err(Errno::OPNOTSUPP);
        }
        let result = Linux.freeze(directory);
        assert!(
            self.fault != Fault::PanicInFreeze,
            "the fault was asked for"
        );
        result
    }

    fn thaw(&self, directory: BorrowedFd<'_>) -> Result<(), Errno> {
        let count = {
            let mut thaws = self.thaws.lock().unwrap_or_else(PoisonError::into_inner);
            let count = thaws.entry(directory.as_raw_fd()).or_insert(0);
            *count += 1;
            *count
        };
        match self.fault {
            Fault::PanicInThaw if count == 1 => {
                let _ = Linux.thaw(directory);
                panic!("the fault was asked for");
            }
            Fault::PanicInEveryThaw => panic!("the fault was asked for"),
            Fault::EioInThaw if count <= 2 => Err(Errno::IO),
            Fault::EioInEveryThaw => Err(Errno::IO),
            Fault::PanicInFreeze
            | Fault::PanicInThaw
            | Fault::EioInThaw
            | Fault::EopnotsuppInFreeze => Linux.thaw(directory),
        }
    }

    fn sync(&self, directory: BorrowedFd<'_>) -> Result<(), Errno> {
        Linux.sync(directory)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let fault = match arguments.next().as_deref() {
        Some("panic-in-freeze") => Fault::PanicInFreeze,
        Some("panic-in-thaw") => Fault::PanicInThaw,
        Some("panic-in-every-thaw") => Fault::PanicInEveryThaw,
        Some("eio-in-thaw") => Fault::EioInThaw,
        Some("eio-in-every-thaw") => Fault::EioInEveryThaw,
        Some("eopnotsupp-in-freeze") => Fault::EopnotsuppInFreeze,
        _ => return Err("the first argument names no fault".into()),
    };
    let include: Vec<String> = arguments.map(|path| format!("mount={path}")).collect();
    if include.is_empty() {
        return Err("without a mount point this would freeze the whole machine".into());
    }
    let plan = scan::machine(&mut Silent)?.plan(&Selection::parse(&include, &[])?)?;
    let options = Options {
        thaw_timeout: Duration::from_secs(1),
        freeze_timeout: Duration::from_secs(1),
        call_timeout: Duration::from_secs(1),
        sync_timeout: Some(Duration::from_secs(5)),
        connect: ConnectOptions {
            ca_file: None,
            proxy: None,
            time_limit: Duration::from_secs(1),
        },
        expedite_rcu: true,
    };
    let kernel = Arc::new(Faulty {
        fault,
        freezes: AtomicU32::new(0),
        thaws: Mutex::new(HashMap::new()),
    });
    let session = prepare_on(kernel, &plan, Asked::default(), options, &mut Silent)?;
    let report = session.run(&mut NoApplications, &mut Silent)?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
