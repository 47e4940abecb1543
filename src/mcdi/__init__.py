"""mcdi: neural network weights, generated from a handful of examples by local consistency diffusion (Mc-Di, CVPR 2026)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mcdi.errors import McdiError

if TYPE_CHECKING:
    from mcdi.generator.api import Generator, load
    from mcdi.generator.fit import fit
    from mcdi.tasks.own import OwnTasks
    from mcdi.weights import WeightSpace

__version__ = "0.1.0"
__all__ = ["Generator", "McdiError", "OwnTasks", "WeightSpace", "fit", "load"]

_MODULES = {"Generator": "generator.api", "load": "generator.api", "fit": "generator.fit", "OwnTasks": "tasks.own"}
_MODULES["WeightSpace"] = "weights"


def __getattr__(name: str) -> Any:
    """Imported when first used, so that `mcdi --help` does not wait for torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"mcdi.{_MODULES[name]}"), name)
