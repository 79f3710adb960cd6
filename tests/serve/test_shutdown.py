"""Signals, in a process of its own: what was accepted is answered, and after the worst it starts again."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

import twofold
from twofold.errors import UserError
from twofold.serve.server import address, listen

from .common import WAIT, live, loaded, pixels, process, runs, until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return runs(tmp_path_factory.mktemp("served"), "digits")[0]


def words(folder: str, *more: str) -> list[str]:
    return [folder, "--quiet", "neighbours=0", *more]


def test_sigterm_under_load_answers_whatever_was_accepted(folder: str) -> None:
    """Twelve callers ask, the signal comes when they are in the queue; a stream of previews is an answer like all."""
    found: dict[int, httpx.Response | Exception] = {}
    with process(*words(folder), "--port", "0", "batch=2") as (one, base):

        def ask(seed: int) -> None:
            body = {"seed": seed, "label": seed % 10, "steps": 15, "sampler": "heun"}
            headers = {"Accept": "text/event-stream"} if seed == 0 else {}
            try:
                with httpx.Client(base_url=base, timeout=WAIT, trust_env=False) as client:
                    found[seed] = client.post("/v1/models/digits/generate", json=body, headers=headers)
            except httpx.HTTPError as error:
                found[seed] = error

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(12)]
        with httpx.Client(base_url=base, timeout=WAIT, trust_env=False) as client:
            for thread in threads:
                thread.start()

            def accepted() -> bool:
                lines = client.get("/metrics").text.splitlines()
                waiting = next(float(x.split()[1]) for x in lines if x.startswith("twofold_queue_waiting"))
                begun = next(float(x.split()[1]) for x in lines if x.startswith("twofold_batch_images_sum"))
                return waiting + begun >= 1 + 12  # one was made to warm up

            until(accepted)
        one.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(WAIT)
        assert one.wait(WAIT) == 0
    assert {seed: getattr(answer, "status_code", answer) for seed, answer in found.items()} == dict.fromkeys(
        range(12), 200
    )
    model = twofold.load(folder)
    for seed, answer in found.items():
        assert isinstance(answer, httpx.Response)
        text = answer.text.rpartition("event: done\ndata: ")[2] if seed == 0 else answer.text
        ours = twofold.sample(model, [seed], seed % 10, steps=15, sampler="heun").numpy()[0]  # type: ignore[arg-type]
        got = pixels(json.loads(text)["images"][0]["png"])
        assert np.abs(got.astype(int) - ours.astype(int)).max() <= 1


def test_a_balancer_is_told_before_connections_are_refused(folder: str) -> None:
    with live([loaded([folder])], drain=0.5, neighbours=0) as one, one.client() as client:
        assert client.get("/ready").status_code == 200
        one.stop()
        until(lambda: not one.service.ready)
        assert not one.server.should_exit
        found = client.get("/ready")
        assert found.status_code == 503 and found.headers["retry-after"] == "5"
        asked = {"seed": 1, "label": 1, "steps": 1}  # who comes before the balancer has noticed is served
        assert client.post("/v1/models/digits/generate", json=asked).status_code == 200
        assert client.get("/health").status_code == 200
        until(lambda: one.server.should_exit)


def test_a_second_signal_ends_it_at_once(folder: str) -> None:
    body = {"seed": 1, "n": 64, "label": 1, "steps": 1000, "sampler": "heun", "size": [64, 64]}
    with process(*words(folder), "--port", "0", "deadline=3600", "area=64") as (one, base):
        content = json.dumps(body).encode()
        host, port = base.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as caller:
            head = f"POST /v1/models/digits/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
            caller.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + content)
            with httpx.Client(base_url=base, timeout=WAIT, trust_env=False) as client:
                until(lambda: "twofold_groups_working 1.0" in client.get("/metrics").text)
            one.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            assert one.poll() is None  # it would finish this
            one.send_signal(signal.SIGINT)
            assert one.wait(30) == 1


def test_killed_it_starts_again_where_it_was(folder: str) -> None:
    """Nothing has to be cleaned up, and the port is free although connections to it were open."""
    with process(*words(folder), "--port", "0") as (one, base):
        port = base.rpartition(":")[2]
        with httpx.Client(base_url=base, timeout=WAIT, trust_env=False) as client:
            assert client.get("/ready").status_code == 200
            one.send_signal(signal.SIGKILL)
            assert one.wait(WAIT) == -signal.SIGKILL
            with process(*words(folder), "--port", port) as (_, again):
                assert again == base
                asked = {"seed": 1, "label": 1, "steps": 1}
                assert httpx.post(f"{again}/v1/models/digits/generate", json=asked, trust_env=False).status_code == 200


def test_a_port_that_is_taken(folder: str) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = int(address(taken).rpartition(":")[2])
        with pytest.raises(UserError, match=f"127.0.0.1:{port}: Address already in use; choose another --host or"):
            listen("127.0.0.1", port)


def test_names_that_cannot_be_listened_at() -> None:
    with pytest.raises(UserError, match="no.such.host.invalid:80"):
        listen("no.such.host.invalid", 80)
    with pytest.raises(UserError, match="127.0.0.1:70000"):
        listen("127.0.0.1", 70000)
    with listen("::1", 0) as six:
        assert address(six).startswith("http://[::1]:")


def test_models_come_only_from_where_they_are(tmp_path: Path) -> None:
    from twofold.serve.models import find

    with pytest.raises(UserError, match="holds no model; give runs, or a folder of runs"):
        find([str(tmp_path)])
    made = runs(tmp_path / "a", "digits") + runs(tmp_path / "b", "digits")
    with pytest.raises(UserError, match="a model 'digits' is served already"):
        find(made)
    (tmp_path / "a" / "notes.txt").write_text("no model")
    assert find([str(tmp_path / "a")]) == {"digits": made[0]}
