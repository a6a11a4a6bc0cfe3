"""Polls the host for restore points that it wants, and takes one after another.

When everything is frozen, the engine sends "startsnapshot" from its window, and the host takes the snapshots
of all disks. Afterwards the host receives "publishsnapshot", which says whether the snapshots are consistent.
It receives both requests even if nothing could be frozen, and then they contain the cause. Chapter 11 of the
contract.

Polling does not depend on the agent's commands and their settings. It shares ``vmbackup.conf``, the engine
and the lock with backup jobs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import vmsnapshot
from vmsnapshot import HostCall, Machine, Mount, PrepareError, Report, VmsnapshotError
from vmsnapshot.handler.context import open_context
from vmsnapshot.handler.freeze.freezing import Freezing
from vmsnapshot.handler.freeze.leftovers import thaw_leftovers
from vmsnapshot.handler.log import HOST_BASED_EXTENSION_LOG, Log
from vmsnapshot.handler.machine.configuration import VmBackupConfiguration, read_vmbackup_configuration
from vmsnapshot.handler.network.background import Background, Session
from vmsnapshot.handler.network.causes import cause_of
from vmsnapshot.handler.network.host import exchange, host_address
from vmsnapshot.handler.secret import described, redacted
from vmsnapshot.interruptions import Interruptions

if TYPE_CHECKING:
    from vmsnapshot._native import ErrorSubject, FreezeDoubt  # noqa: TID251 (literals, for types)

INTERVAL_SECONDS = 300.0
"""From the start of one poll to the start of the next."""
CALL_LIMIT_SECONDS = 10.0
FROZEN_LIMIT_SECONDS = 9.0
"""How long after the freeze the host may answer. Later snapshots are not used."""

PATH = "/machine/plugins?comp=xdisksvc&type="
CHECK, START, PUBLISH = "checkforsnapshot", "startsnapshot", "publishsnapshot"
START_HEADERS = (("Content-Type", "application/json; charset=utf-8"),)
PUBLISH_HEADERS = (("Content-Type", "application/json"),)

# The error codes of the predecessor. The host knows them.
FREEZE_TIMED_OUT = "FREEZE_TIMED_OUT"
INCOMPLETE_FREEZE = "INCOMPLETE_FREEZE"
UNEXPECTED_FREEZE = "UNEXPECTED_FREEZE_EXC"
START_NOT_ANSWERED = "STARTSNAP_HTTP_ERR"
START_REFUSED = "STARTSNAP_UNEXPECTED_STATUS_"
UNEXPECTED_START = "STARTSNAP_UNEXPECTED_EXC"
UNEXPECTED_SNAPSHOT = "UNEXPECTED_SNAPSHOT_EXC"
# Two new codes. The predecessor sent null after 9 s, and did not notice that a filesystem thawed early.
TOOK_TOO_LONG = "SNAPSHOT_TOOK_TOO_LONG"
INCONSISTENT = "SNAPSHOT_INCONSISTENT"


# The code for a run that cannot be prepared, by the subject of the error. The callee is the host.
_PREPARE_ERRORS: dict[ErrorSubject, str] = {
    "callee": START_NOT_ANSWERED,
    "metadata": UNEXPECTED_FREEZE,
    "filesystem": UNEXPECTED_FREEZE,
    "watchdog": UNEXPECTED_FREEZE,
    "application": UNEXPECTED_FREEZE,
    "run": UNEXPECTED_FREEZE,
}

# The code for a doubt about the freeze, if the host was not called.
_FREEZE_ERRORS: dict[FreezeDoubt | None, str] = {
    "freeze-failed": INCOMPLETE_FREEZE,
    "not-freezable": INCOMPLETE_FREEZE,
    "not-opened": INCOMPLETE_FREEZE,
    "freeze-would-wait": INCOMPLETE_FREEZE,
    "mounted-since": INCOMPLETE_FREEZE,
    "mounts-unreadable": INCOMPLETE_FREEZE,
    "frozen-by-another": INCOMPLETE_FREEZE,
    "freeze-late": FREEZE_TIMED_OUT,
    "freeze-hung": FREEZE_TIMED_OUT,
    # The deadline passed before everything was frozen.
    "watchdog-fired": FREEZE_TIMED_OUT,
    "thawed-by-watchdog": FREEZE_TIMED_OUT,
    "not-thawed": UNEXPECTED_FREEZE,
    "thawed-by-another": UNEXPECTED_FREEZE,
    "watchdog-lost": UNEXPECTED_FREEZE,
    "window-broke-off": UNEXPECTED_FREEZE,
    # These three count as called: see `is_frozen_and_called`.
    "answered-late": UNEXPECTED_FREEZE,
    "nothing-frozen": UNEXPECTED_FREEZE,
    None: UNEXPECTED_FREEZE,
}


class HostError(VmsnapshotError):
    """The host did not answer. The code is ``no-answer``."""


class RequestError(VmsnapshotError):
    """The host's request cannot be parsed. The code is ``bad-request``."""


