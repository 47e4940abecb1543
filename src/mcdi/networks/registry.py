"""Downstream networks by name: `register_network` adds one, `build` makes the network of a saved generator."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from mcdi.networks.base import Network
from mcdi.utils.registry import Registry

N = TypeVar("N", bound=type[Network])


@dataclass(frozen=True)
class NetworkSpec:
    """A network that a recipe can name.

    Attributes:
        name: as in `network = "NAME"`.
        network: the class; its attributes and `traits` say what it supports.
        data: kinds of examples that it takes, see `FamilySpec.kind`.
    """

    name: str
    network: type[Network]
    data: tuple[str, ...]


NETWORKS: Registry[NetworkSpec] = Registry(
    "network",
    "mcdi.networks",
    {
        "linear-head": "mcdi.networks.linear_head",
        "film-head": "mcdi.networks.film",
        "pixel-net": "mcdi.networks.pixels",
        "conv-net": "mcdi.networks.conv_net",
        "curve": "mcdi.networks.curve",
        "lora": "mcdi.networks.lora",
        "sentence-head": "mcdi.networks.sentence_head",
        "own": "mcdi.networks.own",
    },
)


def register_network(name: str, *data: str) -> Callable[[N], N]:
    """Decorator of a Network class: recipes and saved generators find it under `name`.

    Args:
        name: becomes the class's `kind`.
        data: kinds of examples that it takes: "images" (its source passes `features` and an `embedder`), "vectors"
            (`features`), "points", "texts", or what a source of your own declares. None: no recipe can name it.
    """

    def register(network: N) -> N:
        network.kind = name
        NETWORKS.add(name, NetworkSpec(name, network, data))
        return network

    return register


def build(config: Mapping[str, Any], state: Mapping[str, Tensor], **code: Any) -> Network:
    """The network that `Network.config` and `Network.state` described.

    Args:
        config: of `Network.config`.
        state: of `Network.state`.
        code: what no file holds of a network of the user's own: its module, and its loss and describe if it has them.

    Raises:
        McdiError: an unknown network, or code that is missing or not needed.
    """
    values = dict(config)
    given = {n: c for n, c in code.items() if c is not None}
    network = NETWORKS.get(str(values.pop("kind", None))).network.from_config(values, given)
    network.load_state(state)
    return network
