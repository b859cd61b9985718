"""The registries of compression methods and rank policies; importing them, and listing, imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..foundation.registry import Registry

if TYPE_CHECKING:
    from .base import Compressor
    from .ranks.policies.base import Policy

methods: Registry[Compressor] = Registry(
    "method", "lowrank_bench.methods.library", Path(__file__).parent / "library", "lowrank_bench.methods"
)

policies: Registry[Policy] = Registry(
    "policy",
    "lowrank_bench.methods.ranks.policies",
    Path(__file__).parent / "ranks" / "policies",
    "lowrank_bench.policies",
)
