"""Results of a run: `results/<method>-<seed>.json`, checked and aggregated over seeds into one row a method."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, NotRequired

import torch
from pydantic import FiniteFloat, TypeAdapter, ValidationError
from torch import Tensor
from typing_extensions import TypedDict  # pydantic reads that of typing from Python 3.12 on

from mcdi.errors import McdiError
from mcdi.experiments.report.style import label_of
from mcdi.experiments.statistics import over_seeds
from mcdi.utils.files import read_json

PARTS = ("embed", "generate", "apply")


class RecipeFile(TypedDict):
    """What reports read of recipe.json."""

    name: str
    methods: NotRequired[list[str]]


class _Latency(TypedDict):
    embed: FiniteFloat
    generate: FiniteFloat
    apply: FiniteFloat


class _Score(TypedDict):
    mean: FiniteFloat
    ci95: FiniteFloat
    mse: float | None


class _Shots(_Score):
    scores: NotRequired[list[FiniteFloat]]
    samplers: NotRequired[dict[str, _Score]]


class _Point(TypedDict):
    t: FiniteFloat
    score: float | None
    mse: float | None


class _Result(TypedDict):
    """A file of results/, whose latency may not be measured yet."""

    method: str
    seed: int
    gradient_free: bool
    parameters: int
    fit_seconds: FiniteFloat
    family: str
    tasks: int
    shots: dict[str, _Shots]
    curve: list[_Point]
    latency_ms: NotRequired[_Latency]
    losses: list[tuple[FiniteFloat, float | None]]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Score:
    """Score of one method at one shot number over all seeds, as fractions; `mse` is None where a seed has none."""

    mean: float
    std: float  # over the seeds' means; 0 for one seed
    ci95: float  # half-width, see table.RULE
    mse: float | None


@dataclass(frozen=True)
class Row:
    """One method, aggregated over its seeds."""

    method: str
    family: str
    tasks: int
    seeds: tuple[int, ...]
    gradient_free: bool
    parameters: int
    fit_seconds: float  # mean over seeds, like the latencies
    latency_ms: dict[str, float]  # embed, generate, apply; empty where it was not measured yet
    shots: dict[int, Score]
    samplers: dict[int, dict[str, Score]]
    curve: list[dict[str, float | None]]  # t, score and mse along the chain, mean over seeds
    losses: list[list[tuple[float, float | None]]]  # per seed: [step, loss]
    provenance: list[dict[str, Any]]  # per seed
    # {shots: {seed: scores of tasks (tasks,)}}; no shot numbers of which a seed lacks them, as results of old versions do
    scores: dict[int, dict[int, Tensor]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return label_of(self.method)

    @property
    def total_ms(self) -> float:
        return sum(self.latency_ms.values())


def bad(path: Path, what: str) -> McdiError:
    return McdiError(f"{path}: {what}: delete that file and run the step that made it again")


def read_checked(path: Path, shape: Any) -> Any:
    """The content of a JSON file. Raises McdiError naming the file and the dotted key where it has not the shape of a type."""
    content = read_json(path)
    try:
        TypeAdapter(shape).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key, what = ".".join(map(str, first["loc"])) or "its content", first["msg"].removeprefix("Input ").lower()
        problem = "is missing" if first["type"] == "missing" else f"is {repr(first['input'])[:60]}, but {what}"
        raise bad(path, f"{key} {problem}") from error
    return content


def _results(folder: Path, finished: bool) -> list[dict[str, Any]]:
    """Every result, checked; those of one folder must be of one family and number of tasks, else they compare nothing."""
    results: list[dict[str, Any]] = []
    for path in sorted((folder / "results").glob("*.json")):
        result = read_checked(path, _Result)
        if finished and "latency_ms" not in result:
            raise bad(path, "latency_ms is missing")
        if path.stem != f"{result['method']}-{result['seed']}":
            raise bad(path, f"method and seed are {result['method']!r} and {result['seed']}, not those of its name")
        if not result["shots"] or not all(shot.isdecimal() for shot in result["shots"]):
            raise bad(path, f"shots has the keys {sorted(result['shots'])}, not shot numbers")
        for key in ("family", "tasks"):
            if results and result[key] != results[0][key]:
                raise bad(path, f"{key} is {result[key]!r}, but {results[0][key]!r} in the other results")
        results.append(result)
    if not results and finished:
        raise McdiError(f"{folder / 'results'} holds no results: run `mcdi evaluate` first")
    return results


def _mean(values: Sequence[float | None]) -> float | None:
    """None as soon as one value is missing or not finite: leaving out a diverged seed would flatter the method."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return fmean(finite) if finite and len(finite) == len(values) else None


def _score(seeds: Sequence[Mapping[str, Any]]) -> Score:
    mean, std, ci95 = over_seeds([s["mean"] for s in seeds], fmean(s["ci95"] for s in seeds))
    return Score(mean, std, ci95, _mean([s["mse"] for s in seeds]))


def _row(seeds: list[dict[str, Any]], folder: Path) -> Row:
    first, timed = seeds[0], all("latency_ms" in r for r in seeds)
    layouts = [{shot: set(score.get("samplers", ())) for shot, score in r["shots"].items()} for r in seeds]
    for other, layout in zip(seeds, layouts, strict=True):
        if layout != layouts[0]:
            path = folder / "results" / f"{other['method']}-{other['seed']}.json"
            raise bad(path, f"shots has other shot numbers or samplers than seed {first['seed']}")
    shots = {int(s): [r["shots"][s] for r in seeds] for s in sorted(first["shots"], key=int)}
    points: dict[float, list[dict[str, Any]]] = {}
    for point in (p for r in seeds for p in r["curve"]):
        points.setdefault(point["t"], []).append(point)
    return Row(
        **{key: first[key] for key in ("method", "family", "tasks", "gradient_free", "parameters")},
        losses=[r["losses"] for r in seeds],
        provenance=[r["provenance"] for r in seeds],
        seeds=tuple(r["seed"] for r in seeds),
        fit_seconds=fmean(r["fit_seconds"] for r in seeds),
        latency_ms={part: fmean(r["latency_ms"][part] for r in seeds) for part in (PARTS if timed else ())},
        shots={shot: _score(scores) for shot, scores in shots.items()},
        samplers={
            shot: {name: _score([s["samplers"][name] for s in scores]) for name in sorted(scores[0]["samplers"])}
            for shot, scores in shots.items()
            if scores[0].get("samplers")
        },
        curve=[{"t": t, **{k: _mean([p[k] for p in group]) for k in ("score", "mse")}} for t, group in sorted(points.items())],
        scores={
            shot: {r["seed"]: torch.tensor(s["scores"]) for r, s in zip(seeds, scores, strict=True)}
            for shot, scores in shots.items()
            if all("scores" in s for s in scores)
        },
    )


def shot_numbers(rows: Sequence[Row]) -> list[int]:
    return sorted({shot for row in rows for shot in row.shots})


def rows(folder: Path, *, finished: bool = True) -> list[Row]:
    """Results of a run over seeds, best score at the lowest shot number first. finished: results and latencies must
    exist. Raises McdiError for a file that is corrupt, incomplete or of another family, or no results."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in sorted(_results(folder, finished), key=lambda r: int(r["seed"])):
        groups.setdefault(result["method"], []).append(result)
    table = [_row(seeds, folder) for seeds in groups.values()]
    lowest = min(shot_numbers(table), default=0)
    return sorted(table, key=lambda r: (-r.shots[lowest].mean if lowest in r.shots else math.inf, r.method))
