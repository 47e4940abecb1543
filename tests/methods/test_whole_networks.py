"""Whole networks: trained and measured through the command line, generated for other numbers of classes, and how the functional
term is paid along a chain."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import mcdi
from torch import Tensor, nn

import mcdi as package
from mcdi import core
from mcdi.errors import McdiError
from mcdi.experiments import symbols
from mcdi.experiments.recipe import read_recipe
from mcdi.experiments.run import Context
from mcdi.experiments.studies import reproduce, whole
from mcdi.generator import ready_made
from mcdi.methods import make_method
from mcdi.methods.mcdi.loss import DenoisingLoss
from mcdi.trajectories.prepare import Preparation, prepare, trajectories
from mcdi.trajectories.store import TrajectoryStore
from mcdi.types import Examples
from mcdi.utils.files import read_tensors

RECIPE = """
methods = ["adam", "maml", "protonet", "r2-d2", "hypernetwork", "mc-di"]
[family]
network = "conv-net"
filters = 4
pixels = 7
head = "prototypes"
way = 3
shots = [2]
queries = 5
training_queries = 3
limit = 30
backbone = "none"
backbone_steps = 0
[preparation]
tasks = 24
epochs = 6
[generator]
denoiser = "filters"
prior = false
functional = 10.0
fresh_tasks = 4
options = { width = 16, depth = 1 }
training = { meta = "none", iterations = 8, inner_steps = 1, learners = 1, tasks = 6, warmup = 0.2, checkpoint_every = 3 }
[method.mc-di]
functional_steps = 3
response = true
[method.adam]
lrs = [0.03]
steps = [2]
decays = [0.0]
tasks = 8
[method.maml]
training = { meta = "none", iterations = 4, learners = 2, inner_steps = 1, tasks = 1 }
test_steps = [1]
tuning_tasks = 8
[method.reptile]
training = { iterations = 4, learners = 2, inner_steps = 2 }
tuning = { lrs = [0.03], steps = [2], decays = [0.0], tasks = 8 }
[method.protonet]
training = { iterations = 60, tasks = 8 }
[method.r2-d2]
training = { iterations = 8, tasks = 8 }
[evaluation]
tasks = 24
validation = 8
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    (folder / "recipe.toml").write_text(RECIPE)
    assert mcdi("run", folder / "recipe.toml", "--out", folder / "run", "--workers", 1) == 0
    return folder / "run"


def images(way: int, each: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (each * way, 1, 28, 28), dtype=torch.uint8, generator=g)
    return x, torch.arange(way).repeat(each)


