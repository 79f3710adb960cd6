"""The page in a real browser against the real server: what each control brings about."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from twofold.data import open_store
from twofold.settings.data import DataSettings

from .pages import (
    REPORT,
    a_digit,
    choose,
    chromium,
    exact_model,
    finished,
    opening,
    pixels,
    serving,
    slide,
    two_models,
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two models: one that can do everything, and one that only generates, without classes."""
    with two_models(tmp_path_factory.mktemp("page")) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def opened(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    with opening(browser, address) as found:
        yield found


@pytest.fixture
def page(opened: Callable[..., Any]) -> Any:
    """The page, with its first image made."""
    return opened()


def after(page: Any, act: Callable[[], Any]) -> str:
    """The image that comes of an action in Generate."""
    with page.expect_response("**/generate"):
        act()
    return finished(page)


def in_change(page: Any) -> np.ndarray:
    """Gives the tab Change an image; its grey levels."""
    content, image = a_digit()
    choose(page, "change", content)
    page.wait_for_selector("#mask-box:not([hidden])")
    return image


def results(page: Any, name: str, button: str) -> list[np.ndarray]:
    """What comes of one of the forms in Change."""
    with page.expect_response(f"**/{name}"):
        page.get_by_role("button", name=button).click()
    page.wait_for_selector(f"#{name}:not([aria-busy]) .results img")
    return [pixels(img.get_attribute("src")) for img in page.locator(f"#{name}-results img").all()]


# -- Generate ---------------------------------------------------------------------------------------------------------


def test_the_first_image_comes_before_everything_else(browser: Any, address: str) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.partition("/v1/")[2]))
    page.goto(address)
    finished(page)
    assert [name for name in asked if name][:2] == ["models", "models/exact/generate"]
    assert page.get_attribute("#picture", "class") == "crisp", "8 x 8 pixels must not be blurred"
    page.close()


def test_another_seed_gives_another_image_and_the_same_one_the_same(page: Any) -> None:
    first = finished(page)
    second = after(page, lambda: page.fill("#seed-exact", "5"))
    assert np.abs(pixels(first) - pixels(second)).max() > 10
    assert page.input_value("#seed") == "5", "range and number say the same"
    assert after(page, lambda: slide(page, "seed", 0)) == first


def test_the_button_another_seed(page: Any) -> None:
    first = finished(page)
    assert after(page, lambda: page.click("#another")) != first
    assert page.input_value("#seed-exact") != "0"


def test_the_class_changes_what_the_classifier_says(page: Any) -> None:
    for name in ("3", "8", "1"):
        after(page, lambda name=name: page.select_option("#label", name))
        assert page.inner_text("#seen").startswith(f"The model sees in it: {name} (")
        assert f"class {name}, seed 0" in page.get_attribute("#picture", "alt")


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda page: slide(page, "steps", 3), {"steps": 3, "sampler": "dpmpp2m"}),
        (lambda page: page.fill("#steps-exact", "150"), {"steps": 150}),  # beyond the slider's end
        (lambda page: slide(page, "guidance", 0), {"guidance": 0}),
        (lambda page: page.select_option("#sampler", "heun"), {"sampler": "heun", "steps": 18}),
    ],
    ids=["steps", "steps typed", "guidance", "sampler"],
)
def test_what_is_asked_for_is_done(page: Any, act: Callable[[Any], Any], expected: dict[str, Any]) -> None:
    first = finished(page)
    with page.expect_request("**/generate") as request:
        second = after(page, lambda: act(page))
    assert expected.items() <= request.value.post_data_json.items()
    assert second != first


def test_the_image_can_be_watched_as_it_emerges(page: Any) -> None:
    last = finished(page)
    slide(page, "emerge", 0)
    assert page.inner_text("#emerge-at").startswith("step 0 of 20")
    assert page.get_attribute("#picture", "src") != last
    shown = {page.get_attribute("#picture", "src") for at in range(10) if slide(page, "emerge", at) is None}
    assert len(shown) > 5, "steps differ"
    slide(page, "emerge", int(page.get_attribute("#emerge", "max")))
    assert page.get_attribute("#picture", "src") == last
    assert page.inner_text("#emerge-at") == "finished"


