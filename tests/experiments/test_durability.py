"""Kills at random moments and flipped bits, as benchmarks/durability.py does them, but fewer."""

import os
import random
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

import mcdi
from mcdi.generator.export import export
from mcdi.tasks.images import omniglot

DURABILITY = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "durability.py")))
KILLS, FLIPS, PLACES = 1, 20, 5  # of every job; in all; in all


@pytest.mark.slow
def test_killed_jobs_end_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(omniglot, "URL", omniglot.URL)
    monkeypatch.setattr(omniglot, "CHECKSUMS", dict(omniglot.CHECKSUMS))
    jobs = DURABILITY.jobs(tmp_path / "from")
    for name in ("run", "export", "download"):  # a run prepares and trains; the benchmark kills these alone too
        killed, finished, equal = DURABILITY.kills(jobs[name], tmp_path / name, KILLS, random.Random(name))
        assert killed == KILLS and equal == finished >= 1, name


@pytest.mark.slow
def test_flipped_bits_are_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    DURABILITY.whole(folder)
    model = folder / "methods" / "mc-di-0"
    export(mcdi.load(model), model / "sampler.pt2", "torch", weights=model / "model.safetensors")
    seen = DURABILITY.flips(folder, FLIPS, random.Random(0))
    assert not any(outcomes["missed"] for outcomes in seen.values()), seen


class Killed(BaseException):
    """Stops a run between two of its writes."""


ENDS = ("features.safetensors", "index.json", "config.json", "landscape.json")  # what a step writes last


@pytest.mark.slow
def test_a_kill_between_two_writes_repeats_no_finished_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    last, replace = [0], os.replace

    def counted(source: Path, target: Path) -> None:
        replace(source, target)
        written.append(str(Path(target).relative_to(at)))
        if len(written) == last[0]:
            raise Killed

    def ends() -> dict[str, int]:
        return {n: written.count(n) for n in {*written} if Path(n).name in ENDS or n.startswith("results")}

    monkeypatch.setattr("mcdi.utils.files.os.replace", counted)
    at = tmp_path / "whole"
    DURABILITY.whole(at)
    expected, content, total = ends(), DURABILITY.content(at), len(written)
    assert len(expected) > 9 and not list(at.rglob("*checkpoint*"))
    for last[0] in sorted(random.Random(0).sample(range(1, total), PLACES)):
        written.clear()
        at = tmp_path / f"killed-{last[0]}"
        with pytest.raises(Killed):
            DURABILITY.whole(at)
        DURABILITY.whole(at)
        assert ends() == expected, last[0]
        found = DURABILITY.content(at)
        assert {n for n in {*found, *content} if found.get(n) != content.get(n)} == set(), last[0]
        shutil.rmtree(at)
