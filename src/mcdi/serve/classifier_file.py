"""A generated network as an ONNX file, written by a separate process: an export changes global state of PyTorch."""

import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from mcdi.errors import McdiError
from mcdi.generator.api import Generator, Weights, load
from mcdi.generator.network_files import write_network
from mcdi.generator.own_code import named_code
from mcdi.serve.limits import Refused
from mcdi.utils.files import read_tensors, write_tensors

log = logging.getLogger("mcdi.serve")
TIMEOUT = 120.0  # seconds
INVALID = 3  # exit status for a McdiError
WEIGHTS, CLASSIFIER = "weights.safetensors", "classifier.onnx"


async def classifier_file(generator: Generator, weights: Weights, classes: Sequence[int | str], code: str | None) -> bytes:
    """The network of `weights` with its backbone, as `write_network` writes it.

    Args:
        generator: that made them; it is saved for the other process, because its own folder may have other files by now.
        classes: labels, in the order of the outputs.
        code: where `named_code` finds the user's own module.

    Raises:
        McdiError: there is no such file of this network; Refused (504) after two minutes.
    """
    with TemporaryDirectory() as scratch:
        write_tensors(Path(scratch) / WEIGHTS, weights, {"classes": [str(c) for c in classes]})
        await asyncio.to_thread(generator.save_pretrained, Path(scratch) / "generator")
        command = (sys.executable, "-m", __name__, scratch, *([] if code is None else [code]))
        pipe = asyncio.subprocess.PIPE
        # In a session of its own, so that Ctrl-C in a terminal ends the server alone, which then waits for the file.
        process = await asyncio.create_subprocess_exec(*command, stderr=pipe, start_new_session=True)
        try:
            _, stderr = await asyncio.wait_for(process.communicate(), TIMEOUT)
        except TimeoutError as error:
            raise Refused(504, f"the file took more than {TIMEOUT:g} seconds: use mcdi generate --network") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode == INVALID:
            raise McdiError(stderr.decode().strip().splitlines()[-1])
        if process.returncode:
            log.error("no classifier was written: %s", stderr.decode(errors="replace"))
            raise Refused(500, "the file could not be written: see the log of the server")
        return (Path(scratch) / CLASSIFIER).read_bytes()


def main(scratch: str, code: str | None = None) -> None:
    try:
        weights, metadata = read_tensors(Path(scratch) / WEIGHTS)
        generator = load(Path(scratch) / "generator", **named_code(code))
        write_network(generator, weights, metadata["classes"], Path(scratch) / CLASSIFIER)
    except McdiError as error:
        print(error, file=sys.stderr)
        raise SystemExit(INVALID) from None


if __name__ == "__main__":
    main(*sys.argv[1:])
