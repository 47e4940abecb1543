"""What every test shares: one thread, and the toy family."""

from collections.abc import Iterator

import pytest
import torch

from mcdi.tasks.toy import Sines


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    torch.set_num_threads(1)
    yield


@pytest.fixture(scope="session")
def sines() -> Sines:
    return Sines(shots=6, queries=20, hidden=6)
