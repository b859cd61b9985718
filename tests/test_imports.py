"""No module of the package imports, by whatever detour, itself."""

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

import lowrank_bench

APART = ("tests", "perf", "conftest")


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the modules of one import circle, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_there_is_no_import_circle() -> None:
    """Imports inside functions and under TYPE_CHECKING count too."""
    name = lowrank_bench.__name__
    modules = grimp.build_graph(name, cache_dir=None)
    ours = [module for module in modules.modules if module.removeprefix(f"{name}.").split(".")[0] not in APART]
    assert len(ours) > 200
    assert circle({module: modules.find_modules_directly_imported_by(module) for module in ours}) == []


@pytest.mark.parametrize(
    "text",
    [
        "from .b import f",
        "def g():\n    from .b import f",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .b import f",
    ],
)
def test_the_test_sees_every_kind_of_import(text: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    package = tmp_path / "circular"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "a.py").write_text(text)
    (package / "b.py").write_text("from . import a")
    monkeypatch.syspath_prepend(tmp_path)
    modules = grimp.build_graph("circular", cache_dir=None)
    graph = {module: modules.find_modules_directly_imported_by(module) for module in modules.modules}
    assert set(circle(graph)) == {"circular.a", "circular.b"}
