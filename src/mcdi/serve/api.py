"""Which routes are there, and what does each do?"""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel

import mcdi
from mcdi.errors import McdiError
from mcdi.generator.api import Generator
from mcdi.serve import wire
from mcdi.serve.decode import Examples, examples_of, inputs_of
from mcdi.serve.handles import Kept
from mcdi.serve.refusals import busy
from mcdi.serve.service import Service
from mcdi.serve.work import Made, Options, generation, look, prediction
from mcdi.utils.files import tensor_bytes

router = APIRouter()
bearer = HTTPBearer(auto_error=False, description="A key of the server's --api-key-file; a server without one asks for none.")
REFUSALS = {
    400: "The body is no JSON.",
    401: "The key is missing or wrong.",
    404: "The model or the handle is unknown.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body does not say that it is JSON.",
    422: "A value does not fit the model or the limits.",
    429: "Too many requests are waiting; Retry-After says when to come back.",
    503: "No turn came in time.",
    504: "No answer was ready in time.",
}


def service_of(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


Serving = Annotated[Service, Depends(service_of)]


def tenant_of(service: Serving, given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> str:
    return service.keys.tenant(given.credentials if given else None)


Tenant = Annotated[str, Depends(tenant_of)]


def documented(body: type[BaseModel] | None, *statuses: int) -> dict[str, Any]:
    """What OpenAPI says of a route beside its answer. Bodies are parsed by Service.body: far faster than FastAPI would."""
    responses = {s: {"model": wire.Fault, "description": REFUSALS[s]} for s in statuses}
    if body is None:
        return {"responses": responses}
    schema = {"$ref": f"#/components/schemas/{body.__name__}"}
    return {
        "responses": responses,
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
    }


POSTED = tuple(REFUSALS)


@router.get("/healthz", tags=["operation"])
def healthz() -> wire.Health:
    """Whether the process answers."""
    return wire.Health(status="ok", version=mcdi.__version__)


@router.get("/readyz", tags=["operation"], **documented(None, 503))
async def readyz(service: Serving) -> wire.Health:
    """Whether there is room for one request more."""
    if not service.room:
        raise busy(503, "all places are taken: send the next request elsewhere, or later")
    return wire.Health(status="ready", version=mcdi.__version__)


@router.get("/metrics", tags=["operation"], response_class=Response)
def metrics(service: Serving) -> Response:
    """Counters for Prometheus."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


@router.get("/v1/models", tags=["weights"], **documented(None, 401))
def models(service: Serving, tenant: Tenant) -> wire.Models:
    """What is served, and what each model reads."""
    return wire.Models(models=service.models.info(service.limits))


@router.post(
    "/v1/generate",
    tags=["weights"],
    response_model=wire.Generated,
    **documented(wire.GenerateBody, *POSTED),
)
async def generate(request: Request, service: Serving, tenant: Tenant) -> Any:
    """Weights for a task. format "handle": JSON; "safetensors": the file, its metadata naming model and classes, with the
    headers X-Mcdi-Milliseconds and X-Mcdi-Trust."""
    start = time.perf_counter()
    with service.admitted():
        body = await service.body(request, wire.GenerateBody)
        if (body.samples or 1) > service.limits.samples:
            raise McdiError(f"samples = {body.samples}: ask for at most {service.limits.samples}")
        generator, examples, made = await _made(service, body, body.samples)
        if body.format == "handle":
            handle = service.handles.add(tenant, Kept(generator, made.weights, examples.classes))
            return wire.Generated(
                handle=handle,
                model=body.model,
                classes=list(examples.classes),
                names={n: list(w.shape) for n, w in made.weights.items()},
                milliseconds=_since(start),
                trust=made.trust,
            )
        data = tensor_bytes(made.weights, {"model": body.model, "classes": examples.classes})
    headers = {"X-Mcdi-Milliseconds": f"{_since(start):.3f}", "X-Mcdi-Trust": f"{made.trust:.4f}"}
    return Response(data, media_type="application/octet-stream", headers=headers)


@router.post("/v1/predict", tags=["weights"], **documented(wire.PredictBody, *POSTED))
async def predict(request: Request, service: Serving, tenant: Tenant) -> wire.Predicted:
    """The classes of queries, by weights that a handle names or that are made for them."""
    start = time.perf_counter()
    with service.admitted():
        body = await service.body(request, wire.PredictBody)
        if body.handle is not None:
            kept = service.handles.get(tenant, body.handle)
        else:
            generator, examples, made = await _made(service, body.task(), None)
            kept = Kept(generator, made.weights, examples.classes)
        x = await service.aside(inputs_of, body.queries, "queries", kept.generator, service.limits)
        out = await service.torch(prediction(kept, x))
    if not kept.classes:
        return wire.Predicted(labels=[], probabilities=[], classes=[], outputs=out.tolist(), milliseconds=_since(start))
    return wire.Predicted(
        labels=[kept.classes[i] for i in out.argmax(-1).tolist()],
        probabilities=out.tolist(),
        classes=list(kept.classes),
        outputs=[],
        milliseconds=_since(start),
    )


@router.post("/v1/chain", tags=["chains"], **documented(wire.Task, *POSTED))
async def chain(request: Request, service: Serving, tenant: Tenant) -> wire.Chain:
    """Every state of one chain and its loss on the support set: from noise in T steps, where nothing else is asked."""
    with service.admitted():
        body = await service.body(request, wire.Task)
        return await _looked(service, body, None)


@router.post("/v1/landscape", tags=["chains"], **documented(wire.LandscapeBody, *POSTED))
async def landscape(request: Request, service: Serving, tenant: Tenant) -> wire.Landscape:
    """The same chain over the loss on the support set, in the plane through its end in which it moves most."""
    with service.admitted():
        body = await service.body(request, wire.LandscapeBody)
        return await _looked(service, body, body.grid)


async def _made(service: Service, task: wire.Task, samples: int | None) -> tuple[Generator, Examples, Made]:
    generator = service.models.get(task.model)
    examples = await service.aside(examples_of, task, generator, service.limits)
    options = Options(task.steps, task.temperature, samples)
    return generator, examples, await service.torch(generation(generator, examples, task.seed, options))


async def _looked(service: Service, task: wire.Task, grid: int | None) -> Any:
    generator = service.models.get(task.model)
    examples = await service.aside(examples_of, task, generator, service.limits)
    options = Options(task.steps, task.temperature)
    return await service.torch(look(generator, examples, task.seed, options, grid))


def _since(start: float) -> float:
    return 1000 * (time.perf_counter() - start)
