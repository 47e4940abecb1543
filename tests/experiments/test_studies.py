"""Studies: files, agreement between them, resuming."""

import csv
import json
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import mcdi
from PIL import Image
from worlds import World

from mcdi.errors import McdiError
from mcdi.experiments import run
from mcdi.experiments.evaluate import distance
from mcdi.experiments.recipe import Evaluation, read_recipe
from mcdi.experiments.run import Context, read_run, with_seeds
from mcdi.experiments.studies import ABOUT, STUDIES, find_study, measures, quick, reproduce
from mcdi.experiments.studies.measures import distil
from mcdi.experiments.studies.studies import fitting_methods
from mcdi.experiments.studies.variants import Variant, _decides, model_folder, on_variant, trained
from mcdi.generator.saving import load_method
from mcdi.methods import all_methods
from mcdi.methods.meta_training import MetaTraining
from mcdi.methods.sampling import SAMPLERS, Sampling, SupportsSampling
from mcdi.utils.workers import silent

WHOLE = {"protonet", "r2-d2"}  # for whole networks, whose last layer they solve
WHOLE_NETWORKS = ("parts", "size", "trained-chains")  # test_whole_networks.py
ON_IMAGES = [s for s in STUDIES if s not in ("adapters", "transfer", *WHOLE_NETWORKS)]  # test_text_lora.py, test_targets.py


@pytest.mark.parametrize(
    "study", [pytest.param(s, marks=pytest.mark.slow) if s in ("ablation", "settings") else s for s in ON_IMAGES]
)
def test_every_study_runs_and_writes_its_three_files(study: str, recipe: Path, studied: Path) -> None:
    results = studied / "results"
    assert mcdi("reproduce", study, recipe, "--out", studied, "--results", results, "--workers", 1) == 0
    stem = results / f"{study}-tiny"
    table = list(csv.DictReader(stem.with_suffix(".csv").read_text().splitlines()))
    assert table
    text = stem.with_suffix(".md").read_text()
    assert text.startswith(f"# {study}: {ABOUT[study]}")
    assert "commit" in text
    with Image.open(stem.with_suffix(".png")) as picture:
        assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 5  # something is drawn
    assert STUDIES[study].against is None or any("minus" in line for line in text.splitlines() if line.startswith("|"))


def test_a_student_answers_in_one_step_what_its_teacher_does_in_all(worlds: dict[str, World]) -> None:
    world, full, one = worlds["gauss"], SAMPLERS["ddim"], replace(SAMPLERS["ddim"], steps=1)
    teacher, family = world.method("mc-di"), world.family
    training = MetaTraining(meta="none", iterations=60, inner_steps=1, learners=1, tasks=48, outer_lr=0.003)
    before = {n: t.clone() for n, t in teacher.state().items()}
    student = distil(teacher, family, world.data, full, seed=0, training=training)
    ask = partial(teacher.generate, family.downstream, world.batch.support, world.batch.mask, seed=5)
    taught = student.generate(family.downstream, world.batch.support, world.batch.mask, seed=5, sampling=one)
    assert distance(taught, ask(sampling=full), teacher.space) < 0.5 * distance(
        ask(sampling=one), ask(sampling=full), teacher.space
    )
    assert all(torch.equal(before[n], t) for n, t in teacher.state().items())


