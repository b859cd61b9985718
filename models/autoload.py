"""Makes transformers load factorised folders after ``import lowrank_bench``, without importing transformers.

Whichever of the two is imported first: the quantizer is registered as soon as transformers' table of quantizers exists.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_TABLE = "transformers.quantizers.auto"


class _Registering(Loader):
    """Runs a module as its own loader would, then registers the quantizer."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave it to the module's own loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, then register."""
        self._loader.exec_module(module)
        _register()


class _Finder(MetaPathFinder):
    """Finds one module, as usual, and wraps its loader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the wrapped spec of transformers' table of quantizers, None for all else."""
        if fullname != _TABLE:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader)
        return spec


def _register() -> None:
    # Where importing that module is what brought transformers in, it stands half made here and registers at its end.
    importlib.import_module(".checkpoint", __package__)


def install() -> None:
    """Register now if transformers is there, else when it comes; calling it again changes nothing."""
    if _TABLE in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
