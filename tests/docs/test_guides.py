"""docs/extending.md: its files are installed as a package and run on the built-in model, its paper with the others."""

import importlib.util
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from code_blocks import code_blocks
from rich.console import Console

from lowrank_bench import run_sweep
from lowrank_bench.evals.base import benchmarks
from lowrank_bench.evals.engines.base import Sampling, engines
from lowrank_bench.evals.engines.transformers import TransformersEngine
from lowrank_bench.evals.tasks.base import all_tasks, get_task
from lowrank_bench.evals.tasks.prompts import encode_prompt
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.registry import policies, recoveries
from lowrank_bench.models.presets import PRESETS
from lowrank_bench.papers.published import quoted
from lowrank_bench.papers.reproduce import catalogue
from lowrank_bench.papers.reproduce.configs import Changes
from lowrank_bench.papers.reproduce.run import reproduce

GUIDE = "docs/extending.md"
PACKAGES = ("my_package", "broken_package", "taken_package")


def install(site: Path, files: dict[str, str], project: str) -> None:
    """Lay out a package as pip would have installed it: its files, and the metadata that name its entry points."""
    for name, text in files.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
        (site / name).with_name("__init__.py").touch()
    about = tomllib.loads(project)["project"]
    metadata = site / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n")
    lines = []
    for group, points in about["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages that this process and its workers find; what it brings is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield tmp_path / "site"
    for registry in (policies, recoveries, benchmarks, engines):
        for name in [name for name, cls in registry._classes.items() if cls.__module__.startswith(PACKAGES)]:
            del registry._classes[name]
    for name in [name for name in sys.modules if name.startswith(PACKAGES)]:
        del sys.modules[name]


@pytest.fixture
def package(importable: Path) -> Path:
    """The guide's package, installed."""
    blocks = code_blocks(GUIDE)
    (project,) = [block.text for block in blocks if block.language == "toml"]
    install(importable, {b.file: b.text for b in blocks if b.file.startswith("my_package/")}, project)
    return importable


def test_policy_benchmark_task_and_engine_serve_one_sweep(package: Path, tmp_path: Path) -> None:
    few = {"finetune_steps": 2, "recover_steps": 2, "limit": 3, "max_new_tokens": 4, "workers": 1}
    words = {"methods": "svd:policy=depth(slope=0.5)", "engine": "step-by-step", "out": tmp_path / "runs"}
    records = run_sweep(model="tiny", task="sums", ratios=2, **words, **few).records
    assert set(records.task) == set(records.benchmark) == {"sums"}
    assert set(records.variant) == {"sums-30-0shot"}
    assert set(records.engine) == {"step-by-step"}
    assert set(records.label) == {"finetuned", "svd:policy=depth(slope=0.5)"}
    assert 2 <= records.ratio.max() < 2.05
    assert "sums" in all_tasks()
    with pytest.raises(UserError, match="did you mean 'sums'"):
        get_task("sum")


def test_the_guides_policy_keeps_less_of_later_layers(package: Path) -> None:
    from lowrank_bench.methods.base import create_method
    from lowrank_bench.methods.ranks.budget import Budget
    from lowrank_bench.methods.ranks.policies.base import parse_policy
    from lowrank_bench.models.loading import load_skeleton

    shape = create_method("svd").shape(load_skeleton(PRESETS["tiny"].source))
    ranks = Budget(4).allocate(shape, parse_policy("depth(slope=2)"), {}).ranks
    same = [unit.name for unit in shape.units if unit.name.endswith("q_proj")]
    assert ranks[same[0]] > ranks[same[-1]] > 0


def test_the_guides_engine_gives_what_transformers_gives(package: Path) -> None:
    torch.set_num_threads(1)
    opening = (str(PRESETS["tiny"].source), "float32", "cpu", None)
    with TransformersEngine(*opening) as known, engines.get("step-by-step")(*opening) as guided:
        prompts = [encode_prompt(known.tokenizer, text) for text in ("Question: 3 + 4", "She")]
        sampling = Sampling(12, stop=("=",))
        assert guided.generate(prompts, sampling, 2) == known.generate(prompts, sampling, 2)
        for ours, theirs in zip(guided.logprobs(prompts, 2), known.logprobs(prompts, 2), strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4)
        with pytest.raises(UserError, match="use --temperature 0"):
            guided.generate(prompts, Sampling(4, temperature=1.0), 2)


def test_the_guides_recovery_keeps_the_contract_and_serves_a_sweep(package: Path, tmp_path: Path) -> None:
    suite = package / "test_factors_only.py"
    suite.write_text(next(block.text for block in code_blocks(GUIDE) if "RecoveryContract" in block.text))
    assert pytest.main(["-q", "-p", "no:cacheprovider", "-k", "llama or budget or estimates or zero", str(suite)]) == 0
    few = {"finetune_steps": 2, "recover_steps": 2, "limit": 3, "max_new_tokens": 4, "workers": 1}
    words = {"methods": "svd", "recovery": "factors-only", "out": tmp_path / "runs"}
    records = run_sweep(model="tiny", task="toy-math", ratios=2, **words, **few).records
    assert set(records.label) == {"finetuned", "svd:recovery=factors-only"}


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("broken_package.task:MISSING", "cannot be imported .*repair or uninstall it"),
        ("broken_package.task:NUMBER", "is no task 'odd'; publish a lowrank_bench.Task under its own name"),
        ("broken_package.task:OTHER", "is no task 'odd'"),
    ],
)
def test_a_published_task_that_is_none_is_refused(importable: Path, value: str, sentence: str) -> None:
    module = f"from lowrank_bench.evals.tasks.library.math import TASK\nNUMBER = 1\nOTHER = TASK  # {value}\n"
    project = (
        f'[project]\nname = "broken"\nversion = "1"\n[project.entry-points."lowrank_bench.tasks"]\nodd = "{value}"\n'
    )
    install(importable, {"broken_package/task.py": module}, project)
    with pytest.raises(UserError, match=sentence):
        get_task("odd")


