"""What does a reader on the Hub need to know of a generator? A model card, out of what its folder and its run say."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcdi.utils.files import read_json

CARD = """---
{metadata}
---
# {title}

{what}

## Use

```python
import mcdi

generator = mcdi.load({load})
# x: {x}
# y: {y}
weights = generator.generate((x, y))  # {{name: tensor}}, ready for load_state_dict
outputs = generator.predict(weights, new_x)
```

Needs `pip install mcdi{extra}`. The files are safetensors and JSON: loading them runs no code.

## Training

{training}

## Figures

{figures}

## Limits

- It answers for tasks like those it was trained on. For a classifier, `generator.trust((x, y))` says how far a task's own
  examples agree with that, 1 to 0, where training kept what is usual.
- Its inputs have to be what its network reads: features of another backbone, or another base model, mean nothing to it.
- The figures are of unseen tasks of the same data; they say nothing of other data.
"""
MINILM = "sentence-transformers/all-MiniLM-L6-v2"  # what "minilm" is a copy of


def model_card(repo: str, folder: Path) -> str:
    """The card of the generator saved in `folder`; a folder of a run (RUN/methods/NAME-SEED) says more than one alone."""
    config = read_json(folder / "config.json")
    place = folder.resolve()
    run = place.parents[1] if place.parent.name == "methods" else place
    recipe, result = _read(run / "recipe.json"), _read(run / "results" / f"{place.name}.json") or _read(place / "training.json")
    network = config["network"]
    x, y, extra = _inputs(network)
    return CARD.format(
        metadata=_metadata(config),
        title=repo.rpartition("/")[2],
        what=_what(config),
        load=repr(repo) + (", module=module" if network["kind"] == "own" else ""),
        x=x,
        y=y,
        extra=extra,
        training=_training(config, recipe, result),
        figures=_figures(result, recipe),
    )


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _metadata(config: Mapping[str, Any]) -> str:
    tags = ["mcdi", "weight-generation", "meta-learning", config["method"]]
    lines = ["library_name: mcdi", "tags:", *(f"- {tag}" for tag in tags)]
    base = base_model(config)
    if base is not None:
        lines.append(f"base_model: {json.dumps(base)}")
    return "\n".join([*lines, "# license: yours to choose"])


def base_model(config: Mapping[str, Any]) -> str | None:
    """The Hub id of the language model that weights are generated for; None where there is none, or it is a folder."""
    model = config["network"].get("lora", {}).get("model")
    if model == "minilm":
        return MINILM
    return None if model is None or Path(model).is_absolute() or Path(model).exists() or model.count("/") > 1 else str(model)


def _what(config: Mapping[str, Any]) -> str:
    network = config["network"]
    space = config.get("space", {})
    shapes = ", ".join(f"`{n}` {tuple(s)}" for n, (s, _) in list(space.get("parameters", {}).items())[:6])
    more = len(space.get("parameters", {})) - 6
    text = f"Generates the weights of a {network['kind']} network from a few examples, without a gradient step"
    text += f": {shapes}{f' and {more} more' if more > 0 else ''}." if shapes else "."
    if space.get("unit") == "row":
        text += f" Made with {network.get('way')} classes; it generates for any number."
    base = base_model(config)
    return text + (f" The language model is {base}, which stays as it is." if base else "")


def _inputs(network: Mapping[str, Any]) -> tuple[str, str, str]:
    if "lora" in network:
        return "a list of S texts, (sentence,) or (sentence, sentence) each", "class indices (S,), int64", "[hub,lora]"
    if network["kind"] == "own":  # whose code no file holds
        return f"inputs of your module (S, {', '.join(map(str, network['example']))})", "labels or values (S, ...)", "[hub]"
    if network["kind"] == "curve":
        return "points (S, 1)", "values (S,)", "[hub]"
    embedder = network.get("embedder")
    if embedder is None:
        return "features (S, F)", "class indices (S,), int64", "[hub]"
    side = embedder["side"]
    return f"images (S, {embedder['channels']}, {side}, {side}), uint8", "class indices (S,), int64", "[hub]"


def _training(config: Mapping[str, Any], recipe: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    settings, provenance = config.get("settings", {}), result.get("provenance", {})
    said = {
        "recipe": " - ".join(recipe[n] for n in ("name", "about") if n in recipe),
        "method": config["method"],
        "seed": result.get("seed"),
        "denoiser": settings.get("denoiser"),
        "steps T": settings.get("T"),
        "local targets k": settings.get("k"),
        "sampler": result.get("sampler"),
        "training tasks": recipe.get("preparation", {}).get("tasks"),
        "parameters": result.get("parameters"),
        "seconds of training": result.get("fit_seconds"),
        **{n: provenance.get(n) for n in ("version", "commit", "date", "hardware", "torch")},
    }
    return "\n".join(f"- {n}: {v}" for n, v in said.items() if v not in (None, ""))


def _figures(result: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    shots = result.get("shots")
    if not shots:
        return "None were measured with it."
    way = recipe.get("family", {}).get("way")
    rows = [f"| {n} | {100 * row['mean']:.2f} ± {100 * row['ci95']:.2f} |" for n, row in shots.items()]
    title = "R² x 100" if result.get("family") == "sines" else "accuracy (%)"
    tasks = f"{result['tasks']} unseen tasks{f' of {way} classes' if way and result.get('family') != 'sines' else ''}"
    head = [f"| examples a class | {title} |", "|---|---:|"]
    return "\n".join([f"On {tasks}, one generator, with the 95 % interval over tasks:", "", *head, *rows])
