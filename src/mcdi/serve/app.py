"""How do the routes become an application? Errors as one sentence, headers, metrics, the page, and what OpenAPI says."""

import logging
import time
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import mcdi
from mcdi.errors import McdiError
from mcdi.serve import wire
from mcdi.serve.api import router
from mcdi.serve.refusals import Refused
from mcdi.serve.service import Service

log = logging.getLogger("mcdi.serve")
PAGE = Path(__file__).parent / "page"
BODIES = (wire.GenerateBody, wire.PredictBody, wire.Task, wire.LandscapeBody)
HEADERS = [
    (b"content-security-policy", b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


def create_app(service: Service) -> FastAPI:
    """The application; the service is closed by whoever made it."""
    app = FastAPI(title="mcdi", version=mcdi.__version__, docs_url=None, redoc_url=None)
    app.state.service = service
    app.include_router(router)
    app.add_exception_handler(McdiError, _mcdi_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)

    @app.get("/", include_in_schema=False)
    def index() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    app.add_middleware(Around, service=service)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


class Around:
    """Every answer: headers of safety, a count, its time; a bug becomes one sentence and a traceback in the log."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        try:
            await self.app(scope, receive, answered)
        except Exception:
            log.exception("%s %s", scope["method"], _route(scope))
            if not status:
                await _answer(500, "the server made a mistake: its log has the details")(scope, receive, answered)
        finally:
            if status:
                self.service.metrics.answered(_route(scope), status, time.perf_counter() - start)


def _route(scope: Scope) -> str:
    """The route's pattern: never what a stranger typed, of which there is no end."""
    found = getattr(scope.get("route"), "path", None)
    return found if isinstance(found, str) else "/page" if scope["path"].startswith("/page/") else "other"


def _answer(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": sentence}, status, headers)


async def _mcdi_error(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, Refused):
        return _answer(error.status, str(error), error.headers)
    return _answer(422, str(error))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    known = {404: "there is nothing here: GET /openapi.json lists the routes", 405: "this route takes another method"}
    return _answer(error.status_code, known.get(error.status_code, str(error.detail)), dict(error.headers or {}))


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    return _answer(422, "a parameter of the address or a header is not as GET /openapi.json describes it")


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's, with the bodies that it does not parse itself."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes, description=mcdi.__doc__)
        known = schema["components"]["schemas"]
        for body in BODIES:
            found = body.model_json_schema(ref_template="#/components/schemas/{model}")
            known.update(found.pop("$defs", {}))
            known[body.__name__] = found
        binary = {"schema": {"type": "string", "format": "binary"}}
        answer = schema["paths"]["/v1/generate"]["post"]["responses"]["200"]
        answer["content"]["application/octet-stream"] = binary
        app.openapi_schema = schema
    return app.openapi_schema
