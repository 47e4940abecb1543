"""How does a generator come from the Hugging Face Hub, and go there? Safetensors, JSON and a card; nothing that runs code."""

import re
import shutil
from pathlib import Path

from mcdi.errors import McdiError
from mcdi.generator.saving import FILES

CARD = "README.md"
INSTALL = "pip install 'mcdi[hub]'"


def is_id(model: str | Path) -> bool:
    """Whether this can be "user/name" on the Hub."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(model)) is not None


def located(
    model: str | Path, *, revision: str | None = None, token: str | bool | None = None, cache_dir: str | Path | None = None
) -> Path:
    """The folder of a generator: `model` itself where it exists, else what the Hub, or its cache here, has of that id.

    Only FILES and the card are fetched, whatever else is there, pickles above all. Raises McdiError where there is nothing.
    """
    folder = Path(model)
    if folder.exists() or not is_id(model):
        return folder
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise McdiError(f"there is no folder {model} here; if it is a model of the Hugging Face Hub: {INSTALL}") from error
    try:
        wanted = [*FILES, CARD]
        found = Path(snapshot_download(str(model), revision=revision, token=token, cache_dir=cache_dir, allow_patterns=wanted))
    except Exception as error:  # of whatever kind the network, the Hub and its client have
        raise McdiError(
            f"{model} is no folder here, and the Hugging Face Hub does not give it ({_reason(error)}): check the path or id, "
            "the revision, the network, and for a private one your token"
        ) from error
    for name in FILES:
        if not (found / name).exists():
            raise McdiError(f"{model} on the Hugging Face Hub has no {name}: mcdi did not save it, and reads no other format")
    return found


def push(
    folder: Path,
    repo: str,
    *,
    card: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Upload a generator of mcdi",
) -> str:
    """Put the generator in `folder` on the Hub under "user/name", in one commit with its card; returns the commit's address.

    The card is the folder's own README.md where it has one. Raises McdiError where that does not succeed.
    """
    if not is_id(repo):
        raise McdiError(f"{repo!r} is no name on the Hugging Face Hub: give user/name")
    for name in FILES:
        if not (folder / name).exists():
            raise McdiError(f"{folder / name} does not exist: give the folder of a trained generator")
    try:
        from huggingface_hub import ModelHubMixin
    except ImportError as error:
        raise McdiError(f"the Hugging Face Hub needs the huggingface_hub package: {INSTALL}") from error

    class Saved(ModelHubMixin):
        """Here, not as a base of Generator, so that those who never go to the Hub need no client of it."""

        def _save_pretrained(self, save_directory: Path) -> None:
            (save_directory / CARD).write_text(card)  # its own ModelCard would lose the comments in the head
            for name in (*FILES, CARD):
                if (folder / name).exists():
                    shutil.copyfile(folder / name, save_directory / name)

    try:
        url = Saved().push_to_hub(repo, commit_message=message, private=private, token=token, branch=revision)
    except Exception as error:
        raise McdiError(
            f"{repo} cannot be written on the Hugging Face Hub ({_reason(error)}): check the name, the network, and your token "
            "(hf auth login)"
        ) from error
    return str(url)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
