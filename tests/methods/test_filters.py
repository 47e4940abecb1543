"""The denoiser with a token a filter: its symmetries, and what it makes of them in a whole network."""

import pytest
import torch
from torch import Tensor, nn

from mcdi.errors import McdiError
from mcdi.generator.c_header import rounded
from mcdi.methods.mcdi.denoiser import ConditionSizes, Denoiser
from mcdi.methods.mcdi.filters import OWN_CLASS, SAME_CLASS, FilterTransformer
from mcdi.methods.mcdi.settings import DiffusionSettings, Part
from mcdi.networks.conv_net import ConvNet
from mcdi.networks.last_layer import RIDGE_SCALE
from mcdi.types import Examples

WAY, SHOTS = 3, 2
PIECES = pytest.mark.parametrize("piece", [2, 512])  # numbers of a filter in one token: few of every filter, or all


def network(head: str = "prototypes") -> ConvNet:
    return ConvNet(0, WAY, filters=4, side=8, head=head)  # type: ignore[arg-type]


def denoiser(net: ConvNet, piece: int) -> FilterTransformer:
    torch.manual_seed(0)
    sizes = net.space.D, 64 + WAY, net.space.U
    made = FilterTransformer(*sizes, blocks=net.space.blocks, shape=net.feature_shape, way=WAY, piece=piece, width=16, heads=2)
    with torch.no_grad():
        for p in made.parameters():  # nothing is zero, or a symmetry would hold for nothing
            p.add_(0.1 * torch.randn_like(p))
    return made.eval()


def support(way: int = WAY) -> Examples:
    x = torch.rand(2, way * SHOTS, 64, generator=torch.Generator().manual_seed(1))
    return Examples(x, torch.arange(way).repeat_interleave(SHOTS).expand(2, -1))


def answer(made: FilterTransformer, net: ConvNet, examples: Examples, x: Tensor) -> Tensor:
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    return made(x, torch.tensor([0.0, 0.5]), net.support_set(examples, net.classes(x.shape[1])), mask)


@PIECES
def test_examples_may_be_reordered(piece: int) -> None:
    net, examples = network(), support()
    made, x = denoiser(net, piece), torch.randn(2, net.space.U, net.space.D)
    order = torch.randperm(WAY * SHOTS)
    moved = Examples(examples.x[:, order], examples.y[:, order])
    torch.testing.assert_close(answer(made, net, moved, x), answer(made, net, examples, x), rtol=1e-4, atol=1e-5)


@PIECES
def test_classes_may_be_renumbered(piece: int) -> None:
    """Filters stay, and rows of the classifier move with their classes."""
    net, examples = network(), support()
    made, x = denoiser(net, piece), torch.randn(2, net.space.U, net.space.D)
    new = torch.tensor([2, 0, 1])  # class c is called new[c]
    rows = torch.arange(net.space.U)
    rows[-WAY:] = rows[-WAY:][new.argsort()]
    renumbered = answer(made, net, Examples(examples.x, new[examples.y]), x[:, rows])
    torch.testing.assert_close(renumbered, answer(made, net, examples, x)[:, rows], rtol=1e-4, atol=1e-5)


@PIECES
def test_another_example_or_label_changes_every_filter(piece: int) -> None:
    net, examples = network(), support()
    made, x = denoiser(net, piece), torch.randn(2, net.space.U, net.space.D)
    before = answer(made, net, examples, x)
    swapped = examples.y.clone()
    swapped[:, [0, -1]] = swapped[:, [-1, 0]]
    other = examples.x.clone()
    other[:, 0] += 0.5
    for changed in (Examples(examples.x, swapped), Examples(other, examples.y)):
        assert bool(((answer(made, net, changed, x) - before).abs().amax(-1) > 1e-6).all())


@PIECES
def test_every_number_of_a_filter_is_generated_and_nothing_else(piece: int) -> None:
    net = network()
    made, x = denoiser(net, piece), torch.zeros(2, net.space.U, net.space.D)
    answered = answer(made, net, support(), x) - made._per_filter(made.base, net.space.U)
    exists = net.space.pack({n: torch.ones(1, *shape) for n, (shape, _) in net.space.spec.items()})[0].bool()
    assert bool((answered[:, exists] != 0).all()) and bool((answered[:, ~exists] == 0).all())
    assert not torch.allclose(answered[0], answered[1])


