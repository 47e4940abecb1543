"""The user's API: load(folder).generate(support) gives weights ready for load_state_dict or functional_call."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcdi.errors import McdiError
from mcdi.generator import saving
from mcdi.generator.exported import Exported, owned, squeeze_batch
from mcdi.generator.inputs import embedded, packed, queries_of, seeds_of, support_of
from mcdi.methods import WeightGenerator, method_spec
from mcdi.methods.base import SupportsDevice
from mcdi.methods.baselines.finetune import adapt
from mcdi.methods.sampling import SAMPLERS, Chain, Generated, Sampling, SupportsSampling, reduce_draws
from mcdi.networks import base
from mcdi.networks.heads import as_head
from mcdi.networks.own import Describe, Loss
from mcdi.networks.support import centre_of
from mcdi.types import Examples
from mcdi.utils.random import Seed
from mcdi.utils.torch_state import plain_torch
from mcdi.utils.workers import pick_device

Weights = dict[str, Tensor]
Support = tuple[Any, Any] | Examples  # x and y, of any type that holds numbers


class Generator:
    """A trained method and the downstream network whose weights it generates. Inputs of one task carry no batch
    dimension: x (S, ...) and y (S,); B tasks at once are x (B, S, ...) and y (B, S). x is what the network's backbone
    reads (images of `image_shape`, uint8, or floats in [0, 1]; for a language model a list of S texts, (sentence,) or
    (sentence, sentence) each) or its features (F,). Any number of threads may call one."""

    def __init__(self, name: str, method: WeightGenerator, network: base.Network, device: str | torch.device = "cpu") -> None:
        self.name, self.method, self.network, self.device = name, method, network, pick_device(device)
        self.exported: Exported | None = None  # made by `mcdi export`; it answers unless options are given

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, side, side) of the images that the backbone reads. Raises McdiError if there is no image backbone."""
        if self.network.embedder is None:
            raise McdiError(f"this generator's {self.network.kind} reads no images: give it tensors, from Python")
        return self.network.embedder.shape

    @property
    def any_way(self) -> bool:
        """Whether it makes networks for any number of classes: some denoisers read the weights of all classes as one vector."""
        return self.network.space.any_rows and getattr(self.method, "any_units", True)

    @plain_torch()
    @torch.no_grad()
    def embed(self, x: Any, *, query: bool = False) -> Tensor:
        """Features (..., X) of inputs.

        Args:
            x: (..., *shape), images, tensors that the network reads as they are, or features already.
            query: whether they are to be classified only: the task embedding by another network is then left out.

        Raises:
            McdiError: inputs of another shape, NaN or infinite values.
        """
        return embedded(self.network, x, self.device, query=query)

    def _support(self, support: Support) -> tuple[Examples, Tensor, bool]:
        examples, way, single = support_of(self.network, support, self.device, any_way=self.any_way)
        mask = torch.ones(len(examples.y), self.network.space.units(way), dtype=torch.bool, device=self.device)
        return examples._replace(x=self.embed(examples.x)), mask, single

    def generate(
        self,
        support: Support,
        *,
        steps: int | None = None,
        temperature: float | None = None,
        samples: int | None = None,
        ensemble: bool = False,
        stop: int | None = None,
        seed: Seed = 0,
    ) -> Weights:
        """Weights from a support set, without a gradient step.

        Args:
            support: x (S, ...) and y (S,) of one task, or x (B, S, ...) and y (B, S) of a batch.
            steps: denoising steps; as trained by default.
            temperature: scale of the noise; 0 = a deterministic chain from the mean.
            samples, ensemble: chains a task, averaged; or kept apart, (samples, ...) in front of each shape.
            stop: end at the local target theta_{i d}, i in 1..k.
            seed: of a batch, or one for every task where `seed_per_task`.

        Returns:
            {name: (*shape)}, or (B, *shape) for a batch. A head is blended with ridge regression on its support set by the
            mixing weight that validation chose; as it was trained to be sampled, also as far as `confidence` falls below 1.

        Raises:
            McdiError: inputs that do not fit the model, or options that its method does not have.
        """
        options = {"steps": steps, "temperature": temperature, "samples": samples, "stop": stop}
        return self.sample(support, seed=seed, ensemble=ensemble, **options).weights

    def confidence(self, support: Support, *, seed: Seed = 0) -> Tensor:
        """How far a task resembles those of training, 1 to 0: () or (B,). The blend with ridge regression leaves so much of the
        learnt head; 1 for methods and networks without such a blend."""
        return self.sample(support, seed=seed).confidence

    @plain_torch()
    @torch.no_grad()
    def sample(
        self, support: Support, *, seed: Seed = 0, ensemble: bool = False, **options: float | None
    ) -> Generated[Weights]:
        """What `generate` and `confidence` return, from one pass. Options are those of `generate`."""
        examples, mask, single = self._support(support)
        sampling, seed = self.sampling(**options), seeds_of(seed, len(mask), self.name)
        if ensemble and sampling is None:
            raise McdiError(f"{self.name} has no chain to sample: ensemble is for the diffusion methods")
        plain = not ensemble and set(options.values()) <= {None}
        if self.exported is not None and plain and self.exported.serves(mask.shape[1]):
            weights, confidence = self.exported.run(*examples, mask.shape[1], seed)
        else:
            packed, confidence = self.sample_packed(examples, mask, sampling, seed, ensemble=ensemble)
            weights = self._dict(packed)
        weights = owned(squeeze_batch(weights) if single else weights)
        return Generated(weights, confidence[0] if single else confidence)

    def sample_packed(
        self, support: Examples, mask: Tensor, sampling: Sampling | None, seed: Seed = 0, *, ensemble: bool = False
    ) -> Generated[Tensor]:
        """Weights (B, U, D), or (B, samples, U, D) with `ensemble`, of embedded examples; an export traces it."""
        support, centre = self._centred(support, mask)
        method, net = self.method, self.network
        if isinstance(method, SupportsSampling):
            sampling = sampling or method.sampling
            packed, confidence = method.sample(net, support, mask, seed=seed, sampling=sampling)
            if not ensemble:
                packed = reduce_draws(net, packed, support, mask, sampling)
        else:
            packed = method.generate(net, support, mask, seed=seed)  # type: ignore[arg-type]
            confidence = torch.ones(mask.shape[0], device=mask.device)
        if centre is not None:
            packed = as_head(net, "set centred = false").uncentre(packed, centre)
        return Generated(packed, confidence)

    def sampling(self, **options: float | None) -> Sampling | None:
        """The method's sampling with the given options changed; None for a method without a chain, for which options are a
        McdiError."""
        changes: dict[str, Any] = {n: v for n, v in options.items() if v is not None}
        if isinstance(self.method, SupportsSampling):
            sampling = self.method.sampling  # its quantiles were calibrated for one way of sampling alone
            return replace(sampling, **changes, calibration_quantiles={}) if changes else sampling
        if changes:
            raise McdiError(f"{self.name} has no chain to sample: {', '.join(changes)} is for the diffusion methods")
        return None

    @property
    def seed_per_task(self) -> bool:
        """Whether every task of a batch may have a seed of its own. Others draw nothing, or one order of examples for all."""
        return method_spec(self.name).seed_per_task

    @plain_torch()
    @torch.no_grad()
    def chain(self, support: Support, *, seed: int = 0, **options: float | None) -> Chain:
        """Every state of one chain of one task, before any blend; from noise in T steps unless `steps` or `temperature` ask
        for something else. Raises McdiError where there is no chain."""
        if not isinstance(self.method, SupportsSampling) or not self.method.is_chain:
            raise McdiError(f"{self.name} has no chain: take a diffusion method, mc-di for instance")
        embedded, mask, single = self._support(support)
        if not single:
            raise McdiError("a chain is of one task: give x (S, ...) and y (S,)")
        examples, _ = self._centred(embedded, mask)
        sampling = replace(SAMPLERS["ddpm"], **{n: v for n, v in options.items() if v is not None})  # type: ignore[arg-type]
        states = self.method.chain(self.network, examples, mask, seed=seed, sampling=sampling)
        losses = torch.cat([self.network.loss(w, examples, mask) for _, w in states])
        return Chain([t for t, _ in states], torch.cat([w for _, w in states]), losses, examples, mask)

    def _centred(self, examples: Examples, mask: Tensor) -> tuple[Examples, Tensor | None]:
        """The examples as the method reads them, and the centre that was subtracted, where the network wants that."""
        if not self.network.centred:
            return examples, None
        centre = centre_of(*examples, self.network.classes(mask.shape[1]))
        return examples._replace(x=examples.x - centre), centre

    def _dict(self, flat: Tensor) -> Weights:
        return {n: w.unflatten(0, flat.shape[:-2]) for n, w in self.network.space.unpack(flat.flatten(0, -3)).items()}

    @plain_torch()
    @torch.no_grad()
    def predict(self, weights: Mapping[str, Any], x: Any) -> Tensor:
        """Outputs of generated networks for new inputs.

        Args:
            weights: of one task, or of a batch as `generate` returns them.
            x: (S, ...), or one input (...), for the weights of one task; (B, S, ...) or (B, ...) for a batch.

        Returns:
            (S, classes) logits or (S, ...) values, without S for one input, with B in front for a batch.

        Raises:
            McdiError: inputs or weights that do not fit the network.
        """
        name, (shape, *_) = next(iter(self.network.space.spec.items()))  # weights from a file come in another order
        single = name in weights and weights[name].ndim == len(shape)
        flat = packed(self.network, weights, self.device, single=single)
        queries = queries_of(self.network, x, len(flat), single=single)
        return queries.cut(self.network.predict(flat, self.embed(queries.x, query=True)))

    def load_into(self, module: nn.Module, weights: Mapping[str, Any]) -> None:
        """Give a module like the generator's own the weights of one task, and the tensors that are not generated (buffers, tied
        names, what `select` left out): in evaluation mode it then answers what `predict` does."""
        self.network.load_into(module, squeeze_batch(self._dict(packed(self.network, weights, self.device, single=True))))

    @plain_torch()
    def refine(
        self, support: Support, weights: Mapping[str, Any] | None = None, *, steps: int = 10, lr: float = 0.01
    ) -> Weights:
        """Weights after `steps` steps of Adam at rate `lr` on the support set, from `weights` or from newly generated ones."""
        examples, mask, single = self._support(support)
        start = packed(self.network, self.generate(support) if weights is None else weights, self.device, single=single)
        refined = self._dict(adapt(self.network, start, examples, mask, steps, lr))
        return owned(squeeze_batch(refined) if single else refined)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the content of its two files; as any object where no file holds the code of its module."""
        if self.network.needs_module:
            return object.__new__, (type(self),), self.__dict__
        return _unpickled, (saving.to_bytes(self.name, self.method, self.network), self.device)

    @plain_torch()
    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors and then config.json, each in one step; no pickle."""
        saving.save(Path(folder), self.name, self.method, self.network)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a generator of mcdi",
    ) -> str:
        """Upload this generator, with a card, to "user/name" on the Hugging Face Hub (`mcdi[hub]`); returns the address of the
        commit. The card of `mcdi push` says more. Raises McdiError when the Hub cannot be reached or refuses."""
        options: dict[str, Any] = {"private": private, "token": token, "branch": revision, "message": commit_message}
        return saving.push_generator((self.name, self.method, self.network), repo_id, **options)

    @classmethod
    @plain_torch()
    @torch.random.fork_rng(devices=[])  # layers draw their first weights
    def from_pretrained(
        cls,
        model: str | Path,
        device: str | torch.device = "cpu",
        *,
        module: nn.Module | None = None,
        loss: Loss | None = None,
        describe: Describe | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
    ) -> "Generator":
        """A saved generator.

        Args:
            model: its folder, or "user/name" on the Hugging Face Hub (`mcdi[hub]`).
            device: where it generates; "auto" is the best there is.
            module: of a generator made from `OwnTasks`: that module, whose code no file holds.
            loss, describe: as they were given to `OwnTasks`.
            revision, token, cache_dir: branch, tag or commit on the Hub; access to a private repository; place of downloads.

        Raises:
            McdiError: files that are missing, corrupt or of another version.
        """
        folder = saving.located(model, revision=revision, token=token, cache_dir=cache_dir)
        return cls(*saving.load_saved(folder, module=module, loss=loss, describe=describe)).to(device)

    @plain_torch()
    def to(self, device: str | torch.device) -> "Generator":
        """Generate on this device from now on, or on the best there is, "auto". Raises McdiError for an absent one."""
        self.device = device = pick_device(device)
        if isinstance(self.method, SupportsDevice):
            self.method.to(device)
        self.network.to(device)
        return self


@plain_torch()
@torch.random.fork_rng(devices=[])
def _unpickled(files: dict[str, bytes], device: str) -> Generator:
    return Generator(*saving.from_bytes(files)).to(device)


def load(model: str | Path, device: str | torch.device = "cpu", **options: Any) -> Generator:
    """The generator in a folder, for instance `runs/glyphs/methods/mc-di-0`; or a ready-made one, "symbols"; or `user/name` on
    the Hugging Face Hub. Options are those of `Generator.from_pretrained`."""
    return Generator.from_pretrained(model, device, **options)
