"""The application: routes, page, error messages, security headers, metrics and the OpenAPI description."""

import logging
import time
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import mcdi
from mcdi.errors import McdiError
from mcdi.serve import wire
from mcdi.serve.api import router
from mcdi.serve.deployment import Deployment
from mcdi.serve.limits import Refused
from mcdi.serve.service import Service

log = logging.getLogger("mcdi.serve")
PAGE = Path(__file__).parent / "page"
BODIES = (wire.GenerateBody, wire.PredictBody, wire.Task, wire.LandscapeBody)
SECURITY_HEADERS = [
    (b"content-security-policy", b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


def create_app(service: Service, deployment: Deployment = Deployment()) -> FastAPI:  # noqa: B008 - it is frozen
    """The application of one service, which the caller closes."""
    # A redirect to the path with or without its last slash would name the host that the request sent.
    app = FastAPI(title="mcdi", version=mcdi.__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.service = service
    app.include_router(router)
    for kind in (McdiError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _error)

    @app.get("/", include_in_schema=False)
    def index() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    root = deployment.root_path
    if root and any(f"{path}/".startswith(f"{root}/") for path in ("/page", *_openapi(app, root)["paths"])):
        raise McdiError(f"root path {root} is a path of the server itself: choose another")
    app.add_middleware(ResponseMiddleware, service=service, deployment=deployment)
    if deployment.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=deployment.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "Content-Encoding"],
            expose_headers=["X-Mcdi-Milliseconds", "X-Mcdi-Confidence", "Retry-After"],
        )
    app.openapi = lambda: _openapi(app, root)  # type: ignore[method-assign]
    return app


class ResponseMiddleware:
    """Refuses what the deployment does not allow, and adds security headers and metrics to every response; logs an unexpected
    exception and answers status 500."""

    def __init__(self, app: ASGIApp, service: Service, deployment: Deployment) -> None:
        self.app, self.service, self.deployment = app, service, deployment

    async def __call__(self, sent: Scope, receive: Receive, send: Send) -> None:
        if sent["type"] != "http":
            await self.app(sent, receive, send)
            return
        start, status, scope = time.perf_counter(), 0, self.deployment.local_scope(sent)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *SECURITY_HEADERS]
            await send(message)

        try:
            self.deployment.check(scope)
            root = self.deployment.root_path  # alone: the page's links are relative to the path with its slash
            app = self.app if scope["path"] != root else RedirectResponse(f"{root}/")
            await app(scope, receive, send_with_headers)
        except Refused as error:
            await _answer(error.status, str(error), error.headers)(scope, receive, send_with_headers)
        except Exception:
            log.exception("%s %s", scope["method"], _route(scope))
            if not status:
                await _answer(500, "internal server error: see the log of the server")(scope, receive, send_with_headers)
        finally:
            if status:
                self.service.metrics.requests.labels(_route(scope), str(status)).inc()
                self.service.metrics.seconds.labels(_route(scope)).observe(time.perf_counter() - start)


def _route(scope: Scope) -> str:
    """The route's pattern, never the requested path: metrics need a bounded number of labels."""
    pattern = getattr(scope.get("route"), "path", None)
    page = scope.get("root_path", "").endswith("/page")  # of files, whose root path it becomes
    return pattern if isinstance(pattern, str) else "/page" if page else "other"


def _answer(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": message}, status, headers)


async def _error(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, Refused):
        return _answer(error.status, str(error), error.headers)
    if isinstance(error, HTTPException):
        messages = {404: "unknown path: GET /openapi.json lists the routes", 405: "wrong method: see GET /openapi.json"}
        return _answer(error.status_code, messages.get(error.status_code, str(error.detail)), dict(error.headers or {}))
    if isinstance(error, RequestValidationError):
        return _answer(422, "a parameter of the URL or a header does not match GET /openapi.json")
    return _answer(422, str(error))


def _openapi(app: FastAPI, root_path: str) -> dict[str, Any]:
    """FastAPI's description, with the bodies that `Service.body` parses."""
    if app.openapi_schema is None:
        servers: Any = [{"url": root_path}] if root_path else None
        about: dict[str, Any] = {"title": app.title, "version": app.version, "description": mcdi.__doc__}
        schema = get_openapi(**about, routes=app.routes, servers=servers)
        schemas = schema["components"]["schemas"]
        for body in BODIES:
            description = body.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(description.pop("$defs", {}))
            schemas[body.__name__] = description
        content = schema["paths"]["/v1/generate"]["post"]["responses"]["200"]["content"]
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
        app.openapi_schema = schema
    return app.openapi_schema
