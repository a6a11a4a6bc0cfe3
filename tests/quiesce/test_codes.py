"""Every code of an application has a row in its page, and no row is without one."""

from __future__ import annotations

import re
from pathlib import Path

from tests.documents.markdown import page
from tests.support.filesystems import REPOSITORY

# Words of the same form that are no codes: values, outcomes of a release, options of a program. The codes of
# scripts are put together, and docs/extension.md has them as numbers.
OTHERS = {
    "backup-stage",
    "read-lock",
    "lower-bound",
    "not-asked",
    "run-lost",
    "too-long",
    "defaults-file",
    "login-path",
    "skip-column-names",
    "skip-reconnect",
    "no-auto-rehash",
    "no-psqlrc",
    "no-align",
    "tuples-only",
    "no-password",
}
# The engine's own.
OF_THE_ENGINE = {"data-not-covered", "not-proven"}


def test_every_code_has_a_row_and_no_row_is_without_one() -> None:
    found = set(OF_THE_ENGINE)
    for path in Path(REPOSITORY, "python/vmsnapshot/quiesce").glob("*.py"):
        found |= set(re.findall(r'"([a-z]+(?:-[a-z]+)+)"', path.read_text()))
    named = page("docs/applications.md").table("`error_code`", "Codes").first_codes
    assert sorted(found - OTHERS) == sorted(named)
