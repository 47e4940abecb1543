"""Download and upload of generators on the Hugging Face Hub: safetensors, JSON and a card, no files that run code."""

import re
import shutil
from pathlib import Path

from mcdi.errors import McdiError, explained, optional
from mcdi.generator.saving import FILES

CARD = "README.md"


def is_id(model: str | Path) -> bool:
    """Whether this can be "user/name" on the Hub."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(model)) is not None


def located(
    model: str | Path, *, revision: str | None = None, token: str | bool | None = None, cache_dir: str | Path | None = None
) -> Path:
    """The folder of a generator: `model` itself if it exists, otherwise a download from the Hub or its local cache.

    Only FILES and the card are fetched, never pickles. Raises McdiError if neither exists.
    """
    folder = Path(model)
    if folder.exists() or not is_id(model):
        return folder
    problem = f"{model} is not a local folder, and the Hugging Face Hub"
    hub, files = optional("huggingface_hub", "hub", problem), [*FILES, CARD]
    cure = "check the path or id, the revision, the network, and your token if the model is private"
    with explained(f"{problem} does not provide it", cure):  # the network, the Hub and its client raise many kinds
        options = {"revision": revision, "token": token, "cache_dir": cache_dir}
        snapshot = hub.snapshot_download(str(model), allow_patterns=files, **options)
    for name in FILES:
        if not (Path(snapshot) / name).exists():
            raise McdiError(f"{model} on the Hugging Face Hub has no {name}: choose a repository that mcdi push made")
    return Path(snapshot)


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
    """Upload a saved generator to the repository "user/name" of the Hub, in one commit, and return the URL of the commit. card:
    the README.md, unless `folder` has its own. Raises McdiError for a wrong name, a folder without a generator, or a failed
    upload."""
    if not is_id(repo):
        raise McdiError(f"{repo!r} is not a repository name of the Hugging Face Hub: give user/name")
    for name in FILES:
        if not (folder / name).exists():
            raise McdiError(f"{folder / name} does not exist: give the folder of a trained generator")

    class Saved(optional("huggingface_hub", "hub", "the Hugging Face Hub").ModelHubMixin):  # type: ignore[misc]
        """Defined here, not as a base of Generator, so that huggingface_hub stays optional."""

        def _save_pretrained(self, save_directory: Path) -> None:
            (save_directory / CARD).write_text(card)  # huggingface_hub's ModelCard drops comments in the metadata
            for name in (*FILES, CARD):
                if (folder / name).exists():
                    shutil.copyfile(folder / name, save_directory / name)

    cure = "check the name, the network, and your token (hf auth login)"
    with explained(f"the upload to {repo} on the Hugging Face Hub failed", cure):
        return str(Saved().push_to_hub(repo, commit_message=message, private=private, token=token, branch=revision))
