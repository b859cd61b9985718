"""The table of methods: made of what each declares, without importing it, and the same in the docs."""

import subprocess
import sys
from pathlib import Path

import pytest

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import Requirements, create_method, methods
from lowrank_bench.methods.table import BEGIN, cells, listed, markdown, updated

DOCS = Path(__file__).parents[2] / "docs" / "methods"


def test_the_docs_have_the_table() -> None:
    page = (DOCS / "README.md").read_text()
    assert markdown() in page
    assert updated(page) == page, "run: python -m lowrank_bench.methods.table docs/methods/README.md"


def test_the_script_mends_a_stale_table(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    before, _, after = (DOCS / "README.md").read_text().partition(markdown())
    page.write_text(f"{before}stale\n{after}")
    subprocess.run([sys.executable, "-m", "lowrank_bench.methods.table", str(page)], check=True)
    assert page.read_text() == (DOCS / "README.md").read_text()
    with pytest.raises(UserError, match=BEGIN[:4]):
        updated("no marks")


def test_what_is_listed_is_what_the_class_declares() -> None:
    """Read from the file of each built-in method: a literal in its own class."""
    rows = [row for row in methods.listings() if row.origin == "built in"]
    assert len(rows) == 19
    for row in rows:
        cls = methods.get(row.name)
        assert "requires" in vars(cls), row.name
        assert listed(row) == cls.requires, row.name
        assert cls.requires.status, row.name
        assert (DOCS / f"{row.name}.md").is_file()


def test_listing_imports_no_torch() -> None:
    code = "import sys; from lowrank_bench.methods.table import markdown; markdown(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("requires", "row"),
    [
        (Requirements(), ("none", "no", "no", "no", "r(m+n)")),
        (
            Requirements(statistics=True, measures=True, affine=True),
            ("calibration, search", "no", "no", "no", "r(m+n)+m"),
        ),
        (Requirements(trains=True, searches=True), ("search, training", "yes", "yes", "no", "r(m+n)")),
        (Requirements(gradients=True, shares="layers"), ("none", "yes", "no", "layers", "k(n+Σm)")),
    ],
)
def test_words_of_the_table(requires: Requirements, row: tuple[str, ...]) -> None:
    words = cells(requires)
    assert tuple(words[column] for column in ("data", "gradients", "trains", "shares", "storage")) == row


@pytest.mark.parametrize(
    ("name", "options", "changed"),
    [
        ("svd-llm", {"two_sided": True}, {"gradients": True}),
        ("svd", {"policy": "laser"}, {"measures": True, "policy": "laser"}),
        ("laser", {"policy": "uniform"}, {"measures": False, "policy": "uniform"}),
        ("afm", {"calibration": "language", "length": 64}, {"calibration_task": "language", "calibration_length": 64}),
        ("bs", {"start": "fwsvd"}, {"statistics": True, "gradients": True}),
        ("bs", {"criterion": "hessian"}, {"searches": True, "trains_sharded": False}),
        ("bs", {"compile": True}, {"trains_sharded": False}),
    ],
)
def test_options_change_what_is_needed(name: str, options: dict[str, object], changed: dict[str, object]) -> None:
    default, method = create_method(name).requirements, create_method(name, options).requirements
    assert {key: value for key, value in vars(method).items() if getattr(default, key) != value} == changed
