"""Export of a trained generator as one file, ONNX or torch.export, checked to give the same weights. It maps the
features and labels of support sets to named parameters; prior, ridge blend and standardisation are included."""

import io
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcdi import __version__
from mcdi.errors import McdiError, explained, optional
from mcdi.generator import exported
from mcdi.generator.api import Generator
from mcdi.generator.exported import CONFIDENCE, FILES, Exported, Feeds, Run, noise_for, quiet
from mcdi.methods import method_spec
from mcdi.methods.base import all_methods
from mcdi.methods.sampling import SupportsSampling
from mcdi.types import Examples
from mcdi.utils.checksums import BLANK, CHECKSUM, checksum, seal
from mcdi.utils.files import only_writer, read_bytes, write_bytes, write_json
from mcdi.utils.places import check_writable

__all__ = ["FILES", "Exported", "export"]

LIMIT = 1e-5  # largest difference, relative to the largest number of a parameter
TRACED = (3, 2)  # tasks, examples per class; torch would fix a size of 1
CHECKED = ((1, 0, 1), (2, 1, 5), (4, 2, 3), (7, 0, 2))  # tasks, classes beyond the template's, examples per class


class Sampler(nn.Module):
    """The module that is exported. Its inputs are x (B, S, ...), y (B, S), mask (B, U) for heads, and the noise (n, B,
    samples, U, D) of a stochastic chain; its outputs are {name: (B, *shape), "confidence": (B,)}. Raises McdiError for
    what is not a pure function of features."""

    def __init__(self, generator: Generator, **options: float | None) -> None:
        super().__init__()
        method, net = generator.method, generator.network
        spec = method_spec(generator.name)
        if not spec.exportable:
            names = ", ".join(n for n, s in all_methods().items() if s.exportable)
            raise McdiError(f"{generator.name} cannot be exported, as it is not a pure function of features: choose {names}")
        if not net.exportable:
            raise McdiError(f"a generator of {net.kind} networks cannot be exported: use its folder with mcdi.load instead")
        if net.solves_last_layer:
            one = "or write the network of a task, with mcdi generate --network"
            raise McdiError(f"a generator that solves the last layer of its networks cannot be exported: use its folder, {one}")
        self.generator, self.sampling = generator, generator.sampling(**options)
        self.options = {n: v for n, v in options.items() if v is not None}
        trained = getattr(method, "modules", [])  # what an export traces through
        self.parts = nn.ModuleList([*trained, *([] if net.embedder is None else [net.embedder])])

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None, noise: Tensor | None = None) -> dict[str, Tensor]:
        net = self.generator.network
        if mask is None:
            mask = torch.ones(x.shape[0], net.space.U, dtype=torch.bool, device=x.device)
        seed = 0 if noise is None else iter(noise.flatten(1, 2).unbind(0))
        packed, confidence = self.generator.sample_packed(Examples(x, y), mask, self.sampling, seed)
        return {**net.space.unpack(packed), CONFIDENCE: confidence}

    def metadata(self) -> dict[str, Any]:
        """What `Exported` needs to call the exported function."""
        net, method, sampling = self.generator.network, self.generator.method, self.sampling
        chain: dict[str, Any] = {"steps": None, "samples": 1, "noise": 0}
        if isinstance(method, SupportsSampling) and sampling is not None:
            steps = method.chain_steps(sampling)
            noise = (steps if sampling.noise and sampling.eta else 1) if sampling.temperature else 0
            chain = {"steps": steps, "samples": sampling.samples, "noise": noise, "temperature": sampling.temperature}
        parameters = [[n, list(s), d] for n, (s, d) in net.space.spec.items()]
        shape = {"way": net.way, "units": net.space.U, "extra": net.space.extra, "numbers": net.space.D}
        kind = {
            "network": net.kind,
            "example": list(net.feature_shape),
            "target": list(net.target_shape),
            "rows": net.space.unit == "row",
            "real": net.regression,
        }
        origin = {"version": __version__, "method": self.generator.name, "options": self.options, "parameters": parameters}
        return {**origin, **shape, **kind, "any_way": self.generator.any_way, **chain}

    def random_inputs(self, tasks: int, way: int, shots: int, seed: int) -> Feeds:
        """Random support sets whose classes are a little apart."""
        net, metadata = self.generator.network, self.metadata()
        x, y = random_examples(tasks, way, shots, net.input_size, seed)
        if metadata["real"]:
            size = torch.Size(net.target_shape).numel()
            y = x[..., :1].sin().expand(-1, -1, size).reshape(*x.shape[:2], *net.target_shape)
        feeds = {"x": x.reshape(*x.shape[:2], *net.feature_shape), "y": y}
        units = net.space.units(way)
        if metadata["rows"]:
            feeds["mask"] = torch.ones(tasks, units, dtype=torch.bool)
        if metadata["noise"]:
            feeds["noise"] = noise_for(metadata, tasks, units, seed)
        return feeds


