"""A generated network as one file that classifies without mcdi: ONNX, torch.export, safetensors or a C header."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from mcdi.errors import McdiError, explained, optional
from mcdi.generator.api import Generator, Weights
from mcdi.generator.c_header import c_header
from mcdi.generator.exported import onnx_run, onnx_session, quiet
from mcdi.generator.plain import operations
from mcdi.utils.files import write_bytes, write_tensors

SUFFIXES = (".onnx", ".pt2", ".safetensors", ".h")
LIMIT = 1e-4  # largest difference of an ONNX file's outputs from the network's, of the largest of them where that is above 1


def check_name(path: Path, *, int8: bool = False) -> None:
    """Raises McdiError for a suffix that names no kind of network file, or one that has no 8-bit weights."""
    if path.suffix not in SUFFIXES:
        raise McdiError(f"{path} names no kind of network file: end it with {', '.join(SUFFIXES)}")
    if int8 and path.suffix != ".h":
        raise McdiError(f"8-bit weights are for C headers: give a name that ends in .h, not {path.name}, or leave int8 out")


def write_network(
    generator: Generator, weights: Weights, classes: Sequence[str], path: Path, *, int8: bool = False
) -> nn.Module:
    """Write the network of one task as a file.

    Args:
        generator, weights: what made them, and the weights, {name: (*shape)}.
        classes: names, in the order of labels.
        path: .onnx and .pt2 map images (N, channels, side, side) in [0, 1] to (N, classes); .safetensors holds the state dict;
            .h is C99, see `c_header`. Class names are in the metadata, or in the header.
        int8: 8-bit weights, in a header only.

    Returns:
        The network as a module, which the file does what.

    Raises:
        McdiError: another suffix, int8 where there is no such code, or a network that cannot do without its backbone.
    """
    check_name(path, int8=int8)
    net = generator.to("cpu").network
    module = net.standalone({n: w.cpu() for n, w in weights.items()}).eval()
    shape = generator.image_shape if net.embedder is not None else net.example_shape or (net.input_size,)
    example = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    if path.suffix == ".safetensors":
        write_tensors(path, weights, {"classes": list(classes)})
    elif path.suffix == ".h":
        write_bytes(path, c_header(operations(module, shape), classes, int8=int8).encode())
    else:
        with quiet(), explained(f"this {net.kind} cannot be written to {path}", "write it as .safetensors"):
            batch = {0: torch.export.Dim.DYNAMIC}
            program = torch.export.export(module, (example,), dynamic_shapes=(batch,))
            data = _onnx(program, classes) if path.suffix == ".onnx" else _pt2(program, classes)
        if path.suffix == ".onnx":
            run = onnx_run(onnx_session(data))
            expected = module(example).detach()
            difference = float((run({"images": example})["logits"] - expected).abs().max() / expected.abs().max().clamp(min=1))
            if not difference <= LIMIT:
                raise McdiError(f"the ONNX file differs by {difference:.1e} from the network: nothing was written; take .pt2")
        write_bytes(path, data)
    return module


def _pt2(program: torch.export.ExportedProgram, classes: Sequence[str]) -> bytes:
    torch.export.save(program, buffer := io.BytesIO(), extra_files={"classes.json": json.dumps(list(classes))})
    return buffer.getvalue()


def _onnx(program: torch.export.ExportedProgram, classes: Sequence[str]) -> bytes:
    for package in ("onnx", "onnxscript"):
        optional(package, "onnx", "a network file .onnx")
    names = {"input_names": ["images"], "output_names": ["logits"]}
    made = torch.onnx.export(program, dynamo=True, verbose=False, external_data=False, **names)  # type: ignore[arg-type]
    assert made is not None
    model = made.model_proto
    model.metadata_props.add(key="classes", value=json.dumps(list(classes)))
    data: bytes = model.SerializeToString()
    return data
