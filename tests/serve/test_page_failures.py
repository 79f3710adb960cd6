"""What the page does when something goes wrong or is not there; the server's answers are made up."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .pages import (
    ORIGIN,
    MadeUp,
    answer,
    chromium,
    classified,
    finished,
    generated,
    model,
    png,
    refusal,
    stream,
    watched,
)

GENERATE = "models/toy/generate"
RECORDED = """() => {
  const picture = document.querySelector('#picture');
  window.seen = [];
  new MutationObserver(() => window.seen.push(picture.src)).observe(picture, {attributeFilter: ['src']});
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def begun(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page before a server that is made up: (page, server). change(server): before the page asks."""
    contexts, problems = [], []

    def begin(
        *models: dict[str, Any],
        change: Callable[[MadeUp], None] = lambda server: None,
        key_needed: bool = False,
        where: str = "",
        **options: Any,
    ) -> tuple[Any, MadeUp]:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(20_000)
        page = context.new_page()
        problems.append(watched(page))
        server = MadeUp(page, *(models or (model(),)), key_needed=key_needed)
        change(server)
        page.goto(f"{ORIGIN}/{where}")
        return page, server

    yield begin
    for context in contexts:
        context.close()
    assert not [text for found in problems for text in found]


def told(page: Any, section: str = "generate") -> str:
    """The section's problem, once there is one."""
    page.wait_for_selector(f"#{section} > .problem:not(:empty), #{section} .result > .problem:not(:empty)")
    return str(page.locator(f"#{section} .problem:not(:empty)").first.inner_text())


def replaced(name: str, *answers: Any) -> Callable[[MadeUp], None]:
    """These answers one after the other, the last one for ever."""
    left = list(answers)

    def change(server: MadeUp) -> None:
        server.answers[name] = lambda request: (
            (found := left.pop(0) if len(left) > 1 else left[0]) and (found(request) if callable(found) else found)
        )

    return change


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (refusal(422, "steps=900", "more than 200", "ask for fewer"), "steps=900: more than 200; ask for fewer"),
        (refusal(504, "deadline", "not answered within 60 seconds", ""), "deadline: not answered within 60 seconds"),
        ((500, {"content-type": "text/plain"}, "oops"), "server: answered 500"),
        (stream(("error", {"error": {"where": "queue", "what": "is full", "hint": "wait"}})), "queue: is full; wait"),
        (stream(("preview", {"step": 1, "steps": 20, "sigma": 1.0, "images": [png(9)]})), "did not come to its end"),
    ],
    ids=["422", "504", "500", "in the stream", "stream cut"],
)
def test_what_went_wrong_is_said(begun: Callable[..., Any], reply: Any, expected: str) -> None:
    page, server = begun(change=replaced(GENERATE, reply, generated))
    assert expected in told(page)
    page.click("#generate-form .main")
    finished(page)
    assert page.locator(".problem:not(:empty)").count() == 0, "and forgotten when it works again"
    assert len(server.of("generate")) == 2


def test_no_server_is_said(begun: Callable[..., Any]) -> None:
    page, _ = begun()
    finished(page)
    page.unroute_all()
    page.click("#generate-form .main")
    assert told(page) == "server: no answer; is it still running, and this machine online?"


def test_a_busy_server_is_asked_once_more(begun: Callable[..., Any]) -> None:
    busy = refusal(503, "queue", "64 requests are waiting", "try again later", **{"Retry-After": "1"})
    page, server = begun(change=replaced(GENERATE, busy, generated))
    page.locator("#generate .told", has_text="The server is busy. Trying once more in 1 s").wait_for()
    finished(page)
    assert len(server.of("generate")) == 2


def test_but_only_once(begun: Callable[..., Any]) -> None:
    busy = refusal(503, "queue", "64 requests are waiting", "try again later", **{"Retry-After": "1"})
    page, server = begun(change=replaced(GENERATE, busy))
    assert told(page) == "queue: 64 requests are waiting; try again later"
    assert len(server.of("generate")) == 2


def test_a_change_stops_what_is_under_way(begun: Callable[..., Any]) -> None:
    page, server = begun()
    finished(page)
    page.route("**/generate", lambda route: None)  # never answered
    with page.expect_request("**/generate"):
        page.click("#generate-form .main")
    page.unroute("**/generate")
    with page.expect_event("requestfailed") as left:
        page.fill("#seed-exact", "7")
    assert left.value.url.endswith("generate")
    assert "ABORTED" in left.value.failure
    finished(page)
    assert server.of("generate")[-1]["seed"] == 7


def test_only_the_last_of_many_changes_is_asked_for(begun: Callable[..., Any]) -> None:
    page, server = begun()
    finished(page)
    page.focus("#seed")
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    with page.expect_response("**/generate"):
        pass
    finished(page)
    asked = [body["seed"] for body in server.of("generate")]
    assert asked[-1] == 12
    assert len(asked) < 12


