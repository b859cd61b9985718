"""Makes transformers load factorised folders, and peft adapt them, after ``import lowrank_bench``.

Neither is imported by this, and any of the three may be imported first: our part is registered as soon as the table
that it goes into exists.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_PARTS = {"transformers.quantizers.auto": ".checkpoint", "peft.tuners.lora": ".adapters"}
"""The module of ours that registers itself, by the module that must be there first."""


class _Registering(Loader):
    """Runs a module as its own loader would, then registers our part."""

    def __init__(self, loader: Loader, part: str) -> None:
        self._loader, self._part = loader, part

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave it to the module's own loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, then register."""
        self._loader.exec_module(module)
        _register(self._part)


class _Finder(MetaPathFinder):
    """Finds the modules with the tables, as usual, and wraps their loaders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the wrapped spec of such a module, None for all else."""
        if fullname not in _PARTS:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader, _PARTS[fullname])
        return spec


def _register(part: str) -> None:
    # Where importing our module is what brought the table in, it is half made here and registers at its end.
    importlib.import_module(part, __package__)


def install() -> None:
    """Register now what can be, the rest when its table comes; calling it again changes nothing."""
    for table, part in _PARTS.items():
        if table in sys.modules:
            _register(part)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
