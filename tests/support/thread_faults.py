"""Real faults in a thread of another process, which must be ours: its next instruction is at address 0."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import pytest

# linux/ptrace.h and linux/wait.h.
PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207
PTRACE_DETACH = 17
WAIT_FOR_ANY_THREAD = 0x40000000
# sys/ptrace.h and `struct user_regs_struct` of sys/user.h, on x86_64.
PTRACE_GETREGS = 12
PTRACE_SETREGS = 13
REGISTERS = 27
ORIG_RAX = 15
RIP = 16

needs_x86_64 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the registers of x86_64 are set to make the fault"
)

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_LIBC.ptrace.restype = ctypes.c_long


def other_threads(pid: int) -> list[int]:
    """Returns the ids of the threads of a process without its main thread, oldest first."""
    return sorted(int(task.name) for task in Path(f"/proc/{pid}/task").iterdir() if int(task.name) != pid)


def make_fault(thread_id: int) -> None:
    """Lets a thread jump to address 0: SIGSEGV. It must not be in a system call that nothing interrupts."""
    _ptrace(PTRACE_SEIZE, thread_id)
    _ptrace(PTRACE_INTERRUPT, thread_id)
    os.waitpid(thread_id, WAIT_FOR_ANY_THREAD)
    registers = (ctypes.c_ulong * REGISTERS)()
    _ptrace(PTRACE_GETREGS, thread_id, registers)
    registers[RIP] = 0
    # The kernel must not move the thread back in order to call the interrupted system call again.
    registers[ORIG_RAX] = ctypes.c_ulong(-1).value
    _ptrace(PTRACE_SETREGS, thread_id, registers)
    _ptrace(PTRACE_DETACH, thread_id)


def _ptrace(request: int, thread_id: int, data: ctypes.Array[ctypes.c_ulong] | None = None) -> None:
    if _LIBC.ptrace(request, thread_id, None, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace request {request} on thread {thread_id}: {os.strerror(number)}")
