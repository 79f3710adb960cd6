"""The OpenAPI document: it can be read, it says what is true, and nothing that it allows breaks the server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import SkipTest

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from twofold.serve import schemas

from .common import WAIT, Live, live, loaded, picture, runs, text

schemathesis = pytest.importorskip("schemathesis")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folders = runs(tmp_path_factory.mktemp("served"), "joint")
    with live([loaded(folders)], images=2, pixels=4096, steps=20, bytes=200_000, deadline=60) as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[httpx.Client]:
    with server.client() as one:
        yield one


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    return client.get("/openapi.json").json()


def references(value: Any) -> Iterator[str]:
    """Every $ref in it."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_everything_that_is_referred_to_is_there(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert len(found) > 10
    for reference in found:
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]


def test_every_route_is_described(document: dict[str, Any]) -> None:
    abilities = ("generate", "inpaint", "vary", "classify", "embed", "neighbours", "edit")
    paths = {"/health", "/ready", "/metrics", "/v1/models", "/v1/models/{model}", "/v1/models/{model}/report"}
    assert set(document["paths"]) == paths | {f"/v1/models/{{model}}/{ability}" for ability in abilities}
    for ability in abilities:
        route = document["paths"][f"/v1/models/{{model}}/{ability}"]["post"]
        assert {"200", "401", "404", "413", "415", "422", "503", "504"} <= set(route["responses"])
        assert route["description"] and "application/json" in route["requestBody"]["content"]
    assert (
        "text/event-stream" in document["paths"]["/v1/models/{model}/generate"]["post"]["responses"]["200"]["content"]
    )


@pytest.mark.parametrize(
    ("ability", "sent", "model"),
    [
        ("generate", {"seed": 1, "n": 2, "steps": 2}, schemas.Images),
        ("vary", {"image": text(picture()), "steps": 2}, schemas.Images),
        ("classify", {"images": [text(picture())]}, schemas.Predictions),
        ("embed", {"images": [text(picture())]}, schemas.Vectors),
        ("edit", {"image": text(picture()), "to": "3", "strength": 0.2}, schemas.Edited),
    ],
)
def test_answers_are_what_it_says(client: httpx.Client, ability: str, sent: Any, model: Any) -> None:
    found = client.post(f"/v1/models/joint/{ability}", json=sent).json()
    assert model.model_validate(found, strict=True).model_dump().keys() == found.keys()


# -- whatever the document allows --------------------------------------------------------------------------------------
# Left out of schemathesis' checks: positive_data_acceptance (a class, a sampler or a picture that is none is of the
# right type, and 422 all the same), and what it looks for in services that keep state or users (use_after_free,
# ensure_resource_availability, ignored_auth): this one has neither, and its keys are tested by themselves.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
)
ALLOWED = (503, 504)  # of 5xx, which the document names


def checks(status: int, case: Any) -> list[Any]:
    """What an answer of this status is held against; 413 is a rejection that schemathesis does not count as one, and
    an empty list that is a mistake does not arrive with a form."""
    from schemathesis.checks import CHECKS as known

    form = case.media_type == "multipart/form-data" and isinstance(case.body, dict)
    lost = form and any(value in ([], {}, None) for value in case.body.values())
    return [known.get_one(name) for name in CHECKS if name != "negative_data_rejection" or not (lost or status == 413)]


def everything(server: Live, examples: int) -> dict[int, int]:
    """Asks every route so many times with what the document allows, and with what it does not; raises where an answer
    breaks it. Returns how often each status came."""
    schema = schemathesis.openapi.from_url(f"{server.base}/openapi.json")
    found: dict[int, int] = {}
    for operation in (result.ok() for result in schema.get_all_operations()):
        for mode in schemathesis.GenerationMode:
            for case in drawn(operation, mode, examples):
                ask(case, found)
    return found


def drawn(operation: Any, mode: Any, examples: int) -> list[Any]:
    """Cases of a route; none where there is nothing to get wrong."""
    cases: list[Any] = []

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode))
    def collect(case: Any) -> None:
        cases.append(case)

    with contextlib.suppress(Unsatisfiable, SkipTest):
        collect()
    return cases


def ask(case: Any, found: dict[int, int]) -> None:
    wrong = {place.value for place, part in case.meta.components.items() if part.mode.is_negative}
    if case.path_parameters and "path" not in wrong:
        case.path_parameters["model"] = "joint"  # else nearly all would ask for models that are not there
    answer = case.call(timeout=WAIT)
    found[answer.status_code] = found.get(answer.status_code, 0) + 1
    if answer.status_code not in ALLOWED:
        case.validate_response(answer, checks=checks(answer.status_code, case))


def test_whatever_the_document_allows_is_answered_as_it_says(server: Live) -> None:
    found = everything(server, 3)
    assert found.get(200, 0) > 3 and found.get(422, 0) + found.get(415, 0) + found.get(404, 0) > 3


@pytest.mark.slow
def test_much_more_of_it(server: Live) -> None:
    found = everything(server, 100)
    assert sum(found.values()) > 1000
    assert all(status < 500 or status in ALLOWED for status in found)
