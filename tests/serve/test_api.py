"""Every route: what it answers is what the library answers, and what it refuses it refuses in words."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

import twofold
from twofold.data import open_store, spread
from twofold.generate.sample import drawing
from twofold.measure import probabilities
from twofold.measure.neighbours import nearest
from twofold.run.features import reader_for
from twofold.settings.data import DataSettings

from .common import Live, events, live, loaded, picture, pixels, runs, text, until

SEARCHED = 200  # training images
LIMITS = {"images": 8, "pixels": 100_000, "bytes": 300_000, "steps": 200, "area": 64}
ALL = ["generate", "inpaint", "vary", "classify", "embed", "neighbours", "edit"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    found = runs(tmp_path_factory.mktemp("served"))
    (Path(found[1]) / "report.html").write_text("<p>of the joint model")
    return found


@pytest.fixture(scope="module")
def server(folders: list[str]) -> Iterator[Live]:
    with live([loaded(folders)], **LIMITS, neighbours=SEARCHED) as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[httpx.Client]:
    with server.client() as one:
        yield one


@pytest.fixture(scope="module")
def models(folders: list[str]) -> dict[str, Any]:
    return {Path(folder).name: twofold.load(folder) for folder in folders}


def path(model: str, ability: str) -> str:
    return f"/v1/models/{model}/{ability}"


def levels(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference."""
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def image(content: bytes) -> torch.Tensor:
    """(1, C, H, W) uint8."""
    return torch.from_numpy(np.array(pixels(content)))[None]


# -- signs of life and what there is -----------------------------------------------------------------------------------


def test_signs_of_life(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    for where in ("/health", "/ready", "/"):  # those who only look whether it is there
        assert (client.head(where).status_code, client.head(where).content) == (200, b"")
    page = client.get("/")
    assert page.status_code == 200 and "frame-ancestors 'self'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"


def test_models_and_what_they_can_do(client: httpx.Client, models: dict[str, Any]) -> None:
    found = client.get("/v1/models").json()
    assert (found["default"], found["key_needed"]) == ("digits", False)
    by_name = {model["name"]: model for model in found["models"]}
    assert list(by_name) == ["digits", "joint", "judge"]
    assert {name: model["kind"] for name, model in by_name.items()} == {
        "digits": "denoiser",
        "joint": "joint",
        "judge": "classifier",
    }
    assert by_name["joint"]["abilities"] == [*ALL, "report"]
    assert by_name["judge"]["abilities"] == ["classify"]
    assert by_name["digits"]["classes"] == by_name["judge"]["answers"] == [str(k) for k in range(10)]
    assert by_name["digits"]["limits"] == LIMITS
    assert by_name["digits"]["samplers"][by_name["digits"]["defaults"]["sampler"]] == 20
    assert by_name["digits"]["parameters"] == sum(p.numel() for p in models["digits"].parameters())
    assert client.get("/v1/models/joint").json() == by_name["joint"]


def test_a_report_is_shown_without_rights(client: httpx.Client) -> None:
    found = client.get(path("joint", "report"))
    assert found.text == "<p>of the joint model"
    assert found.headers["content-security-policy"].startswith("default-src 'none'")
    assert client.get(path("digits", "report")).status_code == 404


# -- images that are made ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        {"seed": 5, "n": 2, "label": "7"},
        {"seeds": [9, 2, 9], "label": ["1", 2, "3"], "sampler": "heun", "steps": 3},
        {"seed": 1, "label": 4, "guidance": 2.5, "steps": 4},
        {"seed": 2**63 - 1, "label": "0", "steps": 2},
        {"seed": 3, "label": "0", "guidance": 0, "steps": 2},
        {"seed": 3, "label": "6", "size": [16, 12], "steps": 2},
    ],
)
def test_generated_images_are_those_of_the_library(client: httpx.Client, models: Any, asked: dict[str, Any]) -> None:
    answer = client.post(path("digits", "generate"), json=asked)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    seeds = asked.get("seeds") or list(range(asked["seed"], asked["seed"] + asked.get("n", 1)))
    how = {k: v for k, v in asked.items() if k in ("sampler", "steps", "guidance", "size")}
    label = asked["label"] if not isinstance(asked["label"], list) else [int(one) for one in asked["label"]]
    if "size" in how:
        how["size"] = tuple(how["size"])
    ours = twofold.sample(models["digits"], seeds, label, **how).numpy()
    assert [one["seed"] for one in found["images"]] == seeds
    assert levels(np.stack([pixels(one["png"]) for one in found["images"]]), ours) <= 1
    wanted = asked["label"] if isinstance(asked["label"], list) else [asked["label"]] * len(seeds)
    assert [one["label"] for one in found["images"]] == [str(one) for one in wanted]
    assert found["steps"] == asked.get("steps", 20) and found["guidance"] == asked.get("guidance", 1)


