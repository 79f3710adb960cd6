"""Who may ask, by which name, how much, and for how long: keys, hosts, origins, sizes, slowness."""

from __future__ import annotations

import hmac
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from twofold.errors import UserError
from twofold.serve import keys as keys_module
from twofold.serve.keys import Keys

from .common import Live, live, loaded, picture, runs, text, until

FIRST, SECOND = "first-" + "a" * 20, "second-" + "b" * 20


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return runs(tmp_path_factory.mktemp("served"), "judge")


@pytest.fixture(scope="module")
def server(folders: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"# who may ask\n{FIRST}\n\n  {SECOND}  \n")
    with live([loaded(folders)], Keys.read(str(file)), bytes=20_000, upload=0.5, pixels=10_000) as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[httpx.Client]:
    with server.client() as one:
        yield one


CLASSIFY = "/v1/models/judge/classify"


def raw(server: Live, *parts: bytes, pause: float = 0.0) -> bytes:
    """One answer, whole."""
    with socket.create_connection(server.host) as one:
        one.settimeout(60)
        for i, part in enumerate(parts):
            time.sleep(pause if i else 0)
            one.sendall(part)
        whole = b""
        while part := one.recv(65536):
            whole += part
            headers, found, body = whole.partition(b"\r\n\r\n")
            if found and len(body) >= int(re.search(rb"(?i)content-length: (\d+)", headers)[1]):  # type: ignore[index]
                break
        return whole


# -- keys --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [FIRST, SECOND])
@pytest.mark.parametrize("header", ["Authorization: Bearer ", "Authorization: bearer ", "X-API-Key: "])
def test_who_has_a_key_may_ask(client: httpx.Client, key: str, header: str) -> None:
    name, _, before = header.partition(": ")
    found = client.get("/v1/models", headers={name: before + key})
    assert found.status_code == 200 and found.json()["key_needed"] is True


@pytest.mark.parametrize(
    ("headers", "what"),
    [
        ({}, "is missing"),
        ({"Authorization": "Bearer"}, "is missing"),
        ({"Authorization": f"Basic {FIRST}"}, "is missing"),
        ({"X-API-Key": FIRST[:-1]}, "is not known"),
        ({"X-API-Key": FIRST + "a"}, "is not known"),
        ({"X-API-Key": f"{FIRST} {SECOND}"}, "is not known"),
        ({"Authorization": "Bearer # who may ask"}, "is not known"),
        ({"X-API-Key": b"\xff\xfe" * 20}, "is not known"),
    ],
)
def test_who_has_none_may_not(client: httpx.Client, headers: dict[str, Any], what: str) -> None:
    for method, where in (("GET", "/v1/models"), ("GET", "/v1/models/judge"), ("POST", CLASSIFY)):
        found = client.request(method, where, headers=headers)
        assert found.status_code == 401 and found.headers["www-authenticate"] == "Bearer"
        assert found.json()["error"]["what"] == what
        assert FIRST not in found.text


def test_signs_of_life_need_none(client: httpx.Client) -> None:
    for where in ("/health", "/ready", "/metrics", "/", "/openapi.json"):
        assert client.get(where).status_code == 200, where
    assert client.get("/openapi.json").json()["paths"]["/v1/models"]["get"]["security"] == [{"bearer": []}, {"key": []}]


