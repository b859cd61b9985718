"""Random command lines over all commands, their options read from the signatures, and a folder for them to work in."""

from __future__ import annotations

import inspect
import json
import os
import random
import shutil
import typing
from collections.abc import Iterator
from pathlib import Path

import typer

from lowrank_bench.cli import app
from lowrank_bench.models.presets import PRESETS

DIGITS = "9" * 5000
HOSTILE = (
    *("", " ", "-1", "0", "nan", "inf", "1e999", "None", "x", "a,b,,", "=cmd()", "-svd", "%s{}", "é\N{HANGUL FILLER}"),
    *(
        "\x1b[31mred",
        "zero\N{ZERO WIDTH SPACE}width",
        "\N{RIGHT-TO-LEFT OVERRIDE}abc",
        "two\nlines",
        DIGITS,
        "[" * 2000,
    ),
    *("n" * 300, "d/" * 600, "../" * 40, "file/below", "fifo", "loop", "/dev/full", "/dev/zero", "file", "binary"),
)
"""Values that no option asks for, each of a kind that has once ended in a traceback."""

NUMBERS = ("1", "2", "3", "-1", "0", "1_0", "٣", "0x10", "1.5", "5000000000", DIGITS, "-" + DIGITS, "1e308", "2,3", "x")
METHODS = (
    *("svd", "svd:policy=energy", "svd,fwsvd", "random", "sdv", "svd:", "svd:policy", "svd:policy=", "svd::=", "bs"),
    *(f"svd:head={DIGITS}", "svd:guard=maybe", "svd-llm:length=512:samples=16", "svd-llm:samples=-1", "bs:prunings=0"),
    *("svd:policy=threshold", "laser:rank=5", f"svd-llm:samples={DIGITS}", "magnitude,", "svd,svd"),
)
CELLS = ("svd@2", "fwsvd@4", "finetuned@1", "svd@9", "svd@", "@2", f"svd@{DIGITS}", "bs@nan", "svd@2:x")
RUNS = (
    *("runs/small-toy", "runs", "nowhere", "model", "runs/small-toy/results.csv", "runs/small-toy/results.parquet"),
    *(f"damaged/{name}/small-toy" for name in ("nested", "dates", "nulls", "empty", "fifo", "csv")),
    *("damaged/nested", "damaged/nulls", "damaged/fifo", "file"),
)
MODELS = (
    "tiny",
    "./model",
    "factors",
    "bad/empty",
    "bad/list",
    "bad/adapter",
    "bad/cut",
    "bad/fifo",
    "bad/deep",
    "n/o",
)
BY_NAME: dict[str, tuple[str, ...]] = {
    "model": MODELS,
    "checkpoints": (*MODELS, *(f"runs/small-toy:{cell}" for cell in CELLS)),
    "folder": (*MODELS, *(f"runs/small-toy:{cell}" for cell in CELLS)),
    "method": METHODS,
    "methods": METHODS,
    "name": ("svd", "bs", "energy", "run", "=cmd()", "x" * 300),
    "task": ("toy-math", "toy-code", "math", "language", "commonsense", "toy"),
    "benchmarks": ("toy-math", "toy-code", "toy-math,toy-code", "gsm8k", "wikitext2", "piqa", "toymath", ","),
    "benchmark": ("toy-math", "toy-code", "gsm8k", "humaneval", "mbpp", "piqa"),
    "a": (*(f"runs/small-toy:{cell}" for cell in CELLS), "samples.jsonl", "cut.jsonl"),
    "b": (*(f"runs/small-toy:{cell}" for cell in CELLS), "samples.jsonl", "cut.jsonl"),
    "samples": (*(f"runs/small-toy:{cell}" for cell in CELLS), "samples.jsonl", "cut.jsonl", "1", "2"),
    "run": RUNS,
    "runs": RUNS,
    "records": ("runs/small-toy/results.csv", "baseline.csv", "cut.jsonl"),
    "baseline": ("baseline.csv", "runs/small-toy/results.csv", "new.csv", "cut.jsonl"),
    "config": ("sweep.yaml", "deep.yaml", "dates.yaml", "digits.yaml", "cut.jsonl"),
    "out": ("out", "runs", "file/out", "model"),
    "ratio": ("2", "4", "1.5x", "0.5", "1e9", "2,3", "nan"),
    "ratios": ("2", "2,4", "4,2", "2,2", "0.5", "1e9", "nan", "2x"),
    "stage": ("pretrained", "finetuned", "raw"),
    "device": ("cpu", "auto", "cuda", "cuda:9", "tpu"),
    "dtype": ("auto", "float32", "bfloat16", "int8"),
    "memory": ("auto", "layerwise", "whole", "disk"),
    "engine": ("transformers", "auto", "tensorrt"),
    "storage": (
        "s3://bucket/x",
        "reference::file://x",
        "memory://x",
        "file:///dev/null",
        "http://[::1",
        "ftp://u:p@h/x",
    ),
    "format": ("terminal", "markdown", "csv", "latex", "word", "json"),
    "where": ("label=svd", "ratio_target>=2", "ratio_target>=x", "evaluated_at>yesterday", "=", "label", 'a="b'),
    "rows": ("label", "label,seed", "sweep", "nothing"),
    "columns": ("ratio_target", "seed", "nothing"),
    "value": ("value", "seconds_recover", "versions", "nothing"),
    "x": ("bytes", "tokens_per_second", "ratio", "byte"),
    "gold": ("5", "assert f(1) == 2", r"\frac{1}{2}", "#### 3", "assert"),
    "completion": ("The answer is 5", "def f(x): return x + 1", "-", "#### 3"),
    "item": ("0", "HumanEval/0", "249"),
    "paper": ("basis-selection", "svd-llm", "nobody"),
    "figure": ("1", "2a", "nothing"),
    "executor": ("local", "slurm"),
    "matrix": ("q_proj", "lm_head", "mlp.up_proj", "nothing"),
    "side": ("read", "write", "up"),
    "lens": ("input", "output", "up"),
    "train_set": ("metamathqa", "generated", "nothing"),
    "recipe": ("paper", "quick", "small", "auto", "large"),
    "verdict": ("correct", "wrong", "right"),
    "context": ("128", "128,2048", "0", "-5", DIGITS),
}
ALWAYS = {
    ("run",): ["--dry-run"],
    ("reproduce",): ["--dry-run"],
    ("eval",): ["--limit", "1", "--max-new-tokens", "4", "--engine", "transformers", "--device", "cpu"],
    ("speed",): ["--engine", "transformers", "--repeats", "1", "--batch-sizes", "1", "--no-dense"],
}
"""What ends a line of these commands, or a valid one would work for hours."""
LIGHT_ONLY = {"speed": {"prompt_tokens", "new_tokens", "threads"}, "compress": {"steps"}, "eval": {"samples"}}
"""Numbers whose valid values would make the work long."""


