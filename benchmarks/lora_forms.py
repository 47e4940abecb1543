"""Prediction of LoRA pairs in three forms of the same product (A -> R A, B -> B R^-1 leaves it unchanged).

    python benchmarks/lora_forms.py --out FOLDER [--data FOLDER] [--tasks 240] [--test 60] [--seeds 3]

One store of trajectories, made once: rows and pairs of the recipe text-lora in one layer. Its targets in three forms, all of
which are the same networks:

  as trained        every task starts from the same A and B
  svd               A = sqrt(S) V', B = U sqrt(S) of the product U S V'; the largest number of a row of A is positive
  svd, as the start's   the same, its components in the order and with the signs nearest to those of theta_0

Prints, for one-step regression and Mc-Di: the variance of theta_M that is explained on held-out training tasks, and the
accuracy on unseen validation and test sets, mean and standard deviation over seeds. The same folder resumes.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mcdi.experiments.recipe import read_recipe
from mcdi.experiments.run import make_family, provenance
from mcdi.methods import make_method
from mcdi.methods.mcdi.method import Diffusion
from mcdi.networks.lora import LoraClassifier
from mcdi.tasks.text.text_tasks import TextTasks
from mcdi.trajectories.prepare import Preparation, prepare
from mcdi.trajectories.store import Trajectories
from mcdi.utils.workers import silent

HELD = 5  # every fifth task is held out from training
# No prior: its pairs are those of theta_0, which are of the first form.
GENERATOR = {"prior": False, "options": {"width": 64, "depth": 2}}
TRAINING = {"iterations": 150, "learners": 2, "tasks": 16, "outer_lr": 0.003}


def by_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(.., r, n), (.., m, r) -> the pair of the same product whose components are orthogonal, the largest first."""
    rank = a.shape[-2]
    # Of two thin factors: the product, whose other singular values are zero, is never made.
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.transpose(-1, -2))
    u, s, v = torch.linalg.svd(r_b @ r_a.transpose(-1, -2))
    root = s[..., :rank].sqrt()
    left, right = (q_b @ u) * root[..., None, :], root[..., :, None] * (q_a @ v.transpose(-1, -2)).transpose(-1, -2)
    largest = right.gather(-1, right.abs().argmax(-1, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0)
    return right * sign, left * sign.transpose(-1, -2)


def as_the_starts(a: Tensor, b: Tensor, start: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """`by_size`, with the order and signs of components nearest to the start's, (r, n) and (m, r)."""
    a, b = by_size(a, b)
    first, second = by_size(*start)
    alike = torch.einsum("...in,jn->...ij", a, first) + torch.einsum("...mi,mj->...ij", b, second)
    orders = torch.tensor(list(itertools.permutations(range(a.shape[-2]))))
    total = torch.stack([alike.abs()[..., o, torch.arange(len(o))].sum(-1) for o in orders], -1)
    best = orders[total.argmax(-1)]  # (.., r): which component takes each place of the start's
    sign = alike.gather(-2, best[..., None, :]).squeeze(-2).sign()
    a = a.gather(-2, best[..., :, None].expand_as(a)) * sign[..., :, None]
    return a, b.gather(-1, best[..., None, :].expand_as(b)) * sign[..., None, :]


def formed(net: LoraClassifier, targets: Tensor, form: Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Targets (B, k, U, D), every pair of which is brought to another form of the same product by `form`."""
    params = net.space.unpack(targets.flatten(0, 1))
    for name in [n for n in params if "lora_A" in n]:
        other = name.replace("lora_A", "lora_B")
        params[name], params[other] = form(name, params[name], params[other])
    return net.space.pack(params).unflatten(0, targets.shape[:2])


def all_forms(net: LoraClassifier, targets: Tensor) -> dict[str, Tensor]:
    start = {n: p.detach() for n, p in net.pairs.items()}

    def near(name: str, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return as_the_starts(a, b, (start[name], start[name.replace("lora_A", "lora_B")]))

    return {
        "as trained": targets,
        "svd": formed(net, targets, lambda _, a, b: by_size(a, b)),
        "svd, as the start's": formed(net, targets, near),
    }


@torch.no_grad()
def explained(method: Diffusion, family: TextTasks, held: Trajectories) -> float:
    """Fraction of the variance of theta_M over held-out tasks that is explained, of all weights."""
    assert method.space is not None
    batch = family.sample("train", held.seeds.tolist(), draw=0)
    generated = method.generate(family.downstream, batch.support, batch.mask, seed=0)
    error, spread = (method.space.standardise(w) for w in (generated, held.targets[:, -1]))
    return 1 - float((error - spread).square().sum() / (spread - spread.mean(0)).square().sum())


@torch.no_grad()
def accuracy(method: Diffusion, family: TextTasks, split: str, tasks: int) -> float:
    scores = []
    for i in range(0, tasks, 10):  # states are large
        batch = family.sample(split, range(i, min(i + 10, tasks)))
        weights = method.generate(family.downstream, batch.support, batch.mask, seed=0)
        scores.append(family.downstream.score(weights, batch.query, batch.mask))
    return 100 * float(torch.cat(scores).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tasks", type=int, default=240)
    parser.add_argument("--test", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = read_recipe("text-lora")
    settings = replace(recipe.family, lora=replace(recipe.family.lora, generate="both", layers=1))
    arguments.out.mkdir(parents=True, exist_ok=True)
    family = make_family(settings, arguments.out, data=arguments.data, device="cpu", progress=silent)
    assert isinstance(family, TextTasks)
    preparation = Preparation(tasks=arguments.tasks, epochs=6, batch=16, lr=0.003, weight_decay=0.1, chunk=20)
    data = prepare(family, arguments.out / "trajectories", preparation).read()
    numbers = torch.arange(len(data))
    made = provenance()
    table = Table(title=f"{len(data)} training tasks, {arguments.test} unseen ones; {made['hardware']}, {made['date']}")
    for column in ("method", "form", "explained (%)", "validation sets (%)", "test sets (%)"):
        table.add_column(column, justify="right" if "%" in column else "left")
    for form, targets in all_forms(family.downstream, data.targets).items():
        formed_data = replace(data, targets=targets)
        seen, held = formed_data.rows(numbers[numbers % HELD != 0]), formed_data.rows(numbers[numbers % HELD == 0])
        for name in ("hypernetwork", "mc-di"):
            figures = []
            for seed in range(arguments.seeds):
                sampling = {} if name == "hypernetwork" else {"sampling": {"temperature": 0.0, "steps": 2}}
                method = make_method(name, {**GENERATOR, "training": TRAINING, **sampling}).fit(family, seen, seed=seed)
                assert isinstance(method, Diffusion)
                sets = [accuracy(method, family, split, arguments.test) for split in ("val", "test")]
                figures.append((100 * explained(method, family, held), *sets))
            columns = [f"{statistics.mean(c):.1f} ({statistics.stdev(c):.1f})" for c in zip(*figures, strict=True)]
            table.add_row(name, form, *columns)
    Console().print(table)


if __name__ == "__main__":
    main()