@PIECES
def test_every_token_has_a_place_and_every_layer_is_read(piece: int) -> None:
    net = network()
    made = denoiser(net, piece)
    answer(made, net, support(), torch.randn(2, net.space.U, net.space.D)).square().sum().backward()
    for parameter in (made.place, made.base, *(reads.weight for reads in made.reads)):
        assert isinstance(parameter, Tensor) and parameter.grad is not None
        assert bool((parameter.grad != 0).any(1).all())


@PIECES
@pytest.mark.parametrize("way", [2, 7])
def test_a_task_may_have_any_number_of_classes(way: int, piece: int) -> None:
    net, examples = network(), support(way)
    x = torch.randn(2, net.space.units(way), net.space.D)
    answered = answer(denoiser(net, piece), net, examples, x)
    state = net.space.unpack(net.solved(answered, examples))
    assert list(state.values())[-1].shape == (2, way)
    again = net.space.unpack(net.space.pack(state))
    assert all(torch.equal(again[n], t) for n, t in state.items())
    module = net.with_state({n: t[1] for n, t in state.items()})
    expected = net.predict(net.space.pack(state), examples.x)[1]
    torch.testing.assert_close(module(examples.x[1]), expected, rtol=1e-4, atol=1e-5)


@PIECES
@pytest.mark.parametrize("relation", [SAME_CLASS, OWN_CLASS])
def test_attention_depends_on_which_examples_are_of_one_class(relation: int, piece: int) -> None:
    net, examples = network(), support()
    made, x = denoiser(net, piece), torch.randn(2, net.space.U, net.space.D)
    before = answer(made, net, examples, x)
    with torch.no_grad():
        made.relations[:, relation] += 2
    assert bool(((answer(made, net, examples, x) - before).abs().amax(-1) > 1e-6).all())


