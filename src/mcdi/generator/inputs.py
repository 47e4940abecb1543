"""What users give a generator, as its method and its network read it: support sets, queries and weights, checked."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcdi.errors import McdiError
from mcdi.methods import method_spec
from mcdi.networks.backbones.texts import is_text
from mcdi.networks.base import Network
from mcdi.networks.support import support_batch
from mcdi.types import Examples
from mcdi.utils.random import Seed, checked_seeds
from mcdi.utils.tensors import labels_of, numbers_of, pixels_of, tensor_of


def embedded(net: Network, x: Any, device: str, *, query: bool = False) -> Tensor:
    """See `Generator.embed`."""
    x = numbers_of(x, "the examples").to(device)
    raw, shape = net.example_shape, None if net.embedder is None else net.embedder.shape
    if raw is not None:
        if x.ndim < len(raw) or tuple(x.shape[x.ndim - len(raw) :]) != raw:
            raise McdiError(f"examples of shape {tuple(x.shape)} do not end in {raw}, the shape of one")
        if net.reads_integers and x.is_floating_point():
            raise McdiError("this network reads integers, as in its training, not real numbers: convert them, as by x.long()")
        return net.embed(x.long() if net.reads_integers else x.float())
    if shape is not None and x.ndim >= 4 and tuple(x.shape[-3:]) == shape:
        images = pixels_of(x, "the images")
        return net.embed_query(images) if query else net.embed(images)
    own = net.input_size - net.embedding_size  # features of the backbone alone
    last = x.shape[-1] if x.ndim else 0
    width = own if query and last == own else net.input_size
    if last != width or (x.ndim >= 4 and x.shape[-2] == width):  # square: images of another size
        neither = "not" if shape is None else f"neither images (..., {', '.join(map(str, shape))}) nor"
        raise McdiError(f"examples of shape {tuple(x.shape)} are {neither} features (..., {width})")
    return x.float()


def support_of(net: Network, support: tuple[Any, Any], device: str, *, any_way: bool) -> tuple[Examples, int, bool]:
    """A support set with a batch dimension, on the device and not yet embedded; its number of classes, and whether the batch
    dimension was added. See `Generator.generate`."""
    if not isinstance(support, Sequence) or len(support) != 2:
        raise McdiError(f"a support set is a tuple of two, x and y, not a {type(support).__name__}: give (x, y)")
    y = (numbers_of if net.regression else labels_of)(support[1], "labels").to(device)
    y = y.float() if net.regression else y
    kind: dict[str, Any] = {"any_way": any_way, "regression": net.regression, "target": net.target_shape}
    kind["dims"] = len(net.example_shape or ())
    x = net.read(support[0]).to(device)
    x = x[0] if is_text(support[0]) and y.ndim == 0 else x
    x, y, way, single = support_batch(x, y, way=net.way, **kind)
    return Examples(x, y), way, single


def seeds_of(seed: Any, tasks: int, method: str) -> Seed:
    """One seed for a batch, or one for each of its tasks where the method takes that. Raises McdiError for anything else."""
    seeds = checked_seeds(seed)
    if isinstance(seeds, list) and not method_spec(method).seed_per_task:
        raise McdiError(f"{method} has one seed for a batch, not one for each task: give one integer")
    if isinstance(seeds, list) and len(seeds) != tasks:
        raise McdiError(f"there are {len(seeds)} seeds for {tasks} tasks: give one for each, or one integer")
    return seeds


class Queries(NamedTuple):
    """Inputs x (B, S, ...) with S >= 1, and how what is answered to them is cut: to none, without S, without B."""

    x: Tensor
    empty: bool
    one: bool  # example, which came without S
    single: bool  # task, which came without B

    def cut(self, answers: Tensor) -> Tensor:
        answers = answers[:, :0] if self.empty else answers[:, 0] if self.one else answers
        return answers[0] if self.single else answers


def queries_of(net: Network, x: Any, tasks: int, *, single: bool) -> Queries:
    """New inputs for the networks of some tasks, not yet embedded. See `Generator.predict`."""
    one = is_text(x)
    given = numbers_of(x, "the examples") if isinstance(x, Tensor) or not net.reads_texts else x
    given = net.read(given)
    if not given.numel():  # whatever a network makes of one example is cut off
        shape = net.example_shape or (net.input_size,)
        dummy = net.read("")[None] if net.reads_texts else torch.zeros(1, 1, *shape, dtype=torch.uint8)
        return Queries(dummy.expand(tasks, *dummy.shape[1:]), True, False, single)
    images = {} if net.embedder is None else {3}
    dims = {len(net.example_shape)} if net.example_shape is not None else {net.feature_dims, *images}
    front = given.ndim - (0 if single else 1)  # dimensions of S and of an example
    if one := one or (front in dims and front - 1 not in dims):
        given = given if is_text(x) else given[None] if single else given[:, None]
    batch = given[None] if single else given
    if len(batch) != tasks:
        raise McdiError(
            f"there are weights of {tasks} tasks, and inputs {tuple(given.shape)} of {len(batch)}: give one for each"
        )
    return Queries(batch, False, one, single)


def packed(net: Network, weights: Mapping[str, Any], device: str, *, single: bool) -> Tensor:
    """Weights (B, U, D) of {name: (*shape)} of one task, or of {name: (B, *shape)}. What a network does not generate is left
    out."""
    read = {n: tensor_of(weights[n], f"the weights {n}").to(device) for n in net.space.spec if n in weights}
    return net.space.pack({n: w[None] if single else w for n, w in read.items()})
