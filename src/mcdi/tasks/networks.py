"""Which networks can be generated, by name?"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mcdi.embed import Embedder
from mcdi.errors import McdiError
from mcdi.settings import make
from mcdi.tasks.adapted import ConvNet, FilmHead
from mcdi.tasks.downstream import Curve, Network, PixelNet
from mcdi.tasks.encoders import LoraSettings
from mcdi.tasks.heads import LinearHead
from mcdi.tasks.lora import LoraClassifier

NETWORKS: dict[str, type[Network]] = {c.kind: c for c in (LinearHead, FilmHead, PixelNet, ConvNet, Curve, LoraClassifier)}


def build(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Network:
    """The network that `config()` and `state()` described. Raises McdiError for one that this version does not know."""
    values = dict(config)
    kind = values.pop("kind", None)
    if kind not in NETWORKS:
        raise McdiError(f"unknown network {kind!r}: this version knows {', '.join(NETWORKS)}")
    if values.get("embedder") is not None:
        values["embedder"] = Embedder.from_config(values["embedder"])
    if "lora" in values:
        values["lora"] = make(LoraSettings, values["lora"], "lora")
    network = NETWORKS[kind](**values)
    network.load_state(state)
    return network
