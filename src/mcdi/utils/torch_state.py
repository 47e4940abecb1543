"""Torch as it is when a program starts: what the package computes depends on nothing that the caller has set."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_LOCK = threading.Lock()
_inside = 0  # calls of all threads that have changed the default type: torch has one for the whole process
_callers = torch.float32  # what it was


@contextmanager
def plain_torch() -> Iterator[None]:
    """For a while, or for a function as `@plain_torch()`: float32 and the CPU are the defaults, gradients are recorded, and
    there is neither inference mode nor autocast.

    What is as it should be is not touched. The default type belongs to the process: while it is changed, other threads of the
    caller see float32 too.
    """
    with ExitStack() as stack:
        stack.enter_context(_float32())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def _float32() -> Iterator[None]:
    global _inside, _callers
    with _LOCK:
        changes = _inside > 0 or torch.get_default_dtype() != torch.float32
        if changes:
            _callers = torch.get_default_dtype() if _inside == 0 else _callers
            _inside += 1
            torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        if changes:
            with _LOCK:
                _inside -= 1
                if _inside == 0:
                    torch.set_default_dtype(_callers)