class TestCompare:
    def test_every_method_that_serves_beside_its_cost(self, recipe: Path, studied: Path) -> None:
        results = studied / "compared"
        assert mcdi("compare", recipe, "--out", studied, "--results", results, "--workers", 1) == 0
        table = list(csv.DictReader((results / "compare-tiny.csv").read_text().splitlines()))
        assert {r["method"] for r in table} == set(all_methods()) - WHOLE
        assert "`mcdi compare tiny`" in (results / "compare-tiny.md").read_text()
        by = {r["method"]: {n: float(r[f"{n}_mean"]) for n in ("adaptation (ms)", "peak (MiB)", "parameters")} for r in table}
        assert all(r["adaptation (ms)"] > 0 and r["peak (MiB)"] > 0 for r in by.values())
        assert by["maml"]["parameters"] == 3 * 65 + 1 and by["adam"]["parameters"] == by["linear-probe"]["parameters"] == 0
        assert by["mc-di"]["peak (MiB)"] > by["prototypes"]["peak (MiB)"]

    def test_a_slow_method_is_measured_on_the_first_tasks(self, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(measures, "FIRST", 3)
        context = Context(done)
        for name, count in (("p-diff", 3), ("prototypes", 8)):
            method = load_method(done / "methods" / f"{name}-0")
            (row,) = measures.accuracy(context, Variant({"method": name}, name), method, 0)
            assert row.scores is not None and len(row.scores) == count

    def test_some_of_them(self, recipe: Path, studied: Path, capfd: pytest.CaptureFixture[str]) -> None:
        arguments = ("compare", recipe, "--out", studied, "--results", studied / "some", "--workers", 1, "--methods")
        assert mcdi(*arguments, "prototypes, maml") == 0
        table = csv.DictReader((studied / "some/compare-tiny.csv").read_text().splitlines())
        assert {r["method"] for r in table} == {"prototypes", "maml"}
        assert mcdi(*arguments, "maml,mamba") == 1
        assert "'mamba' is no method for network = 'linear-head': choose all, or of mc-di" in " ".join(
            capfd.readouterr().err.split()
        )

    def test_which_methods_fit_a_network(self) -> None:
        heads = {"prototypes", "linear-probe", "meta-baseline", "lda", "plda", "adaptive-plda", "logistic-regression"}
        assert set(fitting_methods(read_recipe("glyphs"))) == set(all_methods()) - WHOLE
        assert set(fitting_methods(read_recipe("sines"))) == set(all_methods()) - heads - WHOLE
        assert set(fitting_methods(read_recipe("glyphs-conv4"))) == set(all_methods()) - heads
        for name in ("text-lora", "natural-centred"):
            assert set(fitting_methods(read_recipe(name))) == set(all_methods()) - {"meta-baseline"} - WHOLE


def rows(studied: Path, study: str, **factors: object) -> dict[tuple[str, ...], dict[str, str]]:
    """Rows of a study's CSV with these factors, by method and shots."""
    table = csv.DictReader((studied / "results" / f"{study}-tiny.csv").read_text().splitlines())
    kept = [r for r in table if all(r[n] == str(v) for n, v in factors.items())]
    assert kept
    return {(r.get("method", "mc-di"), r["shots"]): r for r in kept}


class TestStudiesAgree:
    """The same generator measured in the same way by two studies has the same score."""

    @pytest.fixture(autouse=True)
    def _done(self, studied: Path, recipe: Path) -> None:
        for study in ON_IMAGES:
            if not (studied / "results" / f"{study}-tiny.csv").exists():
                reproduce(study, studied, studied / "results", workers=1, progress=silent)

    def test_with_the_ablation(self, studied: Path) -> None:
        expected = {key: row["score_mean"] for key, row in rows(studied, "ablation").items()}
        others = (
            rows(studied, "samplers", sampler="validated"),
            rows(studied, "compute", sampler="validated", iterations=8),
            rows(studied, "settings", sampler="validated", setting="recipe"),
            rows(studied, "reptile", loop="eta 0.005, outer Adam", tasks=24),
            rows(studied, "preparation", preparation="plain"),
            rows(studied, "uncertainty", answer="as used"),
            rows(studied, "latency", sampler="-"),
        )
        for other in others:
            assert {key: row["score_mean"] for key, row in other.items()} == {key: expected[key] for key in other}

    def test_refining_by_no_step_changes_nothing_and_starts_differ(self, studied: Path) -> None:
        expected = {key: row["score_mean"] for key, row in rows(studied, "ablation").items()}
        start = {method: row for (method, _), row in rows(studied, "refine", steps=0).items()}
        for method in ("hypernetwork", "mc-di"):
            assert start[method]["score_mean"] == expected[method, "1"]
        # theta_0, before any step: the same row for every class, so all three are equally likely.
        assert float(start["adam"]["loss_mean"]) == pytest.approx(math.log(3), abs=1e-4)

    def test_steps_with_samplers_and_latency(self, studied: Path) -> None:
        for sampler in ("ddpm", "ddim", "deterministic"):
            full = rows(studied, "steps", sampler=sampler, steps=20)
            assert {k: r["mse_mean"] for k, r in full.items()} == {
                k: r["mse_mean"] for k, r in rows(studied, "samplers", sampler=sampler).items()
            }
        assert {r["sampler"] for r in csv.DictReader((studied / "results/latency-tiny.csv").open())} >= {"2 steps", "20 steps"}

    def test_what_is_timed_is_what_a_user_gets(self, studied: Path) -> None:
        """Chains are blended as the generator's own; further than validation would choose, so that it shows."""
        context, variant = Context(studied), Variant({"method": "mc-di"}, "mc-di")
        generator = trained(context, variant, 0, silent)
        assert isinstance(generator, SupportsSampling)
        method = generator.with_sampling(Sampling(temperature=0.0, mixing_weight=0.01))
        timed = {
            row.factors["sampler"]: row.scores
            for row in measures.latency(context, variant, method, 0)
            if row.factors["shots"] == 1
        }
        batch, net = context.family.sample("test", range(context.tasks), shots=1), context.family.downstream
        for steps, name in ((1, "1 step"), (2, "2 steps"), (20, "20 steps")):
            sampling = Sampling(temperature=0.0, steps=steps, mixing_weight=0.01)
            weights = method.generate(net, batch.support, batch.mask, seed=0, sampling=sampling)
            assert torch.equal(timed[name], net.score(weights, batch.query, batch.mask))

    def test_segments_with_one_target_and_with_three(self, studied: Path) -> None:
        distances = {
            row["mse_mean"] for k in (1, 2, 3, 4, 6) for row in rows(studied, "segments", k=k, sampler="ddim").values()
        }
        assert len(distances) == 5

    def test_chains_end_at_the_last_target(self, studied: Path) -> None:
        table = list(csv.DictReader((studied / "results" / "chains-tiny.csv").read_text().splitlines()))
        assert [int(r["t"]) for r in table if r["method"] == "mc-di"] == [7, 13, 20]
        for row in table:
            apart = row["mse to own target_mean"] != row["mse to theta_M_mean"]
            assert apart == (row["segment"] != "3")
        own = [float(r["loss at own target_mean"]) for r in table if r["method"] == "mc-di"]
        assert own == sorted(own, reverse=True)  # the optimiser went down
        assert (studied / "results" / "chains-tiny-picture.png").stat().st_size > 5000


def test_what_draws_nothing_runs_once_and_what_is_slow_twice(done: Path) -> None:
    recipe = replace(read_run(done), evaluation=Evaluation(seeds=(3, 5, 7)))
    assert with_seeds(recipe, ["adam", "mc-di", "p-diff", "prototypes"], str) == [
        *(("adam", 3), ("mc-di", 3), ("p-diff", 3), ("prototypes", 3)),
        *(("mc-di", 5), ("p-diff", 5)),
        ("mc-di", 7),
    ]


def test_the_sampler_is_chosen_on_the_recipes_validation_tasks(studied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def choose(method: SupportsSampling, family: object, *, tasks: int) -> tuple[str, SupportsSampling]:
        asked.append(tasks)
        return "deterministic", method

    monkeypatch.setattr(run, "choose_sampler", choose)
    for name in ("mc-di", "hypernetwork"):  # regression has a mixing weight to choose
        trained(Context(studied), Variant({}, name, {"training": {"iterations": 1}}), 0, silent)
    assert asked == [8, 8]


def test_studies_share_generators_and_measure_nothing_twice(copy: Path, tmp_path: Path) -> None:
    two = ("mc-di", "tw-di")
    reproduce("samplers", copy, tmp_path, workers=1, progress=silent, methods=two)
    first = (tmp_path / "samplers-tiny.csv").read_bytes()
    kept = {p: p.stat().st_mtime_ns for p in (copy / "studies").rglob("*.safetensors")}
    labels: list[str] = []
    reproduce("steps", copy, tmp_path, workers=1, progress=lambda label, *_: labels.append(label), methods=two)
    heard = [label for label in labels if label.startswith(two)]
    assert heard == [f"{name} 0: measured" for name in two for _ in ("begins", "is done")]  # nothing is trained again
    reproduce("samplers", copy, tmp_path, workers=1, progress=silent, methods=two)
    assert (tmp_path / "samplers-tiny.csv").read_bytes() == first
    assert {p: p.stat().st_mtime_ns for p in kept} == kept


def test_results_do_not_depend_on_the_number_of_workers(copy: Path, tmp_path: Path) -> None:
    """Of every kind of method one; test_cli.py compares the models of all."""
    other = Path(shutil.copytree(copy, tmp_path / "other"))
    kinds = ("prototypes", "adam", "maml", "p-diff", "hypernetwork", "mc-di")
    for folder, workers in ((copy, 1), (other, 2)):
        reproduce("ablation", folder, tmp_path / str(workers), workers=workers, progress=silent, methods=kinds)
    assert (tmp_path / "1" / "ablation-tiny.csv").read_bytes() == (tmp_path / "2" / "ablation-tiny.csv").read_bytes()


def test_what_decides_a_generator_decides_its_folder(done: Path) -> None:
    context = Context(done)
    plain = model_folder(context, Variant({"a": 1}, "mc-di"), 0)
    assert plain == model_folder(context, Variant({"b": 2}, "mc-di"), 0)
    spread = on_variant(context, Variant({}, "mc-di", family={"condition": "spread"}))
    assert spread.family.downstream.condition_size > context.family.downstream.condition_size
    assert "start" not in json.dumps(_decides(context, Variant({}, "mc-di")))  # or old runs would lose what they have trained
    assert spread.store == context.store  # what a generator is told does not change the trajectories
    for variant in (Variant({}, "mc-di", family={"way": 4}), Variant({}, "mc-di", {}, {"start": "reptile"})):
        assert on_variant(context, variant).store != context.store
    assert on_variant(context, Variant({}, "adam", family={"way": 4})).store == context.store  # it reads none
    for other in (
        model_folder(context, Variant({}, "mc-di"), 1),
        model_folder(context, Variant({}, "mv-di"), 0),
        model_folder(context, Variant({}, "mc-di", {"T": 10}), 0),
        model_folder(context, Variant({}, "mc-di", {}, {"epochs": 7}), 0),
        model_folder(context, Variant({}, "mc-di", {}, {}, {"condition": "spread"}), 0),
    ):
        assert other != plain


def test_an_unknown_study_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mcdi("reproduce", "nothing", "glyphs", "--out", tmp_path / "run") == 1
    assert "unknown study 'nothing': choose ablation" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(McdiError, match="unknown study"):
        reproduce("nothing", tmp_path, tmp_path, workers=1, progress=silent)
    for old, new in (("levers", "settings"), ("shares", "ridge-blend")):
        with pytest.raises(McdiError, match=f"'{old}' is called '{new}' now"):
            find_study(old)


def test_list_names_every_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert mcdi("reproduce", "list") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in STUDIES)


def test_quick_keeps_the_recipe_but_its_size() -> None:
    full = read_recipe("glyphs")
    small = quick(full)
    assert small.name == "glyphs-quick"
    assert small.generator["functional"] == full.generator["functional"]
    assert small.preparation.tasks < full.preparation.tasks


def test_settings_are_judged_on_validation_tasks(done):
    """The row that decides what is kept is the score of the validation split, not of the test one."""
    context, variant = Context(done), Variant({"setting": "recipe"}, "mc-di")
    method = load_method(done / "methods" / "mc-di-0")
    rows = measures.ablated(context, variant, method, 0)
    (row,) = (r for r in rows if r.factors["sampler"] == "validated, on validation tasks")
    net, scores = context.family.downstream, {}
    for split in ("val", "test"):
        batch = context.family.sample(split, range(8))
        scores[split] = net.score(method.generate(net, batch.support, batch.mask, seed=0), batch.query, batch.mask)
    assert row.scores is not None and torch.equal(row.scores, scores["val"]) and not torch.equal(row.scores, scores["test"])
    assert row.figures == {}
