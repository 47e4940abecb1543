"""JSON schemas of requests and responses, checked by pydantic and described by OpenAPI."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from mcdi.generator import plain

Label = int | str


def _label(value: Any) -> Any:
    """An integer of any size, a name or a finite number."""
    words = {None: "null", True: "true", False: "false"}
    if isinstance(value, float) and not math.isfinite(value):
        wrong = "NaN or infinite"
    elif value is None or isinstance(value, bool):
        wrong = words[value]
    elif isinstance(value, int | float | str):
        return value
    else:
        wrong = "a list" if isinstance(value, list) else "an object"
    raise PydanticCustomError("label", f"is {wrong}: send an integer or a name; for a regression a number")


LABEL_SCHEMA = {"anyOf": [{"type": kind} for kind in ("integer", "string", "number")]}
Labels = list[Annotated[Any, PlainValidator(_label), WithJsonSchema(LABEL_SCHEMA)]]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


class Strict(BaseModel):
    """Of a request: nothing is converted, true is no 1 and "5" no 5."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


class Inputs(Strict):
    """Examples of one type: exactly one of the three fields."""

    images: list[str] | None = Field(None, description="Image files (PNG, JPEG, GIF, BMP, WebP) in base64.", examples=[[PIXEL]])
    features: list[list[float]] | None = Field(None, description="Feature vectors of the model's width.")
    texts: list[str | Annotated[list[str], Field(min_length=1, max_length=2)]] | None = Field(
        None, description="Sentences or pairs."
    )


class SamplingOptions(Strict):
    """Options of the sampling chain."""

    steps: int | None = Field(None, ge=1, le=100_000, description="Denoising steps, 1..T (default: as trained).")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the noise.")
    temperature: float | None = Field(None, ge=0, le=100, description="Scale of the noise (default: as trained).")


class Task(SamplingOptions):
    """A model, and the labelled examples for which it generates weights."""

    model: str = Field(max_length=200, description="A name that GET /v1/models lists.", examples=["mc-di-0"])
    support: Inputs
    labels: Labels = Field(
        description="One per example: all integers or all names; real numbers for a regression.", examples=[["ring", "stroke"]]
    )


class GenerateBody(Task):
    samples: int | None = Field(None, ge=1, le=1000, description="Chains to average (default: as trained).")
    format: Literal["safetensors", "handle", "network", "onnx"] = Field(
        "handle",
        description="The weights; a handle: the server keeps them; a handle and the network, to be run elsewhere; or the "
        "network with its backbone as an ONNX file, which takes up to two minutes.",
    )


class PredictBody(SamplingOptions):
    """Queries, and either a handle or a task, whose weights are then generated for this request only."""

    queries: Inputs
    handle: str | None = Field(None, max_length=100, description="A handle from POST /v1/generate.")
    model: str | None = Field(None, max_length=200)
    support: Inputs | None = None
    labels: Labels | None = None

    @model_validator(mode="after")
    def _either(self) -> Self:
        task = [self.model, self.support, self.labels]
        if any(v is not None for v in (task if self.handle is not None else [])) or (self.handle is None and None in task):
            raise PydanticCustomError("either", "give either a handle, or model, support and labels")
        return self

    def task(self) -> Task:
        """The task, if there is no handle."""
        return Task.model_construct(None, **{n: getattr(self, n) for n in Task.model_fields})


class LandscapeBody(Task):
    grid: int = Field(15, ge=2, le=41, description="Points along each side.")


class ErrorMessage(BaseModel):
    error: str = Field(description="What is wrong and how to correct it, in one sentence.")


class Generated(BaseModel):
    handle: str
    model: str
    classes: list[Label] = Field(description="The labels of the request, in the order of the rows; empty for a regression.")
    names: dict[str, list[int]] = Field(description="The shape of every tensor.")
    milliseconds: float
    confidence: float = Field(description="From 1, in-distribution, to 0, replaced by ridge regression.")


class Operation(BaseModel):
    kind: plain.Kind
    inputs: list[int] = Field(description="Shape of what it reads: channels, height and width, or numbers.")
    shape: list[int] = Field(description="Shape of what it makes.")
    sizes: dict[str, int]
    weight: list[float] = Field(description="Output after output, each as (inputs, kernel, kernel).")
    bias: list[float]
    eps: float

    @classmethod
    def of(cls, step: plain.Operation) -> Self:
        """An operation with its tensors as lists of numbers."""

        def numbers(values: Tensor | None) -> list[float]:
            return [] if values is None else values.double().flatten().round(decimals=7).tolist()

        return cls.model_validate({**vars(step), "weight": numbers(step.weight), "bias": numbers(step.bias)})


class GeneratedNetwork(Generated):
    operations: list[Operation] = Field(description="They turn an image, ink or colour in 0..1, into one number per class.")


class Predicted(BaseModel):
    labels: list[Label] = Field(description="The most likely class of every query; empty for a regression.")
    probabilities: list[list[float]] = Field(description="One row per query, in the order of `classes`.")
    classes: list[Label]
    outputs: list[float] = Field(description="The predicted value of every query; empty for a classifier.")
    milliseconds: float


class Step(BaseModel):
    t: int
    weights: list[list[float]] = Field(description="Rows are units; large matrices are averaged in blocks.")
    loss: float = Field(description="Loss on the support set.")


class Chain(BaseModel):
    steps: list[Step]
    shape: tuple[int, int] = Field(description="Units and numbers per unit, before averaging.")
    milliseconds: float


class Landscape(BaseModel):
    x: list[float]
    y: list[float]
    loss: list[list[float]] = Field(description="Loss on the support set; one row per y.")
    path: list[list[float]] = Field(description="The chain in the plane, one (x, y) per state; it ends at (0, 0).")
    times: list[int]
    losses: list[float] = Field(description="Loss of every state.")
    milliseconds: float


class ModelInfo(BaseModel):
    name: str
    method: str
    network: str
    images: tuple[int, int, int] | None = Field(description="Channels, height and width of images after resizing; null: none.")
    features: int | None = Field(description="Width of the features that it reads; null: it reads none.")
    texts: bool
    labels: Literal["classes", "numbers"]
    classes: list[int] | None = Field(description="Smallest and largest number of classes; null for a regression.")
    chain: bool = Field(description="Whether it accepts steps, temperature and samples, and POST /v1/chain.")
    steps: int | None = Field(description="Default number of denoising steps.")
    T: int | None = Field(description="Largest number of denoising steps.")
    runs_anywhere: bool = Field(description="Whether format 'network' is answered: it needs no backbone and only plain layers.")
    exported: bool = Field(description="Whether requests without sampling options use an exported sampler.")


class Models(BaseModel):
    models: list[ModelInfo]


class Health(BaseModel):
    status: str
    version: str
