"""The HTTP routes."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import generate_latest
from pydantic import BaseModel

import mcdi
from mcdi.errors import McdiError
from mcdi.generator.api import Generator, Weights
from mcdi.generator.plain import plain_network
from mcdi.methods.sampling import Generated
from mcdi.networks.backbones.texts import check_same_kind, sentences_in
from mcdi.serve import wire
from mcdi.serve.classifier_file import classifier_file
from mcdi.serve.decode import SupportSet, decode_inputs, decode_support
from mcdi.serve.handles import StoredWeights
from mcdi.serve.limits import Refused
from mcdi.serve.service import Service
from mcdi.serve.work import Options, generation, prediction, trace_chain
from mcdi.utils.files import tensor_bytes

router = APIRouter()
bearer = HTTPBearer(auto_error=False, description="A key of --api-key-file; not needed if the server runs without one.")
REFUSALS = {
    400: "The body is not JSON, or its length is given twice.",
    401: "The key is missing or wrong.",
    404: "The model or the handle is unknown.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The content type is not JSON, or the content encoding not gzip.",
    421: "The header Host names another server.",
    422: "A value does not fit the model or the limits.",
    429: "Too many requests are waiting; Retry-After gives the delay in seconds.",
    503: "The server is too busy.",
    504: "The computation timed out.",
}


async def service_of(request: Request) -> Service:
    return request.app.state.service


Serving = Annotated[Service, Depends(service_of)]


async def tenant_of(
    request: Request, service: Serving, _: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> str:
    """Of the bytes that were sent: FastAPI's text of them loses some characters beyond ASCII at its ends."""
    scheme, _space, key = dict(request.scope["headers"]).get(b"authorization", b"").partition(b" ")
    return service.keys.tenant(key.strip(b" ") if scheme.lower() == b"bearer" else None)


Tenant = Annotated[str, Depends(tenant_of)]