def test_all_keys_are_compared_in_constant_time(
    server: Live, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `hmac.compare_digest`, on digests of one length, and as often for the first key as for none."""
    compared: list[tuple[int, int]] = []

    def watched(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return hmac.compare_digest(a, b)

    monkeypatch.setattr(keys_module, "hmac", SimpleNamespace(compare_digest=watched))
    for key in (FIRST, SECOND, "x", "y" * 1000):
        compared.clear()
        client.get("/v1/models", headers={"X-API-Key": key})
        assert compared == [(32, 32), (32, 32)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no key; write one a line"),
        (b"# nobody\n\n", "holds no key"),
        (b"a-good-long-key-of-many\nshort\n", "key 2 has fewer than 16 characters"),
        (b"\xff\xfe\x00", "is not text"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_of_keys_that_cannot_be_used(tmp_path: Path, content: bytes | None, says: str) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=says):
        Keys.read(str(file))


def test_keys_are_not_kept_as_they_are() -> None:
    known = Keys((keys_module._digest(FIRST),))
    assert FIRST not in repr(vars(known))


# -- names and origins -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]", "[::1]:8765"])
def test_names_of_this_machine(client: httpx.Client, host: str) -> None:
    assert client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[::2]", "["]
)
def test_other_names_are_not_ours(client: httpx.Client, host: str) -> None:
    """A page elsewhere may point a name of its own at this machine."""
    for where in ("/health", "/v1/models", "/"):
        found = client.get(where, headers={"Host": host})
        assert found.status_code == 421 and "hosts=" in found.json()["error"]["hint"]


def test_names_that_were_given_are_ours_whatever_their_case(folders: list[str]) -> None:
    with live([loaded(folders)], hosts=["Models.Example"]) as one, one.client() as client:
        assert client.get("/health", headers={"Host": "models.example:443"}).status_code == 200
        assert client.get("/health").status_code == 421


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://localhost", 200), ("http://evil.example", 403), ("null", 403), ("http://localhost.evil", 403)],
)
def test_pages_of_others_may_not_ask(client: httpx.Client, origin: str, status: int) -> None:
    headers = {"Host": "localhost", "Origin": origin, "X-API-Key": FIRST}
    found = client.post(CLASSIFY, headers=headers, files={"images": picture()})
    assert found.status_code == status
    assert "access-control-allow-origin" not in found.headers


# -- sizes and slowness ------------------------------------------------------------------------------------------------


def head(path: str = CLASSIFY, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"X-API-Key: {FIRST}", "Content-Type: image/png", *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.mark.parametrize("close", [False, True])
@pytest.mark.parametrize("path", [CLASSIFY, "/v1/models/nobody/classify", "/nowhere"])
def test_too_much_is_refused_and_the_answer_arrives(server: Live, path: str, close: bool) -> None:
    more = ["Connection: close"] if close else []
    found = raw(server, head(path, "Content-Length: 60000", *more), bytes(60_000))
    assert found.startswith(b"HTTP/1.1 413"), found
    assert b"has more than 20,000 bytes" in found


@pytest.mark.parametrize("length", ["9" * 18, "1" + "0" * 15])
def test_what_is_said_to_be_endless_is_refused(server: Live, length: str) -> None:
    assert b" 413 " in raw(server, head(CLASSIFY, f"Content-Length: {length}"), b"x")


def test_chunks_are_counted(server: Live) -> None:
    chunk = b"2000\r\n" + bytes(0x2000) + b"\r\n"
    found = raw(server, head(CLASSIFY, "Transfer-Encoding: chunked"), *[chunk] * 4, b"0\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 413")
    with server.client() as client:
        assert client.get("/health").status_code == 200


def test_a_slow_body_is_told_408(server: Live) -> None:
    found = raw(server, head(CLASSIFY, "Content-Length: 100"), b"x", b"y", pause=0.2)
    assert found.startswith(b"HTTP/1.1 408"), found
    assert b"did not arrive in time" in found


def test_who_says_nothing_is_not_waited_for(folders: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither after connecting, nor in the middle of the headers."""
    monkeypatch.setattr("twofold.serve.server.GRACE", 0.0)
    with live([loaded(folders)], upload=0.3) as one:
        for said in (b"", b"GET / HTTP/1.1\r\nHost: loc"):
            with socket.create_connection(one.host) as caller:
                caller.settimeout(60)
                caller.sendall(said)
                assert caller.recv(100) == b""  # closed
        with one.client() as client:
            assert client.get("/health").status_code == 200


def test_all_bodies_together_are_bounded(folders: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twofold.serve.limits.TOGETHER", 2)
    with live([loaded(folders)], bytes=10_000, upload=30) as one:
        held = [socket.create_connection(one.host) for _ in range(2)]
        try:
            for caller in held:
                caller.sendall(head(CLASSIFY, "Content-Length: 9999") + bytes(9998))
            app: Any = one.app.middleware_stack
            while not hasattr(app, "held"):
                app = app.app
            until(lambda: app.held == 2 * 9998)
            found = raw(one, head(CLASSIFY, "Content-Length: 500"), bytes(500))
            assert found.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in found.lower()
        finally:
            for caller in held:
                caller.close()
        until(lambda: app.held == 0)  # what is gone is forgotten
        with one.client() as client:
            assert client.post(CLASSIFY, files={"images": picture()}).status_code == 200


def test_a_full_queue_is_503_with_when_to_come_again(folders: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    gate, begun = threading.Event(), threading.Event()
    from twofold.serve import work

    original = work.classify

    def held(models: Any, jobs: Any, batch: int) -> Any:
        begun.set()
        assert gate.wait(60)
        yield from original(models, jobs, batch)

    monkeypatch.setattr(work, "classify", held)
    codes: list[int] = []
    with live([loaded(folders)], queue=2, batch=1) as one:

        def ask() -> None:
            with one.client() as client:
                codes.append(client.post(CLASSIFY, files={"images": picture()}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        threads[0].start()
        assert begun.wait(60)
        for thread in threads[1:]:
            thread.start()
        until(lambda: one.service.engine.waiting == 2)
        with one.client() as client:
            found = client.post(CLASSIFY, files={"images": picture()})
            assert found.status_code == 503 and int(found.headers["retry-after"]) >= 1
            assert found.json()["error"]["message"].startswith("queue: 2 requests are waiting already")
            assert "twofold_queue_waiting 2.0" in client.get("/metrics").text
        gate.set()
        for thread in threads:
            thread.join()
    assert codes == [200] * 3


def test_past_its_deadline_it_is_504(folders: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from twofold.serve import work

    def slow(models: Any, jobs: Any, batch: int) -> Any:
        while True:
            time.sleep(0.01)
            yield

    monkeypatch.setattr(work, "classify", slow)
    with live([loaded(folders)], deadline=0.1) as one, one.client() as client:
        found = client.post(CLASSIFY, json={"images": [text(picture())]})
        assert found.status_code == 504
        assert found.json()["error"]["message"].startswith("deadline: not answered within 0.1 seconds")
        until(lambda: not one.service.engine.working)


def test_many_pictures_have_fewer_pixels_together(folders: list[str]) -> None:
    with live([loaded(folders)], pixels=1000) as one, one.client() as client:
        many = [("images", picture(0, (30, 30)))] * 5
        assert client.post(CLASSIFY, files=many[:4]).status_code == 200
        found = client.post(CLASSIFY, files=many)
        assert (found.status_code, found.json()["error"]["where"]) == (413, "5 pictures")


def test_json_without_pictures_is_small(server: Live, client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twofold.serve.reading.MOST_JSON", 100)
    found = client.post(CLASSIFY, json={"images": [text(picture())]}, headers={"X-API-Key": FIRST})
    assert found.status_code == 200
    assert json.loads(found.text)["predictions"]
