"""Registries: lazy, validated, open to third parties, with errors that teach."""

import subprocess
import sys
from pathlib import Path

import pytest
from commands import bench

from lowrank_bench.foundation.errors import UserError, did_you_mean, unknown
from lowrank_bench.foundation.registry import Registry
from lowrank_bench.methods.registry import methods


class Part:
    """A part."""

    name: str


def registry(folder: Path, group: str = "acme.parts") -> Registry[Part]:
    return Registry("part", "acme_parts", folder, group)


def publish(folder: Path, distribution: str, name: str, value: str, group: str = "acme.parts") -> None:
    """Write what pip leaves of an installed distribution with one entry point."""
    info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A folder without built-in parts."""
    folder = tmp_path / "parts"
    folder.mkdir()
    return folder


def test_listing_methods_and_policies_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from lowrank_bench.methods.registry import methods\n"
        "from lowrank_bench.methods.registry import policies\n"
        "print(*methods.names(), *policies.names(), all(row.summary for row in methods.listings()))\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.strip().split("\n")
    assert {"svd", "fwsvd", "bs", "uniform", "energy"} <= set(first.split())
    assert first.endswith("True")
    assert second == "[]"


def test_third_party_method_compresses(site: Path) -> None:
    (site / "acme_lowrank.py").write_text(
        "from lowrank_bench.methods.library.svd import SVD\n"
        "class Mine(SVD):\n"
        "    '''SVD under another name.'''\n"
        "    strength: int = 1\n"
    )
    publish(site, "acme-lowrank", "acme-svd", "acme_lowrank:Mine", "lowrank_bench.methods")
    rows = {row.name: row for row in methods.listings()}
    assert rows["acme-svd"].origin == "acme-lowrank"
    assert "acme_lowrank" not in sys.modules
    code = (
        "from lowrank_bench.methods.base import create_method\n"
        "from lowrank_bench.methods.ranks.budget import Budget\n"
        "from lowrank_bench.models.architectures import random_model\n"
        "model = random_model('llama')\n"
        "method = create_method('acme-svd', {'strength': 3})\n"
        "print(method.name, method.compress(model, method.fit(model, None), Budget(2.0), None).ratio >= 2)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["acme-svd", "True"]


def test_third_party_that_cannot_be_imported(site: Path, empty: Path) -> None:
    publish(site, "acme-broken", "broken", "acme_no_such_module:Mine")
    with pytest.raises(UserError, match="acme_no_such_module:Mine cannot be imported"):
        registry(empty).get("broken")


def test_third_party_may_not_take_a_built_in_name(site: Path, empty: Path) -> None:
    (empty / "plain.py").write_text('"""A built-in part."""\n')
    publish(site, "acme-thief", "plain", "acme_thief:Mine")
    with pytest.raises(UserError, match="name of a built-in one"):
        registry(empty).listings()


def test_two_packages_may_not_share_a_name(site: Path, empty: Path) -> None:
    publish(site, "acme-one", "twice", "acme_one:Mine")
    publish(site, "acme-two", "twice", "acme_two:Mine")
    with pytest.raises(UserError, match="published by two packages"):
        registry(empty).get("twice")


@pytest.mark.parametrize("name", ["SVD", "my method", "a_b", "-a", "a-", "1st", "", "ä"])
def test_bad_names_are_refused(empty: Path, name: str) -> None:
    with pytest.raises(UserError, match="not usable; use lower-case"):
        registry(empty).register(name)


def test_a_name_is_registered_once(empty: Path) -> None:
    parts = registry(empty)
    first = type("First", (Part,), {"__doc__": "One."})
    parts.register("one")(first)
    parts.register("one")(first)
    assert parts.get("one").name == "one"
    with pytest.raises(UserError, match="registered twice"):
        parts.register("one")(type("Second", (Part,), {}))


ODD = """
import sys
from pathlib import Path
from lowrank_bench.methods.library.svd import SVD
from lowrank_bench.methods.base import Compressor


class Needs(SVD):
    given: int
    folder: Path = Path("x")


class Unfinished(Compressor):
    "Defines nothing."


def function():
    "No class."


one = SVD()
"""


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("acme_odd:Unfinished", "method 'odd' does not define"),
        ("acme_odd:Path", "method 'odd' is no Compressor"),
        ("acme_odd:function", "method 'odd' of acme_odd:function is no class"),
        ("acme_odd:one", "method 'odd' of acme_odd:one is no class"),
        ("acme_exit:Mine", "method 'odd' of acme_exit:Mine cannot be imported"),
    ],
)
def test_what_is_no_method_is_one_sentence_for_every_command(site: Path, value: str, sentence: str) -> None:
    (site / "acme_odd.py").write_text(ODD)
    (site / "acme_exit.py").write_text("import sys\nsys.exit(7)\n")
    publish(site, "acme-odd", "odd", value, "lowrank_bench.methods")
    run = ["run", "--methods", "odd", "--model", "tiny", "--task", "toy-math", "--dry-run"]
    for words in (["methods", "odd"], run):
        done = bench(*words)
        assert done.returncode == 2, done.stderr
        assert sentence in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_options_without_a_default_and_of_any_type_are_shown(site: Path) -> None:
    (site / "acme_odd.py").write_text(ODD)
    publish(site, "acme-odd", "needs", "acme_odd:Needs", "lowrank_bench.methods")
    done = bench("methods", "needs")
    assert done.returncode == 0, done.stderr
    assert "(has to be given)" in done.stdout


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown method 'fsvd'; did you mean 'fwsvd'\? allowed: .*svd"):
        methods.get("fsvd")
    with pytest.raises(UserError, match="unknown method 'zzz'; allowed: aa, afm"):
        methods.get("zzz")
    assert did_you_mean("SVD", ["svd", "bs"]) == "; did you mean 'svd'?"
    assert str(unknown("task", "x", [])) == "unknown task 'x'; allowed: none"


def test_a_module_has_to_register_its_own_name(site: Path) -> None:
    package = site / "acme_parts"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "lazy_part.py").write_text('"""Forgets to register."""\n')
    parts = registry(package, "acme.none")
    assert [(row.name, row.summary) for row in parts.listings()] == [("lazy-part", "Forgets to register")]
    with pytest.raises(UserError, match="registers no 'lazy-part'"):
        parts.get("lazy-part")