def test_the_image_can_be_saved(page: Any) -> None:
    shown = finished(page)
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "exact-0-seed0.png"
    assert base64.b64encode(Path(download.value.path()).read_bytes()).decode() in shown


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_command_makes_the_same_image(page: Any, tmp_path: Path) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    shown = after(page, lambda: page.select_option("#label", "4"))
    page.click("#generate-command summary")
    page.get_by_role("button", name="Copy as curl").click()
    page.get_by_text("Copied.").wait_for()
    command = page.evaluate("navigator.clipboard.readText()")
    assert command == page.inner_text("#generate-command pre")
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    (made,) = tmp_path.glob("*.png")
    assert np.abs(np.asarray(Image.open(made)).astype(int) - pixels(shown)).max() <= 1


# -- Gallery ----------------------------------------------------------------------------------------------------------


def test_the_gallery_shows_every_class_and_opens_its_images(page: Any) -> None:
    page.click("#tab-gallery")
    page.locator("#gallery:not([aria-busy]) .row img").nth(39).wait_for()
    assert page.locator("#gallery .row h3").all_inner_texts() == [str(k) for k in range(10)]
    wanted = page.get_by_role("button", name="class 6, seed 2")
    there = pixels(wanted.locator("img").get_attribute("src"))
    wanted.click()
    shown = finished(page)
    assert (page.input_value("#label"), page.input_value("#seed-exact")) == ("6", "2")
    assert np.abs(pixels(shown) - there).max() <= 1
    assert page.get_attribute("#tab-generate", "aria-selected") == "true"


def test_how_many_images_and_from_which_seed(page: Any) -> None:
    page.click("#tab-gallery")
    page.locator("#gallery:not([aria-busy]) .row img").nth(39).wait_for()
    with page.expect_request("**/generate"):
        slide(page, "gallery-n", 2)
    page.locator("#gallery:not([aria-busy]) .told", has_text="20 images").wait_for()
    assert page.locator("#gallery .row img").count() == 20
    slide(page, "gallery-seed", 7)
    page.get_by_role("button", name="class 0, seed 8").wait_for()
    assert page.locator("#gallery .row:first-child button").count() == 2


# -- Recognize --------------------------------------------------------------------------------------------------------

DROP = """(zone, [content, kind]) => {
  const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(atob(content), c => c.charCodeAt(0))], 'mine.png', {type: 'image/png'}));
  const event = kind === 'paste' ? new ClipboardEvent('paste', {clipboardData: data, bubbles: true})
    : new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true});
  (kind === 'paste' ? document : zone).dispatchEvent(event);
}"""


@pytest.mark.parametrize("way", ["choose", "drop", "paste"])
def test_an_image_is_classified(opened: Callable[..., Any], way: str) -> None:
    page = opened("#recognize")
    content, _ = a_digit(row=5)
    page.wait_for_selector("#recognize-drop")
    if way == "choose":
        choose(page, "recognize", content)
    else:
        page.locator("#recognize-drop").evaluate(DROP, [base64.b64encode(content).decode(), way])
    page.wait_for_selector("#answers-box:not([hidden])")
    file = {"name": "mine.png", "mimeType": "image/png", "buffer": content}
    said = page.request.post(page.url.replace("#recognize", "v1/models/exact/classify"), multipart={"images": file})
    answer = said.json()["predictions"][0]
    assert f"It is seen as {answer['label']} (" in page.inner_text("#recognize .told")
    shown = page.locator("#answers li, #answers-rest li")
    assert shown.count() == 10
    assert shown.first.locator("span").first.inner_text() == answer["label"]
    assert float(shown.first.locator("meter").get_attribute("value")) == answer["probability"]