def random_examples(tasks: int, way: int, shots: int, size: int, seed: int = 0) -> Examples:
    """Support sets of classes a little apart: x (tasks, way * shots, size), and y, every class once, then again."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(tasks, way, size, generator=g).repeat(1, shots, 1)
    x = centres + torch.randn(tasks, way * shots, size, generator=g)
    return Examples(x, torch.arange(way).repeat(shots).expand(tasks, -1).contiguous())


def export(generator: Generator, path: Path, kind: str, *, weights: Path | None = None, **options: float | None) -> float:
    """Write the sampler of a generator as one file.

    Args:
        path: the file; a .pt2 file gets a .json file with the same stem.
        kind: "onnx" or "torch".
        weights: the model.safetensors of the generator; a reader refuses the file next to any other.
        options: of sampling, where they differ from the trained ones.

    Returns:
        The largest difference between exported and generated weights, relative to the largest number of a parameter.

    Raises:
        McdiError: a generator that cannot be exported, or a difference above LIMIT; nothing is written then.
    """
    if kind not in FILES:
        raise McdiError(f"unknown format {kind!r}: choose {' or '.join(FILES)}")
    if path.suffix != Path(FILES[kind]).suffix:
        raise McdiError(f"{path} is not a file name for format {kind}: end it with {Path(FILES[kind]).suffix}")
    check_writable(path, *([] if kind == "onnx" else [path.with_suffix(".json")]))
    sampler = Sampler(generator.to("cpu"), **options).eval()
    metadata = {**sampler.metadata(), "weights": None if weights is None else checksum(read_bytes(weights))}
    with torch.no_grad():
        program = _traced(sampler)
        metadata["inputs"] = program.graph_signature.user_inputs
        if kind == "onnx":
            model = _onnx(program, metadata)
            run = exported.onnx_run(exported.onnx_session(model.SerializeToString()))
        else:
            with quiet(), _reported("saved"):
                torch.export.save(program, buffer := io.BytesIO())
            run = exported.torch_run(buffer.getvalue())
        difference = checked(sampler, run)
    if not difference <= LIMIT:
        far = f"differs from this generator by {difference:.1e} of its weights, more than {LIMIT:.0e}"
        raise McdiError(f"the {kind} export {far}: nothing was written; take fewer steps, or the other format")
    metadata["difference"] = difference
    with only_writer(path.parent):
        if kind == "onnx":
            model.metadata_props.add(key="mcdi", value=json.dumps(metadata, sort_keys=True))
            model.metadata_props.add(key=CHECKSUM, value=BLANK)
            write_bytes(path, seal(model.SerializeToString()))
        else:
            write_json(path.with_suffix(".json"), {**metadata, "program": checksum(buffer.getvalue())})
            write_bytes(path, buffer.getvalue())
    return difference


def checked(sampler: Sampler, run: Run) -> float:
    """The largest relative difference on support sets of several sizes, see `export`."""
    worst = 0.0
    for seed, (tasks, more, shots) in enumerate(CHECKED):
        way = sampler.generator.network.way + (more if sampler.generator.any_way else 0)
        feeds = sampler.random_inputs(tasks, way, shots, seed)
        got = run(feeds)
        for name, want in sampler(**feeds).items():
            if got[name].shape != want.shape:
                return float("inf")
            worst = max(worst, float((got[name] - want).abs().max() / want.abs().max().clamp(min=1e-12)))
    return worst


def _traced(sampler: Sampler) -> torch.export.ExportedProgram:
    tasks, shots = TRACED
    feeds = sampler.random_inputs(tasks, sampler.generator.network.way, shots, seed=0)
    size = torch.export.Dim.DYNAMIC
    units = size if sampler.generator.any_way else None
    sizes: dict[str, Any] = {"x": {0: size, 1: size}, "y": {0: size, 1: size}, "mask": {0: size, 1: units}}
    sizes["noise"] = {1: size, 3: units}
    with quiet(), _reported("traced"):
        program = torch.export.export(
            sampler, (), feeds, dynamic_shapes={n: sizes[n] if n in feeds else None for n in feeds}, strict=False
        )
    for module in program.graph_module.modules():  # source paths of this machine do not belong in the file
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    return program


def _onnx(program: torch.export.ExportedProgram, metadata: dict[str, Any]) -> Any:
    for package in ("onnx", "onnxscript"):
        optional(package, "onnx", "format onnx, unlike torch,")
    from mcdi.generator.onnx_solve import SOLVE

    with quiet(), _reported("translated to ONNX"):
        made = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=metadata["inputs"],
            output_names=[*(n for n, _, _ in metadata["parameters"]), CONFIDENCE],
            custom_translation_table=SOLVE,
        )
        assert made is not None
        model = made.model_proto
    for part in (model.graph, *model.functions):
        del part.value_info[:]
        for node in part.node:
            node.doc_string = ""
            del node.metadata_props[:]
    return model


def _reported(what: str) -> AbstractContextManager[None]:
    return explained(f"this generator cannot be {what}", "use its folder with mcdi.load instead")
