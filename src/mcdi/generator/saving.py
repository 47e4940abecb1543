"""Saved generators: their folder, config.json and model.safetensors, and the Hugging Face Hub with its model card."""

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from mcdi.errors import McdiError, explained, optional
from mcdi.generator.ready_made import README, ready_made
from mcdi.methods import WeightGenerator, make_method
from mcdi.networks.base import Network
from mcdi.networks.registry import NETWORKS, build
from mcdi.utils.checksums import checksum
from mcdi.utils.files import only_writer, read_bytes, read_json, tensors_of, write_json, write_tensors
from mcdi.utils.tensors import finite

FORMAT = 3
CONFIG, MODEL = FILES = ("config.json", "model.safetensors")


def _read_saved(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """config.json, and the tensors {"method": {name: tensor}, "network": {name: tensor}}. Raises McdiError for a file that is
    missing, damaged or of another format."""
    path, config = folder / CONFIG, read_json(folder / CONFIG)
    saved = config.get("format") if isinstance(config, dict) else None
    if isinstance(saved, int) and saved != FORMAT:
        cure = "train it again with `mcdi run`" if saved < FORMAT else "install the newer mcdi that saved it"
        raise McdiError(f"{path} is a generator of format {saved}, and this version of mcdi reads format {FORMAT}: {cure}")
    if saved != FORMAT or "method" not in config:
        raise McdiError(f"{path} does not describe a generator of format {FORMAT}: restore it, or train the generator again")
    data = read_bytes(folder / MODEL)  # not mapped into memory: a server goes on while somebody writes the file anew
    tensors, _ = tensors_of(data, f"{folder}/{MODEL}")
    if config.get("weights", weights := checksum(data)) != weights:
        raise McdiError(f"{folder}: {CONFIG} and {MODEL} do not belong together: restore both, or save the generator again")
    if not all(finite(t) for t in tensors.values() if t.is_floating_point()):
        raise McdiError(f"{folder}/{MODEL} holds NaN or infinite weights: train again or restore the file")
    return config, {
        p: {n.removeprefix(p + "."): t for n, t in tensors.items() if n.startswith(p + ".")} for p in ("method", "network")
    }


def _belonging(folder: Path) -> AbstractContextManager[None]:
    """One McdiError for any failure to build the generator from its two files."""
    kinds = KeyError, TypeError, AttributeError, RuntimeError, SafetensorError
    return explained(f"{folder}: {CONFIG} and {MODEL} do not belong together", "restore both", *kinds)


def save(folder: Path, name: str, method: WeightGenerator, network: Network) -> None:
    """`write_files`, where no other process writes. Raises McdiError where one does."""
    with only_writer(folder):
        write_files(folder, name, method, network)


def write_files(folder: Path, name: str, method: WeightGenerator, network: Network) -> None:
    """Write model.safetensors and then config.json, each in one step."""
    parts = {"method": method.state(), "network": network.state()}
    data = write_tensors(folder / MODEL, {f"{part}.{n}": t for part, state in parts.items() for n, t in state.items()})
    described = {"format": FORMAT, "method": name, "network": network.config(), "weights": checksum(data)}
    write_json(folder / CONFIG, {**described, **method.config()})


def load_saved(folder: Path, **code: Any) -> tuple[str, WeightGenerator, Network]:
    """The name of the method, the method and its network. code: of the user's own network, see `registry.build`."""
    config, parts = _read_saved(folder)
    with _belonging(folder):
        network = build(config["network"], parts["network"], **code)
        method = make_method(config["method"], config["settings"]).restore(config, parts["method"])
    if config.get("space", network.space.config()) != network.space.config():
        raise McdiError(f"{folder}: the generator was trained for other weights than its network has: restore config.json")
    return config["method"], method, network


def to_bytes(name: str, method: WeightGenerator, network: Network) -> dict[str, bytes]:
    """The content of the files of a saved generator, by name."""
    with tempfile.TemporaryDirectory() as scratch:
        write_files(Path(scratch), name, method, network)
        return {file: read_bytes(Path(scratch) / file) for file in FILES}


def from_bytes(files: Mapping[str, bytes]) -> tuple[str, WeightGenerator, Network]:
    """What `load_saved` returns, of the result of `to_bytes`."""
    with tempfile.TemporaryDirectory() as scratch:
        for file, data in files.items():
            (Path(scratch) / file).write_bytes(data)
        return load_saved(Path(scratch))


def load_method(folder: Path) -> WeightGenerator:
    """The method of a saved generator, without its network."""
    config, parts = _read_saved(folder)
    with _belonging(folder):
        return make_method(config["method"], config["settings"]).restore(config, parts["method"])


def is_id(model: str | Path) -> bool:
    """Whether this can be "user/name" on the Hub."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(model)) is not None


def located(
    model: str | Path, *, revision: str | None = None, token: str | bool | None = None, cache_dir: str | Path | None = None
) -> Path:
    """The folder of a generator: `model` itself if it exists, otherwise one of the package by its name ("symbols"), or a
    download from the Hub or its local cache.
    Only FILES and the card are fetched, never pickles. Raises McdiError if neither exists."""
    folder = Path(model)
    if (own := ready_made(model)) is not None:
        return own
    if folder.exists() or not is_id(model):
        return folder
    problem = f"{model} is not a local folder, and the Hugging Face Hub"
    hub, files = optional("huggingface_hub", "hub", problem), [*FILES, README]
    cure = "check the path or id, the revision, the network, and your token if the model is private"
    with explained(f"{problem} does not provide it", cure):  # the network, the Hub and its client raise many kinds
        options = {"revision": revision, "token": token, "cache_dir": cache_dir}
        snapshot = hub.snapshot_download(str(model), allow_patterns=files, **options)
    for name in FILES:
        if not (Path(snapshot) / name).exists():
            raise McdiError(f"{model} on the Hugging Face Hub has no {name}: choose a repository that mcdi push made")
    return Path(snapshot)


def push(folder: Path, repo: str, *, card: str, message: str = "Upload a generator of mcdi", **options: Any) -> str:
    """Upload a saved generator to the repository "user/name" of the Hub, in one commit, and return the commit's URL.
    card: the README.md, unless `folder` has its own; options: `private`, `token` and `branch` of huggingface_hub.
    Raises McdiError for a wrong name, a folder without a generator, or a failed upload."""
    if not is_id(repo):
        raise McdiError(f"{repo!r} is not a repository name of the Hugging Face Hub: give user/name")
    for name in FILES:
        if not (folder / name).exists():
            raise McdiError(f"{folder / name} does not exist: give the folder of a trained generator")

    class Saved(optional("huggingface_hub", "hub", "the Hugging Face Hub").ModelHubMixin):  # type: ignore[misc]
        """Defined here, not as a base of Generator, so that huggingface_hub stays optional."""

        def _save_pretrained(self, save_directory: Path) -> None:
            (save_directory / README).write_text(card)  # huggingface_hub's ModelCard drops comments in the metadata
            for name in (*FILES, README):
                if (folder / name).exists():
                    shutil.copyfile(folder / name, save_directory / name)

    cure = "check the name, the network, and your token (hf auth login)"
    with explained(f"the upload to {repo} on the Hugging Face Hub failed", cure):
        return str(Saved().push_to_hub(repo, commit_message=message, **options))


def push_generator(generator: tuple[str, WeightGenerator, Network], repo: str, **options: Any) -> str:
    """`push` of a generator that lies in no folder: the name of its method, the method and its network."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "generator"
        save(folder, *generator)
        return push(folder, repo, card=model_card(repo, folder), **options)


CARD = """---
library_name: mcdi
tags:
- mcdi
- weight-generation
- meta-learning
- {method}
{base}# license: choose one
---
# {title}

{summary}

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

- It is made for tasks like those it was trained on. For a classifier, `generator.confidence((x, y))` measures how well a
  task's own examples fit, from 1 to 0; it is 1 for every task if training stored no calibration quantiles.
- Its inputs must come from the same backbone or base model as in training.
- The figures were measured on unseen tasks of the same data; other data may give other figures.
"""
MINILM = "sentence-transformers/all-MiniLM-L6-v2"  # the model that "minilm" is a copy of


def model_card(repo: str, folder: Path) -> str:
    """The card of the generator saved in `folder`; in a run (RUN/methods/NAME-SEED) it includes recipe and results."""
    config = read_json(folder / "config.json")
    folder = folder.resolve()
    run = folder.parents[1] if folder.parent.name == "methods" else folder
    recipe = _read(run / "recipe.json")
    result = _read(run / "results" / f"{folder.name}.json") or _read(folder / "training.json")
    network = NETWORKS.get(config["network"]["kind"]).network
    real = config["network"].get("regression", network.regression)
    x, y, extra = _inputs(network, config["network"], "values (S,)" if real else "class indices (S,), int64")
    load = repr(repo) + (", module=module" if network.needs_module else "")
    base = base_model(config)
    head = {"method": config["method"], "base": "" if base is None else f"base_model: {json.dumps(base)}\n"}
    head |= {"title": repo.rpartition("/")[2], "summary": _summary(config), "load": load}
    tables = {"training": _training(config, recipe, result), "figures": _figures(result, recipe, real)}
    return CARD.format(**head, x=x, y=y, extra=extra, **tables)


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def base_model(config: Mapping[str, Any]) -> str | None:
    """The Hub id of the language model that weights are generated for; None for other networks and local folders."""
    model = config["network"].get("lora", {}).get("model")
    if model == "minilm":
        return MINILM
    return None if model is None or Path(model).is_absolute() or Path(model).exists() or model.count("/") > 1 else str(model)


def _summary(config: Mapping[str, Any]) -> str:
    network = config["network"]
    space = config.get("space", {})
    shapes = ", ".join(f"`{n}` {tuple(s)}" for n, (s, _) in list(space.get("parameters", {}).items())[:6])
    more = len(space.get("parameters", {})) - 6
    text = f"Generates the weights of a {network['kind']} network from a few examples, without a gradient step"
    text += f": {shapes}{f' and {more} more' if more > 0 else ''}." if shapes else "."
    if space.get("unit") == "row" or space.get("classes"):
        text += f" Trained with {network.get('way')} classes; it generates for any number of classes."
    base = base_model(config)
    return text + (f" The language model is {base}; its other weights stay frozen." if base else "")


def _inputs(network: type[Network], config: Mapping[str, Any], labels: str) -> tuple[str, str, str]:
    """Descriptions of x and y, and the extras of mcdi that the code needs."""
    shape, embedder = config.get("example", network.example_shape), config.get("embedder")
    if network.reads_texts:
        return "a list of S texts, (sentence,) or (sentence, sentence) each", labels, "[hub,lora]"
    if network.needs_module:
        return f"inputs of your module (S, {', '.join(map(str, shape))})", labels.replace("(S,)", "(S, ...)"), "[hub]"
    if shape is not None:
        return f"inputs (S, {', '.join(map(str, shape))})", labels, "[hub]"
    if embedder is None:
        return "features (S, F)", labels, "[hub]"
    side = embedder["side"]
    return f"images (S, {embedder['channels']}, {side}, {side}), uint8", labels, "[hub]"


def _training(config: Mapping[str, Any], recipe: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    settings, provenance = config.get("settings", {}), result.get("provenance", {})
    rows = {
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
    return "\n".join(f"- {n}: {v}" for n, v in rows.items() if v not in (None, ""))


def _figures(result: Mapping[str, Any], recipe: Mapping[str, Any], real: bool) -> str:
    shots = result.get("shots")
    if not shots:
        return "No figures were measured for this generator."
    way = recipe.get("family", {}).get("way")
    rows = [f"| {n} | {100 * row['mean']:.2f} ± {100 * row['ci95']:.2f} |" for n, row in shots.items()]
    tasks = f"{result['tasks']} unseen tasks{f' of {way} classes' if way and not real else ''}"
    head = [f"| examples {'' if real else 'per class '}| {'R² x 100' if real else 'accuracy (%)'} |", "|---|---:|"]
    return "\n".join([f"On {tasks}, one generator, with the 95 % interval over tasks:", "", *head, *rows])
