"""A thousand uploads that nobody should send: all of them refused with 4xx, the server as it was before."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import os
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from .common import Live, live, loaded, picture, runs, text

WHERE = "/v1/models/judge/classify"
Sent = dict[str, Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live([loaded(runs(tmp_path_factory.mktemp("served"), "judge"))], bytes=2_000_000, pixels=1_000_000) as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[httpx.Client]:
    with server.client() as one:
        yield one


# -- what is no whole picture ------------------------------------------------------------------------------------------


def chunk(name: bytes, content: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 0) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


BOMB = zlib.compress(bytes(50_000_000), 9)  # 50 kB


def truncated(dice: random.Random) -> bytes:
    """A picture without its end."""
    format = dice.choice(("PNG", "JPEG", "WEBP"))
    whole = picture(dice.randrange(100), (40, 30), "RGB", format)
    return whole[: dice.randrange(len(whole) * 9 // 10)]


def of_another_kind(dice: random.Random) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("../../etc/passwd", bytes(100_000))
    return dice.choice(
        (
            buffer.getvalue(),
            gzip.compress(picture()),
            b"<html><script>alert(1)</script>",
            b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
            b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>',
            b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n(/etc/passwd) (r) file\n",
            b"\x7fELF" + dice.randbytes(500),
            pickle.dumps(Danger()),
            b"P6 99999 99999 255\n" + dice.randbytes(100),
            dice.randbytes(dice.randrange(1, 2000)),
            b"",
            b"\x89PNG\r\n\x1a\n" + dice.randbytes(300),
            b"\xff\xd8\xff\xe0" + dice.randbytes(300),
            b"RIFF" + struct.pack("<I", 300) + b"WEBPVP8 " + dice.randbytes(300),
        )
    )


class Danger:
    """Says so where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.abort, ()


def of_another_format(dice: random.Random) -> bytes:
    format = dice.choice(("GIF", "TIFF", "BMP", "PPM", "ICO", "animated PNG", "animated WEBP"))
    kind = format.removeprefix("animated ")
    frames = [Image.fromarray(np.full((8, 8), level, np.uint8)) for level in (0, 99, 255)]
    buffer = io.BytesIO()
    more: Any = {"save_all": True, "append_images": frames[1:]} if " " in format else {}
    frames[0].save(buffer, kind, **more)
    return buffer.getvalue()


def bomb(dice: random.Random) -> bytes:
    """Small files that unpack to much, or say that they do."""
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
    jpeg = picture(1, (16, 16), "L", "JPEG")
    return dice.choice(
        (
            png(2**31 - 1, 2**31 - 1, chunk(b"IDAT", BOMB)),
            png(60_000, 60_000, chunk(b"IDAT", BOMB)),
            png(1001, 1000, chunk(b"IDAT", BOMB)),
            png(1, 1_000_000, chunk(b"IDAT", zlib.compress(bytes(2_000_000)))),
            png(900_000, 1, chunk(b"IDAT", zlib.compress(bytes(900_001)))),
            png(0, 0, chunk(b"IDAT", BOMB)),
            png(8, 8, chunk(b"zTXt", b"x\0\0" + BOMB), chunk(b"IDAT", b"")),
            png(8, 8, chunk(b"iTXt", b"x\0\1\0\0\0" + BOMB), chunk(b"IDAT", b"")),
            png(8, 8, chunk(b"iCCP", b"x\0\0" + BOMB), chunk(b"IDAT", b"")),
            png(8, 8, *[chunk(b"tEXt", b"k\0" + bytes(1000))] * 500, chunk(b"IDAT", b"")),
            jpeg[:-2] + scan * 500 + jpeg[-2:],
            b"\xff\xd8\xff\xc0\x00\x0b\x08\xff\xff\xff\xff\x01\x01\x11\x00\xff\xd9",
        )
    )


