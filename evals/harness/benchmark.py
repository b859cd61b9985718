"""A task or group of lm-evaluation-harness as a benchmark: ``lm_eval:arc_easy``, ``lm_eval:mmlu:shots=5``.

Prompts, examples, filters, verdicts and the values of tasks and groups are the harness's own: its ``evaluate`` runs
over one of this package's engines (`model`). This package adds what a sweep needs: identities of data and rules,
intervals, and a line per problem for paired tests (`outcome`).
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from ...foundation.errors import UserError
from ..base import Benchmark, EvalSettings, Outcome, Progress
from ..engines.base import Engine
from ..kinds.harness import harness_version, quiet
from ..tasks.prompts import most_tokens
from .loading import Described, Loaded, describe, load, seeded
from .model import __file__ as model_module
from .model import encode, engine_model, sampling_of
from .names import TaskName, parse_name
from .outcome import make_outcome
from .requests import Counted, count_tokens, request_texts

ADAPTER_VERSION = 1
"""Raised whenever the same task, data and model give other answers here; part of every stage's identity."""


class HarnessTaskBenchmark(Benchmark):
    """One task or group; `harness_benchmark` makes a class for each name. The same at both stages.

    Attributes:
        task_name: what the name says.
    """

    task_name: ClassVar[TaskName]
    generates = False

    def is_generating(self, settings: EvalSettings) -> bool:
        """Return whether a member of the task generates."""
        return self._described(settings).generates

    def variant(self, settings: EvalSettings) -> str:
        """Name task, version, shots and chat template: ``lm_eval-gsm8k-v3-5shot-chat``."""
        described = self._described(settings)
        version = f"-v{described.version}" if described.version else ""
        shots = f"{described.shots}shot" if described.shots >= 0 else "mixed-shots"
        return f"lm_eval-{self.task_name.task}{version}-{shots}{'-chat' if self.task_name.chat else ''}"

    def check(self, settings: EvalSettings) -> None:
        """Look for the harness, the task and its data."""
        harness_version()
        if settings.limit is not None and settings.limit < 1:
            raise UserError(f"--limit {settings.limit} leaves no problems; use 1 or more, or leave it out for all")
        if settings.samples != 1 or settings.temperature != 0:
            raise UserError(
                f"--samples and --temperature are not for {self.name}: generation_kwargs and repeats in its YAML say "
                "how completions are drawn; leave them out, or measure it by itself"
            )
        self._described(settings)

    def check_model(self, settings: EvalSettings, tokenizer: Any, context: int) -> None:
        """Raise a `UserError` if completions leave no room for prompts, or the chat template is missing."""
        if self.task_name.chat and not tokenizer.chat_template:
            raise UserError(f"the tokenizer has no chat template for '{self.name}'; leave :chat out")
        for task in self._load(settings).tasks["tasks"].values():
            if task.OUTPUT_TYPE == "generate_until":
                sampling_of(task.config.generation_kwargs or {}, context, settings.max_new_tokens)

    def identity(self, settings: EvalSettings) -> Mapping[str, Any]:
        """Return versions, and hashes of the task's YAML, code and data: few YAMLs pin a commit of their dataset."""
        described = self._described(settings)
        return {
            "benchmark": self.name,
            "variant": self.variant(settings),
            "lm_eval": harness_version(),
            "adapter": ADAPTER_VERSION,
            "rules": dict(described.rules),
            "data": dict(described.data),
            "limit": settings.limit,
            "max_new_tokens": settings.max_new_tokens,
        }

    def longest_sequence(self, tokenizer: Any, settings: EvalSettings, context: int) -> int:
        """Return the tokens of the longest request; what does not fit the model is cut."""
        with seeded(), quiet():
            loaded = self._load(settings)
            requests = list(request_texts(loaded, settings, self.task_name.chat, tokenizer, context))
        sizes: dict[str, int] = {}
        for text, new in requests:
            if new is None:  # windows of a text
                return context
            sizes[text] = max(new, sizes.get(text, 0))
        return min(most_tokens(sizes, lambda text: len(encode(tokenizer, text)) + sizes[text]), context)

    def count_tokens(self, tokenizer: Any, settings: EvalSettings, context: int, problems: int) -> Counted:
        """Return what an evaluation reads, scores and generates, by the first ``problems`` ones.

        Args:
            tokenizer: the model's.
            settings: as for `evaluate`.
            context: the model's longest sequence in tokens.
            problems: how many are looked at in all, at least one of each member.
        """
        with seeded(), quiet():
            loaded = self._load(settings)
            return count_tokens(loaded, settings, self.task_name.chat, tokenizer, context, problems)

    def evaluate(self, engine: Engine, settings: EvalSettings, progress: Progress | None = None) -> Outcome:
        """Let the harness evaluate the task on this engine."""
        from lm_eval.evaluator import evaluate

        model = engine_model(engine, settings.batch_size, settings.max_new_tokens, lambda _: progress)
        # The tasks are loaded again: loading draws random numbers, and evaluating changes the tasks.
        with seeded(), quiet(), _judging(self.name):
            loaded = self._load(settings)
            results = evaluate(
                model,
                loaded.tasks,
                limit=settings.limit,
                bootstrap_iters=0,  # intervals are made in `outcome`
                log_samples=True,
                apply_chat_template=self.task_name.chat,
                fewshot_as_multiturn=True,
            )
        fixed = {"benchmark": self.name, "variant": self.variant(settings), "stage": settings.stage}
        return make_outcome(self.task_name.task, loaded, results, model.notes, fixed)

    def _described(self, settings: EvalSettings) -> Described:
        return describe(self.task_name, settings.include_path, settings.data_dir)

    def _load(self, settings: EvalSettings) -> Loaded:
        return load(self.task_name, settings.include_path, settings.data_dir)


@lru_cache(maxsize=256)
def harness_benchmark(name: str) -> type[Benchmark]:
    """Return the benchmark of a name as `names` reads it; raise a `UserError` where it is none."""
    task = parse_name(name)
    return type("HarnessTask", (HarnessTaskBenchmark,), {"name": str(task), "task_name": task, "__module__": __name__})


@contextmanager
def _judging(name: str) -> Iterator[None]:
    """Context: what a task's YAML or Python raises is a `UserError`; what the engine raises is passed on.

    A rule may fail on one answer alone, after hours: nothing else can be known before.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if any(Path(frame.filename) == Path(model_module) for frame in frames):
            raise
        text = next(iter(str(error).strip().splitlines()), "")
        raise UserError(
            f"the rules of '{name}' fail ({type(error).__name__}: {text[:200]}, line {frames[-1].lineno} of "
            f"{frames[-1].filename}); repair metric_list, filter_list or doc_to_target in its YAML, or its Python"
        ) from error
