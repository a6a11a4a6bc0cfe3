//! The first page of a ledger: what it says about the run as a whole.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use strum::{FromRepr, IntoStaticStr, VariantNames};

use crate::deadlines::Monotonic;
use crate::names::stable_names;

/// The first eight bytes of a ledger. The last one is the version of the layout.
///
/// A ledger outlives the program that wrote it, and an update may bring another layout. So some
/// parts are the same in every version: the first seven bytes, one page for the header, and one
/// page per filesystem. The page of a filesystem starts with its state (1 and 2 mean that it may be
/// frozen), and its device number is at byte 8. From version 2 on, byte 8 of the header says whether
/// expedited RCU is owed, byte 12 which value, and byte 16 of which boot the ledger is.
pub const MAGIC: [u8; 8] = *b"vmsnapL2";
/// The first version whose header has the parts that are the same in every later version.
const FIRST_WITH_COMMON_HEADER: u8 = b'2';

/// Why the watchdog thawed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromRepr, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "kebab-case")]
#[repr(u32)]
pub enum FireReason {
    /// The run's process is gone.
    ParentGone = 1,
    /// `guard_by` has passed.
    Deadline = 2,
    /// The run ended and left a filesystem that was not known to be thawed.
    Told = 3,
    /// The watchdog had a fault: a signal such as SIGSEGV, or a panic.
    Fault = 4,
}

stable_names!(FireReason);

impl FireReason {
    /// Whether it ended the window. The run asks the watchdog only after the window.
    #[must_use]
    pub fn ended_the_window(self) -> bool {
        match self {
            Self::ParentGone | Self::Deadline | Self::Fault => true,
            Self::Told => false,
        }
    }
}

/// How much of a ledger file this version can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// It is a ledger of this version.
    Own,
    /// It is a ledger of another version. Only the parts that are the same in every version can be
    /// read.
    OfAnotherVersion,
    /// The run has not written its name yet, so it has frozen nothing.
    Unfinished,
    /// It is not a ledger.
    Unknown,
}

/// What a ledger says about the run as a whole.
#[repr(C, align(4096))]
pub struct Header {
    magic: AtomicU64,
    rcu_is_owed: AtomicU32,
    rcu_previous: AtomicU32,
    boot_id: [AtomicU64; 2],
    // What follows may differ in another version.
    started_realtime_ns: AtomicU64,
    started_monotonic_ns: AtomicU64,
    guard_by_ns: AtomicU64,
    pid_namespace: AtomicU64,
    time_namespace: AtomicU64,
    parent_start_ticks: AtomicU64,
    watchdog_start_ticks: AtomicU64,
    parent_pid: AtomicU32,
    watchdog_pid: AtomicU32,
    fired: AtomicU32,
    rcu_was_expedited: AtomicU32,
}

/// Where the process ids and the instants of a ledger have a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The id of the boot, in two halves. Zero if it is not known.
    pub boot_id: [u64; 2],
    /// The number of the pid namespace. In another one, a process id names another process.
    pub pid_namespace: u64,
    /// The number of the time namespace. In another one, `CLOCK_MONOTONIC` and the start times of
    /// processes differ. Zero if the kernel has none.
    pub time_namespace: u64,
}

impl Place {
    /// Returns whether process ids and instants of `other` mean the same here.
    #[must_use]
    pub fn shares_ids_and_clock(self, other: Place) -> bool {
        (self.pid_namespace, self.time_namespace) == (other.pid_namespace, other.time_namespace)
    }

    /// Returns whether the two are certainly of different boots.
    #[must_use]
    pub fn is_of_another_boot(self, other: Place) -> bool {
        let unknown = [0; 2];
        self.boot_id != other.boot_id && self.boot_id != unknown && other.boot_id != unknown
    }
}

/// A process. The start time distinguishes it from a later process with the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessName {
    /// The process id.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: when the process started, in clock ticks since boot.
    pub start_ticks: u64,
}

impl Header {
    /// Sets the process of the run and where it runs. The run calls this before it shares the ledger.
    pub fn name(&self, parent: ProcessName, place: Place) {
        for (half, value) in self.boot_id.iter().zip(place.boot_id) {
            half.store(value, Ordering::Relaxed);
        }
        self.pid_namespace
            .store(place.pid_namespace, Ordering::Relaxed);
        self.time_namespace
            .store(place.time_namespace, Ordering::Relaxed);
        self.parent_start_ticks
            .store(parent.start_ticks, Ordering::Relaxed);
        self.parent_pid.store(parent.pid, Ordering::Relaxed);
        self.magic
            .store(u64::from_le_bytes(MAGIC), Ordering::SeqCst);
    }

    /// Returns what the first bytes of the file say about its layout.
    #[must_use]
    pub fn layout(&self) -> Layout {
        let [mark @ .., version] = self.magic.load(Ordering::SeqCst).to_le_bytes();
        let [own_mark @ .., own_version] = MAGIC;
        match (mark == own_mark, version == own_version) {
            (true, true) => Layout::Own,
            (true, false) => Layout::OfAnotherVersion,
            (false, _) if mark == [0; 7] && version == 0 => Layout::Unfinished,
            (false, _) => Layout::Unknown,
        }
    }

