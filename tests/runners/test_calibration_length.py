"""How long the examples are that methods calibrate on: 2,048 tokens or the context, named in records and output."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lowrank_bench.cli import single
from lowrank_bench.evals.tasks import base
from lowrank_bench.evals.tasks.base import Example, Task, add_task
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.loading import load_tokenizer
from lowrank_bench.models.presets import resolve_model
from lowrank_bench.runners.compressing import CompressRequest, compress
from lowrank_bench.runners.config import make_config, nest
from lowrank_bench.runners.dry_run import show_plan
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.training.data import calibration_length, example_length

TINY = resolve_model("tiny")


def _texts(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    return [Example("", f"{number} the cat sat on the mat " * 40) for number in range(300)], f"texts:{seed}"


@pytest.fixture(autouse=True)
def joined(monkeypatch):
    """A task that joins its texts, as C4 does."""
    task = Task("joined", "texts", "language", ("toy-math",), 1024, {"texts": _texts}, joined=True)
    monkeypatch.setattr(base, "_added", {})
    add_task(task)


def model_of_context(folder: Path, positions: int) -> str:
    """Write a random model with tiny's tokenizer and so many positions."""
    model: Any = random_model("llama")
    tokenizer = load_tokenizer(TINY.location)
    model.resize_token_embeddings(len(tokenizer))
    model.config.max_position_embeddings = positions
    save_checkpoint(model, tokenizer, folder)
    return str(folder)


def planned(model: str, method: str, out: Path, task: str = "toy-math", **more: Any) -> Any:
    """Plan a sweep of one method without training."""
    values = {"model": model, "task": task, "methods": (method,), "ratios": (2.0,), "training_free": True, "out": out}
    return make_plan(make_config(nest(values | more)))


@pytest.mark.parametrize(
    ("task", "length", "context", "expected"),
    [
        ("language-c4", None, 131072, 2048),
        ("language-wikitext2", None, 32768, 2048),
        ("language-c4", None, 1024, 1024),
        ("language-c4", None, 512, 512),
        ("language-c4", 4096, 32768, 4096),
        ("toy-math", None, 32768, 256),
        ("math", None, 32768, 512),
    ],
)
def test_the_default_is_2048_tokens_or_the_context(task, length, context, expected):
    assert calibration_length(task, length, context) == expected


@pytest.mark.parametrize("task", ["language-c4", "language-wikitext2", "toy-math", "language"])
@pytest.mark.parametrize("context", [1024, 512])
def test_models_of_short_context_read_what_they_read_before(task, context):
    """So numbers and stage keys of the built-in model and of stories260K stay."""
    assert calibration_length(task, None, context) == example_length(task, None, context)


def test_the_length_is_in_the_spec_of_a_long_model_alone(tmp_path):
    long = model_of_context(tmp_path / "long", 131072)
    lengths = {}
    for name, model in {"long": long, "tiny": "tiny"}.items():
        for method in ("svd-llm", "svd-llm:length=64", "sfsd"):
            plan = planned(model, method, tmp_path / "runs", "joined")
            fits = [stage for stage in plan.stages.values() if stage.kind == "fit"]
            lengths[name, method] = [stage.data.max_length for stage in fits]
    assert lengths["long", "svd-llm"] == [2048]
    assert lengths["tiny", "svd-llm"] == [None]
    assert lengths["long", "svd-llm:length=64"] == lengths["tiny", "svd-llm:length=64"] == [64]
    assert lengths["long", "sfsd"] == [128]


@pytest.mark.parametrize(
    ("method", "more", "words"),
    [
        ("svd-llm:length=1025", {}, ["'svd-llm:length=1025'", "length=1024 or less", "leave it out for 256"]),
        ("fwsvd:length=40000", {}, ["'fwsvd:length=40000'", "length=1024 or less"]),
        ("sfsd:length=2048", {}, ["2048 tokens", "length=1024 or less"]),
        ("svd", {"finetune": {"max_length": 4096}, "training_free": False}, ["--max-length 4096", "(1024)"]),
    ],
)
def test_a_length_beyond_the_context_is_refused(method, more, words, tmp_path):
    with pytest.raises(UserError) as error:
        planned("tiny", method, tmp_path, **more)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_default_beyond_the_context_is_cut(tmp_path):
    """Nobody asked for SFSD's 128 tokens of a model of 64."""
    plan = planned(model_of_context(tmp_path / "short", 64), "sfsd", tmp_path / "runs", "joined")
    assert any(stage.kind == "fit" for stage in plan.stages.values())


def test_a_plan_says_what_is_read(tmp_path):
    file = io.StringIO()
    show_plan(planned("tiny", "sfsd:samples=32", tmp_path), Console(file=file, width=200))
    show_plan(planned("tiny", "aa:samples=32", tmp_path), Console(file=file, width=200))
    assert "fit by sfsd reads 32 examples of toy-math, of at most 128 tokens each" in file.getvalue()
    assert "compress by sfsd reads 64 examples of toy-math, of at most 128 tokens each" in file.getvalue()
    assert "compress by aa reads 32 examples of toy-math, of at most 256 tokens each" in file.getvalue()


def test_records_and_output_name_length_and_examples(tmp_path, capsys):
    out = tmp_path / "out"
    single.compress("tiny", "svd-llm:samples=8,length=48", "2", out, task="toy-math")
    record = json.loads((out / "compression.json").read_text())
    assert record["calibration"]["fit"]["length"] == 48
    assert record["calibration"]["fit"]["examples"] == 8
    assert 0 < record["calibration"]["fit"]["tokens"] <= 8 * 48
    printed = " ".join(capsys.readouterr().out.split())
    assert "calibration of fit: 8 examples of at most 48 tokens" in printed


def test_a_search_names_what_it_reads(tmp_path):
    request = CompressRequest("tiny", "svd:policy=laser,probe_samples=4", 2.0, tmp_path / "out", "toy-math")
    done = compress(request)
    assert any(reading["examples"] == 4 and reading["length"] == 256 for reading in done.calibration.values())


def test_a_method_without_data_names_no_calibration(tmp_path):
    done = compress(CompressRequest("tiny", "svd", 2.0, tmp_path / "out"))
    assert done.calibration == {}
    assert json.loads((tmp_path / "out" / "compression.json").read_text())["calibration"] == {}
