"""The keeper: the process that holds the applications still, and that releases them when the run cannot.

It is started before the first application is touched. It ends by itself: when it has released everything,
when the run is gone, or when a hold takes too long. If it is killed, the sessions that it holds end with it.
"""

from __future__ import annotations

import signal
import socket
import sys
import time

from vmsnapshot.quiesce.failure import QuiesceError, RunGone
from vmsnapshot.quiesce.held import Applications
from vmsnapshot.quiesce.kinds import from_document
from vmsnapshot.quiesce.link import RunLink


def main(run_pid: int) -> None:
    """Serves the run that has the other end of standard input."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # It ends when the run has ended. A handler, unlike SIG_IGN, is not inherited by what it starts.
        signal.signal(number, lambda *_: None)
    try:
        _serve(RunLink(socket.socket(fileno=0), run_pid))
    except RunGone:
        # Nothing was begun.
        sys.exit(1)


def _serve(run: RunLink) -> None:
    asked = run.receive(None) or {}
    applications = Applications([from_document(document) for document in asked["applications"]], run)
    outcome = "run-lost"
    try:
        applications.ready()
        run.send({"records": applications.records()})
        packet = run.receive(None)
        if packet is not None and "quiesce" in packet:
            limits = packet["quiesce"]
            applications.quiesce(limits["limit_seconds"])
            hold_by = time.monotonic() + limits["hold_seconds"]
            run.send({"records": applications.records()})
            packet = run.receive(hold_by)
        if packet is None:
            outcome = "too-long"
            why = "it was released before the thaw, because the run took too long"
            applications.expire(QuiesceError("held-too-long", why))
        else:
            outcome = packet["release"]
    except RunGone:
        pass
    finally:
        run.forget()
        try:
            applications.release(outcome)
        finally:
            applications.close()
            run.send({"records": applications.records()})


if __name__ == "__main__":
    main(int(sys.argv[1]))