def test_a_published_task_cannot_take_a_built_in_name(importable: Path) -> None:
    module = "from lowrank_bench import Task\nMATH = Task('math', '', 'language', (), 8, {})\n"
    project = (
        '[project]\nname = "taken"\nversion = "1"\n'
        '[project.entry-points."lowrank_bench.tasks"]\nmath = "taken_package.task:MATH"\n'
    )
    install(importable, {"taken_package/task.py": module}, project)
    with pytest.raises(UserError, match=r"'math' of taken_package\.task:MATH has a name that is taken"):
        all_tasks()


def test_the_guides_paper_is_reproduced_in_small(
    importable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, numbers = code_blocks(GUIDE, "A paper")
    assert (code.file, numbers.file) == ("papers/reproduce/example.py", "papers/published/example.csv")
    (tmp_path / "example.py").write_text(code.text)
    (tmp_path / "example.csv").write_text(numbers.text)
    spec = importlib.util.spec_from_file_location("lowrank_bench.papers.reproduce.example", tmp_path / "example.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(catalogue, "PAPERS", catalogue.PAPERS | {"example": module.PAPER})
    rows = quoted.all_quoted() + tuple(quoted.read_quoted(tmp_path / "example.csv"))
    monkeypatch.setattr(quoted, "all_quoted", lambda: rows)
    item = catalogue.find_item("example", None, "1")
    few = {"ratios": (2.0,), "finetune_steps": 2, "recover_steps": 2, "limit": 3, "workers": 1}
    result = reproduce(item, Changes(model="tiny", out=tmp_path / "runs", **few), Console(quiet=True))
    assert result is not None
    assert {path.name for path in result.pictures} == {"table-1.png", "table-1.svg"}
    assert [verdict.outcome for verdict in result.verdicts] == ["not comparable"]
    assert result.findings[0].startswith("The paper: weighting is better at every size (§4)")
