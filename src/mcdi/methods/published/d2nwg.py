"""D2NWG: latent diffusion of weights, conditioned on the support set."""

from mcdi.methods.base import register_method
from mcdi.methods.published.latent_diffusion import LatentDiffusion, LatentDiffusionSettings
from mcdi.methods.published.noise_prediction import NOISE_PREDICTION


@register_method("d2nwg", settings=LatentDiffusionSettings, label="D2NWG", colour="#444444", marker=">", **NOISE_PREDICTION)
class D2nwg(LatentDiffusion):
    """The denoiser reads the condition of the support set, in place of the published encoder of data sets.

    Source:
        Soro et al., Diffusion-based Neural Network Weights Generation, 2402.18153.
    """
