"""What `fit` leaves for `compress`: nested factors of every matrix, in memory or on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..foundation.errors import UserError
from ..foundation.files import read_json

BUFFER_BYTES = 256 << 20
"""Factors that wait in memory until a file is worth it."""

_POLICY = "policy."


@dataclass(frozen=True)
class Factors:
    """A matrix as an ordered sum of rank-one parts: W = left @ right, the first r parts are its rank-r version.

    Attributes:
        left: (m, k), B at full rank; (m, r) where a fit keeps no more than r parts.
        right: (k, n), A at full rank; (r, n).
        spectrum: (k,) importance of the parts, descending, in the method's own metric: the squares are what the
            method's objective loses when parts are dropped.
        output_mean: (m,) mean of W x over the calibration inputs, for methods that add a bias; else None.
        hidden_mean: (k,) or (r,), mean of ``right @ x`` over the same inputs; given with ``output_mean``.
        jitter: what second moments got on their diagonal before they were factorised, in shares of its mean, inputs
            first (`whitening.root`); empty for methods that factorise none, and where factors are read from disk.
    """

    left: Tensor
    right: Tensor
    spectrum: Tensor
    output_mean: Tensor | None = None
    hidden_mean: Tensor | None = None
    jitter: tuple[float, ...] = ()

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are there, by attribute."""
        return {key: value for key, value in vars(self).items() if isinstance(value, Tensor)}

    def first(self, rank: int) -> Factors:
        """Return the first parts alone, copied; the spectrum stays whole."""
        hidden = None if self.hidden_mean is None else self.hidden_mean[:rank].clone()
        return replace(self, left=self.left[:, :rank].clone(), right=self.right[:rank].clone(), hidden_mean=hidden)

    def truncate(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return A (rank, n) and B (m, rank).

        Raises:
            UserError: the fit keeps fewer parts.
        """
        if rank > len(self.right) < len(self.spectrum):
            raise UserError(
                f"the fit keeps {len(self.right)} of {len(self.spectrum)} parts of a matrix and rank {rank} is asked "
                "for; run the same command again, which makes the fit for its own ratios"
            )
        return self.right[:rank], self.left[:, :rank]

    def offset(self, rank: int) -> Tensor | None:
        """Return the bias (m,) with which the rank-r version has the mean output of W, or None."""
        if self.output_mean is None or self.hidden_mean is None:
            return None
        return self.output_mean - self.left[:, :rank] @ self.hidden_mean[:rank]


class Fitted:
    """Factors by matrix name, and plain data about how they were made.

    Stored size: r·(m + n) + k float32 per matrix, r the parts that are kept, all k = min(m, n) or fewer
    (`Compressor.kept_ranks`). With a folder, factors go to disk as they come and are read one matrix at a time, so that
    no more than `BUFFER_BYTES` and one matrix's factors are ever in memory.

    Args:
        meta: plain data.
        folder: where factors go; None keeps them in memory until `save`.
    """

    def __init__(self, meta: Mapping[str, Any] | None = None, folder: Path | None = None) -> None:
        self.meta: dict[str, Any] = dict(meta or {})
        self.folder = folder
        self._memory: dict[str, Tensor] = {}
        self._files: dict[str, Path] = {}

    def add(self, name: str, factors: Factors) -> None:
        """Take the factors of one matrix or group; what `Factors.jitter` says goes into ``meta["added_jitter"]``."""
        self._put({f"{name}.{key}": value for key, value in factors.tensors().items()})
        if any(factors.jitter):
            self.meta.setdefault("added_jitter", {})[name] = list(factors.jitter)

    def measured(self, evidence: Mapping[str, Tensor]) -> None:
        """Take what a rank policy measured."""
        self._put({f"{_POLICY}{key}": value for key, value in evidence.items()})

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        self._memory |= {key: value.contiguous().cpu() for key, value in tensors.items()}
        if self.folder is not None and sum(t.numel() * t.element_size() for t in self._memory.values()) > BUFFER_BYTES:
            self._flush(self.folder)

    def _flush(self, folder: Path) -> None:
        if not self._memory:
            return
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"factors-{len(set(self._files.values())):05}.safetensors"
        save_file(self._memory, file)
        self._files |= dict.fromkeys(self._memory, file)
        self._memory = {}

    def _tensor(self, key: str) -> Tensor:
        if key in self._memory:
            return self._memory[key]
        with safe_open(self._files[key], framework="pt") as tensors:
            value: Tensor = tensors.get_tensor(key)
            return value

    def factors(self, name: str) -> Factors:
        """Return the factors of one matrix."""
        left, right, spectrum = (self._tensor(f"{name}.{key}") for key in ("left", "right", "spectrum"))
        if not self.has(f"{name}.output_mean"):
            return Factors(left, right, spectrum)
        return Factors(left, right, spectrum, self._tensor(f"{name}.output_mean"), self._tensor(f"{name}.hidden_mean"))

    def parts(self, name: str) -> int:
        """Return how many parts of one matrix's factors are kept."""
        key = f"{name}.right"
        if key in self._memory:
            return len(self._memory[key])
        with safe_open(self._files[key], framework="pt") as tensors:
            return int(tensors.get_slice(key).get_shape()[0])

    def has(self, key: str) -> bool:
        """Whether there is a tensor of that name."""
        return key in self._memory or key in self._files

    def evidence(self) -> dict[str, Tensor]:
        """Return what a rank policy measured while fitting, by name."""
        keys = sorted(key for key in {*self._memory, *self._files} if key.startswith(_POLICY))
        return {key.removeprefix(_POLICY): self._tensor(key) for key in keys}

    def spectrum(self, name: str) -> Tensor:
        """Return the spectrum of one matrix, shape (k,)."""
        return self._tensor(f"{name}.spectrum")

    def save(self, folder: Path) -> None:
        """Write what is not there yet, and the meta data, into a folder; it must be its own, where it has one."""
        if self.folder is not None and self.folder != folder:
            raise ValueError(f"this fit lies in {self.folder} and cannot be saved in {folder}")
        self._flush(folder)
        (folder / "fit.json").write_text(json.dumps(self.meta, sort_keys=True, indent=2))

    @classmethod
    def load(cls, folder: Path) -> Fitted:
        """Open a saved fit; tensors are read when asked for.

        Raises:
            UserError: the folder is damaged.
        """
        try:
            fitted = cls(read_json(folder / "fit.json"), folder)
            for file in sorted(folder.glob("factors*.safetensors")):
                with safe_open(file, framework="pt") as tensors:
                    fitted._files |= dict.fromkeys(tensors.keys(), file)
        except (OSError, SafetensorError, ValueError) as error:
            raise UserError(f"the fit in {folder} is damaged ({error}); delete that folder and run again") from error
        return fitted
