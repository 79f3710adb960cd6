"""What can be asked for under /v1/models."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import numpy as np
import torch
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse

from ..errors import UserError
from ..generate.edit import check_target
from ..generate.targets import read_target
from . import asking, pictures, schemas, work
from .engine import Job
from .limits import ARRIVED
from .models import Served
from .reading import as_tensor, parsed, sent_pictures, with_files
from .refused import Refused, own_mistake, said
from .schemas import schema_of
from .service import Gone, Service

router = APIRouter(prefix="/v1/models", tags=["models"])
STREAM, PNG = "text/event-stream", "image/png"
FIRST = 16384  # characters of JSON from which it is encoded in a thread


def service_of(request: Request) -> Service:
    """The service, for a caller who has shown a key where one is needed, and asks for nothing behind a question mark
    but `k`. Raises `Refused`."""
    service: Service = request.app.state.service
    service.keys.check(request)
    known = {"k"} if request.url.path.endswith("/neighbours") else set()
    if request.method == "POST" and (unknown := set(request.query_params) - known):
        raise Refused(422, f"?{min(unknown)[:100]}", "is not expected in the address", "settings belong in the body")
    return service


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Answers that are no results, for the OpenAPI document."""
    words = {
        400: "The body cannot be read", 401: "An API key is missing or not known", 403: "Asked by another site's page",
        404: "Not served here, or not able to", 408: "The request did not arrive in time",
        413: "The request or a picture is too large", 415: "Not of a type that is taken",
        421: "Called by a name that is not this server's", 422: "Something in it cannot be",
        503: "The queue is full, or the server is not ready or shutting down; Retry-After says when to try again",
        504: "Not answered before its deadline",
    }  # fmt: skip
    return {status: {"model": schemas.Error, "description": words[status]} for status in statuses}


GET = refusals(401, 404, 421)
POST = refusals(400, 401, 403, 404, 408, 413, 415, 421, 422, 503, 504)
ONE_FILE = {"type": "string", "format": "binary"}


def _as_text(field: dict[str, Any]) -> dict[str, Any]:
    """A field of a form."""
    return {"type": "string", "description": field.get("description", "")}


def body_of(model: type[schemas.Asked], *files: str, several: bool = False, raw: bool = False) -> dict[str, Any]:
    """The OpenAPI description of a request body."""
    content: dict[str, Any] = {"application/json": {"schema": schema_of(model)}}
    if several:
        many = {"images": {"type": "array", "items": ONE_FILE, "minItems": 1}}
        content["multipart/form-data"] = {"schema": {"type": "object", "properties": many, "required": ["images"]}}
    elif files:
        known = model.model_json_schema()["properties"]
        parts = {name: ONE_FILE if name in files else _as_text(one) for name, one in known.items()}
        content["multipart/form-data"] = {"schema": {"type": "object", "properties": parts, "required": list(files)}}
    if raw:
        content |= {kind: {"schema": ONE_FILE} for kind in ("image/png", "image/jpeg", "image/webp")}
    return {"requestBody": {"required": True, "content": content}}


IMAGES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": schemas.Images,
        "description": "The images: JSON, or by Accept one PNG (several side by side), or previews and then the same "
        "JSON as server-sent events `preview`, `done` and `error`",
        "content": {PNG: {"schema": ONE_FILE}, STREAM: {"schema": {"type": "string"}}},
    }
}


@router.get("", response_model=schemas.Models, responses=refusals(401, 421))
async def models(request: Request) -> Response:
    """The models that are served, and what each of them can do."""
    service = service_of(request)
    found = [model.described(service.settings) for model in service.models.values()]
    needed = bool(service.keys.digests)
    return JSONResponse({"models": found, "default": next(iter(service.models)), "key_needed": needed})


@router.get("/{model}", response_model=schemas.Model, responses=GET)
async def one_model(request: Request, model: str) -> Response:
    """One model."""
    service = service_of(request)
    return JSONResponse(service.model(model).described(service.settings))