@pytest.mark.parametrize("guide", ["own", "representations"])
def test_a_joint_model_guides_itself(client: httpx.Client, models: Any, guide: str) -> None:
    asked = {"seed": 4, "n": 2, "label": "3", "guide": guide, "guide_scale": 3, "steps": 3}
    found = client.post(path("joint", "generate"), json=asked).json()
    ours = twofold.sample(models["joint"], [4, 5], "3", guide=guide, guide_scale=3.0, steps=3).numpy()
    assert levels(np.stack([pixels(one["png"]) for one in found["images"]]), ours) <= 1


def test_one_png_of_all_images(client: httpx.Client) -> None:
    asked = {"seeds": [1, 2, 3], "label": "1", "steps": 2}
    whole = client.post(path("digits", "generate"), json=asked, headers={"Accept": "image/png, */*;q=0.1"})
    assert whole.headers["content-type"] == "image/png"
    each = client.post(path("digits", "generate"), json=asked).json()["images"]
    assert levels(pixels(whole.content), np.concatenate([pixels(one["png"]) for one in each], axis=2)) == 0


def test_who_asks_together_gets_what_one_gets_alone(server: Live, models: Any) -> None:
    """Twelve callers at once, of two labels and two samplers; nobody gets the image of another."""
    before = server.metric("twofold_batch_images_count")
    found: dict[int, Any] = {}

    def ask(seed: int) -> None:
        how = {"sampler": ["heun", "ddim"][seed % 2], "steps": 3}
        with server.client() as client:
            answer = client.post(path("digits", "generate"), json={"seed": seed, "label": seed % 5, **how})
        found[seed] = answer.json()["images"][0]

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, one in found.items():
        how = {"sampler": ["heun", "ddim"][seed % 2], "steps": 3}
        ours = twofold.sample(models["digits"], [seed], seed % 5, **how).numpy()[0]
        assert (one["seed"], one["label"]) == (seed, str(seed % 5))
        assert levels(pixels(one["png"]), ours) <= 1
    assert server.metric("twofold_batch_images_count") - before < 12


def test_images_emerge_in_a_stream(client: httpx.Client) -> None:
    asked = {"seed": 8, "n": 2, "label": "2", "steps": 5}
    headers = {"Accept": "text/event-stream"}
    with client.stream("POST", path("digits", "generate"), json=asked, headers=headers) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        told = [(name, json.loads(data)) for name, data in events(stream.iter_lines())]
    assert [name for name, _ in told] == ["preview"] * 5 + ["done"]
    assert [data["step"] for _, data in told[:-1]] == [0, 1, 2, 3, 4]
    sigmas = [data["sigma"] for _, data in told[:-1]]
    assert sigmas == sorted(sigmas, reverse=True)
    assert all(len(data["images"]) == 2 and pixels(data["images"][0]).shape == (1, 8, 8) for _, data in told[:-1])
    plain = client.post(path("digits", "generate"), json=asked).json()
    assert {k: v for k, v in told[-1][1].items() if k != "seconds"} == {
        k: v for k, v in plain.items() if k != "seconds"
    }


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_work_stops_when_the_caller_leaves(server: Live, client: httpx.Client, accept: str) -> None:
    asked = {"seed": 0, "n": 8, "label": "2", "steps": 200, "sampler": "heun", "size": [64, 64]}
    left = server.metric("twofold_left_total", ability="generate")
    made = server.metric("twofold_images_total", ability="generate", model="digits")
    content = json.dumps(asked).encode()
    head = f"POST {path('digits', 'generate')} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n"
    import socket

    with socket.create_connection(server.host) as caller:
        caller.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode())
        caller.sendall(content)
        until(lambda: server.service.engine.working)
    until(lambda: server.metric("twofold_left_total", ability="generate") == left + 1)
    until(lambda: not server.service.engine.working)
    assert server.metric("twofold_images_total", ability="generate", model="digits") == made
    assert client.get("/health").status_code == 200


