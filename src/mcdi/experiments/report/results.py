"""Results of a run: `results/<method>-<seed>.json`, checked and aggregated over seeds into one row a method."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.experiments.report.style import label_of
from mcdi.experiments.statistics import over_seeds
from mcdi.utils.files import read_json

PARTS = ("embed", "generate", "apply")
NUMBER, MAYBE = "a finite number", "a number or null"
SCORE = {"mean": NUMBER, "ci95": NUMBER, "mse": MAYBE}
RESULT = {
    **{
        "method": str,
        "seed": int,
        "gradient_free": bool,
        "parameters": int,
        "fit_seconds": NUMBER,
        "family": str,
        "tasks": int,
    },
    "shots": {"*": SCORE | {"scores?": [NUMBER], "samplers?": {"*": SCORE}}},
    "curve": [{"t": NUMBER, "score": MAYBE, "mse": MAYBE}],
    "latency_ms": dict.fromkeys(PARTS, NUMBER),
    "losses": [(NUMBER, MAYBE)],
    "provenance": {},
}


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
    losses: list[list[list[float | None]]]  # per seed: [step, loss]
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


def check(value: Any, shape: Any, path: Path, key: str = "") -> None:
    """Raise McdiError naming `path` and the dotted key where `value` has not `shape` ("*": any key, "x?": an optional one)."""
    inner: list[tuple[Any, Any, Any]] = []
    fits, name = isinstance(value, dict), "a JSON object"
    match shape:
        case str():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            fits, name = (number and math.isfinite(value)) or (shape == MAYBE and (number or value is None)), shape
        case type():
            fits, name = type(value) is shape, f"of type {shape.__name__}"
        case tuple():
            fits, name = isinstance(value, list) and len(value) == len(shape), f"a list of {len(shape)}"
            inner = list(zip(range(len(shape)), value, shape, strict=True)) if fits else []
        case [item]:
            fits, name = isinstance(value, list), "a list"
            inner = [(i, v, item) for i, v in enumerate(value)] if fits else []
        case {"*": item}:
            inner = [(n, v, item) for n, v in value.items()] if fits else []
        case dict() if fits:
            for n, item in shape.items():
                if n.rstrip("?") in value:
                    inner.append((n.rstrip("?"), value[n.rstrip("?")], item))
                elif not n.endswith("?"):
                    raise bad(path, f"{key}{n} is missing")
    if not fits:
        raise bad(path, f"{key.rstrip('.') or 'its content'} is {repr(value)[:60]}, not {name}")
    for n, v, item in inner:
        check(v, item, path, f"{key}{n}.")


def _results(folder: Path, finished: bool) -> list[dict[str, Any]]:
    """Every result, checked; those of one folder must be of one family and number of tasks, else they compare nothing."""
    shape = RESULT if finished else {("latency_ms?" if n == "latency_ms" else n): item for n, item in RESULT.items()}
    results: list[dict[str, Any]] = []
    for path in sorted((folder / "results").glob("*.json")):
        result = read_json(path)
        check(result, shape, path)
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
    def layout(result: dict[str, Any]) -> dict[str, set[str]]:
        return {shot: set(score.get("samplers", ())) for shot, score in result["shots"].items()}

    first = seeds[0]
    for other in seeds[1:]:
        if layout(other) != layout(first):
            path = folder / "results" / f"{other['method']}-{other['seed']}.json"
            raise bad(path, f"shots has other shot numbers or samplers than seed {first['seed']}")
    shots = {int(s): [r["shots"][s] for r in seeds] for s in sorted(first["shots"], key=int)}
    points: dict[float, list[dict[str, Any]]] = {}
    for point in (p for r in seeds for p in r["curve"]):
        points.setdefault(point["t"], []).append(point)
    return Row(
        **{key: first[key] for key in ("method", "family", "tasks", "gradient_free", "parameters")},
        seeds=tuple(r["seed"] for r in seeds),
        fit_seconds=fmean(r["fit_seconds"] for r in seeds),
        latency_ms={
            part: fmean(r["latency_ms"][part] for r in seeds) for part in PARTS if all("latency_ms" in r for r in seeds)
        },
        shots={shot: _score(scores) for shot, scores in shots.items()},
        samplers={
            shot: {name: _score([s["samplers"][name] for s in scores]) for name in sorted(scores[0]["samplers"])}
            for shot, scores in shots.items()
            if scores[0].get("samplers")
        },
        curve=[{"t": t, **{k: _mean([p[k] for p in group]) for k in ("score", "mse")}} for t, group in sorted(points.items())],
        losses=[r["losses"] for r in seeds],
        scores={
            shot: {r["seed"]: torch.tensor(s["scores"]) for r, s in zip(seeds, scores, strict=True)}
            for shot, scores in shots.items()
            if all("scores" in s for s in scores)
        },
        provenance=[r["provenance"] for r in seeds],
    )


def shot_numbers(rows: Sequence[Row]) -> list[int]:
    return sorted({shot for row in rows for shot in row.shots})


def rows(folder: Path, *, finished: bool = True) -> list[Row]:
    """Results of `folder` aggregated over seeds, best score at the lowest shot number first.

    Args:
        folder: of a run.
        finished: whether results and their latencies must exist.

    Raises:
        McdiError: a file that is corrupt, incomplete or of another family (it names the file and the key), or no results.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in sorted(_results(folder, finished), key=lambda r: int(r["seed"])):
        groups.setdefault(result["method"], []).append(result)
    table = [_row(seeds, folder) for seeds in groups.values()]
    lowest = min(shot_numbers(table), default=0)
    return sorted(table, key=lambda r: (-r.shots[lowest].mean if lowest in r.shots else math.inf, r.method))
