"""The application: routes, the page, health, and what is told when something goes wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from .. import __version__
from ..errors import UserError
from ..settings.serve import ServeSettings
from . import schemas
from .keys import Keys
from .limits import Limits
from .metrics import TYPE
from .mistakes import mistake
from .models import Served
from .refused import Refused
from .routes import GET, refusals, router
from .service import Gone, Service

PAGE = Path(__file__).parent / "page"
POLICY = (  # nothing of the page comes from elsewhere; reports hold their own styles
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; frame-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
)
CLIENT_LEFT = 499  # nobody reads it; the log does


def create_app(
    places: Sequence[Mapping[str, Served]],
    settings: ServeSettings,
    keys: Keys | None = None,
    hosts: Sequence[str] | None = None,
) -> FastAPI:
    """The application over these models ({name: model} for each device). hosts: names it answers to, None = any.

    `app.state.service` is at work between the application's start and its end.
    """
    service = Service(places, settings, keys or Keys())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.close()

    app = FastAPI(title="twofold", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.include_router(router)
    _add_signs_of_life(app, service)
    _add_page(app)
    _add_refusals(app, service)
    app.add_middleware(Limits, hosts=hosts, most=settings.bytes, seconds=settings.upload, failed=service.failed)
    app.openapi = lambda: _schema(app)  # type: ignore[method-assign]
    return app


def _add_signs_of_life(app: FastAPI, service: Service) -> None:
    @app.head("/health", include_in_schema=False)
    @app.get("/health", response_model=schemas.Status, responses=refusals(421, 503), tags=["server"])
    async def health() -> Response:
        """Whether the process and each of its devices are alive."""
        service.check_alive()
        return JSONResponse({"status": "ok"})

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", response_model=schemas.Status, responses=refusals(421, 503), tags=["server"])
    async def ready() -> Response:
        """Whether requests are taken."""
        service.check_open()
        return JSONResponse({"status": "ready"})

    @app.get(
        "/metrics",
        responses=refusals(421) | {200: {"content": {"text/plain": {}}}},
        response_class=Response,
        tags=["server"],
    )
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(service.metrics.text(), media_type=TYPE)


def _add_page(app: FastAPI) -> None:
    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html", media_type="text/html", headers={"Content-Security-Policy": POLICY})

    app.mount("/static", StaticFiles(directory=PAGE), name="static")


def _add_refusals(app: FastAPI, service: Service) -> None:
    """Every answer that is no result has the same form."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return _answer(service, request, error)

    @app.exception_handler(UserError)
    async def mistaken(request: Request, error: UserError) -> Response:
        return _answer(service, request, Refused.by(error))

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        answer = _answer(
            service, request, Refused(error.status_code, request.url.path[:200], str(error.detail).lower())
        )
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Gone)
    async def gone(request: Request, error: Gone) -> Response:
        return Response(status_code=CLIENT_LEFT)

    from fastapi.exceptions import RequestValidationError

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _answer(service, request, mistake(error.errors()))


def _answer(service: Service, request: Request, refused: Refused) -> JSONResponse:
    ability = request.scope.get("path", "").rpartition("/")[2]
    route = request.scope.get("route")
    known = ability if route is not None and getattr(route, "path", "").startswith("/v1/models/{model}/") else ""
    model = str(request.scope.get("path_params", {}).get("model", ""))
    model = model if model in service.models else ""
    service.metrics.requests.labels(known, model, str(refused.status)).inc()
    return JSONResponse(refused.body(), refused.status, headers=refused.headers())


def _schema(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the requests' models, which routes check by themselves."""
    if app.openapi_schema:
        return app.openapi_schema
    found = get_openapi(
        title=app.title, version=app.version, description="Generates and recognizes.", routes=app.routes
    )
    asked: list[Any] = [schemas.Generate, schemas.Inpaint, schemas.Vary, schemas.Pictures, schemas.Edit]
    _, extra = models_json_schema([(m, "validation") for m in asked], ref_template="#/components/schemas/{model}")
    found["components"]["schemas"] |= extra["$defs"]
    keys = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    if app.state.service.keys.digests:
        found["components"]["securitySchemes"] = keys
        for path, methods in found["paths"].items():
            if path.startswith("/v1/"):
                for method in methods.values():
                    method["security"] = [{"bearer": []}, {"key": []}]
    app.openapi_schema = found
    return found


__all__ = ["GET", "create_app"]
