"""Runs uploads and calls to the host on an event loop beside the worker's main thread.

The worker's main thread is synchronous. It does the steps of the job in order, and calls the engine.
Everything here runs before or after the window. Before the window, the worker waits for everything that it
submitted, or cancels it: no other thread of Python may run in the window.

aiohttp and the Azure SDK take most of a second to import, which is too long for a command of the agent.
Therefore they, and asyncio, are imported when a background is entered or used, and never when a module is
imported.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, TypeVar

import vmsnapshot
from vmsnapshot import PrepareError

if TYPE_CHECKING:
    import asyncio
    import ssl

    import aiohttp

Result = TypeVar("Result")

Session = Callable[[], "aiohttp.ClientSession"]
"""`Background.session`: returns the HTTP session that all calls share. Call it inside a coroutine."""

# How long `__exit__` waits for cancelled coroutines and open connections, and then for the thread.
_END_LIMIT_SECONDS = 3.0
_JOIN_LIMIT_SECONDS = 2.0


class Background:
    """An event loop in a thread of its own, as a context manager.

    The exit cancels everything that is left, closes all connections and ends the thread, within five seconds.
    The thread is a daemon, so a coroutine that ignores its cancellation does not keep the process alive.
    """

    def __init__(self, *, ca_file: str | None = None, warn: Callable[[str], None] | None = None) -> None:
        """`ca_file` has certificates to trust besides the system's. `warn` is told if there are none."""
        self._ca_file = ca_file
        self._warn = warn
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread
        self._session: aiohttp.ClientSession | None = None

    def submit(self, coroutine: Coroutine[Any, Any, Result]) -> concurrent.futures.Future[Result]:
        """Starts a coroutine. The future has its result, and cancelling the future cancels the coroutine.

        Raises:
            RuntimeError: the context has been exited.
        """
        import asyncio

        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:
            coroutine.close()
            raise

    def warm_up(self) -> concurrent.futures.Future[None]:
        """Imports the slow modules and reads the system's authorities, while the caller continues."""
        return self.submit(self._warm_up())

    def session(self) -> aiohttp.ClientSession:
        """Returns the shared HTTP session, which reuses connections. Only for coroutines of `submit`.

        The session ignores the proxies of the environment. `proxies` chooses one, and each call names it.
        """
        if self._session is None:
            import aiohttp

            from vmsnapshot.handler.network import lenient_heads

            self._session = aiohttp.ClientSession(
                connector=lenient_heads.connector(_tls_context(self._ca_file, self._warn)),
                cookie_jar=aiohttp.DummyCookieJar(),
                # Some appliances add long headers. The default is 8 KiB.
                max_field_size=lenient_heads.LINE_LIMIT_BYTES,
                # The Azure SDK decompresses by itself. No other request asks for compression.
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
        # A call to the host that was submitted meanwhile needs only the session. Let it begin.
        await asyncio.sleep(0)
        importlib.import_module("azure.storage.blob.aio")

    async def _end(self) -> None:
        import asyncio

        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            # Less than the whole limit, so that there is time to close the connections.
            await asyncio.wait(left, timeout=_END_LIMIT_SECONDS / 2)
        if self._session is not None:
            await self._session.close()
            # As aiohttp recommends: a TLS connection needs one or two more iterations of the loop to close.
            await asyncio.sleep(0.05)


def _tls_context(ca_file: str | None, warn: Callable[[str], None] | None) -> ssl.SSLContext:
    """Makes a context that trusts what the engine trusts, and judges as it does.

    A service that gets the snapshots must not then refuse to get their report. OpenSSL's own list may be
    another one, or empty: a Python that was not built for this distribution looks in another directory.
    """
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Only the names of subjectAltName count, as RFC 6125 says.
    context.hostname_checks_common_name = False
    # An intermediate certificate may be a trust root. Python 3.9 has no name for the flag.
    context.verify_flags |= getattr(ssl, "VERIFY_X509_PARTIAL_CHAIN", 0x80000)
    # Python 3.13 sets it in its default context. It refuses authorities whose `basicConstraints` is not
    # critical, and those of inspecting proxies often are like that.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    try:
        roots = vmsnapshot.trust_roots(ca_file=ca_file)
    except PrepareError as error:
        # Calls to the host use no TLS and need no roots. A TLS server is then refused, and the cause of that
        # is only that its issuer is unknown.
        if warn is not None:
            warn(f"no server is trusted over HTTPS: {error}" + (f"; {error.hint}" if error.hint else ""))
        return context
    for root in roots:
        with contextlib.suppress(ssl.SSLError):
            context.load_verify_locations(cadata=root)
    return context
