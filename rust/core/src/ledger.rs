//! The ledger: what a run and its watchdog know of each filesystem, in memory that both map.
//!
//! It is a file on tmpfs (`/run/vmsnapshot/<run>.ledger`), so that announcing a freeze is one store
//! into memory (no system call, no wake-up, inside the window), and so that what was frozen can
//! still be read when both processes are gone. Every field is an atomic: any bytes are a valid
//! ledger, and nothing a damaged file holds can be more than wrong.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicU8, Ordering};

use strum::{FromRepr, IntoStaticStr, VariantNames};

use crate::deadlines::Monotonic;
use crate::device_number::DeviceNumber;
use crate::names::stable_names;

/// The first eight bytes of a ledger. The last one is the version of the layout.
///
/// A ledger outlives the program that wrote it, and an update may bring another layout. So every
/// version keeps these seven bytes, a page for the header and one per filesystem, and at the start of
/// such a page its state (1 and 2 mean that it may be frozen) and, 8 bytes in, its device number.
pub const MAGIC: [u8; 8] = *b"vmsnapL1";
/// The most filesystems of one run: each costs the watchdog a page, a descriptor and a thread.
pub const FILESYSTEMS_MAX: usize = 1024;
/// The bytes of a mount point that the ledger keeps; recovery goes by device number, not by path.
pub const MOUNT_POINT_MAX: usize = 4096 - 64;
/// The bytes of a run's name.
pub const RUN_ID_MAX: usize = 64;

/// Where a filesystem is between planned and thawed.
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
/// A thaw may also follow `Announced` directly: FIFREEZE freezes before its caller can say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromRepr, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "kebab-case")]
#[repr(u32)]
pub enum FreezeState {
    /// Nothing was done to it.
    Planned = 0,
    /// FIFREEZE is being called, or was and its caller never came back: it may be frozen by us.
    Announced = 1,
    /// FIFREEZE succeeded: it is frozen by us.
    Frozen = 2,
    /// FIFREEZE failed: it is not frozen by us, and must not be thawed by us.
    Refused = 3,
    /// It may not be frozen any more: the run or the watchdog has ended the window.
    Revoked = 4,
    /// The run's FITHAW thawed it.
    ThawedByRun = 5,
    /// The watchdog's FITHAW thawed it.
    ThawedByWatchdog = 6,
    /// It was frozen by us, and FITHAW found it thawed.
    ThawedByAnother = 7,
    /// `vmsnapshot thaw` thawed it, both processes being gone.
    ThawedByOperator = 8,
}

impl FreezeState {
    /// Whether our freeze may hold it: the only states in which we may call FITHAW.
    #[must_use]
    pub fn may_be_frozen(self) -> bool {
        matches!(self, FreezeState::Announced | FreezeState::Frozen)
    }

    fn from_raw(raw: u32) -> FreezeState {
        // A damaged ledger can hold any number: "do not thaw" is the safe reading of nonsense.
        FreezeState::from_repr(raw).unwrap_or(FreezeState::Planned)
    }
}

/// Who calls FITHAW.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thawer {
    /// The run.
    Run,
    /// Its watchdog.
    Watchdog,
    /// `vmsnapshot thaw`.
    Operator,
}

/// Why the watchdog thawed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromRepr, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "kebab-case")]
#[repr(u32)]
pub enum FireReason {
    /// The run's process is gone.
    ParentGone = 1,
    /// `guard_by` has passed.
    Deadline = 2,
    /// The run ended and left something that was not known to be thawed.
    Told = 3,
}

stable_names!(FreezeState, FireReason);

/// One filesystem: a page of its own, so that a ledger is a header and an array.
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
    reserved: AtomicU32,
    mount_point: [AtomicU8; MOUNT_POINT_MAX],
}

impl Entry {
    /// Names the filesystem, before the ledger is shared.
    pub fn name(&self, device: DeviceNumber, mount_point: &Path) {
        self.major.store(device.major, Ordering::Relaxed);
        self.minor.store(device.minor, Ordering::Relaxed);
        let bytes = mount_point.as_os_str().as_bytes();
        store_bytes(&self.mount_point, &self.mount_point_length, bytes);
    }

    /// mountinfo's major:minor.
    #[must_use]
    pub fn device(&self) -> DeviceNumber {
        DeviceNumber {
            major: self.major.load(Ordering::Relaxed),
            minor: self.minor.load(Ordering::Relaxed),
        }
    }

    /// The mount point, cut at [`MOUNT_POINT_MAX`] bytes.
    #[must_use]
    pub fn mount_point(&self) -> Vec<u8> {
        load_bytes(&self.mount_point, &self.mount_point_length)
    }

