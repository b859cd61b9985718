"""The methods of docs/adding-a-method.md, as they are printed there, under the contract that the guide names."""

import re
from pathlib import Path
from typing import Any

import pytest

from lowrank_bench.methods.contract import CompressorContract

GUIDE = (Path(__file__).parents[2] / "docs" / "adding-a-method.md").read_text(encoding="utf-8")


def guide_code(word: str) -> str:
    """Return the code block of the guide that has a word in it, as one writes it outside the repository."""
    block = next(block for block in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if word in block)
    return block.replace("from ..", "from lowrank_bench.methods.")


@pytest.fixture(scope="module")
def classes() -> dict[str, Any]:
    """What the guide's code defines."""
    names: dict[str, Any] = {"__name__": "guide"}
    for word in ("class HalfSVD", "class RMSSVD", "class TestHalfSVD"):
        exec(guide_code(word), names)
    return names


def test_a_method_is_ten_lines(classes: dict[str, Any]) -> None:
    body = guide_code("class HalfSVD").partition("class HalfSVD")[2].rpartition('"""')[2]
    assert len([line for line in body.splitlines() if line.strip()]) <= 10
    assert classes["HalfSVD"].name == "half-svd"


@pytest.mark.parametrize("name", ["half-svd", "rms-svd"])
def test_it_is_sound(classes: dict[str, Any], name: str, tmp_path: Path) -> None:
    """The parts of the contract that differ between methods of this kind; test_third_party.py runs all of it."""
    suite: CompressorContract = classes["TestHalfSVD"]()
    type(suite).method = name
    suite.test_declares_what_it_needs()
    suite.test_a_streamed_model_gives_the_same("qwen2", tmp_path)
    suite.test_full_rank_changes_nothing("llama")
    suite.test_size_is_known_before_loading()
    if name == "half-svd":
        suite.test_error_falls_as_the_rank_grows()