# -- pictures that are changed -----------------------------------------------------------------------------------------


def test_a_part_is_painted_anew_and_the_rest_stays(client: httpx.Client, models: Any) -> None:
    from twofold.generate.inpaint import inpaint

    original = picture(3)
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 1:6] = 255
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    asked = {"seed": 6, "n": 2, "label": "1", "steps": 4}
    form = client.post(
        path("digits", "inpaint"),
        data={k: str(v) for k, v in asked.items()},
        files={"image": ("a.png", original), "mask": ("m.png", buffer.getvalue())},
    )
    assert form.status_code == 200, form.text
    body = {**asked, "image": text(original), "mask": text(buffer.getvalue())}
    by_json = client.post(path("digits", "inpaint"), json=body).json()
    assert [one["png"] for one in form.json()["images"]] == [one["png"] for one in by_json["images"]]
    found = np.stack([pixels(one["png"]) for one in by_json["images"]])
    kept = np.broadcast_to(mask == 0, found.shape)
    assert np.array_equal(found[kept], np.broadcast_to(pixels(original), found.shape)[kept])
    both = image(original).expand(2, -1, -1, -1)
    ours = inpaint(models["digits"], both, torch.from_numpy(mask > 0), seeds=[6, 7], label="1", steps=4)
    assert levels(found, ours.numpy()) <= 1


def test_variations_of_a_picture(client: httpx.Client, models: Any) -> None:
    from twofold.generate.vary import vary

    original = picture(4)
    asked = {"image": text(original), "seed": 6, "n": 2, "label": "1", "steps": 6, "strength": 0.4}
    answer = client.post(path("digits", "vary"), json=asked)
    assert answer.status_code == 200, answer.text
    both = image(original).expand(2, -1, -1, -1)
    ours = vary(models["digits"], both, seeds=[6, 7], strength=0.4, label="1", steps=6)
    assert levels(np.stack([pixels(one["png"]) for one in answer.json()["images"]]), ours.numpy()) <= 1
    same = client.post(path("digits", "vary"), json={**asked, "strength": 0}).json()["images"][0]
    assert levels(pixels(same["png"]), pixels(original)) <= 1


def test_a_counterfactual_is_that_of_the_library(client: httpx.Client, models: Any) -> None:
    original = picture(5)
    asked = {"to": "3", "frames": 5, "strength": 0.3}
    answer = client.post(path("joint", "edit"), json={**asked, "image": text(original)})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    by_form = client.post(
        path("joint", "edit"), data={k: str(v) for k, v in asked.items()}, files={"image": ("a.png", original)}
    )
    assert by_form.json() == found
    ours = twofold.edit(models["joint"], image(original), 3, strength=0.3)
    frames = [pixels(one["png"]) for one in found["frames"]]
    assert levels(frames[0], pixels(original)) == 0
    assert levels(frames[-1], ours.images[0].numpy()) <= 1
    assert [one["share"] for one in found["frames"]] == [0, 0.25, 0.5, 0.75, 1]
    assert found["reached"] == bool(ours.reached[0])
    assert found["before"]["p_target"] == pytest.approx(float(ours.p_before[0]), abs=1e-5)
    assert found["after"]["p_target"] == pytest.approx(float(ours.p_after[0]), abs=1e-3)


