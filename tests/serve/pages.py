"""A page in a real browser: against the real server, or with all answers made up where failures are the subject."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import twofold
from twofold.data import open_store
from twofold.oracle import MixtureDenoiser
from twofold.run.features import reader_for
from twofold.settings.data import DataSettings

PAGE = Path(twofold.__file__).parent / "serve" / "page"
ORIGIN = "http://localhost:9"  # nothing listens there: what is not made up fails
CSP = "default-src 'self'; img-src 'self' data: blob:"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
REPORT = (
    "<!DOCTYPE html><html lang=en><title>r</title><style>h1 {color: rgb(1, 2, 3)}</style><h1>How it went</h1></html>"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

Answer = tuple[int, dict[str, str], str]  # status, headers, body


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser, closed whatever happens; skips the test where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def watched(page: Any) -> list[str]:
    """What goes wrong inside the page from now on: exceptions, and refusals by its security policy."""
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("console", lambda said: found.append(said.text) if "Security Policy" in said.text else None)
    return found


def exact_model(name: str, report: Path | None = None, labels: bool = True) -> Any:
    """The exact denoiser of the ten digits' means as a served model: it needs no training, generates each digit when it
    is asked to, and is its own best possible classifier. labels=False: one that only generates, at random."""
    from twofold.serve.models import Served

    how = DataSettings(source="digits")
    store = open_store(how)
    rows = store.indices("train")
    x0, label = store.batch(rows).double() / 127.5 - 1, torch.as_tensor(store.labels[rows])
    means = torch.stack([x0[label == k].mean(0) for k in range(10)])
    model = MixtureDenoiser(means, [0.25] * 10, [0.1] * 10, labels=labels)
    if not labels:
        return Served(name, model, None, "", None, (1, 8, 8))
    return Served(name, model, model.as_classifier(), "probe", reader_for(model), (1, 8, 8), how, report)


@contextmanager
def serving(*models: Any, keys: Any = None, **settings: Any) -> Iterator[str]:
    """The real server over these models, in a thread; its address."""
    for needed in ("fastapi", "uvicorn", "multipart", "prometheus_client"):
        pytest.importorskip(needed)
    from twofold.serve.app import create_app
    from twofold.serve.server import Server, address, listen
    from twofold.settings.serve import ServeSettings

    app = create_app([{one.name: one for one in models}], ServeSettings(**settings), keys)
    socket = listen("127.0.0.1", 0)
    server = Server(app)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[socket])), daemon=True)
    thread.start()
    try:
        while not (server.started and all(m.neighbours or m.reader is None for m in models)):
            assert thread.is_alive(), "the server ended"
            time.sleep(0.01)
        yield address(socket)
    finally:
        server.should_exit = True
        thread.join(30)


def pixels(url: str) -> np.ndarray:
    """int (H, W) of an image in a data URL, or in base64."""
    content = base64.b64decode(url.rpartition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("L")).astype(int)


@contextmanager
def two_models(folder: Path) -> Iterator[str]:
    """The server's address over a model that can do everything, and one that only generates, without classes."""
    (folder / "report.html").write_text(REPORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWOFOLD_CACHE", str(folder / "cache"))
        with serving(exact_model("exact", folder / "report.html"), exact_model("plain", labels=False)) as found:
            yield found


@contextmanager
def opening(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """A function that opens the page in a context of its own, where its first image is waited for unless a tab is
    named. Nothing may go wrong inside the pages until they are closed."""
    contexts, problems = [], []

    def open_page(where: str = "", **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(20_000)
        page = context.new_page()
        problems.append(watched(page))
        page.goto(f"{address}/{where}")
        if where:
            page.wait_for_selector(f"{where}:not([hidden])")
        else:
            finished(page)
        return page

    try:
        yield open_page
    finally:
        for context in contexts:
            context.close()
    assert not [text for found in problems for text in found]


def finished(page: Any) -> str:
    """The image in Generate, once it is done."""
    page.wait_for_selector("#generate:not([aria-busy]) #save:not([hidden])")
    return str(page.get_attribute("#picture", "src"))


def slide(page: Any, name: str, value: float) -> None:
    """As a user drags a range."""
    move = "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})); }"
    page.locator(f"#{name}").evaluate(move, value)


def choose(page: Any, panel: str, content: bytes) -> None:
    """Gives Recognize or Change an image."""
    page.set_input_files(f"#{panel}-file", {"name": "mine.png", "mimeType": "image/png", "buffer": content})


def a_digit(row: int = 3) -> tuple[bytes, np.ndarray]:
    """A training image as a PNG file and as (8, 8) grey levels."""
    store = open_store(DataSettings(source="digits"))
    image = np.asarray(store.batch(store.indices("train")[[row]])[0, 0])
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue(), image.astype(int)


def png(value: int, size: int = 8) -> str:
    """Base64 of a grey image of one level."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size), value % 256, np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def answer(body: Any, status: int = 200, **headers: str) -> Answer:
    """As JSON; a header's underscores are dashes."""
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, json.dumps(body)


def refusal(status: int, where: str, what: str, hint: str, **headers: str) -> Answer:
    """As every refusal of the server looks."""
    return answer({"error": {"where": where, "what": what, "hint": hint, "message": ""}}, status, **headers)


def stream(*events: tuple[str, Any]) -> Answer:
    """As text/event-stream."""
    body = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)
    return 200, {"content-type": "text/event-stream"}, body


def model(name: str = "toy", **changes: Any) -> dict[str, Any]:
    """A model as /v1/models tells of it."""
    return {
        "name": name,
        "kind": "denoiser",
        "shape": [1, 8, 8],
        "classes": ["0", "1"],
        "answers": ["0", "1"],
        "guides": [],
        "abilities": ["generate", "classify"],
        "samplers": {"dpmpp2m": 20, "heun": 18},
        "defaults": {"sampler": "dpmpp2m", "steps": 20, "guidance": 1.0},
        "limits": {"images": 16, "steps": 200, "pixels": 10**6, "bytes": 10**6},
        "sigma_range": [0.002, 80.0],
        "parameters": 1234567,
        "data": "digits",
    } | changes


class MadeUp:
    """Answers of a server that is not there. answers: {path below v1/, without its query: what it answers, as a
    function of the request}; asked: the requests it got, oldest first, as (path, JSON body or None)."""

    def __init__(self, page: Any, *models: dict[str, Any], key_needed: bool = False) -> None:
        listing = {"models": list(models), "default": models[0]["name"], "key_needed": key_needed}
        self.answers: dict[str, Callable[[Any], Answer]] = {"models": lambda _: answer(listing)}
        self.asked: list[tuple[str, Any]] = []
        self.requests: list[Any] = []
        for one in models:
            base = f"models/{one['name']}"
            self.answers[f"{base}/generate"] = generated
            self.answers[f"{base}/classify"] = lambda _: answer(classified("1"))
        page.route("**/*", self._serve)

    def _serve(self, route: Any) -> None:
        path = route.request.url.removeprefix(ORIGIN).partition("?")[0]
        if path.startswith("/v1/"):
            name = path.removeprefix("/v1/")
            text = route.request.post_data_buffer if "json" in route.request.headers.get("content-type", "") else None
            self.asked.append((name, json.loads(text) if text else None))
            self.requests.append(route.request)
            status, headers, body = self.answers[name](route.request)
            route.fulfill(status=status, headers={"content-type": "application/json"} | headers, body=body)
            return
        file = PAGE / ("index.html" if path == "/" else path.removeprefix("/static/"))
        if file.is_file():
            headers = {"content-type": TYPES[file.suffix], "content-security-policy": CSP}
            route.fulfill(status=200, headers=headers, body=file.read_bytes())
        else:
            route.fulfill(status=404, body="")

    def of(self, name: str) -> list[Any]:
        """Bodies of the requests for this."""
        return [body for path, body in self.asked if path.endswith(name)]


def generated(request: Any) -> Answer:
    """Images whose grey level is the seed times ten, and two previews where they are streamed."""
    asked = request.post_data_json
    seeds = range(asked["seed"], asked["seed"] + asked.get("n", 1))
    images = [{"seed": seed, "label": asked.get("label"), "png": png(10 * seed)} for seed in seeds]
    done = {"images": images, "seconds": 0.5, **{k: asked.get(k) for k in ("sampler", "steps", "guidance")}}
    if request.headers["accept"] != "text/event-stream":
        return answer(done)
    shown = [{"step": i, "steps": asked["steps"], "sigma": 9.0 / i, "images": [png(200 + i)]} for i in (1, 2)]
    return stream(*(("preview", one) for one in shown), ("done", done))


def classified(label: str, names: tuple[str, ...] = ("0", "1")) -> dict[str, Any]:
    """An answer that is quite sure."""
    probabilities = [0.9 if name == label else 0.1 / (len(names) - 1) for name in names]
    one = {"name": "image", "label": label, "probability": 0.9, "probabilities": probabilities}
    return {"classes": list(names), "multi_label": False, "predictions": [one]}
