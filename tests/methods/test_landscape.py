"""The plane of a run's report, in which chains lie over the loss of one task."""

import pytest
import torch

from mcdi.experiments import evaluate


@pytest.mark.parametrize("most", [7, 11, 1000])
def test_a_plane_asks_few_examples_of_every_class(worlds, monkeypatch, most):
    world = worlds["gauss"]
    asked, plane = [], evaluate.plane

    def heard(net, chains, centre, data, *rest):
        asked.append(data)
        return plane(net, chains, centre, data, *rest)

    monkeypatch.setattr(evaluate, "EXAMPLES", most)
    monkeypatch.setattr(evaluate, "plane", heard)
    targets = world.data.targets[0]
    drawn = evaluate.landscape({"mc-di": world.method("mc-di")}, world.family, targets, torch.zeros_like(targets[0]), grid=3)
    counts, every = asked[0].y[0].bincount(), world.family.training_data("test", [0]).y.shape[1]
    assert int(counts.sum()) == min(most, every)
    assert len(counts) == world.family.way and int(counts.max() - counts.min()) <= 1
    assert [len(row) for row in drawn["loss"]] == [3, 3, 3] and set(drawn["chains"]) == {"mc-di"}
    assert sorted(drawn["points"]) == sorted(["theta_0", *(f"theta_{i}d" for i in range(1, len(targets))), "theta_M"])
