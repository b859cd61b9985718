"""What `bench compress` writes beside the weights of a compressed model: ``compression.json``, as a typed record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ..foundation.errors import UserError
from ..foundation.files import read_json, write_json

FILE = "compression.json"


class NotedProvenance(BaseModel):
    """Versions of the libraries by name, and the commit of the package (None outside a checkout)."""

    model_config = ConfigDict(frozen=True, extra="allow")

    versions: dict[str, str]
    git_commit: str | None = None


class CompressionNote(BaseModel):
    """How a folder with a compressed model was made; fields beside these are for people and stay as they are.

    Attributes:
        model, model_sha256: name and identity of the model that was compressed.
        method_name, method, label: the method, its options, and both as the user wrote them.
        task: where the method took its data from; empty where it needs none.
        ratio_target, ratio: original / compressed parameters of the whole model, as asked for and as reached.
        ratio_matrices: the same over the compressible matrices alone.
        seed: of data and draws.
        parameters_before, parameters: of the whole model, tied tensors once.
        steps: optimizer steps that the method trained with.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    model: str
    model_sha256: str
    method_name: str
    method: dict[str, Any]
    label: str
    task: str
    ratio_target: float
    ratio: float
    ratio_matrices: float
    seed: int
    parameters_before: int
    parameters: int
    steps: int
    provenance: NotedProvenance

    def write(self, folder: Path) -> None:
        """Write it beside the weights."""
        write_json(folder / FILE, self.model_dump(mode="json"))


def has_note(folder: Path) -> bool:
    """Whether a folder says how it was made."""
    return (folder / FILE).is_file()


def read_note(folder: Path) -> CompressionNote:
    """Return how a compressed model was made.

    Raises:
        UserError: the file cannot be read, or lacks what `bench compress` writes.
    """
    file = folder / FILE
    try:
        plain = read_json(file)
        if not isinstance(plain, Mapping):
            raise ValueError("it is no JSON object")
        return CompressionNote.model_validate(plain)
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, entry["loc"])) for entry in error.errors())
        reason = f"{file} has no valid {wrong}"
    except (OSError, ValueError, RecursionError) as error:
        reason = f"{file} cannot be read: {error}"
    raise UserError(f"{reason}; compress the model again with bench compress")
