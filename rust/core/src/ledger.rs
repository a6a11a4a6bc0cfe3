//! The ledger: what a run and its watchdog know of each filesystem, in memory that both map.
//!
//! It is a file on tmpfs (`/run/vmsnapshot/<run>.ledger`) for two reasons. Inside the window, the
//! run announces a freeze with one store into memory: no system call, no wake-up. And when both
//! processes are gone, the file still shows what was frozen. Every field is an atomic, so any bytes
//! of the right length can be read: a damaged file can hold wrong values, but reading it is safe.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicU8, Ordering};

use strum::{FromRepr, IntoStaticStr, VariantNames};

use crate::deadlines::Monotonic;
use crate::device_number::DeviceNumber;
use crate::ledger_header::instant;
pub use crate::ledger_header::{FireReason, Header, Layout, Place, ProcessName, MAGIC};
use crate::names::stable_names;

/// The most filesystems in one run. Each costs the watchdog a page, a descriptor and a thread.
pub const FILESYSTEMS_MAX: usize = 1024;
/// The most bytes of a mount point in the ledger. Recovery uses the device number, not the path.
pub const MOUNT_POINT_MAX: usize = 4096 - 88;

/// The state of a filesystem, from planned to thawed.
///
/// ```text
///            announce            frozen              thaw
///  Planned ───────────> Announced ─────────> Frozen ─────────> ThawedByRun / ThawedByWatchdog /
///     │                     │                   │              ThawedByOperator
///     │ revoke              │ refuse            │ find_thawed
///     v                     v                   v
///  Revoked               Refused           ThawedByAnother
/// ```
///
/// A thaw may also follow `Announced` directly: FIFREEZE freezes before its caller can record it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromRepr, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "kebab-case")]
#[repr(u32)]
pub enum FreezeState {
    /// The run has done nothing to it yet.
    Planned = 0,
    /// FIFREEZE is in progress, or its caller ended before it returned: we may have frozen it.
    Announced = 1,
    /// FIFREEZE succeeded: we have frozen it.
    Frozen = 2,
    /// FIFREEZE failed: we have not frozen it, and we must not thaw it.
    Refused = 3,
    /// The run or the watchdog has ended the window: it must no longer be frozen.
    Revoked = 4,
    /// The run's FITHAW thawed it.
    ThawedByRun = 5,
    /// The watchdog's FITHAW thawed it.
    ThawedByWatchdog = 6,
    /// We had frozen it, and our FITHAW found it thawed.
    ThawedByAnother = 7,
    /// `vmsnapshot thaw` thawed it after both processes had ended.
    ThawedByOperator = 8,
}

impl FreezeState {
    /// Returns whether our freeze may be in force. We may call FITHAW only in these states.
    #[must_use]
    pub fn may_be_frozen(self) -> bool {
        matches!(self, FreezeState::Announced | FreezeState::Frozen)
    }

    fn from_raw(raw: u32) -> FreezeState {
        // A damaged ledger can hold any number. "Do not thaw" is the safe meaning of an unknown
        // one.
        FreezeState::from_repr(raw).unwrap_or(FreezeState::Planned)
    }
}

/// The program that calls FITHAW.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thawer {
    /// The run.
    Run,
    /// Its watchdog.
    Watchdog,
    /// `vmsnapshot thaw`.
    Operator,
}

stable_names!(FreezeState);

/// One filesystem. It is one page long, so that a ledger is a header and an array.
#[repr(C, align(4096))]
pub struct Entry {
    state: AtomicU32,
    freeze_errno: AtomicU32,
    major: AtomicU32,
    minor: AtomicU32,
    announced_ns: AtomicU64,
    freeze_returned_ns: AtomicU64,
    thaw_called_ns: AtomicU64,
    thawed_ns: AtomicU64,
    mount_point_length: AtomicU32,
    undid_another: AtomicU32,
    thaw_errno: AtomicU32,
    cancelled_scrub: AtomicU32,
    disk_sequence: AtomicU64,
    filesystem_id: AtomicU64,
    sectors_written: AtomicU64,
    mount_point: [AtomicU8; MOUNT_POINT_MAX],
}

