"""The settings of a diffusion over weights, and which of them do not go together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from mcdi import core
from mcdi.errors import McdiError
from mcdi.methods.meta_training import MetaTraining
from mcdi.methods.sampling import Sampling
from mcdi.networks.base import NetworkTraits
from mcdi.utils.settings import check_fields

Part = Literal["all", "vectors", "classes"]  # of a network: everything, its biases and norms, the rows of its classes


@dataclass(frozen=True)
class DiffusionSettings:
    """One value per row of the ablation table: k, objective, training.meta.

    Args:
        k: local targets.
        objective: "local": chain i runs to theta_{i d} at e_i (Mc-Di; with k = 1 Mv-Di). "vanilla": every theta_{i d} is the
            end point after T steps (Tw-Di). "regression": theta_M from x = 0 at t = 0 in one step, a hypernetwork
            (1609.09106) with the same network and data; sample it with steps = 1, temperature = 0.
        T, schedule, floor: see `core.make_schedule`.
        parameterisation: what the network predicts, see `core.to_f`.
        weight: of the loss, see `core.local_consistency_loss`.
        functional: weight of the task loss of the one-step answer from x = 0 at t = 0, on examples of the training task that
            are not in its support set. 0 = off, as in the paper.
        fresh_tasks: of that term, a batch: tasks that no store holds and no other step sees. 0: the stored ones of the batch.
        functional_steps: the term is paid after 1 to this many steps of the chain from x = 0, a number for every training step;
            the states before the last are the chain's own, without a gradient.
        response: whether every step sees what its current weights do on the support set, see `Network.response`; for denoiser
            "filters".
        generated: for denoiser "filters": what every task has of its own. "all"; "vectors": biases, and scales and shifts of
            norms, which is FiLM (1709.07871) of a learnt body; "classes": the classifier's rows. The rest is the learnt base's.
        prior: whether an x0 network is added to the posterior mean under a fixed linear map from the condition to the
            weights. Ours, not the paper's; every row of the ablation shares it.
        prior_input: what that map reads of a class: its "summary", the head that its "prototypes" make, or the closed-form
            "heads" that its condition begins with.
        denoiser, options: a network of `denoisers`, and its constructor's arguments.
        training, sampling: how it is meta-trained and sampled.
    """

    k: int = 3
    objective: Literal["local", "vanilla", "regression"] = "local"
    T: int = 20
    schedule: str = "cosine"
    floor: float = 2e-3
    parameterisation: core.Parameterisation = "x0"
    weight: Literal["paper", "x0"] = "paper"
    functional: float = 0.0
    fresh_tasks: int = 0
    functional_steps: int = 1
    response: bool = False
    generated: Part = "all"
    prior: bool = True
    prior_input: Literal["summary", "prototypes", "heads"] = "summary"
    denoiser: str = "transformer"
    options: dict[str, Any] = field(default_factory=dict)
    training: MetaTraining = MetaTraining()
    sampling: Sampling = Sampling()
    renamed: ClassVar[Mapping[str, Any]] = {"around": "prior_input", "denoiser": {"span": "head-combiner"}}

    def __post_init__(self) -> None:
        check_fields(self)
        if "among" in self.options:
            raise McdiError("the option among was renamed: write set_attention_layers")
        if self.objective == "regression" and self.parameterisation != "x0":
            raise McdiError("regression predicts the weights themselves: set parameterisation = 'x0'")
        if self.parameterisation == "eps" and self.weight == "x0":
            raise McdiError("a network that predicts eps does not learn under weight = 'x0': set weight = 'paper'")
        if self.sampling.steps is not None and not 1 <= self.sampling.steps <= self.T:
            raise McdiError(f"sampling.steps = {self.sampling.steps} is outside 1..T = {self.T}")
        if self.response and not self.reads_examples:
            raise McdiError("response = true is for denoiser = 'filters', which attends to examples: leave it out")
        if self.generated != "all" and not self.reads_examples:
            raise McdiError(f"generated = {self.generated!r} is for denoiser = 'filters': leave it out")
        if self.fresh_tasks < 0:
            raise McdiError(f"fresh_tasks = {self.fresh_tasks} is a number of tasks: choose 0 or more")
        if not 1 <= self.functional_steps <= self.T:
            raise McdiError(f"functional_steps = {self.functional_steps} is outside 1..T = {self.T}")
        if self.reads_examples and self.prior:
            raise McdiError("denoiser 'filters' has a learnt base network in place of the linear prior: set prior = false")
        if self.combines_heads and not (self.prior and self.prior_input == "heads" and self.parameterisation == "x0"):
            raise McdiError(
                "denoiser 'head-combiner' adds up closed-form heads: set prior_input = 'heads', prior = true and "
                "parameterisation = 'x0'"
            )

    @property
    def combines_heads(self) -> bool:
        """Whether the denoiser reads closed-form heads alone."""
        return self.denoiser == "head-combiner"

    @property
    def reads_examples(self) -> bool:
        """Whether the denoiser attends to the support set itself, and not to a condition of every unit."""
        return self.denoiser == "filters"

    @property
    def segments(self) -> int:
        """Chains that the schedule is divided into: Tw-Di has k targets but one chain, the vanilla one."""
        return self.k if self.objective == "local" else 1

    def check_network(self, traits: NetworkTraits) -> None:
        """Raises McdiError where weights of such a network cannot be generated with these settings."""
        if self.reads_examples and not traits.filters:
            raise McdiError(f"denoiser 'filters' makes networks in units of filters, not a {traits.kind}: choose another")
        if self.generated == "classes" and traits.solved:
            raise McdiError("generated = 'classes' and a solved last layer leave nothing to generate: set head = 'generated'")
        if self.prior and self.prior_input == "heads" and not traits.condition_heads:
            raise McdiError(f"the condition of a {traits.kind} holds no heads: set prior_input = 'summary'")
        if self.combines_heads and not traits.rows_only:
            raise McdiError(
                "denoiser 'head-combiner' makes rows alone: set lora.generate = 'rows', or denoiser = 'transformer'"
            )
        if traits.embedding and self.combines_heads:
            raise McdiError(
                "denoiser 'head-combiner' reads heads alone, not features of another network: leave out embedding, or set "
                "denoiser = 'transformer'"
            )
        if traits.embedding and self.prior and self.prior_input == "prototypes":
            raise McdiError(
                "prototypes of another network's features are no heads of this one: set prior_input = 'summary' or 'heads'"
            )
