"""Lazy registries of named parts: methods, policies, benchmarks, engines.

In-tree parts are found by file name: ``methods/library/joint_rank_k.py`` holds the method ``joint-rank-k``, and the
first line of its docstring is its summary. Listing reads file names and docstrings only, so it imports no torch. Third
parties publish an entry point in the registry's group. A part is imported when it is asked for, and then it has to
have registered itself under that very name with the right base class.
"""

import ast
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Generic, TypeVar

from .errors import UserError, unknown

T = TypeVar("T")
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Listing:
    """One name of a registry: where it comes from and one line about it, known without importing it.

    Attributes:
        facts: what the module says of itself in a literal ``FACTS = {"paper": "…", …}``; empty if it says nothing.
    """

    name: str
    summary: str
    origin: str
    facts: Mapping[str, str] = field(default_factory=dict)


class Registry(Generic[T]):
    """Classes of one kind by name.

    Args:
        kind: the word used in messages, such as ``method``.
        package: dotted name of the package whose modules are the built-in parts.
        folder: that package's folder.
        group: entry point group of third parties.
    """

    def __init__(self, kind: str, package: str, folder: Path, group: str) -> None:
        self.kind, self.package, self.folder, self.group = kind, package, folder, group
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator: make the class available as ``name`` (lower case, words joined by hyphens, unique)."""
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{self.kind} name '{name}' is not usable; use lower-case words joined by '-', such as 'basis-sharing'"
            )

        def add(cls: type[T]) -> type[T]:
            other = self._classes.get(name)
            if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
                raise UserError(
                    f"{self.kind} '{name}' is registered twice, by {other.__module__} and {cls.__module__}; "
                    "rename or uninstall one of them"
                )
            self._classes[name] = cls
            cls.name = name  # type: ignore[attr-defined]
            return cls

        return add

    def _files(self) -> dict[str, Path]:
        files = {}
        for path in sorted(self.folder.iterdir()):
            if path.suffix == ".py" and path.stem != "base" and not path.stem.startswith("_"):
                files[path.stem.replace("_", "-")] = path
            elif (path / "__init__.py").is_file() and path.name != "__pycache__":
                files[path.name.replace("_", "-")] = path / "__init__.py"
        return files

    def _entry_points(self) -> dict[str, EntryPoint]:
        points: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            if point.name in points and points[point.name].value != point.value:
                raise UserError(
                    f"{self.kind} '{point.name}' is published by two packages ({points[point.name].value} and "
                    f"{point.value}); uninstall one of them"
                )
            points[point.name] = point
        return points

    def listings(self) -> list[Listing]:
        """Return every known name in alphabetical order, importing none of them."""
        rows = {}
        for name, path in self._files().items():
            tree = ast.parse(path.read_text(encoding="utf-8"))
            text = ast.get_docstring(tree) or ""
            rows[name] = Listing(name, text.split("\n")[0].rstrip("."), "built in", _facts(tree))
        for name, point in self._entry_points().items():
            if name in rows:
                raise UserError(
                    f"{self.kind} '{name}' of {point.value} has the name of a built-in one; rename its entry point"
                )
            rows[name] = Listing(name, point.value, point.dist.name if point.dist else "entry point")
        for name, cls in self._classes.items():
            if name not in rows or not rows[name].facts:
                facts = getattr(sys.modules.get(cls.__module__), "FACTS", {})
                rows[name] = Listing(name, (cls.__doc__ or "").strip().split("\n")[0], cls.__module__, facts)
        return [rows[name] for name in sorted(rows)]

    def names(self) -> list[str]:
        """Return every known name in alphabetical order."""
        return [row.name for row in self.listings()]

    def module_of(self, name: str) -> str:
        """Return the module whose import registers a name that is neither built in nor published, '' for those.

        Another process has to import that module before it can `get` the name.
        """
        if name in self._files() or name in self._entry_points():
            return ""
        if name not in self._classes:
            raise unknown(self.kind, name, self.names())
        return self._classes[name].__module__

    def get(self, name: str) -> type[T]:
        """Import and return the class behind ``name``; raise a `UserError` with the nearest name if there is none."""
        if name in self._classes:
            return self._classes[name]
        if name in self._files():
            import_module(f"{self.package}.{name.replace('-', '_')}")
        elif (point := self._entry_points().get(name)) is not None:
            try:
                cls = point.load()
            except Exception as error:
                raise UserError(
                    f"{self.kind} '{name}' of {point.value} cannot be imported ({error}); repair or uninstall it"
                ) from error
            if name not in self._classes:
                self.register(name)(cls)
        else:
            raise unknown(self.kind, name, self.names())
        if name not in self._classes:
            raise UserError(f"the module of {self.kind} '{name}' registers no '{name}'; name its class with @register")
        return self._classes[name]


def _facts(tree: ast.Module) -> Mapping[str, str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "FACTS" for t in node.targets):
            facts: Mapping[str, str] = ast.literal_eval(node.value)
            return facts
    return {}