def as_file(content: bytes, dice: random.Random) -> Sent:
    """A way of sending it."""
    name = dice.choice(
        ("a.png", "../../../../tmp/evil.png", "C:\\evil.png", "/etc/cron.d/x", "a\0b.png", "%2e%2e%2fx", "")
    )
    kind = dice.choice(("image/png", "image/jpeg", "image/webp", "application/octet-stream"))
    return dice.choice(
        (
            {"files": {"images": (name, content, kind)}},
            {"content": content, "headers": {"Content-Type": kind}},
            {"json": {"images": [text(content)]}},
        )
    )


# -- what is no request ------------------------------------------------------------------------------------------------


def form(*parts: tuple[str, bytes], boundary: str = "b", end: bool = True) -> bytes:
    whole = b"".join(f"--{boundary}\r\n{head}\r\n\r\n".encode() + body + b"\r\n" for head, body in parts)
    return whole + (f"--{boundary}--\r\n".encode() if end else b"")


def odd_form(dice: random.Random) -> Sent:
    file = 'Content-Disposition: form-data; name="images"; filename="a.png"'
    kind = "multipart/form-data; boundary=b"
    body, kind = dice.choice(
        (
            (form((file, picture())), "multipart/form-data"),
            (form((file, picture())), "multipart/form-data; boundary="),
            (form((file, picture())), "multipart/form-data; boundary=" + "b" * 5000),
            (form((file, picture()), boundary="other"), kind),
            (form((file, b"x"), end=False)[:-30], kind),
            (form(("Content-Disposition: form-data", picture())), kind),
            (form(("X: y", picture())), kind),
            (form(('Content-Disposition: form-data; name="images"', b"text")), kind),
            (form(*[(file, b"x")] * 3000), kind),
            (form(*[(f'Content-Disposition: form-data; name="f{i}"', b"x") for i in range(3000)]), kind),
            (form((file.replace("images", "../../images"), picture())), kind),
            (form((file.replace("images", "i\0mages"), picture())), kind),
            (form((file + "\r\n" + "X-A: b\r\n" * 3000, b"x")), kind),
            (form((file, form((file, picture())))), kind),
            (form((file + "\r\nContent-Type: multipart/mixed; boundary=c", form((file, b"x"), boundary="c"))), kind),
            (dice.randbytes(500), kind),
            (b"--b\r\n" * 1000, kind),
            (b"", kind),
            (form((file, b"x")), "multipart/form-data; boundary=b; charset=utf-7"),
            (form((file.replace("a.png", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")), b"x")), kind),
        )
    )
    return {"content": body, "headers": {"Content-Type": kind}}


def odd_json(dice: random.Random) -> Sent:
    good = text(picture())
    body: bytes = dice.choice(
        (
            b'{"images": ' * 2000,
            b"[" * 50_000 + b"]" * 50_000,
            b'{"images": [NaN]}',
            b'{"images": [1e999]}',
            b'{"images": [Infinity, -Infinity]}',
            b'{"images": [' + b"9" * 6000 + b"]}",
            b'{"images": ["\\ud800"]}',
            b'{"images": ["\xff\xfe"]}',
            b'{"images": "' + good.encode() + b'"}',
            b'{"images": {"0": "' + good.encode() + b'"}}',
            b'{"images": [null]}',
            b'{"images": [["' + good.encode() + b'"]]}',
            b'{"images": ["' + good.encode() + b'"], "path": "/etc/passwd"}',
            b'{"images": ["' + good[:-3].encode() + b'!!!"]}',
            b'{"images": ["=' + b"A" * 1000 + b'"]}',
            b'{"images": ["data:image/png;base64"]}',
            b'{"images": ["file:///etc/passwd"]}',
            b'{"images": ["http://169.254.169.254/"]}',
            b'{"images": [""]}',
            json.dumps({"images": ["AAAA"] * 5000}).encode(),
            json.dumps({"images": []}).encode(),
            b"null",
            b'"x"',
            b"",
            b"\xef\xbb\xbf{}",
        )
    )
    return {"content": body, "headers": {"Content-Type": "application/json"}}


def odd_type(dice: random.Random) -> Sent:
    kinds = ("text/html", "image/svg+xml", "application/x-www-form-urlencoded", "x", "", "image/png" * 300, "a/b; c=d",
             "application/pickle", "image/gif", "*/*", "application/xml")  # fmt: skip
    return {"content": picture(), "headers": {"Content-Type": dice.choice(kinds)}}


MAKERS: dict[str, Callable[[random.Random], Sent]] = {
    "truncated": lambda dice: as_file(truncated(dice), dice),
    "of another kind": lambda dice: as_file(of_another_kind(dice), dice),
    "of another format": lambda dice: as_file(of_another_format(dice), dice),
    "bomb": lambda dice: as_file(bomb(dice), dice),
    "odd form": odd_form,
    "odd json": odd_json,
    "odd type": odd_type,
}


def memory() -> float:
    """MiB that this process holds at most so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_a_thousand_hostile_uploads(server: Live, client: httpx.Client, tmp_path: Path, monkeypatch: Any) -> None:
    opened: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", lambda self: opened.append("a temporary file"))
    known = client.post(WHERE, files={"images": picture()}).json()
    before, errors, statuses = memory(), server.metric("twofold_errors_total"), dict[int, int]()
    for number in range(1000):
        name = list(MAKERS)[number % len(MAKERS)]
        sent = MAKERS[name](random.Random(number))
        found = client.post(WHERE, **sent)
        assert 400 <= found.status_code < 500, (number, name, found.status_code, found.text[:300], str(sent)[:300])
        assert set(found.json()["error"]) == {"where", "what", "hint", "message"}
        assert "/etc/passwd" not in found.text and "Traceback" not in found.text
        statuses[found.status_code] = statuses.get(found.status_code, 0) + 1
    assert set(statuses) == {400, 413, 415, 422}
    assert client.post(WHERE, files={"images": picture()}).json() == known
    assert server.metric("twofold_errors_total") == errors
    assert memory() - before < 200
    assert opened == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "odd",
    [
        ("CMYK", "JPEG", {}),
        ("L", "JPEG", {"progressive": True}),
        ("I;16", "PNG", {}),
        ("1", "PNG", {}),
        ("P", "PNG", {}),
        ("LA", "PNG", {}),
        ("RGBA", "WEBP", {"lossless": True}),
    ],
)
def test_unusual_pictures_that_are_whole_are_taken(client: httpx.Client, odd: tuple[str, str, Any]) -> None:
    mode, format, how = odd
    grey = np.random.default_rng(0).integers(0, 255, (12, 10), dtype=np.uint8)
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, format, **how)
    found = client.post(WHERE, files={"images": buffer.getvalue()})
    assert found.status_code == 200, found.text


def test_a_large_upload_stays_in_memory(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forms keep files over one megabyte on a disk where nobody says otherwise."""

    def never(self: Any) -> None:
        raise AssertionError("written to a disk")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", never)
    large = picture(0, (780, 780), "RGB", "PNG")
    assert len(large) > 1_500_000
    assert client.post(WHERE, files={"images": large}).status_code == 200


def test_names_of_files_are_only_ever_shown(client: httpx.Client) -> None:
    for name, shown in {
        "../../a/b.png": "b.png",
        "C:\\x\\y.png": "y.png",
        "..": "..",
        "a\u202eb.png": "ab.png",
    }.items():
        found = client.post(WHERE, files={"images": (name, picture())})
        assert found.json()["predictions"][0]["name"] == shown


def test_requests_that_are_no_http(server: Live, client: httpx.Client) -> None:
    import socket

    for said in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"A" * 100_000, b"\0" * 100):
        with socket.create_connection(server.host) as one, contextlib.suppress(ConnectionError):
            one.settimeout(60)
            one.sendall(said + b"\r\n\r\n")
            assert one.recv(100)[:12] in (b"HTTP/1.1 400", b"")
    assert client.get("/health").status_code == 200


def test_base64_of_a_picture_is_the_picture() -> None:
    """What the thousand are made of is right where nothing was done to it."""
    assert base64.b64decode(text(picture())) == picture()
    good = np.asarray(Image.open(io.BytesIO(png(8, 8, chunk(b"IDAT", zlib.compress(bytes(72)))))))
    assert good.shape == (8, 8)
