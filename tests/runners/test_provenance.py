import importlib
import sys

import pytest

from lowrank_bench.methods.base import methods
from lowrank_bench.runners.provenance import code_digest


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Return a class of a package of two files, and that package's folder."""
    folder = tmp_path / "a_plugin"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "inner" / "__init__.py").write_text("class Method: ...\n")
    (folder / "help.py").write_text("FACTOR = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("a_plugin.inner").Method, folder
    for name in [name for name in sys.modules if name.startswith("a_plugin")]:
        del sys.modules[name]


def test_a_class_of_ours_adds_nothing_and_another_s_its_whole_package(plugin):
    cls, folder = plugin
    code_digest.cache_clear()
    assert code_digest(methods.get("bs")) == code_digest()
    before = code_digest(cls)
    assert before != code_digest()
    code_digest.cache_clear()
    assert code_digest(cls) == before
    (folder / "help.py").write_text("FACTOR = 2\n")
    code_digest.cache_clear()
    assert code_digest(cls) != before


def test_a_module_in_no_package_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "a_module.py").write_text("class Method: ...\n")
    (tmp_path / "beside.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    cls = importlib.import_module("a_module").Method
    before = code_digest(cls)
    (tmp_path / "beside.py").write_text("CHANGED = True\n")
    code_digest.cache_clear()
    assert code_digest(cls) == before
    (tmp_path / "a_module.py").write_text("class Method:\n    factor = 2\n")
    code_digest.cache_clear()
    assert code_digest(cls) != before