/// What a filesystem is, beside its device number, which another one may get later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The kernel's sequence number of the disk: no two disks of a boot have the same. `None` before
    /// Linux 5.15, and for a number that is not that of a disk (btrfs).
    pub disk_sequence: Option<u64>,
    /// The id of the filesystem, as `statfs` has it. `None` if it could not be read.
    pub filesystem_id: Option<u64>,
}

impl Identity {
    /// Returns whether the two are certainly not the same filesystem.
    #[must_use]
    pub fn differs_from(self, other: Identity) -> bool {
        let differ = |one: Option<u64>, other: Option<u64>| {
            one.zip(other).is_some_and(|(one, other)| one != other)
        };
        differ(self.disk_sequence, other.disk_sequence)
            || differ(self.filesystem_id, other.filesystem_id)
    }
}

impl Entry {
    /// Sets the device number and the mount point. The run calls this before it shares the ledger.
    pub fn name(&self, device: DeviceNumber, mount_point: &Path) {
        self.major.store(device.major, Ordering::Relaxed);
        self.minor.store(device.minor, Ordering::Relaxed);
        let bytes = mount_point.as_os_str().as_bytes();
        store_bytes(&self.mount_point, &self.mount_point_length, bytes);
    }

    /// Records what the filesystem is. The run calls this before it shares the ledger.
    pub fn identify(&self, identity: Identity) {
        let Identity {
            disk_sequence,
            filesystem_id,
        } = identity;
        // Neither of the two is ever 0: the kernel counts disks from 1, and an id of 0 says nothing.
        self.disk_sequence
            .store(disk_sequence.unwrap_or(0), Ordering::Relaxed);
        self.filesystem_id
            .store(filesystem_id.unwrap_or(0), Ordering::Relaxed);
    }

    /// Returns what the filesystem is, as far as the run knew.
    #[must_use]
    pub fn identity(&self) -> Identity {
        let known = |field: &AtomicU64| match field.load(Ordering::Relaxed) {
            0 => None,
            value => Some(value),
        };
        Identity {
            disk_sequence: known(&self.disk_sequence),
            filesystem_id: known(&self.filesystem_id),
        }
    }

    /// Records how many sectors of its device had been written once it was frozen.
    pub fn set_sectors_written(&self, sectors: u64) {
        self.sectors_written
            .store(sectors.saturating_add(1), Ordering::Relaxed);
    }

    /// Returns how many sectors of its device had been written once it was frozen. `None` if that is
    /// not known.
    #[must_use]
    pub fn sectors_written(&self) -> Option<u64> {
        self.sectors_written.load(Ordering::Relaxed).checked_sub(1)
    }

    /// Returns major:minor as in mountinfo.
    #[must_use]
    pub fn device(&self) -> DeviceNumber {
        DeviceNumber {
            major: self.major.load(Ordering::Relaxed),
            minor: self.minor.load(Ordering::Relaxed),
        }
    }

    /// Returns the mount point, truncated to [`MOUNT_POINT_MAX`] bytes.
    #[must_use]
    pub fn mount_point(&self) -> Vec<u8> {
        load_bytes(&self.mount_point, &self.mount_point_length)
    }

    /// Returns the state.
    #[must_use]
    pub fn state(&self) -> FreezeState {
        FreezeState::from_raw(self.state.load(Ordering::SeqCst))
    }

    /// Returns the error number of the FIFREEZE that failed, or 0 if it did not fail.
    #[must_use]
    pub fn freeze_errno(&self) -> u32 {
        self.freeze_errno.load(Ordering::Relaxed)
    }

    /// Returns the error number of the last FITHAW that failed, or 0 if none failed.
    #[must_use]
    pub fn thaw_errno(&self) -> u32 {
        self.thaw_errno.load(Ordering::Relaxed)
    }

    /// Returns when FIFREEZE was called.
    #[must_use]
    pub fn announced_at(&self) -> Option<Monotonic> {
        instant(&self.announced_ns)
    }

    /// Returns when FIFREEZE returned.
    #[must_use]
    pub fn freeze_returned_at(&self) -> Option<Monotonic> {
        instant(&self.freeze_returned_ns)
    }

