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
    page.locator("#seen", has_text="The model sees in it: Smiling, Young").wait_for()
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


def test_a_thousand_classes_are_reached_and_none_is_made_twice(begun: Callable[..., Any]) -> None:
    names = [f"kind {k}" for k in range(1000)]

    def made(request: Any) -> Any:
        asked = request.post_data_json
        if "seeds" not in asked:
            return generated(request)
        rows = zip(asked["seeds"], asked["label"], strict=True)
        return answer({"images": [{"seed": s, "label": n, "png": png(9)} for s, n in rows], "seconds": 0.1})

    def change(server: MadeUp) -> None:
        server.answers[GENERATE] = made

    page, server = begun(model(classes=names, answers=[], abilities=["generate"]), change=change)
    finished(page)
    page.click("#tab-gallery")
    page.locator("#gallery:not([aria-busy]) .told", has_text="40 images").wait_for()
    page.click("#gallery-more")
    page.locator("#gallery:not([aria-busy]) .told", has_text="80 images").wait_for()
    asked = [name for body in server.of("generate") for name in dict.fromkeys(body["label"]) if "seeds" in body]
    assert asked == names[:20], "each once"
    page.click("#tab-generate")
    page.click("#tab-gallery")
    page.select_option("#gallery-from", label="kind 995")
    page.locator("#gallery:not([aria-busy]) .told", has_text="20 images").wait_for()
    assert page.locator("#gallery h3").all_inner_texts() == names[995:]
    assert page.locator("#gallery-more").is_hidden()
    page.get_by_role("button", name="class kind 997, seed 2").click()
    finished(page)
    assert (page.input_value("#label"), page.input_value("#seed-exact")) == ("kind 997", "2")


def test_attributes_can_come_and_go(begun: Callable[..., Any]) -> None:
    frames = [{"share": share, "p_target": share, "label": "", "png": png(9)} for share in (0, 1)]
    ends = {"before": {"label": "smiling;young", "p_target": 0}, "after": {"label": "", "p_target": 1}}

    def change(server: MadeUp) -> None:
        server.answers["models/toy/edit"] = lambda _: answer(
            {"to": "not young", "reached": True, **ends, "frames": frames}
        )

    page, server = begun(
        model(answers=["smiling", "young"], multi_label=True, abilities=["edit"]), change=change, where="#change"
    )
    file = {"name": "my.png", "mimeType": "image/png", "buffer": base64.b64decode(png(9))}
    page.set_input_files("#change-file", file)
    assert page.locator("#edit-to option").all_inner_texts() == ["smiling", "not smiling", "young", "not young"]
    page.select_option("#edit-to", "not young")
    page.get_by_role("button", name="Find the change").click()
    page.locator("#edit .told", has_text="seen as smiling, young, now as nothing it knows").wait_for()
    assert server.of("edit")[0]["to"] == "not young"
    assert "2 attributes" in page.inner_text("#facts")


def test_answers_do_not_need_the_training_images(begun: Callable[..., Any]) -> None:
    """Where every class is tried in turn what is quick comes first, and its failure stops nothing."""

    def change(server: MadeUp) -> None:
        server.answers["models/toy/neighbours"] = lambda _: refusal(404, "neighbours", "not on this machine", "")

    abilities = ["classify", "neighbours"]
    page, server = begun(model(answers_by="zero-shot", abilities=abilities), change=change, where="#recognize")
    file = {"name": "my.png", "mimeType": "image/png", "buffer": base64.b64decode(png(9))}
    page.set_input_files("#recognize-file", file)
    page.locator("#recognize .problem", has_text="neighbours: not on this machine").wait_for()
    assert page.locator("#answers li").count() == 2
    assert [path for path, _ in server.asked][-2:] == ["models/toy/neighbours", "models/toy/classify"]