@dataclass(frozen=True)
class Failure:
    """Why snapshots are not consistent, in the form that the host receives."""

    code: str
    message: str


@dataclass(frozen=True)
class Host:
    """Calls the host's snapshot service outside the window."""

    address: str
    background: Background

    def call(
        self, kind: str, headers: Iterable[tuple[str, str]] = (), body: bytes | None = None
    ) -> tuple[int, bytes]:
        """Sends `body` with POST, or a GET if it is `None`. Returns the HTTP status and the answer.

        Blocking: `CALL_LIMIT_SECONDS`.

        Raises:
            HostError: the host did not answer.
        """
        answering = _exchange(self.background.session, self.uri(kind), tuple(headers), body)
        return self.background.submit(answering).result()

    def uri(self, kind: str) -> str:
        """Returns the URI of a call."""
        return f"http://{self.address}{PATH}{kind}"


def run_polling(
    base_directory: Path, environ: Mapping[str, str], *, interval_seconds: float = INTERVAL_SECONDS
) -> int:
    """Polls until SIGTERM, and returns the exit status of the process.

    A signal between two polls ends the process at once. A signal during a request ends it after the thaw and
    the publication.
    """
    log = open_context(base_directory, environ, file_name=HOST_BASED_EXTENSION_LOG).log
    try:
        with Interruptions() as interruptions, Background() as background:
            # First of all, because the log may lie on a filesystem that a killed service left frozen.
            thaw_leftovers(log)
            host = Host(host_address(environ), background)
            log.info(f"polling `{host.uri(CHECK)}` every {interval_seconds:g} s")
            _poll(host, log, interruptions, interval_seconds)
    except KeyboardInterrupt:
        log.info("polling ended")
    return 0


def _poll(host: Host, log: Log, interruptions: Interruptions, interval_seconds: float) -> None:
    begun_at = time.monotonic()
    known = None
    while True:
        try:
            trouble = _do_what_is_asked(host, log)
        except Exception as error:
            trouble = f"could not poll: {described(error)}"
        if trouble is not None and trouble != known:
            log.warning(f"{trouble}; this is logged only once until it changes")
        known = trouble
        interruptions.obey()
        time.sleep(seconds_to_next_poll(time.monotonic() - begun_at, interval_seconds))


def seconds_to_next_poll(elapsed_seconds: float, interval_seconds: float) -> float:
    """Returns how long to wait for the next multiple of the interval, and skips those that have passed."""
    return interval_seconds - elapsed_seconds % interval_seconds