    /// Returns whether the parts of the header that are the same in every later version are there.
    fn has_common_header(&self) -> bool {
        let [_mark @ .., version] = self.magic.load(Ordering::SeqCst).to_le_bytes();
        match self.layout() {
            Layout::Own => true,
            Layout::OfAnotherVersion => version >= FIRST_WITH_COMMON_HEADER,
            Layout::Unfinished | Layout::Unknown => false,
        }
    }

    /// Returns where the run's process ids and instants have a meaning. Of a ledger of another
    /// version, only the boot is known, if that.
    #[must_use]
    pub fn place(&self) -> Place {
        let boot_id = if self.has_common_header() {
            self.boot_id
                .each_ref()
                .map(|half| half.load(Ordering::Relaxed))
        } else {
            [0; 2]
        };
        Place {
            boot_id,
            pid_namespace: self.pid_namespace.load(Ordering::Relaxed),
            time_namespace: self.time_namespace.load(Ordering::Relaxed),
        }
    }

    /// Returns the process of the run.
    #[must_use]
    pub fn parent(&self) -> ProcessName {
        ProcessName {
            pid: self.parent_pid.load(Ordering::Relaxed),
            start_ticks: self.parent_start_ticks.load(Ordering::Relaxed),
        }
    }

    /// Returns the process of the watchdog.
    #[must_use]
    pub fn watchdog(&self) -> ProcessName {
        ProcessName {
            pid: self.watchdog_pid.load(Ordering::Relaxed),
            start_ticks: self.watchdog_start_ticks.load(Ordering::Relaxed),
        }
    }

    /// Sets the process of the watchdog.
    pub fn set_watchdog(&self, watchdog: ProcessName) {
        self.watchdog_start_ticks
            .store(watchdog.start_ticks, Ordering::Relaxed);
        self.watchdog_pid.store(watchdog.pid, Ordering::Relaxed);
    }

    /// Records that the window begins now and that the watchdog thaws at `guard_by`.
    pub fn start(&self, now: Monotonic, realtime_ns: u64, guard_by: Monotonic) {
        self.started_monotonic_ns.store(now.0, Ordering::Relaxed);
        self.started_realtime_ns
            .store(realtime_ns, Ordering::Relaxed);
        self.guard_by_ns.store(guard_by.0, Ordering::SeqCst);
    }

    /// Returns when the watchdog thaws. `None` before the run is armed.
    #[must_use]
    pub fn guard_by(&self) -> Option<Monotonic> {
        instant(&self.guard_by_ns)
    }

    /// Returns the wall-clock time of an instant of this run, in nanoseconds since the Unix epoch.
    #[must_use]
    pub fn realtime_ns(&self, instant: Monotonic) -> i128 {
        i128::from(self.started_realtime_ns.load(Ordering::Relaxed)) + i128::from(instant.0)
            - i128::from(self.started_monotonic_ns.load(Ordering::Relaxed))
    }

    /// Returns when the window began. `None` if it has not begun.
    #[must_use]
    pub fn started_at(&self) -> Option<Monotonic> {
        instant(&self.started_monotonic_ns)
    }

    /// Records that the watchdog thaws, and why. A later reason does not replace the first one.
    pub fn fire(&self, reason: FireReason) {
        let _ = self
            .fired
            .compare_exchange(0, reason as u32, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Returns why the watchdog thawed, if it did.
    #[must_use]
    pub fn fired(&self) -> Option<FireReason> {
        FireReason::from_repr(self.fired.load(Ordering::SeqCst))
    }

    /// Records that the run is about to switch on expedited RCU, and which value to restore.
    pub fn rcu_switched_on(&self, previous: u32) {
        self.rcu_previous.store(previous, Ordering::Relaxed);
        self.rcu_is_owed.store(1, Ordering::SeqCst);
    }

    /// Records that the previous value is restored.
    pub fn rcu_put_back(&self) {
        self.rcu_is_owed.store(0, Ordering::SeqCst);
    }

    /// Records that grace periods are expedited, no matter which program switched this on.
    pub fn set_rcu_expedited(&self) {
        self.rcu_was_expedited.store(1, Ordering::SeqCst);
    }

    /// Returns whether grace periods were expedited in the window, however the window ended.
    #[must_use]
    pub fn was_rcu_expedited(&self) -> bool {
        self.rcu_was_expedited.load(Ordering::SeqCst) == 1
    }

    /// Returns the value to restore in `/sys/kernel/rcu_expedited`, if this run has to restore it.
    ///
    /// A ledger of version 1 cannot tell another version, and counts as "no".
    #[must_use]
    pub fn rcu_owed(&self) -> Option<u32> {
        (self.has_common_header() && self.rcu_is_owed.load(Ordering::SeqCst) == 1)
            .then(|| self.rcu_previous.load(Ordering::Relaxed))
    }
}

/// Returns the instant in a field of a ledger, unless the field was never set.
pub(crate) fn instant(nanoseconds: &AtomicU64) -> Option<Monotonic> {
    match nanoseconds.load(Ordering::SeqCst) {
        0 => None,
        value => Some(Monotonic(value)),
    }
}
