"""What do requests and answers look like? JSON, as pydantic checks it and OpenAPI describes it."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr, model_validator
from pydantic_core import PydanticCustomError

Label = int | str
Labels = list[Annotated[StrictInt, Field(ge=-(2**53), le=2**53)] | StrictStr | StrictFloat]
Steps = Annotated[int | None, Field(ge=1, le=100_000, description="Denoising steps, 1..T (default: as trained).")]
Seed = Annotated[int, Field(ge=0, lt=2**63, description="Decides the noise.")]
Temperature = Annotated[float | None, Field(ge=0, le=100, description="Scale of the noise (default: as trained).")]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Inputs(Strict):
    """Examples of one kind: exactly one of the three fields."""

    images: list[str] | None = Field(None, description="Image files (PNG, JPEG, GIF, BMP, WebP) in base64.", examples=[[PIXEL]])
    features: list[list[float]] | None = Field(None, description="Vectors of the width that the model reads.")
    texts: list[Annotated[list[str], Field(min_length=1, max_length=2)]] | None = Field(
        None, description="One sentence or a pair of sentences an example."
    )


class How(Strict):
    """What is asked of a chain."""

    steps: Steps = None
    seed: Seed = 0
    temperature: Temperature = None


class Task(How):
    """A model, and the examples that it is to make weights for."""

    model: str = Field(max_length=200, description="A name that GET /v1/models lists.", examples=["mc-di-0"])
    support: Inputs
    labels: Labels = Field(
        description="One an example: all integers or all names, real numbers for a curve.", examples=[["ring", "stroke"]]
    )


class GenerateBody(Task):
    samples: int | None = Field(None, ge=1, le=1000, description="Chains to average (default: as trained).")
    format: Literal["safetensors", "handle"] = Field("handle", description="The weights, or a name under which they are kept.")


class PredictBody(How):
    """Queries, and either a handle, or a task: weights are made for these queries alone then."""

    queries: Inputs
    handle: str | None = Field(None, max_length=100, description="What POST /v1/generate gave.")
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
        how = {n: getattr(self, n) for n in Task.model_fields}
        return Task.model_construct(None, **how)


class LandscapeBody(Task):
    grid: int = Field(15, ge=2, le=41, description="Points along each side.")


class Fault(BaseModel):
    error: str = Field(description="One sentence: what is wrong, and what to do.")


class Generated(BaseModel):
    handle: str
    model: str
    classes: list[Label] = Field(description="The labels that were sent, in the order of the rows; empty for a curve.")
    names: dict[str, list[int]] = Field(description="Every tensor's shape.")
    milliseconds: float
    trust: float = Field(description="1: a task like those of training; less: as much of what was learnt is used.")


class Predicted(BaseModel):
    labels: list[Label] = Field(description="The likeliest class of every query; empty for a curve.")
    probabilities: list[list[float]] = Field(description="Of every query, in the order of `classes`.")
    classes: list[Label]
    outputs: list[float] = Field(description="Of a curve: its value at every query; empty for a classifier.")
    milliseconds: float


class Step(BaseModel):
    t: int
    weights: list[list[float]] = Field(description="Rows are units; means of blocks where there are too many to send.")
    loss: float = Field(description="On the support set.")


class Chain(BaseModel):
    steps: list[Step]
    shape: tuple[int, int] = Field(description="Units, and numbers of a unit, before blocks were averaged.")
    milliseconds: float


class Landscape(BaseModel):
    x: list[float]
    y: list[float]
    loss: list[list[float]] = Field(description="On the support set; a row for every y.")
    path: list[list[float]] = Field(description="The chain in the plane, one (x, y) a state; it ends at (0, 0).")
    times: list[int]
    losses: list[float] = Field(description="Of the chain's states.")
    milliseconds: float


class ModelInfo(BaseModel):
    name: str
    method: str
    network: str
    images: tuple[int, int, int] | None = Field(description="Channels and sides that images are brought to; null: no images.")
    features: int | None = Field(description="Width of the features that it reads; null: none.")
    texts: bool
    labels: Literal["classes", "numbers"]
    classes: list[int] | None = Field(description="Fewest and most classes of a task; null for a curve.")
    chain: bool = Field(description="Whether there are steps, a temperature and samples to ask, and POST /v1/chain.")
    steps: int | None = Field(description="Denoising steps where none are asked.")
    T: int | None = Field(description="The most steps.")
    exported: bool = Field(
        description="Whether a file of mcdi export answers where no steps, temperature or samples are asked."
    )


class Models(BaseModel):
    models: list[ModelInfo]


class Health(BaseModel):
    status: str
    version: str
