"""``make bench``: the window, the writers' stalls, the watchdog and the memory, with their baselines.

The exit status is 0 if everything was measured, whatever the figures are, and 1 if something did
not thaw. Tables go to standard output, progress to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from tests.bench import applications, comparisons, extension, servers
from tests.bench.comparisons import Bench, say
from tests.bench.figures import Claim
from tests.bench.ways import Floor, NotThawedError
from tests.support.certificates import make_certificates
from tests.support.filesystems import ScratchFilesystems, scratch_directory
from tests.support.rescue import RCU_EXPEDITED

COUNTS = (1, 4, 16, 64)

BENCHES: dict[str, Callable[[Bench], list[Claim]]] = {
    "window-azurite-http": partial(comparisons.windows, kind=servers.AZURITE_HTTP),
    "window-azurite-https": partial(comparisons.windows, kind=servers.AZURITE_HTTPS),
    "window-parallel": partial(comparisons.windows, kind=servers.PARALLEL),
    "stalls-azurite-http": partial(comparisons.stalls, kind=servers.AZURITE_HTTP),
    "stalls-parallel": partial(comparisons.stalls, kind=servers.PARALLEL),
    "no-blobs": comparisons.nothing_to_call,
    "dirty": comparisons.dirty,
    "watchdog": comparisons.watchdog,
    "memory": comparisons.memory,
    "extension": extension.jobs,
    "applications": applications.stalls,
}


def main() -> int:
    """Runs the selected benchmarks."""
    options = _options()
    if os.geteuid() != 0:
        print("bench: needs root, to mount and freeze scratch filesystems", file=sys.stderr)
        return 2
    if not Floor.PROGRAM.exists():
        print(f"bench: {Floor.PROGRAM} is missing; `make bench` builds it", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _stop)
    repetitions = options.repetitions or (3 if options.quick else 9)
    raw: dict[str, Any] = {"machine": _machine(), "device": options.device, "repetitions": repetitions}
    print(f"{raw['machine']}; ext4 on {options.device}; {repetitions} repetitions, in turns")
    claims: list[Claim] = []
    status = 0
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(scratch_directory())
        filesystems = stack.enter_context(ScratchFilesystems(directory))
        rcu_before = RCU_EXPEDITED.read_text() if RCU_EXPEDITED.exists() else ""
        say(f"making {max(options.count)} filesystems")
        make = filesystems.make_on_zram if options.device == "zram" else filesystems.make_on_loop
        # The benchmark of dirty data needs larger filesystems.
        made = [
            make(f"fs{index:02}", size_mib=192 if index < comparisons.DIRTY_COUNT else 64)
            for index in range(max(options.count))
        ]
        bench = Bench(directory, made, make_certificates(directory), options.count, repetitions, raw)
        try:
            for name in options.only or BENCHES:
                claims += BENCHES[name](bench)
        except NotThawedError as error:
            print(f"bench: {error}", file=sys.stderr)
            status = 1
        if rcu_before and RCU_EXPEDITED.read_text() != rcu_before:
            print("bench: rcu_expedited was not put back", file=sys.stderr)
            RCU_EXPEDITED.write_text(rcu_before)
            status = 1
    print("\nClaims")
    for claim in claims:
        print(f"  {claim}")
    print(f"  {sum(claim.holds for claim in claims)} of {len(claims)} hold")
    if options.json:
        raw["claims"] = [{**vars(claim), "holds": claim.holds} for claim in claims]
        options.json.write_text(json.dumps(raw, indent=1) + "\n")
    return status


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="3 repetitions, not 9, and only N = 1 and 16")
    parser.add_argument("--only", action="append", choices=BENCHES, metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--count", type=int, action="append", metavar="N", help="filesystems and blobs")
    parser.add_argument("--repetitions", type=int, metavar="N", help="of every measurement")
    parser.add_argument("--device", choices=("zram", "loop"), default="zram", help="what ext4 is on")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every repetition here")
    options = parser.parse_args()
    options.count = sorted(set(options.count or ((1, 16) if options.quick else COUNTS)))
    return options


def _machine() -> str:
    kernel, python = platform.release(), platform.python_version()
    return f"{platform.system()} {kernel}, {os.cpu_count()} cores, Python {python}"


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (the signal module's signature)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
