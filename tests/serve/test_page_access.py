"""The page for everybody: by keyboard alone, by screen reader, on a phone and on a wide screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from .pages import a_digit, choose, chromium, finished, opening, pixels, two_models

TABS = ("generate", "gallery", "recognize", "change", "report")
FOCUSED = "(name) => document.activeElement.matches(name)"
SEEN = (
    "() => getComputedStyle(document.activeElement).outlineStyle !== 'none' || document.activeElement === document.body"
)
OUTSIDE = """() => [...document.querySelectorAll('body *')].filter((e) => {
  const box = e.getBoundingClientRect();
  return e.checkVisibility() && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map((e) => e.outerHTML.slice(0, 80))"""
COVERED = """() => document.activeElement.getBoundingClientRect().top
  < document.querySelector('#generate .frame').getBoundingClientRect().bottom"""
SPILLED = "() => document.documentElement.scrollWidth - innerWidth"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
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


def filled(page: Any, tab: str) -> None:
    """Opens a tab and has it show all that it can."""
    page.click(f"#tab-{tab}")
    if tab == "generate":
        page.click("#generate-command summary")
    if tab == "gallery":
        page.locator("#gallery:not([aria-busy]) .row img").nth(39).wait_for()
    if tab in ("recognize", "change"):
        choose(page, tab, a_digit()[0])
    if tab == "recognize":
        page.locator("#nearest-features li").nth(7).wait_for()
    if tab == "change":
        page.click("#edit-form .main")
        page.wait_for_selector("#edit-result:not([hidden])")
        page.click("#mask-add")
        for name in ("inpaint", "vary"):
            page.click(f"#{name}-form .main")
            page.wait_for_selector(f"#{name}-results img")


def tab_to(page: Any, name: str, key: str = "Tab", most: int = 60) -> None:
    """Presses Tab until the focus is there, and sees to it that one can always see where it is."""
    for _ in range(most):
        if page.evaluate(FOCUSED, name):
            return
        page.keyboard.press(key)
        assert page.evaluate(SEEN), "the focus is invisible"
    raise AssertionError(f"{most} times {key} do not lead to {name}")


def give(page: Any, panel: str) -> None:
    """Presses the button that chooses a file; what opens then is answered by whom it is told to."""
    tab_to(page, f"#{panel}-file")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#{panel}-drop img:not([hidden])")


def test_generating_by_the_keyboard_alone(opened: Callable[..., Any]) -> None:
    page = opened()
    press = page.keyboard.press
    first = finished(page)
    tab_to(page, "#label")
    with page.expect_response("**/generate"):
        press("3")
    assert (second := finished(page)) != first
    assert page.inner_text("#seen").startswith("The model sees in it: 3")
    tab_to(page, "#seed")
    with page.expect_response("**/generate"):
        press("ArrowRight")
    assert finished(page) != second
    assert page.input_value("#seed-exact") == "1"
    tab_to(page, "#emerge", "Shift+Tab")
    press("Home")
    assert page.inner_text("#emerge-at").startswith("step 0")
    tab_to(page, "#generate-form .main")
    with page.expect_response("**/generate"):
        press("Enter")


def test_tabs_and_the_gallery_by_the_keyboard_alone(opened: Callable[..., Any]) -> None:
    page = opened()
    press = page.keyboard.press
    tab_to(page, "#tab-generate")
    opened_ones = []
    for key in ("ArrowRight", "ArrowRight", "End", "ArrowRight", "ArrowLeft", "Home", "ArrowRight"):
        press(key)
        opened_ones.append(page.evaluate("() => document.activeElement.textContent"))
        assert page.locator("[role=tabpanel]:visible").count() == 1
        assert page.locator("[role=tab][tabindex='0']").count() == 1
    assert opened_ones == ["Gallery", "Recognize", "Report", "Generate", "Report", "Generate", "Gallery"]
    page.locator("#gallery:not([aria-busy]) .row img").nth(39).wait_for()
    tab_to(page, "[title='class 1, seed 2']")
    press("Enter")
    finished(page)
    assert (page.input_value("#label"), page.input_value("#seed-exact")) == ("1", "2")
    assert page.evaluate(FOCUSED, "#generate"), "the focus goes along"


def test_recognizing_and_changing_by_the_keyboard_alone(opened: Callable[..., Any]) -> None:
    page = opened("#recognize")
    press = page.keyboard.press
    file = {"name": "mine.png", "mimeType": "image/png", "buffer": a_digit()[0]}
    page.on("filechooser", lambda chooser: chooser.set_files(file))
    give(page, "recognize")
    page.locator("#nearest-features li").nth(7).wait_for()
    tab_to(page, "#tab-recognize", "Shift+Tab")
    press("ArrowRight")
    give(page, "change")
    tab_to(page, "#edit-to")
    press("1")
    tab_to(page, "#edit-form .main")
    press("Enter")
    page.wait_for_selector("#edit-result:not([hidden])")
    tab_to(page, "#edit-share")
    press("ArrowLeft")
    assert page.inner_text("#edit-at").startswith("88 % of the change")
    tab_to(page, "#mask-add")
    press("Space")
    tab_to(page, "#inpaint-form .main")
    press("Enter")
    page.wait_for_selector("#inpaint-results img")
    tab_to(page, "#vary-strength")
    press("Home")
    tab_to(page, "#vary-form .main")
    press("Enter")
    page.wait_for_selector("#vary-results img")
    made = pixels(page.locator("#vary-results img").first.get_attribute("src"))
    assert (made == a_digit()[1]).all(), "of strength 0"
    assert np.ptp(made) > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(opened: Callable[..., Any], scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = opened(color_scheme=scheme)
    for tab in TABS:
        filled(page, tab)
        found = axe.run(page).response["violations"]
        told = [(one["id"], one["impact"], [node["html"] for node in one["nodes"]]) for one in found]
        assert not told, f"{tab}: {told}"


@pytest.mark.parametrize(("width", "height"), [(360, 740), (1440, 900)])
def test_nothing_is_wider_than_the_screen(opened: Callable[..., Any], width: int, height: int) -> None:
    page = opened(viewport={"width": width, "height": height})
    for tab in TABS:
        filled(page, tab)
        assert page.evaluate(SPILLED) <= 0, tab
        assert page.evaluate(OUTSIDE) == [], tab


def test_on_a_phone_the_picture_stays_in_sight(opened: Callable[..., Any]) -> None:
    page = opened(viewport={"width": 360, "height": 740})
    page.locator("#generate-form .main").scroll_into_view_if_needed()
    box = page.locator("#generate .frame").bounding_box()
    assert 0 <= box["y"] < 100
    tab_to(page, "#seed")
    assert not page.evaluate(COVERED), "and does not hide the control in use"
