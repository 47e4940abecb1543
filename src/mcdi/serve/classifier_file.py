"""A generated network as an ONNX file. A process of its own writes it: an export changes PyTorch beside other requests."""

import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from mcdi.errors import McdiError
from mcdi.generator.api import Weights, load
from mcdi.generator.network_files import write_network
from mcdi.serve.limits import Refused
from mcdi.utils.files import read_tensors, write_tensors

log = logging.getLogger("mcdi.serve")
SECONDS = 120.0  # a backbone takes ten to thirty
REFUSED = 3  # exit status of what a user can cure
GIVEN, MADE = "weights.safetensors", "classifier.onnx"


async def classifier_file(folder: Path, weights: Weights, classes: Sequence[int | str]) -> bytes:
    """The network of `weights` with its backbone, as `write_network` writes it.

    Args:
        folder: of the generator that made them.
        classes: labels, in the order of the outputs.

    Raises:
        McdiError: there is no such file of this network; Refused (504) after two minutes.
    """
    with TemporaryDirectory() as place:
        write_tensors(Path(place) / GIVEN, weights, {"classes": [str(c) for c in classes]})
        command = (sys.executable, "-m", __name__, str(folder), place)
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        try:
            _, said = await asyncio.wait_for(process.communicate(), SECONDS)
        except TimeoutError as error:
            raise Refused(504, f"the file took more than {SECONDS:g} seconds: use mcdi generate --network") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode == REFUSED:
            raise McdiError(said.decode().strip().splitlines()[-1])
        if process.returncode:
            log.error("no classifier of %s was written: %s", folder, said.decode(errors="replace"))
            raise Refused(500, "the file could not be written: see the log of the server")
        return (Path(place) / MADE).read_bytes()


def main(folder: str, place: str) -> None:
    try:
        weights, described = read_tensors(Path(place) / GIVEN)
        write_network(load(folder), weights, described["classes"], Path(place) / MADE)
    except McdiError as error:
        print(error, file=sys.stderr)
        raise SystemExit(REFUSED) from None


if __name__ == "__main__":
    main(*sys.argv[1:])
