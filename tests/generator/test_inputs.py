"""Generators take whatever holds numbers, refuse what they would misread, and depend on nothing that the caller has set."""

import contextlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import mcdi as command
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor, nn

import mcdi
from mcdi import core
from mcdi.errors import McdiError
from mcdi.experiments.recipe import read_recipe
from mcdi.generator.api import Generator
from mcdi.sklearn import PrototypeHead, RidgeHead, as_images
from mcdi.trajectories.prepare import Preparation
from mcdi.utils.random import checked_seed, uniform
from mcdi.utils.settings import make
from mcdi.utils.tensors import pixels_of, tensor_of
from mcdi.utils.workers import pick_device

few = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
INTEGERS = [
    d
    for d in vars(torch).values()
    if isinstance(d, torch.dtype) and str(d)[6:] in {f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)}
]
STEPS = {"training": {"iterations": 3}, "sampling": {"steps": 2}, "options": {"width": 16, "depth": 1}}


def sines(tasks: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = 6 * torch.rand(tasks, 24, 1, generator=g) - 3
    return x, (x[..., 0] + 6 * torch.rand(tasks, 1, generator=g)).sin()


SINES, SIDES = sines(), torch.arange(24).expand(30, -1) % 2
NETS = {n: nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, n)) for n in (1, 2)}


def fitted(outputs: int = 1) -> Generator:
    tasks = mcdi.OwnTasks(NETS[outputs], *(SINES if outputs == 1 else (SINES[0], SIDES)), shots=6)
    return mcdi.fit(tasks, preparation=Preparation(epochs=4), settings=STEPS)


@pytest.fixture(scope="module")
def curve() -> Generator:
    return fitted()


@pytest.fixture(scope="module")
def classifier() -> Generator:
    return fitted(2)


@pytest.fixture(scope="module")
def symbols() -> Generator:
    return mcdi.load("symbols")