@pytest.mark.parametrize("name", ["adam", "maml", "protonet", "r2-d2", "hypernetwork", "mc-di"])
def test_every_method_is_measured_and_loads(run: Path, name: str) -> None:
    score = json.loads((run / "results" / f"{name}-0.json").read_text())["shots"]["2"]["mean"]
    assert 0.2 < score <= 1
    generator = package.load(run / "methods" / f"{name}-0")
    weights = generator.generate(images(3, 2))
    module = generator.network.standalone(weights)
    x = images(3, 2)[0]
    torch.testing.assert_close(module(x.float() / 255), generator.predict(weights, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", [2, 5])
def test_tasks_may_have_other_numbers_of_classes(run: Path, way: int) -> None:
    for name in ("mc-di", "protonet"):
        generator = package.load(run / "methods" / f"{name}-0")
        weights = generator.generate(images(way, 3))
        assert generator.predict(weights, images(way, 3)[0]).shape == (3 * way, way)


@pytest.mark.parametrize("name", ["hypernetwork", "mc-di", "protonet"])
def test_the_last_layer_of_what_is_generated_is_the_solved_one(run: Path, name: str) -> None:
    method, family = package.load(run / "methods" / f"{name}-0").method, Context(run).family
    net, tasks = family.downstream, family.sample("test", range(3))
    weights = method.generate(net, tasks.support, tasks.mask, seed=0)
    torch.testing.assert_close(weights, net.solved(weights, tasks.support), rtol=1e-4, atol=1e-5)


def test_training_makes_a_better_body(run: Path) -> None:
    """The closed form alone, on a random body, is above chance: what counts is what training adds."""
    family = Context(run).family
    net, tasks = family.downstream, family.sample("test", range(24))
    random = make_method("protonet", {})
    random.start = net.theta0(0, net.space.U)  # type: ignore[attr-defined]
    before = net.score(random.generate(net, tasks.support, tasks.mask, seed=0), tasks.query, tasks.mask).mean()
    after = json.loads((run / "results" / "protonet-0.json").read_text())["shots"]["2"]["mean"]
    assert after > float(before) + 0.03


def test_networks_of_a_fixed_number_of_classes_say_so(run: Path) -> None:
    method = make_method("hypernetwork", {"denoiser": "mlp", "prior": False, "training": {"iterations": 1}})
    context = Context(run)
    method.fit(context.family, TrajectoryStore.open(run / "trajectories"), seed=0)
    generator = package.Generator("hypernetwork", method, context.family.downstream)
    with pytest.raises(McdiError, match="networks for 3 classes, not 4"):
        generator.generate(images(4, 2))


def test_a_stopped_training_ends_with_the_same_weights(run: Path, tmp_path: Path) -> None:
    context = Context(run)
    values = context.recipe.settings_of("mc-di")
    data = TrajectoryStore.open(run / "trajectories")

    class Stop(Exception):
        pass

    def stop(done: int, total: int, figures: dict[str, float]) -> None:
        if done == 5:
            raise Stop

    with pytest.raises(Stop):
        make_method("mc-di", values).fit(context.family, data, seed=0, log=stop, folder=tmp_path)
    resumed = make_method("mc-di", values).fit(context.family, data, seed=0, folder=tmp_path)
    other = package.load(run / "methods" / "mc-di-0").method
    assert all(torch.equal(t, other.state()[n]) for n, t in resumed.state().items())


def test_a_ready_made_generator_is_found_by_name_and_shown(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ready_made, "READY_MADE", run / "methods")
    monkeypatch.setattr(symbols, "MODEL", "mc-di-0")
    monkeypatch.setattr(symbols, "CLASSES", 8)
    monkeypatch.setattr(symbols, "UNSEEN", 4)
    monkeypatch.chdir(tmp_path)
    assert package.load("mc-di-0").network.kind == "conv-net"
    assert mcdi("demo", "symbols", "--out", "picture.png") == 0
    out = capsys.readouterr().out
    assert symbols.GENERATED in out and "guessing" in out and "20.0" in out
    assert Path("picture.png").stat().st_size > 10_000
    assert mcdi("demo", "letters") == 1


class TestStudies:
    def table(self, run: Path, tmp_path: Path, study: str) -> list[dict[str, str]]:
        assert mcdi("reproduce", study, run.parent / "recipe.toml", "--out", run, "--results", tmp_path, "--workers", 1) == 0
        assert (tmp_path / f"{study}-recipe.png").stat().st_size > 10_000
        return list(csv.DictReader((tmp_path / f"{study}-recipe.csv").read_text().splitlines()))

    def test_sizes(self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every size has weights of its own, and trajectories; that of the recipe uses the run's."""
        monkeypatch.setattr(whole, "FILTERS", (4, 6))
        before = self.stores(run)
        rows = self.table(run, tmp_path, "size")
        weights = {r["filters"]: int(r["weights"]) for r in rows}
        assert weights == {"4": 4 * 9 + 3 * 4 * 36 + 4 * 12 + 15, "6": 6 * 9 + 3 * 6 * 54 + 6 * 4 * 3 + 21}
        assert {(r["method"], r["filters"]) for r in rows} == {(m, f) for m in ("mc-di", "protonet", "r2-d2") for f in "46"}
        assert len(self.stores(run) - before) == 1
        chosen = {json.dumps(v.settings.get("sampling")) for v in whole.sizes(Context(run).recipe) if v.method == "mc-di"}
        assert chosen == {json.dumps(whole.ONE_STEP)}  # the same at every size
        assert {r["filters"] for r in rows if r["method"] == "mc-di" and r["mse_mean"]} == {"4"}  # the run's reference is of it

    def stores(self, run: Path) -> set[Path]:
        return set((run / "studies" / "stores").glob("*/index.json"))

    def test_parts_of_a_network(self, run: Path, tmp_path: Path) -> None:
        before = self.stores(run)
        rows = self.table(run, tmp_path, "parts")
        assert self.stores(run) == before  # of another head, trajectories are the same
        assert [r["generated"].partition(" ")[0] for r in rows] == ["nothing:", "nothing:", "nothing:", "rows", "biases", "all"]
        assert rows[-1]["difference_mean"] == ""

    def test_chains(self, run: Path, tmp_path: Path) -> None:
        rows = self.table(run, tmp_path, "trained-chains")
        ways = {r["trained by"] for r in rows if r["method"] == "mc-di"}
        regression = {r["trained by"] for r in rows if r["method"] == "hypernetwork"}
        assert len(ways) == 6 and regression - ways == {"task loss, 1 step, no targets"}
        assert {r["sampler"] for r in rows} == set(whole.SAMPLINGS)
        measured = {r["trained by"]: bool(r["mse_mean"]) for r in rows}
        assert measured == {way: "learnt start" not in way for way in measured}  # the run has no reference of that start
        settings = {v.factors["trained by"]: v.settings for v in whole.trained_chains(Context(run).recipe)}
        assert len({(s["fresh_tasks"], s["training"]["iterations"]) for s in settings.values()}) == 1  # all cost the same
        assert settings["task loss, 1 step"]["functional_steps"] == 1 and not settings["task loss, 1 step"]["response"]

    def test_other_recipes_are_refused(self, done: Path, tmp_path: Path) -> None:
        for study in ("size", "parts", "trained-chains"):
            with pytest.raises(McdiError, match=f"study '{study}' has nothing to measure on this recipe"):
                reproduce(study, done, tmp_path, workers=1, progress=lambda *_: None)


class TestLearntStart:
    START = RECIPE.replace("tasks = 24\nepochs = 6", 'tasks = 24\nepochs = 6\nstart = "reptile"')

    def test_a_run_learns_its_start_first(self, run: Path, tmp_path: Path) -> None:
        assert "reptile" in self.START
        (tmp_path / "recipe.toml").write_text(self.START.replace("epochs = 6", "epochs = 3\nlr = 0.000001"))
        assert mcdi("prepare", tmp_path / "recipe.toml", "--out", tmp_path / "run", "--workers", 1) == 0
        context = Context(tmp_path / "run")
        path = tmp_path / "run" / "trajectories-start" / "start.safetensors"
        start, written = read_tensors(path)[0]["start"], path.stat().st_mtime_ns
        rows = start[context.family.downstream.space.fixed :]
        assert len(rows) == 3 and torch.equal(rows, rows[:1].expand_as(rows))  # the order of classes means nothing
        for store in (TrajectoryStore.open(context.store).read(), context.reference):
            torch.testing.assert_close(store.targets, start.expand_as(store.targets), rtol=0, atol=1e-4)
        drawn = context.family.downstream.theta0(0, len(start))
        assert float((drawn - start).abs().max()) > 1e-3
        assert mcdi("prepare", tmp_path / "recipe.toml", "--out", tmp_path / "run", "--workers", 2) == 0
        assert path.stat().st_mtime_ns == written and sorted(p.name for p in path.parent.iterdir()) == [path.name]

    @pytest.mark.slow
    def test_a_module_of_ones_own(self) -> None:
        g = torch.Generator().manual_seed(0)
        x = torch.randn(30, 24, 2, generator=g)
        y = (x @ torch.randn(30, 2, 1, generator=g))[..., 0].gt(0).long()
        tasks = package.OwnTasks(nn.Linear(2, 2), x, y, shots=3)
        once = {"training": {"iterations": 1}, "options": {"width": 8, "depth": 1}}
        made = [
            package.fit(tasks, preparation=Preparation(epochs=3, lr=1e-6, start=start), settings=once).method.space.mean
            for start in ("drawn", "reptile")
        ]
        assert float((made[0] - made[1]).abs().max()) > 0.01

    def test_it_is_never_drawn_in_silence(self, run: Path, tmp_path: Path) -> None:
        family, learnt = Context(run).family, Preparation(start="reptile", tasks=2, epochs=3)
        with pytest.raises(McdiError, match="start = 'reptile' is learnt before: pass it as theta0"):
            trajectories(family, "train", range(2), learnt)
        prepare(family, tmp_path / "full", replace(learnt, start="drawn"))
        for name in ("empty", "full"):
            with pytest.raises(McdiError, match="start = 'reptile' is learnt before: pass it as theta0"):
                prepare(family, tmp_path / name, learnt)
        assert not (tmp_path / "empty").exists()

    def test_a_folder_holds_trajectories_from_one_start(self, run: Path, tmp_path: Path) -> None:
        family, learnt = Context(run).family, Preparation(start="reptile", tasks=2, epochs=3)
        start = family.downstream.theta0(1, family.downstream.space.U)
        prepare(family, tmp_path / "one", learnt, theta0=start)
        assert len(prepare(family, tmp_path / "one", learnt, theta0=start.clone())) == 2
        for settings, other in ((learnt, start + 1e-3), (replace(learnt, start="drawn"), None)):
            with pytest.raises(McdiError, match="holds trajectories made with theta0"):
                prepare(family, tmp_path / "one", settings, theta0=other)

    def test_its_settings_are_checked_before_anything_is_made(self, tmp_path: Path) -> None:
        (tmp_path / "recipe.toml").write_text(self.START.replace("inner_steps = 2 }", "inner_steps = 0 }"))
        assert mcdi("prepare", tmp_path / "recipe.toml", "--out", tmp_path / "run", "--workers", 1) == 1
        assert not (tmp_path / "run").exists()

    @pytest.mark.slow
    def test_the_study_of_preparations_starts_there_too(self, tmp_path: Path) -> None:
        short = self.START.replace("tasks = 24\nepochs = 6", "tasks = 8\nepochs = 3")
        (tmp_path / "recipe.toml").write_text(short)
        arguments = "--out", tmp_path / "run", "--results", tmp_path, "--workers", 1
        assert mcdi("reproduce", "preparation", tmp_path / "recipe.toml", *arguments) == 0


@pytest.mark.parametrize("head", ["prototypes", "generated"])
def test_rows_that_would_be_overwritten_are_refused(head: str, tmp_path: Path) -> None:
    rows = RECIPE.replace("denoiser = ", 'generated = "classes"\ndenoiser = ').replace('"prototypes"', f'"{head}"')
    (tmp_path / "recipe.toml").write_text(rows)
    if head == "generated":
        assert read_recipe(str(tmp_path / "recipe.toml")).generator["generated"] == "classes"
    else:
        with pytest.raises(McdiError, match="generated = 'classes' and a solved last layer leave nothing to generate"):
            read_recipe(str(tmp_path / "recipe.toml"))


class TestFunctionalTerm:
    def made(self, run: Path, **changes: object) -> tuple[DenoisingLoss, nn.Module]:
        context = Context(run)
        method = package.load(run / "methods" / "mc-di-0").method
        denoiser = method.denoiser  # type: ignore[attr-defined]
        denoiser.settings = replace(denoiser.settings, **changes)
        data = TrajectoryStore.open(run / "trajectories")
        return DenoisingLoss(denoiser, method.space, context.family, data, 3, 0, "cpu"), denoiser  # type: ignore[attr-defined]

    def flat(self, loss: DenoisingLoss, step: int) -> dict[str, Tensor]:
        return {n: t.flatten(0, 2) for n, t in loss.batch_at(step).items()}

    def test_fresh_tasks_are_of_no_store_and_of_no_other_step(self, run: Path) -> None:
        loss, _ = self.made(run)
        batches = [self.flat(loss, step) for step in range(3)]
        assert len(batches[0]["task_cond"]) == 4 and len(batches[0]["cond"]) == 6
        assert not torch.equal(batches[0]["task_cond"], batches[1]["task_cond"])
        assert torch.equal(self.flat(loss, 1)["task_cond"], batches[1]["task_cond"])
        assert {b["chain"].shape[-1] for b in (self.flat(loss, s) for s in range(12))} == {1, 2, 3}
        assert batches[0]["query_y"].shape[1] == 3 * 3  # training_queries

    def test_one_step_is_the_global_estimate(self, run: Path) -> None:
        """With one step the chain ends at x0 of the global form, from x = 0 at t = 0."""
        loss, denoiser = self.made(run, functional_steps=1, response=False)
        batch = self.flat(loss, 0)
        params = dict(denoiser.named_parameters())
        with torch.no_grad():
            paid = loss.loss(params, **batch)
            loss.denoiser.settings = replace(denoiser.settings, functional=0.0)
            local = loss.loss(params, **batch)
            start, t = torch.zeros_like(batch["clean"])[:4], torch.zeros_like(batch["t"])[:4]
            f = denoiser(start, t, batch["task_cond"], batch["task_mask"])
            x0 = core.to_x0(f, start, t, denoiser.schedule)
            net = loss.family.downstream
            support = Examples(batch["support_x"], batch["support_y"])
            answer = net.solved(loss.space.restore(x0), support)
            task = net.loss(answer, Examples(batch["query_x"], batch["query_y"]), batch["task_mask"]).mean()
        torch.testing.assert_close(paid, local + 10 * task)

    def test_only_the_last_step_has_a_gradient(self, run: Path) -> None:
        loss, denoiser = self.made(run, response=False)
        batch = next(b for b in (self.flat(loss, s) for s in range(12)) if b["chain"].shape[-1] == 3)
        seen = []
        denoiser.network.register_forward_hook(lambda module, inputs, output: seen.append(torch.is_grad_enabled()))
        loss.loss(dict(denoiser.named_parameters()), **batch).backward()
        assert seen == [True, False, False, True]  # the stored targets, and three steps

    def test_a_chain_sees_what_its_weights_do(self, run: Path) -> None:
        loss, denoiser = self.made(run)
        batch = self.flat(loss, 0)
        net = loss.family.downstream
        x = torch.randn_like(batch["clean"])
        response = denoiser.response(net, loss.space, x, batch["cond"])
        assert response.shape == (*batch["cond"].shape[:2], net.response_size)
        own, other, ce = response[..., -3:].unbind(-1)
        torch.testing.assert_close(ce, -own.log(), rtol=1e-3, atol=1e-4)
        assert bool((own + other <= 1 + 1e-5).all())
        cond, mask, t = batch["cond"], batch["mask"], batch["t"]
        read = denoiser(x, t, cond, mask, None, response)
        assert not torch.allclose(read, denoiser(x, t, cond, mask, None, response + 1))


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"denoiser": "filters"}, "set prior = false"),
        ({"response": True}, "response = true is for denoiser = 'filters'"),
        ({"functional_steps": 0}, "functional_steps = 0 is outside 1..T"),
        ({"fresh_tasks": -1}, "fresh_tasks = -1 is a number of tasks"),
        ({"training": {"warmup": 1.0}}, "warmup = 1.0 is a fraction"),
        ({"training": {"clip": -1.0}}, "clip = -1.0 is a norm"),
    ],
)
def test_settings_that_do_not_go_together(values: dict[str, object], match: str) -> None:
    with pytest.raises(McdiError, match=match):
        make_method("mc-di", values)