    /// Returns when FITHAW was called last.
    #[must_use]
    pub fn thaw_called_at(&self) -> Option<Monotonic> {
        instant(&self.thaw_called_ns)
    }

    /// Returns when our FITHAW thawed it or found it thawed.
    #[must_use]
    pub fn thawed_at(&self) -> Option<Monotonic> {
        instant(&self.thawed_ns)
    }

    /// Records that FIFREEZE is about to be called.
    ///
    /// Returns false if it must not be called, because the window is over.
    #[must_use]
    pub fn announce(&self, now: Monotonic) -> bool {
        self.announced_ns.store(now.0, Ordering::Relaxed);
        let may_be_called = self.step(FreezeState::Planned, FreezeState::Announced);
        if !may_be_called {
            // FIFREEZE will not be called, so the report must not have the time of a call.
            self.announced_ns.store(0, Ordering::Relaxed);
        }
        may_be_called
    }

    /// Records that FIFREEZE succeeded.
    ///
    /// Returns false if it returned too late: the ledger already said that the filesystem is
    /// thawed, so neither the run nor the watchdog will thaw it. The caller must thaw it at once.
    #[must_use]
    pub fn frozen(&self, now: Monotonic) -> bool {
        self.freeze_returned_ns.store(now.0, Ordering::Relaxed);
        let before = self
            .state
            .swap(FreezeState::Frozen as u32, Ordering::SeqCst);
        FreezeState::from_raw(before) == FreezeState::Announced
    }

    /// Records that FIFREEZE failed. From now on neither the run nor the watchdog may thaw it.
    pub fn refuse(&self, now: Monotonic, errno: u32) {
        self.freeze_errno.store(errno, Ordering::Relaxed);
        self.freeze_returned_ns.store(now.0, Ordering::Relaxed);
        self.step(FreezeState::Announced, FreezeState::Refused);
    }

    /// Forbids the freeze of a filesystem that was not announced yet.
    pub fn revoke(&self) {
        self.step(FreezeState::Planned, FreezeState::Revoked);
    }

    /// Records that FIFREEZE was announced but did not freeze the filesystem.
    ///
    /// This is known when the caller of FIFREEZE has ended or panicked and FITHAW answered EINVAL.
    pub fn never_frozen(&self) {
        self.step(FreezeState::Announced, FreezeState::Revoked);
    }

    /// Records that FITHAW is about to be called.
    pub fn thawing(&self, now: Monotonic) {
        self.thaw_called_ns.store(now.0, Ordering::Relaxed);
    }

    /// Records that `thawer`'s FITHAW succeeded.
    ///
    /// Exactly one FITHAW succeeds per freeze. So this also overrides a `find_thawed` that another
    /// process recorded between that FITHAW and this call.
    ///
    /// If our FIFREEZE has failed in the meantime, the FITHAW undid another program's freeze. The
    /// ledger records that for the report.
    pub fn thawed(&self, thawer: Thawer, now: Monotonic) {
        let state = match thawer {
            Thawer::Run => FreezeState::ThawedByRun,
            Thawer::Watchdog => FreezeState::ThawedByWatchdog,
            Thawer::Operator => FreezeState::ThawedByOperator,
        };
        let was_ours = [
            FreezeState::Frozen,
            FreezeState::Announced,
            FreezeState::ThawedByAnother,
        ]
        .into_iter()
        .any(|before| self.step(before, state));
        if was_ours {
            self.thawed_ns.store(now.0, Ordering::Relaxed);
        } else {
            self.undo_another();
        }
    }

    /// Records that our FITHAW undid a freeze that was not ours.
    pub fn undo_another(&self) {
        self.undid_another.store(1, Ordering::SeqCst);
    }

    /// Returns whether our FITHAW undid a freeze that was not ours.
    #[must_use]
    pub fn undid_another(&self) -> bool {
        self.undid_another.load(Ordering::SeqCst) == 1
    }

    /// Records that the watchdog cancelled a scrub for which FIFREEZE waited.
    pub fn cancel_scrub(&self) {
        self.cancelled_scrub.store(1, Ordering::SeqCst);
    }

    /// Returns whether the watchdog cancelled a scrub for which FIFREEZE waited.
    #[must_use]
    pub fn cancelled_scrub(&self) -> bool {
        self.cancelled_scrub.load(Ordering::SeqCst) == 1
    }

