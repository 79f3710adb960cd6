"""Before anything is read: who may be called by which name, how large a request may be, and how long it may take.

Plain ASGI, so that a body is counted while it arrives and never kept beyond the limit.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from .refused import Refused

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
HEADERS = {  # of every answer
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
}


class Limits:
    """hosts: names it answers to, None = any: a page that has rebound its own name to this machine is refused. most:
    bytes of a body. seconds: in which it must have arrived."""

    def __init__(self, app: App, hosts: Sequence[str] | None, most: int, seconds: float) -> None:
        self.app, self.hosts, self.most, self.seconds = app, hosts, most, seconds

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        try:
            self._check(scope, headers)
        except Refused as refused:
            await _refuse(refused, send)
            return
        body = _Body(receive, self.most, self.seconds)
        answer = _Answer(send)
        try:
            await self.app(scope, body, answer)
        except Refused as refused:  # of the body, while somebody was reading it
            if not answer.begun:
                await _refuse(refused, send)

    def _check(self, scope: Message, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1")
        if self.hosts is not None and _name(host) not in self.hosts:
            raise Refused(421, f"Host: {host[:100]}", "is not a name of this server", "see `hosts=` of twofold serve")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and scope["method"] not in ("GET", "HEAD") and origin.partition("://")[2] != host:
            raise Refused(
                403, f"Origin: {origin[:100]}", "another site's page may not ask", "call it from its own page"
            )
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise Refused(400, "Content-Length", "is not a number")
        if int(length) > self.most:
            raise _too_much(self.most)


class _Body:
    """`receive` that counts."""

    def __init__(self, receive: Receive, most: int, seconds: float) -> None:
        self.receive, self.most, self.left, self.total, self.complete = receive, most, seconds, 0, False

    async def __call__(self) -> Message:
        if self.complete:  # what may come now is that the caller leaves, and for that one waits as long as it takes
            return await self.receive()
        clock = asyncio.get_running_loop()
        start = clock.time()
        try:
            message = await asyncio.wait_for(self.receive(), self.left)
        except TimeoutError:
            raise Refused(408, "request", "did not arrive in time", "send it faster, or a smaller one") from None
        self.left = max(0.0, self.left - (clock.time() - start))
        self.total += len(message.get("body", b""))
        if self.total > self.most:
            raise _too_much(self.most)
        self.complete = not message.get("more_body", False)
        return message


class _Answer:
    """`send` that adds headers, and remembers whether anything was sent."""

    def __init__(self, send: Send) -> None:
        self.send, self.begun = send, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            known = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *((n, v) for n, v in HEADERS.items() if n not in known)]
        await self.send(message)


def _name(host: str) -> str:
    """A host without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()


def _too_much(most: int) -> Refused:
    return Refused(413, "request", f"has more than {most:,} bytes", "send fewer or smaller pictures")


async def _refuse(refused: Refused, send: Send) -> None:
    """The answer by hand. The connection is closed after it, for the rest of the body is not read."""
    body = json.dumps(refused.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    headers |= refused.headers()
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
