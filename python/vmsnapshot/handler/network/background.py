"""Runs what waits for the network beside the worker's main thread: uploads, and calls to the host.

The worker's main thread is synchronous: it keeps the order of the job and calls the engine. Everything here
is for before and after the window. Whoever opens the window waits for, or cancels, what was submitted: a
thread that wants the interpreter does not belong into it.

aiohttp and the Azure SDK take most of a second to import, which a command of the agent does not have: they,
and asyncio, are imported when a background is entered or used, never together with a module.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, TypeVar

if TYPE_CHECKING:
    import asyncio

    import aiohttp

Result = TypeVar("Result")

Session = Callable[[], "aiohttp.ClientSession"]
"""Gives the HTTP session that all calls share, inside a coroutine: `Background.session`."""

# How long the end waits for what was cancelled and for open connections, and then for the thread.
_END_LIMIT_SECONDS = 3.0
_JOIN_LIMIT_SECONDS = 2.0


class Background:
    """An event loop in a thread of its own; a context manager.

    Leaving it cancels what is left, closes all connections and ends the thread, within five seconds. The
    thread is a daemon: should a coroutine not let itself be cancelled, it does not keep the process.
    """

    def __init__(self, *, ca_file: str | None = None) -> None:
        """`ca_file` is trusted instead of the system's authorities, which ``SSL_CERT_FILE`` can name too."""
        self._ca_file = ca_file
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread
        self._session: aiohttp.ClientSession | None = None

    def submit(self, coroutine: Coroutine[Any, Any, Result]) -> concurrent.futures.Future[Result]:
        """Starts a coroutine; the future has its result, and cancelling the future cancels the coroutine.

        Raises:
            RuntimeError: the background has been left.
        """
        import asyncio

        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:
            coroutine.close()
            raise

    def warm_up(self) -> concurrent.futures.Future[None]:
        """Imports what is slow to import, and reads the system's authorities, while the caller goes on."""
        return self.submit(self._warm_up())

    def session(self) -> aiohttp.ClientSession:
        """Returns the one HTTP session, so that connections are used again; only for coroutines of `submit`.

        It takes no proxy from the environment: `proxies` decides that, and each call says which it uses.
        """
        if self._session is None:
            import ssl

            import aiohttp

            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=self._ca_file)),
                cookie_jar=aiohttp.DummyCookieJar(),
                # The Azure SDK decompresses by itself; nobody else is asked to compress.
                auto_decompress=False,
                trust_env=False,
            )
        return self._session

    def __enter__(self) -> Background:
        import asyncio

        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="background", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        ending = self.submit(self._end())
        with contextlib.suppress(concurrent.futures.TimeoutError):
            ending.result(_END_LIMIT_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_JOIN_LIMIT_SECONDS)

    def _serve(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    async def _warm_up(self) -> None:
        import asyncio

        self.session()
        # A host call that was submitted meanwhile needs no more than that: let it begin.
        await asyncio.sleep(0)
        importlib.import_module("azure.storage.blob.aio")

    async def _end(self) -> None:
        import asyncio

        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            # Less than the limit of the whole, so that connections are closed even then.
            await asyncio.wait(left, timeout=_END_LIMIT_SECONDS / 2)
        if self._session is not None:
            await self._session.close()
            # aiohttp's own advice: a TLS connection is closed a turn or two of the loop later.
            await asyncio.sleep(0.05)
