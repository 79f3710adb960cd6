"""What a caller is told when something cannot be had: a status, and one line of what, why and what would be right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import UserError


class Refused(Exception):
    """An answer that is no result. error: what is said. retry: seconds after which trying again makes sense."""

    def __init__(self, status: int, where: str, what: str, hint: str = "", retry: float | None = None) -> None:
        self.status, self.error, self.retry = status, UserError(where, what, hint), retry
        super().__init__(str(self.error))

    @classmethod
    def by(cls, error: UserError, status: int = 422) -> Refused:
        """Of a mistake in what was asked for."""
        return cls(status, error.where, error.what, error.hint)

    def body(self) -> dict[str, Any]:
        """The JSON of every refusal."""
        return said(self.error)

    def headers(self) -> dict[str, str]:
        """What goes with it."""
        headers = {} if self.retry is None else {"Retry-After": str(max(1, round(self.retry)))}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def said(error: UserError) -> dict[str, Any]:
    """{"error": {where, what, hint, message}}."""
    return {"error": {"where": error.where, "what": error.what, "hint": error.hint, "message": str(error)}}


def full(waiting: int, seconds: float) -> Refused:
    """The queue has no place left."""
    return Refused(503, "queue", f"{waiting} requests are waiting already", "try again a little later", seconds)


def late(seconds: float) -> Refused:
    """The deadline has passed."""
    hint = "ask for fewer images or steps, or try when less is asked of this server"
    return Refused(504, "deadline", f"not answered within {seconds:g} seconds", hint)


def crowded() -> Refused:
    """What was asked for does not go into a device's memory beside what else is there."""
    hint = "ask for fewer or smaller images, or try when less is asked of this server"
    return Refused(503, "device", "has not enough memory for this now", hint, 5)


def own_mistake() -> Refused:
    """Nobody who asks can do anything about it."""
    return Refused(500, "server", "made a mistake of its own", "its log says which")


def closing() -> Refused:
    """The server has been told to stop."""
    return Refused(503, "server", "is shutting down", "try again a little later", 5)


def dead(devices: Mapping[int, BaseException], of: int) -> Refused:
    """Devices, by number, have died of something, out of so many. What it said stands in the log, not here, where
    everybody reads it."""
    devices = dict(devices)  # another may die meanwhile
    which = ", ".join(f"device {number}" for number in devices) + (f" of {of}" if of > 1 else "")
    of_what = ", ".join(dict.fromkeys(type(error).__name__ for error in devices.values()))
    return Refused(503, which, f"has died of {of_what}", "start the server again; its log says more", 30)