@router.post("/{model}/generate", responses=IMAGES | POST, openapi_extra=body_of(schemas.Generate))
async def generate(request: Request, model: str) -> Response:
    """New images of a class. Image i is a function of the model, its seed, its label and the settings."""
    service = service_of(request)
    served = service.model(model, "generate")
    asked = await parsed(request, schemas.Generate)
    one = asking.making(model, served, asked, service.settings, _accepts(request) == STREAM)
    key, compute = asking.key_of(asked, one), partial(work.make, batch=service.settings.batch)
    return await _made(service, request, "generate", key, compute, asked, one, served)


@router.post("/{model}/inpaint", responses=IMAGES | POST, openapi_extra=body_of(schemas.Inpaint, "image", "mask"))
async def inpaint(request: Request, model: str) -> Response:
    """A picture with its masked part painted anew; everything else stays as it is in the model's size."""
    service = service_of(request)
    served = service.model(model, "inpaint")
    asked, files = await with_files(request, schemas.Inpaint, service.settings, ("image", "mask"))
    limits = service.settings
    original = await as_tensor([("image", files["image"])], served.how, limits, service.decoders)

    def mask() -> torch.Tensor:
        size = pictures.header(files["image"], "image", limits.pixels)
        return asking.fitted_mask(asking.mask_of(files["mask"], size, limits), served)

    one = asking.making(model, served, asked, limits, _accepts(request) == STREAM, original, await run_sync(mask))
    compute = partial(work.change, batch=limits.batch)
    return await _made(service, request, "inpaint", ("inpaint", model, id(one)), compute, asked, one, served)


@router.post("/{model}/vary", responses=IMAGES | POST, openapi_extra=body_of(schemas.Vary, "image"))
async def vary(request: Request, model: str) -> Response:
    """Variations of a picture: so much noise is added and taken away again as `strength` says."""
    service = service_of(request)
    served = service.model(model, "vary")
    asked, files = await with_files(request, schemas.Vary, service.settings, ("image",))
    original = await as_tensor([("image", files["image"])], served.how, service.settings, service.decoders)
    strength = float(asked.strength)
    one = asking.making(model, served, asked, service.settings, _accepts(request) == STREAM, original, None, strength)
    compute = partial(work.change, batch=service.settings.batch)
    return await _made(service, request, "vary", ("vary", model, id(one)), compute, asked, one, served)


async def _made(
    service: Service,
    request: Request,
    ability: str,
    key: Any,
    compute: Any,
    asked: schemas.Sampled,
    one: work.Making,
    served: Served,
) -> Response:
    """The answer of whoever makes images, in the form that the caller accepts."""
    labels = asking.named_labels(one, served, asked.guide)
    steps = len(one.plan.sigmas) - 1

    def body(made: work.Made) -> dict[str, Any]:
        images = [
            {"seed": seed, "label": label, "png": pictures.base64_png(image)}
            for seed, label, image in zip(one.seeds, labels, made.images, strict=True)
        ]
        head = {"model": one.model, "sampler": one.plan.sampler, "steps": steps, "guidance": one.plan.guidance}
        return head | {"seconds": round(made.seconds, 4), "images": images}

    start = time.monotonic()
    submit = partial(service.submit, key, len(one.seeds), compute, one, arrived=arrived(request))
    if _accepts(request) == STREAM:
        told: asyncio.Queue[Any] = asyncio.Queue()
        events = service.events(ability, submit(on_progress=told.put_nowait), told)
        stream = _stream(service, ability, events, body, len(one.seeds), one.model, start)
        return StreamingResponse(stream, media_type=STREAM, headers={"Cache-Control": "no-store"})
    made: work.Made = await service.answer(request, ability, submit())
    _count(service, ability, one.model, len(one.seeds), start)
    if _accepts(request) == PNG:
        picture = await run_sync(lambda: pictures.png(pictures.side_by_side(list(made.images))))
        return Response(picture, media_type=PNG)
    return await _json(partial(body, made), made.images.size)


async def _stream(
    service: Service,
    ability: str,
    events: AsyncIterator[Any],
    body: Any,
    images: int,
    model: str,
    start: float,
) -> AsyncIterator[str]:
    """Server-sent events: previews, then the result or what went wrong."""
    try:
        async for event in events:
            if isinstance(event, work.Preview):
                pngs = [pictures.base64_png(image) for image in event.images]
                where = {"step": event.step, "steps": event.steps, "sigma": event.sigma}
                yield _event("preview", where | {"images": pngs})
            else:
                _count(service, ability, model, images, start)
                yield _event("done", await run_sync(partial(body, event)))
    except Refused as refused:
        yield _event("error", refused.body())
    except UserError as error:
        yield _event("error", said(error))
    except Exception as error:
        service.failed(error)
        yield _event("error", own_mistake().body())