    /// Records that we had frozen the filesystem and our FITHAW found it thawed.
    pub fn find_thawed(&self, now: Monotonic) {
        if self.step(FreezeState::Frozen, FreezeState::ThawedByAnother) {
            self.thawed_ns.store(now.0, Ordering::Relaxed);
        }
    }

    /// Records that `vmsnapshot thaw` thawed a filesystem in another version's ledger.
    ///
    /// It writes only the state, because the rest of that layout is unknown.
    pub fn thawed_for_another_version(&self) {
        self.state
            .store(FreezeState::ThawedByOperator as u32, Ordering::SeqCst);
    }

    /// Records the error number of a failed FITHAW.
    pub fn thaw_failed(&self, errno: u32) {
        self.thaw_errno.store(errno, Ordering::Relaxed);
    }

    fn step(&self, from: FreezeState, to: FreezeState) -> bool {
        self.state
            .compare_exchange(from as u32, to as u32, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }
}

/// A header and one entry per filesystem, in the order of the plan.
#[repr(C)]
pub struct Ledger {
    /// The run.
    pub header: Header,
    /// The filesystems.
    pub entries: [Entry],
}

impl Ledger {
    /// Returns the size of a ledger with `count` filesystems.
    #[must_use]
    pub fn size_bytes(count: usize) -> usize {
        size_of::<Header>() + count * size_of::<Entry>()
    }

    /// Returns how many filesystems a ledger of `size_bytes` holds. `None` if no ledger has that
    /// size.
    #[must_use]
    pub fn count_in(size_bytes: usize) -> Option<usize> {
        let entries = size_bytes.checked_sub(size_of::<Header>())?;
        let count = entries / size_of::<Entry>();
        (entries % size_of::<Entry>() == 0 && count <= FILESYSTEMS_MAX).then_some(count)
    }

    /// Returns whether a freeze of this run may still be in force on any filesystem.
    #[must_use]
    pub fn may_be_frozen(&self) -> bool {
        self.entries
            .iter()
            .any(|entry| entry.state().may_be_frozen())
    }

