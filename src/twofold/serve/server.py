"""The process: listens, tells where, and ends as it is asked to.

SIGTERM or Ctrl-C: readiness turns to 503, new connections are refused, what was accepted is answered, then it ends with
exit code 0. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..errors import UserError

BACKLOG = 2048
FORCED = 1  # exit code of who was told twice
GRACE = 5.0  # seconds beyond those in which a request must have arrived, for an answer that says so


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for callers; port 0 = any free one. Raises `UserError`."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # asyncio switches Nagle's algorithm off only where the protocol is named; with it every answer takes 40 ms more
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{host}:{port}", reason, "choose another --host or --port (0 = any free one)") from None
    return sock


def address(sock: socket.socket) -> str:
    """http://host:port of a socket."""
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def impatient(seconds: float) -> type[HttpToolsProtocol]:
    """uvicorn's connection, which is closed where a whole request takes longer than that to arrive: uvicorn itself
    waits for ever for somebody who connects and says nothing, or a byte of a header a minute."""

    class Impatient(HttpToolsProtocol):
        waiting: asyncio.TimerHandle | None = None

        def wait(self) -> None:
            self.stop()
            self.waiting = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

        def stop(self) -> None:
            if self.waiting is not None:
                self.waiting.cancel()

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.wait()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self.wait()

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self.stop()

        def connection_lost(self, exc: Exception | None) -> None:
            self.stop()
            super().connection_lost(exc)

    return Impatient


class Server(uvicorn.Server):
    """uvicorn's, which tells the service first, and does not die of the signal that it has obeyed.

    What was accepted is answered, streams of previews too; only a caller who does not read its answer is cut off, when
    every deadline has long passed.
    """

    def __init__(self, app: FastAPI, drain: float = 0.0) -> None:
        limits = app.state.service.settings
        config = uvicorn.Config(
            app,
            http=impatient(limits.upload + GRACE),
            ws="none",
            log_level="error",
            access_log=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=math.ceil(limits.upload + limits.deadline + GRACE),
            backlog=BACKLOG,
            server_header=False,
        )
        super().__init__(config)
        self.service, self.drain = app.state.service, drain
        self._asked: int | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not in the main thread
                loop.add_signal_handler(name, self.handle_exit, name, None)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._asked is not None:
            self.force_exit = True
            asyncio.get_running_loop().call_later(1.0, os._exit, FORCED)  # whatever else is waited for
            return
        self._asked = sig
        self.service.ready = False
        asyncio.get_running_loop().call_later(self.drain, self._leave)

    def _leave(self) -> None:
        self.should_exit = True


def run(app: FastAPI, sock: socket.socket, drain: float = 0.0, started: Callable[[], None] = lambda: None) -> int:
    """Serves until it is told to stop. started: called when requests are taken. Returns the exit code, and does not
    return where it was told twice."""
    server = Server(app, drain)

    async def serve() -> None:
        task = asyncio.create_task(server.serve(sockets=[sock]))
        while not (server.started or task.done()):
            await asyncio.sleep(0.01)
        if not task.done():
            started()
        await task

    asyncio.run(serve())
    if server.force_exit:
        os._exit(FORCED)  # Python would take down its modules around a thread that still computes, and crash
    return 0