def documented(body: type[BaseModel] | None, *statuses: int) -> dict[str, Any]:
    """OpenAPI entries of a route: errors (default: all), and the body, which Service.body parses: FastAPI is slower."""
    responses = {s: {"model": wire.ErrorMessage, "description": REFUSALS[s]} for s in statuses or REFUSALS}
    entries: dict[str, Any] = {"responses": responses}
    if body is not None:
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}}
        entries["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
    return entries


@router.get("/healthz", tags=["operation"])
async def healthz() -> wire.Health:
    """Liveness: the process answers."""
    return wire.Health(status="ok", version=mcdi.__version__)


@router.get("/readyz", tags=["operation"], **documented(None, 503))
async def readyz(service: Serving) -> wire.Health:
    """Readiness: the queue has room for another request."""
    if service.full:
        raise Refused(503, "the queue is full: retry later, or use another server")
    return wire.Health(status="ready", version=mcdi.__version__)


@router.get("/metrics", tags=["operation"], response_class=Response)
def metrics(service: Serving) -> Response:
    """Metrics in the Prometheus text format."""
    return Response(generate_latest(service.metrics.registry), media_type="text/plain; version=0.0.4")


@router.get("/v1/models", tags=["weights"], **documented(None, 401))
def models(service: Serving, tenant: Tenant) -> wire.Models:
    """The served models and the inputs that each one accepts."""
    return wire.Models(models=service.models.info(service.limits))


@router.post(
    "/v1/generate",
    tags=["weights"],
    response_model=wire.GeneratedNetwork | wire.Generated,
    **documented(wire.GenerateBody),
)
async def generate(request: Request, service: Serving, tenant: Tenant) -> Any:
    """Weights for a task. With format "handle" the server keeps the weights and answers JSON; with "network" the answer also
    holds the network as a list of operations. With "safetensors" it sends the file, whose metadata name model and classes,
    and the headers X-Mcdi-Milliseconds and X-Mcdi-Confidence; with "onnx" the same headers and a file that classifies images
    without mcdi."""
    start = time.perf_counter()
    async with service.admitted(request, tenant, wire.GenerateBody) as body:
        if (body.samples or 1) > service.limits.samples:
            raise McdiError(f"samples = {body.samples}: ask for at most {service.limits.samples}")
        generator, support, (weights, confidence) = await _generate(service, tenant, body, body.samples)
        if body.format in ("handle", "network"):
            answer: type[wire.Generated] = wire.Generated
            more: dict[str, Any] = {}
            if body.format == "network":  # before a handle is kept: not every network is a list of operations
                answer = wire.GeneratedNetwork
                more = {"operations": await service.in_decoder(tenant, _operations, generator, weights)}
            handle = service.handles.add(tenant, StoredWeights(generator, weights, support.classes, sentences_in(support.x)))
            shapes = {n: list(w.shape) for n, w in weights.items()}
            content: Any = {"handle": handle, "model": body.model, "classes": list(support.classes), "names": shapes, **more}
            return answer(**content, milliseconds=_since(start), confidence=float(confidence))
        if body.format == "onnx":
            async with service.writer(tenant):
                data = await classifier_file(generator, weights, support.classes, service.models.code.get(body.model))
        else:
            data = tensor_bytes(weights, {"model": body.model, "classes": support.classes})
    headers = {"X-Mcdi-Milliseconds": f"{_since(start):.3f}", "X-Mcdi-Confidence": f"{float(confidence):.4f}"}
    return Response(data, media_type="application/octet-stream", headers=headers)


@router.post("/v1/predict", tags=["weights"], **documented(wire.PredictBody))
async def predict(request: Request, service: Serving, tenant: Tenant) -> wire.Predicted:
    """Predictions for queries, with the weights of a handle or with weights generated for this request only."""
    start = time.perf_counter()
    async with service.admitted(request, tenant, wire.PredictBody) as body:
        if body.handle is not None:
            stored = service.handles.get(tenant, body.handle)
        else:
            generator, support, generated = await _generate(service, tenant, body.task(), None)
            stored = StoredWeights(generator, generated.weights, support.classes, sentences_in(support.x))
        x = await service.in_decoder(tenant, decode_inputs, body.queries, "queries", stored.generator, service.limits)
        check_same_kind(stored.sentences, sentences_in(x))
        out = await service.compute(tenant, prediction(stored, x))
    values, classes, took = out.tolist(), list(stored.classes), _since(start)
    if not classes:
        return wire.Predicted(labels=[], probabilities=[], classes=[], outputs=values, milliseconds=took)
    labels = [classes[i] for i in out.argmax(-1).tolist()]
    return wire.Predicted(labels=labels, probabilities=values, classes=classes, outputs=[], milliseconds=took)


@router.post("/v1/chain", tags=["chains"], **documented(wire.Task))
async def chain(request: Request, service: Serving, tenant: Tenant) -> wire.Chain:
    """Every state of one chain, with its loss on the support set. By default it starts from noise and takes T steps."""
    async with service.admitted(request, tenant, wire.Task) as body:
        return await _trace(service, tenant, body, None)


@router.post("/v1/landscape", tags=["chains"], **documented(wire.LandscapeBody))
async def landscape(request: Request, service: Serving, tenant: Tenant) -> wire.Landscape:
    """The chain of /v1/chain and the loss on the support set, in the plane through its end in which it varies most."""
    async with service.admitted(request, tenant, wire.LandscapeBody) as body:
        return await _trace(service, tenant, body, body.grid)


async def _decode(service: Service, tenant: str, task: wire.Task) -> tuple[Generator, SupportSet]:
    generator = service.models.get(task.model)
    return generator, await service.in_decoder(tenant, decode_support, task, generator, service.limits)


async def _generate(
    service: Service, tenant: str, task: wire.Task, samples: int | None
) -> tuple[Generator, SupportSet, Generated[Weights]]:
    generator, support = await _decode(service, tenant, task)
    options = Options(task.steps, task.temperature, samples)
    return generator, support, await service.compute(tenant, generation(generator, support, task.seed, options))


async def _trace(service: Service, tenant: str, task: wire.Task, grid: int | None) -> Any:
    generator, support = await _decode(service, tenant, task)
    options = Options(task.steps, task.temperature)
    return await service.compute(tenant, trace_chain(generator, support, task.seed, options, grid))


def _operations(generator: Generator, weights: Weights) -> list[wire.Operation]:
    return [wire.Operation.of(step) for step in plain_network(generator, weights)]


def _since(start: float) -> float:
    return 1000 * (time.perf_counter() - start)