def test_a_head_has_no_filters(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = RECIPE.replace('network = "conv-net"', 'network = "linear-head"')
    for line in ("filters = 4", "pixels = 7", 'head = "prototypes"', 'backbone = "none"', "backbone_steps = 0"):
        text = text.replace(line + "\n", "")
    recipe = run.parent / "head.toml"
    recipe.write_text(text)
    assert mcdi("run", recipe, "--out", run.parent / "head") == 1
    assert "cannot be solved" in " ".join(capsys.readouterr().err.split())
    recipe.write_text(text.replace('"protonet", "r2-d2", ', ""))
    assert mcdi("run", recipe, "--out", run.parent / "head") == 1
    assert "not a linear-head" in " ".join(capsys.readouterr().err.split())
    assert not (run.parent / "head").exists()  # told before any work


class TestOwnModules:
    """Modules of one's own in units of filters: classifiers with a solved last layer, and tasks without classes."""

    def bars(self, tasks: int) -> tuple[Tensor, Tensor]:
        """Tasks of two classes of 6 x 6 images: bars of two directions, which differ by task."""
        g = torch.Generator().manual_seed(0)
        angles = torch.rand(tasks, 1, generator=g) * 3.14 + torch.tensor([0.0, 1.57])  # (tasks, 2)
        y = torch.arange(2).repeat(12)
        grid = torch.linspace(-1, 1, 6)
        angle = angles[:, y] + 0.2 * torch.randn(tasks, 24, generator=g)
        across = grid[:, None] * angle.cos()[..., None, None] + grid * angle.sin()[..., None, None]
        x = torch.exp(-8 * across.square())[:, :, None] + 0.1 * torch.randn(tasks, 24, 1, 6, 6, generator=g)
        return x, y.expand(tasks, -1)

    def module(self) -> nn.Sequential:
        body = [nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*body, nn.Linear(4, 2))

    def test_a_convolutional_classifier(self, tmp_path: Path) -> None:
        x, y = self.bars(60)
        tasks = package.OwnTasks(self.module(), x[:50], y[:50], shots=3, unit="filter", head="prototypes")
        few = {"options": {"width": 16, "depth": 1}, "training": {"iterations": 120, "tasks": 8, "outer_lr": 0.01}}
        generator = package.fit(tasks, settings=few, preparation=Preparation(epochs=4, lr=0.01))
        support = torch.cat([torch.arange(24)[y[0] == c][:3] for c in (0, 1)])
        weights = generator.generate((x[50:, support], y[50:, support]))
        accuracy = (generator.predict(weights, x[50:, 6:]).argmax(-1) == y[50:, 6:]).float().mean()
        assert float(accuracy) > 0.8
        generator.save_pretrained(tmp_path / "saved")
        again = package.load(tmp_path / "saved", module=self.module())
        assert all(torch.equal(t, weights[n]) for n, t in again.generate((x[50:, support], y[50:, support])).items())
        own = self.module()
        own.load_state_dict({n: t[0] for n, t in weights.items()})
        torch.testing.assert_close(own(x[50]), generator.predict({n: t[0] for n, t in weights.items()}, x[50]))

    def test_tasks_without_classes(self) -> None:
        g = torch.Generator().manual_seed(0)
        x, slope = torch.rand(40, 20, 1, generator=g), torch.randn(40, 1, generator=g)
        y = slope * x[..., 0]
        module = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))
        tasks = package.OwnTasks(module, x, y, shots=5, unit="filter")
        few = {"options": {"width": 16, "depth": 1}, "training": {"iterations": 150, "outer_lr": 0.01}}
        generator = package.fit(tasks, settings=few, preparation=Preparation(epochs=10, lr=0.03))
        weights = generator.generate((x[36:, :5], y[36:, :5]))
        error = (generator.predict(weights, x[36:]) - y[36:]).square().mean()
        assert float(error) < 0.3 * float(y[36:].square().mean())

    def test_what_has_no_last_layer_says_so(self) -> None:
        x, y = self.bars(10)
        scripted = nn.Sequential(self.module(), nn.Identity())
        with pytest.raises(McdiError, match="head = 'ridge' is for a classifier that ends in a generated Linear layer"):
            package.OwnTasks(scripted, x, y, shots=3, unit="filter", head="ridge")
        tasks = package.OwnTasks(scripted, x, y, shots=3, unit="filter")  # labels are then read as numbers
        few = {"options": {"width": 16, "depth": 1}, "training": {"iterations": 3, "tasks": 4}}
        generator = package.fit(tasks, settings=few, preparation=Preparation(epochs=3, lr=0.01))
        assert generator.generate((x[0], y[0]))["0.0.weight"].shape == (4, 1, 3, 3)
        with pytest.raises(McdiError, match="networks for 2 classes, not 3"):
            generator.generate((x[0, :6], torch.arange(3).repeat(2)))
