"""The registries of compression methods, rank policies and recoveries; importing them, and listing, imports no torch.

They hold classes of `methods.base.Compressor`, `methods.ranks.policies.base.Policy` and
`methods.recoveries.base.Recovery`, which register themselves here, so that their types cannot be named here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..foundation.registry import Registry

methods: Registry[Any] = Registry(
    "method", "lowrank_bench.methods.library", Path(__file__).parent / "library", "lowrank_bench.methods"
)

policies: Registry[Any] = Registry(
    "policy",
    "lowrank_bench.methods.ranks.policies",
    Path(__file__).parent / "ranks" / "policies",
    "lowrank_bench.policies",
)

recoveries: Registry[Any] = Registry(
    "recovery",
    "lowrank_bench.methods.recoveries",
    Path(__file__).parent / "recoveries",
    "lowrank_bench.recoveries",
)
