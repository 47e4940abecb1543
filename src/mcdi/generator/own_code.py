"""The user's own code, which no file of a generator holds, by a name that the user gives: package:factory."""

import os
import sys
from importlib import import_module
from typing import Any

from torch import nn

from mcdi.errors import McdiError, explained

CODE = ("module", "loss", "describe")  # the options of `mcdi.load` that hold code


def named_code(name: str | None) -> dict[str, Any]:
    """The options of `mcdi.load` that a function of the user's makes.

    Args:
        name: package:factory, where the factory takes nothing and returns the module, or a dictionary of module, loss and
            describe, as they were given to `OwnTasks`. Packages are also looked for in the working folder. None: no code.

    Raises:
        McdiError: no such function, one that fails, or another result.
    """
    if name is None:
        return {}
    package, _, factory = name.partition(":")
    if not package or not factory:
        raise McdiError(f"{name!r} names no function: give package:factory")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: a file there takes the place of no other module
    with explained(f"{name} gives no module", "correct it"):  # code of the user's may raise anything
        function: Any = import_module(package)
        for part in factory.split("."):
            function = getattr(function, part)
        made = function()
    options = {"module": made} if isinstance(made, nn.Module) else made
    if not isinstance(options, dict) or not set(options) <= set(CODE) or not isinstance(options.get("module"), nn.Module):
        raise McdiError(f"{name} returned {type(made).__name__}: return a torch module, or a dictionary of {', '.join(CODE)}")
    return options
