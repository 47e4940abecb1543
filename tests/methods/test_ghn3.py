"""GHN-3: the graph of a network, the Transformer that reads it, the decoded tensors, and its weights for tasks."""

import math

import pytest
import torch
from torch import nn
from worlds import settings

from mcdi.errors import McdiError
from mcdi.generator.api import Generator
from mcdi.methods import make_method
from mcdi.methods.published import ghn3
from mcdi.methods.published.ghn3 import smoothed_loss
from mcdi.methods.published.graphormer import (
    CUTOFF,
    Decoder,
    Graph,
    GraphHyperNetwork,
    GraphLayer,
    graph_of,
    normalised,
    tiled,
    units_of,
)
from mcdi.networks.base import Network
from mcdi.networks.conv_net import ConvNet
from mcdi.networks.film import FilmHead
from mcdi.networks.pixels import PixelNet
from mcdi.tasks.episodes import FewShot
from mcdi.types import Examples
from mcdi.weights import WeightSpace


class Branches(nn.Module):
    """Two paths from the input to a sum, one of them through a layer."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale, self.none = nn.Linear(2, 2), nn.Parameter(torch.ones(2)), nn.ModuleList()

    def forward(self, x):
        return self.layer(x) * self.scale + x


class Untraceable(Branches):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


class TestGraph:
    def test_distances_of_a_traced_network(self):
        module = Branches()
        graph = graph_of(module, WeightSpace(module))
        assert graph.kinds == ("placeholder", "Linear.weight", "Linear.bias", "mul.scale", "add", "output")
        assert graph.tensors == ((), ("layer.weight",), ("layer.bias",), ("scale",), (), ())
        want = [
            [0, 1, 2, 3, 1, 2],  # the skip is shorter
            [0, 0, 1, 2, 3, 4],
            [0, 0, 0, 1, 2, 3],
            [0, 0, 0, 0, 1, 2],
            [0, 0, 0, 0, 0, 1],
            [0, 0, 0, 0, 0, 0],
        ]
        assert graph.distances().tolist() == want
        assert Graph.from_config(graph._asdict()) == graph

    def test_what_is_not_generated_is_an_operation(self):
        module = Branches()
        graph = graph_of(module, WeightSpace(module, select="scale"))
        assert graph.kinds == ("placeholder", "Linear", "mul.scale", "add", "output")

    def test_a_network_that_cannot_be_traced_is_its_layers_in_order(self):
        module = Untraceable()
        graph = graph_of(module, WeightSpace(module))
        assert graph.kinds == ("placeholder", "Untraceable.scale", "Linear.weight", "Linear.bias", "output")
        assert graph.edges == ((0, 1), (1, 2), (2, 3), (3, 4))

    def test_rows_are_one_node_and_long_paths_do_not_count(self):
        head = nn.Linear(4, 3)
        assert graph_of(head, WeightSpace(head, unit="row")) == (
            ("placeholder", "row", "output"),
            ((), ("weight", "bias"), ()),
            ((0, 1), (1, 2)),
        )
        long = Graph(("a",) * (CUTOFF + 3), ((),) * (CUTOFF + 3), tuple((i, i + 1) for i in range(CUTOFF + 2)))
        assert long.distances()[0, CUTOFF : CUTOFF + 2].tolist() == [CUTOFF, 0]

    def test_a_tensor_that_two_operations_read_is_one_node(self):
        once = nn.Linear(2, 2, bias=False)
        module = nn.Sequential(once, nn.ReLU(), once)
        graph = graph_of(module, WeightSpace(module))
        assert graph.kinds == ("placeholder", "Linear.weight", "ReLU", "output")
        assert graph.distances().tolist() == [[0, 1, 2, 2], [0, 0, 1, 1], [0, 1, 0, 2], [0, 0, 0, 0]]

    @pytest.mark.parametrize("unit", ["whole", "layer", 5])
    def test_a_tensor_belongs_to_the_unit_that_it_begins_in(self, unit):
        module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))  # 6 + 2, 4 + 2 numbers
        space = WeightSpace(module, unit=unit)
        want = {"whole": [0, 0, 0, 0], "layer": [0, 0, 1, 1], 5: [0, 1, 1, 2]}[unit]
        assert units_of(graph_of(module, space), space) == [None, *want, None]


class TestGraphLayer:
    @staticmethod
    def torchs(layer):
        """The same weights in torch's own layer; it has a bias before attention, ours as published none."""
        other = nn.TransformerEncoderLayer(16, 4, 64, 0.0, "gelu", norm_first=True, batch_first=True)
        own = dict(zip(("norm1", "norm2", "self_attn.out_proj"), (layer.norm, layer.norm2, layer.out), strict=True))
        own |= {"linear1": layer.perceptron[0], "linear2": layer.perceptron[2]}
        state = {f"{n}.{k}": p for n, part in own.items() for k, p in part.state_dict().items()}
        other.load_state_dict(
            {**state, "self_attn.in_proj_weight": layer.qkv.weight, "self_attn.in_proj_bias": torch.zeros(48)}
        )
        return other

    def test_without_a_graph_it_is_torchs(self):
        torch.manual_seed(0)
        layer, x = GraphLayer(16, 4), torch.randn(2, 5, 16)
        mask = torch.tensor([[True] * 5, [True, False, True, True, False]])
        want = self.torchs(layer)(x, src_key_padding_mask=~mask)
        torch.testing.assert_close(layer(x, torch.zeros(4, 5, 5), mask)[mask], want[mask], rtol=1e-4, atol=1e-5)

    def test_distances_are_added_to_the_logits(self):
        torch.manual_seed(0)
        layer, x, bias = GraphLayer(16, 4), torch.randn(2, 5, 16), torch.randn(4, 5, 5)
        want = self.torchs(layer)(x, src_mask=bias.repeat(2, 1, 1))
        torch.testing.assert_close(layer(x, bias, torch.ones(2, 5, dtype=torch.bool)), want, rtol=1e-4, atol=1e-5)


