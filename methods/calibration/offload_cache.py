"""An offload cache: tensors are kept in memory while they are few, and on disk beyond that."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Hashable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

LIMIT_BYTES = 1 << 30
"""Most memory for tensors that wait between the blocks of a model."""


class OffloadCache:
    """Tensors by key; beyond a limit they go to files that are plain bytes, so that reading one maps no memory.

    Args:
        folder: where files go, in a folder of their own; None is the system's temporary folder.
        limit_bytes: most that is kept in memory.
    """

    def __init__(self, folder: Path | None = None, limit_bytes: int = LIMIT_BYTES) -> None:
        self.parent, self.limit_bytes, self.memory_bytes = folder, limit_bytes, 0
        self._folder: Path | None = None
        self._memory: dict[Hashable, Tensor] = {}
        self._disk: dict[Hashable, tuple[Path, torch.Size, torch.dtype]] = {}
        self._files = 0

    def __enter__(self) -> OffloadCache:
        """Start empty."""
        return self

    def __exit__(self, *_: object) -> None:
        """Forget everything and remove the files."""
        self._memory.clear()
        self._disk.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Keep a tensor, in place of what had its key; on the CPU, whatever its device."""
        self.drop(key)
        # Of a tensor on the CPU this is no copy: its values must not change while it waits.
        value = tensor.detach().cpu()
        size = value.numel() * value.element_size()
        if self.memory_bytes + size <= self.limit_bytes:
            self._memory[key] = value
            self.memory_bytes += size
            return
        if self._folder is None:
            if self.parent is not None:
                self.parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=".waiting-", dir=self.parent))
        file = self._folder / str(self._files)
        self._files += 1
        value.contiguous().flatten().view(torch.uint8).numpy().tofile(file)
        self._disk[key] = file, value.shape, value.dtype

    def get(self, key: Hashable) -> Tensor:
        """Return a tensor; it stays."""
        if key in self._memory:
            return self._memory[key]
        file, shape, dtype = self._disk[key]
        return torch.from_numpy(np.fromfile(file, np.uint8)).view(dtype).reshape(shape)

    def has(self, key: Hashable) -> bool:
        """Whether there is a tensor of that key."""
        return key in self._memory or key in self._disk

    def take(self, key: Hashable) -> Tensor:
        """Return a tensor and forget it."""
        value = self.get(key)
        self.drop(key)
        return value

    def drop(self, key: Hashable) -> None:
        """Forget a tensor, if it is there."""
        value = self._memory.pop(key, None)
        if value is not None:
            self.memory_bytes -= value.numel() * value.element_size()
        if key in self._disk:
            self._disk.pop(key)[0].unlink()
