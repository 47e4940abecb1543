"""Novelty: distances of generated weights to the nearest stored target, and those of real weights and of noised copies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from mcdi.experiments.report.render import html_figure, legend
from mcdi.experiments.report.results import NUMBER, bad, check
from mcdi.experiments.report.style import styles_of
from mcdi.utils.files import read_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOVELTY = {key: [NUMBER] for key in ("generated", "targets", "noised", "scale_generated", "scale_real")}


def _memory(data: Mapping[str, Sequence[float]]) -> str:
    """Whether the medians of the distances suggest that the generator memorised."""
    made, real, noised = (median(data[key]) for key in ("generated", "targets", "noised"))
    distances = f"{made:.3g} for generated weights, {real:.3g} for held-out real ones and {noised:.3g} for noised copies"
    if made < real / 2 and made <= 2 * noised:
        verdict = "generated weights lie about as near to a stored target as its noised copies: this looks like memorising"
    elif made < real / 2:
        verdict = "generated weights lie nearer than real ones but not as near as copies: this leaves open what was memorised"
    else:
        verdict = (
            "generated weights are not twice as near to a stored target as real ones: no sign of memorising in these medians"
        )
    scale = median(data["scale_generated"]) / max(median(data["scale_real"]), 1e-12)
    return (
        f"Median distance to the nearest stored target: {distances}; {verdict}. Generated norms are {scale:.2f} times the real."
    )


def novelty(folder: Path) -> str:
    path = folder / "novelty.json"
    if not path.exists():
        return ""
    data = read_json(path)
    check(data, NOVELTY, path)
    for key in NOVELTY:
        if not data[key]:
            raise bad(path, f"{key} is empty")

    def draw(figure: "Figure") -> None:
        import numpy as np

        distances = {"generated": "generated", "targets": "real, held out", "noised": "noised copies"}
        norms = {"scale_generated": "generated", "scale_real": "real, held out"}
        styles = styles_of(distances.values())
        labels = ("distance to nearest stored target", "norm of the weights")
        for axes, names, label in zip(figure.subplots(2), (distances, norms), labels, strict=True):
            edges = np.histogram_bin_edges(np.concatenate([data[key] for key in names]), 40)
            for key, name in names.items():
                weights = np.full(len(data[key]), 1 / len(data[key]))
                axes.hist(data[key], edges, weights=weights, alpha=0.5, color=styles[name][0], label=name)
            axes.set(xlabel=label, ylabel="fraction")
        legend(figure)

    return html_figure("Histograms of distances to the nearest stored target, and of norms", _memory(data), 4.8, draw)