    /// Where it is.
    #[must_use]
    pub fn state(&self) -> FreezeState {
        FreezeState::from_raw(self.state.load(Ordering::SeqCst))
    }

    /// The error number of a FIFREEZE that failed; 0 if it did not.
    #[must_use]
    pub fn freeze_errno(&self) -> u32 {
        self.freeze_errno.load(Ordering::Relaxed)
    }

    /// The error number of the last FITHAW that failed; 0 if none did.
    #[must_use]
    pub fn thaw_errno(&self) -> u32 {
        self.thaw_errno.load(Ordering::Relaxed)
    }

    /// When FIFREEZE was called.
    #[must_use]
    pub fn announced_at(&self) -> Option<Monotonic> {
        instant(&self.announced_ns)
    }

    /// When FIFREEZE returned.
    #[must_use]
    pub fn freeze_returned_at(&self) -> Option<Monotonic> {
        instant(&self.freeze_returned_ns)
    }

    /// When FITHAW was called last.
    #[must_use]
    pub fn thaw_called_at(&self) -> Option<Monotonic> {
        instant(&self.thaw_called_ns)
    }

    /// When it was thawed, or found thawed.
    #[must_use]
    pub fn thawed_at(&self) -> Option<Monotonic> {
        instant(&self.thawed_ns)
    }

    /// Says that FIFREEZE is about to be called. False if it must not be: the window is over.
    #[must_use]
    pub fn announce(&self, now: Monotonic) -> bool {
        self.announced_ns.store(now.0, Ordering::Relaxed);
        let may_be_called = self.step(FreezeState::Planned, FreezeState::Announced);
        if !may_be_called {
            // FIFREEZE is not called, and so the report must not have an instant of the call.
            self.announced_ns.store(0, Ordering::Relaxed);
        }
        may_be_called
    }

    /// Says that FIFREEZE succeeded. False if it came too late: somebody has called it thawed, so
    /// nobody but the caller is going to thaw it, and the caller has to do that at once.
    #[must_use]
    pub fn frozen(&self, now: Monotonic) -> bool {
        self.freeze_returned_ns.store(now.0, Ordering::Relaxed);
        let before = self
            .state
            .swap(FreezeState::Frozen as u32, Ordering::SeqCst);
        FreezeState::from_raw(before) == FreezeState::Announced
    }

    /// Says that FIFREEZE failed: nobody of ours may thaw it from here on.
    pub fn refuse(&self, now: Monotonic, errno: u32) {
        self.freeze_errno.store(errno, Ordering::Relaxed);
        self.freeze_returned_ns.store(now.0, Ordering::Relaxed);
        self.step(FreezeState::Announced, FreezeState::Refused);
    }

    /// Forbids the freeze of a filesystem that was not announced yet.
    pub fn revoke(&self) {
        self.step(FreezeState::Planned, FreezeState::Revoked);
    }

    /// Says that FIFREEZE was announced but is known never to have frozen it: its caller is gone,
    /// or came back by a panic, and FITHAW answered EINVAL.
    pub fn never_frozen(&self) {
        self.step(FreezeState::Announced, FreezeState::Revoked);
    }

    /// Says that FITHAW is about to be called.
    pub fn thawing(&self, now: Monotonic) {
        self.thaw_called_ns.store(now.0, Ordering::Relaxed);
    }

    /// Says that `thawer`'s FITHAW succeeded: exactly one FITHAW succeeds for a freeze, so this
    /// also corrects a `find_thawed` that another process wrote between that call and this line.
    ///
    /// If our FIFREEZE has failed meanwhile, what was thawed was somebody else's freeze: that is
    /// kept, for the report.
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

    /// Says that a FITHAW of ours succeeded and thawed a freeze that was not ours.
    pub fn undo_another(&self) {
        self.undid_another.store(1, Ordering::SeqCst);
    }

    /// Whether a FITHAW of ours undid a freeze that was not ours.
    #[must_use]
    pub fn undid_another(&self) -> bool {
        self.undid_another.load(Ordering::SeqCst) == 1
    }

    /// Says that FITHAW found a filesystem thawed that we had frozen.
    pub fn find_thawed(&self, now: Monotonic) {
        if self.step(FreezeState::Frozen, FreezeState::ThawedByAnother) {
            self.thawed_ns.store(now.0, Ordering::Relaxed);
        }
    }

