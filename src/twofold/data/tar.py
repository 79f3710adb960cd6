"""The members of a tar file, found without extracting anything and without keeping what was found.

Plain headers (POSIX.1-1988 ustar, 512 bytes: name, octal size at 124, checksum at 148, type at 156, prefix at 345) are
read here, several times faster than by `tarfile`; everything else (long names, extended headers) is left to it.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..errors import UserError

BLOCK = tarfile.BLOCKSIZE
FILES = (b"0", b"\0")  # types of plain files


class Member(NamedTuple):
    """A file in an archive: its name, where its header, its content and the next header begin, and its size."""

    name: str
    header: int
    start: int
    size: int
    end: int


def members(file: BinaryIO, path: Path, offset: int = 0) -> Iterator[Member]:
    """The files of an archive from a header on; folders and links are passed over.

    Raises `UserError` naming the member at or after which the archive is damaged or cut short.
    """
    last, total = "after its beginning", path.stat().st_size
    while True:
        file.seek(offset)
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            raise damaged(path, last, "the archive is cut short here")
        if not block.strip(b"\0"):
            return
        member = _plain(block, offset) or _odd(file, path, offset, last)
        if member.name:
            if member.start + member.size > total:
                raise damaged(path, member.name, "the file ends before it does")
            last = f"after {member.name}"
            yield member
        offset = member.end


def damaged(path: Path, member: str, reason: str) -> UserError:
    return UserError(f"{path}: {member}", f"cannot be read as tar ({reason})", "download or write it again")


def _plain(block: bytes, offset: int) -> Member | None:
    """The member of a plain header; None for a header of any other kind and for a damaged one."""
    if block[156:157] not in FILES or block[257:262] != b"ustar":
        return None
    try:
        told = int(block[148:156].rstrip(b" \0"), 8)
        size = int(block[124:136].rstrip(b" \0"), 8)
        name = block[:100].rstrip(b"\0").decode("utf-8")
        if block[262:263] == b"\0" and block[345]:  # GNU's own kind has something else there
            name = f"{block[345:500].rstrip(bytes(1)).decode('utf-8')}/{name}"
    except ValueError:
        return None
    if told != sum(block) - sum(block[148:156]) + 8 * ord(" ") or "\0" in name:
        return None
    return Member(name, offset, offset + BLOCK, size, offset + BLOCK + -(-size // BLOCK) * BLOCK)


def _odd(file: BinaryIO, path: Path, offset: int, last: str) -> Member:
    """The same by `tarfile`; with an empty name for what is no file."""
    try:
        file.seek(offset)
        with tarfile.TarFile(fileobj=file, mode="r") as tar:
            member = tar.next()
            end = tar.offset
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise damaged(path, last, " ".join(str(error).split())[:160]) from error
    if member is None or end <= offset:
        raise damaged(path, last, "a damaged header follows")
    if not member.isfile():
        return Member("", offset, member.offset_data, 0, end)
    if member.sparse is not None:
        raise damaged(path, member.name, "it is stored with holes")
    return Member(member.name, offset, member.offset_data, member.size, end)
