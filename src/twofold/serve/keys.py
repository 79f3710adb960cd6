"""API keys: from a file, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from starlette.requests import Request

from ..errors import UserError
from .refused import Refused

SHORTEST = 16


class Keys:
    """Who may ask. digests: SHA-256 of the keys; none at all: everybody may."""

    def __init__(self, digests: tuple[bytes, ...] = ()) -> None:
        self.digests = digests

    @classmethod
    def read(cls, path: str | None) -> Keys:
        """One key a line; empty lines and those that begin with # say nothing. Raises `UserError`."""
        if path is None:
            return cls()
        try:
            lines = Path(path).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "is not text"
            raise UserError(f"keys={path}", str(reason), "give a file with a key a line") from None
        keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not keys:
            raise UserError(f"keys={path}", "holds no key", "write one a line, such as that of `openssl rand -hex 24`")
        short = [number for number, key in enumerate(keys, 1) if len(key) < SHORTEST]
        if short:
            what = f"key {short[0]} has fewer than {SHORTEST} characters"
            raise UserError(f"keys={path}", what, "a longer one is not guessed: `openssl rand -hex 24`")
        return cls(tuple(_digest(key) for key in keys))

    def check(self, request: Request) -> None:
        """Raises `Refused` 401 for who brings none of them."""
        if not self.digests:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            given = request.headers.get("x-api-key", "")
        digest = _digest(given.strip())
        found = [hmac.compare_digest(digest, known) for known in self.digests]  # all of them, whichever it is
        if not any(found):
            what = "is not known" if given else "is missing"
            raise Refused(401, "API key", what, "send `Authorization: Bearer KEY` or `X-API-Key: KEY`")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
