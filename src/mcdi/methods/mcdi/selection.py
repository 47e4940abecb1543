"""The sampler, the ridge blend and the calibration of a trained generator, chosen on validation tasks."""

from dataclasses import replace

from mcdi.methods import SAMPLERS, SHARES, Diffusion
from mcdi.methods.mcdi.calibration import surprise, usual
from mcdi.networks.heads import blend_with_ridge
from mcdi.tasks.family import TaskFamily


def choose_sampler(method: Diffusion, family: TaskFamily, *, tasks: int, seed: int = 0) -> tuple[str, Diffusion]:
    """The sampler of SAMPLERS, and for heads the share of SHARES, that are best on validation tasks over all shot numbers; of
    equals the cheapest and the largest share. A regression has one sampler, its own. For heads also how much a task's own
    examples may surprise it (leaning.usual)."""
    net = family.downstream
    samplers = SAMPLERS if method.is_chain else {"one step": method.settings.sampling}
    shares = SHARES if net.supports_ridge_blend else SHARES[:1]
    batches = [family.sample("val", range(tasks), shots=shots) for shots in family.shots]
    scores = dict.fromkeys(((n, share) for n in samplers for share in shares), 0.0)
    for name, how in samplers.items():
        for batch in batches:
            drawn = method.generate(net, batch.support, batch.mask, seed=seed, how=how)
            for share in shares:
                weights = blend_with_ridge(net, drawn[:, None], batch.support, batch.mask, share)[:, 0]
                scores[name, share] += float(net.score(weights, batch.query, batch.mask).mean()) / len(batches)

    def merit(found: tuple[str, float]) -> tuple[float, int, float]:
        how = samplers[found[0]]
        return round(scores[found], 4), -how.samples * (how.steps or method.schedule.T), found[1]

    name, share = max(scores, key=merit)
    label, how = name if share == 1 else f"{name}, share {share}", samplers[name]
    known: dict[str, tuple[float, ...]] = {}
    if net.supports_ridge_blend:
        for shots, batch in zip(family.shots, batches, strict=True):
            drawn = method.generate(net, batch.support, batch.mask, seed=seed, how=how)
            known[str(shots)] = usual(surprise(net, drawn, batch.support, batch.mask))
    return label, method.with_sampling(replace(how, share=share, usual=known))
