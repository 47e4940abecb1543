"""The sampler, the mixing weight and the calibration of a trained generator, chosen on validation tasks."""

import itertools
from dataclasses import replace
from typing import TypeVar

from mcdi.methods.mcdi.calibration import calibration_quantiles, support_log_odds
from mcdi.methods.sampling import MIXING_WEIGHTS, SAMPLERS, SupportsSampling
from mcdi.networks.heads import blend_with_ridge
from mcdi.tasks.family import TaskFamily

M = TypeVar("M", bound=SupportsSampling)


def choose_sampler(method: M, family: TaskFamily, *, tasks: int, seed: int = 0) -> tuple[str, M]:
    """The best way of sampling on validation tasks, over all numbers of shots.

    Candidates are `SAMPLERS` (regression has one, its own) and, for networks with a head, `MIXING_WEIGHTS`. Of equals the
    cheapest and the least blended wins. For heads the calibration quantiles of confidence are kept too.

    Args:
        method: trained.
        tasks: validation tasks a number of shots.

    Returns:
        Its name, and the method that samples so.
    """
    net = family.downstream
    samplers = SAMPLERS if method.is_chain else {"one step": method.sampling}
    mixing = MIXING_WEIGHTS if net.supports_ridge_blend else MIXING_WEIGHTS[:1]
    batches = [family.sample("val", range(tasks), shots=shots) for shots in family.shots]
    scores = dict.fromkeys(itertools.product(samplers, mixing), 0.0)
    for (name, sampling), batch in itertools.product(samplers.items(), batches):
        drawn = method.generate(net, batch.support, batch.mask, seed=seed, sampling=sampling)
        for weight in mixing:
            blended = blend_with_ridge(net, drawn[:, None], batch.support, batch.mask, weight)[:, 0]
            scores[name, weight] += float(net.score(blended, batch.query, batch.mask).mean()) / len(batches)

    def merit(candidate: tuple[str, float]) -> tuple[float, int, float]:
        sampling = samplers[candidate[0]]
        return round(scores[candidate], 4), -sampling.samples * method.chain_steps(sampling), candidate[1]

    name, weight = max(scores, key=merit)
    label, sampling = name if weight == 1 else f"{name}, mixing weight {weight}", samplers[name]
    quantiles: dict[str, tuple[float, ...]] = {}
    if net.supports_ridge_blend:
        for shots, batch in zip(family.shots, batches, strict=True):
            drawn = method.generate(net, batch.support, batch.mask, seed=seed, sampling=sampling)
            quantiles[str(shots)] = calibration_quantiles(support_log_odds(net, drawn, batch.support, batch.mask))
    return label, method.with_sampling(replace(sampling, mixing_weight=weight, calibration_quantiles=quantiles))
