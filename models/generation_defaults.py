"""The generation settings that a model's authors ship (``generation_config.json``), checked before weights are read.

transformers loads settings that it later refuses to save (Llama-2's own: ``temperature`` without ``do_sample``), so a
compressed checkpoint could not be written after all the work. Those settings are dropped right at loading.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..foundation.errors import UserError
from .hub import fetch_model

GENERATION_FILE = "generation_config.json"

_ID = "a token id"
_IDS = "a token id or a list of them"
_LIST = "a list of token ids"
_TOKEN_FIELDS = {
    **dict.fromkeys(("bos_token_id", "pad_token_id"), _ID),
    **dict.fromkeys(("eos_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"), _IDS),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), _LIST),
}
_ISSUE = re.compile(r"^- `(\w+)`:", re.MULTILINE)
"""How ``GenerationConfig.validate(strict=True)`` names each setting that contradicts the others."""


def check_token_ids(settings: Mapping[str, Any], file: str) -> None:
    """Check that token ids are integers, or lists of integers where several are allowed.

    Args:
        settings: the plain data of ``generation_config.json``.
        file: named in the error.

    Raises:
        UserError: names the field.
    """
    for field, allowed in _TOKEN_FIELDS.items():
        value = settings.get(field)
        # `type is int`, not `isinstance`: true and false are ints in Python and no token ids.
        single = type(value) is int and allowed != _LIST
        several = isinstance(value, list) and allowed != _ID and all(type(part) is int for part in value)
        if value is not None and not single and not several:
            raise UserError(
                f"the {field} of {file} is {ascii(value)[:80]}, not {allowed} (integers); correct or remove it"
            )


def read_generation_defaults(location: str | Path, revision: str = "") -> tuple[Any, str]:
    """Read a model's ``GenerationConfig`` as transformers does, without what it would refuse to save.

    Args:
        location: folder or hub id; where it has no ``generation_config.json``, ``config.json`` is read.
        revision: hub commit, or empty for a folder.

    Returns:
        The ``GenerationConfig``, and a sentence that says which settings were dropped, empty where none was.

    Raises:
        UserError: settings that transformers refuses, and names, or a file that it cannot read.
    """
    from transformers import GenerationConfig

    folder = fetch_model(location, revision)
    file = GENERATION_FILE if (folder / GENERATION_FILE).is_file() else "config.json"
    try:
        options = {} if file == GENERATION_FILE else {"_from_model_config": True}
        settings = GenerationConfig.from_pretrained(str(folder), config_file_name=file, **options)
        dropped = _drop_conflicts(settings)
    except Exception as error:  # values of wrong types end in errors of many kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"the generation settings of '{location}' cannot be used ({' '.join(lines[0].split())[:200]}); correct the "
            f"field in {file}, or remove it"
        ) from error
    if not dropped:
        return settings, ""
    named = ", ".join(f"{name}={value}" for name, value in dropped.items())
    return settings, f"generation settings that have no effect beside the others are left out: {named}"


def _drop_conflicts(settings: Any) -> dict[str, Any]:
    """Unset what strict validation names; returns the values that were set, by name."""
    # Again and again: validation names one group of contradictions at a time.
    dropped: dict[str, Any] = {}
    while True:
        try:
            settings.validate(strict=True)
            return dropped
        except ValueError as error:
            names = [name for name in _ISSUE.findall(str(error)) if name not in dropped]
            if not names:
                raise
            for name in names:
                dropped[name] = getattr(settings, name)
                setattr(settings, name, None)