X, Y = (t[0, :10] for t in sines(1, 1))
IMAGES = torch.randint(0, 256, (10, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = torch.arange(10) % 2


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.allclose(a[n], b[n], atol=1e-4) for n in a)


def every_other(t: Tensor) -> Tensor:
    """The same numbers, not contiguous."""
    return torch.stack([t, t], -1)[..., 0]


CONTAINERS = {
    "tensor": lambda t: t,
    "array": lambda t: t.numpy(),
    "list": lambda t: t.tolist(),
    "list of tensors": list,
    "tuple of arrays": lambda t: tuple(t.numpy()),
    "array of objects": lambda t: t.numpy().astype(object),
    "reversed array": lambda t: t.numpy()[::-1].copy()[::-1],
    "other byte order": lambda t: t.numpy().astype(t.numpy().dtype.newbyteorder(">")),
    "read-only": lambda t: np.broadcast_to(t.numpy(), t.shape),
    "not contiguous": every_other,
    "sparse": lambda t: t.to_sparse(),
    "of the inference mode": lambda t: torch.inference_mode()(t.clone)(),
    "with a graph": lambda t: t.requires_grad_() * 1 if t.is_floating_point() else t,
}


class TestNumbers:
    @few
    @given(dtype=st.sampled_from([*INTEGERS, torch.bool]), container=st.sampled_from(list(CONTAINERS)))
    def test_labels_of_any_integer_type(self, classifier, dtype, container):
        given = LABELS.to(dtype)
        given = (
            given if container == "sparse" and dtype in INTEGERS[1:] and dtype != torch.int64 else CONTAINERS[container](given)
        )
        assert same(classifier.generate((X, given)), classifier.generate((X, LABELS)))

    @few
    @given(
        dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]),
        container=st.sampled_from(list(CONTAINERS)),
        of_y=st.booleans(),
    )
    def test_real_numbers_of_any_type_and_layout(self, curve, dtype, container, of_y):
        x, y = X.half().to(dtype), Y.half().to(dtype)
        weights = curve.generate((x.float(), y.float()))
        x, y = CONTAINERS[container](x), CONTAINERS[container](y) if of_y else y
        assert same(curve.generate((x, y)), weights)
        assert torch.allclose(curve.predict(weights, x), curve.predict(weights, X.half().float()), atol=1e-4)
        refined = curve.refine((x, y), weights, steps=2)
        assert same(refined, curve.refine((X.half().float(), Y.half().float()), weights, steps=2))

    @settings(max_examples=200, deadline=None)
    @given(
        image=st.data(),
        dtype=st.sampled_from(["bool", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)), "f2", "f4", "f8"]),
    )
    def test_no_pixel_is_clipped(self, image, dtype):
        """Either every pixel is read as what it says, or the image is refused."""
        real = np.dtype(dtype).kind in "fb"
        some = {"b": None, "f": st.floats(0, 1, width=16)}.get(np.dtype(dtype).kind, st.integers(0, 127))
        image = image.draw(arrays.arrays(dtype, (3, 4), elements=some) | arrays.arrays(dtype, (3, 4)))
        fits = bool((image >= 0).all() and (image <= (1 if real else 255)).all())
        if fits:
            assert np.array_equal(pixels_of(image, "it").numpy(), np.round(image.astype(np.float32) * 255) if real else image)
        else:
            with pytest.raises(McdiError, match="^it (run from|hold)"):
                pixels_of(image, "it")

    @few
    @given(
        dtype=st.sampled_from([*INTEGERS, torch.float16, torch.float32, torch.float64]), brighter=st.sampled_from([0, 1, 200])
    )
    def test_images_of_a_support_set(self, symbols, dtype, brighter):
        values = IMAGES // 2 + brighter if dtype == torch.int8 else IMAGES.to(torch.int32) + brighter
        images = values.to(dtype) if dtype in INTEGERS else (values / 255).to(dtype)
        if brighter and dtype not in (torch.int8, torch.uint8):
            with pytest.raises(McdiError, match="pixels in 0..(1|255): scale them"):
                symbols.generate((images, LABELS))
            with pytest.raises(McdiError, match="pixels in 0..(1|255): scale them"):
                as_images(images[:, 0], (1, 28, 28))
        elif not brighter and dtype != torch.int8:
            assert same(symbols.generate((images, LABELS)), symbols.generate((IMAGES, LABELS)))

    @pytest.mark.parametrize(
        "values, said",
        [
            (["a"], "read as numbers"),
            ([[1.0], [1.0, 2.0]], "read as numbers"),
            (torch.zeros(2, dtype=torch.complex64), "complex"),
            (torch.zeros(2, device="meta"), "meta device"),
            (None, "read as numbers"),
            (object(), "read as numbers"),
            ([torch.zeros(1), torch.zeros(2)], "read as numbers"),
            ([2**70], "read as numbers"),
            (torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)]), "of unequal shapes"),
            (np.ma.masked_array([0.0, 1.0], mask=[True, False]), "some are masked"),
        ],
    )
    def test_what_is_no_number(self, curve, values, said):
        for pair in ((values, Y), (X, values)):
            with pytest.raises(McdiError, match=said):
                curve.generate(pair)
        with pytest.raises(McdiError, match=said):
            tensor_of(values, "it")

    def test_a_message_shows_which_pixels_are_outside(self):
        with pytest.raises(McdiError, match="run from 0 to 1.00000012, but real numbers are pixels in 0..1"):
            pixels_of(np.float32([0, 1.0000001]), "they")

    def test_numbers_that_float32_cannot_hold(self, curve):
        with pytest.raises(McdiError, match="NaN or infinite values, or too large ones"):
            curve.generate((X.double() * 1e300, Y))
        with pytest.raises(McdiError, match="not finite: the examples, the temperature"):
            curve.generate((X, Y), temperature=1e30)


