"""What went wrong, in one sentence that names the value and the cure."""


class McdiError(ValueError):
    """An error that a user can cause and cure; the CLI prints its message without a traceback."""
