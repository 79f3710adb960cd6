"""A request's body: JSON, a form with files, or a bare picture, checked and turned into what the models take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from torch import Tensor

from ..settings.data import DataSettings
from ..settings.serve import ServeSettings
from . import pictures
from .mistakes import mistake
from .refused import Refused

M = TypeVar("M", bound=BaseModel)
RAW = ("image/png", "image/jpeg", "image/webp", "application/octet-stream")
JSON, FORM = "application/json", "multipart/form-data"
MOST_FIELDS = 20
MOST_JSON = 2**20  # bytes of JSON without pictures
TOGETHER = 4  # times as many pixels as one picture may have, all pictures of a request
TEXTS = ("to", "label", "sampler", "guide")  # fields of forms that are text, also where it looks like a number


@dataclass(frozen=True)
class Sent:
    """Files by the name they came under, and the other fields of a form as text."""

    files: list[tuple[str, str, bytes]]  # (field, file name, content)
    fields: dict[str, str]


def kind_of(request: Request) -> str:
    """The body's type, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def parsed(request: Request, model: type[M]) -> M:
    """A JSON body as this model. Raises `Refused`."""
    if kind_of(request) != JSON:
        raise wrong_type(kind_of(request), JSON)
    content = await request.body()
    if len(content) > MOST_JSON and not {"image", "images"} & set(model.model_fields):
        raise Refused(413, "body", f"has more than {MOST_JSON:,} bytes", "send what the schema names")
    try:
        values = from_json(content, allow_inf_nan=False)  # stricter than json: no NaN, no halves of characters
    except (ValueError, RecursionError):
        raise Refused(400, "body", "is not JSON", "send {...} in UTF-8; NaN and Infinity are none") from None
    return checked(model, values)


def checked(model: type[M], values: Any) -> M:
    """Values as this model. Raises `Refused` naming the first mistake and its place."""
    if not isinstance(values, dict):
        raise Refused(422, "body", "is no JSON object", "send {...}")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise mistake(error.errors(include_url=False), list(model.model_fields)) from None


def wrong_type(found: str, *valid: str) -> Refused:
    return Refused(
        415,
        f"Content-Type: {found or 'none'}"[:120],
        "is not taken here",
        f"send {', '.join(valid[:-1])}{' or ' * (len(valid) > 1)}{valid[-1]}",
    )


class _Form(MultiPartParser):
    """Keeps files in memory, whose sum is limited: nothing that callers send is written to a disk."""

    spool_max_size = 2**62


async def form(request: Request, limits: ServeSettings) -> Sent:
    """A form's files and fields. Raises `Refused`."""
    # as many files as there may be images, and one more, so that too many are told from a broken form
    most: dict[str, int] = {"max_files": limits.images + 2, "max_fields": MOST_FIELDS, "max_part_size": limits.bytes}
    try:
        found = await _Form(request.headers, request.stream(), **most).parse()
    except MultiPartException as error:
        what = error.message
        raise Refused(413 if "Too many" in what else 400, "form", f"cannot be read: {what}") from None
    except (ValueError, LookupError):  # of headers that are no text
        raise Refused(400, "form", "cannot be read", "send multipart/form-data with a boundary") from None
    files, fields = [], {}
    try:
        for name, value in found.multi_items():
            if isinstance(value, UploadFile):
                files.append((name, plain(value.filename), await value.read()))
            else:
                fields[name] = value
    finally:
        await found.close()
    return Sent(files, fields)


def plain(name: str | None) -> str:
    """What a file was called, without folders; only ever shown, never opened."""
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    return "".join(c for c in last if c.isprintable())[:100] or "image"


async def sent_pictures(request: Request, model: type[Any], limits: ServeSettings) -> list[tuple[str, bytes]]:
    """(name, content) of one picture or several: files called `images` (or `image`) of a form, one bare picture, or
    `images` in base64. model: of the JSON. Raises `Refused`."""
    kind = kind_of(request)
    if kind == FORM:
        sent = await form(request, limits)
        known = [(name, content) for field, name, content in sent.files if field in ("image", "images")]
        if sent.fields or len(known) < len(sent.files):
            others = [*sent.fields, *(field for field, *_ in sent.files if field not in ("image", "images"))]
            what = "is no file" if others[0] in ("image", "images") else "is not expected in this form"
            raise Refused(422, others[0][:100], what, "send files called images")
        found = known
    elif kind in RAW:
        found = [("image", await request.body())]
    elif kind == JSON:
        given = (await parsed(request, model)).images
        found = [(f"images.{i}", pictures.from_base64(text, f"images.{i}")) for i, text in enumerate(given)]
    else:
        raise wrong_type(kind, FORM, *RAW[:3], JSON)
    if not found:
        raise Refused(422, "images", "no picture was sent", "send files called images")
    check_count(len(found), limits)
    return found


def check_count(n: int, limits: ServeSettings) -> None:
    """Raises `Refused` for more images than one request may hold."""
    if n > limits.images:
        raise Refused(422, f"{n} images", f"one request may hold {limits.images}", "ask several times")


async def as_tensor(
    found: Sequence[tuple[str, bytes]], how: DataSettings, limits: ServeSettings, decoders: CapacityLimiter
) -> Tensor:
    """uint8 (N, C, H, W), decoded in a thread, of which decoders lets a few work at a time. Raises `Refused`."""

    def decode() -> Tensor:
        left = TOGETHER * limits.pixels
        rows = []
        for name, data in found:
            width, height = pictures.header(data, name, limits.pixels)
            left -= width * height
            if left < 0:
                what = f"more than {TOGETHER * limits.pixels:,} pixels together"
                raise Refused(413, f"{len(found)} pictures", what, "send fewer or smaller pictures")
            rows.append(torch.from_numpy(pictures.read(data, name, how, (width, height), limits.pixels)))
        return torch.stack(rows)

    return await run_sync(decode, limiter=decoders)


async def with_files(
    request: Request, model: type[M], limits: ServeSettings, files: Sequence[str]
) -> tuple[M, dict[str, bytes]]:
    """A request that holds pictures under these names, as JSON with base64 or as a form with files: the checked model,
    and the contents by name. Raises `Refused`."""
    kind = kind_of(request)
    if kind == JSON:
        asked = await parsed(request, model)
        return asked, {name: pictures.from_base64(getattr(asked, name), name) for name in files}
    if kind != FORM:
        raise wrong_type(kind, JSON, FORM)
    sent = await form(request, limits)
    contents = {field: content for field, _, content in sent.files if field in files}
    for name in files:
        if name in sent.fields:
            raise Refused(422, name, "is no file", f"send one: -F {name}=@FILE with curl")
    unexpected = [field for field, *_ in sent.files if field not in files]
    if unexpected:
        raise Refused(422, unexpected[0][:100], "is not expected in this form", f"its files are {', '.join(files)}")
    values: dict[str, Any] = {name: text if name in TEXTS else as_json(text) for name, text in sent.fields.items()}
    values |= dict.fromkeys(contents, "file")
    return checked(model, values), contents


def as_json(text: str) -> Any:
    """A field of a form: a number, a list, true, or else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