# -- pictures that something is said about -----------------------------------------------------------------------------


def ways(client: httpx.Client, where: str, content: bytes) -> list[Any]:
    """The answer by every way of sending one picture."""
    answers = [
        client.post(where, files={"images": ("a.png", content)}),
        client.post(where, files={"image": ("a.png", content)}),
        client.post(where, content=content, headers={"Content-Type": "image/png"}),
        client.post(where, content=content, headers={"Content-Type": "application/octet-stream"}),
        client.post(where, json={"images": [text(content)]}),
        client.post(where, json={"images": ["data:image/png;base64," + text(content)]}),
    ]
    assert [answer.status_code for answer in answers] == [200] * len(answers), answers[0].text
    return [answer.json() for answer in answers]


@pytest.mark.parametrize("model", ["judge", "joint"])
def test_classification_is_that_of_the_library(client: httpx.Client, models: Any, model: str) -> None:
    content = [picture(seed) for seed in range(3)]
    found = client.post(path(model, "classify"), files=[("images", (f"{i}.png", c)) for i, c in enumerate(content)])
    assert found.status_code == 200, found.text
    from twofold.recognize.classifier import answering

    ours = probabilities(answering(models[model]), torch.cat([image(c) for c in content])).numpy()
    for row, one in zip(ours, found.json()["predictions"], strict=True):
        assert one["probabilities"] == pytest.approx(row.tolist(), abs=2e-5)
        assert one["label"] == str(row.argmax()) and one["probability"] == pytest.approx(row.max(), abs=2e-5)
    assert [one["name"] for one in found.json()["predictions"]] == ["0.png", "1.png", "2.png"]
    alone = [one["predictions"][0]["probabilities"] for one in ways(client, path(model, "classify"), content[0])]
    assert all(one == pytest.approx(ours[0].tolist(), abs=2e-5) for one in alone)


def test_a_model_without_a_head_answers_by_what_it_can_denoise(client: httpx.Client) -> None:
    found = client.post(path("digits", "classify"), json={"images": [text(picture())]}).json()
    assert found["by"] == "zero-shot"
    assert sum(found["predictions"][0]["probabilities"]) == pytest.approx(1, abs=1e-4)


def test_features_are_those_of_the_library(client: httpx.Client, models: Any) -> None:
    content = picture(7)
    reader = reader_for(models["joint"])
    ours = reader.read(image(content))[0].numpy()
    for found in ways(client, path("joint", "embed"), content):
        assert found["vectors"][0] == pytest.approx(ours.tolist(), abs=1e-4)
        assert found["width"] == len(ours)
        assert found["layers"] == [f"{layer}@{sigma:g}" for layer, sigma in reader.places]


def test_pictures_of_other_sizes_and_kinds_are_fitted(client: httpx.Client) -> None:
    sent = [picture(1, (30, 20), "RGB", "JPEG"), picture(1, (9, 31), "RGBA"), picture(1, (16, 16), "RGB", "WEBP")]
    found = client.post(path("judge", "classify"), json={"images": [text(one) for one in sent]})
    assert found.status_code == 200 and len(found.json()["predictions"]) == 3


def test_neighbours_are_those_of_a_search_by_brute_force(server: Live, client: httpx.Client, models: Any) -> None:
    until(lambda: server.service.models["joint"].neighbours is not None)
    content = picture(2)
    found = client.post(path("joint", "neighbours") + "?k=5", files={"images": ("a.png", content)})
    assert found.status_code == 200, found.text
    store = open_store(DataSettings(source="digits"))
    rows = store.indices("train")
    rows = rows[spread(len(rows), SEARCHED)]
    training = store.batch(rows)
    assert found.json()["searched"] == len(rows)
    flat = (training.flatten(1).double() - image(content).flatten(1).double()).square().mean(1).sqrt()
    distances, order = flat.sort()
    pixel = found.json()["pixels"]
    assert [one["distance"] for one in pixel] == pytest.approx(distances[:5].tolist(), rel=1e-6)
    assert pixel[0]["id"] == store.id(int(rows[order[0]]))
    assert pixel[0]["label"] == store.classes[int(store.labels[rows[order[0]]])]
    assert levels(pixels(pixel[0]["png"]), training[order[0]].numpy()) == 0
    read = reader_for(models["joint"]).read
    distance, index = nearest(read(image(content)), read(training), 5)
    assert [one["id"] for one in found.json()["features"]] == [store.id(int(rows[i])) for i in index[0]]
    assert [one["distance"] for one in found.json()["features"]] == pytest.approx(distance[0].tolist(), rel=1e-3)