def _commands(group: typer.Typer, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], typing.Any]]:
    for command in group.registered_commands:
        assert command.callback is not None
        yield (*before, command.name or command.callback.__name__), command.callback
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from _commands(inner.typer_instance, (*before, str(inner.name or inner.typer_instance.info.name)))


COMMANDS = dict(_commands(app))
TAKING_VALUES = [words for words, callback in COMMANDS.items() if inspect.signature(callback).parameters]


def _value(rng: random.Random, command: str, name: str, kind: str) -> str:
    if name in LIGHT_ONLY.get(command, ()):
        return rng.choice(("1", "2", "-1", "0", DIGITS, "x", "nan"))
    if rng.random() < 0.15:
        return rng.choice(HOSTILE)
    if name in BY_NAME:
        return rng.choice(BY_NAME[name])
    if "int" in kind or "float" in kind or name == "seeds":
        return rng.choice(NUMBERS)
    return rng.choice(HOSTILE)


def command_line(number: int, seed: int = 0) -> list[str]:
    """Return the words behind ``bench`` of one line; the same for the same numbers.

    Required parameters are given in nineteen lines of twenty, others in one of six.
    """
    rng = random.Random(f"{seed}/{number}")
    words_of_command = rng.choice(TAKING_VALUES if rng.random() < 0.98 else list(COMMANDS))
    callback = COMMANDS[words_of_command]
    words, arguments = list(words_of_command), []
    defaults = inspect.signature(callback).parameters
    for name, hint in typing.get_type_hints(callback, include_extras=True).items():
        if name == "return":
            continue
        plain, info = typing.get_args(hint)[:2]
        required = defaults[name].default is inspect.Parameter.empty or name in ("methods", "task")
        if rng.random() > (0.95 if required or name == "model" else 0.16):
            continue
        value = _value(rng, words[0], name, str(plain))
        if isinstance(info, typer.models.ArgumentInfo):
            arguments.append(value)
            continue
        declared = info.default if isinstance(info.default, str) and info.default.startswith("--") else ""
        option = declared.partition("/")[0] or "--" + name.replace("_", "-")
        words += [option] if plain in (bool, bool | None) else [option, value]
    if rng.random() < 0.03:
        words += [rng.choice(("--help", "--nothing", "--", "-x"))]
    return [*words, *ALWAYS.get(words_of_command, []), *arguments]


