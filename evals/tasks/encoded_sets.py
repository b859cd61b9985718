"""Training sets that this process has encoded: the stages of a sweep read the same ones with equal tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from ...foundation.files import digest
from .prompts import Encoded

MOST_TOKENS = 2_000_000
"""More are not remembered: ids and labels of so many take 32 MB, for which a later stage may have other use."""


class DataCard(BaseModel):
    """What was in the training data of a task file.

    Attributes:
        rows, used, held_out, empty, duplicates, converted, characters: see `files.training.Counts`.
        dropped_too_long, cut_to_length: examples beyond the limit in tokens, left out or shortened.
        tokens: of an example, by ``min``, ``50%`` and other quantiles, and their ``sum``.
        sha256, form: of the data, and how its rows are read.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    rows: int
    used: int
    held_out: int = 0
    empty: int = 0
    duplicates: int = 0
    converted: int = 0
    characters: int = 0
    dropped_too_long: int = 0
    cut_to_length: int = 0
    tokens: Mapping[str, int | float] = {}
    sha256: str = ""
    form: str = ""


@dataclass(frozen=True)
class EncodedSet:
    """Token ids and labels of the examples that fit.

    Attributes:
        items: the examples.
        dropped: how many did not fit.
        card: what was in the data, where a task file names them.
    """

    items: Sequence[Encoded]
    dropped: int
    card: DataCard | None = None

    @property
    def count(self) -> int:
        """How many examples there were."""
        return len(self.items) + self.dropped


_remembered: dict[Hashable, EncodedSet] = {}


def tokenizer_identity(tokenizer: Any) -> str | None:
    """Return a hash of all that decides about token ids; None for a tokenizer that is not of the Rust library."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    name = f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"
    template = str(getattr(tokenizer, "chat_template", None))
    return digest([name, backend.to_str(), tokenizer.bos_token_id, tokenizer.eos_token_id, template])


def encoded_once(key: Hashable, encode: Callable[[], EncodedSet]) -> EncodedSet:
    """Return what an earlier call with this key returned, else what ``encode`` returns, which later calls get.

    Args:
        key: all that the result depends on.
        encode: returns the examples, which nobody changes.
    """
    # Taken out and put back at the end, so that the order is that of last use.
    encoded = _remembered.pop(key) if key in _remembered else encode()
    _remembered[key] = encoded
    tokens = 0
    for recent in reversed(list(_remembered)):
        tokens += sum(len(item.input_ids) for item in _remembered[recent].items)
        if tokens > MOST_TOKENS:
            del _remembered[recent]
    return encoded