def _do_what_is_asked(host: Host, log: Log) -> str | None:
    """Polls once and does what the host asks. Returns the problem with the answer, or `None`."""
    try:
        status, body = host.call(CHECK)
        if status == 404:
            return None
        if status != 200:
            return f"the host answered {status} to `{CHECK}`"
        snapshot_id = parse_request(body)
    except (HostError, RequestError) as error:
        return str(error)
    # Read again for each request, because the owner does not restart a service that the owner does not know.
    configuration = read_vmbackup_configuration()
    for warning in configuration.warnings:
        log.warning(warning)
    with Interruptions() as interruptions:
        RestorePoint(snapshot_id, configuration, host, interruptions, log).take()
    if interruptions.noted:
        raise KeyboardInterrupt
    return None


def parse_request(body: bytes) -> str:
    """Returns the id of the restore point that the host asks for.

    The rest of a request has no effect. The host chooses the disks itself, and the settings
    (``extensionSettings``, encrypted) name blobs that are not written.

    Raises:
        RequestError: the body is not a JSON object, or has no id.
    """
    try:
        document = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise RequestError(
            "could not read the host's request: it is no JSON", code="bad-request", kind="network"
        ) from None
    snapshot_id = document.get("snapshotId") if isinstance(document, dict) else None
    if not isinstance(snapshot_id, str) or not snapshot_id:
        raise RequestError(
            "could not read the host's request: it has no snapshotId", code="bad-request", kind="network"
        )
    return snapshot_id


class RestorePoint:
    """One restore point that the host asked for. Call `take` once."""

    def __init__(
        self,
        snapshot_id: str,
        configuration: VmBackupConfiguration,
        host: Host,
        interruptions: Interruptions,
        log: Log,
    ) -> None:
        self._snapshot_id = snapshot_id
        self._freezing = Freezing(configuration, interruptions, log)
        self._host = host
        self._interruptions = interruptions
        self._log = log

    def take(self) -> Failure | None:
        """Freezes, lets the host take its snapshots, thaws, and reports to the host.

        Returns why the snapshots are not consistent, or `None` if they are.

        Blocking: twice the limit of the lock, the engine's preparation, the thaw timeout, and two calls.

        Raises:
            KeyboardInterrupt: a signal came before anything was frozen. The host has received both requests.
        """
        is_told_to_end = False
        try:
            self._log.info(f"the host asks for restore point `{self._snapshot_id}`")
            failure = self._freeze_and_start()
        except KeyboardInterrupt:
            is_told_to_end = True
            failure = Failure(UNEXPECTED_FREEZE, "the service received a signal before the freeze and ends")
            self._start_unfrozen(failure)
        except Exception as error:
            failure = Failure(UNEXPECTED_SNAPSHOT, described(error))
        try:
            self._publish(failure)
        finally:
            # After the host has its answer. If something is still frozen, the log may have to wait for its
            # thaw.
            self._log.resume()
        if failure is None:
            self._log.info(f"restore point `{self._snapshot_id}`: consistent")
        else:
            self._log.error(f"restore point `{self._snapshot_id}`: {failure.code}, {failure.message}")
        if is_told_to_end:
            raise KeyboardInterrupt
        return failure

    def _freeze_and_start(self) -> Failure | None:
        try:
            report = self._run()
        except Exception as error:
            failure = failure_before_freeze(error)
            if failure.code == START_NOT_ANSWERED:
                return failure
        else:
            if is_frozen_and_called(report):
                return failure_of(report)
            failure = Failure(_FREEZE_ERRORS[report.freeze_doubt_code], redacted(report.freeze_doubt))
        self._start_unfrozen(failure)
        return failure

    def _run(self) -> Report:
        call = HostCall(
            self._host.uri(START),
            headers=START_HEADERS,
            body=self._body(None),
            time_limit=FROZEN_LIMIT_SECONDS,
        )
        machine = vmsnapshot.machine()
        plan = self._freezing.plan(machine, usb_mounts(machine))
        with self._freezing.lock(), self._freezing.prepare(plan, host_call=call) as session:
            return self._freezing.run(session)

    def _start_unfrozen(self, failure: Failure) -> None:
        """Lets the host take its snapshots although nothing is frozen. The request contains the failure."""
        self._send(START, START_HEADERS, failure)

    def _publish(self, failure: Failure | None) -> None:
        self._send(PUBLISH, PUBLISH_HEADERS, failure)

    def _send(self, kind: str, headers: Iterable[tuple[str, str]], failure: Failure | None) -> None:
        # The host must receive this even if a signal comes now. It takes some seconds at most.
        self._interruptions.hold()
        try:
            status, _ = self._host.call(kind, headers, self._body(failure))
        except HostError as error:
            self._log.error(str(error))
            return
        (self._log.info if status == 200 else self._log.error)(f"the host answered {status} to `{kind}`")

    def _body(self, failure: Failure | None) -> bytes:
        document: dict[str, object] = {
            "snapshotId": self._snapshot_id,
            "errMsg": failure.message if failure else "",
        }
        if failure is not None:
            document["error"] = {"code": failure.code, "message": failure.message}
        return json.dumps(document).encode()


