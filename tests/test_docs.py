"""What the documents tell a reader to type does what they say."""

import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.skipif(not DOCS.exists(), reason="docs/ is in the repository, not in the source distribution")
def test_the_example_of_preparation_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "preparation.md").read_text(), re.DOTALL)
    names = {"__name__": "docs"}
    exec(code, names)
    store = names["store"]
    scores = store.read().scores.mean(0)
    assert len(store) == 200 and bool((scores[1:] >= scores[:-1]).all()) and float(scores[-1]) > 0.9
    said = capsys.readouterr().out
    assert said.startswith("torch.Size([3, 3, 1, ") and said.endswith("[]\n")
    assert torch.equal(names["part"].seeds, torch.tensor([3, 141, 7]))