def _event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


@router.post(
    "/{model}/classify",
    response_model=schemas.Predictions,
    responses=POST,
    openapi_extra=body_of(schemas.Pictures, several=True, raw=True),
)
async def classify(request: Request, model: str) -> Response:
    """What is in each picture."""
    service = service_of(request)
    served = service.model(model, "classify")
    names, found = await _asked_about(service, request, "classify", model, served, work.classify)
    classes, multi = list(served.answers.class_names), bool(getattr(served.answers, "multi_label", False))
    predictions = [
        {"name": name, **_named(row, classes, multi), "probabilities": [round(float(p), 6) for p in row]}
        for name, row in zip(names, found, strict=True)
    ]
    answer = {"model": model, "classes": classes, "multi_label": multi, "by": served.by, "predictions": predictions}
    return JSONResponse(answer)


def _named(row: np.ndarray, classes: list[str], multi_label: bool) -> dict[str, Any]:
    if multi_label:
        return {"label": ";".join(n for n, p in zip(classes, row, strict=True) if p > 0.5), "probability": None}
    best = int(row.argmax())
    return {"label": classes[best], "probability": round(float(row[best]), 6)}


@router.post(
    "/{model}/embed",
    response_model=schemas.Vectors,
    responses=POST,
    openapi_extra=body_of(schemas.Pictures, several=True, raw=True),
)
async def embed(request: Request, model: str) -> Response:
    """Features of each picture, as probes and neighbours see them."""
    service = service_of(request)
    served = service.model(model, "embed")
    _, found = await _asked_about(service, request, "embed", model, served, work.embed)
    layers = [f"{layer}@{sigma:g}" for layer, sigma in served.reader.places]
    answer = {"model": model, "layers": layers, "width": int(found.shape[1])}
    return await _json(lambda: answer | {"vectors": found.tolist()}, found.size * 10)


@router.post(
    "/{model}/neighbours",
    response_model=schemas.Neighbourhood,
    responses=POST,
    openapi_extra=body_of(schemas.Pictures, several=True, raw=True),
)
async def neighbours(request: Request, model: str, k: int = 8) -> Response:
    """The training images that one picture is nearest to, by its pixels and by what the model sees in it."""
    service = service_of(request)
    served = service.model(model, "neighbours")
    if not 1 <= k <= 64:
        raise Refused(422, f"k={k}", "not a number of neighbours", "1 to 64")
    if served.neighbours is None:
        raise Refused(503, "neighbours", "the training images are still being read", "try again a little later", 2)
    _, found = await _asked_about(service, request, "neighbours", model, served, work.near, k)
    pixels, features = ([_near(one) for one in part] for part in found[0])
    searched = len(served.neighbours.rows)
    return JSONResponse({"model": model, "searched": searched, "pixels": pixels, "features": features})


def _near(one: Any) -> dict[str, Any]:
    return {"id": one.id, "label": one.label, "distance": one.distance, "png": pictures.base64_png(one.image)}


async def _asked_about(
    service: Service, request: Request, ability: str, name: str, served: Served, compute: Any, k: int = 0
) -> tuple[list[str], Any]:
    """The pictures' names, and what is said about them."""
    start = time.monotonic()
    sent = await sent_pictures(request, schemas.Pictures, service.settings)
    if k and len(sent) > 1:
        raise Refused(422, f"{len(sent)} images", "neighbours are looked for of one picture", "send one")
    images = await as_tensor(sent, served.how, service.settings, service.decoders)
    what = work.Pictures(name, images, k)
    compute = partial(compute, batch=service.settings.batch)
    job = service.submit((ability, name), len(sent), compute, what, arrived=arrived(request))
    found = await service.answer(request, ability, job)
    _count(service, ability, name, len(sent), start)
    return [name for name, _ in sent], found