def test_neighbours_equal_a_brute_force_search(opened: Callable[..., Any]) -> None:
    page = opened("#recognize")
    content, image = a_digit(row=11)
    choose(page, "recognize", content)
    page.wait_for_selector("#neighbours-box:not([hidden])")
    store = open_store(DataSettings(source="digits"))
    rows = store.indices("train")
    images = store.batch(rows)
    reader = exact_model("again").reader
    mine = torch.from_numpy(image.astype(np.uint8))[None, None]
    distances = {
        "pixels": np.sqrt(np.square(images.numpy().astype(float) - image).mean((1, 2, 3))),
        "features": np.linalg.norm((reader.read(images) - reader.read(mine)).double().numpy(), axis=1),
    }
    for space, distance in distances.items():
        nearest = np.argsort(distance, kind="stable")[:8]
        shown = page.locator(f"#nearest-{space} li")
        assert [item.get_attribute("data-id") for item in shown.all()] == [store.id(int(rows[i])) for i in nearest]
        told = [item.inner_text().split() for item in shown.all()]
        assert [name for name, _ in told] == [store.classes[store.labels[rows[i]]] for i in nearest]
        np.testing.assert_allclose([float(d) for _, d in told], distance[nearest], rtol=0.01, atol=2e-3)
        first = pixels(shown.first.locator("img").get_attribute("src"))
        assert (first == images[nearest[0], 0].numpy()).all()


def test_how_many_neighbours(opened: Callable[..., Any]) -> None:
    page = opened("#recognize")
    choose(page, "recognize", a_digit()[0])
    page.locator("#nearest-features li").nth(7).wait_for()
    slide(page, "neighbours-n", 3)
    page.locator("#nearest-pixels li").nth(3).wait_for(state="detached")
    assert page.locator("#nearest-pixels li").count() == page.locator("#nearest-features li").count() == 3


def test_features_can_be_saved(opened: Callable[..., Any]) -> None:
    page = opened("#recognize")
    choose(page, "recognize", a_digit()[0])
    page.wait_for_selector("#features-save:not([hidden])")
    with page.expect_download() as download:
        page.click("#features-save")
    saved = json.loads(Path(download.value.path()).read_text())
    assert saved["layers"] == ["dec.0@0.05"]
    assert np.asarray(saved["vectors"]).shape == (1, saved["width"])


def test_a_damaged_image_is_told_of(opened: Callable[..., Any]) -> None:
    page = opened("#recognize")
    choose(page, "recognize", b"no image")
    page.locator("#recognize .problem", has_text="mine.png: is no PNG, JPEG or WebP, or damaged; save it").wait_for()


def test_a_made_image_goes_to_the_other_tabs(page: Any) -> None:
    after(page, lambda: page.select_option("#label", "9"))
    page.click("#to-recognize")
    page.locator("#recognize .told", has_text="It is seen as 9").wait_for()
    page.click("#tab-generate")
    page.click("#to-change")
    assert page.locator("#change-drop img").get_attribute("alt") == "Your image, exact-9-seed0.png"


# -- Change -----------------------------------------------------------------------------------------------------------


def test_a_counterfactual_and_the_way_to_it(opened: Callable[..., Any]) -> None:
    page = opened("#change")
    original = in_change(page)
    page.select_option("#edit-to", "7")
    page.get_by_role("button", name="Find the change").click()
    page.wait_for_selector("#edit-result:not([hidden])")
    assert re.search(r"It was seen as \d, now as 7: 7 had .* and has 100 %", page.inner_text("#edit .told"))
    assert page.inner_text("#edit-at").startswith("100 % of the change: seen as 7")
    last = pixels(page.get_attribute("#edit-picture", "src"))
    slide(page, "edit-share", 0)
    assert page.inner_text("#edit-at").startswith("0 % of the change")
    assert (pixels(page.get_attribute("#edit-picture", "src")) == original).all()
    assert np.abs(last - original).max() > 30


