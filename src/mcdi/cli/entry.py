"""The entry point of the program `mcdi`. Ctrl-C ends it at any moment, also while it still imports, with one line."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from mcdi.errors import Interrupted

INTERRUPTED = 130  # exit code, as shells have it
GRACE = 10.0  # seconds in which a command ends its workers


def main() -> None:
    """Run the program that was typed."""
    pressed = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not pressed.is_set():
            pressed.set()
            _later(GRACE, _end)
        raise Interrupted("stopped")

    def unraisable(told: Any) -> None:
        """Where Python cannot raise, as in the callback of a weak reference, the signal is sent once more."""
        if isinstance(told.exc_value, Interrupted):
            _later(0.01, lambda: os.kill(os.getpid(), signal.SIGINT))
        else:
            sys.__unraisablehook__(told)

    try:
        try:
            if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as of nohup
                sys.unraisablehook = unraisable
                signal.signal(signal.SIGINT, interrupt)
            from mcdi.cli.main import main as run

            run()
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end of the interpreter is not interrupted
    except BaseException as error:
        if not pressed.is_set():
            raise
        # Where it comes while an extension is imported, another exception may take its place.
        print(error if isinstance(error, Interrupted) else "stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _later(seconds: float, call: Any) -> None:
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()


def _end() -> None:
    """For a library that has caught the exception and goes on."""
    os.write(2, b"stopped\n")
    os._exit(INTERRUPTED)