@router.post(
    "/{model}/edit", response_model=schemas.Edited, responses=POST, openapi_extra=body_of(schemas.Edit, "image")
)
async def edit(request: Request, model: str) -> Response:
    """A counterfactual: the picture changed towards another class as little as it takes, and pictures along the way."""
    start = time.monotonic()
    service = service_of(request)
    served = service.model(model, "edit")
    asked, files = await with_files(request, schemas.Edit, service.settings, ("image",))
    image = await as_tensor([("image", files["image"])], served.how, service.settings, service.decoders)
    how: dict[str, Any] = {"strength": asked.strength if asked.strength == "auto" else float(asked.strength)}
    how |= {} if asked.guide is None else {"guide": asked.guide}
    asking.check_guide(asked.guide, served.guides or ["labels"])
    recipe = served.recipe(**how)
    assert recipe is not None
    names = list(recipe.pull.class_names)
    what = work.Changing(model, image, _target(asked.to, names, recipe.pull), how, asked.frames)
    job: Job = service.submit(("edit", model, id(what)), 1, work.edit, what, arrived=arrived(request))
    found: work.Changed = await service.answer(request, "edit", job)
    _count(service, "edit", model, 1, start)
    return await _json(lambda: _edited(model, asked.to, found, recipe.pull.multi_label), found.frames.size)


def _target(to: str, names: list[str], pull: Any) -> torch.Tensor:
    """(1,) int64, or (1, K). Raises `UserError`."""
    if pull.multi_label:
        return check_target(torch.tensor([read_target(to, names, f"to={to[:60]}")]), 1, pull)
    if to not in names:
        raise Refused(422, f"to={to[:60]}", "no such class", f"the classes are {', '.join(names[:50])}")
    return torch.tensor([names.index(to)])


def _edited(model: str, to: str, found: work.Changed, multi_label: bool) -> dict[str, Any]:
    def word(logits: Any) -> str:
        if multi_label:
            return ";".join(name for name, value in zip(found.names, logits, strict=True) if value > 0)
        return found.names[int(np.asarray(logits).argmax())]

    one = found.edited
    before = {"label": word(one.before[0].tolist()), "p_target": float(one.p_before[0])}
    after = {"label": word(one.after[0].tolist()), "p_target": float(one.p_after[0])}
    rows = zip(found.shares, found.p_target, found.logits.tolist(), found.frames, strict=True)
    frames = [
        {"share": float(share), "p_target": float(p), "label": word(logits), "png": pictures.base64_png(image)}
        for share, p, logits, image in rows
    ]
    whole = {"reached": bool(one.reached[0]), "change": float(one.near.rms[0])}
    return {"model": model, "to": to, **whole, "before": before, "after": after, "frames": frames}


@router.get("/{model}/report", responses=GET | {200: {"content": {"text/html": {}}}}, response_class=FileResponse)
async def report(request: Request, model: str) -> Response:
    """The report of the model's run, a page by itself."""
    served = service_of(request).model(model, "report")
    assert served.report is not None
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'self'"
    return FileResponse(served.report, media_type="text/html", headers={"Content-Security-Policy": policy})


def arrived(request: Request) -> float | None:
    """When all of it had (`time.monotonic`)."""
    when: float | None = request.scope.get(ARRIVED)
    return when


def _accepts(request: Request) -> str:
    """The first of the forms we have that the caller accepts; JSON where nothing else is named."""
    named = [part.partition(";")[0].strip() for part in request.headers.get("accept", "").split(",")]
    return next((kind for kind in named if kind in (STREAM, PNG, "application/json")), "application/json")


def _count(service: Service, ability: str, model: str, images: int, start: float) -> None:
    service.metrics.requests.labels(ability, model, "200").inc()
    service.metrics.images.labels(ability, model).inc(images)
    service.metrics.seconds.labels(ability).observe(time.monotonic() - start)


async def _json(make: Any, size: int) -> Response:
    """JSON of what `make` returns, in a thread where there is much to encode."""
    whole = lambda: json.dumps(make(), separators=(",", ":"))  # noqa: E731
    return Response(whole() if size < FIRST else await run_sync(whole), media_type="application/json")


__all__ = ["Gone", "router"]