def test_the_ridge_layer_is_regression_of_the_classes() -> None:
    """By the normal equations, in the primal, where the package solves the dual."""
    net, examples = network("ridge"), support()
    weights = torch.randn(2, net.space.U, net.space.D)
    state = net.space.unpack(net.solved(weights, examples))
    x = net.features_of(net.space.unpack(weights), examples.x)[0]
    size = x.shape[1]
    y = torch.nn.functional.one_hot(examples.y[0], WAY).float()
    centred, frequency = x - x.mean(0), y.mean(0)
    rows = torch.linalg.solve(centred.T @ centred / size + torch.eye(size), centred.T @ (y - frequency)).T / size
    weight, bias = (list(state.values())[n][0] for n in (-2, -1))
    expected = RIDGE_SCALE * (x @ rows.T + frequency - rows @ x.mean(0))
    torch.testing.assert_close((x @ weight.T + bias).softmax(-1), expected.softmax(-1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("head", ["prototypes", "ridge"])
def test_a_solved_layer_survives_eight_bits(head: str) -> None:
    """Also where all classes have a large part of their features in common."""
    net, examples = network(head), support()
    weights = torch.randn(2, net.space.U, net.space.D)
    state = net.space.unpack(weights)
    norms = [n for n in state if n.endswith(".bias")][-2]  # of the last norm: it moves all features
    weights = net.space.pack({**state, norms: state[norms] + 20})
    solved = net.space.unpack(net.solved(weights, examples))
    exact = net.predict(net.space.pack(solved), examples.x).softmax(-1)
    name = list(solved)[-2]
    integers, scale = rounded(solved[name].flatten(0, 1))
    coarse = {**solved, name: (integers * scale[:, None]).reshape(solved[name].shape)}
    difference = (net.predict(net.space.pack(coarse), examples.x).softmax(-1) - exact).abs()
    assert float(difference.mean()) < 0.1


def test_weights_are_written_in_their_own_units() -> None:
    """Whatever their spread over stored tasks is: a rate of training moves them equally far."""
    net, examples = network(), support()
    settings = DiffusionSettings(denoiser="filters", prior=False)
    made = []
    for factor in (1.0, 20.0):
        stored = factor * 0.05 * torch.randn(30, net.space.U, net.space.D, generator=torch.Generator().manual_seed(0))
        space = net.space.fitted([(stored, torch.ones(30, net.space.U, dtype=torch.bool))])
        torch.manual_seed(0)
        built = Denoiser(settings, space, ConditionSizes.of(net))
        with torch.no_grad():
            for parameter in built.network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        zero, cond = torch.zeros(2, net.space.U, net.space.D), net.support_set(examples, WAY)
        mask = torch.ones(2, net.space.U, dtype=torch.bool)
        with torch.no_grad():
            made.append(space.restore(built.network(zero, torch.zeros(2), cond, mask)) - space.restore(zero))
    assert float(made[0].abs().max()) > 0.1
    torch.testing.assert_close(made[0], made[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("part", ["all", "vectors", "classes"])
def test_the_rest_of_a_network_is_the_same_for_all_tasks(part: Part) -> None:
    net, g = network(), torch.Generator().manual_seed(0)
    stored = torch.randn(30, net.space.U, net.space.D, generator=g)
    space = net.space.fitted([(stored, torch.ones(30, net.space.U, dtype=torch.bool))])
    built = Denoiser(DiffusionSettings(denoiser="filters", prior=False, generated=part), space, ConditionSizes.of(net))
    with torch.no_grad():
        for parameter in built.network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=g))
        mask, cond = torch.ones(2, net.space.U, dtype=torch.bool), net.support_set(support(), WAY)
        state = space.unpack(space.restore(built.network(torch.zeros(2, net.space.U, net.space.D), torch.zeros(2), cond, mask)))
    own = {n for n, t in state.items() if not torch.allclose(t[0], t[1])}
    rows = {f"{net.last}.weight", f"{net.last}.bias"}
    vectors = {n for n, t in state.items() if t.ndim == 2}
    assert own == {"all": set(state), "vectors": vectors, "classes": rows}[part]
    if part != "all":
        with pytest.raises(McdiError, match=f"generated = '{part}' is for denoiser = 'filters'"):
            DiffusionSettings(generated=part)


def test_numbers_of_a_layer_have_means_of_their_own_and_one_spread() -> None:
    net = network()
    flat = torch.randn(50, net.space.U, net.space.D) * torch.linspace(0.1, 2, net.space.U)[:, None]
    space = net.space.fitted([(flat, torch.ones(50, net.space.U, dtype=torch.bool))])
    mean, std = space.statistics()
    (filters, size), fixed = net.space.blocks[0], net.space.fixed
    assert len(mean) == len(std) == fixed + 1  # classes have one
    torch.testing.assert_close(mean[:fixed], flat[:, :fixed].mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mean[fixed], flat[:, fixed:].mean((0, 1)), rtol=1e-4, atol=1e-5)
    spread = (flat[:, :filters, :size] - mean[:filters, :size]).square().mean().sqrt()
    torch.testing.assert_close(std[:filters], spread.expand(filters, net.space.D), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(space.restore(space.standardise(flat)), flat, rtol=1e-4, atol=1e-4)


def test_regression_reads_targets() -> None:
    made = FilterTransformer(4, 3, 5, blocks=((3, 4), (2, 2)), shape=(2,), way=0, width=16, heads=2)
    nn.init.normal_(made.writes[0].weight)
    cond = torch.randn(2, 6, 3)
    x, t, mask = torch.zeros(2, 5, 4), torch.zeros(2), torch.ones(2, 5, dtype=torch.bool)
    out = made(x, t, cond, mask)
    assert out.shape == (2, 5, 4)
    assert bool((out[:, 3:, 2:] == 0).all())  # the padding of short filters
    cond[..., -1] += 1
    assert not torch.allclose(made(x, t, cond, mask), out)


@pytest.mark.parametrize("head", ["prototypes", "ridge"])
def test_the_last_layer_is_solved_on_the_networks_own_features(head: str) -> None:
    net, examples = network(head), support()
    weights = torch.randn(2, net.space.U, net.space.D) * net.space.pack(
        {n: torch.ones(1, *shape) for n, (shape, _) in net.space.spec.items()}
    )
    solved = net.solved(weights, examples)
    state, before = net.space.unpack(solved), net.space.unpack(weights)
    name = f"{len(net.module) - 1}"  # type: ignore[arg-type]
    assert all(torch.equal(state[n], before[n]) for n in state if not n.startswith(f"{name}."))
    # A task's network as a plain module answers as the packed weights do.
    net.module.load_state_dict({n: t[0] for n, t in state.items()})
    torch.testing.assert_close(net.module(examples.x[0]), net.predict(solved, examples.x)[0], rtol=1e-4, atol=1e-5)
    if head == "prototypes":
        features = net.features_of(state, examples.x)[0]
        means = torch.stack([features[examples.y[0] == c].mean(0) for c in range(WAY)])
        nearest = torch.cdist(features, means).square()
        logits = net.predict(solved, examples.x)[0]
        torch.testing.assert_close(
            logits - logits.mean(1, keepdim=True), nearest.mean(1, keepdim=True) - nearest, rtol=1e-3, atol=1e-4
        )


def test_other_networks_say_that_they_cannot() -> None:
    from mcdi.networks.curve import Curve

    with pytest.raises(McdiError, match="cannot be solved"):
        Curve().solved(torch.zeros(1, 1, 73), support())
