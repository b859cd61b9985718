"""The methods of docs/adding-a-method.md, as printed there; test_third_party.py runs the rest of the contract."""

from pathlib import Path
from typing import Any

import pytest
from code_blocks import code_blocks

from lowrank_bench.methods.base import methods
from lowrank_bench.methods.contract import CompressorContract

GUIDE = "docs/adding-a-method.md"
CODE = {Path(block.file).stem: block.text for block in code_blocks(GUIDE) if block.file.startswith("my_package/")}


def defined(module: str) -> dict[str, Any]:
    """Return what a module of the guide defines."""
    names: dict[str, Any] = {"__name__": f"my_package.{module}"}
    exec(CODE[module], names)
    return names


def test_a_method_is_ten_lines() -> None:
    body = CODE["half_svd"].partition("class HalfSVD")[2].rpartition('"""')[2]
    assert 0 < len([line for line in body.splitlines() if line.strip()]) <= 10


@pytest.mark.parametrize(("module", "name"), [("half_svd", "HalfSVD"), ("rms_svd", "RMSSVD")])
def test_it_needs_what_it_declares_and_streams(
    module: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "_classes", dict(methods._classes))
    registered = module.replace("_", "-")
    methods.register(registered)(defined(module)[name])
    suite = CompressorContract()
    monkeypatch.setattr(CompressorContract, "method", registered, raising=False)
    suite.test_declares_what_it_needs()
    suite.test_a_streamed_model_gives_the_same("qwen2", tmp_path)
    suite.test_full_rank_changes_nothing("llama")