def usb_mounts(machine: Machine) -> list[Mount]:
    """Returns the mounts on USB disks, which the host does not know."""
    on_usb = {
        device.number
        for device in machine.block_devices
        if any(part.startswith("usb") for part in Path(device.directory).parts)
    }
    return [mount for mount in machine.mounts if not on_usb.isdisjoint(mount.block_devices)]


def failure_before_freeze(error: Exception) -> Failure:
    """Returns what the host receives after an error before the window. Nothing was frozen then."""
    if not isinstance(error, VmsnapshotError):
        return Failure(UNEXPECTED_FREEZE, described(error))
    code = _PREPARE_ERRORS[error.subject] if isinstance(error, PrepareError) else UNEXPECTED_FREEZE
    # Another program was freezing for longer than we wait: a run of the engine, or the holder of the lock.
    return Failure(INCOMPLETE_FREEZE if error.kind == "another-run" else code, redacted(error))


def is_frozen_and_called(report: Report) -> bool:
    """Returns whether the host was called, or everything was frozen, or there was nothing to freeze."""
    call = report.host_call
    was_called = call is not None and call.outcome != "not-sent"
    return was_called or report.freeze_doubt_code in (None, "nothing-frozen")


def failure_of(report: Report) -> Failure | None:
    """Returns why the snapshots of a run that called the host cannot be used, or `None` if they can."""
    call = report.host_call
    if call is None or call.outcome != "answered":
        why = redacted(call.message) if call is not None and call.message else "the host did not answer"
        is_garbled = call is not None and call.error_code in ("BadAnswer", "AnswerTooLong")
        return Failure(UNEXPECTED_START if is_garbled else START_NOT_ANSWERED, why)
    if call.http_status != 200:
        return Failure(
            f"{START_REFUSED}{call.http_status}", f"the host answered {call.http_status} to `{START}`"
        )
    if report.freeze_doubt_code not in (None, "nothing-frozen"):
        return Failure(INCONSISTENT, redacted(report.freeze_doubt))
    # The call was sent when the last filesystem was frozen.
    answer_seconds = (call.answer_ms or 0.0) / 1000
    if answer_seconds >= FROZEN_LIMIT_SECONDS:
        limit = f"{FROZEN_LIMIT_SECONDS:g} s"
        message = f"the host answered {answer_seconds:.2f} s after the freeze; the limit is {limit}"
        return Failure(TOOK_TOO_LONG, message)
    return None


async def _exchange(
    session: Session, uri: str, headers: tuple[tuple[str, str], ...], body: bytes | None
) -> tuple[int, bytes]:
    import asyncio

    import aiohttp

    # The next call comes minutes later, and an idle connection may be closed when it is used again.
    headers = (*headers, ("Connection", "close"))
    method = "GET" if body is None else "POST"
    try:
        return await exchange(session(), method, uri, headers, body, CALL_LIMIT_SECONDS)
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
        raise HostError(
            f"the host did not answer `{uri.rpartition('=')[2]}`: {cause_of(error)}",
            code="no-answer",
            kind="network",
        ) from None
