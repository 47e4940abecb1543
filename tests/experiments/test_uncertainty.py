"""Calibration, ensembles and unknown classes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import mcdi

from mcdi.errors import McdiError
from mcdi.experiments.run import Context
from mcdi.experiments.studies.uncertainty import auroc, disjoint_tasks, ensembles, expected_calibration_error
from mcdi.experiments.studies.variants import Variant, model_folder, trained
from mcdi.generator.saving import load_method
from mcdi.tasks.episodes import FewShot
from mcdi.utils.workers import silent


class TestUncertainty:
    def test_a_calibrated_and_an_overconfident_answer(self) -> None:
        sure = torch.tensor([[0.9, 0.1]]).repeat(10, 1)
        labels = torch.tensor([0] * 9 + [1])
        assert expected_calibration_error(sure, labels) == pytest.approx(0.0, abs=1e-6)
        assert expected_calibration_error(sure, torch.tensor([0] * 5 + [1] * 5)) == pytest.approx(0.4, abs=1e-6)

    def test_auroc_is_the_fraction_of_ordered_pairs(self) -> None:
        familiar, unknown = torch.tensor([0.1, 0.4, 0.4]), torch.tensor([0.4, 0.9])
        pairs = [(u > f).float() + 0.5 * (u == f).float() for f in familiar for u in unknown]
        assert auroc(familiar, unknown) == pytest.approx(float(torch.stack(pairs).mean()))
        assert auroc(familiar, familiar) == pytest.approx(0.5)


class TestEnsembles:
    def measured(self, context: Context) -> dict[str, dict[str, float]]:
        """Figures by answer at the first shot number."""
        variant = Variant({}, "mc-di")
        method = load_method(model_folder(context, variant, 0))
        return {r.factors["answer"]: r.figures for r in ensembles(context, variant, method, 0)}

    def test_samples_are_kept_apart_or_averaged(self, studied: Path) -> None:
        trained(Context(studied), Variant({}, "mc-di"), 0, silent)
        figures = self.measured(Context(studied))
        for n in (4, 16):
            assert "AUROC, information" in figures[f"{n} samples, mean prediction"]  # it needs several predictions
            assert "AUROC, information" not in figures[f"{n} samples, mean weights"]
            assert figures[f"{n} samples, mean prediction"]["NLL"] != figures[f"{n} samples, mean weights"]["NLL"]

    def test_the_temperature_is_tuned_without_the_test_classes(self, studied: Path) -> None:
        trained(Context(studied), Variant({}, "mc-di"), 0, silent)
        other = Context(studied)
        assert isinstance(other.family, FewShot)
        other.family.examples["test"] = 3 * torch.randn(other.family.examples["test"].shape)
        before, after = self.measured(Context(studied)), self.measured(other)
        assert {n: f["temperature"] for n, f in before.items()} == {n: f["temperature"] for n, f in after.items()}
        assert before["as used"]["NLL"] != after["as used"]["NLL"]


class TestDisjointTasks:
    def test_no_class_in_common(self, done: Path) -> None:
        context = Context(done)
        other = disjoint_tasks(context)
        classes = context.family.columns("test", range(context.tasks))["classes"]
        for task in range(context.tasks):
            assert not set(classes[task].tolist()) & set(classes[other[task]].tolist())

    def test_refuses_where_there_is_none(self, done: Path) -> None:
        context = Context(done)
        context.recipe = replace(context.recipe, evaluation=replace(context.recipe.evaluation, tasks=1))
        with pytest.raises(McdiError, match="raise evaluation.tasks"):
            disjoint_tasks(context)

    def test_curves_have_no_unknown_classes(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert mcdi("reproduce", "uncertainty", "sines", "--quick", "--out", tmp_path / "run", "--workers", 1) == 1
        assert "has no classes, so none can be unknown" in " ".join(capsys.readouterr().err.split())
