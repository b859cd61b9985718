"""Uploading a factorised checkpoint to a hub in one commit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...foundation.errors import UserError
from ...models.hub import explain, is_offline
from ...models.identity import identity_files
from .card import eval_results, find_base, model_card
from .origin import read_origin

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Publication:
    """What goes into a repository.

    Attributes:
        repository: ``OWNER/NAME``.
        files: weights, configuration and tokenizer, by the path in the repository. Nothing else of the folder is sent:
            ``compression.json`` and logs name this machine.
        texts: model card and evaluation results, by the path in the repository.
    """

    repository: str
    files: dict[str, Path]
    texts: dict[str, str]


def prepare(
    checkpoint: str,
    repository: str,
    base_model: str | None = None,
    licence: str | None = None,
    evaluations: Sequence[Path] = (),
    seed: int | None = None,
) -> Publication:
    """Return what would be uploaded; sends and writes nothing.

    Args:
        checkpoint: ``RUN:LABEL@RATIO``, or a folder that `bench compress` wrote.
        repository: ``OWNER/NAME``.
        base_model: hub id of the model that was compressed; None takes it from the preset.
        licence: the hub's identifier of its licence; None takes it from the preset.
        evaluations: folders of ``bench eval --out``.
        seed: which seed of a run, where there are several.

    Raises:
        UserError: what `read_origin` and `find_base` refuse, or a name that is no repository.
    """
    for kind, name in (("repository", repository), ("base model", base_model)):
        if name and not _is_repository(name):
            raise UserError(
                f"the {kind} '{name}' is no OWNER/NAME; write for example me/llama-3.2-1b-svd-2x, with letters, "
                "digits, '-', '_' and '.', without '--', '..' or '.git' at the end"
            )
    if not repository:
        raise UserError("the repository has no name; write OWNER/NAME")
    origin = read_origin(checkpoint, evaluations, seed)
    base = find_base(origin, base_model, licence)
    files = {file.relative_to(origin.folder).as_posix(): file for file in identity_files(origin.folder)}
    return Publication(repository, files, {"README.md": model_card(origin, base, repository), **eval_results(origin)})


def _is_repository(name: str) -> bool:
    """Whether the hub's client takes a name with an owner."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return _REPOSITORY.fullmatch(name) is not None


def push(publication: Publication, public: bool = False) -> tuple[str, str]:
    """Create the repository where it is missing, and upload everything in one commit.

    The token is the hub client's own (``HF_TOKEN`` or ``hf auth login``); it is neither read nor written here.

    Args:
        publication: of `prepare`.
        public: whether a new repository is public; one that exists stays as it is.

    Returns:
        The page of the repository, and the 40 digits of its newest commit. Unchanged files make no commit.

    Raises:
        UserError: the hub refuses or cannot be reached; says why and what to do.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    name = publication.repository
    if is_offline():
        raise UserError(f"cannot push to '{name}': HF_HUB_OFFLINE forbids asking the hub; unset HF_HUB_OFFLINE")
    operations = [CommitOperationAdd(path, str(file)) for path, file in publication.files.items()]
    operations += [CommitOperationAdd(path, text.encode()) for path, text in publication.texts.items()]
    api = HfApi()
    try:
        url = api.create_repo(name, private=not public, exist_ok=True)
        commit = api.create_commit(name, operations, commit_message="Factorised checkpoint by lowrank-bench")
    except Exception as error:  # the hub's client raises many unrelated types
        problem, remedy = explain(error, name, "model")
        raise UserError(f"cannot push to '{name}' ({problem}); {remedy}") from error
    return str(url), commit.oid