    /// Says the same of an entry whose layout is another version's: nothing but its state is written.
    pub fn thawed_for_another_version(&self) {
        self.state
            .store(FreezeState::ThawedByOperator as u32, Ordering::SeqCst);
    }

    /// Keeps the error number of a failed FITHAW.
    pub fn thaw_failed(&self, errno: u32) {
        self.thaw_errno.store(errno, Ordering::Relaxed);
    }

    fn step(&self, from: FreezeState, to: FreezeState) -> bool {
        self.state
            .compare_exchange(from as u32, to as u32, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }
}

/// Whether the file of a ledger can be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// It is a ledger of this version.
    Own,
    /// It is a ledger of another version: only states and device numbers can be read.
    OfAnotherVersion,
    /// Its run has not named it yet, and so has frozen nothing.
    Unfinished,
    /// It is no ledger.
    Unknown,
}

/// What a ledger says of the run as a whole.
#[repr(C, align(4096))]
pub struct Header {
    magic: AtomicU64,
    started_realtime_ns: AtomicU64,
    started_monotonic_ns: AtomicU64,
    guard_by_ns: AtomicU64,
    parent_start_ticks: AtomicU64,
    watchdog_start_ticks: AtomicU64,
    parent_pid: AtomicU32,
    watchdog_pid: AtomicU32,
    fired: AtomicU32,
    rcu_previous: AtomicU32,
    rcu_is_owed: AtomicU32,
    rcu_was_expedited: AtomicU32,
    run_id_length: AtomicU32,
    run_id: [AtomicU8; RUN_ID_MAX],
}

/// A process, named so that a reused process id is not taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessName {
    /// The process id.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: when it was started, in clock ticks since boot.
    pub start_ticks: u64,
}

impl Header {
    /// Names the run, before the ledger is shared.
    pub fn name(&self, run_id: &str, parent: ProcessName) {
        store_bytes(&self.run_id, &self.run_id_length, run_id.as_bytes());
        self.parent_start_ticks
            .store(parent.start_ticks, Ordering::Relaxed);
        self.parent_pid.store(parent.pid, Ordering::Relaxed);
        self.magic
            .store(u64::from_le_bytes(MAGIC), Ordering::SeqCst);
    }

    /// What the file's first bytes say about it.
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

    /// The run's name.
    #[must_use]
    pub fn run_id(&self) -> String {
        crate::text::bytes_text(&load_bytes(&self.run_id, &self.run_id_length))
    }

    /// The process of the run.
    #[must_use]
    pub fn parent(&self) -> ProcessName {
        ProcessName {
            pid: self.parent_pid.load(Ordering::Relaxed),
            start_ticks: self.parent_start_ticks.load(Ordering::Relaxed),
        }
    }

    /// The watchdog's process.
    #[must_use]
    pub fn watchdog(&self) -> ProcessName {
        ProcessName {
            pid: self.watchdog_pid.load(Ordering::Relaxed),
            start_ticks: self.watchdog_start_ticks.load(Ordering::Relaxed),
        }
    }

    /// Says which process watches.
    pub fn set_watchdog(&self, watchdog: ProcessName) {
        self.watchdog_start_ticks
            .store(watchdog.start_ticks, Ordering::Relaxed);
        self.watchdog_pid.store(watchdog.pid, Ordering::Relaxed);
    }

    /// Starts the clock: the window begins now, and the watchdog thaws at `guard_by`.
    pub fn start(&self, now: Monotonic, realtime_ns: u64, guard_by: Monotonic) {
        self.started_monotonic_ns.store(now.0, Ordering::Relaxed);
        self.started_realtime_ns
            .store(realtime_ns, Ordering::Relaxed);
        self.guard_by_ns.store(guard_by.0, Ordering::SeqCst);
    }

    /// When the watchdog thaws; none before the run is armed.
    #[must_use]
    pub fn guard_by(&self) -> Option<Monotonic> {
        instant(&self.guard_by_ns)
    }

    /// The wall clock of an instant of this run, in nanoseconds since the Unix epoch.
    #[must_use]
    pub fn realtime_ns(&self, instant: Monotonic) -> i128 {
        i128::from(self.started_realtime_ns.load(Ordering::Relaxed)) + i128::from(instant.0)
            - i128::from(self.started_monotonic_ns.load(Ordering::Relaxed))
    }

    /// When the window began; none if it has not.
    #[must_use]
    pub fn started_at(&self) -> Option<Monotonic> {
        instant(&self.started_monotonic_ns)
    }

