"""Plans, prepares and runs the engine: the part that a backup job and a restore point share."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vmsnapshot import _native
from vmsnapshot.errors import PlanError, PrepareError
from vmsnapshot.handler.freeze.leftovers import thaw_leftovers
from vmsnapshot.handler.log import Log
from vmsnapshot.handler.machine.configuration import VmBackupConfiguration
from vmsnapshot.handler.machine.disks import Disks
from vmsnapshot.interruptions import FREEZING, Interruptions
from vmsnapshot.mounts import read_mounts

# The contract's limit for a storage call (7.7). It limits the connecting before the freeze.
CONNECT_TIMEOUT_SECONDS = 10.0
# How long to wait for another run of the engine. The same as for the lock.
ANOTHER_RUN_LIMIT_SECONDS = 35.0
_RETRY_SECONDS = 0.1


@dataclass(frozen=True)
class Freezing:
    """Plans, prepares and runs as ``vmbackup.conf`` says. Holds signals from the freeze on."""

    configuration: VmBackupConfiguration
    interruptions: Interruptions
    log: Log

    def plan(self, also_excluded: Iterable[str] = ()) -> _native.Plan:
        """Plans all that can be frozen, except the temporary disk, ``MountsToSkip`` and `also_excluded`.

        Raises:
            PlanError: the kernel's tables cannot be read.
        """
        disks = Disks()
        temporary = {mount.device for mount in read_mounts() if disks.is_on_resource_disk(mount)}
        plan = _native.plan(exclude=[*self._usable_patterns(), *sorted(temporary), *also_excluded])
        names = ", ".join(f"`{filesystem.mount_point}`" for filesystem in plan.filesystems)
        self.log.info(f"to freeze: {names or 'nothing'}")
        return plan

    def prepare(
        self,
        plan: _native.Plan,
        *,
        blobs: Sequence[str] = (),
        metadata: dict[str, str] | None = None,
        blob_metadata: Sequence[dict[str, str]] = (),
        host_call: _native.HostCall | None = None,
        proxy: str | None = None,
    ) -> _native.Session:
        """Prepares a run. Waits for another run, and thaws what a killed run left frozen.

        Blocking: `ANOTHER_RUN_LIMIT_SECONDS`, and the time for connecting.

        Raises:
            PrepareError: the run cannot be prepared. Nothing is frozen.
        """
        until = time.monotonic() + ANOTHER_RUN_LIMIT_SECONDS
        has_thawed = False
        while True:
            try:
                return _native.prepare(
                    plan,
                    blobs,
                    metadata=metadata,
                    blob_metadata=blob_metadata,
                    host_call=host_call,
                    # One bad disk must not stop the others, and the clock of this VM must not judge a SAS.
                    unusable_blobs="report",
                    thaw_timeout=self.configuration.thaw_timeout_seconds,
                    connect_timeout=CONNECT_TIMEOUT_SECONDS,
                    proxy=proxy,
                    progress=self._on_phase,
                )
            except PrepareError as error:
                if error.code == "left-frozen" and not has_thawed:
                    has_thawed = True
                    thaw_leftovers(self.log)
                elif error.code == "another-run" and time.monotonic() < until:
                    # A run of the command line. It does not use the lock that extensions share.
                    time.sleep(_RETRY_SECONDS)
                else:
                    raise

    def run(self, session: _native.Session) -> _native.Report:
        """Runs a prepared session and logs what happened.

        The log is suspended meanwhile. It stays suspended if not everything is thawed, because the next write
        to a frozen disk does not return before its thaw, and the blobs must be written first.
        """
        self.log.suspend(discard=self.configuration.discard_lines_while_frozen)
        try:
            report = session.run()
        except BaseException:
            # Only before the freeze. Afterwards the engine returns a report.
            self.log.resume()
            raise
        for event in report.timeline:
            self.log.info(f"{event.at_ms:+.3f} ms {event.event} {event.subject or ''}".rstrip())
        self.log.info(f"run {report.run_id}: window {report.window_ms or 0.0:.3f} ms")
        if report.freeze_doubt and report.freeze_doubt_code != "nothing-frozen":
            self.log.error(f"the freeze is in doubt: {report.freeze_doubt}")
        if report.all_thawed:
            self.log.resume()
        else:
            self.log.error("not everything is thawed: run `bin/handler thaw` in the extension's directory")
        return report

    def _usable_patterns(self) -> list[str]:
        usable = []
        for pattern in self.configuration.mounts_to_skip:
            try:
                _native.plan(exclude=[pattern])
            except PlanError as error:
                self.log.warning(f"MountsToSkip: {error}; this entry is ignored")
            else:
                usable.append(pattern)
        return usable

    def _on_phase(self, sentence: str) -> None:
        if sentence == FREEZING:
            self.interruptions.hold()
