"""What decides a diffusion, and which values do not go together?"""

from dataclasses import dataclass, field
from typing import Any, Literal

from mcdi import core
from mcdi.errors import McdiError
from mcdi.methods.mcdi.sampling import Sampling
from mcdi.methods.meta_training import MetaTraining


@dataclass(frozen=True)
class DiffusionSettings:
    """One value per row of the ablation table: k, objective, training.meta.

    objective "local": chain i runs to theta_{i d} at e_i (Mc-Di; with k = 1 Mv-Di). "vanilla": every theta_{i d} is the
    end point after T steps (Tw-Di). "regression": theta_M from x = 0 at t = 0 in one step, the hypernetwork (1609.09106)
    with the same network and data; sample it with steps = 1, temperature = 0.
    functional: weight of the task loss of the one-step answer from x = 0 at t = 0, on examples of the training task that
    are not in its support set (0 = off, as in the paper). prior: an x0 network is added to the posterior mean under a
    fixed linear map from the condition to the weights (prior.LinearPrior); every row of the ablation shares it.
    around: what that map reads of a class: all of its summary, the head that its prototype makes, or the "heads" that its
    condition begins with (prior.HeadPrior).
    self_condition: the network also reads its last estimate of x0 (2208.04202). drop: share of the training tasks whose
    condition is hidden, so that sampling can be guided (2207.12598).
    """

    k: int = 3
    objective: Literal["local", "vanilla", "regression"] = "local"
    T: int = 20
    schedule: str = "cosine"
    floor: float = 2e-3
    parameterisation: core.Parameterisation = "x0"
    weight: Literal["paper", "x0"] = "paper"
    window: Literal["prefix", "own"] = "prefix"
    functional: float = 0.0
    prior: bool = True
    around: Literal["summary", "prototypes", "heads"] = "summary"
    self_condition: bool = False
    drop: float = 0.0
    denoiser: str = "transformer"
    options: dict[str, Any] = field(default_factory=dict)
    training: MetaTraining = MetaTraining()
    sampling: Sampling = Sampling()

    def __post_init__(self) -> None:
        if self.objective not in ("local", "vanilla", "regression"):
            raise McdiError(f"unknown objective {self.objective!r}: choose local, vanilla or regression")
        if self.objective == "regression" and self.parameterisation != "x0":
            raise McdiError("regression predicts the weights themselves: set parameterisation = 'x0'")
        if self.parameterisation == "eps" and self.weight == "x0":
            raise McdiError("a network that predicts eps does not learn under weight = 'x0': set weight = 'paper'")
        if self.sampling.steps is not None and not 1 <= self.sampling.steps <= self.T:
            raise McdiError(f"sampling.steps = {self.sampling.steps} is outside 1..T = {self.T}")
        if not 0 <= self.drop < 1:
            raise McdiError(f"drop = {self.drop} is a share of the training tasks: choose 0 <= drop < 1")
        if self.self_condition and self.objective == "regression":
            raise McdiError("regression has no earlier estimate to read: set self_condition = false")
        if self.self_condition and self.denoiser in ("cross", "span"):
            name = self.denoiser
            raise McdiError(f"denoiser {name!r} reads no earlier estimate: set self_condition = false, or take transformer")
        if self.denoiser == "span" and not (self.prior and self.around == "heads" and self.parameterisation == "x0"):
            raise McdiError("denoiser 'span' adds up heads: set around = 'heads', prior = true and parameterisation = 'x0'")

    def check(self, network: str, *, heads: int, rows_alone: bool, embedding: bool) -> None:
        """Raises McdiError where weights of a network cannot be generated so: its condition begins with `heads` heads, and the
        rest of it is of features that the network does not read, with an `embedding`."""
        if self.prior and self.around == "heads" and not heads:
            raise McdiError(f"the condition of a {network} holds no heads: set around = 'summary'")
        if self.denoiser == "span" and not rows_alone:
            raise McdiError("denoiser 'span' knows rows alone: set lora.generate = 'rows', or take transformer")
        if embedding and self.denoiser == "span":
            raise McdiError(
                "denoiser 'span' reads heads alone, not features of another network: leave out embedding, or take transformer"
            )
        if embedding and self.prior and self.around == "prototypes":
            raise McdiError(
                "prototypes of another network's features are no heads of this one: set around = 'summary' or 'heads'"
            )
