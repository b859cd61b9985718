"""Benchmarks whose prompts, choices and verdicts are lm-evaluation-harness's own, on our data and any engine.

The task's YAML is read from the installed package (extra ``harness``); its dataset is replaced by the records that
`datasets.load_rows` checked, so nothing is fetched by the harness. Only the task's own folder is indexed: building an
index of all tasks takes seven seconds, this one two milliseconds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from ...foundation.errors import UserError
from ..base import EvalSettings, Metric
from ..data.datasets import Rows
from ..grading.metrics import rate
from .choice import ChoiceBenchmark, Judged, Row
from .generative import cached_rows
from .likelihood import Likelihood, Pair


class HarnessBenchmark(ChoiceBenchmark):
    """Multiple choice as the harness's task of that name defines it, zero-shot.

    The headline is ``acc_norm``, the accuracy of the choice with the highest log-likelihood per character, where the
    task has it, and ``acc``, that of the highest log-likelihood, where it has not (WinoGrande, BoolQ). So does SFSD,
    which reads ``acc_norm`` through the harness; other papers print ``acc``, which is always recorded too.

    Attributes:
        task: the harness's name of the task.
        folder: folder of its YAML below ``lm_eval/tasks``.
        split: split of our dataset of the same name that is evaluated.
        values: per-problem numbers of the task, in the order of the metrics; the first one is the headline.
    """

    task: ClassVar[str]
    folder: ClassVar[str]
    split: ClassVar[str]
    values: ClassVar[tuple[str, ...]] = ("acc_norm", "acc")

    def data(self, settings: EvalSettings) -> Rows:
        """Return the records of the split."""
        return cached_rows(self.task, self.split, settings.data_dir)

    def variant(self, settings: EvalSettings) -> str:
        """Name the task as the harness does, and the shots."""
        return f"{self.task}-0shot"

    def check(self, settings: EvalSettings) -> None:
        """Look for the harness, then for the data."""
        harness_version()
        super().check(settings)

    def rules(self) -> Mapping[str, Any]:
        """Return the harness's version too: prompts and verdicts are its own."""
        return {**super().rules(), "lm_eval": harness_version()}

    def scorer(self) -> str:
        """Return the headline's metric."""
        return self.values[0]

    def requests(self, rows: Sequence[Row], settings: EvalSettings) -> list[list[Pair]]:
        """Return what the task asks, zero-shot."""
        return [[instance.args for instance in instances] for instances in _instances(self._loaded(rows))]

    def judge_rows(self, rows: Sequence[Row], scores: Sequence[Sequence[Likelihood]]) -> list[Judged]:
        """Return the task's own verdicts."""
        task = self._loaded(rows)
        return [self._judged(task, doc, row) for doc, row in zip(task.task_docs, scores, strict=True)]

    def _loaded(self, rows: Sequence[Row]) -> Any:
        """Load the task once for the steps of one evaluation."""
        last = getattr(self, "_last", None)
        if last is None or last[0] is not rows:
            last = self._last = (rows, load_task(self.folder, self.task, rows))
        return last[1]

    def _judged(self, task: Any, doc: Mapping[str, Any], scores: Sequence[Likelihood]) -> Judged:
        # The second part, whether greedy decoding gives the continuation, is read by exact_match alone.
        results = task.process_results(doc, [(score.value, False) for score in scores])
        verdicts = {name: "correct" if results[name] == 1 else "wrong" for name in self.values}
        # Where contexts differ and the continuation is the same (WinoGrande), the harness's text is the right index.
        gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        lengths = [len(choice) for choice in task.doc_to_choice(doc)]
        ranks = [
            score.value / length if self.scorer() == "acc_norm" else score.value
            for score, length in zip(scores, lengths, strict=True)
        ]
        return Judged(verdicts, max(range(len(ranks)), key=ranks.__getitem__), int(gold), {})

    def metrics(self, rows: Sequence[Row], judged: Sequence[Judged]) -> list[Metric]:
        """Return shares of right answers with Wilson intervals."""
        return [
            rate(
                name, [float(problem.verdicts[name] == "correct") for problem in judged], headline=name == self.scorer()
            )
            for name in self.values
        ]


@lru_cache(maxsize=1)
def harness_version() -> str:
    """Return the version of lm-evaluation-harness; raise a `UserError` where it is not installed."""
    try:
        return version("lm_eval")
    except PackageNotFoundError as error:
        raise UserError(
            "this benchmark takes its prompts from lm-evaluation-harness, which is not installed; install it with: "
            "pip install 'lowrank-bench[harness]'"
        ) from error


def load_task(folder: str, name: str, rows: Sequence[Row]) -> Any:
    """Return the harness's task with these rows as the split that it evaluates.

    Args:
        folder: folder below ``lm_eval/tasks``.
        name: name of the task.
        rows: records with the fields of the task's own dataset.
    """
    harness_version()
    import datasets
    from lm_eval.tasks import TaskManager

    spec = find_spec("lm_eval.tasks")
    assert spec is not None
    assert spec.origin is not None
    manager = TaskManager(include_path=str(Path(spec.origin).parent / folder), include_defaults=False)
    dataset = datasets.Dataset.from_list([dict(row) for row in rows])
    changes = {
        "task": name,
        "custom_dataset": lambda **_: {"test": dataset},
        "dataset_kwargs": None,
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": None,
    }
    with quiet():  # it warns that custom datasets may take arguments
        loaded = manager.load([{"group": "local", "task": [changes]}])
    return loaded["tasks"][name]


def _instances(task: Any) -> Iterator[list[Any]]:
    """Yield each problem's requests."""
    for doc in task.task_docs:  # eval_docs would process them again
        context = task.fewshot_context(doc, num_fewshot=0)
        yield task.construct_requests(doc, context, metadata=(task.config.task, None, 1))


@contextmanager
def quiet() -> Iterator[None]:
    """Context: the harness and `datasets` say nothing below an error."""
    import datasets
    import lm_eval.api.task

    bar = lm_eval.api.task.tqdm
    lm_eval.api.task.tqdm = lambda items, **_: items
    logger, bars = logging.getLogger("lm_eval"), datasets.are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = bar
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