    /// Says that the watchdog thaws, and why; the first reason stays.
    pub fn fire(&self, reason: FireReason) {
        let _ = self
            .fired
            .compare_exchange(0, reason as u32, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Why the watchdog thawed, if it did.
    #[must_use]
    pub fn fired(&self) -> Option<FireReason> {
        FireReason::from_repr(self.fired.load(Ordering::SeqCst))
    }

    /// Says that expedited RCU is about to be switched on, and what to put back.
    pub fn rcu_switched_on(&self, previous: u32) {
        self.rcu_previous.store(previous, Ordering::Relaxed);
        self.rcu_is_owed.store(1, Ordering::SeqCst);
    }

    /// Says that what was read has been put back.
    pub fn rcu_put_back(&self) {
        self.rcu_is_owed.store(0, Ordering::SeqCst);
    }

    /// Says that grace periods are expedited, whichever program switched it on.
    pub fn set_rcu_expedited(&self) {
        self.rcu_was_expedited.store(1, Ordering::SeqCst);
    }

    /// Whether grace periods were expedited in the window, however it ended.
    #[must_use]
    pub fn was_rcu_expedited(&self) -> bool {
        self.rcu_was_expedited.load(Ordering::SeqCst) == 1
    }

    /// What has to be put back into `/sys/kernel/rcu_expedited`, if we owe it.
    #[must_use]
    pub fn rcu_owed(&self) -> Option<u32> {
        (self.rcu_is_owed.load(Ordering::SeqCst) == 1)
            .then(|| self.rcu_previous.load(Ordering::Relaxed))
    }
}

/// A header and one entry a filesystem, in the order of the plan.
#[repr(C)]
pub struct Ledger {
    /// The run.
    pub header: Header,
    /// The filesystems.
    pub entries: [Entry],
}

impl Ledger {
    /// The size of a ledger of `count` filesystems.
    #[must_use]
    pub fn size_bytes(count: usize) -> usize {
        size_of::<Header>() + count * size_of::<Entry>()
    }

    /// How many filesystems a ledger of `size_bytes` holds; none if no ledger has that size.
    #[must_use]
    pub fn count_in(size_bytes: usize) -> Option<usize> {
        let entries = size_bytes.checked_sub(size_of::<Header>())?;
        let count = entries / size_of::<Entry>();
        (entries % size_of::<Entry>() == 0 && count <= FILESYSTEMS_MAX).then_some(count)
    }

    /// Whether some filesystem may still be frozen by this run.
    #[must_use]
    pub fn may_be_frozen(&self) -> bool {
        self.entries
            .iter()
            .any(|entry| entry.state().may_be_frozen())
    }

    /// Ends the window for every filesystem whose turn has not come.
    pub fn revoke_planned(&self) {
        for entry in &self.entries {
            entry.revoke();
        }
    }
}

fn instant(nanoseconds: &AtomicU64) -> Option<Monotonic> {
    match nanoseconds.load(Ordering::SeqCst) {
        0 => None,
        value => Some(Monotonic(value)),
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
            reserved: AtomicU32::new(0),
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
    fn a_state_that_is_none_is_read_as_planned() {
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
        // The watchdog's FITHAW fails while FIFREEZE waits behind another program's freeze.
        entry.thaw_failed(5);
        entry.refuse(NOW, 16);
        entry.thaw_failed(5);
        assert_eq!((entry.freeze_errno(), entry.thaw_errno()), (16, 5));
    }

    #[test]
    fn a_freeze_that_comes_after_its_thaw_is_called_frozen_and_told_to_its_caller() {
        let entry = entry();
        assert!(entry.announce(NOW));
        entry.thawed(Thawer::Watchdog, NOW);
        assert!(!entry.frozen(NOW));
        assert_eq!(entry.state(), FreezeState::Frozen);
    }

    #[test]
    fn a_thaw_of_what_another_had_frozen_is_not_called_ours() {
        let entry = entry();
        assert!(entry.announce(NOW));
        entry.refuse(NOW, 16);
        entry.thawed(Thawer::Watchdog, NOW);
        assert_eq!(entry.state(), FreezeState::Refused);
        assert!(entry.undid_another());
    }

    #[test]
    fn the_fithaw_that_succeeded_has_the_last_word() {
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
    fn a_mount_point_that_is_too_long_is_cut_and_not_lost() {
        let entry = entry();
        let device = DeviceNumber { major: 7, minor: 1 };
        entry.name(device, Path::new(&"a".repeat(MOUNT_POINT_MAX + 5)));
        assert_eq!(entry.mount_point().len(), MOUNT_POINT_MAX);
        assert_eq!(entry.device().to_string(), "7:1");
    }
}
