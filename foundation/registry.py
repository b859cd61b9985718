"""Lazy registries of named parts: methods, policies, benchmarks, engines.

In-tree parts are found by file name: ``methods/library/joint_rank_k.py`` holds the method ``joint-rank-k``, and the
first line of its docstring is its summary. Listing reads file names and docstrings only, so it imports no torch. Third
parties publish an entry point in the registry's group. A part is imported when it is asked for, and then it has to
have registered itself under that very name with the right base class.
"""

import ast
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeGuard, TypeVar

from .errors import UserError, unknown

T = TypeVar("T")
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Listing:
    """One name of a registry: where it comes from and one line about it, known without importing it.

    Attributes:
        declared: the keyword arguments of the literal ``requires = …(…)`` in the class, None where it has none or has
            not been imported.
    """

    name: str
    summary: str
    origin: str
    declared: Mapping[str, Any] | None = None


class Registry(Generic[T]):
    """Classes of one kind by name.

    Args:
        kind: the word used in messages, such as ``method``.
        package: dotted name of the package whose modules are the built-in parts.
        folder: that package's folder.
        group: entry point group of third parties.
        families: for names ``PREFIX:…``, which are too many to list: by prefix, the ``MODULE:FUNCTION`` that returns
            the class of a name, or raises a `UserError`.
    """

    def __init__(
        self, kind: str, package: str, folder: Path, group: str, families: Mapping[str, str] | None = None
    ) -> None:
        self.kind, self.package, self.folder, self.group = kind, package, folder, group
        self.families = families or {}
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

    def add_made(self, name: str, cls: type[T]) -> None:
        """Make a class available that a file of the user's describes, in place of an earlier one of that name.

        Raises:
            UserError: a built-in or published part has the name, or it is not usable.
        """
        if name in self._files() or name in self._entry_points():
            raise UserError(f"the {self.kind} name '{name}' is that of another {self.kind}; choose another")
        self._classes.pop(name, None)
        self.register(name)(cls)

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
        rows, files = {}, self._files()
        for name, path in files.items():
            tree = ast.parse(path.read_text(encoding="utf-8"))
            text = ast.get_docstring(tree) or ""
            rows[name] = Listing(name, text.split("\n")[0].rstrip("."), "built in", _declared(name, path, tree))
        for name, point in self._published(files).items():
            rows[name] = Listing(name, point.value, point.dist.name if point.dist else "entry point")
        for name, cls in self._classes.items():
            # Of a published class only the name is known until it has been imported; then it says what it requires.
            if name not in rows or (rows[name].declared is None and rows[name].origin != "built in"):
                requires = getattr(cls, "requires", None)
                declared = asdict(requires) if is_dataclass(requires) and not isinstance(requires, type) else None
                rows[name] = Listing(name, (cls.__doc__ or "").strip().split("\n")[0], cls.__module__, declared)
        return [rows[name] for name in sorted(rows)]

    def names(self) -> list[str]:
        """Return every known name in alphabetical order."""
        files = self._files()
        return sorted({*files, *self._published(files), *self._classes})

    def _published(self, files: Collection[str]) -> dict[str, EntryPoint]:
        """Return the entry points, none of which may have the name of a built-in part."""
        points = self._entry_points()
        for name, point in points.items():
            if name in files:
                raise UserError(
                    f"{self.kind} '{name}' of {point.value} has the name of a built-in one; rename its entry point"
                )
        return points

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
        prefix, colon, _ = name.partition(":")
        if colon and prefix in self.families:
            module, _, function = self.families[prefix].partition(":")
            built: type[T] = getattr(import_module(module), function)(name)
            return built
        if name in self._files():
            import_module(f"{self.package}.{name.replace('-', '_')}")
        elif (point := self._entry_points().get(name)) is not None:
            try:
                cls = point.load()
            except (Exception, SystemExit) as error:  # a module may call sys.exit when it is imported
                why = " ".join(str(error).split()) or type(error).__name__
                raise UserError(
                    f"{self.kind} '{name}' of {point.value} cannot be imported ({why}); repair or uninstall it"
                ) from error
            if not isinstance(cls, type):
                raise UserError(f"{self.kind} '{name}' of {point.value} is no class; name one in the entry point")
            if name not in self._classes:
                self.register(name)(cls)
        else:
            raise unknown(self.kind, name, self.names())
        if name not in self._classes:
            raise UserError(f"the module of {self.kind} '{name}' registers no '{name}'; name its class with @register")
        return self._classes[name]


def _declared(name: str, path: Path, tree: ast.Module) -> Mapping[str, Any] | None:
    """Return what the class registered as ``name`` declares, read from its file, or its folder's, without import."""
    others = sorted(path.parent.glob("*.py")) if path.name == "__init__.py" else []
    for module in (tree, *(ast.parse(other.read_text(encoding="utf-8")) for other in others if other != path)):
        for node in module.body:
            if isinstance(node, ast.ClassDef) and name in map(_registered_name, node.decorator_list):
                return next((_keywords(part.value) for part in node.body if _is_declaration(part)), None)
    return None


def _registered_name(decorator: ast.expr) -> str:
    if not isinstance(decorator, ast.Call) or not isinstance(decorator.func, ast.Attribute):
        return ""
    registers = decorator.func.attr == "register" and len(decorator.args) == 1
    return str(ast.literal_eval(decorator.args[0])) if registers else ""


def _is_declaration(node: ast.stmt) -> TypeGuard[ast.Assign]:
    return (
        isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and any(isinstance(target, ast.Name) and target.id == "requires" for target in node.targets)
    )


def _keywords(call: ast.expr) -> Mapping[str, Any]:
    assert isinstance(call, ast.Call)
    return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
