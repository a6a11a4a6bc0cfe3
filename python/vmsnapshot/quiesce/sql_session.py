"""One open session of a database's own client, over pipes.

The vendor's client is used, and no driver, because it connects as the owner of the server has set it up:
over the socket, as the operating system's user, with a login path, a defaults file, a password file or a
service file. So no password passes through this program. SQL goes through standard input only. The client
ends at the first error, so a session that answers has made every statement before.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence

from vmsnapshot.quiesce.conversation import Conversation
from vmsnapshot.quiesce.failure import QuiesceError
from vmsnapshot.quiesce.link import RunLink

# Between the columns of a row.
COLUMN = "\t"


class SqlSession:
    """The client, and the server's errors under codes of ours. `mark` makes a statement that prints it."""

    def __init__(
        self,
        subject: str,
        arguments: Sequence[str],
        run: RunLink,
        *,
        environment: Mapping[str, str],
        linux_user: str | None,
        mark: str,
        codes: Sequence[tuple[str, str]],
    ) -> None:
        self._client = Conversation(subject, arguments, run, environment=environment, linux_user=linux_user)
        self._mark = mark
        self._codes = [(re.compile(pattern), code) for pattern, code in codes]
        # Nobody else's output is taken for the end of ours.
        self._token = secrets.token_hex(8)
        self._count = 0

    def ask(self, statements: str, deadline: float) -> list[list[str]]:
        """Sends statements in one piece. Returns the rows of all of them, once the last one is done."""
        self._count += 1
        end = f"{self._token} {self._count}"
        rows: list[list[str]] = []
        try:
            self._client.send(f"{statements}\n{self._mark.format(end)}\n")
            while (line := self._client.line(deadline)) != end:
                rows.append(line.split(COLUMN))
        except QuiesceError as error:
            raise self._named(error) from error
        return rows

    def value(self, statement: str, deadline: float) -> str:
        """Returns the only column of the only row of a statement."""
        rows = self.ask(statement, deadline)
        if len(rows) != 1 or len(rows[0]) != 1:
            raise self._client.failed("bad-answer", "answered in a form that is not known")
        return rows[0][0]

    def end(self) -> None:
        """Ends the client, and with it the session."""
        self._client.end()

    def _named(self, error: QuiesceError) -> QuiesceError:
        for pattern, code in self._codes:
            if pattern.search(str(error)):
                return QuiesceError(code, str(error))
        return error
