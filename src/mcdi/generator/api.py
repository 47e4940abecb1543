"""How does a user get weights? load(folder).generate(support) -> a dict ready for load_state_dict or functional_call."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mcdi.errors import McdiError
from mcdi.generator import hub
from mcdi.generator.card import model_card
from mcdi.generator.exported import Exported, alone
from mcdi.generator.saving import CONFIG, FORMAT, MODEL, belonging, read_saved
from mcdi.methods import SAMPLERS, Diffusion, Sampling, WeightGenerator, adapt, make_method
from mcdi.methods.published.stored_weights import FromWeights
from mcdi.networks import base, registry
from mcdi.networks.heads import as_head
from mcdi.networks.own import Describe, Loss
from mcdi.networks.support import centre_of, support_batch
from mcdi.types import Examples
from mcdi.utils.files import write_json, write_tensors
from mcdi.utils.random import Seed

Weights = dict[str, Tensor]


class Chain(NamedTuple):
    """Where a chain of one task stood: times (n), and the weights (n, U, D) with their losses (n,) on the support set."""

    times: list[int]
    weights: Tensor
    losses: Tensor
    support: Examples
    mask: Tensor


class Generator:
    """A trained method and the downstream network that it generates: images, or features, of a few examples in, weights out.

    Inputs of one task carry no batch dimension: x (S, ...) and y (S,); B tasks at once are x (B, S, ...) and y (B, S).
    x is what the network's backbone reads (images of `image_shape`, uint8, or floats in [0, 1]; for a language model a list
    of S texts, (sentence,) or (sentence, sentence) each) or its features (F,).
    """

    def __init__(self, name: str, method: WeightGenerator, network: base.Network, device: str = "cpu") -> None:
        self.name, self.method, self.network, self.device = name, method, network, device
        self.exported: Exported | None = None  # what `mcdi export` made of it, which then answers where nothing is asked

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of the images that the network's backbone reads: (channels, side, side). Raises McdiError where it has none."""
        if self.network.embedder is None:
            raise McdiError(f"this generator's {self.network.kind} reads no images: give it tensors, from Python")
        return self.network.embedder.shape

    def embed(self, x: Tensor, *, query: bool = False) -> Tensor:
        """Inputs (..., *shape) -> what the downstream network and the task embedding read (..., X); of a query, only the former
        where the latter is another network's."""
        x = x.to(self.device)
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise McdiError("the examples hold NaN or infinite values: clean them first")
        net, shape = self.network, None if self.network.embedder is None else self.image_shape
        raw = net.example_shape
        if raw is not None:
            if tuple(x.shape[x.ndim - len(raw) :]) != raw:
                raise McdiError(f"examples of shape {tuple(x.shape)} do not end in {raw}, the shape of one")
            return net.embed(x.float() if x.is_floating_point() else x)
        if shape is not None and x.ndim >= 4 and tuple(x.shape[-3:]) == shape:
            images = x if x.dtype == torch.uint8 else (x * 255).round().clamp(0, 255).to(torch.uint8)
            return net.embed_query(images) if query else net.embed(images)
        alone = net.input_size - net.embedding_size
        width = alone if query and x.shape[-1] == alone else net.input_size
        if x.shape[-1] != width or (x.ndim >= 4 and x.shape[-2] == width):  # square: images of another size
            neither = "not" if shape is None else f"neither images (..., {', '.join(map(str, shape))}) nor"
            raise McdiError(f"examples of shape {tuple(x.shape)} are {neither} features (..., {width})")
        return x.float()

    def _support(self, support: tuple[Any, Tensor] | Examples) -> tuple[Examples, Tensor, bool]:
        net, given = self.network, (self.network.read(support[0]), torch.as_tensor(support[1]).to(self.device))
        rows = net.space.unit == "row"
        x, y, way, single = support_batch(*given, way=net.way, any_way=rows, regression=net.regression, target=net.target_shape)
        mask = torch.ones(len(y), net.space.units(way), dtype=torch.bool, device=self.device)
        return Examples(self.embed(x), y), mask, single

    @torch.no_grad()
    def generate(
        self,
        support: tuple[Any, Tensor] | Examples,
        *,
        steps: int | None = None,
        temperature: float | None = None,
        samples: int | None = None,
        ensemble: bool = False,
        stop: int | None = None,
        seed: Seed = 0,
    ) -> Weights:
        """Weights from a support set, without a gradient step: {name: (*shape)}, or (B, *shape) for a batch of tasks.

        steps: denoising steps (default: as trained); temperature: scale of the noise, 0 = a chain without noise, from the mean;
        samples: chains a task, averaged, or kept apart as (samples, ...) in front of the shape with `ensemble`;
        stop: end at the local target theta_{i d}, i in 1..k. Whatever is asked, a head leans on the least-squares
        classifier of its support set by the share that validation chose (Sampling.share); as it was trained to be asked, also
        by more where the examples say that the task is unlike those of training (`trust`). seed: of a batch, or one of every
        task where `own_seeds`. Raises McdiError for inputs that do not fit the model.
        """
        options = {"steps": steps, "temperature": temperature, "samples": samples, "stop": stop}
        return self.generate_trusted(support, seed=seed, ensemble=ensemble, **options)[0]

    @torch.no_grad()
    def generate_trusted(
        self, support: tuple[Any, Tensor] | Examples, *, seed: Seed = 0, ensemble: bool = False, **options: float | None
    ) -> tuple[Weights, Tensor]:
        """`generate`, and how far it was trusted: () or (B,), what `trust` says, 1 where options are asked."""
        examples, mask, single = self._support(support)
        how = self.sampling(**options)
        if ensemble and how is None:
            raise McdiError(f"{self.name} has no chain to sample: ensemble is for the diffusion methods")
        asked = ensemble or any(v is not None for v in options.values())
        if self.exported is not None and not asked and self.exported.serves(mask.shape[1]):
            weights, trusted = self.exported.run(*examples, mask.shape[1], seed)
        else:
            flat, trusted = self.packed(examples, mask, how, seed, ensemble=ensemble)
            weights = self._dict(flat)
        return (alone(weights), trusted[0]) if single else (weights, trusted)

    def sampling(self, **asked: float | None) -> Sampling | None:
        """The way of sampling with what is asked (not None) changed; None for a method without one, of which nothing may be."""
        asked = {n: v for n, v in asked.items() if v is not None}
        if isinstance(self.method, Diffusion):
            how = self.method.settings.sampling
            # What is usual is known of one way of sampling alone.
            return replace(how, **asked, usual={}) if asked else how  # type: ignore[arg-type]
        if asked:
            raise McdiError(f"{self.name} has no chain to sample: {', '.join(asked)} is for the diffusion methods")
        return None

    def packed(
        self, support: Examples, mask: Tensor, how: Sampling | None, seed: Seed = 0, *, ensemble: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Weights (B, U, D), or (B, samples, U, D) with `ensemble`, of embedded examples, and their trust (B,). What is
        computed depends on no value: an export traces it."""
        support, centre = self._centred(support, mask)
        trusted = torch.ones(mask.shape[0], device=mask.device)
        if not isinstance(self.method, Diffusion):
            flat = self.method.generate(self.network, support, mask, seed=seed)  # type: ignore[arg-type]
        elif ensemble:
            flat = self.method.draws(self.network, support, mask, seed=seed, how=how or self.method.settings.sampling)
        else:
            how = how or self.method.settings.sampling
            flat, trusted = self.method.generate_trusted(self.network, support, mask, seed=seed, how=how)
        return flat if centre is None else as_head(self.network, "set centred = false").uncentre(flat, centre), trusted

    @property
    def own_seeds(self) -> bool:
        """Whether every task of a batch may have a seed of its own. Others draw nothing, or one order of examples for all."""
        return isinstance(self.method, Diffusion | FromWeights)

    @torch.no_grad()
    def chain(self, support: tuple[Any, Tensor] | Examples, *, seed: int = 0, **options: float | None) -> Chain:
        """One chain of one task, from noise in T steps where nothing else is asked (steps, temperature), before it leans on
        anything. Raises McdiError where there is no chain."""
        if not isinstance(self.method, Diffusion) or not self.method.is_chain:
            raise McdiError(f"{self.name} has no chain to look at: take a diffusion method, mc-di for instance")
        given, mask, single = self._support(support)
        if not single:
            raise McdiError("a chain is looked at for one task: give x (S, ...) and y (S,)")
        examples, _ = self._centred(given, mask)
        how = replace(SAMPLERS["ddpm"], **{n: v for n, v in options.items() if v is not None})  # type: ignore[arg-type]
        states = self.method.chain(self.network, examples, mask, seed=seed, how=how)
        losses = torch.cat([self.network.loss(w, examples, mask) for _, w in states])
        return Chain([t for t, _ in states], torch.cat([w for _, w in states]), losses, examples, mask)

    def trust(self, support: tuple[Any, Tensor] | Examples, *, seed: int = 0) -> Tensor:
        """How far a task is like those of training, 1 to 0, by whether the head generated for it misses its own examples: as
        much is used of what was learnt, and least squares otherwise. () or (B,); 1 for weights that lean on nothing."""
        given, mask, single = self._support(support)
        examples, _ = self._centred(given, mask)
        if isinstance(self.method, Diffusion):
            found = self.method.trust(self.network, examples, mask, seed=seed)
        else:
            found = torch.ones(len(mask))
        return found[0] if single else found

    def _centred(self, examples: Examples, mask: Tensor) -> tuple[Examples, Tensor | None]:
        """As the method reads them, and the centre that they were freed of, where its network wants that."""
        if not self.network.centred:
            return examples, None
        centre = centre_of(*examples, self.network.classes(mask.shape[1]))
        return examples._replace(x=examples.x - centre), centre

    def _dict(self, flat: Tensor) -> Weights:
        lead = flat.shape[:-2]
        return {n: w.unflatten(0, lead) for n, w in self.network.space.unpack(flat.flatten(0, -3)).items()}

    def _flat(self, weights: Weights, single: bool) -> Tensor:
        return self.network.space.pack({n: (w[None] if single else w).to(self.device) for n, w in weights.items()})

    @torch.no_grad()
    def predict(self, weights: Weights, x: Any) -> Tensor:
        """Outputs of the generated network: (*weights of one task), (S, ...) -> (S, classes), or batches of both."""
        x = self.network.read(x)
        single = next(iter(weights.values())).ndim == len(next(iter(self.network.space.spec.values()))[0])
        out = self.network.predict(self._flat(weights, single), self.embed(x[None] if single else x, query=True))
        return out[0] if single else out

    def refine(
        self, support: tuple[Any, Tensor] | Examples, weights: Weights | None = None, *, steps: int = 10, lr: float = 0.01
    ) -> Weights:
        """`steps` Adam steps at rate `lr` on the support set, from `weights` or from freshly generated ones."""
        examples, mask, single = self._support(support)
        start = self._flat(self.generate(support) if weights is None else weights, single)
        refined = self._dict(adapt(self.network, start, examples, mask, steps, lr))
        return alone(refined) if single else refined

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors and then config.json, each in one step; no pickle."""
        folder = Path(folder)
        tensors = {f"method.{n}": t for n, t in self.method.state().items()}
        tensors |= {f"network.{n}": t for n, t in self.network.state().items()}
        write_tensors(folder / MODEL, tensors)
        config = {"format": FORMAT, "method": self.name, "network": self.network.config(), **self.method.config()}
        write_json(folder / CONFIG, config)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a generator of mcdi",
    ) -> str:
        """Put this generator on the Hugging Face Hub under "user/name", with a card (`mcdi[hub]`); returns the address of
        the commit. `mcdi push` does so with one that lies in its run, of which the card then tells more. Raises McdiError
        on failure."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "generator"
            self.save_pretrained(folder)
            card, how = model_card(repo_id, folder), {"private": private, "token": token, "revision": revision}
            return hub.push(folder, repo_id, card=card, message=commit_message, **how)  # type: ignore[arg-type]

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        device: str = "cpu",
        *,
        module: nn.Module | None = None,
        loss: Loss | None = None,
        describe: Describe | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
    ) -> "Generator":
        """Inverse of `save_pretrained`: of a folder, or of "user/name" on the Hugging Face Hub (`mcdi[hub]`), which revision,
        token and cache_dir are for. module, and loss and describe if they were given: those of `OwnTasks`. Raises McdiError for
        what is missing, corrupt or of another version."""
        folder = hub.located(model, revision=revision, token=token, cache_dir=cache_dir)
        config, parts = read_saved(folder)
        with belonging(folder):
            network = registry.build(config["network"], parts["network"], module=module, loss=loss, describe=describe)
            method = make_method(config["method"], config["settings"]).restore(config, parts["method"])
        saved = config.get("space")
        if saved is not None and network.space.config() != saved:
            raise McdiError(f"{folder}: the generator was trained for other weights than its network has: restore config.json")
        return cls(config["method"], method, network).to(device)

    def to(self, device: str) -> "Generator":
        self.device = device
        if isinstance(self.method, Diffusion):
            self.method.to(device)
        self.network.to(device)
        return self


def load(model: str | Path, device: str = "cpu", **options: Any) -> Generator:
    """The generator in a folder, for instance `runs/glyphs/methods/mc-di-0`, or on the Hugging Face Hub: `user/name`. options:
    of `Generator.from_pretrained`; one for your own module needs `module`."""
    return Generator.from_pretrained(model, device, **options)
