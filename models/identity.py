"""The identity of a model's folder: a hash of the files that decide what the model says, and of no others."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from ..foundation.files import digest, sha256_file
from .headers import INDEX, weight_files

_CONFIGURATION = (INDEX, "config.json", "generation_config.json")
_TOKENIZER = (
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "chat_template*.json", "chat_template*.jinja"),
    *("*.model", "*.spm", "*.tiktoken", "*.tokenizer", "*vocab*.json", "vocab*.txt", "merges.txt", "encoder.json"),
    *("vocab*.bpe", "bpe.codes", "dict.txt", "byte_maps.json", "emoji.json", "normalizer.json", "word_*.json"),
)
"""What transformers' tokenizers read (``VOCAB_FILES_NAMES``), and the older names of such files."""
_TEMPLATES = "additional_chat_templates"

_PUBLISHED = {
    # the preset tiny
    "997e2d75f73b015093d9591db22d1124e69c87d35c49ff68b9b61cdb2b179240": (
        "5080d696e14085ce9a14e9b9353caa0f4f832a653fb1446a8fa7005162e69c73"
    ),
}
"""Identities of models that results were published under when a hash covered every file of the folder."""


def identity_files(folder: Path) -> list[Path]:
    """Return the files that decide what a model says, sorted.

    They are the weights (those that the index names, where there is one), the index, ``config.json``, which also
    records what is factorised, ``generation_config.json``, and the tokenizer's files with its chat templates.
    Documentation, code, hidden files, caches and records of how the model was made (``compression.json``) are left out.

    Raises:
        UserError: an index that cannot be followed.
    """
    return sorted({*weight_files(folder), *_beside_weights(folder)})


def _beside_weights(folder: Path) -> Iterator[Path]:
    for file in folder.iterdir():
        is_identity = file.name in _CONFIGURATION or any(fnmatch(file.name, pattern) for pattern in _TOKENIZER)
        if is_identity and file.is_file():
            yield file
    yield from (folder / _TEMPLATES).glob("*.jinja")


def model_sha256(folder: Path) -> str:
    """Return one sha256 (hex) over the names and contents of a model's `identity_files`.

    Raises:
        UserError: an index that cannot be followed.
    """
    sha256 = digest([[file.relative_to(folder).as_posix(), sha256_file(file)] for file in identity_files(folder)])
    return _PUBLISHED.get(sha256, sha256)
