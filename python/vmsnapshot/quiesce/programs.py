"""Programs that root starts because a configuration names them."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from vmsnapshot.quiesce.failure import QuiesceError

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def check_program(path: str) -> None:
    """Raises `QuiesceError` unless only root can have written the program, and it can be executed."""
    if not Path(path).is_absolute():
        raise QuiesceError("bad-program", f"the path `{path}` is not absolute")
    try:
        found = Path(path).stat()
    except OSError as error:
        cause = (error.strerror or "input/output error").lower()
        raise QuiesceError("bad-program", f"could not find the program `{path}`: {cause}") from error
    why = None
    if not stat.S_ISREG(found.st_mode):
        why = "it is not a regular file"
    elif found.st_uid != 0:
        why = "it does not belong to root (`chown root` it)"
    elif found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        why = "others than its owner can write to it (`chmod go-w` it)"
    elif not os.access(path, os.X_OK):
        why = "it cannot be executed (`chmod u+x` it, and mount its filesystem without noexec)"
    if why is not None:
        raise QuiesceError("bad-program", f"the program `{path}` is not started: {why}")


def plain_environment(linux_user: str = "") -> dict[str, str]:
    """Returns the environment of a program: of ours only the language, and the home of its user."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TZ") if name in os.environ}
    if linux_user:
        kept["HOME"] = account_of(linux_user).pw_dir
    return {"PATH": PATH, **kept}


def account_of(linux_user: str) -> pwd.struct_passwd:
    """Returns the account of a user of this machine. Raises `QuiesceError`."""
    try:
        return pwd.getpwnam(linux_user)
    except KeyError:
        raise QuiesceError("no-user", f"this machine has no user `{linux_user}`") from None