class TestTensors:
    def test_a_tile_is_repeated_and_cut(self):
        tile = torch.arange(6.0).reshape(2, 3)
        weights = tiled(tile, (5, 4))
        assert weights.tolist() == [[float(3 * (i % 2) + j % 3) for j in range(4)] for i in range(5)]

    def test_published_normalisation(self):
        raw = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(normalised(raw, raw.shape, "0.weight"), raw * math.sqrt(2 / 12))
        assert (
            float(normalised(torch.zeros(1), (1,), "norm.weight"))
            == float(normalised(torch.zeros(1), (1,), "norm.running_var"))
            == 1
        )
        assert float(normalised(torch.ones(1), (1,), "norm.weight")) == pytest.approx(2 / (1 + math.exp(-0.5)))
        assert float(normalised(torch.ones(1), (1,), "0.bias")) == pytest.approx(math.tanh(0.2))

    def test_a_kernel_is_the_middle_of_a_decoded_one(self):
        torch.manual_seed(0)
        decoder, h = Decoder(8, (2, 3), 5), torch.randn(8)
        window = decoder.spatial(h).relu().reshape(32, 5, 5)[:, 1:4, 2]  # three high, one wide
        want = torch.zeros(4, 7, 3, 1)
        for i in range(4):
            for j in range(7):
                for down in range(3):
                    values = decoder.last(decoder.hidden(window[:, down]).relu()).reshape(2, 3)
                    want[i, j, down, 0] = values[i % 2, j % 3] * math.sqrt(2 / 21)
        torch.testing.assert_close(decoder(h, (4, 7, 3, 1), "0.weight"), want)
        torch.testing.assert_close(decoder(h, (4, 7, 3), "0.weight"), want[..., 0])

    def test_weights_and_biases_of_vectors_are_halves_of_one_vector(self):
        torch.manual_seed(0)
        decoder, h = Decoder(8, (2, 3), 1), torch.randn(8)
        first, second = decoder.vector(h).split(3)
        torch.testing.assert_close(decoder(h, (4,), "n.weight"), 2 * torch.sigmoid(0.5 * torch.cat([first, first[:1]])))
        torch.testing.assert_close(decoder(h, (2,), "n.bias"), torch.tanh(0.2 * second[:2]))
        assert decoder(h, (), "n.bias").shape == ()

    def test_of_any_network_every_tensor_has_its_shape(self):
        """Batch norm with its statistics, convolutions, FiLM with rows for more classes than the template has."""
        normed = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))
        for net, way in ((Network(normed), 1), (ConvNet(2, 3), 3), (FilmHead(4, 3), 5)):
            space = net.space
            hypernetwork = GraphHyperNetwork(graph_of(net.module, space), space, 6, 16, 1, 4, (4, 4))
            mask = torch.ones(2, space.units(way), dtype=torch.bool)
            tensors = hypernetwork(torch.randn(*mask.shape, 6), mask)
            flat = space.pack(tensors)
            assert flat.shape == (*mask.shape, space.D) and set(tensors) == set(space.spec)
            assert all(not torch.equal(t[0], t[1]) for t in tensors.values())  # all depend on the task
        assert tensors["weight"].shape == (2, 5, 4) and tensors["scale"].shape == (2, 4)


