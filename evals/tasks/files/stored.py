"""Token ids of many examples in a temporary file, so that a large training set is never whole in memory."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np

from ..prompts import Encoded


class StoredExamples(Sequence[Encoded]):
    """Examples whose ids and labels lie in an unnamed temporary file, which goes with the object.

    A token takes eight bytes on disk, an example eight in memory.
    """

    def __init__(self, examples: Iterable[Encoded]) -> None:
        self._starts, total = array("q", [0]), 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the object
        for example in examples:
            # Ids, then labels: an example of n tokens has the 2n numbers from twice its start.
            both = np.array([example.input_ids, example.labels], dtype=np.int32)
            self._file.write(both.tobytes())
            total += len(example.input_ids)
            self._starts.append(total)
        self._file.flush()
        # An empty file cannot be mapped.
        self._tokens = np.memmap(self._file, dtype=np.int32, mode="r") if total else np.zeros(0, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> Encoded: ...

    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...

    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        """Return one example, or those of a slice."""
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        start, end = (self._starts[index % len(self) + more] for more in (0, 1))
        both = self._tokens[2 * start : 2 * end].reshape(2, end - start).tolist()
        return Encoded(both[0], both[1])

    def lengths(self) -> list[int]:
        """Return the tokens of each example."""
        return [end - start for start, end in zip(self._starts, self._starts[1:], strict=False)]
