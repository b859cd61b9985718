"""Makes transformers load factorised folders, and peft adapt them, after ``import lowrank_bench`` or ``import torch``.

torch calls `install` through the entry point group ``torch.backends`` at the end of its import, so programs that do not
know this package load such folders too. Neither library is imported by this, and any may be imported first: our part
is registered as soon as the table that it goes into exists.

Where scikit-learn is installed, as lm-eval has it, transformers imports it and scipy for a few metrics. Here they are
imported when one of these is called, so that processes of ours start sooner and smaller.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_METRICS = {
    "transformers.generation.candidate_generator": {"roc_curve": "sklearn.metrics"},
    "transformers.data.metrics": {
        "f1_score": "sklearn.metrics",
        "matthews_corrcoef": "sklearn.metrics",
        "pearsonr": "scipy.stats",
        "spearmanr": "scipy.stats",
    },
}
"""Modules that import scikit-learn if it is installed: the functions that they use, and where each comes from."""
_PARTS = {"transformers.quantizers.auto": ".checkpoint", "peft.tuners.lora": ".adapters"}
"""The module of ours that registers itself, by the module that must be there first."""

_unfinished: set[str] = set()
"""Modules with tables that were half made when `install` saw them."""


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


class _DeferringMetrics(Loader):
    """Runs a module as if scikit-learn were not installed, then gives it functions that import it when called."""

    def __init__(self, loader: Loader, functions: Mapping[str, str]) -> None:
        self._loader, self._functions = loader, functions

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave it to the module's own loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module; afterwards it has the same names as with the imports at its top."""
        utils: Any = importlib.import_module("transformers.utils")
        available = getattr(utils, "is_sklearn_available", None)
        if available is None or not available():
            self._loader.exec_module(module)
            return
        utils.is_sklearn_available = lambda: False
        try:
            self._loader.exec_module(module)
        finally:
            utils.is_sklearn_available = available
        deferred = {name: _deferred(name, source) for name, source in self._functions.items()}
        vars(module).update(deferred, is_sklearn_available=available)


def _deferred(name: str, source: str) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        return getattr(importlib.import_module(source), name)(*args, **options)

    return call


class _Finder(MetaPathFinder):
    """Finds the modules with the tables and those with metrics, as usual, and wraps their loaders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the wrapped spec of such a module, None for all else."""
        if _unfinished:
            _register_finished()
        if fullname not in _PARTS and fullname not in _METRICS:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            if fullname in _PARTS:
                spec.loader = _Registering(spec.loader, _PARTS[fullname])
            else:
                spec.loader = _DeferringMetrics(spec.loader, _METRICS[fullname])
        return spec


def _register(part: str) -> None:
    # Where importing our module is what brought the table in, it is half made here and registers at its end.
    importlib.import_module(part, __package__)


def _is_finished(table: str) -> bool:
    return not getattr(sys.modules[table].__spec__, "_initializing", False)


def _register_finished() -> None:
    """Register for the tables whose modules have been executed since `install` saw them half made."""
    for table in [table for table in _unfinished if _is_finished(table)]:
        _unfinished.discard(table)
        _register(_PARTS[table])


def install() -> None:
    """Register now what can be, the rest when its table comes; calling it again changes nothing.

    Where the import of a table's module is what imported torch, which calls this, the module is half made; our part is
    registered before the next module after it is imported.
    """
    _unfinished.update(table for table in _PARTS if table in sys.modules)
    _register_finished()
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