class TestShapes:
    @few
    @given(
        n=st.integers(0, 4), batch=st.booleans(), one=st.booleans(), model=st.sampled_from(["curve", "classifier", "symbols"])
    )
    def test_any_number_of_queries(self, request, n, batch, one, model):
        generator = request.getfixturevalue(model)
        x, y = (IMAGES, LABELS) if model == "symbols" else (X, Y if model == "curve" else LABELS)
        if batch:
            weights, x = generator.generate((torch.stack([x, x.flip(0)]), torch.stack([y, y.flip(0)]))), torch.stack([x, x])
            queries, answers = (x[:, n], (slice(None), n)) if one else (x[:, :n], (slice(None), slice(n)))
        else:
            weights = generator.generate((x, y))
            queries, answers = (x[n], n) if one else (x[:n], slice(n))
        want = generator.predict(weights, x)[answers]
        got = generator.predict(weights, queries)
        assert got.shape == want.shape and torch.allclose(got, want, atol=1e-4)
        assert generator.predict(weights, []).shape[: 1 + batch] == ((2, 0) if batch else (0,))

    def test_one_example_as_a_support_set(self, curve):
        assert same(curve.generate((X[0], Y[0])), curve.generate((X[:1], Y[:1])))
        with pytest.raises(McdiError, match="do not match"):
            curve.generate((X[:0], Y[:0]))

    def test_targets_as_a_column(self, curve, classifier):
        for generator, y in ((curve, Y), (classifier, LABELS)):
            for call in (generator.generate, generator.refine):
                with pytest.raises(McdiError, match="do not match: give .S, .... and .S,."):
                    call((X, y[:, None]))

    @pytest.mark.parametrize("support", [{"x": X, "y": Y}, (X, Y, Y), (X,), X, None, {"x": X}])
    def test_what_is_no_support_set(self, curve, support):
        with pytest.raises(McdiError, match="a support set is a tuple of two, x and y"):
            curve.generate(support)

    def test_weights_of_other_tasks_than_the_queries(self, curve):
        weights = curve.generate((torch.stack([X, X]), torch.stack([Y, Y])))
        with pytest.raises(McdiError, match="weights of 2 tasks"):
            curve.predict(weights, torch.stack([X, X, X]))
        with pytest.raises(McdiError, match="different numbers of tasks"):
            curve.predict(weights | {"0.bias": weights["0.bias"][:1]}, torch.stack([X, X]))

    @few
    @given(st.lists(st.sampled_from(["generate", "refine"]), min_size=1, max_size=2), st.booleans())
    def test_weights_own_their_memory(self, curve, calls, batch):
        support = (torch.stack([X, X]), torch.stack([Y, Y])) if batch else (X, Y)
        weights = None
        for call in calls:
            weights = curve.generate(support) if call == "generate" else curve.refine(support, weights, steps=1)
        for w in weights.values():
            assert w.is_contiguous() and w.untyped_storage().nbytes() == w.nbytes and not w.requires_grad


