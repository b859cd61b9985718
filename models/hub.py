"""Models and datasets from the hub: what of it can be reached, what is on this machine, and one door for downloads.

Downloads go into the hub client's own cache, a folder per commit. What is complete there is read without a request, so
that loaders get a folder in every case, and what the hub refuses is said in one sentence before any of them starts.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ..foundation.errors import UserError
from .headers import INDEX, SINGLE

HUB_SECONDS = 10
"""So long an answer of the hub is waited for."""

_SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.spm", "*.bpe", "*.codes", "*.tokenizer")
"""Configuration, tokenizer, and the index of the weights."""
_PICKLED_INDEX, _PICKLED = "pytorch_model.bin.index.json", "pytorch_model.bin"


def is_offline() -> bool:
    """Whether the environment says that the hub is not to be asked."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) or os.environ.get("TRANSFORMERS_OFFLINE") == "1"


def hub_answers() -> bool:
    """Whether the hub answers at all; one request, where the hub's client would try each file for a minute."""
    from huggingface_hub import constants

    if is_offline():
        return False
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=HUB_SECONDS).close()
    # A refusal is an answer too.
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def is_cached(location: str, revision: str, *files: str) -> bool:
    """Whether one of these files of a hub model is on this machine."""
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(location, file, revision=revision), str) for file in files)


def fetch_model(location: str | Path, revision: str = "", weights: bool = False) -> Path:
    """Return the folder of a model; of a hub model the folder of its commit, downloaded if missing.

    Args:
        location: folder, which is returned as it is, or hub id.
        revision: hub commit, or empty for a folder.
        weights: whether the weights must be there too; otherwise configuration, tokenizer and index are enough.

    Raises:
        UserError: the hub does not give it; says why and what to do.
    """
    if Path(location).is_dir():
        return Path(location)
    try:
        return _fetch_model(str(location), revision, weights)
    except Exception as error:  # the hub's client raises many unrelated types
        problem, remedy = explain(error, str(location), "model")
        shown = f"'{location}' at {revision[:12]}" if revision else f"'{location}'"
        raise UserError(
            f"cannot load the model {shown} from the hub ({problem}); {remedy}, or name a local folder"
        ) from error


def _fetch_model(location: str, revision: str, weights: bool) -> Path:
    folder = fetch_snapshot(location, revision, "model", _SMALL_FILES)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError("it holds no config.json")
    if not weights:
        return folder
    for names in (_indexed(folder / INDEX), [SINGLE], _indexed(folder / _PICKLED_INDEX), [_PICKLED]):
        if names:
            fetch_snapshot(location, revision, "model", (*_SMALL_FILES, *names))
            if all((folder / name).is_file() for name in names):
                return folder
    raise FileNotFoundError(f"it lacks {SINGLE}, or files that {INDEX} names")


@cache
def fetch_snapshot(repository: str, revision: str, kind: str, patterns: tuple[str, ...] | None) -> Path:
    """Return the folder of a commit with all files that match; raises whatever the hub's client raises.

    Args:
        repository: ``owner/name``.
        revision: commit, or empty for the newest one.
        kind: ``model`` or ``dataset``.
        patterns: of file names; None for all files.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import tqdm

    class TerminalBar(tqdm):
        """A bar that is shown on terminals alone."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            # For tqdm, None is: no bar unless the output is a terminal.
            super().__init__(*arguments, **(options | {"disable": options.get("disable") or None}))

    return Path(
        snapshot_download(
            repository,
            repo_type=kind,
            revision=revision or None,
            allow_patterns=None if patterns is None else list(patterns),
            local_files_only=is_offline(),
            tqdm_class=TerminalBar,
        )
    )


def _indexed(index: Path) -> list[str]:
    """Return the names of the files that an index of weights names; none where there is no index."""
    if not index.is_file():
        return []
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"its {index.name} cannot be read: {error}") from error


def explain(error: BaseException, repository: str, kind: str) -> tuple[str, str]:
    """Return what went wrong with a download, and what to do, both as parts of a sentence.

    Args:
        error: what the hub's client, or `datasets` with it, raised.
        repository: ``owner/name``.
        kind: ``model`` or ``dataset``.
    """
    from huggingface_hub import constants, errors, get_token

    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repository}"
    chain = list(_chain(error))
    token = get_token()
    for part in chain:
        if isinstance(part, errors.GatedRepoError):
            sent = "the token that was sent does not open it" if token else "no token was sent"
            return (
                f"it is gated, and {sent}",
                f"ask for access at {page} and log in with 'hf auth login', or set HF_TOKEN",
            )
        if isinstance(part, errors.RepositoryNotFoundError):
            return (
                "there is no such repository, or it is private",
                "check the name, or log in with 'hf auth login' if it is private",
            )
        if isinstance(part, errors.RevisionNotFoundError):
            return "the repository has no such commit", f"name one of those at {page}/commits/main"
        if isinstance(part, errors.HfHubHTTPError):
            return _explain_status(part.response.status_code)
    if is_offline() or any(isinstance(part, errors.OfflineModeIsEnabled) for part in chain):
        return (
            "it is not completely on this machine, and HF_HUB_OFFLINE forbids asking the hub",
            "unset HF_HUB_OFFLINE to download it",
        )
    reason = _first_line(chain[-1], token)
    if any(isinstance(part, errors.HFValidationError) for part in chain):
        return "it is no folder, and hub ids are OWNER/NAME", "check the name"
    if any(
        type(part).__name__ in ("ConnectError", "ConnectTimeout", "ProxyError", "ProxyConnectionError")
        for part in chain
    ):
        return f"{constants.ENDPOINT} cannot be reached: {reason}", "check the connection and HF_ENDPOINT"
    if any(type(part).__module__.startswith("httpx") for part in chain):
        return (
            f"the connection broke off: {reason}",
            "run the same command again, which keeps the files that are complete",
        )
    if any(isinstance(part, OSError) and part.errno and part.filename for part in chain):
        return reason, f"make room in {constants.HF_HUB_CACHE}, or set HF_HOME to another folder"
    return reason, "check its files"


def _explain_status(status: int) -> tuple[str, str]:
    if status == 429:
        return (
            "the hub refuses further requests for a while, HTTP 429",
            "run the same command again in some minutes, logged in with 'hf auth login' for a higher limit",
        )
    if status >= 500:
        return f"the hub answers HTTP {status}", "run the same command again later"
    return f"the hub answers HTTP {status}", "check your access and your token"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that led to it, the first one last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException, token: str | None) -> str:
    """Return the first line of what an error says, without the token."""
    text = " ".join((str(error).strip() or type(error).__name__).splitlines()[0].split())[:200]
    return text.replace(token, "HF_TOKEN") if token else text
