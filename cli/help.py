"""What help shows beside options: paragraphs as wide as the terminal, and examples that can be typed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer

EXAMPLES: dict[str, tuple[str, ...]] = {
    "run": (
        "bench run --methods svd,bs --model tiny --task toy-math --ratios 2,4",
        "bench run --methods quick=bs:prunings=2,svd --model tiny --task my-task.yaml",
        "bench run --training-free --methods svd --model FOLDER --task language",
    ),
    "shrink": ("bench shrink --keep 95% --methods svd,bs --model tiny --task toy-math",),
    "reproduce": (
        "bench reproduce",
        "bench reproduce basis-selection --figure 3a --model tiny --dry-run",
    ),
    "methods": ("bench methods", "bench methods svd-llm", "bench methods --policies"),
    "models": ("bench models",),
    "tasks": ("bench tasks",),
    "benchmarks": ("bench benchmarks",),
    "compress": ("bench compress tiny --method svd:embeddings=true --ratio 2 --out small",),
    "eval": (
        "bench eval tiny --benchmarks toy-math --stage pretrained --limit 50",
        "bench eval small --benchmarks toy-math --out results",
    ),
    "compare": ("bench compare runs/tiny-toy-math:svd@2 runs/tiny-toy-math:bs@2",),
    "rescore": ("bench rescore runs/tiny-toy-math",),
    "show": ("bench show runs/tiny-toy-math:svd@2 --verdict wrong --limit 3",),
    "score": ("bench score gsm8k --gold 42 --completion 'The answer is 42.'",),
    "export": (
        "bench export runs/tiny-toy-math:svd@2 --dense --out dense",
        "bench export runs/tiny-toy-math --format lm-eval --out results",
    ),
    "speed": (
        "bench speed runs/tiny-toy-math:svd@2 --engine transformers --batch-sizes 1,16",
        "bench speed --online runs/tiny-toy-math:svd@2 --concurrency 1,8",
    ),
    "push": ("bench push runs/tiny-toy-math:svd@2 OWNER/NAME --dry-run",),
    "table": (
        "bench table runs/tiny-toy-math --overview",
        "bench table runs/tiny-toy-math --where method=svd --value bytes",
    ),
    "plot": ("bench plot runs/tiny-toy-math --x bytes",),
    "inspect": (
        "bench inspect tiny --layer 1 --matrix o",
        "bench inspect runs/tiny-toy-math:bs@2 --changes",
    ),
    "report": ("bench report runs/tiny-toy-math",),
    "check": ("bench check runs/tiny-toy-math --baseline baseline.csv --min-drop 3",),
    "doctor": ("bench doctor", "bench doctor --out runs --repair"),
    "task new": ("bench task new my-task.yaml",),
    "task check": ("bench task check my-task.yaml --model tiny",),
    "leaderboard show": ("bench leaderboard runs/tiny-toy-math runs/other",),
    "leaderboard add": ("bench leaderboard add records.csv",),
    "leaderboard schema": ("bench leaderboard schema > records.schema.json",),
    "baseline update": ("bench baseline update runs/tiny-toy-math --baseline baseline.csv",),
    "baseline show": ("bench baseline show baseline.csv",),
}
"""Command lines that help ends with, by command; at most 78 characters each, so that 80 columns hold them."""


def named_commands(app: typer.Typer, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each command's name, with that of its group before it, and typer's record of it."""
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__.replace("_", "-")
        yield f"{above}{name}", command
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from named_commands(group.typer_instance, f"{group.name} ")


def finish_help(app: typer.Typer) -> None:
    """Give every command its examples, and its paragraphs without the line breaks of the source.

    Raises:
        KeyError: a command has no example in `EXAMPLES`.
    """
    for name, command in named_commands(app):
        paragraphs = inspect.cleandoc(command.callback.__doc__ or "").split("\n\n")
        command.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        lines = [line.replace("[", r"\[") for line in EXAMPLES[name]]
        command.epilog = "\n\n".join([f"Example{'s' * (len(lines) > 1)}:", *lines])
