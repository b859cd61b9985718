"""What `fit` leaves for `compress`: nested factors of every matrix, in memory or on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..foundation.errors import UserError

_FILE = "factors.safetensors"


@dataclass(frozen=True)
class Factors:
    """A matrix as an ordered sum of rank-one parts: W = left @ right, the first r parts are its rank-r version.

    Attributes:
        left: (m, k), B at full rank.
        right: (k, n), A at full rank.
        spectrum: (k,) importance of the parts, descending, in the method's own metric: the squares are what the
            method's objective loses when parts are dropped.
        output_mean: (m,) mean of W x over the calibration inputs, for methods that add a bias; else None.
        hidden_mean: (k,) mean of ``right @ x`` over the same inputs; given with ``output_mean``.
    """

    left: Tensor
    right: Tensor
    spectrum: Tensor
    output_mean: Tensor | None = None
    hidden_mean: Tensor | None = None

    def truncate(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return A (rank, n) and B (m, rank)."""
        return self.right[:rank], self.left[:, :rank]

    def offset(self, rank: int) -> Tensor | None:
        """Return the bias (m,) with which the rank-r version has the mean output of W, or None."""
        if self.output_mean is None or self.hidden_mean is None:
            return None
        return self.output_mean - self.left[:, :rank] @ self.hidden_mean[:rank]


@dataclass
class Fitted:
    """Factors by matrix name, and plain data about how they were made.

    On disk the tensors are read one matrix at a time. Stored size: k·(m + n + 1) float32 per matrix, k = min(m, n).
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None

    @classmethod
    def of(cls, factors: Mapping[str, Factors], meta: Mapping[str, Any]) -> Fitted:
        """Collect factors computed in memory."""
        tensors = {}
        for name, part in factors.items():
            for key, value in vars(part).items():
                if value is not None:
                    tensors[f"{name}.{key}"] = value.contiguous()
        return cls(tensors, dict(meta))

    def _read(self, key: str) -> Tensor:
        if self.file is None:
            return self.tensors[key]
        with safe_open(self.file, framework="pt") as tensors:
            value: Tensor = tensors.get_tensor(key)
            return value

    def factors(self, name: str) -> Factors:
        """Return the factors of one matrix."""
        keys = [
            "left",
            "right",
            "spectrum",
            *(("output_mean", "hidden_mean") if self.has(f"{name}.output_mean") else ()),
        ]
        return Factors(*(self._read(f"{name}.{key}") for key in keys))

    def has(self, key: str) -> bool:
        """Whether there is a tensor of that name."""
        if self.file is None:
            return key in self.tensors
        with safe_open(self.file, framework="pt") as tensors:
            return key in tensors.keys()  # noqa: SIM118 - not a mapping

    def evidence(self, prefix: str) -> dict[str, Tensor]:
        """Return what a rank policy measured while fitting, by name without its prefix."""
        if self.file is None:
            found = [key for key in self.tensors if key.startswith(prefix)]
        else:
            with safe_open(self.file, framework="pt") as tensors:
                found = [key for key in tensors.keys() if key.startswith(prefix)]  # noqa: SIM118
        return {key.removeprefix(prefix): self._read(key) for key in found}

    def spectrum(self, name: str) -> Tensor:
        """Return the spectrum of one matrix, shape (k,)."""
        return self._read(f"{name}.spectrum")

    def save(self, folder: Path) -> None:
        """Write tensors and meta data into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(self.tensors), folder / _FILE)
        (folder / "fit.json").write_text(json.dumps(self.meta, sort_keys=True, indent=2))

    @classmethod
    def load(cls, folder: Path) -> Fitted:
        """Open a saved fit; tensors are read when asked for.

        Raises:
            UserError: the folder is damaged.
        """
        try:
            with safe_open(folder / _FILE, framework="pt"):
                return cls(meta=json.loads((folder / "fit.json").read_text()), file=folder / _FILE)
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise UserError(f"the fit in {folder} is damaged ({error}); delete that folder and run again") from error