    /// Forbids the freeze of every filesystem that was not announced yet.
    pub fn revoke_planned(&self) {
        for entry in &self.entries {
            entry.revoke();
        }
    }
}

fn store_bytes(field: &[AtomicU8], length: &AtomicU32, bytes: &[u8]) {
    let mut stored = 0;
    for (place, byte) in field.iter().zip(bytes) {
        place.store(*byte, Ordering::Relaxed);
        stored += 1;
    }
    length.store(stored, Ordering::Relaxed);
}

fn load_bytes(field: &[AtomicU8], length: &AtomicU32) -> Vec<u8> {
    let length = usize::try_from(length.load(Ordering::Relaxed)).unwrap_or(0);
    field
        .iter()
        .take(length)
        .map(|byte| byte.load(Ordering::Relaxed))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            state: AtomicU32::new(0),
            freeze_errno: AtomicU32::new(0),
            major: AtomicU32::new(0),
            minor: AtomicU32::new(0),
            announced_ns: AtomicU64::new(0),
            freeze_returned_ns: AtomicU64::new(0),
            thaw_called_ns: AtomicU64::new(0),
            thawed_ns: AtomicU64::new(0),
            mount_point_length: AtomicU32::new(0),
            undid_another: AtomicU32::new(0),
            thaw_errno: AtomicU32::new(0),
            cancelled_scrub: AtomicU32::new(0),
            disk_sequence: AtomicU64::new(0),
            filesystem_id: AtomicU64::new(0),
            sectors_written: AtomicU64::new(0),
            mount_point: [const { AtomicU8::new(0) }; MOUNT_POINT_MAX],
        }
    }

    const NOW: Monotonic = Monotonic(1);

    #[test]
    fn an_entry_and_the_header_are_one_page_each() {
        assert_eq!(size_of::<Entry>(), 4096);
        assert_eq!(size_of::<Header>(), 4096);
        assert_eq!(Ledger::count_in(Ledger::size_bytes(7)), Some(7));
        assert_eq!(Ledger::count_in(Ledger::size_bytes(7) + 1), None);
        assert_eq!(
            Ledger::count_in(Ledger::size_bytes(FILESYSTEMS_MAX + 1)),
            None
        );
    }

    #[test]
    fn an_unknown_state_is_read_as_planned() {
        assert_eq!(FreezeState::from_raw(8), FreezeState::ThawedByOperator);
        for nonsense in [9, u32::MAX] {
            assert_eq!(FreezeState::from_raw(nonsense), FreezeState::Planned);
        }
        assert_eq!(
            FreezeState::NAMES.last().copied(),
            Some(FreezeState::ThawedByOperator.name())
        );
    }

    #[test]
    fn a_revoked_filesystem_cannot_be_announced() {
        let entry = entry();
        entry.revoke();
        assert!(!entry.announce(NOW));
        assert_eq!(entry.state(), FreezeState::Revoked);
        assert_eq!(entry.announced_at(), None);
    }

    #[test]
    fn a_refused_filesystem_may_not_be_thawed() {
        let entry = entry();
        assert!(entry.announce(NOW));
        entry.refuse(NOW, 16);
        assert!(!entry.state().may_be_frozen());
        assert_eq!(entry.freeze_errno(), 16);
    }

    #[test]
    fn a_failed_thaw_does_not_change_why_the_freeze_was_refused() {
        let entry = entry();
        assert!(entry.announce(NOW));
        // The watchdog's FITHAW fails while FIFREEZE waits for another program's freeze to end.
        entry.thaw_failed(5);
        entry.refuse(NOW, 16);
        entry.thaw_failed(5);
        assert_eq!((entry.freeze_errno(), entry.thaw_errno()), (16, 5));
    }

    #[test]
    fn a_freeze_that_returns_after_its_thaw_is_recorded_as_frozen_and_returns_false() {
        let entry = entry();
        assert!(entry.announce(NOW));
        entry.thawed(Thawer::Watchdog, NOW);
        assert!(!entry.frozen(NOW));
        assert_eq!(entry.state(), FreezeState::Frozen);
    }

    #[test]
    fn a_thaw_of_another_programs_freeze_is_not_recorded_as_ours() {
        let entry = entry();
        assert!(entry.announce(NOW));
        entry.refuse(NOW, 16);
        entry.thawed(Thawer::Watchdog, NOW);
        assert_eq!(entry.state(), FreezeState::Refused);
        assert!(entry.undid_another());
    }

    #[test]
    fn a_fithaw_that_succeeded_overrides_find_thawed() {
        let entry = entry();
        assert!(entry.announce(NOW));
        assert!(entry.frozen(NOW));
        entry.find_thawed(NOW);
        entry.thawed(Thawer::Run, NOW);
        assert_eq!(entry.state(), FreezeState::ThawedByRun);
        entry.find_thawed(NOW);
        assert_eq!(entry.state(), FreezeState::ThawedByRun);
    }

    #[test]
    fn identities_differ_only_in_what_both_know() {
        let known = |disk_sequence, filesystem_id| Identity {
            disk_sequence,
            filesystem_id,
        };
        let whole = known(Some(1), Some(7));
        for other in [
            known(None, None),
            known(Some(1), None),
            known(None, Some(7)),
            whole,
        ] {
            assert!(!whole.differs_from(other) && !other.differs_from(whole));
        }
        assert!(whole.differs_from(known(Some(2), Some(7))));
        assert!(whole.differs_from(known(None, Some(8))));
        let entry = entry();
        assert_eq!(
            (entry.identity(), entry.sectors_written()),
            (known(None, None), None)
        );
        entry.identify(whole);
        entry.set_sectors_written(0);
        assert_eq!(
            (entry.identity(), entry.sectors_written()),
            (whole, Some(0))
        );
    }

    #[test]
    fn a_mount_point_that_is_too_long_is_truncated() {
        let entry = entry();
        let device = DeviceNumber { major: 7, minor: 1 };
        entry.name(device, Path::new(&"a".repeat(MOUNT_POINT_MAX + 5)));
        assert_eq!(entry.mount_point().len(), MOUNT_POINT_MAX);
        assert_eq!(entry.device().to_string(), "7:1");
    }
}