def make_world(folder: Path, run: Path) -> None:
    """Fill a folder with what the lines name.

    Args:
        folder: an empty one.
        run: a finished sweep's, beside its ``stages``.
    """
    tiny = Path(PRESETS["tiny"].source)
    shutil.copytree(run.parent / "stages", folder / "runs" / "stages", copy_function=_link_weights)
    shutil.copytree(run, folder / "runs" / "small-toy")
    shutil.copytree(tiny, folder / "model", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    factors = next((folder / "runs" / "stages").glob("compress-*/*/model"))
    shutil.copytree(factors, folder / "factors")
    samples = next((folder / "runs" / "stages").glob("evaluate-*/samples.jsonl")).read_text(encoding="utf-8")
    (folder / "samples.jsonl").write_text(samples, encoding="utf-8")
    (folder / "cut.jsonl").write_text(samples[: len(samples) // 2], encoding="utf-8")
    (folder / "file").write_text("text\n", encoding="utf-8")
    (folder / "binary").write_bytes(bytes(range(256)) * 16)
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")
    shutil.copy(Path(__file__).parent / "baselines" / "tiny.csv", folder / "baseline.csv")
    (folder / "sweep.yaml").write_text("model: tiny\ntask: toy-math\nmethods: [svd]\nratios: [2]\n", encoding="utf-8")
    (folder / "deep.yaml").write_text("model: " + "[" * 3000, encoding="utf-8")
    (folder / "dates.yaml").write_text("model: 2026-01-01\ntask: {a: !!python/none x}\n", encoding="utf-8")
    (folder / "digits.yaml").write_text(
        f"model: tiny\ntask: toy-math\nmethods: svd\nevaluation: {{limit: {DIGITS}}}\n", encoding="utf-8"
    )
    _make_bad_models(folder)
    _make_damaged_runs(folder)


def _link_weights(source: str, target: str) -> None:
    (os.link if source.endswith(".safetensors") else shutil.copy2)(source, target)


def _make_bad_models(folder: Path) -> None:
    for name in ("empty", "list", "adapter", "cut", "fifo", "deep"):
        shutil.copytree(folder / "model", folder / "bad" / name)
    (folder / "bad/empty/config.json").write_text("", encoding="utf-8")
    (folder / "bad/list/config.json").write_text("[]", encoding="utf-8")
    (folder / "bad/adapter/adapter_config.json").write_text("{}", encoding="utf-8")
    weights = folder / "bad/cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    (folder / "bad/fifo/model.safetensors").unlink()
    os.mkfifo(folder / "bad/fifo/model.safetensors")
    (folder / "bad/deep/tokenizer.json").write_text("[" * 20_000, encoding="utf-8")


def _make_damaged_runs(folder: Path) -> None:
    """Make runs whose stages' records, or results, are damaged, each with a store of its own."""
    for name in ("nested", "dates", "nulls", "empty", "fifo", "csv"):
        for part in ("stages", "small-toy"):
            shutil.copytree(folder / "runs" / part, folder / "damaged" / name / part, copy_function=_link_weights)
    for name, change in {
        "nested": lambda record: "[" * 10_000,
        "dates": lambda record: json.dumps(record | {"ended_at": "yesterday"}),
        "nulls": lambda record: json.dumps(dict.fromkeys(record)),
        "empty": lambda record: "",
    }.items():
        for file in (folder / "damaged" / name / "stages").glob("*/stage.json"):
            file.write_text(change(json.loads(file.read_text(encoding="utf-8"))), encoding="utf-8")
    for stage in (folder / "damaged" / "fifo" / "stages").glob("evaluate-*"):
        (stage / "samples.jsonl").unlink()
        os.mkfifo(stage / "samples.jsonl")
    for results in (folder / "damaged" / "csv").rglob("results.*"):
        results.write_bytes(results.read_bytes()[:300] + b"\xff\x00,,\n")