def test_neighbours_before_they_are_known(server: Live, client: httpx.Client) -> None:
    model = server.service.models["digits"]
    until(lambda: model.neighbours is not None)
    known, model.neighbours = model.neighbours, None
    try:
        found = client.post(path("digits", "neighbours"), files={"images": ("a.png", picture())})
    finally:
        model.neighbours = known
    assert found.status_code == 503 and int(found.headers["retry-after"]) > 0
    assert "still being read" in found.json()["error"]["what"]


# -- what is refused ---------------------------------------------------------------------------------------------------

SEED = {"seed": 0, "label": "1", "steps": 1}
REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    ("generate", {"json": {"label": "x"}}, 422, "no such class"),
    ("generate", {"json": {"label": 10}}, 422, "label"),
    ("generate", {"json": {"label": 10**30}}, 422, "no such class"),
    ("generate", {"json": {"label": ["1", "2"], "n": 3}}, 422, "label"),
    ("generate", {"json": SEED | {"sampler": "magic"}}, 422, "sampler"),
    ("generate", {"json": SEED | {"steps": 0}}, 422, "steps=0: is less than 1"),
    ("generate", {"json": SEED | {"steps": 201}}, 422, "steps=201: more than 200"),
    ("generate", {"json": SEED | {"steps": True}}, 422, "steps=true: is no whole number"),
    ("generate", {"json": SEED | {"n": 9}}, 422, "9 images: one request may hold 8"),
    ("generate", {"json": SEED | {"seed": -1}}, 422, "seed=-1: is less than 0"),
    (
        "generate",
        {"json": SEED | {"seed": 2**63 - 1, "n": 2}},
        422,
        "the last of 2 images would have a larger one than there are",
    ),
    ("generate", {"json": SEED | {"seed": 2**63}}, 422, "seed=9223372036854775808: is more than 9223372036854775807"),
    ("generate", {"json": SEED | {"seeds": [1]}}, 422, "stands beside seed or n"),
    ("generate", {"json": SEED | {"guidance": -1}}, 422, "guidance"),
    ("generate", {"json": SEED | {"guidance": "2"}}, 422, "guidance"),
    ("generate", {"json": SEED | {"size": [8]}}, 422, "size"),
    (
        "generate",
        {"json": SEED | {"size": [4096, 4096]}},
        422,
        "size=4096x4096: has more than 4,096 pixels, 64 times those of the model",
    ),
    ("generate", {"json": SEED | {"guide": "own"}}, 422, "guide=own"),
    ("generate", {"json": SEED | {"stepz": 1}}, 422, "stepz: no such setting; valid: seed, n, seeds"),
    ("generate", {"json": SEED | {"path": 1}}, 422, "path: no such setting; valid: seed, n, seeds"),
    ("generate", {"json": [1]}, 422, "body: is no JSON object"),
    ("generate", {"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "body: is not JSON"),
    ("generate", {"content": b"{}"}, 415, "Content-Type: none: is not taken here; send application/json"),
    ("generate", {"content": b"[" * 100_000, "headers": {"Content-Type": "application/json"}}, 400, "is not JSON"),
    ("generate", {"json": {"label": "1", "seeds": [1] * 100_000}}, 422, "100000 images"),
    ("generate", {"json": {"label": "\ud83dx" * 1000}}, 422, "no such class"),
    ("generate", {"json": SEED | {"label": 1.5}}, 422, "label=1.5: is no text, no whole number, no list"),
    ("generate", {"json": SEED | {"label": [1, None]}}, 422, "label"),
    ("generate", {"json": SEED | {"guidance": "x"}}, 422, "guidance=x: is no number"),
    ("generate", {"json": SEED | {"seeds": []}}, 422, "seeds: has fewer than 1 items"),
    ("generate", {"json": SEED | {"guide": "x"}}, 422, "guide=x: is not 'own' or 'representations'"),
    ("generate", {"json": SEED | {"guide_scale": 3}}, 422, "guide_scale=3: there is no guide; give guide= too"),
    ("vary", {"json": SEED | {"image": text(picture()), "strength": 2}}, 422, "strength=2: is more than 1"),
    ("vary", {"json": SEED | {"image": "!"}}, 422, "image: is not base64"),
    ("vary", {"json": SEED}, 422, "image: is missing"),
    (
        "vary",
        {"files": {"image": picture(), "other": picture()}, "data": {"label": "1"}},
        422,
        "other: is not expected",
    ),
    ("vary", {"files": {"image": picture()}, "data": {"label": "1", "steps": "x"}}, 422, "steps"),
    ("vary", {"content": picture(), "headers": {"Content-Type": "image/png"}}, 415, "send application/json or"),
    (
        "inpaint",
        {"json": SEED | {"image": text(picture()), "mask": text(picture(0, (9, 8)))}},
        422,
        "9 x 8 pixels, the",
    ),
    ("inpaint", {"files": {"image": picture()}, "data": {"label": "1"}}, 422, "mask: is missing"),
    ("classify", {"files": [("images", picture())] * 9}, 422, "9 images: one request may hold 8"),
    ("classify", {"files": {"images": picture()}, "data": {"k": "1"}}, 422, "k: is not expected in this form"),
    ("classify", {"json": {"images": []}}, 422, "images"),
    ("classify", {"json": {"images": [""]}}, 422, "images.0"),
    ("classify", {"json": {"images": [text(b"x")]}}, 415, "images.0: is no PNG, JPEG or WebP, or damaged; save it as"),
    ("classify", {"content": b"", "headers": {"Content-Type": "image/png"}}, 415, "image: is empty"),
    ("classify", {"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "Content-Type: text/plain"),
    ("classify", {"content": picture(0, (400, 251)), "headers": {"Content-Type": "image/png"}}, 413, "pixels"),
    ("neighbours?k=0", {"files": {"images": picture()}}, 422, "k=0: not a number of neighbours; 1 to 64"),
    ("neighbours?k=x", {"files": {"images": picture()}}, 422, "k=x: is no whole number"),
    ("neighbours", {"files": [("images", picture())] * 2}, 422, "neighbours are looked for of one picture"),
    ("neighbours?K=3", {"files": {"images": picture()}}, 422, "?K: is not expected in the address; settings belong in"),
    ("generate?seed=3", {"json": SEED}, 422, "?seed: is not expected in the address; settings belong in the body"),
    ("vary", {"data": {"image": "x"}, "files": {"mask": ""}}, 422, "image: is no file; send one: -F image=@FILE"),
    ("classify", {"data": {"images": "x"}, "files": {"images": ""}}, 422, "images: is no file; send files called"),
    ("edit", {"json": {"image": text(picture()), "to": "3"}}, 404, "digits/edit: this model cannot do it; it can"),
]


@pytest.mark.parametrize(("ability", "sent", "status", "says"), REFUSED)
def test_what_is_refused_is_refused_in_words(
    server: Live, client: httpx.Client, ability: str, sent: dict[str, Any], status: int, says: str
) -> None:
    if ability.startswith("neighbours"):
        until(lambda: server.service.models["digits"].neighbours is not None)
    if "\\ud83d" in json.dumps(sent.get("json", "")):  # half of a character cannot be sent as it is
        sent = {"content": json.dumps(sent["json"]).encode(), "headers": {"Content-Type": "application/json"}}
        status, says = 400, "is not JSON"
    found = client.post(path("digits", ability), **sent)
    error = found.json()["error"]
    assert set(error) == {"where", "what", "hint", "message"}
    assert found.status_code == status, error
    assert says in error["message"], error


@pytest.mark.parametrize(
    ("ability", "sent", "says"),
    [
        (
            "generate",
            {"label": 3},
            "label=3: this model is unconditional; leave the label out or give guide=own or give",
        ),
        ("edit", {"image": text(picture()), "to": "3", "guide": "labels"}, "no such guide; it has own and representat"),
        ("edit", {"image": text(picture()), "to": "3", "strength": "x"}, "strength=x: is no number, not 'auto'"),
    ],
)
def test_what_a_joint_model_refuses(client: httpx.Client, ability: str, sent: Any, says: str) -> None:
    """In words of the API: the command line's own ways out are none here."""
    found = client.post(path("joint", ability), json=sent)
    assert found.status_code == 422
    assert says in found.json()["error"]["message"]


def test_a_class_that_cannot_be_edited_to(client: httpx.Client) -> None:
    found = client.post(path("joint", "edit"), json={"image": text(picture()), "to": "ten"})
    assert found.status_code == 422
    assert found.json()["error"]["message"] == "to=ten: no such class; the classes are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"


@pytest.mark.parametrize(
    ("method", "where", "status"),
    [
        ("GET", "/v1/models/nobody", 404),
        ("POST", "/v1/models/nobody/generate", 404),
        ("POST", "/v1/models/judge/generate", 404),
        ("POST", "/v1/models/..%2F..%2Fetc/generate", 404),
        ("GET", "/v1/models/%2e%2e/report", 404),
        ("GET", "/static/../app.py", 404),
        ("GET", "/static/%2e%2e/app.py", 404),
        ("GET", "/static/..%2fapp.py", 404),
        ("GET", "/static//etc/passwd", 404),
        ("GET", "/static/%00", 404),
        ("GET", "/nowhere", 404),
        ("GET", "/v1/models/digits/generate", 405),
        ("DELETE", "/v1/models/digits", 405),
    ],
)
def test_there_is_nothing_else(client: httpx.Client, method: str, where: str, status: int) -> None:
    found = client.request(method, where)
    assert found.status_code == status
    assert found.json()["error"]["what"]
    assert (status == 405) == ("allow" in found.headers)


def test_a_mistake_of_the_servers_own_is_told_as_one(
    server: Live, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[BaseException] = []
    monkeypatch.setattr(server.service, "on_error", seen.append)

    def broken(*_: Any, **__: Any) -> Any:
        raise ValueError("secret path")

    monkeypatch.setattr("twofold.serve.work.drawing", broken)
    errors = server.metric("twofold_errors_total")
    for accept in ("application/json", "text/event-stream"):
        found = client.post(path("digits", "generate"), json=SEED, headers={"Accept": accept})
        assert "secret" not in found.text and "made a mistake of its own" in found.text
        assert found.status_code == (500 if accept == "application/json" else 200)
    assert seen and isinstance(seen[0], ValueError)
    assert server.metric("twofold_errors_total") > errors
    monkeypatch.undo()
    assert client.post(path("digits", "generate"), json=SEED).status_code == 200


class Fatal(BaseException):
    """What nobody catches."""


def test_a_device_that_has_died_is_told_to_whoever_asks(folders: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`/health` sends for somebody who starts the server again, as Kubernetes does; stopping it does not hang."""

    def dying(*_: Any, **__: Any) -> Any:
        raise Fatal("secret path")

    with live([loaded(folders[:1])], neighbours=0) as server, server.client() as client:
        monkeypatch.setattr("twofold.serve.work.drawing", dying)
        seen: list[BaseException] = []
        monkeypatch.setattr(server.service, "on_error", seen.append)
        said = "device 0: has died of Fatal; start the server again; its log says more"
        for method, where in (("POST", path("digits", "generate")), ("GET", "/health"), ("GET", "/ready")):
            found = client.request(method, where, json=SEED if method == "POST" else None)
            assert (found.status_code, found.json()["error"]["message"]) == (503, said)
            assert found.headers["retry-after"] == "30"
        assert client.post(path("digits", "generate"), json=SEED, headers={"Accept": "image/png"}).status_code == 503
        assert "twofold_devices_dead 1.0" in client.get("/metrics").text
        assert [str(error) for error in seen] == ["secret path"]


def test_a_device_that_computes_no_more_has_died(folders: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an error of CUDA, when whatever is tried on it fails."""

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with live([loaded(folders[:1])], neighbours=0) as server, server.client() as client:
        monkeypatch.setattr("twofold.serve.work.drawing", broken)
        assert client.post(path("digits", "generate"), json=SEED).status_code == 500
        assert client.get("/health").status_code == 200
        monkeypatch.setattr(torch, "ones", broken)
        found = [client.post(path("digits", "generate"), json=SEED), client.get("/health")]
        monkeypatch.undo()
        assert [answer.status_code for answer in found] == [503, 503]
        assert "device 0: has died of RuntimeError" in found[0].text


def test_models_whose_training_images_are_not_searched_do_not_say_that_they_are(folders: list[str]) -> None:
    with live([loaded(folders[:1])], neighbours=0) as server, server.client() as client:
        assert "neighbours" not in client.get("/v1/models/digits").json()["abilities"]
        assert client.post(path("digits", "neighbours"), files={"images": picture()}).status_code == 404


def test_larger_images_are_computed_a_few_at_a_time(
    server: Live, client: httpx.Client, monkeypatch: pytest.MonkeyPatch, models: Any
) -> None:
    """Not as many as of the model's own size, whose memory the batch is for."""
    rows: list[int] = []

    def counting(model: Any, plan: Any, seeds: Any, *rest: Any) -> Any:
        rows.append(len(seeds))
        return drawing(model, plan, seeds, *rest)

    monkeypatch.setattr("twofold.serve.work.drawing", counting)
    asked = {"n": 8, "label": "1", "steps": 1, "size": [32, 24]}  # twelve times as large, and a batch has 32
    found = client.post(path("digits", "generate"), json=asked).json()["images"]
    assert rows == [2, 2, 2, 2]
    ours = twofold.sample(models["digits"], range(8), 1, steps=1, size=(32, 24)).numpy()
    assert all(levels(pixels(one["png"]), mine) <= 1 for one, mine in zip(found, ours, strict=True))


def test_numbers_for_prometheus(server: Live, client: httpx.Client) -> None:
    labels = {"ability": "generate", "model": "digits"}
    before = {status: server.metric("twofold_requests_total", status=status, **labels) for status in ("200", "422")}
    client.post(path("digits", "generate"), json=SEED | {"n": 3})
    client.post(path("digits", "generate"), json={"label": "x"})
    client.post("/v1/models/made-up/generate", json=SEED)
    found = client.get("/metrics")
    assert found.headers["content-type"].startswith("text/plain; version=0.0.4")
    for status, count in before.items():
        assert server.metric("twofold_requests_total", status=status, **labels) == count + 1
    assert "made-up" not in found.text  # what callers make up is not kept
    for name in ("twofold_request_seconds_bucket", "twofold_batch_images_sum", "twofold_queue_waiting 0.0"):
        assert name in found.text


# -- several devices ---------------------------------------------------------------------------------------------------


def test_several_devices_answer_alike(folders: list[str], models: Any) -> None:
    with live([loaded(folders[:1]), loaded(folders[:1])], batch=1, neighbours=50) as server, server.client() as client:
        assert [thread.name for thread in threading.enumerate()].count("device-1") == 1
        for seed in range(3):
            found = client.post(path("digits", "generate"), json={"seed": seed, "label": 1, "steps": 3}).json()
            ours = twofold.sample(models["digits"], [seed], 1, steps=3).numpy()[0]
            assert levels(pixels(found["images"][0]["png"]), ours) <= 1
        until(lambda: all(place["digits"].neighbours is not None for place in server.service.places))
        found = client.post(path("digits", "neighbours"), files={"images": ("a.png", picture())})
        assert found.json()["searched"] == 50