class TestSeeds:
    @settings(max_examples=40, deadline=None)
    @given(
        seed=st.integers(-(2**66), 2**66) | st.integers(-5, 5) | st.sampled_from([s * 2**n for n in (63, 64) for s in (-1, 1)])
    )
    def test_any_integer_of_64_bits(self, curve, seed):
        if not -(2**63) <= seed < 2**64:
            for call in (lambda: curve.generate((X, Y), seed=seed), lambda: uniform("train", [seed], count=1)):
                with pytest.raises(McdiError, match=f"seed = {seed} has more than 64 bits"):
                    call()
            return
        want = torch.randn(3, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(torch.randn(3, generator=torch.Generator().manual_seed(checked_seed(seed))), want)
        forms = [
            seed,
            *(np.dtype(d).type(seed) for d in ("i8", "u8", "i4", "u1") if np.iinfo(d).min <= seed <= np.iinfo(d).max),
        ]
        first, *others = (
            curve.generate((X, Y), seed=form, temperature=1.0) for form in [*forms, [seed], np.array([forms[-1]])]
        )
        assert all(same(first, other) for other in others)
        assert uniform("train", [seed], count=2).shape == (1, 2)

    @pytest.mark.parametrize(
        "seed", [True, np.True_, torch.tensor(True), 1.0, np.float64(1), "1", None, b"1", 1j, [1.0], [True]]
    )
    def test_what_is_no_seed(self, curve, seed):
        with pytest.raises(McdiError, match="is no integer"):
            curve.generate((X, Y), seed=seed)
        if not isinstance(seed, list):
            with pytest.raises(McdiError, match="is no integer"):
                mcdi.fit(mcdi.OwnTasks(nn.Linear(1, 1), *sines(), shots=3), seed=seed)

    def test_seeds_of_other_tasks(self, curve):
        with pytest.raises(McdiError, match="2 seeds for 1 tasks"):
            curve.generate((X, Y), seed=[1, 2])


@contextlib.contextmanager
def restored(get: Any, set_: Any, value: Any) -> Iterator[None]:
    before = get()
    set_(value)
    try:
        yield
    finally:
        set_(before)


STATES = {
    "float64": lambda: restored(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "float16": lambda: restored(torch.get_default_dtype, torch.set_default_dtype, torch.float16),
    "meta": lambda: torch.device("meta"),
    "no grad": torch.no_grad,
    "inference": torch.inference_mode,
    "deterministic": lambda: restored(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "threads": lambda: restored(torch.get_num_threads, torch.set_num_threads, 2),
    "random": lambda: torch.random.fork_rng(),
}
states = st.sets(st.sampled_from(list(STATES)), min_size=1, max_size=4)


@contextlib.contextmanager
def under(chosen: set[str]) -> Iterator[None]:
    """In these states, which must be the same afterwards, random numbers included."""
    with contextlib.ExitStack() as stack:
        for name in sorted(chosen):
            stack.enter_context(STATES[name]())
        if "random" in chosen:
            torch.manual_seed(123)
        held = torch.get_rng_state().clone()
        flags = torch.get_default_dtype, torch.get_default_device, torch.is_grad_enabled, torch.is_inference_mode_enabled
        before = [flag() for flag in (*flags, torch.get_num_threads, partial(torch.is_autocast_enabled, "cpu"))]
        yield
        assert before == [flag() for flag in (*flags, torch.get_num_threads, partial(torch.is_autocast_enabled, "cpu"))]
        assert bool((held == torch.get_rng_state()).all()) or "meta" in chosen


class TestGlobalState:
    @settings(max_examples=8, deadline=None)
    @given(chosen=states)
    def test_generating(self, curve, symbols, chosen):
        def results() -> list[dict[str, Tensor]]:
            weights = curve.generate((X, Y), temperature=1.0, seed=1)
            letters = symbols.generate((IMAGES.numpy(), LABELS.tolist()), temperature=1.0)
            answers = {"a": curve.predict(weights, X.tolist()), "b": symbols.predict(letters, IMAGES)}
            return [weights, letters, answers, curve.refine((X, Y), weights, steps=2)]

        want = results()
        with under(chosen):
            got = results()
        assert all(map(same, want, got)) and not any(t.is_inference() for part in got for t in part.values())

    @settings(max_examples=2, deadline=None)
    @given(chosen=states)
    def test_training_saving_and_loading(self, curve, tmp_path_factory, chosen):
        folder = tmp_path_factory.mktemp("saved")
        with under(chosen):
            made = fitted()
            made.save_pretrained(folder)
            again = mcdi.load(folder, module=NETS[1])
        want = curve.generate((X, Y), temperature=1.0, seed=1)
        assert all(same(g.generate((X, Y), temperature=1.0, seed=1), want) for g in (made, again))

    @few
    @given(chosen=states, kind=st.sampled_from(["cosine", "linear", "constant"]))
    def test_the_mathematics(self, chosen, kind):
        def results() -> list[Tensor]:
            schedule = core.make_schedule(kind, T=10, k=2, max_signal=0.5)
            t, i = core.draw(50, schedule, torch.Generator().manual_seed(0))
            return [schedule.alpha, t, i]

        want = results()
        with under(chosen):
            got = results()
        assert all(map(torch.equal, want, got))

    @few
    @given(chosen=states, head=st.sampled_from([PrototypeHead(), RidgeHead()]))
    def test_scikit_learn(self, chosen, head):
        x, y = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32), np.arange(12) % 3

        want = head.fit(x, y).predict_proba(x)
        with under(chosen):
            got = head.fit(torch.from_numpy(x), torch.from_numpy(y)).predict_proba(torch.from_numpy(x))
        assert np.allclose(want, got, atol=1e-5)


class TestDevices:
    @settings(max_examples=200, deadline=None)
    @given(
        st.text(max_size=6)
        | st.sampled_from(["cuda", "mps", "auto", "cpu:0", "cuda:9", "cuda:", "xpu", None, 0])
        | st.integers()
    )
    def test_a_device_that_exists_or_one_sentence(self, name):
        try:
            assert torch.zeros(1, device=pick_device(name)).sum() == 0
        except McdiError as error:
            assert "unknown device" in str(error) or "is not available" in str(error)

    def test_auto_is_the_best_there_is(self, symbols):
        best = "cuda" if torch.cuda.is_available() else "cpu"
        assert mcdi.load("symbols", "auto").device == best and mcdi.load("symbols", torch.device("cpu")).device == "cpu"
        with pytest.raises(McdiError, match="unknown device 'mps'"):
            symbols.to("mps")


numbers = st.floats() | st.integers(-3, 30) | st.booleans() | st.sampled_from(["1", None, np.float32(0.5), np.int64(2)])


class TestOptions:
    @few
    @given(
        options=st.dictionaries(st.sampled_from(["steps", "temperature", "samples", "stop"]), numbers, max_size=2),
        adam=st.dictionaries(st.sampled_from(["steps", "lr"]), numbers.filter(lambda v: v is not None), max_size=2),
    )
    @example(options={}, adam={"lr": 1e300})
    def test_either_finite_weights_or_one_sentence(self, curve, options, adam):
        for call in (lambda: curve.generate((X, Y), **options), lambda: curve.refine((X, Y), **adam)):
            try:
                assert all(bool(torch.isfinite(w).all()) for w in call().values())
            except McdiError:
                assert options or adam

    @given(ridge=st.floats(-5, 5))
    def test_no_head_of_a_ridge_below_zero(self, ridge):
        head, x = RidgeHead(ridge=ridge), X.flatten(1).numpy()
        try:
            assert head.fit(x, LABELS.numpy()).predict(x).shape == LABELS.shape and ridge > 0
        except McdiError as error:
            assert ridge <= 0 and "must be above 0" in str(error)

    @settings(max_examples=100, deadline=None)
    @given(st.sampled_from([float("nan"), float("inf"), -float("inf"), 2**63, -(2**70)]), st.integers(0, 3))
    def test_settings_of_files_and_of_python(self, value, place):
        where = (
            {"floor": value},
            {"training": {"outer_lr": value}},
            {"options": {"width": value}},
            {"sampling": {"temperature": value}},
        )
        from mcdi.methods.mcdi.settings import DiffusionSettings

        with pytest.raises(McdiError, match="is no finite number of 64 bits"):
            make(DiffusionSettings, where[place], "generator")
        with pytest.raises(McdiError, match=r"lr = .* is no finite number"):
            Preparation(lr=value)

    @pytest.mark.parametrize("value", ["nan", "inf"])
    def test_the_command_line_and_recipes(self, support: Path, tmp_path, capsys, value):
        assert command("generate", "symbols", "--support", support, "--temperature", value, "--out", tmp_path / "w") == 1
        assert f"temperature = {value} is no finite number" in capsys.readouterr().err.replace("\n", " ")
        if "fastapi" in sys.modules or pytest.importorskip("fastapi"):
            assert command("serve", "symbols", "--wait", value, "--port", 0) in (1, 2)
            assert "wait" in capsys.readouterr().err
        (tmp_path / "r.toml").write_text(f'base = "glyphs"\n[generator]\nfloor = {value}\n')
        with pytest.raises(McdiError, match=f"generator.floor = {value} is no finite number"):
            read_recipe(str(tmp_path / "r.toml"))
