"""p-diff: latent diffusion of weights without a condition."""

import torch
from torch import Tensor

from mcdi.methods.base import register_method
from mcdi.methods.published.latent_diffusion import LatentDiffusion, LatentDiffusionSettings
from mcdi.methods.published.noise_prediction import NOISE_PREDICTION
from mcdi.networks.base import Network
from mcdi.types import Examples


@register_method("p-diff", settings=LatentDiffusionSettings, label="p-diff", colour="#a9a9a9", marker="<", **NOISE_PREDICTION)
class PDiff(LatentDiffusion):
    """The denoiser reads zeros; the task decides only which of several draws is kept.

    Source:
        Wang et al., Neural Network Diffusion, 2402.13144.
    """

    def condition(self, net: Network, support: Examples, units: int) -> Tensor:
        return torch.zeros_like(super().condition(net, support, units))
