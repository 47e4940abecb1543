"""mcdi: neural network weights, generated from a handful of examples by local consistency diffusion (Mc-Di, CVPR 2026)."""

from mcdi.errors import McdiError
from mcdi.generator.api import Generator, load
from mcdi.generator.fit import fit
from mcdi.tasks.own import OwnTasks
from mcdi.weights import WeightSpace

__version__ = "0.1.0"
__all__ = ["Generator", "McdiError", "OwnTasks", "WeightSpace", "fit", "load"]
