"""The process: listens, tells where, and ends as it is asked to.

SIGTERM or Ctrl-C: readiness turns to 503, new connections are refused, what was accepted is answered, then it ends with
exit code 0. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from ..errors import UserError

BACKLOG = 2048
FORCED = 1  # exit code of who was told twice


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


class Server(uvicorn.Server):
    """uvicorn's, which tells the service first, and does not die of the signal that it has obeyed."""

    def __init__(self, app: FastAPI, drain: float = 0.0) -> None:
        # a stream of previews is an answer like all others: nobody is cut off on the way out
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_keep_alive=30, backlog=BACKLOG, server_header=False
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
            return
        self._asked = sig
        self.service.ready = False
        asyncio.get_running_loop().call_later(self.drain, self._leave)

    def _leave(self) -> None:
        self.should_exit = True


def run(app: FastAPI, sock: socket.socket, drain: float = 0.0, started: Callable[[], None] = lambda: None) -> int:
    """Serves until it is told to stop. started: called when requests are taken. Returns the exit code."""
    server = Server(app, drain)

    async def serve() -> None:
        task = asyncio.create_task(server.serve(sockets=[sock]))
        while not (server.started or task.done()):
            await asyncio.sleep(0.01)
        if not task.done():
            started()
        await task

    asyncio.run(serve())
    return FORCED if server.force_exit else 0
