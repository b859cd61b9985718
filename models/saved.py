"""Checks of a checkpoint that was just written, so that nobody learns only later that it is not whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..foundation.errors import UserError
from .folder_checks import check_folder
from .matrices import model_size


def verify_saved(model: Any, folder: Path) -> None:
    """Check that a folder holds the configuration and all weights of the model that was written into it.

    Reads JSON and headers only; a file that is shorter than its header says counts as corrupt.

    Raises:
        UserError: one sentence that names the folder and what is missing.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"saving wrote no config.json into {folder}; nothing is kept, check the model's folder")
    stored = sum(header.parameters for header in check_folder(folder).values())
    unsaved = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    left_out = sum(parameter.numel() for name, parameter in model.named_parameters() if name in unsaved)
    needed = model_size(model).parameters - left_out
    if stored < needed:
        raise UserError(
            f"saving wrote {stored:,} of {needed:,} parameters into {folder}; nothing is kept, check the model's "
            "folder and the free space of the disk"
        )
