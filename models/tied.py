"""Whether files and ``config.json`` agree on which tensors there are: on a tied output head above all.

Loaders differ where they do not: transformers takes a stored head that differs from the embedding, vLLM does not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from ..foundation.errors import UserError
from .headers import Header

if TYPE_CHECKING:
    from .claims import Claims
    from .layout import Layout

_ROWS = 16384
"""Rows of two tensors that are compared at once."""


def check_stored(model: Any, headers: Mapping[str, Header], claims: Claims, layout: Layout | None, folder: str) -> None:
    """Check that every parameter is stored, and that tensors which are tied are stored once or with equal values.

    Args:
        model: the dense model on the meta device.
        headers: of the stored tensors, by name.
        claims: their names in the model.
        layout: what is factorised, or None.
        folder: named in the error.

    Raises:
        UserError: names the tensor and the field of config.json.
    """
    stored = {name: key for key, name in claims.names.items()}
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    for name, source in tied.items():
        if name == source or name not in stored or source not in stored:
            continue
        if stored[name] != stored[source] and not _equal(headers, stored[name], stored[source]):
            raise UserError(
                f"the config.json of {folder} ties {source} and {name} to one tensor and the files hold two that "
                f"differ, {stored[source]} and {stored[name]}: loaders differ in what they read; set "
                "tie_word_embeddings to false there if the head is the model's own, or remove it from the files"
            )
    factorised = {*(layout.ranks if layout else ()), *(layout.embeddings.values() if layout else ())}
    ignored = [re.compile(text) for text in getattr(model, "_keys_to_ignore_on_load_missing", None) or ()]
    together = {name: {name, source} for name, source in tied.items()} | {s: {n, s} for n, s in tied.items()}
    for name, _ in model.named_parameters():
        if name.rpartition(".")[0] in factorised or any(pattern.search(name) for pattern in ignored):
            continue
        if not together.get(name, {name}) & stored.keys():
            raise UserError(_missing(model, name, folder))


def _missing(model: Any, name: str, folder: str) -> str:
    head = model.get_output_embeddings()
    if head is not None and model.get_parameter(name) is head.weight:
        return (
            f"the weights of '{folder}' hold no output head ({name}) and its config.json does not tie it to the "
            "embedding; set tie_word_embeddings to true there if the model is tied, or copy the checkpoint again"
        )
    return (
        f"the weights of '{folder}' do not belong to its config.json: the tensor {name} is missing; make or copy the "
        "checkpoint again"
    )


def _equal(headers: Mapping[str, Header], first: str, second: str) -> bool:
    """Whether two stored tensors have equal values."""
    a, b = headers[first], headers[second]
    if a.shape != b.shape:
        return False
    times = tuple(header.file.stat().st_mtime_ns for header in (a, b))
    return _equal_values(a.file, first, b.file, second, a.shape[0], times)


@lru_cache(maxsize=64)
def _equal_values(file_a: Path, a: str, file_b: Path, b: str, rows: int, times: tuple[int, ...]) -> bool:
    """Compare block by block; ``times`` are those of the files, so that a changed one is compared again."""
    with safe_open(file_a, framework="pt") as first, safe_open(file_b, framework="pt") as second:
        parts = first.get_slice(a), second.get_slice(b)
        return all(
            bool((parts[0][start : start + _ROWS] == parts[1][start : start + _ROWS]).all())
            for start in range(0, rows, _ROWS)
        )
