"""The Python that the README and docs/python-api.md show is executed as it is written there."""

import ast
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from code_blocks import ROOT, code_blocks

import lowrank_bench
from lowrank_bench import read_records, run_sweep
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.runners.keywords import config_of


def test_the_readmes_script_runs_a_sweep_and_reads_its_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (block,) = [block for block in code_blocks("README.md") if block.language == "python"]
    assert len([line for line in block.text.splitlines() if line.strip()]) <= 10
    script = tmp_path / "script.py"
    script.write_text(block.text)
    monkeypatch.chdir(tmp_path)
    sweep = runpy.run_path(str(script), run_name="__main__")["sweep"]
    printed = capfd.readouterr().out.splitlines()
    assert sweep.records.equals(read_records(tmp_path / "runs" / "tiny-toy-math"))
    assert set(sweep.records.label) == {"finetuned", "svd", "bs:prunings=2"}
    assert set(sweep.records.ratio_target) == {1.0, 2.0, 4.0}
    assert printed[-1] == str(sweep.folder) == str(tmp_path / "runs" / "tiny-toy-math")
    assert len(printed) == 7  # a heading, five headlines, the folder: the sweep itself prints nothing


def test_the_page_about_the_python_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = "docs/python-api.md"
    blocks = [block.text for block in code_blocks(page) if block.language == "python"]
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    assert set(names["headline"].ratio_target) == {2.0}
    text = (ROOT / page).read_text()
    for name in lowrank_bench.__all__:
        assert re.search(rf"`{name}`", text), f"{page} says nothing of {name}"
        assert name in names or name in ("SweepResult", "Compressed", "Evaluated"), f"{page} does not show {name}"


def test_the_table_of_public_names_agrees_with_what_type_checkers_follow() -> None:
    names: dict[str, str] = {}
    for node in ast.walk(ast.parse((ROOT / "__init__.py").read_text())):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for line in node.body:
                assert isinstance(line, ast.ImportFrom)
                module = str(line.module).removeprefix("lowrank_bench.")
                names |= {alias.asname or alias.name: f"{module}:{alias.name}" for alias in line.names}
    assert names == lowrank_bench._SOURCES
    assert sorted(names) == lowrank_bench.__all__
    for name in names:
        assert getattr(lowrank_bench, name).__doc__
        assert name in dir(lowrank_bench)
    with pytest.raises(AttributeError, match="no attribute 'run_sweeps'"):
        _ = lowrank_bench.run_sweeps


def test_the_version_is_the_one_that_is_published() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert lowrank_bench.__version__ == project["version"]


def test_importing_the_package_imports_no_torch() -> None:
    code = (
        "import sys, lowrank_bench; from lowrank_bench import read_records, Record, UserError; "
        "assert not {'torch', 'transformers', 'pandas', 'matplotlib', 'typer'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_options_are_named_as_on_the_command_line(tmp_path: Path) -> None:
    words = {"model": "tiny", "task": "toy-math"}
    typed = config_of(None, words | {"methods": "svd,bs:prunings=2,seed=1", "ratios": "2,4", "seeds": 7, "lr": 1e-4})
    listed = config_of(None, words | {"methods": ["svd", "bs:prunings=2,seed=1"], "ratios": [2, 4.0], "seeds": [7]})
    assert typed.methods == listed.methods
    assert typed.ratios == listed.ratios == (2.0, 4.0)
    assert typed.seeds == (7,)
    assert typed.training.finetune.learning_rate == typed.training.recover.learning_rate == 1e-4
    assert config_of(listed, {"recover_steps": 3, "limit": None}).training.recover.steps == (3,)
    (tmp_path / "sweep.yaml").write_text(
        "model: tiny\ntask: toy-math\nmethods: svd\ntraining: {finetune: {epochs: 2}}\n"
    )
    from_file = config_of(tmp_path / "sweep.yaml", {"finetune_steps": 5, "context": 128})
    finetune = from_file.training.finetune
    assert (finetune.steps, finetune.epochs, from_file.evaluation.context) == (5, 2, (128,))
    nested = config_of(None, words | {"methods": ["svd"], "training": {"finetune": {"steps": 5}}, "recover_steps": 2})
    assert (nested.training.finetune.steps, nested.training.recover.steps) == (5, (2,))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"methods": "svd"}, "'model' is missing"),
        (
            {"model": "tiny", "task": "toy-math", "methods": "svd", "ratio": 2},
            "unknown key 'ratio'; did you mean 'ratios'",
        ),
        ({"model": "tiny", "task": "toy-math", "methods": "svd", "ratios": "2,x"}, "ratios.1 cannot be 'x'"),
        ({"model": "tiny", "task": "toy-math", "methods": "svdd", "out": "unused"}, "did you mean 'svd'"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    options: dict[str, object], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence):
        run_sweep(**options)
    assert not any(tmp_path.iterdir())