def test_only_what_the_rectangle_covers_is_painted_anew(opened: Callable[..., Any]) -> None:
    page = opened("#change")
    original = in_change(page)
    for name, value in {"left": 0, "top": 4, "width": 8, "height": 4}.items():
        page.fill(f"#mask-{name}", str(value))
    page.click("#mask-add")
    assert page.inner_text("#mask-share").startswith("50 %")
    (first,) = results(page, "inpaint", "Paint it anew")
    assert (first[:4] == original[:4]).all()
    assert np.abs(first[4:] - original[4:]).max() > 10
    page.fill("#inpaint-seed-exact", "3")
    page.select_option("#inpaint-label", "1")
    (second,) = results(page, "inpaint", "Paint it anew")
    assert (second != first).any()
    page.fill("#mask-top", "6")
    page.click("#mask-erase")
    assert page.inner_text("#mask-share").startswith("25 %")
    page.click("#mask-clear")
    page.get_by_role("button", name="Paint it anew").click()
    page.locator("#inpaint .problem", has_text="mask: nothing is covered; paint on the image").wait_for()


def test_a_mask_can_be_painted(opened: Callable[..., Any]) -> None:
    page = opened("#change")
    original = in_change(page)
    slide(page, "brush", 2)
    page.locator("#mask").scroll_into_view_if_needed()
    box = page.locator("#mask").bounding_box()
    at = lambda share: (box["x"] + share * box["width"], box["y"] + 1.5 / 8 * box["height"])  # noqa: E731
    page.mouse.move(*at(0.02))
    page.mouse.down()
    page.mouse.move(*at(0.98), steps=5)
    page.mouse.up()
    assert page.inner_text("#mask-share").startswith("13 %"), "one row of eight"
    (image,) = results(page, "inpaint", "Paint it anew")
    assert (np.delete(image, 1, 0) == np.delete(original, 1, 0)).all()
    assert (image[1] != original[1]).any()


def test_variations_are_the_farther_the_stronger(opened: Callable[..., Any]) -> None:
    page = opened("#change")
    original = in_change(page)
    slide(page, "vary-n", 2)
    far = []
    for strength in (0, 0.3, 1):
        page.fill("#vary-strength-exact", str(strength))
        made = results(page, "vary", "Make variations")
        assert len(made) == 2
        far.append(float(np.mean([np.abs(image - original).mean() for image in made])))
    assert far[0] == 0
    assert 0 < far[1] < far[2]
    page.fill("#vary-seed-exact", "9")
    assert (results(page, "vary", "Make variations")[0] != made[0]).any()


# -- Report, models ---------------------------------------------------------------------------------------------------


def test_the_report_is_shown_with_its_own_styles(page: Any) -> None:
    page.click("#tab-report")
    heading = page.frame_locator("#report-frame").locator("h1")
    assert heading.inner_text() == "How it went"
    assert heading.evaluate("e => getComputedStyle(e).color") == "rgb(1, 2, 3)"
    assert page.get_attribute("#report-link", "href").endswith("/v1/models/exact/report")


def test_another_model_has_its_own_controls(page: Any) -> None:
    first = finished(page)
    assert after(page, lambda: page.select_option("#model", "plain")) != first
    shown = [tab.inner_text() for tab in page.get_by_role("tab").all() if tab.is_visible()]
    assert shown == ["Generate", "Gallery", "Change"]
    assert page.locator("#label").is_hidden()
    assert page.locator("#guidance").is_hidden()
    assert page.inner_text("#seen").startswith("exact sees in it: "), "one that can judge says what it sees"
    assert "no classes" in page.inner_text("#facts")


def test_where_a_key_is_needed(browser: Any, tmp_path: Path) -> None:
    from twofold.serve.keys import Keys

    (tmp_path / "keys").write_text("a-key-that-is-long-enough-for-anybody\n")
    (tmp_path / "report.html").write_text(REPORT)
    keys = Keys.read(str(tmp_path / "keys"))
    with serving(exact_model("exact", tmp_path / "report.html"), keys=keys) as address:
        page = browser.new_page()
        page.goto(address)
        for key in ("a-wrong-key", "a-key-that-is-long-enough-for-anybody"):
            page.get_by_label("API key").fill(key)
            page.get_by_role("button", name="Use this key").click()
            if key == "a-wrong-key":
                page.locator("header .problem:not(:empty)").wait_for()
        finished(page)
        page.click("#tab-report")
        assert page.frame_locator("#report-frame").locator("h1").inner_text() == "How it went"
        page.close()