class TestTasks:
    def test_rows_follow_the_order_of_classes(self, worlds):
        world = worlds["gauss"]
        method, net, (support, _, mask, _) = world.method("ghn-3"), world.family.downstream, world.batch
        new = torch.tensor([2, 0, 1])
        plain = method.generate(net, support, mask, seed=0)
        renamed = method.generate(net, Examples(support.x, new[support.y]), mask, seed=0)
        torch.testing.assert_close(renamed[:, new], plain, rtol=1e-4, atol=1e-4)

    def test_classes_that_do_not_exist_are_masked(self, worlds):
        world = worlds["gauss"]
        hypernetwork = world.method("ghn-3").net
        cond = torch.randn(2, 4, world.family.downstream.condition_size, generator=torch.Generator().manual_seed(0))
        mask = torch.tensor([[True, True, True, False]]).expand(2, -1)
        with torch.no_grad():
            padded, unpadded = hypernetwork(cond, mask), hypernetwork(cond[:, :3], mask[:, :3])
        torch.testing.assert_close(padded["weight"][:, :3], unpadded["weight"], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("unit", ["layer", 5])
    def test_saved_and_loaded_tensors_keep_their_units(self, tmp_path, unit):
        """Names out of the order of the alphabet, in a file whose keys are sorted."""
        images = {n: torch.rand(4, 5, 196 + 2, generator=torch.Generator().manual_seed(0)) for n in ("train", "val", "test")}
        family = FewShot("pixels", PixelNet(2, 3, hidden=4, unit=unit), images, way=3, shots=(1,), queries=2)
        changed = settings("ghn-3", training={**settings("ghn-3")["training"], "iterations": 1})
        method = make_method("ghn-3", changed).fit(family, None, seed=0)
        Generator("ghn-3", method, family.downstream).save_pretrained(tmp_path)
        loaded, (support, _, mask, _) = Generator.from_pretrained(tmp_path), family.sample("test", [0, 1])
        assert loaded.method.net.unit == method.net.unit
        weights = [m.generate(family.downstream, support, mask, seed=0) for m in (method, loaded.method)]
        assert torch.equal(*weights)

    @pytest.mark.parametrize("family", ["sines", "gauss"])
    def test_as_published_all_tasks_get_the_same(self, worlds, family):
        world = worlds[family]
        changed = settings("ghn-3", data=False, training={**settings("ghn-3")["training"], "iterations": 3})
        weights = world.weights(make_method("ghn-3", changed).fit(world.family, None, seed=0))
        torch.testing.assert_close(weights, weights[:1].expand_as(weights), rtol=1e-5, atol=1e-6)
        conditioned = world.weights(world.method("ghn-3"))
        assert float((conditioned - conditioned[:1]).abs().max()) > 0.1

    def test_smoothed_labels_are_torchs(self, worlds):
        world = worlds["gauss"]
        net, (_, query, mask, _) = world.family.downstream, world.batch
        weights = world.weights(world.method("ghn-3"))
        logits = net.predict(weights, query.x)
        want = nn.functional.cross_entropy(logits.transpose(1, 2), query.y, label_smoothing=0.2, reduction="none").mean(1)
        torch.testing.assert_close(smoothed_loss(net, weights, query, mask, 0.2), want)
        four = torch.cat([weights, weights[:, :1]], 1)  # a fourth class that no task has
        torch.testing.assert_close(smoothed_loss(net, four, query, nn.functional.pad(mask, (0, 1)), 0.2), want)
        torch.testing.assert_close(smoothed_loss(net, weights, query, mask, 0.0), net.loss(weights, query, mask))

    def test_curves_have_no_labels_to_smooth(self, worlds):
        world = worlds["sines"]
        net, (_, query, mask, _) = world.family.downstream, world.batch
        weights = world.weights(world.method("ghn-3"))
        torch.testing.assert_close(smoothed_loss(net, weights, query, mask, 0.2), net.loss(weights, query, mask))

    def test_decay_makes_tensors_small(self, worlds, monkeypatch):
        world, training = worlds["gauss"], {**settings("ghn-3")["training"], "iterations": 30}
        plain = world.weights(world.fit("ghn-3", training=training))
        monkeypatch.setattr(ghn3, "DECAY", 2.0)
        small = world.weights(world.fit("ghn-3", training=training))
        assert float(small.norm()) < 0.5 * float(plain.norm())

    def test_stopped_and_resumed_it_ends_with_the_same_weights(self, worlds, tmp_path):
        world = worlds["gauss"]
        changed = settings("ghn-3", training={**settings("ghn-3")["training"], "iterations": 8, "checkpoint_every": 3})

        def stop(done, total, figures):
            if done == 5:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make_method("ghn-3", changed).fit(world.family, None, seed=0, log=stop, folder=tmp_path)
        seen = []
        resumed = make_method("ghn-3", changed).fit(
            world.family, None, seed=0, log=lambda done, *_: seen.append(done), folder=tmp_path
        )
        straight = make_method("ghn-3", changed).fit(world.family, None, seed=0)
        assert seen == [4, 5, 6, 7, 8]
        assert all(torch.equal(t, resumed.state()[n]) for n, t in straight.state().items())

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"training": {"meta": "reptile"}}, "trained in one level"),
            ({"heads": 3}, "width = 64 must be a multiple of heads = 3"),
            ({"tile": [0, 4]}, "both of tile = \\[0, 4\\] must be at least 1"),
        ],
    )
    def test_invalid_settings_are_refused(self, changes, message):
        with pytest.raises(McdiError, match=message):
            make_method("ghn-3", changes)

    def test_untrained_it_raises(self, worlds):
        with pytest.raises(McdiError, match="not trained yet"):
            worlds["gauss"].weights(make_method("ghn-3", {}))