def test_without_a_key_nobody_is_asked_for_one(begun: Callable[..., Any]) -> None:
    page, server = begun()
    finished(page)
    assert page.locator("#key-form").is_hidden()
    assert not any("x-api-key" in request.headers for request in server.requests)


def test_the_key_is_asked_for_sent_and_kept(begun: Callable[..., Any]) -> None:
    page, server = begun(key_needed=True)
    page.locator("header .problem", has_text="This server asks for an API key").wait_for()
    assert not server.of("generate")
    page.keyboard.type("s3cret")
    page.keyboard.press("Enter")
    finished(page)
    assert server.requests[-1].headers["x-api-key"] == "s3cret"
    page.click("#generate-command summary")
    command = page.inner_text("#generate-command pre")
    assert "$TWOFOLD_KEY" in command
    assert "s3cret" not in command
    page.reload()
    finished(page)
    assert page.evaluate("() => [sessionStorage.getItem('twofold-key'), localStorage.length]") == ["s3cret", 0]


def test_only_what_the_model_can_do_is_shown(begun: Callable[..., Any]) -> None:
    page, server = begun(model(kind="classifier", classes=[], samplers={}, abilities=["classify"]))
    page.wait_for_selector("#recognize:not([hidden])")
    assert [tab.inner_text() for tab in page.get_by_role("tab").all() if tab.is_visible()] == ["Recognize"]
    assert not server.of("generate")


def test_parts_of_change_that_the_model_cannot_do(begun: Callable[..., Any]) -> None:
    page, _ = begun(model(abilities=["generate", "vary"]), where="#change")
    page.wait_for_selector("#vary:not([hidden])")
    assert page.locator("#edit").is_hidden()
    assert page.locator("#inpaint").is_hidden()


def test_a_joint_model_is_guided_by_its_own_answers(begun: Callable[..., Any]) -> None:
    joint = model(kind="joint", classes=[], guides=["own", "representations"], abilities=["generate", "vary"])
    page, server = begun(joint)
    finished(page)
    assert server.of("generate")[0].items() >= {"guide": "representations", "guide_scale": 4, "label": "0"}.items()
    assert "guidance" not in server.of("generate")[0], "it has no classes of its own to be guided by"
    with page.expect_response("**/generate"):
        page.select_option("#guide", "own")
    with page.expect_response("**/generate"):
        page.fill("#guide-scale-exact", "2.5")
    assert server.of("generate")[-1].items() >= {"guide": "own", "guide_scale": 2.5}.items()
    with page.expect_response("**/generate"):
        page.select_option("#guide", "")
    assert server.of("generate")[-1]["label"] is None
    assert page.locator("#label").is_hidden()


def test_a_file_that_is_too_large_is_not_sent(begun: Callable[..., Any]) -> None:
    page, server = begun(where="#recognize")
    page.wait_for_selector("#recognize:not([hidden])")
    page.set_input_files("#recognize-file", {"name": "big.png", "mimeType": "image/png", "buffer": b"0" * 1_500_000})
    assert told(page, "recognize") == "big.png: 1.5 MB; the server takes at most 1.0 MB"
    assert not server.of("classify")


def test_names_are_text(begun: Callable[..., Any]) -> None:
    name = "<img src=x onerror=alert(1)>"

    def change(server: MadeUp) -> None:
        server.answers["models/toy/classify"] = lambda _: answer(classified(name, (name, "0")))

    page, _ = begun(model(classes=[name], data=name), change=change)
    finished(page)
    page.locator("#seen", has_text=name).wait_for()
    assert name in page.inner_text("#facts")
    assert page.locator("img[src=x]").count() == 0


def test_attributes_have_no_one_probability(begun: Callable[..., Any]) -> None:
    several = classified("1")
    several["predictions"][0] |= {"label": "Smiling;Young", "probability": None}

    def change(server: MadeUp) -> None:
        server.answers["models/toy/classify"] = lambda _: answer(several)

    page, _ = begun(change=change)
    page.locator("#seen", has_text="The model sees in it: Smiling;Young").wait_for()
    assert "%" not in page.inner_text("#seen")


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_who_wants_no_motion_sees_the_end_only(begun: Callable[..., Any], motion: str) -> None:
    page, _ = begun(reduced_motion=motion)
    finished(page)
    page.evaluate(RECORDED)
    with page.expect_response("**/generate"):
        page.fill("#seed-exact", "3")
    finished(page)
    seen = page.evaluate("() => window.seen.length")
    assert seen == 1 if motion == "reduce" else seen >= 1
    assert page.get_attribute("#emerge", "max") == "2", "the way there can still be looked at"


def test_large_images_are_shown_smoothly(begun: Callable[..., Any]) -> None:
    page, _ = begun(where="#recognize")
    page.wait_for_selector("#recognize:not([hidden])")
    for size, crisp in ((8, True), (128, False)):
        content = base64.b64decode(png(50, size))
        page.set_input_files("#recognize-file", {"name": "x.png", "mimeType": "image/png", "buffer": content})
        page.locator(f"#recognize-drop img{'.crisp' if crisp else ':not(.crisp)'}").wait_for()
