"""Which networks can be generated, by name?"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mcdi.errors import McdiError
from mcdi.networks.backbones.language import LoraSettings
from mcdi.networks.backbones.vision import Embedder
from mcdi.networks.base import Network
from mcdi.networks.conv_net import ConvNet
from mcdi.networks.curve import Curve
from mcdi.networks.film import FilmHead
from mcdi.networks.linear_head import LinearHead
from mcdi.networks.lora import LoraClassifier
from mcdi.networks.own import OwnNetwork
from mcdi.networks.pixels import PixelNet
from mcdi.utils.settings import make

KINDS: tuple[type[Network], ...] = (LinearHead, FilmHead, PixelNet, ConvNet, Curve, LoraClassifier, OwnNetwork)
NETWORKS: dict[str, type[Network]] = {c.kind: c for c in KINDS}


def build(config: Mapping[str, Any], state: Mapping[str, Tensor], **code: Any) -> Network:
    """The network that `config()` and `state()` described. code: what no file holds of a network of the user's own, its module,
    and its loss and describe if it has them. Raises McdiError for one that this version does not know."""
    values, code = dict(config), {n: c for n, c in code.items() if c is not None}
    kind = values.pop("kind", None)
    if kind not in NETWORKS:
        raise McdiError(f"unknown network {kind!r}: this version knows {', '.join(NETWORKS)}")
    if kind == OwnNetwork.kind and "module" not in code:
        raise McdiError("this generator makes weights of a module of your own, whose code no file holds: give it as `module`")
    if kind != OwnNetwork.kind and code:
        raise McdiError(f"a {kind} needs no code of yours: leave out {', '.join(code)}")
    values |= code
    if values.get("embedder") is not None:
        values["embedder"] = Embedder.from_config(values["embedder"])
    if "lora" in values:
        values["lora"] = make(LoraSettings, values["lora"], "lora")
    network = NETWORKS[kind](**values)
    network.load_state(state)
    return network
